"""Databases, and readers shared by threads."""

import struct
import threading
from collections import Counter
from pathlib import Path

import pytest
from caffe2._core.serialization import deserialize, serialize
from hypothesis import given
from hypothesis import strategies as st

from caffe2._core.db import DB, DBReader, Mode, create_db, db_exists, register_db, registered_dbs
from caffe2.proto import caffe2_pb2
from caffe2.python import workspace

SAMPLES = Path(__file__).parents[1] / "data/samples"
RECORDS = [(b"key%d" % i, b"value %d" % i) for i in range(5)]


def fill(db_type, path, records=RECORDS, mode=Mode.new):
    db = create_db(db_type, str(path), mode)
    transaction = db.new_transaction()
    for key, value in records:
        transaction.put(key, value)
    transaction.commit()
    del transaction
    db.close()
    return str(path)


def contents(cursor):
    found = []
    while cursor.valid():
        found.append((cursor.key(), cursor.value()))
        cursor.next()
    return found


def read(db_type, path):
    db = create_db(db_type, str(path))
    found = contents(db.new_cursor())
    db.close()
    return found


# ---------------------------------------------------------------- all kinds

def tensor_records(n):
    protos = [caffe2_pb2.TensorProto(name=f"k{i}", dims=[1], float_data=[i]) for i in range(n)]
    return [(p.name.encode(), p.SerializeToString()) for p in protos]


@pytest.mark.parametrize("db_type", ["minidb", "MiniDB", "lmdb", "LMDB", "protodb", "ProtoDB"])
def test_write_append_read(db_type, tmp_path):
    records = tensor_records(5)
    path = fill(db_type, tmp_path / "db", records[:3])
    assert read(db_type, path) == records[:3]
    fill(db_type, path, records[3:], Mode.write)
    cursor = create_db(db_type, path, Mode.read).new_cursor()
    assert contents(cursor) == records
    with pytest.raises(RuntimeError, match="no record"):
        cursor.key()
    with pytest.raises(RuntimeError, match="no record"):
        cursor.value()
    cursor.seek_to_first()
    assert cursor.key() == b"k0"


@pytest.mark.parametrize("db_type", ["minidb", "lmdb", "protodb"])
def test_missing(db_type, tmp_path):
    path = str(tmp_path / "none")
    with pytest.raises(RuntimeError, match="none"):
        create_db(db_type, path)
    assert not db_exists(db_type, path)
    fill(db_type, path, tensor_records(1))
    assert db_exists(db_type, path)


@pytest.mark.parametrize("db_type", ["minidb", "lmdb", "protodb"])
def test_read_only(db_type, tmp_path):
    path = fill(db_type, tmp_path / "db", tensor_records(1))
    with pytest.raises(RuntimeError, match="mode 'read' only"):
        create_db(db_type, path).new_transaction()


def test_unknown_type(tmp_path):
    with pytest.raises(RuntimeError, match="no database type is named 'oracle'.*minidb"):
        create_db("oracle", str(tmp_path / "x"))
    with pytest.raises(RuntimeError, match="oracle"):
        db_exists("oracle", str(tmp_path / "x"))
    assert {"minidb", "MiniDB", "protodb", "lmdb"} <= set(registered_dbs())


def test_register(tmp_path):
    class Memory(DB):
        def close(self):
            self.closed = True

    register_db("memory of this test", Memory)
    db = create_db("memory of this test", "somewhere", Mode.write)
    assert (db.source, db.mode) == ("somewhere", Mode.write)
    assert "memory of this test" in workspace.C.registered_dbs()


def test_names_of_the_extension(tmp_path):
    """Records count as written when the transaction and the database are deleted."""
    path = str(tmp_path / "db")
    db = workspace.C.create_db("minidb", path, workspace.C.Mode.new)
    for key, value in RECORDS:
        transaction = db.new_transaction()
        transaction.put(key.decode(), value)        # text serves as well
        del transaction
    del db
    assert read("minidb", path) == RECORDS
    db = workspace.C.create_db("minidb", path, workspace.C.Mode.read)
    assert not db.new_cursor().supports_seek()


# ---------------------------------------------------------------- minidb

def test_minidb_format(tmp_path):
    path = fill("minidb", tmp_path / "db", [(b"a", b"xyz"), (b"bc", b"\x00")])
    assert Path(path).read_bytes() == b"\1\0\0\0\3\0\0\0axyz" b"\2\0\0\0\1\0\0\0bc\0"


def test_minidb_sample():
    records = read("minidb", SAMPLES / "train.minidb")
    assert [k for k, _ in records] == [b"%03d" % i for i in range(20)]
    assert all(len(caffe2_pb2.TensorProtos.FromString(v).protos) == 2 for _, v in records)


def test_minidb_is_made_anew(tmp_path):
    path = fill("minidb", tmp_path / "db")
    fill("minidb", path, RECORDS[:1])
    assert read("minidb", path) == RECORDS[:1]


def test_minidb_empty(tmp_path):
    path = fill("minidb", tmp_path / "db", [])
    assert read("minidb", path) == []
    with pytest.raises(RuntimeError, match="no record"):
        DBReader.open("minidb", path).read()


def test_minidb_refuses_what_it_cannot_read_back(tmp_path):
    transaction = create_db("minidb", str(tmp_path / "db"), Mode.new).new_transaction()
    for key, value in ((b"", b"x"), (b"x", b"")):
        with pytest.raises(ValueError, match="minidb"):
            transaction.put(key, value)


def test_minidb_truncated(tmp_path):
    path = Path(fill("minidb", tmp_path / "db"))
    data = path.read_bytes()
    whole = [0]
    for key, value in RECORDS:
        whole.append(whole[-1] + 8 + len(key) + len(value))
    for n in range(len(data)):
        path.write_bytes(data[:n])
        if n in whole:
            assert read("minidb", path) == RECORDS[:whole.index(n)]
        else:
            with pytest.raises(RuntimeError, match="corrupt"):
                read("minidb", path)


@pytest.mark.parametrize(
    "header", [(0, 5), (5, 0), (-1, 5), (3, -1), (2**31 - 1, 1), (1, 2**31 - 1)])
def test_minidb_lengths(header, tmp_path):
    path = tmp_path / "db"
    path.write_bytes(struct.pack("<ii", *header) + b"12345")
    with pytest.raises(RuntimeError, match="corrupt"):
        read("minidb", path)


@given(st.binary(max_size=40))
def test_minidb_noise(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("noise") / "db"
    path.write_bytes(data)
    try:
        found = read("minidb", path)
    except RuntimeError:
        return
    assert sum(8 + len(k) + len(v) for k, v in found) == len(data)


def test_cursor_after_corruption(tmp_path):
    path = Path(fill("minidb", tmp_path / "db"))
    path.write_bytes(path.read_bytes()[:-1])
    cursor = create_db("minidb", str(path)).new_cursor()
    with pytest.raises(RuntimeError, match="corrupt"):
        contents(cursor)
    assert not cursor.valid()


def test_writers_in_threads(tmp_path):
    db = create_db("minidb", str(tmp_path / "db"), Mode.new)

    def write(i):
        transaction = db.new_transaction()
        for j in range(50):
            transaction.put(b"%d/%d" % (i, j), b"x" * (1000 + j))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    db.close()
    found = dict(read("minidb", tmp_path / "db"))
    assert found == {b"%d/%d" % (i, j): b"x" * (1000 + j) for i in range(4) for j in range(50)}


# ---------------------------------------------------------------- lmdb, protodb

def test_lmdb_seek(tmp_path):
    path = fill("lmdb", tmp_path / "db", [(b"a", b"1"), (b"c", b"2"), (b"e", b"3")])
    cursor = create_db("lmdb", path).new_cursor()
    assert cursor.supports_seek()
    for key, found in ((b"c", b"c"), (b"d", b"e"), ("", b"a")):
        cursor.seek(key)
        assert cursor.key() == found
    cursor.seek(b"f")
    assert not cursor.valid()


def test_lmdb_readers_share(tmp_path):
    path = fill("lmdb", tmp_path / "db")
    first, second = DBReader.open("lmdb", path), DBReader.open("lmdb", path)
    assert [first.read(), first.read(), second.read()] == [RECORDS[0], RECORDS[1], RECORDS[0]]
    first.db.close()
    assert second.read() == RECORDS[1]
    second.db.close()
    fill("lmdb", path, [(b"new", b"1")], Mode.write)
    assert len(read("lmdb", path)) == 6


def test_lmdb_is_not_overwritten(tmp_path):
    path = fill("lmdb", tmp_path / "db")
    with pytest.raises(RuntimeError, match="exists"):
        create_db("lmdb", path, Mode.new)
    assert read("lmdb", path) == RECORDS


def test_minidb_cannot_seek():
    cursor = create_db("minidb", str(SAMPLES / "train.minidb")).new_cursor()
    with pytest.raises(RuntimeError, match="cannot seek"):
        cursor.seek(b"003")


def test_protodb_keys(tmp_path):
    ((key, value),) = tensor_records(1)
    transaction = create_db("protodb", str(tmp_path / "db"), Mode.new).new_transaction()
    transaction.put(key, value)
    with pytest.raises(RuntimeError, match="exists already"):
        transaction.put(key, value)
    with pytest.raises(RuntimeError, match="not the tensor's name"):
        transaction.put(b"other", value)


# ---------------------------------------------------------------- readers

def test_reader_starts_again():
    reader = DBReader.open("minidb", str(SAMPLES / "train.minidb"))
    keys = [reader.read()[0] for _ in range(45)]
    assert keys == [b"%03d" % (i % 20) for i in range(45)]
    reader.seek_to_first()
    assert reader.read()[0] == b"000"


@pytest.mark.parametrize("shard, keys", [(0, [0, 3, 0]), (1, [1, 4, 1]), (2, [2, 2, 2])])
def test_shards(shard, keys, tmp_path):
    reader = DBReader.open("minidb", fill("minidb", tmp_path / "db"), 3, shard)
    assert [reader.read()[0] for _ in keys] == [b"key%d" % k for k in keys]


def test_bad_shards(tmp_path):
    path = fill("minidb", tmp_path / "db")
    for num_shards, shard in ((0, 0), (2, 2), (2, -1)):
        with pytest.raises(ValueError, match="shard_id"):
            DBReader.open("minidb", path, num_shards, shard)
    with pytest.raises(RuntimeError, match="no record for shard 7"):
        DBReader.open("minidb", path, 9, 7)


@pytest.mark.parametrize("db_type", ["minidb", "lmdb"])
def test_threads_share_a_reader(db_type, tmp_path):
    reader = DBReader.open(db_type, fill(db_type, tmp_path / "db"))
    found = [[] for _ in range(4)]

    def take(into):
        for _ in range(50):
            into += reader.read_values(5)

    threads = [threading.Thread(target=take, args=(f,)) for f in found]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert Counter(v for f in found for v in f) == {v: 200 for _, v in RECORDS}
    # batches of 5 come whole: each starts where the last one, of any thread, has ended
    assert all(f[i:i + 5] == [v for _, v in RECORDS] for f in found for i in range(0, 250, 5))


@pytest.mark.parametrize("db_type, goes_on_at", [("lmdb", b"key2"), ("minidb", b"key0")])
def test_serialized_reader(db_type, goes_on_at, tmp_path):
    """Where the database can seek, the place reached is kept; otherwise reading starts afresh."""
    reader = DBReader.open(db_type, fill(db_type, tmp_path / "db"))
    reader.read_values(2)
    data = serialize(reader, "r")
    blob = caffe2_pb2.BlobProto.FromString(data)
    proto = caffe2_pb2.DBReaderProto.FromString(blob.content)
    assert (blob.type, proto.name, proto.db_type) == ("DBReader", "r", db_type)
    assert proto.source == str(tmp_path / "db") and proto.HasField("key") == (db_type == "lmdb")
    reader.db.close()
    assert deserialize(data).read()[0] == goes_on_at


def test_corrupt_reader():
    missing = caffe2_pb2.DBReaderProto(db_type="minidb", source="/nowhere/db")
    for content in (b"\xff", missing.SerializeToString()):
        data = caffe2_pb2.BlobProto(name="r", type="DBReader", content=content).SerializeToString()
        with pytest.raises(RuntimeError, match="corrupt|/nowhere/db"):
            deserialize(data)

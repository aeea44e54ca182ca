"""Operators that save and load blobs, and that read records."""

import threading
from pathlib import Path

import numpy as np
import pytest
from caffe2._core.serialization import deserialize, serialize_tensor
from caffe2._core.tensor import Tensor
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caffe2._core.db import DBReader, create_db
from caffe2._core.db import Mode as DBMode
from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace

SAMPLES = Path(__file__).parents[1] / "data/samples"
DTYPES = ["float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16"]
TEXTS = np.array([b"alpha", b"beta\x00gamma", b""], object)


def run(type, inputs=(), outputs=(), **args):
    workspace.RunOperatorOnce(core.CreateOperator(type, list(inputs), list(outputs), **args))


def save(path, blobs, **args):
    """Feed blobs {name: value} and save them."""
    for name, value in blobs.items():
        workspace.FeedBlob(name, value)
    run("Save", blobs, db=str(path), db_type="minidb", absolute_path=1, **args)


def load(path, outputs=(), **args):
    run("Load", [], outputs, db=str(path), db_type="minidb", absolute_path=1, **args)


def keys(path):
    cursor = create_db("minidb", str(path)).new_cursor()
    found = []
    while cursor.valid():
        found.append(cursor.key().decode())
        cursor.next()
    return found


def write_records(path, records, db_type="minidb"):
    """A database of TensorProtos, each of some arrays."""
    db = create_db(db_type, str(path), DBMode.new)
    transaction = db.new_transaction()
    for i, arrays in enumerate(records):
        protos = caffe2_pb2.TensorProtos()
        for a in arrays:
            protos.protos.add().ParseFromString(serialize_tensor(Tensor(a)))
        transaction.put(b"%04d" % i, protos.SerializeToString())
    transaction.commit()
    db.close()
    return str(path)


def reader(path, name="reader", db_type="minidb", **args):
    run("CreateDB", [], [name], db=str(path), db_type=db_type, **args)
    return name


def same(name, expected):
    got = workspace.FetchBlob(name)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)


# ---------------------------------------------------------------- files of the original

def test_load_sample():
    load(SAMPLES / "saved.minidb", load_all=1)
    expected = dict(np.load(SAMPLES / "blobs.npz"), s=TEXTS)
    assert sorted(workspace.Blobs()) == sorted(expected)
    for name, value in expected.items():
        same(name, value)


def test_save_writes_the_same_file(tmp_path):
    names = [k.removesuffix("#%0") for k in keys(SAMPLES / "saved.minidb")]
    expected = dict(np.load(SAMPLES / "blobs.npz"), s=TEXTS)
    save(tmp_path / "db", {n: expected[n] for n in names})
    assert (tmp_path / "db").read_bytes() == (SAMPLES / "saved.minidb").read_bytes()


def test_chunked_sample(tmp_path):
    (value,) = np.load(SAMPLES / "saved_chunks.npz").values()
    load(SAMPLES / "saved_chunks.minidb", ["big"])
    same("big", value)
    save(tmp_path / "db", {"big": value}, chunk_size=1000)
    assert (tmp_path / "db").read_bytes() == (SAMPLES / "saved_chunks.minidb").read_bytes()


@pytest.mark.parametrize("batch", [1, 4, 7, 20, 33])
def test_train_sample(batch):
    train = np.load(SAMPLES / "train.npz")
    name = reader(SAMPLES / "train.minidb")
    net = core.Net("input")
    net.TensorProtosDBInput([name], ["data", "label"], batch_size=batch)
    workspace.CreateNet(net)
    for step in range(5):
        workspace.RunNet(net)
        rows = np.arange(step * batch, (step + 1) * batch) % 20
        same("data", train["X"][rows])
        same("label", train["Y"][rows].astype(np.int32))


# ---------------------------------------------------------------- Save

def test_every_dtype(tmp_path):
    blobs = {f"b{d}": (np.arange(6) % 3).reshape(2, 3).astype(d) for d in DTYPES}
    blobs["s"] = TEXTS
    for db_type in ("minidb", "lmdb"):
        for name, value in blobs.items():
            workspace.FeedBlob(name, value)
        args = dict(db=str(tmp_path / db_type), db_type=db_type, absolute_path=1)
        run("Save", blobs, **args)
        workspace.ResetWorkspace()
        run("Load", [], blobs, **args)
        for name, value in blobs.items():
            same(name, value)


def test_text_blob(tmp_path):
    save(tmp_path / "db", {"text": b"some\x00text"})
    assert keys(tmp_path / "db") == ["text"]
    workspace.ResetWorkspace()
    load(tmp_path / "db", ["text"])
    assert workspace.FetchBlob("text") == b"some\x00text"


def test_names(tmp_path):
    a, b = np.arange(2), np.arange(3)
    save(tmp_path / "stripped", {"gpu_0/a": a, "b": b}, strip_prefix="gpu_0/")
    assert keys(tmp_path / "stripped") == ["a#%0", "b#%0"]
    save(tmp_path / "named", {"gpu_0/a": a, "b": b}, blob_name_overrides=["x", "y"])
    assert keys(tmp_path / "named") == ["x#%0", "y#%0"]
    load(tmp_path / "named", ["y"])
    same("y", b)


def test_root_folder(tmp_path):
    workspace.ResetWorkspace(str(tmp_path))
    workspace.FeedBlob("x", np.arange(3))
    run("Save", ["x"], db="inside", db_type="minidb")
    assert keys(tmp_path / "inside") == ["x#%0"]
    run("DBExists", [], ["exists"], db_name="inside", db_type="minidb")
    same("exists", np.array(True))
    run("Load", [], ["x"], db="inside", db_type="minidb")
    run("DBExists", [], ["exists"], db_name="inside", db_type="minidb", absolute_path=1)
    same("exists", np.array(False))


def test_options(tmp_path):
    option = caffe2_pb2.BlobSerializationOptions
    options = caffe2_pb2.SerializationOptions(options=[
        option(blob_name_regex="small.*", chunk_size=4),
        option(blob_name_regex="half", float_format=option.FLOAT_BFLOAT16),
        option(chunk_size=6),
    ])
    value = np.arange(12, dtype=np.float32)
    save(tmp_path / "db", {"small_1": value, "half": value, "rest": value},
         options=options.SerializeToString())
    assert keys(tmp_path / "db") == [
        "small_1#%0", "small_1#%1", "small_1#%2", "half#%0", "rest#%0", "rest#%1"]
    workspace.ResetWorkspace()
    load(tmp_path / "db", load_all=1)
    for name in workspace.Blobs():
        same(name, value)
    assert b"\x78\x01" in (tmp_path / "db").read_bytes()      # data_format: bfloat16


@pytest.mark.parametrize("args, match", [
    ({"db": "x"}, "db_type"),
    ({"db_type": "minidb"}, "argument db "),
    ({"blob_name_overrides": ["a"]}, "1 names, there are 2 blobs"),
    ({"blob_name_overrides": ["a", "a"]}, "given twice"),
    ({"blob_name_overrides": ["a", "b"], "strip_prefix": "c"}, "exclude"),
    ({"db_type": "oracle", "db": "x"}, "oracle"),
])
def test_bad_save(args, match):
    workspace.FeedBlob("x", np.arange(2))
    workspace.FeedBlob("y", np.arange(2))
    args = {"db": "db", "db_type": "minidb", **args} if "blob_name_overrides" in args else args
    with pytest.raises(RuntimeError, match=match):
        run("Save", ["x", "y"], **args)


def test_nothing_is_overwritten_by_a_save_that_cannot_succeed(tmp_path):
    save(tmp_path / "db", {"x": np.arange(3)})
    before = (tmp_path / "db").read_bytes()
    workspace.C.Workspace.current.create("thing").content = object()
    with pytest.raises(RuntimeError, match="thing cannot be serialized"):
        run("Save", ["x", "thing"], db=str(tmp_path / "db"), db_type="minidb", absolute_path=1)
    assert (tmp_path / "db").read_bytes() == before


# ---------------------------------------------------------------- Load

@given(st.data())
def test_chunks_in_any_order(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("chunks")
    blobs = {f"x{i}": data.draw(hnp.arrays(np.int64, hnp.array_shapes(max_side=6)), f"x{i}")
             for i in range(2)}
    save(folder / "db", blobs, chunk_size=data.draw(st.integers(1, 9), "chunk_size"))
    cursor = create_db("minidb", str(folder / "db")).new_cursor()
    records = []
    while cursor.valid():
        records.append((cursor.key(), cursor.value()))
        cursor.next()
    db = create_db("minidb", str(folder / "shuffled"), DBMode.new)
    transaction = db.new_transaction()
    for record in data.draw(st.permutations(records)):
        transaction.put(*record)
    db.close()
    workspace.ResetWorkspace()
    load(folder / "shuffled", blobs)
    for name, value in blobs.items():
        same(name, value)


def test_load_names(tmp_path):
    values = {"gpu_0/a": np.arange(2), "b": np.arange(3)}
    save(tmp_path / "db", values)
    workspace.ResetWorkspace()
    load(tmp_path / "db", ["a"], strip_prefix="gpu_0/")
    load(tmp_path / "db", ["new/a", "new/b"], strip_prefix="gpu_0/", add_prefix="new/")
    load(tmp_path / "db", ["first", "second"], source_blob_names=["b", "gpu_0/a"])
    for name, source in {"a": "gpu_0/a", "new/a": "gpu_0/a", "new/b": "b", "first": "b",
                         "second": "gpu_0/a"}.items():
        same(name, values[source])
    load(tmp_path / "db", load_all=1, add_prefix="all/")
    same("all/gpu_0/a", values["gpu_0/a"])


def test_several_databases(tmp_path):
    values = {"a": np.arange(2), "b": np.arange(3)}
    for name, value in values.items():
        save(tmp_path / name, {name: value})
    both = dict(dbs=[str(tmp_path / "a"), str(tmp_path / "b")], db_type="minidb", absolute_path=1)
    for outputs, more in ((["b", "a"], {}), ([], {"load_all": 1})):
        workspace.ResetWorkspace()
        run("Load", [], outputs, **both, **more)
        for name, value in values.items():
            same(name, value)
    save(tmp_path / "b", {"a": np.arange(9)})
    with pytest.raises(RuntimeError, match="more than one"):
        run("Load", [], [], load_all=1, **both)
    same("a", np.arange(9))


def test_readers_as_inputs(tmp_path):
    """A Load goes on from where the last one has stopped."""
    save(tmp_path / "db", {"a": np.arange(2), "b": np.arange(3), "c": np.arange(4)})
    workspace.ResetWorkspace()
    name = reader(tmp_path / "db")
    run("Load", [name], ["b"])
    assert not workspace.HasBlob("a")
    run("Load", [name], [], load_all=1)
    assert sorted(workspace.Blobs()) == ["b", "c", "reader"]


def test_incomplete(tmp_path):
    save(tmp_path / "db", {"a": np.arange(2)})
    workspace.FeedBlob("b", np.arange(5))
    workspace.FeedBlob("a", np.zeros(1))
    with pytest.raises(RuntimeError, match="not found in the database: b, c"):
        load(tmp_path / "db", ["a", "b", "c"])
    same("a", np.zeros(1))
    load(tmp_path / "db", ["a", "b"], allow_incomplete=1)
    same("a", np.arange(2))
    same("b", np.arange(5))
    with pytest.raises(RuntimeError, match="not found in the database: b"):
        load(tmp_path / "db", ["a", "b"], load_all=1)


def test_corrupt_files_change_nothing(tmp_path):
    save(tmp_path / "db", {"a": np.arange(20), "b": np.arange(30)}, chunk_size=7)
    data = (tmp_path / "db").read_bytes()
    workspace.ResetWorkspace()
    workspace.FeedBlob("a", np.zeros(2))
    for n in range(0, len(data), 5):
        (tmp_path / "cut").write_bytes(data[:n])
        # of an empty file, all there is can be loaded
        for outputs, args in ((["a", "b"], {}), ([], {"load_all": 1}))[:2 if n else 1]:
            with pytest.raises(RuntimeError):
                load(tmp_path / "cut", outputs, **args)
    same("a", np.zeros(2))
    with pytest.raises(RuntimeError, match="b holds nothing"):
        workspace.FetchBlob("b")


def test_missing_chunk(tmp_path):
    save(tmp_path / "db", {"a": np.arange(20)}, chunk_size=10)
    data = (tmp_path / "db").read_bytes()
    (tmp_path / "db").write_bytes(data[:len(data) // 2])
    with pytest.raises(RuntimeError, match="a is incomplete: 10 of 20"):
        load(tmp_path / "db", ["a"], allow_incomplete=1)
    (tmp_path / "db").write_bytes(data + data)
    load(tmp_path / "db", ["a"])            # stops where everything is found
    with pytest.raises(RuntimeError, match="complete"):
        load(tmp_path / "db", load_all=1)


@pytest.mark.parametrize("outputs, args, match", [
    (["a"], {"db_type": ""}, "db_type"),
    (["a"], {"db": ""}, "argument db "),
    (["a"], {"dbs": ["x", "x"]}, "twice"),
    (["a"], {"dbs": ["x", ""]}, "empty"),
    (["a", "a"], {}, "twice"),
    (["a"], {"source_blob_names": ["x", "y"]}, "2 names, there are 1 outputs"),
    (["a"], {"source_blob_names": ["x"], "strip_prefix": "y"}, "exclude"),
    (["a"], {"source_blob_names": ["x"], "load_all": 1}, "exclude"),
    (["a"], {"db": "nowhere/at/all"}, "nowhere/at/all"),
    (["a"], {"db_type": "oracle"}, "oracle"),
])
def test_bad_load(outputs, args, match, tmp_path):
    save(tmp_path / "db", {"a": np.arange(2)})
    args = {"db": str(tmp_path / "db"), "db_type": "minidb", "absolute_path": 1, **args}
    with pytest.raises(RuntimeError, match=match):
        run("Load", [], outputs, **args)


def test_load_shape_inference():
    net = core.Net("n")
    net.Load([], ["x"], db="d", db_type="minidb", shape=[3, 4])
    shapes, types = workspace.InferShapesAndTypes([net])
    assert shapes["x"] == [3, 4] and types["x"] == core.DataType.FLOAT


# ---------------------------------------------------------------- Checkpoint

@pytest.mark.parametrize("type", ["Checkpoint", "Snapshot"])
@pytest.mark.parametrize("pattern, name", [
    ("at_%08d.db", "at_00000004.db"), ("at_%lld_%%", "at_4_%"), ("plain", "plain"), ("%x", "4"),
])
def test_checkpoint(type, pattern, name, tmp_path):
    workspace.FeedBlob("x", np.arange(3))
    net = core.Net("n")
    getattr(net, type)(["iteration", "x"], [], db=f"{tmp_path}/{pattern}", db_type="minidb",
                       absolute_path=1, every=4)
    workspace.FeedBlob("iteration", np.array([3]))
    workspace.CreateNet(net)
    for i in (3, 4, 5):
        workspace.FeedBlob("iteration", np.array([i]))
        workspace.RunNet(net)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert keys(tmp_path / name) == ["iteration#%0", "x#%0"]


def test_bad_checkpoint(tmp_path):
    workspace.FeedBlob("x", np.arange(3.0))
    args = dict(db=str(tmp_path / "%d"), db_type="minidb", absolute_path=1)
    with pytest.raises(RuntimeError, match="every"):
        run("Checkpoint", ["x"], every=0, **args)
    with pytest.raises(RuntimeError, match="must hold an integer"):
        run("Checkpoint", ["x"], **args)
    with pytest.raises(RuntimeError, match="at least 1 input"):
        run("Snapshot", [], **args)


def test_reader_in_a_checkpoint(tmp_path):
    path = write_records(tmp_path / "db", [[np.array(i)] for i in range(5)], "lmdb")
    name = reader(path, db_type="lmdb")
    run("TensorProtosDBInput", [name], ["x"], batch_size=3)
    run("Save", [name], db=str(tmp_path / "state"), db_type="minidb", absolute_path=1)
    workspace.ResetWorkspace()
    load(tmp_path / "state", [name])
    run("TensorProtosDBInput", [name], ["x"], batch_size=3)
    same("x", np.array([3, 4, 0]))


# ---------------------------------------------------------------- CreateDB, TensorProtosDBInput

@given(st.data())
def test_batches(tmp_path_factory, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    n, batch = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 7))
    first = data.draw(hnp.arrays(dtype, (n, *shape)))
    texts = np.array([b"%d" % i * i for i in range(n)], object)
    path = write_records(tmp_path_factory.mktemp("db") / "db",
                         [[first[i], texts[i:i + 1]] for i in range(n)])
    name = reader(path)
    for step in range(2):
        run("TensorProtosDBInput", [name], ["a", "s"], batch_size=batch)
        rows = np.arange(step * batch, (step + 1) * batch) % n
        same("a", first[rows])
        same("s", texts[rows].reshape(batch, 1))


def test_one_record_at_a_time(tmp_path):
    records = [[np.arange(i), np.zeros((i, 2), np.float32)] for i in range(3)]
    name = reader(write_records(tmp_path / "db", records))
    for i in (0, 1, 2, 0):
        run("TensorProtosDBInput", [name], ["a", "b"])
        for blob, value in zip(("a", "b"), records[i], strict=True):
            same(blob, value)


def test_shards(tmp_path):
    path = write_records(tmp_path / "db", [[np.array(i)] for i in range(7)])
    name = reader(path, num_shards=3, shard_id=1)
    run("TensorProtosDBInput", [name], ["x"], batch_size=5)
    same("x", np.array([1, 4, 1, 4, 1]))


def test_dequantized_bytes(tmp_path):
    """Images are often stored as BYTE."""
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    proto = caffe2_pb2.TensorProto(
        dims=image.shape, data_type=caffe2_pb2.TensorProto.BYTE, byte_data=image.tobytes())
    db = create_db("minidb", str(tmp_path / "db"), DBMode.new)
    db.new_transaction().put("0", caffe2_pb2.TensorProtos(protos=[proto]).SerializeToString())
    db.close()
    run("TensorProtosDBInput", [reader(tmp_path / "db")], ["x"], batch_size=2)
    same("x", np.stack([image, image]))


def part():
    return caffe2_pb2.TensorProto(dims=[4], float_data=[1], segment={"begin": 0, "end": 1})


@pytest.mark.parametrize("second, match", [
    (caffe2_pb2.TensorProtos(protos=[{"dims": [3], "float_data": [1, 2, 3]}]), "differ in shape"),
    (caffe2_pb2.TensorProtos(protos=[{"dims": [1, 4], "float_data": [1, 2, 3, 4]}]), "differ"),
    (caffe2_pb2.TensorProtos(protos=[{"dims": [4], "data_type": 2, "int32_data": [1] * 4}]), "differ"),
    (caffe2_pb2.TensorProtos(protos=[{"dims": [4], "float_data": [1, 2, 3]}]), "3 float values"),
    (caffe2_pb2.TensorProtos(), "holds 0 tensors, there are 1 outputs"),
    (caffe2_pb2.TensorProtos(protos=[{"dims": [4], "float_data": [1] * 4}] * 2), "holds 2 tensors"),
    (caffe2_pb2.TensorProtos(protos=[part()]), "part of a tensor"),
])
def test_bad_records(second, match, tmp_path):
    path = tmp_path / "db"
    write_records(path, [[np.ones(4, np.float32)]])
    db = create_db("minidb", str(path), DBMode.write)
    db.new_transaction().put("1", second.SerializeToString() or b"\x12\x00")    # an unknown field
    db.close()
    with pytest.raises(RuntimeError, match=match):
        run("TensorProtosDBInput", [reader(path)], ["x"], batch_size=2)


def test_bad_input(tmp_path):
    path = write_records(tmp_path / "db", [[np.ones(4, np.float32)]])
    with pytest.raises(RuntimeError, match="batch_size"):
        run("TensorProtosDBInput", [reader(path)], ["x"], batch_size=-1)
    workspace.FeedBlob("array", np.ones(3))
    with pytest.raises(RuntimeError, match="must hold a DBReader"):
        run("TensorProtosDBInput", ["array"], ["x"], batch_size=1)
    with pytest.raises(RuntimeError, match="argument db "):
        run("CreateDB", [], ["r"], db_type="minidb")
    with pytest.raises(RuntimeError, match="shard_id"):
        reader(path, num_shards=2, shard_id=2)
    with pytest.raises(RuntimeError, match="nowhere"):
        reader("nowhere")


def test_truncated_record(tmp_path):
    record = caffe2_pb2.TensorProtos(
        protos=[{"dims": [4], "float_data": [1, 2, 3, 4]}]).SerializeToString()
    for n in range(1, len(record)):
        path = str(tmp_path / str(n))
        db = create_db("minidb", path, DBMode.new)
        db.new_transaction().put("0", record[:n])
        db.close()
        with pytest.raises(RuntimeError):
            run("TensorProtosDBInput", [reader(path)], ["x"], batch_size=1)


def test_nets_in_threads_share_a_reader(tmp_path):
    n, batch, steps = 12, 3, 40
    name = reader(write_records(tmp_path / "db", [[np.array(i)] for i in range(n)]))
    nets = []
    for i in range(3):
        net = core.Net(f"net_{i}")
        net.TensorProtosDBInput([name], [f"x{i}"], batch_size=batch)
        workspace.CreateNet(net)
        nets.append(net)
    seen = [[] for _ in nets]

    def work(i):
        for _ in range(steps):
            workspace.RunNet(nets[i])
            seen[i].append(tuple(workspace.FetchBlob(f"x{i}").tolist()))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    batches = [b for s in seen for b in s]
    whole = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]
    assert {b: batches.count(b) for b in set(batches)} == dict.fromkeys(whole, 30)


def test_model_helper(tmp_path):
    from caffe2.python import model_helper

    path = write_records(tmp_path / "db", [[np.full(2, i, np.float32)] for i in range(4)])
    model = model_helper.ModelHelper(name="m")
    model.TensorProtosDBInput([], ["data"], batch_size=2, db=path, db_type="minidb")
    workspace.RunNetOnce(model.param_init_net)
    workspace.CreateNet(model.net)
    workspace.RunNet(model.net, 2)
    same("data", np.array([[2, 2], [3, 3]], np.float32))


def test_reader_blob():
    name = reader(SAMPLES / "train.minidb")
    assert isinstance(workspace.C.Workspace.current.blobs[name].content, DBReader)
    restored = deserialize(workspace.SerializeBlob(name))
    assert restored.read()[0] == b"000"

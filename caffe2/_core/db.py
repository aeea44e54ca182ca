"""Databases of keys and values, and readers that operators share."""
import enum
import os
import struct
import threading
from collections.abc import Callable

from caffe2._core.serialization import register_type


class Mode(enum.IntEnum):
    """What a database is opened for."""

    read = 0
    write = 1
    new = 2


class Cursor:
    """A place in a database that is read; a fresh one stands at the first record.

    Cursors and transactions keep their database open, unless it is closed by hand.
    """

    def supports_seek(self) -> bool:
        return False

    def seek(self, key: bytes):
        """Go to a key, or the first one after it."""
        raise RuntimeError(f"{type(self).__name__} cannot seek a key")

    def seek_to_first(self):
        raise NotImplementedError

    def next(self):
        raise NotImplementedError

    def key(self) -> bytes:
        raise NotImplementedError

    def value(self) -> bytes:
        raise NotImplementedError

    def valid(self) -> bool:
        """Whether there is a record here; False after the last one."""
        raise NotImplementedError

    def _check(self):
        if not self.valid():
            raise RuntimeError("the cursor stands at no record")


class Transaction:
    """Writes to a database; committed at the latest when it is deleted."""

    def put(self, key: bytes, value: bytes):
        raise NotImplementedError

    def commit(self):
        raise NotImplementedError

    def __del__(self):
        self.commit()


class DB:
    """A database.

    Parameters
    ----------
    source : str
        Its path.
    mode : Mode
        `Mode.new` makes an empty one, `Mode.write` adds to one.
    """

    def __init__(self, source, mode):
        self.source, self.mode = os.fspath(source), Mode(mode)

    def new_cursor(self) -> Cursor:
        raise NotImplementedError

    def new_transaction(self) -> Transaction:
        raise NotImplementedError

    def close(self):
        raise NotImplementedError

    def __del__(self):
        self.close()

    def _expect(self, *modes):
        if self.mode not in modes:
            raise RuntimeError(f"database {self.source} is open for mode {self.mode.name!r} only")


def _bytes(text):
    return text.encode() if isinstance(text, str) else bytes(text)


# ---------------------------------------------------------------- minidb

_HEADER = struct.Struct("<ii")      # length of key, length of value


class _MiniDBCursor(Cursor):
    _file = None

    def __init__(self, source):
        self._file = open(source, "rb", buffering=1 << 20)
        self._size = os.fstat(self._file.fileno()).st_size
        self.seek_to_first()

    def seek_to_first(self):
        self._file.seek(0)
        self._at = 0
        self.next()

    def next(self):
        self._key = None
        header = self._file.read(_HEADER.size)
        if not header:
            return
        key, value = _HEADER.unpack(header) if len(header) == _HEADER.size else (0, 0)
        at = self._at
        self._at += len(header) + key + value
        if key <= 0 or value <= 0 or self._at > self._size:
            raise RuntimeError(
                f"{self._file.name} is corrupt: no whole record at byte {at} of {self._size}")
        record = self._file.read(key + value)
        if len(record) < key + value:
            raise RuntimeError(f"{self._file.name} was cut off while being read")
        self._key, self._value = record[:key], record[key:]

    def key(self):
        self._check()
        return self._key

    def value(self):
        self._check()
        return self._value

    def valid(self):
        return self._key is not None

    def __del__(self):
        if self._file is not None:
            self._file.close()


class _MiniDBTransaction(Transaction):
    def __init__(self, db):
        self._db = db

    def put(self, key, value):
        key, value = _bytes(key), _bytes(value)
        if not key or not value or max(len(key), len(value)) >= 2**31:
            raise ValueError("a key and a value of minidb have 1 to 2**31 - 1 bytes")
        with self._db.lock:
            self._db.file.write(_HEADER.pack(len(key), len(value)) + key)
            self._db.file.write(value)

    def commit(self):
        if not self._db.file.closed:
            self._db.file.flush()


class MiniDB(DB):
    """One file: length of key, length of value (int32), key, value, and so on."""

    file = None

    def __init__(self, source, mode):
        super().__init__(source, mode)
        flags = {Mode.new: "wb", Mode.write: "ab", Mode.read: "rb"}
        self.file = open(self.source, flags[self.mode])
        self.lock = threading.Lock()

    def new_cursor(self):
        self._expect(Mode.read)
        return _MiniDBCursor(self.source)

    def new_transaction(self):
        self._expect(Mode.new, Mode.write)
        return _MiniDBTransaction(self)

    def close(self):
        if self.file is not None:
            self.file.close()


# ---------------------------------------------------------------- protodb

class _ProtoDBCursor(Cursor):
    def __init__(self, protos):
        self._protos, self._at = protos, 0

    def seek_to_first(self):
        self._at = 0

    def next(self):
        self._at += 1

    def key(self):
        self._check()
        return self._protos[self._at].name.encode()

    def value(self):
        self._check()
        return self._protos[self._at].SerializeToString()

    def valid(self):
        return self._at < len(self._protos)


class _ProtoDBTransaction(Transaction):
    def __init__(self, db):
        self._db = db
        self._names = {p.name for p in db.message.protos}

    def put(self, key, value):
        from caffe2.proto import caffe2_pb2

        proto, key = caffe2_pb2.TensorProto.FromString(value), _bytes(key).decode()
        if key in self._names or proto.name != key:
            raise RuntimeError(f"{key} exists already" if key in self._names else
                               f"key {key} is not the tensor's name, {proto.name}")
        self._names.add(key)
        self._db.message.protos.append(proto)

    def commit(self):
        """Nothing: the file is written when the database is closed."""


class ProtoDB(DB):
    """One file, a TensorProtos message whose tensors' names are the keys."""

    message = None

    def __init__(self, source, mode):
        from caffe2.proto import caffe2_pb2

        super().__init__(source, mode)
        message = caffe2_pb2.TensorProtos()
        if self.mode != Mode.new:
            with open(self.source, "rb") as f:
                try:
                    message.ParseFromString(f.read())
                except Exception as e:
                    raise RuntimeError(f"{self.source} is corrupt: {e}") from None
        self.message = message

    def new_cursor(self):
        return _ProtoDBCursor(self.message.protos)

    def new_transaction(self):
        self._expect(Mode.new, Mode.write)
        return _ProtoDBTransaction(self)

    def close(self):
        message, self.message = self.message, None
        if message is not None and self.mode != Mode.read:
            with open(self.source, "wb") as f:
                f.write(message.SerializeToString())


# ---------------------------------------------------------------- lmdb

class _LMDBCursor(Cursor):
    def __init__(self, db):
        self._db = db
        self._cursor = db.environment.begin().cursor()
        self.seek_to_first()

    def supports_seek(self):
        return True

    def seek(self, key):
        self._valid = self._cursor.set_range(_bytes(key)) if key else self._cursor.first()

    def seek_to_first(self):
        self._valid = self._cursor.first()

    def next(self):
        self._valid = self._cursor.next()

    def key(self):
        self._check()
        return self._cursor.key()

    def value(self):
        self._check()
        return self._cursor.value()

    def valid(self):
        return self._valid


class _LMDBTransaction(Transaction):
    _transaction = None

    def __init__(self, db):
        self._db = db
        self._transaction = db.environment.begin(write=True)

    def put(self, key, value):
        if self._transaction is None:
            self._transaction = self._db.environment.begin(write=True)
        self._transaction.put(_bytes(key), _bytes(value))

    def commit(self):
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.commit()


class LMDB(DB):
    """A folder that the lmdb library keeps; a process opens it once, all readers share that."""

    environment = None
    _shared = {}                    # path -> [environment, number of readers]
    _lock = threading.RLock()       # reentrant: garbage collection may close a database anywhere

    def __init__(self, source, mode):
        super().__init__(source, mode)
        self._path = os.path.realpath(self.source)
        with self._lock:
            if self.mode == Mode.read and self._path in self._shared:
                self.environment = self._shared[self._path][0]
            else:
                self.environment = self._open()
            if self.mode == Mode.read:
                self._shared.setdefault(self._path, [self.environment, 0])[1] += 1

    def _open(self):
        try:
            import lmdb
        except ImportError:
            raise RuntimeError(
                "databases of type lmdb need the extra: pip install caffe2[lmdb]") from None
        if self.mode == Mode.new:
            os.mkdir(self.source, 0o744)
        reading = self.mode == Mode.read
        try:
            return lmdb.open(
                self.source, map_size=1 << 40, readonly=reading, lock=not reading, create=False)
        except lmdb.Error as e:
            raise RuntimeError(f"cannot open the lmdb database {self.source}: {e}") from None

    def new_cursor(self):
        return _LMDBCursor(self)

    def new_transaction(self):
        self._expect(Mode.new, Mode.write)
        return _LMDBTransaction(self)

    def close(self):
        with self._lock:
            environment, self.environment = self.environment, None
            if environment is not None and self.mode == Mode.read:
                shared = self._shared[self._path]
                shared[1] -= 1
                if shared[1]:
                    return
                del self._shared[self._path]
            if environment is not None:
                environment.close()


# ---------------------------------------------------------------- registry

_types = {}             # name -> class


def register_db(name: str, cls: Callable[[str, Mode], DB]):
    """Make a kind of database known by a name."""
    _types[name] = cls


for _cls in (MiniDB, ProtoDB, LMDB):
    register_db(_cls.__name__, _cls)
    register_db(_cls.__name__.lower(), _cls)


def registered_dbs() -> list[str]:
    """Names of the kinds of databases that can be opened here."""
    from importlib.util import find_spec

    return sorted(n for n, c in _types.items() if c is not LMDB or find_spec("lmdb"))


def _find(db_type):
    if db_type not in _types:
        raise RuntimeError(f"no database type is named {db_type!r}, "
                           f"there are {', '.join(registered_dbs())}")
    return _types[db_type]


def create_db(db_type: str, source: str, mode: Mode = Mode.read) -> DB:
    """Open a database.

    Raises
    ------
    RuntimeError
        If there is no such kind, or the database cannot be opened; it names the database.
    """
    cls = _find(db_type)
    try:
        return cls(source, mode)
    except OSError as e:
        raise RuntimeError(f"cannot open the {db_type} database {source}: {e}") from e


def db_exists(db_type: str, source: str) -> bool:
    """Whether a database can be opened for reading."""
    _find(db_type)
    try:
        create_db(db_type, source, Mode.read).close()
    except RuntimeError:
        return False
    return True


# ---------------------------------------------------------------- readers

class DBReader:
    """Reads a database record by record, from the start again after the end. Threads may share it.

    Parameters
    ----------
    db : DB
        What to read.
    num_shards, shard_id : int
        Of each `num_shards` records read the one number `shard_id`.
    """

    def __init__(self, db: DB, num_shards: int = 1, shard_id: int = 0,
                 db_type: str = "<memory-type>", source: str = "<memory-source>"):
        if not 0 <= shard_id < num_shards:
            raise ValueError(f"shard_id is {shard_id}, but must be 0 to {num_shards} - 1")
        self.db, self.db_type, self.source = db, db_type, source
        self.num_shards, self.shard_id = num_shards, shard_id
        self.lock = threading.RLock()       # hold it to use the cursor
        self.cursor = db.new_cursor()
        self._skip()

    @classmethod
    def open(cls, db_type: str, source: str, num_shards: int = 1, shard_id: int = 0) -> "DBReader":
        return cls(create_db(db_type, source), num_shards, shard_id, db_type, source)

    def _skip(self):
        for _ in range(self.shard_id):
            self.cursor.next()
            if not self.cursor.valid():
                raise RuntimeError(f"{self.source} has no record for shard {self.shard_id}")

    def seek_to_first(self):
        with self.lock:
            self.cursor.seek_to_first()
            self._skip()

    def read(self) -> tuple[bytes, bytes]:
        """Key and value of this record; the reader goes on to the next."""
        with self.lock:
            cursor = self.cursor
            if not cursor.valid():
                raise RuntimeError(f"database {self.source} has no record to read")
            record = cursor.key(), cursor.value()
            for _ in range(self.num_shards):
                cursor.next()
                if not cursor.valid():
                    self.seek_to_first()
                    break
            return record

    def read_values(self, n: int) -> list[bytes]:
        """Values of the next n records; no other thread reads any between them."""
        with self.lock:
            return [self.read()[1] for _ in range(n)]

    def __repr__(self):
        return f"DBReader({self.db_type!r}, {self.source!r})"


def _fill_reader(reader, message):
    from caffe2.proto import caffe2_pb2

    proto = caffe2_pb2.DBReaderProto(
        name=message.name, source=reader.source, db_type=reader.db_type)
    with reader.lock:
        if reader.cursor.supports_seek():
            proto.key = reader.cursor.key().decode()
    message.content = proto.SerializeToString()


def _restore_reader(message):
    from caffe2.proto import caffe2_pb2

    try:
        proto = caffe2_pb2.DBReaderProto.FromString(message.content)
    except Exception as e:
        raise RuntimeError(f"corrupt DBReaderProto: {e}") from None
    reader = DBReader.open(proto.db_type, proto.source)
    if proto.HasField("key"):
        reader.cursor.seek(proto.key.encode())
    return reader


register_type("DBReader", DBReader, _fill_reader, _restore_reader)

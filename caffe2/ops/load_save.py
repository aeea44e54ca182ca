"""Blobs in databases: Save, Load and what belongs to them."""
import re

import numpy as np

from caffe2._core.db import DBReader, Mode, create_db, db_exists
from caffe2._core.gradient import none
from caffe2._core.operator import Operator
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, scalar
from caffe2._core.serialization import Assembler, check_serializable, chunks

_BOOL = 5
_CHUNK = "#%"           # between a blob's name and the number of a chunk
# A number in a format of C: flags, width and precision; type.
_PATTERN = re.compile(r"%([-+ #0]*\d*(?:\.\d+)?)(?:hh?|ll?|[qjzt])?([diuxXo])|%%")


class _DBOperator(Operator):
    def path(self, name):
        """Where a database named in an argument lies."""
        return name if self.args.bool("absolute_path") else f"{self.workspace.root_folder}/{name}"

    def required(self, name):
        value = self.args.str(name)
        if not value:
            raise ValueError(f"argument {name} must be given")
        return value


def _without_prefix(name, prefix):
    """What follows the prefix, wherever in the name it stands."""
    return name.partition(prefix)[2] if prefix and prefix in name else name


def _unique(names, what):
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name} is given twice")
        seen.add(name)
    return names


class DBExists(_DBOperator):
    def execute(self):
        exists = db_exists(self.args.str("db_type"), self.path(self.args.str("db_name")))
        self.set_output(0, np.bool_(exists))


class Save(_DBOperator):
    def setup(self):
        args = self.args
        self.db_type, self.db = self.required("db_type"), self.required("db")
        strip = args.str("strip_prefix")
        names = [n.decode() for n in args.strings("blob_name_overrides")]
        if names and strip:
            raise ValueError("strip_prefix and blob_name_overrides exclude each other")
        if names and len(names) != len(self.inputs):
            raise ValueError(f"blob_name_overrides has {len(names)} names, "
                             f"there are {len(self.inputs)} blobs")
        names = names or [_without_prefix(n, strip) for n in self.definition.input]
        self.names = _unique(names, "blob name")
        self.options = [self.chunking(n) for n in self.names]

    def chunking(self, name):
        """Keyword arguments of `chunks` for a blob: the first option that fits its name."""
        from caffe2.proto import caffe2_pb2

        options = self.args.bytes("options")
        for o in caffe2_pb2.SerializationOptions.FromString(options).options:
            if not o.blob_name_regex or re.fullmatch(o.blob_name_regex, name):
                return {"chunk_size": o.chunk_size, "bfloat16": o.float_format == o.FLOAT_BFLOAT16}
        return {"chunk_size": self.args.int("chunk_size")}

    def execute(self):
        self.save(self.db)

    def save(self, name):
        contents = [b.content for b in self.inputs]
        for content, blob_name in zip(contents, self.names, strict=True):
            check_serializable(content, blob_name)      # before a database is made
        db = create_db(self.db_type, self.path(name), Mode.new)
        try:
            transaction = db.new_transaction()
            for content, blob_name, options in zip(contents, self.names, self.options, strict=True):
                for key, data in chunks(content, blob_name, **options):
                    transaction.put(key, data)
            transaction.commit()
        finally:
            db.close()


class Checkpoint(Save):
    """Saves when the iteration, input 0, is a multiple of `every`."""

    def setup(self):
        if not self.inputs:
            raise ValueError("takes at least 1 input")
        super().setup()
        self.every = self.args.int("every", 1)
        if self.every <= 0:
            raise ValueError(f"every must be positive, but is {self.every}")

    def execute(self):
        iteration = self.input(0)
        if iteration.size == 0 or iteration.dtype.kind not in "iu":
            raise TypeError(f"input 0 ({self.definition.input[0]}) must hold an integer")
        iteration = int(iteration.flat[0])
        if iteration % self.every == 0:
            self.save(_PATTERN.sub(
                lambda m: "%" if m[0] == "%%" else f"%{m[1]}{m[2]}" % iteration, self.db))


class Load(_DBOperator):
    def setup(self):
        args = self.args
        self.sources = []
        if not self.inputs:
            self.db_type = self.required("db_type")
            sources = [n.decode() for n in args.strings("dbs")] or [self.required("db")]
            self.sources = _unique(sources, "database")
            if "" in self.sources:
                raise ValueError("a name in dbs is empty")
        self.load_all = args.bool("load_all")
        self.strip, self.add = args.str("strip_prefix"), args.str("add_prefix")
        names = [n.decode() for n in args.strings("source_blob_names")]
        if names and (self.strip or self.load_all):
            other = "strip_prefix" if self.strip else "load_all"
            raise ValueError(f"source_blob_names and {other} exclude each other")
        if names and len(names) != len(self.outputs):
            raise ValueError(f"source_blob_names has {len(names)} names, "
                             f"there are {len(self.outputs)} outputs")
        wanted = names or list(self.definition.output)
        # in the order of the outputs
        self.wanted = dict.fromkeys(wanted if self.load_all else _unique(wanted, "blob name"))

    def name_of(self, key):
        return self.add + _without_prefix(key.decode().partition(_CHUNK)[0], self.strip)

    def execute(self):
        # Nothing is written to the workspace before everything is read and found complete.
        assembler = Assembler()
        origin, complete = {}, set()
        for i, source in enumerate(self.sources):
            db = create_db(self.db_type, self.path(source))
            try:
                self.extract(i, db.new_cursor(), assembler, origin, complete)
            finally:
                db.close()
        for i in range(len(self.inputs)):
            reader = self.object(i, DBReader)
            with reader.lock:
                self.extract(i, reader.cursor, assembler, origin, complete)
        assembler.finish()
        missing = [n for n in self.wanted if n not in complete]
        if missing and (self.load_all or not self.args.bool("allow_incomplete")):
            raise RuntimeError(f"not found in the database: {', '.join(missing)}")
        if self.load_all:
            for name, content in assembler.contents.items():
                self.workspace.create(name).content = content
        else:
            for name, blob in zip(self.wanted, self.outputs, strict=True):
                if name in complete:
                    blob.content = assembler.contents[name]

    def extract(self, number, cursor, assembler, origin, complete):
        """Take what is wanted from one database; stop where everything is found."""
        while cursor.valid():
            name = self.name_of(cursor.key())
            if self.load_all or name in self.wanted:
                if origin.setdefault(name, number) != number:
                    raise RuntimeError(f"blob {name} is in more than one database")
                if assembler.add(name, cursor.value()):
                    complete.add(name)
                if not self.load_all and len(complete) == len(self.wanted):
                    return
            cursor.next()


def _infer_load(args, inputs):
    shape = args.ints("shape")
    return [TensorInfo(shape)] if shape and len(args.definition.output) == 1 else []


_PATH = {
    "absolute_path": "(int, default 0) Whether the path is used as it is; otherwise it starts "
                     "from the workspace's root folder.",
    "db_type": "(string) Kind of the database: minidb, lmdb, ...",
}
_SAVE = {
    **_PATH,
    "chunk_size": "(int, default 0) Elements of a tensor that go into one record; "
                  "0 stands for 1,000,000, -1 for all.",
    "strip_prefix": "(string) Is removed from the blobs' names, together with what precedes it.",
    "blob_name_overrides": "(strings) Names to save the blobs under, one an input.",
    "options": "(string) A serialized SerializationOptions message: chunk size and float format "
               "by blob name.",
}

register(
    "DBExists", DBExists, 0, 1, outs={"exists": "bool, 0-dimensional."}, infer=scalar(_BOOL),
    args={**_PATH, "db_name": "(string) Path of the database."},
    doc="Whether a database can be opened.",
)
register(
    "Save", Save, (1, None), 0, ins={"X": "A blob; any number of them follow."},
    args={**_SAVE, "db": "(string) Path of the database; it is made anew."},
    doc="Saves blobs in a new database, under their names.",
)
for _type, _inputs in (("Checkpoint", (1, None)), ("Snapshot", (0, None))):
    register(
        _type, Checkpoint, _inputs, 0 if _type == "Checkpoint" else (0, None),
        ins={"iteration": "int64, 1 element. It is saved as well; blobs to save follow."},
        args={
            **_SAVE,
            "db": "(string) Path of the database, with a pattern like %08d for the iteration.",
            "every": "(int, default 1) The blobs are saved when the iteration is a multiple of it.",
        },
        doc="Saves blobs every few iterations, each time in a database of its own."
            + (" The old name of Checkpoint." if _type == "Snapshot" else ""),
    )
register(
    "Load", Load, (0, None), (0, None), gradient=none, infer=_infer_load,
    ins={"X, Y, ...": "Database readers; the argument db or dbs serves where there is none."},
    args={
        **_PATH,
        "db": "(string) Path of the database.",
        "dbs": "(strings) Paths of several databases instead of db; no blob may be in two.",
        "add_prefix": "(string) Goes before the names in the database; names of outputs have it.",
        "strip_prefix": "(string) Is removed from the names in the database, with what is before.",
        "source_blob_names": "(strings) Names in the database, one an output, where they differ.",
        "load_all": "(int, default 0) Whether to load every blob, creating it where needed.",
        "allow_incomplete": "(bool, default 0) Whether outputs not found stay as they are.",
        "keep_device": "(int, default 0) Whether blobs go to the device they were saved from "
                       "instead of the operator's.",
        "shape": "(ints) Shape of a single output, for shape inference.",
    },
    doc="Loads blobs that Save wrote, whole or in chunks. If anything is wrong, no blob changes.",
)

"""Database readers, and operators that read batches of records from them."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.serialization cimport (
    bytes_t, field_t, next_field, parse_tensor, proto_t, write_values,
)
from caffe2._core.tensor cimport MAX_DIMS, resize, tensor_t

from caffe2._core.db import DBReader
from caffe2._core.gradient import none
from caffe2._core.registry import register


cdef class CreateDB(Operator):
    def setup(self):
        if not self.args.str("db"):
            raise ValueError("argument db must be given")

    def execute(self):
        args = self.args
        self.set_object(0, DBReader.open(args.str("db_type", "leveldb"), args.str("db"),
                                         args.int("num_shards", 1), args.int("shard_id")))


cdef class TensorProtosDBInput(Operator):
    cdef int64_t batch_size

    def setup(self):
        self.batch_size = self.args.int("batch_size")
        if self.batch_size < 0:
            raise ValueError(f"batch_size must not be negative, but is {self.batch_size}")

    def execute(self):
        cdef int64_t k, n = max(self.batch_size, 1)
        cdef list values = self.object(0, DBReader).read_values(n)
        cdef bytes_t* records = <bytes_t*>self.scratch(2 * n * sizeof(void*))
        for k in range(n):
            records[2 * k] = <bytes_t>PyBytes_AS_STRING(values[k])
            records[2 * k + 1] = records[2 * k] + PyBytes_GET_SIZE(values[k])
        with nogil:
            for k in range(n):
                self.take(records[2 * k], records[2 * k + 1], k)

    # Write the tensors of record k to the outputs; the first record decides on shapes and types.
    cdef int take(self, bytes_t p, bytes_t end, int64_t k) except -1 nogil:
        cdef field_t f
        cdef proto_t proto
        cdef int i = 0
        while next_field(&p, end, &f):
            if f.number != 1 or f.wire_type != 2:
                continue
            if i < self.num_outputs:
                parse_tensor(&proto, f.data, f.end)
                self.prepare(&proto, self.y[i], k)
                write_values(&proto, self.y[i], k * proto.size)
            i += 1
        if i != self.num_outputs:
            with gil:
                raise RuntimeError(
                    f"a record holds {i} tensors, there are {self.num_outputs} outputs")
        return 0

    cdef int prepare(self, const proto_t* proto, tensor_t* y, int64_t k) except -1 nogil:
        cdef int64_t[MAX_DIMS + 1] shape
        cdef int i, lead = self.batch_size > 0
        cdef bint same
        if proto.stop - proto.begin != proto.size:
            return self.fail(b"a record holds a part of a tensor only")
        if k == 0:
            shape[0] = self.batch_size
            for i in range(proto.ndim):
                shape[lead + i] = proto.shape[i]
            return resize(y, proto.ndim + lead, shape, proto.dtype)
        same = y.dtype == proto.dtype and y.ndim == proto.ndim + 1
        for i in range(proto.ndim if same else 0):
            same = same and y.shape[i + 1] == proto.shape[i]
        return 0 if same else self.fail(b"records of one batch differ in shape or type")


register(
    "CreateDB", CreateDB, 0, 1, gradient=none,
    outs={"reader": "A database reader, to be shared by any number of operators."},
    args={
        "db_type": "(string, default leveldb) Kind of the database: minidb, lmdb, ...",
        "db": "(string) Path of the database.",
        "num_shards": "(int, default 1) Of so many records,",
        "shard_id": "(int, default 0) the one of this number is read.",
    },
    doc="Opens a database for reading.",
)
register(
    "TensorProtosDBInput", TensorProtosDBInput, 1, (1, None), gradient=none,
    ins={"data": "A database reader, see CreateDB; its records are serialized TensorProtos."},
    outs={"output": "Tensor 0 of the records; one output for each of their tensors follows."},
    args={
        "batch_size": "(int, default 0) Records to read at a time, along a new first dimension; "
                      "0: one record, without that dimension.",
        "no_prefetch": "(bool) Accepted; records are read when they are needed.",
    },
    doc="Reads the next records of a database, from the start again after the last one.",
)

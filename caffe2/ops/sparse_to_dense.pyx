# cython: boundscheck=True, wraparound=True
# (shape inference indexes lists by what a net says)
"""Between sparse tensors, rows with their indices, and dense ones."""
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    BOOL, DOUBLE, FLOAT, INT32, MAX_DIMS, STRING, UNDEFINED, itemsize, resize, resize1, resize2,
    size_from, tensor_t,
)
from caffe2.ops.indices cimport check_indices, index_at, is_index
from caffe2.ops.lookup cimport open_table, slot_of, table_t
from caffe2.ops.movement cimport Movement, copy_bytes

from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo

ctypedef fused number_t:
    int32_t
    int64_t
    float
    double


cdef void sum_rows(const number_t* values, number_t* y, const tensor_t* indices, int64_t row) noexcept nogil:
    cdef int64_t i, j
    cdef number_t* to
    for i in range(indices.size):
        to = y + index_at(indices, i) * row
        for j in range(row):
            to[j] += values[i * row + j]


cdef class SparseToDense(Operator):
    cdef int64_t first

    def setup(self):
        self.first = self.args.int("output_first_dim")

    cdef int run(self) except -1 nogil:
        cdef tensor_t* indices = self.x[0]
        cdef tensor_t* values = self.x[1]
        cdef tensor_t* y = self.y[0]
        cdef int64_t[MAX_DIMS] dims
        cdef int64_t i, n = self.first, row
        if not is_index(indices.dtype):
            return self.bad_dtype(0)
        self.expect_ndim(0, 1)
        if values.dtype != FLOAT and values.dtype != DOUBLE and not is_index(values.dtype):
            return self.bad_dtype(1)
        if values.ndim < 1 or values.shape[0] != indices.size:
            return self.fail("there must be an index for each row of values")
        if self.num_inputs == 3:
            if self.x[2].dtype == UNDEFINED or self.x[2].ndim < 1:
                return self.fail("the tensor to take the first dimension from must have one")
            n = self.x[2].shape[0]
        elif n <= 0:
            for i in range(indices.size):
                n = max(n, index_at(indices, i) + 1)
        check_indices(indices, 0, n)
        memcpy(dims, values.shape, values.ndim * sizeof(int64_t))
        dims[0] = n
        row = size_from(values, 1)
        resize(y, values.ndim, dims, values.dtype)
        memset(y.data, 0, y.size * itemsize(y.dtype))
        if y.dtype == FLOAT:
            sum_rows(<float*>values.data, <float*>y.data, indices, row)
        elif y.dtype == DOUBLE:
            sum_rows(<double*>values.data, <double*>y.data, indices, row)
        elif y.dtype == INT32:
            sum_rows(<int32_t*>values.data, <int32_t*>y.data, indices, row)
        else:
            sum_rows(<int64_t*>values.data, <int64_t*>y.data, indices, row)
        return 0


def sparse_to_dense_infer(args, inputs):
    n = inputs[2].shape[0] if len(inputs) == 3 else args.int("output_first_dim") or -1
    return [TensorInfo((n, *inputs[1].shape[1:]), inputs[1].dtype)]


register(
    "SparseToDense", SparseToDense, (2, 3), 1,
    ins={"indices": "int32 or int64 vector", "values": "int32, int64, float or double tensor, a row for each index",
         "data_to_infer_dim": "its first dimension is that of the output, by default the greatest index plus 1"},
    outs={"output": "dense tensor"}, args={"output_first_dim": "first dimension of the output"},
    infer=sparse_to_dense_infer,
    gradient=simple("Gather", "GO0 I0", "GI1", copy_args=False),
    doc="Puts rows at their indices, zeros elsewhere. Rows with the same index sum up.",
)


# ---------------------------------------------------------------- columns that a mask names

cdef class Masked(Movement):
    """Reads the argument mask: the ids that the columns of the dense tensor stand for."""
    cdef table_t table
    cdef int64_t columns

    def setup(self):
        cdef int64_t i
        cdef int64_t* slot
        mask = self.args.ints("mask")
        if not mask or min(mask) < 0 or len(set(mask)) < len(mask):
            raise ValueError("requires the argument mask: distinct ids that are not negative")
        self.columns = len(mask)
        open_table(self, &self.table, self.columns)
        for i in range(self.columns):
            slot = slot_of(&self.table, mask[i])
            slot[0], slot[1] = mask[i], i

    cdef int64_t column(self, int64_t i) noexcept nogil:
        """Of sparse index i; -1 where the mask lacks it."""
        return slot_of(&self.table, index_at(self.x[0], i))[1]

    cdef int check_lengths(self, int i) except -1 nogil:
        """Input i, where it is there, must tell rows apart."""
        cdef int64_t k, total = 0
        if not is_index(self.x[0].dtype):
            return self.bad_dtype(0)
        self.expect_ndim(0, 1)
        if i >= self.num_inputs:
            return 0
        self.expect(i, INT32)
        self.expect_ndim(i, 1)
        for k in range(self.x[i].size):
            if index_at(self.x[i], k) < 0:
                return self.fail("lengths must not be negative")
            total += index_at(self.x[i], k)
        return 0 if total == self.x[0].size else self.fail("the lengths must add up to the number of indices")


cdef class SparseToDenseMask(Masked):
    cdef bint presence
    cdef int64_t skipped, most_skipped

    def setup(self):
        Masked.setup(self)
        self.presence = self.args.bool("return_presence_mask")
        self.most_skipped = self.args.int("max_skipped_indices", 50)
        if self.presence and self.num_outputs < 2:
            raise ValueError("return_presence_mask needs a second output")

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* values = self.x[1]
        cdef tensor_t* default = self.x[2]
        cdef int64_t[MAX_DIMS + 2] dims
        cdef int64_t i
        cdef int rows = 0, d
        self.check_lengths(3)
        if values.dtype == UNDEFINED or values.ndim < 1 or values.shape[0] != self.x[0].size:
            return self.fail("there must be an index for each row of values")
        if default.dtype != values.dtype:
            return self.fail("the default value must be of the type of values")
        if default.ndim + 1 != values.ndim:
            return self.fail("the default value must have the shape of a row")
        self.expect_size(2, size_from(values, 1))
        for i in range(self.x[0].size):
            if index_at(self.x[0], i) < 0:
                self.skipped += 1
                if self.skipped >= self.most_skipped:
                    return self.fail("too many negative indices were skipped")
        if self.num_inputs == 4:
            dims[0] = self.x[3].size
            rows = 1
        dims[rows] = self.columns
        for d in range(default.ndim):
            dims[rows + 1 + d] = default.shape[d]
        if self.presence:
            resize(self.y[1], rows + 1, dims, BOOL)
        self.width = itemsize(values.dtype)
        return resize(self.y[0], rows + 1 + default.ndim, dims, values.dtype)

    cdef void move(self) noexcept nogil:
        cdef size_t nbytes = self.x[2].size * self.width
        cdef char* to = <char*>self.y[0].data
        cdef uint8_t* presence = <uint8_t*>self.y[1].data if self.presence else NULL
        cdef int64_t rows = self.x[3].size if self.num_inputs == 4 else 1, r, i = 0, stop, k
        for k in range(rows * self.columns):
            copy_bytes(to + k * nbytes, self.x[2].data, nbytes)
        if presence != NULL:
            memset(presence, 0, rows * self.columns)
        for r in range(rows):
            stop = i + index_at(self.x[3], r) if self.num_inputs == 4 else self.x[0].size
            while i < stop:
                k = self.column(i)
                if k >= 0:
                    copy_bytes(to + (r * self.columns + k) * nbytes, <char*>self.x[1].data + i * nbytes, nbytes)
                    if presence != NULL:
                        presence[r * self.columns + k] = 1
                i += 1


cdef class SparseToDenseMaskGradient(Masked):
    cdef int64_t row
    cdef int64_t* last          # for each column, the last index of an example that is in it: the one that counted

    def setup(self):
        Masked.setup(self)
        self.last = <int64_t*>malloc(self.columns * sizeof(int64_t))
        if self.last == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.last)

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* dy = self.x[1]
        cdef int64_t[MAX_DIMS + 1] dims
        cdef int lead = self.num_inputs - 1
        self.check_lengths(2)
        if dy.dtype == UNDEFINED or dy.dtype == STRING:
            return self.bad_dtype(1)
        if dy.ndim < lead or dy.shape[lead - 1] != self.columns or (lead == 2 and dy.shape[0] != self.x[2].size):
            return self.fail("the gradient must have a row for each length, and a column for each id of the mask")
        dims[0] = self.x[0].size
        memcpy(dims + 1, dy.shape + lead, (dy.ndim - lead) * sizeof(int64_t))
        self.row = size_from(dy, lead) * itemsize(dy.dtype)
        return resize(self.y[0], dy.ndim - lead + 1, dims, dy.dtype)

    cdef void move(self) noexcept nogil:
        cdef char* to = <char*>self.y[0].data
        cdef int64_t rows = self.x[2].size if self.num_inputs == 3 else 1, r, i, start = 0, stop, k
        memset(to, 0, self.x[0].size * self.row)
        for r in range(rows):
            stop = start + index_at(self.x[2], r) if self.num_inputs == 3 else self.x[0].size
            for i in range(start, stop):
                k = self.column(i)
                if k >= 0:
                    self.last[k] = i
            for i in range(start, stop):
                k = self.column(i)
                if k >= 0 and self.last[k] == i:
                    copy_bytes(to + i * self.row, <char*>self.x[1].data + (r * self.columns + k) * self.row, self.row)
            start = stop


def mask_infer(args, inputs):
    shape = (*inputs[3].shape[:1], len(args.ints("mask"))) if len(inputs) == 4 else (len(args.ints("mask")),)
    return [TensorInfo((*shape, *inputs[2].shape), inputs[1].dtype), TensorInfo(shape, BOOL)]


def mask_gradient(g):
    return g.op("SparseToDenseMaskGradient", [g.I(0), g.GO(0), *map(g.I, range(3, g.num_inputs))], [g.GI(1)])


_MASK = {"mask": "ids of the columns"}
_MASKED = {"indices": "int32 or int64 vector of ids", "values": "tensor of any type, a row for each index"}
_LENGTHS = {"lengths": "int32 vector: indices, an example; by default there is one example, without a dimension"}
register(
    "SparseToDenseMask", SparseToDenseMask, (3, 4), (1, 2),
    ins=_MASKED | {"default_value": "row for ids that an example lacks"} | _LENGTHS,
    outs={"output": "for each example a row of values for each id of the mask", "presence_mask": "bool: which it had"},
    args=_MASK | {"return_presence_mask": "1: give presence_mask",
                  "max_skipped_indices": "how many negative indices may come, over all runs, before it is an error"},
    infer=mask_infer, gradient=mask_gradient, doc="Picks the ids of a mask, in its order, out of sparse examples.",
)
register(
    "SparseToDenseMaskGradient", SparseToDenseMaskGradient, (2, 3), 1,
    ins={"indices": "input of SparseToDenseMask", "dOutput": "gradient of output"} | _LENGTHS,
    outs={"dValues": "gradient of values"}, args=_MASK, doc="Gradient of SparseToDenseMask.",
)


# ---------------------------------------------------------------- batches

cdef int check_batch(Operator op, int64_t rows, int64_t columns) except -1 nogil:
    """Inputs are lengths, one a row, and indices of columns."""
    cdef int64_t i, total = 0
    cdef int k
    for k in range(2):
        if not is_index(op.x[k].dtype):
            return op.bad_dtype(k)
        op.expect_ndim(k, 1)
    op.expect_size(0, rows)
    for i in range(rows):
        if index_at(op.x[0], i) < 0:
            return op.fail("lengths must not be negative")
        total += index_at(op.x[0], i)
    op.expect_size(1, total)
    return check_indices(op.x[1], 0, columns)


cdef class BatchSparseToDense(Operator):
    cdef int64_t columns
    cdef float default

    def setup(self):
        self.columns, self.default = self.args.int("dense_last_dim", -1), self.args.float("default_value", 0)
        if self.num_inputs == 3 and self.columns < 1:
            raise ValueError("requires a positive argument dense_last_dim, or a fourth input")

    cdef int run(self) except -1 nogil:
        cdef int64_t columns = self.columns, rows = self.x[0].size, i, r, k = 0, _
        cdef float* y
        if self.num_inputs == 4:
            self.expect_ndim(3, 2)
            if 0 <= columns != self.x[3].shape[1]:
                return self.fail("dense_last_dim must be the last dimension of the tensor to take it from")
            columns = self.x[3].shape[1]
        check_batch(self, rows, columns)
        self.expect(2, FLOAT)
        self.expect_size(2, self.x[1].size)
        resize2(self.y[0], rows, columns, FLOAT)
        y = <float*>self.y[0].data
        for i in range(rows * columns):
            y[i] = self.default
        for r in range(rows):
            for _ in range(index_at(self.x[0], r)):
                y[r * columns + index_at(self.x[1], k)] = (<float*>self.x[2].data)[k]
                k += 1
        return 0


cdef class BatchDenseToSparse(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* dense = self.x[2]
        cdef int64_t r, k = 0, _
        self.expect(2, FLOAT)
        self.expect_ndim(2, 2)
        check_batch(self, dense.shape[0], dense.shape[1])
        resize1(self.y[0], self.x[1].size, FLOAT)
        for r in range(dense.shape[0]):
            for _ in range(index_at(self.x[0], r)):
                (<float*>self.y[0].data)[k] = (<float*>dense.data)[r * dense.shape[1] + index_at(self.x[1], k)]
                k += 1
        return 0


_BATCH = {"lengths": "int32 or int64 vector: indices, a row", "indices": "int32 or int64 vector of columns"}
register(
    "BatchSparseToDense", BatchSparseToDense, (3, 4), 1,
    ins=_BATCH | {"values": "float vector, an element for each index",
                  "output_shape_inference": "matrix with as many columns as the output"},
    outs={"dense": "float matrix"}, args={"dense_last_dim": "number of columns", "default_value": "what else is there"},
    infer=lambda args, inputs: [TensorInfo(
        (inputs[0].shape[0], inputs[3].shape[1] if len(inputs) == 4 else args.int("dense_last_dim")), FLOAT)],
    gradient=simple("BatchDenseToSparse", "I0 I1 GO0", "GI2"), doc="Puts the values of sparse rows into a matrix.",
)


def batch_dense_gradient(g):
    return g.op("BatchSparseToDense", [g.I(0), g.I(1), g.GO(0), g.I(2)], [g.GI(2)], default_value=0.0)


register(
    "BatchDenseToSparse", BatchDenseToSparse, 3, 1, ins=_BATCH | {"dense": "float matrix"},
    outs={"values": "float vector"}, infer=lambda args, inputs: [TensorInfo(inputs[1].shape, FLOAT)],
    gradient=batch_dense_gradient, doc="Picks elements out of each row of a matrix.",
)

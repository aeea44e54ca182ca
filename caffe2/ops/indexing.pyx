"""Indexing: slices, gathers, scatters and masks."""
from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    BOOL, DOUBLE, FLOAT, INT32, INT64, MAX_DIMS, STRING, UINT8, UNDEFINED, canonical_axis, itemsize, resize, resize1,
    resize2, resize_like, same_shape, size_from, size_to, tensor_t,
)
from caffe2._core.threads cimport num_threads
from caffe2.ops.indices cimport check_indices, index_at, is_index
from caffe2.ops.movement cimport Movement, copy_bytes, copy_rows, copy_strided

from caffe2._core.gradient import none, simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, like

_INDICES = "int32 or int64"

ctypedef fused number_t:
    int32_t
    int64_t
    float
    double

ctypedef fused real_t:
    float
    double


cdef int expect_index(Operator op, int i) except -1 nogil:
    return 0 if is_index(op.x[i].dtype) else op.bad_dtype(i)


cdef void add(const number_t* x, number_t* y, int64_t n) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        y[i] += x[i]


# ---------------------------------------------------------------- Slice

cdef class Slice(Movement):
    cdef int given                          # how many dimensions the arguments describe, -1 without arguments
    cdef int64_t[MAX_DIMS] start
    cdef int64_t[MAX_DIMS] stop
    cdef int64_t[MAX_DIMS] step
    cdef int64_t offset

    def setup(self):
        self.given = -1
        if self.num_inputs < 3:
            starts, ends = self.args.ints("starts"), self.args.ints("ends")
            if "starts" not in self.args or "ends" not in self.args:
                raise ValueError("requires the arguments starts and ends, or inputs instead")
            if len(starts) != len(ends) or len(starts) > MAX_DIMS:
                raise ValueError("starts and ends must be equally long, and no longer than a shape")
            self.given = len(starts)
            for i, (start, stop) in enumerate(zip(starts, ends)):
                self.start[i], self.stop[i] = start, stop

    cdef int window(self, tensor_t* x, int64_t* first, int64_t* dims) except -1 nogil:
        """First index and size of the window, a dimension. Negative bounds count from the end, which is -1."""
        cdef int i, n = self.given
        cdef int64_t start, stop
        if n < 0:
            expect_index(self, 1)
            expect_index(self, 2)
            n = <int>min(<int64_t>MAX_DIMS + 1, self.x[1].size)
            if self.x[1].size != self.x[2].size:
                return self.fail("starts and ends must be equally long")
        if n > x.ndim:
            return self.fail("starts and ends describe more dimensions than there are")
        for i in range(x.ndim):
            first[i] = 0
            dims[i] = x.shape[i]
            if i >= n or x.shape[i] == 0:
                continue
            start = self.start[i] if self.given >= 0 else index_at(self.x[1], i)
            stop = self.stop[i] if self.given >= 0 else index_at(self.x[2], i)
            start = min(start + x.shape[i] + 1 if start < 0 else start, x.shape[i])
            stop = min(stop + x.shape[i] + 1 if stop < 0 else stop, x.shape[i])
            if start < 0 or stop < start:
                return self.fail("a slice must start within the dimension and not end before it starts")
            first[i] = start
            dims[i] = stop - start
        return 0

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t[MAX_DIMS] first
        cdef int64_t[MAX_DIMS] dims
        cdef int i
        self.window(x, first, dims)
        self.offset = 0
        for i in range(x.ndim):
            self.step[i] = size_from(x, i + 1)
            self.offset += first[i] * self.step[i]
        return resize(self.y[0], x.ndim, dims, x.dtype)

    cdef void move(self) noexcept nogil:
        copy_strided(<char*>self.y[0].data, <char*>self.x[0].data + self.offset * self.width, self.y[0].ndim,
                     self.y[0].shape, self.step, self.width)


cdef class SliceGradient(Slice):
    def setup(self):
        if self.num_inputs not in (2, 4) or self.num_outputs != 1:
            raise ValueError("takes 2 or 4 inputs and 1 output")
        Slice.setup(self)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* dy = self.x[self.num_inputs - 1]
        cdef tensor_t* dx = self.y[0]
        cdef int64_t[MAX_DIMS] first
        cdef int64_t[MAX_DIMS] dims
        cdef int64_t size = 1, rows = 1, inner, r, rest, at
        cdef size_t width = itemsize(dy.dtype)
        cdef int i, last = -1
        if x.dtype == UNDEFINED:
            return self.bad_dtype(0)
        if dy.dtype == UNDEFINED or dy.dtype == STRING:
            return self.bad_dtype(self.num_inputs - 1)
        self.window(x, first, dims)
        for i in range(x.ndim):
            size *= dims[i]
            if dims[i] != x.shape[i]:
                last = i            # from here on, what is copied lies in one piece
        if dy.size != size:
            return self.fail("the gradient does not have the size of the slice")
        resize_like(dx, x, dy.dtype)
        if last < 0:
            copy_rows(<char*>dx.data, size * width, <char*>dy.data, size * width, 1, size * width)
            return 0
        memset(dx.data, 0, dx.size * width)
        if size == 0:
            return 0
        inner = size_from(x, last + 1)
        for i in range(last):
            rows *= dims[i]
        for r in range(rows):
            rest = r
            at = first[last] * inner
            for i in range(last - 1, -1, -1):
                at += (first[i] + rest % dims[i]) * size_from(x, i + 1)
                rest //= dims[i]
            copy_bytes(<char*>dx.data + at * width, <char*>dy.data + r * dims[last] * inner * width,
                       dims[last] * inner * width)
        return 0


def slice_infer(args, inputs):
    x = inputs[0]
    if len(inputs) > 1:
        return [TensorInfo([-1] * x.ndim, x.dtype)]
    shape = list(x.shape)
    for i, (start, stop) in enumerate(zip(args.ints("starts"), args.ints("ends"))):
        n = shape[i]
        start, stop = (min(v + n + 1 if v < 0 else v, n) for v in (start, stop))
        shape[i] = stop - start if n > 0 else n
    return [TensorInfo(shape, x.dtype)]


def slice_gradient(g):
    return g.op("SliceGradient", [*map(g.I, range(g.num_inputs)), g.GO(0)], [g.GI(0)])


def one_or_three(op):
    if len(op.input) == 2:
        raise ValueError("takes 1 or 3 inputs, but was given 2")


_SLICE = {"starts": "first index, a dimension; those not named are taken whole",
          "ends": "index behind the last, a dimension; negative ones count from the end, which is -1"}
register(
    "Slice", Slice, (1, 3), 1,
    ins={"X": "tensor of any type", "starts": f"{_INDICES} vector, instead of the argument",
         "ends": f"{_INDICES} vector, instead of the argument"},
    outs={"Y": "the part of X"}, args=_SLICE, infer=slice_infer, gradient=slice_gradient, check=one_or_three,
    doc="Takes a box out of a tensor. Bounds beyond the end mean the end.",
)
register(
    "SliceGradient", SliceGradient, (0, None), (0, None),
    ins={"X": "input of Slice", "starts, ends": "where Slice had them as inputs", "dY": "gradient of Y"},
    outs={"dX": "gradient of X"}, args=_SLICE,
    infer=lambda args, inputs: [TensorInfo(inputs[0].shape, inputs[-1].dtype)],
    doc="Gradient of Slice: zeros around the given gradient.",
)


# ---------------------------------------------------------------- Gather

cdef inline int64_t wrapped(const tensor_t* indices, int64_t i, int64_t n) noexcept nogil:
    cdef int64_t k = index_at(indices, i)
    return k + n if k < 0 else k


cdef class Gather(Movement):
    """Data of shape (outer, n, inner), indices of shape (m) or, with match_outer, (outer, m)."""
    cdef int axis
    cdef bint match_outer
    cdef int64_t outer, n, inner, m

    def setup(self):
        self.axis, self.match_outer = self.args.int("axis", 0), self.args.bool("match_outer")

    cdef int resolve(self) except -1 nogil:
        """Set the sizes; check the indices."""
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* indices = self.x[1]
        cdef int axis, i
        expect_index(self, 1)
        axis = canonical_axis(self.axis, x.ndim)
        if self.match_outer:
            if axis < 1 or indices.ndim < axis:
                return self.fail("match_outer needs an axis of 1 or more, and indices with as many dimensions")
            for i in range(axis):
                if indices.shape[i] != x.shape[i]:
                    return self.fail("the indices must match the dimensions of the data before axis")
        self.outer = size_to(x, axis)
        self.n = x.shape[axis]
        self.inner = size_from(x, axis + 1)
        self.m = size_from(indices, axis) if self.match_outer else indices.size
        return check_indices(indices, -self.n, self.n) if self.n else 0

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* indices = self.x[1]
        cdef int64_t[2 * MAX_DIMS] dims
        cdef int axis, skip, ndim
        self.resolve()
        if self.n == 0:                     # an empty batch stays one
            return resize(self.y[0], x.ndim, x.shape, x.dtype)
        axis = canonical_axis(self.axis, x.ndim)
        skip = axis if self.match_outer else 0
        ndim = axis + indices.ndim - skip
        memcpy(dims, x.shape, axis * sizeof(int64_t))
        memcpy(dims + axis, indices.shape + skip, (indices.ndim - skip) * sizeof(int64_t))
        memcpy(dims + ndim, x.shape + axis + 1, (x.ndim - axis - 1) * sizeof(int64_t))
        return resize(self.y[0], ndim + x.ndim - axis - 1, dims, x.dtype)

    cdef void move(self) noexcept nogil:
        cdef int64_t blocks = self.outer * self.m if self.n else 0, chunk
        cdef int threads = num_threads(blocks * (4 + self.inner * self.width // 16)), t
        if threads == 1:
            self.stretch(0, blocks)
            return
        chunk = (blocks + threads - 1) // threads
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            self.stretch(min(blocks, t * chunk), min(blocks, (t + 1) * chunk))

    cdef void stretch(self, int64_t begin, int64_t end) noexcept nogil:
        """Blocks of the output."""
        cdef size_t nbytes = self.inner * self.width
        cdef tensor_t* indices = self.x[1]
        cdef char* to = <char*>self.y[0].data
        cdef char* source
        cdef int64_t o, b, stop, first
        while begin < end:
            o = begin // self.m
            stop = min(end, (o + 1) * self.m)
            first = 0 if self.match_outer else o * self.m
            source = <char*>self.x[0].data + o * self.n * nbytes
            for b in range(begin, stop):
                copy_bytes(to + b * nbytes, source + wrapped(indices, b - first, self.n) * nbytes, nbytes)
            begin = stop


cdef class BatchGather(Gather):
    def setup(self):
        self.axis, self.match_outer = 1, self.args.bool("match_outer")


cdef class BatchGatherGradient(Gather):
    def setup(self):
        self.axis, self.match_outer = self.args.int("axis", 1), self.args.bool("match_outer")

    cdef int run(self) except -1 nogil:
        cdef tensor_t* dy = self.x[2]
        cdef tensor_t* dx = self.y[0]
        cdef int64_t o
        cdef int threads
        if self.x[0].dtype == UNDEFINED:
            return self.bad_dtype(0)
        if dy.dtype != FLOAT and dy.dtype != DOUBLE:
            return self.bad_dtype(2)
        self.resolve()
        if self.n:
            self.expect_size(2, self.outer * self.m * self.inner)
        resize_like(dx, self.x[0], dy.dtype)
        memset(dx.data, 0, dx.size * itemsize(dx.dtype))
        if self.n == 0:
            return 0
        threads = num_threads(dy.size)
        if threads == 1 or self.outer == 1:
            for o in range(self.outer):
                self.spread(o)
        else:
            for o in prange(self.outer, num_threads=threads, schedule="static"):
                self.spread(o)
        return 0

    cdef void spread(self, int64_t o) noexcept nogil:
        cdef int64_t b, to, first = 0 if self.match_outer else o * self.m
        for b in range(o * self.m, (o + 1) * self.m):
            to = (o * self.n + wrapped(self.x[1], b - first, self.n)) * self.inner
            if self.y[0].dtype == FLOAT:
                add(<float*>self.x[2].data + b * self.inner, <float*>self.y[0].data + to, self.inner)
            else:
                add(<double*>self.x[2].data + b * self.inner, <double*>self.y[0].data + to, self.inner)


def gather_infer(default_axis):
    def infer(args, inputs):
        x, indices = inputs[0].shape, inputs[1].shape
        axis = args.int("axis", 0) if default_axis == 0 else 1
        axis += len(x) if axis < 0 else 0
        if x[axis] == 0:
            return [TensorInfo(x, inputs[0].dtype)]
        taken = indices[axis:] if args.bool("match_outer") else indices
        return [TensorInfo((*x[:axis], *taken, *x[axis + 1:]), inputs[0].dtype)]
    return infer


def gather_gradient(g):
    """Sparse for axis 0 unless a dense one is asked for; dense for any other axis."""
    axis = g.args.int("axis", 0)
    if axis:
        if not g.args.bool("dense_gradient", True):
            raise ValueError("Gather with an axis other than 0 has a dense gradient only")
        return g.op("BatchGatherGradient", [g.I(0), g.I(1), g.GO(0)], [g.GI(0)])
    if g.args.bool("dense_gradient"):
        return g.op("SparseToDense", [g.I(1), g.GO(0), g.I(0)], [g.GI(0)])
    g.set_sparse(0, g.I(1), g.GO(0))
    return []


_GATHER = {"match_outer": "1: the indices have the dimensions of DATA before axis, too, and each is for its own part"}
register(
    "Gather", Gather, 2, 1,
    ins={"DATA": "tensor of any type", "INDICES": f"{_INDICES} tensor of any shape; negative ones count from the end"},
    outs={"OUTPUT": "DATA with that dimension replaced by those of INDICES"},
    args=_GATHER | {"axis": "dimension to pick from, 0 by default",
                    "dense_gradient": "1: the gradient of DATA is dense; by default it is sparse for axis 0"},
    infer=gather_infer(0), gradient=gather_gradient, doc="Picks slices of a tensor along a dimension.",
)
register(
    "BatchGather", BatchGather, 2, 1,
    ins={"DATA": "tensor of any type, two dimensions or more", "INDICES": f"{_INDICES} tensor of any shape"},
    outs={"OUTPUT": "DATA with dimension 1 replaced by those of INDICES"}, args=_GATHER, infer=gather_infer(1),
    gradient=simple("BatchGatherGradient", "I0 I1 GO0", "GI0"), doc="Gather along dimension 1.",
)
register(
    "BatchGatherGradient", BatchGatherGradient, 3, 1,
    ins={"DATA": "input of BatchGather or Gather", "INDICES": "its indices", "GRAD": "gradient of its output"},
    outs={"dDATA": "gradient of DATA"}, args=_GATHER | {"axis": "dimension that was picked from, 1 by default"},
    infer=like(0), doc="Gradient of Gather and BatchGather: slices that were picked more than once sum up.",
)


# ---------------------------------------------------------------- ranges

cdef class GatherRanges(Movement):
    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* ranges = self.x[1]
        cdef int64_t i, j, start, n, total = 0
        cdef int32_t length
        expect_index(self, 1)
        self.expect_ndim(0, 1)
        self.expect_ndim(1, 3)
        if ranges.shape[2] != 2:
            return self.fail("ranges must be pairs of a start and a length")
        for i in range(ranges.size // 2):
            start, n = index_at(ranges, 2 * i), index_at(ranges, 2 * i + 1)
            if start < 0 or n < 0 or start > x.size - n:
                return self.fail("a range exceeds the data")
            total += n
        resize1(self.y[1], ranges.shape[0], INT32)
        for i in range(ranges.shape[0]):
            length = 0
            for j in range(ranges.shape[1]):
                length += <int32_t>index_at(ranges, 2 * (i * ranges.shape[1] + j) + 1)
            (<int32_t*>self.y[1].data)[i] = length
        return resize1(self.y[0], total, x.dtype)

    cdef void move(self) noexcept nogil:
        cdef char* to = <char*>self.y[0].data
        cdef size_t nbytes
        cdef int64_t i
        for i in range(self.x[1].size // 2):
            nbytes = index_at(self.x[1], 2 * i + 1) * self.width
            copy_bytes(to, <char*>self.x[0].data + index_at(self.x[1], 2 * i) * self.width, nbytes)
            to += nbytes


register(
    "GatherRanges", GatherRanges, 2, 2,
    ins={"DATA": "vector of any type",
         "RANGES": f"{_INDICES} tensor (N, M, 2): M pairs of a start and a length, an example"},
    outs={"OUTPUT": "the ranges, one after the other", "LENGTHS": "int32 vector: elements an example"},
    infer=lambda args, inputs: [TensorInfo((-1,), inputs[0].dtype), TensorInfo((inputs[1].shape[0],), INT32)],
    doc="Concatenates ranges of a vector.",
)


cdef class LengthsGather(Movement):
    cdef int64_t* offsets       # in rows

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* items = self.x[0]
        cdef tensor_t* lengths = self.x[1]
        cdef tensor_t* indices = self.x[2]
        cdef int64_t[MAX_DIMS] dims
        cdef int64_t i, at = 0
        self.expect(1, INT32)
        expect_index(self, 2)
        self.expect_ndim(1, 1)
        self.expect_ndim(2, 1)
        if items.ndim < 1:
            return self.fail("the items must have a dimension or more")
        check_indices(indices, 0, lengths.size)
        self.offsets = <int64_t*>self.scratch((lengths.size + 1) * sizeof(int64_t))
        for i in range(lengths.size):
            self.offsets[i] = at
            if index_at(lengths, i) < 0:
                return self.fail("lengths must not be negative")
            at += index_at(lengths, i)
        if at != items.shape[0]:
            return self.fail("the lengths must add up to the number of items")
        memcpy(dims, items.shape, items.ndim * sizeof(int64_t))
        dims[0] = 0
        for i in range(indices.size):
            dims[0] += index_at(lengths, index_at(indices, i))
        return resize(self.y[0], items.ndim, dims, items.dtype)

    cdef void move(self) noexcept nogil:
        cdef size_t row = size_from(self.x[0], 1) * self.width, nbytes
        cdef char* to = <char*>self.y[0].data
        cdef int64_t i, k
        for i in range(self.x[2].size):
            k = index_at(self.x[2], i)
            nbytes = index_at(self.x[1], k) * row
            copy_bytes(to, <char*>self.x[0].data + self.offsets[k] * row, nbytes)
            to += nbytes


register(
    "LengthsGather", LengthsGather, 3, 1,
    ins={"ITEMS": "tensor of any type", "LENGTHS": "int32 vector: rows of ITEMS, a segment",
         "INDICES": f"{_INDICES} vector of segments"},
    outs={"OUTPUT": "rows of the segments picked, one after the other"},
    infer=lambda args, inputs: [TensorInfo((-1, *inputs[0].shape[1:]), inputs[0].dtype)],
    doc="Gather of segments of rows.",
)


# ---------------------------------------------------------------- scatters

cdef class ScatterAssign(Movement):
    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* indices = self.x[1]
        expect_index(self, 1)
        self.check_dtype(2, x.dtype)
        if x.ndim < 1:
            return self.fail("the data must have a dimension or more")
        self.expect_size(2, indices.size * size_from(x, 1))
        check_indices(indices, 0, x.shape[0])
        return resize_like(self.y[0], x, x.dtype)

    cdef void move(self) noexcept nogil:
        cdef size_t nbytes = size_from(self.x[0], 1) * self.width
        cdef int64_t i
        for i in range(self.x[1].size):
            copy_bytes(<char*>self.y[0].data + index_at(self.x[1], i) * nbytes, <char*>self.x[2].data + i * nbytes,
                       nbytes)


register(
    "ScatterAssign", ScatterAssign, 3, 1, enforce_inplace=((0, 0),),
    ins={"DATA": "tensor of any type", "INDICES": f"{_INDICES} vector",
         "SLICES": "as many slices of DATA, of its type"},
    outs={"DATA": "the same blob"}, infer=like(0),
    doc="Overwrites slices of a tensor, in place. Of slices with the same index, the last one stays.",
)


cdef class Scatter(Movement):
    cdef int axis

    def setup(self):
        self.axis = self.args.int("axis", 1)

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* indices = self.x[1]
        cdef int axis = canonical_axis(self.axis, x.ndim), i
        expect_index(self, 1)
        self.check_dtype(2, x.dtype)
        self.expect_same_shape(1, 2)
        if indices.ndim != x.ndim:
            return self.fail("the indices must have the dimensions of the data")
        for i in range(x.ndim):
            if i != axis and indices.shape[i] > x.shape[i]:
                return self.fail("the indices exceed the data")
        check_indices(indices, -x.shape[axis], x.shape[axis])
        return resize_like(self.y[0], x, x.dtype)

    cdef void move(self) noexcept nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* indices = self.x[1]
        cdef tensor_t* y = self.y[0]
        cdef int64_t i, k, rest, at, stride
        cdef int d, axis = self.axis + x.ndim if self.axis < 0 else self.axis
        if x != y:
            copy_rows(<char*>y.data, x.size * self.width, <char*>x.data, x.size * self.width, 1, x.size * self.width)
        for i in range(indices.size):
            rest = i
            at = 0
            stride = 1
            for d in range(x.ndim - 1, -1, -1):
                k = rest % indices.shape[d]
                rest //= indices.shape[d]
                if d == axis:
                    k = index_at(indices, i)
                    k += x.shape[d] if k < 0 else 0
                at += k * stride
                stride *= x.shape[d]
            copy_bytes(<char*>y.data + at * self.width, <char*>self.x[2].data + i * self.width, self.width)


register(
    "Scatter", Scatter, 3, 1, inplace=((0, 0),),
    ins={"DATA": "tensor of any type", "INDICES": f"{_INDICES} tensor with as many dimensions",
         "UPDATES": "tensor of the type of DATA and the shape of INDICES"},
    outs={"OUTPUT": "DATA, updated"}, args={"axis": "dimension that the indices refer to, 1 by default"}, infer=like(0),
    doc="Overwrites elements: OUTPUT[i][INDICES[i][j]] = UPDATES[i][j] for axis 1 of a matrix, and so for any other.",
)


# ---------------------------------------------------------------- masks

cdef class Where(Movement):
    cdef bint rows

    def setup(self):
        self.rows = self.args.bool("broadcast_on_rows")

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[1]
        self.expect(0, BOOL)
        if x.dtype == UNDEFINED:
            return self.bad_dtype(1)
        if self.x[2].dtype != x.dtype:
            return self.fail("both choices must be of the same type")
        self.expect_same_shape(1, 2)
        if not self.rows:
            self.expect_same_shape(0, 1)
        elif self.x[0].ndim != 1 or x.ndim < 1 or x.shape[0] != self.x[0].size:
            return self.fail("the condition must have an element for each row")
        self.width = itemsize(x.dtype)
        return resize_like(self.y[0], x, x.dtype)

    cdef void move(self) noexcept nogil:
        cdef const uint8_t* condition = <uint8_t*>self.x[0].data
        cdef size_t nbytes = self.width * (size_from(self.x[1], 1) if self.rows else 1)
        cdef int64_t i
        cdef char* source
        for i in range(self.x[0].size):
            source = <char*>(self.x[1].data if condition[i] else self.x[2].data)
            copy_bytes(<char*>self.y[0].data + i * nbytes, source + i * nbytes, nbytes)


register(
    "Where", Where, 3, 1,
    ins={"C": "bool tensor", "X": "tensor of any type", "Y": "tensor of that type and shape"},
    outs={"Z": "elements of X where C is true, else of Y"},
    args={"broadcast_on_rows": "1: C is a vector, an element for each row"},
    inplace=((1, 0), (2, 0)), infer=like(1), doc="Chooses between two tensors, place by place or row by row.",
)


cdef class BooleanMask(Movement):
    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef const uint8_t* mask
        cdef int64_t[MAX_DIMS] dims
        cdef int64_t* indices
        cdef int64_t i, n = 0
        self.expect(1, BOOL)
        self.expect_ndim(1, 1)
        if x.ndim < 1 or x.shape[0] != self.x[1].size:
            return self.fail("the mask must have an element for each row")
        mask = <uint8_t*>self.x[1].data
        for i in range(self.x[1].size):
            n += mask[i] != 0
        memcpy(dims, x.shape, x.ndim * sizeof(int64_t))
        dims[0] = n
        if self.num_outputs == 2:
            resize1(self.y[1], n, INT64)
            indices = <int64_t*>self.y[1].data
            n = 0
            for i in range(self.x[1].size):
                if mask[i]:
                    indices[n] = i
                    n += 1
        return resize(self.y[0], x.ndim, dims, x.dtype)

    cdef void move(self) noexcept nogil:
        cdef const uint8_t* mask = <uint8_t*>self.x[1].data
        cdef size_t row = size_from(self.x[0], 1) * self.width
        cdef char* to = <char*>self.y[0].data
        cdef int64_t i
        for i in range(self.x[1].size):
            if mask[i]:
                copy_bytes(to, <char*>self.x[0].data + i * row, row)
                to += row


cdef class BooleanMaskGradient(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* dy = self.x[1]
        cdef const uint8_t* mask
        cdef const char* source = <char*>dy.data
        cdef int64_t[MAX_DIMS] dims
        cdef int64_t i, n = 0
        cdef size_t row
        self.expect(0, BOOL)
        if dy.dtype == UNDEFINED or dy.dtype == STRING:
            return self.bad_dtype(1)
        mask = <uint8_t*>self.x[0].data
        for i in range(self.x[0].size):
            n += mask[i] != 0
        if dy.ndim < 1 or dy.shape[0] != n:
            return self.fail("the gradient must have a row for each true element of the mask")
        memcpy(dims, dy.shape, dy.ndim * sizeof(int64_t))
        dims[0] = self.x[0].size
        row = size_from(dy, 1) * itemsize(dy.dtype)
        resize(self.y[0], dy.ndim, dims, dy.dtype)
        for i in range(dims[0]):
            if mask[i]:
                copy_bytes(<char*>self.y[0].data + i * row, source, row)
                source += row
            else:
                memset(<char*>self.y[0].data + i * row, 0, row)
        return 0


register(
    "BooleanMask", BooleanMask, 2, (1, 2),
    ins={"data": "tensor of any type", "mask": "bool vector, an element for each row"},
    outs={"masked_data": "rows where the mask is true", "masked_indices": "int64 vector: their indices"},
    infer=lambda args, inputs: [TensorInfo((-1, *inputs[0].shape[1:]), inputs[0].dtype), TensorInfo((-1,), INT64)],
    gradient=simple("BooleanMaskGradient", "I1 GO0", "GI0"), doc="Keeps the rows where a mask is true.",
)
register(
    "BooleanMaskGradient", BooleanMaskGradient, 2, 1,
    ins={"mask": "mask of BooleanMask", "dY": "gradient of masked_data"}, outs={"dX": "gradient of data"},
    infer=lambda args, inputs: [TensorInfo((inputs[0].shape[0], *inputs[1].shape[1:]), inputs[1].dtype)],
    doc="Gradient of BooleanMask: rows that were dropped are zero.",
)


cdef class BooleanMaskLengths(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* lengths = self.x[0]
        cdef int64_t i, j, n, kept, at = 0
        expect_index(self, 0)
        self.expect(1, BOOL)
        self.expect_ndim(0, 1)
        self.expect_ndim(1, 1)
        for i in range(lengths.size):
            if index_at(lengths, i) < 0:
                return self.fail("lengths must not be negative")
            at += index_at(lengths, i)
        if at != self.x[1].size:
            return self.fail("the lengths must add up to the size of the mask")
        resize_like(self.y[0], lengths, lengths.dtype)
        at = 0
        for i in range(lengths.size):
            n = index_at(lengths, i)
            kept = 0
            for j in range(n):
                kept += (<uint8_t*>self.x[1].data)[at + j] != 0
            at += n
            if lengths.dtype == INT64:
                (<int64_t*>self.y[0].data)[i] = kept
            else:
                (<int32_t*>self.y[0].data)[i] = <int32_t>kept
        return 0


register(
    "BooleanMaskLengths", BooleanMaskLengths, 2, 1,
    ins={"lengths": f"{_INDICES} vector", "mask": "bool vector of sum(lengths) elements"},
    outs={"masked_lengths": "how many of each segment the mask keeps"}, infer=like(0), gradient=none,
    doc="Lengths of segments after BooleanMask.",
)


cdef class BooleanUnmask(Movement):
    """Inputs are pairs of a mask and of values."""
    cdef int64_t* taken         # values used so far, a pair

    def setup(self):
        if self.num_inputs == 0 or self.num_inputs % 2:
            raise ValueError("takes pairs of a mask and of values")

    cdef int prepare(self) except -1 nogil:
        cdef int64_t n = self.x[0].size, i
        cdef int pairs = self.num_inputs // 2, p
        self.taken = <int64_t*>self.scratch(pairs * sizeof(int64_t))
        memset(self.taken, 0, pairs * sizeof(int64_t))
        for p in range(pairs):
            self.expect(2 * p, BOOL)
            self.expect_size(2 * p, n)
            self.expect_ndim(2 * p, 1)
            self.expect_ndim(2 * p + 1, 1)
            if self.x[2 * p + 1].dtype != self.x[1].dtype:
                return self.fail("all values must be of the same type")
        for i in range(n):
            p = self.first(i)
            if p == pairs:
                return self.fail("at some place no mask is true")
            self.taken[p] += 1
        for p in range(pairs):
            self.expect_size(2 * p + 1, self.taken[p])
        memset(self.taken, 0, pairs * sizeof(int64_t))
        self.width = itemsize(self.x[1].dtype)
        return resize1(self.y[0], n, self.x[1].dtype)

    cdef int first(self, int64_t i) noexcept nogil:
        """First pair whose mask is true at i."""
        cdef int p
        for p in range(self.num_inputs // 2):
            if (<uint8_t*>self.x[2 * p].data)[i]:
                return p
        return self.num_inputs // 2

    cdef void move(self) noexcept nogil:
        cdef int64_t i
        cdef int p
        for i in range(self.y[0].size):
            p = self.first(i)
            copy_bytes(<char*>self.y[0].data + i * self.width,
                       <char*>self.x[2 * p + 1].data + self.taken[p] * self.width, self.width)
            self.taken[p] += 1


register(
    "BooleanUnmask", BooleanUnmask, (0, None), 1,
    ins={"mask": "bool vector; pairs of a mask and of values follow each other",
         "values": "values at the places where it is true"},
    outs={"unmasked_data": "the values, each at its place"},
    infer=lambda args, inputs: [TensorInfo(inputs[0].shape, inputs[1].dtype)], gradient=none,
    doc="Puts values that masks took apart together again. Where several masks are true, the first counts.",
)


cdef class RemoveDataBlocks(Movement):
    cdef uint8_t* removed       # a flag, a row

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t[MAX_DIMS] dims
        cdef int64_t i
        expect_index(self, 1)
        self.expect_ndim(1, 1)
        if x.ndim < 1:
            return self.fail("the data must have a dimension or more")
        check_indices(self.x[1], 0, x.shape[0])
        self.removed = <uint8_t*>self.scratch(x.shape[0] + 1)
        memset(self.removed, 0, x.shape[0])
        memcpy(dims, x.shape, x.ndim * sizeof(int64_t))
        for i in range(self.x[1].size):
            dims[0] -= not self.removed[index_at(self.x[1], i)]
            self.removed[index_at(self.x[1], i)] = 1
        return resize(self.y[0], x.ndim, dims, x.dtype)

    cdef void move(self) noexcept nogil:
        cdef size_t row = size_from(self.x[0], 1) * self.width
        cdef char* to = <char*>self.y[0].data
        cdef int64_t i
        for i in range(self.x[0].shape[0]):
            if not self.removed[i]:
                copy_bytes(to, <char*>self.x[0].data + i * row, row)
                to += row


register(
    "RemoveDataBlocks", RemoveDataBlocks, 2, 1,
    ins={"data": "tensor of any type", "indices": f"{_INDICES} vector: rows to remove, in any order"},
    outs={"shrunk data": "the other rows"},
    infer=lambda args, inputs: [TensorInfo((-1, *inputs[0].shape[1:]), inputs[0].dtype)], doc="Removes rows.",
)


# ---------------------------------------------------------------- one-hot

cdef int set_hot(Operator op, int i, int64_t rows) except -1 nogil:
    """Zeros, rows times the number that scalar input i holds."""
    cdef int64_t n
    expect_index(op, i)
    op.expect_size(i, 1)
    n = index_at(op.x[i], 0)
    if n < 0:
        return op.fail("the number of classes must not be negative")
    resize2(op.y[0], rows, n, FLOAT)
    memset(op.y[0].data, 0, op.y[0].size * sizeof(float))
    return 0


cdef class OneHot(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* indices = self.x[0]
        cdef int64_t i, n
        expect_index(self, 0)
        expect_index(self, 1)
        self.expect_ndim(0, 1)
        self.expect_size(1, 1)
        n = index_at(self.x[1], 0)
        if n > 0:
            check_indices(indices, 0, n)
        set_hot(self, 1, indices.size)
        for i in range(indices.size if n else 0):
            (<float*>self.y[0].data)[i * n + index_at(indices, i)] = 1
        return 0


cdef class SegmentOneHot(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* lengths = self.x[0]
        cdef tensor_t* indices = self.x[1]
        cdef int64_t i, n, at = 0, _
        self.expect(0, INT32)
        expect_index(self, 1)
        expect_index(self, 2)
        self.expect_ndim(0, 1)
        self.expect_ndim(1, 1)
        self.expect_size(2, 1)
        n = index_at(self.x[2], 0)
        if n <= 0:
            return self.fail("the number of classes must be positive")
        for i in range(lengths.size):
            if index_at(lengths, i) < 0:
                return self.fail("lengths must not be negative")
            at += index_at(lengths, i)
        if at != indices.size:
            return self.fail("the lengths must add up to the number of indices")
        check_indices(indices, 0, n)
        set_hot(self, 2, lengths.size)
        at = 0
        for i in range(lengths.size):
            for _ in range(index_at(lengths, i)):
                (<float*>self.y[0].data)[i * n + index_at(indices, at)] = 1
                at += 1
        return 0


register(
    "OneHot", OneHot, 2, 1, ins={"indices": "int64 vector", "index_size_tensor": "number of classes, an int64 scalar"},
    outs={"one_hots": "float matrix, a row for each index"},
    infer=lambda args, inputs: [TensorInfo((inputs[0].shape[0], -1), FLOAT)], gradient=none,
    doc="A matrix whose row i is 1 in column indices[i] and 0 elsewhere.",
)
register(
    "SegmentOneHot", SegmentOneHot, 3, 1,
    ins={"lengths": "int32 vector: indices, a row", "indices": "int64 vector",
         "index_size_tensor": "number of classes, an int64 scalar"},
    outs={"one_hots": "float matrix, a row for each length"},
    infer=lambda args, inputs: [TensorInfo((inputs[0].shape[0], -1), FLOAT)], gradient=none,
    doc="A matrix whose row i is 1 in all columns that the indices of segment i name, and 0 elsewhere.",
)


cdef int check_columns(Operator op, int64_t least) except -1 nogil:
    """Inputs are a matrix, lengths, one a column, and values, a segment of that length for each column."""
    cdef tensor_t* lengths = op.x[1]
    cdef int64_t i, total = 0
    op.expect(1, INT32)
    if op.x[0].dtype == UNDEFINED or op.x[0].ndim < 1:
        return op.fail("the data must have a dimension or more")
    op.expect_size(1, size_from(op.x[0], 1))
    for i in range(lengths.size):
        if index_at(lengths, i) < least:
            return op.fail("a length is too small")
        total += index_at(lengths, i)
    return op.expect_size(2, total)


cdef void match_columns(const number_t* x, const number_t* values, number_t* y, int64_t n, int64_t columns,
                        const int32_t* lengths, int64_t width) noexcept nogil:
    cdef int64_t i, j, k, at
    for i in range(n):
        at = 0
        for j in range(columns):
            for k in range(at, at + lengths[j]):
                y[i * width + k] = values[k] == x[i * columns + j]
            at += lengths[j]


cdef class BatchOneHot(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int32_t* lengths
        expect_index(self, 0)
        self.expect(2, x.dtype)
        check_columns(self, 0)
        lengths = <int32_t*>self.x[1].data
        resize2(self.y[0], x.shape[0], self.x[2].size, x.dtype)
        if x.dtype == INT64:
            match_columns(<int64_t*>x.data, <int64_t*>self.x[2].data, <int64_t*>self.y[0].data, x.shape[0],
                          self.x[1].size, lengths, self.x[2].size)
        else:
            match_columns(<int32_t*>x.data, <int32_t*>self.x[2].data, <int32_t*>self.y[0].data, x.shape[0],
                          self.x[1].size, lengths, self.x[2].size)
        return 0


cdef class BatchBucketOneHot(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t columns = self.x[1].size, width, i, j, at, low, high, middle, n
        cdef float value
        cdef float* bounds
        self.expect(0, FLOAT)
        self.expect(2, FLOAT)
        check_columns(self, 1)
        width = self.x[2].size + columns
        resize2(self.y[0], x.shape[0], width, FLOAT)
        memset(self.y[0].data, 0, self.y[0].size * sizeof(float))
        for i in range(x.shape[0]):
            bounds = <float*>self.x[2].data
            at = i * width
            for j in range(columns):
                n = index_at(self.x[1], j)
                value = (<float*>x.data)[i * columns + j]
                low, high = 0, n            # the first bound that is not below value
                while low < high:
                    middle = (low + high) // 2
                    if bounds[middle] < value:
                        low = middle + 1
                    else:
                        high = middle
                (<float*>self.y[0].data)[at + low] = 1
                bounds += n
                at += n + 1
        return 0


register(
    "BatchOneHot", BatchOneHot, 3, 1,
    ins={"data": f"{_INDICES} matrix", "lengths": "int32 vector: values, a column",
         "values": "vector of all columns' values"},
    outs={"output": "matrix of the same type, a column for each value"},
    infer=lambda args, inputs: [TensorInfo((inputs[0].shape[0], inputs[2].shape[0]), inputs[0].dtype)], gradient=none,
    doc="Replaces each column of a matrix by as many as it has values: 1 where it equals the value, else 0.",
)
register(
    "BatchBucketOneHot", BatchBucketOneHot, 3, 1,
    ins={"data": "float matrix", "lengths": "int32 vector: boundaries, a column",
         "boundaries": "float vector, ascending a column"},
    outs={"output": "float matrix, a column for each bucket"},
    infer=lambda args, inputs: [TensorInfo((inputs[0].shape[0], inputs[1].shape[0] + inputs[2].shape[0]), FLOAT)],
    doc="Replaces each column of a matrix by as many as it has buckets: 1 for the bucket that the element lies in. "
    "A bucket holds its upper boundary; the first and the last one are unbounded.",
)


# ---------------------------------------------------------------- not a number

cdef class ReplaceNaN(Operator):
    cdef double value

    def setup(self):
        self.value = self.args.float("value", 0)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        if x.dtype != FLOAT and x.dtype != DOUBLE:
            return self.bad_dtype(0)
        resize_like(self.y[0], x, x.dtype)
        if x.dtype == FLOAT:
            replace_nan(<float*>x.data, <float*>self.y[0].data, x.size, <float>self.value)
        else:
            replace_nan(<double*>x.data, <double*>self.y[0].data, x.size, self.value)
        return 0


cdef void replace_nan(const real_t* x, real_t* y, int64_t n, real_t value) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        y[i] = x[i] if x[i] == x[i] else value


cdef void find_nan(const real_t* x, uint8_t* y, int64_t n) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        y[i] = x[i] != x[i]


cdef class IsNaN(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        if x.dtype != FLOAT and x.dtype != DOUBLE:
            return self.bad_dtype(0)
        resize_like(self.y[0], x, UINT8)
        if x.dtype == FLOAT:
            find_nan(<float*>x.data, <uint8_t*>self.y[0].data, x.size)
        else:
            find_nan(<double*>x.data, <uint8_t*>self.y[0].data, x.size)
        return 0


register(
    "ReplaceNaN", ReplaceNaN, 1, 1, ins={"input": "float or double tensor"}, outs={"output": "the same without NaN"},
    args={"value (optional)": "what replaces NaN, the argument value; 0 by default"}, inplace=((0, 0),), infer=like(0),
    doc="Replaces NaN.",
)
register(
    "IsNaN", IsNaN, 1, 1, ins={"tensor": "float or double tensor"},
    outs={"output": "uint8 tensor: 1 where it is NaN, else 0"},
    infer=like(0, dtype=UINT8), doc="Finds NaN.",
)


cdef class Accumulate(Operator):
    cdef float gamma

    def setup(self):
        self.gamma = self.args.float("gamma", 1)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y = self.y[0]
        cdef int64_t i
        cdef bint fresh = y.dtype != FLOAT or not same_shape(x, y)
        self.expect(0, FLOAT)
        resize_like(y, x, FLOAT)
        if fresh:
            memset(y.data, 0, y.size * sizeof(float))
        for i in range(x.size):
            (<float*>y.data)[i] = (<float*>x.data)[i] + self.gamma * (<float*>y.data)[i]
        return 0


register(
    "Accumulate", Accumulate, 1, 1, ins={"input": "float tensor"}, outs={"output": "the sum; kept from run to run"},
    args={"gamma": "weight of the sum so far, 1 by default"}, infer=like(0),
    doc="output = input + gamma * output. An output of another shape starts from 0.",
)

"""Bases of operators that compute place by place.

`Pointwise` is for float tensors of one shape. `Nested` runs loops over operands that are broadcast
against each other, `Broadcast` derives those loops from two inputs' shapes, and `Binary` is the
operator C = f(A, B) on them.
"""
from cython.parallel cimport prange

from libc.stdint cimport int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    FLOAT, MAX_DIMS, UNDEFINED, itemsize, resize, resize_blocked, same_shape, tensor_t,
)
from caffe2._core.threads cimport num_threads
from caffe2.ops.blocked cimport all_blocked, resize_as, stored_size

from caffe2._core.schema import TensorInfo

cdef enum:
    MAX_INPUTS = 8

ctypedef const float* floats_t


cdef class Pointwise(Operator):
    """Float tensors of one shape in, one of that shape out; in-place use is allowed.

    A subclass overrides `apply`, which sees a stretch of the values; stretches run on several
    threads. One that sets `blocked` has f(0, ...) = 0.
    """

    def __cinit__(self):
        self.work = 1

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        pass

    cdef void stretch(self, int64_t start, int64_t stop) noexcept nogil:
        cdef floats_t[MAX_INPUTS] x
        cdef int i
        for i in range(self.num_inputs):
            x[i] = <floats_t>self.x[i].data + start
        self.apply(x, <float*>self.y[0].data + start, stop - start)

    cdef int run(self) except -1 nogil:
        cdef int64_t n, chunk
        cdef int i, threads
        for i in range(self.num_inputs):
            self.expect(i, FLOAT)
            if i:
                self.expect_same_shape(i, 0)
        if self.num_inputs > 1:
            all_blocked(self)
        n = stored_size(self.x[0])
        resize_as(self.y[0], self.x[0])
        threads = num_threads(n * self.work)
        if threads == 1:
            self.stretch(0, n)
            return 0
        chunk = (n + threads - 1) // threads
        chunk = (chunk + 15) & ~<int64_t>15
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            if i * chunk < n:
                self.stretch(i * chunk, min(n, (i + 1) * chunk))
        return 0


# ---------------------------------------------------------------- nested loops

cdef class Nested(Operator):
    """Loops over operands that are broadcast against each other, or reduced."""

    def __cinit__(self):
        self.work = 1

    cdef void block(self, const int64_t* at, int64_t n, int64_t m) noexcept nogil:
        pass

    cdef void flat(self, int64_t n) noexcept nogil:
        cdef nest_t* t = &self.nest
        cdef int k
        t.ndim = 1
        t.size = t.shape[0] = n
        for k in range(OPERANDS):
            t.stride[k][0] = 1
            t.stride[k][1] = n

    cdef void join(self) noexcept nogil:
        cdef nest_t* t = &self.nest
        cdef int d, k, top = -1
        cdef bint fits
        cdef int64_t n
        cdef int64_t contiguous = 1
        t.size = 1
        for d in range(t.full_ndim - 1, -1, -1):
            n = t.full_shape[d]
            t.size *= n
            t.full_stride[2][d] = contiguous
            contiguous *= n
            if n == 1:
                continue
            fits = top >= 0
            for k in range(OPERANDS if fits else 0):
                fits &= t.full_stride[k][d] == t.stride[k][top] * t.shape[top]
            if fits:
                t.shape[top] *= n
                continue
            top += 1
            t.shape[top] = n
            for k in range(OPERANDS):
                t.stride[k][top] = t.full_stride[k][d]
        t.ndim = top + 1
        if t.size <= 1:
            self.flat(t.size)
        elif t.ndim == 1:
            for k in range(OPERANDS):
                t.stride[k][1] = 0

    cdef void walk(self, int split, int64_t low, int64_t high) noexcept nogil:
        cdef nest_t* t = &self.nest
        cdef int64_t[MAX_DIMS] index, shape
        cdef int64_t[OPERANDS] at
        cdef int d, k
        for d in range(t.ndim):
            index[d] = 0
            shape[d] = t.shape[d]
        shape[split] = high - low
        if t.ndim == 1:
            shape[1] = 1
        for k in range(OPERANDS):
            at[k] = low * t.stride[k][split]
        while True:
            self.block(at, shape[0], shape[1])
            d = 2
            while d < t.ndim:
                index[d] += 1
                for k in range(OPERANDS):
                    at[k] += t.stride[k][d]
                if index[d] < shape[d]:
                    break
                index[d] = 0
                for k in range(OPERANDS):
                    at[k] -= t.stride[k][d] * shape[d]
                d += 1
            if d >= t.ndim:
                return

    cdef int sweep(self, int out) except -1 nogil:
        cdef nest_t* t = &self.nest
        cdef int d, i, threads, split = 0
        cdef int64_t n = 0, chunk
        if t.size == 0:
            return 0
        threads = num_threads(t.size * self.work)
        if threads > 1:
            for d in range(t.ndim):
                if t.stride[out][d] and t.shape[d] > n:
                    split, n = d, t.shape[d]
            if n < threads:
                threads = <int>max(n, 1)
        if threads == 1:
            self.walk(0, 0, t.shape[0])
            return 0
        chunk = (n + threads - 1) // threads
        if split == 0:
            chunk = (chunk + 15) & ~<int64_t>15
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            if i * chunk < n:
                self.walk(split, i * chunk, min(n, (i + 1) * chunk))
        return 0


def broadcast_axis(args, expects_flag=True):
    """Where a broadcast second input starts in the first, or -1 for the end: axis or axis_str."""
    axis, name, order = args.int("axis", -1), args.str("axis_str"), args.str("order", "NCHW")
    if expects_flag and not args.bool("broadcast"):
        if axis != -1 or name:
            raise ValueError("axis and axis_str need broadcast=1")
        return -1
    if axis != -1 and name:
        raise ValueError("axis and axis_str exclude each other")
    if name:
        if len(name) != 1 or name not in order:
            raise ValueError(f"axis_str {name!r} is not a letter of order {order!r}")
        return order.index(name)
    return axis


def broadcast_shape(args, inputs):
    """Shape of A + B from those of A and B; None where it is unknown."""
    a, b = inputs[0].shape, inputs[1].shape
    if a is None or b is None:
        return None
    if args.bool("broadcast"):
        return a
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + a, (1,) * (n - len(b)) + b
    shape = []
    for i, k in zip(a, b, strict=True):
        if i > 1 and k > 1 and i != k:
            raise ValueError(f"shapes {inputs[0].shape} and {inputs[1].shape} cannot be broadcast")
        if i < 0 or k < 0:      # unknown: the other one tells, unless it is 1
            shape.append(i if i > 1 else k if k > 1 else -1)
        else:
            shape.append(min(i, k) and max(i, k))
    return tuple(shape)


def infer_broadcast(dtype=None):
    """Inference of an operator C = f(A, B); C has this dtype, or A's."""
    def infer(args, inputs):
        return [TensorInfo(broadcast_shape(args, inputs), dtype or inputs[0].dtype)]
    return infer


BROADCAST_ARGS = {
    "broadcast": "1: B is broadcast onto A, starting at dimension `axis` of A, the last dimensions "
                 "unless given (default 0: both are broadcast as numpy does)",
    "axis": "dimension of A that the first one of B belongs to (default -1: B's last is A's last)",
    "axis_str": "that dimension as a letter of `order`",
    "order": "NCHW (default) or NHWC",
}


cdef class Broadcast(Nested):
    """Base: two inputs that are broadcast against each other, as numpy does or, with broadcast=1,
    the second onto a run of dimensions of the first."""

    def __cinit__(self):
        self.expects_flag = True

    def setup(self):
        self.legacy = not self.expects_flag or self.args.bool("broadcast")
        self.axis = broadcast_axis(self.args, self.expects_flag)

    cdef int align(self, const tensor_t* a, const tensor_t* b) except -1 nogil:
        cdef nest_t* t = &self.nest
        cdef int d, i, k
        cdef int64_t n, m, step_a = 1, step_b = 1
        if same_shape(a, b):
            t.full_ndim = a.ndim
            for d in range(a.ndim):
                t.full_shape[d] = a.shape[d]
            self.flat(a.size)
            return 0
        if self.legacy:
            return self.align_legacy(a, b)
        t.full_ndim = max(a.ndim, b.ndim)
        for d in range(t.full_ndim - 1, -1, -1):
            i = d - t.full_ndim + a.ndim
            k = d - t.full_ndim + b.ndim
            n = a.shape[i] if i >= 0 else 1
            m = b.shape[k] if k >= 0 else 1
            if n > 1 and m > 1 and n != m:
                return self.fail("the shapes of the inputs cannot be broadcast against each other")
            t.full_shape[d] = max(n, m) if n and m else 0
            t.full_stride[0][d] = step_a if n > 1 else 0
            t.full_stride[1][d] = step_b if m > 1 else 0
            step_a *= n
            step_b *= m
        self.join()
        return 0

    cdef int align_legacy(self, const tensor_t* a, const tensor_t* b) except -1 nogil:
        cdef nest_t* t = &self.nest
        cdef int axis = self.axis if self.axis != -1 else a.ndim - b.ndim
        cdef int d, start = 0, stop = b.ndim
        cdef int64_t step_a = 1, step_b = 1
        if b.size == 1:         # whatever its shape
            start = stop
        elif axis < 0 or axis > a.ndim - b.ndim:
            return self.fail("B has too many dimensions, or axis is out of range, for broadcast=1")
        while start < stop and b.shape[start] == 1:
            start += 1
        while stop > start and b.shape[stop - 1] == 1:
            stop -= 1
        t.full_ndim = a.ndim
        for d in range(a.ndim - 1, -1, -1):
            t.full_shape[d] = a.shape[d]
            t.full_stride[0][d] = step_a
            t.full_stride[1][d] = 0
            step_a *= a.shape[d]
            if start <= d - axis < stop:
                if a.shape[d] != b.shape[d - axis]:
                    return self.fail("the dimensions of B differ from those of A at axis")
                t.full_stride[1][d] = step_b
                step_b *= a.shape[d]
        self.join()
        return 0


cdef class Binary(Broadcast):
    """C = f(A, B), with the inputs broadcast."""

    cdef int check(self) except -1 nogil:
        """Look at the values, before anything is written."""
        return 0

    cdef void block(self, const int64_t* at, int64_t n, int64_t m) noexcept nogil:
        cdef nest_t* t = &self.nest
        self.loop(
            NULL, <const char*>self.x[0].data + at[0] * self.in_size, &t.stride[0][0],
            <const char*>self.x[1].data + at[1] * self.in_size, &t.stride[1][0],
            <char*>self.y[0].data + at[2] * self.out_size, &t.stride[2][0], n, m)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* a = self.x[0]
        cdef tensor_t* b = self.x[1]
        cdef tensor_t* c = self.y[0]
        cdef nest_t* t = &self.nest
        cdef int dtype = a.dtype, d
        self.loop = self.loops[dtype]
        if self.loop == NULL:
            return self.bad_dtype(0)
        self.expect(1, dtype)
        if self.blocked and all_blocked(self):
            self.flat(stored_size(a))
            resize_blocked(c, a.shape)
            self.in_size = self.out_size = sizeof(float)
            return self.sweep(2)
        self.align(a, b)
        if c == a or c == b:
            for d in range(c.ndim):
                if c.ndim != t.full_ndim or c.shape[d] != t.full_shape[d]:
                    return self.fail("the output may not be an input that is broadcast")
        self.check()
        resize(c, t.full_ndim, t.full_shape, self.result if self.result != UNDEFINED else dtype)
        self.in_size = itemsize(dtype)
        self.out_size = itemsize(c.dtype)
        return self.sweep(2)

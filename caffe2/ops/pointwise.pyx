"""Base of the operators that map float tensors of one shape to one of that shape, place by place."""
from cython.parallel cimport prange

from libc.stdint cimport int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport FLOAT, resize_like
from caffe2._core.threads cimport num_threads

cdef enum:
    MAX_INPUTS = 8

ctypedef const float* floats_t


cdef class Pointwise(Operator):
    """Float tensors of one shape in, one of that shape out; in-place use is allowed.

    A subclass overrides `apply`, which sees a stretch of the values; stretches run on several threads.
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
        n = self.x[0].size
        resize_like(self.y[0], self.x[0], FLOAT)
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

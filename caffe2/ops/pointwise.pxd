from libc.stdint cimport int64_t
from caffe2._core.operator cimport Operator

cdef class Pointwise(Operator):
    # Values at a place depend on the inputs' values at that place. A subclass says how, for one stretch of n places;
    # x[i] points into input i, y into output 0.
    cdef int work       # elementary operations a place, for the choice of threads

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil
    cdef void stretch(self, int64_t start, int64_t stop) noexcept nogil

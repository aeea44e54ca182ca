from libc.stdint cimport int64_t, uint64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport tensor_t
from caffe2.ops.kernels.dispatch cimport image_t
from caffe2.ops.windows cimport Windows

# Filters packed for GEMM, group by group.
cdef struct packed_t:
    int64_t filters         # of a group
    int64_t taps
    size_t bytes
    char* data

cdef class Correlation(Operator):
    # Filters that are correlated with the windows of images. All gradients and the transposed convolution are made of
    # the four products below; each covers the whole batch, all groups and both orders.
    #   x  images                    [batch, channels, pixels]   or [batch, pixels, channels]
    #   y  what the filters answer   [batch, filters, count]     or [batch, count, filters]
    #   w  filters                   [filters, channels / group, taps]  or [filters, taps, channels / group]
    cdef Windows windows
    cdef int64_t filters
    cdef void* packed           # w as GEMM wants it
    cdef size_t packed_size
    cdef const void* packed_from
    cdef uint64_t packed_version
    cdef int packed_way         # CONV16_..., CONV16_NONE for GEMM
    cdef bint repacks           # filters were other ones in the run before: they are being trained

    # Shapes of filters (input 1) and bias (input i); raises where they do not fit the windows.
    cdef int check_filter(self) except -1 nogil
    cdef int check_bias(self, int i, int64_t size) except -1 nogil

    cdef int answers(self, const float* x, const float* bias, float* y) except -1 nogil
    cdef int images(self, const float* y, const float* bias, float* x) except -1 nogil
    cdef int filter_gradient(self, const float* x, const float* y, float* dw) except -1 nogil
    cdef void bias_gradient(self, const float* y, int64_t channels, int64_t pixels, float* db) noexcept nogil

    # For operators with inputs X, filter, dY and outputs dfilter, [dbias], [dX]: gradients of a convolution, or of a
    # transposed one, where X and dY have changed places. db is summed over that many channels of so many pixels.
    cdef bint no_bias
    cdef tensor_t* input_gradient(self) noexcept nogil
    cdef int gradients(self, bint transposed, int64_t channels, int64_t pixels) except -1 nogil

    cdef void depthwise(self, const image_t* g, const float* x, const float* w, const float* bias,
                        float* y) noexcept nogil
    # Make packed as large as that; whether it already holds the filters as they are now, packed that way.
    cdef int room(self, size_t n) except -1 nogil
    cdef bint is_packed(self, int way) noexcept nogil
    cdef int pack_room(self, packed_t* f, int which, int64_t filters, int64_t taps) except -1 nogil
    cdef int multiply(self, const image_t* g, const packed_t* f, const float* x, const float* bias,
                      float* y) except -1 nogil
    cdef int multiply_some(self, const image_t* g, const packed_t* f, const float* x, const float* bias, float* y,
                           int64_t first, int64_t n, int group, int nth) noexcept nogil
    cdef int scatter_one(self, const packed_t* f, const float* y, const float* bias, float* x, int64_t image,
                         int nth) noexcept nogil
    cdef int filter_gradient_part(self, const float* x, const float* y, float* dw, int64_t first, int64_t last,
                                  int nth) noexcept nogil

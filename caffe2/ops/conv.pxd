from libc.stdint cimport int64_t, uint64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport tensor_t
from caffe2.ops.kernels.dispatch cimport conv16_t, depthwise16_t, epilogue16_t, image_t
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
    cdef int no_memory(self) except -1 nogil

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

# What fit() found for images of that layout and shape, and filters and bias of those versions.
cdef struct fitted_t:
    int layout              # -1: nothing yet
    int64_t x[4]
    uint64_t version, bias_version
    const depthwise16_t* before
    int way
    conv16_t c
    int64_t y[4]

cdef class Conv(Correlation):
    cdef fitted_t fitted
    cdef float low, high
    cdef int residual           # input, 0 for none
    cdef bint winograd
    # Y holds what several operators answer: so many channels, of which these are `own` from `start` on. 0: it is all
    # this operator's own.
    cdef int64_t whole, start, own
    cdef const float* bias
    # Whose answers it sees where its input, a blocked tensor, has none; NULL: it has.
    cdef const depthwise16_t* before

    # Check inputs and find the shape of Y; how to convolve in the blocked layout, CONV16_NONE: not at all.
    cdef int fit(self, conv16_t* c, int64_t* shape) except -2 nogil
    cdef int check_residual(self, const int64_t* shape) except -1 nogil
    # Then convolve.
    cdef int answer(self, const conv16_t* c, int way, const int64_t* shape) except -1 nogil

    cdef int way(self, conv16_t* c) noexcept nogil
    # Pack the filters where that is not done; False: they have NaN or Inf, which rules this way out.
    cdef bint pack(self, const conv16_t* c, int way, int nth) except -1 nogil
    # What is done to the sums; without the residual.
    cdef epilogue16_t epilogue(self) noexcept nogil
    cdef int run_blocked(self, const conv16_t* c, int way, const int64_t* shape) except -1 nogil
    cdef int run_plain(self, const int64_t* shape) except -1 nogil
    cdef int open(self, const int64_t* shape, bint blocked) except -1 nogil
    cdef int put(self, const float* answers, bint blocked, int nth) except -1 nogil
    cdef void finish(self, const float* residual, float* y, int64_t start, int64_t stop) noexcept nogil

cdef class ConvFused(Conv):
    pass

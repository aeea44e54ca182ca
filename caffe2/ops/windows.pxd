from libc.stdint cimport int64_t
from caffe2._core.tensor cimport tensor_t
from caffe2.ops.kernels.dispatch cimport conv16_t, image_t

# Images are right-aligned in three spatial axes: a 2-D image has depth 1, a 1-D image height 1 too.
cdef struct windows_t:
    image_t image           # parameters, and, after fit, the images and windows of this run
    int ndim                # spatial axes
    int group
    int legacy_pad
    bint whole              # one window over the whole image (global pooling)
    int tail[3]             # padding behind; image.pad is the padding before
    int given_pad[3]        # as in the arguments
    int given_tail[3]
    int adjust[3]
    int64_t batch
    int64_t channels        # of images, all groups
    int64_t pixels          # of an image
    int64_t count           # windows of an image
    int64_t taps            # pixels of a window

cdef class Windows:
    cdef windows_t c

    # Lay windows over images of that shape; raises where they do not fit.
    cdef int fit(self, int ndim, const int64_t* shape) except -1 nogil
    # Images of `channels` from windows of that shape: the transposed convolution.
    cdef int fit_transposed(self, int ndim, const int64_t* shape, int64_t channels) except -1 nogil
    cdef int check_ndim(self, int ndim) except -1 nogil
    cdef int finish(self, int64_t batch, int64_t channels) except -1 nogil
    cdef int fail(self, str message) except -1

# Shape of a tensor with that many channels, on the windows' side, or on the images'.
cdef void window_shape(const windows_t* g, int64_t channels, int64_t* shape) noexcept nogil
cdef void image_shape(const windows_t* g, int64_t channels, int64_t* shape) noexcept nogil

# The windows, after fit, as kernels of the blocked layout want them; False where they are not for that layout.
cdef bint blocked_windows(const windows_t* g, int64_t out_channels, conv16_t* c) noexcept nogil

# Raise unless t has that shape.
cdef int check_shape(const tensor_t* t, const char* name, int ndim, const int64_t* shape) except -1 nogil

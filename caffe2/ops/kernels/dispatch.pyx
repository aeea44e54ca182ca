"""Chooses the instruction set of the kernels, once, at import.

The environment variable ``CAFFE2_ISA`` (``v1``, ``v3``, ``v4`` or ``amx``) forces a level.
"""

import os

import numpy as np

from libc.stdint cimport int32_t

LEVELS = ("v1", "v3", "v4", "amx")


cdef const kernels_t* table(str level) except NULL:
    cdef bytes name = level.encode()
    if level and level not in LEVELS:
        raise ValueError(f"unknown instruction set {level!r}; there are {', '.join(LEVELS)}")
    cdef const kernels_t* found = kernels_level(name)
    if found == NULL:
        raise ValueError(f"instruction set {level!r} is not available on this processor")
    return found


K = table(os.environ.get("CAFFE2_ISA", ""))


def isa():
    """Name of the level in use: ``v1`` (baseline), ``v3`` (AVX2), ``v4`` (AVX-512) or ``amx`` (tiles too)."""
    return K.name.decode()


def available():
    """Names of the levels that this build has and this processor runs."""
    return tuple(name for name in LEVELS if kernels_level(name.encode()) != NULL)


def level(name):
    """The kernels of one level as functions of arrays, for tests and measurements."""
    return Level(name)


cdef operand_t operand(x, bint trans):
    cdef operand_t o
    cdef size_t address = x.__array_interface__["data"][0]
    o.data = <const void*> address
    o.ld = x.strides[0] // x.itemsize if x.ndim == 2 else 1
    o.trans = trans
    o.packed = 0
    o.image = NULL
    return o


cdef const void* pointer(x):
    cdef size_t address = 0
    if x is not None:
        address = x.__array_interface__["data"][0]
    return <const void*> address


cdef class Image:
    """An image array as the matrix of its windows; axes as in ``image_t``."""

    cdef image_t g
    cdef readonly object x, shape

    def __init__(self, x, kernel, stride, pad, dilation, out, nhwc=False):
        # x: (batch, channels, depth, height, width) or (batch, depth, height, width, channels)
        self.x = x
        size = x.shape[1:4] if nhwc else x.shape[2:]
        channels = x.shape[4] if nhwc else x.shape[1]
        self.g.nhwc = nhwc
        self.g.channels = channels
        self.g.batch = x.shape[0]
        self.g.batch_stride = x.strides[0] // x.itemsize
        self.g.step = x.strides[3 if nhwc else 1] // x.itemsize
        for i in range(3):
            self.g.size[i] = size[i]
            self.g.kernel[i] = kernel[i]
            self.g.stride[i] = stride[i]
            self.g.pad[i] = pad[i]
            self.g.dilation[i] = dilation[i]
            self.g.out[i] = out[i]
        taps = channels * int(np.prod(kernel))
        pixels = x.shape[0] * int(np.prod(out))
        self.shape = (pixels, taps) if nhwc else (taps, pixels)


cdef class Level:
    cdef const kernels_t* k

    def __init__(self, name):
        self.k = table(name)

    @property
    def name(self):
        return self.k.name.decode()

    def addresses(self):
        """Name to address of each function of arrays, for ctypes."""
        cdef const kernels_t* k = self.k
        return {
            "vexp": <size_t> k.vexp,
            "vlog": <size_t> k.vlog,
            "vtanh": <size_t> k.vtanh,
            "vsigmoid": <size_t> k.vsigmoid,
            "verf": <size_t> k.verf,
            "softmax_rows": <size_t> k.softmax_rows,
            "vrelu": <size_t> k.vrelu,
            "vrelu_grad": <size_t> k.vrelu_grad,
            "vsigmoid_grad": <size_t> k.vsigmoid_grad,
            "vtanh_grad": <size_t> k.vtanh_grad,
            "vaxpy": <size_t> k.vaxpy,
            "vaxpby": <size_t> k.vaxpby,
            "vscale": <size_t> k.vscale,
            "vadd": <size_t> k.vadd,
            "vsub": <size_t> k.vsub,
            "vmul": <size_t> k.vmul,
            "vdiv": <size_t> k.vdiv,
            "vsum": <size_t> k.vsum,
            "vsumsq": <size_t> k.vsumsq,
            "vdot": <size_t> k.vdot,
            "vmax": <size_t> k.vmax,
            "column_sums": <size_t> k.column_sums,
            "momentum": <size_t> k.momentum,
            "adagrad": <size_t> k.adagrad,
            "adam": <size_t> k.adam,
            "rmsprop": <size_t> k.rmsprop,
            "half_to_float": <size_t> k.half_to_float,
            "float_to_half": <size_t> k.float_to_half,
        }

    def gemm(self, a, b, c, trans_a=False, trans_b=False, double alpha=1, double beta=0,
             bias_row=None, bias_col=None, residual=None, bint relu=False, int nth=1,
             pack_a=False, pack_b=False):
        """``c = relu(alpha * op(a) @ op(b) + beta * c + bias + residual)`` in place.

        Rows must be contiguous; `a` and `b` may be an `Image`. `pack_a` and `pack_b` pack the
        factor first. With a `c` of int32, `a` and `b` are of int8 and `alpha` is 1.
        """
        cdef bint double_ = c.dtype == np.float64, int_ = c.dtype == np.int32
        cdef epilogue_t e
        cdef operand_t[2] o
        cdef int which, rc
        cdef long[2] n
        cdef long k = a.shape[0 if trans_a else 1]
        kept = []
        n[0] = a.shape[1 if trans_a else 0]
        n[1] = b.shape[0 if trans_b else 1]
        if k != b.shape[1 if trans_b else 0] or c.shape != (n[0], n[1]):
            raise ValueError(f"shapes do not fit: {a.shape}, {b.shape}, {c.shape}")
        for which, (x, trans, pack) in enumerate([(a, trans_a, pack_a), (b, trans_b, pack_b)]):
            if isinstance(x, Image):
                o[which] = operand((<Image> x).x, trans)
                o[which].image = &(<Image> x).g
            else:
                o[which] = operand(x, trans)
            if pack:
                size = (self.k.dgemm_pack_bytes if double_ else self.k.igemm_pack_bytes if int_
                        else self.k.sgemm_pack_bytes)(which, n[which], k)
                space = np.empty(size + 64, np.uint8)
                start = -space.ctypes.data % 64
                panels = space[start:start + size]
                kept.append(panels)
                if double_:
                    rc = self.k.dgemm_pack(which, &o[which], n[which], k, <void*> pointer(panels))
                elif int_:
                    rc = self.k.igemm_pack(which, &o[which], n[which], k, <void*> pointer(panels))
                else:
                    rc = self.k.sgemm_pack(which, &o[which], n[which], k, <void*> pointer(panels))
                if rc:
                    raise MemoryError
                o[which].data = pointer(panels)
                o[which].packed = 1
        e.bias_row = pointer(bias_row)
        e.bias_col = pointer(bias_col)
        e.residual = pointer(residual)
        e.ld_residual = 0 if residual is None else residual.strides[0] // residual.itemsize
        e.relu = relu
        cdef long ldc = c.strides[0] // c.itemsize
        cdef void* pc = <void*> pointer(c)
        with nogil:
            if double_:
                rc = self.k.dgemm_op(n[0], n[1], k, alpha, &o[0], &o[1], beta, <double*> pc, ldc,
                                     &e, nth)
            elif int_:
                rc = self.k.igemm_op(n[0], n[1], k, &o[0], &o[1], beta != 0, <int32_t*> pc, ldc,
                                     &e, nth)
            else:
                rc = self.k.sgemm_op(n[0], n[1], k, alpha, &o[0], &o[1], beta, <float*> pc, ldc,
                                     &e, nth)
        if rc:
            raise MemoryError
        return c

    def gemm_batch(self, a, b, c, trans_a=False, trans_b=False, double alpha=1, double beta=0,
                   int nth=1):
        """`gemm` for each matrix of 3-D arrays; a leading size of 1 is repeated."""
        cdef bint double_ = c.dtype == np.float64
        cdef long m = c.shape[1], n = c.shape[2], k = a.shape[1 if trans_a else 2]
        cdef long[3] s, ld
        for i, x in enumerate((a, b, c)):
            s[i] = x.strides[0] // x.itemsize if x.shape[0] > 1 else 0
            ld[i] = x.strides[1] // x.itemsize
        f = c.shape[0]
        if double_:
            rc = self.k.dgemm_batch(f, trans_a, trans_b, m, n, k, alpha,
                                    <const double*> pointer(a), ld[0], s[0],
                                    <const double*> pointer(b), ld[1], s[1], beta,
                                    <double*> pointer(c), ld[2], s[2], nth)
        else:
            rc = self.k.sgemm_batch(f, trans_a, trans_b, m, n, k, alpha,
                                    <const float*> pointer(a), ld[0], s[0],
                                    <const float*> pointer(b), ld[1], s[1], beta,
                                    <float*> pointer(c), ld[2], s[2], nth)
        if rc:
            raise MemoryError
        return c

    def im2col(self, Image image, out, int nth=1):
        """Write the matrix of an image's windows to `out`."""
        if out.dtype == np.float64:
            self.k.dim2col(&image.g, <const double*> pointer(image.x), <double*> pointer(out), nth)
        else:
            self.k.sim2col(&image.g, <const float*> pointer(image.x), <float*> pointer(out), nth)
        return out

    def col2im(self, columns, Image image, int nth=1):
        """Add the entries of `columns` onto the pixels of the image they come from."""
        if columns.dtype == np.float64:
            self.k.dcol2im(&image.g, <const double*> pointer(columns),
                           <double*> pointer(image.x), nth)
        else:
            self.k.scol2im(&image.g, <const float*> pointer(columns),
                           <float*> pointer(image.x), nth)
        return image.x

    # ---------------------------------------------------------------- blocked images

    def to16(self, x, int nth=1):
        """A batch of NCHW images in the blocked layout."""
        n, channels, h, w = x.shape
        y = aligned((n, (channels + 15) // 16, h, w, 16))
        self.k.to16(n, channels, h * w, <const float*> pointer(x), <float*> pointer(y), nth)
        return y

    def from16(self, x, int channels, int nth=1):
        """Blocked images as NCHW."""
        n, _, h, w, _ = x.shape
        y = np.full((n, channels, h, w), np.nan, np.float32)
        self.k.from16(n, channels, h * w, <const float*> pointer(x), <float*> pointer(y), nth)
        return y

    def filter_gradient(self, x, w, dy, int group=1, stride=(1, 1), pad=(0, 0), dilation=(1, 1), int nth=1):
        """Gradient of the filters of a convolution of blocked images, or plain ones; of `w` only the shape counts."""
        cdef conv16_t c = shape16(x.shape[0], w.shape[1] * group, x.shape[2:4], w.shape[0],
                                  dy.shape[2:4], group, w.shape[2:], stride, pad, dilation)
        dw = np.full(w.shape, np.nan, np.float32)
        cdef const float* px = <const float*> pointer(x)
        cdef const float* pdy = <const float*> pointer(dy)
        cdef float* pdw = <float*> pointer(dw)
        if x.ndim == 4 and not self.k.plain_filter_gradient_fits(&c):
            raise ValueError("not for plain images")
        if (self.k.plain_filter_gradient(&c, px, pdy, pdw, nth) if x.ndim == 4 else
                self.k.conv16_filter_gradient(&c, px, pdy, pdw, nth)):
            raise MemoryError
        return dw

    def image_gradient(self, x, w, dy, int group=1, stride=(1, 1), pad=(0, 0), dilation=(1, 1),
                       bint winograd=True, int nth=1):
        """Gradient of the blocked or plain images of a convolution; of `x` only the shape counts."""
        cdef conv16_t c = shape16(x.shape[0], w.shape[1] * group, x.shape[2:4], w.shape[0],
                                  dy.shape[2:4], group, w.shape[2:], stride, pad, dilation)
        dx = aligned(x.shape)
        cdef const float* pdy = <const float*> pointer(dy)
        cdef const float* pw = <const float*> pointer(w)
        cdef float* pdx = <float*> pointer(dx)
        if (self.k.plain_image_gradient(&c, pdy, pw, pdx, nth) if x.ndim == 4 else
                self.k.conv16_image_gradient(&c, winograd, pdy, pw, pdx, nth)):
            raise MemoryError
        return dx

    def pool16(self, x, int channels, mode, kernel, stride, pad, out, int nth=1):
        """Pooling of blocked images; `mode` is "max", "average" or "average_pad"."""
        cdef conv16_t c = shape16(x.shape[0], channels, x.shape[2:4], channels, out, channels, kernel,
                                  stride, pad, (1, 1))
        y = aligned((*x.shape[:2], *out, 16))
        self.k.pool16(&c, POOLS[mode], <const float*> pointer(x), <float*> pointer(y), nth)
        return y

    def pool_gradient16(self, x, y, dy, int channels, mode, kernel, stride, pad, int nth=1):
        """Gradient of the blocked images `x` from that of the blocked `y`."""
        cdef conv16_t c = shape16(x.shape[0], channels, x.shape[2:4], channels, dy.shape[2:4], channels, kernel,
                                  stride, pad, (1, 1))
        dx = aligned(x.shape)
        self.k.pool16_gradient(&c, POOLS[mode], <const float*> pointer(x), <const float*> pointer(y),
                               <const float*> pointer(dy), <float*> pointer(dx), nth)
        return dx

    def mean16(self, x, int channels, int nth=1):
        """Average of each channel of blocked images."""
        y = np.full((x.shape[0], channels), np.nan, np.float32)
        self.k.mean16(x.shape[0], channels, x.shape[2] * x.shape[3], <const float*> pointer(x),
                      <float*> pointer(y), nth)
        return y


POOLS = {"max": POOL16_MAX, "average": POOL16_AVERAGE, "average_pad": POOL16_AVERAGE_PAD}
WAYS = {
    "direct": CONV16_DIRECT,
    "first": CONV16_FIRST,
    "depthwise": CONV16_DEPTHWISE,
    "winograd_4": CONV16_WINOGRAD_4,
    "winograd_2": CONV16_WINOGRAD_2,
    "tiles": CONV16_TILES,
}


cdef class Conv16:
    """A convolution of blocked images (NCHW for the way "first") with filters packed once.

    The way is the fastest one unless named. Called with images, it returns blocked images. Called with a depthwise
    convolution and its bias and bounds, too, it convolves what that one answers to the images.
    """

    cdef conv16_t c
    cdef const kernels_t* k
    cdef int code
    cdef readonly object packed

    def __init__(self, Level level, w, out, int group=1, stride=(1, 1), pad=(0, 0),
                 dilation=(1, 1), way=None, bint nchw=False, bint winograd=True, size=(0, 0)):
        self.k = level.k
        self.c = shape16(1, w.shape[1] * group, size, w.shape[0], out, group, w.shape[2:], stride, pad,
                         dilation)
        self.code = WAYS[way] if way else self.k.conv16_way(&self.c, nchw, winograd)
        if self.code == CONV16_NONE or (self.code == CONV16_TILES and self.k.name != b"amx"):
            raise ValueError("not a convolution for blocked images")
        self.packed = aligned((self.k.conv16_pack_bytes(&self.c, self.code) // 4,))
        if self.k.conv16_pack(&self.c, self.code, <const float*> pointer(w),
                              <float*> pointer(self.packed), 1):
            raise MemoryError

    @property
    def way(self):
        """Name of the way."""
        return next(name for name, code in WAYS.items() if code == self.code)

    def __call__(self, x, bias=None, residual=None, double low=-np.inf, double high=np.inf, y=None,
                 int nth=1, Conv16 before=None, before_bias=None, bounds=(-np.inf, np.inf)):
        cdef depthwise16_t d
        cdef epilogue16_t e
        cdef int rc
        self.set_images(x.shape[0], x.shape[2:4] if before is None else (before.c.out[0], before.c.out[1]))
        if y is None:
            y = aligned((x.shape[0], (self.c.out_channels + 15) // 16, self.c.out[0], self.c.out[1], 16))
        set_epilogue(&e, bias, residual, low, high)
        e.y_image = y.strides[0] // 4
        cdef const float* px = <const float*> pointer(x)
        cdef const float* pw = <const float*> pointer(self.packed)
        cdef float* py = <float*> pointer(y)
        if before is None:
            with nogil:
                rc = self.k.conv16(&self.c, self.code, px, pw, &e, py, nth)
        else:
            before.set_images(x.shape[0], x.shape[2:4])
            d.c, d.x, d.packed = before.c, px, <const float*> pointer(before.packed)
            set_epilogue(&d.e, before_bias, None, bounds[0], bounds[1])
            with nogil:
                rc = self.k.separable16(&d, &self.c, self.code, pw, &e, py, nth)
        if rc:
            raise MemoryError
        return y

    cdef set_images(self, batch, size):
        self.c.batch = batch
        for i in range(2):
            self.c.size[i] = size[i]


cdef set_epilogue(epilogue16_t* e, bias, residual, double low, double high):
    e.bias = <const float*> pointer(bias)
    e.residual = <const float*> pointer(residual)
    e.low = low
    e.high = high
    e.y_image = 0


cdef conv16_t shape16(batch, channels, size, out_channels, out, group, kernel, stride, pad, dilation):
    cdef conv16_t c
    c.batch = batch
    c.channels = channels
    c.out_channels = out_channels
    c.group = group
    for i in range(2):
        c.size[i] = size[i]
        c.out[i] = out[i]
        c.kernel[i] = kernel[i]
        c.stride[i] = stride[i]
        c.pad[i] = pad[i]
        c.dilation[i] = dilation[i]
    return c


def aligned(shape):
    """A float32 array of NaN whose data is aligned as the kernels ask."""
    space = np.full(int(np.prod(shape)) + 16, np.nan, np.float32)
    start = -space.ctypes.data % 64 // 4
    return space[start:start + int(np.prod(shape))].reshape(shape)

"""Windows that slide over images: the arguments and shapes that convolution and pooling share."""
from libc.stdint cimport INT32_MAX, int64_t

from caffe2._core.tensor cimport shape_of, tensor_t

from caffe2._core.schema import TensorInfo

cdef enum:
    WIDE_BORDER = 32

cdef enum LegacyPad:
    NOTSET = 0
    VALID = 1
    SAME = 2
    CAFFE = 3

# Arguments of all operators with windows, for their schemas.
ARGS = {
    "kernel": "height and width of a window",
    "kernels": "sizes of a window, one for each spatial axis; kernel_h and kernel_w give those of an image",
    "stride": "step between windows",
    "strides": "steps between windows, one for each spatial axis; also stride_h and stride_w",
    "pad": "zeros around the image",
    "pads": "zeros before each spatial axis, then those behind each; also pad_t, pad_l, pad_b and pad_r",
    "legacy_pad": "how to find the padding instead: 1 VALID (none), 2 SAME (outputs = inputs / stride, rounded up), "
                  "3 as Caffe's pooling rounds",
    "order": "NCHW (default) or NHWC",
}
DILATION = {
    "dilation": "distance between the pixels of a window",
    "dilations": "distances, one for each spatial axis; also dilation_h and dilation_w",
}
GROUP = {"group": "groups of channels; a filter sees those of its group alone"}


cdef object _axes(args, name, many, suffixes, repeat=1):
    """Values of an argument: of one number for all axes of an image, of one for each, or of a list."""
    if name in args:
        return [args.int(name)] * (2 * repeat)
    values = args.ints(many)
    if all(f"{name}_{s}" in args for s in suffixes):
        values += [args.int(f"{name}_{s}") for s in suffixes]
    return values


def kernel_of(args):
    """Sizes of the windows as the arguments give them, a list."""
    return _axes(args, "kernel", "kernels", "hw")


def is_pixelwise(args):
    """Whether every window of images, NCHW and undivided, is one pixel, and every pixel a window.

    Of arguments that do not fit, it is False; binding the operator says what is wrong with them.
    """
    cdef Windows w
    cdef const image_t* g
    cdef int i
    try:
        w = Windows(args)
    except (TypeError, ValueError):
        return False
    g = &w.c.image
    cdef bint plain = w.c.ndim == 2 and not g.nhwc and w.c.group == 1 and w.c.legacy_pad == NOTSET and not w.c.whole
    for i in range(3):
        plain &= g.kernel[i] == 1 and g.stride[i] == 1 and w.c.given_pad[i] == 0 and w.c.given_tail[i] == 0
    return plain


cdef class Windows:
    """Kernel, stride, padding, dilation, order and group of an operator, and where its windows lie.

    Parameters
    ----------
    args : Args
        Arguments of the operator.
    explicit : bool
        Whether the size of the windows must be given (unless they are to cover all of an image).
    """

    def __init__(self, args, bint explicit=True):
        cdef int i, at
        self.c.whole = args.bool("global_pooling")
        self.c.legacy_pad = args.int("legacy_pad", NOTSET)
        self.c.group = args.int("group", 1)
        order = args.str("order", "NCHW")
        kernel = kernel_of(args)
        given = {
            "stride": _axes(args, "stride", "strides", "hw"), "dilation": _axes(args, "dilation", "dilations", "hw"),
            "pad": _axes(args, "pad", "pads", "tlbr", 2), "adj": _axes(args, "adj", "adjs", "hw"),
        }
        n = len(kernel)
        if not n:
            if explicit and not self.c.whole:
                raise ValueError("the size of the windows must be given: kernel, kernels, or kernel_h and kernel_w")
            kernel, n = [1, 1], 2
        if n > 3:
            raise ValueError(f"images have one to three axes, kernels has {n} values")
        if order not in ("NCHW", "NHWC"):
            raise ValueError(f"order must be NCHW or NHWC, not {order}")
        if not NOTSET <= self.c.legacy_pad <= CAFFE:
            raise ValueError(f"legacy_pad must be 0 to 3, not {self.c.legacy_pad}")
        if self.c.legacy_pad in (VALID, SAME) and given["pad"]:
            raise ValueError("legacy_pad VALID and SAME find the padding; none may be given with them")
        if self.c.group < 1:
            raise ValueError(f"group must be positive, not {self.c.group}")
        for name, default in (("stride", 1), ("dilation", 1), ("pad", 0), ("adj", 0)):
            wanted = 2 * n if name == "pad" else n
            given[name] = given[name] or [default] * wanted
            if len(given[name]) != wanted:
                raise ValueError(f"{name} needs {wanted} values for {n} spatial axes, but has {len(given[name])}")
        given["kernel"] = kernel
        for name, values in given.items():
            least = 0 if name in ("pad", "adj") else 1
            if not all(least <= v <= INT32_MAX for v in values):
                raise ValueError(f"{name} must be at least {least} and below 2**31, but is {values}")
        if self.c.whole and (any(given["pad"]) or set(given["stride"] + given["dilation"]) != {1}):
            raise ValueError("global_pooling takes no pad, stride or dilation")
        self.c.ndim = n
        self.c.image.nhwc = order == "NHWC"
        for i in range(3):
            at = i - (3 - n)
            self.c.image.kernel[i] = kernel[at] if at >= 0 else 1
            self.c.image.stride[i] = given["stride"][at] if at >= 0 else 1
            self.c.image.dilation[i] = given["dilation"][at] if at >= 0 else 1
            self.c.given_pad[i] = given["pad"][at] if at >= 0 else 0
            self.c.given_tail[i] = given["pad"][n + at] if at >= 0 else 0
            self.c.adjust[i] = given["adj"][at] if at >= 0 else 0

    cdef int fail(self, str message) except -1:
        raise ValueError(message)

    cdef int check_ndim(self, int ndim) except -1 nogil:
        if ndim != self.c.ndim + 2:
            with gil:
                self.fail(f"images must have {self.c.ndim + 2} dimensions for windows of {self.c.ndim}, "
                          f"but have {ndim}")
        return 0

    cdef int fit(self, int ndim, const int64_t* shape) except -1 nogil:
        cdef image_t* g = &self.c.image
        cdef int64_t size, kernel, stride, head, tail, out, needed
        cdef int i, at
        if self.c.whole and 3 <= ndim <= 5:
            self.c.ndim = ndim - 2
        self.check_ndim(ndim)
        for i in range(3):
            at = i - (3 - self.c.ndim)
            size = 1 if at < 0 else shape[at + (1 if g.nhwc else 2)]
            if size > INT32_MAX:
                with gil:
                    self.fail(f"image axis {at} is too long: {size}")
            if self.c.whole:
                g.kernel[i] = <int>size
            kernel = <int64_t>g.dilation[i] * (g.kernel[i] - 1) + 1
            stride = g.stride[i]
            head = self.c.given_pad[i]
            tail = self.c.given_tail[i]
            if self.c.legacy_pad == SAME and at >= 0:
                if g.dilation[i] != 1:
                    with gil:
                        self.fail("legacy_pad SAME takes no dilation")
                needed = ((size + stride - 1) // stride - 1) * stride + kernel - size
                head = needed // 2
                tail = needed - head
            if size + head + tail < kernel:
                with gil:
                    self.fail(f"a window of {kernel} pixels (dilation included) does not fit image axis {at}, "
                              f"which has {size + head + tail} (padding included)")
            out = (size + head + tail - kernel) // stride + 1
            if self.c.legacy_pad == CAFFE and at >= 0:
                # Caffe rounds up, but lets the last window start inside the image.
                needed = (size + 2 * head - g.kernel[i]) // stride + 1
                out = (size + 2 * head - g.kernel[i] + stride - 1) // stride + 1
                if head > 0 and (out - 1) * stride >= size + head:
                    out -= 1
                tail = head + stride * (out - needed)
            if size + head + tail > INT32_MAX or kernel > INT32_MAX:
                with gil:
                    self.fail(f"image axis {at} is too long with its padding: {size + head + tail}")
            g.size[i] = <int>size
            g.pad[i] = <int>head
            self.c.tail[i] = <int>tail
            g.out[i] = <int>out
        return self.finish(shape[0], shape[ndim - 1 if g.nhwc else 1])

    cdef int fit_transposed(self, int ndim, const int64_t* shape, int64_t channels) except -1 nogil:
        cdef image_t* g = &self.c.image
        cdef int64_t size, out
        cdef int i, at
        self.check_ndim(ndim)
        if self.c.legacy_pad == CAFFE:
            with gil:
                self.fail("legacy_pad CAFFE_LEGACY_POOLING is for pooling")
        for i in range(3):
            at = i - (3 - self.c.ndim)
            out = 1 if at < 0 else shape[at + (1 if g.nhwc else 2)]
            if self.c.adjust[i] > g.stride[i]:
                with gil:
                    self.fail(f"adj may be at most the stride, {g.stride[i]}, but is {self.c.adjust[i]}")
            size = ((out - 1) * g.stride[i] + <int64_t>g.dilation[i] * (g.kernel[i] - 1) + 1 + self.c.adjust[i]
                    - self.c.given_pad[i] - self.c.given_tail[i])
            if out > INT32_MAX or size > INT32_MAX or size < (1 if out else 0):
                with gil:
                    self.fail(f"axis {at} of the output would have {size} pixels")
            g.size[i] = <int>size
            g.pad[i] = self.c.given_pad[i]
            self.c.tail[i] = self.c.given_tail[i]
            g.out[i] = <int>out
        return self.finish(shape[0], channels)

    cdef int finish(self, int64_t batch, int64_t channels) except -1 nogil:
        cdef image_t* g = &self.c.image
        cdef int i
        if channels > INT32_MAX or channels % self.c.group:
            with gil:
                self.fail(f"{channels} channels cannot be divided into {self.c.group} groups")
        self.c.batch = batch
        self.c.channels = channels
        self.c.pixels = self.c.count = self.c.taps = 1
        for i in range(3):
            self.c.pixels *= g.size[i]
            self.c.count *= g.out[i]
            self.c.taps *= g.kernel[i]
            if max(self.c.pixels, self.c.count, self.c.taps) > INT32_MAX:
                with gil:
                    self.fail("an image would have more than 2**31 - 1 pixels or windows, or a window as many pixels")
        g.batch = batch
        g.channels = <int>(channels // self.c.group)
        g.step = channels if g.nhwc else self.c.pixels
        g.batch_stride = channels * self.c.pixels
        return 0


cdef void fill_shape(const windows_t* g, int64_t channels, const int* size, int64_t* shape) noexcept nogil:
    cdef int i
    shape[0] = g.batch
    shape[g.ndim + 1 if g.image.nhwc else 1] = channels
    for i in range(g.ndim):
        shape[i + (1 if g.image.nhwc else 2)] = size[i + 3 - g.ndim]


cdef void window_shape(const windows_t* g, int64_t channels, int64_t* shape) noexcept nogil:
    fill_shape(g, channels, g.image.out, shape)


cdef void image_shape(const windows_t* g, int64_t channels, int64_t* shape) noexcept nogil:
    fill_shape(g, channels, g.image.size, shape)


cdef bint blocked_windows(const windows_t* g, int64_t out_channels, conv16_t* c) noexcept nogil:
    cdef int i
    cdef bint fits = g.ndim == 2 and not g.image.nhwc and g.batch > 0 and g.channels > 0 and g.count > 0
    c.batch = g.batch
    c.channels = <int>g.channels
    c.out_channels = <int>out_channels
    c.group = g.group
    for i in range(2):
        c.size[i] = g.image.size[i + 1]
        c.out[i] = g.image.out[i + 1]
        c.kernel[i] = g.image.kernel[i + 1]
        c.stride[i] = g.image.stride[i + 1]
        c.pad[i] = g.image.pad[i + 1]
        c.dilation[i] = g.image.dilation[i + 1]
        # kernels copy borders: one that is much larger than the image is not worth the memory
        fits &= c.size[i] > 0 and max(g.image.pad[i + 1], g.tail[i + 1]) <= max(c.size[i], WIDE_BORDER)
    return fits and 0 < out_channels <= INT32_MAX


cdef int check_shape(const tensor_t* t, const char* name, int ndim, const int64_t* shape) except -1 nogil:
    cdef int i
    cdef bint same = t.ndim == ndim
    for i in range(ndim if same else 0):
        same &= t.shape[i] == shape[i]
    if not same:
        with gil:
            wanted = tuple([shape[i] for i in range(ndim)])
            raise ValueError(f"{name.decode()} must have shape {wanted}, but has {shape_of(t)}")
    return 0


def infer(args, x, channels=None, transposed=False):
    """Shape of the output of windows over images.

    Parameters
    ----------
    args : Args
    x : TensorInfo
        The images; for a transposed convolution, what is to become images.
    channels : int, optional
        Of the output; as many as `x` has unless given.
    transposed : bool

    Returns
    -------
    TensorInfo
        Unknown where `x` or `channels` is.
    """
    cdef int64_t[5] shape
    cdef Windows w
    if x.shape is None or -1 in x.shape or not 3 <= x.ndim <= 5 or channels == -1:
        return TensorInfo()
    for i, d in enumerate(x.shape):
        shape[i] = d
    w = Windows(args)
    if channels is None:
        channels = x.shape[x.ndim - 1 if w.c.image.nhwc else 1]
    if transposed:
        w.fit_transposed(x.ndim, shape, channels)
        image_shape(&w.c, channels, shape)
    else:
        w.fit(x.ndim, shape)
        window_shape(&w.c, channels, shape)
    return TensorInfo([shape[i] for i in range(x.ndim)])


def geometry(args, shape=None, channels=None):
    """What the windows of some arguments are, and where they lie in images of a shape.

    Parameters
    ----------
    args : Args
    shape : tuple of int, optional
        Of the images; for a transposed convolution, of what is to become images with that many `channels`.

    Returns
    -------
    dict
        `kernel`, `stride`, `dilation`, `pad`, `tail`: three values each, images of fewer axes have ones in front;
        `nhwc`, `group`. With a shape, also `ndim`, `batch`, `channels`, `size`, `out` and `shape`, of what comes out.
    """
    cdef int64_t[5] dims
    cdef int i
    cdef Windows w = Windows(args)
    if shape is not None:
        if not 3 <= len(shape) <= 5:
            raise ValueError(f"images must have 3 to 5 dimensions, but have {len(shape)}")
        for i in range(len(shape)):
            dims[i] = shape[i]
        if channels is None:
            w.fit(len(shape), dims)
            window_shape(&w.c, w.c.channels, dims)
        else:
            w.fit_transposed(len(shape), dims, channels)
            image_shape(&w.c, channels, dims)
    result = {
        "kernel": [w.c.image.kernel[i] for i in range(3)], "stride": [w.c.image.stride[i] for i in range(3)],
        "dilation": [w.c.image.dilation[i] for i in range(3)], "nhwc": bool(w.c.image.nhwc), "group": w.c.group,
        "pad": [w.c.given_pad[i] for i in range(3)], "tail": [w.c.given_tail[i] for i in range(3)],
    }
    if shape is not None:
        result.update(
            pad=[w.c.image.pad[i] for i in range(3)], tail=[w.c.tail[i] for i in range(3)], ndim=w.c.ndim,
            batch=w.c.batch, channels=w.c.channels, size=[w.c.image.size[i] for i in range(3)],
            out=[w.c.image.out[i] for i in range(3)], shape=[dims[i] for i in range(len(shape))])
    return result

"""Images made larger or smaller: ResizeNearest, UpsampleBilinear, PadImage; and ChannelShuffle."""
from cython.parallel cimport prange

from libc.stdint cimport INT32_MAX, int64_t
from libc.string cimport memcpy, memset

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport FLOAT, itemsize, resize, resize_like, tensor_t
from caffe2._core.threads cimport num_threads

from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, like, same_as_input


def _is_nhwc(args):
    order = args.str("order", "NCHW")
    if order not in ("NCHW", "NHWC"):
        raise ValueError(f"order must be NCHW or NHWC, not {order}")
    return order == "NHWC"


cdef class Remap(Operator):
    """Base: every pixel of the one image is a pixel of the other, found axis by axis, or a constant.

    A subclass says how large both are (`sizes`), and which pixel is meant (`source`, -1 for the constant). The gradient
    adds up what every pixel was used for.
    """
    cdef bint nhwc, gradient
    cdef int ndim               # dimensions of a tensor
    cdef float value
    cdef int64_t channels
    cdef int[3] small           # the image that is read; spatial axes are right-aligned
    cdef int[3] large           # the image that is written
    cdef int* table             # sources of the three axes, one after the other

    def setup(self):
        self.ndim = 4
        self.nhwc = _is_nhwc(self.args)
        self.gradient = self.type.endswith("Gradient")

    cdef int sizes(self) except -1 nogil:
        """Read from input 0 and the arguments; for a gradient input 0 is the large image."""
        return 0

    cdef int source(self, int axis, int at) noexcept nogil:
        return -1

    cdef int spatial(self, const tensor_t* x, int* size) except -1 nogil:
        """Sizes of the spatial axes, right-aligned."""
        cdef int i, at
        for i in range(3):
            at = i - (5 - self.ndim)
            size[i] = 1
            if at >= 0:
                at += 1 if self.nhwc else 2
                if x.shape[at] > INT32_MAX:
                    return self.fail("an image axis is longer than 2**31 - 1")
                size[i] = <int>x.shape[at]
        return 0

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t[5] shape
        cdef int64_t i, images, total = 0
        cdef int k, at, nth
        cdef int* wanted = &self.small[0] if self.gradient else &self.large[0]
        self.expect(0, FLOAT)
        self.expect_ndim(0, self.ndim)
        self.channels = x.shape[self.ndim - 1 if self.nhwc else 1]
        self.sizes()
        shape[0] = x.shape[0]
        shape[self.ndim - 1 if self.nhwc else 1] = self.channels
        for k in range(self.ndim - 2):
            shape[k + (1 if self.nhwc else 2)] = wanted[k + 5 - self.ndim]
        resize(self.y[0], self.ndim, shape, FLOAT)
        if self.gradient:
            memset(self.y[0].data, 0, self.y[0].size * sizeof(float))
        if x.size == 0 or self.y[0].size == 0:
            if x.size == 0 and self.y[0].size and not self.gradient:
                return self.fail("the image has no pixels")
            return 0
        for k in range(3):
            total += self.large[k]
        self.table = <int*>self.scratch(total * sizeof(int))
        total = 0
        for k in range(3):
            for at in range(self.large[k]):
                self.table[total + at] = self.source(k, at)
            total += self.large[k]
        images = x.shape[0] if self.nhwc else x.shape[0] * self.channels
        nth = num_threads(max(x.size, self.y[0].size))
        for i in prange(images, num_threads=nth, schedule="static"):
            self.image(i)
        return 0

    cdef void image(self, int64_t image) noexcept nogil:
        """One plane, or one NHWC image."""
        cdef int64_t width = self.channels if self.nhwc else 1, c, line
        cdef int64_t small = <int64_t>self.small[0] * self.small[1] * self.small[2] * width
        cdef int64_t large = <int64_t>self.large[0] * self.large[1] * self.large[2] * width
        cdef float* to = <float*>self.y[0].data + image * (small if self.gradient else large)
        cdef const float* x = <const float*>self.x[0].data + image * (large if self.gradient else small)
        cdef const int* rows = self.table + self.large[0]
        cdef const int* columns = rows + self.large[1]
        cdef int d, h, w
        for d in range(self.large[0]):
            for h in range(self.large[1]):
                line = ((<int64_t>self.table[d] * self.small[1] + rows[h]) * self.small[2]
                        if self.table[d] >= 0 and rows[h] >= 0 else -1)
                if self.gradient:
                    if line >= 0:
                        for w in range(self.large[2]):
                            if columns[w] >= 0:
                                for c in range(width):
                                    to[(line + columns[w]) * width + c] += x[w * width + c]
                    x += self.large[2] * width
                    continue
                for w in range(self.large[2]):
                    if line < 0 or columns[w] < 0:
                        for c in range(width):
                            to[w * width + c] = self.value
                    elif width == 1:
                        to[w] = x[line + columns[w]]
                    else:
                        memcpy(to + w * width, x + (line + columns[w]) * width, width * sizeof(float))
                to += self.large[2] * width


cdef float _scale(args, str name) except -1:
    cdef float value = args.float(name, 1)
    if not 0 < value < 1e9:
        raise ValueError(f"{name} must be positive, not {value}")
    return value


cdef class ResizeNearest(Remap):
    cdef float[3] scale

    def setup(self):
        Remap.setup(self)
        self.ndim = 5 if "3D" in self.type else 4
        for i, name in enumerate(("temporal_scale", "height_scale", "width_scale")):
            self.scale[i] = _scale(self.args, name)

    cdef int read_scales(self, int i) except -1 nogil:
        """Height and width scale from input i, if it is there."""
        cdef const float* s
        if self.num_inputs <= i:
            return 0
        self.expect(i, FLOAT)
        self.expect_size(i, 2)
        s = <const float*>self.x[i].data
        if not (0 < s[0] < 1e9 and 0 < s[1] < 1e9):
            return self.fail("scales must be positive")
        self.scale[1] = s[0]
        self.scale[2] = s[1]
        return 0

    cdef int sizes(self) except -1 nogil:
        cdef int k
        if self.gradient:
            self.read_scales(2)
            if self.num_inputs < 2:
                return self.fail("the gradient needs X as its second input")
            self.expect_ndim(1, self.ndim)
            self.spatial(self.x[0], self.large)
            return self.spatial(self.x[1], self.small)
        self.read_scales(1)
        self.spatial(self.x[0], self.small)
        for k in range(3):
            if self.small[k] * self.scale[k] > INT32_MAX:
                return self.fail("the output would have more than 2**31 - 1 pixels along an axis")
            self.large[k] = <int>(self.small[k] * self.scale[k])
        return 0

    cdef int source(self, int axis, int at) noexcept nogil:
        return min(<int>(at / self.scale[axis]), self.small[axis] - 1)


cdef enum Padding:
    CONSTANT
    REFLECT
    EDGE


cdef class PadImage(Remap):
    cdef int[3] head, tail
    cdef Padding mode

    def setup(self):
        Remap.setup(self)
        mode = self.args.str("mode", "constant")
        if mode not in ("constant", "reflect", "edge"):
            raise ValueError(f"mode must be constant, reflect or edge, not {mode}")
        self.mode = {"constant": CONSTANT, "reflect": REFLECT, "edge": EDGE}[mode]
        self.value = self.args.float("value", 0)
        pads = _pads(self.args)
        for i in range(2):
            self.head[i + 1], self.tail[i + 1] = pads[i], pads[i + 2]
        self.head[0] = self.tail[0] = 0

    cdef int sizes(self) except -1 nogil:
        cdef int[3] given
        cdef int64_t n
        cdef int k
        cdef int* found = &self.small[0] if self.gradient else &self.large[0]
        self.spatial(self.x[0], given)
        for k in range(3):
            n = <int64_t>self.head[k] + self.tail[k]
            n = given[k] + (-n if self.gradient else n)
            if n < 0 or n > INT32_MAX:
                return self.fail("pads leave no image")
            found[k] = <int>n
            if self.gradient:
                self.large[k] = given[k]
            else:
                self.small[k] = given[k]
            if self.mode == REFLECT and max(self.head[k], self.tail[k]) >= max(self.small[k], 1):
                return self.fail("an image can be reflected by fewer pixels than it has")
        return 0

    cdef int source(self, int axis, int at) noexcept nogil:
        cdef int i = at - self.head[axis], n = self.small[axis]
        if self.mode == CONSTANT:
            return i if 0 <= i < n else -1
        if self.mode == EDGE:
            return min(max(i, 0), n - 1)
        i = max(i, -i)
        return min(i, 2 * n - 2 - i)


cdef class UpsampleBilinear(ResizeNearest):
    """Corners stay corners; between them, weights of the two nearest pixels along each axis."""

    def setup(self):
        ResizeNearest.setup(self)
        if self.nhwc:
            raise ValueError("UpsampleBilinear takes order NCHW")

    cdef inline int corner(self, int axis, int at, float* weight) noexcept nogil:
        """The pixel at or before `at`, and the weight of the one behind it."""
        cdef float step = <float>(self.small[axis] - 1) / (self.large[axis] - 1) if self.large[axis] > 1 else 0
        cdef int first = min(<int>(step * at), self.small[axis] - 1)
        weight[0] = step * at - first
        return first

    cdef void image(self, int64_t plane) noexcept nogil:
        cdef int64_t small = <int64_t>self.small[1] * self.small[2], large = <int64_t>self.large[1] * self.large[2]
        cdef const float* x = <const float*>self.x[0].data + plane * (large if self.gradient else small)
        cdef float* y = <float*>self.y[0].data + plane * (small if self.gradient else large)
        cdef float down, right, value
        cdef int h, w, left
        cdef int64_t top, below, behind
        for h in range(self.large[1]):
            top = self.corner(1, h, &down)
            below = self.small[2] if top + 1 < self.small[1] else 0
            top *= self.small[2]
            for w in range(self.large[2]):
                left = self.corner(2, w, &right)
                behind = 1 if left + 1 < self.small[2] else 0
                if self.gradient:
                    value = x[<int64_t>h * self.large[2] + w]
                    y[top + left] += (1 - down) * (1 - right) * value
                    y[top + left + behind] += (1 - down) * right * value
                    y[top + below + left] += down * (1 - right) * value
                    y[top + below + left + behind] += down * right * value
                else:
                    y[<int64_t>h * self.large[2] + w] = (
                        (1 - down) * ((1 - right) * x[top + left] + right * x[top + left + behind])
                        + down * ((1 - right) * x[top + below + left] + right * x[top + below + left + behind]))


cdef class ChannelShuffle(Operator):
    cdef int64_t group
    cdef bint nhwc, back

    def setup(self):
        self.group = self.args.int("group", 1)
        self.nhwc = _is_nhwc(self.args)
        self.back = self.type.endswith("Gradient")
        if self.group < 1:
            raise ValueError(f"group must be positive, not {self.group}")

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t channels, rows, columns, block, c, images, i
        cdef const char* from_
        cdef char* to
        if x.ndim < 2 or itemsize(x.dtype) == 0 or x.dtype == 4:
            return self.bad_dtype(0)
        channels = x.shape[x.ndim - 1 if self.nhwc else 1]
        if channels % self.group:
            with gil:
                raise ValueError(f"{channels} channels cannot be divided into {self.group} groups")
        resize_like(self.y[0], x, x.dtype)
        if x.size == 0:
            return 0
        # A matrix of channels [rows, columns] is transposed.
        rows = channels // self.group if self.back else self.group
        columns = channels // rows
        images = x.size // channels if self.nhwc else x.shape[0]
        block = itemsize(x.dtype) * (x.size // (images * channels))
        for i in range(images):
            from_ = <const char*>x.data + i * channels * block
            to = <char*>self.y[0].data + i * channels * block
            for c in range(channels):
                memcpy(to + (c % columns * rows + c // columns) * block, from_ + c * block, block)
        return 0


# ------------------------------------------------------------ registration

def _pads(args):
    """Padding before height and width, then that behind them."""
    if "pad" in args:
        return [args.int("pad")] * 4
    pads = args.ints("pads") + [args.int(f"pad_{s}") for s in "tlbr" if all(f"pad_{t}" in args for t in "tlbr")]
    pads = pads or [0] * 4
    if len(pads) != 4 or not all(-2**30 < p < 2**30 for p in pads):
        raise ValueError(f"pads must be four numbers, not {pads}")
    return pads


def _axes(args, x):
    """Positions of the spatial axes."""
    return range(1, x.ndim - 1) if args.str("order", "NCHW") == "NHWC" else range(2, x.ndim)


def _infer_scaled(args, inputs):
    x = inputs[0]
    if x.shape is None or len(inputs) > 1:
        return [TensorInfo()]
    shape = list(x.shape)
    names = ("temporal_scale", "height_scale", "width_scale")
    for axis, name in zip(_axes(args, x), names[5 - x.ndim:]):
        shape[axis] = int(shape[axis] * _scale(args, name))
    return [TensorInfo(shape)]


def _infer_padded(sign):
    def infer(args, inputs):
        x = inputs[0]
        if x.shape is None:
            return [TensorInfo()]
        shape, pads = list(x.shape), _pads(args)
        for i, axis in enumerate(_axes(args, x)):
            shape[axis] += sign * (pads[i] + pads[i + 2])
        return [TensorInfo(shape)]
    return infer


def _scaled_gradient(g):
    return g.op(g.definition.type + "Gradient", [g.GO(0), *(g.I(i) for i in range(g.num_inputs))], [g.GI(0)])


_ORDER = {"order": "NCHW (default) or NHWC"}
_SCALES = {"height_scale": "height of the output over that of the input", "width_scale": "the same for the width"}
_TEMPORAL = {"temporal_scale": "the same for the number of frames"}

for _name, _cls, _inputs, _args, _doc in (
    ("ResizeNearest", ResizeNearest, 2, {**_SCALES, **_ORDER},
     "Images of another size: a pixel of Y is the pixel of X at its place divided by the scale, rounded down."),
    ("ResizeNearest3D", ResizeNearest, 1, {**_TEMPORAL, **_SCALES, **_ORDER},
     "Volumes of another size: a pixel of Y is the pixel of X at its place divided by the scale, rounded down."),
    ("UpsampleBilinear", UpsampleBilinear, 2, _SCALES,
     "Images of another size, interpolated linearly along height and width; the corners of Y are those of X."),
):
    register(
        _name, _cls, (1, _inputs), 1,
        ins={"X": "images, [N, C, H, W]", "scales": "height and width scale, instead of the arguments"},
        outs={"Y": "sizes are those of X times the scales, rounded down"},
        args=_args, infer=_infer_scaled, cost=flops_per_element(1 if _cls is ResizeNearest else 8),
        gradient=_scaled_gradient, doc=_doc,
    )
    register(
        _name + "Gradient", _cls, (2, 1 + _inputs), 1,
        ins={"dY": "gradient of Y", "X": "the images", "scales": "as given to the forward operator"},
        outs={"dX": "gradient of X"}, args=_args, infer=like(1), doc=f"Gradient of {_name}.",
    )

_PADS = {
    "pad": "pixels on all sides",
    "pads": "pixels on the top, left, bottom and right; also pad_t, pad_l, pad_b, pad_r. Fewer than none cut off",
    "mode": "constant (default), reflect (the edge is the mirror) or edge (which is repeated)",
    "value": "the constant; 0 by default",
    **_ORDER,
}
register(
    "PadImage", PadImage, 1, 1,
    ins={"X": "images, [N, C, H, W]"}, outs={"Y": "X with more pixels around it"}, args=_PADS,
    infer=_infer_padded(1), cost=flops_per_element(0), gradient=simple("PadImageGradient", "GO0", "GI0"),
    doc="Images with pixels added around them.",
)
register(
    "PadImageGradient", PadImage, 1, 1,
    ins={"dY": "gradient of Y"}, outs={"dX": "gradient of X"}, args=_PADS, infer=_infer_padded(-1),
    doc="Gradient of PadImage.",
)

_GROUPS = {"group": "number of groups; 1 by default", **_ORDER}
register(
    "ChannelShuffle", ChannelShuffle, 1, 1,
    ins={"X": "[N, C, ...]"}, outs={"Y": "the same with its channels in another order"}, args=_GROUPS,
    infer=same_as_input(), cost=flops_per_element(0), gradient=simple("ChannelShuffleGradient", "GO0", "GI0"),
    doc="Deals out the channels: the first of each group come first, then the second of each, and so on.",
)
register(
    "ChannelShuffleGradient", ChannelShuffle, 1, 1,
    ins={"dY": "gradient of Y"}, outs={"dX": "gradient of X"}, args=_GROUPS, infer=same_as_input(),
    doc="Gradient of ChannelShuffle: the channels back in their order.",
)

"""Pooling: the maximum, the average or the p-norm of the pixels under a window."""
from cython.parallel cimport prange

from libc.float cimport FLT_MAX
from libc.math cimport fabsf, powf
from libc.stdint cimport int64_t
from libc.string cimport memset

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    BLOCKED, FLOAT, blocked_size, make_plain, resize, resize_blocked, resize_like, tensor_t,
)
from caffe2._core.threads cimport num_threads
from caffe2.ops.kernels.dispatch cimport (
    K, POOL16_AVERAGE, POOL16_AVERAGE_PAD, POOL16_MAX, SCRATCH_USER, conv16_t, image_t,
)
from caffe2.ops.windows cimport Windows, blocked_windows, check_shape, window_shape, windows_t

from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import like
from caffe2.ops.windows import ARGS, infer, kernel_of

ctypedef const float* floats_t

cdef enum Mode:
    MAX
    AVERAGE
    NORM


# ------------------------------------------------------------ pieces of a window
#
# A window is a few lines of the image, or, along one line, a few places `stride` apart.

cdef inline void span(int at, int kernel, int stride, int pad, int size, int* first, int* last) noexcept nogil:
    """Pixels first to last of one axis are those of window `at`."""
    first[0] = max(0, at * stride - pad)
    last[0] = min(size, at * stride - pad + kernel)


cdef inline void inside(int tap, int stride, int pad, int size, int out, int* first, int* last) noexcept nogil:
    """Of windows first to last, pixel `tap` lies inside the image; its place is window * stride + tap - pad."""
    cdef int64_t off = tap - pad
    first[0] = <int>((-off + stride - 1) // stride) if off < 0 else 0
    last[0] = <int>min(out, (size - 1 - off) // stride + 1) if off < size else 0


cdef inline void combine(Mode mode, float p, const float* x, float* y, int64_t n) noexcept nogil:
    """y takes in x: maximum, sum, or sum of powers."""
    cdef int64_t i
    if mode == MAX:
        for i in range(n):
            y[i] = x[i] if x[i] > y[i] else y[i]
    elif mode == AVERAGE:
        for i in range(n):
            y[i] += x[i]
    elif p == 2:
        for i in range(n):
            y[i] += x[i] * x[i]
    elif p == 1:
        for i in range(n):
            y[i] += fabsf(x[i])
    else:
        for i in range(n):
            y[i] += powf(fabsf(x[i]), p)


cdef inline void combine_along(Mode mode, const float* x, int stride, float* y, int n) noexcept nogil:
    """y takes in every stride-th value of x; powers are taken already."""
    cdef int i
    if mode == MAX:
        if stride == 1:
            for i in range(n):
                y[i] = x[i] if x[i] > y[i] else y[i]
        elif stride == 2:
            for i in range(n):
                y[i] = x[2 * i] if x[2 * i] > y[i] else y[i]
        else:
            for i in range(n):
                y[i] = x[i * stride] if x[i * stride] > y[i] else y[i]
    else:
        for i in range(n):
            y[i] += x[i * stride]


cdef inline void fill(float* x, float value, int64_t n) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        x[i] = value


cdef inline float finished(Mode mode, float p, float y, int64_t pixels) noexcept nogil:
    if mode == AVERAGE:
        return y / max(1, pixels)
    if mode == NORM:
        return y ** (1 / p) if p != 1 else y
    return y


cdef inline float share(Mode mode, float p, float y, float dy, int64_t pixels) noexcept nogil:
    """What a window hands on to each of its pixels; for a norm, times sign(x) |x|^(p - 1). Norm 0 hands on nothing."""
    if mode == AVERAGE:
        return dy / max(1, pixels)
    return dy / powf(y, p - 1) if y != 0 else 0


cdef inline bint pairs(const image_t* g) noexcept nogil:
    """Whether windows are 2 x 2, side by side, without padding."""
    cdef int i, side
    for i in range(3):
        side = 2 if i else 1
        if g.kernel[i] != side or g.stride[i] != side or g.pad[i] or side * g.out[i] > g.size[i]:
            return False
    return True


cdef inline float greater(float a, float b) noexcept nogil:
    return a if a > b else b


cdef class Pool(Operator):
    """Base of pooling and its gradients.

    NCHW: each plane on its own, a line of windows at a time; first the lines under them are combined place by place,
    then the places along that one line. NHWC: each window on its own, all channels at a time.
    """
    cdef Windows windows
    cdef Mode mode
    cdef float p
    cdef bint include_pad

    def setup(self):
        cdef int i
        self.windows = Windows(self.args)
        self.mode = MAX if self.type.startswith("Max") else AVERAGE if self.type.startswith("Average") else NORM
        self.p = self.args.float("p", 2)
        self.include_pad = self.args.bool("count_include_pad")
        if not self.p > 0:
            raise ValueError(f"p must be positive, not {self.p}")
        for i in range(3):
            if self.windows.c.image.dilation[i] != 1:
                raise ValueError("pooling takes no dilation")
            if not self.windows.c.whole and max(self.windows.c.given_pad[i],
                                                self.windows.c.given_tail[i]) >= self.windows.c.image.kernel[i]:
                raise ValueError("pads must be smaller than the windows")
        self.blocked = self.mode != NORM and not self.windows.c.image.nhwc

    cdef inline int64_t pixels(self, int64_t inside) noexcept nogil:
        return self.windows.c.taps if self.include_pad else inside

    cdef inline int blocked_mode(self) noexcept nogil:
        return POOL16_MAX if self.mode == MAX else POOL16_AVERAGE_PAD if self.include_pad else POOL16_AVERAGE

    # ------------------------------------------------------------ forward

    cdef int run(self) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* x = self.x[0]
        cdef int64_t[5] shape
        cdef int64_t planes, i
        cdef int nth, failed = 0
        cdef conv16_t c
        self.expect(0, FLOAT)
        if x.ndim < 3:
            self.expect_ndim(0, g.ndim + 2)
        self.windows.fit(x.ndim, x.shape)
        window_shape(g, g.channels, shape)
        if x.layout == BLOCKED:
            if blocked_windows(g, g.channels, &c):
                return self.run_blocked(&c, shape)
            make_plain(x)
        resize(self.y[0], x.ndim, shape, FLOAT)
        if self.y[0].size == 0:
            return 0
        nth = num_threads(x.size * (16 if self.mode == NORM else 1))
        planes = g.batch * (g.image.out[0] * g.image.out[1] if g.image.nhwc else g.channels)
        for i in prange(planes, num_threads=nth, schedule="static"):
            failed |= self.line(i) if g.image.nhwc else self.plane(i)
        if failed:
            with gil:
                raise MemoryError
        return 0

    cdef int run_blocked(self, const conv16_t* c, const int64_t* shape) except -1 nogil:
        cdef const float* x = <const float*>self.x[0].data
        cdef tensor_t* y = self.y[0]
        cdef float* blocked
        cdef int64_t count = self.windows.c.count
        cdef int nth = num_threads(self.x[0].size)
        cdef int mode = self.blocked_mode()
        if count == 1 and mode != POOL16_MAX and self.windows.c.taps == self.windows.c.pixels and not (
                c.pad[0] or c.pad[1]):
            resize(y, 4, shape, FLOAT)
            K.mean16(c.batch, c.channels, self.windows.c.pixels, x, <float*>y.data, nth)
        elif self.emits:
            resize_blocked(y, shape)
            K.pool16(c, mode, x, <float*>y.data, nth)
        else:
            blocked = <float*>self.scratch(blocked_size(shape) * sizeof(float))
            K.pool16(c, mode, x, blocked, nth)
            resize(y, 4, shape, FLOAT)
            K.from16(c.batch, c.channels, count, blocked, <float*>y.data, nth)
        return 0

    cdef int plane(self, int64_t plane) noexcept nogil:
        cdef windows_t* w = &self.windows.c
        cdef image_t* g = &w.image
        cdef const float* x = <const float*>self.x[0].data + plane * w.pixels
        cdef float* y = <float*>self.y[0].data + plane * w.count
        cdef const float* second
        cdef float* row
        cdef int _d, z, h, d, t, i, d0, d1, h0, h1, first, last
        cdef int width = g.size[2], out = g.out[2]
        cdef Mode mode = self.mode
        if mode == MAX and pairs(g):
            for _d in range(g.out[0]):
                for h in range(g.out[1]):
                    second = x + 2 * h * width + width
                    for i in range(out):
                        y[i] = greater(second[2 * i + 1], greater(second[2 * i], greater(
                            x[2 * h * width + 2 * i + 1], greater(x[2 * h * width + 2 * i], -FLT_MAX))))
                    y += out
                x += g.size[1] * width
            return 0
        row = <float*>K.scratch(SCRATCH_USER, width * sizeof(float))
        if row == NULL:
            return 1
        for d in range(g.out[0]):
            span(d, g.kernel[0], g.stride[0], g.pad[0], g.size[0], &d0, &d1)
            for h in range(g.out[1]):
                span(h, g.kernel[1], g.stride[1], g.pad[1], g.size[1], &h0, &h1)
                fill(row, -FLT_MAX if mode == MAX else 0, width)
                for z in range(d0, d1):
                    for t in range(h0, h1):
                        combine(mode, self.p, x + (<int64_t>z * g.size[1] + t) * width, row, width)
                fill(y, -FLT_MAX if mode == MAX else 0, out)
                for t in range(g.kernel[2]):
                    inside(t, g.stride[2], g.pad[2], width, out, &first, &last)
                    combine_along(mode, row + first * g.stride[2] + t - g.pad[2], g.stride[2], y + first, last - first)
                if mode != MAX:
                    for i in range(out):
                        span(i, g.kernel[2], g.stride[2], g.pad[2], width, &first, &last)
                        y[i] = finished(mode, self.p, y[i],
                                        self.pixels(<int64_t>(d1 - d0) * (h1 - h0) * (last - first)))
                y += out
        return 0

    cdef int line(self, int64_t line) noexcept nogil:
        """One line of windows, NHWC."""
        cdef windows_t* w = &self.windows.c
        cdef image_t* g = &w.image
        cdef int64_t channels = w.channels, c, n = line // (g.out[0] * g.out[1])
        cdef const float* x = <const float*>self.x[0].data + n * w.pixels * channels
        cdef float* y = <float*>self.y[0].data + line * g.out[2] * channels
        cdef int d0, d1, h0, h1, w0, w1, z, t, s, i
        cdef Mode mode = self.mode
        span(<int>(line // g.out[1] % g.out[0]), g.kernel[0], g.stride[0], g.pad[0], g.size[0], &d0, &d1)
        span(<int>(line % g.out[1]), g.kernel[1], g.stride[1], g.pad[1], g.size[1], &h0, &h1)
        for i in range(g.out[2]):
            span(i, g.kernel[2], g.stride[2], g.pad[2], g.size[2], &w0, &w1)
            fill(y, -FLT_MAX if mode == MAX else 0, channels)
            for z in range(d0, d1):
                for t in range(h0, h1):
                    for s in range(w0, w1):
                        combine(mode, self.p, x + ((<int64_t>z * g.size[1] + t) * g.size[2] + s) * channels, y,
                                channels)
            if mode != MAX:
                for c in range(channels):
                    y[c] = finished(mode, self.p, y[c], self.pixels(<int64_t>(d1 - d0) * (h1 - h0) * (w1 - w0)))
            y += channels
        return 0


cdef class PoolGradient(Pool):
    cdef int run(self) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* x = self.x[0]
        cdef int64_t[5] shape
        cdef int64_t i
        cdef int nth, failed = 0
        cdef conv16_t c
        for i in range(3):
            self.expect(<int>i, FLOAT)
        if x.ndim < 3:
            self.expect_ndim(0, g.ndim + 2)
        self.windows.fit(x.ndim, x.shape)
        window_shape(g, g.channels, shape)
        check_shape(self.x[1], "Y", x.ndim, shape)
        check_shape(self.x[2], "dY", x.ndim, shape)
        if (x.layout == BLOCKED or self.x[2].layout == BLOCKED) and blocked_windows(g, g.channels, &c):
            return self.run_blocked(&c, shape)
        for i in range(3):
            make_plain(self.x[i])
        resize_like(self.y[0], x, FLOAT)
        if x.size == 0:
            return 0
        nth = num_threads(x.size * (16 if self.mode == NORM else 1))
        for i in prange(g.batch * (1 if g.image.nhwc else g.channels), num_threads=nth, schedule="static"):
            failed |= self.image(i) if g.image.nhwc else self.plane(i)
        if failed:
            with gil:
                raise MemoryError
        return 0

    cdef int run_blocked(self, const conv16_t* c, const int64_t* shape) except -1 nogil:
        """Inputs that are not blocked become so; of averages, only dY counts."""
        cdef tensor_t* dx = self.y[0]
        cdef tensor_t* x = self.x[0]
        cdef floats_t[3] given
        cdef int64_t[3] room
        cdef int64_t size = blocked_size(x.shape), out = blocked_size(shape), total = 0
        cdef int i, nth = num_threads(x.size)
        cdef float* to
        for i in range(3):
            room[i] = 0 if self.x[i].layout == BLOCKED or (i < 2 and self.mode != MAX) else out if i else size
            total += room[i]
        to = <float*>self.scratch((total + (0 if self.emits else size)) * sizeof(float))
        for i in range(3):
            given[i] = <floats_t>(to if room[i] else self.x[i].data)
            if room[i]:
                K.to16(c.batch, c.channels, self.windows.c.count if i else self.windows.c.pixels,
                       <const float*>self.x[i].data, to, nth)
            to += room[i]
        if self.emits:
            resize_blocked(dx, x.shape)
            to = <float*>dx.data
        K.pool16_gradient(c, self.blocked_mode(), given[0], given[1], given[2], to, nth)
        if not self.emits:
            resize(dx, 4, x.shape, FLOAT)
            K.from16(c.batch, c.channels, self.windows.c.pixels, to, <float*>dx.data, nth)
        return 0

    cdef void finish(self, const float* x, float* dx, int64_t n) noexcept nogil:
        """The part of a norm's gradient that depends on the pixel alone."""
        cdef int64_t i
        for i in range(n):
            if self.p == 2:
                dx[i] *= x[i]
            elif x[i] == 0:
                dx[i] = 0
            else:
                dx[i] *= x[i] * powf(fabsf(x[i]), self.p - 2)

    cdef int plane(self, int64_t plane) noexcept nogil:
        cdef windows_t* w = &self.windows.c
        cdef image_t* g = &w.image
        cdef const float* x = <const float*>self.x[0].data + plane * w.pixels
        cdef const float* y = <const float*>self.x[1].data + plane * w.count
        cdef const float* dy = <const float*>self.x[2].data + plane * w.count
        cdef float* dx = <float*>self.y[0].data + plane * w.pixels
        cdef const float* from_
        cdef float* row
        cdef float* shares
        cdef float* to
        cdef float top, slope
        cdef int _d, z, h, d, t, s, i, d0, d1, h0, h1, first, last, stride = g.stride[2]
        cdef int width = g.size[2], out = g.out[2]
        cdef int64_t line
        if self.mode == MAX and pairs(g):
            for _d in range(g.size[0]):
                for h in range(g.size[1]):
                    if h >= 2 * g.out[1]:
                        memset(dx, 0, width * sizeof(float))
                    else:
                        for i in range(out):
                            # values first: a loop of selections has vectors, one of branches has not
                            top = y[i]
                            slope = dy[i]
                            dx[2 * i] = slope if x[2 * i] == top else 0
                            dx[2 * i + 1] = slope if x[2 * i + 1] == top else 0
                        for i in range(2 * out, width):
                            dx[i] = 0
                        if h & 1:
                            y += out
                            dy += out
                    x += width
                    dx += width
            return 0
        memset(dx, 0, w.pixels * sizeof(float))
        row = <float*>K.scratch(SCRATCH_USER, (width + out) * sizeof(float))
        if row == NULL:
            return 1
        shares = row + width
        for d in range(g.out[0]):
            span(d, g.kernel[0], g.stride[0], g.pad[0], g.size[0], &d0, &d1)
            for h in range(g.out[1]):
                span(h, g.kernel[1], g.stride[1], g.pad[1], g.size[1], &h0, &h1)
                if self.mode == MAX:
                    for z in range(d0, d1):
                        for t in range(h0, h1):
                            line = (<int64_t>z * g.size[1] + t) * width
                            for s in range(g.kernel[2]):
                                inside(s, stride, g.pad[2], width, out, &first, &last)
                                from_ = x + line + s - g.pad[2]
                                to = dx + line + s - g.pad[2]
                                for i in range(first, last):
                                    slope = dy[i]
                                    to[i * stride] += slope if from_[i * stride] == y[i] else 0
                else:
                    for i in range(out):
                        span(i, g.kernel[2], stride, g.pad[2], width, &first, &last)
                        shares[i] = share(self.mode, self.p, y[i], dy[i],
                                          self.pixels(<int64_t>(d1 - d0) * (h1 - h0) * (last - first)))
                    fill(row, 0, width)
                    for s in range(g.kernel[2]):
                        inside(s, stride, g.pad[2], width, out, &first, &last)
                        to = row + s - g.pad[2]
                        for i in range(first, last):
                            to[i * stride] += shares[i]
                    for z in range(d0, d1):
                        for t in range(h0, h1):
                            combine(AVERAGE, 1, row, dx + (<int64_t>z * g.size[1] + t) * width, width)
                y += out
                dy += out
        if self.mode == NORM:
            self.finish(x, dx, w.pixels)
        return 0

    cdef int image(self, int64_t image) noexcept nogil:
        """One image, NHWC."""
        cdef windows_t* w = &self.windows.c
        cdef image_t* g = &w.image
        cdef int64_t channels = w.channels, c, at
        cdef const float* x = <const float*>self.x[0].data + image * w.pixels * channels
        cdef const float* y = <const float*>self.x[1].data + image * w.count * channels
        cdef const float* dy = <const float*>self.x[2].data + image * w.count * channels
        cdef float* dx = <float*>self.y[0].data + image * w.pixels * channels
        cdef float* shares = <float*>K.scratch(SCRATCH_USER, channels * sizeof(float))
        cdef float slope
        cdef int d, h, i, d0, d1, h0, h1, w0, w1, z, t, s
        if shares == NULL:
            return 1
        memset(dx, 0, w.pixels * channels * sizeof(float))
        for d in range(g.out[0]):
            span(d, g.kernel[0], g.stride[0], g.pad[0], g.size[0], &d0, &d1)
            for h in range(g.out[1]):
                span(h, g.kernel[1], g.stride[1], g.pad[1], g.size[1], &h0, &h1)
                for i in range(g.out[2]):
                    span(i, g.kernel[2], g.stride[2], g.pad[2], g.size[2], &w0, &w1)
                    if self.mode != MAX:
                        for c in range(channels):
                            shares[c] = share(self.mode, self.p, y[c], dy[c],
                                              self.pixels(<int64_t>(d1 - d0) * (h1 - h0) * (w1 - w0)))
                    for z in range(d0, d1):
                        for t in range(h0, h1):
                            for s in range(w0, w1):
                                at = ((<int64_t>z * g.size[1] + t) * g.size[2] + s) * channels
                                if self.mode == MAX:
                                    for c in range(channels):
                                        slope = dy[c]
                                        dx[at + c] += slope if x[at + c] == y[c] else 0
                                else:
                                    combine(AVERAGE, 1, shares, dx + at, channels)
                    y += channels
                    dy += channels
        if self.mode == NORM:
            self.finish(x, dx, w.pixels * channels)
        return 0


# ------------------------------------------------------------ registration

def _cost(args, inputs, outputs):
    y = outputs[0]
    if y.shape is None:
        return dict(flops=0, bytes_read=0, bytes_written=0, params_bytes=0)
    taps = 1
    spatial = inputs[0].shape[1:inputs[0].ndim - 1] if args.str("order", "NCHW") == "NHWC" else inputs[0].shape[2:]
    for k in spatial if args.bool("global_pooling") else kernel_of(args):
        taps *= k
    return dict(flops=taps * y.size, bytes_read=4 * inputs[0].size, bytes_written=4 * y.size, params_bytes=0)


_WHOLE = {"global_pooling": "one window covers all of the image"}
_INCLUDE = {"count_include_pad": "divide by the size of the window, not by the number of its pixels inside the image"}
_P = {"p": "of the norm; 2 by default"}
_DIMENSIONS = ("", "1D", "2D", "3D")

for _type, _names, _more, _what in (
    ("MaxPool", _DIMENSIONS, {"deterministic": "accepted, changes nothing"}, "The greatest value under each window."),
    ("AveragePool", _DIMENSIONS, _INCLUDE, "The average of the values under each window."),
    ("LpPool", ("",), {**_P, "dilation": "must be 1"},
     "The p-norm, (sum |x|^p)^(1/p), of the values under each window."),
):
    for _dimensions in _names:
        _name = _type + _dimensions
        _args = {**ARGS, **_WHOLE, **_more}
        register(
            _name, Pool, 1, 1,
            ins={"X": "images, [N, C, ...] or, with order NHWC, [N, ..., C]"},
            outs={"Y": "one value for each window and channel"},
            args=_args, infer=lambda args, inputs: [infer(args, inputs[0])], cost=_cost,
            gradient=simple(_name + "Gradient", "I0 O0 GO0", "GI0"),
            doc=f"{_what} Windows lie `stride` apart; padding counts as absent. Each channel is pooled on its own.",
        )
        register(
            _name + "Gradient", PoolGradient, 3, 1,
            ins={"X": "the images", "Y": f"output of {_name}", "dY": "gradient of Y"}, outs={"dX": "gradient of X"},
            args=_args, infer=like(0),
            doc=f"Gradient of {_name}." + (
                " Of equal maxima under one window, each receives the whole gradient." if _type == "MaxPool" else
                " A window of zeros hands nothing on." if _type == "LpPool" else ""),
        )

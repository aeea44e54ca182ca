"""Convolution, transposed convolution and their gradients, in one, two and three dimensions."""
import os

from cython.parallel cimport prange

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset

from caffe2._core.memory cimport aligned_new
from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    BLOCKED, FLOAT, PLAIN, blocked_size, make_plain, resize, resize1, resize_blocked, resize_like, shape_of, tensor_t,
)
from caffe2._core.threads cimport num_threads
from caffe2.ops.blocked cimport BLOCK, add_lanes
from caffe2.ops.kernels.dispatch cimport (
    CONV16_ANSWERS, CONV16_BLOCKED, CONV16_DEPTHWISE, CONV16_FIRST, CONV16_NCHW, CONV16_NONE, CONV16_WINOGRAD_2,
    CONV16_WINOGRAD_4, K, OPERAND_A, OPERAND_B, SCRATCH_USER, conv16_t, epilogue16_t, epilogue_t, image_t, operand_t,
)
from caffe2.ops.windows cimport Windows, blocked_windows, check_shape, image_shape, window_shape, windows_t

from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, like
from caffe2.ops.windows import ARGS, DILATION, GROUP, infer, kernel_of

# Products of filters and windows with fewer windows than this are made of several images at once.
cdef enum:
    FILTER_GRADIENT_WINDOWS = 1024
    SHARED_FILTERS = 1 << 18    # filters from this size on are not summed up for each thread apart
    TOGETHER = 512              # windows of several small images that make one product
    FILTERS_IN_CACHE = 1 << 19  # bytes
    TURN = 16                   # filters are turned around a few channels at a time
    EXPONENT = 0x7F800000       # bits of a float


cdef bint is_plain(const image_t* g) noexcept nogil:
    """Whether the windows are the pixels."""
    cdef int i
    for i in range(3):
        if g.kernel[i] != 1 or g.stride[i] != 1 or g.pad[i] != 0 or g.out[i] != g.size[i]:
            return False
    return True


cdef inline bint is_depthwise(const windows_t* g, int64_t filters) noexcept nogil:
    """Whether every channel has one filter of its own."""
    return not g.image.nhwc and g.image.channels == 1 and filters == g.group and g.group > 1


cdef bint see_pixels(const windows_t* g) noexcept nogil:
    """Whether there is a pixel in every window."""
    cdef int i
    for i in range(3):
        if max(g.image.pad[i], g.tail[i]) > <int64_t>g.image.dilation[i] * (g.image.kernel[i] - 1) or (
                g.image.size[i] < g.image.dilation[i]):
            return False
    return True


cdef bint are_finite(const float* x, int64_t n) noexcept nogil:
    """Whether there is no NaN or infinity: no number has all bits of the exponent set."""
    cdef const uint32_t* bits = <const uint32_t*>x
    cdef uint32_t special = 0
    cdef int64_t i
    for i in range(n):
        special |= (bits[i] & EXPONENT) == EXPONENT
    return not special


cdef void turn(const float* w, int64_t filters, int64_t channels, int64_t taps, float* turned) noexcept nogil:
    """[filters, channels, taps] to [channels, filters, taps], the taps in reverse: a few channels at a time."""
    cdef int64_t block, c, f, t
    for block in range((channels + TURN - 1) // TURN):
        for f in range(filters):
            for c in range(block * TURN, min(channels, (block + 1) * TURN)):
                for t in range(taps):
                    turned[(c * filters + f) * taps + t] = w[(f * channels + c + 1) * taps - 1 - t]


cdef class Correlation(Operator):
    """Base of convolutions: what filters answer to the windows of images, and the three gradients of that."""

    def __dealloc__(self):
        free(self.packed)

    def touched(self):
        return [self.windows, *Operator.touched(self)]

    def setup(self):
        self.windows = Windows(self.args)
        self.no_bias = self.args.bool("no_bias")
        if self.no_bias and self.num_outputs == 3:
            raise ValueError("has no gradient of the bias to give: no_bias is set, but there are three outputs")

    cdef int check_filter(self) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* w = self.x[1]
        cdef int64_t[5] shape
        cdef int i
        cdef bint same
        self.expect(1, FLOAT)
        shape[0] = w.shape[0]
        shape[g.ndim + 1 if g.image.nhwc else 1] = g.image.channels
        for i in range(g.ndim):
            shape[i + (1 if g.image.nhwc else 2)] = g.image.kernel[i + 3 - g.ndim]
        same = w.ndim == g.ndim + 2
        for i in range(g.ndim + 2 if same else 0):
            same &= w.shape[i] == shape[i]
        if not same:
            with gil:
                wanted = ", ".join(["filters"] + [str(shape[i]) for i in range(1, g.ndim + 2)])
                raise ValueError(f"filter must have shape ({wanted}), but has {shape_of(w)}: {g.channels} channels "
                                 f"in {g.group} group(s), order {'NHWC' if g.image.nhwc else 'NCHW'}")
        self.filters = w.shape[0]
        if self.filters % g.group:
            with gil:
                raise ValueError(f"{self.filters} filters cannot be divided into {g.group} groups")
        return 0

    cdef int check_bias(self, int i, int64_t size) except -1 nogil:
        self.expect(i, FLOAT)
        self.expect_ndim(i, 1)
        return self.expect_size(i, size)

    cdef int pack_room(self, packed_t* f, int which, int64_t filters, int64_t taps) except -1 nogil:
        f.filters = filters
        f.taps = taps
        f.bytes = (K.sgemm_pack_bytes(which, filters, taps) + 63) & ~<size_t>63
        self.room(f.bytes * self.windows.c.group)
        f.data = <char*>self.packed
        return 0

    cdef int room(self, size_t n) except -1 nogil:
        if n > self.packed_size or self.packed == NULL:
            free(self.packed)
            self.packed_size = 0
            self.packed_from = NULL
            self.packed = aligned_new(n + 64)
            if self.packed == NULL:
                with gil:
                    raise MemoryError(f"cannot allocate {n} bytes for filters")
            self.packed_size = n
        return 0

    cdef bint is_packed(self, int way) noexcept nogil:
        """If not, they will be. Only filters that nobody else can write keep their values with their version."""
        cdef tensor_t* w = self.x[1]
        cdef bint same = w.storage.refs == 1 and self.packed_from == w.data and self.packed_version == w.version
        cdef bint known = same and self.packed_way == way
        self.repacks = self.packed_from == w.data and not same
        self.packed_from = w.data if w.storage.refs == 1 else NULL
        self.packed_version = w.version
        self.packed_way = way
        return known

    # ------------------------------------------------------------ y from x

    cdef int answers(self, const float* x, const float* bias, float* y) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef int64_t taps = g.image.channels * g.taps, filters = self.filters // g.group
        cdef int which = OPERAND_B if g.image.nhwc else OPERAND_A
        cdef tensor_t* w = self.x[1]
        cdef packed_t f
        cdef operand_t o
        cdef int i
        # A filter that is not finite gives NaN times the zeros around an image, which these two leave out.
        if is_depthwise(g, self.filters) and are_finite(<const float*>w.data, w.size):
            self.depthwise(&g.image, x, <const float*>w.data, bias, y)
            return 0
        self.pack_room(&f, which, filters, taps)
        if not self.is_packed(CONV16_NONE):
            memset(&o, 0, sizeof(o))
            o.ld = taps
            o.trans = g.image.nhwc
            for i in range(g.group):
                o.data = <float*>w.data + i * filters * taps
                if K.sgemm_pack(which, &o, filters, taps, f.data + i * f.bytes):
                    self.packed_from = NULL
                    with gil:
                        raise MemoryError
        return self.multiply(&g.image, &f, x, bias, y)

    cdef void depthwise(self, const image_t* g, const float* x, const float* w, const float* bias,
                        float* y) noexcept nogil:
        """Plane by plane."""
        cdef int64_t channels = self.filters, taps = self.windows.c.taps, i
        cdef int64_t count = <int64_t>g.out[0] * g.out[1] * g.out[2]
        cdef int nth = num_threads(g.batch * channels * count * taps // 4)
        for i in prange(g.batch * channels, num_threads=nth, schedule="static"):
            K.depthwise(g, x + i * g.step, w + i % channels * taps, bias[i % channels] if bias != NULL else 0,
                        y + i * count)

    cdef int multiply(self, const image_t* g, const packed_t* f, const float* x, const float* bias,
                      float* y) except -1 nogil:
        """Filters times the windows of all images."""
        cdef int64_t count = <int64_t>g.out[0] * g.out[1] * g.out[2]
        cdef int64_t blocks, jobs, i, together = 1
        cdef int nth = num_threads(<int64_t>(g.batch * self.windows.c.group * f.filters * f.taps * <double>count / 8))
        cdef int failed = 0
        cdef int group = self.windows.c.group
        if not g.nhwc and count < TOGETHER and g.batch > 1:
            # A product has 16 or 32 columns at a time: many images together fill them, and read the filters once.
            i = count % 32
            i = count - i + (0 if i == 0 else 16 if i <= 16 else 32)
            if 10 * i > 11 * count or f.bytes > FILTERS_IN_CACHE:
                together = max(1, min(TOGETHER // count, (g.batch + nth - 1) // nth))
        blocks = (g.batch + together - 1) // together
        jobs = blocks * group
        if nth > 1 and jobs >= nth and (jobs % nth == 0 or jobs >= 4 * nth):
            for i in prange(jobs, num_threads=nth, schedule="static", chunksize=1):
                failed |= self.multiply_some(g, f, x, bias, y, i // group * together, together, <int>(i % group), 1)
        else:
            for i in range(jobs):
                failed |= self.multiply_some(g, f, x, bias, y, i // group * together, together, <int>(i % group), nth)
        if failed:
            with gil:
                raise MemoryError
        return 0

    cdef int multiply_some(self, const image_t* g, const packed_t* f, const float* x, const float* bias, float* y,
                           int64_t first, int64_t n, int group, int nth) noexcept nogil:
        """n images from the first on, one group."""
        cdef int64_t count = <int64_t>g.out[0] * g.out[1] * g.out[2], i, m, filters = f.filters
        cdef int64_t all = filters * self.windows.c.group
        cdef image_t some = g[0]
        cdef operand_t w, v
        cdef epilogue_t e
        cdef float* mixed
        memset(&w, 0, sizeof(w))
        memset(&v, 0, sizeof(v))
        memset(&e, 0, sizeof(e))
        n = min(n, g.batch - first)
        some.batch = n
        w.data = f.data + group * f.bytes
        w.packed = 1
        v.data = x + first * g.batch_stride + group * g.channels * (1 if g.nhwc else g.step)
        v.image = &some
        y += first * all * count + group * filters * (1 if g.nhwc else count)
        if bias != NULL:
            bias += group * filters
        if g.nhwc:
            e.bias_col = bias
            return K.sgemm_op(count, filters, f.taps, 1, &v, &w, 0, y, all, &e, nth)
        e.bias_row = bias
        if n == 1:
            return K.sgemm_op(filters, count, f.taps, 1, &w, &v, 0, y, count, &e, nth)
        mixed = <float*>K.scratch(SCRATCH_USER, filters * n * count * sizeof(float))
        if mixed == NULL or K.sgemm_op(filters, n * count, f.taps, 1, &w, &v, 0, mixed, n * count, &e, nth):
            return 1
        for i in range(n):
            for m in range(filters):
                memcpy(y + (i * all + m) * count, mixed + (m * n + i) * count, count * sizeof(float))
        return 0

    # ------------------------------------------------------------ x from y

    cdef int images(self, const float* y, const float* bias, float* x) except -1 nogil:
        """Every answer adds its filter, times itself, onto its window."""
        cdef windows_t* g = &self.windows.c
        cdef int64_t taps = g.image.channels * g.taps, filters = self.filters // g.group, i
        cdef const float* w = <float*>self.x[1].data
        cdef float* turned
        cdef image_t back = g.image
        cdef packed_t f
        cdef operand_t o
        cdef int nth, which, failed = 0
        cdef bint unit = not g.image.nhwc and g.taps > 1
        memset(&o, 0, sizeof(o))
        for i in range(3):
            unit &= g.image.stride[i] == 1
        unit = unit and are_finite(w, self.x[1].size)       # else zeros around y would give NaN
        # Entries of columns cost more to add than pixels to lay out, but there may be fewer of them.
        if is_depthwise(g, self.filters) and bias == NULL and not unit:
            nth = num_threads(g.batch * self.filters * g.count * g.taps)
            for i in prange(g.batch * self.filters, num_threads=nth, schedule="static"):
                K.depthwise_image(&g.image, y + i * g.count, w + i % self.filters * g.taps, x + i * g.pixels)
            return 0
        if unit and (is_depthwise(g, self.filters) or filters * g.pixels * (g.image.channels + 6)
                     < g.image.channels * g.count * (filters + 22)):
            # The same as a convolution of y with the filters turned around: no columns are written.
            for i in range(3):
                back.size[i] = g.image.out[i]
                back.out[i] = g.image.size[i]
                back.pad[i] = g.image.dilation[i] * (g.image.kernel[i] - 1) - g.image.pad[i]
            back.channels = <int>filters
            back.step = g.count
            back.batch_stride = self.filters * g.count
            if is_depthwise(g, self.filters):
                turned = <float*>self.scratch(self.filters * g.taps * sizeof(float))
                for i in range(self.filters):
                    turn(w + i * g.taps, 1, 1, g.taps, turned + i * g.taps)
                self.depthwise(&back, y, turned, bias, x)
                return 0
            taps = filters * g.taps
            self.pack_room(&f, OPERAND_A, g.image.channels, taps)
            turned = <float*>self.scratch(g.image.channels * taps * sizeof(float))
            o.data = turned
            o.ld = taps
            for i in range(g.group):
                turn(w, filters, g.image.channels, g.taps, turned)
                w += filters * g.image.channels * g.taps
                failed |= K.sgemm_pack(OPERAND_A, &o, g.image.channels, taps, f.data + i * f.bytes)
            if failed:
                with gil:
                    raise MemoryError
            return self.multiply(&back, &f, y, bias, x)
        # columns [taps, count] = w^T y, or, NHWC, [count, taps] = y w
        which = OPERAND_B if g.image.nhwc else OPERAND_A
        self.pack_room(&f, which, taps, filters)
        o.ld = taps
        o.trans = not g.image.nhwc
        for i in range(g.group):
            o.data = w + i * filters * taps
            failed |= K.sgemm_pack(which, &o, taps, filters, f.data + i * f.bytes)
        nth = num_threads(<int64_t>(g.batch * <double>self.filters * taps * g.count / 8))
        if nth > 1 and g.batch >= nth:
            for i in prange(g.batch, num_threads=nth, schedule="static", chunksize=1):
                failed |= self.scatter_one(&f, y, bias, x, i, 1)
        else:
            for i in range(g.batch):
                failed |= self.scatter_one(&f, y, bias, x, i, nth)
        if failed:
            with gil:
                raise MemoryError
        return 0

    cdef int scatter_one(self, const packed_t* f, const float* y, const float* bias, float* x, int64_t image,
                         int nth) noexcept nogil:
        cdef windows_t* g = &self.windows.c
        cdef int64_t filters = self.filters // g.group, taps = g.image.channels * g.taps, c, p
        cdef int group, failed = 0
        cdef bint plain = is_plain(&g.image)
        cdef image_t one = g.image
        cdef operand_t w, v
        cdef epilogue_t e
        cdef float* columns = NULL
        cdef float* to
        cdef long ld
        memset(&w, 0, sizeof(w))
        memset(&v, 0, sizeof(v))
        memset(&e, 0, sizeof(e))
        one.batch = 1
        w.packed = 1
        y += image * self.filters * g.count
        x += image * g.image.batch_stride
        if not plain:
            columns = <float*>K.scratch(SCRATCH_USER, taps * g.count * sizeof(float))
            if columns == NULL:
                return 1
            if bias == NULL:
                memset(x, 0, g.image.batch_stride * sizeof(float))
            elif g.image.nhwc:
                for p in range(g.pixels):
                    for c in range(g.channels):
                        x[p * g.channels + c] = bias[c]
            else:
                for c in range(g.channels):
                    for p in range(g.pixels):
                        x[c * g.pixels + p] = bias[c]
        for group in range(g.group):
            w.data = f.data + group * f.bytes
            to = x + group * g.image.channels * (1 if g.image.nhwc else g.pixels) if plain else columns
            if g.image.nhwc:
                v.data = y + group * filters
                v.ld = self.filters
                ld = g.channels if plain else taps
                e.bias_col = bias + group * g.image.channels if plain and bias != NULL else NULL
                failed |= K.sgemm_op(g.count, taps, filters, 1, &v, &w, 0, to, ld, &e, nth)
                if not plain:
                    K.scol2im(&one, columns, x + group * g.image.channels, nth)
            else:
                v.data = y + group * filters * g.count
                v.ld = g.count
                e.bias_row = bias + group * g.image.channels if plain and bias != NULL else NULL
                failed |= K.sgemm_op(taps, g.count, filters, 1, &w, &v, 0, to, g.count, &e, nth)
                if not plain:
                    K.scol2im(&one, columns, x + group * g.image.channels * g.pixels, nth)
        return failed

    # ------------------------------------------------------------ w and bias from x and y

    cdef int filter_gradient(self, const float* x, const float* y, float* dw) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef int64_t size = self.filters * g.image.channels * g.taps, n, i
        cdef int nth = num_threads(<int64_t>(g.batch * <double>size * g.count / 8)), failed = 0
        cdef float* parts
        cdef conv16_t c
        if g.taps > 1 and blocked_windows(g, self.filters, &c) and K.plain_filter_gradient_fits(&c):
            n = (self.filters + BLOCK - 1) // BLOCK * BLOCK
            parts = <float*>self.scratch(g.batch * n * g.count * sizeof(float))
            K.to16(g.batch, c.out_channels, g.count, y, parts, nth)
            return self.no_memory() if K.plain_filter_gradient(&c, x, parts, dw, nth) else 0
        if is_depthwise(g, self.filters) and see_pixels(g):
            memset(dw, 0, size * sizeof(float))
            for i in prange(self.filters, num_threads=nth, schedule="static"):
                for n in range(g.batch):
                    K.depthwise_filter(&g.image, x + (n * self.filters + i) * g.pixels,
                                       y + (n * self.filters + i) * g.count, dw + i * g.taps)
            if are_finite(dw, size):        # else y may be to blame: zeros around x, left out here, give NaN
                return 0
        if nth == 1 or size >= SHARED_FILTERS or g.batch < nth:
            failed = self.filter_gradient_part(x, y, dw, 0, g.batch, nth)
        else:
            # Each thread sums up its images; thread 0 does so in dw.
            n = (size + 15) & ~<int64_t>15
            parts = <float*>self.scratch(n * (nth - 1) * sizeof(float))
            for i in prange(nth, num_threads=nth, schedule="static", chunksize=1):
                failed |= self.filter_gradient_part(x, y, parts + (i - 1) * n if i else dw, g.batch * i // nth,
                                                    g.batch * (i + 1) // nth, 1)
            for i in range(nth - 1):
                K.vadd(size, dw, parts + i * n, dw)
        if failed:
            with gil:
                raise MemoryError
        return 0

    cdef int filter_gradient_part(self, const float* x, const float* y, float* dw, int64_t first, int64_t last,
                                  int nth) noexcept nogil:
        """dw from images first to last: windows of several images make one product."""
        cdef windows_t* g = &self.windows.c
        cdef int64_t filters = self.filters // g.group, taps = g.image.channels * g.taps
        cdef int64_t step = max(1, min(last - first, FILTER_GRADIENT_WINDOWS // max(1, g.count))), i = first, n
        cdef int group, failed = 0, axis
        cdef bint plain = is_plain(&g.image)
        cdef image_t windows = g.image
        cdef image_t answers = g.image
        cdef operand_t a, b
        memset(&a, 0, sizeof(a))
        memset(&b, 0, sizeof(b))
        b.image = &windows
        b.trans = not g.image.nhwc
        a.trans = g.image.nhwc
        a.ld = self.filters
        if not g.image.nhwc:        # y, too, lies image by image: windows of one pixel, in one line
            a.image = &answers
            answers.channels = <int>filters
            answers.batch_stride = self.filters * g.count
            answers.step = g.count
            for axis in range(3):
                answers.size[axis] = answers.out[axis] = <int>g.count if axis == 2 else 1
                answers.kernel[axis] = answers.stride[axis] = answers.dilation[axis] = 1
                answers.pad[axis] = 0
                if plain:
                    windows.size[axis] = windows.out[axis] = answers.size[axis]
        while i < last:
            n = min(step, last - i)
            windows.batch = answers.batch = n
            for group in range(g.group):
                a.data = y + i * self.filters * g.count + group * filters * (1 if g.image.nhwc else g.count)
                b.data = x + i * g.image.batch_stride + group * g.image.channels * (1 if g.image.nhwc else g.pixels)
                failed |= K.sgemm_op(filters, taps, n * g.count, 1, &a, &b, i > first, dw + group * filters * taps,
                                     taps, NULL, nth)
            i += n
        return failed

    cdef tensor_t* input_gradient(self) noexcept nogil:
        """The last output, where there is one more than the gradients of filter and bias; else NULL."""
        return self.y[self.num_outputs - 1] if self.num_outputs == (2 if self.no_bias else 3) else NULL

    cdef int gradients(self, bint transposed, int64_t channels, int64_t pixels) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* dy = self.x[2]
        cdef tensor_t* dx = self.input_gradient()
        if not self.no_bias and self.num_outputs > 1:
            resize1(self.y[1], channels, FLOAT)
            self.bias_gradient(<const float*>dy.data, channels, pixels, <float*>self.y[1].data)
        if dx != NULL:
            resize_like(dx, x, FLOAT)
        if x.size == 0 or dy.size == 0:
            memset(self.y[0].data, 0, self.y[0].size * sizeof(float))
            if dx != NULL:
                memset(dx.data, 0, dx.size * sizeof(float))
            return 0
        if transposed:
            self.filter_gradient(<const float*>dy.data, <const float*>x.data, <float*>self.y[0].data)
            return self.answers(<const float*>dy.data, NULL, <float*>dx.data) if dx != NULL else 0
        self.filter_gradient(<const float*>x.data, <const float*>dy.data, <float*>self.y[0].data)
        return self.images(<const float*>dy.data, NULL, <float*>dx.data) if dx != NULL else 0

    cdef int no_memory(self) except -1 nogil:
        with gil:
            raise MemoryError

    cdef void bias_gradient(self, const float* y, int64_t channels, int64_t pixels, float* db) noexcept nogil:
        cdef int64_t batch = self.windows.c.batch, c, i
        cdef int nth = num_threads(batch * channels * pixels)
        cdef double sum
        if self.windows.c.image.nhwc:
            K.column_sums(batch * pixels, channels, y, channels, db)
            return
        for c in prange(channels, num_threads=nth, schedule="static"):
            sum = 0
            for i in range(batch):
                sum = sum + K.vsum(pixels, y + (i * channels + c) * pixels)
            db[c] = <float>sum


cdef bint wants_winograd(args) except -1:
    return args.bool("winograd", True) and os.environ.get("CAFFE2_WINOGRAD") != "0"


cdef inline bint is_most(int64_t channels) noexcept nogil:
    """Whether blocks of so many channels hold little padding."""
    return 8 * channels >= 7 * ((channels + BLOCK - 1) // BLOCK * BLOCK)


cdef inline bint is_winograd(int way) noexcept nogil:
    return way == CONV16_WINOGRAD_4 or way == CONV16_WINOGRAD_2


cdef class Conv(Correlation):
    """Y = min(max(answers + residual, low), high).

    Images of two axes, NCHW, are convolved in the blocked layout where they come or may go on in it, or where
    Winograd's algorithm gains more than it costs to get there; all others by products of matrices.
    """

    def setup(self):
        Correlation.setup(self)
        self.low, self.high = -INFINITY, INFINITY
        self.fitted.layout = -1
        self.winograd = wants_winograd(self.args)
        self.blocked = self.windows.c.ndim == 2 and not self.windows.c.image.nhwc

    def absorb(self, Operator following):
        if following.type != "Relu" or self.high < INFINITY or self.whole:
            return False
        self.low = max(self.low, 0)
        return True

    cdef int run(self) except -1 nogil:
        cdef int64_t[5] shape
        cdef conv16_t c
        cdef int way = self.fit(&c, shape)
        return self.answer(&c, way, shape)

    cdef int fit(self, conv16_t* c, int64_t* shape) except -2 nogil:
        cdef tensor_t* x = self.x[0]
        cdef fitted_t* f = &self.fitted
        if x.dtype == FLOAT and x.ndim == 4 and x.layout == f.layout and self.before == f.before and (
                memcmp(x.shape, f.x, sizeof(f.x)) == 0 and self.x[1].version == f.version
                and (self.num_inputs < 3 or self.x[2].version == f.bias_version)):
            c[0] = f.c
            memcpy(shape, f.y, sizeof(f.y))
            if self.residual:
                self.check_residual(shape)
            return f.way
        f.layout = -1
        self.expect(0, FLOAT)
        self.windows.fit(x.ndim, x.shape)
        make_plain(self.x[1])
        self.check_filter()
        self.bias = NULL
        if self.num_inputs > 2:
            make_plain(self.x[2])
            self.check_bias(2, self.filters)
            self.bias = <const float*>self.x[2].data
        window_shape(&self.windows.c, self.filters, shape)
        if self.residual:
            self.check_residual(shape)
        f.way = self.way(c)
        if x.ndim == 4 and not self.repacks:
            f.layout, f.before, f.c = x.layout, self.before, c[0]
            memcpy(f.x, x.shape, sizeof(f.x))
            memcpy(f.y, shape, sizeof(f.y))
            f.version = self.x[1].version
            f.bias_version = self.x[2].version if self.num_inputs > 2 else 0
        return f.way

    cdef int check_residual(self, const int64_t* shape) except -1 nogil:
        self.expect(self.residual, FLOAT)
        return check_shape(self.x[self.residual], "residual", self.x[0].ndim, shape)

    cdef int answer(self, const conv16_t* c, int way, const int64_t* shape) except -1 nogil:
        if self.whole:
            self.open(shape, self.emits and way != CONV16_NONE)
        if way != CONV16_NONE:
            return self.run_blocked(c, way, shape)
        make_plain(self.x[0])
        if self.residual:
            make_plain(self.x[self.residual])
        return self.run_plain(shape)

    cdef int way(self, conv16_t* c) noexcept nogil:
        """How to convolve in the blocked layout; CONV16_NONE: not at all."""
        cdef int way, winograd = 2 if self.winograd and self.repacks else self.winograd
        if not self.blocked or self.low > 0 or self.high < 0 or not blocked_windows(&self.windows.c, self.filters, c):
            return CONV16_NONE
        if self.x[0].layout == BLOCKED:
            return K.conv16_way(c, CONV16_BLOCKED if self.before == NULL else CONV16_ANSWERS, winograd)
        if self.emits and self.repacks and not is_most(c.out_channels):
            return CONV16_NONE      # gradients would lose more in padding than they gain
        if self.emits and c.channels < BLOCK and c.group == 1:
            return K.conv16_way(c, CONV16_NCHW, winograd)
        way = K.conv16_way(c, CONV16_BLOCKED, winograd)
        return way if self.emits or (is_winograd(way) and is_most(c.out_channels)) else CONV16_NONE

    cdef int open(self, const int64_t* shape, bint blocked) except -1 nogil:
        """Y takes the answers of all; those before this operator have written theirs."""
        cdef tensor_t* y = self.y[0]
        cdef int64_t[4] all
        if self.filters != self.own:
            return self.fail("there must be as many filters as its part of Y has channels")
        memcpy(all, shape, sizeof(all))
        all[1] = self.whole
        if self.joins:
            check_shape(y, "Y, with the parts of others,", 4, all)
            blocked = y.layout == BLOCKED
        return resize_blocked(y, all) if blocked else resize(y, 4, all, FLOAT)

    cdef int put(self, const float* answers, bint blocked, int nth) except -1 nogil:
        """The part of Y becomes these answers."""
        cdef windows_t* g = &self.windows.c
        cdef int own = <int>self.filters
        cdef tensor_t* t = self.y[0]
        cdef int64_t step = (blocked_size(t.shape) if t.layout == BLOCKED else t.size) // g.batch
        cdef float* y = <float*>t.data + self.start * g.count
        cdef int64_t _i
        for _i in range(g.batch):
            if t.layout == BLOCKED:
                K.to16(1, own, g.count, answers, y, nth)
            elif blocked:
                K.from16(1, own, g.count, answers, y, nth)
            else:
                memcpy(y, answers, own * g.count * sizeof(float))
            answers += ((own + BLOCK - 1) // BLOCK * BLOCK if blocked else own) * g.count
            y += step
        return 0

    cdef epilogue16_t epilogue(self) noexcept nogil:
        cdef epilogue16_t e
        e.bias = self.bias
        e.residual = NULL
        e.low = self.low
        e.high = self.high
        e.y_image = 0
        return e

    cdef bint pack(self, const conv16_t* c, int way, int nth) except -1 nogil:
        cdef tensor_t* w = self.x[1]
        self.room(K.conv16_pack_bytes(c, way))
        if self.is_packed(way):
            return True
        # Winograd's algorithm would spread it, and the other leaves out the zeros around an image.
        if (is_winograd(way) or way == CONV16_DEPTHWISE) and not are_finite(<const float*>w.data, w.size):
            self.packed_from = NULL
            return False
        if K.conv16_pack(c, way, <const float*>w.data, <float*>self.packed, nth):
            self.packed_from = NULL
            self.no_memory()
        return True

    cdef int run_blocked(self, const conv16_t* c, int way, const int64_t* shape) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y = self.y[0]
        cdef tensor_t* r = self.x[self.residual] if self.residual else NULL
        cdef int64_t size = blocked_size(shape)
        cdef int64_t room_x = blocked_size(x.shape) if x.layout == PLAIN and way != CONV16_FIRST else 0
        cdef int64_t room_r = size if r != NULL and r.layout == PLAIN else 0
        cdef int nth = num_threads(<int64_t>(<double>size * g.image.channels * g.taps))
        cdef bint emits = y.layout == BLOCKED if self.whole else self.emits
        cdef float* to_x = <float*>self.scratch((room_x + room_r + (0 if emits else size)) * sizeof(float))
        cdef float* to_r = to_x + room_x
        cdef float* to_y = to_r + room_r
        cdef epilogue16_t e = self.epilogue()
        cdef int failed
        e.residual = to_r if room_r else <const float*>r.data if r != NULL else NULL
        if not self.pack(c, way, nth):
            way = K.conv16_way(c, CONV16_BLOCKED, 0)
            if way != CONV16_DEPTHWISE:
                return self.run_blocked(c, way, shape)
            make_plain(x)
            if r != NULL:
                make_plain(r)
            return self.run_plain(shape)
        if room_x:
            K.to16(c.batch, c.channels, g.pixels, <const float*>x.data, to_x, nth)
        if room_r:
            K.to16(c.batch, c.out_channels, g.count, <const float*>r.data, to_r, nth)
        if emits:
            if self.whole:
                e.y_image = blocked_size(y.shape) // c.batch
            else:
                resize_blocked(y, shape)
            to_y = <float*>y.data + self.start * g.count
        if self.before != NULL:
            failed = K.separable16(self.before, c, way, <const float*>self.packed, &e, to_y, nth)
        else:
            failed = K.conv16(c, way, to_x if room_x else <const float*>x.data, <const float*>self.packed, &e, to_y,
                              nth)
        if failed:
            return self.no_memory()
        if emits:
            return 0
        if self.whole:
            return self.put(to_y, True, nth)
        resize(y, 4, shape, FLOAT)
        K.from16(c.batch, c.out_channels, g.count, to_y, <float*>y.data, nth)
        return 0

    cdef int run_plain(self, const int64_t* shape) except -1 nogil:
        cdef tensor_t* y = self.y[0]
        cdef const float* residual = <const float*>self.x[self.residual].data if self.residual else NULL
        cdef float* to
        cdef int64_t n, chunk
        cdef int nth, i
        if not self.whole:
            resize(y, self.x[0].ndim, shape, FLOAT)
        n = self.windows.c.batch * self.filters * self.windows.c.count
        if n == 0:
            return 0
        to = <float*>self.scratch(n * sizeof(float)) if self.whole else <float*>y.data
        if residual == y.data:
            residual = <const float*>self.scratch(n * sizeof(float))
            memcpy(<void*>residual, y.data, n * sizeof(float))
        self.answers(<const float*>self.x[0].data, self.bias, to)
        nth = num_threads(n)
        if residual != NULL or self.low > -INFINITY or self.high < INFINITY:
            chunk = (n + nth - 1) // nth
            for i in prange(nth, num_threads=nth, schedule="static", chunksize=1, use_threads_if=nth > 1):
                self.finish(residual, to, i * chunk, min(n, (i + 1) * chunk))
        return self.put(to, False, nth) if self.whole else 0

    cdef void finish(self, const float* residual, float* y, int64_t start, int64_t stop) noexcept nogil:
        """Add the residual to a stretch, then keep it within bounds; NaN stays."""
        cdef float low = self.low, high = self.high
        cdef int64_t i
        if stop <= start:
            return
        if residual != NULL:
            K.vadd(stop - start, y + start, residual + start, y + start)
        if low == 0 and high == INFINITY:
            K.vrelu(stop - start, y + start, y + start)
        elif low > -INFINITY or high < INFINITY:
            for i in range(start, stop):
                y[i] = low if y[i] < low else high if y[i] > high else y[i]


cdef class ConvFused(Conv):
    """Convolution with what follows it."""

    def setup(self):
        Conv.setup(self)
        self.low = self.args.float("low", -INFINITY)
        self.high = self.args.float("high", INFINITY)
        if self.args.bool("relu"):
            self.low = max(self.low, 0)
        self.residual = 3 if self.num_inputs == 4 else 0
        parts, part = self.args.ints("parts"), self.args.int("part")
        if not parts:
            return
        if not 0 <= part < len(parts) or min(parts) < 1 or any(n % BLOCK for n in parts[:-1]) or self.residual or (
                self.windows.c.ndim != 2 or self.windows.c.image.nhwc):
            raise ValueError(f"part {part} of {parts} channels must be one of images of two axes, NCHW, without a "
                             f"residual; all but the last must be multiples of {BLOCK}")
        self.whole, self.start, self.own = sum(parts), sum(parts[:part]), parts[part]
        self.joins = self.args.bool("joins")


cdef class ConvGradient(Correlation):
    cdef bint winograd
    cdef const float* dx        # blocked, where it was written last

    def setup(self):
        Correlation.setup(self)
        self.winograd = wants_winograd(self.args)
        self.blocked = self.windows.c.ndim == 2 and not self.windows.c.image.nhwc
        if self.num_inputs != 3:
            raise ValueError("takes X, filter and the gradient of Y")

    def blocked_output(self):
        return self.num_outputs - 1

    cdef int run(self) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* dy = self.x[2]
        cdef int64_t[5] shape
        cdef conv16_t c
        self.expect(0, FLOAT)
        self.expect(2, FLOAT)
        make_plain(self.x[1])
        self.windows.fit(x.ndim, x.shape)
        self.check_filter()
        window_shape(g, self.filters, shape)
        check_shape(dy, "dY", x.ndim, shape)
        resize_like(self.y[0], self.x[1], FLOAT)
        if self.fits_blocks(&c):
            self.run_blocked(&c, self.input_gradient())
            if self.has_finite_borders(&c):
                return 0
        elif self.has_few_channels(&c):
            return self.run_few(&c, self.input_gradient())
        make_plain(x)
        make_plain(dy)
        return self.gradients(False, self.filters, g.count)

    cdef bint fits_blocks(self, conv16_t* c) noexcept nogil:
        """Whether to compute in the blocked layout: tensors are in it, or much is to be done with each value."""
        cdef int i
        if not self.blocked or not blocked_windows(&self.windows.c, self.filters, c) or (
                min(c.channels, c.out_channels) // c.group < BLOCK
                or K.conv16_way(c, CONV16_BLOCKED, 0) == CONV16_NONE):
            return False
        for i in range(2):
            if c.stride[i] > 1 and c.dilation[i] > 1:
                return False
        if not see_pixels(&self.windows.c):
            return False
        return self.x[0].layout == BLOCKED or self.x[2].layout == BLOCKED or self.windows.c.taps >= 9 and (
            is_most(c.channels) and is_most(c.out_channels))

    cdef bint has_few_channels(self, conv16_t* c) noexcept nogil:
        return self.blocked and blocked_windows(&self.windows.c, self.filters, c) and c.channels < BLOCK and (
            self.x[0].layout == PLAIN and (self.x[2].layout == BLOCKED or self.windows.c.taps > 1)
            and K.plain_filter_gradient_fits(c))

    cdef int run_few(self, const conv16_t* c, tensor_t* dx) except -1 nogil:
        """Of plain images with few channels."""
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* dy = self.x[2]
        cdef const float* w = <const float*>self.x[1].data
        cdef const float* dy16 = <const float*>dy.data
        cdef int nth = num_threads(<int64_t>(<double>dy.size * c.channels * g.taps / 8))
        if dy.layout == PLAIN:
            dy16 = <const float*>self.scratch(blocked_size(dy.shape) * sizeof(float))
            K.to16(c.batch, c.out_channels, g.count, <const float*>dy.data, <float*>dy16, nth)
        if not self.no_bias and self.num_outputs > 1:
            resize1(self.y[1], self.filters, FLOAT)
            self.blocked_bias_gradient(c, dy16, <float*>self.y[1].data)
        if K.plain_filter_gradient(c, <const float*>self.x[0].data, dy16, <float*>self.y[0].data, nth):
            return self.no_memory()
        if dx == NULL:
            return 0
        resize_like(dx, self.x[0], FLOAT)
        # With one channel, each answer would be read for one multiplication; zeros around dY times filters that are
        # not finite would be NaN.
        if dy.layout == PLAIN and c.channels == 1 or not are_finite(w, self.x[1].size):
            make_plain(dy)
            return self.images(<const float*>dy.data, NULL, <float*>dx.data)
        if K.plain_image_gradient(c, dy16, w, <float*>dx.data, nth):
            return self.no_memory()
        return 0

    cdef int run_blocked(self, const conv16_t* c, tensor_t* dx) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* dy = self.x[2]
        cdef int64_t room_x = blocked_size(x.shape) if x.layout == PLAIN else 0
        cdef int64_t room_dy = blocked_size(dy.shape) if dy.layout == PLAIN else 0
        cdef int64_t room_dx = blocked_size(x.shape) if dx != NULL and not self.emits else 0
        cdef float* room = <float*>self.scratch((room_x + room_dy + room_dx) * sizeof(float))
        cdef const float* x16 = room if room_x else <const float*>x.data
        cdef const float* dy16 = room + room_x if room_dy else <const float*>dy.data
        cdef float* dx16 = room + room_x + room_dy
        cdef int nth = num_threads(<int64_t>(<double>g.batch * g.count * self.filters * g.image.channels * g.taps / 8))
        if room_x:
            K.to16(c.batch, c.channels, g.pixels, <const float*>x.data, room, nth)
        if room_dy:
            K.to16(c.batch, c.out_channels, g.count, <const float*>dy.data, room + room_x, nth)
        if not self.no_bias and self.num_outputs > 1:
            resize1(self.y[1], self.filters, FLOAT)
            self.blocked_bias_gradient(c, dy16, <float*>self.y[1].data)
        if K.conv16_filter_gradient(c, x16, dy16, <float*>self.y[0].data, nth):
            return self.fail("not enough memory")
        self.dx = dx16
        if dx == NULL:
            return 0
        if self.emits:
            resize_blocked(dx, x.shape)
            dx16 = self.dx = <float*>dx.data
        if K.conv16_image_gradient(c, self.winograd, dy16, <const float*>self.x[1].data, dx16, nth):
            return self.fail("not enough memory")
        if not self.emits:
            resize(dx, 4, x.shape, FLOAT)
            K.from16(c.batch, c.channels, g.pixels, dx16, <float*>dx.data, nth)
        return 0

    cdef bint has_finite_borders(self, const conv16_t* c) noexcept nogil:
        """Whether all is as plain tensors would have it. Around an image, they multiply dY with zeros, but not the
        filters; the blocked layout does it the other way round. If the factor is not finite, neither is some gradient
        of its first input channel, nor a corner of the first dX."""
        cdef const float* dw = <const float*>self.y[0].data
        cdef int64_t taps = self.windows.c.taps, depth = self.windows.c.image.channels, i, y, x, block, at
        for i in range(self.filters):
            if not are_finite(dw + i * depth * taps, taps):
                return False
        if self.input_gradient() == NULL:
            return True
        for block in range((c.channels + BLOCK - 1) // BLOCK):
            for y in range(c.size[0]):
                if c.stride[0] <= y < c.size[0] - c.stride[0]:
                    continue
                for x in range(c.size[1]):
                    if c.stride[1] <= x < c.size[1] - c.stride[1]:
                        continue
                    at = (block * c.size[0] + y) * c.size[1] + x
                    if not are_finite(self.dx + at * BLOCK, BLOCK):
                        return False
        return True

    cdef void blocked_bias_gradient(self, const conv16_t* c, const float* y, float* db) noexcept nogil:
        cdef int64_t blocks = (c.out_channels + BLOCK - 1) // BLOCK, b
        cdef int nth = num_threads(c.batch * c.out_channels * self.windows.c.count)
        for b in prange(blocks, num_threads=nth, schedule="static"):
            self.bias_block(c, b, blocks, y, db)

    cdef void bias_block(self, const conv16_t* c, int64_t block, int64_t blocks, const float* y,
                         float* db) noexcept nogil:
        cdef double[BLOCK] total
        cdef int64_t i, size = self.windows.c.count * BLOCK
        memset(total, 0, sizeof(total))
        for i in range(c.batch):
            add_lanes(y + (i * blocks + block) * size, NULL, NULL, NULL, self.windows.c.count, total)
        for i in range(min(BLOCK, c.out_channels - BLOCK * block)):
            db[BLOCK * block + i] = <float>total[i]


cdef class ConvTranspose(Correlation):
    cdef int fit(self) except -1 nogil:
        """X holds the answers; the images come out. Their channels are those of the filters times the groups."""
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* w = self.x[1]
        cdef int64_t filters
        self.expect(0, FLOAT)
        self.expect_ndim(0, g.ndim + 2)
        self.expect(1, FLOAT)
        self.expect_ndim(1, g.ndim + 2)
        self.windows.fit_transposed(x.ndim, x.shape, w.shape[g.ndim + 1 if g.image.nhwc else 1] * g.group)
        self.check_filter()
        filters = x.shape[g.ndim + 1 if g.image.nhwc else 1]
        if filters != self.filters:
            with gil:
                raise ValueError(f"there must be as many filters as X has channels, {filters}, "
                                 f"but there are {self.filters}")
        return 0

    cdef int run(self) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef const float* bias = NULL
        cdef int64_t[5] shape
        self.fit()
        if self.num_inputs == 3:
            self.check_bias(2, g.channels)
            bias = <const float*>self.x[2].data
        image_shape(g, g.channels, shape)
        resize(self.y[0], g.ndim + 2, shape, FLOAT)
        if self.y[0].size == 0:
            return 0
        return self.images(<const float*>self.x[0].data, bias, <float*>self.y[0].data)


cdef class ConvTransposeGradient(ConvTranspose):
    def setup(self):
        Correlation.setup(self)

    cdef int run(self) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* dy = self.x[2]
        cdef int64_t[5] shape
        self.fit()
        self.expect(2, FLOAT)
        image_shape(g, g.channels, shape)
        check_shape(dy, "dY", x.ndim, shape)
        resize_like(self.y[0], self.x[1], FLOAT)
        return self.gradients(True, g.channels, g.pixels)


cdef class Im2Col(Operator):
    cdef Windows windows

    def setup(self):
        self.windows = Windows(self.args)

    cdef int run(self) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* x = self.x[0]
        cdef int64_t[5] shape
        cdef int64_t i, size
        cdef int nth
        cdef image_t one
        self.expect(0, FLOAT)
        self.windows.fit(x.ndim, x.shape)
        window_shape(g, g.channels * g.taps, shape)
        resize(self.y[0], x.ndim, shape, FLOAT)
        if self.y[0].size == 0:
            return 0
        one = g.image
        one.batch = 1
        size = g.channels * g.taps * g.count
        nth = num_threads(self.y[0].size)
        for i in prange(g.batch, num_threads=nth, schedule="static"):
            K.sim2col(&one, <const float*>x.data + i * one.batch_stride, <float*>self.y[0].data + i * size, 1)
        return 0


cdef class Col2Im(Im2Col):
    cdef int run(self) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* z = self.x[1]
        cdef int64_t i, size
        cdef int nth
        cdef image_t one
        self.expect(0, FLOAT)
        if z.ndim < 3:
            self.expect_ndim(1, g.ndim + 2)
        self.windows.fit(z.ndim, z.shape)
        size = g.channels * g.taps * g.count
        self.expect_size(0, g.batch * size)
        resize_like(self.y[0], z, FLOAT)
        memset(self.y[0].data, 0, self.y[0].size * sizeof(float))
        one = g.image
        one.batch = 1
        nth = num_threads(self.x[0].size)
        for i in prange(g.batch, num_threads=nth, schedule="static"):
            K.scol2im(&one, <const float*>self.x[0].data + i * size, <float*>self.y[0].data + i * one.batch_stride, 1)
        return 0


# ------------------------------------------------------------ registration

def _channels_axis(args, w):
    return w.ndim - 1 if args.str("order", "NCHW") == "NHWC" else 1


def _infer(args, inputs):
    return [infer(args, inputs[0], inputs[1].shape[0] if inputs[1].shape else -1)]


def _infer_fused(args, inputs):
    parts = args.ints("parts")
    return [infer(args, inputs[0], sum(parts))] if parts else _infer(args, inputs)


def _infer_transposed(args, inputs):
    w = inputs[1]
    if not w.shape:
        return [TensorInfo()]
    return [infer(args, inputs[0], w.shape[_channels_axis(args, w)] * args.int("group", 1), transposed=True)]


def _infer_gradient(args, inputs):
    """Gradients of filter, bias and X, as far as they are asked for."""
    x, w = inputs[:2]
    outputs = len(args.definition.output)
    bias = [] if args.bool("no_bias") or outputs == 1 else [TensorInfo(None if w.shape is None else w.shape[:1])]
    return ([w] + bias + [x])[:outputs]


def _infer_transposed_gradient(args, inputs):
    result = _infer_gradient(args, inputs)
    w = inputs[1]
    if len(result) > 1 and not args.bool("no_bias") and w.shape is not None:
        result[1] = TensorInfo([w.shape[_channels_axis(args, w)] * args.int("group", 1)])
    return result


def _cost(answers, products):
    """Cost of `products` multiplications and additions for each filter, tap and answer; `answers` finds those."""
    def cost(args, inputs, outputs):
        y, w = answers(args, inputs, outputs), inputs[1]
        if None in (y.shape, w.shape):
            return dict(flops=0, bytes_read=0, bytes_written=0, params_bytes=0)
        return dict(
            flops=2 * products(args) * y.size * (w.size // max(1, w.shape[0])),
            bytes_read=4 * sum(t.size for t in inputs if t.shape is not None),
            bytes_written=4 * sum(t.size for t in outputs if t.shape is not None),
            params_bytes=4 * sum(t.size for t in inputs[1:] if t.shape is not None),
        )
    return cost


def _gradients_asked(args):
    return 2 if len(args.definition.output) == (2 if args.bool("no_bias") else 3) else 1


def _gradient(g):
    """Gradients of filter, bias (if there is one) and X (unless no_gradient_to_input is set), in that order."""
    outputs = [g.GI(i) for i in range(1, g.num_inputs)]
    if not g.args.bool("no_gradient_to_input"):
        outputs.append(g.GI(0))
    no_bias = {} if g.num_inputs == 3 else {"no_bias": 1}
    return g.op(g.definition.type + "Gradient", [g.I(0), g.I(1), g.GO(0)], outputs, **no_bias)


_SHARED = {
    "no_gradient_to_input": "leave out the gradient of X",
    "shared_buffer": "accepted, changes nothing",
}
_WINOGRAD = {
    "winograd": "0: never use Winograd's algorithm for windows of 3 x 3 pixels: it is fast, but its error is up to "
                "twice that of others, and NaN or Inf in an image spreads to all of a tile of 4 x 4 pixels (default 1)",
}
_NO_BIAS = {"no_bias": "there is no bias, hence no gradient of one"}
_DOC = """Every filter is laid over {where} in turn, at steps of `stride`, multiplied with the pixels under it and
summed up, plus the filter's bias:

    Y[n, m, p] = bias[m] + sum over c, t of filter[m, c, t] * X[n, c, p * stride - pad + t * dilation]

With order NHWC the channels stand last, in X, filter and Y. With `group` set, channels and filters are divided into
that many groups, and a filter sees the channels of its group alone."""

for _name, _where in (("Conv", "an image"), ("Conv1D", "a sequence"), ("Conv2D", "an image"), ("Conv3D", "a volume")):
    register(
        _name, Conv, (2, 3), 1,
        ins={
            "X": "images, [N, C, ...] or, with order NHWC, [N, ..., C]",
            "filter": "[M, C / group, kernel...] or [M, kernel..., C / group]",
            "bias": "one value for each of the M filters; 0 where it is left out",
        },
        outs={"Y": "[N, M, ...] or [N, ..., M]"},
        args={**ARGS, **DILATION, **GROUP, **_SHARED, **_WINOGRAD}, infer=_infer,
        cost=_cost(lambda args, inputs, outputs: outputs[0], lambda args: 1),
        gradient=_gradient, doc=_DOC.format(where=_where),
    )
    register(
        _name + "Gradient", ConvGradient, (2, 3), (1, 3),
        ins={"X": "images", "filter": "the filters", "dY": "gradient of Y"},
        outs={
            "dfilter": "gradient of the filters",
            "dbias or dX": "gradient of the bias; with no_bias, of X",
            "dX": "gradient of X",
        },
        args={**ARGS, **DILATION, **GROUP, **_SHARED, **_WINOGRAD, **_NO_BIAS}, infer=_infer_gradient,
        cost=_cost(lambda args, inputs, outputs: inputs[2], _gradients_asked),
        doc=f"Gradient of {_name}. The gradient of X is computed only where there is an output for it.",
    )

register(
    "ConvFused", ConvFused, (3, 4), 1,
    ins={
        "X": "images, as for Conv", "filter": "as for Conv", "bias": "one value for each filter",
        "residual": "added to the answers; of the shape of Y",
    },
    outs={"Y": "as of Conv"},
    args={
        **ARGS, **DILATION, **GROUP, **_SHARED, **_WINOGRAD,
        "relu": "Y = max(Y, 0) (default 0)", "low": "least value of Y (default: no limit)",
        "high": "largest value of Y (default: no limit)",
        "parts": "channels of Y of each of the operators that write it together (default: this one writes all)",
        "part": "which of the parts is this operator's (default 0)",
        "joins": "1: Y is there, with the parts of others (default 0)",
    },
    inplace=[(3, 0)], infer=_infer_fused,
    cost=_cost(lambda args, inputs, outputs: _infer(args, inputs)[0], lambda args: 1),
    doc="Conv with what follows it, Sum and then Relu or Clip, or Concat, as the optimizer of nets for inference makes "
        "it. It has no gradient.",
)

_ADJ = {
    "adj": "pixels added behind, to tell apart the sizes that give the same windows",
    "adjs": "the same for each spatial axis; also adj_h and adj_w",
}
register(
    "ConvTranspose", ConvTranspose, (2, 3), 1,
    ins={
        "X": "[N, M, ...] or, with order NHWC, [N, ..., M]",
        "filter": "[M, C / group, kernel...] or [M, kernel..., C / group]",
        "bias": "one value for each of the C channels of Y; 0 where it is left out",
    },
    outs={"Y": "[N, C, ...] or [N, ..., C]; an axis has (size - 1) * stride + kernel + adj - pads pixels"},
    args={**ARGS, **DILATION, **GROUP, **_SHARED, **_NO_BIAS, **_ADJ}, infer=_infer_transposed,
    cost=_cost(lambda args, inputs, outputs: inputs[0], lambda args: 1),
    gradient=_gradient,
    doc="Transposed convolution: every value of X adds its filter, times itself, onto the window of Y that Conv would "
        "have computed it from. What the gradient of Conv is to Y, this is to X.",
)
register(
    "ConvTransposeGradient", ConvTransposeGradient, 3, (1, 3),
    ins={"X": "input of ConvTranspose", "filter": "the filters", "dY": "gradient of Y"},
    outs={
        "dfilter": "gradient of the filters",
        "dbias or dX": "gradient of the bias; with no_bias, of X",
        "dX": "gradient of X",
    },
    args={**ARGS, **DILATION, **GROUP, **_SHARED, **_NO_BIAS, **_ADJ}, infer=_infer_transposed_gradient,
    cost=_cost(lambda args, inputs, outputs: inputs[0], _gradients_asked),
    doc="Gradient of ConvTranspose. The gradient of X is computed only where there is an output for it.",
)


def _infer_columns(args, inputs):
    x = inputs[0]
    if x.shape is None:
        return [TensorInfo()]
    taps = 1
    for k in kernel_of(args):
        taps *= k
    return [infer(args, x, taps * x.shape[_channels_axis(args, x)])]


register(
    "Im2Col", Im2Col, 1, 1,
    ins={"X": "images, [N, C, H, W] or, with order NHWC, [N, H, W, C]"},
    outs={"Y": "[N, C * kernel, windows...] or [N, windows..., kernel * C]"},
    args={**ARGS, **DILATION}, infer=_infer_columns, cost=flops_per_element(0),
    gradient=simple("Col2Im", "GO0 I0", "GI0"),
    doc="Writes the pixels under each window, those of all channels, into a column of their own.",
)
register(
    "Col2Im", Col2Im, 2, 1,
    ins={"X": "columns, as Im2Col gives them", "Z": "images; their shape alone is used"},
    outs={"Y": "images of the shape of Z"},
    args={**ARGS, **DILATION}, infer=like(1), cost=flops_per_element(1), gradient=simple("Im2Col", "GO0", "GI0"),
    doc="Adds columns onto the windows they come from; the transpose, and gradient, of Im2Col.",
)

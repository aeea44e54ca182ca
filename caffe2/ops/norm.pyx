"""Normalization over batches and over neighbouring channels: SpatialBN, LRN."""
from cython.parallel cimport prange

from libc.math cimport INFINITY, powf, sqrt, sqrtf
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport BLOCKED, FLOAT, make_plain, resize1, resize_like, size_from, tensor_t
from caffe2._core.threads cimport num_threads
from caffe2.ops.blocked cimport add_lanes, resize_as
from caffe2.ops.kernels.dispatch cimport K, SCRATCH_USER

from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, like, same_as_input

cdef enum:
    LANES = 16


cdef double sum_squares_from(const float* x, float center, int64_t n) noexcept nogil:
    """sum((x - center)^2), in partial sums that the compiler can keep in vectors."""
    cdef float[LANES] partial
    cdef double total = 0
    cdef int64_t i = 0
    cdef int j
    for j in range(LANES):
        partial[j] = 0
    while i + LANES <= n:
        for j in range(LANES):
            partial[j] += (x[i + j] - center) * (x[i + j] - center)
        i += LANES
    for i in range(i, n):
        total += (x[i] - center) * (x[i] - center)
    for j in range(LANES):
        total += partial[j]
    return total


def _order(args):
    order = args.str("order", "NCHW")
    if order not in ("NCHW", "NHWC"):
        raise ValueError(f"order must be NCHW or NHWC, not {order!r}")
    return order == "NHWC"


# ---------------------------------------------------------------- SpatialBN

cdef class BatchNorm(Operator):
    """Base: X is (N, C, ...) or (N, ..., C); statistics run over all but the channels."""

    cdef bint nhwc
    cdef bint is_test
    cdef float epsilon
    cdef double momentum
    cdef int batches
    cdef int64_t channels
    cdef int64_t blocks
    cdef int64_t images         # channels come this often,
    cdef int64_t run_length     # each time with so many values
    cdef float* a               # for each channel; the two halves of the scratch space
    cdef float* b

    def setup(self):
        self.nhwc = _order(self.args)
        self.is_test = self.args.bool("is_test")
        self.epsilon = self.args.float("epsilon", 1e-5)
        self.momentum = self.args.float("momentum", 0.9)
        self.batches = self.args.int("num_batches", 1)
        if not self.epsilon > 0:
            raise ValueError("argument epsilon must be positive")
        if not 0 <= self.momentum <= 1:
            raise ValueError("argument momentum must be between 0 and 1")
        if self.batches < 1:
            raise ValueError("argument num_batches must be positive")

    cdef int view(self) except -1 nogil:
        """Take X's measures; what is given for each channel is checked by expect_channels."""
        cdef tensor_t* x = self.x[0]
        cdef int64_t room
        self.expect(0, FLOAT)
        if not 2 <= x.ndim <= 5:
            return self.fail("X must have 2 to 5 dimensions: (N, C, ...), or (N, ..., C) in order NHWC")
        self.channels = x.shape[x.ndim - 1] if self.nhwc else x.shape[1]
        self.images = 1
        if self.nhwc:
            self.run_length = 1
            self.images = x.size // self.channels if self.channels else 0
        else:
            self.run_length = size_from(x, 2)
            self.images = x.shape[0]
        self.blocks = (self.channels + LANES - 1) // LANES
        room = self.blocks * LANES
        self.a = <float*>self.scratch(2 * room * sizeof(float))
        self.b = self.a + room
        memset(self.a, 0, 2 * room * sizeof(float))
        return 0

    cdef int expect_channels(self, int i) except -1 nogil:
        self.expect(i, FLOAT)
        make_plain(self.x[i])
        return self.expect_size(i, self.channels)

    cdef void channel(self, int64_t c) noexcept nogil:
        """What is to be done for one channel, order NCHW."""
        pass

    cdef void block(self, int64_t b) noexcept nogil:
        """The same for the channels of a block."""
        pass

    cdef void channel_or_block(self, int64_t i) noexcept nogil:
        if self.x[0].layout == BLOCKED:
            self.block(i)
        else:
            self.channel(i)

    cdef int each_channel(self) except -1 nogil:
        cdef int64_t c, n = self.blocks if self.x[0].layout == BLOCKED else self.channels
        cdef int threads = num_threads(self.images * self.channels * self.run_length)
        if threads == 1 or n == 1:
            for c in range(n):
                self.channel_or_block(c)
        else:
            for c in prange(n, num_threads=threads, schedule="static"):
                self.channel_or_block(c)
        return 0


cdef class SpatialBN(BatchNorm):
    cdef bint relu

    def absorb(self, Operator following):
        if following.type != "Relu":
            return False
        self.relu = True
        return True

    def setup(self):
        BatchNorm.setup(self)
        self.blocked = not self.nhwc
        if self.num_outputs not in (1, 5) or (self.num_outputs == 1) != self.is_test:
            raise ValueError("gives 1 output when testing (is_test=1), 5 when training")
        if self.num_inputs < 5 or (self.batches > 1 and not self.is_test and self.num_inputs != 7):
            raise ValueError("takes X, scale, bias, mean and var; with num_batches also sums and sumsq")

    cdef void channel(self, int64_t c) noexcept nogil:
        """Mean into a and variance into b."""
        cdef int64_t i, s = self.run_length
        cdef const float* x = <const float*>self.x[0].data + c * s
        cdef double total = 0, n = <double>(self.images * s)
        for i in range(self.images):
            total += K.vsum(s, x + i * self.channels * s)
        self.a[c] = <float>(total / n)
        total = 0
        for i in range(self.images):
            total += sum_squares_from(x + i * self.channels * s, self.a[c], s)
        self.b[c] = <float>(total / n)

    cdef void block(self, int64_t b) noexcept nogil:
        cdef const float* x
        cdef const float* center
        cdef double[LANES] total
        cdef double n = <double>(self.images * self.run_length)
        cdef int64_t i, size = self.run_length * LANES
        cdef int k, moment
        for moment in range(2):
            memset(total, 0, sizeof(total))
            center = self.a + b * LANES if moment else NULL
            for i in range(self.images):
                x = <const float*>self.x[0].data + (i * self.blocks + b) * size
                add_lanes(x, center, x if moment else NULL, center, self.run_length, total)
            for k in range(LANES):
                (self.b if moment else self.a)[b * LANES + k] = <float>(total[k] / n)

    cdef void moments_nhwc(self) noexcept nogil:
        cdef const float* x = <const float*>self.x[0].data
        cdef int64_t _i, c
        K.column_sums(self.images, self.channels, x, self.channels, self.a)
        for c in range(self.channels):
            self.a[c] /= self.images
            self.b[c] = 0
        for _i in range(self.images):
            for c in range(self.channels):
                self.b[c] += (x[c] - self.a[c]) * (x[c] - self.a[c])
            x += self.channels
        for c in range(self.channels):
            self.b[c] /= self.images

    cdef int statistics(self, int64_t n) except -1 nogil:
        """Saved mean and inverse deviation of this batch; the running ones follow it."""
        cdef int64_t c
        cdef const float* sums
        cdef const float* squares
        cdef float* running_mean
        cdef float* running_var
        cdef float* saved_mean
        cdef float* saved_inv_std
        cdef double unbiased = n * self.batches / (n * self.batches - 1.0) if n * self.batches > 1 else INFINITY
        cdef double keep = self.momentum, take = 1 - self.momentum
        for c in range(1, 5):
            if c < 3 and (self.y[c].dtype != FLOAT or self.y[c].size != self.channels):
                resize1(self.y[c], self.channels, FLOAT)
                memset(self.y[c].data, 0, self.channels * sizeof(float))
            resize1(self.y[c], self.channels, FLOAT)
        running_mean = <float*>self.y[1].data
        running_var = <float*>self.y[2].data
        saved_mean = <float*>self.y[3].data
        saved_inv_std = <float*>self.y[4].data
        if n == 0:
            memset(saved_mean, 0, self.channels * sizeof(float))
            memset(saved_inv_std, 0, self.channels * sizeof(float))
            return 0
        if self.batches > 1:
            self.expect_channels(5)
            self.expect_channels(6)
            sums = <const float*>self.x[5].data
            squares = <const float*>self.x[6].data
            for c in range(self.channels):
                self.a[c] = sums[c] / (n * self.batches)
                self.b[c] = squares[c] / (n * self.batches) - self.a[c] * self.a[c]
        elif self.nhwc:
            self.moments_nhwc()
        else:
            self.each_channel()
        for c in range(self.channels):
            running_mean[c] = <float>(keep * running_mean[c] + take * self.a[c])
            running_var[c] = <float>(keep * running_var[c] + (take * unbiased * self.b[c] if take else 0))
            saved_mean[c] = self.a[c]
            saved_inv_std[c] = <float>(1 / sqrt(self.b[c] + self.epsilon))
        return 0

    cdef void row(self, int64_t i) noexcept nogil:
        """y = a x + b for one run (NCHW), a run of blocks, or for all channels of a pixel (NHWC)."""
        cdef int64_t j, n, at
        cdef int k
        cdef const float* x
        cdef const float* scale
        cdef const float* bias
        cdef float* y
        cdef float a, b
        if self.nhwc:
            n, at = self.channels, i * self.channels
        else:
            n = self.run_length * (LANES if self.x[0].layout == BLOCKED else 1)
            at = i * n
        x = <const float*>self.x[0].data + at
        y = <float*>self.y[0].data + at
        if self.nhwc:
            for j in range(n):
                y[j] = x[j] * self.a[j] + self.b[j]
        elif self.x[0].layout == BLOCKED:
            at = i % self.blocks * LANES
            scale = self.a + at
            bias = self.b + at
            for j in range(self.run_length):
                for k in range(LANES):
                    y[j * LANES + k] = x[j * LANES + k] * scale[k] + bias[k]
        else:
            a, b = self.a[i % self.channels], self.b[i % self.channels]
            for j in range(n):
                y[j] = x[j] * a + b
        if self.relu:
            K.vrelu(n, y, y)

    cdef int run(self) except -1 nogil:
        cdef int64_t c, i, rows
        cdef int threads
        cdef const float* scale
        cdef const float* bias
        cdef const float* mean
        cdef const float* var
        self.view()
        for c in range(1, 5 if self.is_test else 3):
            self.expect_channels(<int>c)
        if not self.is_test:
            self.statistics(self.images * self.run_length)
        scale = <const float*>self.x[1].data
        bias = <const float*>self.x[2].data
        mean = <const float*>(self.x[3] if self.is_test else self.y[3]).data
        var = <const float*>(self.x[4] if self.is_test else self.y[4]).data
        for c in range(self.channels):
            self.a[c] = scale[c] * (1 / sqrtf(var[c] + self.epsilon) if self.is_test else var[c])
            self.b[c] = bias[c] - mean[c] * self.a[c]
        resize_as(self.y[0], self.x[0])
        rows = self.images if self.nhwc else self.images * self.channels
        if self.x[0].layout == BLOCKED:
            rows = self.images * self.blocks
        threads = num_threads(self.x[0].size)
        if threads == 1:
            for i in range(rows):
                self.row(i)
        else:
            for i in prange(rows, num_threads=threads, schedule="static"):
                self.row(i)
        return 0


cdef class SpatialBNGradient(BatchNorm):
    def setup(self):
        BatchNorm.setup(self)
        self.blocked = not self.nhwc
        if self.num_inputs not in (5, 7) or (self.batches > 1) != (self.num_inputs == 7):
            raise ValueError("takes X, scale, dY, saved mean and saved inverse deviation; with num_batches also the "
                             "gradients of scale and bias, summed over the batches")

    cdef void channel(self, int64_t c) noexcept nogil:
        """Gradients of scale and bias, unless they are given; then that of the channel's values."""
        cdef int64_t i, j, s = self.run_length, step = self.channels * s
        cdef int64_t n = self.images * s
        cdef const float* x = <const float*>self.x[0].data + c * s
        cdef const float* dy = <const float*>self.x[2].data + c * s
        cdef float* dx = <float*>self.y[0].data + c * s
        cdef float mean = (<const float*>self.x[3].data)[c], inv_std = (<const float*>self.x[4].data)[c]
        cdef double dscale = 0, dbias = 0
        cdef float p, q, r
        if self.batches == 1:
            for i in range(self.images):
                p = <float>K.vsum(s, dy + i * step)
                dbias += p
                dscale += K.vdot(s, x + i * step, dy + i * step) - mean * p
            (<float*>self.y[1].data)[c] = <float>(dscale * inv_std)
            (<float*>self.y[2].data)[c] = <float>dbias
        p = (<const float*>self.x[1].data)[c] * inv_std
        q = -p * (<float*>self.y[1].data)[c] * inv_std / n
        r = -p * (<float*>self.y[2].data)[c] / n - q * mean
        for i in range(self.images):
            for j in range(i * step, i * step + s):
                dx[j] = p * dy[j] + q * x[j] + r

    cdef void block(self, int64_t b) noexcept nogil:
        cdef int64_t n = self.images * self.run_length, size = self.run_length * LANES, i, _j, at, c = b * LANES
        cdef int lanes = <int>min(LANES, self.channels - c), k
        cdef const float* x = <const float*>self.x[0].data
        cdef const float* dy = <const float*>self.x[2].data
        cdef float* dx = <float*>self.y[0].data
        cdef float* dscale = <float*>self.y[1].data + c
        cdef float* dbias = <float*>self.y[2].data + c
        cdef float[LANES] mean, p, q, r, zero
        cdef double[LANES] with_x, alone
        memset(mean, 0, sizeof(mean))
        memset(zero, 0, sizeof(zero))
        memset(p, 0, sizeof(p))
        memset(q, 0, sizeof(q))
        memset(r, 0, sizeof(r))
        memset(with_x, 0, sizeof(with_x))
        memset(alone, 0, sizeof(alone))
        memcpy(mean, <const float*>self.x[3].data + c, lanes * sizeof(float))
        if self.batches == 1:
            for i in range(self.images):
                at = (i * self.blocks + b) * size
                add_lanes(dy + at, NULL, NULL, NULL, self.run_length, alone)
                add_lanes(x + at, mean, dy + at, zero, self.run_length, with_x)
            for k in range(lanes):
                dscale[k] = <float>(with_x[k] * (<const float*>self.x[4].data)[c + k])
                dbias[k] = <float>alone[k]
        for k in range(lanes):
            p[k] = (<const float*>self.x[1].data)[c + k] * (<const float*>self.x[4].data)[c + k]
            q[k] = -p[k] * dscale[k] * (<const float*>self.x[4].data)[c + k] / n
            r[k] = -p[k] * dbias[k] / n - q[k] * mean[k]
        for i in range(self.images):
            at = (i * self.blocks + b) * size
            for _j in range(self.run_length):
                for k in range(LANES):
                    dx[at + k] = p[k] * dy[at + k] + q[k] * x[at + k] + r[k]
                at += LANES

    cdef void nhwc_channels(self) noexcept nogil:
        cdef int64_t _i, c, n = self.images
        cdef const float* x = <const float*>self.x[0].data
        cdef const float* dy = <const float*>self.x[2].data
        cdef const float* scale = <const float*>self.x[1].data
        cdef const float* mean = <const float*>self.x[3].data
        cdef const float* inv_std = <const float*>self.x[4].data
        cdef float* dscale = <float*>self.y[1].data
        cdef float* dbias = <float*>self.y[2].data
        cdef float* dx = <float*>self.y[0].data
        cdef float p
        if self.batches == 1:
            memset(dscale, 0, self.channels * sizeof(float))
            K.column_sums(n, self.channels, dy, self.channels, dbias)
            for _i in range(n):
                for c in range(self.channels):
                    dscale[c] += (x[c] - mean[c]) * inv_std[c] * dy[c]
                x += self.channels
                dy += self.channels
            x = <const float*>self.x[0].data
            dy = <const float*>self.x[2].data
        for c in range(self.channels):
            p = scale[c] * inv_std[c]
            self.a[c] = -p * dscale[c] * inv_std[c] / n
            self.b[c] = -p * dbias[c] / n - self.a[c] * mean[c]
        for _i in range(n):
            for c in range(self.channels):
                dx[c] = scale[c] * inv_std[c] * dy[c] + self.a[c] * x[c] + self.b[c]
            x += self.channels
            dy += self.channels
            dx += self.channels

    cdef int run(self) except -1 nogil:
        cdef int i
        cdef int64_t c
        self.view()
        self.expect(2, FLOAT)
        self.expect_same_shape(2, 0)
        if self.x[0].layout != self.x[2].layout:
            make_plain(self.x[0])
            make_plain(self.x[2])
        self.expect_channels(1)
        self.expect_channels(3)
        self.expect_channels(4)
        if self.batches > 1:
            self.expect_channels(5)
            self.expect_channels(6)
        resize_as(self.y[0], self.x[0])
        for i in range(1, 3):
            resize1(self.y[i], self.channels, FLOAT)
            if self.batches > 1:
                for c in range(self.channels):
                    (<float*>self.y[i].data)[c] = (<const float*>self.x[4 + i].data)[c] / self.batches
            if self.images * self.run_length == 0:
                memset(self.y[i].data, 0, self.channels * sizeof(float))
        if self.images * self.run_length == 0:
            return 0
        if self.nhwc:
            self.nhwc_channels()
            return 0
        return self.each_channel()


def infer_spatial_bn(args, inputs):
    if args.bool("is_test"):
        return [inputs[0]]
    c = inputs[0].shape[-1 if _order(args) else 1]
    return [inputs[0], *[TensorInfo((c,))] * 4]


def spatial_bn_gradient(g):
    if g.args.bool("is_test"):
        statistics = [g.I(3), g.I(4)]
    else:
        statistics = [g.O(3), g.O(4)]
    inputs = [g.I(0), g.I(1), g.GO(0), *statistics]
    outputs = [g.GI(0), g.GI(1), g.GI(2)]
    if g.args.int("num_batches", 1) > 1:
        # summed over the batches beforehand, under the names of the gradients
        inputs += outputs[1:]
    return g.op("SpatialBNGradient", inputs, outputs)


_BN_INS = {
    "X": "float tensor (N, C, ...), or (N, ..., C) in order NHWC, with 2 to 5 dimensions",
    "scale": "float tensor (C,)",
    "bias": "float tensor (C,)",
    "mean": "float tensor (C,): running mean",
    "var": "float tensor (C,): running variance",
    "sums": "float tensor (C,): sums over num_batches batches (optional)",
    "sumsq": "float tensor (C,): sums of squares over num_batches batches (optional)",
}
_BN_ARGS = {
    "is_test": "normalize by the running statistics and give Y alone (default 0)",
    "epsilon": "is added to the variance (default 1e-5)",
    "order": "NCHW (default) or NHWC",
    "momentum": "running = momentum * running + (1 - momentum) * of this batch (default 0.9)",
    "num_batches": "batches over which sums and sumsq were taken (default 1: none)",
}
register(
    "SpatialBN", SpatialBN, (0, None), (0, None), ins=_BN_INS, args=_BN_ARGS,
    outs={"Y": "float tensor of the shape of X", "mean": "the running mean, in place",
          "var": "the running variance, in place", "saved_mean": "mean of this batch",
          "saved_var": "1 / sqrt(variance of this batch + epsilon)"},
    inplace=[(0, 0), (3, 1), (4, 2), (5, 3), (6, 4)], infer=infer_spatial_bn,
    cost=flops_per_element(4), gradient=spatial_bn_gradient,
    doc="Batch normalization: Y = scale (X - mean) / sqrt(var + epsilon) + bias, channel by channel, with the mean and "
        "the variance of the batch when training, the running ones when testing (Ioffe and Szegedy, 2015). The running "
        "variance is the unbiased one.",
)
register(
    "SpatialBNGradient", SpatialBNGradient, (0, None), 3, args=_BN_ARGS,
    ins={"X": _BN_INS["X"], "scale": _BN_INS["scale"], "dY": "gradient of Y", "saved_mean": "float tensor (C,)",
         "saved_var": "float tensor (C,): the inverse deviation", "dscale": "summed over the batches (optional)",
         "dbias": "summed over the batches (optional)"},
    outs={"dX": "gradient of X", "dscale": "gradient of scale", "dbias": "gradient of bias"},
    inplace=[(5, 1), (6, 2)], infer=like(0, 1, 1), cost=flops_per_element(6), doc="Gradient of SpatialBN.",
)


# ---------------------------------------------------------------- LRN

cdef enum:
    FEW = 16        # channels whose squares are added anew for each channel, as vectors
    TOGETHER = 16   # pixels


cdef class LocalResponse(Operator):
    """Base: for each pixel, s[c] = bias + alpha / size * sum of x[k]^2 over the `size` channels around c."""

    cdef int size
    cdef float alpha
    cdef float beta
    cdef float bias
    cdef bint nhwc
    cdef int64_t images
    cdef int64_t channels
    cdef int64_t pixels
    cdef int64_t step           # between channels
    cdef float* scale           # s, of X's shape

    def setup(self):
        self.size = self.args.int("size", 0)
        self.alpha = self.args.float("alpha", 0)
        self.beta = self.args.float("beta", 0)
        self.bias = self.args.float("bias", 1)
        self.nhwc = _order(self.args)
        if self.size <= 0 or self.size % 2 == 0:
            raise ValueError("argument size must be positive and odd")
        if not self.alpha > 0 or not self.beta > 0:
            raise ValueError("arguments alpha and beta must be positive")

    cdef int view(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        self.expect(0, FLOAT)
        self.expect_ndim(0, 4)
        self.images = x.shape[0]
        self.channels = x.shape[3 if self.nhwc else 1]
        self.pixels = x.shape[1] * x.shape[2] if self.nhwc else x.shape[2] * x.shape[3]
        self.step = 1 if self.nhwc else self.pixels
        return 0

    cdef void window(self, const float* x, const float* y, float* s, int64_t at, int64_t step, float bias,
                     float factor) noexcept nogil:
        """s[c] = bias + factor * sum of x[k] y[k] over the channels k around c, for one pixel."""
        cdef int64_t c
        cdef int half = self.size // 2
        cdef double total = 0
        for c in range(min(half, self.channels)):
            total += x[at + c * step] * y[at + c * step]
        for c in range(self.channels):
            if c + half < self.channels:
                total += x[at + (c + half) * step] * y[at + (c + half) * step]
            if c > half:
                total -= x[at + (c - half - 1) * step] * y[at + (c - half - 1) * step]
            s[at + c * step] = bias + factor * <float>total

    cdef void pixel(self, int64_t at) noexcept nogil:
        """What is to be done for one pixel, whose first channel stands at `at`."""
        pass

    cdef int each_pixel(self) except -1 nogil:
        cdef int64_t i, n = self.images * self.pixels
        cdef int threads = num_threads(n * self.channels * 20)
        if threads == 1:
            for i in range(n):
                self.pixel(self.first(i))
        else:
            for i in prange(n, num_threads=threads, schedule="static"):
                self.pixel(self.first(i))
        return 0

    cdef int64_t first(self, int64_t i) noexcept nogil:
        if self.nhwc:
            return i * self.channels
        return i // self.pixels * self.channels * self.pixels + i % self.pixels


cdef class LRN(LocalResponse):
    cdef bint failed

    def setup(self):
        LocalResponse.setup(self)
        self.blocked = not self.nhwc

    cdef void group(self, int64_t image, int64_t first, int64_t count) noexcept nogil:
        """Some pixels of an image, from the first on. Their channels are put together, with zeros between pixels, so
        that sums and powers are taken of all at once."""
        cdef int64_t n = self.channels, c, p, at = image * n * self.pixels + first * (n if self.nhwc else 1)
        cdef int64_t room = (n + LANES - 1) // LANES * LANES, to_next = n if self.nhwc else 1
        cdef bint blocked = self.x[0].layout == BLOCKED
        cdef int k, half = self.size // 2 if self.size <= FEW else 0
        cdef int64_t line = room + 2 * half, total = count * line
        cdef float bias = self.bias, factor = self.alpha / self.size
        cdef const float* x = <const float*>self.x[0].data
        cdef float* y = <float*>self.y[0].data
        cdef float* row = <float*>K.scratch(SCRATCH_USER, (3 * total + 2 * half) * sizeof(float))
        cdef float* s = row + total + 2 * half
        cdef float* squares = s + total
        if row == NULL:
            self.failed = True
            return
        memset(row, 0, (total + 2 * half) * sizeof(float))
        row += half
        if blocked:
            x += image * room * self.pixels + first * LANES
            for c in range(0, room // LANES):
                for p in range(count):
                    memcpy(row + p * line + c * LANES, x + (c * self.pixels + p) * LANES, LANES * sizeof(float))
        else:
            for c in range(n):
                for p in range(count):
                    row[p * line + c] = x[at + p * to_next + c * self.step]
        if self.size > FEW:
            for p in range(count):
                self.window(row, row, s, p * line, 1, bias, factor)
        else:                       # as many sums of vectors
            K.vmul(total, row - half, row - half, squares)
            memcpy(s, squares, total * sizeof(float))
            for k in range(1, self.size):
                K.vadd(total - k, s, squares + k, s)
            for c in range(total):
                s[c] = bias + factor * s[c]
        if self.num_outputs > 1:
            for c in range(n):
                for p in range(count):
                    (<float*>self.y[1].data)[at + p * to_next + c * self.step] = s[p * line + c]
        if bias < 0:                # roots may be of negative numbers
            for c in range(total):
                s[c] = powf(s[c], -self.beta)
        else:
            K.vlog(total, s, s)
            K.vscale(total, -self.beta, s, s)
            K.vexp(total, s, s)
        K.vmul(total, row, s, s)
        if blocked:
            y += image * room * self.pixels + first * LANES
            for c in range(n, room):
                for p in range(count):
                    s[p * line + c] = 0
            for c in range(0, room // LANES):
                for p in range(count):
                    memcpy(y + (c * self.pixels + p) * LANES, s + p * line + c * LANES, LANES * sizeof(float))
        else:
            for c in range(n):
                for p in range(count):
                    y[at + p * to_next + c * self.step] = s[p * line + c]

    cdef int run(self) except -1 nogil:
        cdef int64_t i, groups
        cdef int threads
        self.view()
        resize_as(self.y[0], self.x[0])
        if self.num_outputs > 1:
            resize_like(self.y[1], self.x[0], FLOAT)
        groups = (self.pixels + TOGETHER - 1) // TOGETHER
        threads = num_threads(self.images * self.pixels * self.channels * 20)
        for i in prange(self.images * groups, num_threads=threads, schedule="static"):
            self.group(i // groups, i % groups * TOGETHER, min(TOGETHER, self.pixels - i % groups * TOGETHER))
        if self.failed:
            self.failed = False
            return self.fail("not enough memory")
        return 0


cdef class LRNGradient(LocalResponse):
    cdef float* ratio           # dy y / s, of X's shape

    cdef void pixel(self, int64_t at) noexcept nogil:
        cdef const float* x = <const float*>self.x[0].data
        cdef const float* y = <const float*>self.x[1].data
        cdef const float* dy = <const float*>self.x[2].data
        cdef float* dx = <float*>self.y[0].data
        cdef float* s = self.scale
        cdef float* r = self.ratio
        cdef int64_t _i, c = at
        self.window(x, x, s, at, self.step, self.bias, self.alpha / self.size)
        for _i in range(self.channels):
            dx[c] = dy[c] * powf(s[c], -self.beta)
            s[c] = y[c] / s[c]
            c += self.step
        self.window(dy, s, r, at, self.step, 0, -2 * self.alpha * self.beta / self.size)
        c = at
        for _i in range(self.channels):
            dx[c] += x[c] * r[c]
            c += self.step

    cdef int run(self) except -1 nogil:
        cdef int i
        self.view()
        for i in range(1, 3):
            self.expect(i, FLOAT)
            self.expect_same_shape(i, 0)
        resize_like(self.y[0], self.x[0], FLOAT)
        self.scale = <float*>self.scratch(2 * self.x[0].size * sizeof(float))
        self.ratio = self.scale + self.x[0].size
        return self.each_pixel()


_LRN_ARGS = {
    "size": "channels that count for each channel, odd",
    "alpha": "weight of the mean of their squares",
    "beta": "exponent",
    "bias": "is added to it (default 1)",
    "order": "NCHW (default) or NHWC",
}
register(
    "LRN", LRN, 1, (1, 2), ins={"X": "float tensor (N, C, H, W), or (N, H, W, C)"}, args=_LRN_ARGS,
    outs={"Y": "float tensor of that shape", "Y_scale": "what X was divided by, before the exponent (optional)"},
    infer=same_as_input(), cost=flops_per_element(20), gradient=simple("LRNGradient", "I0 O0 GO0", "GI0"),
    doc="Local response normalization: Y[c] = X[c] (bias + alpha / size sum_k X[k]^2)^-beta, over the `size` channels "
        "k around c (Krizhevsky, Sutskever and Hinton, 2012).",
)
register(
    "LRNGradient", LRNGradient, 3, 1, args=_LRN_ARGS,
    ins={"X": "input of LRN", "Y": "its output", "dY": "gradient of Y"},
    outs={"dX": "gradient of X"}, infer=like(0), cost=flops_per_element(30), doc="Gradient of LRN.",
)

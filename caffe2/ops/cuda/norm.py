"""Normalization: SpatialBN, LRN."""
import math

from caffe2._core.cuda import CudaOperator
from caffe2.ops.cuda.pointwise import FLOAT, FLOATS, SUFFIX, clear, product, register_cuda


def order_of(args):
    """Whether channels stand last."""
    order = args.str("order", "NCHW")
    if order not in ("NCHW", "NHWC"):
        raise ValueError(f"order must be NCHW or NHWC, not {order!r}")
    return order == "NHWC"


class BatchNorm(CudaOperator):
    """Base: statistics of a channel run over all but the channels. They, scale and bias are floats, also for halves."""

    def setup(self):
        args = self.args
        self.nhwc = order_of(args)
        self.is_test = args.bool("is_test")
        self.epsilon, self.momentum = args.float("epsilon", 1e-5), args.float("momentum", 0.9)
        self.batches = args.int("num_batches", 1)
        if not self.epsilon > 0:
            raise ValueError("argument epsilon must be positive")
        if not 0 <= self.momentum <= 1:
            raise ValueError("argument momentum must be between 0 and 1")
        if self.batches < 1:
            raise ValueError("argument num_batches must be positive")

    def view(self):
        x = self.source(0, FLOATS)
        self.suffix = SUFFIX[x.dtype]
        if not 2 <= x.ndim <= 5:
            raise ValueError("X must have 2 to 5 dimensions: (N, C, ...), or (N, ..., C) in order NHWC")
        self.channels = x.shape[-1 if self.nhwc else 1]
        self.run = 1 if self.nhwc else product(x.shape[2:])
        self.images = x.size // (self.channels * self.run) if x.size else 0
        # enough blocks for all multiprocessors, each with enough to do
        n = self.images * self.run
        self.parts = max(1, min(-(-n // 2048), -(-8 * self.device.multiprocessors // max(self.channels, 1))))
        self.chunk = -(-n // self.parts)
        return x

    def channel(self, i):
        t = self.source(i, (FLOAT,))
        if t.size != self.channels:
            raise ValueError(f"input {i} must have {self.channels} elements, but has {t.size}")
        return t

    def sums(self, kernel, *x):
        to = self.room(0, 2 * self.channels * self.parts)
        self.launch_blocks(kernel + self.suffix, self.channels * self.parts, *x, to, self.channels, self.images,
                           self.run, self.parts, self.chunk)
        return to

    def apply(self, kernel, x, *more):
        self.launch(kernel + self.suffix, x.size, x, *more, x.size, self.channels, self.run)


@register_cuda("SpatialBN")
class SpatialBN(BatchNorm):
    def setup(self):
        super().setup()
        n = len(self.outputs)
        if n not in (1, 5) or (n == 1) != self.is_test:
            raise ValueError("gives 1 output when testing (is_test=1), 5 when training")
        if len(self.inputs) < 5 or (self.batches > 1 and not self.is_test and len(self.inputs) != 7):
            raise ValueError("takes X, scale, bias, mean and var; with num_batches also sums and sumsq")

    def execute(self):
        x = self.view()
        c = self.channels
        scale, bias = self.channel(1), self.channel(2)
        a, b = self.room(1, c), self.room(2, c)
        if self.is_test:
            self.launch("ChannelFactors", c, scale, bias, self.channel(3), self.channel(4), a, b, c, self.epsilon,
                        unit=1)
            self.apply("ChannelAffine", x, a, b, self.like(0, x))
            return
        names = self.definition
        given = [self.channel(3 + i) if names.input[3 + i] == names.output[1 + i] else None for i in range(2)]
        running = [self.target(i, (c,), FLOAT) for i in (1, 2)]
        saved = [self.target(i, (c,), FLOAT) for i in (3, 4)]
        n = self.images * self.run * self.batches
        if n == 0:
            for t in saved:
                clear(self, t)
            self.like(0, x)
            return
        first = self.room(3, c)
        sums = self.sums("ChannelMoments", x, first) if self.batches == 1 else None
        totals = [self.channel(5), self.channel(6)] if self.batches > 1 else [None, None]
        self.launch("ChannelStatistics", c, first, sums, *totals, scale, bias, *given, *running, *saved, a, b, c,
                    self.parts, float(n), self.momentum, n / (n - 1) if n > 1 else math.inf, self.epsilon, unit=1)
        self.apply("ChannelAffine", x, a, b, self.like(0, x))


@register_cuda("SpatialBNGradient")
class SpatialBNGradient(BatchNorm):
    def setup(self):
        super().setup()
        if len(self.inputs) not in (5, 7) or (self.batches > 1) != (len(self.inputs) == 7):
            raise ValueError("takes X, scale, dY, saved mean and saved inverse deviation; with num_batches also the "
                             "gradients of scale and bias, summed over the batches")

    def execute(self):
        x = self.view()
        dy = self.source(2, (x.dtype,))
        if dy.shape != x.shape:
            raise ValueError("inputs 0 and 2 must have the same shape")
        c, n = self.channels, self.images * self.run
        scale, mean, inv_std = self.channel(1), self.channel(3), self.channel(4)
        given = [self.channel(5), self.channel(6)] if self.batches > 1 else [None, None]
        p, q, r = (self.room(k, c) for k in (1, 2, 3))
        sums = self.sums("ChannelGradientSums", x, dy, mean) if self.batches == 1 and n else None
        dscale, dbias = self.target(1, (c,), FLOAT), self.target(2, (c,), FLOAT)
        if n == 0:
            clear(self, dscale)
            clear(self, dbias)
            self.like(0, x)
            return
        self.launch("ChannelGradients", c, sums, *given, scale, mean, inv_std, dscale, dbias, p, q, r, c,
                    self.parts, float(n), float(self.batches), unit=1)
        self.apply("ChannelBackward", x, dy, p, q, r, self.like(0, x))


class LocalResponse(CudaOperator):
    def setup(self):
        args = self.args
        self.size, self.nhwc = args.int("size", 0), order_of(args)
        self.alpha, self.beta, self.bias = args.float("alpha", 0), args.float("beta", 0), args.float("bias", 1)
        if self.size <= 0 or self.size % 2 == 0:
            raise ValueError("argument size must be positive and odd")
        if not self.alpha > 0 or not self.beta > 0:
            raise ValueError("arguments alpha and beta must be positive")

    def view(self):
        x = self.source(0, (FLOAT,))
        if x.ndim != 4:
            raise ValueError(f"input 0 must have 4 dimensions, but has {x.ndim}")
        self.channels = x.shape[3 if self.nhwc else 1]
        self.run = 1 if self.nhwc else x.shape[2] * x.shape[3]
        return x


@register_cuda("LRN")
class LRN(LocalResponse):
    def execute(self):
        x = self.view()
        y = self.like(0, x)
        scale = self.like(1, x) if len(self.outputs) > 1 else None
        self.launch("LRN", x.size, x, y, scale, x.size, self.channels, self.run, self.size, self.alpha, self.beta,
                    self.bias, unit=1)


@register_cuda("LRNGradient")
class LRNGradient(LocalResponse):
    def execute(self):
        x = self.view()
        y, dy = self.source(1, (FLOAT,)), self.source(2, (FLOAT,))
        if not x.shape == y.shape == dy.shape:
            raise ValueError("all inputs must have the same shape")
        scale = self.room(0, x.size)
        self.launch("LRN", x.size, x, self.room(1, x.size), scale, x.size, self.channels, self.run, self.size,
                    self.alpha, self.beta, self.bias, unit=1)
        self.launch("LRNGradient", x.size, x, y, scale, dy, self.like(0, x), x.size, self.channels, self.run, self.size,
                    self.alpha, self.beta, unit=1)

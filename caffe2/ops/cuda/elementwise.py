"""Arithmetic, comparisons and logic on two tensors with broadcasting; sums, extremes and means of many; powers."""
import numpy as np

from caffe2._core.cuda import CudaOperator
from caffe2.ops.cuda.pointwise import BOOL, FLOAT, FLOATS, INT32, INT64, NUMBERS, SUFFIX, product, register_cuda
from caffe2.ops.cuda.reduction import Reducing
from caffe2.ops.pointwise import broadcast_axis


def strides(shape, full):
    """Steps through a tensor of `shape`, padded with ones in front, along the axes of `full`; 0 where it repeats."""
    shape = (1,) * (len(full) - len(shape)) + tuple(shape)
    steps, step = [], 1
    for d in reversed(shape):
        steps.insert(0, 0 if d == 1 else step)
        step *= d
    return steps


def nest(full, *steps):
    """Axes, innermost first, with the steps of some tensors along them; those that can be one are one.

    As a kernel takes them: the number of axes, then eight sizes, then eight steps for each tensor.
    """
    axes = []
    for d, *s in reversed(list(zip(full, *steps))):
        if d == 1:
            continue
        if axes and all(b == a * axes[-1][0] for a, b in zip(axes[-1][1:], s)):
            axes[-1][0] *= d
        else:
            axes.append([d, *s])
    if len(axes) > 8:
        raise ValueError("too many axes on a GPU")
    table = np.zeros((1 + len(steps), 8), np.int64)
    table[0] = 1
    for k, axis in enumerate(axes):
        table[:, k] = axis
    return np.int64(len(axes)).tobytes() + table.tobytes()


class Broadcast(Reducing):
    """Base: two inputs that are broadcast against each other."""

    def align(self, a, b):
        """The shape of the result, and those of a and b with as many axes."""
        reducing = self.type == "SumReduceLike"
        axis = broadcast_axis(self.args, not reducing)
        legacy = reducing or self.args.bool("broadcast")
        if legacy:
            if product(b) == 1:
                b = ()
            axis = axis if axis != -1 and b else len(a) - len(b)
            if not 0 <= axis <= len(a) - len(b):
                raise ValueError("B has too many dimensions, or axis is out of range, for broadcast=1")
            b = (1,) * axis + tuple(b) + (1,) * (len(a) - len(b) - axis)
        n = max(len(a), len(b))
        a, b = ((1,) * (n - len(s)) + tuple(s) for s in (a, b))
        full = []
        for p, q in zip(a, b):
            if p != q and 1 not in (p, q) or legacy and q not in (1, p):
                raise ValueError(f"shapes {a} and {b} cannot be broadcast together")
            full.append(q if p == 1 else p)
        return tuple(full), a, b

    def binary(self, kernel, a, b, c, full, a_shape, b_shape):
        """c = kernel(a, b)."""
        if a_shape == b_shape:
            self.launch(kernel + "_same", c.size, a, b, c, c.size, stem="elementwise")
        else:
            axes = nest(full, strides(a_shape, full), strides(b_shape, full))
            self.launch(kernel, c.size, a, b, c, c.size, axes, unit=1, stem="elementwise")

    def fold(self, x, full, shape, y, scale=1.0, scratch=4):
        """y, of `shape`, = the sum of x over what was broadcast."""
        axes = [i for i, (d, n) in enumerate(zip(shape, full)) if d == 1 != n]
        if axes:
            self.reduce("Sum", x, full, axes, y, scale, scratch)
        elif scale != 1:
            self.launch("Scaled" + SUFFIX[y.dtype], y.size, x, y, y.size, scale, stem="elementwise")
        else:
            self.copy_bytes(y, x)


class Binary(Broadcast):
    dtypes, result = (), None

    def execute(self):
        a = self.source(0, self.dtypes)
        b = self.source(1, (a.dtype,))
        full, a_shape, b_shape = self.align(a.shape, b.shape)
        for i, s in enumerate((a_shape, b_shape)):
            if self.definition.input[i] == self.definition.output[0] and s != full:
                raise ValueError("only an input of the result's shape may be computed in place")
        c = self.target(0, full, self.result or a.dtype)
        self.binary(self.type + SUFFIX[a.dtype], a, b, c, full, a_shape, b_shape)


def binaries(names, dtypes=NUMBERS, result=None):
    for name in names.split():
        register_cuda(name, type(name, (Binary,), {"dtypes": dtypes, "result": result, "__module__": __name__}))


binaries("Add Sub Mul Div")
binaries("LT LE GT GE", result=BOOL)
binaries("EQ NE", (*NUMBERS, BOOL), BOOL)
binaries("And Or Xor", (BOOL,), BOOL)


@register_cuda("Not")
class Not(CudaOperator):
    def execute(self):
        x = self.source(0, (BOOL,))
        y = self.like(0, x)
        self.launch("Not_b", y.size, x, y, y.size)


# ---------------------------------------------------------------- gradients

class BinaryGradient(Broadcast):
    """(dA, dB) from (dC, A, B), and C for Div."""

    def execute(self):
        names = ["b", "c", "dc"] if self.type == "DivGradient" and len(self.inputs) == 3 else ["dc", "a", "b", "c"]
        names = names[:len(self.inputs)]
        dtype = self.source(0, FLOATS).dtype
        given = {n: self.source(i, (dtype,)) for i, n in enumerate(names)}
        dc, b, suffix = given["dc"], given["b"], SUFFIX[dtype]
        a = given.get("a", given.get("c"))
        full, a_shape, b_shape = self.align(a.shape, b.shape)
        if dc.shape != full:
            raise ValueError("the gradient must be shaped like the result")
        kind = self.type[:3]
        # what an output overwrites may be read by the other one: both parts are computed before either is written
        first = second = dc
        if kind in ("Mul", "Div"):
            first, second = self.room(0, dc.size, dtype), self.room(1, dc.size, dtype)
            self.binary(kind + suffix, dc, b, first, full, full, b_shape)
        if kind == "Mul":
            self.binary("Mul" + suffix, dc, a, second, full, full, a_shape)
        if kind == "Div":
            ratio = self.room(2, dc.size, dtype)
            self.binary("Mul" + suffix, dc, given["c"], ratio, full, full, full)
            self.binary("Div" + suffix, ratio, b, second, full, full, b_shape)
        sign = -1.0 if kind in ("Sub", "Div") else 1.0
        outputs = list(self.definition.output)
        in_place = outputs[0] == self.definition.input[names.index("dc")]
        shapes = a.shape, b.shape
        if first is dc and in_place:            # the gradient that is read for the second one
            second_out = self.target(1, shapes[1], dtype)
            self.fold(second, full, b_shape, second_out, sign)
            self.fold(first, full, a_shape, self.target(0, shapes[0], dtype), scratch=8)
            return
        self.fold(first, full, a_shape, self.target(0, shapes[0], dtype))
        self.fold(second, full, b_shape, self.target(1, shapes[1], dtype), sign, scratch=8)


for _name in ("AddGradient", "SubGradient", "MulGradient", "DivGradient"):
    register_cuda(_name, BinaryGradient)


@register_cuda("SumReduceLike")
class SumReduceLike(Broadcast):
    def execute(self):
        a, b = self.source(0, NUMBERS), self.source(1)
        full, _, shape = self.align(a.shape, b.shape)
        self.fold(a, full, shape, self.target(0, b.shape, a.dtype))


# ---------------------------------------------------------------- many inputs

class Many(CudaOperator):
    """The first two inputs, then each other one with what there is so far."""

    kernel, dtypes = "Add", NUMBERS

    def execute(self):
        x = [self.source(0, self.dtypes)]
        x += [self.source(i, (x[0].dtype,)) for i in range(1, len(self.inputs))]
        if any(v.shape != x[0].shape for v in x):
            raise ValueError("all inputs must have the same shape")
        later = list(self.definition.input)[2:]
        y = self.like(0, x[0])
        n = y.size
        # an output that is read after the first step is written last
        to = self.room(0, n, y.dtype) if self.definition.output[0] in later else y
        kernel = self.kernel + SUFFIX[y.dtype] + "_same"
        if len(x) == 1:
            self.copy_bytes(y, x[0])
            to = y
        else:
            self.launch(kernel, n, x[0], x[1], to, n)
            for v in x[2:]:
                self.launch(kernel, n, to, v, to, n)
        if to is not y:
            self.copy_bytes(y, to)
        self.finish(y, len(x))

    def finish(self, y, count):
        pass


register_cuda("Sum", Many)
register_cuda("SumInt", type("SumInt", (Many,), {"dtypes": (INT32, INT64), "__module__": __name__}))
register_cuda("Max", type("Max", (Many,), {"kernel": "Max", "__module__": __name__}))
register_cuda("Min", type("Min", (Many,), {"kernel": "Min", "__module__": __name__}))


@register_cuda("Mean")
class Mean(Many):
    dtypes = FLOATS

    def finish(self, y, count):
        self.launch("Scaled" + SUFFIX[y.dtype], y.size, y, y, y.size, 1 / count)


@register_cuda("SumRelu")
class SumRelu(Many):
    dtypes = FLOATS

    def finish(self, y, count):
        self.launch("Relu" + SUFFIX[y.dtype], y.size, y, y, y.size)


@register_cuda("MaxGradient")
@register_cuda("MinGradient")
class ExtremeGradient(CudaOperator):
    def execute(self):
        y = self.source(0, FLOATS)
        dy = self.source(1, (y.dtype,))
        for i in range(2, len(self.inputs)):
            dx = self.like(i - 2, y)
            self.launch("Chosen" + SUFFIX[y.dtype], y.size, self.source(i, (y.dtype,)), y, dy, dx, y.size)


@register_cuda("MeanGradient")
class MeanGradient(CudaOperator):
    def execute(self):
        dy = self.source(0, FLOATS)
        n = len(self.outputs)
        order = sorted(range(n), key=lambda i: self.definition.output[i] == self.definition.input[0])
        for i in order:
            self.launch("Scaled" + SUFFIX[dy.dtype], dy.size, dy, self.like(i, dy), dy.size, 1 / n)


@register_cuda("WeightedSum")
class WeightedSum(CudaOperator):
    """Weights are on the device, too, and floats."""

    def execute(self):
        x = self.source(0, FLOATS)
        y = self.like(0, x)
        n, suffix = y.size, SUFFIX[x.dtype]
        for i in range(0, len(self.inputs), 2):
            v, w = self.source(i, (x.dtype,)), self.source(i + 1, (FLOAT,))
            if v.shape != x.shape or w.size != 1:
                raise ValueError("inputs must be tensors of one shape, each followed by its weight")
            if i and self.definition.input[i] == self.definition.output[0]:
                raise ValueError("only the first input may be computed in place")
            if i == 0:
                self.launch("Weighted" + suffix, n, v, w, y, n)
            else:
                self.launch("AddWeighted" + suffix, n, y, v, w, y, n)


# ---------------------------------------------------------------- powers

@register_cuda("Pow")
class Pow(Broadcast):
    def execute(self):
        a = self.source(0, FLOATS)
        if len(self.inputs) == 1:
            y = self.like(0, a)
            self.launch("PowConstant" + SUFFIX[a.dtype], y.size, a, y, y.size, self.args.float("exponent"))
            return
        b = self.source(1, (a.dtype,))
        full, a_shape, b_shape = self.align(a.shape, b.shape)
        self.binary("Pow" + SUFFIX[a.dtype], a, b, self.target(0, full, a.dtype), full, a_shape, b_shape)

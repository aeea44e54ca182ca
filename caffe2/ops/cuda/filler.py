"""Fills. Random ones depend on the seed and on how much the operator drew before; values differ from the CPU's."""
import math

import numpy as np

from caffe2._core.cuda import CudaOperator, Draws
from caffe2.ops import filler
from caffe2.ops.cuda.pointwise import BOOL, DOUBLE, FLOAT, FLOAT16, INT16, INT32, INT64, SUFFIX, register_cuda


class Fill(CudaOperator):
    """Base: gives the output its shape. Where an input holds the shape's values, it is on the CPU."""

    dtype = FLOAT

    def setup(self):
        args = self.args
        self.shape, self.extra = args.ints("shape"), args.ints("extra_shape")
        self.as_shape = args.bool("input_as_shape")
        if self.inputs and self.shape:
            raise ValueError("the argument shape and an input exclude each other")
        if not self.inputs and (self.extra or self.as_shape):
            raise ValueError("extra_shape and input_as_shape need an input")
        if self.as_shape:
            self.host_inputs = (0,)
        self.configure()

    def configure(self):
        pass

    def execute(self):
        shape = self.shape
        if self.as_shape:
            given = self.host(0)
            if given.ndim != 1 or given.dtype not in (np.int32, np.int64):
                raise ValueError("the shape must be a vector of int32 or int64")
            shape = given.tolist()
        elif self.inputs:
            shape = self.source(0).shape
        self.fill(self.target(0, (*shape, *self.extra), self.dtype))


@register_cuda("ConstantFill")
@register_cuda("Float16ConstantFill")
class ConstantFill(Fill):
    def configure(self):
        self.dtype = FLOAT16 if self.type == "Float16ConstantFill" else filler.constant_dtype(self.args)
        if self.dtype == 4:
            raise TypeError("no tensor on a GPU can hold string")
        dtype = filler.numpy_dtype(self.dtype)
        self.value = np.full(1, self.args.float("value") if dtype.kind == "f" else self.args.int("value"), dtype)

    def fill(self, y):
        given = None
        if len(self.inputs) == 2:
            given = self.source(1, (self.dtype,))
            if given.size != 1:
                raise ValueError(f"input 1 must have 1 elements, but has {given.size}")
        self.launch(f"Constant{self.value.itemsize}", y.size, y, y.size, given, self.value.tobytes())


class GivenFill(Fill):
    """Copies values to the device."""

    repeats = False

    def configure(self):
        fixed = {"GivenTensorIntFill": INT32, "GivenTensorInt64Fill": INT64, "GivenTensorBoolFill": BOOL,
                 "GivenTensorDoubleFill": DOUBLE, "GivenTensorInt16Fill": INT16}
        self.dtype = fixed.get(self.type) or filler.dtype_argument(self.args, FLOAT)
        values = self.args._args.get("values")
        given = () if values is None else values.floats or values.ints
        self.given = np.array(given, filler.numpy_dtype(self.dtype))

    def fill(self, y):
        if y.size != self.given.size:
            raise ValueError("as many values must be given as the shape has elements")
        self.set_from_host(0, self.given.reshape(y.shape))


for _name in ("GivenTensorFill", "GivenTensorIntFill", "GivenTensorInt64Fill", "GivenTensorBoolFill",
              "GivenTensorDoubleFill", "GivenTensorInt16Fill"):
    register_cuda(_name, GivenFill)


@register_cuda("UniformFill")
class UniformFill(Fill):
    def configure(self):
        if len(self.inputs) == 3:
            raise RuntimeError("bounds from inputs are understood on the CPU alone")
        get = self.args.int if self.dtype == INT32 else self.args.float
        self.low, self.high = get("min", 0), get("max", 1)
        if self.low >= self.high:
            raise ValueError("max must be greater than min")

    def fill(self, y):
        self.uniform(y, self.low, self.high)

    def uniform(self, y, low, high):
        self.launch("Uniform" + SUFFIX[y.dtype], y.size, y, y.size, self.key, Draws(-(-y.size // 4)), float(low),
                    float(high))


@register_cuda("UniformIntFill")
class UniformIntFill(UniformFill):
    dtype = INT32

    def fill(self, y):
        self.launch("UniformInt", y.size, y, y.size, self.key, Draws(-(-y.size // 2)), self.low,
                    self.high - self.low + 1, unit=2)


@register_cuda("Float16UniformFill")
class Float16UniformFill(UniformFill):
    dtype = FLOAT16


@register_cuda("XavierFill")
class XavierFill(UniformFill):
    def configure(self):
        pass

    def fill(self, y):
        if y.ndim < 1:
            raise ValueError("the output must have a dimension or more")
        if y.size:
            scale = math.sqrt(3 / (y.size // y.shape[0]))
            self.uniform(y, -scale, scale)


@register_cuda("GaussianFill")
class GaussianFill(Fill):
    def configure(self):
        self.mean, self.std = self.args.float("mean", 0), self.args.float("std", 1)
        if not self.std >= 0:
            raise ValueError("std must not be negative")

    def fill(self, y):
        self.gaussian(y, self.mean, self.std)

    def gaussian(self, y, mean, std):
        self.launch("Gaussian", y.size, y, y.size, self.key, Draws(-(-y.size // 4)), float(mean), float(std))


@register_cuda("MSRAFill")
class MSRAFill(GaussianFill):
    def configure(self):
        pass

    def fill(self, y):
        if y.ndim < 2:
            raise ValueError("the output must have two dimensions or more")
        if y.size:
            self.gaussian(y, 0, math.sqrt(2 / (y.size // y.shape[1])))


@register_cuda("RangeFill")
class RangeFill(Fill):
    def fill(self, y):
        self.launch("Range", y.size, y, y.size, unit=1)


@register_cuda("DiagonalFill")
class DiagonalFill(ConstantFill):
    repeats = False

    def fill(self, y):
        if y.ndim < 2:
            raise ValueError("the output must have two dimensions or more")
        if y.ndim > 2 and len(set(y.shape)) > 1:
            raise ValueError("all dimensions must be equal")
        a = np.zeros(y.shape, self.value.dtype)
        np.fill_diagonal(a, self.value[0])
        if y.ndim == 2 and y.shape[0] > y.shape[1]:         # the diagonal goes on, as the CPU's does
            a.reshape(-1)[::y.shape[1] + 1] = self.value[0]
        self.set_from_host(0, a)

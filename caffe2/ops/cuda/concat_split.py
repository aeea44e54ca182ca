"""Concat and Split. The sizes of the parts are on the CPU."""
import numpy as np

from caffe2._core.cuda import CudaOperator
from caffe2.ops.concat_split import axis_of
from caffe2.ops.cuda.pointwise import product, register_cuda
from caffe2.ops.cuda.shape import width


class Moving(CudaOperator):
    """Base: moves rows between tensors whose rows are of different length."""

    def rows(self, size, to, to_row, to_at, source, source_row, source_at, items):
        """For all rows, `items` of `size` bytes each."""
        unit = size
        while unit < 16 and all(v % 2 == 0 for v in (to_row, to_at, source_row, source_at, items)):
            unit *= 2
            to_row, to_at, source_row, source_at, items = (
                v // 2 for v in (to_row, to_at, source_row, source_at, items))
        n = self.outer * items
        self.launch(f"Move{unit}", n, source, to, n, items, source_row, source_at, to_row, to_at, unit=1,
                    stem="shape")


@register_cuda("Concat")
@register_cuda("DepthConcat")
class Concat(Moving):
    host_outputs = (1,)

    def execute(self):
        axis, add_axis = axis_of(self.args)
        x = [self.source(i) for i in range(len(self.inputs))]
        ndim = x[0].ndim + add_axis
        if not -ndim <= axis < ndim:
            raise IndexError(f"axis {axis} is out of range for {ndim} dimensions")
        axis %= ndim
        if any(v.dtype != x[0].dtype for v in x):
            raise TypeError("all inputs must have the same type")
        if any(v.ndim != x[0].ndim for v in x):
            raise ValueError("all inputs must have equally many dimensions")
        if any(a != b for v in x for d, (a, b) in enumerate(zip(v.shape, x[0].shape)) if d != axis or add_axis):
            raise ValueError("all dimensions but the one to join along must be equal")
        sizes = [1 if add_axis else v.shape[axis] for v in x]
        shape = list(x[0].shape)
        if add_axis:
            shape.insert(axis, 0)
        shape[axis] = sum(sizes)
        y = self.target(0, shape, x[0].dtype)
        self.set_output(1, np.array(sizes, np.int32))
        self.outer, inner, at = product(shape[:axis]), product(shape[axis + 1:]), 0
        for v, size in zip(x, sizes):
            if v.size:
                self.rows(width(v), y, sum(sizes) * inner, at, v, size * inner, 0, size * inner)
            at += size * inner


@register_cuda("Split")
@register_cuda("DepthSplit")
class Split(Moving):
    host_inputs = (1,)

    def execute(self):
        x, count = self.source(0), len(self.outputs)
        axis, add_axis = axis_of(self.args)
        if not -x.ndim <= axis < x.ndim:
            raise IndexError(f"axis {axis} is out of range for {x.ndim} dimensions")
        axis %= x.ndim
        total = x.shape[axis]
        sizes = self.args.ints("split")
        if sizes and len(self.inputs) == 2:
            raise ValueError("the split is given as an argument and as an input")
        if len(self.inputs) == 2:
            sizes = self.host(1).reshape(-1).tolist()
        if add_axis:
            sizes = [1] * count
        if not sizes:
            if total % count:
                raise ValueError("the dimension must be a multiple of the number of outputs, or split be given")
            sizes = [total // count] * count
        if len(sizes) != count or min(sizes) < 0 or sum(sizes) != total:
            raise ValueError("the sizes of the parts must add up to the dimension")
        self.outer, inner, at = product(x.shape[:axis]), product(x.shape[axis + 1:]), 0
        for o, size in enumerate(sizes):
            y = self.target(o, (*x.shape[:axis], *(() if add_axis else (size,)), *x.shape[axis + 1:]), x.dtype)
            if y.size:
                self.rows(width(x), y, size * inner, 0, x, total * inner, at, size * inner)
            at += size * inner

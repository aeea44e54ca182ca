"""Shapes, transposition."""
import numpy as np

from caffe2._core.cuda import CudaOperator
from caffe2.ops.cuda.elementwise import nest
from caffe2.ops.cuda.pointwise import product, register_cuda


class Reshaping(CudaOperator):
    """Base: copies the input, or leaves it in place, under the shape that the schema infers."""

    def shape(self):
        return self.infer()[0].shape

    def execute(self):
        x, shape = self.source(0), tuple(self.shape())
        if product(shape) != x.size:
            raise ValueError(f"{x.size} elements do not fit shape {shape}")
        if self.definition.input[0] == self.definition.output[0]:
            self.reshape_output(0, shape)
        else:
            self.copy_bytes(self.target(0, shape, x.dtype), x)


for _name in ("Flatten", "FlattenToVec", "Squeeze", "ExpandDims", "ResizeLike", "PrependDim", "MergeDim"):
    register_cuda(_name, Reshaping)


@register_cuda("Reshape")
class Reshape(Reshaping):
    """The new shape, where it is an input, and the old one are on the CPU."""

    host_inputs = (1,)
    host_outputs = (1,)

    def setup(self):
        if "shape" in self.args and len(self.inputs) == 2:
            raise ValueError("the shape is given as an argument and as an input")
        if "shape" not in self.args and len(self.inputs) == 1:
            raise ValueError("requires the argument shape, or a second input")

    def shape(self):
        x, dtype = self.source(0), np.int64
        wanted = self.args.ints("shape")
        if len(self.inputs) == 2:
            given = self.host(1)
            if given.ndim != 1 or given.dtype not in (np.int32, np.int64):
                raise ValueError("the new shape must be a vector of int32 or int64")
            wanted, dtype = given.tolist(), given.dtype
        shape = [x.shape[i] if d == 0 and x.size and i < x.ndim else d for i, d in enumerate(wanted)]
        if shape.count(-1) > 1:
            raise ValueError("only one dimension of the new shape may be -1")
        if any(d < -1 for d in shape):
            raise ValueError("dimensions of the new shape must be -1, 0 or positive")
        if -1 in shape:
            rest = product(d for d in shape if d != -1)
            shape[shape.index(-1)] = x.size // rest if rest else 0
        if product(shape) != x.size:
            raise ValueError("the new shape does not agree with the number of elements")
        self.set_output(1, np.array(x.shape, dtype))
        return shape


@register_cuda("Shape")
class Shape(CudaOperator):
    """Known without looking at the device; the output is on the CPU."""

    host_outputs = (0,)

    def execute(self):
        shape = self.source(0).shape
        axes = self.args.ints("axes")
        if not all(-len(shape) <= a < len(shape) for a in axes):
            raise IndexError(f"an axis of {axes} is out of range for {len(shape)} dimensions")
        self.set_output(0, np.array([shape[a] for a in axes] if axes else shape, np.int64))


@register_cuda("Size")
class Size(CudaOperator):
    host_outputs = (0,)

    def execute(self):
        self.set_output(0, np.array(self.source(0).size, np.int64))


# ---------------------------------------------------------------- transposition

def width(view):
    """Bytes of an element."""
    return view.nbytes // view.size if view.size else 1


@register_cuda("Transpose")
class Transpose(CudaOperator):
    def axes(self, ndim):
        axes = self.args.ints("axes") or list(range(ndim))[::-1]
        if sorted(axes) != list(range(ndim)):
            raise ValueError(f"axes must name each of {ndim} dimensions once")
        return axes

    def execute(self):
        x = self.source(0)
        axes = self.axes(x.ndim)
        y = self.target(0, [x.shape[a] for a in axes], x.dtype)
        if not y.size:
            return
        # axes of length 1 stand wherever they like; neighbours that stay neighbours are one
        groups = []
        for a in axes:
            if x.shape[a] == 1:
                continue
            if groups and groups[-1][-1] == a - 1:
                groups[-1].append(a)
            else:
                groups.append([a])
        order = sorted(range(len(groups)), key=lambda k: groups[k])
        sizes = [product(x.shape[a] for a in g) for g in groups]
        if order == list(range(len(groups))):
            self.copy_bytes(y, x)
        elif order[-2:] == [len(groups) - 1, len(groups) - 2] and order[:-2] == list(range(len(groups) - 2)):
            batch, columns, rows = product(sizes[:-2]), sizes[-2], sizes[-1]
            tiles = batch * -(-rows // 32) * -(-columns // 32)
            self.launch_blocks(f"Transpose{width(x)}", min(tiles, 1 << 20), x, y, batch, rows, columns)
        else:
            steps = [1] * x.ndim
            for i in range(x.ndim - 2, -1, -1):
                steps[i] = steps[i + 1] * x.shape[i + 1]
            self.launch(f"Gather{width(x)}", y.size, x, y, y.size, nest(y.shape, [steps[a] for a in axes]), unit=1)


@register_cuda("NCHW2NHWC")
class NCHW2NHWC(Transpose):
    def axes(self, ndim):
        if ndim < 3:
            raise ValueError("images have 3 dimensions or more")
        return [0, *range(2, ndim), 1]


@register_cuda("NHWC2NCHW")
class NHWC2NCHW(Transpose):
    def axes(self, ndim):
        if ndim < 3:
            raise ValueError("images have 3 dimensions or more")
        return [0, ndim - 1, *range(1, ndim - 1)]

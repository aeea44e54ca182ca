"""Shapes: operators that read them, change them, reorder or repeat dimensions."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    BOOL, DOUBLE, FLOAT, INT32, INT64, MAX_DIMS, canonical_axis, copy_items, itemsize, reshape, resize, resize0,
    resize1, resize_like, size_from, size_to, tensor_t,
)
from caffe2.ops.indices cimport index_at, is_index
from caffe2.ops.movement cimport Movement, copy_strided

from caffe2._core.gradient import none, simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo

_DATA = {"data": "tensor of any type"}


# ---------------------------------------------------------------- the same values in another shape

cdef class Reshaping(Operator):
    """Copies the input, or leaves it in place, under the shape that a subclass finds."""

    cdef int find(self, tensor_t* x, int* ndim, int64_t* dims) except -1 nogil:
        return 0

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y = self.y[0]
        cdef int64_t[2 * MAX_DIMS] dims
        cdef int ndim = 0
        if x.dtype == 0:
            return self.bad_dtype(0)
        self.find(x, &ndim, dims)
        if x == y:
            return reshape(y, ndim, dims)
        resize(y, ndim, dims, x.dtype)
        return copy_items(y, 0, x, 0, x.size)


cdef int flatten_dims(tensor_t* x, int axis, int* ndim, int64_t* dims) except -1 nogil:
    ndim[0] = 2
    dims[0] = size_to(x, axis)
    dims[1] = size_from(x, axis)
    return 0


cdef class Reshape(Reshaping):
    cdef int n
    cdef int64_t[MAX_DIMS] wanted

    def setup(self):
        if "shape" in self.args and self.num_inputs == 2:
            raise ValueError("the shape is given as an argument and as an input")
        if "shape" not in self.args and self.num_inputs == 1:
            raise ValueError("requires the argument shape, or a second input")
        shape = self.args.ints("shape")
        self.n = len(shape)
        if self.n > MAX_DIMS:
            raise ValueError(f"a tensor has at most {MAX_DIMS} dimensions")
        for i, d in enumerate(shape):
            self.wanted[i] = d

    cdef int find(self, tensor_t* x, int* ndim, int64_t* dims) except -1 nogil:
        cdef tensor_t* old = self.y[1]
        cdef int i, unknown = -1, dtype = INT64
        cdef int64_t size = 1
        if self.num_inputs == 2:
            dtype = self.x[1].dtype
            if not is_index(dtype):
                return self.bad_dtype(1)
            self.expect_ndim(1, 1)
            if self.x[1].size > MAX_DIMS:
                return self.fail("the new shape has too many dimensions")
            self.n = <int>self.x[1].size
            for i in range(self.n):
                self.wanted[i] = index_at(self.x[1], i)
        ndim[0] = self.n
        for i in range(self.n):
            dims[i] = self.wanted[i]
            if dims[i] == 0 and x.size and i < x.ndim:
                dims[i] = x.shape[i]
            if dims[i] == -1:
                if unknown >= 0:
                    return self.fail("only one dimension of the new shape may be -1")
                unknown = i
            elif dims[i] < 0:
                return self.fail("dimensions of the new shape must be -1, 0 or positive")
            elif dims[i] and size > (<int64_t>1 << 62) // dims[i]:
                return self.fail("the new shape is too large")
            else:
                size *= dims[i]
        if unknown >= 0:
            dims[unknown] = x.size // size if size else 0
            size *= dims[unknown]
        if size != x.size:
            return self.fail("the new shape does not agree with the number of elements")
        resize1(old, x.ndim, dtype)
        for i in range(x.ndim):
            if dtype == INT64:
                (<int64_t*>old.data)[i] = x.shape[i]
            else:
                (<int32_t*>old.data)[i] = <int32_t>x.shape[i]
        return 0


def reshape_infer(args, inputs):
    x = inputs[0]
    if "shape" not in args:
        return [TensorInfo(None, x.dtype), TensorInfo((len(x.shape),), inputs[1].dtype)]
    shape = args.ints("shape")
    shape = [x.shape[i] if d == 0 and x.size and i < x.ndim else d for i, d in enumerate(shape)]
    if -1 in shape and -1 not in x.shape:
        rest = 1
        for d in shape:
            rest *= 1 if d == -1 else d
        shape[shape.index(-1)] = x.size // rest if rest else 0
    return [TensorInfo(shape, x.dtype), TensorInfo((x.ndim,), INT64)]


def reshape_gradient(g):
    return g.op("Reshape", [g.GO(0), g.O(1)], [g.GI(0), f"_{g.GI(0)}_dims"], copy_args=False)


register(
    "Reshape", Reshape, (1, 2), 2,
    ins=_DATA | {"new_shape": "int32 or int64 vector, instead of the argument shape"},
    outs={"reshaped": "the values in the new shape",
          "old_shape": "shape of the input, of the type of new_shape, or int64"},
    args={"shape": "the new shape"}, inplace=((0, 0),), infer=reshape_infer, gradient=reshape_gradient,
    doc="Gives a tensor another shape. A dimension of 0 stays as it is, one of -1 takes what the others leave over.",
)


cdef class ResizeLike(Reshaping):
    cdef int find(self, tensor_t* x, int* ndim, int64_t* dims) except -1 nogil:
        self.expect_size(1, x.size)
        ndim[0] = self.x[1].ndim
        memcpy(dims, self.x[1].shape, ndim[0] * sizeof(int64_t))
        return 0


register(
    "ResizeLike", ResizeLike, 2, 1,
    ins=_DATA | {"shape_tensor": "tensor whose shape to take"}, outs={"output": "the values of data in that shape"},
    infer=lambda args, inputs: [TensorInfo(inputs[1].shape, inputs[0].dtype)],
    doc="Gives the first tensor the shape of the second; they must have equally many elements.",
)

_AS_INPUT = simple("ResizeLike", "GO0 I0", "GI0", copy_args=False)


cdef class Flatten(Reshaping):
    cdef int axis

    def setup(self):
        self.axis = self.args.int("axis", 1)

    cdef int find(self, tensor_t* x, int* ndim, int64_t* dims) except -1 nogil:
        cdef int axis = self.axis
        if axis != x.ndim:
            axis = canonical_axis(axis, x.ndim)
        return flatten_dims(x, axis, ndim, dims)


def product(dims):
    """Of dimensions; -1, unknown, where one of them is."""
    n = 1
    for d in dims:
        if d < 0:
            return -1
        n *= d
    return n


def flatten_infer(args, inputs):
    x, axis = inputs[0], args.int("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return [TensorInfo((product(x.shape[:axis]), product(x.shape[axis:])), x.dtype)]


register(
    "Flatten", Flatten, 1, 1, ins={"X": "tensor of any type"}, outs={"Y": "matrix"},
    args={"axis": "dimensions before it become the rows; 1 by default"}, infer=flatten_infer, gradient=_AS_INPUT,
    doc="Joins dimensions until two are left: those before axis and those from axis on.",
)


cdef class FlattenToVec(Reshaping):
    cdef int find(self, tensor_t* x, int* ndim, int64_t* dims) except -1 nogil:
        if x.ndim < 1:
            return self.fail("the input must have a dimension or more")
        ndim[0] = 1
        dims[0] = x.size
        return 0


register(
    "FlattenToVec", FlattenToVec, 1, 1, ins={"input": "tensor of any type"}, outs={"output": "vector"},
    infer=lambda args, inputs: [TensorInfo((product(inputs[0].shape),), inputs[0].dtype)], gradient=_AS_INPUT,
    doc="Joins all dimensions to one.",
)


cdef class Dims(Reshaping):
    """Reads the argument dims: sorted, without repetition."""
    cdef int count
    cdef int[MAX_DIMS] dims

    def setup(self):
        dims = sorted(set(self.args.ints("dims")))
        if not dims:
            raise ValueError("requires the argument dims")
        if dims[0] < 0 or dims[-1] >= MAX_DIMS:
            raise ValueError(f"dims must lie in 0, ..., {MAX_DIMS - 1}")
        self.count = len(dims)
        for i, d in enumerate(dims):
            self.dims[i] = d


cdef class Squeeze(Dims):
    cdef int find(self, tensor_t* x, int* ndim, int64_t* dims) except -1 nogil:
        cdef int i, k = 0
        if self.dims[self.count - 1] >= x.ndim:
            return self.fail("dims must be dimensions of the input")
        for i in range(x.ndim):
            if k < self.count and self.dims[k] == i:
                if x.shape[i] != 1:
                    return self.fail("a dimension to remove must be 1")
                k += 1
            else:
                dims[i - k] = x.shape[i]
        ndim[0] = x.ndim - k
        return 0


cdef class ExpandDims(Dims):
    cdef int find(self, tensor_t* x, int* ndim, int64_t* dims) except -1 nogil:
        cdef int i, k = 0
        ndim[0] = x.ndim + self.count
        if self.dims[self.count - 1] >= ndim[0]:
            return self.fail("dims must be dimensions of the output")
        for i in range(ndim[0]):
            if k < self.count and self.dims[k] == i:
                dims[i] = 1
                k += 1
            else:
                dims[i] = x.shape[i - k]
        return 0


def squeeze_infer(args, inputs):
    dims = set(args.ints("dims"))
    return [TensorInfo([d for i, d in enumerate(inputs[0].shape) if i not in dims], inputs[0].dtype)]


def expand_dims_infer(args, inputs):
    shape = list(inputs[0].shape)
    for d in sorted(set(args.ints("dims"))):
        shape.insert(d, 1)
    return [TensorInfo(shape, inputs[0].dtype)]


register(
    "Squeeze", Squeeze, 1, 1, ins=_DATA, outs={"squeezed": "the values without those dimensions"},
    args={"dims": "dimensions to remove"}, inplace=((0, 0),), infer=squeeze_infer,
    gradient=simple("ExpandDims", "GO0", "GI0"), doc="Removes dimensions of 1.",
)


register(
    "ExpandDims", ExpandDims, 1, 1, ins=_DATA, outs={"expanded": "the values with those dimensions"},
    args={"dims": "where the output has dimensions of 1 that the input has not"}, inplace=((0, 0),),
    infer=expand_dims_infer, gradient=simple("Squeeze", "GO0", "GI0"), doc="Inserts dimensions of 1.",
)


cdef class PrependDim(Reshaping):
    cdef int64_t dim_size

    def setup(self):
        self.dim_size = self.args.int("dim_size")
        if self.dim_size <= 0:
            raise ValueError("requires a positive argument dim_size")

    cdef int find(self, tensor_t* x, int* ndim, int64_t* dims) except -1 nogil:
        if x.ndim < 1 or x.shape[0] % self.dim_size:
            return self.fail("the first dimension must be a multiple of dim_size")
        ndim[0] = x.ndim + 1
        dims[0] = self.dim_size
        memcpy(dims + 1, x.shape, x.ndim * sizeof(int64_t))
        dims[1] //= self.dim_size
        return 0


cdef class MergeDim(Reshaping):
    cdef int find(self, tensor_t* x, int* ndim, int64_t* dims) except -1 nogil:
        if x.ndim < 2:
            return self.fail("the input must have two dimensions or more")
        ndim[0] = x.ndim - 1
        memcpy(dims, x.shape + 1, ndim[0] * sizeof(int64_t))
        dims[0] *= x.shape[0]
        return 0


def prepend_dim_infer(args, inputs):
    n, shape = args.int("dim_size"), inputs[0].shape
    return [TensorInfo((n, -1 if shape[0] < 0 else shape[0] // n, *shape[1:]), inputs[0].dtype)]


register(
    "PrependDim", PrependDim, 1, 1, ins=_DATA, outs={"reshaped": "the values with one more dimension"},
    args={"dim_size": "size of the new first dimension"}, inplace=((0, 0),), infer=prepend_dim_infer,
    gradient=simple("MergeDim", "GO0", "GI0", copy_args=False),
    doc="Splits the first dimension, N, into dim_size and N / dim_size.",
)
register(
    "MergeDim", MergeDim, 1, 1, ins=_DATA, outs={"reshaped": "the values with one dimension fewer"}, inplace=((0, 0),),
    infer=lambda args, inputs: [TensorInfo((product(inputs[0].shape[:2]), *inputs[0].shape[2:]), inputs[0].dtype)],
    doc="Joins the first two dimensions.",
)


# ---------------------------------------------------------------- what there is

cdef class Shape(Operator):
    cdef int count
    cdef int[MAX_DIMS] axes

    def setup(self):
        axes = self.args.ints("axes")
        self.count = len(axes)
        if self.count > MAX_DIMS:
            raise ValueError("too many axes")
        for i, a in enumerate(axes):
            self.axes[i] = a

    cdef int run(self) except -1 nogil:
        cdef int i, axis
        cdef int64_t[MAX_DIMS] dims
        if self.x[0].dtype == 0:
            return self.bad_dtype(0)
        for i in range(self.count):
            axis = canonical_axis(self.axes[i], self.x[0].ndim)
            dims[i] = self.x[0].shape[axis]
        if self.count:
            resize1(self.y[0], self.count, INT64)
            memcpy(self.y[0].data, dims, self.count * sizeof(int64_t))
        else:
            resize1(self.y[0], self.x[0].ndim, INT64)
            memcpy(self.y[0].data, self.x[0].shape, self.x[0].ndim * sizeof(int64_t))
        return 0


register(
    "Shape", Shape, 1, 1, ins={"X": "tensor of any type"}, outs={"shape": "int64 vector"},
    args={"axes": "the dimensions wanted; all by default"},
    infer=lambda args, inputs: [TensorInfo((len(args.ints("axes")) or len(inputs[0].shape),), INT64)],
    doc="The dimensions of a tensor.",
)


cdef class Size(Operator):
    cdef int run(self) except -1 nogil:
        if self.x[0].dtype == 0:
            return self.bad_dtype(0)
        resize0(self.y[0], INT64)
        (<int64_t*>self.y[0].data)[0] = self.x[0].size
        return 0


register(
    "Size", Size, 1, 1, ins={"X": "tensor of any type"}, outs={"size": "int64 scalar"},
    infer=lambda args, inputs: [TensorInfo((), INT64)], gradient=none, doc="The number of elements.",
)


cdef class HasElements(Operator):
    cdef int run(self) except -1 nogil:
        cdef bint some = False
        cdef int i
        for i in range(self.num_inputs):
            if self.x[i].dtype == 0:
                return self.bad_dtype(i)
            some |= self.x[i].size > 0
        resize0(self.y[0], BOOL)
        (<char*>self.y[0].data)[0] = some
        return 0


cdef class IsEmpty(HasElements):
    cdef int run(self) except -1 nogil:
        HasElements.run(self)
        (<char*>self.y[0].data)[0] ^= 1
        return 0


register(
    "HasElements", HasElements, (1, None), 1, ins={"X1, X2, ...": "tensors of any type"},
    outs={"has_elements": "bool scalar"},
    infer=lambda args, inputs: [TensorInfo((), BOOL)], doc="Whether a tensor, or one of several, has any element.",
)
register(
    "IsEmpty", IsEmpty, 1, 1, ins={"tensor": "tensor of any type"}, outs={"is_empty": "bool scalar"},
    infer=lambda args, inputs: [TensorInfo((), BOOL)], doc="Whether a tensor has no element.",
)


cdef class LengthsToShape(Operator):
    cdef int run(self) except -1 nogil:
        cdef int64_t i
        cdef int32_t* lengths
        cdef int32_t first, n
        self.expect(0, INT32)
        self.expect_ndim(0, 1)
        n = <int32_t>self.x[0].size
        if n == 0:
            return self.fail("there must be a length or more")
        lengths = <int32_t*>self.x[0].data
        first = lengths[0]
        for i in range(n):
            if lengths[i] != first:
                return self.fail("all lengths must be equal")
        resize1(self.y[0], 2, INT32)
        (<int32_t*>self.y[0].data)[0] = n
        (<int32_t*>self.y[0].data)[1] = first
        return 0


register(
    "LengthsToShape", LengthsToShape, 1, 1, ins={"X": "int32 vector of n equal lengths m"}, outs={"Y": "[n, m], int32"},
    infer=lambda args, inputs: [TensorInfo((2,), INT32)],
    doc="The shape, to be passed to Reshape, of a batch whose sequences are all of one length.",
)


# ---------------------------------------------------------------- reordered dimensions

cdef class Transpose(Movement):
    cdef int count
    cdef int[MAX_DIMS] axes
    cdef int64_t[MAX_DIMS] step

    def setup(self):
        axes = self.args.ints("axes")
        if sorted(axes) != list(range(len(axes))) or len(axes) > MAX_DIMS:
            raise ValueError("axes must be a permutation of 0, 1, ...")
        self.count = len(axes)
        for i, a in enumerate(axes):
            self.axes[i] = a

    cdef int order(self) except -1 nogil:
        """Set axes for the input at hand."""
        cdef int i
        if self.count:
            return 0 if self.count == self.x[0].ndim else self.fail("axes must name each dimension of the input")
        for i in range(self.x[0].ndim):
            self.axes[i] = self.x[0].ndim - 1 - i
        return 0

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t[MAX_DIMS] dims
        cdef int i
        self.order()
        for i in range(x.ndim):
            dims[i] = x.shape[self.axes[i]]
            self.step[i] = size_from(x, self.axes[i] + 1)
        return resize(self.y[0], x.ndim, dims, x.dtype)

    cdef void move(self) noexcept nogil:
        copy_strided(<char*>self.y[0].data, <char*>self.x[0].data, self.y[0].ndim, self.y[0].shape, self.step,
                     self.width)


def transpose_infer(args, inputs):
    shape = inputs[0].shape
    axes = args.ints("axes") or reversed(range(len(shape)))
    return [TensorInfo([shape[a] for a in axes], inputs[0].dtype)]


def transpose_gradient(g):
    axes = g.args.ints("axes")
    return g.op("Transpose", [g.GO(0)], [g.GI(0)],
                **({"axes": [axes.index(i) for i in range(len(axes))]} if axes else {}))


register(
    "Transpose", Transpose, 1, 1, ins={"X": "tensor of any type"}, outs={"Y": "the values, dimensions reordered"},
    args={"axes": "for each dimension of the output, that of the input; by default they are reversed"},
    infer=transpose_infer, gradient=transpose_gradient, doc="Reorders the dimensions of a tensor.",
)


cdef class NCHW2NHWC(Transpose):
    cdef int order(self) except -1 nogil:
        cdef int i, n = self.x[0].ndim
        if n < 3:
            return self.fail("the input must have three dimensions or more")
        for i in range(n):
            self.axes[i] = 0 if i == 0 else i + 1 if i < n - 1 else 1
        return 0


cdef class NHWC2NCHW(Transpose):
    cdef int order(self) except -1 nogil:
        cdef int i, n = self.x[0].ndim
        if n < 3:
            return self.fail("the input must have three dimensions or more")
        for i in range(n):
            self.axes[i] = 0 if i == 0 else n - 1 if i == 1 else i - 1
        return 0


def channels_last(args, inputs):
    n, c, *spatial = inputs[0].shape
    return [TensorInfo((n, *spatial, c), inputs[0].dtype)]


def channels_first(args, inputs):
    n, *spatial, c = inputs[0].shape
    return [TensorInfo((n, c, *spatial), inputs[0].dtype)]


register(
    "NCHW2NHWC", NCHW2NHWC, 1, 1, ins={"data": "tensor in the order NCHW"}, outs={"output": "tensor in the order NHWC"},
    infer=channels_last, gradient=simple("NHWC2NCHW", "GO0", "GI0"),
    doc="Moves the channels from behind the batch to the end. There may be any number of spatial dimensions.",
)
register(
    "NHWC2NCHW", NHWC2NCHW, 1, 1, ins={"data": "tensor in the order NHWC"}, outs={"output": "tensor in the order NCHW"},
    infer=channels_first, gradient=simple("NCHW2NHWC", "GO0", "GI0"),
    doc="Moves the channels from the end to behind the batch. There may be any number of spatial dimensions.",
)


# ---------------------------------------------------------------- repeated values

cdef class Tile(Movement):
    cdef int64_t tiles, outer, inner
    cdef int axis

    def setup(self):
        for i, name in enumerate(("tiles", "axis")):
            if self.num_inputs < i + 2 and name not in self.args:
                raise ValueError(f"requires the argument {name}, or an input instead")
        self.tiles, self.axis = self.args.int("tiles", 1), self.args.int("axis", 0)

    cdef int read(self, int* axis) except -1 nogil:
        """Inputs win over arguments."""
        cdef int i
        cdef int64_t wanted = self.axis
        for i in range(1, self.num_inputs):
            if not is_index(self.x[i].dtype):
                return self.bad_dtype(i)
            self.expect_size(i, 1)
        if self.num_inputs > 1:
            self.tiles = index_at(self.x[1], 0)
        if self.num_inputs > 2:
            wanted = index_at(self.x[2], 0)
        if self.tiles < 0:
            return self.fail("tiles must not be negative")
        axis[0] = canonical_axis(<int>max(<int64_t>-99, min(<int64_t>99, wanted)), self.x[0].ndim)
        return 0

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t[MAX_DIMS] dims
        cdef int axis = 0
        self.read(&axis)
        memcpy(dims, x.shape, x.ndim * sizeof(int64_t))
        if self.tiles and dims[axis] > (<int64_t>1 << 60) // self.tiles:
            return self.fail("the output is too large")
        dims[axis] *= self.tiles
        self.outer = size_to(x, axis)
        self.inner = size_from(x, axis)
        return resize(self.y[0], x.ndim, dims, x.dtype)

    cdef void move(self) noexcept nogil:
        cdef int64_t[3] shape
        cdef int64_t[3] step
        shape[0] = self.outer
        shape[1] = self.tiles
        shape[2] = self.inner
        step[0] = self.inner
        step[1] = 0
        step[2] = 1
        copy_strided(<char*>self.y[0].data, <char*>self.x[0].data, 3, shape, step, self.width)


ctypedef fused number_t:
    int32_t
    int64_t
    float
    double


cdef void sum_tiles(const number_t* x, number_t* y, int64_t outer, int64_t tiles, int64_t inner) noexcept nogil:
    cdef int64_t o, t, i
    cdef const number_t* row
    cdef number_t* to
    for o in range(outer):
        to = y + o * inner
        memset(to, 0, inner * sizeof(number_t))
        for t in range(tiles):
            row = x + (o * tiles + t) * inner
            for i in range(inner):
                to[i] += row[i]


cdef class TileGradient(Tile):
    def setup(self):
        self.tiles, self.axis = self.args.int("tiles", 1), self.args.int("axis", 0)

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y = self.y[0]
        cdef int64_t[MAX_DIMS] dims
        cdef int64_t outer
        cdef int axis = 0
        self.read(&axis)
        if self.tiles == 0 or x.shape[axis] % self.tiles:
            return self.fail("the dimension must be a multiple of tiles")
        memcpy(dims, x.shape, x.ndim * sizeof(int64_t))
        dims[axis] //= self.tiles
        outer = size_to(x, axis)
        if x.dtype != FLOAT and x.dtype != DOUBLE and not is_index(x.dtype):
            return self.bad_dtype(0)
        resize(y, x.ndim, dims, x.dtype)
        if x.dtype == FLOAT:
            sum_tiles(<float*>x.data, <float*>y.data, outer, self.tiles, size_from(y, axis))
        elif x.dtype == DOUBLE:
            sum_tiles(<double*>x.data, <double*>y.data, outer, self.tiles, size_from(y, axis))
        elif x.dtype == INT32:
            sum_tiles(<int32_t*>x.data, <int32_t*>y.data, outer, self.tiles, size_from(y, axis))
        else:
            sum_tiles(<int64_t*>x.data, <int64_t*>y.data, outer, self.tiles, size_from(y, axis))
        return 0

    cdef void move(self) noexcept nogil:
        return


def tile_infer(args, inputs):
    shape, axis = list(inputs[0].shape), args.int("axis", 0)
    if len(inputs) > 2:
        return [TensorInfo([-1] * len(shape), inputs[0].dtype)]
    shape[axis] = -1 if len(inputs) == 2 else product((shape[axis], args.int("tiles", 1)))
    return [TensorInfo(shape, inputs[0].dtype)]


def tile_gradient(g):
    return g.op("TileGradient", [g.GO(0), *map(g.I, range(1, g.num_inputs))], [g.GI(0)])


_TILE = {"tiles": "how often", "axis": "dimension to repeat along"}
_TILE_INPUTS = {"tiles": "int32 or int64 tensor of one element, instead of the argument",
                "axis": "int32 or int64 tensor of one element, instead of the argument"}
register(
    "Tile", Tile, (1, 3), 1, ins={"X": "tensor of any type"} | _TILE_INPUTS, outs={"Y": "X, repeated"}, args=_TILE,
    infer=tile_infer, gradient=tile_gradient, doc="Repeats a tensor along one dimension.",
)
register(
    "TileGradient", TileGradient, (1, 3), 1, ins={"dY": "gradient of Y"} | _TILE_INPUTS, outs={"dX": "gradient of X"},
    args=_TILE, doc="Gradient of Tile: the sum over the repetitions.",
)


cdef class NumpyTile(Movement):
    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* repeats = self.x[1]
        cdef int64_t[MAX_DIMS] dims
        cdef int64_t n
        cdef int i
        if self.num_outputs < 1:
            return self.fail("an output is needed")
        if not is_index(repeats.dtype):
            return self.bad_dtype(1)
        self.expect_ndim(1, 1)
        if repeats.size != x.ndim:
            return self.fail("repeats must hold a number for each dimension of the input")
        for i in range(x.ndim):
            n = index_at(repeats, i)
            if n < 0:
                return self.fail("repeats must not be negative")
            if n and x.shape[i] > (<int64_t>1 << 60) // n:
                return self.fail("the output is too large")
            dims[i] = x.shape[i] * n
        return resize(self.y[0], x.ndim, dims, x.dtype)

    cdef void move(self) noexcept nogil:
        # dimension d of the output is (repeats[d], shape[d]), the first of which is not one of the input's
        cdef tensor_t* x = self.x[0]
        cdef int64_t[2 * MAX_DIMS] shape
        cdef int64_t[2 * MAX_DIMS] step
        cdef int i, n = 0
        for i in range(x.ndim):
            shape[n] = self.y[0].shape[i] // x.shape[i] if x.shape[i] else 0
            step[n] = 0
            n += shape[n] != 1
            shape[n] = x.shape[i]
            step[n] = size_from(x, i + 1)
            n += shape[n] != 1
        copy_strided(<char*>self.y[0].data, <char*>x.data, n, shape, step, self.width)


register(
    "NumpyTile", NumpyTile, 2, (0, None), ins=_DATA | {"repeats": "int32 or int64 vector: how often, a dimension"},
    outs={"tiled_data": "data, repeated"},
    infer=lambda args, inputs: [TensorInfo([-1] * inputs[0].ndim, inputs[0].dtype)],
    doc="Repeats a tensor along all dimensions, as numpy.tile does.",
)


cdef class Expand(Movement):
    cdef int64_t[MAX_DIMS] step

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* shape = self.x[1]
        cdef int64_t[MAX_DIMS] dims
        cdef int64_t have, wanted
        cdef int i, ndim
        if not is_index(shape.dtype):
            return self.bad_dtype(1)
        if shape.size > MAX_DIMS:
            return self.fail("the shape has too many dimensions")
        ndim = max(x.ndim, <int>shape.size)
        for i in range(ndim):
            have = x.shape[i - ndim + x.ndim] if i >= ndim - x.ndim else 1
            wanted = index_at(shape, i - ndim + shape.size) if i >= ndim - shape.size else 1
            if wanted < 0:          # -1: as it is
                wanted = have
            if have != wanted and have != 1 and wanted != 1:
                return self.fail("the tensor cannot be broadcast to that shape")
            dims[i] = wanted if have == 1 else have
            self.step[i] = 0 if have == 1 else size_from(x, i - ndim + x.ndim + 1)
        return resize(self.y[0], ndim, dims, x.dtype)

    cdef void move(self) noexcept nogil:
        copy_strided(<char*>self.y[0].data, <char*>self.x[0].data, self.y[0].ndim, self.y[0].shape, self.step,
                     self.width)


cdef void sum_broadcast(const number_t* dy, number_t* dx, int ndim, const int64_t* shape,
                        const int64_t* step) noexcept nogil:
    """dx[place of i] += dy[i], rows of the last dimension at a time."""
    cdef int64_t n = shape[ndim - 1], rows = 1, r, rest, at, i
    cdef int d
    cdef number_t total
    for d in range(ndim - 1):
        rows *= shape[d]
    for r in range(rows):
        rest = r
        at = 0
        for d in range(ndim - 2, -1, -1):
            at += rest % shape[d] * step[d]
            rest //= shape[d]
        if step[ndim - 1]:
            for i in range(n):
                dx[at + i] += dy[r * n + i]
        else:
            total = 0
            for i in range(n):
                total += dy[r * n + i]
            dx[at] += total


cdef class ExpandGradient(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* dy = self.x[0]
        cdef tensor_t* x = self.x[1]
        cdef tensor_t* dx = self.y[0]
        cdef int64_t[MAX_DIMS + 1] shape
        cdef int64_t[MAX_DIMS + 1] step
        cdef int i, k, ndim = dy.ndim
        if dy.dtype != FLOAT and dy.dtype != DOUBLE and not is_index(dy.dtype):
            return self.bad_dtype(0)
        if x.dtype == 0:
            return self.bad_dtype(1)
        if x.ndim > ndim:
            return self.fail("the gradient has too few dimensions")
        shape[0] = 1
        step[0] = 0
        for i in range(ndim):
            k = i - ndim + x.ndim
            shape[i + 1] = dy.shape[i]
            step[i + 1] = 0
            if k >= 0 and x.shape[k] != 1:
                if x.shape[k] != dy.shape[i]:
                    return self.fail("the gradient does not fit the input")
                step[i + 1] = size_from(x, k + 1)
        resize_like(dx, x, dy.dtype)
        memset(dx.data, 0, dx.size * itemsize(dx.dtype))
        if dy.size == 0:
            return 0
        if dy.dtype == FLOAT:
            sum_broadcast(<float*>dy.data, <float*>dx.data, ndim + 1, shape, step)
        elif dy.dtype == DOUBLE:
            sum_broadcast(<double*>dy.data, <double*>dx.data, ndim + 1, shape, step)
        elif dy.dtype == INT32:
            sum_broadcast(<int32_t*>dy.data, <int32_t*>dx.data, ndim + 1, shape, step)
        else:
            sum_broadcast(<int64_t*>dy.data, <int64_t*>dx.data, ndim + 1, shape, step)
        return 0


register(
    "Expand", Expand, 2, 1,
    ins={"X": "tensor of any type", "shape": "int32 or int64 vector; -1 leaves a dimension as it is"},
    outs={"Y": "X, broadcast with that shape"}, gradient=simple("ExpandGradient", "GO0 I0", "GI0"),
    infer=lambda args, inputs: [TensorInfo(None, inputs[0].dtype)],
    doc="Broadcasts a tensor: dimensions are aligned at the end, those of 1 are repeated as often as the shape says.",
)
register(
    "ExpandGradient", ExpandGradient, 2, 1, ins={"dY": "gradient of Y", "X": "input of Expand"},
    outs={"dX": "gradient of X"},
    infer=lambda args, inputs: [TensorInfo(inputs[1].shape, inputs[0].dtype)],
    doc="Gradient of Expand: the sum over the repetitions.",
)

"""Concat, Split and relatives."""
from libc.stdint cimport int32_t, int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    BLOCKED, INT32, MAX_DIMS, UNDEFINED, canonical_axis, make_plain, resize, resize1, resize_blocked, size_from,
    size_to, tensor_t,
)
from caffe2.ops.indices cimport index_at, is_index
from caffe2.ops.movement cimport Movement, copy_rows

from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo

_AXIS = {
    "axis": "dimension to join or to split along",
    "order": "NCHW (the default) or NHWC, instead of axis: the channels",
    "add_axis": "1: the dimension is one that the parts do not have",
}


def axis_of(args):
    """(axis, add_axis) of the arguments."""
    if "axis" in args:
        if "order" in args:
            raise ValueError("axis and order exclude each other")
        return args.int("axis"), args.bool("add_axis")
    order = args.str("order", "NCHW").upper()
    if order not in ("NCHW", "NHWC"):
        raise ValueError(f"order must be NCHW or NHWC, not {order}")
    return (1 if order == "NCHW" else 3), False


cdef class Concat(Movement):
    cdef int axis
    cdef bint add_axis
    cdef int64_t outer, inner

    def setup(self):
        self.axis, self.add_axis = axis_of(self.args)
        self.blocked = self.axis == 1 and not self.add_axis

    cdef bint joins_blocks(self) noexcept nogil:
        """Whether the parts are whole blocks of channels; the last one may end within a block."""
        cdef int i
        for i in range(self.num_inputs):
            if self.x[i].layout != BLOCKED or (self.x[i].shape[1] % 16 and i + 1 < self.num_inputs):
                return False
        return True

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* first = self.x[0]
        cdef bint blocks = self.joins_blocks()
        cdef tensor_t* x
        cdef int64_t[MAX_DIMS + 1] dims
        cdef int axis = canonical_axis(self.axis, first.ndim + self.add_axis), i, d
        cdef int64_t total = 0
        for i in range(self.num_inputs):
            x = self.x[i]
            if x.dtype == UNDEFINED:
                return self.bad_dtype(i)
            if not blocks:
                make_plain(x)
            self.check_dtype(i, first.dtype)
            if x.ndim != first.ndim:
                return self.fail("all inputs must have equally many dimensions")
            for d in range(first.ndim):
                if x.shape[d] != first.shape[d] and (d != axis or self.add_axis):
                    return self.fail("all dimensions but the one to join along must be equal")
            total += 1 if self.add_axis else x.shape[axis]
        self.outer = size_to(first, axis)
        self.inner = size_from(first, axis if self.add_axis else axis + 1)
        for d in range(first.ndim):
            dims[d + 1 if self.add_axis and d >= axis else d] = first.shape[d]
        dims[axis] = total
        resize1(self.y[1], self.num_inputs, INT32)
        for i in range(self.num_inputs):
            (<int32_t*>self.y[1].data)[i] = 1 if self.add_axis else <int32_t>self.x[i].shape[axis]
        if blocks:
            return resize_blocked(self.y[0], dims)
        return resize(self.y[0], first.ndim + self.add_axis, dims, first.dtype)

    cdef void move(self) noexcept nogil:
        cdef char* to = <char*>self.y[0].data
        cdef int32_t* parts = <int32_t*>self.y[1].data
        cdef int64_t step = 0
        cdef size_t nbytes
        cdef int i
        cdef int unit = 16 if self.y[0].layout == BLOCKED else 1
        for i in range(self.num_inputs):
            step += (parts[i] + unit - 1) // unit * unit
        step *= self.inner * self.width
        for i in range(self.num_inputs):
            nbytes = (parts[i] + unit - 1) // unit * unit * self.inner * self.width
            copy_rows(to, step, <char*>self.x[i].data, nbytes, self.outer, nbytes)
            to += nbytes


def concat_infer(args, inputs):
    axis, add_axis = axis_of(args)
    shape, n = list(inputs[0].shape), len(inputs)
    axis += len(shape) + add_axis if axis < 0 else 0
    for x in inputs[1:]:
        if x.ndim != len(shape) or any(
                a != b and min(a, b) >= 0 for d, (a, b) in enumerate(zip(x.shape, shape)) if d != axis or add_axis):
            raise ValueError("all dimensions but the one to join along must be equal")
    if add_axis:
        shape.insert(axis, n)
    else:
        sizes = [x.shape[axis] for x in inputs]
        shape[axis] = sum(sizes) if min(sizes) >= 0 else -1
    return [TensorInfo(shape, inputs[0].dtype), TensorInfo((n,), INT32)]


def concat_gradient(g):
    if not g.has_GO(0):
        return []
    return g.op("Split", [g.GO(0), g.O(1)], [g.GI(i) for i in range(g.num_inputs)])


def concat_devices(op):
    """The sizes of the parts stay on the CPU."""
    return [op.device_option] * len(op.input), [op.device_option, type(op.device_option)()]


for _name, _doc in (("Concat", "Joins tensors along a dimension, or along a new one."),
                    ("DepthConcat", "Older name of Concat.")):
    register(
        _name, Concat, (1, None), 2, ins={"X1, X2, ...": "tensors of one type"},
        outs={"concat_result": "the inputs, joined", "split_info": "int32 vector: size of each along axis"},
        args=_AXIS, infer=concat_infer, gradient=concat_gradient, devices=concat_devices, doc=_doc,
    )


cdef class Split(Movement):
    cdef int axis, given
    cdef bint add_axis
    cdef int64_t outer, inner, total
    cdef int64_t* sizes         # of the outputs, along axis

    def setup(self):
        cdef int i
        self.axis, self.add_axis = axis_of(self.args)
        split = self.args.ints("split")
        if split and self.num_inputs == 2:
            raise ValueError("the split is given as an argument and as an input")
        if split and len(split) != self.num_outputs:
            raise ValueError(f"split must have {self.num_outputs} elements, one an output")
        self.given = len(split)
        self.sizes = <int64_t*>self.scratch(max(1, self.num_outputs) * sizeof(int64_t))
        for i in range(self.given):
            self.sizes[i] = split[i]

    cdef int find_sizes(self, int64_t total) except -1 nogil:
        cdef int i
        if self.num_inputs == 2:
            if not is_index(self.x[1].dtype):
                return self.bad_dtype(1)
            self.expect_size(1, self.num_outputs)
            for i in range(self.num_outputs):
                self.sizes[i] = index_at(self.x[1], i)
        elif not self.given:
            if total % self.num_outputs:
                return self.fail("the dimension must be a multiple of the number of outputs, or split be given")
            for i in range(self.num_outputs):
                self.sizes[i] = total // self.num_outputs
        return 0

    cdef int prepare(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t[MAX_DIMS] dims
        cdef int axis = canonical_axis(self.axis, x.ndim), i, d
        cdef int64_t rest = x.shape[axis]
        self.total = rest
        self.find_sizes(rest)
        for i in range(self.num_outputs):
            if self.add_axis:
                self.sizes[i] = 1
            if self.sizes[i] < 0:
                return self.fail("sizes must not be negative")
            rest -= self.sizes[i]
            if rest < 0:
                break
        if rest:
            return self.fail("the sizes of the parts must add up to the dimension")
        self.outer = size_to(x, axis)
        self.inner = size_from(x, axis + 1)
        for d in range(x.ndim):
            dims[d - 1 if self.add_axis and d > axis else d] = x.shape[d]
        for i in range(self.num_outputs):
            if not self.add_axis:
                dims[axis] = self.sizes[i]
            resize(self.y[i], x.ndim - self.add_axis, dims, x.dtype)
        return 0

    cdef void move(self) noexcept nogil:
        cdef const char* source = <char*>self.x[0].data
        cdef size_t nbytes
        cdef int i
        for i in range(self.num_outputs):
            nbytes = self.sizes[i] * self.inner * self.width
            copy_rows(<char*>self.y[i].data, nbytes, source, self.total * self.inner * self.width, self.outer, nbytes)
            source += nbytes


def split_infer(args, inputs):
    axis, add_axis = axis_of(args)
    x, n = inputs[0], len(args.definition.output)
    axis += x.ndim if axis < 0 else 0
    sizes = args.ints("split")
    if len(inputs) == 2:
        sizes = [-1] * n
    elif not sizes:
        sizes = [x.shape[axis] // n] * n
    return [TensorInfo((*x.shape[:axis], *(() if add_axis else (s,)), *x.shape[axis + 1:]), x.dtype) for s in sizes]


def split_gradient(g):
    grads = [g.GO(i) for i in range(g.num_outputs) if g.has_GO(i)]
    return g.op("Concat", grads, [g.GI(0), f"_{g.GI(0)}_dims"]) if grads else []


def split_devices(op):
    """The sizes of the parts are read on the CPU."""
    return [op.device_option, type(op.device_option)()][:len(op.input)], [op.device_option] * len(op.output)


_SPLIT = _AXIS | {"split": "sizes of the outputs along axis; all equal by default"}
for _name, _doc in (("Split", "Cuts a tensor into parts along a dimension."), ("DepthSplit", "Older name of Split.")):
    register(
        _name, Split, (1, 2), (1, None),
        ins={"input": "tensor of any type", "split": "int32 or int64 vector, instead of the argument"},
        outs={"output_0, output_1, ...": "the parts"}, args=_SPLIT, infer=split_infer, gradient=split_gradient,
        devices=split_devices, doc=_doc,
    )


cdef class SplitByLengths(Split):
    cdef bint scaling

    def setup(self):
        Split.setup(self)
        self.scaling = self.args.bool("use_scaling_lengths")

    cdef int find_sizes(self, int64_t total) except -1 nogil:
        cdef tensor_t* lengths = self.x[1]
        cdef int64_t each = lengths.size // self.num_outputs, sum = 0, i
        self.expect(1, INT32)
        if lengths.size % self.num_outputs:
            return self.fail("the number of lengths must be a multiple of the number of outputs")
        for i in range(self.num_outputs):
            self.sizes[i] = 0
        for i in range(lengths.size):
            if index_at(lengths, i) < 0:
                return self.fail("lengths must not be negative")
            sum += index_at(lengths, i)
            self.sizes[i // each] += index_at(lengths, i)
        if self.scaling and sum:
            if total % sum:
                return self.fail("the dimension must be a multiple of the sum of lengths")
            for i in range(self.num_outputs):
                self.sizes[i] *= total // sum
        return 0


register(
    "SplitByLengths", SplitByLengths, 2, (1, None),
    ins={"input": "tensor of any type", "lengths": "int32 vector; each output takes its share of them, in order"},
    outs={"output_0, output_1, ...": "the parts"},
    args=_AXIS | {"use_scaling_lengths": "1: lengths are scaled so that they add up to the dimension"},
    gradient=split_gradient,
    doc="Cuts a tensor into parts along a dimension; the size of a part is the sum of its lengths.",
)


cdef class LengthsSplit(Operator):
    cdef int64_t n_split

    def setup(self):
        if self.num_inputs == 1 and "n_split" not in self.args:
            raise ValueError("requires the argument n_split, or a second input")
        self.n_split = self.args.int("n_split", 1)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* lengths = self.x[0]
        cdef int64_t i, j, n
        cdef int32_t length
        cdef int32_t* to
        self.expect(0, INT32)
        self.expect_ndim(0, 1)
        if self.num_inputs == 2:
            if not is_index(self.x[1].dtype):
                return self.bad_dtype(1)
            self.expect_size(1, 1)
            self.n_split = index_at(self.x[1], 0)
        n = self.n_split
        if n <= 0 or lengths.size > (<int64_t>1 << 60) // n:
            return self.fail("n_split must be positive")
        resize1(self.y[0], lengths.size * n, INT32)
        to = <int32_t*>self.y[0].data
        for i in range(lengths.size):
            length = (<int32_t*>lengths.data)[i]
            for j in range(n):      # the first ones take what is left over
                to[i * n + j] = <int32_t>(length // n + (j < length % n))
        return 0


register(
    "LengthsSplit", LengthsSplit, (1, 2), 1,
    ins={"LENGTHS": "int32 vector", "n_split": "int32 scalar, wins over the argument"},
    outs={"Y": "int32 vector of len(LENGTHS) * n_split elements"}, args={"n_split": "number of parts"},
    infer=lambda args, inputs: [
        TensorInfo((inputs[0].shape[0] * args.int("n_split") if len(inputs) == 1 and inputs[0].shape[0] >= 0 else -1,),
                   INT32)],
    doc="Splits each length into n_split parts that differ by 1 at most.",
)

"""Fillers: operators that make tensors from arguments, constant, given or random.

Random values come from the stream that ``random_seed`` of the device option starts, and then they are those of the
1.10 release; without a seed they differ from run to run.
"""
import numpy as np

from libc.math cimport ceil, sqrt
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

from caffe2._core.operator cimport Operator
from caffe2._core.random cimport Random
from caffe2._core.tensor cimport (
    DOUBLE, FLOAT, FLOAT16, INT32, INT64, MAX_DIMS, STRING, Tensor, UINT8, copy_items, itemsize, resize, resize1,
    set_string, tensor_t,
)
from caffe2.ops.kernels.dispatch cimport K

from caffe2._core.args import kind
from caffe2._core.gradient import none
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo

DTYPES = {"float": 1, "int32": 2, "string": 4, "bool": 5, "uint8": 6, "int8": 7, "uint16": 8, "int16": 9, "int64": 10,
          "float16": 12, "double": 13}


def numpy_dtype(int dtype):
    if dtype == STRING:
        return np.dtype(object)
    t = Tensor()
    t.init((), dtype)
    return t.dtype


def dtype_argument(args, default):
    """The dtype argument: a number of ``TensorProto.DataType`` or its name."""
    if "dtype" not in args:
        return default
    if kind(args._args["dtype"]) == "s":
        return DTYPES[args.str("dtype").lower()]
    return args.int("dtype")


cdef class Fill(Operator):
    """Gives the output its shape; a subclass fills it."""
    cdef int ndim, extra_ndim
    cdef int64_t[MAX_DIMS] dims
    cdef int64_t[MAX_DIMS] extra
    cdef bint input_as_shape
    cdef int dtype

    def __cinit__(self):
        self.dtype = FLOAT

    def setup(self):
        shape, extra = self.args.ints("shape"), self.args.ints("extra_shape")
        self.input_as_shape = self.args.bool("input_as_shape")
        if self.num_inputs:
            if shape:
                raise ValueError("the argument shape and an input exclude each other")
        elif extra or self.input_as_shape:
            raise ValueError("extra_shape and input_as_shape need an input")
        if max(len(shape), len(extra)) > MAX_DIMS:
            raise ValueError(f"a tensor has at most {MAX_DIMS} dimensions")
        self.ndim, self.extra_ndim = len(shape), len(extra)
        for i, n in enumerate(shape):
            self.dims[i] = n
        for i, n in enumerate(extra):
            self.extra[i] = n

    cdef int run(self) except -1 nogil:
        cdef int64_t[2 * MAX_DIMS] dims
        cdef tensor_t* x
        cdef int ndim = self.ndim, i
        if self.num_inputs == 0:
            resize(self.y[0], ndim, self.dims, self.dtype)
            return self.fill(self.y[0])
        x = self.x[0]
        if self.input_as_shape:
            self.expect_ndim(0, 1)
            if x.size > MAX_DIMS:
                return self.fail("the shape has too many dimensions")
            ndim = <int>x.size
            for i in range(ndim):
                if x.dtype == INT64:
                    dims[i] = (<int64_t*>x.data)[i]
                elif x.dtype == INT32:
                    dims[i] = (<int32_t*>x.data)[i]
                else:
                    return self.bad_dtype(0)
        else:
            if x.dtype == 0:
                return self.bad_dtype(0)
            ndim = x.ndim
            memcpy(dims, x.shape, ndim * sizeof(int64_t))
        memcpy(dims + ndim, self.extra, self.extra_ndim * sizeof(int64_t))
        resize(self.y[0], ndim + self.extra_ndim, dims, self.dtype)
        return self.fill(self.y[0])

    cdef int fill(self, tensor_t* y) except -1 nogil:
        return 0


cdef void repeat(void* to, const void* item, size_t width, int64_t n) noexcept nogil:
    """n copies of an item of 1, 2, 4 or 8 bytes."""
    cdef int64_t i
    cdef uint64_t value = 0
    memcpy(&value, item, width)
    if value == 0:
        memset(to, 0, n * width)
    elif width == 1:
        memset(to, <int>value, n)
    elif width == 2:
        for i in range(n):
            (<uint16_t*>to)[i] = <uint16_t>value
    elif width == 4:
        for i in range(n):
            (<int32_t*>to)[i] = <int32_t>value
    else:
        for i in range(n):
            (<uint64_t*>to)[i] = value


def constant_dtype(args):
    value = args._args.get("value")
    return dtype_argument(args, FLOAT if value is None else {"i": INT64, "s": STRING}.get(kind(value), FLOAT))


def of_dtype(cls, int dtype):
    """Subclass of a filler that makes that dtype, whatever the argument says."""
    return type(cls.__name__, (cls,), {"output_dtype": lambda self: dtype})


cdef class ConstantFill(Fill):
    cdef char[8] value
    cdef bytes string

    def output_dtype(self):
        return constant_dtype(self.args)

    def setup(self):
        cdef const unsigned char[::1] item
        Fill.setup(self)
        self.dtype = self.output_dtype()
        if self.dtype == STRING:
            self.string = self.args.bytes("value")
            return
        dtype = numpy_dtype(self.dtype)
        value = self.args.float("value") if dtype.kind == "f" else self.args.int("value")
        item = np.full(1, value, dtype).tobytes()
        memcpy(self.value, &item[0], item.shape[0])

    cdef int fill(self, tensor_t* y) except -1 nogil:
        cdef int64_t i
        if y.dtype == STRING:
            with gil:
                for i in range(y.size):
                    set_string(y, i, self.string)
        elif self.num_inputs == 2:
            self.expect(1, y.dtype)
            self.expect_size(1, 1)
            repeat(y.data, self.x[1].data, itemsize(y.dtype), y.size)
        else:
            repeat(y.data, self.value, itemsize(y.dtype), y.size)
        return 0


cdef class DiagonalFill(ConstantFill):
    def setup(self):
        ConstantFill.setup(self)
        if self.dtype == STRING:
            raise TypeError("DiagonalFill makes numbers only")

    cdef int fill(self, tensor_t* y) except -1 nogil:
        cdef int64_t step = 0, stride = 1, i = 0
        cdef int d
        cdef size_t width = itemsize(y.dtype)
        if y.ndim < 2:
            return self.fail("the output must have two dimensions or more")
        memset(y.data, 0, y.size * width)
        for d in range(y.ndim - 1, -1, -1):
            if y.ndim > 2 and y.shape[d] != y.shape[0]:
                return self.fail("all dimensions must be equal")
            step += stride
            stride *= y.shape[d]
        while i < y.size:
            memcpy(<char*>y.data + i * width, self.value, width)
            i += step
        return 0


cdef class GivenFill(Fill):
    """Copies values, held in a tensor that setup made."""
    cdef Tensor values

    def extract(self):
        args, dtype = self.args, numpy_dtype(self.dtype)
        given = next((a for a in self.definition.arg if a.name == "values"), None)
        if given is None or kind(given) is None:
            return np.empty(0, dtype)
        if self.dtype == STRING:
            return np.array(args.strings("values"), object)
        if dtype.kind == "f" and kind(given) == "floats":       # without a list between: models hold millions of them
            return np.fromiter(given.floats, dtype, len(given.floats))
        return np.array(args.floats("values") if dtype.kind == "f" else args.ints("values")).astype(dtype)

    def setup(self):
        Fill.setup(self)
        self.dtype = self.output_dtype()
        self.values = Tensor(self.extract())

    def output_dtype(self):
        return dtype_argument(self.args, FLOAT)

    cdef int fill(self, tensor_t* y) except -1 nogil:
        if y.size != self.values.t.size:
            return self.fail("as many values must be given as the shape has elements")
        return copy_items(y, 0, self.values.t, 0, y.size)


class GivenBytesFill(GivenFill):
    def output_dtype(self):
        return UINT8

    def extract(self):
        return np.frombuffer(b"".join(self.args.strings("values")), np.uint8)


# ---------------------------------------------------------------- random

cdef class RandomFill(Fill):
    cdef Random random

    def setup(self):
        Fill.setup(self)
        self.random = Random(self.definition.device_option)


cdef class UniformFill(RandomFill):
    cdef double low, high

    def setup(self):
        RandomFill.setup(self)
        self.bounds(self.args.float)

    def bounds(self, get):
        if self.num_inputs == 3:
            if "min" in self.args or "max" in self.args:
                raise ValueError("min and max are given as arguments and as inputs")
            return
        self.low, self.high = get("min", 0), get("max", 1)
        if self.low >= self.high:
            raise ValueError("max must be greater than min")

    cdef int read_bounds(self, tensor_t* y) except -1 nogil:
        """From the inputs where they are inputs; nothing is made where they are in the wrong order."""
        cdef int i
        cdef int64_t[MAX_DIMS] dims
        if self.num_inputs == 3:
            for i in range(1, 3):
                self.expect(i, self.dtype)
                self.expect_size(i, 1)
            if self.dtype == FLOAT:
                self.low, self.high = (<float*>self.x[1].data)[0], (<float*>self.x[2].data)[0]
            else:
                self.low, self.high = (<int32_t*>self.x[1].data)[0], (<int32_t*>self.x[2].data)[0]
            if self.low > self.high and y.ndim:
                memcpy(dims, y.shape, y.ndim * sizeof(int64_t))
                dims[0] = 0
                resize(y, y.ndim, dims, self.dtype)
        return 0

    cdef int fill(self, tensor_t* y) except -1 nogil:
        self.read_bounds(y)
        self.random.fill_uniform(<float*>y.data, y.size, <float>self.low, <float>self.high)
        return 0


cdef class UniformIntFill(UniformFill):
    def setup(self):
        RandomFill.setup(self)
        self.dtype = INT32
        self.bounds(self.args.int)

    cdef int fill(self, tensor_t* y) except -1 nogil:
        cdef int64_t i, low
        cdef uint64_t n
        self.read_bounds(y)
        low = <int64_t>self.low
        n = <uint64_t>(<int64_t>self.high - low + 1)
        for i in range(y.size):
            (<int32_t*>y.data)[i] = <int32_t>(low + <int64_t>self.random.below(n))
        return 0


cdef class Float16UniformFill(UniformFill):
    def setup(self):
        UniformFill.setup(self)
        self.dtype = FLOAT16

    cdef int fill(self, tensor_t* y) except -1 nogil:
        cdef float[1024] part
        cdef int64_t at, n
        for at in range(0, y.size, 1024):
            n = min(<int64_t>1024, y.size - at)
            self.random.fill_uniform(part, n, <float>self.low, <float>self.high)
            K.float_to_half(n, part, <uint16_t*>y.data + at)
        return 0


cdef class UniqueUniformFill(RandomFill):
    cdef int64_t low, high

    def setup(self):
        RandomFill.setup(self)
        self.dtype = dtype_argument(self.args, INT32)
        if self.dtype not in (INT32, INT64):
            raise ValueError("dtype must be INT32 or INT64")
        if "min" not in self.args or "max" not in self.args:
            raise ValueError("requires the arguments min and max")
        self.low, self.high = self.args.int("min"), self.args.int("max")
        if self.low >= self.high:
            raise ValueError("max must be greater than min")

    cdef int fill(self, tensor_t* y) except -1 nogil:
        cdef int64_t n = y.size, i, value
        if self.num_inputs == 2:
            self.expect(1, self.dtype)
        with gil:
            taken = set(self.input(1).ravel().tolist()) if self.num_inputs == 2 else set()
            free = self.high - self.low + 1 - sum(self.low <= v <= self.high for v in taken)
            if n > free:
                raise ValueError(f"there are only {free} values to choose from, {n} are wanted")
            for i in range(n):
                value = self.low + <int64_t>self.random.below(<uint64_t>(self.high - self.low + 1))
                while value in taken:
                    value = self.low + <int64_t>self.random.below(<uint64_t>(self.high - self.low + 1))
                taken.add(value)
                if self.dtype == INT32:
                    (<int32_t*>y.data)[i] = value
                else:
                    (<int64_t*>y.data)[i] = value
        return 0


cdef class GaussianFill(RandomFill):
    cdef float mean, std

    def setup(self):
        RandomFill.setup(self)
        self.mean, self.std = self.args.float("mean", 0), self.args.float("std", 1)
        if not self.std >= 0:
            raise ValueError("std must not be negative")

    cdef int fill(self, tensor_t* y) except -1 nogil:
        self.random.fill_normal(<float*>y.data, y.size, self.mean, self.std)
        return 0


cdef class XavierFill(RandomFill):
    cdef int fill(self, tensor_t* y) except -1 nogil:
        cdef double scale
        if y.ndim < 1:
            return self.fail("the output must have a dimension or more")
        if y.size:
            scale = sqrt(3.0 / (y.size // y.shape[0]))
            self.random.fill_uniform(<float*>y.data, y.size, <float>-scale, <float>scale)
        return 0


cdef class MSRAFill(RandomFill):
    cdef int fill(self, tensor_t* y) except -1 nogil:
        if y.ndim < 2:
            return self.fail("the output must have two dimensions or more")
        if y.size:
            self.random.fill_normal(<float*>y.data, y.size, 0, <float>sqrt(2.0 / (y.size // y.shape[1])))
        return 0


# ---------------------------------------------------------------- ranges

cdef class RangeFill(Fill):
    cdef int fill(self, tensor_t* y) except -1 nogil:
        cdef int64_t i
        for i in range(y.size):
            (<float*>y.data)[i] = <float>i
        return 0


cdef class LengthsRangeFill(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int32_t* lengths
        cdef int32_t* to
        cdef int64_t i, total = 0
        cdef int32_t j
        self.expect(0, INT32)
        self.expect_ndim(0, 1)
        lengths = <int32_t*>x.data
        for i in range(x.size):
            if lengths[i] < 0:
                return self.fail("lengths must not be negative")
            total += lengths[i]
        resize1(self.y[0], total, INT32)
        to = <int32_t*>self.y[0].data
        for i in range(x.size):
            for j in range(lengths[i]):
                to[j] = j
            to += lengths[i]
        return 0


ctypedef fused number_t:
    int32_t
    int64_t
    float
    double


cdef int count_range(Operator op, const number_t* unused, double* count) except -1 nogil:
    """How many values lie in start, start + step, ... before stop."""
    cdef number_t start = 0, step = 1, stop
    cdef int n = op.num_inputs
    stop = (<number_t*>op.x[0 if n == 1 else 1].data)[0]
    if n > 1:
        start = (<number_t*>op.x[0].data)[0]
    if n > 2:
        step = (<number_t*>op.x[2].data)[0]
    if not step != 0:
        return op.fail("the step must not be 0")
    if number_t is int32_t or number_t is int64_t:
        if step < 0:
            count[0] = (<double>start - <double>stop + <double>(-step) - 1) // <double>(-step) if start > stop else 0
        else:
            count[0] = (<double>stop - <double>start + <double>step - 1) // <double>step if stop > start else 0
    else:
        count[0] = ceil((stop - start) / step)
    if not count[0] < 9e15:
        return op.fail("the range is not finite")
    return 0


cdef int write_range(Operator op, number_t* to) except -1 nogil:
    cdef number_t start = 0, step = 1
    cdef int64_t i
    if op.num_inputs > 1:
        start = (<number_t*>op.x[0].data)[0]
    if op.num_inputs > 2:
        step = (<number_t*>op.x[2].data)[0]
    for i in range(op.y[0].size):
        to[i] = start + <number_t>i * step
    return 0


cdef class Range(Operator):
    cdef int run(self) except -1 nogil:
        cdef int dtype = self.x[0].dtype, i
        cdef double n = 0
        for i in range(self.num_inputs):
            self.expect(i, dtype if dtype else FLOAT)
            self.expect_size(i, 1)
        if dtype == INT32:
            count_range(self, <int32_t*>NULL, &n)
        elif dtype == INT64:
            count_range(self, <int64_t*>NULL, &n)
        elif dtype == FLOAT:
            count_range(self, <float*>NULL, &n)
        elif dtype == DOUBLE:
            count_range(self, <double*>NULL, &n)
        else:
            return self.bad_dtype(0)
        resize1(self.y[0], <int64_t>n if n > 0 else 0, dtype)
        if dtype == INT32:
            return write_range(self, <int32_t*>self.y[0].data)
        if dtype == INT64:
            return write_range(self, <int64_t*>self.y[0].data)
        if dtype == FLOAT:
            return write_range(self, <float*>self.y[0].data)
        return write_range(self, <double*>self.y[0].data)


# ---------------------------------------------------------------- schemas

def fill_infer(int dtype=FLOAT, bint fixed=False):
    """Shape inference of a filler; `fixed` ones do not look at the argument dtype."""
    def infer(args, inputs):
        result = dtype if fixed else dtype_argument(args, dtype)
        if not inputs:
            return [TensorInfo(args.ints("shape"), result)]
        if args.bool("input_as_shape"):
            return [TensorInfo(None, result)]
        return [TensorInfo((*inputs[0].shape, *args.ints("extra_shape")), result)]
    return infer


def constant_infer(args, inputs):
    return fill_infer(constant_dtype(args), True)(args, inputs)


_SHAPE = {
    "shape": "shape of the output, where there is no input",
    "extra_shape": "dimensions to append to those of the input",
    "input_as_shape": "1: the input, 1-D, holds the shape; 0: the input has it",
}
_DTYPE = {"dtype": "number of TensorProto.DataType"}
_INPUT = {"input": "has, or with input_as_shape holds, the shape of the output"}


def filler(name, cls, doc, args=None, inputs=(0, 1), ins=None, infer=None, **more):
    register(
        name, cls, inputs, 1, ins=_INPUT if ins is None else ins, outs={"output": "filled tensor"},
        args=_SHAPE | (args or {}), infer=infer or fill_infer(fixed=True), gradient=none, doc=doc, **more,
    )


filler("ConstantFill", ConstantFill, "Fills a tensor with one value. May run in place.",
       _DTYPE | {"value": "the value; without dtype, its type is the output's: float or int64"},
       inputs=(0, 2), ins=_INPUT | {"value": "tensor of one element, of the output's type: the value"},
       infer=constant_infer,
       inplace=((0, 0),))
filler("DiagonalFill", DiagonalFill,
       "Fills the diagonal of a tensor with one value, the rest with 0. A tensor of more than two dimensions must have "
       "equal ones.", _DTYPE | {"value": "the value; without dtype, its type is the output's"}, infer=constant_infer)
filler("Float16ConstantFill", of_dtype(ConstantFill, FLOAT16), "Fills a float16 tensor with one value.",
       {"value": "the value"}, 0, {}, fill_infer(FLOAT16, True))


def three_or_fewer(op):
    if len(op.input) not in (0, 1, 3):
        raise ValueError(f"takes 0, 1 or 3 inputs, but was given {len(op.input)}")


_BOUNDS = {"min": "lower bound, 0 by default", "max": "upper bound, 1 by default"}
_BOUND_INPUTS = _INPUT | {"min": "lower bound, instead of the argument", "max": "upper bound, instead of the argument"}
filler("UniformFill", UniformFill, "Fills with floats drawn uniformly from [min, max).", _BOUNDS, (0, None),
       _BOUND_INPUTS, check=three_or_fewer)
filler("UniformIntFill", UniformIntFill, "Fills with int32 numbers drawn uniformly from min, ..., max.", _BOUNDS,
       (0, None), _BOUND_INPUTS, fill_infer(INT32, True), check=three_or_fewer)
filler("Float16UniformFill", Float16UniformFill, "Fills a float16 tensor with numbers drawn uniformly from [min, max].",
       _BOUNDS, 0, {}, fill_infer(FLOAT16, True))
filler("UniqueUniformFill", UniqueUniformFill,
       "Fills with integers drawn uniformly from min, ..., max, each at most once.",
       _DTYPE | {"min": "least value", "max": "greatest value"}, (0, 2), _INPUT | {"avoid": "values not to draw"},
       fill_infer(INT32))
filler("GaussianFill", GaussianFill, "Fills with normally distributed floats.",
       {"mean": "mean, 0 by default", "std": "standard deviation, 1 by default"})
filler("XavierFill", XavierFill,
       "Fills with floats drawn uniformly from [-a, a), a = sqrt(3 / fan_in), where fan_in is the product of all "
       "dimensions but the first.")
filler("MSRAFill", MSRAFill,
       "Fills with normally distributed floats of standard deviation sqrt(2 / fan_out), where fan_out is the product "
       "of all dimensions but the second.")
filler("RangeFill", RangeFill, "Fills with 0, 1, 2, ...")

_VALUES = {"values": "the values, as many as the shape has elements"}
filler("GivenTensorFill", GivenFill, "Makes a tensor of given values.", _VALUES | _DTYPE, required=("values",),
       infer=fill_infer())
for _name, _dtype in (("Double", DOUBLE), ("Bool", DTYPES["bool"]), ("Int16", DTYPES["int16"]), ("Int", INT32),
                      ("Int64", INT64), ("String", STRING)):
    filler(f"GivenTensor{_name}Fill", of_dtype(GivenFill, _dtype),
           f"Makes a tensor of given values, of type {_name.lower()}.", _VALUES,
           required=("values",), infer=fill_infer(_dtype, True))
filler("GivenTensorByteStringToUInt8Fill", GivenBytesFill, "Makes a uint8 tensor of the bytes of a given string.",
       {"values": "one string, as long as the shape has elements"}, required=("values",), infer=fill_infer(UINT8, True))

register(
    "LengthsRangeFill", LengthsRangeFill, 1, 1,
    ins={"lengths": "int32 vector"}, outs={"range_sequence": "int32 vector of sum(lengths) elements"},
    infer=lambda args, inputs: [TensorInfo((-1,), INT32)], gradient=none,
    doc="For each length n the numbers 0, ..., n - 1, one after the other: [2, 4, 1] gives [0, 1, 0, 1, 2, 3, 0].",
)
register(
    "Range", Range, (1, 3), 1,
    ins={"start": "first value; with one input, that is stop and the range starts at 0",
         "stop": "the range ends before it",
         "step": "distance of neighbours, 1 by default"},
    outs={"output": "vector of the inputs' type"}, infer=lambda args, inputs: [TensorInfo((-1,), inputs[0].dtype)],
    gradient=none,
    doc="The values start, start + step, ... before stop, as numpy.arange makes them. Inputs are scalars, all "
    "of one type: int32, int64, float or double.",
)

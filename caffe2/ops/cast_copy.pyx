"""Casts and copies."""
from cython.parallel cimport prange
from libc.float cimport FLT_MAX
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    BOOL, DOUBLE, FLOAT, FLOAT16, INT8, INT16, INT32, INT64, STRING, UINT8, UINT16, UNDEFINED, copy, itemsize,
    resize_like, set_string, share, tensor_t,
)
from caffe2._core.threads cimport num_threads
from caffe2.ops.indices cimport index_at, is_index
from caffe2.ops.kernels.dispatch cimport K

from caffe2._core.args import kind
from caffe2._core.gradient import none, simple
from caffe2._core.registry import CUDA, register
from caffe2._core.schema import TensorInfo, like, same_as_input

# ---------------------------------------------------------------- Cast

_DTYPES = {
    "FLOAT": FLOAT, "INT32": INT32, "BOOL": BOOL, "UINT8": UINT8, "INT8": INT8, "UINT16": UINT16, "INT16": INT16,
    "INT64": INT64, "FLOAT16": FLOAT16, "DOUBLE": DOUBLE, "STRING": STRING,
}

ctypedef fused from_t:
    float
    double
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t

ctypedef fused to_t:
    float
    double
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t


cdef void convert(const from_t* x, to_t* y, int64_t n) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        y[i] = <to_t>x[i]


cdef void convert_from(const from_t* x, void* y, int dtype, int64_t n) noexcept nogil:
    """Write n values as dtype."""
    cdef int64_t i, at, m
    cdef float[256] part
    if dtype == FLOAT:
        convert(x, <float*>y, n)
    elif dtype == DOUBLE:
        convert(x, <double*>y, n)
    elif dtype == INT32:
        convert(x, <int32_t*>y, n)
    elif dtype == INT64:
        convert(x, <int64_t*>y, n)
    elif dtype == INT8:
        convert(x, <int8_t*>y, n)
    elif dtype == INT16:
        convert(x, <int16_t*>y, n)
    elif dtype == UINT8:
        convert(x, <uint8_t*>y, n)
    elif dtype == UINT16:
        convert(x, <uint16_t*>y, n)
    elif dtype == BOOL:
        for i in range(n):
            (<uint8_t*>y)[i] = x[i] != 0
    elif from_t is float:
        K.float_to_half(n, x, <uint16_t*>y)
    else:
        for at in range(0, n, 256):
            m = min(n - at, <int64_t>256)
            convert(x + at, <float*>part, m)
            K.float_to_half(m, part, <uint16_t*>y + at)


cdef void cast_stretch(const tensor_t* x, tensor_t* y, size_t x_width, size_t y_width, int64_t begin,
                       int64_t end) noexcept nogil:
    cdef const char* source = <const char*>x.data + begin * x_width
    cdef char* to = <char*>y.data + begin * y_width
    cdef int64_t n = end - begin, m
    cdef float[256] part
    if x.dtype == FLOAT:
        convert_from(<float*>source, to, y.dtype, n)
    elif x.dtype == DOUBLE:
        convert_from(<double*>source, to, y.dtype, n)
    elif x.dtype == INT32:
        convert_from(<int32_t*>source, to, y.dtype, n)
    elif x.dtype == INT64:
        convert_from(<int64_t*>source, to, y.dtype, n)
    elif x.dtype == INT8:
        convert_from(<int8_t*>source, to, y.dtype, n)
    elif x.dtype == INT16:
        convert_from(<int16_t*>source, to, y.dtype, n)
    elif x.dtype == UINT16:
        convert_from(<uint16_t*>source, to, y.dtype, n)
    elif x.dtype == FLOAT16:
        while n > 0:
            m = min(n, <int64_t>256)
            K.half_to_float(m, <const uint16_t*>source, part)
            convert_from(<float*>part, to, y.dtype, m)
            source += m * x_width
            to += m * y_width
            n -= m
    else:                           # UINT8, BYTE, BOOL
        convert_from(<uint8_t*>source, to, y.dtype, n)


cdef class Cast(Operator):
    cdef int to

    def setup(self):
        self.to = dtype_argument(self.args, "to")

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y = self.y[0]
        cdef int64_t n = x.size, chunk
        cdef int threads, t
        if x.dtype == self.to:
            return copy(y, x)
        if x.dtype == UNDEFINED or x.dtype == STRING:
            return self.bad_dtype(0)
        if self.to == STRING:
            with gil:
                self.print_numbers()
                return 0
        resize_like(y, x, self.to)
        threads = num_threads(n)
        if threads == 1:
            cast_stretch(x, y, itemsize(x.dtype), itemsize(y.dtype), 0, n)
            return 0
        chunk = (n + threads - 1) // threads
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            cast_stretch(x, y, itemsize(x.dtype), itemsize(y.dtype), min(n, t * chunk), min(n, (t + 1) * chunk))
        return 0

    def print_numbers(self):
        values = self.input(0)
        format = "%f" if values.dtype.kind == "f" else "%d"
        resize_like(self.y[0], self.x[0], STRING)
        for i, v in enumerate(values.ravel().tolist()):
            set_string(self.y[0], i, (format % v).encode())


def dtype_argument(args, name):
    """A dtype that an argument gives as a number of ``TensorProto.DataType`` or as its name."""
    if name not in args:
        raise ValueError(f"requires the argument {name}")
    if kind(args._args[name]) == "s":
        value = _DTYPES.get(args.str(name).upper())
    else:
        value = args.int(name)
    if value not in _DTYPES.values():
        raise ValueError(f"argument {name} must be one of {', '.join(_DTYPES)}")
    return value


def cast_gradient(g):
    back, to = dtype_argument(g.args, "from_type"), dtype_argument(g.args, "to")
    return g.op("Cast", [g.GO(0)], [g.GI(0)], copy_args=False, to=back, from_type=to)


register(
    "Cast", Cast, 1, 1, ins={"X": "tensor of numbers"}, outs={"Y": "its values as another type"},
    args={"to": "number or name of the TensorProto.DataType wanted",
          "from_type": "that of X; needed for the gradient alone"},
    infer=lambda args, inputs: [TensorInfo(inputs[0].shape, dtype_argument(args, "to"))], gradient=cast_gradient,
    doc="Converts numbers to another type, bool, float16 and string included. Floats are truncated to integers; "
    "what an integer type cannot hold has no defined value. As strings, floats have six decimals.",
)


cdef class FloatToHalf(Cast):
    def setup(self):
        self.to = FLOAT16

    cdef int run(self) except -1 nogil:
        self.expect(0, FLOAT)
        return Cast.run(self)


cdef class HalfToFloat(Cast):
    def setup(self):
        self.to = FLOAT

    cdef int run(self) except -1 nogil:
        self.expect(0, FLOAT16)
        return Cast.run(self)


register(
    "FloatToHalf", FloatToHalf, 1, 1, ins={"X": "float tensor"}, outs={"Y": "float16 tensor"},
    infer=like(0, dtype=FLOAT16), gradient=simple("HalfToFloat", "GO0", "GI0"),
    doc="Converts float to float16, rounding to nearest, ties to even.",
)
register(
    "HalfToFloat", HalfToFloat, 1, 1, ins={"X": "float16 tensor"}, outs={"Y": "float tensor"},
    infer=like(0, dtype=FLOAT), gradient=simple("FloatToHalf", "GO0", "GI0"), doc="Converts float16 to float.",
)


# ---------------------------------------------------------------- copies

cdef class Copy(Operator):
    cdef int run(self) except -1 nogil:
        if self.x[0].dtype == UNDEFINED:
            return self.bad_dtype(0)
        return copy(self.y[0], self.x[0])


_IN, _OUT = {"input": "tensor of any type"}, {"output": "a copy of it"}


def from_cpu(op):
    """Input on the CPU, output on the operator's device."""
    return [type(op.device_option)()] * len(op.input), [op.device_option] * len(op.output)


def to_cpu(op):
    return [op.device_option] * len(op.input), [type(op.device_option)()] * len(op.output)


register(
    "Copy", Copy, 1, 1, ins=_IN, outs=_OUT, inplace=((0, 0),), infer=same_as_input(),
    gradient=simple("CopyOnDeviceLike", "GO0 I0", "GI0"), doc="Copies a tensor.",
)
register(
    "CopyOnDeviceLike", Copy, 2, 1, ins=_IN | {"dst": "tensor on the device wanted"}, outs=_OUT, infer=like(0),
    doc="Copies a tensor to the device of another.",
)
register(
    "CopyFromCPUInput", Copy, 1, 1, ins=_IN, outs=_OUT, infer=same_as_input(), devices=from_cpu,
    doc="Copies a tensor from the CPU to the operator's device.",
)
register(
    "EnsureCPUOutput", Copy, 1, 1, ins=_IN, outs=_OUT, infer=same_as_input(), devices=to_cpu, gradient=none,
    doc="Copies a tensor from the operator's device to the CPU.",
)


# Their classes are the GPU's.
for _name, _back, _devices, _doc in (
    ("CopyCPUToGPU", "CopyGPUToCPU", from_cpu, "Copies a tensor from the CPU to a GPU."),
    ("CopyGPUToCPU", "CopyCPUToGPU", to_cpu, "Copies a tensor from a GPU to the CPU."),
):
    register(
        _name, None, 1, 1, ins=_IN, outs=_OUT, infer=same_as_input(), devices=_devices,
        gradient=simple(_back, "GO0", "GI0"), device=CUDA, doc=_doc,
    )

register(
    "StopGradient", Copy, 1, 1, ins=_IN, outs={"output": "the same values"}, inplace=((0, 0),), infer=same_as_input(),
    gradient=none, doc="Copies a tensor, or leaves it in place; no gradient passes.",
)


def ensure_dense_gradient(g):
    grad = g.output_grads[0]
    if grad.is_sparse():
        return g.op("SparseToDense", [grad.indices, grad.values, g.I(0)], [g.GI(0)])
    g.set_dense(0, g.GO(0))
    return []


register(
    "EnsureDense", Copy, 1, 1, ins=_IN, outs=_OUT, inplace=((0, 0),), infer=same_as_input(),
    gradient=ensure_dense_gradient,
    doc="Copies a tensor, or leaves it in place; its gradient is made dense where it is sparse.",
)


cdef class Alias(Operator):
    cdef int run(self) except -1 nogil:
        if self.x[0].dtype == UNDEFINED:
            return self.bad_dtype(0)
        share(self.y[0], self.x[0])
        return 0


def alias_gradient(g):
    g.set_dense(0, g.GO(0))
    return []


def alias_with_name_gradient(g):
    return g.op("AliasWithName", [g.GO(0)], [g.GI(0)], is_backward=int(not g.args.bool("is_backward")))


_ALIAS = {"output": "a tensor that shares the input's memory"}
register(
    "Alias", Alias, 1, 1, ins=_IN, outs=_ALIAS, infer=same_as_input(), gradient=alias_gradient,
    doc="Makes the output share the input's memory: what is written to one shows in the other.",
)
register(
    "AliasWithName", Alias, 1, 1, ins=_IN, outs=_ALIAS, infer=same_as_input(), gradient=alias_with_name_gradient,
    args={"name": "a name for observers", "is_backward": "whether it stands in a backward pass, for observers"},
    doc="Alias, with a name that observers may read.",
)


# ---------------------------------------------------------------- EnsureClipped

cdef class EnsureClipped(Operator):
    cdef float low, high

    def setup(self):
        self.low, self.high = self.args.float("min", -FLT_MAX), self.args.float("max", FLT_MAX)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t row = x.size, rows, i, k
        self.expect(0, FLOAT)
        if self.num_inputs == 1:
            resize_like(self.y[0], x, FLOAT)
            clip(<float*>x.data, <float*>self.y[0].data, x.size, self.low, self.high)
            return 0
        if self.x[0] != self.y[0]:
            return self.fail("with indices, the operator must run in place")
        if not is_index(self.x[1].dtype):
            return self.bad_dtype(1)
        if x.ndim < 1:
            return self.fail("the parameter must have a dimension or more")
        rows = x.shape[0]
        row = x.size // rows if rows else 0
        for i in range(self.x[1].size):
            k = index_at(self.x[1], i)
            if k < 0 or k >= rows:
                return self.fail("an index is out of range")
        resize_like(self.y[0], x, FLOAT)
        for i in range(self.x[1].size):
            k = index_at(self.x[1], i) * row
            clip(<float*>x.data + k, <float*>x.data + k, row, self.low, self.high)
        return 0


cdef void clip(const float* x, float* y, int64_t n, float low, float high) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        y[i] = low if x[i] < low else high if x[i] > high else x[i]


register(
    "EnsureClipped", EnsureClipped, (1, 3), 1,
    ins={"param": "float tensor", "indices": "int32 or int64: rows to clip; all by default",
         "grad": "gradient of those; not read"},
    outs={"output_param": "param, clipped"}, args={"min": "least value", "max": "greatest value"}, inplace=((0, 0),),
    infer=like(0), doc="Clips a parameter, or those of its rows that were updated, to [min, max].",
)

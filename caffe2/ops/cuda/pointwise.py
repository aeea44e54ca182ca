"""What the families share: dtypes, registration, operators that compute place by place."""
from caffe2._core.cuda import CudaOperator
from caffe2._core.registry import CUDA, register_class

FLOAT, INT32, BOOL, UINT8, INT8, UINT16, INT16, INT64, FLOAT16, DOUBLE = 1, 2, 5, 6, 7, 8, 9, 10, 12, 13
# How kernels of several dtypes are told apart.
SUFFIX = {FLOAT: "_f", DOUBLE: "_d", INT32: "_i", INT64: "_l", BOOL: "_b", UINT8: "_u", INT8: "_c", INT16: "_s",
          UINT16: "_w", FLOAT16: "_h"}
NUMBERS = (FLOAT, DOUBLE, INT32, INT64, FLOAT16)
# Those that are computed with as float32.
FLOATS = (FLOAT, FLOAT16)


def register_cuda(name, cls=None):
    """Register a class for an operator that the CPU has; as a decorator too."""
    if cls is None:
        return lambda c: register_cuda(name, c)
    register_class(name, cls, device=CUDA)
    return cls


def product(dims):
    """Product of dimensions, 1 for none."""
    n = 1
    for d in dims:
        n *= d
    return n


def clear(op, t):
    """Have an operator make a tensor zero."""
    if t.size:
        width = t.nbytes // t.size
        op.launch(f"Constant{width}", t.size, t, t.size, None, bytes(width), stem="filler")


class Pointwise(CudaOperator):
    """Values at a place depend on those of the inputs there, all of one dtype, and on two floats.

    The kernel, named like the operator and the dtype, takes x..., y, n, a, b.
    """

    dtypes = FLOATS
    arguments = ()              # (name, default)

    def setup(self):
        self.parameters = [self.args.float(*a) for a in self.arguments]
        self.parameters += [0.0] * (2 - len(self.parameters))

    def execute(self):
        first = self.source(0, self.dtypes)
        x = [self.source(i, (first.dtype,)) for i in range(len(self.inputs))]
        for i in range(1, len(x)):
            if x[i].shape != first.shape:
                raise ValueError(f"inputs 0 and {i} must have the same shape")
        y = self.like(0, first)
        self.launch(self.type + SUFFIX[first.dtype], y.size, *x, y, y.size, *self.parameters)


def pointwise(module, names, *arguments, dtypes=FLOATS):
    """Register pointwise operators whose kernels are in the module's .cu file."""
    for name in names.split():
        register_cuda(name, type(name, (Pointwise,), {
            "arguments": arguments, "dtypes": dtypes, "__module__": module}))

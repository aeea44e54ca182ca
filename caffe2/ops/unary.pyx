"""Functions of one tensor, place by place: powers, logarithms, trigonometry, rounding, clipping."""
from cython.parallel cimport prange

from libc.float cimport FLT_MAX
from libc.math cimport (
    acos, asin, atan, cbrt, ceil, cos, cosh, erf, exp, floor, log, log1p, sin, sinh, sqrt, tan,
    acosf, asinf, atanf, cbrtf, ceilf, cosf, coshf, floorf, log1pf, sinf, sinhf, sqrtf, tanf,
)
from libc.stdint cimport int32_t, int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    DOUBLE, FLOAT, INT32, INT64, resize1, resize_like, size_from, tensor_t,
)
from caffe2._core.threads cimport num_threads
from caffe2.ops.kernels.dispatch cimport K
from caffe2.ops.pointwise cimport DTYPES, Pointwise, number, pick

from caffe2._core import gradient
from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, like, one_to_one, same_as_input

ctypedef fused real:
    float
    double

# Tags of the loops: each is a specialization for one of them and one dtype.
ctypedef struct abs_t:
    char _
ctypedef struct acos_t:
    char _
ctypedef struct asin_t:
    char _
ctypedef struct atan_t:
    char _
ctypedef struct cbrt_t:
    char _
ctypedef struct ceil_t:
    char _
ctypedef struct cos_t:
    char _
ctypedef struct cosh_t:
    char _
ctypedef struct cube_t:
    char _
ctypedef struct erf_t:
    char _
ctypedef struct exp_t:
    char _
ctypedef struct floor_t:
    char _
ctypedef struct log_t:
    char _
ctypedef struct log1p_t:
    char _
ctypedef struct negative_t:
    char _
ctypedef struct reciprocal_t:
    char _
ctypedef struct rsqrt_t:
    char _
ctypedef struct sign_t:
    char _
ctypedef struct sin_t:
    char _
ctypedef struct sinh_t:
    char _
ctypedef struct sqr_t:
    char _
ctypedef struct sqrt_t:
    char _
ctypedef struct tan_t:
    char _

# Functions that integers have, too, and those that only reals have.
ctypedef fused whole_function:
    abs_t
    cube_t
    negative_t
    sign_t
    sqr_t

ctypedef fused real_function:
    acos_t
    asin_t
    atan_t
    cbrt_t
    ceil_t
    cos_t
    cosh_t
    erf_t
    exp_t
    floor_t
    log_t
    log1p_t
    reciprocal_t
    rsqrt_t
    sin_t
    sinh_t
    sqrt_t
    tan_t

# Those with a gradient operator.
ctypedef fused real_slope:
    abs_t
    acos_t
    asin_t
    atan_t
    cbrt_t
    cos_t
    cosh_t
    cube_t
    erf_t
    log1p_t
    reciprocal_t
    rsqrt_t
    sin_t
    sinh_t
    tan_t


cdef inline number whole(const whole_function* tag, number x) noexcept nogil:
    if whole_function is abs_t:
        return -x if x < 0 else x
    elif whole_function is cube_t:
        return x * x * x
    elif whole_function is negative_t:
        return -x
    elif whole_function is sign_t:
        return <number>((x > 0) - (x < 0))
    else:
        return x * x


cdef inline real function(const real_function* tag, real x) noexcept nogil:
    if real_function is acos_t:
        return acosf(x) if real is float else acos(x)
    elif real_function is asin_t:
        return asinf(x) if real is float else asin(x)
    elif real_function is atan_t:
        return atanf(x) if real is float else atan(x)
    elif real_function is cbrt_t:
        return cbrtf(x) if real is float else cbrt(x)
    elif real_function is ceil_t:
        return ceilf(x) if real is float else ceil(x)
    elif real_function is cos_t:
        return cosf(x) if real is float else cos(x)
    elif real_function is cosh_t:
        return coshf(x) if real is float else cosh(x)
    elif real_function is erf_t:
        return <real>erf(x)
    elif real_function is exp_t:
        return <real>exp(x)
    elif real_function is floor_t:
        return floorf(x) if real is float else floor(x)
    elif real_function is log_t:
        return <real>log(x)
    elif real_function is log1p_t:
        return log1pf(x) if real is float else log1p(x)
    elif real_function is reciprocal_t:
        return 1 / x
    elif real_function is rsqrt_t:
        return 1 / (sqrtf(x) if real is float else sqrt(x))
    elif real_function is sin_t:
        return sinf(x) if real is float else sin(x)
    elif real_function is sinh_t:
        return sinhf(x) if real is float else sinh(x)
    elif real_function is sqrt_t:
        return sqrtf(x) if real is float else sqrt(x)
    else:
        return tanf(x) if real is float else tan(x)


cdef inline real slope(const real_slope* tag, real x) noexcept nogil:
    """Derivative, from the input; from the output for Cbrt, Reciprocal and Rsqrt."""
    if real_slope is abs_t:
        return <real>((x > 0) - (x < 0))
    elif real_slope is acos_t:
        return -1 / (sqrtf(1 - x * x) if real is float else sqrt(1 - x * x))
    elif real_slope is asin_t:
        return 1 / (sqrtf(1 - x * x) if real is float else sqrt(1 - x * x))
    elif real_slope is atan_t:
        return 1 / (1 + x * x)
    elif real_slope is cbrt_t:
        return 1 / (3 * x * x)
    elif real_slope is cos_t:
        return -(sinf(x) if real is float else sin(x))
    elif real_slope is cosh_t:
        return sinhf(x) if real is float else sinh(x)
    elif real_slope is cube_t:
        return 3 * x * x
    elif real_slope is erf_t:
        return <real>(1.1283791670955126 * exp(-x * x))     # 2 / sqrt(pi)
    elif real_slope is log1p_t:
        return 1 / (1 + x)
    elif real_slope is reciprocal_t:
        return -x * x
    elif real_slope is rsqrt_t:
        return <real>(-0.5) * x * x * x
    elif real_slope is sin_t:
        return cosf(x) if real is float else cos(x)
    elif real_slope is sinh_t:
        return coshf(x) if real is float else cosh(x)
    else:
        x = cosf(x) if real is float else cos(x)
        return 1 / (x * x)


cdef enum:
    CHUNK = 256

ctypedef void (*map_t)(const void* tag, const void* x, const void* dy, void* y,
                       int64_t n) noexcept nogil


cdef void whole_loop(const whole_function* tag, const number* x, const number* dy, number* y,
                     int64_t n) noexcept nogil:
    cdef int64_t i
    if x == y:      # a loop of its own, for the compiler sees that nothing else overlaps
        for i in range(n):
            y[i] = whole(tag, y[i])
    else:
        for i in range(n):
            y[i] = whole(tag, x[i])


cdef void log1p_loop(const float* x, float* y, int64_t n) noexcept nogil:
    cdef float[CHUNK] u, v
    cdef float t
    cdef int64_t i, k, size
    i = 0
    while i < n:
        size = min(n - i, CHUNK)
        for k in range(size):
            u[k] = 1 + x[i + k]
        K.vlog(size, u, v)
        for k in range(size):       # x / (u - 1) makes up for the digits that u has lost
            t = v[k] * (x[i + k] / (u[k] - 1))
            y[i + k] = pick(u[k] > FLT_MAX, v[k], pick(u[k] == 1, x[i + k], t))
        i += size


cdef void real_loop(const real_function* tag, const real* x, const real* dy, real* y,
                    int64_t n) noexcept nogil:
    cdef int64_t i
    if real is float and real_function is exp_t:
        K.vexp(n, x, y)
    elif real is float and real_function is log_t:
        K.vlog(n, x, y)
    elif real is float and real_function is erf_t:
        K.verf(n, x, y)
    elif real is float and real_function is log1p_t:
        log1p_loop(x, y, n)
    elif x == y:
        for i in range(n):
            y[i] = function(tag, y[i])
    else:
        for i in range(n):
            y[i] = function(tag, x[i])


cdef void slope_loop(const real_slope* tag, const real* x, const real* dy, real* dx,
                     int64_t n) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        dx[i] = dy[i] * slope(tag, x[i])


cdef void fill_whole(const whole_function* tag, map_t* loops) noexcept:
    loops[<int>FLOAT] = <map_t>whole_loop[whole_function, float]
    loops[<int>DOUBLE] = <map_t>whole_loop[whole_function, double]
    loops[<int>INT32] = <map_t>whole_loop[whole_function, int32_t]
    loops[<int>INT64] = <map_t>whole_loop[whole_function, int64_t]


cdef void fill(const real_function* tag, map_t* loops) noexcept:
    loops[<int>FLOAT] = <map_t>real_loop[real_function, float]
    loops[<int>DOUBLE] = <map_t>real_loop[real_function, double]


cdef void fill_slope(const real_slope* tag, map_t* loops) noexcept:
    loops[<int>FLOAT] = <map_t>slope_loop[real_slope, float]
    loops[<int>DOUBLE] = <map_t>slope_loop[real_slope, double]


cdef class Map(Operator):
    """Y = f(X), or dX = f'(X) dY, where X and dY come in this order unless `swap` is set."""

    cdef map_t[DTYPES] loops
    cdef map_t loop
    cdef bint swap
    cdef int work

    def __cinit__(self):
        self.work = 10

    def setup(self):
        cdef map_t* loops = self.loops
        t = self.type
        if t == "Abs":
            fill_whole(<abs_t*>NULL, loops)
        elif t == "Cube":
            fill_whole(<cube_t*>NULL, loops)
        elif t == "Negative":
            fill_whole(<negative_t*>NULL, loops)
        elif t == "Sign":
            fill_whole(<sign_t*>NULL, loops)
        elif t == "Sqr":
            fill_whole(<sqr_t*>NULL, loops)
        elif t == "Acos":
            fill(<acos_t*>NULL, loops)
        elif t == "Asin":
            fill(<asin_t*>NULL, loops)
        elif t == "Atan":
            fill(<atan_t*>NULL, loops)
        elif t == "Cbrt":
            fill(<cbrt_t*>NULL, loops)
        elif t == "Ceil":
            fill(<ceil_t*>NULL, loops)
        elif t == "Cos":
            fill(<cos_t*>NULL, loops)
        elif t == "Cosh":
            fill(<cosh_t*>NULL, loops)
        elif t == "Erf":
            fill(<erf_t*>NULL, loops)
        elif t == "Exp":
            fill(<exp_t*>NULL, loops)
        elif t == "Floor":
            fill(<floor_t*>NULL, loops)
        elif t == "Log":
            fill(<log_t*>NULL, loops)
        elif t == "Log1p":
            fill(<log1p_t*>NULL, loops)
        elif t == "Reciprocal":
            fill(<reciprocal_t*>NULL, loops)
        elif t == "Rsqrt":
            fill(<rsqrt_t*>NULL, loops)
        elif t == "Sin":
            fill(<sin_t*>NULL, loops)
        elif t == "Sinh":
            fill(<sinh_t*>NULL, loops)
        elif t == "Sqrt":
            fill(<sqrt_t*>NULL, loops)
        elif t == "Tan":
            fill(<tan_t*>NULL, loops)
        else:
            self.setup_slope(t.removesuffix("Gradient"))

    def setup_slope(self, t):
        cdef map_t* loops = self.loops
        self.swap = t in _GRADIENT_FIRST
        if t == "Abs":
            fill_slope(<abs_t*>NULL, loops)
        elif t == "Acos":
            fill_slope(<acos_t*>NULL, loops)
        elif t == "Asin":
            fill_slope(<asin_t*>NULL, loops)
        elif t == "Atan":
            fill_slope(<atan_t*>NULL, loops)
        elif t == "Cbrt":
            fill_slope(<cbrt_t*>NULL, loops)
        elif t == "Cos":
            fill_slope(<cos_t*>NULL, loops)
        elif t == "Cosh":
            fill_slope(<cosh_t*>NULL, loops)
        elif t == "Cube":
            fill_slope(<cube_t*>NULL, loops)
        elif t == "Erf":
            fill_slope(<erf_t*>NULL, loops)
        elif t == "Log1p":
            fill_slope(<log1p_t*>NULL, loops)
        elif t == "Reciprocal":
            fill_slope(<reciprocal_t*>NULL, loops)
        elif t == "Rsqrt":
            fill_slope(<rsqrt_t*>NULL, loops)
        elif t == "Sin":
            fill_slope(<sin_t*>NULL, loops)
        elif t == "Sinh":
            fill_slope(<sinh_t*>NULL, loops)
        else:
            fill_slope(<tan_t*>NULL, loops)

    cdef void stretch(self, int64_t at, int64_t n) noexcept nogil:
        cdef size_t size = 4 if self.y[0].dtype == FLOAT or self.y[0].dtype == INT32 else 8
        cdef int last = self.num_inputs - 1
        cdef const char* x = <const char*>self.x[last if self.swap else 0].data
        cdef const char* dy = <const char*>self.x[0 if self.swap else last].data
        self.loop(NULL, x + at * size, dy + at * size, <char*>self.y[0].data + at * size, n)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t n = x.size, chunk
        cdef int i, threads
        self.loop = self.loops[x.dtype]
        if self.loop == NULL:
            return self.bad_dtype(0)
        if self.num_inputs > 1:
            self.expect(1, x.dtype)
            self.expect_same_shape(1, 0)
        resize_like(self.y[0], x, x.dtype)
        threads = num_threads(n * self.work)
        if threads == 1:
            self.stretch(0, n)
            return 0
        chunk = ((n + threads - 1) // threads + 15) & ~<int64_t>15
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            if i * chunk < n:
                self.stretch(i * chunk, min(n - i * chunk, chunk))
        return 0


# ---------------------------------------------------------------- registration

# Gradient operators that take the gradient first.
_GRADIENT_FIRST = {"Cbrt", "Cosh", "Cube", "Rsqrt", "Sinh"}
_FROM_OUTPUT = {"Cbrt", "Reciprocal", "Rsqrt"}


def _sqr_gradient(g):
    return [g.op("Scale", [g.GO(0)], [g.GO(0)], copy_args=False, scale=2.0),
            g.op("Mul", [g.GO(0), g.I(0)], [g.GI(0)], copy_args=False)]


def _sqrt_gradient(g):
    dx = g.GI(0)
    return [g.op("Scale", [g.GO(0)], [dx], copy_args=False, scale=0.5),
            g.op("Div", [dx, g.O(0)], [dx], copy_args=False)]


_SPECIAL = {
    "Sqr": _sqr_gradient,
    "Sqrt": _sqrt_gradient,
    "Exp": simple("Mul", "O0 GO0", "GI0"),
    "Log": simple("Div", "GO0 I0", "GI0"),
    "Negative": simple("Negative", "GO0", "GI0"),
    "Sign": gradient.none, "Floor": gradient.none, "Ceil": gradient.none,
}

for _name, _doc in {
    "Abs": "|X|", "Acos": "arc cosine of X", "Asin": "arc sine of X", "Atan": "arc tangent of X",
    "Cbrt": "cube root of X", "Ceil": "X rounded up", "Cos": "cosine of X",
    "Cosh": "hyperbolic cosine of X", "Cube": "X^3", "Erf": "error function of X",
    "Exp": "e^X", "Floor": "X rounded down", "Log": "natural logarithm of X",
    "Log1p": "natural logarithm of 1 + X", "Negative": "-X", "Reciprocal": "1 / X",
    "Rsqrt": "1 / sqrt(X)", "Sign": "-1, 0 or 1: the sign of X", "Sin": "sine of X",
    "Sinh": "hyperbolic sine of X", "Sqr": "X^2", "Sqrt": "square root of X", "Tan": "tangent of X",
}.items():
    _whole = _name in ("Abs", "Cube", "Negative", "Sign", "Sqr")
    _value = "Y" if _name in _FROM_OUTPUT else "X"
    _inputs = ("GO0 {}0" if _name in _GRADIENT_FIRST else "{}0 GO0").format(
        "O" if _value == "Y" else "I")
    _what = "tensor of float or double" + (", int32 or int64" if _whole else "")
    register(
        _name, Map, 1, 1, ins={"X": _what}, outs={"Y": "tensor of that shape and dtype"},
        inplace=one_to_one, infer=same_as_input(), cost=flops_per_element(1 if _whole else 10),
        gradient=_SPECIAL.get(_name) or simple(_name + "Gradient", _inputs, "GI0"),
        doc=f"Y = {_doc}. May run in place.",
    )
    if _name not in _SPECIAL:
        _at = int(_name not in _GRADIENT_FIRST)     # of the gradient
        _ins = [(_value, "float or double tensor"), ("dY", "gradient of Y")]
        register(
            _name + "Gradient", Map, 2, 1, ins=dict(_ins if _at else _ins[::-1]),
            outs={"dX": "gradient of X"}, inplace=[(_at, 0)], infer=like(0),
            cost=flops_per_element(10), doc=f"Gradient of {_name}.",
        )


# ---------------------------------------------------------------- with arguments

cdef class Clip(Pointwise):
    cdef float low
    cdef float high

    def setup(self):
        self.low = self.args.float("min", -FLT_MAX)
        self.high = self.args.float("max", FLT_MAX)
        self.blocked = self.num_inputs == 1 and self.low <= 0 <= self.high

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float low = self.low, high = self.high
        cdef int64_t i
        for i in range(n):
            y[i] = pick(v[i] < low, low, pick(v[i] > high, high, v[i]))


cdef class ClipGradient(Clip):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        cdef const float* y = x[0]
        cdef const float* dy = x[1]
        cdef float low = self.low, high = self.high
        cdef int64_t i
        for i in range(n):
            dx[i] = pick((y[i] > low) & (y[i] < high), dy[i], 0)


_LIMITS = {"min": "least value (default: that of a float)",
           "max": "largest value (default: that of a float)"}
register(
    "Clip", Clip, 1, 1, ins={"X": "float tensor"}, outs={"Y": "float tensor"}, args=_LIMITS,
    inplace=[(0, 0)], infer=same_as_input(), cost=flops_per_element(2),
    gradient=simple("ClipGradient", "O0 GO0", "GI0"),
    doc="X, limited to [min, max]. May run in place.",
)
register(
    "ClipGradient", ClipGradient, 2, 1, ins={"Y": "output of Clip", "dY": "its gradient"},
    outs={"dX": "gradient of X: 0 where Y is at a limit"}, args=_LIMITS, inplace=[(1, 0)],
    infer=like(0), cost=flops_per_element(2), doc="Gradient of Clip.",
)


cdef class Logit(Pointwise):
    cdef float eps

    def setup(self):
        self.work = 20
        self.eps = self.args.float("eps", 1e-6)
        if not 0 < self.eps < 0.5:
            raise ValueError("eps must lie between 0 and 0.5")

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float low = self.eps, high = 1 - self.eps, p
        cdef int64_t i
        for i in range(n):
            p = pick(v[i] < low, low, pick(v[i] > high, high, v[i]))
            y[i] = p / (1 - p)
        K.vlog(n, y, y)


cdef class LogitGradient(Logit):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef const float* dy = x[1]
        cdef float low = self.eps, high = 1 - self.eps
        cdef int64_t i
        for i in range(n):
            dx[i] = pick((v[i] < low) | (v[i] > high), 0, dy[i] / (v[i] * (1 - v[i])))


_EPS = {"eps": "X is limited to [eps, 1 - eps] (default 1e-6)"}
register(
    "Logit", Logit, 1, 1, ins={"X": "float tensor of probabilities"}, outs={"Y": "float tensor"},
    args=_EPS | {"eps (optional)": "a name of eps in listings; it is given as eps"},
    inplace=[(0, 0)], infer=same_as_input(), cost=flops_per_element(10),
    gradient=simple("LogitGradient", "I0 GO0", "GI0"),
    doc="Y = log(X / (1 - X)). May run in place.",
)
register(
    "LogitGradient", LogitGradient, 2, 1, ins={"X": "input of Logit", "dY": "gradient of Y"},
    outs={"dX": "gradient of X: 0 beyond the limits"}, args=_EPS, infer=like(0),
    cost=flops_per_element(4), doc="Gradient of Logit.",
)


cdef class StumpFunc(Pointwise):
    cdef float threshold
    cdef float low
    cdef float high

    def setup(self):
        self.threshold = self.args.float("threshold")
        self.low = self.args.float("low_value")
        self.high = self.args.float("high_value")

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef int64_t i
        for i in range(n):
            y[i] = pick(v[i] <= self.threshold, self.low, self.high)


cdef class StumpFuncIndex(Operator):
    cdef float threshold

    def setup(self):
        self.threshold = self.args.float("threshold")

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef const float* v = <const float*>x.data
        cdef int64_t i, low = 0
        cdef int64_t[2] at
        self.expect(0, FLOAT)
        for i in range(x.size):
            low += v[i] <= self.threshold
        resize1(self.y[0], low, INT64)
        resize1(self.y[1], x.size - low, INT64)
        at[0] = at[1] = 0
        for i in range(x.size):
            low = not v[i] <= self.threshold
            (<int64_t*>self.y[low].data)[at[low]] = i
            at[low] += 1
        return 0


_THRESHOLD = {"threshold": "values up to it are low (default 0)"}
register(
    "StumpFunc", StumpFunc, 1, 1, ins={"X": "float tensor"}, outs={"Y": "float tensor"},
    args=_THRESHOLD | {"low_value": "result for low values (default 0)",
                       "high_value": "result for the others (default 0)"},
    infer=same_as_input(), cost=flops_per_element(1), gradient=gradient.none,
    doc="Y = low_value where X <= threshold, else high_value.",
)
register(
    "StumpFuncIndex", StumpFuncIndex, 1, 2, ins={"X": "float tensor"}, args=_THRESHOLD,
    outs={"Index_Low": "int64 tensor: places where X <= threshold",
          "Index_High": "int64 tensor: the others"},
    infer=lambda args, inputs: [TensorInfo((-1,), INT64)] * 2, cost=flops_per_element(1),
    gradient=gradient.none, doc="Places of X up to a threshold, and those above it.",
)


# ---------------------------------------------------------------- scaling

cdef class Scale(Operator):
    cdef float scale

    def setup(self):
        self.scale = self.args.float("scale", 1.0)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y = self.y[0]
        cdef int64_t i
        if x.dtype == DOUBLE:
            resize_like(y, x, DOUBLE)
            for i in range(x.size):
                (<double*>y.data)[i] = (<const double*>x.data)[i] * self.scale
            return 0
        self.expect(0, FLOAT)
        resize_like(y, x, FLOAT)
        K.vscale(x.size, self.scale, <const float*>x.data, <float*>y.data)
        return 0


register(
    "Scale", Scale, 1, 1, ins={"X": "float or double tensor"}, outs={"Y": "tensor like X"},
    args={"scale": "factor (default 1)"}, inplace=[(0, 0)], infer=same_as_input(),
    cost=flops_per_element(1), gradient=simple("Scale", "GO0", "GI0"),
    doc="Y = scale X. May run in place.",
)


cdef class ClipTensorByScaling(Operator):
    cdef float threshold

    def setup(self):
        self.threshold = self.args.float("threshold")
        if not self.threshold > 0:
            raise ValueError("threshold must be greater than 0")

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef float value, limit = self.threshold
        cdef int i
        for i in range(self.num_inputs):
            self.expect(i, FLOAT)
            if i:
                self.expect_size(i, 1)
        if x.size == 0:
            return self.fail("the tensor is empty")
        value = (<const float*>self.x[1].data)[0]
        if self.num_inputs > 2:
            limit *= (<const float*>self.x[2].data)[0]
        resize_like(self.y[0], x, FLOAT)
        K.vscale(x.size, limit / value if value > limit else 1,
                 <const float*>x.data, <float*>self.y[0].data)
        return 0


register(
    "ClipTensorByScaling", ClipTensorByScaling, (2, 3), 1, inplace=[(0, 0)],
    ins={"input_tensor": "float tensor", "val": "one float, usually a norm of it",
         "additional_threshold": "one float, a factor of the threshold"},
    outs={"clipped": "float tensor"}, args={"threshold": "largest val that changes nothing"},
    infer=same_as_input(), cost=flops_per_element(1), gradient=gradient.none,
    doc="The input times min(1, threshold / val). May run in place.",
)


cdef class SquareRootDivide(Operator):
    cdef double scale(self, int64_t i) noexcept nogil:
        cdef tensor_t* s = self.x[1]
        if s.dtype == INT32:
            return (<const int32_t*>s.data)[i]
        if s.dtype == INT64:
            return (<const int64_t*>s.data)[i]
        return (<const float*>s.data)[i]

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* s = self.x[1]
        cdef int64_t i, d
        cdef double scale
        self.expect(0, FLOAT)
        if s.dtype != INT32 and s.dtype != INT64 and s.dtype != FLOAT:
            return self.bad_dtype(1)
        if x.ndim == 0:
            return self.fail("the data must have at least one dimension")
        self.expect_size(1, x.shape[0])
        for i in range(x.shape[0]):
            if self.scale(i) < 0:
                return self.fail("a scale is negative")
        resize_like(self.y[0], x, FLOAT)
        d = size_from(x, 1)
        for i in range(x.shape[0]):
            scale = self.scale(i)
            K.vscale(d, <float>(1 / sqrt(scale) if scale != 0 else 1),
                     <const float*>x.data + i * d, <float*>self.y[0].data + i * d)
        return 0


register(
    "SquareRootDivide", SquareRootDivide, 2, 1, inplace=[(0, 0)],
    ins={"data": "float tensor (N, ...)", "scale": "float, int32 or int64 tensor (N,)"},
    outs={"Y": "float tensor like data"}, infer=same_as_input(), cost=flops_per_element(1),
    gradient=simple("SquareRootDivide", "GO0 I1", "GI0"),
    doc="Rows of data, each over the square root of its scale; those with scale 0 stay.",
)

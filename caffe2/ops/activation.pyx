"""Activations: Relu, Sigmoid, Tanh and relatives."""
from libc.math cimport exp, fabsf
from libc.stdint cimport int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    DOUBLE, FLOAT, MAX_DIMS, canonical_axis, resize, resize_like, size_from, size_to, tensor_t,
)
from caffe2.ops.kernels.dispatch cimport K
from caffe2.ops.pointwise cimport Binary, Pointwise, binary_t, pick

from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, like, one_to_one, same_as_input


def activation(name, forward, backward, formula, flops=1, args=None, needs="O0 GO0", gradient=None):
    """Register an activation Y = f(X) and its gradient operator, which reads `needs`."""
    register(
        name, forward, 1, 1,
        ins={"X": "float tensor of any shape"}, outs={"Y": "float tensor of that shape"},
        args=args, inplace=one_to_one, infer=same_as_input(), cost=flops_per_element(flops),
        gradient=gradient or simple(name + "Gradient", needs, "GI0"),
        doc=f"{formula}, place by place. May run in place.",
    )
    names = {"I0": "X", "O0": "Y", "GO0": "dY"}
    needs = needs.split()
    register(
        name + "Gradient", backward, len(needs), 1,
        ins={names[w]: "float tensor, all of one shape" for w in needs},
        outs={"dX": "gradient of X"}, args=args, inplace=[(needs.index("GO0"), 0)], infer=like(0),
        cost=flops_per_element(flops + 1), doc=f"Gradient of {name}.",
    )


cdef class Relu(Pointwise):
    def setup(self):
        self.blocked = True

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        K.vrelu(n, x[0], y)


cdef class ReluGradient(Pointwise):
    def setup(self):
        self.blocked = True

    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        K.vrelu_grad(n, x[0], x[1], dx)


activation("Relu", Relu, ReluGradient, "Y = max(X, 0)")


cdef class Sigmoid(Pointwise):
    def setup(self):
        self.work = 10

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        K.vsigmoid(n, x[0], y)


cdef class SigmoidGradient(Pointwise):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        K.vsigmoid_grad(n, x[0], x[1], dx)


activation("Sigmoid", Sigmoid, SigmoidGradient, "Y = 1 / (1 + exp(-X))", 10)


cdef class Tanh(Pointwise):
    def setup(self):
        self.work = 10

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        K.vtanh(n, x[0], y)


cdef class TanhGradient(Pointwise):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        K.vtanh_grad(n, x[0], x[1], dx)


activation("Tanh", Tanh, TanhGradient, "Y = tanh(X)", 10)


# ---------------------------------------------------------------- piecewise linear

cdef class LeakyRelu(Pointwise):
    cdef float alpha

    def setup(self):
        self.alpha = self.args.float("alpha", 0.01)

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float alpha = self.alpha
        cdef int64_t i
        for i in range(n):
            y[i] = pick(v[i] >= 0, v[i], alpha * v[i])


cdef class LeakyReluGradient(LeakyRelu):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        cdef const float* y = x[0]
        cdef const float* dy = x[1]
        cdef float alpha = self.alpha
        cdef int64_t i
        for i in range(n):
            dx[i] = pick(y[i] >= 0, dy[i], alpha * dy[i])


activation("LeakyRelu", LeakyRelu, LeakyReluGradient, "Y = X where X >= 0, else alpha X", 2,
           {"alpha": "slope below 0 (default 0.01)"})


cdef class ThresholdedRelu(Pointwise):
    cdef float alpha

    def setup(self):
        self.alpha = self.args.float("alpha", 1.0)

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float alpha = self.alpha
        cdef int64_t i
        for i in range(n):
            y[i] = pick(v[i] > alpha, v[i], 0)


cdef class ThresholdedReluGradient(Pointwise):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        cdef const float* y = x[0]
        cdef const float* dy = x[1]
        cdef int64_t i
        for i in range(n):
            dx[i] = pick(y[i] > 0, dy[i], pick(y[i] < 0, -dy[i], 0))


activation("ThresholdedRelu", ThresholdedRelu, ThresholdedReluGradient,
           "Y = X where X > alpha, else 0", 2, {"alpha": "threshold (default 1)"})


cdef class ReluN(Pointwise):
    cdef float n

    def setup(self):
        self.n = self.args.float("n", 6.0)
        if not self.n > 0:
            raise ValueError("n must be greater than 0")

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float high = self.n
        cdef int64_t i
        for i in range(n):
            y[i] = pick(v[i] < 0, 0, pick(v[i] > high, high, v[i]))


cdef class ReluNGradient(ReluN):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        cdef const float* y = x[0]
        cdef const float* dy = x[1]
        cdef float high = self.n
        cdef int64_t i
        for i in range(n):
            dx[i] = pick((y[i] > 0) & (y[i] < high), dy[i], 0)


activation("ReluN", ReluN, ReluNGradient, "Y = min(max(X, 0), n)", 2,
           {"n": "largest value (default 6)"})


cdef class HardSigmoid(Pointwise):
    cdef float alpha
    cdef float beta

    def setup(self):
        self.alpha = self.args.float("alpha", 0.2)
        self.beta = self.args.float("beta", 0.5)

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float alpha = self.alpha, beta = self.beta, s
        cdef int64_t i
        for i in range(n):
            s = alpha * v[i] + beta
            y[i] = pick(s < 0, 0, pick(s > 1, 1, s))


cdef class HardSigmoidGradient(HardSigmoid):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        cdef const float* y = x[0]
        cdef const float* dy = x[1]
        cdef float alpha = self.alpha
        cdef int64_t i
        for i in range(n):
            dx[i] = pick((y[i] > 0) & (y[i] < 1), dy[i] * alpha, 0)


activation("HardSigmoid", HardSigmoid, HardSigmoidGradient, "Y = min(max(alpha X + beta, 0), 1)", 4,
           {"alpha": "slope (default 0.2)", "beta": "value at 0 (default 0.5)"})


cdef class Softsign(Pointwise):
    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef int64_t i
        for i in range(n):
            y[i] = v[i] / (1 + fabsf(v[i]))


cdef class SoftsignGradient(Pointwise):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef const float* dy = x[1]
        cdef float s
        cdef int64_t i
        for i in range(n):
            s = 1 + fabsf(v[i])
            dx[i] = dy[i] / (s * s)


def _softsign_gradient(g):
    if g.I(0) == g.O(0):
        raise RuntimeError("Softsign in place has no gradient: its input is gone")
    return g.op("SoftsignGradient", [g.I(0), g.GO(0)], [g.GI(0)])


activation("Softsign", Softsign, SoftsignGradient, "Y = X / (1 + |X|)", 3, needs="I0 GO0",
           gradient=_softsign_gradient)


# ---------------------------------------------------------------- with exponentials

cdef enum:
    CHUNK = 256     # exponentials that are computed at once


cdef class Exponential(Pointwise):
    """Base: functions of X, and perhaps Y and dY, and of exponentials of some of them.

    `prepare` writes what shall become exponentials, `places` computes with them; both see at most
    CHUNK places.
    """

    def setup(self):
        self.work = 10

    cdef void prepare(self, const float** x, float* e, int64_t n) noexcept nogil:
        pass

    cdef void places(self, const float** x, const float* e, float* y, int64_t n) noexcept nogil:
        pass

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        cdef float[CHUNK] e
        cdef int64_t size
        cdef int i
        while n > 0:
            size = min(n, CHUNK)
            self.prepare(x, e, size)
            K.vexp(size, e, e)
            self.places(x, e, y, size)
            for i in range(self.num_inputs):
                x[i] += size
            y += size
            n -= size


cdef class Elu(Exponential):
    cdef float alpha

    def setup(self):
        Exponential.setup(self)
        self.alpha = self.args.float("alpha", 1.0)
        if not self.alpha >= 0:
            raise ValueError("alpha may not be negative")

    cdef void prepare(self, const float** x, float* e, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef int64_t i
        for i in range(n):
            e[i] = pick(v[i] < 0, v[i], 0)

    cdef void places(self, const float** x, const float* e, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float alpha = self.alpha
        cdef int64_t i
        for i in range(n):
            y[i] = pick(v[i] < 0, alpha * (e[i] - 1), v[i])


cdef class EluGradient(Pointwise):
    cdef float alpha

    def setup(self):
        self.alpha = self.args.float("alpha", 1.0)

    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        cdef const float* y = x[0]
        cdef const float* dy = x[1]
        cdef float alpha = self.alpha
        cdef int64_t i
        for i in range(n):
            dx[i] = dy[i] * pick(y[i] > 0, 1, y[i] + alpha)


activation("Elu", Elu, EluGradient, "Y = X where X >= 0, else alpha (e^X - 1)", 10,
           {"alpha": "limit below is -alpha (default 1)"})


cdef class Selu(Elu):
    cdef float scale

    def setup(self):
        Exponential.setup(self)
        self.alpha = self.args.float("alpha", 1.6732632423543772)
        self.scale = self.args.float("scale", 1.0507009873554805)

    cdef void places(self, const float** x, const float* e, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float alpha = self.alpha, scale = self.scale
        cdef int64_t i
        for i in range(n):
            y[i] = scale * pick(v[i] < 0, alpha * (e[i] - 1), v[i])


cdef class SeluGradient(EluGradient):
    cdef float scale

    def setup(self):
        self.alpha = self.args.float("alpha", 1.6732632423543772)
        self.scale = self.args.float("scale", 1.0507009873554805)

    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        cdef const float* y = x[0]
        cdef const float* dy = x[1]
        cdef float scale = self.scale, low = self.scale * self.alpha
        cdef int64_t i
        for i in range(n):
            dx[i] = dy[i] * pick(y[i] > 0, scale, y[i] + low)


activation("Selu", Selu, SeluGradient, "Y = scale X where X > 0, else scale alpha (e^X - 1)", 10,
           {"alpha": "limit below is -scale alpha (default 1.67326)",
            "scale": "slope above 0 (default 1.0507)"})


cdef class Softplus(Exponential):
    cdef void prepare(self, const float** x, float* e, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef int64_t i
        for i in range(n):
            e[i] = -fabsf(v[i])

    cdef void places(self, const float** x, const float* e, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float[CHUNK] t
        cdef float series
        cdef int64_t i
        for i in range(n):
            t[i] = 1 + e[i]
        K.vlog(n, t, t)
        for i in range(n):          # 1 + e of a small e has lost its digits
            series = e[i] * (1 - e[i] * (<float>0.5 - e[i] * (<float>0.33333333 - e[i] / 4)))
            y[i] = pick(v[i] > 0, v[i], 0) + pick(e[i] < <float>0.03, series, t[i])


cdef class SoftplusGradient(Exponential):
    cdef void prepare(self, const float** x, float* e, int64_t n) noexcept nogil:
        cdef const float* y = x[0]
        cdef int64_t i
        for i in range(n):
            e[i] = -y[i]

    cdef void places(self, const float** x, const float* e, float* dx, int64_t n) noexcept nogil:
        cdef const float* dy = x[1]
        cdef int64_t i
        for i in range(n):
            dx[i] = dy[i] * (1 - e[i])


activation("Softplus", Softplus, SoftplusGradient, "Y = log(1 + e^X)", 20)


cdef class Swish(Pointwise):
    def setup(self):
        self.work = 10

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float[CHUNK] s
        cdef int64_t size
        while n > 0:
            size = min(n, CHUNK)
            K.vsigmoid(size, v, s)
            K.vmul(size, v, s, y)
            v += size
            y += size
            n -= size

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef const double* v = <const double*>x.data
        cdef int64_t i
        if x.dtype != DOUBLE:
            return Pointwise.run(self)
        resize_like(self.y[0], x, DOUBLE)
        for i in range(x.size):
            (<double*>self.y[0].data)[i] = v[i] / (1 + exp(-v[i]))
        return 0


cdef class SwishGradient(Pointwise):
    def setup(self):
        self.work = 10

    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef const float* y = x[1]
        cdef const float* dy = x[2]
        cdef float[CHUNK] s
        cdef int64_t i, k, size
        i = 0
        while i < n:
            size = min(n - i, CHUNK)
            K.vsigmoid(size, v + i, s)
            for k in range(size):
                dx[i + k] = dy[i + k] * (y[i + k] + s[k] * (1 - y[i + k]))
            i += size

    cdef int run(self) except -1 nogil:
        cdef const double* x = <const double*>self.x[0].data
        cdef const double* y = <const double*>self.x[1].data
        cdef const double* dy = <const double*>self.x[2].data
        cdef int64_t i
        if self.x[0].dtype != DOUBLE:
            return Pointwise.run(self)
        for i in range(1, 3):
            self.expect(<int>i, DOUBLE)
            self.expect_same_shape(<int>i, 0)
        resize_like(self.y[0], self.x[0], DOUBLE)
        for i in range(self.x[0].size):
            (<double*>self.y[0].data)[i] = dy[i] * (y[i] + (1 - y[i]) / (1 + exp(-x[i])))
        return 0


activation("Swish", Swish, SwishGradient, "Y = X / (1 + e^-X)", 10, needs="I0 O0 GO0")


cdef class Mish(Exponential):
    # tanh(log(1 + e)) = w / (w + 2), where w = e (e + 2)
    cdef void prepare(self, const float** x, float* e, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef int64_t i
        for i in range(n):          # beyond 20 nothing changes, but w would overflow
            e[i] = pick(v[i] > 20, 20, v[i])

    cdef void places(self, const float** x, const float* e, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float w
        cdef int64_t i
        for i in range(n):
            w = e[i] * (e[i] + 2)
            y[i] = v[i] * (w / (w + 2))


cdef class MishGradient(Mish):
    cdef void places(self, const float** x, const float* e, float* dx, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef const float* dy = x[2]
        cdef float w, t
        cdef int64_t i
        for i in range(n):
            w = e[i] * (e[i] + 2)
            t = w / (w + 2)
            dx[i] = dy[i] * (t + v[i] * (1 - t * t) * (e[i] / (1 + e[i])))


activation("Mish", Mish, MishGradient, "Y = X tanh(log(1 + e^X))", 20, needs="I0 O0 GO0")


cdef class Gelu(Pointwise):
    cdef bint fast

    def setup(self):
        self.work = 20
        self.fast = self.args.bool("fast_gelu")

    cdef void cdf(self, const float* x, float* p, int64_t n) noexcept nogil:
        """Normal distribution function, or with fast_gelu what comes near it."""
        cdef int64_t i
        if self.fast:
            for i in range(n):
                p[i] = <float>0.7978845608 * x[i] * (1 + <float>0.044715 * x[i] * x[i])
            K.vtanh(n, p, p)
        else:
            for i in range(n):
                p[i] = <float>0.70710678118 * x[i]
            K.verf(n, p, p)
        for i in range(n):
            p[i] = <float>0.5 * p[i] + <float>0.5

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        cdef const float* v = x[0]
        cdef float[CHUNK] p
        cdef int64_t size
        while n > 0:
            size = min(n, CHUNK)
            self.cdf(v, p, size)
            K.vmul(size, v, p, y)
            v += size
            y += size
            n -= size


cdef class GeluGradient(Gelu):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        cdef const float* dy = x[0]
        cdef const float* v = x[1]
        cdef float[CHUNK] p, slope
        cdef int64_t i, size
        while n > 0:
            size = min(n, CHUNK)
            self.cdf(v, p, size)
            if self.fast:       # t = 2 p - 1 is a tanh, with slope 1 - t^2 = 4 p (1 - p)
                for i in range(size):
                    slope[i] = 2 * p[i] * (1 - p[i]) * (
                        <float>0.7978845608 * (1 + 3 * <float>0.044715 * v[i] * v[i]))
            else:
                for i in range(size):
                    slope[i] = <float>-0.5 * v[i] * v[i]
                K.vexp(size, slope, slope)
                for i in range(size):
                    slope[i] *= <float>0.3989422804
            for i in range(size):
                dx[i] = dy[i] * (p[i] + v[i] * slope[i])
            dy += size
            v += size
            dx += size
            n -= size


activation("Gelu", Gelu, GeluGradient,
           "Y = X P(X), where P is the distribution function of the normal distribution", 20,
           {"fast_gelu": "take (1 + tanh(sqrt(2 / pi) (X + 0.044715 X^3))) / 2 for P (default 0)"},
           needs="GO0 I0")


# ---------------------------------------------------------------- gated

cdef class Glu(Operator):
    cdef int dim

    def setup(self):
        self.dim = self.args.int("dim", -1)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t[MAX_DIMS] shape
        cdef int64_t i, k, n, d
        cdef const float* v
        cdef float* y
        cdef int axis
        self.expect(0, FLOAT)
        axis = canonical_axis(self.dim, x.ndim)
        for i in range(x.ndim):
            shape[i] = x.shape[i]
        if shape[axis] % 2:
            return self.fail("the dimension to halve has an odd size")
        shape[axis] //= 2
        n = size_to(x, axis)
        d = size_from(x, axis) // 2
        resize(self.y[0], x.ndim, shape, FLOAT)
        v = <const float*>x.data
        y = <float*>self.y[0].data
        for _ in range(n):
            K.vsigmoid(d, v + d, y)
            for k in range(d):
                y[k] *= v[k]
            v += 2 * d
            y += d
        return 0


def _infer_glu(args, inputs):
    shape = list(inputs[0].shape)
    shape[args.int("dim", -1)] //= 2
    return [TensorInfo(shape, inputs[0].dtype)]


register(
    "Glu", Glu, 1, 1, ins={"X": "float tensor"}, outs={"Y": "float tensor, half as large"},
    args={"dim": "dimension that is halved (default -1)"}, infer=_infer_glu,
    cost=flops_per_element(10),
    doc="""Gated linear unit: Y = A sigmoid(B), where A and B are the halves of X.""",
)


cdef void prelu_loop(const void* tag, const float* x, const int64_t* sx, const float* w,
                     const int64_t* sw, float* y, const int64_t* sy,
                     int64_t n, int64_t m) noexcept nogil:
    cdef int64_t i
    cdef float slope
    for _ in range(m):
        if sw[0]:
            for i in range(n):
                y[i] = pick(x[i] > 0, x[i], w[i] * x[i])
        else:
            slope = w[0]
            for i in range(n):
                y[i] = pick(x[i] > 0, x[i], slope * x[i])
        x += sx[1]
        w += sw[1]
        y += sy[1]


cdef class PRelu(Binary):
    cdef bint channels_last

    def setup(self):
        order = self.args.str("order", "NCHW")
        if order not in ("NCHW", "NHWC"):
            raise ValueError(f"order must be NCHW or NHWC, not {order!r}")
        self.channels_last = order == "NHWC"
        self.legacy = True              # slopes are broadcast along the channels
        self.axis = -1 if self.channels_last else 1
        self.loops[<int>FLOAT] = <binary_t>prelu_loop

    cdef int layout(self, const tensor_t* x, const tensor_t* w, int64_t* n, int64_t* c,
                    int64_t* d) except -1 nogil:
        """See x as (n, c, d), where c is that of the slopes."""
        n[0], c[0], d[0] = 1, 1, x.size
        if w.size == 1:
            return 0
        if x.ndim < 2:
            return self.fail("X must have at least two dimensions, or there must be one slope")
        c[0] = x.shape[x.ndim - 1 if self.channels_last else 1]
        if w.size != c[0]:
            return self.fail("there must be one slope, or one for each channel")
        n[0] = size_to(x, x.ndim - 1) if self.channels_last else x.shape[0]
        d[0] = 1 if self.channels_last else size_from(x, 2)
        return 0

    cdef int run(self) except -1 nogil:
        cdef int64_t n, c, d
        self.expect(0, FLOAT)
        self.expect(1, FLOAT)
        self.layout(self.x[0], self.x[1], &n, &c, &d)
        return Binary.run(self)


cdef class PReluGradient(PRelu):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* t = self.x[2]
        cdef const float* dy = <const float*>self.x[1].data
        cdef const float* x = <const float*>t.data
        cdef const float* w = <const float*>self.x[3].data
        cdef float* dx
        cdef float* dw
        cdef int64_t n, c, d, i, k, j
        cdef double total
        cdef float slope
        for i in range(4):
            self.expect(<int>i, FLOAT)
        if self.x[0] == t:
            return self.fail("PRelu in place has no gradient: its input is gone")
        self.expect_same_shape(1, 2)
        self.layout(t, self.x[3], &n, &c, &d)
        resize_like(self.y[0], t, FLOAT)
        resize_like(self.y[1], self.x[3], FLOAT)
        dx = <float*>self.y[0].data
        dw = <float*>self.y[1].data
        for k in range(c):
            dw[k] = 0
        for _ in range(n):
            for k in range(c):
                total = 0
                slope = w[k]
                for j in range(d):
                    total += dy[j] * pick(x[j] > 0, 0, x[j])
                    dx[j] = pick(x[j] > 0, dy[j], slope * dy[j])
                dw[k] += <float>total
                dy += d
                x += d
                dx += d
        return 0


_ORDER = {"order": "NCHW (default) or NHWC: where the channels are"}
register(
    "PRelu", PRelu, 2, 1, inplace=[(0, 0)], args=_ORDER,
    ins={"X": "float tensor", "Slope": "float tensor: one slope, or one for each channel"},
    outs={"Y": "float tensor like X"}, infer=same_as_input(), cost=flops_per_element(2),
    gradient=simple("PReluGradient", "O0 GO0 I0 I1", "GI0 GI1"),
    doc="Y = X where X > 0, else Slope X. May run in place, but then there is no gradient.",
)
register(
    "PReluGradient", PReluGradient, 4, 2, args=_ORDER,
    ins={"Y": "output of PRelu", "dY": "its gradient", "X": "float tensor", "Slope": "slopes"},
    outs={"dX": "gradient of X", "dSlope": "gradient of Slope"}, infer=like(2, 3),
    cost=flops_per_element(4), doc="Gradient of PRelu.",
)

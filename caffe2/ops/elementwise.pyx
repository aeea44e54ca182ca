"""Arithmetic on tensors: +, -, *, / with broadcasting, sums, extremes and means of many, powers."""
from cython.parallel cimport prange

from libc.math cimport pow, powf
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    DOUBLE, FLOAT, INT32, INT64, canonical_axis, itemsize, resize_blocked, resize_like, size_from,
    size_to, tensor_t,
)
from caffe2._core.threads cimport num_threads
from caffe2.ops.blocked cimport all_blocked, stored_size
from caffe2.ops.kernels.dispatch cimport K
from caffe2.ops.pointwise cimport Binary, Broadcast, binary_t, nest_t, number
from caffe2.ops.reduction cimport (
    MINUS, OVER, RATIO, SUM, TIMES, fold_loop, fold_t, is_full, start,
)

from caffe2._core import gradient
from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, like, one_to_one, same_as_input
from caffe2.ops.pointwise import BROADCAST_ARGS, infer_broadcast

# ---------------------------------------------------------------- C = f(A, B)

ctypedef struct add_t:
    char _
ctypedef struct sub_t:
    char _
ctypedef struct mul_t:
    char _
ctypedef struct div_t:
    char _

ctypedef fused arithmetic:
    add_t
    sub_t
    mul_t
    div_t


cdef inline number apply(const arithmetic* tag, number a, number b) noexcept nogil:
    if arithmetic is add_t:
        return a + b
    elif arithmetic is sub_t:
        return a - b
    elif arithmetic is mul_t:
        return a * b
    elif number is float or number is double:
        return a / b
    else:       # 0 has been excluded; the least number over -1 overflows
        return -a if b == -1 else a // b


cdef void arithmetic_loop(const arithmetic* tag, const number* a, const int64_t* sa,
                          const number* b, const int64_t* sb, number* c, const int64_t* sc,
                          int64_t n, int64_t m) noexcept nogil:
    cdef int64_t i
    cdef number v
    for _ in range(m):
        if sa[0] and sb[0]:
            if number is float:
                if arithmetic is add_t:
                    K.vadd(n, a, b, c)
                elif arithmetic is sub_t:
                    K.vsub(n, a, b, c)
                elif arithmetic is mul_t:
                    K.vmul(n, a, b, c)
                else:
                    K.vdiv(n, a, b, c)
            else:
                for i in range(n):
                    c[i] = apply(tag, a[i], b[i])
        elif sa[0]:
            v = b[0]
            if c == a:          # a loop of its own: the compiler sees that nothing overlaps
                for i in range(n):
                    c[i] = apply(tag, c[i], v)
            else:
                for i in range(n):
                    c[i] = apply(tag, a[i], v)
        else:
            v = a[0]
            for i in range(n):
                c[i] = apply(tag, v, b[i])
        a += sa[1]
        b += sb[1]
        c += sc[1]


cdef void fill(const arithmetic* tag, binary_t* loops) noexcept:
    loops[<int>FLOAT] = <binary_t>arithmetic_loop[arithmetic, float]
    loops[<int>DOUBLE] = <binary_t>arithmetic_loop[arithmetic, double]
    loops[<int>INT32] = <binary_t>arithmetic_loop[arithmetic, int32_t]
    loops[<int>INT64] = <binary_t>arithmetic_loop[arithmetic, int64_t]


cdef bint has_zero(const tensor_t* t) noexcept nogil:
    """Whether an integer tensor has an element 0."""
    cdef int64_t i
    if t.dtype == INT32:
        for i in range(t.size):
            if (<const int32_t*>t.data)[i] == 0:
                return True
    elif t.dtype == INT64:
        for i in range(t.size):
            if (<const int64_t*>t.data)[i] == 0:
                return True
    return False


cdef class Add(Binary):
    def setup(self):
        Binary.setup(self)
        fill(<add_t*>NULL, self.loops)
        self.blocked = True


cdef class Sub(Binary):
    def setup(self):
        Binary.setup(self)
        fill(<sub_t*>NULL, self.loops)
        self.blocked = True


cdef class Mul(Binary):
    def setup(self):
        Binary.setup(self)
        fill(<mul_t*>NULL, self.loops)
        self.blocked = True


cdef class Div(Binary):
    def setup(self):
        Binary.setup(self)
        fill(<div_t*>NULL, self.loops)

    cdef int check(self) except -1 nogil:
        return self.fail("division by zero") if has_zero(self.x[1]) else 0


# ---------------------------------------------------------------- their gradients

cdef class Partial(Broadcast):
    """Base: folds of the full operand 2 that have the shape of operand 0 or 1."""

    cdef fold_t loop
    cdef size_t size
    cdef bint assign
    cdef int result             # the operand that is computed, and its memory
    cdef char* to
    cdef const char* terms      # operand 2, and another one like it
    cdef const char* factors
    cdef const char* others     # the operand that is not computed, or one like operand 2
    cdef int others_like

    cdef void block(self, const int64_t* at, int64_t n, int64_t m) noexcept nogil:
        cdef nest_t* t = &self.nest
        cdef int k = self.others_like
        self.loop(NULL, self.terms + at[2] * self.size, self.factors + at[2] * self.size,
                  t.stride[2][1], self.others + at[k] * self.size, &t.stride[k][0],
                  self.to + at[self.result] * self.size, &t.stride[self.result][0], self.assign,
                  n, m)

    cdef int compute(self, int fold, int k, tensor_t* out, const tensor_t* x, const tensor_t* c,
                     const tensor_t* q, int q_like) except -1 nogil:
        """out, shaped like operand k, = fold(x, c, q); q is shaped like operand q_like."""
        self.size = itemsize(x.dtype)
        self.loop = fold_loop(fold, x.dtype)
        self.result = k
        self.others_like = q_like
        self.terms = <const char*>x.data
        self.factors = <const char*>c.data
        self.others = <const char*>q.data
        self.to = <char*>out.data
        self.assign = is_full(&self.nest, k)
        if not self.assign or not self.nest.size:
            start(fold, x.dtype, out.data, out.size)
        if fold == SUM and self.assign:
            if out != x:
                memcpy(self.to, self.terms, x.size * self.size)
            return 0
        return self.sweep(k)


cdef class BinaryGradient(Partial):
    """(dA, dB) from (dC, A, B), and C for Div."""

    cdef int first              # folds
    cdef int second
    cdef int dc                 # inputs
    cdef int a
    cdef int b
    cdef int c

    def setup(self):
        Partial.setup(self)
        self.dc, self.a, self.b = 0, 1, 2
        if self.type == "AddGradient":
            self.first, self.second = SUM, SUM
        elif self.type == "SubGradient":
            self.first, self.second = SUM, MINUS
        elif self.type == "MulGradient":
            self.first, self.second = TIMES, TIMES
        else:
            self.first, self.second = OVER, RATIO
            self.c = 3
            if self.num_inputs == 3:    # as models of old have it: B, C, dC, where A is like C
                self.b, self.a, self.c, self.dc = 0, 1, 1, 2

    cdef int compute_first(self) except -1 nogil:
        cdef tensor_t* dc = self.x[self.dc]
        resize_like(self.y[0], self.x[self.a], dc.dtype)
        if self.first == SUM:
            return self.compute(SUM, 0, self.y[0], dc, dc, dc, 2)
        return self.compute(self.first, 0, self.y[0], dc, dc, self.x[self.b], 1)

    cdef int compute_second(self) except -1 nogil:
        cdef tensor_t* dc = self.x[self.dc]
        resize_like(self.y[1], self.x[self.b], dc.dtype)
        if self.second == TIMES:
            return self.compute(TIMES, 1, self.y[1], dc, dc, self.x[self.a], 0)
        if self.second == RATIO:
            return self.compute(RATIO, 1, self.y[1], dc, self.x[self.c], self.x[self.b], 1)
        return self.compute(self.second, 1, self.y[1], dc, dc, dc, 2)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* dc = self.x[self.dc]
        cdef nest_t* t = &self.nest
        cdef int i, d
        if fold_loop(SUM, dc.dtype) == NULL:
            return self.bad_dtype(self.dc)
        for i in range(self.num_inputs):
            self.expect(i, dc.dtype)
        self.align(self.x[self.a], self.x[self.b])
        if dc.ndim != t.full_ndim:
            return self.fail("the gradient must be shaped like the result")
        for d in range(dc.ndim):
            if dc.shape[d] != t.full_shape[d]:
                return self.fail("the gradient must be shaped like the result")
        if self.c:
            self.expect_same_shape(self.c, self.dc)
            if has_zero(self.x[self.b]):
                return self.fail("division by zero")
        for i in range(2):
            if self.y[i] == dc and not is_full(t, i):
                return self.fail("a gradient that is reduced may not be computed in place")
        if self.y[0] == self.x[self.b] and not (is_full(t, 0) and is_full(t, 1)):
            return self.fail("only inputs of one shape allow to compute in place")
        if self.y[0] == dc or self.y[0] == self.x[self.b]:  # what overwrites an input comes last
            self.compute_second()
            return self.compute_first()
        self.compute_first()
        return self.compute_second()


cdef class SumReduceLike(Partial):
    def setup(self):
        self.expects_flag = False
        Partial.setup(self)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* a = self.x[0]
        cdef tensor_t* b = self.x[1]
        if fold_loop(SUM, a.dtype) == NULL:
            return self.bad_dtype(0)
        if b.dtype == 0:
            return self.bad_dtype(1)
        self.align(a, b)
        resize_like(self.y[0], b, a.dtype)
        return self.compute(SUM, 1, self.y[0], a, a, a, 2)


_NUMBERS = "tensor of float, double, int32 or int64"
_IN_PLACE = [(0, 0), (1, 0)]

for _name, _cls, _sign, _inplace, _inputs in (
    ("Add", Add, "+", _IN_PLACE, "GO0 I0 I1"),
    ("Sub", Sub, "-", _IN_PLACE, "GO0 I0 I1"),
    ("Mul", Mul, "*", _IN_PLACE, "GO0 I0 I1"),
    ("Div", Div, "/", [(0, 0)], "GO0 I0 I1 O0"),
):
    register(
        _name, _cls, 2, 1, ins={"A": _NUMBERS, "B": "tensor of that dtype"},
        outs={"C": "tensor of that dtype"}, args=BROADCAST_ARGS, inplace=_inplace,
        infer=infer_broadcast(), cost=flops_per_element(1),
        gradient=simple(_name + "Gradient", _inputs, "GI0 GI1"),
        doc=f"C = A {_sign} B, with broadcasting. May run in place of an input of C's shape.",
    )
    _ins = {"dC": "gradient of C", "A": _NUMBERS, "B": "tensor of that dtype"}
    register(
        _name + "Gradient", BinaryGradient, (3, 4 if _name == "Div" else 3), 2,
        ins=_ins | {"C": "the result"} if _name == "Div" else _ins,
        outs={"dA": "gradient of A", "dB": "gradient of B"}, args=BROADCAST_ARGS,
        inplace=[(0, 0)] if _name == "Div" else [(0, 0), (0, 1)],
        infer=(lambda args, inputs: inputs[1:3] if len(inputs) == 4 else inputs[1::-1])
        if _name == "Div" else like(1, 2),
        cost=flops_per_element(2),
        doc=f"""Gradient of {_name}, summed over what was broadcast.""" + ("""

With three inputs they are (B, C, dC), and A is shaped like C.""" if _name == "Div" else ""),
    )

register(
    "SumReduceLike", SumReduceLike, 2, 1,
    ins={"A": _NUMBERS, "B": "tensor whose shape C shall have"}, outs={"C": "the sum"},
    args={name: doc for name, doc in BROADCAST_ARGS.items() if name != "broadcast"},
    infer=lambda args, inputs: [TensorInfo(inputs[1].shape, inputs[0].dtype)],
    cost=flops_per_element(1),
    doc="Sum of A over the dimensions along which B was broadcast onto it; C is shaped like B.",
)


# ---------------------------------------------------------------- many inputs

cdef enum Many:
    ADD = 0
    LARGER = 1
    SMALLER = 2

cdef enum:
    STRETCH = 4096      # places that stay in the cache while the inputs are taken one by one


cdef void join(int how, number* y, const number* a, const number* b, int64_t n) noexcept nogil:
    """y = a with b; y may be one of them. NaN wins."""
    cdef int64_t i
    if how == ADD:
        if number is float:
            K.vadd(n, a, b, y)
        else:
            for i in range(n):
                y[i] = a[i] + b[i]
    elif how == LARGER:
        for i in range(n):
            y[i] = a[i] if a[i] > b[i] or a[i] != a[i] else b[i]
    else:
        for i in range(n):
            y[i] = a[i] if a[i] < b[i] or a[i] != a[i] else b[i]


cdef class ManyInputs(Operator):
    """Sum, mean, maximum or minimum of any number of inputs of one shape."""

    cdef int how
    cdef bint mean
    cdef bint relu
    cdef bint absorbed          # Relu, which takes floats alone

    def setup(self):
        self.how = LARGER if self.type == "Max" else SMALLER if self.type == "Min" else ADD
        self.mean = self.type == "Mean"
        self.relu = self.type == "SumRelu"
        self.blocked = True

    def absorb(self, Operator following):
        if following.type != "Relu":
            return False
        self.relu = self.absorbed = True
        return True

    cdef void places(self, const number* dtype, int64_t at, int64_t n) noexcept nogil:
        cdef number* y = <number*>self.y[0].data + at
        cdef const number* x = <const number*>self.x[0].data + at
        cdef int64_t k
        cdef int i
        if self.num_inputs == 1:
            if x != y:
                memcpy(y, x, n * sizeof(number))
        for i in range(1, self.num_inputs):
            join(self.how, y, x if i == 1 else y, <const number*>self.x[i].data + at, n)
        if self.mean:
            for k in range(n):
                y[k] = y[k] / <number>self.num_inputs
        if self.relu:
            for k in range(n):
                y[k] = 0 if y[k] < 0 else y[k]

    cdef void stretch(self, int64_t low, int64_t high) noexcept nogil:
        cdef int64_t n
        while low < high:
            n = min(high - low, STRETCH)
            if self.y[0].dtype == FLOAT:
                self.places(<const float*>NULL, low, n)
            elif self.y[0].dtype == DOUBLE:
                self.places(<const double*>NULL, low, n)
            elif self.y[0].dtype == INT32:
                self.places(<const int32_t*>NULL, low, n)
            else:
                self.places(<const int64_t*>NULL, low, n)
            low += n

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t n, chunk
        cdef int i, threads
        if fold_loop(SUM, x.dtype) == NULL:
            return self.bad_dtype(0)
        if self.absorbed:
            self.expect(0, FLOAT)
        for i in range(1, self.num_inputs):
            self.expect(i, x.dtype)
            self.expect_same_shape(i, 0)
        if all_blocked(self):
            resize_blocked(self.y[0], x.shape)
        else:
            resize_like(self.y[0], x, x.dtype)
        n = stored_size(x)
        threads = num_threads(n * self.num_inputs)
        if threads == 1:
            self.stretch(0, n)
            return 0
        chunk = ((n + threads - 1) // threads + 15) & ~<int64_t>15
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            if i * chunk < n:
                self.stretch(i * chunk, min(n, (i + 1) * chunk))
        return 0


cdef class ExtremeGradient(Operator):
    """Gradients of Max and Min from (M, dM, X, Y, ...): each input that equals M gets it all."""

    def setup(self):
        if self.num_outputs > self.num_inputs - 2:
            raise ValueError("takes M, its gradient and an input for each output")

    cdef void places(self, const number* dtype, int k) noexcept nogil:
        cdef const number* top = <const number*>self.x[0].data
        cdef const number* dy = <const number*>self.x[1].data
        cdef const number* x = <const number*>self.x[k + 2].data
        cdef number* dx = <number*>self.y[k].data
        cdef int64_t i
        for i in range(self.x[0].size):
            dx[i] = dy[i] if x[i] == top[i] else 0

    cdef int run(self) except -1 nogil:
        cdef tensor_t* top = self.x[0]
        cdef int i
        if fold_loop(SUM, top.dtype) == NULL:
            return self.bad_dtype(0)
        for i in range(1, self.num_outputs + 2):
            self.expect(i, top.dtype)
            self.expect_size(i, top.size)
        for i in range(self.num_outputs):
            resize_like(self.y[i], self.x[i + 2], top.dtype)
            if top.dtype == FLOAT:
                self.places(<const float*>NULL, i)
            elif top.dtype == DOUBLE:
                self.places(<const double*>NULL, i)
            elif top.dtype == INT32:
                self.places(<const int32_t*>NULL, i)
            else:
                self.places(<const int64_t*>NULL, i)
        return 0


cdef class MeanGradient(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* dy = self.x[0]
        cdef int i
        cdef int64_t k
        if dy.dtype != FLOAT and dy.dtype != DOUBLE:
            return self.bad_dtype(0)
        # The last output may be the input.
        for i in range(self.num_outputs):
            resize_like(self.y[i], dy, dy.dtype)
        i = 0 if self.y[0] != dy else self.num_outputs - 1
        if dy.dtype == FLOAT:
            K.vscale(dy.size, <float>1 / self.num_outputs, <const float*>dy.data,
                     <float*>self.y[0].data)
        else:
            for k in range(dy.size):
                (<double*>self.y[0].data)[k] = (<const double*>dy.data)[k] / self.num_outputs
        for i in range(1, self.num_outputs):
            memcpy(self.y[i].data, self.y[0].data, dy.size * itemsize(dy.dtype))
        return 0


def _sum_gradient(g):
    for i in range(g.num_inputs):
        g.set_dense(i, g.GO(0))
    return []


def _extreme_gradient(g):
    inputs = list(g.definition.input)
    return g.op(g.definition.type + "Gradient", [g.O(0), g.GO(0), *inputs],
                [g.GI(i) for i in range(len(inputs))], copy_args=False)


def _mean_gradient(g):
    return g.op("MeanGradient", [g.GO(0)], [g.GI(i) for i in range(g.num_inputs)], copy_args=False)


_ALIKE = "inputs of one shape and dtype: float, double, int32 or int64"

for _name, _maker, _doc in (
    ("Sum", _sum_gradient, "Sum of the inputs."),
    ("SumInt", gradient.none, "Sum of the inputs."),
    ("SumRelu", None, "Sum of the inputs; negative ones become 0."),
    ("Max", _extreme_gradient, "Largest of the inputs, place by place."),
    ("Min", _extreme_gradient, "Smallest of the inputs, place by place."),
    ("Mean", _mean_gradient, "Mean of the inputs."),
):
    register(
        _name, ManyInputs, (1, None), 1, ins={"A": _ALIKE},
        outs={"C": "tensor of that shape and dtype"}, inplace=[(0, 0)], infer=same_as_input(),
        cost=lambda args, inputs, outputs: flops_per_element(max(len(inputs) - 1, 1))(
            args, inputs, outputs),
        gradient=_maker, doc=_doc + " May run in place of the first.",
    )
for _name in "Max", "Min":
    register(
        _name + "Gradient", ExtremeGradient, (3, None), (1, None),
        ins={"M": f"output of {_name}", "dM": "its gradient", "X": "first input; others follow"},
        outs={"dX": "gradient of X; others follow"}, cost=flops_per_element(1),
        infer=lambda args, inputs: inputs[2:],
        doc=f"Gradient of {_name}; all inputs that equal the result get the whole of it.",
    )
register(
    "MeanGradient", MeanGradient, 1, (1, None), ins={"dM": "gradient of Mean's output"},
    outs={"dX": "gradient of the first input; those of others follow"}, inplace=[(0, 0)],
    infer=same_as_input(), cost=flops_per_element(1), doc="Gradient of Mean.",
)


# ---------------------------------------------------------------- remainders and powers

cdef void remainders(const number* x, number* y, int64_t n, int64_t divisor,
                     bint follow) noexcept nogil:
    cdef int64_t i, r
    if number is int32_t or number is int64_t:
        for i in range(n):
            r = 0 if divisor == -1 else x[i] % divisor
            if follow and r and (r > 0) != (divisor > 0):
                r += divisor
            y[i] = <number>r


cdef class Mod(Operator):
    cdef int64_t divisor
    cdef bint follow

    def setup(self):
        self.divisor = self.args.int("divisor")
        self.follow = self.args.bool("sign_follow_divisor")
        if not self.divisor:
            raise ValueError("divisor may not be 0")

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y = self.y[0]
        if x.dtype != INT32 and x.dtype != INT64:
            return self.bad_dtype(0)
        resize_like(y, x, x.dtype)
        if x.dtype == INT32:
            remainders(<const int32_t*>x.data, <int32_t*>y.data, x.size, self.divisor, self.follow)
        else:
            remainders(<const int64_t*>x.data, <int64_t*>y.data, x.size, self.divisor, self.follow)
        return 0


register(
    "Mod", Mod, 1, 1, ins={"X": "int32 or int64 tensor"}, outs={"Y": "remainders"},
    args={"divisor": "what to divide by, not 0",
          "sign_follow_divisor": "remainders have the divisor's sign, not the value's (default 0)"},
    inplace=one_to_one, infer=same_as_input(), cost=flops_per_element(1), gradient=gradient.none,
    doc="Remainder of X over a divisor. May run in place.",
)


ctypedef fused real:
    float
    double


cdef inline real power(real x, real e) noexcept nogil:
    if real is float:
        return powf(x, e)
    else:
        return pow(x, e)


cdef void power_loop(const void* tag, const real* a, const int64_t* sa, const real* b,
                     const int64_t* sb, real* c, const int64_t* sc,
                     int64_t n, int64_t m) noexcept nogil:
    cdef int64_t i
    cdef real e
    for _ in range(m):
        e = b[0]
        if sb[0]:
            for i in range(n):
                c[i] = power(a[i * sa[0]], b[i])
        elif e == 1:
            for i in range(n):
                c[i] = a[i]
        elif e == 2:
            for i in range(n):
                c[i] = a[i] * a[i]
        elif e == 3:
            for i in range(n):
                c[i] = a[i] * a[i] * a[i]
        elif e == -1:
            for i in range(n):
                c[i] = 1 / a[i]
        else:
            for i in range(n):
                c[i] = power(a[i], e)
        a += sa[1]
        b += sb[1]
        c += sc[1]


cdef class Pow(Binary):
    """X to the power of a second input, or of an argument."""

    cdef float exponent
    cdef double wide_exponent

    def setup(self):
        Binary.setup(self)
        self.work = 20
        self.loops[<int>FLOAT] = <binary_t>power_loop[float]
        self.loops[<int>DOUBLE] = <binary_t>power_loop[double]
        if self.num_inputs == 1:
            if "exponent" not in self.args:
                raise ValueError("takes a second input or the argument exponent")
            self.exponent = self.wide_exponent = self.args.float("exponent")

    cdef void block(self, const int64_t* at, int64_t n, int64_t m) noexcept nogil:
        cdef nest_t* t = &self.nest
        cdef int64_t[2] still
        if self.num_inputs == 2:
            Binary.block(self, at, n, m)
            return
        still[0] = still[1] = 0
        self.loop(
            NULL, <const char*>self.x[0].data + at[0] * self.in_size, &t.stride[0][0],
            <const void*>&self.exponent if self.in_size == 4 else <const void*>&self.wide_exponent,
            still, <char*>self.y[0].data + at[2] * self.out_size, &t.stride[2][0], n, m)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        if self.num_inputs == 2:
            return Binary.run(self)
        self.loop = self.loops[x.dtype]
        if self.loop == NULL:
            return self.bad_dtype(0)
        resize_like(self.y[0], x, x.dtype)
        self.in_size = self.out_size = itemsize(x.dtype)
        self.flat(x.size)
        return self.sweep(2)


def _pow_gradient(g):
    """d(x^e) = e x^(e - 1) dx + x^e log(x) de, in steps of other operators."""
    def op(type, inputs, output, **args):
        return g.op(type, inputs, [output], copy_args=False, **args)

    if "exponent" in g.args:
        e = g.args.float("exponent")
        in_place = g.I(0) == g.O(0)
        if in_place and abs(e) < 1e-12:
            raise RuntimeError("Pow in place with exponent 0 has no gradient")
        x, dy, dx = g.I(0), g.GO(0), g.GI(0)
        return [op("Pow", [x], dx, exponent=(e - 1) / e if in_place else e - 1.0),
                op("Mul", [dx, dy], dx), op("Scale", [dx], dx, scale=e)]
    if g.O(0) in g.definition.input:
        raise RuntimeError("Pow in place has no gradient: its inputs are gone")
    axis = {}
    if "broadcast" in g.args:
        axis = {"axis": g.args.int("axis", -1), "axis_str": g.args.str("axis_str"),
                "order": g.args.str("order", "NCHW")}
    onto = axis and {"broadcast": g.args.int("broadcast"), **axis}
    x, e, y, dy, dx, de = g.I(0), g.I(1), g.O(0), g.GO(0), g.GI(0), g.GI(1)
    wide = de + "_autogen_pre_red"
    return [
        op("ConstantFill", [e], de, value=1.0),
        op("Sub", [e, de], de),
        op("Pow", [x, de], dx, **onto),
        op("Mul", [dx, dy], dx),
        op("Mul", [dx, e], dx, **onto),
        op("Log", [x], wide),
        op("Mul", [wide, y], wide),
        *([op("Mul", [wide, dy], wide), op("SumReduceLike", [wide, e], de, **axis)] if axis else
          [op("Mul", [wide, dy], de)]),
    ]


register(
    "Pow", Pow, (1, 2), 1, ins={"X": "float or double tensor", "exponent": "tensor of that dtype"},
    outs={"Y": "tensor of that dtype"}, inplace=_IN_PLACE,
    args={"exponent": "exponent for all of X, instead of a second input", **BROADCAST_ARGS},
    infer=lambda args, inputs: infer_broadcast()(args, inputs) if len(inputs) > 1 else inputs,
    cost=flops_per_element(20), gradient=_pow_gradient,
    doc="Y = X ^ exponent, with broadcasting. May run in place.",
)


# ---------------------------------------------------------------- scaled rows and columns

cdef class RowMul(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef const float* w = <const float*>self.x[1].data
        cdef int64_t i, d
        self.expect(0, FLOAT)
        self.expect(1, FLOAT)
        if x.ndim == 0:
            return self.fail("mat must have at least one dimension")
        self.expect_size(1, x.shape[0])
        resize_like(self.y[0], x, FLOAT)
        d = size_from(x, 1)
        for i in range(x.shape[0]):
            K.vscale(d, w[i], <const float*>x.data + i * d, <float*>self.y[0].data + i * d)
        return 0


def _row_mul_gradient(g):
    dw = g.GI(1)
    return [g.op("RowMul", [g.GO(0), g.I(1)], [g.GI(0)]),
            g.op("Mul", [g.GO(0), g.I(0)], [dw + "before_aggregate"]),
            g.op("ReduceTailSum", [dw + "before_aggregate"], [dw])]


register(
    "RowMul", RowMul, 2, 1, ins={"mat": "float tensor", "w": "a float for each of its rows"},
    outs={"output": "float tensor like mat"}, inplace=[(0, 0)], infer=same_as_input(),
    cost=flops_per_element(1), gradient=_row_mul_gradient, doc="Rows of mat, each times its w.",
)


cdef class ElementwiseLinear(Operator):
    cdef int axis
    cdef int64_t n
    cdef int64_t d

    def setup(self):
        self.axis = self.args.int("axis", 1)

    cdef int split(self, int x) except -1 nogil:
        """See input x as a matrix; the vectors are as long as its rows."""
        cdef int axis, i
        for i in range(3):
            self.expect(i, FLOAT)
        axis = canonical_axis(self.axis, self.x[x].ndim)
        self.n = size_to(self.x[x], axis)
        self.d = size_from(self.x[x], axis)
        for i in range(x + 1, 3):
            self.expect_ndim(i, 1)
            self.expect_size(i, self.d)
        return 0

    cdef int run(self) except -1 nogil:
        cdef const float* x = <const float*>self.x[0].data
        cdef const float* w = <const float*>self.x[1].data
        cdef const float* b = <const float*>self.x[2].data
        cdef int64_t j
        cdef float* y
        self.split(0)
        resize_like(self.y[0], self.x[0], FLOAT)
        y = <float*>self.y[0].data
        for _ in range(self.n):
            for j in range(self.d):
                y[j] = x[j] * w[j] + b[j]
            x += self.d
            y += self.d
        return 0


cdef class ElementwiseLinearGradient(ElementwiseLinear):
    cdef int run(self) except -1 nogil:
        cdef const float* dy = <const float*>self.x[0].data
        cdef const float* x = <const float*>self.x[1].data
        cdef const float* w = <const float*>self.x[2].data
        cdef int64_t j
        cdef float* dx
        cdef float* dw
        self.split(1)
        self.expect_same_shape(0, 1)
        resize_like(self.y[0], self.x[1], FLOAT)
        resize_like(self.y[1], self.x[2], FLOAT)
        resize_like(self.y[2], self.x[2], FLOAT)
        K.column_sums(self.n, self.d, dy, self.d, <float*>self.y[2].data)
        dx = <float*>self.y[0].data
        dw = <float*>self.y[1].data
        start(SUM, FLOAT, dw, self.d)
        for _ in range(self.n):
            for j in range(self.d):
                dx[j] = dy[j] * w[j]
                dw[j] += dy[j] * x[j]
            dy += self.d
            x += self.d
            dx += self.d
        return 0


_AXIS = {"axis": "dimensions of X from it on belong to w and b; negative counts from the end "
                 "(default 1)"}
register(
    "ElementwiseLinear", ElementwiseLinear, 3, 1, args=_AXIS,
    ins={"X": "float tensor, seen as a matrix (N, D)", "w": "float tensor (D,)",
         "b": "float tensor (D,)"},
    outs={"Y": "float tensor like X"}, infer=same_as_input(), cost=flops_per_element(2),
    gradient=simple("ElementwiseLinearGradient", "GO0 I0 I1", "GI0 GI1 GI2"),
    doc="Y[n, d] = X[n, d] w[d] + b[d]",
)
register(
    "ElementwiseLinearGradient", ElementwiseLinearGradient, 3, 3, args=_AXIS,
    ins={"dY": "gradient of Y", "X": "float tensor, seen as a matrix (N, D)",
         "w": "float tensor (D,)"},
    outs={"dX": "gradient of X", "dw": "gradient of w", "db": "gradient of b"},
    infer=like(1, 2, 2), cost=flops_per_element(4), doc="Gradient of ElementwiseLinear.",
)

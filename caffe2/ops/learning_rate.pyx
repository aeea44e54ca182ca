"""What changes with the iteration: its counters, and learning rates under every policy."""
from libc.math cimport INFINITY, cos, fabs, floor, fmax, log, pow
from libc.stdint cimport int32_t, int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport FLOAT, INT32, INT64, resize0, resize1, tensor_t

from caffe2._core import gradient
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, like

cdef extern from *:
    """
    /* One more, unless the count is negative or at its end: -1 then. Others may count meanwhile. */
    static int count_up(long long* at) {
        long long n = __atomic_load_n(at, __ATOMIC_RELAXED);
        do { if (n < 0 || n == 0x7fffffffffffffffLL) return -1; }
        while (!__atomic_compare_exchange_n(at, &n, n + 1, 1, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
        return 0;
    }
    """
    int count_up(long long* at) noexcept nogil

cdef double PI = 3.14159265358979323846


# ---------------------------------------------------------------- iteration counters

cdef class Iter(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* t = self.y[0]
        cdef int64_t count = 0
        if t.dtype == INT32 and t.size == 1:  # many scripts fill the count as an int32
            count = (<int32_t*>t.data)[0]
            resize1(t, 1, INT64)
            (<int64_t*>t.data)[0] = count
        elif self.num_inputs == 0 and t.dtype != INT64:
            resize1(t, 1, INT64)
            (<int64_t*>t.data)[0] = 0
        if t.dtype != INT64 or t.size != 1:
            return self.fail("the iteration must be one int64")
        t.version += 1
        if count_up(<long long*>t.data):
            return self.fail("the iteration is negative, or too large to grow")
        return 0


cdef class AtomicIter(Operator):
    cdef int run(self) except -1 nogil:
        # The count itself is atomic: nobody needs to wait for the mutex.
        self.expect(1, INT64)
        self.expect_size(1, 1)
        self.y[0].version += 1
        if count_up(<long long*>self.y[0].data):
            return self.fail("the iteration is negative, or too large to grow")
        return 0


register(
    "Iter", Iter, (0, 1), 1,
    ins={"iter": "the count, one int64, or an int32 that becomes one"}, outs={"iter": "the count, one more"},
    enforce_inplace=[(0, 0)],
    infer=lambda args, inputs: [TensorInfo((1,), INT64)], gradient=gradient.none,
    doc="Counts its own runs in an int64. Without an input, the output starts at 0 where it does "
        "not exist.",
)
register(
    "AtomicIter", AtomicIter, 2, 1,
    ins={"mutex": "a mutex, as CreateMutex makes it", "iter": "the count, one int64"},
    outs={"iter": "the count, one more"}, enforce_inplace=[(1, 0)],
    infer=like(1), gradient=gradient.none,
    doc="Like Iter, for nets that run at the same time, as in Hogwild: no count is lost.",
)


# ---------------------------------------------------------------- learning rates

cdef class Policy:
    """The factor of the base learning rate, by iteration; `p` holds its parameters."""
    cdef double[5] p

    def __init__(self, *parameters):
        for i, value in enumerate(parameters):
            self.p[i] = value

    cdef double at(self, int64_t i) noexcept nogil:
        return 1


cdef class Alter(Policy):                           # active, inactive, active first
    cdef double at(self, int64_t i) noexcept nogil:
        cdef int64_t active = <int64_t>self.p[0], inactive = <int64_t>self.p[1]
        cdef bint first = self.p[2] != 0
        return first == (i % (active + inactive) < (active if first else inactive))


cdef class Step(Policy):                            # stepsize, gamma
    cdef double at(self, int64_t i) noexcept nogil:
        return pow(self.p[1], <double>(i // <int64_t>self.p[0]))


cdef class Exp(Policy):                             # gamma
    cdef double at(self, int64_t i) noexcept nogil:
        return pow(self.p[0], <double>i)


cdef class Gate(Policy):                            # before, after, num_iter
    cdef double at(self, int64_t i) noexcept nogil:
        return self.p[0] if i < self.p[2] else self.p[1]


cdef class Inv(Policy):                             # gamma, power
    cdef double at(self, int64_t i) noexcept nogil:
        return pow(1 + self.p[0] * i, -self.p[1])


cdef class Poly(Policy):                            # power, max_iter
    cdef double at(self, int64_t i) noexcept nogil:
        return pow(1 - i / self.p[1], self.p[0])


cdef class LinearWarmup(Policy):                    # start, num_iter
    cdef double at(self, int64_t i) noexcept nogil:
        return 1 if i >= self.p[1] else self.p[0] + (1 - self.p[0]) * i / self.p[1]


cdef class InvAbove(Inv):                           # gamma, power, least
    cdef double at(self, int64_t i) noexcept nogil:
        return fmax(self.p[2], Inv.at(self, i))


cdef class Slope(Policy):                           # from, multiplier there, to, multiplier there
    cdef double at(self, int64_t i) noexcept nogil:
        if i < self.p[0]:
            return self.p[1]
        return fmax(self.p[3],
                    self.p[1] + (i - self.p[0]) * (self.p[3] - self.p[1]) / (self.p[2] - self.p[0]))


cdef class Cyclical(Policy):                        # greatest / base, stepsize, decay
    cdef double at(self, int64_t i) noexcept nogil:
        cdef int64_t cycle = i // (2 * <int64_t>self.p[1])
        cdef double x = fabs(i / self.p[1] - 2 * cycle - 1)
        return 1 + (self.p[0] - 1) * fmax(0, 1 - x) * pow(self.p[2], <double>cycle)


cdef class Cosine(Policy):                          # greatest, least, period, its growth, shrinkage
    cdef double at(self, int64_t i) noexcept nogil:
        cdef double period = self.p[2], growth = self.p[3], cycle, start, length, shrink
        if growth == 1:
            cycle = floor(i / period)
            length = period
            start = cycle * period
        else:
            cycle = floor(log(1 - i / period * (1 - growth)) / log(growth))
            length = pow(growth, cycle) * period
            start = (1 - pow(growth, cycle)) / (1 - growth) * period
        shrink = pow(self.p[4], cycle)
        return shrink * (self.p[1] + 0.5 * (self.p[0] - self.p[1])
                         * (1 + cos(PI * (i - start) / length)))


cdef class Then(Policy):                            # how long the first
    """One policy, then another, which counts from its own start unless `absolute`."""
    cdef Policy first, rest
    cdef bint absolute

    def __init__(self, length, Policy first, Policy rest, absolute=False):
        self.p[0] = length
        self.first, self.rest, self.absolute = first, rest, absolute

    cdef double at(self, int64_t i) noexcept nogil:
        cdef int64_t length = <int64_t>self.p[0]
        if i < length:
            return self.first.at(i)
        return self.rest.at(i if self.absolute else i - length)


cdef class Scaled(Policy):                          # scale
    cdef Policy policy

    def __init__(self, scale, Policy policy):
        self.p[0], self.policy = scale, policy

    cdef double at(self, int64_t i) noexcept nogil:
        return self.p[0] * self.policy.at(i)


def _positive(**values):
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"the argument {name} must be positive, but is {value}")
    return values.values()


def _warmup(f, i, rest):
    """Constant, then linear up to 1, then `rest`."""
    start = f("start_warmup_multiplier", 0.1)
    flat, rising = i("constant_warmup_num_iter", 10000000), i("linear_warmup_num_iter", 10000000)
    return Then(flat, Gate(start, start, 0), Then(rising, LinearWarmup(start, rising), rest))


def _alter(args, f, i, base):
    active, inactive = i("active_period", -1), i("inactive_period", -1)
    if active < 0 or inactive < 0 or active + inactive == 0:
        raise ValueError("the policy alter needs the arguments active_period and inactive_period, "
                         "not negative, not both 0")
    return Alter(active, inactive, i("active_first", 1) != 0)


def _hill(args, f, i, base):
    n, = _positive(num_iter=i("num_iter", 0))
    return Then(n, LinearWarmup(f("start_multiplier", 0), n),
                InvAbove(f("gamma", 0), f("power", 0), f("end_multiplier", 0)))


def _step(args, f, i, base):
    return Step(*_positive(stepsize=i("stepsize", 0)), f("gamma", 0))


def _poly(args, f, i, base):
    n = i("max_iter", -1)
    if n == 0:
        raise ValueError("the argument max_iter must not be 0")
    return Poly(f("power", 0), n if n > 0 else INFINITY)


def _slope(args, f, i, base):
    n1, n2 = _positive(num_iter_1=i("num_iter_1", 0), num_iter_2=i("num_iter_2", 0))
    if n2 <= n1:
        raise ValueError(f"the argument num_iter_2 ({n2}) must be greater than num_iter_1 ({n1})")
    return Slope(n1, f("multiplier_1", 0), n2, f("multiplier_2", 0))


def _cyclical(f, i, base, prefix="", stepsize="stepsize", default=(0.005, 0)):
    if base == 0:
        raise ValueError("a cyclical learning rate needs a base_lr other than 0")
    size, = _positive(**{prefix + stepsize: i(prefix + stepsize, default[1])})
    return Cyclical(abs(f(prefix + "max_lr", default[0])) / abs(base), size, f(prefix + "decay", 1))


def _cosine(f, i, prefix=""):
    period, growth = _positive(**{
        prefix + "period": i(prefix + "period", 50), prefix + "t_mult": f(prefix + "t_mult", 1)})
    return Cosine(f(prefix + "max_lr", 0.5), f(prefix + "min_lr", 0.1), period, growth,
                  f(prefix + "lr_shrink", 0.99))


def _composite(args, f, i, base):
    lengths = args.ints("sub_policy_num_iters")
    if not lengths:
        raise ValueError("the policy composite needs the argument sub_policy_num_iters")
    policy = None
    end = sum(lengths) + 1                          # iterations count from 1
    for k in reversed(range(len(lengths))):
        _positive(sub_policy_num_iters=lengths[k])
        prefix = f"sub_policy_{k}_"
        if args.str(prefix + "policy") == "composite":
            raise ValueError("a composite policy may not be part of a composite policy")
        part = Scaled(args.float(prefix + "lr_scale", 1), make_policy(args, base, prefix))
        policy = part if policy is None else Then(end, part, policy, absolute=True)
        end -= lengths[k]
    return policy


# policy -> maker from (args, float getter, int getter, base learning rate)
_POLICIES = {
    "fixed": lambda args, f, i, base: Policy(),
    "alter": _alter,
    "hill": _hill,
    "step": _step,
    "exp": lambda args, f, i, base: Exp(f("gamma", 0)),
    "gate": lambda args, f, i, base: Gate(
        f("multiplier_1", 1), f("multiplier_2", 1), i("num_iter", 0)),
    "inv": lambda args, f, i, base: Inv(f("gamma", 0), f("power", 0)),
    "poly": _poly,
    "linearWarmup": lambda args, f, i, base: LinearWarmup(
        f("start_multiplier", 0), i("num_iter", 0)),
    "constantWarmup": lambda args, f, i, base: Gate(f("multiplier", 0.5), 1, i("num_iter", 0)),
    "slope": _slope,
    "cyclical": lambda args, f, i, base: _cyclical(f, i, base),
    "cosine": lambda args, f, i, base: _cosine(f, i),
    "constantThenLinearWarmup": lambda args, f, i, base: _warmup(f, i, Policy()),
    "compositeCyclical": lambda args, f, i, base: _warmup(
        f, i, _cyclical(f, i, base, "cyclical_", "step_size", (0.05, 1000000))),
    "compositeCosine": lambda args, f, i, base: _warmup(f, i, _cosine(f, i, "cosine_")),
    "composite": _composite,
}


def make_policy(args, base, prefix=""):
    """The policy that arguments, their names prefixed, describe."""
    name = args.str(prefix + "policy")
    if name not in _POLICIES:
        raise ValueError(f"the argument {prefix}policy must be one of {', '.join(_POLICIES)}, but "
                         f"is {name!r}")
    return _POLICIES[name](args, lambda n, default: args.float(prefix + n, default),
                           lambda n, default: args.int(prefix + n, default), base)


cdef class LearningRate(Operator):
    cdef double base
    cdef Policy policy

    def setup(self):
        if "base_lr" not in self.args:
            raise ValueError("the argument base_lr must be given")
        self.base = self.args.float("base_lr")
        self.policy = make_policy(self.args, self.base)

    cdef int run(self) except -1 nogil:
        self.expect(0, INT64)
        if self.x[0].size < 1:
            return self.fail("the iteration must be one int64")
        cdef int64_t i = (<int64_t*>self.x[0].data)[0]
        resize0(self.y[0], FLOAT)
        (<float*>self.y[0].data)[0] = <float>(self.base * self.policy.at(i))
        return 0


def on_cpu(*inputs):
    """Device rule: these inputs are on the CPU, all else where the operator is."""
    def devices(op):
        cpu = type(op.device_option)()
        of_inputs = [cpu if i in inputs else op.device_option for i in range(len(op.input))]
        return of_inputs, [op.device_option] * len(op.output)
    return devices


register(
    "LearningRate", LearningRate, 1, 1,
    ins={"input": "the iteration, an int64"}, outs={"output": "the learning rate, a float scalar"},
    args={
        "base_lr": "the rate to multiply; negative where the update is to be added",
        "policy": "how the factor changes, see above",
        "power": "inv, poly, hill: exponent", "gamma": "step, exp, inv, hill: decay",
        "stepsize": "step, cyclical: iterations a step",
        "active_first": "alter: start active (default true)",
        "active_period": "alter: iterations at factor 1",
        "inactive_period": "alter: iterations at factor 0",
        "max_iter": "poly: where the factor becomes 0; -1: never",
        "num_iter": "linearWarmup, constantWarmup, hill, gate: length of the first phase",
        "start_multiplier": "linearWarmup, hill: factor at the start",
        "end_multiplier": "hill: least factor",
        "multiplier": "constantWarmup: factor of the first phase (default 0.5)",
        "multiplier_1": "gate (default 1), slope: factor before",
        "multiplier_2": "gate (default 1), slope: factor after",
        "sub_policy_num_iters": "composite: how long each policy lasts",
        "m1": "old name, not read", "n1": "old name, not read", "m2": "old name, not read",
        "n2": "old name, not read",
        "m3": "old name, not read",
        "max_lr": "cyclical: greatest rate (default 0.005); cosine: greatest factor (default 0.5)",
        "start_warmup_multiplier": "constantThenLinearWarmup, composite*: factor at the start "
                                   "(default 0.1)",
        "constant_warmup_num_iter": "constantThenLinearWarmup, composite*: iterations at that "
                                    "factor",
        "linear_warmup_num_iter": "constantThenLinearWarmup, composite*: iterations of the rise "
                                  "to 1",
        "cyclical_max_lr": "compositeCyclical: greatest rate (default 0.05)",
        "cyclical_step_size": "compositeCyclical: iterations of half a cycle",
        "cyclical_decay": "compositeCyclical: see decay",
        "cosine_min_lr": "compositeCosine: least factor (default 0.1)",
        "cosine_max_lr": "compositeCosine: greatest factor (default 0.5)",
        "cosine_period": "compositeCosine: see period",
        "cosine_t_mult": "compositeCosine: see t_mult",
        "cosine_lr_shrink": "compositeCosine: see lr_shrink",
        "min_lr": "cosine: least factor (default 0.1)",
        "period": "cosine: iterations of the first cycle (default 50)",
        "t_mult": "cosine: growth of the cycle (default 1)",
        "lr_shrink": "cosine: factor of each cycle on the next (default 0.99)",
        "decay": "cyclical: factor of each cycle on the next (default 1)",
        "num_iter_1": "slope: where the fall begins", "num_iter_2": "slope: where it ends",
    },
    infer=lambda args, inputs: [TensorInfo((), FLOAT)], devices=on_cpu(0), gradient=gradient.none,
    doc="""The learning rate of an iteration i: base_lr times a factor that `policy` names:

- fixed: 1
- step: gamma ** (i // stepsize)
- exp: gamma ** i
- inv: (1 + gamma * i) ** -power
- poly: (1 - i / max_iter) ** power
- linearWarmup: from start_multiplier to 1 in num_iter iterations
- constantWarmup: `multiplier` for num_iter iterations, then 1
- gate: multiplier_1 for num_iter iterations, then multiplier_2
- slope: multiplier_1 for num_iter_1 iterations, then on a line to multiplier_2 at num_iter_2
- alter: 1 for active_period, 0 for inactive_period, and again
- hill: linearWarmup, then inv from there, never below end_multiplier
- cyclical: triangles between base_lr and max_lr, stepsize up and down, lower by `decay` each time
- cosine: half cosines from max_lr to min_lr, a period each, the next t_mult as long and lr_shrink
  as high; base_lr multiplies both
- constantThenLinearWarmup: start_warmup_multiplier for constant_warmup_num_iter iterations, then on
  a line to 1 in linear_warmup_num_iter
- compositeCyclical, compositeCosine: that warm-up, then cyclical or cosine, with arguments
  cyclical_*, cosine_*
- composite: policies one after the other, sub_policy_num_iters iterations each; the k-th has its
  arguments prefixed with sub_policy_k_, and the factor sub_policy_k_lr_scale; i is counted from the
  start of the first""",
)

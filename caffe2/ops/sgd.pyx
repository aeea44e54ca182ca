"""Steps of optimizers: the updates of dense and sparse parameters, and what they are scaled by.

An update rule is a subclass of `Update` that says, in `update`, what happens to one stretch of a
parameter and its state. The same rule serves a dense parameter, cut into one stretch a thread, and
a sparse one, whose stretches are the rows that have a gradient. `update_rule` registers an
operator: the rule, and the order of its blobs.
"""
from cython.parallel cimport prange

from libc.math cimport cbrt, exp, fmax, fmin, log, pow, sqrt, sqrtf
from libc.stdint cimport INT64_MAX, int32_t, int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport DOUBLE, FLOAT, INT32, INT64, copy, resize1, resize_like, tensor_t
from caffe2._core.threads cimport num_threads
from caffe2.ops.kernels.dispatch cimport K

from caffe2._core import gradient
from caffe2._core.registry import CUDA, register
from caffe2._core.schema import TensorInfo, flops_per_element, like
from caffe2.ops.learning_rate import on_cpu

# ---------------------------------------------------------------- sums of products

cdef double dot(const float* a, const float* b, int64_t n) noexcept nogil:
    cdef int threads = num_threads(n)
    cdef int64_t chunk = (n + threads - 1) // threads
    cdef double total = 0
    cdef int i
    if threads == 1:
        return K.vdot(n, a, b)
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        if i * chunk < n:
            total += K.vdot(min(n, (i + 1) * chunk) - i * chunk, a + i * chunk, b + i * chunk)
    return total


cdef class LearningRateAdaption(Operator):
    cdef double alpha
    cdef bint normalized

    def setup(self):
        self.alpha = self.args.float("lr_alpha", 0.01)
        self.normalized = self.args.bool("normalized_lr_adaption", True)

    cdef int run(self) except -1 nogil:
        cdef int i
        for i in range(3):
            self.expect(i, FLOAT)
        self.expect_size(0, 1)
        self.expect_size(2, self.x[1].size)
        cdef const float* g = <const float*>self.x[1].data
        cdef const float* e = <const float*>self.x[2].data
        cdef int64_t n = self.x[1].size
        cdef double lr = (<const float*>self.x[0].data)[0], product = dot(g, e, n)
        if self.normalized:
            lr -= lr * self.alpha * product / fmax(sqrt(dot(g, g, n)),
                                                   1e-12) / fmax(sqrt(dot(e, e, n)), 1e-12)
        else:
            lr -= self.alpha * product
        resize_like(self.y[0], self.x[0], FLOAT)
        (<float*>self.y[0].data)[0] = <float>lr
        return 0


register(
    "LearningRateAdaption", LearningRateAdaption, 3, 1,
    ins={"lr": "the learning rate, one float", "grad": "the gradient",
         "effgrad": "the direction of the last step, as large"},
    outs={"output_lr": "the learning rate, adapted"}, inplace=[(0, 0)],
    args={"lr_alpha": "how fast the rate adapts (default 0.01)",
          "normalized_lr_adaption": "whether the rate changes by the cosine of the two vectors, "
                                    "relatively (default true)"},
    infer=like(0), cost=flops_per_element(1), gradient=gradient.none,
    doc="""Learns the learning rate (arXiv:1703.04782): with c = <grad, effgrad>, lr * (1 -
lr_alpha * c / |grad| / |effgrad|), or lr - lr_alpha * c if not normalized. May run in place.""",
)


cdef class Lars(Operator):
    cdef double offset, lr_min

    def setup(self):
        self.offset = self.args.float("offset", 0.5)
        self.lr_min = self.args.float("lr_min", 0.02)
        if self.offset < 0:
            raise ValueError(f"the argument offset must not be negative, but is {self.offset}")

    cdef int run(self) except -1 nogil:
        cdef int i
        for i in range(5):
            self.expect(i, FLOAT)
            if i > 1:
                self.expect_size(i, 1)
        self.expect_size(1, self.x[0].size)
        cdef const float* x = <const float*>self.x[0].data
        cdef const float* g = <const float*>self.x[1].data
        cdef int64_t n = self.x[0].size
        cdef double decay = (<const float*>self.x[2].data)[0]
        cdef double trust = (<const float*>self.x[3].data)[0]
        cdef double lr_max = (<const float*>self.x[4].data)[0], rate = 1, norm = sqrt(dot(x, x, n))
        if norm > 0:
            rate = trust / (sqrt(dot(g, g, n)) / norm + decay + self.offset)
        resize1(self.y[0], 1, FLOAT)
        (<float*>self.y[0].data)[0] = <float>fmax(fmin(rate, lr_max), self.lr_min)
        return 0


register(
    "Lars", Lars, 5, 1,
    ins={"X": "float parameter", "dX": "its gradient", "wd": "weight decay, one float",
         "trust": "trust ratio, one float",
         "lr_max": "greatest factor, one float"},
    outs={"lr_rescaled": "factor of the learning rate, one float"},
    args={"offset": "added to the divisor (default 0.5)", "lr_min": "least factor (default 0.02)"},
    infer=lambda args, inputs: [TensorInfo((1,), FLOAT)], cost=flops_per_element(1),
    doc="""Layer-wise adaptive rate scaling (arXiv:1708.03888): trust / (|dX| / |X| + wd +
offset), 1 where X is 0, kept between lr_min and lr_max.""",
)


# ---------------------------------------------------------------- updates: the template

cdef enum:
    MAX_SLOTS = 5
    PIECE = 4096

# How large a piece of state is, beside its parameter.
cdef enum Extent:
    SAME            # as large
    PAIR            # two values for each
    ROW             # one value for each row
    ONE             # one value

ctypedef float* floats_t

cdef dict EXTENTS = {"": SAME, "pair": PAIR, "row": ROW, "one": ONE}
cdef dict LAYOUTS = {}      # operator type -> ([input names], [output names], {name: extent})


cdef int64_t index_at(const tensor_t* t, int64_t i) noexcept nogil:
    return (<int32_t*>t.data)[i] if t.dtype == INT32 else (<int64_t*>t.data)[i]


cdef int check_indices(Operator op, int input, int64_t rows) except -1 nogil:
    cdef tensor_t* t = op.x[input]
    cdef int64_t i, j
    if t.dtype != INT32 and t.dtype != INT64:
        return op.bad_dtype(input)
    for i in range(t.size):
        j = index_at(t, i)
        if j < 0 or j >= rows:
            with gil:
                raise IndexError(f"index {j} is out of range: there are {rows} rows")
    return 0


cdef class Update(Operator):
    """An optimizer's step on a dense parameter or, where there is an input `indices`, on some rows.

    State is updated in place: an output that is not in place gets a copy first. A rule sees `s`,
    pointers to the state in the order of the outputs (without the gradient), and `g`, the gradient,
    which it overwrites with the step if `emit`.
    """
    cdef int slots
    cdef int[MAX_SLOTS] source          # input of that slot, -1 where the output starts afresh
    cdef int[MAX_SLOTS] target          # its output
    cdef int[MAX_SLOTS] extent
    cdef size_t[MAX_SLOTS] stride       # bytes a row (sparse) or a value (dense)
    cdef int param, grad, lr, indices, iteration, grad_output
    cdef bint emit
    cdef float* g
    cdef float rate

    def setup(self):
        inputs, outputs, extents = LAYOUTS[self.type]
        names = {name: i for i, name in enumerate(inputs[:self.num_inputs])}
        self.grad, self.lr = names["grad"], names.get("lr", -1)
        self.indices, self.iteration = names.get("indices", -1), names.get("iter", -1)
        self.param = names.get("param", self.grad)
        self.grad_output = -1
        for o, name in enumerate(outputs[:self.num_outputs]):
            if name == "grad":
                self.grad_output = o
                continue
            self.source[self.slots] = names.get(name, -1)
            self.target[self.slots] = o
            self.extent[self.slots] = EXTENTS[extents[name]]
            self.slots += 1
        self.emit = self.grad_output >= 0
        self.configure()

    def configure(self):
        """Parse the rule's arguments."""

    # Read what is the same for all stretches; state has its place by now.
    cdef int prepare(self) except -1 nogil:
        return 0

    # Update n values; row is that of a sparse parameter, -1 otherwise.
    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        pass

    cdef int check(self) except -1 nogil:
        """Raise before anything has changed."""
        cdef tensor_t* param = self.x[self.param]
        cdef int64_t rows = 1, size
        cdef int k
        self.expect(self.param, FLOAT)
        self.expect(self.grad, FLOAT)
        if self.lr >= 0:
            self.expect(self.lr, FLOAT)
            self.expect_size(self.lr, 1)
        if self.iteration >= 0:
            self.expect(self.iteration, INT64)
            self.expect_size(self.iteration, 1)
        if self.indices >= 0:
            if param.ndim == 0:
                return self.fail("a parameter with sparse gradient must have at least one "
                                 "dimension")
            rows = param.shape[0]
            check_indices(self, self.indices, rows)
            size = param.size // rows if rows else 0
            self.expect_size(self.grad, self.x[self.indices].size * size)
        else:
            self.expect_size(self.grad, param.size)
        for k in range(self.slots):
            if self.source[k] < 0:
                continue
            if not (self.extent[k] == ROW and self.x[self.source[k]].dtype == INT64):
                self.expect(self.source[k], FLOAT)
            size = param.size
            if self.extent[k] == PAIR:
                size *= 2
            elif self.extent[k] == ROW:
                size = rows
            elif self.extent[k] == ONE:
                size = 1
            self.expect_size(self.source[k], size)
        return 0

    cdef int place(self) except -1 nogil:
        """Give every output its room, and its start from the input that it continues."""
        cdef int k
        cdef int64_t rows
        for k in range(self.slots):
            if self.source[k] >= 0:
                copy(self.y[self.target[k]], self.x[self.source[k]])
            elif self.extent[k] == ONE:
                resize1(self.y[self.target[k]], 1, FLOAT)
            else:
                resize_like(self.y[self.target[k]], self.x[self.grad], FLOAT)
            rows = 0 if self.extent[k] == ONE else 1
            if self.indices >= 0:
                rows = rows and self.x[self.param].shape[0]
            else:
                rows = rows and self.x[self.param].size
            self.stride[k] = 0
            if rows:
                self.stride[k] = self.y[self.target[k]].size // rows * (
                    8 if self.y[self.target[k]].dtype == INT64 else 4)
        if self.emit:
            copy(self.y[self.grad_output], self.x[self.grad])
            self.g = <float*>self.y[self.grad_output].data
        else:
            self.g = <float*>self.x[self.grad].data
        if self.lr >= 0:
            self.rate = (<float*>self.x[self.lr].data)[0]
        return 0

    cdef void stretch(self, int64_t start, int64_t g_start, int64_t n, int64_t row) noexcept nogil:
        """Update n values, from row or value `start` on."""
        cdef floats_t[MAX_SLOTS] s
        cdef int k
        for k in range(MAX_SLOTS):
            s[k] = NULL
        for k in range(self.slots):
            s[k] = <float*>(<char*>self.y[self.target[k]].data + start * self.stride[k])
        self.update(s, self.g + g_start, n, row)

    cdef void values(self, int64_t start, int64_t stop) noexcept nogil:
        # In pieces that stay in the cache while a rule passes over them more than once.
        while start < stop:
            self.stretch(start, start, min(<int64_t>PIECE, stop - start), -1)
            start += PIECE

    cdef void rows_of(self, int thread, int threads) noexcept nogil:
        # A row belongs to one thread, so that rows which occur twice are updated in order.
        cdef tensor_t* ids = self.x[self.indices]
        cdef int64_t i, j, block = self.x[self.grad].size // ids.size
        for i in range(ids.size):
            j = index_at(ids, i)
            if threads == 1 or j % threads == thread:
                self.stretch(j, i * block, block, j)

    cdef int run(self) except -1 nogil:
        cdef int64_t n, chunk
        cdef int i, threads
        self.check()
        self.place()
        self.prepare()
        n = self.x[self.grad].size
        threads = num_threads(n * 8)
        if self.indices >= 0:
            if n == 0:
                return 0
            for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                self.rows_of(i, threads)
            return 0
        if threads == 1:
            self.values(0, n)
            return 0
        chunk = ((n + threads - 1) // threads + 15) & ~<int64_t>15
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            if i * chunk < n:
                self.values(i * chunk, min(n, (i + 1) * chunk))
        return 0

    cdef double argument(self, str name, double default) except? -1:
        return self.args.float(name, default)

    cdef int64_t steps(self) noexcept nogil:
        """Number of this step, from 1."""
        return (<int64_t*>self.x[self.iteration].data)[0] + 1


_MEANINGS = {
    "param": "the parameter, float", "grad": "its gradient; of the rows `indices`, where there is "
                                             "such an input",
    "lr": "learning rate, one float; steps are added, so it is usually negative",
    "indices": "rows that have a gradient, int32 or int64; one that occurs twice is updated "
               "twice, in order",
    "iter": "the iteration, one int64", "moment": "running mean",
    "moment_1": "running mean of gradients",
    "moment_2": "running mean of squared gradients", "squares": "sum of squared gradients",
    "mean_squares": "running mean of squared gradients",
    "moment_delta": "running mean of squared steps",
    "n_z": "sum of squared gradients and the linear term, last axis of size 2",
    "alpha": "overrides the argument alpha",
    "last_seen": "the step in which each row was seen last, int64",
    "seq_b": "the divisor, one float",
    "grad_sq_sum": "sum of all squared gradients, one float",
    "counter": "how often each row was seen, lately; double",
    "effective_lr": "the learning rate of each value", "update": "the step of each value",
}


def update_rule(name, cls, inputs, outputs, doc, args=None, aliases=None):
    """Register an operator that steps by a rule.

    Parameters
    ----------
    inputs, outputs : str
        Names in order: ``name?`` where optional, ``name:extent`` where its extent is not that of
        the parameter. An output continues the input of its name.
    aliases : dict
        Names by which the schema shows them, where they differ.
    """
    def parse(words):
        names, needed, extents = [], 0, {}
        for word in words.split():
            needed += not word.endswith("?")
            n, _, extent = word.rstrip("?").partition(":")
            names.append(n)
            extents[n] = extent
        return names, needed, extents

    def shown(n):
        return (aliases or {}).get(n, n)

    (ins, least_in, extents), (outs, least_out, own) = parse(inputs), parse(outputs)
    LAYOUTS[name] = ins, outs, {n: extents.get(n) or own[n] for n in outs}
    pairs = [(ins.index(n), o) for o, n in enumerate(outs) if n in ins]
    sparse = "indices" in ins
    register(
        name, cls, (least_in, len(ins)), (least_out, len(outs)),
        ins={shown(n): _MEANINGS[n] for n in ins},
        outs={"output_" + shown(n): _MEANINGS[n] + (", updated" if n in ins else "") for n in outs},
        inplace=pairs, enforce_inplace=[p for p in pairs if sparse and ins[p[0]] != "grad"],
        args=args,
        infer=lambda args, inputs: [
            inputs[ins.index(n)] if n in ins else
            TensorInfo((1,), FLOAT) if own[n] == "one" else inputs[ins.index("grad")]
            for n in outs[:len(args.definition.output)]],
        devices=on_cpu(ins.index("iter")) if "iter" in ins else None,
        cost=flops_per_element(10),
        doc=doc + ("\n\nOnly the rows that `indices` names are touched; one out of range raises "
                   "before anything changes."
                   if sparse else "\n\nMay run in place."),
    )


# ---------------------------------------------------------------- updates: the rules

cdef class Momentum(Update):
    cdef float momentum, decay
    cdef bint nesterov

    def configure(self):
        self.momentum = self.argument("momentum", 0)
        self.nesterov = self.args.bool("nesterov", False)
        self.decay = self.argument("weight_decay", 0) if self.type == "FP32MomentumSGDUpdate" else 0

    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        if self.decay:
            K.vaxpy(n, self.decay, s[1], g)
        K.momentum(n, self.rate, self.momentum, self.nesterov, g, s[0], g, s[0], s[1])


_MOMENTUM_ARGS = {"momentum": "share of the last step that is taken again (default 0)",
                  "nesterov": "whether the gradient is that of the place the momentum leads to "
                              "(default false)"}
_MOMENTUM = """moment = momentum * moment + lr * grad, and the step is that, or with Nesterov's
momentum (1 + momentum) * moment - momentum * (old moment)"""
update_rule("MomentumSGD", Momentum, "grad moment lr", "grad moment",
            _MOMENTUM + "; it replaces the gradient.",
            _MOMENTUM_ARGS)
update_rule("MomentumSGDUpdate", Momentum, "grad moment lr param", "grad moment param",
            _MOMENTUM + "; it is subtracted from the parameter and replaces the gradient.",
            _MOMENTUM_ARGS)
update_rule("SparseMomentumSGDUpdate", Momentum, "grad moment lr param indices",
            "grad moment param",
            _MOMENTUM + "; it is subtracted from the parameter and replaces the gradient.",
            _MOMENTUM_ARGS)
update_rule("FP32MomentumSGDUpdate", Momentum, "grad moment lr param", "grad moment param",
            "MomentumSGDUpdate of the gradient with weight_decay * param added.",
            {**_MOMENTUM_ARGS, "weight_decay": "share of the parameter in its step (default 0)"})
register(
    "FP16MomentumSGDUpdate", None, 4, 3, device=CUDA,
    ins={"grad": "float16 tensor: the gradient", "moment": "float16 tensor", "lr": "one float",
         "param": "float16 tensor"},
    outs={"output_grad": "the step", "output_moment": "the new moment", "output_param": "the new parameter"},
    inplace=[(0, 0), (1, 1), (3, 2)], infer=like(0, 1, 3),
    args={**_MOMENTUM_ARGS, "weight_decay": "share of the parameter in its step (default 0)",
          "fp32_update": "accepted: steps are computed in float32 always"},
    doc="FP32MomentumSGDUpdate of float16 tensors. On CUDA devices alone.",
)


cdef class Adagrad(Update):
    cdef float epsilon, decay, weight_decay

    def configure(self):
        self.epsilon = self.argument("epsilon", 1e-5)
        self.decay = 1 if self.indices >= 0 else self.argument("decay", 1)
        self.weight_decay = self.argument("weight_decay", 0)

    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        cdef float* w = s[0]
        cdef float* h = s[1]
        cdef float* rates = s[2]
        cdef float* steps = s[3]
        cdef float lr = self.rate, epsilon = self.epsilon, decay = self.decay
        cdef float wd = self.weight_decay, x, rate
        cdef int64_t i
        if wd == 0 and rates == NULL:
            K.adagrad(n, lr, decay, epsilon, w, g, h, w, h)
            return
        for i in range(n):
            x = g[i] + wd * w[i]
            h[i] = decay * h[i] + x * x
            rate = lr / (sqrtf(h[i]) + epsilon)
            if rates != NULL:
                rates[i] = rate
            if steps != NULL:
                steps[i] = rate * x
            w[i] += rate * x


cdef class RowWiseAdagrad(Update):
    cdef float epsilon, weight_decay
    cdef double halflife
    cdef int counter

    def configure(self):
        self.epsilon = self.argument("epsilon", 1e-5)
        self.weight_decay = self.argument("weight_decay", 0)
        self.halflife = self.argument("counter_halflife", -1)
        self.counter = 5 if self.num_inputs > 5 else -1

    cdef int check(self) except -1 nogil:
        Update.check(self)
        if self.counter >= 0:
            self.expect(self.counter, DOUBLE)
            self.expect_size(self.counter, self.x[0].shape[0])
        return 0

    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        cdef float* w = s[0]
        cdef float wd = self.weight_decay, x, rate, total = 0
        cdef double seen
        cdef int64_t i
        if self.counter >= 0 and self.halflife > 0:
            seen = (<double*>self.x[self.counter].data)[row]
            if seen > 0:
                wd = <float>(wd * self.halflife / seen)
        for i in range(n):
            x = g[i] + wd * w[i]
            total += x * x
        s[1][0] += total / n
        rate = self.rate / (sqrtf(s[1][0]) + self.epsilon)
        for i in range(n):
            w[i] += rate * (g[i] + wd * w[i])


_EPSILON = {"epsilon": "keeps the divisor from 0 (default 1e-5)"}
_WEIGHT_DECAY = {"weight_decay": "share of the parameter in its gradient (default 0)"}
_ADAGRAD = ("Adagrad: moment = moment + grad ** 2; "
            "param = param + lr * grad / (sqrt(moment) + epsilon).")
update_rule("Adagrad", Adagrad, "param squares grad lr", "param squares effective_lr? update?",
            "Adagrad: moment = decay * moment + grad ** 2; param = param + lr * grad / "
            "(sqrt(moment) + epsilon).",
            {**_EPSILON, "decay": "factor of the sum before each step (default 1)",
             **_WEIGHT_DECAY}, {"squares": "moment"})
update_rule("SparseAdagrad", Adagrad, "param squares indices grad lr", "param squares", _ADAGRAD,
            {**_EPSILON, **_WEIGHT_DECAY}, {"squares": "moment"})
update_rule("RowWiseSparseAdagrad", RowWiseAdagrad, "param squares:row indices grad lr counter?",
            "param squares",
            "Adagrad with one sum for each row, of the row's mean square. Rows seen more often "
            "than counter_halflife decay less.",
            {**_EPSILON, **_WEIGHT_DECAY,
             "counter_halflife": "if positive: a row decays by this over its counter"},
            {"squares": "moment"})


cdef class DecayAdagrad(Update):
    cdef float beta1, epsilon, weight_decay, correction
    cdef bint correct

    def configure(self):
        self.beta1 = self.argument("beta1", 0.9)
        self.epsilon = self.argument("epsilon", 1e-5)
        self.weight_decay = self.argument("weight_decay", 0)
        self.correct = self.args.bool("bias_correction_first", True)

    cdef int prepare(self) except -1 nogil:
        cdef double rest = pow(self.beta1, <double>self.steps()) if self.correct else 0
        self.correction = <float>(1 / (1 - rest))
        return 0

    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        cdef float* w = s[0]
        cdef float* m = s[1]
        cdef float* h = s[2]
        cdef float lr = self.rate, b = self.beta1, epsilon = self.epsilon, wd = self.weight_decay
        cdef float c = self.correction
        cdef int64_t i
        for i in range(n):
            m[i] = m[i] * b + g[i] * (1 - b)
            h[i] += g[i] * g[i]
            w[i] += lr * (c * m[i] / (sqrtf(h[i]) + epsilon) + wd * w[i])


_BETAS = {"beta1": "share of the past in the mean of gradients (default 0.9)",
          "beta2": "share of the past in the mean of squared gradients (default 0.999)"}
update_rule("DecayAdagrad", DecayAdagrad, "param moment_1 squares grad lr iter",
            "param moment_1 squares",
            "Adagrad with a mean of gradients, and weight decay apart from the gradient: moment_1 "
            "= beta1 * moment_1 + "
            "(1 - beta1) * grad; moment_2 = moment_2 + grad ** 2; param = param + lr * (c * "
            "moment_1 / (sqrt(moment_2) + epsilon) "
            "+ weight_decay * param), with c = 1 / (1 - beta1 ** (iter + 1)), or 1.",
            {"beta1": _BETAS["beta1"], "beta2": "not read", **_EPSILON,
             "weight_decay": "share of the parameter in its step (default 0)",
             "bias_correction_first": "whether moment_1 is corrected for its start at 0 (default "
                                      "true)"}, {"squares": "moment_2"})


cdef class Adadelta(Update):
    cdef float epsilon, decay

    def configure(self):
        self.epsilon = self.argument("epsilon", 1e-5)
        self.decay = self.argument("decay", 0.95)

    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        cdef float* w = s[0]
        cdef float* h = s[1]
        cdef float* d = s[2]
        cdef float lr = self.rate, epsilon = self.epsilon, decay = self.decay, step
        cdef int64_t i
        for i in range(n):
            h[i] = decay * h[i] + (1 - decay) * g[i] * g[i]
            step = sqrtf(d[i] + epsilon) / sqrtf(h[i] + epsilon) * g[i]
            d[i] = decay * d[i] + (1 - decay) * step * step
            w[i] += lr * step


_ADADELTA = ("Adadelta (arXiv:1212.5701): moment = decay * moment + (1 - decay) * grad ** 2; d = "
             "grad * sqrt(moment_delta + epsilon) "
             "/ sqrt(moment + epsilon); moment_delta = decay * moment_delta + (1 - decay) * d ** "
             "2; param = param + lr * d.")
_ADADELTA_ARGS = {**_EPSILON, "decay": "share of the past in both means (default 0.95)"}
update_rule("Adadelta", Adadelta, "param mean_squares moment_delta grad lr",
            "param mean_squares moment_delta", _ADADELTA,
            _ADADELTA_ARGS, {"mean_squares": "moment"})
update_rule("SparseAdadelta", Adadelta, "param mean_squares moment_delta indices grad lr",
            "param mean_squares moment_delta",
            _ADADELTA, _ADADELTA_ARGS, {"mean_squares": "moment"})


cdef class Adam(Update):
    cdef float beta1, beta2, epsilon, correction
    cdef bint rectified, divide

    def configure(self):
        self.beta1 = self.argument("beta1", 0.9)
        self.beta2 = self.argument("beta2", 0.999)
        self.epsilon = self.argument("epsilon", 1e-5)
        self.rectified = self.args.bool("enableRAdam", False) and self.type == "SparseAdam"

    cdef int prepare(self) except -1 nogil:
        cdef double b1 = self.beta1, b2 = self.beta2, t = <double>self.steps(), most, now, c
        c = 1 / (1 - pow(b1, t))
        self.divide = True
        if self.rectified:
            # arXiv:1908.03265: how far the variance of the divisor can be trusted
            most = 2 / (1 - b2) - 1
            now = most - 2 * t * pow(b2, t) / (1 - pow(b2, t))
            self.divide = now >= 5
            if self.divide:
                c *= sqrt((now - 4) * (now - 2) * most / ((most - 4) * (most - 2) * now))
        if self.divide:
            c *= sqrt(1 - pow(b2, t))
        self.correction = <float>c
        return 0

    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        cdef float* w = s[0]
        cdef float* m = s[1]
        cdef float* v = s[2]
        cdef float lr = self.rate, b1 = self.beta1, b2 = self.beta2, epsilon = self.epsilon
        cdef float c = self.correction, step
        cdef bint emit = self.emit, divide = self.divide
        cdef int64_t i
        if divide and not emit:
            K.adam(n, lr * c, b1, b2, epsilon, w, g, m, v, w, m, v)
            return
        for i in range(n):
            m[i] = m[i] * b1 + g[i] * (1 - b1)
            v[i] = v[i] * b2 + g[i] * g[i] * (1 - b2)
            step = c * m[i]
            if divide:
                step = step / (sqrtf(v[i]) + epsilon)
            if emit:
                g[i] = step
            w[i] += lr * step


cdef class RowWiseAdam(Adam):
    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        cdef float* w = s[0]
        cdef float* m = s[1]
        cdef float lr = self.rate, b1 = self.beta1, b2 = self.beta2, total = 0, step, c
        cdef bint emit = self.emit
        cdef int64_t i
        for i in range(n):
            total += g[i] * g[i]
        s[2][0] = s[2][0] * b2 + total / n * (1 - b2)
        c = self.correction / (sqrtf(s[2][0]) + self.epsilon)
        for i in range(n):
            m[i] = m[i] * b1 + g[i] * (1 - b1)
            step = c * m[i]
            if emit:
                g[i] = step
            w[i] += lr * step


cdef class SmartDecayAdam(Adam):
    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        cdef float* w = s[0]
        cdef float* m = s[1]
        cdef float* v = s[2]
        cdef int64_t* seen = <int64_t*>s[3]
        cdef double t = <double>self.steps(), b = self.beta1, k = t - seen[0]
        cdef float lr = self.rate, b1 = self.beta1, b2 = self.beta2, epsilon = self.epsilon, before
        cdef float decay1 = <float>pow(b, k), decay2 = <float>pow(self.beta2, k)
        # What the moment would have moved the parameter by in the steps between.
        cdef float missed = <float>(k - 1 if b == 1 else b * (1 - pow(b, k - 1)) / (1 - b))
        cdef int64_t i
        seen[0] = <int64_t>t
        for i in range(n):
            before = m[i]
            m[i] = before * decay1 + g[i] * (1 - b1)
            v[i] = v[i] * decay2 + g[i] * g[i] * (1 - b2)
            w[i] += lr * (m[i] + missed * before) / (sqrtf(v[i]) + epsilon)


_ADAM = ("Adam (arXiv:1412.6980): moment_1 = beta1 * moment_1 + (1 - beta1) * grad; moment_2 = "
         "beta2 * moment_2 + (1 - beta2) * "
         "grad ** 2; step = c * moment_1 / (sqrt(moment_2) + epsilon), c = sqrt(1 - beta2 ** t) / "
         "(1 - beta1 ** t), t = iter + 1; "
         "param = param + lr * step. output_grad, where it is asked for, is the step.")
_ADAM_ARGS = {**_BETAS, **_EPSILON}
update_rule("Adam", Adam, "param moment_1 moment_2 grad lr iter", "param moment_1 moment_2 grad?",
            _ADAM, _ADAM_ARGS)
update_rule("SparseAdam", Adam, "param moment_1 moment_2 indices grad lr iter",
            "param moment_1 moment_2 grad?", _ADAM,
            {**_ADAM_ARGS, "enableRAdam": "rectify the variance in early steps (arXiv:1908.03265; "
                                          "default false)"})
update_rule("RowWiseSparseAdam", RowWiseAdam, "param moment_1 moment_2:row indices grad lr iter",
            "param moment_1 moment_2 grad?",
            _ADAM + " moment_2 has one value for each row, of the row's mean square.", _ADAM_ARGS)
update_rule("SmartDecaySparseAdam", SmartDecayAdam,
            "param moment_1 moment_2 last_seen:row indices grad lr iter",
            "param moment_1 moment_2 last_seen",
            "Adam without bias correction whose moments decay by the k steps since the row was "
            "last seen: moment_1 = beta1 ** k * "
            "moment_1 + (1 - beta1) * grad, moment_2 likewise; the step includes those that the "
            "old moment would have made "
            "meanwhile.", _ADAM_ARGS)


cdef class RmsProp(Update):
    cdef float decay, momentum, epsilon

    def configure(self):
        self.decay = self.argument("decay", 0.9)
        self.momentum = self.argument("momentum", 0)
        self.epsilon = self.argument("epsilon", 1e-5)

    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        K.rmsprop(n, self.rate, self.decay, self.momentum, self.epsilon, g, s[0], s[1],
                  g, s[0], s[1])


update_rule("RmsProp", RmsProp, "grad mean_squares moment lr", "grad mean_squares moment",
            "RMSProp: mean_squares = mean_squares + (1 - decay) * (grad ** 2 - mean_squares); "
            "moment = momentum * moment + lr * grad / "
            "sqrt(epsilon + mean_squares), which replaces the gradient.",
            {"decay": "share of the past in the mean (default 0.9)",
             "momentum": "share of the last step that is taken again (default 0)",
             "epsilon": "added below the root (default 1e-5)"})


cdef class FtrlBase(Update):
    cdef float alpha, beta, lambda1, lambda2
    cdef int alpha_input

    def configure(self):
        self.alpha_input = 3 + (self.indices >= 0)
        if self.alpha_input >= self.num_inputs:
            self.alpha_input = -1
        elif "alpha" in self.args:
            raise ValueError("alpha may be an input or an argument, not both")
        self.alpha = self.argument("alpha", 0.005)
        self.beta = self.argument("beta", 1)
        self.lambda1 = self.argument("lambda1", 0.001)
        self.lambda2 = self.argument("lambda2", 0.001)

    cdef int check(self) except -1 nogil:
        Update.check(self)
        if self.alpha_input >= 0:
            self.expect(self.alpha_input, FLOAT)
            self.expect_size(self.alpha_input, 1)
        return 0

    cdef int prepare(self) except -1 nogil:
        if self.alpha_input >= 0:
            self.alpha = (<float*>self.x[self.alpha_input].data)[0]
        return 0


cdef class Ftrl(FtrlBase):
    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        cdef float* w = s[0]
        cdef float* nz = s[1]
        cdef float rate = 1 / self.alpha, beta = self.beta, l1 = self.lambda1, l2 = self.lambda2
        cdef float root, z
        cdef int64_t i
        for i in range(n):
            root = sqrtf(nz[2 * i] + g[i] * g[i])
            z = nz[2 * i + 1] + g[i] - (root - sqrtf(nz[2 * i])) * rate * w[i]
            nz[2 * i] += g[i] * g[i]
            nz[2 * i + 1] = z
            w[i] = 0
            if z > l1 or z < -l1:
                w[i] = ((l1 if z > 0 else -l1) - z) / ((beta + root) * rate + l2)


cdef class GFtrl(FtrlBase):
    # A column, the weights of one input feature, is a group: all of it says whether it stays.
    cdef void values(self, int64_t start, int64_t stop) noexcept nogil:
        pass

    cdef int prepare(self) except -1 nogil:
        FtrlBase.prepare(self)
        cdef tensor_t* param = self.y[self.target[0]]
        cdef float* w = <float*>param.data
        cdef float* nz = <float*>self.y[self.target[1]].data
        cdef float* g = self.g
        cdef float rate = 1 / self.alpha, root
        cdef int64_t rows = param.shape[0] if param.ndim else 1, i, j
        cdef int64_t columns = param.size // rows if rows else 0
        cdef double norm, least = self.lambda1 * sqrt(<double>rows)
        for j in range(columns):
            norm = 0
            i = j
            while i < param.size:
                root = sqrtf(nz[2 * i] + g[i] * g[i])
                nz[2 * i + 1] += g[i] - (root - sqrtf(nz[2 * i])) * rate * w[i]
                nz[2 * i] += g[i] * g[i]
                norm += <double>nz[2 * i + 1] * nz[2 * i + 1]
                i += columns
            norm = sqrt(norm)
            i = j
            while i < param.size:
                w[i] = 0
                if norm > least:
                    w[i] = <float>(nz[2 * i + 1] * (least / norm - 1) / (
                        (self.beta + sqrtf(nz[2 * i])) * rate + self.lambda2))
                i += columns
        return 0


_FTRL_ARGS = {"alpha": "numerator of the learning rate (default 0.005)",
              "beta": "added to its divisor (default 1)",
              "lambda1": "strength of the L1 penalty (default 0.001)",
              "lambda2": "of the L2 penalty (default 0.001)"}
_FTRL = ("FTRL-Proximal: z = z + grad - (sqrt(n + grad ** 2) - sqrt(n)) / alpha * param; n = n + "
         "grad ** 2; param = (sign(z) * lambda1 - z) "
         "/ ((beta + sqrt(n)) / alpha + lambda2) where |z| > lambda1, else 0.")
update_rule("Ftrl", Ftrl, "param n_z:pair grad alpha?", "param n_z", _FTRL, _FTRL_ARGS)
update_rule("SparseFtrl", Ftrl, "param n_z:pair indices grad alpha?", "param n_z", _FTRL,
            _FTRL_ARGS)
update_rule("GFtrl", GFtrl, "param n_z:pair grad alpha?", "param n_z",
            "FTRL with a penalty on the L2 norms of columns, so that all weights of an input "
            "feature vanish together: "
            "as Ftrl, but param = z * (lambda1 * sqrt(rows) / |z of the column| - 1) / ((beta + "
            "sqrt(n)) / alpha + lambda2) where "
            "|z of the column| > lambda1 * sqrt(rows), else 0.", _FTRL_ARGS)


cdef class Wngrad(Update):
    cdef float epsilon

    def configure(self):
        self.epsilon = self.argument("epsilon", 1e-5)

    cdef int prepare(self) except -1 nogil:
        cdef float* b = <float*>self.y[self.target[1]].data
        cdef double divisor = b[0] + self.epsilon
        b[0] += <float>(dot(self.g, self.g, self.x[self.grad].size) / divisor)
        self.rate = <float>(self.rate / divisor)
        if self.slots > 2:
            (<float*>self.y[self.target[2]].data)[0] = self.rate
        return 0

    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        cdef float* w = s[0]
        cdef float* steps = s[3]
        cdef float rate = self.rate
        cdef int64_t i
        for i in range(n):
            w[i] += rate * g[i]
        if steps != NULL:
            for i in range(n):
                steps[i] = rate * g[i]


_WNGRAD = ("WNGrad (arXiv:1803.02865): param = param + lr * grad / (seq_b + epsilon); "
           "seq_b = seq_b + sum(grad ** 2) / (seq_b + epsilon).")
update_rule("Wngrad", Wngrad, "param seq_b:one grad lr", "param seq_b effective_lr:one? update?",
            _WNGRAD, _EPSILON)
update_rule("SparseWngrad", Wngrad, "param seq_b:one indices grad lr", "param seq_b", _WNGRAD,
            _EPSILON)


cdef class Storm(Update):
    cdef float momentum, beta, share

    def configure(self):
        self.momentum = self.argument("momentum", 10)
        self.beta = self.argument("beta", 0.1)

    cdef int prepare(self) except -1 nogil:
        cdef float* total = <float*>self.y[self.target[2]].data
        cdef double rate
        total[0] += <float>dot(self.g, self.g, self.x[self.grad].size)
        rate = self.rate * pow(self.beta + total[0], -1.0 / 3)
        self.rate = <float>rate
        self.share = <float>(1 - self.momentum * rate * rate)
        return 0

    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        cdef float* w = s[0]
        cdef float* m = s[1]
        cdef float rate = self.rate, share = self.share
        cdef int64_t i
        for i in range(n):
            m[i] = g[i] + share * (m[i] - g[i])
            w[i] += rate * m[i]


_STORM = ("STORM (arXiv:1905.10018): grad_sq_sum = grad_sq_sum + sum(grad ** 2); r = lr * (beta + "
          "grad_sq_sum) ** (-1 / 3); "
          "moment = grad + (1 - momentum * r ** 2) * (moment - grad); param = param + r * moment.")
_STORM_ARGS = {"momentum": "how fast the past is forgotten (default 10)",
               "beta": "added to the sum of squares (default 0.1)"}
update_rule("Storm", Storm, "param moment grad_sq_sum:one grad lr", "param moment grad_sq_sum",
            _STORM, _STORM_ARGS)
update_rule("SparseStorm", Storm, "param moment grad_sq_sum:one grad indices lr",
            "param moment grad_sq_sum", _STORM, _STORM_ARGS)


cdef class WeightScale(Update):
    # The parameter takes the gradient's place: there is none.
    cdef int64_t stepsize, last
    cdef float scale

    def configure(self):
        self.stepsize = self.args.int("stepsize", INT64_MAX)
        self.last = self.args.int("upper_bound_iter", INT64_MAX)
        self.scale = self.argument("scale", 1)
        if self.stepsize <= 0:
            raise ValueError(f"the argument stepsize must be positive, but is {self.stepsize}")

    cdef void update(self, float** s, float* g, int64_t n, int64_t row) noexcept nogil:
        cdef int64_t i, t = self.steps()
        if t % self.stepsize == 0 and t < self.last:
            for i in range(n):
                g[i] *= self.scale


update_rule("WeightScale", WeightScale, "grad iter", "grad",
            "Multiplies by `scale` in every stepsize-th step, t = iter + 1, while t < "
            "upper_bound_iter.",
            {"stepsize": "steps from one scaling to the next (default: never)",
             "upper_bound_iter": "no scaling from this step on",
             "scale": "the factor (default 1)"}, {"grad": "w"})


# ---------------------------------------------------------------- counts of rows

cdef class RowWiseCounter(Operator):
    cdef double decay

    def setup(self):
        halflife = self.args.int("counter_halflife", -1)
        self.decay = log(2) / halflife if halflife > 0 else 0

    cdef int run(self) except -1 nogil:
        cdef int64_t i, j, t, since, rows
        cdef int64_t* last
        cdef double* count
        self.expect(0, INT64)
        self.expect(1, DOUBLE)
        self.expect(3, INT64)
        self.expect_size(3, 1)
        rows = self.x[0].size
        self.expect_size(1, rows)
        check_indices(self, 2, rows)
        if self.decay == 0:
            return 0
        copy(self.y[0], self.x[0])
        copy(self.y[1], self.x[1])
        last, count = <int64_t*>self.y[0].data, <double*>self.y[1].data
        t = (<int64_t*>self.x[3].data)[0]
        for i in range(self.x[2].size):
            j = index_at(self.x[2], i)
            since = max(<int64_t>0, t - last[j])
            count[j] = 1 + exp(-since * self.decay) * count[j]
            last[j] = max(t, last[j])
        return 0


register(
    "RowWiseCounter", RowWiseCounter, 4, 2,
    ins={"prev_iter": "the iteration in which each row was seen last, int64",
         "update_counter": "counts of the rows, double",
         "indices": "rows seen now, int32 or int64", "iter": "the iteration, one int64"},
    outs={"output_prev_iter": "the same, updated", "output_update_counter": "the same, updated"},
    args={"counter_halflife": "iterations after which a sighting counts half; -1 (default): do "
                              "not count"},
    enforce_inplace=[(0, 0), (1, 1)], infer=like(0, 1), devices=on_cpu(3),
    doc="Counts how often each row of a sparse parameter was seen: 1 more for each sighting, "
        "after the count has decayed for "
        "the iterations since the last one.",
)


# ---------------------------------------------------------------- YellowFin

cdef enum:
    NORM, NORM2, NORM2_MIN, NORM2_MAX, DISTANCE, SCALARS


cdef class YellowFin(Operator):
    cdef int64_t width
    cdef bint nesterov, debias
    cdef double epsilon, beta

    def setup(self):
        self.width = self.args.int("curv_win_width", 20)
        self.nesterov = self.args.bool("nesterov", False)
        self.debias = self.args.bool("zero_debias", True)
        self.epsilon = self.args.float("epsilon", 1e-6)
        self.beta = self.args.float("beta", 0.999)
        if self.width < 1:
            raise ValueError(f"the argument curv_win_width must be positive, but is {self.width}")

    cdef double average(self, float* at, double value, double correction) noexcept nogil:
        """Move a running mean on; return it, corrected."""
        at[0] = <float>(self.beta * at[0] + (1 - self.beta) * value)
        return at[0] * correction

    cdef int run(self) except -1 nogil:
        # param moment lr mu curv_win g_avg g2_avg scalars_memory grad iter
        cdef int64_t i, n, t
        cdef int k
        for k in range(9):
            self.expect(k, FLOAT)
            if k in (1, 5, 6, 8):
                self.expect_same_shape(k, 0)
        self.expect_size(2, 1)
        self.expect_size(3, 1)
        self.expect_size(4, self.width)
        self.expect_size(7, SCALARS)
        self.expect(9, INT64)
        self.expect_size(9, 1)
        t = (<int64_t*>self.x[9].data)[0]
        if t < 1:
            return self.fail("YellowFin counts iterations from 1")
        for k in range(8):
            copy(self.y[k], self.x[k])
        n = self.x[0].size
        cdef float* g = <float*>self.x[8].data
        cdef float* g_avg = <float*>self.y[5].data
        self.step(g, n)

        cdef float* means = <float*>self.y[7].data
        cdef float* window = <float*>self.y[4].data
        cdef double c = 1 / (1 - pow(self.beta, <double>t)) if self.debias else 1
        cdef float b = <float>self.beta
        cdef float* g2_avg = <float*>self.y[6].data
        for i in range(n):
            g_avg[i] = b * g_avg[i] + (1 - b) * g[i]
            g2_avg[i] = b * g2_avg[i] + (1 - b) * g[i] * g[i]
        cdef double norm2 = fmax(self.epsilon, dot(g, g, n))
        cdef double norm2_mean = self.average(means + NORM2, norm2, c)
        self.average(means + NORM, sqrt(norm2), c)
        window[(t - 1) % self.width] = <float>log(norm2)
        cdef double least = window[0], most = window[0]
        for i in range(min(self.width, t)):
            least = fmin(least, window[i])
            most = fmax(most, window[i])
        least = fmax(self.epsilon, exp(self.average(means + NORM2_MIN, least, c)))
        most = fmax(self.epsilon, exp(self.average(means + NORM2_MAX, most, c)))
        cdef double variance = fmax(self.epsilon, norm2_mean - c * c * dot(g_avg, g_avg, n))
        cdef double distance = self.average(means + DISTANCE, means[NORM] / means[NORM2], c)
        if t > 1:
            self.tune(least, most, variance, distance)
        return 0

    cdef void step(self, float* g, int64_t n) noexcept nogil:
        cdef float* w = <float*>self.y[0].data
        cdef float* m = <float*>self.y[1].data
        cdef float lr = (<float*>self.y[2].data)[0], mu = (<float*>self.y[3].data)[0], before
        cdef int64_t i
        for i in range(n):
            before = mu * m[i]
            m[i] = before + lr * g[i]
            w[i] -= (1 + mu) * m[i] - before if self.nesterov else m[i]

    cdef void tune(self, double least, double most, double variance,
                   double distance) noexcept nogil:
        """Rate and momentum that fit the curvatures' range and the gradient's variance."""
        cdef double ratio = sqrt(most / least), limit = (ratio - 1) / (ratio + 1), p, w3, w, root
        cdef double mu
        # The root of a cubic, by Vieta's substitution.
        p = (distance * least) * (distance * least) / (2 * variance)
        w3 = (-sqrt(p * p + 4.0 / 27 * p * p * p) - p) / 2
        w = cbrt(w3)
        root = w - p / 3 / w + 1
        mu = fmax(root * root, limit * limit)
        self.average(<float*>self.y[3].data, mu, 1)
        self.average(<float*>self.y[2].data, (1 - sqrt(mu)) * (1 - sqrt(mu)) / least, 1)


register(
    "YellowFin", YellowFin, 10, 8,
    ins={"param": "the parameter, float", "moment": "momentum, as large",
         "lr": "learning rate, one float", "mu": "its momentum, one float",
         "curv_win": "logarithms of the last squared norms of the gradient",
         "g_avg": "mean gradient",
         "g2_avg": "mean squared gradient", "scalars_memory": "5 more running means",
         "grad": "the gradient",
         "iter": "the iteration, from 1, one int64"},
    outs={f"output_{n}": "the same, updated" for n in
          ("param", "moment", "lr", "mu", "curv_win", "g_avg", "g2_avg", "scalars_memory")},
    args={"beta": "share of the past in the running means (default 0.999)",
          "curv_win_width": "size of curv_win (default 20)",
          "epsilon": "least norm and variance (default 1e-6)",
          "nesterov": "whether to use Nesterov's momentum (default false)",
          "zero_debias": "whether means are corrected for their start at 0 (default true)"},
    inplace=[(i, i) for i in range(8)], infer=like(*range(8)), devices=on_cpu(9),
    cost=flops_per_element(12),
    doc="""Momentum SGD that tunes its learning rate and momentum by running means of the gradient
and of its norm, for each parameter (arXiv:1706.03471). May run in place.""",
)

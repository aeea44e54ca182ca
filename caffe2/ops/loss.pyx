"""Losses: cross entropies, averages and ranking criteria; accuracies."""
from libc.math cimport exp, fabsf, log, logf
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    DOUBLE, FLOAT, INT32, resize, resize0, resize1, resize_like, size_from, size_to, tensor_t,
)

from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, like, scalar

cdef float TINY = 1e-20


# ---------------------------------------------------------------- cross entropy of probabilities

cdef class CrossEntropyRows(Operator):
    """Base: X is (N, D), or (D,) for one row; labels are classes (int32), or probabilities of X's shape."""

    cdef int64_t n
    cdef int64_t d

    cdef int check(self, bint classes) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* t = self.x[1]
        cdef int64_t i
        self.expect(0, FLOAT)
        self.expect(1, INT32 if classes else FLOAT)
        if x.ndim == 0:
            return self.fail("X must have at least one dimension")
        self.n = x.shape[0] if x.ndim > 1 else 1
        self.d = size_from(x, 1) if x.ndim > 1 else x.shape[0]
        if t.size != (self.n if classes else x.size):
            return self.fail("label must hold a class, or a row of probabilities, for each row of X")
        if classes:
            for i in range(self.n):
                if not 0 <= (<const int32_t*>t.data)[i] < self.d:
                    return self.fail("a label is not the number of a class (a column of X)")
        return 0


cdef class LabelCrossEntropy(CrossEntropyRows):
    cdef int run(self) except -1 nogil:
        cdef const float* x = <const float*>self.x[0].data
        cdef const int32_t* label = <const int32_t*>self.x[1].data
        cdef int64_t i
        cdef float* y
        self.check(True)
        resize1(self.y[0], self.n, FLOAT)
        y = <float*>self.y[0].data
        for i in range(self.n):
            y[i] = -logf(max(x[i * self.d + label[i]], TINY))
        return 0


cdef class LabelCrossEntropyGradient(CrossEntropyRows):
    cdef int run(self) except -1 nogil:
        cdef const float* x = <const float*>self.x[0].data
        cdef const int32_t* label = <const int32_t*>self.x[1].data
        cdef int64_t i, k
        cdef float* dx
        self.check(True)
        self.expect(2, FLOAT)
        self.expect_size(2, self.n)
        resize_like(self.y[0], self.x[0], FLOAT)
        dx = <float*>self.y[0].data
        memset(dx, 0, self.n * self.d * sizeof(float))
        for i in range(self.n):
            k = i * self.d + label[i]
            dx[k] = -(<const float*>self.x[2].data)[i] / max(x[k], TINY)
        return 0


cdef class CrossEntropy(CrossEntropyRows):
    cdef int run(self) except -1 nogil:
        cdef const float* x = <const float*>self.x[0].data
        cdef const float* label = <const float*>self.x[1].data
        cdef int64_t i, j
        cdef float total
        cdef float* y
        self.check(False)
        for i in range(self.n * self.d):
            if not 0 <= label[i] <= 1:
                return self.fail("a label is not a probability; for classes there is LabelCrossEntropy")
        resize1(self.y[0], self.n, FLOAT)
        y = <float*>self.y[0].data
        for i in range(self.n):
            total = 0
            for j in range(i * self.d, (i + 1) * self.d):
                total -= label[j] * logf(max(x[j], TINY))
            y[i] = total
        return 0


cdef class CrossEntropyGradient(CrossEntropyRows):
    cdef int run(self) except -1 nogil:
        cdef const float* x = <const float*>self.x[0].data
        cdef const float* label = <const float*>self.x[1].data
        cdef int64_t i, j
        cdef float dy
        cdef float* dx
        self.check(False)
        self.expect(2, FLOAT)
        self.expect_size(2, self.n)
        resize_like(self.y[0], self.x[0], FLOAT)
        dx = <float*>self.y[0].data
        for i in range(self.n):
            dy = (<const float*>self.x[2].data)[i]
            for j in range(i * self.d, (i + 1) * self.d):
                dx[j] = -dy * label[j] / max(x[j], TINY)
        return 0


def _cross_entropy(name, forward, backward, labels, formula):
    ins = {"X": "float tensor (N, D) of probabilities", "label": labels}
    register(name, forward, 2, 1, ins=ins, outs={"Y": "float tensor (N,)"},
             infer=lambda args, inputs: [TensorInfo(inputs[0].shape[:1] if inputs[0].ndim > 1 else (1,))],
             cost=flops_per_element(2), gradient=simple(name + "Gradient", "I0 I1 GO0", "GI0"), doc=formula)
    register(name + "Gradient", backward, 3, 1, ins={**ins, "dY": "gradient of Y"}, outs={"dX": "gradient of X"},
             infer=like(0), cost=flops_per_element(2), doc=f"Gradient of {name}.")


_cross_entropy("LabelCrossEntropy", LabelCrossEntropy, LabelCrossEntropyGradient, "int32 tensor (N,) of classes",
               "Y[i] = -log(X[i, label[i]]); probabilities below 1e-20 count as that.")
_cross_entropy("CrossEntropy", CrossEntropy, CrossEntropyGradient, "float tensor (N, D) of probabilities",
               "Y[i] = -sum_j label[i, j] log(X[i, j]); probabilities below 1e-20 count as that.")


# ---------------------------------------------------------------- cross entropy of logits

cdef enum:
    JOINED = 0          # log-likelihood of a Bernoulli variable
    LOG_D = 1           # log_D_trick: maximize log(D) instead of minimizing log(1 - D)
    UNJOINED = 2        # each positive example also occurs as a negative one


cdef float likelihood(float x, float t, int mode) noexcept nogil:
    cdef float positive = x if x >= 0 else 0
    cdef float softplus = positive + <float>log(1 + exp(-fabsf(x)))      # log(1 + e^x)
    if mode == LOG_D:
        return (2 * t - 1) * (x - softplus)
    if mode == UNJOINED:
        return x * t - (1 - t) * softplus
    return x * t - softplus


cdef float likelihood_gradient(float x, float t, int mode) noexcept nogil:
    if mode == LOG_D:
        return <float>((2 * t - 1) / (1 + exp(x)))
    if mode == UNJOINED:
        return <float>(t - (1 - t) / (1 + exp(-x)))
    return <float>(t - 1 / (1 + exp(-x)))


cdef class SigmoidLoss(Operator):
    """Base: logits and targets of one shape, perhaps weights of it, averaged over the last dimension."""

    cdef int mode
    cdef bint weighted
    cdef int first          # index of the logits among the inputs

    def setup(self):
        log_d, unjoined = self.args.bool("log_D_trick"), self.args.bool("unjoined_lr_loss")
        if log_d and unjoined:
            raise ValueError("log_D_trick and unjoined_lr_loss exclude each other")
        self.mode = LOG_D if log_d else UNJOINED if unjoined else JOINED
        self.weighted = self.type.startswith("Weighted")
        self.first = self.type.endswith("Gradient")

    cdef int check(self) except -1 nogil:
        cdef int i
        for i in range(self.first, self.first + 2 + self.weighted):
            self.expect(i, FLOAT)
            self.expect_same_shape(i, self.first)
        return 0

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[self.first]
        cdef int64_t n, d, i, j
        cdef const float* logits = <const float*>x.data
        cdef const float* targets = <const float*>self.x[self.first + 1].data
        cdef const float* weights = <const float*>self.x[self.first + 2].data if self.weighted else NULL
        cdef float total, factor
        cdef float* out
        self.check()
        d = x.shape[x.ndim - 1] if x.ndim else 1
        n = size_to(x, x.ndim - 1) if x.ndim else 1
        if not self.first:
            resize(self.y[0], max(x.ndim - 1, 0), x.shape, FLOAT)
            out = <float*>self.y[0].data
            for i in range(n):
                total = 0
                for j in range(i * d, (i + 1) * d):
                    total += likelihood(logits[j], targets[j], self.mode) * (weights[j] if weights != NULL else 1)
                out[i] = -total / d
            return 0
        self.expect(0, FLOAT)
        self.expect_size(0, n)
        resize_like(self.y[0], x, FLOAT)
        out = <float*>self.y[0].data
        for i in range(n):
            factor = -(<const float*>self.x[0].data)[i] / d
            for j in range(i * d, (i + 1) * d):
                out[j] = factor * likelihood_gradient(logits[j], targets[j], self.mode) * (
                    weights[j] if weights != NULL else 1)
        return 0


def _sigmoid_loss(name, ins, args, formula):
    inputs = " ".join(f"I{i}" for i in range(len(ins)))
    register(name, SigmoidLoss, len(ins), 1, ins=ins, args=args,
             outs={"xentropy": "float tensor without the last dimension"},
             infer=lambda args, inputs: [TensorInfo(inputs[0].shape[:-1])], cost=flops_per_element(8),
             gradient=simple(name + "Gradient", "GO0 " + inputs, "GI0"), doc=formula)
    register(name + "Gradient", SigmoidLoss, len(ins) + 1, 1, args=args,
             ins={"dxentropy": "gradient of the loss", **ins},
             outs={"dlogits": "gradient of the logits"}, infer=like(1), cost=flops_per_element(8),
             doc=f"Gradient of {name}.")


_LOGITS = {"logits": "float tensor (..., D)", "targets": "float tensor of that shape, usually 0 and 1"}
_sigmoid_loss("SigmoidCrossEntropyWithLogits", _LOGITS, {
    "log_D_trick": "maximize log(sigmoid) instead of minimizing log(1 - sigmoid), for adversarial losses (default 0)",
    "unjoined_lr_loss": "each positive example also occurs as a negative one (default 0)",
}, "Mean over the last dimension of -[t log(sigmoid(x)) + (1 - t) log(1 - sigmoid(x))], computed without overflow.")
_sigmoid_loss("WeightedSigmoidCrossEntropyWithLogits", {**_LOGITS, "weights": "float tensor of that shape"}, {},
              "SigmoidCrossEntropyWithLogits with a weight for each element.")


# ---------------------------------------------------------------- sums

ctypedef fused number:
    float
    double
    int32_t


cdef double total_of(const number* x, int64_t n) noexcept nogil:
    cdef double s = 0
    cdef int64_t i
    for i in range(n):
        s += x[i]
    return s


cdef class SumElements(Operator):
    """Sum of all elements, or their average; of their squares for SumSqrElements."""

    cdef bint average
    cdef bint square

    def setup(self):
        self.average = self.type == "AveragedLoss" or self.args.bool("average")
        self.square = self.type == "SumSqrElements"

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t i, n = x.size
        cdef double s = 0
        if x.dtype == INT32 and not self.square:
            s = total_of(<const int32_t*>x.data, n)
        elif x.dtype == DOUBLE and not self.square:
            s = total_of(<const double*>x.data, n)
        else:
            self.expect(0, FLOAT)
            if self.square:
                for i in range(n):
                    s += (<const float*>x.data)[i] * (<const float*>x.data)[i]
            else:
                s = total_of(<const float*>x.data, n)
        if self.average and n:
            s /= n
        resize0(self.y[0], x.dtype)
        if x.dtype == INT32:
            (<int32_t*>self.y[0].data)[0] = <int32_t>s
        elif x.dtype == DOUBLE:
            (<double*>self.y[0].data)[0] = s
        else:
            (<float*>self.y[0].data)[0] = <float>s
        return 0


cdef class SumElementsGradient(Operator):
    cdef bint average

    def setup(self):
        self.average = self.type == "AveragedLossGradient" or self.args.bool("average")

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t i
        cdef float* dx
        cdef float dy
        if x.dtype == 0:
            return self.bad_dtype(0)
        self.expect(1, FLOAT)
        self.expect_size(1, 1)
        dy = (<const float*>self.x[1].data)[0]
        if self.average and x.size:
            dy /= x.size
        resize_like(self.y[0], x, FLOAT)
        dx = <float*>self.y[0].data
        for i in range(x.size):
            dx[i] = dy
        return 0


_SUM_INS = {"X": "tensor of any shape"}
_AVERAGE = {"average": "divide by the number of elements (default 0)"}
for _name, _args, _doc in (
    ("SumElements", _AVERAGE, "Sum of all elements of X, or their average."),
    ("AveragedLoss", {}, "Average of all elements of X."),
):
    register(_name, SumElements, 1, 1, ins=_SUM_INS, outs={"sum": "scalar"}, args=_args, infer=scalar(),
             cost=flops_per_element(1), gradient=simple(_name + "Gradient", "I0 GO0", "GI0"), doc=_doc)
    register(_name + "Gradient", SumElementsGradient, 2, 1, ins={**_SUM_INS, "dsum": "scalar gradient"}, args=_args,
             outs={"dX": "gradient of X"}, infer=like(0), doc=f"Gradient of {_name}.")
register("SumElementsInt", SumElements, 1, 1, ins={"X": "int32 tensor of any shape"}, outs={"sum": "int32 scalar"},
         infer=scalar(), doc="Sum of all elements of X.")
register("SumSqrElements", SumElements, 1, 1, ins={"X": "float tensor of any shape"}, outs={"sum": "scalar"},
         args=_AVERAGE, infer=scalar(), doc="Sum of the squares of all elements of X, or their average.")


# ---------------------------------------------------------------- two classes, ranking

cdef class MakeTwoClass(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y = self.y[0]
        cdef int64_t[17] shape
        cdef int64_t i
        cdef float p
        self.expect(0, FLOAT)
        for i in range(x.ndim):
            shape[i] = x.shape[i]
        shape[x.ndim] = 2
        resize(y, x.ndim + 1, shape, FLOAT)
        for i in range(x.size):
            p = (<const float*>x.data)[i]
            (<float*>y.data)[2 * i] = 1 - p
            (<float*>y.data)[2 * i + 1] = p
        return 0


cdef class MakeTwoClassGradient(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* dy = self.x[0]
        cdef const float* g = <const float*>dy.data
        cdef int64_t i
        self.expect(0, FLOAT)
        if dy.ndim < 1 or dy.shape[dy.ndim - 1] != 2:
            return self.fail("the last dimension must be 2")
        resize(self.y[0], dy.ndim - 1, dy.shape, FLOAT)
        for i in range(self.y[0].size):
            (<float*>self.y[0].data)[i] = g[2 * i + 1] - g[2 * i]
        return 0


register("MakeTwoClass", MakeTwoClass, 1, 1, ins={"X": "float tensor of probabilities p"},
         outs={"Y": "float tensor with a last dimension more: (1 - p, p)"},
         infer=lambda args, inputs: [TensorInfo((*inputs[0].shape, 2))],
         gradient=simple("MakeTwoClassGradient", "GO0", "GI0"),
         doc="Probabilities of the two classes, from that of the second.")
register("MakeTwoClassGradient", MakeTwoClassGradient, 1, 1, ins={"dY": "gradient of Y"}, outs={"dX": "gradient of X"},
         infer=lambda args, inputs: [TensorInfo(inputs[0].shape[:-1])], doc="Gradient of MakeTwoClass.")


cdef class MarginRankingCriterion(Operator):
    cdef float margin

    def setup(self):
        self.margin = self.args.float("margin", 1.0)

    cdef int run(self) except -1 nogil:
        cdef const float* x1 = <const float*>self.x[0].data
        cdef const float* x2 = <const float*>self.x[1].data
        cdef const int32_t* t = <const int32_t*>self.x[2].data
        cdef const float* dloss = NULL
        cdef float* out
        cdef float* out2 = NULL
        cdef float distance
        cdef int64_t i
        self.expect(0, FLOAT)
        self.expect(1, FLOAT)
        self.expect(2, INT32)
        self.expect_size(1, self.x[0].size)
        self.expect_size(2, self.x[0].size)
        if self.num_inputs == 4:
            self.expect(3, FLOAT)
            self.expect_size(3, self.x[0].size)
            dloss = <const float*>self.x[3].data
            resize_like(self.y[1], self.x[1], FLOAT)
            out2 = <float*>self.y[1].data
        resize_like(self.y[0], self.x[0], FLOAT)
        out = <float*>self.y[0].data
        for i in range(self.x[0].size):
            distance = -t[i] * (x1[i] - x2[i]) + self.margin
            if dloss == NULL:
                out[i] = max(distance, 0)
            else:
                out[i] = 0 if distance < 0 else -t[i] * dloss[i]
                out2[i] = -out[i]
        return 0


_RANK_INS = {"X1": "float tensor", "X2": "float tensor of that size", "Y": "int32 tensor of that size: 1 or -1"}
_MARGIN = {"margin": "how far apart they are to be (default 1)"}
register("MarginRankingCriterion", MarginRankingCriterion, 3, 1, ins=_RANK_INS, args=_MARGIN,
         outs={"loss": "float tensor of the shape of X1"}, infer=like(0), cost=flops_per_element(3),
         gradient=simple("MarginRankingCriterionGradient", "I0 I1 I2 GO0", "GI0 GI1"),
         doc="loss = max(0, -Y (X1 - X2) + margin): X1 is to rank above X2 where Y is 1, below where it is -1.")
register("MarginRankingCriterionGradient", MarginRankingCriterion, 4, 2, args=_MARGIN,
         ins={**_RANK_INS, "dloss": "gradient of the loss"}, infer=like(0, 1),
         outs={"dX1": "gradient of X1", "dX2": "gradient of X2"},
         doc="Gradient of MarginRankingCriterion.")


# ---------------------------------------------------------------- accuracies

cdef class Accuracy(Operator):
    cdef int64_t top_k

    def setup(self):
        self.top_k = self.args.int("top_k", 1)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef const float* row
        cdef const int32_t* label = <const int32_t*>self.x[1].data
        cdef int64_t i, j, better, correct = 0
        self.expect(0, FLOAT)
        self.expect_ndim(0, 2)
        self.expect(1, INT32)
        self.expect_ndim(1, 1)
        self.expect_size(1, x.shape[0])
        for i in range(x.shape[0]):
            row = <const float*>x.data + i * x.shape[1]
            if not 0 <= label[i] < x.shape[1]:
                return self.fail("a label is not the number of a class (a column of the predictions)")
            better = 0
            for j in range(x.shape[1]):
                # of equal scores the first counts as better, as a stable sort would have it
                better += row[j] > row[label[i]] or (row[j] == row[label[i]] and j < label[i])
            correct += better < self.top_k
        resize0(self.y[0], FLOAT)
        (<float*>self.y[0].data)[0] = <float>correct / x.shape[0]
        return 0


cdef class MultiClassAccuracy(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef const float* row
        cdef const int32_t* label = <const int32_t*>self.x[1].data
        cdef float* accuracy
        cdef int32_t* amount
        cdef int64_t i, j, best
        self.expect(0, FLOAT)
        self.expect_ndim(0, 2)
        self.expect(1, INT32)
        self.expect_ndim(1, 1)
        self.expect_size(1, x.shape[0])
        for i in range(x.shape[0]):
            if not 0 <= label[i] < x.shape[1]:
                return self.fail("a label is not the number of a class (a column of the predictions)")
        resize1(self.y[0], x.shape[1], FLOAT)
        resize1(self.y[1], x.shape[1], INT32)
        accuracy = <float*>self.y[0].data
        amount = <int32_t*>self.y[1].data
        memset(accuracy, 0, x.shape[1] * sizeof(float))
        memset(amount, 0, x.shape[1] * sizeof(int32_t))
        for i in range(x.shape[0]):
            row = <const float*>x.data + i * x.shape[1]
            best = 0
            for j in range(1, x.shape[1]):
                if row[j] > row[best]:
                    best = j
            accuracy[label[i]] += best == label[i]
            amount[label[i]] += 1
        for j in range(x.shape[1]):
            if amount[j]:
                accuracy[j] /= amount[j]
        return 0


_SCORES = {"predictions": "float tensor (N, D) of scores", "labels": "int32 tensor (N,) of classes"}
register("Accuracy", Accuracy, 2, 1, ins=_SCORES, outs={"accuracy": "float scalar"},
         args={"top_k": "a prediction is right if the label is among that many best scores (default 1)"},
         infer=scalar(), doc="Share of the rows whose label has the best score, or one of the top_k best.")
register("MultiClassAccuracy", MultiClassAccuracy, 2, 2,
         ins={"prediction": _SCORES["predictions"], "labels": _SCORES["labels"]},
         outs={"accuracies": "float tensor (D,): share of right predictions of each class",
               "amounts": "int32 tensor (D,): rows of each class"},
         infer=lambda args, inputs: [TensorInfo(inputs[0].shape[1:]), TensorInfo(inputs[0].shape[1:], INT32)],
         doc="Accuracy of each class.")

"""Softmax, alone and with the cross-entropy loss, over rows or over the channels of an image."""
from cython.parallel cimport prange

from libc.math cimport INFINITY, expf, fabsf, logf
from libc.stdint cimport int32_t, int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport FLOAT, INT32, canonical_axis, resize0, resize_like, size_from, size_to, tensor_t
from caffe2._core.threads cimport num_threads
from caffe2.ops.kernels.dispatch cimport K

from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, like, same_as_input

cdef enum:
    WORK = 12           # elementary operations an element, for the choice of threads
    DONT_CARE = -1      # label of a pixel that counts for nothing

cdef float TINY = 1e-20


cdef class Rows(Operator):
    """Base: an input seen as a matrix, split before `axis`; rows are handled one by one, on several threads."""

    cdef int axis

    def setup(self):
        self.axis = self.args.int("axis", 1)

    cdef void row(self, int64_t i, int64_t d) noexcept nogil:
        pass

    cdef int rows(self, int64_t n, int64_t d) except -1 nogil:
        cdef int64_t i
        cdef int threads = num_threads(n * d * WORK)
        if threads == 1:
            for i in range(n):
                self.row(i, d)
        else:
            for i in prange(n, num_threads=threads, schedule="static"):
                self.row(i, d)
        return 0


cdef class Softmax(Rows):
    cdef void row(self, int64_t i, int64_t d) noexcept nogil:
        K.softmax_rows(1, d, <const float*>self.x[0].data + i * d, <float*>self.y[0].data + i * d)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int axis
        self.expect(0, FLOAT)
        axis = canonical_axis(self.axis, x.ndim)
        resize_like(self.y[0], x, FLOAT)
        return self.rows(size_to(x, axis), size_from(x, axis))


cdef class SoftmaxGradient(Rows):
    cdef void row(self, int64_t i, int64_t d) noexcept nogil:
        cdef const float* y = <const float*>self.x[0].data + i * d
        cdef const float* dy = <const float*>self.x[1].data + i * d
        cdef float* dx = <float*>self.y[0].data + i * d
        cdef float dot = 0
        cdef int64_t j
        for j in range(d):
            dot += y[j] * dy[j]
        for j in range(d):
            dx[j] = y[j] * (dy[j] - dot)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* y = self.x[0]
        cdef int axis
        self.expect(0, FLOAT)
        self.expect(1, FLOAT)
        self.expect_same_shape(1, 0)
        axis = canonical_axis(self.axis, y.ndim)
        resize_like(self.y[0], y, FLOAT)
        return self.rows(size_to(y, axis), size_from(y, axis))


_AXIS = {"axis": "dimensions from it on are a row; negative counts from the end (default 1)"}

register(
    "Softmax", Softmax, 1, 1, args=_AXIS,
    ins={"X": "float tensor, seen as a matrix of rows"}, outs={"Y": "float tensor of that shape; rows sum to 1"},
    infer=same_as_input(), cost=flops_per_element(4), gradient=simple("SoftmaxGradient", "O0 GO0", "GI0"),
    doc="Y[i, j] = exp(X[i, j]) / sum_k exp(X[i, k]), computed without overflow.",
)
register(
    "SoftmaxGradient", SoftmaxGradient, 2, 1, args=_AXIS, ins={"Y": "output of Softmax", "dY": "its gradient"},
    outs={"dX": "gradient of X"}, infer=like(0), cost=flops_per_element(4), doc="Gradient of Softmax.",
)


# ---------------------------------------------------------------- with the loss, rows

cdef check_arity(Operator op):
    """The schemas, as the original's, do not say it."""
    if op.type.endswith("Gradient"):
        if op.num_inputs not in (4, 5):
            raise ValueError("takes logits, labels, perhaps weights, softmax and the gradient of the loss")
    elif op.num_outputs not in (2, 3):
        raise ValueError("gives 2 outputs, softmax and loss (a third one stays empty)")


cdef class SoftmaxLossRows(Rows):
    """Base of SoftmaxWithLoss and its gradient: labels are classes (int32), or probabilities with label_prob."""

    cdef float scale
    cdef bint label_prob
    cdef bint by_batch_size

    def setup(self):
        Rows.setup(self)
        self.scale = self.args.float("scale", 1.0)
        self.label_prob = self.args.bool("label_prob")
        self.by_batch_size = self.args.bool("average_by_batch_size")
        if self.scale < 0:
            raise ValueError("argument scale may not be negative")
        if self.args.str("order", "NCHW") != "NCHW":
            raise ValueError("only order NCHW is supported")
        check_arity(self)

    cdef int check(self, bint weighted, int64_t* n, int64_t* d) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* t = self.x[1]
        cdef const int32_t* label = <const int32_t*>t.data
        cdef int axis
        cdef int64_t i
        self.expect(0, FLOAT)
        axis = canonical_axis(self.axis, x.ndim)
        n[0] = size_to(x, axis)
        d[0] = size_from(x, axis)
        self.expect(1, FLOAT if self.label_prob else INT32)
        if size_to(t, axis) != n[0] or size_from(t, axis) != (d[0] if self.label_prob else 1):
            return self.fail("labels must hold a class, or with label_prob all probabilities, for each row of logits")
        if not self.label_prob:
            for i in range(n[0]):
                if label[i] < 0 or label[i] >= d[0]:
                    return self.fail("a label is not the number of a class (a column of the logits)")
        if weighted:
            self.expect(2, FLOAT)
            self.expect_size(2, n[0])
        return 0


cdef float divisor(const float* weight, int64_t n, bint by_batch_size) noexcept nogil:
    """What a sum over n rows is averaged by."""
    cdef float total = 0
    cdef int64_t i
    if weight == NULL or by_batch_size:
        return <float>n
    for i in range(n):
        total += weight[i]
    return total


cdef class SoftmaxWithLoss(SoftmaxLossRows):
    cdef float* losses

    cdef void row(self, int64_t i, int64_t d) noexcept nogil:
        cdef const float* x = <const float*>self.x[0].data + i * d
        cdef float* p = <float*>self.y[0].data + i * d
        cdef const float* target
        cdef float loss = 0
        cdef int64_t j, label
        K.softmax_rows(1, d, x, p)
        if self.label_prob:
            target = <const float*>self.x[1].data + i * d
            for j in range(d):
                loss -= logf(max(p[j], TINY)) * target[j]
        else:
            label = (<const int32_t*>self.x[1].data)[i]
            # where the probability underflows, its logarithm is taken from the logits
            loss = K.vmax(d, x) - x[label] if p[label] <= TINY else -logf(p[label])
        self.losses[i] = loss

    cdef int run(self) except -1 nogil:
        cdef int64_t n = 0, d = 0, i, j
        cdef const float* weight = NULL
        cdef const float* target
        cdef float by, total
        cdef double loss = 0
        self.check(self.num_inputs > 2, &n, &d)
        if self.num_inputs > 2:
            weight = <const float*>self.x[2].data
        if self.label_prob:
            target = <const float*>self.x[1].data
            for i in range(n):
                total = 0
                for j in range(d):
                    if not target[i * d + j] >= 0:
                        return self.fail("a label probability is negative")
                    total += target[i * d + j]
                if not fabsf(total - 1) < 1e-5:
                    return self.fail("label probabilities of a row do not sum to 1")
        resize_like(self.y[0], self.x[0], FLOAT)
        self.losses = <float*>self.scratch(n * sizeof(float))
        self.rows(n, d)
        for i in range(n):
            loss += self.losses[i] * (weight[i] if weight != NULL else 1)
        by = divisor(weight, n, self.by_batch_size)
        resize0(self.y[1], FLOAT)
        (<float*>self.y[1].data)[0] = <float>(loss * self.scale / by) if by != 0 else 0
        return 0


cdef class SoftmaxWithLossGradient(SoftmaxLossRows):
    cdef float factor

    cdef void row(self, int64_t i, int64_t d) noexcept nogil:
        cdef const float* p = <const float*>self.x[self.num_inputs - 2].data + i * d
        cdef float* dx = <float*>self.y[0].data + i * d
        cdef float factor = self.factor
        cdef const float* target
        cdef int64_t j
        if self.num_inputs > 4:
            factor *= (<const float*>self.x[2].data)[i]
        if self.label_prob:
            target = <const float*>self.x[1].data + i * d
            for j in range(d):
                dx[j] = factor * (p[j] - target[j])
        else:
            for j in range(d):
                dx[j] = factor * p[j]
            dx[(<const int32_t*>self.x[1].data)[i]] -= factor

    cdef int run(self) except -1 nogil:
        cdef int64_t n = 0, d = 0
        cdef float by
        self.check(self.num_inputs > 4, &n, &d)
        self.expect(self.num_inputs - 2, FLOAT)
        self.expect_size(self.num_inputs - 2, self.x[0].size)
        self.expect(self.num_inputs - 1, FLOAT)
        if self.x[self.num_inputs - 1].size < 1:
            return self.fail("the gradient of the loss is empty")
        by = divisor(<const float*>self.x[2].data if self.num_inputs > 4 else NULL, n, self.by_batch_size)
        self.factor = (<const float*>self.x[self.num_inputs - 1].data)[0]
        if by > 0:
            self.factor *= self.scale / by
        resize_like(self.y[0], self.x[0], FLOAT)
        return self.rows(n, d)


def softmax_with_loss_gradient(g):
    weights = [g.I(2)] if g.num_inputs > 2 else []
    return g.op(g.definition.type + "Gradient", [g.I(0), g.I(1), *weights, g.O(0), g.GO(1)], [g.GI(0)])


def infer_loss(args, inputs):
    return [inputs[0], TensorInfo((), inputs[0].dtype)]


_LOSS_INS = {
    "logits": "float tensor, seen as a matrix of N rows",
    "labels": "int32 tensor of N classes, or, with label_prob, float tensor of the shape of the logits",
    "weight_tensor": "float tensor of N weights of the rows (optional)",
}
_LOSS_OUTS = {"softmax": "float tensor of the shape of the logits", "loss": "float scalar"}
_LOSS_ARGS = {
    **_AXIS,
    "label_prob": "labels are probabilities (default 0)",
    "scale": "the loss is multiplied by it (default 1)",
    "order": "only NCHW",
    "average_by_batch_size": "divide by N instead of by the sum of the weights (default 0)",
    "only_loss": "accepted; the softmax is always given",
}
register(
    "SoftmaxWithLoss", SoftmaxWithLoss, (2, 3), (0, None), ins=_LOSS_INS, outs=_LOSS_OUTS, args=_LOSS_ARGS,
    infer=infer_loss, cost=flops_per_element(5), gradient=softmax_with_loss_gradient,
    doc="Softmax over rows, and the average of the rows' cross entropies -log(softmax[i, labels[i]]).",
)
register(
    "SoftmaxWithLossGradient", SoftmaxWithLossGradient, (0, None), 1, args=_LOSS_ARGS,
    ins={**_LOSS_INS, "softmax": "output of SoftmaxWithLoss", "dloss": "gradient of the loss"},
    outs={"dX": "gradient of the logits"}, infer=like(0), cost=flops_per_element(2),
    doc="Gradient of SoftmaxWithLoss.",
)


# ---------------------------------------------------------------- with the loss, pixels

cdef class SpatialSoftmaxLoss(Operator):
    """Base: logits (N, D, H, W), labels (N, H, W), perhaps weights of that shape."""

    cdef float scale

    def setup(self):
        self.scale = self.args.float("scale", 1.0)
        if self.args.str("order", "NCHW") != "NCHW":
            raise ValueError("only order NCHW is supported")
        check_arity(self)

    cdef int check(self, bint weighted) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* t = self.x[1]
        cdef const int32_t* label = <const int32_t*>t.data
        cdef int64_t i
        self.expect(0, FLOAT)
        self.expect_ndim(0, 4)
        self.expect(1, INT32)
        self.expect_ndim(1, 3)
        if t.shape[0] != x.shape[0] or t.shape[1] != x.shape[2] or t.shape[2] != x.shape[3]:
            return self.fail("labels must be (N, H, W) for logits (N, D, H, W)")
        for i in range(t.size):
            if label[i] != DONT_CARE and not 0 <= label[i] < x.shape[1]:
                return self.fail("a label is not the number of a class (a channel of the logits), nor -1")
        if weighted:
            self.expect(2, FLOAT)
            self.expect_size(2, t.size)
        return 0


cdef class SpatialSoftmaxWithLoss(SpatialSoftmaxLoss):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* logits = self.x[0]
        cdef const int32_t* label = <const int32_t*>self.x[1].data
        cdef const float* weight = <const float*>self.x[2].data if self.num_inputs > 2 else NULL
        cdef int64_t i, pixel, c, d, pixels
        cdef const float* x
        cdef float* p
        cdef float top, total, w
        cdef double loss = 0, by = 0
        self.check(self.num_inputs > 2)
        resize_like(self.y[0], logits, FLOAT)
        d = logits.shape[1]
        pixels = logits.shape[2] * logits.shape[3]
        for i in range(logits.shape[0]):
            for pixel in range(pixels):
                x = <const float*>logits.data + i * d * pixels + pixel
                p = <float*>self.y[0].data + i * d * pixels + pixel
                top = -INFINITY
                total = 0
                for c in range(d):
                    top = max(top, x[c * pixels])
                for c in range(d):
                    p[c * pixels] = expf(x[c * pixels] - top)
                    total += p[c * pixels]
                for c in range(d):
                    p[c * pixels] /= total
                c = label[i * pixels + pixel]
                if c != DONT_CARE:
                    w = weight[i * pixels + pixel] if weight != NULL else 1
                    by += w
                    loss -= logf(max(p[c * pixels], TINY)) * w
        resize0(self.y[1], FLOAT)
        (<float*>self.y[1].data)[0] = <float>(loss * self.scale / by) if by != 0 else 0
        return 0


cdef class SpatialSoftmaxWithLossGradient(SpatialSoftmaxLoss):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* logits = self.x[0]
        cdef int last = self.num_inputs - 1
        cdef const int32_t* label = <const int32_t*>self.x[1].data
        cdef const float* weight = <const float*>self.x[2].data if self.num_inputs > 4 else NULL
        cdef const float* p
        cdef float* dx
        cdef int64_t i, pixel, c, d, pixels
        cdef float factor, w
        cdef double by = 0
        self.check(self.num_inputs > 4)
        self.expect(last - 1, FLOAT)
        self.expect_size(last - 1, logits.size)
        self.expect(last, FLOAT)
        if self.x[last].size < 1:
            return self.fail("the gradient of the loss is empty")
        for i in range(self.x[1].size):
            if label[i] != DONT_CARE:
                by += weight[i] if weight != NULL else 1
        factor = (<const float*>self.x[last].data)[0]
        if by > 0:
            factor *= self.scale / <float>by
        resize_like(self.y[0], logits, FLOAT)
        d = logits.shape[1]
        pixels = logits.shape[2] * logits.shape[3]
        for i in range(logits.shape[0]):
            for pixel in range(pixels):
                p = <const float*>self.x[last - 1].data + i * d * pixels + pixel
                dx = <float*>self.y[0].data + i * d * pixels + pixel
                w = factor * (weight[i * pixels + pixel] if weight != NULL else 1)
                if label[i * pixels + pixel] == DONT_CARE:
                    w = 0
                for c in range(d):
                    dx[c * pixels] = p[c * pixels] * w
                if w != 0:
                    dx[label[i * pixels + pixel] * pixels] -= w
        return 0


_SPATIAL_INS = {
    "logits": "float tensor (N, D, H, W)",
    "labels": "int32 tensor (N, H, W) of classes, -1 where a pixel counts for nothing",
    "weight_tensor": "float tensor (N, H, W) of weights of the pixels (optional)",
}
_SPATIAL_ARGS = {"scale": "the loss is multiplied by it (default 1)", "order": "only NCHW"}
register(
    "SpatialSoftmaxWithLoss", SpatialSoftmaxWithLoss, (2, 3), 2, ins=_SPATIAL_INS, outs=_LOSS_OUTS, args=_SPATIAL_ARGS,
    infer=infer_loss, cost=flops_per_element(5), gradient=softmax_with_loss_gradient,
    doc="Softmax over the channels of each pixel, and the weighted average of the pixels' cross entropies.",
)
register(
    "SpatialSoftmaxWithLossGradient", SpatialSoftmaxWithLossGradient, (0, None), 1, args=_SPATIAL_ARGS,
    ins={**_SPATIAL_INS, "softmax": "output of SpatialSoftmaxWithLoss", "dloss": "gradient of the loss"},
    outs={"dX": "gradient of the logits"}, infer=like(0), cost=flops_per_element(2),
    doc="Gradient of SpatialSoftmaxWithLoss.",
)

"""Softmax over rows, alone and with the loss."""
from caffe2._core.cuda import CudaOperator
from caffe2.ops.cuda.pointwise import FLOAT, FLOATS, INT32, SUFFIX, product, register_cuda
from caffe2.ops.cuda.reduction import Reducing


def matrix(shape, axis):
    """Rows and columns of a tensor that is split before `axis`."""
    if not -len(shape) <= axis < len(shape):
        raise IndexError(f"axis {axis} is out of range for {len(shape)} dimensions")
    axis %= len(shape)
    return product(shape[:axis]), product(shape[axis:])


def row_threads(d):
    """Threads for a row of d values: whole warps."""
    return min(256, max(32, -(-d // 32) * 32))


@register_cuda("Softmax")
class Softmax(CudaOperator):
    def execute(self):
        x = self.source(0, FLOATS)
        n, d = matrix(x.shape, self.args.int("axis", 1))
        y = self.like(0, x)
        if y.size:
            self.launch_blocks("Softmax" + SUFFIX[x.dtype], n, x, y, n, d, threads=row_threads(d))


@register_cuda("SoftmaxGradient")
class SoftmaxGradient(CudaOperator):
    def execute(self):
        y = self.source(0, FLOATS)
        dy = self.source(1, (y.dtype,))
        if y.shape != dy.shape:
            raise ValueError("inputs 0 and 1 must have the same shape")
        n, d = matrix(y.shape, self.args.int("axis", 1))
        dx = self.like(0, y)
        if y.size:
            self.launch_blocks("SoftmaxGradient" + SUFFIX[y.dtype], n, y, dy, dx, n, d, threads=row_threads(d))


class RowLoss(Reducing):
    """Labels that are no classes make the loss NaN, and the next fetch raise: what launches does not wait."""

    def setup(self):
        self.scale = self.args.float("scale", 1.0)
        self.probable = self.args.bool("label_prob")
        self.by_batch_size = self.args.bool("average_by_batch_size")
        if self.scale < 0:
            raise ValueError("argument scale may not be negative")
        if self.args.str("order", "NCHW") != "NCHW":
            raise ValueError("only order NCHW is supported")

    def rows(self):
        x = self.source(0, (FLOAT,))
        labels = self.source(1, (FLOAT if self.probable else INT32,))
        n, d = matrix(x.shape, self.args.int("axis", 1))
        if labels.size != (x.size if self.probable else n):
            raise ValueError("labels must hold a class, or with label_prob all probabilities, for each row of logits")
        return x, labels, n, d

    def weights(self, given, n):
        if not given:
            return None
        w = self.source(2, (FLOAT,))
        if w.size != n:
            raise ValueError(f"input 2 must have {n} elements, but has {w.size}")
        return w


@register_cuda("SoftmaxWithLoss")
class SoftmaxWithLoss(RowLoss):
    def execute(self):
        x, labels, n, d = self.rows()
        weight = self.weights(len(self.inputs) > 2, n)
        p, total = self.like(0, x), self.target(1, (), FLOAT)
        loss = self.room(0, n)
        if x.size:
            threads = row_threads(d)
            self.launch_blocks("Softmax_f", n, x, p, n, d, threads=threads)
            self.launch_blocks("RowLosses", n, x, p, labels, weight, loss, n, d, self.probable, *self.fault,
                               threads=threads)
        self.launch_blocks("AverageLoss", 1, loss, None if self.by_batch_size else weight, total, n, self.scale)


@register_cuda("SoftmaxWithLossGradient")
class SoftmaxWithLossGradient(RowLoss):
    def execute(self):
        x, labels, n, d = self.rows()
        last = len(self.inputs)
        weight = self.weights(last > 4, n)
        p, dloss = self.source(last - 2, (FLOAT,)), self.source(last - 1, (FLOAT,))
        if p.size != x.size:
            raise ValueError(f"input {last - 2} must have {x.size} elements, but has {p.size}")
        total = None
        if weight is not None and not self.by_batch_size:
            total = self.room(0, 1)
            self.sum_all(weight, total, scratch=1)
        dx = self.like(0, x)
        self.launch("SoftmaxWithLossGradient", dx.size, p, labels, weight, dloss, total, dx, n, d, self.probable,
                    self.scale, unit=1)

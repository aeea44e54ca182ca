"""Losses, sums of all elements, and accuracy."""
from caffe2._core.cuda import CudaOperator
from caffe2.ops.cuda.pointwise import DOUBLE, FLOAT, FLOATS, INT32, SUFFIX, product, register_cuda
from caffe2.ops.cuda.reduction import Reducing
from caffe2.ops.cuda.softmax import row_threads


class Rows(CudaOperator):
    """Base: X is (N, D), or (D,) for one row. Labels that are no classes give NaN, and the next fetch raises."""

    def rows(self, dtype, classes):
        x, label = self.source(0, (FLOAT,)), self.source(1, (dtype,))
        if x.ndim == 0:
            raise ValueError("X must have at least one dimension")
        n = x.shape[0] if x.ndim > 1 else 1
        d = product(x.shape[1:]) if x.ndim > 1 else x.size
        if label.size != (n if classes else x.size):
            raise ValueError("label must hold a class, or a row of probabilities, for each row of X")
        return x, label, n, d

    def gradient(self, i, n):
        dy = self.source(i, (FLOAT,))
        if dy.size != n:
            raise ValueError(f"input {i} must have {n} elements, but has {dy.size}")
        return dy


@register_cuda("LabelCrossEntropy")
class LabelCrossEntropy(Rows):
    def execute(self):
        x, label, n, d = self.rows(INT32, True)
        self.launch(self.type, n, x, label, self.target(0, (n,), FLOAT), n, d, *self.fault, unit=1)


@register_cuda("LabelCrossEntropyGradient")
class LabelCrossEntropyGradient(Rows):
    def execute(self):
        x, label, n, d = self.rows(INT32, True)
        self.launch(self.type, x.size, x, label, self.gradient(2, n), self.like(0, x), n, d, unit=1)


@register_cuda("CrossEntropy")
class CrossEntropy(Rows):
    def execute(self):
        x, label, n, d = self.rows(FLOAT, False)
        self.launch_blocks(self.type, n, x, label, self.target(0, (n,), FLOAT), n, d, threads=row_threads(d))


@register_cuda("CrossEntropyGradient")
class CrossEntropyGradient(Rows):
    def execute(self):
        x, label, n, d = self.rows(FLOAT, False)
        self.launch(self.type, x.size, x, label, self.gradient(2, n), self.like(0, x), n, d, unit=1)


class SigmoidLoss(Rows):
    def setup(self):
        log_d, unjoined = self.args.bool("log_D_trick"), self.args.bool("unjoined_lr_loss")
        if log_d and unjoined:
            raise ValueError("log_D_trick and unjoined_lr_loss exclude each other")
        self.mode = 1 if log_d else 2 if unjoined else 0

    def execute(self):
        first = int(self.type.endswith("Gradient"))
        x, t = self.source(first, (FLOAT,)), self.source(first + 1, (FLOAT,))
        w = self.source(first + 2, (FLOAT,)) if self.type.startswith("Weighted") else None
        for other in (t, w):
            if other is not None and other.shape != x.shape:
                raise ValueError("logits, targets and weights must have the same shape")
        d = x.shape[-1] if x.ndim else 1
        n = product(x.shape[:-1])
        if first:
            dy = self.gradient(0, n)
            self.launch("SigmoidLossGradient", x.size, dy, x, t, w, self.like(0, x), n, d, self.mode, unit=1)
        else:
            y = self.target(0, x.shape[:-1], FLOAT)
            self.launch_blocks("SigmoidLoss", n, x, t, w, y, n, d, self.mode, threads=row_threads(d))


for _name in ("SigmoidCrossEntropyWithLogits", "WeightedSigmoidCrossEntropyWithLogits"):
    register_cuda(_name, SigmoidLoss)
    register_cuda(_name + "Gradient", SigmoidLoss)


class SumElements(Reducing):
    def execute(self):
        square = self.type == "SumSqrElements"
        x = self.source(0, FLOATS if square else (*FLOATS, DOUBLE, INT32))
        average = self.type == "AveragedLoss" or self.args.bool("average")
        self.sum_all(x, self.target(0, (), x.dtype), 1 / x.size if average and x.size else 1.0,
                     "SumSqr" if square else "Sum")


for _name in ("SumElements", "AveragedLoss", "SumElementsInt", "SumSqrElements"):
    register_cuda(_name, SumElements)


@register_cuda("SumElementsGradient")
@register_cuda("AveragedLossGradient")
class SumElementsGradient(CudaOperator):
    def execute(self):
        x, dy = self.source(0), self.source(1, FLOATS)
        average = self.type == "AveragedLossGradient" or self.args.bool("average")
        if dy.size != 1:
            raise ValueError(f"input 1 must have 1 elements, but has {dy.size}")
        self.launch("Fill" + SUFFIX[dy.dtype], x.size, dy, self.like(0, x, dy.dtype), x.size,
                    1 / x.size if average and x.size else 1.0)


@register_cuda("SquaredL2Distance")
@register_cuda("SquaredL2DistanceGradient")
class SquaredL2Distance(Rows):
    def execute(self):
        x, z = self.source(0, (FLOAT,)), self.source(1, (FLOAT,))
        if x.shape != z.shape:
            raise ValueError("inputs 0 and 1 must have the same shape")
        n = x.shape[0] if x.ndim else 1
        d = x.size // n if n else 0
        if self.type.endswith("Gradient"):
            dy = self.gradient(2, n)
            self.launch(self.type, x.size, x, z, dy, self.like(0, x), self.like(1, x), n, d, unit=1)
        else:
            self.launch_blocks(self.type, n, x, z, self.target(0, (n,) if x.ndim else (), FLOAT), n, d,
                               threads=row_threads(d))


@register_cuda("Accuracy")
class Accuracy(Reducing):
    def execute(self):
        x, label = self.source(0, (FLOAT,)), self.source(1, (INT32,))
        if x.ndim != 2 or label.shape != x.shape[:1]:
            raise ValueError("takes scores (N, D) and N labels")
        n, d = x.shape
        hits = self.room(0, n)
        self.launch_blocks("Hits", n, x, label, hits, n, d, self.args.int("top_k", 1), *self.fault,
                           threads=row_threads(d))
        self.sum_all(hits, self.target(0, (), FLOAT), 1 / n if n else 1.0, scratch=1)

"""Dropout."""
from caffe2._core.cuda import CudaOperator, Draws
from caffe2.ops.cuda.pointwise import BOOL, FLOATS, SUFFIX, register_cuda


class Dropping(CudaOperator):
    def setup(self):
        self.ratio = self.args.float("ratio", 0.5)
        self.is_test = self.args.bool("is_test")
        if not 0 <= self.ratio < 1:
            raise ValueError("argument ratio must be at least 0 and below 1")


@register_cuda("Dropout")
class Dropout(Dropping):
    def setup(self):
        super().setup()
        if not self.is_test and len(self.outputs) < 2:
            raise ValueError("gives the mask as its second output when training (is_test=0)")

    def execute(self):
        x = self.source(0, FLOATS)
        if self.is_test:
            self.copy(0, 0)
            return
        y, mask = self.like(0, x), self.like(1, x, BOOL)
        self.launch("Dropout" + SUFFIX[x.dtype], x.size, x, y, mask, x.size, self.key,
                    Draws(-(-x.size // 4)), self.ratio)


@register_cuda("DropoutGrad")
class DropoutGrad(Dropping):
    def execute(self):
        dy = self.source(0, FLOATS)
        if self.is_test:
            self.copy(0, 0)
            return
        mask = self.source(1, (BOOL,))
        if mask.size != dy.size:
            raise ValueError(f"input 1 must have {dy.size} elements, but has {mask.size}")
        self.launch("DropoutGrad" + SUFFIX[dy.dtype], dy.size, dy, mask, self.like(0, dy), dy.size, self.ratio)

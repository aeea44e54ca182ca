"""Convolutions, forward and backward."""

from .common import THREADS, Fresh
from .models import normal, one_operator

# batch, input and output channels, size of the image, kernel, stride, group
LAYERS = {
    "first of LeNet": (64, 1, 20, 28, 5, 1, 1),
    "second of LeNet": (64, 20, 50, 12, 5, 1, 1),
    "3x3": (1, 128, 128, 28, 3, 1, 1),
    "1x1": (1, 256, 512, 14, 1, 1, 1),
    "3x3 stride 2": (1, 64, 128, 56, 3, 2, 1),
    "depthwise": (1, 128, 128, 28, 3, 1, 128),
}


class Conv(Fresh):
    params = [list(LAYERS), ["NCHW", "NHWC"], THREADS]
    param_names = ["layer", "order", "threads"]

    def build(self, layer, order):
        n, c, m, size, kernel, stride, group = LAYERS[layer]
        nhwc = order == "NHWC"
        if nhwc and group > 1:
            raise NotImplementedError("groups are timed in NCHW")
        x = normal(n, size, size, c) if nhwc else normal(n, c, size, size)
        w = normal(m, kernel, kernel, c // group) if nhwc else normal(m, c // group, kernel, kernel)
        pad = kernel // 2
        out = (size + 2 * pad - kernel) // stride + 1
        dy = normal(n, out, out, m) if nhwc else normal(n, m, out, out)
        return self.operator(x, w, normal(m), dy, kernel=kernel, stride=stride, pad=pad, group=group, order=order)

    def operator(self, x, w, b, dy, **args):
        return one_operator("Conv", [x, w, b], **args)


class ConvGradient(Conv):
    def operator(self, x, w, b, dy, **args):
        return one_operator("ConvGradient", [x, w, dy], outputs=["dw", "db", "dx"], **args)

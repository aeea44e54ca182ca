"""Pooling and its gradients."""
import numpy as np

from caffe2._core.cuda import CudaOperator
from caffe2.ops import windows
from caffe2.ops.cuda.pointwise import FLOATS, SUFFIX, register_cuda


class Pool(CudaOperator):
    """Base: a thread an output, or, for gradients, a thread an input, which gathers."""

    def setup(self):
        kind = self.type
        self.mode = 0 if kind.startswith("Max") else 1 if kind.startswith("Average") else 2
        self.p = self.args.float("p", 2.0)
        if not self.p > 0:
            raise ValueError(f"p must be positive, not {self.p}")
        g = windows.geometry(self.args)
        if set(g["dilation"]) != {1}:
            raise ValueError("pooling takes no dilation")
        if not self.args.bool("global_pooling") and any(
                p >= k for p, k in zip((*g["pad"], *g["tail"]), (*g["kernel"], *g["kernel"]))):
            raise ValueError("pads must be smaller than the windows")

    def fit(self, x):
        g = windows.geometry(self.args, x.shape)
        include = self.args.bool("count_include_pad")
        return g, np.array([g["channels"], g["nhwc"], *g["size"], *g["out"], *g["kernel"], *g["stride"], *g["pad"],
                            include], np.int64).tobytes()


class Forward(Pool):
    def execute(self):
        x = self.source(0, FLOATS)
        g, w = self.fit(x)
        y = self.target(0, g["shape"], x.dtype)
        self.launch("Pool" + SUFFIX[x.dtype], y.size, x, y, y.size, w, self.mode, self.p, unit=1)


class Backward(Pool):
    def execute(self):
        x = self.source(0, FLOATS)
        y, dy = (self.source(i, (x.dtype,)) for i in (1, 2))
        g, w = self.fit(x)
        for t, name in ((y, "Y"), (dy, "dY")):
            if t.shape != tuple(g["shape"]):
                raise ValueError(f"{name} must have shape {g['shape']}, but has {t.shape}")
        self.launch("PoolGradient" + SUFFIX[x.dtype], x.size, x, y, dy, self.like(0, x), x.size, w, self.mode, self.p,
                    unit=1)


for _kind in ("Max", "Average"):
    for _axes in ("", "1D", "2D", "3D"):
        register_cuda(f"{_kind}Pool{_axes}", Forward)
        register_cuda(f"{_kind}Pool{_axes}Gradient", Backward)
register_cuda("LpPool", Forward)
register_cuda("LpPoolGradient", Backward)

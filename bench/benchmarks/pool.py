"""Pooling."""

from .common import THREADS, Fresh
from .models import normal, one_operator


class Pool(Fresh):
    params = [["MaxPool", "AveragePool"], [(64, 20, 24, 24), (1, 64, 112, 112)], ["NCHW", "NHWC"], THREADS]
    param_names = ["operator", "shape", "order", "threads"]

    def build(self, op, shape, order):
        return one_operator(op, [normal(*shape)], kernel=2, stride=2, order=order)

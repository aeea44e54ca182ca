"""Normalization over batches and channels."""

import numpy as np

from .common import THREADS, Fresh
from .models import normal, one_operator

SHAPE = (16, 64, 32, 32)


class SpatialBN(Fresh):
    params = [["NCHW", "NHWC"], [0, 1], THREADS]
    param_names = ["order", "is_test", "threads"]

    def build(self, order, is_test):
        shape = SHAPE if order == "NCHW" else (16, 32, 32, 64)
        ones = np.ones(64, np.float32)
        outputs = ["y"] if is_test else ["y", "x3", "x4", "mean", "inv_std"]
        return one_operator("SpatialBN", [normal(*shape), *[ones] * 4], outputs, order=order, is_test=is_test)


class LRN(Fresh):
    params = [["NCHW", "NHWC"], THREADS]
    param_names = ["order", "threads"]

    def build(self, order):
        return one_operator("LRN", [normal(*SHAPE)], size=5, alpha=1e-4, beta=0.75, order=order)

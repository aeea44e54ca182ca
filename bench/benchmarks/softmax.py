"""Softmax of rows."""

from .common import THREADS, Fresh
from .models import normal, one_operator


class Softmax(Fresh):
    params = [[(16, 10), (64, 1000), (1000, 1000)], THREADS]
    param_names = ["shape", "threads"]

    def build(self, shape):
        return one_operator("Softmax", [normal(*shape)])

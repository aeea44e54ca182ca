"""Products of matrices."""

from .common import THREADS, Fresh
from .models import normal, one_operator


class FC(Fresh):
    params = [[(16, 100, 10), (64, 800, 500), (256, 1024, 1024)], THREADS]
    param_names = ["m_k_n", "threads"]

    def build(self, size):
        m, k, n = size
        return one_operator("FC", [normal(m, k), normal(n, k), normal(n)])


class FCGradient(FC):
    def build(self, size):
        m, k, n = size
        return one_operator("FCGradient", [normal(m, k), normal(n, k), normal(m, n)], outputs=["dw", "db", "dx"])


class MatMul(Fresh):
    params = [[64, 512], [0, 1], [0, 1], THREADS]
    param_names = ["size", "trans_a", "trans_b", "threads"]

    def build(self, size, trans_a, trans_b):
        return one_operator("MatMul", [normal(size, size), normal(size, size)],
                            trans_a=trans_a, trans_b=trans_b)


class BatchMatMul(Fresh):
    params = [[(64, 16, 16, 16), (8, 128, 128, 128)], THREADS]
    param_names = ["batch_m_n_k", "threads"]

    def build(self, size):
        batch, m, n, k = size
        return one_operator("BatchMatMul", [normal(batch, m, k), normal(batch, k, n)])

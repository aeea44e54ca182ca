"""Elementwise functions of one tensor."""

from .common import THREADS, Fresh
from .models import normal, one_operator


class Activation(Fresh):
    params = [["Relu", "Sigmoid", "Tanh", "Elu"], [1000, 1_000_000], THREADS]
    param_names = ["operator", "size", "threads"]

    def build(self, op, size):
        return one_operator(op, [normal(size)])


class ActivationGradient(Activation):
    params = [["ReluGradient", "SigmoidGradient", "TanhGradient"], *Activation.params[1:]]

    def build(self, op, size):
        return one_operator(op, [normal(size), normal(size)])

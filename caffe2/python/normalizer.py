"""Normalizers: how a layer of a layer model normalizes its output."""
from __future__ import annotations

from typing import Any


class Normalizer:
    """Called with a layer model and a record, adds the layer that normalizes it.

    A new normalizer overrides `_run(net, param)`.
    """

    def __init__(self):
        pass

    def __call__(self, net: Any, param: Any) -> Any:
        return self._run(net, param)

    def _run(self, net, param):
        raise NotImplementedError(f"{type(self).__name__} does not say how to normalize")


class BatchNormalizer(Normalizer):
    """Normalize each feature over the batch.

    Parameters
    ----------
    momentum
        Share of the past in the running mean and variance.
    scale_init_value
        Initial value of the learned scale.
    """

    def __init__(self, momentum: float, scale_init_value: float = 1.0):
        self._momentum = float(momentum)
        self._scale_init_value = float(scale_init_value)

    def _run(self, net, param):
        return net.BatchNormalization(
            param, momentum=self._momentum, scale_init_value=self._scale_init_value)


class LayerNormalizer(Normalizer):
    """Normalize each example over its features.

    Parameters
    ----------
    epsilon
        Added to the variance.
    use_layer_norm_op
        Whether one operator does it, or several elementary ones.
    scale_init_value
        Initial value of the learned scale.
    """

    def __init__(self, epsilon: float, use_layer_norm_op: bool = True,
                 scale_init_value: float = 1.0):
        self._epsilon = float(epsilon)
        self._use_layer_norm_op = use_layer_norm_op
        self._scale_init_value = float(scale_init_value)

    def _run(self, net, param):
        return net.LayerNormalization(
            param, epsilon=self._epsilon, use_layer_norm_op=self._use_layer_norm_op,
            scale_init_value=self._scale_init_value)

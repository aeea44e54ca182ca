"""What a model knows of each of its parameters."""
from typing import Any

import numpy as np

from caffe2.python import core


class ParameterTags:
    """Kinds of parameters."""

    BIAS = "BIAS"
    WEIGHT = "WEIGHT"
    COMPUTED_PARAM = "COMPUTED_PARAM"


class ParameterType:
    """Kinds of gradients."""

    DENSE = "dense"
    SPARSE = "sparse"


class ParameterInfo:
    """A parameter with its shape, gradient, optimizer and copies in other types.

    Parameters
    ----------
    param_id : int or None
    param : BlobReference
    key, length : optional
        Field of the input record and number of indices of a sparse parameter.
    shape : list of int, optional
    grad : BlobReference or GradientSlice, optional
    blob_copy : dict of TensorProto.DataType to BlobReference, optional
        The same values in other types.
    """

    def __init__(
            self, param_id: int | None, param: core.BlobReference, key: Any = None,
            shape: list | None = None, length: int | None = None, grad: Any = None,
            blob_copy: dict | None = None):
        assert isinstance(param, core.BlobReference)
        self.param_id = param_id
        self.name = str(param)
        self.blob = param
        self.key = key
        self.shape = shape
        self.size = None if shape is None else np.prod(shape)
        self.length = 1 if length is None else max(1, length)
        self.grad = grad
        self.blob_copy = blob_copy
        self.regularizer = None
        self._cloned_init_net = None
        self._optimizer = None

    def grad_type(self) -> str | None:
        """Return the ParameterType of the gradient, None without one."""
        if self.grad is None:
            return None
        is_sparse = isinstance(self.grad, core.GradientSlice)
        return ParameterType.SPARSE if is_sparse else ParameterType.DENSE

    @property
    def parameter(self) -> core.BlobReference:
        return self.blob

    @property
    def optimizer(self) -> Any:
        """The parameter's own optimizer, set at most once."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, value: Any) -> None:
        assert self._optimizer is None, "optimizer has already been set"
        self._optimizer = value

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"ParameterInfo({self.name!r}, shape={self.shape})"

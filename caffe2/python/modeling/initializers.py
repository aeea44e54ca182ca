"""How a parameter comes to its first value."""
from typing import Any

from caffe2.python.core import BlobReference, DataType, ScopedBlobReference
from caffe2.python.modeling.parameter_info import ParameterInfo


class Initializer:
    """Fills a parameter with the output of an operator.

    Parameters
    ----------
    operator_name : str
        A fill operator such as ``"XavierFill"``.
    **kwargs
        Its arguments.
    """

    def __init__(self, operator_name: str | None = None, **kwargs):
        self.operator_name = operator_name
        self.operator_kwargs = kwargs

    def update(self, operator_name: str, kwargs: dict) -> None:
        """Set the operator of an initializer that was made without one."""
        if self.operator_name is not None:
            raise Exception("Operator name overwrites are not allowed")
        self.operator_name = operator_name
        self.operator_kwargs = kwargs

    def _fill(self, name: Any, init_net: Any, shape: list) -> BlobReference:
        return getattr(init_net, self.operator_name)(
            [], name, shape=shape, **self.operator_kwargs)

    def create_param(self, param_name: Any, init_net: Any, shape: list) -> ParameterInfo:
        """Add the operator to `init_net` and return the parameter."""
        return ParameterInfo(
            param_id=None, param=self._fill(param_name, init_net, shape), shape=shape)


class ExternalInitializer:
    """For a parameter that is in the workspace already; adds no operator."""

    def create_param(self, param_name: Any, init_net: Any, shape: list) -> ParameterInfo:
        """Return the parameter."""
        if isinstance(param_name, BlobReference):
            param = BlobReference(str(param_name), init_net)
        elif isinstance(param_name, str):
            param = ScopedBlobReference(param_name, init_net)
        else:
            raise TypeError(f"Unsupported type for param_name: {type(param_name)}")
        return ParameterInfo(param_id=None, param=param, shape=shape)


class PseudoFP16Initializer(Initializer):
    """For mixed precision: a float16 parameter with the float32 copy that is optimized."""

    def create_param(self, param_name: Any, init_net: Any, shape: list) -> ParameterInfo:
        """Add the fill and the cast to `init_net` and return the float16 parameter."""
        param_fp32 = self._fill(param_name + "_fp32", init_net, shape)
        param = init_net.FloatToHalf(param_fp32, param_name)
        return ParameterInfo(
            param_id=None, param=param, shape=shape, blob_copy={DataType.FLOAT: param_fp32})


class ReversePseudoFP16Initializer(Initializer):
    """A float32 parameter with a float16 copy."""

    def create_param(self, param_name: Any, init_net: Any, shape: list) -> ParameterInfo:
        """Add the fill and the cast to `init_net` and return the float32 parameter."""
        param = self._fill(param_name, init_net, shape)
        param_fp16 = init_net.FloatToHalf(param, param_name + "_fp16")
        return ParameterInfo(
            param_id=None, param=param, shape=shape, blob_copy={DataType.FLOAT16: param_fp16})


def update_initializer(
        initializer_class: type | None, operator_name_and_kwargs: tuple | None,
        default_operator_name_and_kwargs: tuple) -> Any:
    """Make an initializer from what a caller of a helper gave.

    Parameters
    ----------
    initializer_class : class, optional
        Initializer by default.
    operator_name_and_kwargs : (str, dict), optional
        The caller's operator.
    default_operator_name_and_kwargs : (str, dict)
        The operator if the caller gave none.
    """
    name, kwargs = operator_name_and_kwargs or default_operator_name_and_kwargs
    return (initializer_class or Initializer)(name, **kwargs)

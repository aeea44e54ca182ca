"""Scale and shift by features."""
from typing import Any

from caffe2.python.helpers.params import fill
from caffe2.python.modeling.parameter_info import ParameterTags


def _elementwise_linear(
        model: Any, op_call: Any, blob_in: Any, blob_out: Any, dim: int,
        weight_init: tuple | None = None, bias_init: tuple | None = None, **kwargs) -> Any:
    blob_out = blob_out or model.net.NextName()
    weight = fill(model, blob_out + "_w", [dim], weight_init or ("ConstantFill", {"value": 1.0}))
    bias = fill(model, blob_out + "_b", [dim], bias_init or ("ConstantFill", {"value": 0.0}))
    model.AddParameter(weight, ParameterTags.WEIGHT)
    model.AddParameter(bias, ParameterTags.BIAS)
    return op_call([blob_in, weight, bias], blob_out, **kwargs)


def elementwise_linear(model: Any, *args, **kwargs) -> Any:
    """Compute ``x * w + b`` with one weight and one bias a feature.

    Arguments are `blob_in`, `blob_out`, `dim`, the number of features, and optionally
    `weight_init` and `bias_init`, fill operators with their arguments.
    """
    return _elementwise_linear(model, model.net.ElementwiseLinear, *args, **kwargs)

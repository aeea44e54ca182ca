"""Activations."""
from typing import Any

from caffe2.python.helpers.params import fill


def prelu(
        model: Any, blob_in: Any, blob_out: Any, num_channels: int = 1,
        slope_init: tuple | None = None, **kwargs) -> Any:
    """Rectify with a learned slope for negative values, 0.25 at first, shared or by channel."""
    slope = fill(model, blob_out + "_slope", [num_channels],
                 slope_init or ("ConstantFill", {"value": 0.25}))
    model.AddParameter(slope)
    return model.net.PRelu([blob_in, slope], [blob_out])


def relu(
        model: Any, blob_in: Any, blob_out: Any, use_cudnn: bool = False,
        order: str = "NCHW", **kwargs) -> Any:
    """Set negative values to zero."""
    if use_cudnn:
        kwargs["engine"] = "CUDNN"
    return model.net.Relu(blob_in, blob_out, order=order, **kwargs)


def tanh(
        model: Any, blob_in: Any, blob_out: Any, use_cudnn: bool = False,
        order: str = "NCHW", **kwargs) -> Any:
    """Apply the hyperbolic tangent."""
    if use_cudnn:
        kwargs["engine"] = "CUDNN"
    return model.net.Tanh(blob_in, blob_out, order=order, **kwargs)

"""Normalization."""
from typing import Any

from caffe2.python import core, scope
from caffe2.python.helpers.params import create_param
from caffe2.python.modeling.parameter_info import ParameterTags


def _constant(value: float) -> tuple:
    return ("ConstantFill", {"value": value})


def lrn(
        model: Any, blob_in: Any, blob_out: Any, order: str = "NCHW", use_cudnn: bool = False,
        **kwargs) -> Any:
    """Normalize each element by its neighbours in other channels."""
    device = kwargs.get("device_option") or scope.CurrentDeviceScope()
    if use_cudnn and device is not None and core.IsGPUDeviceType(device.device_type):
        return model.net.LRN(blob_in, blob_out, order=order, engine="CUDNN", **kwargs)
    return model.net.LRN(
        blob_in, [blob_out, "_" + blob_out + "_scale"], order=order, **kwargs)[0]


def softmax(
        model: Any, blob_in: Any, blob_out: Any = None, use_cudnn: bool = False,
        **kwargs) -> Any:
    """Turn scores into probabilities."""
    if use_cudnn:
        kwargs["engine"] = "CUDNN"
    if blob_out is None:
        return model.net.Softmax(blob_in, **kwargs)
    return model.net.Softmax(blob_in, blob_out, **kwargs)


def instance_norm(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int, order: str = "NCHW",
        **kwargs) -> Any:
    """Normalize each channel of each image, then scale and shift it."""
    blob_out = blob_out or model.net.NextName()
    scale, bias = [
        model.param_init_net.ConstantFill([], blob_out + suffix, shape=[dim_in], value=value)
        for suffix, value in (("_s", 1.0), ("_b", 0.0))
    ]
    model.AddParameter(scale, ParameterTags.WEIGHT)
    model.AddParameter(bias, ParameterTags.BIAS)
    outputs = [blob_out, blob_out + "_sm", blob_out + "_siv"]
    if kwargs.get("is_test"):
        outputs = outputs[:1]
    result = model.net.InstanceNorm([blob_in, scale, bias], outputs, order=order, **kwargs)
    return result if len(outputs) == 1 else result[0]


def _scale_and_bias(
        model: Any, blob_out: Any, dim_in: int, init_scale: float, init_bias: float,
        ScaleInitializer: Any, BiasInitializer: Any) -> tuple:
    return (
        create_param(model, blob_out + "_s", [dim_in], ScaleInitializer,
                     _constant(init_scale), tags=ParameterTags.WEIGHT),
        create_param(model, blob_out + "_b", [dim_in], BiasInitializer,
                     _constant(init_bias), tags=ParameterTags.BIAS),
    )


def _running_stats(
        model: Any, blob_out: Any, dim_in: int, RunningMeanInitializer: Any,
        RunningVarianceInitializer: Any) -> tuple:
    return (
        create_param(model, blob_out + "_rm", [dim_in], RunningMeanInitializer,
                     _constant(0.0), tags=ParameterTags.COMPUTED_PARAM),
        create_param(model, blob_out + "_riv", [dim_in], RunningVarianceInitializer,
                     _constant(1.0), tags=ParameterTags.COMPUTED_PARAM),
    )


def spatial_bn(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int, init_scale: float = 1.0,
        init_bias: float = 0.0, ScaleInitializer: Any = None, BiasInitializer: Any = None,
        RunningMeanInitializer: Any = None, RunningVarianceInitializer: Any = None,
        order: str = "NCHW", **kwargs) -> Any:
    """Normalize each channel over the batch, then scale and shift it.

    Parameters
    ----------
    dim_in : int
        Number of channels.
    init_scale, init_bias : float
        First values of scale and shift.
    ScaleInitializer, BiasInitializer : class, optional
    RunningMeanInitializer, RunningVarianceInitializer : class, optional
        Initializers of the estimates that are used when `is_test` is set.
    **kwargs
        Arguments of SpatialBN: `is_test`, `epsilon`, `momentum`.
    """
    blob_out = blob_out or model.net.NextName()
    scale, bias = _scale_and_bias(
        model, blob_out, dim_in, init_scale, init_bias, ScaleInitializer, BiasInitializer)
    mean, var = _running_stats(
        model, blob_out, dim_in, RunningMeanInitializer, RunningVarianceInitializer)
    inputs = [blob_in, scale, bias, mean, var]
    if kwargs.get("is_test"):
        return model.net.SpatialBN(inputs, [blob_out], order=order, **kwargs)
    outputs = [blob_out, mean, var, blob_out + "_sm", blob_out + "_siv"]
    return model.net.SpatialBN(inputs, outputs, order=order, **kwargs)[0]


def spatial_gn(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int, init_scale: float = 1.0,
        init_bias: float = 0.0, ScaleInitializer: Any = None, BiasInitializer: Any = None,
        RunningMeanInitializer: Any = None, RunningVarianceInitializer: Any = None,
        order: str = "NCHW", **kwargs) -> Any:
    """Normalize groups of channels of each image, then scale and shift each channel.

    The running initializers are accepted so that it can stand in for `spatial_bn`; `group` is
    the number of groups.
    """
    blob_out = blob_out or model.net.NextName()
    scale, bias = _scale_and_bias(
        model, blob_out, dim_in, init_scale, init_bias, ScaleInitializer, BiasInitializer)
    return model.net.GroupNorm(
        [blob_in, scale, bias], [blob_out, blob_out + "_mean", blob_out + "_std"],
        order=order, **kwargs)[0]


def layer_norm(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int, axis: int = 1,
        epsilon: float = 1e-4, initial_scale: float = 1.0, initial_bias: float = 0.0) -> tuple:
    """Normalize each example over its features, then scale and shift them.

    Parameters
    ----------
    dim_in : int
        Number of features.
    axis : int
        First axis of the features.
    epsilon : float
        Added to the variance.
    initial_scale, initial_bias : float
        First values of scale and shift.

    Returns
    -------
    output, mean, standard deviation : BlobReference
    """
    normalized, mean, stdev = model.net.LayerNorm(
        [blob_in], [blob_out, blob_out + "_mean", blob_out + "_stdev"],
        axis=axis, epsilon=epsilon)
    scale = create_param(model, blob_out + "_scale", [dim_in], init=_constant(initial_scale),
                         tags=ParameterTags.WEIGHT)
    bias = create_param(model, blob_out + "_bias", [dim_in], init=_constant(initial_bias),
                        tags=ParameterTags.BIAS)
    scaled = model.net.Mul(
        [normalized, scale], [blob_out + "_scaled"], broadcast=1, axis=axis)
    biased = model.net.Add([scaled, bias], [blob_out + "_biased"], broadcast=1, axis=axis)
    return biased, mean, stdev


def moments_with_running_stats(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int,
        RunningMeanInitializer: Any = None, RunningVarianceInitializer: Any = None,
        order: str = "NCHW", **kwargs) -> tuple:
    """Compute mean and variance of each channel and make parameters for running estimates.

    Returns
    -------
    mean, variance : BlobReference
        Named `blob_out` with suffixes ``_sm`` and ``_sv``; the running estimates have
        suffixes ``_rm`` and ``_riv``.
    """
    blob_out = blob_out or model.net.NextName()
    _running_stats(model, blob_out, dim_in, RunningMeanInitializer, RunningVarianceInitializer)
    return model.net.Moments(
        [blob_in], [blob_out + "_sm", blob_out + "_sv"],
        axes=[0, 2, 3] if order == "NCHW" else [0, 1, 2], order=order, keepdims=False,
        **kwargs)

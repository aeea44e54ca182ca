"""Convolutions."""
from typing import Any

from caffe2.python.helpers.params import create_param, fill
from caffe2.python.modeling.parameter_info import ParameterTags

_XAVIER = ("XavierFill", {})
_ZERO = ("ConstantFill", {})


def _cudnn_arguments(
        kwargs: dict, use_cudnn: bool, exhaustive_search: bool, ws_nbytes_limit: Any) -> None:
    if use_cudnn:
        kwargs["engine"] = "CUDNN"
        kwargs["exhaustive_search"] = exhaustive_search
        if ws_nbytes_limit:
            kwargs["ws_nbytes_limit"] = ws_nbytes_limit


def _weight_shape(order: str, dim_out: int, dim_in: int, kernels: list) -> list:
    return [dim_out, dim_in, *kernels] if order == "NCHW" else [dim_out, *kernels, dim_in]


def _ConvBase(
        model: Any, is_nd: bool, blob_in: Any, blob_out: Any, dim_in: int, dim_out: int,
        kernel: Any, weight_init: tuple | None = None, bias_init: tuple | None = None,
        WeightInitializer: Any = None, BiasInitializer: Any = None, group: int = 1,
        transform_inputs: Any = None, use_cudnn: bool = False, order: str = "NCHW",
        cudnn_exhaustive_search: bool = False, ws_nbytes_limit: Any = None,
        float16_compute: bool = False, **kwargs) -> Any:
    if isinstance(kernel, tuple):
        kernel = list(kernel)
    is_list = isinstance(kernel, list)
    if is_nd:
        kernels = kernel if is_list else [kernel]
        kernel_args = {"kernels": kernels}
    elif is_list:
        assert len(kernel) == 2, "Conv support only a 2D kernel."
        kernels = kernel
        kernel_args = {"kernel_h": kernel[0], "kernel_w": kernel[1]}
    else:
        kernels = [kernel] * 2
        kernel_args = {"kernel": kernel}

    engine = kwargs.get("engine")
    if engine is not None and use_cudnn != (engine == "CUDNN"):
        raise ValueError(
            f"engine={engine!r} does not go with use_cudnn={use_cudnn}: "
            "'CUDNN' is the engine if and only if use_cudnn is set")
    _cudnn_arguments(kwargs, use_cudnn, cudnn_exhaustive_search, ws_nbytes_limit)

    blob_out = blob_out or model.net.NextName()
    weight = create_param(
        model, blob_out + "_w", _weight_shape(order, dim_out, int(dim_in // group), kernels),
        WeightInitializer, weight_init, _XAVIER, ParameterTags.WEIGHT)
    inputs = [blob_in, weight]
    if not kwargs.pop("no_bias", False):
        inputs.append(create_param(
            model, blob_out + "_b", [dim_out], BiasInitializer, bias_init, _ZERO,
            ParameterTags.BIAS))
    if transform_inputs is not None:
        transform_inputs(model, blob_out, inputs)
    if float16_compute:
        kwargs["float16_compute"] = True
    if group != 1:
        kwargs["group"] = group
    return model.net.Conv(inputs, blob_out, order=order, **kernel_args, **kwargs)


def conv_nd(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int, dim_out: int, kernel: Any,
        weight_init: tuple | None = None, bias_init: tuple | None = None,
        WeightInitializer: Any = None, BiasInitializer: Any = None, group: int = 1,
        transform_inputs: Any = None, order: str = "NCHW", **kwargs) -> Any:
    """Convolve over any number of dimensions, in order NCHW.

    Parameters are those of `conv`, but `kernel` is a list of one size for each dimension.
    """
    assert order == "NCHW", "ConvNd only supported for NCHW storage."
    return _ConvBase(
        model, True, blob_in, blob_out, dim_in, dim_out, kernel, weight_init, bias_init,
        WeightInitializer, BiasInitializer, group, transform_inputs, order=order, **kwargs)


def conv(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int, dim_out: int, kernel: Any,
        weight_init: tuple | None = None, bias_init: tuple | None = None,
        WeightInitializer: Any = None, BiasInitializer: Any = None, group: int = 1,
        transform_inputs: Any = None, **kwargs) -> Any:
    """Convolve over height and width.

    Parameters
    ----------
    dim_in, dim_out : int
        Numbers of channels.
    kernel : int or list of two int
    weight_init, bias_init : (str, dict), optional
        Fill operators and their arguments, by default XavierFill and zeros.
    WeightInitializer, BiasInitializer : class, optional
    group : int
    transform_inputs : callable, optional
        Called with the model, `blob_out` and the list of inputs, which it may change.
    no_bias : bool, optional
    **kwargs
        Arguments of Conv such as `stride`, `pad`, `dilation` and `order`.
    """
    return _ConvBase(
        model, False, blob_in, blob_out, dim_in, dim_out, kernel, weight_init, bias_init,
        WeightInitializer, BiasInitializer, group, transform_inputs, **kwargs)


def conv_transpose(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int, dim_out: int, kernel: int,
        weight_init: tuple | None = None, bias_init: tuple | None = None,
        use_cudnn: bool = False, order: str = "NCHW", cudnn_exhaustive_search: bool = False,
        ws_nbytes_limit: Any = None, **kwargs) -> Any:
    """Convolve transposed over height and width."""
    blob_out = blob_out or model.net.NextName()
    weight = fill(
        model, blob_out + "_w", _weight_shape(order, dim_in, dim_out, [kernel, kernel]),
        weight_init or _XAVIER)
    bias = fill(model, blob_out + "_b", [dim_out], bias_init or _ZERO)
    model.AddParameter(weight, ParameterTags.WEIGHT)
    model.AddParameter(bias, ParameterTags.BIAS)
    _cudnn_arguments(kwargs, use_cudnn, cudnn_exhaustive_search, ws_nbytes_limit)
    return model.net.ConvTranspose(
        [blob_in, weight, bias], blob_out, kernel=kernel, order=order, **kwargs)


def group_conv(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int, dim_out: int, kernel: Any,
        weight_init: tuple | None = None, bias_init: tuple | None = None, group: int = 1,
        **kwargs) -> Any:
    """Convolve in groups: `conv` with the argument `group`."""
    return conv(
        model, blob_in, blob_out, dim_in, dim_out, kernel,
        weight_init=weight_init, bias_init=bias_init, group=group, **kwargs)


def group_conv_deprecated(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int, dim_out: int, kernel: int,
        weight_init: tuple | None = None, bias_init: tuple | None = None, group: int = 1,
        use_cudnn: bool = False, order: str = "NCHW", cudnn_exhaustive_search: bool = False,
        ws_nbytes_limit: Any = None, **kwargs) -> Any:
    """Convolve in groups by splitting the channels and joining the results.

    Models that were trained with it have a parameter for each group; others use `group_conv`.
    """
    if dim_in % group or dim_out % group:
        raise ValueError(
            f"dim_in={dim_in} and dim_out={dim_out} should be divisible by group={group}")
    _cudnn_arguments(kwargs, use_cudnn, cudnn_exhaustive_search, ws_nbytes_limit)
    use_bias = not kwargs.pop("no_bias", False)
    dim_in, dim_out = dim_in // group, dim_out // group
    parts = model.net.DepthSplit(
        blob_in, ["_" + blob_out + f"_gconv_split_{i}" for i in range(group)],
        dimensions=[dim_in] * group, order=order)
    weight_shape = _weight_shape(order, dim_out, dim_in, [kernel, kernel])
    convolved = []
    for i, part in enumerate([parts] if group == 1 else parts):
        name = blob_out + f"_gconv_{i}"
        inputs = [fill(model, name + "_w", weight_shape, weight_init or _XAVIER)]
        model.AddParameter(inputs[0], ParameterTags.WEIGHT)
        if use_bias:
            inputs.append(fill(model, name + "_b", [dim_out], bias_init or _ZERO))
            model.AddParameter(inputs[1], ParameterTags.BIAS)
        convolved.append(part.Conv(inputs, name, kernel=kernel, order=order, **kwargs))
    return model.net.Concat(
        convolved, [blob_out, "_" + blob_out + "_concat_dims"], order=order)[0]

"""Iteration counter, accuracy and weight decay."""
from typing import Any

from caffe2.proto import caffe2_pb2
from caffe2.python import core, scope


def _get_weights(model: Any, namescope: str | None = None) -> list:
    if namescope is None:
        namescope = scope.CurrentNameScope()
    return [w for w in model.weights if namescope in ("", w.GetNameScope())]


def iter(model: Any, blob_out: Any, **kwargs) -> Any:
    """Count the runs of the net, on the CPU."""
    kwargs.pop("device_option", None)
    model.param_init_net.ConstantFill(
        [], blob_out, shape=[1], value=0, dtype=core.DataType.INT64,
        device_option=core.DeviceOption(caffe2_pb2.CPU, 0), **kwargs)
    return model.net.Iter(blob_out, blob_out, **kwargs)


def accuracy(model: Any, blob_in: list, blob_out: Any, **kwargs) -> Any:
    """Compare predictions with labels, `blob_in`; with `top_k` above 1 always on the CPU."""
    device = kwargs.get("device_option") or scope.CurrentDeviceScope()
    on_gpu = device is not None and core.IsGPUDeviceType(device.device_type)
    if on_gpu and kwargs.get("top_k", 1) > 1:
        blob_in = [model.net.CopyGPUToCPU(b, b + "_host") for b in blob_in]
        kwargs["device_option"] = core.DeviceOption(caffe2_pb2.CPU, 0)
    return model.net.Accuracy(blob_in, blob_out, **kwargs)


def add_weight_decay(model: Any, weight_decay: float) -> None:
    """Add `weight_decay` times the weight to the gradient of each weight of the model."""
    if weight_decay <= 0.0:
        return
    wd = model.param_init_net.ConstantFill([], "wd", shape=[1], value=weight_decay)
    one = model.param_init_net.ConstantFill([], "ONE", shape=[1], value=1.0)
    for param in _get_weights(model):
        grad = model.param_to_grad[param]
        model.net.WeightedSum([grad, one, param, wd], grad)

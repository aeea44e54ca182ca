"""The model helper of the first Caffe2 scripts; new ones use ModelHelper with brew."""
from typing import Any

from caffe2.proto import caffe2_pb2
from caffe2.python import brew
from caffe2.python.model_helper import ModelHelper


class CNNModelHelper(ModelHelper):
    """A ModelHelper with the layers as methods.

    Parameters
    ----------
    order : "NCHW" or "NHWC"
        Storage order of all layers.
    name : str, optional
        "CNN" by default.
    use_cudnn, cudnn_exhaustive_search, ws_nbytes_limit
        Given to the layers that know them.
    init_params, skip_sparse_optim, param_model
        See ModelHelper.

    Examples
    --------
    >>> m = CNNModelHelper(name="net")
    >>> fc1 = m.FC("data", "fc1", dim_in=100, dim_out=10)
    >>> pred = m.Sigmoid(fc1, "pred")
    """

    def __init__(
            self, order: str = "NCHW", name: str | None = None, use_cudnn: bool = True,
            cudnn_exhaustive_search: bool = False, ws_nbytes_limit: int | None = None,
            init_params: bool = True, skip_sparse_optim: bool = False,
            param_model: ModelHelper | None = None):
        if order not in ("NHWC", "NCHW"):
            raise ValueError(f"Cannot understand the CNN storage order {order}.")
        arg_scope = {
            "order": order,
            "use_cudnn": use_cudnn,
            "cudnn_exhaustive_search": cudnn_exhaustive_search,
        }
        if ws_nbytes_limit:
            arg_scope["ws_nbytes_limit"] = ws_nbytes_limit
        super().__init__(
            name="CNN" if name is None else name, init_params=init_params,
            skip_sparse_optim=skip_sparse_optim, param_model=param_model,
            arg_scope=arg_scope)
        self.order = order
        self.use_cudnn = use_cudnn
        self.cudnn_exhaustive_search = cudnn_exhaustive_search
        self.ws_nbytes_limit = ws_nbytes_limit

    def ImageInput(
            self, blob_in: Any, blob_out: Any, use_gpu_transform: bool = False,
            **kwargs) -> Any:
        """See brew.image_input."""
        return brew.image_input(
            self, blob_in, blob_out, order=self.order, use_gpu_transform=use_gpu_transform,
            **kwargs)

    def VideoInput(self, blob_in: Any, blob_out: Any, **kwargs) -> Any:
        """See brew.video_input."""
        return brew.video_input(self, blob_in, blob_out, **kwargs)

    def PadImage(self, blob_in: Any, blob_out: Any, **kwargs) -> Any:
        """Pad images on their borders."""
        return self.net.PadImage(blob_in, blob_out, **kwargs)

    def DepthConcat(self, *args, **kwargs) -> Any:
        """The old name of Concat."""
        return self.Concat(*args, **kwargs)

    @property
    def XavierInit(self) -> tuple:
        """Fill uniformly, scaled by the number of inputs."""
        return ("XavierFill", {})

    def ConstantInit(self, value: float) -> tuple:
        """Fill with `value`."""
        return ("ConstantFill", {"value": value})

    @property
    def MSRAInit(self) -> tuple:
        """Fill normally, scaled for rectified layers."""
        return ("MSRAFill", {})

    @property
    def ZeroInit(self) -> tuple:
        """Fill with zeros."""
        return ("ConstantFill", {})

    def AddWeightDecay(self, weight_decay: float) -> None:
        """See brew.add_weight_decay."""
        brew.add_weight_decay(self, weight_decay)

    @property
    def CPU(self) -> caffe2_pb2.DeviceOption:
        return caffe2_pb2.DeviceOption(device_type=caffe2_pb2.CPU)

    @property
    def GPU(self) -> caffe2_pb2.DeviceOption:
        return caffe2_pb2.DeviceOption(device_type=caffe2_pb2.CUDA, device_id=0)


def _method(name: str, helper_name: str, settings: tuple[str, ...]) -> Any:
    def method(self, *args, **kwargs):
        for setting in settings:
            kwargs.setdefault(setting, getattr(self, setting))
        return getattr(brew, helper_name)(self, *args, **kwargs)

    method.__name__ = name
    method.__qualname__ = f"CNNModelHelper.{name}"
    method.__doc__ = f"See brew.{helper_name}."
    return method


_CUDNN = ("use_cudnn",)
_ORDER = ("order",)
_CONV = ("use_cudnn", "order", "cudnn_exhaustive_search", "ws_nbytes_limit")

# method -> helper, attributes of the model given as arguments
for _name, (_helper_name, _settings) in {
    "ConvNd": ("conv_nd", _CONV),
    "Conv": ("conv", _CONV),
    "ConvTranspose": ("conv_transpose", _CONV),
    "GroupConv": ("group_conv", _CONV),
    "GroupConv_Deprecated": ("group_conv_deprecated", _CONV),
    "FC": ("fc", ()),
    "PackedFC": ("packed_fc", ()),
    "FC_Prune": ("fc_prune", ()),
    "FC_Decomp": ("fc_decomp", ()),
    "FC_Sparse": ("fc_sparse", ()),
    "Dropout": ("dropout", _CUDNN + _ORDER),
    "LRN": ("lrn", _CUDNN + _ORDER),
    "Softmax": ("softmax", _CUDNN),
    "SpatialBN": ("spatial_bn", _ORDER),
    "SpatialGN": ("spatial_gn", _ORDER),
    "InstanceNorm": ("instance_norm", _ORDER),
    "Relu": ("relu", _CUDNN + _ORDER),
    "PRelu": ("prelu", ()),
    "Concat": ("concat", _ORDER),
    "Sum": ("sum", ()),
    "Transpose": ("transpose", _CUDNN),
    "Iter": ("iter", ()),
    "Accuracy": ("accuracy", ()),
    "MaxPool": ("max_pool", _CUDNN + _ORDER),
    "MaxPoolWithIndex": ("max_pool_with_index", _ORDER),
    "AveragePool": ("average_pool", _CUDNN + _ORDER),
}.items():
    setattr(CNNModelHelper, _name, _method(_name, _helper_name, _settings))

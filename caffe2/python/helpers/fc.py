"""Fully connected layers."""
from typing import Any

from caffe2.python.helpers.params import create_param, fill
from caffe2.python.modeling.parameter_info import ParameterTags

_XAVIER = ("XavierFill", {})
_ZERO = ("ConstantFill", {})


def _FC_or_packed_FC(
        model: Any, op_call: Any, blob_in: Any, blob_out: Any, dim_in: int, dim_out: int,
        weight_init: tuple | None = None, bias_init: tuple | None = None,
        WeightInitializer: Any = None, BiasInitializer: Any = None,
        enable_tensor_core: bool = False, float16_compute: bool = False, **kwargs) -> Any:
    blob_out = blob_out or model.net.NextName()
    bias_tags = [ParameterTags.BIAS]
    if "freeze_bias" in kwargs:
        bias_tags.append(ParameterTags.COMPUTED_PARAM)
    weight = create_param(
        model, blob_out + "_w", [dim_out, dim_in], WeightInitializer, weight_init, _XAVIER,
        ParameterTags.WEIGHT)
    bias = create_param(
        model, blob_out + "_b", [dim_out], BiasInitializer, bias_init, _ZERO, bias_tags)
    if enable_tensor_core:
        kwargs["engine"] = "TENSORCORE"
    if float16_compute:
        kwargs["float16_compute"] = True
    return op_call([blob_in, weight, bias], blob_out, **kwargs)


def fc(model: Any, *args, **kwargs) -> Any:
    """Multiply by a matrix and add a bias.

    Arguments are `blob_in`, `blob_out`, `dim_in` and `dim_out`, and optionally `weight_init`
    and `bias_init`, fill operators with their arguments (by default XavierFill and zeros),
    `WeightInitializer` and `BiasInitializer`, classes, `freeze_bias`, `enable_tensor_core`
    and `float16_compute`; others go to the operator FC.
    """
    return _FC_or_packed_FC(model, model.net.FC, *args, **kwargs)


def packed_fc(model: Any, *args, **kwargs) -> Any:
    """`fc` with the operator PackedFC, which packs its weights once."""
    return _FC_or_packed_FC(model, model.net.PackedFC, *args, **kwargs)


def fc_decomp(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int, dim_out: int,
        rank_approx: int = 5, weight_init: tuple | None = None,
        bias_init: tuple | None = None, WeightInitializer: Any = None,
        BiasInitializer: Any = None, **kwargs) -> Any:
    """Multiply by a product of two matrices of rank `rank_approx` and add a bias."""
    blob_out = blob_out or model.net.NextName()
    u, v = [
        create_param(
            model, blob_out + suffix, [dim, rank_approx], WeightInitializer, weight_init,
            _XAVIER)
        for suffix, dim in (("_u", dim_out), ("_v", dim_in))
    ]
    bias = create_param(model, blob_out + "_b", [dim_out], BiasInitializer, bias_init, _ZERO)
    return model.net.FC_Decomp([blob_in, u, v, bias], blob_out, **kwargs)


def fc_prune(
        model: Any, blob_in: Any, blob_out: Any, dim_in: int, dim_out: int,
        weight_init: tuple | None = None, bias_init: tuple | None = None,
        mask_init: tuple | None = None, threshold: float = 0.00001,
        need_compress_rate: bool = False, comp_lb: float = 0.05, **kwargs) -> Any:
    """`fc` whose small weights are pruned while it is trained.

    Parameters
    ----------
    mask_init : (str, dict), optional
        Fill operator of the aggregated gradient and of the mask sequence.
    threshold : float
        Weights below it are pruned.
    need_compress_rate : bool
        Whether the compression rate is a second output.
    comp_lb : float
        Lower bound of the compression rate.
    """
    blob_out = blob_out or model.net.NextName()
    shape = [dim_out, dim_in]
    compress_lb = fill(model, blob_out + "_lb", [1], ("ConstantFill", {"value": comp_lb}))
    weight = fill(model, blob_out + "_w", shape, weight_init or _XAVIER)
    mask = fill(model, blob_out + "_m", shape, ("ConstantFill", {"value": 1.0}))
    ag_dw = fill(model, blob_out + "_ag_dw", shape, mask_init or _ZERO)
    bias = fill(model, blob_out + "_b", [dim_out], bias_init or _ZERO)
    mask_seq = fill(model, blob_out + "_mask_seq", shape, mask_init or _ZERO)
    thres = fill(model, blob_out + "_thres", [1], ("ConstantFill", {"value": threshold}))
    model.AddParameter(weight)
    model.AddParameter(bias)
    outputs = [blob_out, blob_out + "_compress_rate"] if need_compress_rate else blob_out
    return model.net.FC_Prune(
        [blob_in, weight, mask, bias, ag_dw, mask_seq, thres, compress_lb], outputs, **kwargs)


def fc_sparse(
        model: Any, blob_in: Any, blob_out: Any, w_csr: Any, iw: Any, jw: Any, bias: Any,
        **kwargs) -> Any:
    """Multiply by a sparse matrix in CSR form, given as blobs, and add a bias."""
    params = [w_csr, iw, jw, bias]
    for param in params:
        model.AddParameter(param)
    return model.net.FC_Sparse([blob_in, *params], blob_out, **kwargs)

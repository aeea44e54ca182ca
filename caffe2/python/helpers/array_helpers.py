"""Joining tensors."""
from typing import Any


def concat(model: Any, blobs_in: list, blob_out: Any, **kwargs) -> Any:
    """Join tensors along an axis, by default that of the channels."""
    if kwargs.get("axis") is not None:
        kwargs.pop("order", None)  # the operator takes one of the two
    return model.net.Concat(
        blobs_in, [blob_out, "_" + blob_out + "_concat_dims"], **kwargs)[0]


def depth_concat(model: Any, blobs_in: list, blob_out: Any, **kwargs) -> Any:
    """Join tensors along their channels; the old name of `concat`."""
    return concat(model, blobs_in, blob_out, **kwargs)

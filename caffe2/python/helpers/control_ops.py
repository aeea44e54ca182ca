"""Conditions and loops."""
from typing import Any

from caffe2.python.control_ops_util import add_if_op, add_while_op


def cond(
        model: Any, cond_blob: Any, external_blobs: list, then_model: Any,
        else_model: Any = None) -> None:
    """Run `then_model` if `cond_blob` is true, else `else_model`.

    Parameters
    ----------
    external_blobs : list
        Blobs of the outer net that the models read or write.
    """
    add_if_op(model.net, cond_blob, external_blobs, then_model.net,
              else_model.net if else_model else None)


def loop(
        model: Any, cond_blob: Any, external_blobs: list, loop_model: Any,
        cond_model: Any = None) -> None:
    """Run `loop_model` while `cond_blob` is true.

    Parameters
    ----------
    external_blobs : list
        Blobs of the outer net that the models read or write.
    cond_model : ModelHelper, optional
        Computes `cond_blob` before each pass.
    """
    add_while_op(model.net, cond_blob, external_blobs, loop_model.net,
                 cond_model.net if cond_model else None)

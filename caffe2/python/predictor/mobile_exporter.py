"""A trained net as two files: one fills its parameters, one predicts."""
from collections.abc import Iterable
from typing import Any

import numpy as np

from caffe2.proto import caffe2_pb2
from caffe2.python import core, utils

_FILLS = {
    np.dtype(dtype): f"GivenTensor{kind}Fill"
    for dtype, kind in (
        ("float32", ""), ("float64", "Double"), ("float16", ""), ("int32", "Int"),
        ("int16", "Int16"), ("int64", "Int64"), ("bool", "Bool"), ("object", "String"))
}


def add_tensor(net: caffe2_pb2.NetDef, name: str, blob: Any) -> None:
    """Add to a net the operator that fills a blob with a tensor.

    Parameters
    ----------
    net : NetDef
    name : str
    blob : array
        uint8 is stored as a tensor of one string, float16 as float32.
    """
    shape, values, kind = blob.shape, blob, blob.dtype
    if kind == np.uint8:
        shape, values, kind = (1,), [blob.tobytes()], np.dtype(object)
    elif kind.kind == "O":
        values = blob.ravel().tolist()
    if kind not in _FILLS:
        raise TypeError(f"tensor {name} of type {kind} has no fill operator")
    net.op.append(core.CreateOperator(_FILLS[kind], [], [name], arg=[
        utils.MakeArgument("shape", list(shape)), utils.MakeArgument("values", values)]))


def Export(
        workspace: Any, net: Any, params: Iterable) -> tuple[caffe2_pb2.NetDef, caffe2_pb2.NetDef]:
    """Return the init net and the predict net of a model, for files or a Predictor.

    Parameters
    ----------
    workspace : module or object with ``FetchBlob``
        Where the parameters are.
    net : Net or NetDef
    params : iterable of blob names
    """
    proto = net if isinstance(net, caffe2_pb2.NetDef) else net.Proto()
    params = [str(p) for p in params]
    ssa, blob_versions = core.get_ssa(net)
    read = {name for inputs, _ in ssa for name, _ in inputs}
    inputs = [b for b, version in blob_versions.items() if version == 0 and b not in params]
    outputs = [b for b, version in blob_versions.items() if version != 0 and b not in read]

    init_net = caffe2_pb2.NetDef()
    for name in params:
        add_tensor(init_net, name, workspace.FetchBlob(name))
    for name in inputs:  # the blobs must exist; their content comes with each run
        add_tensor(init_net, name, np.zeros((1, 1), np.float32))

    predict_net = caffe2_pb2.NetDef()
    predict_net.CopyFrom(proto)
    predict_net.external_input[:] = [*inputs, *proto.external_input]
    predict_net.external_output[:] = outputs
    return init_net, predict_net

"""Shapes, dtypes and devices of a net's blobs, before it runs."""
from caffe2._core.schema import OpSchema, TensorInfo


class InferenceError(RuntimeError):
    """An operator's inputs do not fit it."""


def infer_nets(nets, known):
    """Infer shapes and dtypes through nets, in order.

    Parameters
    ----------
    nets : list of NetDef
    known : dict of str to TensorInfo
        What is known at the start; not changed.

    Returns
    -------
    dict of str to TensorInfo
        All blobs met; those with unknown shapes have shape None.

    Raises
    ------
    InferenceError
        If an operator's inputs have shapes that do not fit it.
    """
    blobs = dict(known)
    for net in nets:
        for op in net.op:
            inputs = [blobs.get(name) or TensorInfo(None, 0) for name in op.input]
            for name, info in zip(op.output, infer_operator(op, inputs, net.name), strict=False):
                blobs[name] = info
    return blobs


def infer_operator(op, inputs, net_name=""):
    """Infer one operator's outputs; see `infer_nets`."""
    unknown = [TensorInfo(None, 0) for _ in op.output]
    schema = OpSchema.get(op.type)
    if schema is None:
        return unknown
    known = all(t.shape is not None for t in inputs)
    try:
        result = schema.infer(op, inputs)
    except Exception as e:
        if not known:
            return unknown
        where = f" of net {net_name!r}" if net_name else ""
        shapes = ", ".join(f"{n} {list(t.shape)}" for n, t in zip(op.input, inputs, strict=False))
        raise InferenceError(f"{e} (when inferring the shapes of operator {op.type}({shapes}){where})") from e
    return result


def workspace_infos(workspace):
    """What a workspace's blobs say of themselves."""
    blobs = {name: workspace.get(name) for name in workspace.names()}
    return {name: blob_info(blob) for name, blob in blobs.items() if blob.is_tensor}


def blob_info(blob):
    """The TensorInfo of a blob, unknown where it holds no tensor."""
    if not blob.is_tensor:
        return TensorInfo()
    t = blob.tensor()
    return TensorInfo(t.shape, t.data_type)


def to_proto(infos):
    """TensorShapes of a dict of TensorInfo."""
    from caffe2.proto import caffe2_pb2

    shapes = caffe2_pb2.TensorShapes()
    for name, info in infos.items():
        s = shapes.shapes.add(name=name, data_type=info.dtype)
        if info.shape is None:
            s.unknown_shape = True
        else:
            s.dims.extend(info.shape)
    return shapes

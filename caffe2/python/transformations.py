"""Rewriting of nets: fusions by name, as in the original, and nets for inference."""
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from caffe2._core.args import Args
from caffe2.proto import caffe2_pb2
from caffe2.python import inference_optimizer, workspace


def _proto(net: Any) -> caffe2_pb2.NetDef:
    return net.Proto() if hasattr(net, "Proto") else net


def optimizeForInference(
        init_net: Any, predict_net: Any, shapes: Mapping[str, Iterable[int]] | None = None,
        share_memory: bool = True) -> tuple[caffe2_pb2.NetDef, caffe2_pb2.NetDef]:
    """Rewrite a model so that it predicts the same with fewer operators and less memory.

    Dropout and other leftovers of training go; SpatialBN and constant factors and shifts of channels go into the
    parameters of the convolution or FC before them; Relu, Clip and sums go into the convolution; intermediate blobs
    that are not needed at the same time share their memory, so that external outputs alone can be fetched. Outputs
    differ from the original's by rounding, less than 1e-5 of the largest value in nets of usual depth.

    Parameters
    ----------
    init_net : Net or NetDef
        Fills the parameters. It is run once, in a workspace of its own; random parameters are fixed thereby.
    predict_net : Net or NetDef
    shapes : dict of str to shape, optional
        Of the inputs. Memory is planned better where they are known, and Add is fused like Sum.
    share_memory : bool
        Whether intermediate blobs share memory.

    Returns
    -------
    init_net, predict_net : NetDef
        New nets, which run in any workspace.

    Examples
    --------
    >>> from caffe2.python import core
    >>> init, predict = core.Net("init"), core.Net("predict")
    >>> for name, shape in (("w", [4, 3, 1, 1]), ("b", [4])):
    ...     _ = init.ConstantFill([], name, shape=shape, value=0.5)
    >>> y = predict.Conv(["x", "w", "b"], "y", kernel=1)
    >>> y = predict.Relu(y, "z")
    >>> init, predict = optimizeForInference(init, predict)
    >>> [op.type for op in predict.op]
    ['ConvFused']
    """
    return inference_optimizer.optimize_nets(_proto(init_net), _proto(predict_net), shapes, share_memory)


# ---------------------------------------------------------------- the original's, by name


def _only_reader(net: caffe2_pb2.NetDef, at: int) -> int | None:
    """Place of the one operator that reads what operator `at` writes; None where there are others, or none."""
    name, readers = net.op[at].output[0], []
    for i in range(at + 1, len(net.op)):
        if name in net.op[i].input:
            readers.append(i)
        if name in net.op[i].output:
            break
    else:
        if name in net.external_output:
            return None
    return readers[0] if len(readers) == 1 else None


def _add_nnpack(net: caffe2_pb2.NetDef) -> None:
    for op in net.op:
        if op.type == "Conv" and Args(op).str("order", "NCHW") == "NCHW":
            op.engine = "NNPACK"


def _fuse_conv_relu(net: caffe2_pb2.NetDef) -> None:
    for at in reversed(range(len(net.op))):
        conv = net.op[at]
        i = _only_reader(net, at) if conv.type == "Conv" and conv.engine == "NNPACK" and len(conv.input) == 3 else None
        if i is None or net.op[i].type != "Relu":
            continue
        output = net.op[i].output[0]
        if any(output in (*op.input, *op.output) for op in net.op[at + 1:i]):
            continue
        if output in conv.input:                # a convolution does not run in place
            if output in net.external_output:
                continue
            fresh = output + "_fused"
            for op in net.op[i + 1:]:
                op.input[:] = [fresh if name == output else name for name in op.input]
                if output in op.output:
                    break
            output = fresh
        conv.type, conv.output[0] = "ConvFused", output
        conv.arg.add(name="activation", s=b"Relu")
        conv.arg.add(name="relu", i=1)
        del net.op[i]


def _sink_max_pool(net: caffe2_pb2.NetDef) -> None:
    for at, pool in enumerate(net.op):
        if pool.type != "MaxPool" or _only_reader(net, at) != at + 1 or net.op[at + 1].type != "Relu":
            continue
        relu = net.op[at + 1]
        middle = pool.input[0] + "_relu"
        relu.input[0], relu.output[0], pool.input[0], pool.output[0] = (
            pool.input[0], middle, middle, relu.output[0])
        swapped = caffe2_pb2.NetDef(op=[relu, pool])
        net.op[at].CopyFrom(swapped.op[0])
        net.op[at + 1].CopyFrom(swapped.op[1])


def _fuse_conv_bn(net: caffe2_pb2.NetDef) -> None:
    inference_optimizer.fold_batch_norm(net, workspace.C.Workspace.current)


_TRANSFORMS: dict[str, Callable[[caffe2_pb2.NetDef], None]] = {
    "AddNNPACK": _add_nnpack,
    "FuseNNPACKConvRelu": _fuse_conv_relu,
    "SinkMaxPool": _sink_max_pool,
    "FuseConvBN": _fuse_conv_bn,
    "FuseConv3DBN": _fuse_conv_bn,
}


class Transformer:
    """Transforms as methods: ``Transformer().FuseConvBN(net)`` changes `net` in place.

    There are AddNNPACK (convolutions in order NCHW prefer that engine), FuseNNPACKConvRelu (Relu goes into the
    convolutions of that engine), SinkMaxPool (Relu comes before MaxPool), and FuseConvBN, also called FuseConv3DBN
    (SpatialBN goes into the convolution before it, whose new parameters are fed to the current workspace).
    """

    @classmethod
    def runTransform(cls, transform_name: str, net: Any) -> None:
        """Apply a transform.

        Raises
        ------
        AttributeError
            If there is none of that name.
        """
        if transform_name not in _TRANSFORMS:
            known = ", ".join(sorted(_TRANSFORMS))
            raise AttributeError(f"Transformation {transform_name} not found; there are {known}.")
        _TRANSFORMS[transform_name](_proto(net))

    def __getattr__(self, transform_name: str) -> Callable[[Any], None]:
        if transform_name not in _TRANSFORMS:
            raise AttributeError(f"Transformation {transform_name} not found.")
        return lambda net: self.runTransform(transform_name, net)


def fuseNNPACKConvRelu(net: Any) -> None:
    """Let convolutions of engine NNPACK do the Relu that follows them."""
    Transformer.runTransform("FuseNNPACKConvRelu", net)


def fuseConvBN(net: Any) -> None:
    """Fold SpatialBN into the convolution before it; its new parameters are fed to the current workspace."""
    Transformer.runTransform("FuseConvBN", net)


def optimizeForMKLDNN(net: Any, training_mode: bool = False) -> None:
    """Leave a net as it is: convolutions choose their layout when they run, and need no other operators for it."""

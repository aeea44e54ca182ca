"""The backward pass of recorded nets, derived again from their forward operators."""

import contextlib
from pathlib import Path

import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import core
from conformance import check

SUFFIX = core.IR.AUTOGEN_GRAD_SUFFIX


def parts(path):
    """Forward operators of a net, the blobs it derives, and all that follows."""
    ops = list(caffe2_pb2.NetDef.FromString(check.load_net(path)["net"]).op)
    fills = [i for i, op in enumerate(ops) if op.output and op.output[0].endswith(SUFFIX)]
    start = fills[0] if fills else len(ops)
    end = start
    while end in fills and ops[end].type == "ConstantFill":
        end += 1
    return ops[:start], [core.BlobReference(op.input[0]) for op in ops[start:end]], ops[start:]


def derivable():
    for path in sorted(Path(check.HERE, "nets").glob("*.npz")):
        forward, ys, following = parts(path)
        if ys and all(core.IsOperator(op.type) for op in forward + following):
            yield path


@pytest.mark.parametrize("path", [*derivable()], ids=lambda p: p.stem)
def test_backward_pass(path):
    forward, ys, following = parts(path)
    scope = core.DeviceScope(following[0].device_option)
    with scope if following[0].HasField("device_option") else contextlib.nullcontext():
        ops, _ = core.GradientRegistry.GetBackwardPass(forward, ys)
    # Sums of several blobs at the same place came in an arbitrary order.
    got, want = ([str(op) for op in ops] for ops in (ops, following[: len(ops)]))
    assert sorted(got) == sorted(want)

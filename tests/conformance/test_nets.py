"""Recorded runs of every net whose operators all are registered."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from caffe2.proto import caffe2_pb2
from caffe2.python import workspace
from conformance import check


def operators(net):
    """Operator types of a net and of the nets in its operators' arguments."""
    for op in net.op:
        yield op.type
        for arg in op.arg:
            nested = [*arg.nets, arg.n]
            if arg.s and arg.name.endswith("step_net"):
                nested.append(text_format.Parse(arg.s, caffe2_pb2.NetDef()))
            for n in nested:
                yield from operators(n)


def runnable():
    registered = set(workspace.RegisteredOperators())
    for path in sorted(Path(check.HERE, "nets").glob("*.npz")):
        net = caffe2_pb2.NetDef.FromString(check.load_net(path)["net"])
        if set(operators(net)) <= registered:
            yield path


@pytest.mark.parametrize("path", [*runnable()], ids=lambda p: p.stem)
def test_net(path):
    result = check.run_net_case(path)
    assert not result["failed"], result["why"]

"""The recorded cases, on the device; and every operator of the device against the CPU's."""
from pathlib import Path

import numpy as np
import pytest
from caffe2._core.cuda import CudaOperator

from caffe2._core import registry
from caffe2.ops import cuda as _operators  # noqa: F401  registers them
from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace
from conformance import check

GPU = core.DeviceOption(caffe2_pb2.CUDA, 0)
CASES = Path(check.HERE, "cases")
OPERATORS = sorted(t for t, device, engine in registry._classes if device == registry.CUDA and not engine)


# Their numbers are the device's own.
RANDOM = {"GaussianFill", "MSRAFill", "UniformFill", "UniformIntFill", "XavierFill", "Dropout"}


def run_case(case):
    """None where the device gives what was recorded; else what differs. TypeError where it has no such dtype."""
    op = caffe2_pb2.OperatorDef.FromString(case["op"])
    seed = op.device_option.random_seed if op.device_option.HasField("random_seed") else None
    op.device_option.CopyFrom(GPU)
    if seed is not None:
        op.device_option.random_seed = seed
    cls = registry.find(op.type, registry.CUDA)
    on_host = not issubclass(cls, CudaOperator)
    host = set(range(len(op.input))) if on_host else set(cls.host_inputs)
    if any(a.name == "input_as_shape" and a.i for a in op.arg):
        host.add(0)
    if hasattr(cls, "names") and "iter" in cls.names.split():
        host.add(cls.names.split().index("iter"))
    workspace.ResetWorkspace()
    for i, (name, a) in enumerate(zip(op.input, case["inputs"], strict=True)):
        workspace.FeedBlob(name, a, None if i in host else GPU)
    net = caffe2_pb2.NetDef(name="case", op=[op])
    workspace.RunNetOnce(net)
    for name, want in zip(op.output, case["outputs"], strict=True):
        same = case["deterministic"] and op.type not in RANDOM
        d = check.difference(workspace.FetchBlob(name), want, same)
        if d:
            return f"output {name}: {d}"
    return None


@pytest.mark.parametrize("op", [o for o in OPERATORS if (CASES / f"{o}.npz").exists()])
def test_cases(op):
    cases = check.load_cases(CASES / f"{op}.npz")
    refused, wrong = 0, []
    for case in cases:
        try:
            difference = run_case(case)
        except RuntimeError as e:
            if not any(m in str(e) for m in ("may not be of type", "must be of type", "on the CPU alone",
                                             "on a GPU can hold")):
                raise
            refused += 1
            continue
        if difference:
            wrong.append(difference)
    assert not wrong, f"{len(wrong)} of {len(cases)}: {wrong[:3]}"
    assert refused < len(cases), "the device refuses all of the recorded cases"


def test_nothing_is_missing():
    assert len(OPERATORS) > 150
    assert np.all([o in workspace.RegisteredOperators() for o in OPERATORS])

"""Recorded runs with damaged inputs, arguments and arities: operators run or raise, and never harm others."""

from pathlib import Path

import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import workspace
from conformance import check

CASES = Path(check.HERE, "cases")
OPERATORS = sorted({p.stem for p in CASES.glob("*.npz")} & set(workspace.RegisteredOperators()))
TRIALS = 12
DTYPES = ["float32", "float64", "float16", "int32", "int64", "uint8", "bool"]


def some_axis(rng, x):
    return int(rng.integers(0, x.ndim))


def shorter(rng, x):
    axis = some_axis(rng, x)
    return np.take(x, np.arange(max(0, x.shape[axis] - rng.integers(1, 3))), axis=axis)


def longer(rng, x):
    return np.concatenate([x, x], axis=some_axis(rng, x))


def other_type(rng, x):
    with np.errstate(all="ignore"):
        return x if x.dtype == object else x.astype(rng.choice(DTYPES))


def other_value(rng, x):
    x = x.copy()
    if x.size and x.dtype.kind in "if":
        largest = 127 if x.dtype.itemsize == 1 else 30000
        bad = [-1, -100, 0, largest] if x.dtype.kind == "i" else [np.nan, np.inf, -1e4]
        x.ravel()[rng.integers(0, x.size)] = rng.choice(bad)
    return x


DAMAGES = [shorter, longer, other_type, other_value, lambda rng, x: x.ravel(), lambda rng, x: x[None],
           lambda rng, x: x[:0]]


def damaged(rng, case):
    """The operator and inputs of a case, changed in one or two places."""
    op = caffe2_pb2.OperatorDef.FromString(case["op"])
    inputs = dict(zip(op.input, case["inputs"]))
    for _ in range(rng.integers(1, 3)):
        kind = rng.integers(0, 6)
        tensors = [name for name, x in inputs.items() if x is not None and x.ndim]
        if kind < 4 and tensors:
            name = rng.choice(tensors)
            inputs[name] = DAMAGES[rng.integers(0, len(DAMAGES))](rng, inputs[name])
        elif kind == 4 and op.arg:
            arg = op.arg[rng.integers(0, len(op.arg))]
            value = int(rng.choice([-1, 0, 1, 2, 5, 100]))
            if arg.ints:
                arg.ints[rng.integers(0, len(arg.ints))] = value
            elif arg.HasField("i"):
                arg.i = value
            elif arg.HasField("f"):
                arg.f = rng.choice([-1, 0, np.nan])
        elif op.input and rng.random() < 0.5:
            inputs.pop(op.input.pop(), None)
        elif op.output:
            op.output.pop()
    return op, inputs


@pytest.mark.parametrize("name", OPERATORS)
def test_damaged(name, tmp_path, capfd):
    cases = check.load_cases(CASES / f"{name}.npz")
    rng = np.random.default_rng(len(name))
    for trial in range(TRIALS):
        workspace.ResetWorkspace(str(tmp_path))
        workspace.FeedBlob("bystander", np.arange(3))
        op, inputs = damaged(rng, cases[trial % len(cases)])
        for blob, x in inputs.items():
            if x is not None:
                workspace.FeedBlob(blob, x)
        try:
            workspace.RunOperatorOnce(op)
        except RuntimeError as error:
            assert name in str(error)
        np.testing.assert_array_equal(workspace.FetchBlob("bystander"), [0, 1, 2])

"""Recorded runs, schemas and gradients of every operator that is registered."""

from pathlib import Path

import pytest

from caffe2.python import workspace
from conformance import check

FACTS = check.reference("operators.json")
REGISTERED = sorted(set(workspace.RegisteredOperators()) & set(FACTS))
CASES = Path(check.HERE, "cases")

# What training, saving and reloading a classifier needs.
FOUNDATION = """
    Accuracy Adagrad Adam Add AveragedLoss AveragePool Cast Checkpoint Concat ConstantFill Conv
    ConvTranspose Copy CreateDB CrossEntropy Div Dropout FC FCTransposed Flatten Gather
    GaussianFill Iter LRN LabelCrossEntropy LearningRate Load MatMul MaxPool Momentum Mul NanCheck
    Print Relu Reshape RmsProp Save ScatterAssign ScatterWeightedSum Sigmoid
    SigmoidCrossEntropyWithLogits Slice Softmax SoftmaxWithLoss SparseAdagrad SparseAdam SpatialBN
    Split SquaredL2Distance Squeeze StopGradient Sub Sum Tanh TensorProtosDBInput Transpose
    UniformFill WeightedSum XavierFill
""".split()


def test_foundation():
    assert set(FOUNDATION) <= set(workspace.RegisteredOperators())


@pytest.mark.parametrize("op", [o for o in REGISTERED if (CASES / f"{o}.npz").exists()])
def test_cases(op):
    result = check.run_operator_cases(CASES / f"{op}.npz")
    assert result["cases"] > 0
    assert result["failed"] == 0, f"{result['failed']} of {result['cases']} failed: {result['why']}"


@pytest.mark.parametrize("op", [o for o in REGISTERED if "inputs" in FACTS[o]])
def test_schema(op):
    assert check.check_schema(op, FACTS[op]) is None


@pytest.mark.parametrize("op", [o for o in REGISTERED if "gradient" in FACTS[o]])
def test_gradient(op):
    assert check.check_gradient(op, FACTS[op]) is None

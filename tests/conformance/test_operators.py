"""Recorded runs, schemas and gradients of every operator that is registered."""

from pathlib import Path

import pytest

from caffe2.python import workspace
from conformance import check

FACTS = check.reference("operators.json")
REGISTERED = sorted(set(workspace.RegisteredOperators()) & set(FACTS))
CASES = Path(check.HERE, "cases")

# What training, saving and reloading a classifier needs, by family.
FOUNDATION = """
    ConstantFill DiagonalFill GaussianFill GivenTensorBoolFill GivenTensorDoubleFill GivenTensorFill
    GivenTensorInt64Fill GivenTensorIntFill GivenTensorStringFill LengthsRangeFill MSRAFill
    RangeFill UniformFill UniformIntFill UniqueUniformFill XavierFill

    Abs Acos Asin Atan Cbrt Ceil Clip Cos Cosh Cube Erf Exp Floor Log Logit Negative Not Reciprocal
    Rsqrt Scale Sign Sin Sinh Sqr Sqrt Tan
    Add And Div EQ GE GT LE LT Max Mean Min Mul NE Or Pow Sub Sum Xor

    Elu HardSigmoid LeakyRelu PRelu Relu Selu Sigmoid Softmax Softplus Softsign Swish Tanh
    ThresholdedRelu

    BatchMatMul FC FCTransposed MatMul
    Conv Conv1D Conv2D Conv3D ConvTranspose
    AveragePool AveragePool1D AveragePool2D AveragePool3D LpPool MaxPool MaxPool1D MaxPool2D
    MaxPool3D
    Dropout LRN SpatialBN

    Accuracy AveragedLoss CrossEntropy LabelCrossEntropy SigmoidCrossEntropyWithLogits
    SoftmaxWithLoss SquaredL2Distance

    BatchGather Cast Concat Copy CopyFromCPUInput EnsureCPUOutput ExpandDims Flatten FlattenToVec
    Gather NCHW2NHWC NHWC2NCHW Reshape ResizeLike ScatterAssign ScatterWeightedSum Shape Slice Split
    Squeeze StopGradient Transpose

    Adagrad Adam AtomicIter Iter LearningRate MomentumSGD MomentumSGDUpdate RmsProp SparseAdagrad
    SparseAdam SparseMomentumSGDUpdate WeightedSum

    CheckCounterDone CountDown CountUp CreateCounter NanCheck Print ResetCounter RetrieveCount
    Checkpoint CreateDB Load Save TensorProtosDBInput
""".split()


def test_foundation():
    assert set(FOUNDATION) - set(workspace.RegisteredOperators()) == set()


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
    makes = {o["type"] for o in FACTS[op]["gradient"]["ops"]}
    assert makes - set(workspace.RegisteredOperators()) == set()

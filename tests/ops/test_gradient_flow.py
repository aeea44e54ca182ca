import numpy as np
import pytest

from caffe2.python import core, workspace


@pytest.fixture(autouse=True)
def empty_workspace():
    workspace.ResetWorkspace()
    yield
    workspace.ResetWorkspace()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
@pytest.mark.parametrize("output", ["x", "y"])
def test_negate_gradient_copies(dtype, output):
    x = np.arange(6).reshape(2, 3).astype(dtype)
    workspace.FeedBlob("x", x)
    workspace.RunOperatorOnce(core.CreateOperator("NegateGradient", "x", output))
    y = workspace.FetchBlob(output)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


def test_negate_gradient_negates():
    op = core.CreateOperator("NegateGradient", "x", "y")
    ops, grads = core.GradientRegistry.GetBackwardPass([op], {"y": "dy"})
    workspace.FeedBlob("dy", np.float32([1, -2, 0]))
    workspace.RunOperatorsOnce(ops)
    np.testing.assert_array_equal(workspace.FetchBlob(grads["x"]), [-1, 2, 0])


def test_zero_gradient():
    x = np.float32([[1, 2], [3, 4]])
    workspace.FeedBlob("x", x)
    op = core.CreateOperator("ZeroGradient", "x", [])
    ops, grads = core.GradientRegistry.GetBackwardPass([op], {})
    workspace.RunOperatorsOnce([op, *ops])
    np.testing.assert_array_equal(workspace.FetchBlob("x"), x)
    np.testing.assert_array_equal(workspace.FetchBlob(grads["x"]), np.zeros_like(x))


def test_negate_gradient_of_nothing():
    workspace.CreateBlob("x")
    with pytest.raises(RuntimeError, match="NegateGradient.*x"):
        workspace.RunOperatorOnce(core.CreateOperator("NegateGradient", "x", "y"))

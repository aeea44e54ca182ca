"""Gradient and device checkers: they pass what is right, and find what is wrong."""

import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace
from caffe2.python.device_checker import DeviceChecker
from caffe2.python.gradient_checker import (
    GradientChecker,
    NetGradientChecker,
    getGradientForOp,
)


def rand(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def operator(*args, **kwargs):
    return core.CreateOperator(*args, **kwargs)


checker = GradientChecker(0.01, 0.005)


def test_gradient_is_named_after_outputs():
    ops, grads = getGradientForOp(operator("Sigmoid", ["X"], ["Y"]))
    assert [(list(op.input), list(op.output)) for op in ops] == [(["Y", "Y_grad"], ["X_grad"])]
    assert [str(g) for g in grads] == ["X_grad"]


@pytest.mark.parametrize("checked", range(3))
def test_right_gradient_passes(checked):
    inputs = [rand(4, 3), rand(2, 3), rand(2)]
    agree, grad, estimate = checker.CheckSimple(
        operator("FC", ["X", "W", "b"], ["Y"]), inputs, checked, [0],
        ensure_outputs_are_inferred=True)
    assert agree
    x, w, b = (i.astype(np.float64) for i in inputs)
    y = x @ w.T + b
    want = [y @ w, y.T @ x, y.sum(axis=0)][checked]
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(estimate, want, rtol=1e-2, atol=1e-2)


def test_wrong_gradient_is_found(capsys):
    op = operator("Tanh", ["X"], ["Y"])
    wrong = [operator("SigmoidGradient", ["Y", "Y_grad"], ["X_grad"])]
    agree, grad, estimate = checker.CheckSimple(op, [rand(3)], 0, [0], grad_ops=wrong)
    assert not agree
    assert not np.allclose(grad, estimate, atol=0.005)
    assert "Tanh by X" in capsys.readouterr().out


def test_wrong_shape_is_found():
    op = operator("Tanh", ["X"], ["Y"])
    wrong = [operator("Transpose", ["Y_grad"], ["X_grad"])]
    with pytest.raises(RuntimeError, match=r"\(3, 2\).*\(2, 3\)"):
        checker.CheckSimple(op, [rand(2, 3)], 0, [0], grad_ops=wrong)


def test_missing_gradient_is_told():
    op = operator("LabelCrossEntropy", ["X", "label"], ["Y"])
    with pytest.raises(ValueError, match="no gradient by input 1"):
        checker.CheckSimple(op, [np.full((2, 2), 0.5, np.float32), np.zeros(2, np.int32)], 1, [0])


def test_sparse_gradient_adds_up_rows():
    op = operator("Gather", ["X", "i"], ["Y"])
    agree, grad, _ = checker.CheckSimple(op, [rand(4, 2), np.array([3, 1, 3])], 0, [0])
    assert agree
    x = rand(4, 2)
    np.testing.assert_allclose(grad, x * np.array([[0], [1], [0], [2]]), rtol=1e-6)


def test_inputs_and_workspace_are_left_alone():
    workspace.FeedBlob("X", np.array([7.0]))
    before = rand(3)
    inputs = [before.copy()]
    checker.CheckSimple(operator("Tanh", ["X"], ["Y"]), inputs, 0, [0])
    np.testing.assert_array_equal(inputs[0], before)
    assert workspace.CurrentWorkspace() == "default"
    assert workspace.Blobs() == ["X"] and workspace.FetchBlob("X") == 7
    with pytest.raises(RuntimeError):
        checker.CheckSimple(operator("FC", ["X", "W", "b"], ["Y"]), [rand(2)] * 3, 0, [0])
    assert workspace.CurrentWorkspace() == "default"
    workspace.SwitchWorkspace("gradient_check")
    assert not workspace.Blobs()


def test_inference_is_checked():
    """What an operator written in Python gives is not known before it runs."""
    def f(inputs, outputs):
        outputs[0].feed(inputs[-1].data)

    op = core.CreatePythonOperator(f, ["X"], ["Y"], grad_f=f)
    agree, _, _ = checker.CheckSimple(op, [rand(3)], 0, [0])
    assert agree
    with pytest.raises(RuntimeError, match="infers no shape for its output Y"):
        checker.CheckSimple(op, [rand(3)], 0, [0], ensure_outputs_are_inferred=True)


# ---------------------------------------------------------------- nets


def two_nets():
    """tanh(x) and 2 * sigmoid(2 * x) - 1, which are the same."""
    plain, other = core.Net("plain"), core.Net("other")
    y = plain.Tanh("x", "y")
    doubled = other.Sigmoid(other.Add(["x", "x"], "x2"), "s")
    z = other.Sub([other.Add([doubled, doubled], "s2"), "one"], "z", broadcast=1)
    return (plain, y), (other, z)


def test_equal_nets_pass():
    (plain, y), (other, z) = two_nets()
    values = {"x": rand(5), "one": np.ones(1, np.float32)}
    NetGradientChecker.CompareNets(
        [plain, other], [[y], [z]], [0], inputs_with_grads=["x"], input_values=values,
        threshold=1e-5)


def test_different_nets_are_found():
    (plain, y), (other, z) = two_nets()
    values = {"x": rand(5), "one": np.zeros(1, np.float32)}
    with pytest.raises(AssertionError, match="forward results of output 0 differ"):
        NetGradientChecker.CompareNets([plain, other], [[y], [z]], [0], ["x"], values)
    shifted = core.Net("shifted")
    w = shifted.Copy("y0", "w")
    shifted.Relu("x", "r")
    values["y0"] = np.tanh(values["x"])
    with pytest.raises(ValueError, match="x has no gradient"):
        NetGradientChecker.CompareNets([plain, shifted], [[y], [w]], [0], ["x"], values)


def test_net_gradient():
    (_, _), (other, z) = two_nets()
    values = {"x": rand(5), "one": np.ones(1, np.float32)}
    mean, most = NetGradientChecker.Check(other, [z], values, "x", step_size=0.01, threshold=0.01)
    assert 0 <= mean <= most < 0.01


# ---------------------------------------------------------------- devices


CPU = core.DeviceOption(caffe2_pb2.CPU)
devices = DeviceChecker(1e-6, [CPU, CPU])


def test_devices_agree():
    op = operator("Tanh", ["X"], ["Y"])
    assert devices.CheckSimple(op, [rand(3)], [0])
    net = core.Net("n")
    net.Sigmoid(net.Tanh("x", "y"), "z")
    assert devices.CheckNet(net.Proto(), {"x": rand(3)})
    assert workspace.CurrentWorkspace() == "default" and not workspace.Blobs()


def test_devices_that_differ_are_found(capsys):
    """Random values differ from run to run, as from device to device."""
    op = operator("UniformFill", [], ["Y"], shape=[4])
    assert not devices.CheckSimple(op, [], [0])
    assert "differs from device 0 in Y" in capsys.readouterr().out
    net = core.Net("n")
    net.UniformFill([], "y", shape=[4])
    net.Tanh("x", "z")
    assert not devices.CheckNet(net.Proto(), {"x": rand(3)})
    assert devices.CheckNet(net.Proto(), {"x": rand(3)}, ignore=["y"])
    assert devices.CheckNet(net.Proto(), {"x": rand(3)}, blobs_to_check=["z"])


def test_device_checker_cleans_up_after_failure():
    with pytest.raises(RuntimeError):
        devices.CheckSimple(operator("Tanh", ["X"], ["Y"]), [np.zeros(2, np.int32)], [0])
    assert workspace.CurrentWorkspace() == "default"

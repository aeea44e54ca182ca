"""Operators added to finished nets."""
import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import brew, core, model_helper, workspace
from caffe2.python.modeling.compute_histogram_for_blobs import ComputeHistogramForBlobs
from caffe2.python.modeling.compute_norm_for_blobs import ComputeNormForBlobs
from caffe2.python.modeling.compute_statistics_for_blobs import ComputeStatisticsForBlobs
from caffe2.python.modeling.get_entry_from_blobs import GetEntryFromBlobs
from caffe2.python.modeling.gradient_clipping import GradientClipping
from caffe2.python.modeling.net_modifier import NetModifier


@pytest.fixture
def any_operator(monkeypatch):
    """For tests of nets that are made but not run."""
    monkeypatch.setattr(core, "IsOperator", lambda _: True)


@pytest.fixture
def model():
    model = model_helper.ModelHelper(name="test")
    brew.fc(model, "data", "fc1", dim_in=4, dim_out=2)
    return model


def added(model, modifier, **kwargs):
    before = len(model.net.Proto().op)
    modifier(model.net, **kwargs)
    return [(op.type, list(op.input), list(op.output)) for op in model.net.Proto().op[before:]]


def args(op):
    return {a.name: a.i or a.f or list(a.ints) for a in op.arg}


def test_old_modifiers_are_called_as_before():
    class Old(NetModifier):
        def modify_net(self, net, init_net=None, grad_map=None, blob_to_device=None):
            self.called = net, init_net, grad_map, blob_to_device

    old = Old()
    old("net", "init_net", grad_map={})
    assert old.called == ("net", "init_net", {}, None)
    with pytest.raises(TypeError):
        NetModifier()


def test_norm(model, any_operator):
    modifier = ComputeNormForBlobs(["fc1_w"], 10)
    assert modifier.field_name_suffix() == "_l2_norm"
    assert added(model, modifier) == [
        ("Cast", ["fc1_w"], ["fc1_w_float"]),
        ("LpNorm", ["fc1_w_float"], ["fc1_w_l2_norm"]),
        ("StopGradient", ["fc1_w_l2_norm"], ["fc1_w_l2_norm_stop_gradient"]),
        ("Print", ["fc1_w_l2_norm"], [])]
    assert args(model.net.Proto().op[-1])["every_n"] == 10


def test_norm_of_a_row(model, any_operator):
    modifier = ComputeNormForBlobs(
        ["fc1_w"], -1, p=1, compute_averaged_norm=True, row_index=0)
    device = core.DeviceOption(caffe2_pb2.CUDA, 1)
    assert added(model, modifier, blob_to_device={"fc1_w": device}) == [
        ("Slice", ["fc1_w"], ["fc1_w_row_0"]),
        ("Cast", ["fc1_w_row_0"], ["fc1_w_row_0_float"]),
        ("LpNorm", ["fc1_w_row_0_float"], ["fc1_w_row_0_averaged_l1_norm"]),
        ("StopGradient", ["fc1_w_row_0_averaged_l1_norm"],
         ["fc1_w_row_0_averaged_l1_norm_stop_gradient"])]
    norm = model.net.Proto().op[-2]
    assert args(norm) == {"p": 1, "average": 1}
    assert norm.device_option == device
    with pytest.raises(ValueError):
        ComputeNormForBlobs(["fc1_w"], 1, row_index=-1)


@pytest.mark.parametrize("accumulate, kind", [(False, "curr"), (True, "acc")])
def test_histogram(model, any_operator, accumulate, kind):
    modifier = ComputeHistogramForBlobs(
        ["fc1_w"], 0, num_buckets=20, lower_bound=0.2, upper_bound=0.8, accumulate=accumulate)
    assert added(model, modifier) == [
        ("Cast", ["fc1_w"], ["fc1_w_float"]),
        ("AccumulateHistogram", ["fc1_w_float"], ["fc1_w_curr_hist", "fc1_w_acc_hist"]),
        ("Cast", [f"fc1_w_{kind}_hist"], ["fc1_w_cast_hist"]),
        ("NormalizeL1", ["fc1_w_cast_hist"], [f"fc1_w_{kind}_normalized_hist"])]
    assert args(model.net.Proto().op[-3])["num_buckets"] == 20
    with pytest.raises(AssertionError):
        ComputeHistogramForBlobs(["fc1_w"], 0, num_buckets=0)


def test_statistics(model, any_operator):
    assert added(model, ComputeStatisticsForBlobs(["fc1_w"], 5)) == [
        ("Cast", ["fc1_w"], ["fc1_w_float"]),
        ("Summarize", ["fc1_w_float"], ["fc1_w_summary"]),
        ("Print", ["fc1_w_summary"], [])]


@pytest.mark.parametrize("column, index", [(2, np.s_[1:2, 2:3]), (-1, np.s_[1:2, :])])
def test_entry(model, column, index):
    modifier = GetEntryFromBlobs(["fc1_w"], 0, i1=1, i2=column)
    modifier(model.net)
    workspace.FeedBlob("data", np.ones((3, 4), np.float32))
    workspace.RunNetOnce(model.param_init_net)
    workspace.RunNetOnce(model.net)
    entry = workspace.FetchBlob("fc1_w" + modifier.field_name_suffix())
    np.testing.assert_array_equal(entry, workspace.FetchBlob("fc1_w")[index])
    with pytest.raises(ValueError, match="out of range"):
        GetEntryFromBlobs(["fc1_w"], 0, i1=-1)


def test_unknown_blob(model):
    with pytest.raises(Exception, match="nothing is not defined"):
        GetEntryFromBlobs(["nothing"], 0)(model.net)


# ---------------------------------------------------------------- gradient clipping

@pytest.fixture
def trained(model):
    loss = model.net.AveragedLoss("fc1", "loss")
    grad_map = model.AddGradientOperators([loss])
    model.grads = {b: grad_map[b] for b in ("fc1_w", "fc1_b")}
    return model


def test_clip_by_norm(trained, any_operator):
    modifier = GradientClipping("by_norm", "l2_norm", 0.1)
    assert added(trained, modifier, grad_map={"fc1_w": trained.grads["fc1_w"]}) == [
        ("LpNorm", ["fc1_w_grad"], ["fc1_w_grad_l2_norm"]),
        ("Pow", ["fc1_w_grad_l2_norm"], [trained.net.Proto().op[-2].output[0]]),
        ("ClipTensorByScaling", ["fc1_w_grad", trained.net.Proto().op[-2].output[0]],
         ["fc1_w_grad"])]


def test_clip_by_norm_of_the_parameter(trained, any_operator):
    modifier = GradientClipping(
        "by_norm", "l1_norm", 0.1, use_parameter_norm=True, compute_norm_ratio=True,
        blobs_to_exclude=["fc1_b"])
    assert added(trained, modifier, grad_map=trained.grads) == [
        ("LpNorm", ["fc1_w_grad"], ["fc1_w_grad_l1_norm"]),
        ("LpNorm", ["fc1_w"], ["fc1_w_l1_norm"]),
        ("Div", ["fc1_w_grad_l1_norm", "fc1_w_l1_norm"], ["fc1_w_norm_ratio"]),
        ("ClipTensorByScaling", ["fc1_w_grad", "fc1_w_grad_l1_norm", "fc1_w_l1_norm"],
         ["fc1_w_grad"])]


def test_clip_by_value(trained):
    modifier = GradientClipping(
        "by_value", clip_max=0.25, clip_min=-0.25, blobs_to_include=["fc1_w"])
    assert added(trained, modifier, grad_map=trained.grads) == [
        ("Clip", ["fc1_w_grad"], ["fc1_w_grad"])]
    data = np.array([[4, -4, 0.1, 0]], np.float32)
    workspace.FeedBlob("data", data)
    workspace.RunNetOnce(trained.param_init_net)
    workspace.RunNetOnce(trained.net)
    np.testing.assert_allclose(
        workspace.FetchBlob("fc1_w_grad"), np.clip(np.tile(data / 2, (2, 1)), -0.25, 0.25))


def test_sparse_gradients_are_left_alone(trained):
    grad = core.GradientSlice("indices", "values")
    assert added(trained, GradientClipping("by_value"), grad_map={"fc1_w": grad}) == []


def test_wrong_options(trained):
    with pytest.raises(AssertionError, match="by_magic"):
        GradientClipping("by_magic")
    with pytest.raises(AssertionError, match="l3_norm"):
        GradientClipping("by_norm", "l3_norm")
    with pytest.raises(AssertionError):
        GradientClipping("by_value")(trained.net)
    with pytest.raises(Exception, match="nothing is not defined"):
        GradientClipping("by_value", blobs_to_include=["nothing"])(
            trained.net, grad_map=trained.grads)

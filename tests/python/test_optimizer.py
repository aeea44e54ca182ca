"""Optimizers: models that they train, the operators they add, and what they refuse."""

import types
import unittest

import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import brew, core, model_helper, optimizer, scope, workspace
from caffe2.python.modeling.parameter_info import ParameterInfo
from caffe2.python.optimizer_context import OptimizerContext, UseOptimizer
from caffe2.python.optimizer_test_util import LRModificationTestBase, OptimizerTestBase


class Trains(OptimizerTestBase):
    """`OptimizerTestBase`, with the optimizer and its auxiliary blobs as class attributes."""

    testGPUDense = None         # needs a GPU to mean anything
    kwargs = {}
    local, shared = (), ()      # suffixes of local, names of shared auxiliary parameters

    def build_optimizer(self, model, **kwargs):
        return type(self).build(model, **{**self.kwargs, **kwargs})

    def check_optimizer(self, optimizer):
        aux = optimizer.get_auxiliary_parameters()
        for suffix in self.local:
            assert any(str(b).endswith(suffix) for b in aux.local), (suffix, aux.local)
        assert bool(aux.local) == bool(self.local)
        assert [str(b) for b in aux.shared] == list(self.shared)
        for blob in aux.local + aux.shared:
            assert np.isfinite(workspace.FetchBlob(blob)).all()


class DenseOnly(Trains):
    testSparse = None


class SparseOnly(Trains):
    testDense = None


ONE = ["ONE_0_0"]
ITERATION = ["optimizer_iteration"]

CASES = {
    "Sgd": (Trains, "sgd", dict(base_learning_rate=0.1), [], ONE),
    "Momentum": (Trains, "sgd", dict(base_learning_rate=0.1, momentum=0.1), ["_momentum"], ONE),
    "Lars": (DenseOnly, "sgd", dict(base_learning_rate=0.1, lars=0.5), [], ONE),
    "MultiPrecision": (Trains, "multi_precision_sgd", dict(base_learning_rate=0.1), [], ONE),
    "FP16": (DenseOnly, "fp16_sgd", dict(base_learning_rate=0.1, weight_decay=0.0),
             ["_momentum"], []),
    "Ftrl": (Trains, "ftrl", dict(engine=None, alpha=1.0, beta=0.1), ["_ftrl_nz"], []),
    "GFtrl": (DenseOnly, "gftrl", dict(alpha=1.0, beta=0.1), ["_gftrl_nz"], []),
    "Adagrad": (Trains, "adagrad", dict(base_learning_rate=1.0), ["_squared_sum"], []),
    "AdagradLars": (DenseOnly, "adagrad", dict(base_learning_rate=1.0, lars=0.5),
                    ["_squared_sum"], []),
    "RowWiseAdagrad": (SparseOnly, "adagrad", dict(base_learning_rate=1.0, rowWise=True),
                       ["_avg_squared_sum"], []),
    "CountingAdagrad": (SparseOnly, "adagrad",
                        dict(base_learning_rate=1.0, rowWise=True, counter_halflife=5),
                        ["_avg_squared_sum", "_update_counter", "_last_update_iter"], []),
    "Wngrad": (Trains, "wngrad", dict(base_learning_rate=25.0), ["_moment"], []),
    "Storm": (Trains, "storm", dict(base_learning_rate=2.0),
              ["_moment", "_grad_sq_sum"], []),
    "Adadelta": (Trains, "adadelta", dict(base_learning_rate=1.0, decay=0.995),
                 ["_squared_moment", "_squared_moment_update"], []),
    "Adam": (Trains, "adam", dict(base_learning_rate=0.1), ["_first_moment", "_second_moment"],
             ITERATION),
    "RAdam": (SparseOnly, "adam", dict(base_learning_rate=0.1, enableRAdam=True),
              ["_first_moment", "_second_moment"], ITERATION),
    "RowWiseAdam": (SparseOnly, "adam", dict(base_learning_rate=0.1, rowWise=True),
                    ["_first_moment", "_avg_second_moment"], ITERATION),
    "SmartDecayAdam": (SparseOnly, "adam", dict(base_learning_rate=0.1, use_smart_decay=True),
                       ["_first_moment", "_second_moment", "_last_seen"], ITERATION),
    "AdaptingAdam": (Trains, "adam",
                     dict(base_learning_rate=0.1, use_lr_adaption=True, lr_alpha=0.01),
                     ["_first_moment", "_second_moment"], ITERATION),
    "DecayAdagrad": (DenseOnly, "decay_adagrad", dict(base_learning_rate=1.0),
                     ["_first_mo1ment", "_second_moment"], ITERATION),
    "YellowFin": (DenseOnly, "yellowfin", dict(base_learning_rate=0.1),
                  ["_moment", "_lr_avg", "_mu_avg", "_curv_win", "_g_avg", "_g2_avg",
                   "_scalars_memory"], ITERATION),
    "RmsProp": (DenseOnly, "rms_prop", dict(base_learning_rate=0.1, epsilon=0.1),
                ["_mean_squares", "_momentum"], []),
}
# Those that take max_gradient_norm and allow_lr_injection.
MODIFIED = ["Sgd", "MultiPrecision", "Adagrad", "Wngrad", "Storm", "Adadelta", "Adam",
            "DecayAdagrad", "RmsProp"]

for _name, (_base, _build, _kwargs, _local, _shared) in CASES.items():
    _mixins = (LRModificationTestBase,) if _name in MODIFIED else ()
    globals()["Test" + _name] = type(
        "Test" + _name, (*_mixins, _base, unittest.TestCase),
        dict(build=staticmethod(getattr(optimizer, "build_" + _build)), kwargs=_kwargs,
             local=_local, shared=_shared, __module__=__name__))


@pytest.fixture
def model():
    """fc(x) with a gradient for its weight and bias."""
    m = model_helper.ModelHelper("m")
    fc = brew.fc(m, "x", "fc", 3, 2)
    loss = m.AveragedLoss(m.SquaredL2Distance([fc, "label"]), "loss")
    m.AddGradientOperators([loss])
    return m


def feed_and_run(m, n=1):
    workspace.FeedBlob("x", np.arange(12, dtype=np.float32).reshape(4, 3))
    workspace.FeedBlob("label", np.ones((4, 2), np.float32))
    workspace.RunNetOnce(m.param_init_net)
    workspace.CreateNet(m.net, True)
    workspace.RunNet(m.net, n)


def added(m, *types):
    """The operators of some types in a model's net."""
    return [op for op in m.net.Proto().op if op.type in types]


def arg(op, name):
    return next(a for a in op.arg if a.name == name)


# ---------------------------------------------------------------- operators and names


def test_one_learning_rate_and_iteration_for_all_parameters(model):
    optimizer.build_adam(model, base_learning_rate=0.01, policy="step", stepsize=10, gamma=0.5)
    rate, = added(model, "LearningRate")
    assert arg(rate, "base_lr").f == pytest.approx(-0.01)
    assert arg(rate, "policy").s == b"step"
    count, = added(model, "AtomicIter")
    assert list(count.output) == list(rate.input) == ["optimizer_iteration"]
    for op, param in zip(added(model, "Adam"), ("fc_w", "fc_b")):
        states = [param, param + "_first_moment", param + "_second_moment"]
        assert list(op.output) == states
        assert list(op.input) == [*states, param + "_grad", rate.output[0], "optimizer_iteration"]
    feed_and_run(model, 5)
    assert workspace.FetchBlob("optimizer_iteration") == 5


def test_sgd_adds_a_negative_rate(model):
    optimizer.build_sgd(model, base_learning_rate=0.1)
    rate, = added(model, "LearningRate")
    assert arg(rate, "base_lr").f == pytest.approx(-0.1)
    workspace.FeedBlob("x", np.ones((4, 3), np.float32))
    workspace.FeedBlob("label", np.ones((4, 2), np.float32))
    workspace.RunNetOnce(model.param_init_net)
    before = workspace.FetchBlob("fc_w")
    workspace.RunNetOnce(model.net)
    np.testing.assert_allclose(
        workspace.FetchBlob("fc_w"), before - 0.1 * workspace.FetchBlob("fc_w_grad"), rtol=1e-6)


def test_zero_rate_adds_nothing(model):
    n = len(model.net.Proto().op)
    optimizer.build_sgd(model, base_learning_rate=0)
    assert len(model.net.Proto().op) == n
    with pytest.raises(ValueError, match="must be positive"):
        optimizer.build_sgd(model, base_learning_rate=-1)


def test_instances_are_numbered(model):
    optimizer.reset_optimizer_instance_count()
    first, second = optimizer.SgdOptimizer(), optimizer.SgdOptimizer()
    assert first.make_unique_blob_name("lr") == "SgdOptimizer_0_lr_cpu"
    assert second.make_unique_blob_name("lr") == "SgdOptimizer_1_lr_cpu"
    with core.DeviceScope(core.DeviceOption(caffe2_pb2.CUDA, 3)):
        assert first.make_unique_blob_name("lr") == "SgdOptimizer_0_lr_gpu3"
    with core.DeviceScope(core.DeviceOption(caffe2_pb2.CPU, node_name="node")):
        assert first.make_unique_blob_name("lr") == "SgdOptimizer_0_lrnode_cpu"
    optimizer.reset_optimizer_instance_count()
    assert optimizer.SgdOptimizer().make_unique_blob_name("lr") == "SgdOptimizer_0_lr_cpu"


def test_attributes_describe_and_are_copies():
    opt = optimizer.AdamOptimizer(alpha=0.3, beta1=0.8, gamma=0.5)
    attributes = opt.attributes
    assert attributes["alpha"] == 0.3 and attributes["init_kwargs"] == {"gamma": 0.5}
    assert "_instance_num" not in attributes
    attributes["init_kwargs"]["gamma"] = 1
    assert opt.init_kwargs == {"gamma": 0.5}
    assert optimizer.AdamOptimizer(alpha=0.3, beta1=0.8, gamma=0.5).attributes == opt.attributes


@pytest.mark.parametrize("opt, name", [
    (optimizer.SgdOptimizer(2.0), "base_learning_rate"), (optimizer.StormOptimizer(2.0), "lr"),
    *((cls(alpha=2.0), "alpha") for cls in (
        optimizer.AdagradOptimizer, optimizer.AdamOptimizer, optimizer.AdadeltaOptimizer,
        optimizer.FtrlOptimizer, optimizer.GFtrlOptimizer, optimizer.WngradOptimizer,
        optimizer.DecayAdagradOptimizer, optimizer.RmsPropOptimizer,
        optimizer.YellowFinOptimizer)),
])
def test_scale_learning_rate(opt, name):
    opt.scale_learning_rate(0.25)
    assert getattr(opt, name) == 0.5


def test_parameters_may_be_named(model):
    grad = model.param_to_grad[core.BlobReference("fc_w")]
    optimizer.SgdOptimizer(0.1)(model.net, model.param_init_net, "fc_w", grad)
    update, = added(model, "WeightedSum")
    assert update.input[0] == update.output[0] == "fc_w" and update.input[2] == "fc_w_grad"


def test_own_optimizers_of_parameters():
    m = model_helper.ModelHelper("m")
    with UseOptimizer({"WEIGHT": optimizer.AdagradOptimizer(), "BIAS": optimizer.SgdOptimizer()}):
        one = brew.fc(m, "x", "one", 3, 2)
        with UseOptimizer(optimizer.AdamOptimizer()):
            assert OptimizerContext.current().has_optimizer("DEFAULT")
        assert not OptimizerContext.current().has_optimizer("DEFAULT")
    with pytest.raises(KeyError, match="WEIGHT"):
        OptimizerContext.current().get_optimizer("WEIGHT")
    two = brew.fc(m, one, "two", 2, 2)
    m.AddGradientOperators([m.AveragedLoss(m.SquaredL2Distance([two, "label"]), "loss")])
    optimizer.build_rms_prop(m, base_learning_rate=0.1)
    assert [op.output[0] for op in added(m, "Adagrad")] == ["one_w"]
    assert [op.output[0] for op in added(m, "WeightedSum")] == ["one_b"]
    assert {op.output[2] for op in added(m, "MomentumSGDUpdate")} == {"two_w", "two_b"}
    feed_and_run(m)


def test_weight_decay_reaches_weights_alone(model):
    optimizer.add_weight_decay(model, 0.25)
    decay, = added(model, "WeightedSum")
    assert list(decay.input) == ["fc_w_grad", "ONE_0_0", "fc_w", "wd_0_0"]
    feed_and_run(model)
    decayed, w = workspace.FetchBlob("fc_w_grad"), workspace.FetchBlob("fc_w")
    x, y = workspace.FetchBlob("x"), workspace.FetchBlob("fc") - 1
    np.testing.assert_allclose(decayed, y.T @ x / 4 + 0.25 * w, rtol=1e-4, atol=1e-5)


def test_adagrad_options(model):
    scale = types.SimpleNamespace(stepsize=2, upper_bound_iter=10, scale=0.5, to_aux=True)
    optimizer.build_adagrad(model, 0.1, output_effective_lr_and_update=True, weight_decay=0.1,
                            weight_scale=scale)
    for op in added(model, "Adagrad"):
        name = op.output[0]
        assert list(op.output[2:]) == [name + "_effective_lr", name + "_update"]
        assert arg(op, "weight_decay").f == pytest.approx(0.1)
    scaled = [op.output[0] for op in added(model, "WeightScale")]
    assert scaled == ["fc_w", "fc_w_squared_sum", "fc_b", "fc_b_squared_sum"]
    feed_and_run(model, 3)
    assert workspace.FetchBlob("fc_w_update").shape == (2, 3)


def test_row_state_where_inference_does_not_reach():
    """A parameter that a net is given: its rows are counted when the net runs."""
    net, init = core.Net("train"), core.Net("init")
    init.AddExternalInput("w")
    grad = core.GradientSlice(indices="i", values="g")
    net.AddExternalInput("w", "i", "g")
    optimizer.AdagradOptimizer(alpha=0.1, rowWise=True)(net, init, "w", grad)
    workspace.FeedBlob("w", np.ones((5, 2), np.float32))
    workspace.FeedBlob("i", np.array([3]))
    workspace.FeedBlob("g", np.ones((1, 2), np.float32))
    workspace.RunNetOnce(init)
    workspace.RunNetOnce(net)
    np.testing.assert_array_equal(workspace.FetchBlob("w_avg_squared_sum"), [0, 0, 0, 1, 0])


def test_multi_precision_updates_the_float_copy():
    net, init = core.Net("train"), core.Net("init")
    net.AddExternalInput("w", "w32", "g")
    init.AddExternalInput("w32")
    info = ParameterInfo(None, core.BlobReference("w"), grad=core.BlobReference("g"),
                         blob_copy={core.DataType.FLOAT: core.BlobReference("w32")})
    optimizer.MultiPrecisionSgdOptimizer(0.5, nesterov=False)(net, init, info)
    w = np.array([1, 2], np.float32)
    workspace.FeedBlob("w32", w)
    workspace.FeedBlob("g", np.array([2, 4], np.float16))
    workspace.RunNetOnce(init)
    workspace.RunNetOnce(net)
    for name, dtype in (("w32", np.float32), ("w", np.float16)):
        value = workspace.FetchBlob(name)
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, [0, 0])


# ---------------------------------------------------------------- devices and refusals


def test_param_device():
    cpu, gpu = core.DeviceOption(caffe2_pb2.CPU), core.DeviceOption(caffe2_pb2.CUDA, 1)
    of = optimizer.get_param_device
    assert of("w", "w_grad", {"w": gpu, "w_grad": cpu}) == gpu
    assert of("w", "w_grad", {"w_grad": gpu}) == gpu
    assert of("w", core.GradientSlice("i", "v"), {"i": gpu}) == gpu
    assert of("w", core.GradientSlice("i", "v"), {"i": gpu, "v": cpu}) == cpu
    assert of("w", "w_grad", {}, cpu) == cpu
    with pytest.raises(ValueError, match="device is unknown"):
        of("w", "w_grad", {})


def test_updates_run_where_their_parameter_is(model):
    gpu = core.DeviceOption(caffe2_pb2.CUDA, 1)
    for op in model.net.Proto().op:
        op.device_option.CopyFrom(gpu)
    for op in model.param_init_net.Proto().op:
        op.device_option.CopyFrom(gpu)
    optimizer.build_sgd(model, 0.1)
    assert all(op.device_option == gpu for op in added(model, "WeightedSum"))
    assert added(model, "AtomicIter")[0].device_option.device_type == caffe2_pb2.CPU
    assert scope.CurrentDeviceScope() is None


SLICE = core.GradientSlice("i", "v")


@pytest.mark.parametrize("opt, grad, message", [
    (optimizer.YellowFinOptimizer(), SLICE, "sparse"),
    (optimizer.RmsPropOptimizer(), SLICE, "sparse"),
    (optimizer.GFtrlOptimizer(), SLICE, "sparse"),
    (optimizer.DecayAdagradOptimizer(), SLICE, "sparse"),
    (optimizer.WeightDecayBuilder(0.1), SLICE, "sparse"),
    (optimizer.FP16SgdOptimizer(0.1), SLICE, "sparse"),
    (optimizer.AdagradOptimizer(rowWise=True), "g", "needs a sparse gradient"),
    (optimizer.AdamOptimizer(rowWise=True), "g", "needs a sparse gradient"),
    (optimizer.AdagradOptimizer(decay=0.9), SLICE, "decay"),
    (optimizer.AdamOptimizer(use_smart_decay=True, enableRAdam=True), SLICE, "use_smart_decay"),
    (optimizer.AdamOptimizer(rowWise=True, enableRAdam=True), SLICE, "enableRAdam"),
    (optimizer.YellowFinOptimizer(alpha=0), "g", "must be positive"),
    (optimizer.RmsPropOptimizer(alpha=0), "g", "must be positive"),
    (optimizer.SgdOptimizer(0.1, lars=-1), "g", "offset must not be negative"),
])
def test_refuses(opt, grad, message):
    net, init = core.Net("train"), core.Net("init")
    with pytest.raises(ValueError, match=message):
        opt(net, init, core.BlobReference("w"), grad)
    assert not net.Proto().op


def test_refuses_misuse(model):
    net, init = model.net, model.param_init_net
    with pytest.raises(TypeError, match="ParameterInfo"):
        optimizer.SgdOptimizer()(net, init, "fc_w")
    with pytest.raises(ValueError, match="no gradient"):
        optimizer.SgdOptimizer()(net, init, ParameterInfo(None, core.BlobReference("fc_w")))
    with pytest.raises(NotImplementedError, match="how to update"):
        optimizer.Optimizer()(net, init, "fc_w", core.BlobReference("fc_w_grad"))
    with pytest.raises(NotImplementedError, match="no learning rate"):
        optimizer.WeightDecayBuilder(0.1).scale_learning_rate(2)
    with pytest.raises(TypeError, match="sparse gradient"):
        optimizer.Optimizer.dedup(net, "sum", core.BlobReference("fc_w_grad"))
    for option in ("pruning_options", "swa_options", "ema_options"):
        with pytest.raises(NotImplementedError, match=option):
            optimizer.AdagradOptimizer(**{option: {"x": 1}})

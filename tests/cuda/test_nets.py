"""Recorded nets on the device, and training there."""
import re
from pathlib import Path

import numpy as np
import pytest
from zoo import resnet50

from caffe2._core import registry
from caffe2.ops import cuda as _operators  # noqa: F401  registers them
from caffe2.proto import caffe2_pb2
from caffe2.python import brew, core, model_helper, optimizer, workspace
from conformance import check

GPU = core.DeviceOption(caffe2_pb2.CUDA, 0)
NETS = Path(check.HERE, "nets")


def on_device(net):
    """Whether the device has all operators; shapes and bounds that operators make there are wanted on the CPU."""
    wanted_on_cpu = {"Reshape": 2, "UniformIntFill": 3, "UniformFill": 3}
    return all((op.type, registry.CUDA, "") in registry._classes and len(op.input) != wanted_on_cpu.get(op.type)
               for op in net.op)


RECORDED = sorted(p.stem for p in NETS.glob("*.npz")
                  if on_device(caffe2_pb2.NetDef.FromString(check.load_net(p)["net"])))


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_net(name):
    case = check.load_net(NETS / f"{name}.npz")
    net = caffe2_pb2.NetDef.FromString(case["net"])
    net.device_option.CopyFrom(GPU)
    for op in net.op:
        if op.HasField("device_option"):
            op.device_option.device_type = caffe2_pb2.CUDA
    counts = {o for op in net.op if op.type in ("Iter", "AtomicIter") for o in op.output}
    for blob, a in case["inputs"].items():
        workspace.FeedBlob(blob, a, None if blob in counts or a.dtype == object else GPU)
    workspace.RunNetOnce(net)
    for blob, (want, deterministic) in case["outputs"].items():
        assert check.difference(workspace.FetchBlob(blob), want, deterministic) is None, blob


def lenet(device, net_type="simple"):
    """Losses and parameters of some steps of a small LeNet with batch norm, on one device."""
    workspace.ResetWorkspace()
    rng = np.random.default_rng(0)
    with core.DeviceScope(core.DeviceOption(device, 0)):
        model = model_helper.ModelHelper("lenet")
        x = brew.conv(model, "data", "conv", 1, 4, kernel=3)
        x = brew.spatial_bn(model, x, "bn", 4, is_test=False)
        x = brew.relu(model, x, x)
        x = brew.max_pool(model, x, "pool", kernel=2, stride=2)
        x = brew.fc(model, x, "fc", 4 * 3 * 3, 5)
        softmax, loss = model.net.SoftmaxWithLoss([x, "label"], ["softmax", "loss"])
        model.net.Accuracy([softmax, "label"], "accuracy")
        model.AddGradientOperators([loss])
        optimizer.build_sgd(model, 0.1, policy="step", stepsize=2, gamma=0.5, momentum=0.9)
    model.net.Proto().type = net_type
    workspace.RunNetOnce(model.param_init_net)
    option = core.DeviceOption(device, 0)
    for p in sorted(map(str, model.params)):
        shape = workspace.FetchBlob(p).shape
        workspace.FeedBlob(p, rng.standard_normal(shape).astype(np.float32) * 0.3, option)
    for name in ("bn_rm", "bn_riv"):
        workspace.FeedBlob(name, np.ones(4, np.float32), option)
    workspace.FeedBlob("data", rng.standard_normal((6, 1, 8, 8)).astype(np.float32), option)
    workspace.FeedBlob("label", rng.integers(0, 5, 6).astype(np.int32), option)
    workspace.CreateNet(model.net)
    losses = []
    for _ in range(5):
        workspace.RunNet(model.net)
        losses.append(float(workspace.FetchBlob("loss")))
    return losses, {p: workspace.FetchBlob(p) for p in map(str, model.params)}, float(workspace.FetchBlob("accuracy"))


@pytest.mark.parametrize("net_type", ["simple", "dag"])
def test_training_is_the_cpus(net_type):
    losses, params, accuracy = lenet(caffe2_pb2.CPU)
    got_losses, got_params, got_accuracy = lenet(caffe2_pb2.CUDA, net_type)
    np.testing.assert_allclose(got_losses, losses, rtol=1e-4)
    assert got_losses[-1] < got_losses[0]
    for name, want in params.items():
        np.testing.assert_allclose(got_params[name], want, rtol=2e-3, atol=1e-5, err_msg=name)
    assert got_accuracy == pytest.approx(accuracy)


# ---------------------------------------------------------------- a residual net, and every optimizer

def error(got, want):
    """Length of the difference, relative to that of what is wanted."""
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-20)


def fetch_all():
    """All tensors, under names that do not tell the device: those of learning rates and constants do."""
    blobs = {re.sub(r"_gpu0$", "_cpu", re.sub(r"^(ONE|wd)_1", r"\1_0", b)): workspace.FetchBlob(b)
             for b in workspace.Blobs()}
    return {b: v.astype(np.float64) for b, v in blobs.items() if isinstance(v, np.ndarray)}


def resnet(device, steps, **how):
    """What each step of a small ResNet with the blocks of ResNet-50 leaves in all its blobs."""
    workspace.ResetWorkspace()
    optimizer.reset_optimizer_instance_count()
    with core.DeviceScope(core.DeviceOption(device, 0)):
        net = resnet50(batch=2, size=32, stages=((8, 2), (16, 2)), classes=10, **how)
        net.feed()
    workspace.CreateNet(net.model.net)
    results = []
    for _ in range(steps):
        workspace.RunNet(net.net.name)
        results.append(fetch_all())
    return results


@pytest.mark.parametrize("how", [dict(), dict(train=True, momentum=0.9)], ids=["inference", "training"])
def test_resnet_is_the_cpus(how):
    steps = 3 if how else 1
    want, got = resnet(caffe2_pb2.CPU, steps, **how), resnet(caffe2_pb2.CUDA, steps, **how)
    for step, (a, b) in enumerate(zip(got, want)):
        assert set(a) == set(b)
        wrong = {name: e for name in b if (e := error(a[name], b[name])) > 1e-4}
        assert not wrong, f"step {step}"
    if how:
        assert got[-1]["loss"] < got[0]["loss"]


OPTIMIZERS = {
    "sgd": ("sgd", dict(base_learning_rate=0.1)),
    "step": ("sgd", dict(base_learning_rate=0.1, policy="step", stepsize=2, gamma=0.5)),
    "momentum": ("sgd", dict(base_learning_rate=0.1, momentum=0.9, nesterov=False)),
    "nesterov": ("sgd", dict(base_learning_rate=0.1, momentum=0.9)),
    "lars": ("sgd", dict(base_learning_rate=0.1, lars=0.5)),
    "clipped": ("sgd", dict(base_learning_rate=0.1, max_gradient_norm=0.1)),
    "injected": ("sgd", dict(base_learning_rate=0.1, allow_lr_injection=True)),
    "multi_precision": ("multi_precision_sgd", dict(base_learning_rate=0.1, momentum=0.9)),
    "fp16": ("fp16_sgd", dict(base_learning_rate=0.1, momentum=0.9)),
    "adagrad": ("adagrad", dict(base_learning_rate=0.1)),
    "decaying adagrad": ("adagrad", dict(base_learning_rate=0.1, decay=0.9, weight_decay=0.01)),
    "adagrad with lars": ("adagrad", dict(base_learning_rate=0.1, lars=0.5)),
    "wngrad": ("wngrad", dict(base_learning_rate=1.0)),
    "storm": ("storm", dict(base_learning_rate=0.1)),
    "adadelta": ("adadelta", dict(base_learning_rate=1.0, decay=0.9)),
    "ftrl": ("ftrl", dict(alpha=0.1, beta=0.1)),
    "gftrl": ("gftrl", dict(alpha=0.1, beta=0.1)),
    "adam": ("adam", dict(base_learning_rate=0.01, policy="inv", gamma=0.1, power=0.5)),
    "decay_adagrad": ("decay_adagrad", dict(base_learning_rate=0.1)),
    "yellowfin": ("yellowfin", dict(base_learning_rate=0.1)),
    "rms_prop": ("rms_prop", dict(base_learning_rate=0.01, momentum=0.5)),
}


def mlp(device, name, weight_decay=0.0, steps=4):
    """Blobs after some steps of training a small MLP with an optimizer."""
    workspace.ResetWorkspace()
    optimizer.reset_optimizer_instance_count()
    rng = np.random.default_rng(0)
    build, kwargs = OPTIMIZERS[name]
    with core.DeviceScope(core.DeviceOption(device, 0)):
        model = model_helper.ModelHelper("mlp_" + "cpu gpu".split()[device])
        x = brew.relu(model, brew.fc(model, "data", "fc1", 7, 9), "relu")
        _, loss = model.net.SoftmaxWithLoss([brew.fc(model, x, "fc2", 9, 5), "label"], ["softmax", "loss"])
        model.AddGradientOperators([loss])
        if weight_decay:
            optimizer.add_weight_decay(model, weight_decay)
        getattr(optimizer, f"build_{build}")(model, **kwargs)
        workspace.FeedBlob("data", rng.standard_normal((6, 7)).astype(np.float32))
        workspace.FeedBlob("label", rng.integers(0, 5, 6).astype(np.int32))
        workspace.RunNetOnce(model.param_init_net)
        for p in sorted(map(str, model.params)):
            workspace.FeedBlob(p, rng.standard_normal(workspace.FetchBlob(p).shape).astype(np.float32))
    workspace.CreateNet(model.net)
    losses = []
    for _ in range(steps):
        workspace.RunNet(model.net)
        losses.append(workspace.FetchBlob("loss"))
    return np.array(losses), fetch_all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name):
    decay = 0.01 if name == "momentum" else 0.0
    losses, blobs = mlp(caffe2_pb2.CPU, name, decay)
    got_losses, got = mlp(caffe2_pb2.CUDA, name, decay)
    np.testing.assert_allclose(got_losses, losses, rtol=1e-5)
    assert {*blobs} - {*got} == {b for b in blobs if "EnsureCPUOutput" in b}       # which has the net's name
    wrong = {b: e for b, want in blobs.items() if b in got and (e := error(got[b], want)) > 1e-4}
    assert not wrong
    assert len(set(got_losses.tolist())) == len(losses)

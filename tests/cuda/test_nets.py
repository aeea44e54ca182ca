"""Recorded nets on the device, and training there."""
from pathlib import Path

import numpy as np
import pytest

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

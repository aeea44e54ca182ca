"""Tensors, streams and errors on a device."""
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from caffe2 import cuda_info
from caffe2._core import cuda, cuda_compiler, registry
from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace

GPU = core.DeviceOption(caffe2_pb2.CUDA, 0)


def test_feed_and_fetch():
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    workspace.FeedBlob("x", x, GPU)
    np.testing.assert_array_equal(workspace.FetchBlob("x"), x)


def test_relu_net():
    x = np.random.default_rng(0).standard_normal(1003).astype(np.float32)
    workspace.FeedBlob("x", x, GPU)
    net = core.Net("n")
    with core.DeviceScope(GPU):
        net.Relu("x", "y")
        net.Tanh("y", "z")
        net.Relu("z", "z")
    workspace.CreateNet(net)
    for _ in range(3):
        workspace.RunNet(net)
    np.testing.assert_allclose(workspace.FetchBlob("z"), np.tanh(np.maximum(x, 0)), rtol=1e-6)


def fed(name, value, device=0):
    workspace.FeedBlob(name, np.asarray(value, np.float32), core.DeviceOption(caffe2_pb2.CUDA, device))


def run(type, inputs, outputs, device=GPU, **args):
    workspace.RunOperatorOnce(core.CreateOperator(type, inputs, outputs, device_option=device, **args))


def test_a_net_waits_for_nothing_until_a_fetch(device):
    fed("x", np.ones(64))
    net = core.Net("many")
    with core.DeviceScope(GPU):
        for i in range(100):
            net.Relu("x" if i == 0 else f"y{i - 1}", f"y{i}")
    workspace.CreateNet(net)
    workspace.RunNet(net)
    if not hasattr(cuda._library, "emu_syncs"):
        return                      # a real driver counts no waits
    before, launched = cuda._library.emu_syncs(), cuda._library.emu_launches()
    for _ in range(3):
        workspace.RunNet(net)
    assert cuda._library.emu_syncs() == before
    assert cuda._library.emu_launches() == launched + 300
    np.testing.assert_array_equal(workspace.FetchBlob("y99"), np.ones(64))
    assert cuda._library.emu_syncs() > before


def test_repeated_runs_see_new_shapes_and_values():
    net = core.Net("again")
    fed("x", [-1, 2])
    with core.DeviceScope(GPU):
        net.Relu("x", "y")
    workspace.CreateNet(net)
    for value in ([-1, 2], [3, -4], [[1, -2, 3]], [5, -6]):
        fed("x", value)
        workspace.RunNet(net)
        np.testing.assert_array_equal(workspace.FetchBlob("y"), np.maximum(value, 0))


def test_copies_between_devices():
    x = np.arange(5, dtype=np.float32)
    workspace.FeedBlob("cpu", x)
    run("CopyCPUToGPU", ["cpu"], ["gpu"])
    run("Copy", ["gpu"], ["gpu2"])
    workspace.FeedBlob("there", x + 1, core.DeviceOption(caffe2_pb2.CUDA, cuda.device_count() - 1))
    run("EnsureCPUOutput", ["gpu2"], ["back"])
    workspace.RunOperatorOnce(core.CreateOperator("Relu", ["back"], ["relu"]))
    np.testing.assert_array_equal(workspace.FetchBlob("relu"), x)
    np.testing.assert_array_equal(workspace.FetchBlob("there"), x + 1)


@pytest.mark.parametrize("operator, option, message", [
    (("Relu", ["cpu"], ["y"]), GPU, "is on the CPU, but must be on CUDA device 0.*CopyCPUToGPU"),
    (("Relu", ["gpu"], ["y"]), core.DeviceOption(caffe2_pb2.CPU), "memory of CUDA device 0.*CopyGPUToCPU"),
    (("Relu", ["gpu"], ["y"]), core.DeviceOption(caffe2_pb2.CUDA, 99), "no CUDA device 99"),
    (("Unique", ["gpu"], ["y"]), GPU, "Unique has no implementation for CUDA"),
])
def test_wrong_device(operator, option, message):
    workspace.FeedBlob("cpu", np.ones(2, np.float32))
    fed("gpu", [1, 2])
    with pytest.raises(RuntimeError, match=message):
        run(*operator, device=option)
    np.testing.assert_array_equal(workspace.FetchBlob("gpu"), [1, 2])
    with pytest.raises(RuntimeError, match="CPU cannot read"):
        workspace.C.view_blob("gpu")


def test_out_of_memory():
    fed("x", [1, 2])
    shape = [1 << 20, 1 << 20]      # 4 TiB
    with pytest.raises(RuntimeError, match="CUDA device 0 is out of memory: .* bytes are wanted"):
        run("ConstantFill", [], ["big"], shape=shape)
    np.testing.assert_array_equal(workspace.FetchBlob("x"), [1, 2])


def test_no_compiler(monkeypatch, tmp_path, device):
    monkeypatch.setenv("CAFFE2_CUDA_CACHE", str(tmp_path))
    monkeypatch.setattr("caffe2._core.cuda_compiler.find_nvcc", lambda: None)
    monkeypatch.setattr(cuda_compiler, "OPTIONS", ["-O0"])
    with pytest.raises(RuntimeError, match="no CUDA compiler is found.*CUDA_HOME"):
        cuda_compiler.binary("activation", device.arch)
    assert not list(tmp_path.iterdir())


def test_seeded_fills_are_reproducible():
    def draw(seed, times=1):
        option = core.DeviceOption(caffe2_pb2.CUDA, 0, random_seed=seed)
        net = core.Net("fill")
        net.GaussianFill([], ["r"], shape=[1000], mean=1.0, std=2.0, device_option=option)
        workspace.CreateNet(net, overwrite=True)
        for _ in range(times):
            workspace.RunNet(net)
        return workspace.FetchBlob("r")
    first = draw(5)
    np.testing.assert_array_equal(first, draw(5))
    assert not np.array_equal(first, draw(6)) and not np.array_equal(first, draw(5, times=2))
    np.testing.assert_array_equal(draw(5, times=3), draw(5, times=3))
    assert abs(first.mean() - 1) < 0.3 and abs(first.std() - 2) < 0.3


def test_dlpack_and_array_interface():
    fed("x", [[1, 2, 3]])
    t = workspace.C.Workspace.current.blobs["x"].tensor()
    assert t.__dlpack_device__() == (2, 0) and t.__cuda_array_interface__["shape"] == (1, 3)

    class Foreign:
        __cuda_array_interface__ = t.__cuda_array_interface__

    class Lender:
        def __dlpack_device__(self):
            return 2, 0

        def __dlpack__(self, stream=None):
            return t.__dlpack__(stream=stream)

    for lender in (Foreign(), Lender()):
        workspace.FeedBlob("y", lender, GPU)
        np.testing.assert_array_equal(workspace.FetchBlob("y"), [[1, 2, 3]])


def test_several_threads():
    def work(k):
        workspace_name = f"cuda{k}"
        w = workspace.C.Workspace()
        x = np.random.default_rng(k).standard_normal(100).astype(np.float32)
        w.feed_blob("x", x, GPU)
        net = caffe2_pb2.NetDef(name=workspace_name, op=[
            core.CreateOperator("Tanh", ["x"], ["y"], device_option=GPU),
            core.CreateOperator("Sqr", ["y"], ["z"], device_option=GPU)])
        bound = w.create_net(net)
        for _ in range(20):
            bound.run()
        np.testing.assert_allclose(w.fetch_blob("z"), np.tanh(x) ** 2, rtol=1e-5)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


def test_device_facts(device, capsys):
    assert workspace.has_gpu_support and workspace.NumCudaDevices() == cuda.device_count()
    assert workspace.GetDeviceProperties(0)["name"] and workspace.GetCUDAVersion() >= 11000
    free, total = workspace.GetGPUMemoryInfo()
    assert 0 < free <= total
    fed("x", np.ones(1000))
    assert device.memory()["used"] >= 4000
    cuda_info.main()
    assert "a kernel ran, and its result is right" in capsys.readouterr().out


def test_serialized_from_the_device():
    fed("x", [1, 2, 3])
    data = workspace.SerializeBlob("x")
    workspace.ResetWorkspace()
    workspace.DeserializeBlob("x", data)
    np.testing.assert_array_equal(workspace.blobs["x"], [1, 2, 3])


@pytest.mark.parametrize("type, outputs", [
    ("SoftmaxWithLoss", ["softmax", "loss"]), ("LabelCrossEntropy", ["loss"]), ("Accuracy", ["loss"])])
@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class(type, outputs, label):
    fed("x", [[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    workspace.FeedBlob("label", np.array([1, label], np.int32), GPU)
    net = core.Net("labels")
    with core.DeviceScope(GPU):
        getattr(net, type)(["x", "label"], outputs)
    workspace.CreateNet(net)
    for _ in range(2):                          # the second time, what was launched is repeated
        workspace.RunNet(net)
        message = rf"not the number of a class: {label}, in operator {type}\(x, label\) .*device 0"
        with pytest.raises(RuntimeError, match=message):
            workspace.FetchBlob("loss")
        assert np.isnan(workspace.FetchBlob("loss")).any()          # told once
    workspace.FeedBlob("label", np.array([1, 2], np.int32), GPU)
    workspace.RunNet(net)
    assert np.isfinite(workspace.FetchBlob("loss")).all()


def test_a_label_that_is_no_class_has_no_gradient():
    fed("x", [[1, 2, 3], [3, 2, 1]])
    fed("p", [[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]])
    fed("dloss", 1)
    workspace.FeedBlob("label", np.array([0, 7], np.int32), GPU)
    run("SoftmaxWithLossGradient", ["x", "label", "p", "dloss"], ["dx"])
    np.testing.assert_allclose(workspace.FetchBlob("dx"), [[-0.375, 0.125, 0.25], [0, 0, 0]])


@pytest.mark.parametrize("name", ["Adam", "DecayAdagrad"])
def test_steps_are_repeated_without_python(name, monkeypatch):
    """While iterations go on, nothing of an optimizer's step is decided anew, and its values are the CPU's."""
    inputs = ["w", "m", "h", "g", "lr", "iter"]

    def train(device, steps, between=lambda: None):
        workspace.ResetWorkspace()
        option = core.DeviceOption(device, 0)
        net = core.Net("steps")
        for i, n in enumerate(inputs[:4]):
            workspace.FeedBlob(n, np.linspace(0.1, 1, 7, dtype=np.float32) * (i + 1), option)
        workspace.FeedBlob("iter", np.zeros(1, np.int64))
        with core.DeviceScope(option):
            net.Iter("iter", "iter")
            net.LearningRate("iter", "lr", base_lr=-0.1, policy="inv", gamma=0.5, power=1.0)
            getattr(net, name)(inputs, inputs[:3])
        workspace.CreateNet(net, overwrite=True)
        for _ in range(steps):
            workspace.RunNet(net)
            between()
        return [workspace.FetchBlob(n) for n in ("w", "m", "h", "lr", "iter")]

    def decided_anew(self):
        raise AssertionError(f"{self.type} is decided anew")

    want = train(caffe2_pb2.CPU, 6)
    ops = registry.find(name, registry.CUDA), registry.find("LearningRate", registry.CUDA)
    got = train(caffe2_pb2.CUDA, 6, lambda: [monkeypatch.setattr(c, "execute", decided_anew) for c in ops])
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_learning_rate_of_a_wrong_count():
    workspace.FeedBlob("iter", np.zeros(1, np.float32))
    with pytest.raises(RuntimeError, match="must be one int64.*LearningRate"):
        run("LearningRate", ["iter"], ["lr"], base_lr=0.1, policy="fixed")


def test_a_tensor_on_another_device():
    other = cuda.device_count() - 1
    if not other:
        pytest.skip("there is one device")
    fed("there", [1, 2, 3], other)
    with pytest.raises(RuntimeError, match=f"there. is on CUDA device {other}, but must be on device 0: use Copy"):
        run("Relu", ["there"], ["y"])
    for values in ([1, 2, 3], [4, 5]):
        fed("there", values, other)
        run("Copy", ["there"], ["here"])
        run("Negative", ["here"], ["y"])
        np.testing.assert_array_equal(workspace.FetchBlob("y"), -np.array(values))
    np.testing.assert_array_equal(workspace.FetchBlob("there"), [4, 5])


def test_a_count_on_the_device():
    for name in "wmhg":
        fed(name, [1, 2])
    fed("lr", [0.1])
    workspace.FeedBlob("iter", np.zeros(1, np.int64), GPU)
    with pytest.raises(RuntimeError, match="iter. must be on the CPU, but is on CUDA device 0.*CopyGPUToCPU"):
        run("Adam", ["w", "m", "h", "g", "lr", "iter"], ["w", "m", "h"])
    np.testing.assert_array_equal(workspace.FetchBlob("w"), [1, 2])


def test_memory_is_found_again_when_blobs_go(device):
    total = device.memory()["free"] // 2 // 4
    run("ConstantFill", [], ["half"], shape=[total])
    fed("x", [1, 2])
    with pytest.raises(RuntimeError, match="out of memory: .* are wanted.*smaller batches, reset blobs"):
        run("ConstantFill", [], ["more"], shape=[4 * total])
    np.testing.assert_array_equal(workspace.FetchBlob("x"), [1, 2])
    workspace.FeedBlob("half", np.zeros(1, np.float32))
    run("ConstantFill", [], ["more"], shape=[total], value=3.0)
    assert workspace.FetchBlob("more")[-1] == 3


@pytest.mark.parametrize("module, op, message", [
    ("nvmath.bindings.cublas", ("FC", ["x", "x", "b"]), "nvmath-python, for cuBLAS, cannot be loaded.*pip install"),
    ("cudnn", ("Conv", ["image", "image"]), "nvidia-cudnn-frontend, for cuDNN, cannot be loaded.*pip install")])
def test_no_library(monkeypatch, module, op, message):
    fed("x", np.ones((2, 2)))
    fed("b", np.ones(2))
    fed("image", np.ones((1, 1, 3, 3)) * 2)
    monkeypatch.setattr("caffe2.ops.cuda.conv._plans", {})
    monkeypatch.setitem(sys.modules, module, None)          # importing it fails
    with pytest.raises(RuntimeError, match=message):
        run(*op, ["y"], kernel=3)
    np.testing.assert_array_equal(workspace.FetchBlob("x"), np.ones((2, 2)))


def test_kernels_that_do_not_compile(monkeypatch, tmp_path, device):
    monkeypatch.setenv("CAFFE2_CUDA_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match=f"wrong.cu do not compile for {device.arch} with .*nvcc"):
        cuda_compiler.compile_source("this is no CUDA", device.arch, "wrong")


@pytest.mark.parametrize("error, message", [
    ("libcuda.so.1: cannot open shared object file", "driver is not installed.*nvidia-smi"),
    ("No module named 'pycuda'", "PyCUDA cannot be imported.*pip install 'caffe2.cuda.'")])
def test_no_driver(monkeypatch, error, message):
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("pycuda"):
                raise ImportError(error)

    for name in [m for m in sys.modules if m.split(".")[0] == "pycuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    monkeypatch.setattr(cuda, "_devices", None)
    monkeypatch.setattr(cuda, "_unavailable", None)
    assert cuda.device_count() == 0
    workspace.FeedBlob("x", np.ones(2, np.float32))
    with pytest.raises(RuntimeError, match=f"there is no CUDA device 0: .*{message}"):
        run("Relu", ["x"], ["y"])
    with pytest.raises(RuntimeError, match=message):
        fed("z", [1])
    workspace.RunOperatorOnce(core.CreateOperator("Relu", ["x"], ["y"]))
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [1, 1])

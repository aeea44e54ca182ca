"""Blobs, nets and plans of the current workspace."""
import sys
import threading
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caffe2.proto import caffe2_pb2
from caffe2.python import core, utils, workspace

DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8,
          np.uint16, np.bool_]


@pytest.fixture
def net():
    net = core.Net("net")
    net.ConstantFill([], "x", shape=[2, 3], value=1.0)
    return net


# ---------------------------------------------------------------- feed and fetch

@given(st.sampled_from(DTYPES).flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))))
def test_feed_fetch(x):
    assert workspace.FeedBlob("x", x) is True
    y = workspace.FetchBlob("x")
    assert type(y) is np.ndarray and y.dtype == x.dtype and y.shape == x.shape
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("x", [
    np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    np.arange(24)[::-3],
    np.broadcast_to(np.float32(3), (2, 2)),
    np.arange(4, dtype=">i4"),
    [[1.5, 2.5]],
    7,
], ids=["transposed", "strided", "broadcast", "big-endian", "list", "number"])
def test_feed_anything_numpy_reads(x):
    workspace.FeedBlob("x", x)
    np.testing.assert_array_equal(workspace.FetchBlob("x"), np.asarray(x))


def test_feed_and_fetch_copy():
    x = np.ones(3, np.float32)
    workspace.FeedBlob("x", x)
    x[:] = 2
    y = workspace.FetchBlob("x")
    y[:] = 3
    assert workspace.FetchBlob("x").tolist() == [1, 1, 1]


def test_strings():
    workspace.FeedBlob("plain", b"with \0 and \xff")
    assert workspace.FetchBlob("plain") == b"with \0 and \xff"
    for x in (["a", "longer", ""], [b"a", b"longer", b""]):
        for array in (np.array(x), np.array(x, dtype=object)):
            workspace.FeedBlob("tensor", array)
            y = workspace.FetchBlob("tensor")
            assert y.dtype == object
            assert y.tolist() == [b"a", b"longer", b""]


def test_feed_tensor_proto():
    x = np.array([[1, 2]], np.int16)
    workspace.FeedBlob("x", utils.NumpyArrayToCaffe2Tensor(x))
    y = workspace.FetchBlob("x")
    assert y.dtype == np.int16 and y.tolist() == [[1, 2]]


def test_names(net):
    ref = core.BlobReference("x")
    workspace.FeedBlob(ref, np.ones(1))
    assert workspace.HasBlob("x") and workspace.HasBlob(ref)
    assert workspace.FetchBlobs([ref, "x"])[1].tolist() == [1.0]
    assert workspace.StringifyBlobName(ref) == "x"
    assert workspace.StringifyNetName(net) == workspace.GetNetName(net) == net.Name()
    assert workspace.GetNetName(net.Proto()) == net.Name()
    with pytest.raises(AssertionError):
        workspace.StringifyBlobName(3)
    with pytest.raises(TypeError):
        workspace.GetNetName(3)


@pytest.mark.parametrize("error", [RuntimeError, KeyError])
def test_fetch_missing(error):
    workspace.FeedBlob("kept", np.ones(2))
    with pytest.raises(error, match="no blob is named 'missing'"):
        workspace.FetchBlob("missing")
    assert workspace.Blobs() == ["kept"]


def test_feed_what_no_tensor_holds():
    workspace.FeedBlob("x", np.ones(2))
    with pytest.raises(TypeError):
        workspace.FeedBlob("x", np.zeros(2, complex))
    with pytest.raises(TypeError):
        workspace.FeedBlob("new", np.zeros(2, complex))
    assert workspace.FetchBlob("x").tolist() == [1, 1]
    assert workspace.Blobs() == ["x"]


def test_feed_on_device():
    cpu = core.DeviceOption(caffe2_pb2.CPU)
    workspace.FeedBlob("x", np.ones(2), cpu)
    with core.DeviceScope(cpu):
        workspace.FeedBlob("y", np.ones(2))
    assert workspace.FetchBlob("x").tolist() == workspace.FetchBlob("y").tolist() == [1, 1]


def test_fetch_torch(monkeypatch):
    torch = types.ModuleType("torch")
    torch.from_numpy = lambda array: ("torch", array)
    monkeypatch.setitem(sys.modules, "torch", torch)
    workspace.FeedBlob("x", np.arange(6, dtype=np.float32).reshape(2, 3))
    kind, shared = workspace.FetchTorch("x")
    assert kind == "torch" and shared.shape == (2, 3)
    shared[0, 0] = 5
    assert workspace.FetchBlob("x")[0, 0] == 5


# ---------------------------------------------------------------- blobs as a mapping

def test_blobs():
    workspace.blobs["x"] = np.arange(3, dtype=np.float32)
    workspace.blobs["s"] = "text"
    assert workspace.blobs["x"].tolist() == [0, 1, 2]
    assert "x" in workspace.blobs and "y" not in workspace.blobs
    assert len(workspace.blobs) == 2
    assert list(workspace.blobs) == list(workspace.blobs.keys()) == ["s", "x"]
    assert dict(workspace.blobs)["s"] == b"text"
    assert workspace.blobs.get("nothing") is None
    workspace.CreateBlob("empty")
    assert repr(workspace.blobs).splitlines() == [
        "3 blobs in workspace 'default'", "  empty (empty)", "  s (bytes)", "  x float[3]"]
    del workspace.blobs["s"], workspace.blobs["empty"]
    assert workspace.Blobs() == ["x"]
    with pytest.raises(KeyError):
        workspace.blobs["s"]
    with pytest.raises(KeyError):
        del workspace.blobs["s"]


def test_view_shares_memory():
    workspace.blobs["x"] = np.zeros((2, 2), np.float32)
    view = workspace.blobs.view("x")
    view[1] = 7
    assert workspace.blobs["x"].tolist() == [[0, 0], [7, 7]]
    workspace.FeedBlob("x", np.ones((2, 2), np.float32))
    assert view.tolist() == [[1, 1], [1, 1]]


def test_view_outlives_its_blob():
    workspace.FeedBlob("x", np.arange(1000.0))
    view = workspace.blobs.view("x")
    workspace.ResetWorkspace()
    assert view.sum() == 499500


def test_serialize():
    workspace.FeedBlob("x", np.arange(3, dtype=np.int64))
    data = workspace.SerializeBlob("x")
    proto = caffe2_pb2.BlobProto.FromString(data)
    assert (proto.name, proto.type) == ("x", "Tensor")
    assert list(proto.tensor.int64_data) == [0, 1, 2]
    workspace.DeserializeBlob("y", data)
    assert workspace.FetchBlob("y").tolist() == [0, 1, 2]
    with pytest.raises(RuntimeError):
        workspace.DeserializeBlob("y", data[:-3])
    assert workspace.FetchBlob("y").tolist() == [0, 1, 2]


def test_int8():
    class Quantized:  # what an Int8 operator leaves in its blob
        def __fetch__(self):
            return np.array([10, 20], np.uint8), 0.5, 10

    workspace.C.Workspace.current.create_blob("q").content = Quantized()
    data, scale, zero_point = workspace.FetchInt8Blob("q")
    assert (data.tolist(), scale, zero_point) == ([10, 20], 0.5, 10)
    real = workspace.FetchInt8BlobRealVal("q")
    assert real.dtype == np.float32 and real.tolist() == [0, 5]
    workspace.FeedBlob("x", np.ones(2))
    with pytest.raises(TypeError, match="not an Int8 blob"):
        workspace.FetchInt8Blob("x")


# ---------------------------------------------------------------- running

def test_run_operator(net):
    op = net.Proto().op[0]
    assert workspace.RunOperatorOnce(op) is True
    assert workspace.RunOperatorOnce(op.SerializeToString()) is True
    assert workspace.RunOperatorsOnce([op, op]) is True
    np.testing.assert_array_equal(workspace.FetchBlob("x"), np.ones((2, 3), np.float32))


def test_run_operator_multiple():
    workspace.FeedBlob("x", np.ones(1, np.float32))
    op = core.CreateOperator("Scale", ["x"], ["x"], scale=2.0)
    assert workspace.RunOperatorMultiple(op, 5) is True
    assert workspace.FetchBlob("x").tolist() == [32]


def test_run_net(net):
    assert workspace.CreateNet(net, input_blobs=["given"]) is True
    assert workspace.HasBlob("given")
    for name in (net, net.Name()):
        assert workspace.RunNet(name) is True
        assert workspace.RunNet(name, num_iter=3) is True
    assert workspace.RunNetOnce(net.Proto()) is True


def test_net_exists(net):
    workspace.CreateNet(net)
    with pytest.raises(RuntimeError, match="exists already"):
        workspace.CreateNet(net)
    assert workspace.CreateNet(net, overwrite=True)


def test_unknown_net():
    with pytest.raises(RuntimeError, match="no net is named 'nothing'"):
        workspace.RunNet("nothing")


def test_a_failure_says_where_the_operator_was_made(net):
    net.Relu("missing", "y")
    with pytest.raises(RuntimeError, match="missing") as caught:
        workspace.RunNetOnce(net)
    assert __file__ in caught.value.__notes__[0]
    assert "test_a_failure_says" in caught.value.__notes__[0]


def test_allow_fail():
    net = core.Net("fails")
    net.MatMul(["a", "b"], "c")
    workspace.FeedBlob("a", np.ones((2, 3), np.float32))
    workspace.FeedBlob("b", np.ones((3, 2), np.float32))
    workspace.CreateNet(net)
    assert workspace.RunNet(net, allow_fail=True) is True
    workspace.FeedBlob("b", np.ones((2, 3), np.float32))
    assert workspace.RunNet(net, allow_fail=True) is False
    with pytest.raises(RuntimeError, match="MatMul"):
        workspace.RunNet(net)
    assert workspace.FetchBlob("c").tolist() == [[3, 3], [3, 3]]
    with pytest.raises(RuntimeError):
        workspace.RunNet("nothing", allow_fail=True)


def test_plans(net):
    step = core.ExecutionStep("step", net)
    assert workspace.RunPlan(step) is True
    assert workspace.HasBlob("x")
    workspace.ResetWorkspace()
    plan = core.Plan("plan")
    plan.AddStep(step)
    assert workspace.RunPlan(plan) is True
    assert workspace.RunPlan(plan.Proto().SerializeToString()) is True
    background = workspace.RunPlanInBackground(plan)
    assert background.is_succeeded() and background.is_done()
    assert workspace.FetchBlob("x").shape == (2, 3)


@pytest.mark.parametrize("run", [
    lambda data: workspace.CreateNet(data),
    lambda data: workspace.RunNetOnce(data),
    lambda data: workspace.RunOperatorOnce(data),
    lambda data: workspace.RunPlan(data),
    lambda data: workspace.InferShapesAndTypes([data], nets_proto=True),
])
def test_corrupt_message(run):
    workspace.FeedBlob("kept", np.ones(2))
    with pytest.raises(RuntimeError):
        run(b"\xff\xff garbage")
    assert workspace.FetchBlob("kept").tolist() == [1, 1]


def test_stringify_proto(net):
    data = net.Proto().SerializeToString()
    assert workspace.StringifyProto(net) == workspace.StringifyProto(net.Proto()) == data
    assert workspace.StringifyProto(data) == data
    with pytest.raises(ValueError, match="of type int"):
        workspace.StringifyProto(3)


def test_benchmark(net):
    workspace.CreateNet(net)
    times = workspace.BenchmarkNet(net.Name(), 1, 2, True)
    assert len(times) == 2 and all(t >= 0 for t in times)
    assert len(workspace.BenchmarkNet(net.Name(), 0, 1, False)) == 1


def test_infer_shapes_and_types():
    net = core.Net("net")
    net.FC(["x", "w", "b"], "y")
    sizes = {"x": [4, 3], "w": [5, 3], "b": [5]}
    shapes, types = workspace.InferShapesAndTypes([net], sizes)
    assert shapes["y"] == [4, 5] and types["y"] == caffe2_pb2.TensorProto.FLOAT
    assert workspace.InferShapesAndTypes([net.Proto()], sizes, nets_proto=True) == (shapes, types)

    copy = core.Net("copy")
    copy.Squeeze("x", "y", dims=[0])
    shapes, types = workspace.InferShapesAndTypes(
        [copy], {"x": (1, 3)}, blob_types={"x": caffe2_pb2.TensorProto.INT64})
    assert shapes["y"] == [3] and types["y"] == caffe2_pb2.TensorProto.INT64
    with pytest.raises(ValueError):
        workspace.InferShapesAndTypes([copy], blob_types={})

    for name, dims in sizes.items():
        workspace.FeedBlob(name, np.zeros(dims, np.float32))
    shapes, _ = workspace.InferShapesAndTypes([net])
    assert shapes["y"] == [4, 5]


def test_random_inputs():
    net = core.Net("net")
    net.FC(["x", "w", "b"], "y")
    net.Softmax("y", "z")
    workspace.FillRandomNetworkInputs(
        net, [[[4, 3], [5, 3], [5]], [[4, 5]]], [["float"] * 3, ["float"]])
    workspace.RunNetOnce(net)
    np.testing.assert_allclose(workspace.FetchBlob("z").sum(axis=1), np.ones(4), rtol=1e-5)


def test_operator_cost():
    for name, dims in (("x", (4, 3)), ("w", (5, 3)), ("b", (5,))):
        workspace.FeedBlob(name, np.zeros(dims, np.float32))
    op = core.CreateOperator("FC", ["x", "w", "b"], ["y"])
    flops, written, _ = workspace.GetOperatorCost(op, ["x", "w", "b"])
    assert flops == 4 * 5 * (2 * 3 + 1)
    assert written == 4 * 5 * 4


def test_predictor():
    init_net, predict_net = caffe2_pb2.NetDef(), caffe2_pb2.NetDef(
        external_input=["a", "b"], external_output=["c"])
    for name, shape in (("a", (1, 1)), ("b", (3, 4))):
        init_net.op.append(core.CreateOperator(
            "ConstantFill", [], [name], shape=shape, value=1.0))
    predict_net.op.append(core.CreateOperator("MatMul", ["a", "b"], ["c"]))
    predictor = workspace.Predictor(init_net, predict_net.SerializeToString())
    a = np.random.rand(2, 3).astype(np.float32)
    b = np.random.rand(3, 4).astype(np.float32)
    np.testing.assert_allclose(predictor.run([a])[0], a @ np.ones((3, 4)), rtol=1e-5)
    np.testing.assert_allclose(predictor.run([a, b])[0], a @ b, rtol=1e-5)
    np.testing.assert_allclose(predictor.run({"b": 2 * b})[0], a @ (2 * b), rtol=1e-5)
    assert workspace.Blobs() == []
    for wrong in ([a, b, b], {"d": a}):
        with pytest.raises(RuntimeError):
            predictor.run(wrong)


# ---------------------------------------------------------------- workspaces

def test_switch():
    workspace.FeedBlob("x", np.ones(1))
    workspace.SwitchWorkspace("other", True)
    assert workspace.CurrentWorkspace() == "other"
    assert workspace.Blobs() == []
    workspace.SwitchWorkspace("default")
    assert workspace.Blobs() == ["x"]
    assert {"default", "other"} <= set(workspace.Workspaces())
    with pytest.raises(RuntimeError, match="no workspace is named 'nothing'"):
        workspace.SwitchWorkspace("nothing")
    assert workspace.CurrentWorkspace() == "default"


def test_guard():
    with pytest.raises(ValueError), workspace.WorkspaceGuard("guarded"):
        assert workspace.CurrentWorkspace() == "guarded"
        raise ValueError
    assert workspace.CurrentWorkspace() == "default"


def test_root_folder(tmp_path):
    folder = tmp_path / "new" / "folder"
    assert workspace.ResetWorkspace(str(folder)) is True
    assert folder.is_dir()
    assert workspace.RootFolder() == str(folder)
    workspace.ResetWorkspace()
    assert workspace.RootFolder() == str(folder)


def test_current_of_class(net):
    assert "x" not in workspace.C.Workspace.current.blobs
    workspace.RunNetOnce(net)
    np.testing.assert_array_equal(
        workspace.C.Workspace.current.blobs["x"].fetch(), np.ones((2, 3)))


def test_workspace_objects(net):
    ws = workspace.C.Workspace()
    assert ws.nets == {} and ws.blobs == {}
    bound = ws.create_net(net)
    with pytest.raises(RuntimeError):
        ws.create_net(net)
    ws.create_net(net, overwrite=True)
    with pytest.raises(TypeError):
        ws.create_net("...")
    bound.run()
    for what in (net, net.Proto(), net.Proto().op[0], core.Plan(core.ExecutionStep("s", net))):
        ws.run(what)
    with pytest.raises(ValueError):
        ws.run(3)
    np.testing.assert_array_equal(ws.blobs["x"].fetch(), np.ones((2, 3)))
    ws.create_blob("y").feed(np.arange(2), device_option=core.DeviceOption(caffe2_pb2.CPU))
    assert ws.blobs["y"].fetch().tolist() == [0, 1]
    assert workspace.Blobs() == []


def test_threads_feed_and_fetch():
    def work(i):
        for k in range(200):
            workspace.FeedBlob(f"x{i}", np.full(100, k))
            assert (workspace.FetchBlob(f"x{i}") == k).all()
        done.append(i)

    done = []
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(done) == [0, 1, 2, 3]


# ---------------------------------------------------------------- immediate mode

def test_immediate():
    workspace.StartImmediate()
    try:
        assert workspace.IsImmediate()
        folder = workspace._immediate_root_folder
        net = core.Net("net")
        net.ConstantFill([], "x", shape=[2], value=1.0)
        assert workspace.ImmediateBlobs() == ["x"]
        assert workspace.FetchImmediate("x").tolist() == [1, 1]
        assert workspace.Blobs() == []
        workspace.FeedImmediate("x", np.array([2.0, 3.0], np.float32))
        net.Relu("x", "y")
        assert workspace.FetchImmediate("y").tolist() == [2, 3]
    finally:
        workspace.StopImmediate()
    assert not workspace.IsImmediate()
    with pytest.raises(RuntimeError):
        workspace.FetchImmediate("x")
    with pytest.raises(FileNotFoundError):
        open(folder)


# ---------------------------------------------------------------- devices

def test_without_gpu(monkeypatch):
    monkeypatch.setattr(workspace, "has_gpu_support", False)
    assert workspace.NumCudaDevices() == workspace.NumGpuDevices() == 0
    assert workspace.GetCUDAVersion() == workspace.GetCuDNNVersion() == 0
    assert workspace.GetGpuPeerAccessPattern().size == 0
    assert workspace.GetDeviceProperties(0) is None
    assert workspace.GetGPUMemoryInfo() is None
    assert workspace.GpuDeviceType == caffe2_pb2.CUDA


def test_mint_port():
    import socket
    port = workspace._free_port(0)
    with socket.socket() as s:
        s.bind(("", port))
        s.listen()
        assert workspace._free_port(port) not in (0, port)

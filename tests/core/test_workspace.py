"""Workspaces: names, children, switching; inference and serialization through the C surface."""
import numpy as np
import pytest
from caffe2._core.workspace import Workspace

from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace


def test_named_workspaces_are_apart():
    workspace.FeedBlob("x", np.zeros(1))
    workspace.SwitchWorkspace("apart", True)
    assert workspace.CurrentWorkspace() == "apart"
    assert not workspace.HasBlob("x")
    workspace.FeedBlob("y", np.zeros(1))
    workspace.SwitchWorkspace("default")
    assert workspace.HasBlob("x") and not workspace.HasBlob("y")
    assert {"default", "apart"} <= set(workspace.Workspaces())


def test_a_child_sees_its_parent():
    parent = Workspace()
    parent.feed_blob("x", np.ones(2))
    child = Workspace(".", parent)
    assert child.fetch_blob("x").tolist() == [1, 1]
    child.create_local("y")
    assert child.names() == ["x", "y"] and child.local_names() == ["y"] and parent.names() == ["x"]
    child.feed_blob("x", np.zeros(2))
    assert parent.fetch_blob("x").tolist() == [0, 0]
    child.create_local("x").feed(np.full(2, 5.0))
    assert parent.fetch_blob("x").tolist() == [0, 0] and child.fetch_blob("x").tolist() == [5, 5]


def test_a_child_with_forwarded_blobs_sees_nothing_else():
    parent = Workspace()
    parent.feed_blob("x", np.ones(2))
    parent.feed_blob("hidden", np.ones(2))
    child = Workspace(".", parent, {"inner": "x"})
    assert child.names() == ["inner"]
    child.feed_blob("inner", np.zeros(2))
    assert parent.fetch_blob("x").tolist() == [0, 0]
    with pytest.raises(RuntimeError, match="nowhere"):
        Workspace(".", parent, {"inner": "nowhere"})


def test_a_workspace_runs_nets_and_operators():
    ws = Workspace()
    ws.feed_blob("x", np.array([-1, 2], np.float32))
    net = core.Net("n")
    net.Relu("x", "y")
    assert ws.run(net)
    ws.run(core.CreateOperator("Relu", "x", "z"))
    assert ws.fetch_blob("y").tolist() == ws.fetch_blob("z").tolist() == [0, 2]
    assert not workspace.HasBlob("y")
    with pytest.raises(ValueError, match="int"):
        ws.run(1)


def test_predictor():
    init, predict = core.Net("init"), core.Net("predict")
    init.GivenTensorFill([], "w", shape=[2, 3], values=np.arange(6.0))
    init.ConstantFill([], "b", shape=[2], value=1.0)
    predict.AddExternalOutput(predict.FC(["x", "w", "b"], "y"))
    p = workspace.Predictor(init.Proto(), predict.Proto())
    x = np.array([[1, 2, 3]], np.float32)
    want = x @ np.arange(6).reshape(2, 3).T + 1
    assert np.allclose(p.run([x])[0], want)
    assert np.allclose(p.run({"x": 2 * x})[0], 2 * want - 1)
    assert not workspace.HasBlob("w")
    with pytest.raises(RuntimeError, match="nowhere"):
        p.run({"nowhere": x})
    with pytest.raises(RuntimeError, match="takes 3"):
        p.run([x] * 4)


def test_inference_from_map_and_workspace():
    net = core.Net("n")
    net.FC(["x", "w", "b"], "y")
    net.Softmax("y", "p")
    shapes, types = workspace.InferShapesAndTypes([net], {"x": [5, 3], "w": [2, 3], "b": [2]})
    assert shapes["y"] == shapes["p"] == [5, 2]
    assert types["p"] == caffe2_pb2.TensorProto.FLOAT
    for name, shape in (("x", (4, 3)), ("w", (2, 3)), ("b", (2,))):
        workspace.FeedBlob(name, np.zeros(shape, np.float32))
    assert workspace.InferShapesAndTypes([net])[0]["y"] == [4, 2]


def test_what_cannot_be_inferred_is_unknown():
    net = core.Net("n")
    net.Relu("nowhere", "y")
    shapes, _ = workspace.InferShapesAndTypes([net], {})
    assert "y" not in shapes


def test_offline_tensors_have_a_shape():
    workspace.CreateOfflineTensor("t", [4, 5], caffe2_pb2.TensorProto.INT64, core.DeviceOption(0))
    assert workspace.FetchBlob("t").shape == (4, 5)
    assert workspace.GetBlobSizeBytes("t") == 160


def test_devices_of_inputs_and_outputs():
    op = core.CreateOperator("Relu", "x", "y", device_option=core.DeviceOption(caffe2_pb2.CUDA, 1))
    for devices in workspace.C.infer_op_input_output_device(op.SerializeToString()):
        assert [caffe2_pb2.DeviceOption.FromString(d).device_id for d in devices] == [1]

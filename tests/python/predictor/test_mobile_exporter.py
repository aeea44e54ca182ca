"""A trained net as an init net and a predict net."""
import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import brew, model_helper, workspace
from caffe2.python.predictor import mobile_exporter


def test_lenet(tmp_path):
    model = model_helper.ModelHelper(name="lenet", arg_scope={"use_cudnn": False})
    brew.conv(model, "data", "conv1", dim_in=1, dim_out=4, kernel=5)
    brew.max_pool(model, "conv1", "pool1", kernel=2, stride=2)
    brew.fc(model, "pool1", "fc3", dim_in=4 * 4 * 4, dim_out=10)
    brew.relu(model, "fc3", "fc3")
    brew.softmax(model, "fc3", "out")
    workspace.RunNetOnce(model.param_init_net)
    init_net, predict_net = mobile_exporter.Export(workspace, model.net, model.params)
    assert list(predict_net.external_input[:1]) == ["data"]
    assert list(predict_net.external_output) == ["out"]

    data = np.random.rand(2, 1, 12, 12).astype(np.float32)
    workspace.FeedBlob("data", data)
    workspace.RunNetOnce(model.net)
    expected = workspace.FetchBlob("out")

    files = [tmp_path / "init_net.pb", tmp_path / "predict_net.pb"]
    for path, net in zip(files, (init_net, predict_net)):
        path.write_bytes(net.SerializeToString())
    workspace.ResetWorkspace()
    out, = workspace.Predictor(*[p.read_bytes() for p in files]).run([data])
    np.testing.assert_array_equal(out, expected)
    assert workspace.Blobs() == []

    workspace.RunNetOnce(init_net)
    workspace.FeedBlob("data", data)
    workspace.CreateNet(predict_net, True)
    workspace.RunNet(predict_net.name)
    np.testing.assert_array_equal(workspace.FetchBlob("out"), expected)


@pytest.mark.parametrize("array", [
    np.array([[1.5, -2]], np.float32),
    np.array([1.5, -2], np.float64),
    np.array([[1], [-2]], np.int32),
    np.array(2**40, np.int64),
    np.array([True, False]),
    np.array([b"a", b"\xff\0"], dtype=object),
], ids=lambda a: str(a.dtype))
def test_tensors(array):
    net = caffe2_pb2.NetDef()
    mobile_exporter.add_tensor(net, "x", array)
    workspace.RunNetOnce(net)
    x = workspace.FetchBlob("x")
    assert x.dtype == array.dtype and x.shape == array.shape
    np.testing.assert_array_equal(x, array)


def test_tensors_stored_otherwise():
    net = caffe2_pb2.NetDef()
    mobile_exporter.add_tensor(net, "bytes", np.array([[1, 255]], np.uint8))
    mobile_exporter.add_tensor(net, "half", np.array([1.5], np.float16))
    workspace.RunNetOnce(net)
    assert workspace.FetchBlob("bytes").tolist() == [b"\x01\xff"]
    half = workspace.FetchBlob("half")
    assert half.dtype == np.float32 and half.tolist() == [1.5]
    with pytest.raises(TypeError, match="no fill operator"):
        mobile_exporter.add_tensor(net, "x", np.zeros(2, complex))

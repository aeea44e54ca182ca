"""The model helper of the first scripts."""
import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import cnn, core, workspace


def args(op):
    return {a.name: a.i or a.f or a.s or list(a.ints) for a in op.arg}


def test_settings():
    m = cnn.CNNModelHelper(order="NHWC", use_cudnn=False, ws_nbytes_limit=100)
    assert m.name == "CNN"
    assert m.arg_scope == {"order": "NHWC", "use_cudnn": False, "cudnn_exhaustive_search": False,
                           "ws_nbytes_limit": 100}
    with pytest.raises(ValueError, match="NWHC"):
        cnn.CNNModelHelper(order="NWHC")


def test_initializers_and_devices():
    m = cnn.CNNModelHelper()
    assert m.XavierInit == ("XavierFill", {})
    assert m.MSRAInit == ("MSRAFill", {})
    assert m.ZeroInit == ("ConstantFill", {})
    assert m.ConstantInit(2.0) == ("ConstantFill", {"value": 2.0})
    assert m.CPU.device_type == caffe2_pb2.CPU
    assert m.GPU.device_type == caffe2_pb2.CUDA


def test_layers_take_the_settings():
    m = cnn.CNNModelHelper(order="NHWC", use_cudnn=True, cudnn_exhaustive_search=True)
    m.Conv("x", "conv", 3, 4, 3)
    m.MaxPool("conv", "pool", kernel=2, order="NCHW")
    conv, pool = m.net.Proto().op
    assert conv.engine == pool.engine == "CUDNN"
    assert args(conv)["order"] == b"NHWC" and args(conv)["exhaustive_search"] == 1
    assert args(pool)["order"] == b"NCHW"


def test_network():
    m = cnn.CNNModelHelper(name="net", use_cudnn=False)
    m.Conv("x", "conv", 1, 4, 3, weight_init=m.MSRAInit)
    m.SpatialBN("conv", "bn", 4, is_test=True)
    m.Relu("bn", "bn")
    m.AveragePool("bn", "pool", kernel=2, stride=2)
    m.Dropout("pool", "drop", is_test=True)
    m.FC("drop", "fc", 4 * 3 * 3, 5)
    m.Softmax("fc", "softmax")
    m.Accuracy(["softmax", "label"], "accuracy")
    m.Sum(["softmax", "softmax"], "twice")
    m.Transpose("softmax", "transposed")
    m.Concat(["conv", "conv"], "concat")
    m.DepthConcat(["conv", "conv"], "depth")
    workspace.FeedBlob("x", np.random.rand(2, 1, 8, 8).astype(np.float32))
    workspace.FeedBlob("label", np.array([0, 1], np.int32))
    workspace.RunNetOnce(m.param_init_net)
    workspace.RunNetOnce(m.net)
    softmax = workspace.FetchBlob("softmax")
    np.testing.assert_allclose(softmax.sum(axis=1), np.ones(2), rtol=1e-5)
    np.testing.assert_allclose(workspace.FetchBlob("twice"), 2 * softmax)
    np.testing.assert_array_equal(workspace.FetchBlob("transposed"), softmax.T)
    assert workspace.FetchBlob("concat").shape == workspace.FetchBlob("depth").shape == (2, 8, 6, 6)
    assert workspace.FetchBlob("pool").shape == (2, 4, 3, 3)
    accuracy = (softmax.argmax(axis=1) == [0, 1]).mean()
    assert workspace.FetchBlob("accuracy") == np.float32(accuracy)


def test_images_and_videos(monkeypatch):
    monkeypatch.setattr(core, "IsOperator", lambda _: True)  # nets are made, not run
    m = cnn.CNNModelHelper()
    images, label = m.ImageInput("reader", ["data", "label"], is_test=1)
    assert (images, label) == ("data", "label")
    assert [(op.type, list(op.output)) for op in m.net.Proto().op] == [
        ("ImageInput", ["data_nhwc", "label"]), ("NHWC2NCHW", ["data"])]
    m = cnn.CNNModelHelper(order="NHWC")
    m.ImageInput("reader", ["data", "label"], is_test=1)
    m.VideoInput("reader", ["clip", "label"])
    m.PadImage("data", "padded", pad=1)
    assert [op.type for op in m.net.Proto().op] == ["ImageInput", "VideoInput", "PadImage"]
    with pytest.raises(AssertionError, match="is_test"):
        m.ImageInput("reader", ["data", "label"])

"""The introduction that every Caffe2 user has read, block by block."""
import numpy as np
import pytest
from google.protobuf import text_format

from caffe2.proto import caffe2_pb2
from caffe2.python import cnn, core, optimizer, workspace


@pytest.fixture(autouse=True)
def first_net(monkeypatch):
    """Names of nets are unique in a process; here each test makes the first of its name."""
    core.Net._reset_used_names()
    yield
    core.Net._reset_used_names()


@pytest.fixture
def fed():
    data = np.random.rand(16, 100).astype(np.float32)
    label = (np.random.rand(16) * 10).astype(np.int32)
    workspace.FeedBlob("data", data)
    workspace.FeedBlob("label", label)
    return data, label


@pytest.fixture
def model(fed):
    m = cnn.CNNModelHelper(name="my first net")
    fc_1 = m.FC("data", "fc1", dim_in=100, dim_out=10)
    pred = m.Sigmoid(fc_1, "pred")
    m.softmax, m.loss = m.SoftmaxWithLoss([pred, "label"], ["softmax", "loss"])
    return m


def ops(net):
    parsed = text_format.Parse(str(net.Proto()), caffe2_pb2.NetDef())
    assert parsed == net.Proto()
    return [(op.type, list(op.input), list(op.output)) for op in parsed.op]


def expected(data, label):
    """Softmax and loss by numpy."""
    w, b = workspace.FetchBlob("fc1_w"), workspace.FetchBlob("fc1_b")
    pred = 1 / (1 + np.exp(-(data @ w.T + b)))
    e = np.exp(pred - pred.max(axis=1, keepdims=True))
    softmax = e / e.sum(axis=1, keepdims=True)
    return softmax, -np.log(softmax[np.arange(len(label)), label]).mean()


def test_blobs():
    x = np.random.rand(4, 3, 2)
    workspace.FeedBlob("my_x", x)
    x2 = workspace.FetchBlob("my_x")
    assert x2.shape == (4, 3, 2)
    np.testing.assert_array_equal(x, x2)
    assert workspace.Blobs() == ["my_x"]


def test_net_is_text(model):
    assert model.name == "my first net"
    assert model.net.Proto().name == "my first net"
    assert ops(model.net) == [
        ("FC", ["data", "fc1_w", "fc1_b"], ["fc1"]),
        ("Sigmoid", ["fc1"], ["pred"]),
        ("SoftmaxWithLoss", ["pred", "label"], ["softmax", "loss"]),
    ]
    assert list(model.net.Proto().external_input) == ["data", "fc1_w", "fc1_b", "label"]


def test_init_net_is_text(model):
    assert ops(model.param_init_net) == [
        ("XavierFill", [], ["fc1_w"]), ("ConstantFill", [], ["fc1_b"])]
    shapes = [list(a.ints) for op in model.param_init_net.Proto().op for a in op.arg
              if a.name == "shape"]
    assert shapes == [[10, 100], [10]]


def test_run(model):
    workspace.RunNetOnce(model.param_init_net)
    workspace.CreateNet(model.net)
    for _ in range(100):
        data = np.random.rand(16, 100).astype(np.float32)
        label = (np.random.rand(16) * 10).astype(np.int32)
        workspace.FeedBlob("data", data)
        workspace.FeedBlob("label", label)
        workspace.RunNet(model.name, 10)
        softmax, loss = workspace.FetchBlob("softmax"), workspace.FetchBlob("loss")
    assert softmax.shape == (16, 10) and loss.shape == ()
    want_softmax, want_loss = expected(data, label)
    np.testing.assert_allclose(softmax, want_softmax, rtol=1e-5)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)


def test_gradients(model, fed):
    model.AddGradientOperators([model.loss])
    assert [op for op, _, _ in ops(model.net)] == [
        "FC", "Sigmoid", "SoftmaxWithLoss", "ConstantFill", "SoftmaxWithLossGradient",
        "SigmoidGradient", "FCGradient"]
    workspace.RunNetOnce(model.param_init_net)
    workspace.CreateNet(model.net)
    workspace.RunNet(model.name, 10)

    data, label = fed
    softmax, _ = expected(data, label)
    pred = workspace.FetchBlob("pred")
    d_pred = (softmax - np.eye(10, dtype=np.float32)[label]) / 16
    d_fc1 = d_pred * pred * (1 - pred)
    np.testing.assert_allclose(workspace.FetchBlob("fc1_b_grad"), d_fc1.sum(axis=0), atol=1e-6)
    np.testing.assert_allclose(workspace.FetchBlob("fc1_w_grad"), d_fc1.T @ data, atol=1e-6)


@pytest.mark.parametrize("build", [
    lambda m: optimizer.build_sgd(m, base_learning_rate=1.0),
    lambda m: optimizer.build_adam(m, base_learning_rate=0.01),
], ids=["sgd", "adam"])
def test_training(model, build):
    model.AddGradientOperators([model.loss])
    build(model)
    workspace.RunNetOnce(model.param_init_net)
    workspace.CreateNet(model.net)
    workspace.RunNet(model.name)
    first = workspace.FetchBlob("loss")
    workspace.RunNet(model.name, 300)
    assert workspace.FetchBlob("loss") < 0.85 * first

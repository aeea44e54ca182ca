"""The nets of zoo.py compute the same here, optimized or not, in PyTorch and in ONNX Runtime.

Run it with `pytest bench`; it needs the extra `bench`.
"""
import os
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from caffe2.python import workspace
from caffe2.python.transformations import optimizeForInference

sys.path.insert(0, os.path.dirname(__file__))
import zoo


def close(actual, expected, tolerance=1e-3):
    np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=0, atol=tolerance * abs(expected).max())


@pytest.mark.parametrize("name", zoo.NETS)
def test_inference(name):
    workspace.ResetWorkspace()
    net = zoo.NETS[name](2, **({} if name in ("mlp", "lenet") else {"size": 64}))
    net.net.op.remove(net.net.op[-1])           # Softmax hides differences
    net.net.external_output[:] = ["logits"]
    expected = workspace.Predictor(net.init_net(), net.net, optimize=False).run([net.data])[0]
    assert 0.1 < expected.std() < 10
    close(workspace.Predictor(net.init_net(), net.net).run([net.data])[0], expected, 1e-5)
    init, predict = optimizeForInference(net.init_net(), net.net)
    assert len(predict.op) <= len(net.net.op)
    workspace.RunNetOnce(init)
    workspace.FeedBlob("data", net.data)
    workspace.RunNetOnce(predict)
    close(workspace.FetchBlob("logits"), expected, 1e-5)
    with torch.no_grad():
        close(zoo.to_torch(net)(torch.tensor(net.data)).numpy(), expected)
    session = onnxruntime.InferenceSession(zoo.to_onnx(net).SerializeToString())
    close(session.run(None, {"data": net.data})[0], expected)


@pytest.mark.parametrize("name, steps, options", [("resnet50", 1, {"size": 64}), ("mlp", 3, {}), ("lenet", 3, {})])
def test_training(name, steps, options):
    """Losses agree; of ResNet-50 the first, since tiny batches make all later ones depend on the last bits."""
    workspace.ResetWorkspace()
    net = zoo.NETS[name](4, train=True, **options)
    net.feed()
    workspace.CreateNet(net.model.net)
    module = zoo.to_torch(net)
    sgd = torch.optim.SGD(module.parameters(), lr=zoo.LEARNING_RATE)
    x, label = torch.tensor(net.data), torch.tensor(net.label).long()
    losses = []
    for _ in range(3):
        workspace.RunNet(net.model.net)
        sgd.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), label)
        loss.backward()
        sgd.step()
        losses.append((workspace.FetchBlob("loss"), loss.item()))
    ours, theirs = np.transpose(losses)
    np.testing.assert_allclose(ours[:steps], theirs[:steps], rtol=1e-4)
    assert (np.diff(ours) < 0).all() and (np.diff(theirs) < 0).all()

import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace
from caffe2.python.transformations import (
    Transformer,
    fuseConvBN,
    fuseNNPACKConvRelu,
    optimizeForInference,
    optimizeForMKLDNN,
)

F = np.float32
rng = np.random.default_rng(0)
transformer = Transformer()


def types(net):
    return [op.type for op in net.Proto().op]


def conv_net(*relus, kernel=3):
    net = core.Net("net")
    net.Conv(["X", "w", "b"], "Y", kernel=kernel)
    for source, target in relus:
        net.Relu(source, target)
    return net


def feed(channels=2, filters=3, size=5, order="NCHW", dims=2):
    space = [3] * dims
    shape = [filters, channels, *space] if order == "NCHW" else [filters, *space, channels]
    image = [2, channels, *[size] * dims] if order == "NCHW" else [2, *[size] * dims, channels]
    values = {"X": image, "w": shape, "b": [filters], "s": [filters], "bias": [filters], "m": [filters]}
    for name, dims in values.items():
        workspace.FeedBlob(name, rng.standard_normal(dims).astype(F))
    workspace.FeedBlob("v", rng.uniform(0.5, 2, filters).astype(F))


def run(net, *blobs):
    workspace.RunNetOnce(net)
    return [workspace.FetchBlob(b) for b in blobs]


@pytest.fixture(autouse=True)
def fresh():
    workspace.ResetWorkspace()


def test_unknown_transform():
    with pytest.raises(AttributeError, match="Nothing not found"):
        transformer.Nothing(core.Net("net"))
    with pytest.raises(AttributeError, match="Nothing not found; there are AddNNPACK"):
        Transformer.runTransform("Nothing", core.Net("net"))


def test_add_nnpack_leaves_unused_externals():
    net = conv_net(("Y", "Z"))
    net.Proto().external_input.append("unused")
    net.Proto().external_output.append("never")
    transformer.AddNNPACK(net)
    assert [op.engine for op in net.Proto().op] == ["NNPACK", ""]


@pytest.mark.parametrize("relus", [[("Y", "Z")], [("Y", "Y")]])
def test_fuse_conv_relu(relus):
    net = conv_net(*relus)
    output = relus[-1][1]
    feed()
    expected, = run(net, output)
    transformer.AddNNPACK(net)
    fuseNNPACKConvRelu(net)
    op, = net.Proto().op
    assert {a.name: a.s for a in op.arg}["activation"] == b"Relu"
    workspace.FeedBlob(output, np.zeros(1, F))
    np.testing.assert_allclose(run(net, output)[0], expected)


def test_fuse_conv_relu_over_its_own_input():
    net = conv_net(("Y", "X"))
    net.Conv(["X", "w2", "b2"], "Y", kernel=1)
    feed()
    image = workspace.FetchBlob("X")
    workspace.FeedBlob("w2", rng.standard_normal((2, 3, 1, 1)).astype(F))
    workspace.FeedBlob("b2", rng.standard_normal(2).astype(F))
    expected, = run(net, "Y")
    transformer.AddNNPACK(net)
    transformer.FuseNNPACKConvRelu(net)
    assert types(net) == ["ConvFused", "Conv"]
    workspace.FeedBlob("X", image)
    np.testing.assert_allclose(run(net, "Y")[0], expected, rtol=1e-6)


@pytest.mark.parametrize("change", [
    lambda net: net.Relu("Y", "Z2"),                                    # read twice
    lambda net: net.Proto().external_output.append("Y"),                # asked for
])
def test_conv_relu_stays(change):
    net = conv_net(("Y", "Z"))
    change(net)
    transformer.AddNNPACK(net)
    before = types(net)
    transformer.FuseNNPACKConvRelu(net)
    assert types(net) == before


def test_sink_max_pool():
    net = core.Net("net")
    net.MaxPool("X", "Y", kernel=2)
    net.Relu("Y", "Y")
    feed()
    expected, = run(net, "Y")
    transformer.SinkMaxPool(net)
    assert types(net) == ["Relu", "MaxPool"]
    np.testing.assert_array_equal(run(net, "Y")[0], expected)


@pytest.mark.parametrize("order, dims, bias, name", [
    ("NCHW", 2, True, "FuseConvBN"), ("NHWC", 2, True, "FuseConvBN"), ("NCHW", 2, False, "FuseConvBN"),
    ("NCHW", 3, True, "FuseConv3DBN"),
])
def test_fuse_conv_bn(order, dims, bias, name):
    feed(order=order, dims=dims)
    net = core.Net("net")
    net.Conv(["X", "w", "b"] if bias else ["X", "w"], "Y", kernels=[3] * dims, order=order)
    net.SpatialBN(["Y", "s", "bias", "m", "v"], "Z", is_test=1, order=order, epsilon=1e-3)
    before, w = run(net, "Z", "w")
    workspace.FeedBlob("Z", np.zeros(1, F))
    transformer.runTransform(name, net)
    assert types(net) == ["Conv"]
    after, w_after = run(net, "Z", "w")
    np.testing.assert_allclose(after, before, atol=1e-5 * abs(before).max())
    np.testing.assert_array_equal(w_after, w)           # others may use it


def test_batch_norm_of_the_batch_stays():
    feed()
    net = core.Net("net")
    net.Conv(["X", "w", "b"], "Y", kernel=3)
    net.SpatialBN(["Y", "s", "bias", "m", "v"], ["Z", "m", "v", "sm", "sv"])
    fuseConvBN(net)
    assert types(net) == ["Conv", "SpatialBN"]


def test_nothing_to_do_for_mkldnn():
    net = conv_net(("Y", "Z"))
    before = net.Proto().SerializeToString()
    optimizeForMKLDNN(net, training_mode=True)
    assert net.Proto().SerializeToString() == before


def test_optimize_for_inference_takes_nets():
    init, predict = core.Net("init"), conv_net(("Y", "Z"))
    init.UniformFill([], "w", shape=[3, 2, 3, 3], min=-1.0, max=1.0)
    init.ConstantFill([], "b", shape=[3], value=0.5)
    predict.SpatialBN(["Z", "s", "bias", "m", "v"], "U", is_test=1)     # cannot go past Relu
    predict.Proto().external_output.append("U")
    for name in ("s", "bias", "m", "v"):
        init.ConstantFill([], name, shape=[3], value=0.25)
    new_init, new_predict = optimizeForInference(init, predict)
    assert [op.type for op in new_predict.op] == ["ConvFused", "SpatialBN"]
    assert types(predict) == ["Conv", "Relu", "SpatialBN"]
    workspace.RunNetOnce(new_init)
    feed_image = rng.standard_normal((1, 2, 5, 5)).astype(F)
    workspace.FeedBlob("X", feed_image)
    first, = run(new_predict, "U")
    assert first.shape == (1, 3, 3, 3)
    workspace.RunNetOnce(new_init)              # random parameters are fixed
    np.testing.assert_array_equal(run(new_predict, "U")[0], first)


def test_by_the_names_of_the_extension():
    c = workspace.C
    assert [c.transform_exists(n) for n in ("AddNNPACK", b"SinkMaxPool", "FuseConvBN", "Nothing")] == [
        True, True, False, False]
    assert c.workspace_transform_exists("FuseConvBN") and not c.workspace_transform_exists("AddNNPACK")
    net = conv_net(("Y", "Z"))
    data = c.run_transform("AddNNPACK", net.Proto().SerializeToString())
    assert data == c.transform_addNNPACK(net.Proto().SerializeToString())
    assert types(core.Net(caffe2_pb2.NetDef.FromString(c.transform_fuseNNPACKConvRelu(data)))) == ["ConvFused"]
    assert c.transform_optimizeForMKLDNN(data) == data
    assert types(net) == ["Conv", "Relu"]

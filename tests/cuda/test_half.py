"""Tensors of float16: operators on the device against the CPU's on float32, which are rounded once at most."""
import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import brew, core, model_helper, optimizer, workspace
from caffe2.python.modeling.initializers import Initializer, PseudoFP16Initializer

GPU = core.DeviceOption(caffe2_pb2.CUDA, 0)
RNG = np.random.default_rng(0)
HALF_UNIT = 2.0 ** -11


def values(*shape, positive=False):
    """Numbers that halves hold exactly."""
    v = RNG.standard_normal(shape).astype(np.float16).astype(np.float32)
    return np.abs(v) + np.float32(0.5) if positive else v


def compare(type, inputs, outputs=1, kept=(), tolerance=2 * HALF_UNIT, **args):
    """Run an operator on halves on the device, on float32 on the CPU; inputs in `kept` are float32 on both."""
    names = [f"x{i}" for i in range(len(inputs))]
    made = [f"y{i}" for i in range(outputs)]
    op = core.CreateOperator(type, names, made, **args)
    for n, v in zip(names, inputs):
        workspace.FeedBlob(n, v)
    workspace.RunOperatorOnce(op)
    want = [workspace.FetchBlob(n) for n in made]
    workspace.ResetWorkspace()
    for i, (n, v) in enumerate(zip(names, inputs)):
        half = v.dtype == np.float32 and i not in kept
        workspace.FeedBlob(n, v.astype(np.float16) if half else v, GPU)
    op.device_option.CopyFrom(GPU)
    workspace.RunOperatorOnce(op)
    for n, w in zip(made, want):
        got = workspace.FetchBlob(n)
        assert got.shape == w.shape
        assert got.dtype == (np.float16 if w.dtype == np.float32 and (n == made[0] or not kept) else w.dtype)
        np.testing.assert_allclose(got.astype(np.float64), w, rtol=tolerance, atol=tolerance * max(1, np.abs(w).max()),
                                   err_msg=n)
    return want


@pytest.mark.parametrize("type", (
    "Relu ThresholdedRelu Sigmoid Tanh Softplus Softsign Swish Gelu LeakyRelu Elu Selu HardSigmoid").split())
def test_activation(type):
    x = values(3, 37)
    y, = compare(type, [x])
    y = y.astype(np.float16).astype(np.float32)
    dy = values(3, 37)
    inputs = {"Swish": [x, y, dy], "Softsign": [x, dy], "Gelu": [dy, x]}.get(type, [y, dy])
    compare(type + "Gradient", inputs, tolerance=4 * HALF_UNIT)


@pytest.mark.parametrize("type", "Negative Sign Sqr Abs Exp Sin Cos Cube Ceil Floor".split())
def test_unary(type):
    compare(type, [values(5, 7)])


@pytest.mark.parametrize("type", "Sqrt Log Log1p Rsqrt Reciprocal".split())
def test_unary_of_positive(type):
    compare(type, [values(5, 7, positive=True)])


@pytest.mark.parametrize("type", "Add Sub Mul Div".split())
def test_binary(type):
    a, b = values(4, 3, 5), values(3, 1, positive=True)
    c, = compare(type, [a, b])
    c = c.astype(np.float16).astype(np.float32)
    dc = values(4, 3, 5)
    compare(type + "Gradient", [dc, a, b, c] if type == "Div" else [dc, a, b], 2, tolerance=8 * HALF_UNIT)
    compare("LT", [a, values(4, 3, 5)])


def test_sums_of_many():
    a, b, c = (values(3, 9) for _ in range(3))
    for type in ("Sum", "Max", "Min", "Mean"):
        compare(type, [a, b, c])
    compare("WeightedSum", [a, values(1), b, values(1)], kept=(1, 3))
    compare("Scale", [a], scale=0.25)


@pytest.mark.parametrize("type, mean", [("ReduceSum", False), ("ReduceMean", True), ("ReduceMax", True),
                                        ("ReduceMin", True), ("ReduceL2", False)])
def test_reduction(type, mean):
    x = values(3, 5, 7)
    y, = compare(type, [x], axes=[1], keepdims=1)
    compare(type + "Gradient", [values(3, 1, 7), x, y.astype(np.float16).astype(np.float32)], axes=[1])


def test_long_sums_are_floats():
    x = np.full(50000, 1, np.float32)           # halves would stop at 2048
    compare("SumElements", [x], average=1)
    x[20000:] = 0
    compare("SumElements", [x])
    compare("SumElementsGradient", [x, values(1)])
    compare("ReduceSum", [np.full((3000, 4), 1, np.float32)], axes=[0], keepdims=0)


@pytest.mark.parametrize("transposed", ["", "Transposed"])
def test_fully_connected(transposed):
    x, w, b, dy = values(6, 40), values(9, 40), values(9), values(6, 9)
    w = w if not transposed else np.ascontiguousarray(w.T)
    compare("FC" + transposed, [x, w, b])
    compare(f"FC{transposed}Gradient", [x, w, dy], 3)


def test_products():
    compare("MatMul", [values(5, 7), values(9, 7)], trans_b=1)
    compare("BatchMatMul", [values(2, 3, 5, 7), values(2, 3, 7, 4)])


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_convolution(order):
    x, w, b, dy = values(2, 4, 7, 7), values(6, 2, 3, 3), values(6), values(2, 6, 4, 4)
    if order == "NHWC":
        x, w, dy = (np.ascontiguousarray(v.transpose(0, 2, 3, 1)) for v in (x, values(6, 4, 3, 3), dy))
    how = dict(kernel=3, stride=2, pad=1, order=order, group=2 if order == "NCHW" else 1)
    compare("Conv", [x, w, b], **how)
    compare("ConvGradient", [x, w, dy], 3, **how)
    if order == "NCHW":
        how.update(group=1)
        compare("ConvTranspose", [values(2, 4, 3, 3), values(4, 5, 3, 3), values(5)], **how)


@pytest.mark.parametrize("type", ["MaxPool", "AveragePool"])
def test_pooling(type):
    x = values(2, 3, 6, 6)
    how = dict(kernel=3, stride=2, pad=1)
    y, = compare(type, [x], **how)
    y = y.astype(np.float16).astype(np.float32)
    compare(type + "Gradient", [x, y, values(*y.shape)], **how)


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [3, 4])        # runs that are, and are not, read by fours
def test_batch_norm(order, size):
    shape = (5, 6, size, size) if order == "NCHW" else (5, size, size, 6)
    x, scale, bias, mean, var = values(*shape) + 3, values(6), values(6), values(6), values(6, positive=True)
    x = x.astype(np.float16).astype(np.float32)
    kept = (1, 2, 3, 4)
    compare("SpatialBN", [x, scale, bias, mean, var], kept=kept, is_test=1, order=order, tolerance=4 * HALF_UNIT)
    want = compare("SpatialBN", [x, scale, bias, mean, var], 5, kept=kept, order=order, tolerance=4 * HALF_UNIT)
    compare("SpatialBNGradient", [x, scale, values(*shape), want[3], want[4]], 3, kept=(1, 3, 4), order=order)


def test_softmax():
    y, = compare("Softmax", [values(5, 40)])
    compare("SoftmaxGradient", [y.astype(np.float16).astype(np.float32), values(5, 40)])


def test_dropout():
    x = values(1000)
    workspace.FeedBlob("x", x.astype(np.float16), GPU)
    with core.DeviceScope(GPU):
        workspace.RunOperatorOnce(core.CreateOperator("Dropout", ["x"], ["y", "mask"], ratio=0.5))
        workspace.RunOperatorOnce(core.CreateOperator("DropoutGrad", ["x", "mask"], ["dx"], ratio=0.5))
    mask = workspace.FetchBlob("mask")
    assert 300 < mask.sum() < 700
    for name in ("y", "dx"):
        got = workspace.FetchBlob(name)
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, x * 2 * mask)


def test_fills():
    with core.DeviceScope(GPU):
        for op in (core.CreateOperator("Float16ConstantFill", [], ["c"], shape=[7], value=1.5),
                   core.CreateOperator("Float16UniformFill", [], ["u"], shape=[1001], min=-1.0, max=3.0)):
            workspace.RunOperatorOnce(op)
    np.testing.assert_array_equal(workspace.FetchBlob("c"), np.full(7, 1.5, np.float16))
    u = workspace.FetchBlob("u")
    assert u.dtype == np.float16 and -1 <= u.min() < -0.9 and 2.9 < u.max() <= 3 and abs(u.mean() - 1) < 0.2


@pytest.mark.parametrize("nesterov", [0, 1])
def test_momentum(nesterov):
    g, m, w = values(33), values(33), values(33)
    lr = np.array([0.125], np.float32)
    for name, v in zip("gmw", (g, m, w)):
        workspace.FeedBlob(name, v.astype(np.float16), GPU)
    workspace.FeedBlob("lr", lr, GPU)
    workspace.RunOperatorOnce(core.CreateOperator(
        "FP16MomentumSGDUpdate", ["g", "m", "lr", "w"], ["g", "m", "w"], momentum=0.5, weight_decay=0.25,
        nesterov=nesterov, device_option=GPU))
    new_m = 0.5 * m + 0.125 * (g + 0.25 * w)
    step = 1.5 * new_m - 0.5 * m if nesterov else new_m
    for name, want in zip("gmw", (step, new_m, w - step)):
        got = workspace.FetchBlob(name)
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, want, rtol=HALF_UNIT, atol=HALF_UNIT)
    with pytest.raises(RuntimeError, match="FP16MomentumSGDUpdate has no implementation for CPU"):
        workspace.RunOperatorOnce(core.CreateOperator("FP16MomentumSGDUpdate", ["g", "m", "lr", "w"], ["g", "m", "w"]))


def test_mixed_dtypes_are_refused():
    workspace.FeedBlob("x", values(2, 3).astype(np.float16), GPU)
    workspace.FeedBlob("w", values(4, 3), GPU)
    workspace.FeedBlob("b", values(4), GPU)
    with pytest.raises(RuntimeError, match="w.*must be of type float16, but is float"):
        workspace.RunOperatorOnce(core.CreateOperator("FC", ["x", "w", "b"], ["y"], device_option=GPU))


def convnet(device, half, build, **kwargs):
    """Losses of some steps of a small net with a residual block, whose activations are halves or floats."""
    workspace.ResetWorkspace()
    rng = np.random.default_rng(1)
    initializer = PseudoFP16Initializer if half else Initializer
    weights = dict(WeightInitializer=initializer, BiasInitializer=initializer)
    option = core.DeviceOption(device, 0)
    with core.DeviceScope(option):
        m = model_helper.ModelHelper("half" if half else "whole")
        x = m.net.FloatToHalf("data", "half_data") if half else "data"
        x = brew.conv(m, x, "conv1", 3, 8, kernel=3, pad=1, **weights)
        x = brew.relu(m, brew.spatial_bn(m, x, "bn1", 8, is_test=False), "relu1")
        y = brew.conv(m, x, "conv2", 8, 8, kernel=3, pad=1, **weights)
        x = brew.relu(m, brew.sum(m, [x, brew.spatial_bn(m, y, "bn2", 8, is_test=False)], "sum"), "relu2")
        x = brew.average_pool(m, brew.max_pool(m, x, "pool1", kernel=2, stride=2), "pool2", global_pooling=1)
        x = brew.fc(m, x, "fc", 8, 5, **weights)
        x = m.net.HalfToFloat(x, "logits") if half else x
        _, loss = m.net.SoftmaxWithLoss([x, "label"], ["softmax", "loss"])
        m.AddGradientOperators([loss])
        getattr(optimizer, f"build_{build}")(m, base_learning_rate=0.1, momentum=0.9, nesterov=True, **kwargs)
        workspace.RunNetOnce(m.param_init_net)
        for name, shape in (("conv1_w", (8, 3, 3, 3)), ("conv2_w", (8, 8, 3, 3)), ("fc_w", (5, 8))):
            w = rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
            workspace.FeedBlob(name, w.astype(np.float16) if half else w)
            if half:
                workspace.FeedBlob(name + "_fp32", w)
        workspace.FeedBlob("data", rng.standard_normal((8, 3, 8, 8)).astype(np.float32))
        workspace.FeedBlob("label", rng.integers(0, 5, 8).astype(np.int32))
    workspace.CreateNet(m.net)
    losses = []
    for _ in range(8):
        workspace.RunNet(m.net)
        losses.append(float(workspace.FetchBlob("loss")))
    return losses


def test_training_with_float32_copies():
    want = convnet(caffe2_pb2.CPU, False, "sgd")
    got = convnet(caffe2_pb2.CUDA, True, "multi_precision_sgd")
    assert want[-1] < 0.8 * want[0]
    np.testing.assert_allclose(got, want, rtol=0.01)
    assert workspace.FetchBlob("conv1_w").dtype == workspace.FetchBlob("relu2").dtype == np.float16

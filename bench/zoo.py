"""Well-known nets with random weights: for caffe2, and the same nets for PyTorch and ONNX, made from the NetDef.

>>> net = resnet50(batch=1)
>>> net.feed()                          # into the current workspace
>>> module = to_torch(net)              # an nn.Module
>>> model = to_onnx(net)                # an onnx.ModelProto
"""
from dataclasses import dataclass, field

import numpy as np

from caffe2._core.args import Args
from caffe2.proto import caffe2_pb2
from caffe2.python import brew, inference_optimizer, model_helper, optimizer, workspace

CLASSES = 1000
LEARNING_RATE = 0.001


@dataclass
class Zoo:
    """A net, its parameters and an input."""

    model: model_helper.ModelHelper
    train: bool = False
    momentum: float = 0.0
    parameters: dict = field(default_factory=dict)
    data: np.ndarray = None
    label: np.ndarray = None

    def __post_init__(self):
        self.rng = np.random.default_rng(0)

    @property
    def net(self):
        return self.model.net.Proto()

    def init_net(self):
        """A net that fills the parameters."""
        init = caffe2_pb2.NetDef(name=self.net.name + "_init")
        init.op.extend(inference_optimizer.fill(n, v) for n, v in self.parameters.items())
        return init

    def feed(self):
        """Feed parameters and input."""
        for name, value in self.parameters.items():
            workspace.FeedBlob(name, value)
        workspace.RunNetOnce(self.model.param_init_net)
        workspace.FeedBlob("data", self.data)
        if self.label is not None:
            workspace.FeedBlob("label", self.label)

    # ------------------------------------------------------------ layers

    def normal(self, scale, *shape):
        return (self.rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)).astype(np.float32)

    def conv(self, x, name, channels, filters, kernel, stride=1, pad=0, group=1, bias=True, gain=2.0):
        fan_in = channels // group * kernel * kernel
        self.parameters[name + "_w"] = self.normal(
            np.sqrt(gain / fan_in), filters, channels // group, kernel, kernel)
        if bias:
            self.parameters[name + "_b"] = self.normal(0.1, filters)
        return brew.conv(self.model, x, name, channels, filters, kernel=kernel, stride=stride, pad=pad,
                         group=group, no_bias=not bias)

    def bn(self, x, name, channels):
        self.parameters |= {
            name + "_s": self.rng.uniform(0.5, 1.5, channels).astype(np.float32),
            name + "_b": self.normal(0.1, channels), name + "_rm": self.normal(0.1, channels),
            name + "_riv": self.rng.uniform(0.5, 1.5, channels).astype(np.float32),
        }
        return brew.spatial_bn(self.model, x, name, channels, epsilon=1e-5, momentum=0.9, is_test=not self.train)

    def relu(self, x):
        return brew.relu(self.model, x, x)

    def relu6(self, x):
        return self.model.net.Clip(x, x, min=0.0, max=6.0)

    def conv_bn(self, x, name, channels, filters, kernel, stride=1, pad=0, group=1, relu=None):
        x = self.conv(x, name, channels, filters, kernel, stride, pad, group, bias=False, gain=2.0 if relu else 0.2)
        x = self.bn(x, name + "_bn", filters)
        return relu(x) if relu else x

    def conv_relu(self, x, name, *args, **kwargs):
        return self.relu(self.conv(x, name, *args, **kwargs))

    def max_pool(self, x, name, kernel, stride, pad=0):
        return brew.max_pool(self.model, x, name, kernel=kernel, stride=stride, pad=pad)

    def mean_pool(self, x, name):
        return brew.average_pool(self.model, x, name, global_pooling=1)

    def fc(self, x, name, inputs, outputs, gain=1.0):
        self.parameters[name + "_w"] = self.normal(np.sqrt(gain / inputs), outputs, inputs)
        self.parameters[name + "_b"] = self.normal(0.1, outputs)
        return brew.fc(self.model, x, name, inputs, outputs)

    def dropout(self, x, name):
        return brew.dropout(self.model, x, name, ratio=0.5, is_test=not self.train)

    def finish(self, x, classes, *shape):
        """Softmax or, where it is to be trained, loss, gradients and a step of SGD; and the input."""
        self.data = self.normal(1.0, *shape)
        if self.train:
            self.label = self.rng.integers(0, classes, shape[0]).astype(np.int32)
            _, loss = self.model.net.SoftmaxWithLoss([x, "label"], ["softmax", "loss"])
            self.model.AddGradientOperators([loss])
            for name in self.parameters:
                self.model.param_init_net.AddExternalInput(name)
            optimizer.build_sgd(self.model, base_learning_rate=LEARNING_RATE, policy="fixed",
                                momentum=self.momentum)
        else:
            brew.softmax(self.model, x, "softmax")
            del self.net.external_input[:]
            self.net.external_input.extend(["data", *self.parameters])
        self.net.external_output[:] = ["softmax"]
        return self


def _start(name, train=False, momentum=0.0):
    return Zoo(model_helper.ModelHelper(name=name, arg_scope={"order": "NCHW"}, init_params=False), train, momentum)


# ---------------------------------------------------------------- the nets


# Of ResNet-50: (width, blocks) of each stage.
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


def resnet50(batch=1, size=224, train=False, momentum=0.0, stages=STAGES, classes=CLASSES):
    """ResNet-50, the stride in the 3x3 convolutions; or, with other stages, a smaller one of the same blocks."""
    n = _start("resnet50", train, momentum)
    x = n.conv_bn("data", "conv1", 3, 64, 7, 2, 3, relu=n.relu)
    x = n.max_pool(x, "pool1", 3, 2, 1)
    channels = 64
    for stage, (width, blocks) in enumerate(stages, 2):
        for block in range(blocks):
            name = f"res{stage}_{block}"
            stride = 2 if block == 0 and stage > 2 else 1
            y = n.conv_bn(x, name + "_1", channels, width, 1, relu=n.relu)
            y = n.conv_bn(y, name + "_2", width, width, 3, stride, 1, relu=n.relu)
            y = n.conv_bn(y, name + "_3", width, 4 * width, 1)
            if block == 0:
                x = n.conv_bn(x, name + "_0", channels, 4 * width, 1, stride)
            x = n.relu(brew.sum(n.model, [y, x], name))
            channels = 4 * width
    x = n.mean_pool(x, "pool5")
    return n.finish(n.fc(x, "logits", channels, classes), classes, batch, 3, size, size)


def squeezenet(batch=1, size=224):
    """SqueezeNet 1.1."""
    n = _start("squeezenet")

    def fire(x, name, channels, squeeze, expand):
        x = n.conv_relu(x, name + "_squeeze", channels, squeeze, 1)
        parts = [n.conv_relu(x, f"{name}_expand{k}", squeeze, expand, k, pad=k // 2) for k in (1, 3)]
        return brew.concat(n.model, parts, name)

    x = n.conv_relu("data", "conv1", 3, 64, 3, 2)
    x = n.max_pool(x, "pool1", 3, 2)
    x = fire(fire(x, "fire2", 64, 16, 64), "fire3", 128, 16, 64)
    x = n.max_pool(x, "pool3", 3, 2)
    x = fire(fire(x, "fire4", 128, 32, 128), "fire5", 256, 32, 128)
    x = n.max_pool(x, "pool5", 3, 2)
    x = fire(fire(x, "fire6", 256, 48, 192), "fire7", 384, 48, 192)
    x = fire(fire(x, "fire8", 384, 64, 256), "fire9", 512, 64, 256)
    x = n.conv_relu(n.dropout(x, "drop9"), "conv10", 512, CLASSES, 1)
    return n.finish(n.mean_pool(x, "logits"), CLASSES, batch, 3, size, size)


def mobilenet_v2(batch=1, size=224):
    """MobileNet-v2, with depthwise convolutions."""
    n = _start("mobilenet_v2")
    x = n.conv_bn("data", "conv1", 3, 32, 3, 2, 1, relu=n.relu6)
    channels = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for stage, (expand, filters, blocks, first_stride) in enumerate(stages):
        for block in range(blocks):
            name, stride, width = f"block{stage}_{block}", first_stride if block == 0 else 1, channels * expand
            y = n.conv_bn(x, name + "_expand", channels, width, 1, relu=n.relu6) if expand > 1 else x
            y = n.conv_bn(y, name + "_depth", width, width, 3, stride, 1, group=width, relu=n.relu6)
            y = n.conv_bn(y, name + "_project", width, filters, 1)
            x = brew.sum(n.model, [x, y], name) if stride == 1 and channels == filters else y
            channels = filters
    x = n.conv_bn(x, "conv9", channels, 1280, 1, relu=n.relu6)
    return n.finish(n.fc(n.mean_pool(x, "pool9"), "logits", 1280, CLASSES), CLASSES, batch, 3, size, size)


def vgg16(batch=1, size=224):
    """VGG-16."""
    n = _start("vgg16")
    x, channels = "data", 3
    for stage, (filters, convolutions) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for i in range(1, convolutions + 1):
            x = n.conv_relu(x, f"conv{stage}_{i}", channels, filters, 3, pad=1)
            channels = filters
        x = n.max_pool(x, f"pool{stage}", 2, 2)
    x = n.dropout(n.relu(n.fc(x, "fc6", 512 * (size // 32) ** 2, 4096, 2.0)), "drop6")
    x = n.dropout(n.relu(n.fc(x, "fc7", 4096, 4096, 2.0)), "drop7")
    return n.finish(n.fc(x, "logits", 4096, CLASSES), CLASSES, batch, 3, size, size)


_INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32), "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64), "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64), "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128), "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


def inception_v1(batch=1, size=224):
    """Inception-v1, also called GoogLeNet, with local response normalization."""
    n = _start("inception_v1")

    def lrn(x, name):
        return brew.lrn(n.model, x, name, size=5, alpha=1e-4, beta=0.75, bias=1.0)

    def inception(x, name):
        channels, one, three_in, three, five_in, five, pool = _INCEPTIONS[name]
        a = n.conv_relu(x, name + "_1x1", channels, one, 1)
        b = n.conv_relu(x, name + "_3x3_in", channels, three_in, 1)
        b = n.conv_relu(b, name + "_3x3", three_in, three, 3, 1, 1)
        c = n.conv_relu(x, name + "_5x5_in", channels, five_in, 1)
        c = n.conv_relu(c, name + "_5x5", five_in, five, 5, 1, 2)
        d = n.conv_relu(n.max_pool(x, name + "_pool", 3, 1, 1), name + "_pool_proj", channels, pool, 1)
        return brew.concat(n.model, [a, b, c, d], "inception_" + name)

    x = n.max_pool(n.conv_relu("data", "conv1", 3, 64, 7, 2, 3), "pool1", 3, 2, 1)
    x = n.conv_relu(lrn(x, "norm1"), "conv2_in", 64, 64, 1)
    x = lrn(n.conv_relu(x, "conv2", 64, 192, 3, 1, 1), "norm2")
    x = inception(inception(n.max_pool(x, "pool2", 3, 2, 1), "3a"), "3b")
    x = n.max_pool(x, "pool3", 3, 2, 1)
    for name in ("4a", "4b", "4c", "4d", "4e"):
        x = inception(x, name)
    x = inception(inception(n.max_pool(x, "pool4", 3, 2, 1), "5a"), "5b")
    x = n.dropout(n.mean_pool(x, "pool5"), "drop5")
    return n.finish(n.fc(x, "logits", 1024, CLASSES), CLASSES, batch, 3, size, size)


def mlp(batch=128, train=False):
    """784-1024-1024-10, with Relu."""
    n = _start("mlp", train)
    x = n.relu(n.fc("data", "fc1", 784, 1024, 2.0))
    x = n.relu(n.fc(x, "fc2", 1024, 1024, 2.0))
    return n.finish(n.fc(x, "logits", 1024, 10), 10, batch, 784)


def lenet(batch=64, train=False):
    """LeNet of the original's MNIST tutorial."""
    n = _start("lenet", train)
    x = n.max_pool(n.conv("data", "conv1", 1, 20, 5), "pool1", 2, 2)
    x = n.max_pool(n.conv(x, "conv2", 20, 50, 5), "pool2", 2, 2)
    x = n.relu(n.fc(x, "fc3", 800, 500))
    return n.finish(n.fc(x, "logits", 500, 10), 10, batch, 1, 28, 28)


NETS = {f.__name__: f for f in (resnet50, squeezenet, mobilenet_v2, vgg16, inception_v1, mlp, lenet)}


# ---------------------------------------------------------------- the same elsewhere


def _forward(zoo):
    """The operators from the data to the logits, or to the Softmax of a net for inference; with their arguments."""
    for op in zoo.net.op:
        if op.type == "SoftmaxWithLoss":
            return
        yield op, Args(op)


def _window(op, args):
    """(kernel, stride, pad)."""
    return args.int("kernel"), args.int("stride", 1), args.int("pad", 0)


def to_torch(zoo):
    """The net as an nn.Module with the same parameters; it returns the net's output, or the logits in training."""
    import torch
    from torch import nn

    def conv(op, args, w, b=None):
        kernel, stride, pad = _window(op, args)
        group = args.int("group", 1)
        layer = nn.Conv2d(w.shape[1] * group, w.shape[0], kernel, stride, pad, groups=group, bias=b is not None)
        return layer, dict(weight=w) | ({} if b is None else dict(bias=b))

    def fc(op, args, w, b):
        return nn.Sequential(nn.Flatten(), nn.Linear(w.shape[1], w.shape[0])), {"1.weight": w, "1.bias": b}

    def bn(op, args, scale, bias, mean, var):
        layer = nn.BatchNorm2d(len(scale), args.float("epsilon", 1e-5), momentum=1 - args.float("momentum", 0.9))
        return layer, dict(weight=scale, bias=bias, running_mean=mean, running_var=var)

    def pool(layer):
        return lambda op, args: layer(*_window(op, args))

    make = {
        "Conv": conv, "FC": fc, "SpatialBN": bn,
        "Relu": lambda op, args: nn.ReLU(inplace=True),
        "Clip": lambda op, args: nn.Hardtanh(args.float("min"), args.float("max"), inplace=True),
        "MaxPool": pool(nn.MaxPool2d), "AveragePool": lambda op, args: nn.AdaptiveAvgPool2d(1),
        "LRN": lambda op, args: nn.LocalResponseNorm(
            args.int("size"), args.float("alpha"), args.float("beta"), args.float("bias")),
        "Dropout": lambda op, args: nn.Dropout(args.float("ratio"), inplace=True),
        "Softmax": lambda op, args: nn.Sequential(nn.Flatten(), nn.Softmax(1)),
    }

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList()
            self.steps = []                     # (layer or None, inputs, output)
            for op, args in _forward(zoo):
                values = [torch.tensor(zoo.parameters[n]) for n in op.input if n in zoo.parameters]
                inputs = [n for n in op.input if n not in zoo.parameters]
                function = {"Sum": sum_of, "Concat": concat}.get(op.type)
                if function is None:
                    function = make[op.type](op, args, *values)
                    if isinstance(function, tuple):
                        function, state = function
                        function.load_state_dict(state, strict=False)
                    self.layers.append(function)
                self.steps.append((function, inputs, op.output[0]))

        def forward(self, x):
            blobs = {"data": x}
            for function, inputs, output in self.steps:
                blobs[output] = function(*[blobs[n] for n in inputs])
            return blobs[output]

    def sum_of(a, b):
        return a + b

    def concat(*parts):
        return torch.cat(parts, 1)

    return Net().train(zoo.train)


def to_onnx(zoo):
    """The net for inference as an onnx.ModelProto with the same parameters."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    constants = dict(zoo.parameters)
    current = {}                                # blobs that are written in place have several names there

    def window(op, args):
        kernel, stride, pad = _window(op, args)
        return dict(kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    types = {
        "Conv": ("Conv", lambda op, a: window(op, a) | dict(group=a.int("group", 1))),
        "SpatialBN": ("BatchNormalization", lambda op, a: dict(epsilon=a.float("epsilon"))),
        "Relu": ("Relu", lambda op, a: {}), "Sum": ("Add", lambda op, a: {}),
        "MaxPool": ("MaxPool", window), "AveragePool": ("GlobalAveragePool", lambda op, a: {}),
        "Concat": ("Concat", lambda op, a: dict(axis=1)),
        "LRN": ("LRN", lambda op, a: dict(
            size=a.int("size"), alpha=a.float("alpha"), beta=a.float("beta"), bias=a.float("bias"))),
        "Clip": ("Clip", lambda op, a: {}), "FC": ("Gemm", lambda op, a: dict(transB=1)),
        "Softmax": ("Softmax", lambda op, a: dict(axis=1)),
    }
    for i, (op, args) in enumerate(_forward(zoo)):
        inputs = [current.get(n, n) for n in op.input]
        if op.type == "Dropout":
            current[op.output[0]] = inputs[0]
            continue
        output = op.output[0] if op.output[0] not in current and op.output[0] not in op.input else f"{op.output[0]}_{i}"
        if op.type in ("FC", "Softmax"):
            nodes.append(helper.make_node("Flatten", [inputs[0]], [f"flat_{i}"]))
            inputs[0] = f"flat_{i}"
        if op.type == "Clip":
            for name in ("min", "max"):
                constants[f"{name}_{i}"] = np.float32(args.float(name))
                inputs.append(f"{name}_{i}")
        kind, attributes = types[op.type]
        nodes.append(helper.make_node(kind, inputs, [output], **attributes(op, args)))
        current[op.output[0]] = output
    graph = helper.make_graph(
        nodes, zoo.net.name,
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, zoo.data.shape)],
        [helper.make_tensor_value_info(current[n], TensorProto.FLOAT, None) for n in zoo.net.external_output],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

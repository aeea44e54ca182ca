"""Operators in the blocked layout: nets equal the same nets run as task graphs, whose tensors stay plain."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from caffe2._core.blob import Blob
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe2.python import core, workspace

F = np.float32


def random(rng, *shape):
    return rng.standard_normal(shape, dtype=F)


class Chain:
    """A net under construction, and what it is fed."""

    def __init__(self, *shape, seed=0):
        self.rng = np.random.default_rng(seed)
        self.net = core.Net("blocked")
        self.feeds = {"x": random(self.rng, *shape)}
        self.channels = {"x": shape[1]}

    def conv(self, x, y, filters, kernel=3, group=1, bias=True, op="Conv", more=(), **args):
        self.feeds[y + "_w"] = random(self.rng, filters, self.channels[x] // group, kernel, kernel) / kernel
        inputs = [x, y + "_w"]
        if bias:
            self.feeds[y + "_b"] = random(self.rng, filters)
            inputs.append(y + "_b")
        return self.op(op, [*inputs, *more], y, filters, kernel=kernel, group=group, **args)

    def bn(self, x, y):
        names = [y + "_" + s for s in ("scale", "bias", "mean", "var")]
        for name in names:
            self.feeds[name] = np.abs(random(self.rng, self.channels[x])) + F(0.5)
        return self.op("SpatialBN", [x, *names], y, is_test=1, order="NCHW")

    def train_bn(self, x, y):
        self.feeds |= {f"{y}_{s}": random(self.rng, self.channels[x]) for s in ("s", "b", "rm")}
        self.feeds[y + "_riv"] = np.ones(self.channels[x], F)
        return self.op("SpatialBN", [x, *(f"{y}_{s}" for s in ("s", "b", "rm", "riv"))],
                       [y, *(f"{y}_{s}" for s in ("rm", "riv", "sm", "siv"))], is_test=0, epsilon=1e-3, order="NCHW")

    def op(self, op, inputs, output, channels=None, **args):
        inputs = [inputs] if isinstance(inputs, str) else inputs
        outputs = [output] if isinstance(output, str) else output
        getattr(self.net, op)(inputs, outputs, **args)
        self.channels[outputs[0]] = channels or self.channels.get(inputs[0])
        return outputs[0]

    @property
    def written(self):
        return sorted({o for op in self.net.Proto().op for o in op.output})

    def run(self, type, times=1):
        """All blobs after runs of the net as it is, or as a net of that type."""
        workspace.ResetWorkspace()
        for name, value in self.feeds.items():
            workspace.FeedBlob(name, value)
        self.net.Proto().type = type
        workspace.CreateNet(self.net)
        workspace.RunNet(self.net, times)
        return {name: workspace.FetchBlob(name) for name in self.written}

    def check(self, times=2, **scales):
        compare(self.run("simple", times), self.run("dag", times), **scales)


def compare(got, want, rtol=3e-5, **scales):
    """Errors are relative to the largest value of a blob, or of another one, whose errors it has."""
    assert got.keys() == want.keys()
    for name, w in want.items():
        g = got[name]
        assert g.shape == w.shape and g.dtype == w.dtype, name
        scale = np.abs(want[scales.get(name, name)]).max(initial=1)
        assert np.abs(g - w).max(initial=0) <= rtol * scale, name


SIZES = st.integers(1, 18)
CHANNELS = st.sampled_from([1, 3, 16, 17, 24, 32, 50, 64])


@settings(max_examples=60)
@given(
    st.integers(0, 3), CHANNELS, SIZES, SIZES, CHANNELS, CHANNELS, st.integers(1, 5), st.integers(1, 6),
    st.integers(0, 2), st.integers(1, 2),
)
def test_chain(batch, channels, height, width, filters, more, kernel, stride, pad, dilation):
    pad = max(pad, dilation * (kernel - 1) + 1 - min(height, width))
    c = Chain(batch, channels, height, width)
    c.conv("x", "a", filters, kernel, stride=stride, pad=pad, dilation=dilation)
    c.op("Relu", "a", "a")
    c.conv("a", "b", more, 1, bias=False)
    c.bn("b", "n")
    c.conv("a", "c", more, 3, pad=1)
    c.op("Sum", ["n", "c"], "s")
    c.op("Relu", "s", "r")
    c.op("MaxPool", "r", "p", kernel=3, stride=2, pad=1)
    c.op("AveragePool", "p", "q", global_pooling=1)
    c.op("Add", ["r", "c"], "t")
    c.op("Softmax", "t", "plain")
    c.op("Clip", "t", "clipped", min=-0.5, max=6.0)
    c.check(clipped="t", plain="t")


def test_every_family():
    c = Chain(2, 3, 33, 30)
    c.conv("x", "first", 64, 7, stride=2, pad=3)
    c.op("MaxPool", "first", "pool", kernel=3, stride=2, pad=1)
    c.op("LRN", "pool", ["norm", "norm_scale"], size=5, alpha=1e-4, beta=0.75, bias=1.0)
    c.conv("norm", "deep", 64, 3, pad=1, group=64)
    c.conv("norm", "groups", 32, 3, pad=1, group=2)
    c.conv("norm", "odd groups", 30, 3, pad=1, group=2)
    c.op("Concat", ["deep", "groups", "odd groups"], ["joined", "sizes"], 126, order="NCHW")
    c.op("Dropout", "joined", "dropped", is_test=1)
    c.op("Dropout", "dropped", "dropped", is_test=1)
    c.op("Concat", ["odd groups", "deep"], ["uneven", "sizes2"], 94, axis=1)
    c.op("AveragePool", "dropped", "mean", kernel=2, stride=2)
    c.op("AveragePool", "dropped", "mean with border", kernel=3, stride=1, pad=1, count_include_pad=1)
    for i, op in enumerate(("Sub", "Mul", "Max", "Min", "Mean", "Sum")):
        c.op(op, ["deep", "norm"], f"two {i}")
        c.op("Relu", f"two {i}", f"two {i}")
        c.conv(f"two {i}", f"after {i}", 5, 1)
    c.op("LpPool", "uneven", "lp", kernel=2, stride=2)
    c.check()


@pytest.mark.parametrize("shape, filters", [((1, 32, 14, 15), 48), ((2, 64, 20, 17), 33), ((1, 40, 7, 7), 64)])
def test_windows_of_three_by_three(shape, filters):
    c = Chain(*shape)
    c.conv("x", "alone", filters, 3, pad=1)
    c.conv("x", "a", filters, 3, pad=1)
    c.conv("a", "b", filters, 3)
    c.op("MaxPool", "b", "p", kernel=2, stride=2)
    c.check()


def test_winograd_can_be_switched_off(monkeypatch):
    c = Chain(1, 64, 28, 28)
    c.conv("x", "a", 64, 3, pad=1)
    c.conv("x", "b", 64, 3, pad=1, winograd=0)
    c.feeds["b_w"], c.feeds["b_b"] = c.feeds["a_w"], c.feeds["a_b"]
    on = c.run("simple")
    monkeypatch.setenv("CAFFE2_WINOGRAD", "0")
    off = c.run("simple")
    np.testing.assert_array_equal(off["a"], off["b"])
    np.testing.assert_array_equal(off["b"], on["b"])
    compare({"a": on["a"]}, {"a": off["a"]})
    want = c.run("dag")
    assert np.abs(off["a"] - want["a"]).max() <= 3e-6 * np.abs(want["a"]).max()


FUSED = [
    {}, {"relu": 1}, {"low": 0.0, "high": 6.0}, {"relu": 1, "high": 0.5}, {"low": 0.25}, {"high": -0.25},
    {"low": -1.0, "high": 1.0},
]


@pytest.mark.parametrize("args", FUSED, ids=str)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("net_type", ["simple", "dag"])
def test_conv_fused(args, in_place, net_type):
    """The same as Conv, Sum and Clip."""
    c = Chain(2, 19, 9, 10)
    c.conv("x", "a", 20, 3, pad=1)
    c.conv("a", "r", 50, 1)
    c.op("Copy", "r", "residual")
    c.conv("a", "sum", 50, 3, pad=1, op="ConvFused", more=["r"], **args)
    if in_place:
        c.net.Proto().op[-1].output[0] = "r"
    c.conv("a", "no residual", 7, 3, op="ConvFused", **args)
    c.op("MaxPool", "r" if in_place else "sum", "p", kernel=2, stride=2)
    got = c.run(net_type)
    plain = Chain(2, 19, 9, 10)
    plain.conv("x", "a", 20, 3, pad=1)
    plain.feeds |= c.feeds
    plain.channels["residual"] = 50
    plain.op("Conv", ["a", "sum_w", "sum_b"], "s", kernel=3, pad=1)
    plain.op("Conv", ["a", "no residual_w", "no residual_b"], "t", kernel=3)
    plain.feeds["residual"] = got["residual"]
    want = plain.run("dag")
    low, high = args.get("low", -np.inf), args.get("high", np.inf)
    low = max(low, 0) if args.get("relu") else low
    total = want["s"] + got["residual"]
    for y, unlimited in (("r" if in_place else "sum", total), ("no residual", want["t"])):
        np.testing.assert_allclose(
            got[y], np.clip(unlimited, low, high), rtol=0, atol=3e-5 * np.abs(unlimited).max())


@pytest.mark.parametrize("shape", [(2, 50, 9, 8), (2, 50, 9), (1, 50, 10, 11)])
def test_conv_fused_refuses_a_residual_of_another_shape(shape):
    c = Chain(2, 16, 9, 10)
    c.conv("x", "a", 50, 3, pad=1, op="ConvFused", more=["r"])
    c.feeds["r"] = np.zeros(shape, F)
    with pytest.raises(RuntimeError, match="residual must have shape"):
        c.run("simple")


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("reader", ["MaxPool", "Softmax", None])
@pytest.mark.parametrize("net_type", ["simple", "dag"])
@pytest.mark.parametrize("order", [range(5), [3, 0, 4, 2, 1]])
def test_convolutions_write_parts(batch, reader, net_type, order):
    """The same as Concat, whatever way each of them goes."""
    c, joined = Chain(batch, 16, 12, 11), Chain(batch, 16, 12, 11)
    convs = [(16, 1, {}), (32, 3, dict(pad=1)), (16, 3, dict(pad=1, group=16)), (48, 3, dict(pad=1, group=2)),
             (5, 1, {})]
    parts = [filters for filters, *_ in convs]
    for i, (filters, kernel, args) in enumerate(convs):
        c.conv("x", f"y{i}", filters, kernel, op="ConvFused", relu=i % 2, **args)
    joined.feeds |= c.feeds
    for at, i in enumerate(order):
        joined.op("ConvFused", ["x", f"y{i}_w", f"y{i}_b"], "y", kernel=convs[i][1], relu=i % 2, **convs[i][2],
                  parts=parts, part=i, joins=int(at > 0))
    c.op("Concat", [f"y{i}" for i in range(5)], ["y", "sizes"], axis=1)
    for chain in (c, joined):
        chain.op("Copy", "y", "whole") if reader == "Softmax" else chain.op("Relu", "y", "whole")
        chain.op("Relu", "whole", "whole")
        if reader:
            chain.op(reader, "whole", "z", **{"kernel": 3} if reader == "MaxPool" else {})
    got, want = joined.run(net_type, 2), c.run("dag")
    compare(got, {name: want[name] for name in got})


def test_parts_that_do_not_fit():
    c = Chain(1, 16, 6, 6)
    c.conv("x", "y", 16, 1, op="ConvFused", parts=[16, 8])
    c.conv("x", "z", 8, 3, op="ConvFused", parts=[16, 8], part=1, joins=1)
    c.net.Proto().op[1].output[0] = "y"
    with pytest.raises(RuntimeError, match=r"Y, with the parts of others, must have shape \(1, 24, 4, 4\)"):
        c.run("simple")
    c.feeds["y_w"], c.feeds["y_b"] = c.feeds["y_w"][:8], c.feeds["y_b"][:8]
    with pytest.raises(RuntimeError, match="there must be as many filters as its part of Y has channels"):
        c.run("simple")
    for wrong in (dict(parts=[8, 16]), dict(parts=[16, 8], part=2), dict(parts=[16, 8], order="NHWC")):
        c = Chain(1, 16, 6, 6)
        c.conv("x", "y", 16, 1, op="ConvFused", **wrong)
        with pytest.raises(RuntimeError, match="all but the last must be multiples of 16"):
            c.run("simple")


@pytest.mark.parametrize("first", ["Conv", "FC", "Sum", "SpatialBN"])
def test_relu_in_place_is_absorbed(first):
    c = Chain(2, 24, 6, 7)
    if first == "Conv":
        c.conv("x", "y", 20)
    elif first == "FC":
        c.feeds |= {"w": random(c.rng, 9, 24 * 42), "b": random(c.rng, 9)}
        c.op("FC", ["x", "w", "b"], "y")
    elif first == "Sum":
        c.feeds["z"] = random(c.rng, 2, 24, 6, 7)
        c.op("Sum", ["x", "z"], "y")
    else:
        c.bn("x", "y")
    c.op("Relu", "y", "y")
    c.feeds["x"][0, 3, 2, 2] = np.nan
    got, want = c.run("simple"), c.run("dag")
    assert np.isnan(got["y"]).any() and np.nanmin(got["y"]) == 0 < np.nanmax(got["y"])
    np.testing.assert_array_equal(np.isnan(got["y"]), np.isnan(want["y"]))
    np.testing.assert_allclose(got["y"], want["y"], rtol=1e-6, atol=1e-5)
    workspace.ResetWorkspace()
    for name, value in c.feeds.items():
        workspace.FeedBlob(name, value)
    c.net.Proto().type = "simple"
    workspace.CreateNet(c.net)
    assert len(workspace.BenchmarkNet(c.net.Name(), 1, 1, True)) == 3  # the net and both operators
    np.testing.assert_array_equal(workspace.FetchBlob("y"), got["y"])


def test_nothing_else_is_absorbed():
    """Relu that is not in place, of another blob, or after another operator in place."""
    c = Chain(1, 16, 5, 5)
    c.conv("x", "a", 16, 3)
    c.op("Relu", "a", "b")
    c.conv("x", "c", 16, 3)
    c.op("Relu", "b", "b")
    c.conv("x", "d", 16, 3)
    c.op("Tanh", "d", "d")
    c.op("Relu", "d", "d")
    c.conv("x", "e", 16, 3)
    c.op("Relu", "e", "e")
    c.op("Tanh", "e", "e")
    got = c.run("simple")
    assert got["a"].min() < 0 and got["c"].min() < 0 and got["d"].min() == 0 and got["e"].max() <= 1
    compare(got, c.run("dag"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where, winograd", [("a_w", 0), ("b_w", 0), ("b_w", 1), ("b_b", 1), ("x", 0)])
def test_nan_and_inf_go_where_they_go_in_plain_tensors(where, winograd, value):
    """By way of Winograd's algorithm, which is not for filters that hold them, those in images spread further."""
    c = Chain(1, 20, 9, 9)
    c.conv("x", "a", 24, 3, pad=1, winograd=winograd)
    c.op("Relu", "a", "a")
    c.conv("a", "b", 17, 3, pad=1, winograd=winograd)
    c.op("MaxPool", "b", "p", kernel=2, stride=2)
    c.feeds[where].ravel()[3] = value
    got, want = c.run("simple"), c.run("dag")
    for name in got:
        np.testing.assert_array_equal(np.isnan(got[name]), np.isnan(want[name]))
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-4)


def test_weights_may_change_between_runs():
    c = Chain(1, 32, 14, 14)
    c.conv("x", "a", 32, 3, pad=1)
    c.conv("a", "b", 32, 1)
    c.op("Scale", "b_w", "b_w", scale=0.5)      # after its use: each run sees another value
    c.check(times=4)
    c.run("simple")
    new = random(c.rng, 32, 32, 3, 3)
    c.feeds["a_w"] = new
    workspace.FeedBlob("a_w", new)
    workspace.RunNet(c.net)
    a = workspace.FetchBlob("a")
    held = workspace.C.Workspace.current["a_w"].view()
    workspace.RunNet(c.net)
    held[:] = 0
    workspace.RunNet(c.net)
    np.testing.assert_array_equal(
        workspace.FetchBlob("a"), np.broadcast_to(c.feeds["a_b"][:, None, None], (1, 32, 14, 14)))
    compare({"a": a}, {"a": c.run("dag")["a"]})


def test_shapes_may_change_between_runs():
    c = Chain(1, 16, 12, 12)
    c.conv("x", "a", 24, 3, pad=1)
    c.conv("a", "b", 24, 3, pad=1)
    c.op("AveragePool", "b", "p", kernel=2, stride=2)
    shapes = [(1, 16, 12, 12), (3, 16, 5, 9), (0, 16, 5, 9), (1, 16, 2, 2), (2, 16, 30, 31)]
    values = [random(c.rng, *s) for s in shapes]
    results = []
    for net_type in "simple", "dag":
        c.run(net_type)
        results.append([])
        for x in values:
            workspace.FeedBlob("x", x)
            workspace.RunNet(c.net)
            results[-1].append({n: workspace.FetchBlob(n) for n in c.written})
    for got, want in zip(*results, strict=True):
        compare(got, want)


@pytest.mark.parametrize("view", [Blob.view, lambda blob: np.asarray(blob.tensor())], ids=["view", "buffer"])
def test_views_stay_plain(view):
    """A view of a blob that a net writes blocked goes on showing plain values."""
    c = Chain(1, 16, 8, 8)
    c.conv("x", "a", 16, 3, pad=1)
    c.conv("a", "b", 16, 3, pad=1)
    want = c.run("dag")
    c.run("simple")
    held = view(workspace.C.Workspace.current["a"])
    for _ in range(2):
        compare({"a": held}, {"a": want["a"]})
        workspace.RunNet(c.net)
    compare({"a": held}, {"a": want["a"]})
    compare({"a": workspace.FetchBlob("a")}, {"a": want["a"]})


def test_another_net_reads_blocked_tensors():
    c = Chain(1, 16, 8, 8)
    c.conv("x", "a", 24, 3, pad=1)
    c.conv("a", "b", 16, 3, pad=1)
    want = c.run("dag")
    c.run("simple")
    other = core.Net("other")
    other.Tanh("a", "t")
    other.Conv(["a", "b_w"], "again", kernel=3, pad=1)
    workspace.RunNetOnce(other)
    np.testing.assert_allclose(workspace.FetchBlob("t"), np.tanh(want["a"]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        workspace.FetchBlob("again"), want["b"] - c.feeds["b_b"][:, None, None], rtol=1e-3, atol=1e-4)


def test_a_blob_takes_images_of_several_sizes():
    """As blobs that share memory do; where in it they lie depends on size, channels and layout."""
    c = Chain(1, 16, 20, 20)
    shared = core.Net("shared")
    for net, x, y in ((c.net, "{}", "{}"), (shared, "m", "n")):
        net.Conv(["x", "a_w"], x.format("a"), kernel=1)
        net.Conv([x.format("a"), "b_w"], y.format("b"), kernel=3, stride=4, pad=1)
        net.Conv([y.format("b"), "c_w"], x.format("c"), kernel=1)
        net.Relu(x.format("c"), x.format("c"))
        net.Conv([x.format("c"), "d_w"], y.format("d"), kernel=1)
        net.Sigmoid(y.format("d"), x.format("e"))
        net.Copy(x.format("e"), y.format("f"))
    for name, shape in {"a": (16, 16, 1, 1), "b": (32, 16, 3, 3), "c": (80, 32, 1, 1), "d": (16, 80, 1, 1)}.items():
        c.feeds[name + "_w"] = random(c.rng, *shape) / F(np.sqrt(np.prod(shape[1:])))
    want = c.run("dag")
    workspace.CreateNet(shared)
    for _ in range(3):
        workspace.RunNet(shared)
        compare({"e": workspace.FetchBlob("m"), "f": workspace.FetchBlob("n")}, {k: want[k] for k in "ef"})


def test_filters_and_biases_may_be_blocked():
    """An operator that takes blocked images takes blocked filters, too, and what is given for each channel."""
    c = Chain(16, 16, 3, 3)
    c.conv("x", "w", 16, 1)
    c.conv("x", "y", 16, 3, pad=1)
    c.op("Conv", ["y", "w"], "z", kernel=3)
    c.op("AveragePool", "w", "pooled", kernel=3)
    c.op("Mul", ["y", "w"], "product")
    c.check()


@pytest.mark.parametrize("args", [
    {"kernel": 3, "pad": 2000}, {"kernel": 2, "dilation": 5000, "pad": 5000}, {"kernel": 3, "stride": 5000, "pad": 1},
], ids=str)
def test_wide_borders(args):
    c = Chain(1, 16, 5, 5)
    c.conv("x", "a", 16, 1)
    c.conv("a", "b", 2, **args)
    c.op("MaxPool", "b", "p", kernel=2, stride=1, pad=1)
    c.check()


@settings(max_examples=25)
@given(
    st.integers(0, 3), st.sampled_from([3, 16, 24, 33]), st.integers(3, 14), st.integers(3, 14),
    st.sampled_from([16, 20, 32]), st.sampled_from([1, 3, 4]), st.integers(1, 3), st.integers(1, 2), st.booleans(),
)
def test_training_step(batch, channels, height, width, filters, kernel, stride, dilation, bias):
    """Gradients of a residual block: convolutions, batch normalization, sum and Relu, all blocked."""
    c = Chain(batch, channels, height, width)
    span = dilation * (kernel - 1)
    c.conv("x", "a", filters, kernel, stride=stride, pad=(span + 1) // 2 + 1, dilation=dilation, bias=bias)
    c.train_bn("a", "n")
    c.op("Relu", "n", "n")
    c.conv("n", "b", filters, 3, pad=1, bias=bias)
    c.train_bn("b", "m")
    c.op("Sum", ["m", "n"], "s")
    c.op("Relu", "s", "s")
    c.op("MaxPool", "s", "t", kernel=3, stride=2, pad=1)
    c.op("AveragePool", "t", "u", kernel=2, pad=1)
    c.conv("u", "d", 32, 1, bias=bias)
    c.op("AveragePool", "d", "p", global_pooling=1)
    c.feeds["weight"] = random(c.rng, batch, 32, 1, 1)
    c.op("Mul", ["p", "weight"], "q")
    c.net.AddGradientOperators(["q"])
    got, want = c.run("simple"), c.run("dag")
    # what a batch is normalized by may be tiny; gradients then are large, and so are their errors
    inverse = max(want[n].max(initial=1) for n in want if n.endswith("_siv"))
    compare(got, want, rtol=1e-4 * inverse**2)


@settings(max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 15), st.integers(1, 14), st.integers(1, 14), st.sampled_from([3, 16, 24, 33]),
    st.integers(1, 8), st.integers(1, 3), st.integers(1, 2), st.booleans(), st.booleans(),
)
def test_first_layer(batch, channels, height, width, filters, kernel, stride, dilation, bias, image):
    """Gradients of a convolution of plain images with few channels; that of the images may be left out."""
    c = Chain(batch, channels, height, width)
    more = {} if image else {"no_gradient_to_input": 1}
    c.conv("x", "a", filters, kernel, stride=stride, pad=(dilation * (kernel - 1) + 1) // 2 + 1, dilation=dilation,
           bias=bias, **more)
    c.conv("a", "b", 32, 3, pad=1)
    c.net.AddGradientOperators(["b"])
    c.check(times=1)


def test_filters_that_change():
    """Convolution goes on to be right after the first step of training."""
    c = Chain(2, 32, 7, 7)
    c.conv("x", "a", 48, 3, pad=1)
    c.op("Scale", "a_w", "a_w", scale=0.75)
    c.check(times=1)
    c.check(times=4)


def test_two_threads_in_two_workspaces_are_bitwise_equal():
    c = Chain(1, 3, 40, 40)
    c.conv("x", "a", 32, 3, pad=1)
    c.op("Relu", "a", "a")
    c.conv("a", "b", 32, 3, pad=1)
    c.op("Sum", ["a", "b"], "s")
    c.conv("s", "c", 48, 1)
    c.op("MaxPool", "c", "p", kernel=2, stride=2)
    want = c.run("simple")
    spaces = []
    for _ in range(2):
        space = workspace.C.Workspace()
        for name, value in c.feeds.items():
            space.feed_blob(name, value)
        spaces.append((space, space.create_net(c.net)))

    def work(space_and_net):
        space, net = space_and_net
        for _ in range(1500):
            net.run()
            for name in ("a", "s", "p"):
                if not np.array_equal(space.fetch_blob(name), want[name]):
                    return name
        return None

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, spaces)) == [None, None]

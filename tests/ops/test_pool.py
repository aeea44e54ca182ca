"""Pooling and its gradients against windows written out in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2._core.schema import OpSchema, TensorInfo
from caffe2.python import core, workspace
from windows import close, first, last, layouts, run, windows

F = np.float32
ORDERS = st.sampled_from(["NCHW", "NHWC"])


def parts(x, kernels, strides, pads, value=0.0, **_):
    """Values of each window in one axis, at its place: [N, C, places..., taps]."""
    v = windows(x, kernels, strides, pads, value=value)
    return v.reshape(*v.shape[: 2 + len(kernels)], int(np.prod(kernels)))


def pool(kind, x, p=2, count_include_pad=0, **args):
    if kind == "Max":
        return parts(x, value=-np.inf, **args).max(-1)
    if kind == "Lp":
        return (np.abs(parts(x, **args)) ** p).sum(-1) ** (1 / p)
    size = parts(np.ones(x.shape), value=float(count_include_pad), **args).sum(-1)
    return parts(x, **args).sum(-1) / size


def spread(shape, taps, kernels, strides, pads, **_):
    """The transpose of `parts`: what each place gives to each pixel of its window, summed up."""
    index = parts(np.arange(1, 1 + np.prod(shape)).reshape(shape), kernels, strides, pads).astype(int)
    flat = np.zeros(1 + int(np.prod(shape)))
    np.add.at(flat, index.reshape(-1), taps.reshape(-1))
    return flat[1:].reshape(shape)


def gradient(kind, x, dy, p=2, count_include_pad=0, **args):
    x = x.astype(np.float64)
    v, y = parts(x, value=-np.inf if kind == "Max" else 0.0, **args), pool(kind, x, p, count_include_pad, **args)
    if kind == "Max":
        taps = (v == y[..., None]) * dy[..., None]
    elif kind == "Average":
        size = parts(np.ones(x.shape), value=float(count_include_pad), **args).sum(-1)
        taps = np.broadcast_to((dy / size)[..., None], v.shape)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            taps = np.sign(v) * np.abs(v) ** (p - 1) * np.where(y == 0, 0, dy / y ** (p - 1))[..., None]
    return spread(x.shape, taps, **args)


def check(kind, x, args, order, suffix=""):
    to, back = (last, first) if order == "NHWC" else (np.asarray, np.asarray)
    name = kind + "Pool" + suffix
    (y,) = run(name, {"x": to(x)}, ["y"], order=order, **args)
    want = pool(kind, x, **args)
    close(back(y), want)
    if kind == "Max":
        np.testing.assert_array_equal(back(y), want)
    dy = np.random.default_rng(1).standard_normal(want.shape, dtype=F)
    (dx,) = run(name + "Gradient", {"x": to(x), "y": y, "dy": to(dy)}, ["dx"], order=order, **args)
    close(back(dx), gradient(kind, x, dy, **args), scale=20)


@given(layouts(dilation=False, pad_below_kernel=True), ORDERS, st.booleans())
def test_max(layout, order, ties):
    shape, args = layout
    x = np.random.default_rng(0).standard_normal(shape, dtype=F)
    check("Max", np.round(x) if ties else x, args, order)


@given(layouts(dilation=False, pad_below_kernel=True), ORDERS, st.booleans())
def test_average(layout, order, include):
    shape, args = layout
    x = np.random.default_rng(0).standard_normal(shape, dtype=F)
    check("Average", x, dict(args, count_include_pad=int(include)), order)


@given(layouts(dilation=False, pad_below_kernel=True), ORDERS, st.sampled_from([1.0, 2.0, 3.0, 2.5]))
def test_norm(layout, order, p):
    shape, args = layout
    x = np.random.default_rng(0).standard_normal(shape, dtype=F)
    x += np.sign(x) * F(0.1)  # kinks lie at zero
    check("Lp", x, dict(args, p=p), order)


@pytest.mark.parametrize("shape", [(64, 20, 24, 24), (2, 3, 25, 31), (1, 2, 2, 2), (1, 1, 3, 3), (2, 3, 112, 40)])
@pytest.mark.parametrize("kernel, stride, pad", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1)])
def test_common_sizes(shape, kernel, stride, pad):
    x = np.round(np.random.default_rng(0).standard_normal(shape, dtype=F), 1)
    args = dict(kernels=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
    for kind in ("Max", "Average"):
        check(kind, x, args, "NCHW")


def test_pairs_in_volumes():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 7), dtype=F)
    check("Max", x, dict(kernels=[1, 2, 2], strides=[1, 2, 2], pads=[0] * 6), "NCHW")


@pytest.mark.parametrize("suffix, n", [("1D", 1), ("2D", 2), ("3D", 3)])
@pytest.mark.parametrize("kind", ["Max", "Average"])
def test_names_by_dimensions(kind, suffix, n):
    x = np.random.default_rng(0).standard_normal((2, 3, *[5] * n), dtype=F)
    check(kind, x, dict(kernels=[3] * n, strides=[2] * n, pads=[1] * 2 * n), "NCHW", suffix)


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", ["Max", "Average", "Lp"])
@pytest.mark.parametrize("sizes", [(1, 1), (7, 7), (3, 4, 5), (9,)])
def test_global(kind, order, sizes):
    x = np.random.default_rng(0).standard_normal((2, 3, *sizes), dtype=F)
    to = last if order == "NHWC" else np.asarray
    n = len(sizes)
    windows_args = dict(kernels=list(sizes), strides=[1] * n, pads=[0] * 2 * n)
    want = pool(kind, x, **windows_args)
    (y,) = run(kind + "Pool", {"x": to(x)}, ["y"], order=order, global_pooling=1)
    close(y, to(want))
    dy = np.random.default_rng(1).standard_normal(want.shape, dtype=F)
    feeds = {"x": to(x), "y": y, "dy": to(dy)}
    (dx,) = run(kind + "PoolGradient", feeds, ["dx"], order=order, global_pooling=1)
    close(dx, to(gradient(kind, x, dy, **windows_args)), 10)


@pytest.mark.parametrize(
    "size, kernel, stride, pad, out",
    [(6, 3, 2, 0, 3), (7, 3, 2, 0, 3), (5, 2, 2, 1, 3), (6, 2, 3, 1, 3)],
)
def test_rounding_of_caffe(size, kernel, stride, pad, out):
    """The last window may reach beyond the image, but starts inside it."""
    x = np.random.default_rng(0).standard_normal((1, 2, size, size), dtype=F)
    args = dict(kernel=kernel, stride=stride, pad=pad)
    (y,) = run("MaxPool", {"x": x}, ["y"], legacy_pad=3, **args)
    assert y.shape == (1, 2, out, out)
    behind = max(0, (out - 1) * stride + kernel - size - pad)
    same = dict(kernels=[kernel] * 2, strides=[stride] * 2, pads=[pad, pad, behind, behind])
    np.testing.assert_array_equal(y, pool("Max", x, **same)[:, :, :out, :out])


def test_of_equal_maxima_each_receives_the_gradient():
    x = np.array([[1, 1, 0], [1, 0, 2], [0, 2, 2]], F).reshape(1, 1, 3, 3)
    y = np.array([[1, 2], [2, 2]], F).reshape(1, 1, 2, 2)
    dy = np.array([[1, 10], [100, 1000]], F).reshape(1, 1, 2, 2)
    (dx,) = run("MaxPoolGradient", {"x": x, "y": y, "dy": dy}, ["dx"], kernel=2)
    np.testing.assert_array_equal(dx[0, 0], [[1, 1, 0], [1, 0, 1010], [0, 1100, 1000]])


def test_a_window_of_zeros_has_no_slope():
    x = np.zeros((1, 1, 2, 2), F)
    (dx,) = run("LpPoolGradient", {"x": x, "y": x[:, :, :1, :1], "dy": x[:, :, :1, :1] + 1}, ["dx"], kernel=2)
    np.testing.assert_array_equal(dx, x)


def test_gradient_through_a_net():
    workspace.FeedBlob("x", np.arange(16, dtype=F).reshape(1, 1, 4, 4))
    net = core.Net("pooled")
    net.MaxPool("x", "y", kernel=2, stride=2)
    net.ConstantFill([], "one", shape=[1, 1, 2, 2], value=1.0)
    grads = net.AddGradientOperators({"y": "one"})
    workspace.RunNetOnce(net)
    want = np.zeros((4, 4))
    want[1::2, 1::2] = 1
    np.testing.assert_array_equal(workspace.FetchBlob(str(grads["x"]))[0, 0], want)


def test_cost():
    op = core.CreateOperator("AveragePool", ["x"], ["y"], kernel=3, stride=3)
    cost = OpSchema.get("AveragePool").cost(op, [TensorInfo((2, 3, 9, 9))])
    assert cost["flops"] == 9 * 2 * 3 * 9
    op = core.CreateOperator("AveragePool", ["x"], ["y"], global_pooling=1)
    assert OpSchema.get("AveragePool").cost(op, [TensorInfo((2, 3, 9, 5))])["flops"] == 45 * 2 * 3


@pytest.mark.parametrize(
    "args, message",
    [
        (dict(), "must be given"),
        (dict(kernel=3, dilation=2), "dilation"),
        (dict(kernel=2, pad=2), "pads must be smaller"),
        (dict(kernel=9), "does not fit"),
        (dict(kernels=[2]), "3 dimensions"),
        (dict(global_pooling=1, kernel=2, stride=2), "global_pooling"),
    ],
)
@pytest.mark.parametrize("name", ["MaxPool", "AveragePool", "LpPool"])
def test_misfits(name, args, message):
    workspace.FeedBlob("x", np.zeros((1, 2, 4, 4), F))
    with pytest.raises(RuntimeError, match=message):
        workspace.RunOperatorOnce(core.CreateOperator(name, ["x"], ["y"], **args))


def test_misfits_of_gradients():
    for name, shape in (("x", (1, 2, 4, 4)), ("y", (1, 2, 2, 2)), ("dy", (1, 2, 2, 3))):
        workspace.FeedBlob(name, np.zeros(shape, F))
    with pytest.raises(RuntimeError, match=r"dY must have shape \(1, 2, 2, 2\)"):
        workspace.RunOperatorOnce(core.CreateOperator("MaxPoolGradient", ["x", "y", "dy"], ["dx"], kernel=2, stride=2))
    workspace.FeedBlob("x", np.zeros(3, F))
    with pytest.raises(RuntimeError, match="4 dimensions"):
        workspace.RunOperatorOnce(core.CreateOperator("MaxPool", ["x"], ["y"], kernel=2))
    workspace.FeedBlob("x", np.zeros((1, 2, 4, 4), np.int32))
    with pytest.raises(RuntimeError, match="float"):
        workspace.RunOperatorOnce(core.CreateOperator("MaxPool", ["x"], ["y"], kernel=2))

"""Convolution, its transpose and its gradients against windows written out in float64."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2._core.schema import OpSchema, TensorInfo
from caffe2.ops.kernels import dispatch
from caffe2.python import core, workspace
from windows import close, first, last, layouts, run, slope, windows

F = np.float32


def conv(x, w, b, group=1, kernels=(), strides=None, pads=None, dilations=None, **_):
    """[N, M, places...] of images and filters, NCHW."""
    n = w.ndim - 2
    v = windows(x, w.shape[2:], strides or [1] * n, pads or [0] * 2 * n, dilations)
    places, taps = v.shape[2 : 2 + n], int(np.prod(w.shape[2:]))
    v = v.reshape(x.shape[0], group, w.shape[1], int(np.prod(places)), taps)
    y = np.einsum("gmck,ngcok->ngmo", np.asarray(w, np.float64).reshape(group, -1, w.shape[1], taps), v)
    y = y.reshape(x.shape[0], w.shape[0], *places)
    return y if b is None else y + np.asarray(b).reshape(-1, *[1] * n)


def make(rng, shape, filters, args, group=1):
    x = rng.standard_normal((shape[0], shape[1] * group, *shape[2:]), dtype=F)
    w = rng.standard_normal((filters * group, shape[1], *args["kernels"]), dtype=F)
    b = rng.standard_normal(filters * group, dtype=F)
    return x, w, b


def check_all(x, w, b, args, order="NCHW", suffix=""):
    """Conv and its three gradients; gradients along a random direction each."""
    rng = np.random.default_rng(1)
    to, back = (last, first) if order == "NHWC" else (np.asarray, np.asarray)
    want = conv(x, w, b, **args)
    feeds = {"x": to(x), "w": to(w), "b": b}
    (y,) = run("Conv" + suffix, feeds, ["y"], order=order, **args)
    taps = w[0].size
    close(back(y), want, scale=4 * taps**0.5)
    dy = rng.standard_normal(want.shape, dtype=F)
    feeds = {"x": to(x), "w": to(w), "dy": to(dy)}
    dw, db, dx = run("Conv" + suffix + "Gradient", feeds, ["dw", "db", "dx"], order=order, **args)
    scale = 10 * np.sqrt(max(1, dy.size) * taps) * 10
    for got, at, f in (
        (back(dx), x, lambda v: (conv(v, w, b, **args) * dy).sum()),
        (back(dw), w, lambda v: (conv(x, v, b, **args) * dy).sum()),
        (db, b, lambda v: (conv(x, w, v, **args) * dy).sum()),
    ):
        assert got.shape == at.shape
        along = rng.standard_normal(at.shape)
        close((got * along).sum(), slope(f, at.astype(np.float64), along), scale=scale)


@given(layouts(), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["NCHW", "NHWC"]))
def test_conv_and_gradients(layout, filters, group, order):
    shape, args = layout
    rng = np.random.default_rng(0)
    check_all(*make(rng, shape, filters, args, group), dict(args, group=group), order)


# Sizes that the strategies above do not reach: those at which another way of computing is chosen.
SIZES = {
    "lenet": ((3, 1, 28, 28), 20, dict(kernels=[5, 5]), 1),
    "lenet second": ((4, 20, 12, 12), 50, dict(kernels=[5, 5]), 1),
    "same": ((2, 32, 30, 33), 24, dict(kernels=[3, 3], pads=[1] * 4), 1),
    "many filters": ((5, 96, 7, 7), 160, dict(kernels=[3, 3], pads=[1] * 4), 1),
    "pixels": ((3, 40, 9, 11), 70, dict(kernels=[1, 1]), 1),
    "wide": ((1, 3, 60, 61), 16, dict(kernels=[7, 7], pads=[3] * 4, strides=[2, 2]), 1),
    "third step": ((2, 5, 40, 41), 9, dict(kernels=[4, 4], pads=[1, 2, 0, 3], strides=[3, 3]), 1),
    "depthwise": ((2, 1, 21, 37), 1, dict(kernels=[3, 3], pads=[1] * 4), 13),
    "depthwise step": ((2, 1, 21, 38), 1, dict(kernels=[3, 3], pads=[1, 0, 1, 2], strides=[2, 2]), 13),
    "depthwise third step": ((2, 1, 21, 40), 1, dict(kernels=[3, 5], pads=[1] * 4, strides=[2, 3]), 4),
    "depthwise spread": ((2, 1, 21, 38), 1, dict(kernels=[5, 3], pads=[4, 2, 4, 2], dilations=[2, 2]), 7),
    "depthwise volume": ((2, 1, 5, 9, 20), 1, dict(kernels=[2, 3, 3], pads=[1, 0, 2, 0, 1, 1]), 6),
    "groups": ((3, 8, 19, 19), 12, dict(kernels=[3, 3], pads=[1] * 4), 4),
    "volume": ((2, 6, 9, 10, 17), 8, dict(kernels=[3, 2, 3], strides=[1, 2, 1], pads=[1] * 6), 1),
    "spread": ((2, 7, 30, 30), 8, dict(kernels=[3, 3], dilations=[3, 2], pads=[2] * 4), 1),
    "narrow": ((6, 5, 19, 4), 9, dict(kernels=[3, 3], pads=[1] * 4), 1),
    "narrow step": ((6, 5, 19, 7), 9, dict(kernels=[3, 4], strides=[1, 2], pads=[1, 2, 1, 1]), 1),
    "large": ((2, 3, 30, 31), 9, dict(kernels=[11, 11], pads=[5] * 4), 1),
    "large behind": ((2, 3, 30, 31), 9, dict(kernels=[11, 11], pads=[0, 0, 5, 5]), 1),
    "large inside": ((2, 3, 21, 22), 9, dict(kernels=[11, 11], dilations=[1, 2], pads=[0] * 4), 1),
    "sequence": ((3, 16, 300), 32, dict(kernels=[9], strides=[2], pads=[4, 3]), 1),
}


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", SIZES)
def test_sizes(name, order):
    shape, filters, args, group = SIZES[name]
    rng = np.random.default_rng(0)
    check_all(*make(rng, shape, filters, args, group), dict(args, group=group), order)


@pytest.mark.parametrize("isa", dispatch.LEVELS)
def test_instruction_sets(isa):
    """The same in a process that uses another instruction set."""
    if isa not in dispatch.available():
        with pytest.raises(ValueError, match="not available"):
            dispatch.level(isa)
        return
    code = (
        "import test_conv, numpy as np\n"
        "for shape, filters, args, group in test_conv.SIZES.values():\n"
        "    made = test_conv.make(np.random.default_rng(0), shape, filters, args, group)\n"
        "    test_conv.check_all(*made, dict(args, group=group))\n"
    )
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here), *filter(None, sys.path)])
    env = dict(os.environ, CAFFE2_ISA=isa, PYTHONPATH=path)
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=300)


@pytest.mark.parametrize("suffix, n", [("1D", 1), ("2D", 2), ("3D", 3)])
def test_names_by_dimensions(suffix, n):
    args = dict(kernels=[2] * n)
    check_all(*make(np.random.default_rng(0), (2, 3, *[4] * n), 5, args), args, suffix=suffix)


def test_arguments_of_images():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 9, 8), dtype=F), rng.standard_normal((4, 3, 3, 2), dtype=F)
    want = conv(x, w, None, strides=[2, 1], pads=[1, 2, 3, 0], dilations=[1, 2])
    (y,) = run(
        "Conv", {"x": x, "w": w}, ["y"], kernel_h=3, kernel_w=2, stride_h=2, stride_w=1, pad_t=1, pad_l=2, pad_b=3,
        pad_r=0, dilation_h=1, dilation_w=2,
    )  # fmt: skip
    close(y, want, 20)
    w = w[:, :, :2]
    (y,) = run("Conv", {"x": x, "w": w}, ["y"], kernel=2, stride=3, pad=1, engine="CUDNN")
    close(y, conv(x, w, None, strides=[3, 3], pads=[1] * 4), 20)


@pytest.mark.parametrize("size, kernel, stride", [(7, 3, 2), (8, 3, 2), (5, 1, 3), (9, 4, 1), (10, 5, 4)])
def test_legacy_padding(size, kernel, stride):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 2, size, size), dtype=F), rng.standard_normal((3, 2, kernel, kernel), dtype=F)
    (y,) = run("Conv", {"x": x, "w": w}, ["y"], kernel=kernel, stride=stride, legacy_pad=1)
    close(y, conv(x, w, None, strides=[stride] * 2), 20)
    (y,) = run("Conv", {"x": x, "w": w}, ["y"], kernel=kernel, stride=stride, legacy_pad=2)
    assert y.shape[2] == -(-size // stride)
    needed = (y.shape[2] - 1) * stride + kernel - size
    if needed >= 0:
        pads = [needed // 2] * 2 + [needed - needed // 2] * 2
        close(y, conv(x, w, None, strides=[stride] * 2, pads=pads), 20)
    with pytest.raises(RuntimeError, match="legacy_pad"):
        run("Conv", {"x": x, "w": w}, ["y"], kernel=kernel, pad=1, legacy_pad=2)


def test_filters_may_change_between_runs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 6, 6), dtype=F)
    workspace.FeedBlob("x", x)
    workspace.FeedBlob("w", np.zeros((4, 3, 3, 3), F))
    net = core.Net("changing")
    net.Conv(["x", "w"], "y", kernel=3)
    workspace.CreateNet(net)
    for _ in range(3):
        w = rng.standard_normal((4, 3, 3, 3), dtype=F)
        workspace.FeedBlob("w", w)
        workspace.RunNet(net.Name())
        workspace.RunNet(net.Name())
        close(workspace.FetchBlob("y"), conv(x, w, None), 20)
    view = workspace.blobs["w"]
    view[...] = 0
    workspace.FeedBlob("w", np.array(view))
    workspace.RunNet(net.Name())
    assert not workspace.FetchBlob("y").any()
    workspace.RunOperatorOnce(core.CreateOperator("ConstantFill", [], ["w"], shape=[2, 3, 3, 3], value=1.0))
    workspace.RunNet(net.Name())
    close(workspace.FetchBlob("y"), conv(x, np.ones((2, 3, 3, 3)), None), 30)


def test_gradients_that_are_asked_for():
    rng = np.random.default_rng(0)
    args = dict(kernels=[3, 3])
    x, w, b = make(rng, (2, 3, 6, 6), 4, args)
    dy = rng.standard_normal((2, 4, 4, 4), dtype=F)
    feeds = {"x": x, "w": w, "dy": dy}
    dw, db, dx = run("ConvGradient", feeds, ["dw", "db", "dx"], **args)
    for outputs, no_bias, want in (
        (["dw", "db"], 0, [dw, db]),
        (["dw", "dx"], 1, [dw, dx]),
        (["dw"], 1, [dw]),
    ):
        for got, expected in zip(run("ConvGradient", feeds, outputs, no_bias=no_bias, **args), want, strict=True):
            np.testing.assert_array_equal(got, expected)

    net = core.Net("asked")
    net.Conv(["x", "w", "b"], "y", kernel=3, no_gradient_to_input=1)
    workspace.FeedBlob("b", b)
    grads = net.AddGradientOperators(["y"])
    assert "x" not in grads and {"w", "b"} <= set(map(str, grads))


@given(layouts(dilation=False), st.integers(1, 3), st.integers(1, 2), st.data())
def test_conv_transpose(layout, channels, group, data):
    """It is the transpose of Conv: <y, T x> = <Conv y, x>; gradients along random directions."""
    (batch, filters, *sizes), args = layout
    order = data.draw(st.sampled_from(["NCHW", "NHWC"]))
    adjs = [data.draw(st.integers(0, s - 1)) for s in args["strides"]]
    n = len(sizes)
    out = [
        (sizes[i] - 1) * args["strides"][i] + args["kernels"][i] + adjs[i] - args["pads"][i] - args["pads"][n + i]
        for i in range(n)
    ]
    to, back = (last, first) if order == "NHWC" else (np.asarray, np.asarray)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, filters * group, *sizes), dtype=F)
    w = rng.standard_normal((filters * group, channels, *args["kernels"]), dtype=F)
    b = rng.standard_normal(channels * group, dtype=F)
    feeds = {"x": to(x), "w": to(w), "b": b}
    args = dict(args, adjs=adjs, group=group, order=order)
    if min(out) < 1:
        with pytest.raises(RuntimeError, match="pixels"):
            run("ConvTranspose", feeds, ["y"], **args)
        return
    y = back(run("ConvTranspose", feeds, ["y"], **args)[0])
    assert y.shape == (batch, channels * group, *out)
    plain = back(run("ConvTranspose", {"x": to(x), "w": to(w)}, ["y"], **args)[0])
    close(y - plain, np.broadcast_to(b.reshape(-1, *[1] * n), y.shape), 100)

    def transposed(x, w, b, dy):
        """<dy, T x + b>"""
        crop = tuple(slice(s) for s in sizes)
        answer = conv(dy, w, None, **{k: v for k, v in args.items() if k != "adjs"})[(..., *crop)]
        return (answer * x).sum() + (dy * np.asarray(b).reshape(-1, *[1] * n)).sum()

    dy = rng.standard_normal(y.shape, dtype=F)
    scale = 1e-6 + 20 * np.sqrt(max(1, x.size) * w[0].size) * 10
    close((dy * y.astype(np.float64)).sum(), transposed(x, w, b, dy), scale)
    feeds = {"x": to(x), "w": to(w), "dy": to(dy)}
    dw, db, dx = run("ConvTransposeGradient", feeds, ["dw", "db", "dx"], **args)
    for got, at, f in (
        (back(dx), x, lambda v: transposed(v, w, b, dy)),
        (back(dw), w, lambda v: transposed(x, v, b, dy)),
        (db, b, lambda v: transposed(x, w, v, dy)),
    ):
        along = rng.standard_normal(at.shape)
        close((got * along).sum(), slope(f, at.astype(np.float64), along), scale)


@given(layouts(), st.sampled_from(["NCHW", "NHWC"]))
def test_im2col_and_col2im(layout, order):
    shape, args = layout
    x = np.random.default_rng(0).standard_normal(shape, dtype=F)
    n = len(shape) - 2
    v = windows(x, args["kernels"], args["strides"], args["pads"], args["dilations"])
    places, taps = v.shape[2 : 2 + n], shape[1] * int(np.prod(args["kernels"]))
    to = last if order == "NHWC" else np.asarray
    (columns,) = run("Im2Col", {"x": to(x)}, ["columns"], order=order, **args)
    if order == "NCHW":
        want = np.moveaxis(v, range(2, 2 + n), range(-n, 0)).reshape(shape[0], taps, *places)
    else:
        want = np.moveaxis(v, 1, -1).reshape(shape[0], *places, taps)
    np.testing.assert_array_equal(columns, want.astype(F))
    entries = np.random.default_rng(1).standard_normal(columns.shape, dtype=F)
    (y,) = run("Col2Im", {"columns": entries, "z": to(x)}, ["y"], order=order, **args)
    close((y * to(x)).sum(dtype=np.float64), (entries * columns.astype(np.float64)).sum(), 100 * max(1, x.size))


def test_cost():
    op = core.CreateOperator("Conv", ["x", "w", "b"], ["y"], kernel=3, pad=1)
    cost = OpSchema.get("Conv").cost(op, [TensorInfo((2, 3, 8, 8)), TensorInfo((4, 3, 3, 3)), TensorInfo((4,))])
    assert cost["flops"] == 2 * 2 * 4 * 8 * 8 * 3 * 9
    assert cost["bytes_written"] == 4 * 2 * 4 * 8 * 8
    assert cost["params_bytes"] == 4 * (4 * 3 * 9 + 4)


def test_unknown_shapes_stay_unknown():
    op = core.CreateOperator("Conv", ["x", "w"], ["y"], kernel=3)
    for x, w in ((TensorInfo(), TensorInfo((4, 3, 3, 3))), (TensorInfo((1, 3, 8, 8)), TensorInfo())):
        assert OpSchema.get("Conv").infer(op, [x, w]) == [TensorInfo()]


@pytest.mark.parametrize(
    "shapes, args, message",
    [
        ([(1, 2, 3, 3), (4, 2, 5, 5)], dict(kernel=5), "does not fit"),
        ([(1, 2, 3, 3), (4, 2, 2, 2)], dict(kernel=2, dilation=3), "does not fit"),
        ([(1, 2, 3, 3), (4, 3, 3, 3)], dict(kernel=3), r"\(filters, 2, 3, 3\)"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernel=3, group=2), r"\(filters, 1, 3, 3\)"),
        ([(1, 3, 3, 3), (4, 1, 3, 3)], dict(kernel=3, group=2), "3 channels cannot be divided into 2 groups"),
        ([(1, 2, 3, 3), (3, 1, 3, 3)], dict(kernel=3, group=2), "3 filters cannot be divided into 2 groups"),
        ([(1, 2, 3), (4, 2, 3, 3)], dict(kernel=3), "4 dimensions"),
        ([(1, 2, 3, 3), (4, 2, 3, 3), (3,)], dict(kernel=3), "4 elements"),
        ([(1, 2, 3, 3), (4, 2, 3, 3), (4, 1)], dict(kernel=3), "1 dimensions"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(), "must be given"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernel=0), "kernel must be at least 1"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernel=3, stride=0), "stride must be at least 1"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernel=3, pad=-1), "pad must be at least 0"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernel=3, pad=2**40), "2\\*\\*31"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernel=3, pad=2**31 - 1), "too long"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernel=3, pad=2**29), "more than 2\\*\\*31 - 1"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernel=3, dilation=2**31 - 1), "does not fit"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernels=[3]), "dimensions"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernels=[3, 3], strides=[1]), "stride needs 2 values"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernels=[3] * 4), "one to three axes"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernel=3, order="CHWN"), "order"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernel=3, group=0), "group"),
        ([(1, 2, 3, 3), (4, 2, 3, 3)], dict(kernel=3, legacy_pad=7), "legacy_pad"),
    ],
)
def test_misfits(shapes, args, message):
    names = ["x", "w", "b"][: len(shapes)]
    for name, shape in zip(names, shapes):
        workspace.FeedBlob(name, np.zeros(shape, F))
    with pytest.raises(RuntimeError, match=message):
        workspace.RunOperatorOnce(core.CreateOperator("Conv", names, ["y"], **args))


def test_misfits_of_gradients():
    for name, shape in (("x", (1, 2, 5, 5)), ("w", (4, 2, 3, 3)), ("dy", (1, 4, 3, 4))):
        workspace.FeedBlob(name, np.zeros(shape, F))
    with pytest.raises(RuntimeError, match=r"\(1, 4, 3, 3\)"):
        workspace.RunOperatorOnce(core.CreateOperator("ConvGradient", ["x", "w", "dy"], ["dw", "db"], kernel=3))
    with pytest.raises(RuntimeError, match="no_bias"):
        workspace.RunOperatorOnce(
            core.CreateOperator("ConvGradient", ["x", "w", "dy"], ["dw", "db", "dx"], kernel=3, no_bias=1)
        )
    workspace.FeedBlob("x", np.zeros((1, 2, 5, 5), np.float64))
    with pytest.raises(RuntimeError, match="float"):
        workspace.RunOperatorOnce(core.CreateOperator("Conv", ["x", "w"], ["y"], kernel=3))
    workspace.FeedBlob("x", np.zeros((1, 3, 5, 5), F))
    with pytest.raises(RuntimeError, match="as many filters"):
        workspace.RunOperatorOnce(core.CreateOperator("ConvTranspose", ["x", "w"], ["y"], kernel=3))


def test_inputs_that_change_between_runs():
    """What was checked in one run is checked again where something is another in the next."""
    rng = np.random.default_rng(0)
    good = {"x": rng.standard_normal((1, 16, 5, 5)), "w": rng.standard_normal((32, 16, 3, 3)),
            "b": rng.standard_normal(32)}
    good = {name: value.astype(np.float32) for name, value in good.items()}
    workspace.ResetWorkspace()
    for name, value in good.items():
        workspace.FeedBlob(name, value)
    net = core.Net("net")
    net.Conv(["x", "w", "b"], "y", kernel=3)
    workspace.CreateNet(net)

    def run(name, value):
        workspace.FeedBlob(name, value)
        workspace.RunNet(net)
        return workspace.FetchBlob("y")

    first = run("x", good["x"])
    for name, value, message in [
        ("w", good["w"][:16], "must have 16 elements"), ("w", good["w"][:, :8], "filter must have shape"),
        ("w", good["w"].astype(np.float64), "must be of type float"), ("b", good["b"][:31], "must have 32 elements"),
        ("b", good["b"][None], "must have 1 dimensions"), ("x", good["x"][:, :8], "filter must have shape"),
        ("x", good["x"][0], "must have 4 dimensions"), ("x", good["x"].astype(np.float64), "must be of type float"),
        ("x", good["x"][..., :2], "does not fit"),
    ]:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=message):
                run(name, value)
        np.testing.assert_array_equal(run(name, good[name]), first)
    np.testing.assert_allclose(run("b", good["b"] + 1), first + 1, rtol=0, atol=1e-5)
    assert run("x", good["x"][..., :4]).shape == (1, 32, 3, 2)
    workspace.FeedBlob("b", good["b"][:16])
    assert run("w", good["w"][:16]).shape == (1, 16, 3, 2)

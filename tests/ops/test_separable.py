"""SeparableConv against its two convolutions, which other tests hold against float64, run one after the other."""

import numpy as np
import pytest
from caffe2._core.workspace import current
from caffe2.ops.separable import both, join
from hypothesis import given
from hypothesis import strategies as st

from caffe2._core import threads
from caffe2._core.schema import OpSchema, TensorInfo
from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace

F = np.float32


def fused(inputs, output, **args):
    return core.CreateOperator("ConvFused", inputs, [output], **args)


def feeds_of(rng, n, channels, size, filters, kernel, after=1):
    shapes = {"x": (n, channels, *size), "dw": (channels, 1, kernel, kernel), "db": (channels,),
              "w": (filters, channels, after, after), "b": (filters,), "unit": (channels, 1, 1, 1)}
    feeds = {name: rng.standard_normal(shape, dtype=F) for name, shape in shapes.items()}
    return feeds | {"unit": np.ones_like(feeds["unit"])}


def between_blocked(ops, unit):
    """Operators from z to y between others that hand on, and take, blocked images."""
    return caffe2_pb2.NetDef(name="net", op=[
        core.CreateOperator("Conv", ["x", "unit"], ["z"], kernel=1, group=len(unit)), *ops,
        core.CreateOperator("MaxPool", ["y"], ["p"], kernel=1)])


def merged():
    """Whether answers of the depthwise convolution of the net that ran last were made where they are read."""
    return current().nets["net"].operators[1].merged


def run(ops, feeds, times=1):
    """The blob y after so many runs."""
    workspace.ResetWorkspace()
    for name, value in feeds.items():
        workspace.FeedBlob(name, value)
    workspace.CreateNet(between_blocked(ops, feeds["unit"]))
    workspace.RunNet("net", times)
    return workspace.FetchBlob("y")


def close(got, want):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * (1 + np.nanmax(np.abs(want), initial=0)))


def two(depthwise, after, residual=()):
    return [fused(["z", "dw", "db"], "d", **depthwise), fused(["d", "w", "b", *residual], "y", **after)]


@given(n=st.integers(0, 3), channels=st.integers(1, 40), size=st.tuples(st.integers(1, 15), st.integers(1, 15)),
       filters=st.integers(0, 40), kernel=st.integers(1, 5), stride=st.integers(1, 3), pad=st.integers(0, 2),
       dilation=st.integers(1, 2), bounds=st.sampled_from([{}, {"relu": 1}, {"low": 0.0, "high": 1.0}, {"low": 0.5}]),
       relu=st.booleans(), seed=st.integers(0, 99))
def test_is_two_convolutions(n, channels, size, filters, kernel, stride, pad, dilation, bounds, relu, seed):
    if min(size) + 2 * pad < dilation * (kernel - 1) + 1:
        return
    feeds = feeds_of(np.random.default_rng(seed), n, channels, size, filters, kernel)
    depthwise = {"kernel": kernel, "stride": stride, "pad": pad, "dilation": dilation, "group": channels, **bounds}
    ops = two(depthwise, {"kernel": 1, "relu": int(relu)})
    want, got = run(ops, feeds), run([join(*ops)], feeds, 2)
    close(got, want)
    assert merged() == (n > 0 and filters > 0 and channels > 1 and bounds.get("low", 0) == 0)
    assert list(both(join(*ops))[0].arg) == list(ops[0].arg)
    assert list(both(join(*ops))[1].arg) == list(ops[1].arg)


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("in_place", [False, True])
def test_residual(in_place, nth):
    feeds = feeds_of(np.random.default_rng(1), 1, 48, (7, 9), 20, 3)
    feeds["r" if not in_place else "y"] = np.random.default_rng(2).standard_normal((1, 20, 7, 9), dtype=F)
    ops = two({"kernel": 3, "pad": 1, "group": 48}, {"kernel": 1}, ["y" if in_place else "r"])
    before = threads.get_num_threads()
    threads.set_num_threads(nth)
    try:
        want, got = run(ops, feeds), run([join(*ops)], feeds)
        close(got, want)
        assert merged()
    finally:
        threads.set_num_threads(before)


def test_other_convolutions():
    """Not of one filter a channel; of more than one pixel; without bounds that blocked images need."""
    feeds = feeds_of(np.random.default_rng(1), 2, 32, (8, 8), 24, 3, after=3)
    feeds["dw"] = feeds["w"][:16, :, :1].repeat(3, 2)
    feeds["db"] = feeds["db"][:16]
    feeds["w"] = feeds["w"][:, :16]
    ops = two({"kernel": 3, "relu": 1}, {"kernel": 3, "pad": 1, "low": 0.5})
    close(run([join(*ops)], feeds), run(ops, feeds))


def test_writes_a_part():
    feeds = feeds_of(np.random.default_rng(1), 2, 32, (8, 8), 16, 3)
    depthwise = {"kernel": 3, "pad": 1, "group": 32}
    first, second = two(depthwise, {"kernel": 1, "parts": [16, 32], "part": 0})
    other = fused(["x", "one", "o"], "y", kernel=1, parts=[16, 32], part=1, joins=1)
    feeds |= {"one": np.eye(32, dtype=F)[:, :, None, None], "o": np.zeros(32, F)}
    y = run([join(first, second), other], feeds)
    assert y.shape == (2, 48, 8, 8)
    close(y[:, :16], run(two(depthwise, {"kernel": 1}), feeds))
    close(y[:, 16:], feeds["x"])


def test_changes_between_runs():
    """Filters with and without NaN, images of several sizes, plain and blocked, in one operator."""
    rng = np.random.default_rng(3)
    feeds = feeds_of(rng, 1, 40, (6, 6), 24, 3)
    ops = two({"kernel": 3, "pad": 1, "group": 40}, {"kernel": 1})
    want = caffe2_pb2.NetDef(name="want", op=[fused(["x", "dw", "db"], "d", kernel=3, pad=1, group=40),
                                              fused(["d", "w", "b"], "want", kernel=1)])
    workspace.ResetWorkspace()
    for name, value in feeds.items():
        workspace.FeedBlob(name, value)
    workspace.CreateNet(between_blocked([join(*ops)], feeds["unit"]))
    workspace.CreateNet(want)
    spoiled = feeds["dw"].copy()
    spoiled[7, 0, 1, 1] = np.nan
    for dw, n, size in ((0, 2, 6), (1, 2, 6), (1, 1, 9), (0, 1, 12), (0, 3, 3), (1, 1, 20), (0, 1, 20), (0, 0, 7),
                        (1, 2, 5)):
        workspace.FeedBlob("dw", spoiled if dw else feeds["dw"])
        workspace.FeedBlob("x", rng.standard_normal((n, 40, size, size + 1), dtype=F))
        for _ in range(2):
            workspace.RunNet("net")
        workspace.RunNet("want")
        assert merged() == (n > 0 and not dw)
        y, expected = workspace.FetchBlob("y"), workspace.FetchBlob("want")
        np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
        assert np.isnan(y).any() == (dw and n > 0)
        close(np.nan_to_num(y), np.nan_to_num(expected))


@pytest.mark.parametrize("args", [{"group": 32}, {"group": 32, "pad": 1}, {"pad": 1}, {}])
def test_not_finite_in_other_convolutions(args):
    """Filters of 3x3 pixels, for which neither Winograd's algorithm nor another depthwise convolution will do."""
    feeds = feeds_of(np.random.default_rng(4), 1, 32, (9, 9), 32, 3, after=3)
    feeds["w"] = feeds["w"][:, :32 // args.get("group", 1)].copy()
    feeds["w"][3, 0, 1, 1] = np.nan
    ops = two({"kernel": 3, "pad": 1, "group": 32}, {"kernel": 3, **args})
    want, got = run(ops, feeds), run([join(*ops)], feeds)
    assert not merged()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert np.isnan(got).any() and np.isfinite(got).any()
    close(np.nan_to_num(got), np.nan_to_num(want))


@pytest.mark.parametrize("spoiled", ["w", "x", "db"])
def test_not_finite(spoiled):
    feeds = feeds_of(np.random.default_rng(4), 1, 32, (9, 9), 16, 3)
    feeds[spoiled].reshape(-1)[[0, 9]] = np.nan, np.inf
    ops = two({"kernel": 3, "pad": 1, "group": 32, "relu": 1}, {"kernel": 1, "relu": 1})
    got, want = run([join(*ops)], feeds), run(ops, feeds)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(want))


@pytest.mark.parametrize("name, shape, message", [
    ("dw", (31, 1, 3, 3), r"filter must have shape|cannot be divided"),
    ("db", (33,), r"db\) must have 32 elements"),
    ("w", (16, 31, 1, 1), r"filter must have shape \(filters, 32, 1, 1\)"),
    ("b", (17,), r"b\) must have 16 elements"),
    ("x", (1, 32, 2, 9), r"a window of 3 pixels .* does not fit"),
])
def test_bad_input(name, shape, message):
    feeds = feeds_of(np.random.default_rng(5), 1, 32, (9, 9), 16, 3)
    feeds[name] = np.zeros(shape, F)
    op = join(*two({"kernel": 3, "group": 32}, {"kernel": 1}))
    with pytest.raises(RuntimeError, match=message) as e:
        run([op], feeds)
    assert "SeparableConv(z float" in str(e.value)


@pytest.mark.parametrize("pad", [2**29, 2**30])
def test_absurd_sizes(pad):
    """What lies between would not fit any memory, though the answers do."""
    feeds = feeds_of(np.random.default_rng(6), 1, 32, (9, 9), 16, 1)
    op = join(*two({"kernel": 1, "pad": pad, "group": 32}, {"kernel": 1, "stride": 2**30}))
    with pytest.raises(RuntimeError, match="SeparableConv.*z float"):
        run([op], feeds)


def test_shape_and_cost():
    feeds = feeds_of(np.random.default_rng(7), 2, 32, (9, 8), 20, 3)
    op = join(*two({"kernel": 3, "stride": 2, "group": 32}, {"kernel": 1, "relu": 1}))
    infos = [TensorInfo(feeds[name].shape) for name in ("x", "dw", "db", "w", "b")]
    schema = OpSchema.get("SeparableConv")
    assert [tuple(info.shape) for info in schema.infer(op, infos)] == [(2, 20, 4, 3)]
    pixels = 2 * 4 * 3
    cost = schema.cost(op, infos)
    assert cost["flops"] == 2 * pixels * (32 * 9 + 20 * 32)
    assert cost["params_bytes"] == 4 * (32 * 9 + 32 + 20 * 32 + 20)


def test_it_has_no_gradient():
    op = join(*two({"kernel": 3, "group": 32}, {"kernel": 1}))
    with pytest.raises(Exception, match="SeparableConv"):
        core.GradientRegistry.GetGradientForOp(op, ["dy"])

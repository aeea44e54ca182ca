"""Locally connected layers against windows written out in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.python import core, workspace
from windows import close, first, last, layouts, run, slope, windows

F = np.float32


def lc(x, w, b, group, kernels, strides, pads, dilations, **_):
    """[N, M, places...] of images and filters [places..., M, C / group, kernel...], NCHW."""
    v = windows(x, kernels, strides, pads, dilations)
    n = len(kernels)
    places, taps, c = v.shape[2 : 2 + n], int(np.prod(kernels)), x.shape[1] // group
    count, m = int(np.prod(places)), w.shape[n] // group
    v = v.reshape(x.shape[0], group, c, count, taps)
    y = np.einsum("ogmck,ngcok->ngmo", np.asarray(w, np.float64).reshape(count, group, m, c, taps), v)
    y = y.reshape(x.shape[0], group * m, *places)
    return y + np.moveaxis(np.asarray(b), -1, 0)


@given(layouts(), st.integers(1, 3), st.integers(1, 2), st.sampled_from(["NCHW", "NHWC"]))
def test_lc_and_gradients(layout, filters, group, order):
    (batch, channels, *sizes), args = layout
    n = len(sizes)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, channels * group, *sizes), dtype=F)
    places = windows(x, **args).shape[2 : 2 + n]
    w = rng.standard_normal((*places, filters * group, channels, *args["kernels"]), dtype=F)
    b = rng.standard_normal((*places, filters * group), dtype=F)
    args = dict(args, group=group)
    if order == "NHWC":
        to, back = last, first
        to_w = lambda v: np.ascontiguousarray(np.moveaxis(v, n + 1, -1))  # noqa: E731
        back_w = lambda v: np.ascontiguousarray(np.moveaxis(v, -1, n + 1))  # noqa: E731
    else:
        to = back = to_w = back_w = np.asarray
    (y,) = run("LC", {"x": to(x), "w": to_w(w), "b": b}, ["y"], order=order, **args)
    want = lc(x, w, b, **args)
    close(back(y), want, 100)
    dy = rng.standard_normal(want.shape, dtype=F)
    feeds = {"x": to(x), "w": to_w(w), "dy": to(dy)}
    dw, db, dx = run("LCGradient", feeds, ["dw", "db", "dx"], order=order, **args)
    scale = 1 + 100 * np.sqrt(max(1, w.size))
    for got, at, f in (
        (back(dx), x, lambda v: (lc(v, w, b, **args) * dy).sum()),
        (back_w(dw), w, lambda v: (lc(x, v, b, **args) * dy).sum()),
        (db, b, lambda v: (lc(x, w, v, **args) * dy).sum()),
    ):
        along = rng.standard_normal(at.shape)
        close((got * along).sum(), slope(f, at.astype(np.float64), along), scale)


@pytest.mark.parametrize("outputs, no_bias", [(["dw", "db"], 0), (["dw", "dx"], 1), (["dw"], 1)])
def test_gradients_that_are_asked_for(outputs, no_bias):
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((2, 2, 3, 3), dtype=F),
        "w": rng.standard_normal((2, 2, 3, 2, 2, 2), dtype=F),
        "dy": rng.standard_normal((2, 3, 2, 2), dtype=F),
    }
    all_three = dict(zip(["dw", "db", "dx"], run("LC2DGradient", feeds, ["dw", "db", "dx"], kernels=[2, 2])))
    for name, got in zip(outputs, run("LC2DGradient", feeds, outputs, kernels=[2, 2], no_bias=no_bias)):
        np.testing.assert_array_equal(got, all_three[name])


@pytest.mark.parametrize(
    "w, b, message",
    [
        ((2, 2, 3, 2, 2, 2), (2, 2, 4), "value for each place"),
        ((2, 3, 3, 2, 2, 2), (2, 3, 3), r"\(2, 2, filters, 2, 2, 2\)"),
        ((2, 2, 3, 2, 2), (2, 2, 3), r"\(2, 2, filters, 2, 2, 2\)"),
    ],
)
def test_misfits(w, b, message):
    for name, shape in (("x", (1, 2, 3, 3)), ("w", w), ("b", b)):
        workspace.FeedBlob(name, np.zeros(shape, F))
    with pytest.raises(RuntimeError, match=message):
        workspace.RunOperatorOnce(core.CreateOperator("LC", ["x", "w", "b"], ["y"], kernel=2))

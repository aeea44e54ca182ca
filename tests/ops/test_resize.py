"""Resized, padded and shuffled images against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.python import core, workspace
from windows import close, first, last, run, slope

F = np.float32
SCALES = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])


def images(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=F)


def check_gradient(name, x, forward, order="NCHW", inputs=(), given_x=True, **args):
    """The operator and its gradient against a function of NCHW images that is linear."""
    to, back = (last, first) if order == "NHWC" else (np.asarray, np.asarray)
    more = {f"more{i}": v for i, v in enumerate(inputs)}
    for n, v in {"x": to(x), **more}.items():
        workspace.FeedBlob(n, v)
    workspace.RunOperatorOnce(core.CreateOperator(name, ["x", *more], ["y"], order=order, **args))
    y = workspace.FetchBlob("y")
    want = forward(x.astype(np.float64))
    close(back(y), want)
    dy = images(want.shape, 1)
    feeds = {"dy": to(dy), **({"x": to(x)} if given_x else {}), **more}
    (dx,) = run(name + "Gradient", feeds, ["dx"], order=order, **args)
    assert dx.shape == to(x).shape
    along = np.random.default_rng(2).standard_normal(x.shape)
    want = slope(lambda v: (forward(v) * dy).sum(), x.astype(np.float64), along)
    close((back(dx) * along).sum(), want, scale=100 * np.sqrt(max(1, dy.size)))


def nearest(scales):
    def forward(x):
        for axis, s in zip(range(x.ndim - len(scales), x.ndim), scales):
            n = x.shape[axis]
            at = np.minimum((np.arange(int(n * s)) / s).astype(int), n - 1)
            x = np.take(x, at, axis)
        return x

    return forward


def bilinear(scales):
    def forward(x):
        for axis, s in zip((2, 3), scales):
            n, out = x.shape[axis], int(x.shape[axis] * s)
            at = np.linspace(0, n - 1, out) if out > 1 else np.zeros(out)
            low = np.minimum(at.astype(int), n - 1)
            shape = [1] * 4
            shape[axis] = out
            part = (at - low).reshape(shape)
            x = (1 - part) * np.take(x, low, axis) + part * np.take(x, np.minimum(low + 1, n - 1), axis)
        return x

    return forward


SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(4, 9), st.integers(4, 9))


@given(SHAPES, SCALES, SCALES, st.sampled_from(["NCHW", "NHWC"]), st.booleans())
def test_nearest(shape, height, width, order, as_input):
    if as_input:
        args = dict(inputs=[np.array([height, width], F)])
    else:
        args = dict(height_scale=height, width_scale=width)
    check_gradient("ResizeNearest", images(shape), nearest([height, width]), order, **args)


@given(SHAPES, SCALES, SCALES, SCALES)
def test_nearest_in_volumes(shape, frames, height, width):
    x = images((*shape[:2], 4, *shape[2:]))
    args = dict(temporal_scale=frames, height_scale=height, width_scale=width)
    check_gradient("ResizeNearest3D", x, nearest([frames, height, width]), **args)


@given(SHAPES, SCALES, SCALES, st.booleans())
def test_bilinear(shape, height, width, as_input):
    if as_input:
        args = dict(inputs=[np.array([height, width], F)])
    else:
        args = dict(height_scale=height, width_scale=width)
    check_gradient("UpsampleBilinear", images(shape), bilinear([height, width]), **args)


@given(SHAPES, st.tuples(*[st.integers(0, 3)] * 4), st.sampled_from(["constant", "reflect", "edge"]),
       st.sampled_from(["NCHW", "NHWC"]))  # fmt: skip
def test_padding(shape, pads, mode, order):
    top, left, bottom, right = pads
    around = [(0, 0), (0, 0), (top, bottom), (left, right)]
    args = dict(pad_t=top, pad_l=left, pad_b=bottom, pad_r=right, mode=mode)
    x = images(shape)
    check_gradient("PadImage", x, lambda v: np.pad(v, around, mode), order, given_x=False, **args)
    if mode == "constant" and order == "NCHW":
        (y,) = run("PadImage", {"x": x}, ["y"], value=2.5, **args)
        np.testing.assert_array_equal(y, np.pad(x, around, constant_values=2.5))


def test_negative_padding_cuts_off():
    x = images((1, 2, 5, 6))
    check_gradient("PadImage", x, lambda v: v[:, :, 1:-1, 2:], given_x=False, pads=[-1, -2, -1, 0])


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape, group", [((2, 6, 3, 4), 2), ((2, 6, 3, 4), 3), ((0, 4, 2, 2), 2), ((3, 8), 4)])
def test_channel_shuffle(shape, group, order):
    n, c = shape[:2]

    def forward(v):
        return v.reshape(n, group, c // group, -1).swapaxes(1, 2).reshape(shape) if v.size else v

    check_gradient("ChannelShuffle", images(shape), forward, order, given_x=False, group=group)


@pytest.mark.parametrize(
    "name, shape, args, message",
    [
        ("ResizeNearest", (1, 2, 3), {}, "4 dimensions"),
        ("ResizeNearest", (1, 2, 3, 3), dict(width_scale=0.0), "width_scale must be positive"),
        ("ResizeNearest", (1, 2, 3, 3), dict(width_scale=9e8, height_scale=9e8), "2\\*\\*31"),
        ("ResizeNearest", (1, 2, 0, 3), dict(order="CHWN"), "order"),
        ("UpsampleBilinear", (1, 2, 3, 3), dict(order="NHWC"), "NCHW"),
        ("PadImage", (1, 2, 3, 3), dict(pad=3, mode="reflect"), "reflected"),
        ("PadImage", (1, 2, 3, 3), dict(pads=[-2, 0, -2, 0]), "no image"),
        ("PadImage", (1, 2, 3, 3), dict(pad=1, mode="wrap"), "mode"),
        ("ChannelShuffle", (1, 5, 3, 3), dict(group=2), "5 channels"),
    ],
)
def test_misfits(name, shape, args, message):
    workspace.FeedBlob("x", np.zeros(shape, F))
    with pytest.raises(RuntimeError, match=message):
        workspace.RunOperatorOnce(core.CreateOperator(name, ["x"], ["y"], **args))

"""Convolution and pooling of blocked images at every instruction set, against numpy in float64."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.ops.kernels import dispatch

LEVELS = dispatch.available()
MOST = np.finfo(np.float32).max
ERROR = {"winograd_4": 5e-6, "winograd_2": 2e-6}  # of the largest result; the others: 1e-6, and more for long sums


def each_level(test):
    return pytest.mark.parametrize("name", LEVELS)(test)


def each_direct_way(test):
    """At every level, and by tiles at the level that has them."""
    ways = [(name, "direct") for name in LEVELS] + [("amx", "tiles")] * ("amx" in LEVELS)
    return pytest.mark.parametrize("name, way", ways)(test)


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def windows(x, kernel, stride, pad, dilation, out, border=0.0):
    """Every window of NCHW images: [batch][channel][kh][kw][oh][ow]."""
    reach = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(out, stride, kernel, dilation, strict=True)]
    ends = [(p, max(0, r - p - n)) for p, r, n in zip(pad, reach, x.shape[2:], strict=True)]
    x = np.pad(x.astype(float), [(0, 0), (0, 0), *ends], constant_values=border)
    result = np.empty((*x.shape[:2], *kernel, *out))
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            top, left = r * dilation[0], s * dilation[1]
            result[:, :, r, s] = x[:, :, top:top + (out[0] - 1) * stride[0] + 1:stride[0],
                                   left:left + (out[1] - 1) * stride[1] + 1:stride[1]]
    return result


def add_windows(columns, size, stride, pad, dilation):
    """The transpose of `windows`: every window added onto its pixels."""
    kernel, out = columns.shape[2:4], columns.shape[4:]
    reach = [max(i + p, (o - 1) * s + (k - 1) * d + 1)
             for i, p, o, s, k, d in zip(size, pad, out, stride, kernel, dilation, strict=True)]
    x = np.zeros((*columns.shape[:2], *reach))
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            top, left = r * dilation[0], s * dilation[1]
            x[:, :, top:top + (out[0] - 1) * stride[0] + 1:stride[0],
              left:left + (out[1] - 1) * stride[1] + 1:stride[1]] += columns[:, :, r, s]
    return x[:, :, pad[0]:pad[0] + size[0], pad[1]:pad[1] + size[1]]


def convolve(x, w, group, *window):
    n, channels = x.shape[:2]
    a = windows(x, w.shape[2:], *window)
    a = a.reshape(n, group, channels // group, *a.shape[2:])
    return np.einsum("ngcrshw,gmcrs->ngmhw", a, w.reshape(group, -1, *w.shape[1:]).astype(float),
                     optimize=True).reshape(n, w.shape[0], *a.shape[-2:])


def blocked(x):
    """NCHW to the blocked layout, by numpy, at a 64-byte boundary."""
    n, channels, h, w = x.shape
    y = np.zeros((n, -(-channels // 16) * 16, h, w), np.float32)
    y[:, :channels] = x
    z = dispatch.aligned((n, y.shape[1] // 16, h, w, 16))
    z[...] = y.reshape(n, y.shape[1] // 16, 16, h, w).transpose(0, 1, 3, 4, 2)
    return z


def plain(y, channels):
    """The blocked layout to NCHW; lanes beyond the last channel must be 0."""
    n, blocks, h, w, _ = y.shape
    y = y.transpose(0, 1, 4, 2, 3).reshape(n, blocks * 16, h, w)
    assert (y[:, channels:] == 0).all()
    return y[:, :channels]


def add_residual(rng, add, expected):
    """Where `add` says so, adds images to what is expected; the arguments that do the same, in place or not."""
    if "+" not in add:
        return {}
    residual = random(rng, *expected.shape)
    expected += residual
    residual = blocked(residual)
    return {"residual": residual, "y": residual} if "y" in add else {"residual": residual}


def check(level, way, n, channels, size, filters, kernel, stride, pad, tail, dilation, group=1, nth=1,
          add="", seed=0):
    out = [(i + p + t - (k - 1) * d - 1) // s + 1
           for i, p, t, k, d, s in zip(size, pad, tail, kernel, dilation, stride, strict=True)]
    if min(out) < 1:
        return
    rng = np.random.default_rng(seed)
    x, w = random(rng, n, channels, *size), random(rng, filters, channels // group, *kernel)
    expected = convolve(x, w, group, stride, pad, dilation, out)
    arguments = {}
    if "b" in add:
        arguments["bias"] = random(rng, filters)
        expected += arguments["bias"][:, None, None]
    arguments |= add_residual(rng, add, expected)
    error = np.abs(expected).max(initial=0) + 1
    if "0" in add:
        arguments |= {"low": 0.0, "high": 6.0} if "6" in add else {"low": 0.0}
        expected = expected.clip(0, arguments.get("high"))
    f = dispatch.Conv16(level, w, out, group, stride, pad, dilation, way, way == "first", size=size)
    y = plain(f(x if way == "first" else blocked(x), nth=nth, **arguments), filters)
    assert y.shape == expected.shape
    error *= ERROR.get(f.way, 1e-6 + 1e-7 * w[0].size**0.5)
    np.testing.assert_allclose(y, expected, rtol=0, atol=error)


small = st.integers(1, 5)
pairs = st.tuples(small, small)
sides = st.tuples(st.integers(1, 18), st.integers(1, 30))
added = st.sampled_from(["", "b", "+", "b+0", "b06", "+y0"])


@each_direct_way
@given(n=st.integers(0, 3), channels=st.integers(1, 70), size=sides, filters=st.integers(1, 70), kernel=pairs,
       stride=pairs, pad=pairs, tail=pairs, dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
       nth=st.integers(1, 3), add=added)
def test_direct(name, way, **case):
    check(dispatch.level(name), way, **case)


# 1x1, also with more tiles than a band holds, and divided by rows though filters exceed the image; 3x3; strides larger
# than kernels; one pixel; maps that take two rows at once; bands of images; bands of rows; half a panel.
@pytest.mark.parametrize("channels, size, filters, kernel, stride, pad, n", [
    (64, (28, 28), 96, 1, 1, 0, 2), (70, (14, 15), 390, 1, 1, 0, 1), (16, (7, 7), 80, 1, 1, 0, 9),
    (40, (1, 1), 33, 1, 1, 0, 2),
    (700, (30, 13), 48, 1, 1, 0, 1), (32, (14, 14), 64, 3, 1, 1, 2), (48, (7, 7), 48, 3, 1, 1, 5),
    (1024, (7, 7), 32, 3, 1, 1, 3), (64, (60, 60), 32, 3, 1, 1, 1), (256, (28, 28), 16, 3, 2, 1, 1),
    (64, (15, 15), 128, 1, 2, 0, 2), (20, (9, 9), 24, 2, 5, 0, 2), (3, (1, 1), 10, 3, 1, 1, 2),
    (17, (33, 29), 65, 5, 1, 2, 1), (8, (3, 3), 8, 1, 4, 0, 1), (16, (4, 4), 16, 3, 1, 4, 1),
])
@pytest.mark.parametrize("nth", [1, 2])
@each_direct_way
def test_direct_ways(name, way, channels, size, filters, kernel, stride, pad, n, nth):
    check(dispatch.level(name), way, n, channels, size, filters, (kernel,) * 2, (stride,) * 2, (pad,) * 2,
          (pad,) * 2, (1, 1), nth=nth, add="b+0", seed=channels)


@pytest.mark.parametrize("channels, size, filters, kernel, pad", [
    (66, (7, 7), 21, 1, 0), (240, (14, 14), 48, 1, 0), (320, (3, 5), 106, 1, 0), (96, (1, 1), 10, 1, 0),
    (130, (9, 5), 43, 3, 1),
])
@each_direct_way
def test_many_channels_to_few(name, way, channels, size, filters, kernel, pad):
    """Tiles sum over halves of the channels: the same bits, whether one thread has both or each has one."""
    level = dispatch.level(name)
    case = dict(kernel=(kernel, kernel), stride=(1, 1), pad=(pad, pad), tail=(pad, pad), dilation=(1, 1))
    for nth in (1, 2, 4):
        for add in ("", "b06", "+y0"):
            check(level, way, 1, channels, size, filters, nth=nth, add=add, **case)
    rng = np.random.default_rng(channels)
    x, w = random(rng, 1, channels, *size), random(rng, filters, channels, kernel, kernel)
    x[0, [1, -1], 0, 0], w[2, 3, 0, 0] = [np.inf, MOST], np.nan
    expected = convolve(x, w, 1, (1, 1), (pad, pad), (1, 1), size)
    f = dispatch.Conv16(level, w, size, 1, (1, 1), (pad, pad), (1, 1), way, size=size)
    one = f(blocked(x), nth=1)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(np.isfinite(plain(one, filters)), np.abs(expected) <= MOST)
    for nth in (2, 3, 4, 5, 8):
        np.testing.assert_array_equal(f(blocked(x), nth=nth), one)


@each_direct_way
@given(n=st.integers(1, 2), group=st.integers(2, 4), depth=st.integers(1, 2), width=st.integers(1, 3), size=sides,
       kernel=pairs, stride=pairs, pad=pairs, nth=st.integers(1, 2), add=added)
def test_groups(name, way, group, depth, width, **case):
    check(dispatch.level(name), way, channels=16 * group * depth, filters=16 * group * width, group=group,
          tail=case["pad"], dilation=(1, 1), **case)


@each_level
@given(n=st.integers(0, 2), channels=st.integers(1, 6), size=st.tuples(st.integers(1, 40), st.integers(1, 60)),
       filters=st.integers(1, 70), kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)), stride=pairs,
       pad=pairs, tail=pairs, dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)), nth=st.integers(1, 3),
       add=added)
def test_first(name, **case):
    check(dispatch.level(name), "first", **case)


@each_level
@given(n=st.integers(0, 2), channels=st.integers(1, 50), size=sides, kernel=pairs, stride=pairs, pad=pairs,
       tail=pairs, dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)), nth=st.integers(1, 3), add=added)
def test_depthwise(name, channels, **case):
    check(dispatch.level(name), "depthwise", channels=channels, filters=channels, group=channels, **case)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (14, 14), (35, 35), (20, 57)])
@each_level
def test_depthwise_3x3(name, size, stride):
    check(dispatch.level(name), "depthwise", 2, 40, size, 40, (3, 3), (stride,) * 2, (1, 1), (1, 1), (1, 1), 40, 2,
          "b06")


winograd = pytest.mark.parametrize("way, stride", [("winograd_4", 1), ("winograd_2", 1), ("winograd_4", 2)])


@winograd
@each_level
@given(n=st.integers(0, 3), channels=st.integers(1, 70), size=sides, filters=st.integers(1, 70),
       pad=st.tuples(st.integers(0, 3), st.integers(0, 3)), tail=st.tuples(st.integers(0, 3), st.integers(0, 3)),
       nth=st.integers(1, 3), add=added)
def test_winograd(name, way, stride, **case):
    check(dispatch.level(name), way, kernel=(3, 3), stride=(stride,) * 2, dilation=(1, 1), **case)


# One block of tiles shared by threads, several blocks each on its own, blocks across images.
@pytest.mark.parametrize("n, channels, size, filters", [
    (1, 128, (14, 14), 64), (5, 64, (7, 9), 80), (1, 32, (60, 62), 48), (3, 48, (33, 18), 32),
])
@winograd
@pytest.mark.parametrize("nth", [1, 2])
@each_level
def test_winograd_ways(name, way, stride, n, channels, size, filters, nth):
    check(dispatch.level(name), way, n, channels, size, filters, (3, 3), (stride,) * 2, (1, 1), (1, 1), (1, 1),
          nth=nth, add="b+0", seed=channels)


@winograd
@each_level
@pytest.mark.parametrize("low", range(4))
@pytest.mark.parametrize("narrow", range(4))
def test_winograd_borders(name, way, stride, low, narrow):
    """The last tiles along each axis have fewer pixels, of which the whole ones may be none."""
    for whole in 0, 4:
        out = whole + low, 8 - whole + narrow
        if min(out) > 0:
            size = [(o - 1) * stride + 1 for o in out]
            check(dispatch.level(name), way, 2, 20, size, 40, (3, 3), (stride,) * 2, (1, 1), (1, 1), (1, 1), nth=2,
                  add="b+0", seed=low)


# ---------------------------------------------------------------- gradients


def check_gradients(level, n, channels, size, filters, kernel, stride, pad, tail, dilation, group=1, nth=1,
                    winograd=True, layout=blocked):
    out = [(i + p + t - (k - 1) * d - 1) // s + 1
           for i, p, t, k, d, s in zip(size, pad, tail, kernel, dilation, stride, strict=True)]
    if min(out) < 1:
        return
    rng = np.random.default_rng(n)
    x, w = random(rng, n, channels, *size), random(rng, filters, channels // group, *kernel)
    dy = random(rng, n, filters, *out)
    case = (layout(x), w, blocked(dy), group, stride, pad, dilation)
    dx = level.image_gradient(*case, winograd, nth)
    a = windows(x, kernel, stride, pad, dilation, out)
    a = a.reshape(n, group, channels // group, *a.shape[2:])
    d = dy.reshape(n, group, filters // group, *out).astype(float)
    if group == 1 or channels // group >= 16:
        expected = np.einsum("ngcrshw,ngmhw->gmcrs", a, d, optimize=True).reshape(w.shape)
        dw = level.filter_gradient(*case, nth)
        np.testing.assert_allclose(dw, expected, rtol=0, atol=1e-5 * (np.abs(expected).max() + 1))
    f = w.reshape(group, filters // group, *w.shape[1:]).astype(float)
    columns = np.einsum("gmcrs,ngmhw->ngcrshw", f, d, optimize=True)
    expected = add_windows(columns.reshape(n, channels, *kernel, *out), size, stride, pad, dilation)
    atol = 1e-5 * (np.abs(expected).max(initial=0) + 1)
    np.testing.assert_allclose(plain(dx, channels) if layout is blocked else dx, expected, rtol=0, atol=atol)


@each_level
@given(n=st.integers(0, 3), channels=st.integers(1, 70), size=sides, filters=st.integers(1, 70), kernel=pairs,
       stride=pairs, pad=pairs, tail=pairs, nth=st.integers(1, 3), winograd=st.booleans())
def test_gradients(name, **case):
    check_gradients(dispatch.level(name), dilation=(1, 1), **case)


@each_level
@given(n=st.integers(0, 3), channels=st.integers(1, 17), size=sides, filters=st.integers(1, 70), kernel=pairs,
       stride=pairs, pad=pairs, tail=pairs, dilation=pairs, nth=st.integers(1, 3))
def test_gradients_of_plain_images(name, **case):
    check_gradients(dispatch.level(name), layout=np.ascontiguousarray, **case)


@pytest.mark.parametrize("channels, size, filters, kernel, stride, pad, n", [
    (3, (64, 61), 64, (7, 7), (2, 2), (3, 3), 3), (1, (28, 28), 20, (5, 5), (1, 1), (0, 0), 9),
    (20, (12, 12), 50, (5, 5), (1, 1), (0, 0), 7), (2, (9, 300), 8, (1, 7), (1, 3), (2, 0), 1),
    (4, (70, 5), 130, (3, 4), (5, 1), (1, 9), 2), (5, (8, 8), 17, (3, 3), (4, 4), (0, 0), 2),
])
@pytest.mark.parametrize("nth", [1, 2, 5])
@each_level
def test_gradient_ways_of_plain_images(name, channels, size, filters, kernel, stride, pad, n, nth):
    check_gradients(dispatch.level(name), n, channels, size, filters, kernel, stride, pad, pad, (1, 1), nth=nth,
                    layout=np.ascontiguousarray)


@each_level
@given(n=st.integers(1, 3), size=sides, kernel=pairs, pad=pairs, tail=pairs, nth=st.integers(1, 2),
       dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)), group=st.integers(1, 3))
def test_gradients_of_groups(name, group, **case):
    check_gradients(dispatch.level(name), channels=16 * group, filters=32 * group, group=group, stride=(1, 1), **case)


@each_level
@given(n=st.integers(1, 3), size=sides, kernel=pairs, stride=pairs, pad=pairs, tail=pairs, nth=st.integers(1, 2),
       channels=st.integers(2, 40))
def test_gradients_of_depthwise(name, channels, **case):
    check_gradients(dispatch.level(name), channels=channels, filters=channels, group=channels, dilation=(1, 1), **case)


@pytest.mark.parametrize("channels, size, filters, kernel, stride, pad, n", [
    (64, (28, 28), 96, 1, 1, 0, 2), (32, (14, 14), 64, 3, 1, 1, 5), (3, (30, 31), 33, 7, 2, 3, 2),
    (48, (7, 7), 80, 3, 1, 1, 5), (32, (15, 14), 64, 3, 2, 1, 2), (64, (9, 9), 48, 1, 2, 0, 2),
    (40, (1, 1), 33, 1, 1, 0, 3), (24, (60, 60), 16, 3, 1, 1, 1), (20, (9, 9), 24, 2, 5, 0, 2),
    (170, (9, 9), 150, 3, 1, 1, 2), (520, (3, 3), 300, 1, 1, 0, 3),
])
@pytest.mark.parametrize("nth", [1, 2])
@each_level
def test_gradient_ways(name, channels, size, filters, kernel, stride, pad, n, nth):
    check_gradients(dispatch.level(name), n, channels, size, filters, (kernel,) * 2, (stride,) * 2, (pad,) * 2,
                    (pad,) * 2, (1, 1), nth=nth)


# Enough for the matrix unit where there is one: odd channels; bands of rows, of images; strides, dilation, groups; more
# channels than are split at once; 1x1 with either side the wider; sums of many bands that are too many at once.
@pytest.mark.parametrize("channels, size, filters, kernel, stride, pad, dilation, group, n", [
    (64, (56, 57), 40, (3, 3), (1, 1), (1, 1), (1, 1), 1, 2),
    (130, (14, 14), 140, (3, 3), (1, 1), (1, 1), (1, 1), 1, 9),
    (96, (41, 37), 150, (5, 3), (2, 3), (1, 2), (1, 1), 1, 3),
    (100, (30, 26), 90, (3, 2), (1, 1), (0, 3), (2, 3), 1, 2),
    (128, (20, 20), 192, (3, 3), (1, 1), (2, 0), (1, 1), 2, 3),
    (200, (40, 44), 190, (4, 4), (1, 1), (1, 1), (1, 1), 1, 1),
    (1100, (9, 9), 600, (1, 1), (1, 1), (0, 0), (1, 1), 1, 2),
    (333, (19, 21), 150, (1, 1), (1, 1), (1, 2), (1, 1), 1, 2),
    (150, (19, 21), 333, (1, 1), (2, 2), (0, 0), (1, 1), 1, 4),
    (40, (90, 40), 72, (7, 1), (2, 1), (3, 0), (1, 1), 1, 2),
])
def test_gradients_of_many(channels, size, filters, kernel, stride, pad, dilation, group, n):
    arguments = (channels, size, filters, kernel, stride, pad, pad, dilation, group)
    for name in LEVELS:
        check_gradients(dispatch.level(name), n, *arguments, nth=2)
    rng = np.random.default_rng(n)
    out = [(i + 2 * p - (k - 1) * d - 1) // s + 1
           for i, p, k, d, s in zip(size, pad, kernel, dilation, stride, strict=True)]
    x, dy = random(rng, n, channels, *size), random(rng, n, filters, *out)
    w = np.empty((filters, channels // group, *kernel), np.float32)

    def gradient(name, nth=1):
        return dispatch.level(name).filter_gradient(blocked(x), w, blocked(dy), group, stride, pad, dilation, nth)

    results = {name: gradient(name) for name in LEVELS}
    for name in LEVELS:     # the same bits, whatever the number of threads
        for nth in (2, 3, 7):
            np.testing.assert_array_equal(gradient(name, nth), results[name])
    if "amx" in LEVELS:     # else this would not test what it should
        assert (results["amx"] != results["v4"]).any()
    x[-1, 5, 3, 4], dy[0, 17, 2, 1] = np.inf, np.nan
    results = {name: gradient(name, 2) for name in LEVELS}
    assert 0 < np.isfinite(results["v1"]).sum() < w.size
    for name in LEVELS:
        np.testing.assert_allclose(results[name], results["v1"], rtol=0, atol=1e-2)


# ---------------------------------------------------------------- separable convolution


def check_separable(level, way, n, channels, size, filters, kernel, stride, pad, dilation=(1, 1), nth=1, add="",
                    seed=0):
    """A depthwise convolution, bounded, then one of 1x1 pixels."""
    out = [(i + 2 * p - (k - 1) * d - 1) // s + 1
           for i, p, k, d, s in zip(size, pad, kernel, dilation, stride, strict=True)]
    if min(out) < 1:
        return
    rng = np.random.default_rng(seed)
    x, bias, bias_2 = random(rng, n, channels, *size), random(rng, channels), random(rng, filters)
    w, w_2 = random(rng, channels, 1, *kernel), random(rng, filters, channels, 1, 1)
    answers = convolve(x, w, channels, stride, pad, dilation, out) + bias[:, None, None]
    expected = convolve(answers.clip(-0.5, 1.5), w_2, 1, (1, 1), (0, 0), (1, 1), out) + bias_2[:, None, None]
    arguments = add_residual(rng, add, expected)
    if "0" in add:
        arguments["low"] = 0.0
    error = (np.abs(expected).max(initial=0) + 1) * (1e-6 + 1e-7 * w_2[0].size**0.5)
    first = dispatch.Conv16(level, w, out, channels, stride, pad, dilation, "depthwise", size=size)
    f = dispatch.Conv16(level, w_2, out, 1, (1, 1), (0, 0), (1, 1), way, size=out)
    y = plain(f(blocked(x), bias_2, before=first, before_bias=bias, bounds=(-0.5, 1.5), nth=nth, **arguments), filters)
    np.testing.assert_allclose(y, expected.clip(arguments.get("low")), rtol=0, atol=error)


@each_direct_way
@given(n=st.integers(0, 3), channels=st.integers(1, 70), size=sides, filters=st.integers(1, 70), kernel=pairs,
       stride=pairs, pad=st.tuples(st.integers(0, 2), st.integers(0, 2)), dilation=st.tuples(st.integers(1, 2), small),
       nth=st.integers(1, 4), add=st.sampled_from(["", "+", "+y0"]))
def test_separable(name, way, **case):
    check_separable(dispatch.level(name), way, **case)


# Layers of MobileNet: bands of rows, halves of the channels, more threads than bands.
@pytest.mark.parametrize("channels, size, filters, stride, n", [
    (32, (56, 56), 16, 1, 1), (144, (28, 28), 32, 2, 1), (384, (14, 14), 64, 1, 1), (576, (14, 14), 160, 2, 2),
    (960, (7, 7), 320, 1, 1), (200, (7, 7), 48, 1, 3), (40, (1, 1), 24, 1, 1),
])
@pytest.mark.parametrize("nth", [1, 2, 5])
@each_direct_way
def test_separable_layers(name, way, channels, size, filters, stride, n, nth):
    check_separable(dispatch.level(name), way, n, channels, size, filters, (3, 3), (stride,) * 2, (1, 1), nth=nth,
                    add="+y0", seed=channels)


# ---------------------------------------------------------------- choice, special values, threads


@each_level
def test_ways(name):
    level = dispatch.level(name)

    def way(channels, filters, kernel, group=1, stride=1, side=20, **arguments):
        w = np.zeros((filters, channels // group, kernel, kernel), np.float32)
        return dispatch.Conv16(level, w, (side,) * 2, group, (stride,) * 2, (1, 1), size=(side,) * 2, **arguments).way

    direct = "tiles" if name == "amx" else "direct"
    assert way(3, 64, 7, nchw=True) == "first"
    assert way(64, 128, 1) == way(64, 128, 3, stride=3) == way(64, 128, 3, group=2) == direct
    assert way(64, 64, 3, side=56) == "winograd_4"
    assert way(128, 128, 3, stride=2, side=40) == ("tiles" if name == "amx" else "winograd_4")
    assert way(256, 256, 3, side=8) == ("winograd_4" if name == "v1" else "winograd_2")    # whose filters are fewer
    assert way(8, 64, 3, side=3) == way(512, 1024, 1, side=4) == "direct"
    assert way(64, 128, 3, winograd=False) == way(64, 128, 3, dilation=(9, 9)) == direct
    assert way(24, 24, 3, group=24) == "depthwise"
    with pytest.raises(ValueError, match="not a convolution for blocked images"):
        way(32, 64, 3, dilation=(9999, 9999))
    with pytest.raises(ValueError, match="not a convolution for blocked images"):
        way(24, 24, 3, group=2)
    with pytest.raises(ValueError, match="not a convolution for blocked images"):
        way(24, 24, 3, group=24, nchw=True)
    if name != "amx":
        with pytest.raises(ValueError, match="not a convolution for blocked images"):
            way(64, 64, 3, way="tiles")


@each_direct_way
def test_not_a_number(name, way):
    """NaN and infinity go where their windows are, through bounds too, and nowhere else."""
    w = np.ones((5, 20, 3, 3), np.float32)
    x = np.ones((1, 20, 9, 9), np.float32)
    x[0, 3, 4, 4] = np.nan
    x[0, 3, 0, 0] = np.inf
    f = dispatch.Conv16(dispatch.level(name), w, (9, 9), pad=(1, 1), size=(9, 9), way=way)
    y = plain(f(blocked(x), low=0, high=6), 5)
    expected = np.full((9, 9), 6.0)
    expected[3:6, 3:6] = np.nan
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))


@pytest.mark.parametrize("name, way", [(name, way) for name in LEVELS for way in ("direct", "winograd_4", "winograd_2")
                                       ] + [("amx", "tiles")] * ("amx" in LEVELS))
def test_concurrent_callers(name, way):
    """Threads share packed filters; results are the same bits."""
    rng = np.random.default_rng(5)
    f = dispatch.Conv16(dispatch.level(name), random(rng, 40, 24, 3, 3), (20, 20), pad=(1, 1), size=(20, 20),
                        way=way)
    g = dispatch.Conv16(dispatch.level(name), random(rng, 64, 48, 1, 1), (20, 20), size=(20, 20))
    images = [(blocked(random(rng, 2, 24, 20, 20)), blocked(random(rng, 1, 48, 20, 20))) for _ in range(8)]

    def run(case):
        return f(case[0], nth=2).tobytes(), g(case[1], nth=2).tobytes()

    expected = [(f(x).tobytes(), g(y).tobytes()) for x, y in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(run, images)) == expected


# ---------------------------------------------------------------- layout, pooling


@each_level
@given(n=st.integers(0, 3), channels=st.integers(1, 50), size=st.tuples(st.integers(1, 40), st.integers(1, 30)),
       nth=st.integers(1, 2))
def test_layout(name, n, channels, size, nth):
    level = dispatch.level(name)
    x = random(np.random.default_rng(n), n, channels, *size)
    y = level.to16(x, nth)
    np.testing.assert_array_equal(y, blocked(x))
    np.testing.assert_array_equal(level.from16(y, channels, nth), x)


@each_level
@given(n=st.integers(0, 2), channels=st.integers(1, 40), size=sides, kernel=pairs, stride=pairs, pad=pairs,
       more=pairs, nth=st.integers(1, 2))
def test_pool(name, n, channels, size, kernel, stride, pad, more, nth):
    level = dispatch.level(name)
    out = [(i + p) // s + m for i, p, s, m in zip(size, pad, stride, more, strict=True)]
    x = random(np.random.default_rng(n), n, channels, *size)
    window = (stride, pad, (1, 1), out)

    def pool(mode):
        return plain(level.pool16(blocked(x), channels, mode, kernel, stride, pad, out, nth), channels)

    np.testing.assert_array_equal(pool("max"), windows(x, kernel, *window, -float(MOST)).max((2, 3)))
    total = windows(x, kernel, *window).sum((2, 3))
    count = windows(np.ones_like(x), kernel, *window).sum((2, 3))
    np.testing.assert_allclose(pool("average"), total / np.maximum(count, 1), atol=1e-5)
    np.testing.assert_allclose(pool("average_pad"), total / np.prod(kernel), atol=1e-5)


@pytest.mark.parametrize("kernel, stride, pad", [(3, 2, 1), (3, 1, 1), (2, 2, 0), (3, 2, 0)])
@each_level
def test_pool_common(name, kernel, stride, pad):
    x = random(np.random.default_rng(0), 2, 20, 27, 35)
    out = [(i + 2 * pad - kernel) // stride + 1 for i in (27, 35)]
    y = dispatch.level(name).pool16(blocked(x), 20, "max", (kernel,) * 2, (stride,) * 2, (pad,) * 2, out, 2)
    expected = windows(x, (kernel,) * 2, (stride,) * 2, (pad,) * 2, (1, 1), out, -float(MOST)).max((2, 3))
    np.testing.assert_array_equal(plain(y, 20), expected)


def check_pool_gradient(level, n, channels, size, kernel, stride, pad, out, nth):
    rng = np.random.default_rng(n)
    x = rng.integers(-2, 3, (n, channels, *size)).astype(np.float32)    # with equal maxima
    dy = random(rng, n, channels, *out)
    window = (stride, pad, (1, 1), out)
    a = windows(x, kernel, *window, -float(MOST))
    y = a.max((2, 3))
    count = windows(np.ones_like(x), kernel, *window).sum((2, 3))
    for mode, shares in (("max", (a == y[:, :, None, None]) * dy[:, :, None, None]),
                         ("average", np.broadcast_to((dy / np.maximum(count, 1))[:, :, None, None], a.shape)),
                         ("average_pad", np.broadcast_to(dy[:, :, None, None] / np.prod(kernel), a.shape))):
        dx = level.pool_gradient16(blocked(x), blocked(y), blocked(dy), channels, mode, kernel, stride, pad, nth)
        np.testing.assert_allclose(plain(dx, channels), add_windows(shares, size, stride, pad, (1, 1)), atol=1e-5)


@each_level
def test_pool_of_no_rows(name):
    x = np.zeros((1, 20, 3, 9), np.float32)
    y = dispatch.level(name).pool16(blocked(x), 20, "max", (2, 2), (2, 2), (0, 0), (0, 4), 2)
    assert y.shape == (1, 2, 0, 4, 16)


@each_level
@given(n=st.integers(0, 2), channels=st.integers(1, 40), size=sides, kernel=pairs, stride=pairs, pad=pairs,
       more=pairs, nth=st.integers(1, 2))
def test_pool_gradient(name, size, stride, pad, more, **case):
    out = [(i + p) // s + m for i, p, s, m in zip(size, pad, stride, more, strict=True)]
    check_pool_gradient(dispatch.level(name), size=size, stride=stride, pad=pad, out=out, **case)


@pytest.mark.parametrize("kernel, stride, pad", [(3, 2, 1), (3, 1, 1), (2, 2, 0)])
@each_level
def test_pool_gradient_common(name, kernel, stride, pad):
    out = [(i + 2 * pad - kernel) // stride + 1 for i in (27, 35)]
    check_pool_gradient(dispatch.level(name), 2, 20, (27, 35), (kernel,) * 2, (stride,) * 2, (pad,) * 2, out, 2)


@each_level
@given(n=st.integers(0, 3), channels=st.integers(1, 40), size=sides, nth=st.integers(1, 2))
def test_mean(name, n, channels, size, nth):
    x = random(np.random.default_rng(n), n, channels, *size)
    y = dispatch.level(name).mean16(blocked(x), channels, nth)
    np.testing.assert_allclose(y, x.mean((2, 3), dtype=float), atol=1e-6)

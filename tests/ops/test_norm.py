"""SpatialBN and LRN, in both orders: values and gradients against numpy, running statistics, bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.python import core, workspace
from numeric import check
from opcheck import run

F = np.float32
RUNNING = {1: 3, 2: 4}      # output: input

orders = st.sampled_from(["NCHW", "NHWC"])
shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)


def ordered(n, c, spatial, order):
    return (n, c, *spatial) if order == "NCHW" else (n, *spatial, c)


def channels_last(x, order):
    return x if order == "NHWC" else np.moveaxis(x, 1, -1)


def channels_first(x, order):
    return x if order == "NHWC" else np.moveaxis(x, -1, 1)


def inputs_of(shape, c, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(F)
    scale, bias, mean = rng.standard_normal((3, c)).astype(F)
    return [x, scale, bias, mean, (rng.random(c) + 0.5).astype(F)]


# ---------------------------------------------------------------- SpatialBN


def batch_norm(order="NCHW", epsilon=1e-5, momentum=0.9):
    def reference(x, scale, bias, mean, var):
        rows = channels_last(x, order)
        axes = tuple(range(x.ndim - 1))
        n = rows.size // rows.shape[-1]
        m, v = rows.mean(axes), rows.var(axes)
        inv_std = 1 / np.sqrt(v + epsilon)
        y = (rows - m) * inv_std * scale + bias
        return (channels_first(y, order), momentum * mean + (1 - momentum) * m,
                momentum * var + (1 - momentum) * v * n / (n - 1), m, inv_std)
    return reference


@given(n=st.integers(2, 4), c=st.integers(1, 5), spatial=shapes, order=orders,
       epsilon=st.sampled_from([1e-2, 0.3]), momentum=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 99))
def test_training(n, c, spatial, order, epsilon, momentum, seed):
    inputs = inputs_of(ordered(n, c, spatial, order), c, seed)
    args = dict(order=order, epsilon=epsilon, momentum=momentum)
    check("SpatialBN", batch_norm(**args), inputs, outputs=5, wanted=(0, 1, 2), inplace=RUNNING, rtol=2e-5, atol=2e-5,
          **args)


@given(n=st.integers(0, 3), c=st.integers(1, 5), spatial=shapes, order=orders, seed=st.integers(0, 99))
def test_testing(n, c, spatial, order, seed):
    x, scale, bias, mean, var = inputs_of(ordered(n, c, spatial, order), c, seed)
    (y,) = run("SpatialBN", x, scale, bias, mean, var, is_test=1, order=order)
    expected = (channels_last(x.astype(float), order) - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(y, channels_first(expected, order), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_on_several_threads(order):
    inputs = inputs_of(ordered(8, 20, (30, 30), order), 20)
    inputs[0] += 3
    outputs = run("SpatialBN", *inputs, outputs=5, inplace=RUNNING, order=order)
    for got, expected in zip(outputs, batch_norm(order)(*(x.astype(float) for x in inputs))):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    x, scale = (a.astype(float) for a in inputs[:2])
    dy = np.random.default_rng(1).standard_normal(x.shape).astype(F)
    dx, dscale, dbias = run("SpatialBNGradient", inputs[0], inputs[1], dy, *outputs[3:], outputs=3, order=order)
    rows, g = channels_last(x, order), channels_last(dy.astype(float), order)
    axes = (0, 1, 2)
    normalized = (rows - rows.mean(axes)) / np.sqrt(rows.var(axes) + 1e-5)
    np.testing.assert_allclose(dbias, g.sum(axes), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(dscale, (g * normalized).sum(axes), rtol=1e-4, atol=1e-3)
    expected = scale / np.sqrt(rows.var(axes) + 1e-5) * (
        g - g.mean(axes) - normalized * (g * normalized).mean(axes))
    np.testing.assert_allclose(dx, channels_first(expected, order), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_values_far_from_zero(order):
    """The variance does not drown in the square of the mean."""
    inputs = inputs_of(ordered(4, 2, (5, 5), order), 2)
    inputs[0] += 1000
    got = run("SpatialBN", *inputs, outputs=5, inplace=RUNNING, order=order)
    expected = batch_norm(order)(*(x.astype(float) for x in inputs))
    np.testing.assert_allclose(got[0], expected[0], atol=2e-3)
    np.testing.assert_allclose(got[4], expected[4], rtol=1e-4)


def test_running_statistics_over_many_batches():
    net = core.Net("bn")
    net.SpatialBN(["x", "scale", "bias", "mean", "var"], ["y", "mean", "var", "m", "v"], momentum=0.8)
    rng = np.random.default_rng(0)
    batches = rng.standard_normal((5, 6, 3, 2, 2)).astype(F)
    for name, value in zip(("x", "scale", "bias", "mean", "var"), inputs_of((6, 3, 2, 2), 3)):
        workspace.FeedBlob(name, value)
    mean, var = (workspace.FetchBlob(name).astype(float) for name in ("mean", "var"))
    workspace.CreateNet(net)
    for x in batches:
        workspace.FeedBlob("x", x)
        workspace.RunNet(net)
        mean = 0.8 * mean + 0.2 * x.mean((0, 2, 3))
        var = 0.8 * var + 0.2 * x.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(workspace.FetchBlob("mean"), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(workspace.FetchBlob("var"), var, rtol=1e-5)


def test_sums_over_several_batches():
    """Mean and variance are those of all batches, and so are the gradients that are summed beforehand."""
    rng = np.random.default_rng(0)
    batches = rng.standard_normal((3, 4, 2, 5)).astype(F)
    _, scale, bias, mean, var = inputs_of((4, 2, 5), 2)
    sums, squares = batches.sum((0, 1, 3)), (batches**2).sum((0, 1, 3))
    y, _, new_var, m, inv_std = run("SpatialBN", batches[0], scale, bias, mean, var, sums, squares, outputs=5,
                                    inplace=RUNNING, num_batches=3)
    by_channel = np.moveaxis(batches.astype(float), 2, 0).reshape(2, -1)
    np.testing.assert_allclose(m, by_channel.mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(inv_std, 1 / np.sqrt(by_channel.var(1) + 1e-5), rtol=1e-4)
    np.testing.assert_allclose(new_var, 0.9 * var + 0.1 * by_channel.var(1, ddof=1), rtol=1e-4)
    normalized = (batches - m[:, None]) * inv_std[:, None]
    np.testing.assert_allclose(y, normalized[0] * scale[:, None] + bias[:, None], rtol=1e-4, atol=1e-5)

    dy = rng.standard_normal(batches.shape).astype(F)
    dscale, dbias = (dy * normalized).sum((0, 1, 3)), dy.sum((0, 1, 3))
    dx, *got = run("SpatialBNGradient", batches[0], scale, dy[0], m, inv_std, dscale, dbias, outputs=3, num_batches=3)
    np.testing.assert_allclose(got, [dscale / 3, dbias / 3], rtol=1e-5)
    count = batches.size / 2
    expected = dy - (dbias[:, None] + normalized * dscale[:, None]) / count
    np.testing.assert_allclose(dx, (expected * (scale * inv_std)[:, None])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 3, 0, 2), (0, 3)])
@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_batch_norm_of_nothing(shape, order):
    c = shape[1 if order == "NCHW" else -1]
    inputs = inputs_of(shape, c)
    y, mean, var, m, v = run("SpatialBN", *inputs, outputs=5, inplace=RUNNING, order=order)
    assert y.shape == shape and m.shape == v.shape == (c,)
    np.testing.assert_array_equal(mean, inputs[3])
    np.testing.assert_array_equal(var, inputs[4])
    dx, dscale, dbias = run("SpatialBNGradient", *inputs[:2], y, m, v, outputs=3, order=order)
    assert dx.shape == shape
    np.testing.assert_array_equal([dscale, dbias], np.zeros((2, c)))


def test_batch_norm_of_what_is_not_a_number():
    """One channel is lost, the other one is not."""
    inputs = inputs_of((2, 2, 3), 2)
    inputs[0][1, 0, 2] = np.nan
    for y in run("SpatialBN", *inputs, outputs=5, inplace=RUNNING)[1:]:
        assert np.isnan(y[0]) and np.isfinite(y[1])
    y = workspace.FetchBlob("y0")
    assert np.isnan(y[:, 0]).all() and np.isfinite(y[:, 1]).all()


def test_batch_norm_in_place():
    """Y may be X when testing; when training, the gradient needs X."""
    inputs = inputs_of((2, 3, 4), 3)
    (expected,) = run("SpatialBN", *inputs, is_test=1)
    (y,) = run("SpatialBN", *inputs, is_test=1, inplace={0: 0})
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(workspace.FetchBlob("x0"), expected)
    training = run("SpatialBN", *inputs, outputs=5, inplace=RUNNING)
    again = run("SpatialBN", *inputs, outputs=5, inplace={0: 0, **RUNNING})
    np.testing.assert_array_equal(again[0], training[0])


GOOD = inputs_of((2, 3, 4), 3)
BAD_NORM = {
    "scale too short": ([GOOD[0], F([1]), *GOOD[2:]], {}, "x1.*3 elements"),
    "bias too short": ([*GOOD[:2], F([1]), *GOOD[3:]], {}, "x2.*3 elements"),
    "mean too short": ([*GOOD[:3], F([1]), GOOD[4]], {"is_test": 1}, "x3.*3 elements"),
    "variance too long": ([*GOOD[:4], np.ones(4, F)], {"is_test": 1}, "x4.*3 elements"),
    "channels of the other order": (GOOD, {"order": "NHWC"}, "x1.*4 elements"),
    "double X": ([GOOD[0].astype(float), *GOOD[1:]], {}, "x0.*float"),
    "int scale": ([GOOD[0], np.ones(3, np.int32), *GOOD[2:]], {}, "x1.*float"),
    "vector": ([GOOD[1], *GOOD[1:]], {}, "dimensions"),
    "six dimensions": ([np.ones((1, 3, 1, 1, 1, 1), F), *GOOD[1:]], {}, "dimensions"),
    "order": (GOOD, {"order": "CHWN"}, "CHWN"),
    "epsilon": (GOOD, {"epsilon": 0.0}, "epsilon"),
    "momentum": (GOOD, {"momentum": 2.0}, "momentum"),
    "num_batches without sums": (GOOD, {"num_batches": 2}, "sums"),
    "num_batches": (GOOD, {"num_batches": 0}, "num_batches"),
    "too few inputs": (GOOD[:3], {}, "takes"),
    "sums too short": ([*GOOD, F([1]), F([1])], {"num_batches": 2}, "x5.*3 elements"),
}


@pytest.mark.parametrize("inputs, args, message", BAD_NORM.values(), ids=BAD_NORM)
def test_batch_norm_refuses(inputs, args, message):
    testing = "is_test" in args
    inplace = {} if testing or len(inputs) < 5 else RUNNING
    with pytest.raises(RuntimeError, match=f"({message}).*SpatialBN.*x0.*x1"):
        run("SpatialBN", *inputs, outputs=1 if testing else 5, inplace=inplace, **args)


@pytest.mark.parametrize("outputs, is_test", [(0, 1), (5, 1), (0, 0), (1, 0), (4, 0), (6, 0)])
def test_batch_norm_with_wrong_number_of_outputs(outputs, is_test):
    with pytest.raises(RuntimeError, match="output.*SpatialBN"):
        run("SpatialBN", *GOOD, outputs=outputs, is_test=is_test)


def test_batch_norm_gradient_refuses():
    x, scale, _, mean, var = GOOD
    for inputs, message in (([x, scale, x[:1], mean, var], "x2.*same shape"), ([x, scale, x, mean], "takes"),
                            ([], "takes"), ([x, F([1]), x, mean, var], "x1"), ([x, scale, x, F([1]), var], "x3"),
                            ([x, scale, x.astype(float), mean, var], "x2")):
        with pytest.raises(RuntimeError, match=f"{message}.*SpatialBNGradient"):
            run("SpatialBNGradient", *inputs, outputs=3)


# ---------------------------------------------------------------- LRN


def lrn(order, size, alpha, beta, bias):
    def reference(x):
        rows = channels_last(x, order)
        half, c = size // 2, rows.shape[-1]
        sums = np.stack([(rows[..., max(0, k - half):k + half + 1] ** 2).sum(-1) for k in range(c)], -1)
        return (channels_first(rows * (bias + alpha / size * sums) ** -beta, order),)
    return reference


@given(n=st.integers(1, 2), c=st.integers(1, 20), h=st.integers(1, 3), w=st.integers(1, 12), order=orders,
       size=st.sampled_from([1, 3, 5, 11, 21]), alpha=st.sampled_from([1e-4, 0.5, 2.0]),
       beta=st.sampled_from([0.5, 0.75, 1.5]), bias=st.sampled_from([1.0, 2.0]), seed=st.integers(0, 99))
def test_lrn(n, c, h, w, order, size, alpha, beta, bias, seed):
    x = np.random.default_rng(seed).standard_normal(ordered(n, c, (h, w), order)).astype(F)
    args = dict(order=order, size=size, alpha=alpha, beta=beta, bias=bias)
    check("LRN", lrn(**args), [x], **args)


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_lrn_on_several_threads(order):
    x = np.random.default_rng(0).standard_normal(ordered(4, 16, (20, 20), order)).astype(F)
    args = dict(order=order, size=5, alpha=0.1, beta=0.75, bias=1.0)
    (y,) = run("LRN", x, **args)
    np.testing.assert_allclose(y, lrn(**args)(x.astype(float))[0], rtol=1e-5, atol=1e-6)


def test_lrn_scale():
    """The second output is what X was divided by, before the exponent."""
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(F)
    y, scale = run("LRN", x, outputs=2, size=3, alpha=0.5, beta=0.75)
    np.testing.assert_allclose(y, x * scale**-0.75, rtol=1e-5)


def test_lrn_of_what_is_not_a_number():
    """One pixel's channels in reach are lost, no others."""
    x = np.ones((1, 5, 1, 2), F)
    x[0, 0, 0, 0] = np.nan
    (y,) = run("LRN", x, size=3, alpha=0.5, beta=0.75)
    assert np.isnan(y[0, :2, 0, 0]).all() and np.isfinite(y[0, :, 0, 1]).all()


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2)])
@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_lrn_of_nothing(shape, order):
    args = dict(size=3, alpha=0.5, beta=0.75, order=order)
    (y,) = run("LRN", np.empty(shape, F), **args)
    assert y.shape == shape
    (dx,) = run("LRNGradient", y, y, y, **args)
    assert dx.shape == shape


@pytest.mark.parametrize("changed, message", [
    ({"size": 0}, "size"), ({"size": 4}, "size"), ({"size": -3}, "size"), ({"alpha": 0.0}, "alpha"),
    ({"beta": -1.0}, "beta"), ({"order": "CHWN"}, "CHWN"),
])
def test_lrn_refuses_arguments(changed, message):
    with pytest.raises(RuntimeError, match=f"{message}.*LRN.*x0"):
        run("LRN", np.ones((1, 3, 2, 2), F), **{"size": 3, "alpha": 0.5, "beta": 0.75, **changed})


def test_lrn_refuses_inputs():
    args = dict(size=3, alpha=0.5, beta=0.75)
    x = np.ones((1, 3, 2, 2), F)
    with pytest.raises(RuntimeError, match="x0.*4 dimensions.*LRN"):
        run("LRN", x[0], **args)
    with pytest.raises(RuntimeError, match="x0.*float.*LRN"):
        run("LRN", x.astype(np.int32), **args)
    with pytest.raises(RuntimeError, match="same shape.*LRNGradient.*x2"):
        run("LRNGradient", x, x, x[:, :2], **args)
    with pytest.raises(RuntimeError, match="same blob.*LRN"):
        run("LRN", x, inplace={0: 0}, **args)

"""Softmax, alone and with the loss: values and gradients against numpy, extremes, bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.python import workspace
from numeric import check
from opcheck import operator, run

F = np.float32
INT = np.int32


def softmax(x):
    """Of the rows of a matrix."""
    e = np.exp(x - x.max(1, keepdims=True, initial=-np.inf))
    return e / e.sum(1, keepdims=True)


def as_matrix(x, axis):
    shape = x.shape
    at = axis % x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(shape[:at])), int(np.prod(shape[at:])))


def normal(*shape, scale=1, seed=0):
    return (scale * np.random.default_rng(seed + sum(shape)).standard_normal(shape)).astype(F)


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


# ---------------------------------------------------------------- Softmax


@given(shape=shapes, data=st.data())
def test_softmax(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    check("Softmax", lambda x: (softmax(as_matrix(x, axis)).reshape(shape),), [normal(*shape)], axis=axis)


@given(d=st.integers(1, 70))
def test_softmax_of_any_length(d):
    x = normal(3, d, scale=5)
    (y,) = run("Softmax", x)
    np.testing.assert_allclose(y, softmax(x.astype(float)), rtol=1e-5, atol=1e-7)


def test_softmax_on_several_threads():
    x = normal(400, 300)
    (y,) = run("Softmax", x)
    np.testing.assert_allclose(y, softmax(x.astype(float)), rtol=1e-5, atol=1e-8)
    dy = normal(400, 300, seed=1)
    (dx,) = run("SoftmaxGradient", y, dy)
    np.testing.assert_allclose(dx, y * (dy - (y * dy).sum(1, keepdims=True)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("d", [2, 40])
@pytest.mark.parametrize("shift", [0, 3e38, -3e38, 1e5])
def test_softmax_does_not_overflow(d, shift):
    (y,) = run("Softmax", np.full((2, d), shift, F))
    np.testing.assert_allclose(y, np.full((2, d), 1 / d), rtol=1e-6)


@pytest.mark.parametrize("d", [3, 16, 37])
def test_softmax_of_what_is_not_finite(d):
    x = np.zeros((5, d), F)
    x[0, 1] = np.nan
    x[1, 2] = np.inf
    x[2, 0] = -np.inf
    x[3] = -np.inf
    (y,) = run("Softmax", x)
    assert np.isnan(y[0]).all()
    assert np.isnan(y[1, 2])
    np.testing.assert_allclose(y[2], [0] + [1 / (d - 1)] * (d - 1), rtol=1e-6)
    assert np.isnan(y[3]).all()
    np.testing.assert_allclose(y[4], np.full(d, 1 / d), rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (2, 0, 4)])
def test_softmax_empty(shape):
    (y,) = run("Softmax", np.empty(shape, F), axis=min(1, len(shape) - 1))
    assert y.shape == shape
    (dx,) = run("SoftmaxGradient", y, y, axis=min(1, len(shape) - 1))
    assert dx.shape == shape


@pytest.mark.parametrize("inputs, args, message", [
    ([np.ones((2, 3), np.int32)], {}, r"float.*Softmax.*x0"),
    ([np.ones((2, 3))], {}, r"float.*Softmax.*x0"),
    ([np.ones((2, 3), F)], {"axis": 2}, r"axis.*Softmax.*x0"),
    ([np.ones((2, 3), F)], {"axis": -3}, r"axis.*Softmax.*x0"),
    ([np.array(1, F)], {}, r"axis.*Softmax.*x0"),
])
def test_softmax_refuses(inputs, args, message):
    with pytest.raises(RuntimeError, match=message):
        run("Softmax", *inputs, **args)


def test_softmax_gradient_refuses():
    with pytest.raises(RuntimeError, match=r"same shape.*SoftmaxGradient.*x1"):
        run("SoftmaxGradient", normal(2, 3), normal(3, 2))
    with pytest.raises(RuntimeError, match=r"x1.*float.*SoftmaxGradient"):
        run("SoftmaxGradient", normal(2, 3), np.ones((2, 3), INT))


@pytest.mark.parametrize("op, inputs", [("Softmax", 1), ("SoftmaxGradient", 2), ("SoftmaxWithLoss", 2)])
def test_not_in_place(op, inputs):
    arrays = [normal(2, 3)] * inputs
    for i, x in enumerate(arrays):
        workspace.FeedBlob(f"x{i}", x)
    with pytest.raises(RuntimeError, match=f"same blob.*{op}"):
        workspace.RunOperatorOnce(operator(op, arrays, inplace={0: 0}))


# ---------------------------------------------------------------- SoftmaxWithLoss


def loss_of(axis=1, scale=1, label_prob=0, average_by_batch_size=0):
    """Reference for SoftmaxWithLoss with these arguments."""
    def reference(x, label, weight=None):
        p = softmax(as_matrix(x, axis))
        n, d = p.shape
        target = label.reshape(n, d) if label_prob else np.eye(d)[label.ravel()]
        weight = np.ones(n) if weight is None else weight.ravel()
        loss = -(target * np.log(p)).sum(1) @ weight
        by = n if average_by_batch_size else weight.sum()
        return p.reshape(x.shape), np.array(scale * loss / by if by else 0)
    return reference


def labels_for(rng, n, d, label_prob):
    if not label_prob:
        return rng.integers(0, d, n).astype(INT)
    target = rng.random((n, d))
    return (target / target.sum(1, keepdims=True)).astype(F)


@given(shape=shapes, data=st.data(), label_prob=st.booleans(), weighted=st.booleans(), by_batch=st.booleans(),
       scale=st.sampled_from([0.5, 1.0, 3.0]), seed=st.integers(0, 99))
def test_softmax_with_loss(shape, data, label_prob, weighted, by_batch, scale, seed):
    rng = np.random.default_rng(seed)
    axis = data.draw(st.integers(0, len(shape) - 1))
    n, d = int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))
    label = labels_for(rng, n, d, label_prob).reshape(shape if label_prob else shape[:axis])
    inputs = [normal(*shape, seed=seed), label]
    if weighted:
        inputs.append(rng.random(n).astype(F) + F(0.1))
    args = dict(axis=axis, scale=scale, label_prob=int(label_prob), average_by_batch_size=int(by_batch))
    check("SoftmaxWithLoss", loss_of(**args), inputs, outputs=2, flows=(1,), **args)


def test_labels_may_be_a_column():
    x = normal(4, 3)
    label = INT([[0], [2], [1], [2]])
    check("SoftmaxWithLoss", loss_of(), [x, label], outputs=2, flows=(1,))


def test_loss_on_several_threads():
    rng = np.random.default_rng(0)
    x, label = normal(500, 200), rng.integers(0, 200, 500).astype(INT)
    p, loss = run("SoftmaxWithLoss", x, label, outputs=2)
    expected = loss_of()(x.astype(float), label)
    np.testing.assert_allclose(p, expected[0], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(loss, expected[1], rtol=1e-5)
    (dx,) = run("SoftmaxWithLossGradient", x, label, p, F(2))
    np.testing.assert_allclose(dx, (expected[0] - np.eye(200)[label]) * 2 / 500, rtol=1e-4, atol=1e-8)


def test_loss_where_the_probability_underflows():
    """Half the distance of the logits, not the logarithm of nothing."""
    _, loss = run("SoftmaxWithLoss", F([[0, 300], [5, 5]]), INT([0, 1]), outputs=2)
    np.testing.assert_allclose(loss, (300 + np.log(2)) / 2, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("label_prob", [0, 1])
def test_loss_of_what_is_not_finite(bad, at, label_prob):
    x = np.zeros((2, 3), F)
    x[0, at] = bad
    label = np.eye(3, dtype=F)[:2] if label_prob else INT([0, 1])
    p, loss = run("SoftmaxWithLoss", x, label, outputs=2, label_prob=label_prob)
    assert not np.isfinite(loss)
    (dx,) = run("SoftmaxWithLossGradient", x, label, p, F(1), label_prob=label_prob)
    assert np.isnan(dx[0, at]) and np.isfinite(dx[1]).all()


@pytest.mark.parametrize("label_prob", [0, 1])
@pytest.mark.parametrize("weighted", [0, 1])
def test_loss_of_no_rows(label_prob, weighted):
    x = np.empty((0, 3), F)
    inputs = [x, x if label_prob else np.empty(0, INT), *[np.empty(0, F)] * weighted]
    p, loss = run("SoftmaxWithLoss", *inputs, outputs=2, label_prob=label_prob)
    assert p.shape == (0, 3) and loss == 0
    (dx,) = run("SoftmaxWithLossGradient", *inputs, p, F(1), label_prob=label_prob)
    assert dx.shape == (0, 3)


def test_weights_that_sum_to_nothing():
    inputs = [normal(2, 3), INT([0, 1]), np.zeros(2, F)]
    p, loss = run("SoftmaxWithLoss", *inputs, outputs=2)
    assert loss == 0
    (dx,) = run("SoftmaxWithLossGradient", *inputs, p, F(1))
    np.testing.assert_array_equal(dx, np.zeros((2, 3)))


X = np.ones((2, 3), F)
GOOD = INT([0, 2])
PROB = np.full((2, 3), F(1 / 3))
BAD_LOSS = {
    "negative label": ([X, INT([0, -1])], {}, "label.*class"),
    "label too large": ([X, INT([3, 0])], {}, "label.*class"),
    "no classes": ([np.ones((2, 0), F), INT([0, 0])], {}, "label.*class"),
    "int64 labels": ([X, np.array([0, 1])], {}, "int32"),
    "float labels": ([X, F([0, 1])], {}, "int32"),
    "too few labels": ([X, INT([0])], {}, "labels"),
    "too many labels": ([X, INT([0, 1, 2])], {}, "labels"),
    "labels transposed": ([X, INT([[0, 1]])], {}, "labels"),
    "int logits": ([np.ones((2, 3), INT), GOOD], {}, "float"),
    "axis too large": ([X, GOOD], {"axis": 5}, "axis"),
    "too few weights": ([X, GOOD, F([1])], {}, "x2.*2 elements"),
    "int weights": ([X, GOOD, INT([1, 1])], {}, "x2.*float"),
    "classes with label_prob": ([X, GOOD], {"label_prob": 1}, "float"),
    "probabilities of another size": ([X, PROB[:, :2]], {"label_prob": 1}, "labels"),
    "negative probability": ([X, F([[1.5, -0.5, 0], [0, 1, 0]])], {"label_prob": 1}, "negative"),
    "probabilities that do not sum to 1": ([X, 2 * PROB], {"label_prob": 1}, "sum to 1"),
    "probability that is not a number": ([X, PROB * F(np.nan)], {"label_prob": 1}, "negative|sum"),
    "order": ([X, GOOD], {"order": "NHWC"}, "NCHW"),
    "negative scale": ([X, GOOD], {"scale": -1.0}, "scale"),
}


@pytest.mark.parametrize("inputs, args, message", BAD_LOSS.values(), ids=BAD_LOSS)
def test_softmax_with_loss_refuses(inputs, args, message):
    workspace.FeedBlob("y0", F([7]))
    with pytest.raises(RuntimeError, match=rf"(?s)({message}).*SoftmaxWithLoss.*x0.*x1"):
        run("SoftmaxWithLoss", *inputs, outputs=2, **args)
    np.testing.assert_array_equal(workspace.FetchBlob("y0"), [7])


@pytest.mark.parametrize("outputs", [0, 1])
def test_softmax_with_loss_gives_two_outputs(outputs):
    with pytest.raises(RuntimeError, match="output.*SoftmaxWithLoss"):
        run("SoftmaxWithLoss", X, GOOD, outputs=outputs)


@pytest.mark.parametrize("op", ["SoftmaxWithLossGradient", "SpatialSoftmaxWithLossGradient"])
@pytest.mark.parametrize("inputs", [0, 1, 3, 6])
def test_gradient_with_wrong_number_of_inputs(op, inputs):
    with pytest.raises(RuntimeError, match=f"takes.*{op}"):
        run(op, *[X, GOOD, PROB, F(1), F(1), F(1)][:inputs])


def test_softmax_with_loss_gradient_refuses():
    for inputs in ([X, INT([0, 3]), PROB, F(1)], [X, GOOD, PROB[:1], F(1)], [X, GOOD, PROB, np.empty(0, F)],
                   [X, GOOD, PROB, np.array(1)], [X, GOOD, F([1]), PROB, F(1)]):
        with pytest.raises(RuntimeError, match=r"SoftmaxWithLossGradient.*x0"):
            run("SoftmaxWithLossGradient", *inputs)


# ---------------------------------------------------------------- SpatialSoftmaxWithLoss


def spatial_loss(scale=1):
    def reference(x, label, weight=None):
        n, d, h, w = x.shape
        p = softmax(x.transpose(0, 2, 3, 1).reshape(-1, d))
        label = label.ravel()
        weight = np.ones(label.size) if weight is None else weight.ravel()
        weight = weight * (label >= 0)
        loss = -np.log(p[np.arange(label.size), label]) @ weight
        by = weight.sum()
        return p.reshape(n, h, w, d).transpose(0, 3, 1, 2), np.array(scale * loss / by if by else 0)
    return reference


@given(n=st.integers(1, 2), d=st.integers(1, 4), h=st.integers(1, 3), w=st.integers(1, 3), weighted=st.booleans(),
       scale=st.sampled_from([1.0, 2.5]), seed=st.integers(0, 99))
def test_spatial(n, d, h, w, weighted, scale, seed):
    rng = np.random.default_rng(seed)
    inputs = [normal(n, d, h, w, seed=seed), rng.integers(-1, d, (n, h, w)).astype(INT)]
    if weighted:
        inputs.append(rng.random((n, h, w)).astype(F) + F(0.1))
    check("SpatialSoftmaxWithLoss", spatial_loss(scale), inputs, outputs=2, flows=(1,), scale=scale)


def test_spatial_where_nothing_counts():
    x, label = normal(1, 3, 2, 2), np.full((1, 2, 2), -1, INT)
    p, loss = run("SpatialSoftmaxWithLoss", x, label, outputs=2)
    assert loss == 0
    (dx,) = run("SpatialSoftmaxWithLossGradient", x, label, p, F(1))
    np.testing.assert_array_equal(dx, np.zeros(x.shape))


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 3, 0, 2)])
def test_spatial_empty(shape):
    x, label = np.empty(shape, F), np.empty((shape[0], *shape[2:]), INT)
    p, loss = run("SpatialSoftmaxWithLoss", x, label, outputs=2)
    assert p.shape == shape and loss == 0
    (dx,) = run("SpatialSoftmaxWithLossGradient", x, label, p, F(1))
    assert dx.shape == shape


def test_spatial_of_what_is_not_a_number():
    x = np.zeros((1, 3, 1, 2), F)
    x[0, 1, 0, 0] = np.nan
    p, loss = run("SpatialSoftmaxWithLoss", x, np.zeros((1, 1, 2), INT), outputs=2)
    assert np.isnan(p[0, :, 0, 0]).all() and np.isfinite(p[0, :, 0, 1]).all()
    assert np.isnan(loss)


def test_spatial_does_not_overflow():
    x = np.full((1, 2, 1, 1), -3e38, F)
    p, _ = run("SpatialSoftmaxWithLoss", x, np.zeros((1, 1, 1), INT), outputs=2)
    np.testing.assert_allclose(p.ravel(), [0.5, 0.5])


S = np.ones((2, 3, 2, 2), F)
L = np.zeros((2, 2, 2), INT)
BAD_SPATIAL = {
    "label too large": ([S, L + INT(3)], {}, "label.*class"),
    "label below -1": ([S, L - INT(2)], {}, "label.*class"),
    "int64 labels": ([S, L.astype(np.int64)], {}, "int32"),
    "labels of another shape": ([S, L[:1]], {}, "labels"),
    "flat labels": ([S, L.ravel()], {}, "x1.*3 dimensions"),
    "flat logits": ([S.reshape(2, 3, 4), L], {}, "x0.*4 dimensions"),
    "int logits": ([S.astype(INT), L], {}, "float"),
    "too few weights": ([S, L, F([1])], {}, "x2.*8 elements"),
    "order": ([S, L], {"order": "NHWC"}, "NCHW"),
}


@pytest.mark.parametrize("inputs, args, message", BAD_SPATIAL.values(), ids=BAD_SPATIAL)
def test_spatial_refuses(inputs, args, message):
    with pytest.raises(RuntimeError, match=rf"(?s)({message}).*SpatialSoftmaxWithLoss.*x0.*x1"):
        run("SpatialSoftmaxWithLoss", *inputs, outputs=2, **args)

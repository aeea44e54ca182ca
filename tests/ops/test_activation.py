"""Activations against formulas in numpy: values, gradients, extremes, bad input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from numeric import check
from opcheck import gradients, run

F = np.float32
erf = np.vectorize(math.erf, otypes=[float])


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def leaky(x, alpha=0.01):
    return np.where(x >= 0, x, alpha * x)


def elu(x, alpha=1.0):
    return np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0)))


def selu(x, alpha=1.6732632423543772, scale=1.0507009873554805):
    return scale * elu(x, alpha)


def hard_sigmoid(x, alpha=0.2, beta=0.5):
    return np.clip(alpha * x + beta, 0, 1)


def gelu(x, fast_gelu=0):
    if fast_gelu:
        return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    return x * (1 + erf(x / np.sqrt(2))) / 2


CASES = [
    ("Relu", lambda x: np.maximum(x, 0), {}),
    ("Sigmoid", sigmoid, {}),
    ("Tanh", np.tanh, {}),
    ("LeakyRelu", leaky, {}),
    ("LeakyRelu", leaky, {"alpha": 0.3}),
    ("ThresholdedRelu", lambda x, alpha=1.0: np.where(x > alpha, x, 0), {}),
    ("ThresholdedRelu", lambda x, alpha=1.0: np.where(x > alpha, x, 0), {"alpha": 2.0}),
    ("ReluN", lambda x, n=6.0: np.clip(x, 0, n), {}),
    ("ReluN", lambda x, n=6.0: np.clip(x, 0, n), {"n": 2.0}),
    ("HardSigmoid", hard_sigmoid, {}),
    ("HardSigmoid", hard_sigmoid, {"alpha": 0.7, "beta": 0.31}),
    ("Softsign", lambda x: x / (1 + abs(x)), {}),
    ("Elu", elu, {}),
    ("Elu", elu, {"alpha": 0.5}),
    ("Selu", selu, {}),
    ("Selu", selu, {"alpha": 0.7, "scale": 1.3}),
    ("Softplus", lambda x: np.logaddexp(x, 0), {}),
    ("Swish", lambda x: x * sigmoid(x), {}),
    ("Mish", lambda x: x * np.tanh(np.logaddexp(x, 0)), {}),
    ("Gelu", gelu, {}),
    ("Gelu", gelu, {"fast_gelu": 1}),
]
NAMES = list(dict.fromkeys(name for name, _, _ in CASES))
OF_INPUT = {"Softsign": "x g", "Gelu": "g x", "Swish": "x y g", "Mish": "x y g"}

case = pytest.mark.parametrize("op, f, args", CASES)
every = pytest.mark.parametrize("op", NAMES)


def values(shape, seed=0, scale=3):
    """Off the kinks at whole numbers."""
    x = np.random.default_rng([seed, *shape]).uniform(-scale, scale, shape)
    return np.array(np.where(abs(x - np.round(x)) < 0.02, x + 0.05, x), F)


@case
@given(shape=hnp.array_shapes(min_dims=0, max_dims=3, max_side=5))
@settings(max_examples=15)
def test_values_and_gradients(op, f, args, shape):
    check(op, lambda x: (f(x, **args),), [values(shape)], rtol=2e-5, **args)


@case
@pytest.mark.parametrize("n", [1, 255, 257, 200003])
def test_any_length_in_place(op, f, args, n):
    x = values((n,), scale=6)
    expected = f(x.astype(float), **args)
    np.testing.assert_allclose(run(op, x, **args)[0], expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(
        run(op, x, inplace={0: 0}, **args)[0], expected, rtol=1e-5, atol=2e-6
    )


@case
@pytest.mark.parametrize("n", [5, 700, 200003])
def test_gradient_in_place(op, f, args, n):
    x, g = values((n,)), values((n,), 1)
    (y,) = run(op, x, **args)
    (dx,) = gradients(op, [x], [g], **args)
    needs = OF_INPUT.get(op, "y g").split()
    inputs = [{"x": x, "y": y, "g": g}[k] for k in needs]
    (got,) = run(op + "Gradient", *inputs, inplace={0: needs.index("g")}, **args)
    np.testing.assert_array_equal(got, dx)
    step = 1e-6
    slope = (f(x + step * np.ones(n), **args) - f(x - step * np.ones(n), **args)) / (2 * step)
    np.testing.assert_allclose(dx, g * slope, rtol=1e-3, atol=3e-5)


@case
def test_extremes(op, f, args):
    x = np.array([-1e30, -200, -90, 90, 200, 1e30], F)
    (y,) = run(op, x, **args)
    assert np.isfinite(y).all()
    expected = {"Gelu": lambda x: np.maximum(x, 0), "Swish": lambda x: np.maximum(x, 0)}.get(
        op, lambda x: f(x, **args)
    )(x.astype(float))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-30)
    (dx,) = gradients(op, [x], [np.ones(6, F)], **args)
    assert np.isfinite(dx).all()
    assert np.isnan(run(op, np.array([np.nan], F), **args)[0]).all() or op == "ThresholdedRelu"


def test_softplus_of_negative_values_keeps_its_digits():
    x = np.linspace(-80, -5, 50, dtype=F)
    np.testing.assert_allclose(run("Softplus", x)[0], np.log1p(np.exp(x.astype(float))), rtol=1e-5)


@every
def test_empty(op):
    for shape in (0,), (2, 0, 3):
        (y,) = run(op, np.empty(shape, F))
        assert y.shape == shape
        assert run(op + "Gradient", *[y] * len(OF_INPUT.get(op, "y g").split()))[0].shape == shape


@every
def test_refuses(op):
    with pytest.raises(RuntimeError, match="x0.*float"):
        run(op, np.ones(2, np.int32))
    n = len(OF_INPUT.get(op, "y g").split())
    with pytest.raises(RuntimeError, match="same shape.*x0.*x1"):
        run(op + "Gradient", np.ones((2, 3), F), *[np.ones((3, 2), F)] * (n - 1))
    with pytest.raises(RuntimeError, match="x1.*(float|double)"):
        run(op + "Gradient", np.ones(2, F), *[np.ones(2)] * (n - 1))


@pytest.mark.parametrize(
    "op, args", [("ReluN", {"n": 0.0}), ("ReluN", {"n": -1.0}), ("Elu", {"alpha": -0.5})]
)
def test_refuses_arguments(op, args):
    with pytest.raises(RuntimeError, match=next(iter(args))):
        run(op, np.ones(2, F), **args)


def test_softsign_in_place_has_no_gradient():
    with pytest.raises(RuntimeError, match="no gradient"):
        gradients("Softsign", [np.ones(2, F)], [np.ones(2, F)], inplace={0: 0})


def test_swish_of_doubles():
    x = values((3, 4)).astype(float)
    (y,) = run("Swish", x)
    np.testing.assert_allclose(y, x * sigmoid(x), rtol=1e-14)
    (dx,) = gradients("Swish", [x], [x])
    np.testing.assert_allclose(dx, x * (y + sigmoid(x) * (1 - y)), rtol=1e-14)


# ---------------------------------------------------------------- gated


@given(shape=hnp.array_shapes(max_dims=4, max_side=4), data=st.data())
def test_glu(shape, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    shape = list(shape)
    shape[dim] *= 2
    x = values(shape)
    a, b = np.split(x.astype(float), 2, dim)
    np.testing.assert_allclose(run("Glu", x, dim=dim)[0], a * sigmoid(b), rtol=1e-5)


def test_glu_refuses():
    with pytest.raises(RuntimeError, match="odd"):
        run("Glu", values((2, 3)))
    with pytest.raises(RuntimeError, match="axis"):
        run("Glu", values((2, 4)), dim=2)
    with pytest.raises(RuntimeError, match="x0.*float"):
        run("Glu", np.ones((2, 4)))
    assert run("Glu", np.empty((0, 4), F))[0].shape == (0, 2)


# ---------------------------------------------------------------- PRelu


@given(
    shape=hnp.array_shapes(min_dims=2, max_dims=4, max_side=4),
    shared=st.booleans(),
    order=st.sampled_from(["NCHW", "NHWC"]),
)
def test_prelu(shape, shared, order):
    at = 1 if order == "NCHW" else len(shape) - 1
    w = values((1,) if shared else (shape[at],), 1)

    def prelu(x, w):
        slope = w if shared else w.reshape([-1 if i == at else 1 for i in range(len(shape))])
        return (np.where(x > 0, x, slope * x),)

    x = values(shape)
    check("PRelu", prelu, [x, w], wanted=(0, 1), order=order)
    np.testing.assert_allclose(
        run("PRelu", x, w, inplace={0: 0}, order=order)[0], prelu(x, w)[0], rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(), (5,)])
def test_prelu_of_few_dimensions(shape):
    check(
        "PRelu",
        lambda x, w: (np.where(x > 0, x, w[0] * x),),
        [values(shape), values((1,))],
        wanted=(0, 1),
    )


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shared", [False, True])
def test_prelu_large(order, shared):
    shape = (20, 30, 40, 50)
    at = 1 if order == "NCHW" else 3
    x, w = values(shape), values((1,) if shared else (shape[at],), 1)
    slope = w if shared else w.reshape([-1 if i == at else 1 for i in range(4)])
    (y,) = run("PRelu", x, w, order=order)
    np.testing.assert_allclose(y, np.where(x > 0, x, slope * x), rtol=1e-6)


def test_prelu_refuses():
    x = values((2, 3, 2))
    with pytest.raises(RuntimeError, match="one slope"):
        run("PRelu", x, values((2,)))
    with pytest.raises(RuntimeError, match="one slope"):
        run("PRelu", values((3,)), values((3,)))
    with pytest.raises(RuntimeError, match="order"):
        run("PRelu", x, values((1,)), order="NCWH")
    with pytest.raises(RuntimeError, match="no gradient"):
        run("PRelu", x, values((1,)), inplace={0: 0})
        gradients("PRelu", [x, values((1,))], [x], inplace={0: 0})
    assert run("PRelu", np.empty((0, 3), F), values((3,)))[0].shape == (0, 3)

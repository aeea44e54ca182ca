"""Functions of one tensor against numpy: values, gradients, bad input."""

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

# name -> function, least and largest argument of the tests
FUNCTIONS = {
    "Abs": (np.abs, -3, 3),
    "Acos": (np.arccos, -0.9, 0.9),
    "Asin": (np.arcsin, -0.9, 0.9),
    "Atan": (np.arctan, -3, 3),
    "Cbrt": (np.cbrt, 0.1, 3),
    "Ceil": (np.ceil, -3, 3),
    "Cos": (np.cos, -3, 3),
    "Cosh": (np.cosh, -3, 3),
    "Cube": (lambda x: x * x * x, -2, 2),
    "Erf": (erf, -3, 3),
    "Exp": (np.exp, -3, 3),
    "Floor": (np.floor, -3, 3),
    "Log": (np.log, 0.1, 3),
    "Log1p": (np.log1p, -0.9, 3),
    "Negative": (np.negative, -3, 3),
    "Reciprocal": (lambda x: 1 / x, 0.3, 3),
    "Rsqrt": (lambda x: 1 / np.sqrt(x), 0.3, 3),
    "Sign": (np.sign, -3, 3),
    "Sin": (np.sin, -3, 3),
    "Sinh": (np.sinh, -3, 3),
    "Sqr": (np.square, -3, 3),
    "Sqrt": (np.sqrt, 0.1, 3),
    "Tan": (np.tan, -1.2, 1.2),
}
WHOLE = ["Abs", "Cube", "Negative", "Sign", "Sqr"]
FLAT = ["Ceil", "Floor", "Sign"]  # no gradient flows back
WITH_OPERATOR = sorted(FUNCTIONS.keys() - {*FLAT, "Sqr", "Sqrt", "Exp", "Log", "Negative"})

every = pytest.mark.parametrize("op", FUNCTIONS)


def argument(op, shape, dtype=F):
    """Values off the kinks at whole numbers."""
    _, low, high = FUNCTIONS[op]
    x = np.random.default_rng([7, *shape]).uniform(low, high, shape)
    return np.array(np.where(abs(x - np.round(x)) < 0.01, x + 0.02, x), dtype)


@every
@given(shape=hnp.array_shapes(min_dims=0, max_dims=3, max_side=5))
@settings(max_examples=15)
def test_values_and_gradients(op, shape):
    check(
        op,
        lambda x: (FUNCTIONS[op][0](x),),
        [argument(op, shape)],
        wanted=() if op in FLAT else (0,),
    )


@every
def test_double(op):
    x = argument(op, (4, 5), np.float64)
    (y,) = run(op, x)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, FUNCTIONS[op][0](x), rtol=1e-13)
    if op in WITH_OPERATOR:
        dy = np.random.default_rng(1).standard_normal(x.shape)
        (dx,) = gradients(op, [x], [dy])
        step = 1e-5
        slope = (FUNCTIONS[op][0](x + step) - FUNCTIONS[op][0](x - step)) / (2 * step)
        np.testing.assert_allclose(dx, dy * slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("op", WHOLE)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers(op, dtype):
    x = np.arange(-20, 20, dtype=dtype).reshape(5, 8)
    (y,) = run(op, x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, FUNCTIONS[op][0](x))


@every
@pytest.mark.parametrize("n", [1, 7, 33, 200003])
def test_any_length_in_place(op, n):
    x = argument(op, (n,))
    expected = FUNCTIONS[op][0](x.astype(float))
    np.testing.assert_allclose(run(op, x)[0], expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(run(op, x, inplace={0: 0})[0], expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("op", WITH_OPERATOR)
def test_gradient_operators_in_place(op):
    x, dy = argument(op, (3, 4)), np.linspace(-1, 1, 12, dtype=F).reshape(3, 4)
    run(op, x)
    (dx,) = gradients(op, [x], [dy])
    value = FUNCTIONS[op][0](x) if op in ("Cbrt", "Reciprocal", "Rsqrt") else x
    first = op in ("Cbrt", "Cosh", "Cube", "Rsqrt", "Sinh")
    inputs = (dy, value) if first else (value, dy)
    (got,) = run(op + "Gradient", *inputs, inplace={0: 0 if first else 1})
    np.testing.assert_allclose(got, dx, rtol=1e-5)


@every
def test_empty(op):
    for shape in (0,), (2, 0, 3):
        (y,) = run(op, np.empty(shape, F))
        assert y.shape == shape
        if op in WITH_OPERATOR:
            assert run(op + "Gradient", y, y)[0].shape == shape


@every
def test_refuses(op):
    with pytest.raises(RuntimeError, match="x0.*bool"):
        run(op, np.ones(2, bool))
    if op not in WHOLE:
        with pytest.raises(RuntimeError, match="x0.*int32"):
            run(op, np.ones(2, np.int32))
    if op in WITH_OPERATOR:
        with pytest.raises(RuntimeError, match="same shape.*x0.*x1"):
            run(op + "Gradient", np.ones((2, 3), F), np.ones((3, 2), F))
        with pytest.raises(RuntimeError, match="x1.*float"):
            run(op + "Gradient", np.ones(2, F), np.ones(2))


def test_edges():
    x = np.array([0, -0.0, np.inf, -np.inf, np.nan], F)
    with np.errstate(all="ignore"):
        for op in (
            "Abs",
            "Atan",
            "Ceil",
            "Erf",
            "Exp",
            "Floor",
            "Log",
            "Log1p",
            "Negative",
            "Reciprocal",
            "Sqr",
            "Sqrt",
        ):
            np.testing.assert_allclose(run(op, x)[0], FUNCTIONS[op][0](x.astype(float)), rtol=1e-6)


# ---------------------------------------------------------------- with arguments

normal = hnp.arrays(
    F, hnp.array_shapes(min_dims=0, max_dims=3, max_side=6), elements=st.floats(-4, 4, width=32)
)


@given(x=normal, low=st.floats(-2, 0, width=32), high=st.floats(0, 2, width=32))
def test_clip(x, low, high):
    (y,) = run("Clip", x, min=low, max=high, inplace={0: 0})
    np.testing.assert_array_equal(y, np.clip(x, F(low), F(high)))
    (dx,) = run("ClipGradient", y, x, min=low, max=high, inplace={0: 1})
    np.testing.assert_array_equal(dx, np.where((y > F(low)) & (y < F(high)), x, 0))


def test_clip_without_limits():
    x = np.array([1e38, -1e38, 0], F)
    np.testing.assert_array_equal(run("Clip", x)[0], x)
    (dx,) = gradients("Clip", [x], [np.ones(3, F)])
    np.testing.assert_array_equal(dx, np.ones(3))


def test_clip_gradient_is_numeric():
    x = np.array([-3, -0.5, 0.2, 0.9, 4], F)
    check("Clip", lambda x: (np.clip(x, -1, 1),), [x], min=-1.0, max=1.0)


@pytest.mark.parametrize("eps", [1e-6, 1e-3, 0.2])
def test_logit(eps):
    x = np.array([[-0.5, 0.01, 0.15, 0.3], [0.5, 0.75, 0.95, 1.5]], F)

    def logit(x):
        p = np.clip(x, eps, float(1 - F(eps)))  # 1 - eps has few digits in a float
        return (np.log(p / (1 - p)),)

    check("Logit", logit, [x], eps=eps, rtol=3e-5)
    np.testing.assert_array_equal(
        run("Logit", x, eps=eps, inplace={0: 0})[0], run("Logit", x, eps=eps)[0]
    )


@pytest.mark.parametrize("eps", [0.0, 0.5, -1.0])
def test_logit_refuses(eps):
    with pytest.raises(RuntimeError, match="eps"):
        run("Logit", np.ones(2, F), eps=eps)


@given(x=normal, threshold=st.floats(-1, 1, width=32))
def test_stump(x, threshold):
    (y,) = run("StumpFunc", x, threshold=threshold, low_value=2.0, high_value=-3.0)
    np.testing.assert_array_equal(y, np.where(x <= F(threshold), F(2), F(-3)))
    low, high = run("StumpFuncIndex", x, threshold=threshold, outputs=2)
    np.testing.assert_array_equal(low, np.flatnonzero(x <= F(threshold)))
    np.testing.assert_array_equal(high, np.flatnonzero(~(x <= F(threshold))))


# ---------------------------------------------------------------- scaling


@given(x=normal, scale=st.floats(-3, 3, width=32))
def test_scale(x, scale):
    np.testing.assert_array_equal(run("Scale", x, scale=scale, inplace={0: 0})[0], x * F(scale))
    (y,) = run("Scale", x.astype(float), scale=scale)
    np.testing.assert_array_equal(y, x.astype(float) * F(scale))


def test_scale_gradient():
    x = np.linspace(-1, 1, 6, dtype=F).reshape(2, 3)
    check("Scale", lambda x: (-1.5 * x,), [x], scale=-1.5)
    np.testing.assert_array_equal(run("Scale", x)[0], x)
    with pytest.raises(RuntimeError, match="x0.*float"):
        run("Scale", np.ones(2, np.int32))


@given(
    x=normal.filter(lambda x: x.size),
    norm=st.floats(0.125, 4, width=32),
    factor=st.none() | st.floats(0.5, 2, width=32),
)
def test_clip_tensor_by_scaling(x, norm, factor):
    limit = 1.5 * (factor or 1)
    more = [] if factor is None else [np.array([factor], F)]
    (y,) = run("ClipTensorByScaling", x, np.array(norm, F), *more, threshold=1.5, inplace={0: 0})
    np.testing.assert_allclose(y, x * min(1, limit / norm), rtol=1e-5, atol=1e-6)


def test_clip_tensor_by_scaling_refuses():
    x = np.ones(2, F)
    with pytest.raises(RuntimeError, match="threshold"):
        run("ClipTensorByScaling", x, np.array(1, F))
    with pytest.raises(RuntimeError, match="x1.*elements"):
        run("ClipTensorByScaling", x, x, threshold=1.0)
    with pytest.raises(RuntimeError, match="empty"):
        run("ClipTensorByScaling", np.empty(0, F), np.array(1, F), threshold=1.0)


@given(
    shape=hnp.array_shapes(max_dims=3, max_side=5),
    dtype=st.sampled_from([np.float32, np.int32, np.int64]),
)
def test_square_root_divide(shape, dtype):
    rng = np.random.default_rng(shape)
    x, scale = rng.standard_normal(shape).astype(F), rng.integers(0, 4, shape[:1]).astype(dtype)
    root = np.sqrt(np.where(scale, scale, 1)).reshape(-1, *[1] * (len(shape) - 1))
    check("SquareRootDivide", lambda x, s: (x / root,), [x, scale])
    np.testing.assert_allclose(
        run("SquareRootDivide", x, scale, inplace={0: 0})[0], x / root, rtol=1e-5
    )


def test_square_root_divide_refuses():
    x = np.ones((2, 3), F)
    with pytest.raises(RuntimeError, match="negative"):
        run("SquareRootDivide", x, np.array([1, -1]))
    with pytest.raises(RuntimeError, match="x1.*elements"):
        run("SquareRootDivide", x, np.ones(3, F))
    with pytest.raises(RuntimeError, match="x1.*bool"):
        run("SquareRootDivide", x, np.ones(2, bool))
    with pytest.raises(RuntimeError, match="dimension"):
        run("SquareRootDivide", np.array(1, F), np.ones(1, F))

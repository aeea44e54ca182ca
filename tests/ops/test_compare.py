"""Comparisons, logic and bits against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opcheck import gradients, run

F = np.float32
COMPARISONS = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}
LOGIC = {"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor}
BITS = {"BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor}
ALL = COMPARISONS | LOGIC | BITS

pairs = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4).map(
    lambda s: s.input_shapes
)


def dtypes(op):
    if op in COMPARISONS:
        return [np.float32, np.float64, np.int32, np.int64, np.bool_]
    return [np.bool_] if op in LOGIC else [np.int32, np.int64, np.bool_]


def values(shape, dtype, seed=0):
    """Few different ones, so that some are equal."""
    x = np.random.default_rng([seed, *shape]).integers(0, 2 if dtype == np.bool_ else 5, shape)
    return np.array(x, dtype)


def same(got, expected):
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("op", ALL)
@given(pair=pairs, data=st.data())
@settings(max_examples=30)
def test_broadcast_as_numpy_does(op, pair, data):
    dtype = data.draw(st.sampled_from(dtypes(op)))
    a, b = values(pair[0], dtype), values(pair[1], dtype, 1)
    same(run(op, a, b)[0], ALL[op](a, b))


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize(
    "shape, axis", [((4,), -1), ((3,), 1), ((2, 3), 0), ((1, 3, 1), 0), ((), -1)]
)
def test_broadcast_onto_the_first(op, shape, axis):
    for dtype in dtypes(op):
        a, b = values((2, 3, 4), dtype), values(shape, dtype, 1)
        start = 3 - b.ndim if axis == -1 else axis
        (c,) = run(op, a, b, broadcast=1, axis=axis)
        same(c, ALL[op](a, b.reshape(b.shape + (1,) * (3 - start - b.ndim))))


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize(
    "pair", [((700, 500), (700, 500)), ((500, 700), (700,)), ((1,), (300000,))]
)
def test_large(op, pair):
    dtype = dtypes(op)[0]
    a, b = values(pair[0], dtype), values(pair[1], dtype, 1)
    same(run(op, a, b)[0], ALL[op](a, b))


@pytest.mark.parametrize("op", COMPARISONS)
def test_nan_and_infinity(op):
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0], F)
    a, b = np.meshgrid(x, x)
    same(run(op, a, b)[0], COMPARISONS[op](a, b))


@pytest.mark.parametrize("op, which", [(o, 0) for o in LOGIC | BITS] + [(o, 1) for o in BITS])
def test_in_place(op, which):
    for dtype in dtypes(op):
        a, b = values((3, 4), dtype), values((3, 4), dtype, 1)
        same(run(op, a, b, inplace={0: which})[0], ALL[op](a, b))


@pytest.mark.parametrize("op", ALL)
def test_empty(op):
    dtype = dtypes(op)[0]
    (c,) = run(op, np.empty((0, 3), dtype), np.ones(3, dtype))
    assert c.shape == (0, 3)


@pytest.mark.parametrize("op", ALL)
def test_refuses(op):
    dtype = dtypes(op)[0]
    x = np.ones((2, 3), dtype)
    with pytest.raises(RuntimeError, match="broadcast.*x0.*x1"):
        run(op, x, x[:, :2])
    with pytest.raises(RuntimeError, match="differ"):
        run(op, x, x[:, :2], broadcast=1)
    with pytest.raises(RuntimeError, match="x1.*type"):
        run(op, x, x.astype(np.uint8))
    with pytest.raises(RuntimeError, match="x0.*type"):
        run(op, x.astype(np.uint8), x)
    if op not in COMPARISONS:
        with pytest.raises(RuntimeError, match="x0.*float"):
            run(op, x.astype(F), x.astype(F))
    else:
        with pytest.raises(RuntimeError, match="same blob"):
            run(op, x, x, inplace={0: 0})


@pytest.mark.parametrize("op", ALL)
def test_no_gradient_flows(op):
    x = np.ones(3, dtypes(op)[0])
    run(op, x, x)
    assert gradients(op, [x, x], [np.ones(3, F)]) == [None, None]


@given(x=hnp.arrays(np.bool_, hnp.array_shapes(min_dims=0, min_side=0)))
def test_not(x):
    same(run("Not", x)[0], np.logical_not(x))
    same(run("Not", x, inplace={0: 0})[0], np.logical_not(x))


def test_not_refuses():
    with pytest.raises(RuntimeError, match="x0.*bool"):
        run("Not", np.ones(2, np.int32))

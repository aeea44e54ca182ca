"""Distances of rows: values against numpy, gradients against finite differences, errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.python import core, workspace

F = np.float32


def padded(x, y, pad_value=0, replicate=0):
    """Both rows at the length of the longer one."""
    longest = max(x.shape[1], y.shape[1])
    if replicate:
        return (np.tile(v, (1, longest // v.shape[1])) for v in (x, y))
    return (np.pad(v, ((0, 0), (0, longest - v.shape[1])), constant_values=pad_value)
            for v in (x, y))


def cosine(x, y):
    return (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))


def dot_with_padding(x, y, **args):
    x, y = padded(x, y, **args)
    return (x * y).sum(1)


OPERATORS = {
    "SquaredL2Distance": lambda x, y: ((x - y) ** 2).sum(1) / 2,
    "L1Distance": lambda x, y: np.abs(x - y).sum(1),
    "DotProduct": lambda x, y: (x * y).sum(1),
    "CosineSimilarity": cosine,
    "DotProductWithPadding": dot_with_padding,
}


def run(op, arrays, outputs, **args):
    names = [f"x{i}" for i in range(len(arrays))]
    for name, value in zip(names, arrays):
        workspace.FeedBlob(name, value)
    outs = [f"y{i}" for i in range(outputs)]
    workspace.RunOperatorOnce(core.CreateOperator(op, names, outs, **args))
    return [workspace.FetchBlob(name) for name in outs]


def check(op, x, y, **args):
    def value(a, b):
        return OPERATORS[op](a, b, **args)
    n = len(x)
    x64, y64 = x.reshape(n, -1).astype(float), y.reshape(n, -1).astype(float)
    (z,) = run(op, [x, y], 1, **args)
    assert z.shape == (n,)
    np.testing.assert_allclose(z, value(x64, y64), rtol=1e-5, atol=1e-5)

    # Directional derivatives of sum(dz * f) along random directions, one of x, one of y.
    rng = np.random.default_rng(n)
    dz = rng.standard_normal(n).astype(F)
    dx, dy = run(op + "Gradient", [x, y, dz], 2, **args)
    assert dx.shape == x.shape and dy.shape == y.shape
    step = 1e-6
    for which, d in enumerate((dx, dy)):
        direction = rng.standard_normal((x64, y64)[which].shape)
        ends = []
        for sign in (1, -1):
            moved = [x64, y64]
            moved[which] = moved[which] + sign * step * direction
            ends.append((dz * value(*moved)).sum())
        slope = (ends[0] - ends[1]) / (2 * step)
        assert np.vdot(d.reshape(n, -1).astype(float), direction) == pytest.approx(
            slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("op", [op for op in OPERATORS if op != "DotProductWithPadding"])
@given(n=st.integers(1, 5), d=st.lists(st.integers(1, 9), max_size=2), seed=st.integers(0, 99))
def test_distance(op, n, d, seed):
    x, y = np.random.default_rng(seed).standard_normal((2, n, *d)).astype(F)
    # away from the kink of |x - y|
    y = np.where(np.abs(x - y) < 1e-3, y + F(0.01), y)
    check(op, x, y)


def test_many_rows():
    """Large enough for several threads."""
    x, y = np.random.default_rng(0).standard_normal((2, 500, 300)).astype(F)
    for op, f in OPERATORS.items():
        (z,) = run(op, [x, y], 1)
        np.testing.assert_allclose(z, f(x.astype(float), y.astype(float)), rtol=1e-5, atol=1e-4)


@given(n=st.integers(1, 4), dx=st.integers(1, 7), dy=st.integers(1, 7),
       pad_value=st.sampled_from([0.0, -0.5, 2.0]), seed=st.integers(0, 99))
def test_padding(n, dx, dy, pad_value, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, dx)).astype(F), rng.standard_normal((n, dy)).astype(F)
    check("DotProductWithPadding", x, y, pad_value=pad_value)


@given(n=st.integers(1, 4), short=st.integers(1, 4), times=st.integers(1, 4), swap=st.booleans())
def test_replicate(n, short, times, swap):
    rng = np.random.default_rng(n + 10 * short + 100 * times)
    x = rng.standard_normal((n, short * times)).astype(F)
    y = rng.standard_normal((n, short)).astype(F)
    check("DotProductWithPadding", *((y, x) if swap else (x, y)), replicate=1)


def test_l1_gradient_is_zero_where_equal():
    dx, dy = run("L1DistanceGradient", [F([[1, 2]]), F([[1, 5]]), F([3])], 2)
    np.testing.assert_array_equal(dx, [[0, -3]])
    np.testing.assert_array_equal(dy, [[0, 3]])


def test_cosine_of_zero_row():
    (z,) = run("CosineSimilarity", [np.zeros((1, 3), F), np.ones((1, 3), F)], 1)
    np.testing.assert_array_equal(z, [0])


@pytest.mark.parametrize("op, shape, rows", [
    ("SquaredL2Distance", (0, 3), 0), ("SquaredL2Distance", (2, 0), 2), ("L1Distance", (2, 0), 2),
    ("CosineSimilarity", (2, 0), 2), ("DotProduct", (2, 0), 0), ("DotProductWithPadding", (0, 4), 0),
])
def test_empty(op, shape, rows):
    empty = np.empty(shape, F)
    (z,) = run(op, [empty, empty], 1)
    np.testing.assert_array_equal(z, np.zeros(rows))
    dx, dy = run(op + "Gradient", [empty, empty, np.ones(rows, F)], 2)
    assert dx.shape == dy.shape == shape


@pytest.mark.parametrize("op", OPERATORS)
def test_gradient_operator(op):
    made, wanted = core.GradientRegistry.GetGradientForOp(
        core.CreateOperator(op, ["x", "y"], ["z"]), ["dz"])
    assert [(o.type, list(o.input), list(o.output)) for o in made] == [
        (op + "Gradient", ["x", "y", "dz"], ["x_grad", "y_grad"])]
    assert [str(g) for g in wanted] == ["x_grad", "y_grad"]


@pytest.mark.parametrize("op", OPERATORS)
def test_bad_input(op):
    ones = np.ones((2, 3), F)
    with pytest.raises(RuntimeError, match=op):
        run(op, [ones, np.ones((3, 3), F)], 1)
    with pytest.raises(RuntimeError, match=op):
        run(op, [ones, np.ones((2, 3), np.int32)], 1)
    with pytest.raises(RuntimeError, match=op):
        run(op + "Gradient", [ones, ones, np.ones(3, F)], 2)


def test_rows_that_do_not_repeat():
    with pytest.raises(RuntimeError, match="multiple"):
        run("DotProductWithPaddingGradient",
            [np.ones((2, 3), F), np.ones((2, 2), F), np.ones(2, F)], 2, replicate=1)

"""Reductions over axes, the front and the back, and moments against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caffe2.python import core, workspace
from numeric import check
from opcheck import gradients, run

F = np.float32
REDUCTIONS = {
    "Sum": np.sum,
    "Mean": np.mean,
    "Max": np.max,
    "Min": np.min,
    "L1": lambda x, axis, keepdims=False: abs(x).sum(axis, keepdims=keepdims),
    "L2": lambda x, axis, keepdims=False: np.sqrt((x * x).sum(axis, keepdims=keepdims)),
}
SIDED = ["Sum", "Mean", "Max"]
NUMBERS = [np.float32, np.float64, np.int32, np.int64]

each = pytest.mark.parametrize("op", REDUCTIONS)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)


def values(shape, dtype=F):
    """Distinct ones other than 0, as extremes and absolute values have no slope at kinks."""
    n = int(np.prod(shape))
    x = np.random.default_rng(n).permutation(n).reshape(shape) - n // 2
    return np.array((x + (x >= 0)) / (4 if np.dtype(dtype).kind == "f" else 1), dtype)


@st.composite
def reductions(draw):
    """A shape and arguments axes and keepdims; numpy's axis and keepdims."""
    shape = draw(shapes)
    axes = (
        draw(st.none() | st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
        if shape
        else None
    )
    keep = draw(st.none() | st.booleans())
    signed = [a - len(shape) if draw(st.booleans()) else a for a in axes or ()]
    args = {} if axes is None else {"axes": signed}
    args |= {} if keep is None else {"keepdims": int(keep)}
    return (
        shape,
        args,
        {"axis": None if axes is None else tuple(axes), "keepdims": keep is None or keep},
    )


# ---------------------------------------------------------------- over axes


@each
@given(case=reductions())
@settings(max_examples=40)
def test_over_axes(op, case):
    shape, args, numpys = case
    check("Reduce" + op, lambda x: (REDUCTIONS[op](x, **numpys),), [values(shape)], **args)


@each
@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("axes", [[0], [1], [0, 2], [0, 1, 2]])
def test_dtypes(op, dtype, axes):
    x = values((3, 17, 4), dtype)
    (y,) = run("Reduce" + op, x, axes=axes, keepdims=0)
    expected = REDUCTIONS[op](x, axis=tuple(axes))
    assert y.dtype == dtype
    np.testing.assert_allclose(
        y, np.trunc(expected) if np.dtype(dtype).kind == "i" else expected, rtol=1e-6
    )


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min", "L1", "L2"])
def test_gradient_of_doubles(op):
    x, dy = values((3, 4, 2), np.float64), np.array([[1.5, -2.0]] * 3)
    run("Reduce" + op, x, axes=[1], keepdims=0)
    (dx,) = gradients("Reduce" + op, [x], [dy], axes=[1], keepdims=0)
    step = 1e-6
    for k in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[k] = step
        slope = (REDUCTIONS[op](x + moved, axis=1) - REDUCTIONS[op](x - moved, axis=1)) / (2 * step)
        np.testing.assert_allclose(dx[k], (dy * slope).sum(), rtol=1e-6, atol=1e-8)


@each
@pytest.mark.parametrize(
    "shape, axes",
    [
        ((700, 500), [0]),
        ((700, 500), [1]),
        ((700, 500), [0, 1]),
        ((40, 50, 300), [1]),
        ((40, 50, 300), [0, 2]),
        ((300000, 2), [1]),
        ((300000, 2), [0]),
        ((20, 30, 40, 20), [0, 2]),
    ],
)
def test_large(op, shape, axes):
    x = np.random.default_rng(0).standard_normal(shape).astype(F)
    (y,) = run("Reduce" + op, x, axes=axes, keepdims=0)
    np.testing.assert_allclose(
        y,
        REDUCTIONS[op](x.astype(float), axis=tuple(axes)),
        rtol=1e-4,
        atol=2e-2 if op == "Sum" else 1e-5,
    )
    (dx,) = gradients("Reduce" + op, [x], [y], axes=axes, keepdims=0)
    wide = np.expand_dims(y.astype(float), tuple(axes))
    count = x.size // y.size
    expected = {"Sum": wide, "Mean": wide / count, "L1": wide * np.sign(x), "L2": x}.get(
        op, np.where(x == wide, wide, 0)
    )
    np.testing.assert_allclose(dx, np.broadcast_to(expected, shape), rtol=1e-5)


def test_long_sums_keep_their_digits():
    for shape, axes in ((3, 1_000_000), [1]), ((3, 1_000_000), [0, 1]), ((1_000_000, 3), [0]):
        x = np.full(shape, 0.1, F)  # added up one by one they would be off by 1 %
        (y,) = run("ReduceSum", x, axes=axes, keepdims=0)
        np.testing.assert_allclose(y, x.astype(float).sum(tuple(axes)), rtol=1e-4)


@each
def test_empty(op):
    for shape, axes, expected in ((0, 3), [1], (0,)), ((0, 3), [0], (3,)), ((2, 0), [0, 1], ()):
        (y,) = run("Reduce" + op, np.empty(shape, F), axes=axes, keepdims=0)
        assert y.shape == expected
        if op in ("Sum", "Mean", "L1", "L2"):
            np.testing.assert_array_equal(y, 0)
        (dx,) = gradients("Reduce" + op, [np.empty(shape, F)], [y], axes=axes, keepdims=0)
        assert dx.shape == shape


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_nan_wins_and_ties_share(op):
    x = np.array([[1, np.nan, 3], [2, 2, 2]], F)
    for axes, at in ([1], 0), ([0], 1):
        assert np.isnan(run("Reduce" + op, x, axes=axes, keepdims=0)[0][at])
    (y,) = run("Reduce" + op, x[1:], axes=[1])
    (dx,) = gradients("Reduce" + op, [x[1:]], [y], axes=[1])
    np.testing.assert_array_equal(dx, np.full((1, 3), 2))
    for inf in np.inf, -np.inf:
        (y,) = run("Reduce" + op, np.full((9, 9), inf, F), axes=[0])
        np.testing.assert_array_equal(y, np.full((1, 9), inf))


def test_gradient_at_kinks():
    x = np.zeros((2, 3), F)
    for op in "L1", "L2":
        (y,) = run("Reduce" + op, x, axes=[1])
        np.testing.assert_array_equal(gradients("Reduce" + op, [x], [y + 1], axes=[1])[0], x)


@each
def test_refuses(op):
    x = values((2, 3))
    for axes in [2], [-3], [0, 5]:
        with pytest.raises(RuntimeError, match="axes.*x0"):
            run("Reduce" + op, x, axes=axes)
    with pytest.raises(RuntimeError, match="too many"):
        run("Reduce" + op, x, axes=[0] * 17)
    with pytest.raises(RuntimeError, match="x0.*bool"):
        run("Reduce" + op, np.ones(2, bool))
    with pytest.raises(RuntimeError, match="x0.*elements"):
        run(f"Reduce{op}Gradient", x, x, x[0], axes=[0])
    if op not in ("Sum", "Mean"):
        with pytest.raises(RuntimeError, match="x1.*float"):
            run(f"Reduce{op}Gradient", x[0], x.astype(float), x[0], axes=[0])
        with pytest.raises(RuntimeError, match="x2.*elements"):
            run(f"Reduce{op}Gradient", x[0], x, x, axes=[0])


# ---------------------------------------------------------------- the front and the back


@pytest.mark.parametrize("side", ["Front", "Back"])
@pytest.mark.parametrize("op", SIDED)
@given(shape=shapes, data=st.data())
@settings(max_examples=30)
def test_sides(op, side, shape, data):
    num = data.draw(st.integers(0, len(shape)))
    axes = range(num) if side == "Front" else range(len(shape) - num, len(shape))
    check(
        f"Reduce{side}{op}",
        lambda x: (REDUCTIONS[op](x, axis=tuple(axes)),),
        [values(shape)],
        num_reduce_dim=num,
    )


@pytest.mark.parametrize("side", ["Front", "Back"])
@pytest.mark.parametrize("op", SIDED)
@given(shape=hnp.array_shapes(max_dims=3, max_side=5), data=st.data())
@settings(max_examples=30)
def test_lengths(op, side, shape, data):
    axis = 0 if side == "Front" else -1
    n = shape[axis]
    kept = shape[1:] if side == "Front" else shape[:-1]
    lengths = data.draw(hnp.arrays(np.int32, int(np.prod(kept)), elements=st.integers(1, n)))

    def reference(x, lengths):
        rows = np.moveaxis(x, axis, -1).reshape(-1, n)
        return (
            np.array(
                [REDUCTIONS[op](r[:k], axis=0) for r, k in zip(rows, lengths, strict=True)]
            ).reshape(kept),
        )

    check(f"Reduce{side}{op}", reference, [values(shape), lengths])


@pytest.mark.parametrize("side", ["Front", "Back"])
@pytest.mark.parametrize("op", SIDED)
@pytest.mark.parametrize("dtype", NUMBERS)
def test_sides_of_other_dtypes(op, side, dtype):
    x = values((3, 4), dtype)
    if side == "Front":
        x = x.T.copy()
    axis = 0 if side == "Front" else 1
    whole = np.dtype(dtype).kind == "i"
    lengths = np.array([1, 4, 2], np.int32)
    rows = x if side == "Back" else x.T
    for more, expected in (
        ([], REDUCTIONS[op](x, axis=axis)),
        (
            [lengths],
            np.array([REDUCTIONS[op](r[:k], axis=0) for r, k in zip(rows, lengths, strict=True)]),
        ),
    ):
        (y,) = run(f"Reduce{side}{op}", x, *more)
        assert y.dtype == dtype
        if whole and op == "Mean":
            assert (abs(y - expected) < 1).all()
        else:
            np.testing.assert_allclose(y, expected, rtol=1e-6)
        (dx,) = gradients(f"Reduce{side}{op}", [x, *more], [y])[:1]
        assert dx.dtype == dtype
        assert dx.shape == x.shape
        if op == "Sum":
            counted = np.arange(4) < (lengths[:, None] if more else 4)
            wide = np.where(counted, y[:, None], 0)
            np.testing.assert_array_equal(dx, wide if side == "Back" else wide.T)


@pytest.mark.parametrize("side", ["Front", "Back"])
@pytest.mark.parametrize("op", ["Sum", "Mean"])
def test_gradient_from_a_shape(op, side):
    dy = values((4, 3))
    shape = np.array([2, 4, 3] if side == "Front" else [4, 3, 2])
    (dx,) = run(f"Reduce{side}{op}Gradient", dy, shape)
    wide = np.broadcast_to(dy if side == "Front" else dy[..., None], shape)
    np.testing.assert_allclose(dx, wide / (2 if op == "Mean" else 1))
    with pytest.raises(RuntimeError):
        run(f"Reduce{side}{op}Gradient", dy, np.array([-2, 4, 3]))
    with pytest.raises(RuntimeError, match="too many"):
        run(f"Reduce{side}{op}Gradient", dy, np.ones(17, np.int64))


@pytest.mark.parametrize("side", ["Front", "Back"])
@pytest.mark.parametrize("op", SIDED)
def test_sides_refuse(op, side):
    x, name = values((3, 3)), f"Reduce{side}{op}"
    for num in -1, 3:
        with pytest.raises(RuntimeError, match="num_reduce_dim"):
            run(name, x, num_reduce_dim=num)
    for lengths in [0, 4, 1], [1, -1, 1]:
        with pytest.raises(RuntimeError, match="length"):
            run(name, x, np.array(lengths, np.int32))
    with pytest.raises(RuntimeError, match="x1.*elements"):
        run(name, x, np.ones(2, np.int32))
    with pytest.raises(RuntimeError, match="x1.*int32"):
        run(name, x, np.ones(3, np.int64))
    with pytest.raises(RuntimeError, match="num_reduce_dim=1"):
        run(name, x, np.ones(1, np.int32), num_reduce_dim=2)
    assert run(name, np.empty((0, 3) if side == "Front" else (3, 0), F))[0].shape == (3,)


# ---------------------------------------------------------------- matrices


@given(shape=hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
def test_rowwise_and_colwise_max(shape):
    check("RowwiseMax", lambda x: (x.max(2),), [values(shape)])
    check("ColwiseMax", lambda x: (x.max(1),), [values(shape)])


def test_rowwise_and_colwise_max_refuse():
    for op in "RowwiseMax", "ColwiseMax":
        with pytest.raises(RuntimeError, match="3 dimensions"):
            run(op, values((2, 3)))
    with pytest.raises(RuntimeError, match="takes X, Y"):
        run("ColwiseMaxGradient", values((2, 3, 4)))


@given(shape=hnp.array_shapes(max_dims=4, max_side=4))
def test_reduce_tail_sum(shape):
    x = values(shape)
    (y,) = run("ReduceTailSum", x)
    np.testing.assert_allclose(y, x.reshape(shape[0], -1).sum(1), rtol=1e-5)
    with pytest.raises(RuntimeError, match="dimension"):
        run("ReduceTailSum", np.array(1, F))


# ---------------------------------------------------------------- moments


@given(case=reductions())
@settings(max_examples=40)
def test_moments(case):
    shape, args, numpys = case
    check(
        "Moments",
        lambda x: (x.mean(**numpys), x.var(**numpys)),
        [values(shape)],
        outputs=2,
        flows=(0, 1),
        rtol=2e-5,
        **args,
    )


def test_moments_far_from_zero():
    x = (np.random.default_rng(0).standard_normal((500, 700)) + 1000).astype(F)
    for axes in [0], [1], [0, 1]:
        mean, variance = run("Moments", x, axes=axes, outputs=2)
        wide = x.astype(float)
        np.testing.assert_allclose(mean, wide.mean(tuple(axes), keepdims=True), rtol=1e-6)
        np.testing.assert_allclose(variance, wide.var(tuple(axes), keepdims=True), rtol=1e-3)


def test_moments_of_doubles():
    x = values((3, 4), np.float64)
    mean, variance = run("Moments", x, axes=[1], outputs=2)
    np.testing.assert_allclose(variance, x.var(1, keepdims=True), rtol=1e-13)
    dx = run("MomentsGradient", mean, variance, x, mean, axes=[1])[0]
    np.testing.assert_allclose(dx, (mean + 2 * (x - mean) * variance) / 4, rtol=1e-13)


def test_moments_refuse():
    x = values((2, 3))
    with pytest.raises(RuntimeError, match="x0.*int64"):
        run("Moments", np.array([1]), outputs=2)
    with pytest.raises(RuntimeError, match="axes"):
        run("Moments", x, axes=[2], outputs=2)
    with pytest.raises(RuntimeError, match="x1.*elements"):
        run("MomentsGradient", x[0], x, x, x[0], axes=[0])
    with pytest.raises(RuntimeError, match="x3.*float"):
        run("MomentsGradient", x[0], x[0], x, x[0].astype(float), axes=[0])


@pytest.mark.parametrize("type_", ["ReduceFrontSum", "ReduceBackMax"])
@pytest.mark.parametrize("n", [-1, 3, 2**40])
def test_inference_refuses_to_reduce_more_dimensions_than_there_are(type_, n):
    net = core.Net("n")
    net.Proto().op.append(core.CreateOperator(type_, "x", "y", num_reduce_dim=n))
    with pytest.raises(RuntimeError, match="num_reduce_dim"):
        workspace.InferShapesAndTypes([net], {"x": [2, 3]})

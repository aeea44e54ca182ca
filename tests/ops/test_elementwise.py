"""Arithmetic with broadcasting, operators of many inputs, powers and scaled rows against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caffe2._core.schema import OpSchema, TensorInfo
from caffe2.python import workspace
from numeric import check
from opcheck import gradients, operator, run

F = np.float32
ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
NUMBERS = [np.float32, np.float64, np.int32, np.int64]

each = pytest.mark.parametrize("op", ARITHMETIC)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)
pairs = hnp.mutually_broadcastable_shapes(
    num_shapes=2, min_dims=0, max_dims=4, min_side=1, max_side=4
).map(lambda s: s.input_shapes)


def values(shape, seed=0, dtype=F):
    """Nonzero values, so that all of them may divide."""
    rng = np.random.default_rng([seed, *shape])
    x = rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)
    return np.array(x if np.dtype(dtype).kind == "f" else np.where(x > 0, 1, -3), dtype)


@st.composite
def legacy(draw):
    """Shapes of A and B and an axis, as broadcast=1 has them."""
    a = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    axis = draw(st.integers(0, len(a)))
    b = a[axis : draw(st.integers(axis, len(a)))]
    ones = draw(st.integers(0, len(b))), draw(st.integers(0, len(b)))
    keep = [n if ones[0] <= i < len(b) - ones[1] else 1 for i, n in enumerate(b)]
    last = axis + len(b) == len(a)
    return a, tuple(keep), -1 if last and draw(st.booleans()) else axis


def spread(a, b, axis):
    """B with the dimensions that broadcast it onto A as numpy does."""
    axis = a.ndim - b.ndim if axis == -1 else axis
    return b.reshape(b.shape + (1,) * (a.ndim - axis - b.ndim))


# ---------------------------------------------------------------- + - * /


@each
@given(pair=pairs)
@settings(max_examples=30)
def test_broadcast_as_numpy_does(op, pair):
    check(
        op,
        lambda a, b: (ARITHMETIC[op](a, b),),
        [values(pair[0]), values(pair[1], 1)],
        wanted=(0, 1),
    )


@each
@given(case=legacy())
@settings(max_examples=30)
def test_broadcast_onto_the_first(op, case):
    a, b, axis = case
    check(
        op,
        lambda a, b: (ARITHMETIC[op](a, spread(a, b, axis)),),
        [values(a), values(b, 1)],
        wanted=(0, 1),
        broadcast=1,
        **({} if axis == -1 else {"axis": axis}),
    )


@each
@pytest.mark.parametrize(
    "letter, order, axis", [("C", "NCHW", 1), ("C", "NHWC", 3), ("N", "NCHW", 0)]
)
def test_axis_as_a_letter(op, letter, order, axis):
    a = values((2, 3, 2, 4))
    b = values(a.shape[axis : axis + 1], 1)
    (c,) = run(op, a, b, broadcast=1, axis_str=letter, order=order)
    np.testing.assert_allclose(c, ARITHMETIC[op](a, spread(a, b, axis)), rtol=1e-6)


@each
def test_a_single_value_of_any_shape_is_broadcast_onto_the_first(op):
    a, b = values((2, 3)), values((1, 1, 1, 1))
    (c,) = run(op, a, b, broadcast=1)
    np.testing.assert_allclose(c, ARITHMETIC[op](a, b[0, 0]), rtol=1e-6)


@each
@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("pair", [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (2,))])
def test_dtypes(op, dtype, pair):
    a, b = values(pair[0], dtype=dtype), values(pair[1], 1, dtype)
    (c,) = run(op, a, b)
    expected = ARITHMETIC[op](a, b)
    assert c.dtype == dtype
    if np.dtype(dtype).kind == "i":  # towards zero, as C divides
        expected = np.trunc(expected)
    np.testing.assert_allclose(c, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_division_of_integers(dtype):
    low = np.iinfo(dtype).min
    a = np.array([7, -7, 7, -7, low, low], dtype)
    (c,) = run("Div", a, np.array([2, 2, -2, -2, -1, 1], dtype))
    assert c.tolist() == [3, -3, -3, 3, low, low]
    with pytest.raises(RuntimeError, match="division by zero"):
        run("Div", a, np.array([2, 2, 0, 1, 1, 1], dtype))
    with pytest.raises(RuntimeError, match="division by zero"):
        run("DivGradient", a, a, np.array([2, 2, 0, 1, 1, 1], dtype), a, outputs=2)


@each
@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_gradients_of_other_dtypes(op, dtype):
    a, b, dc = values((4, 3), 0, dtype), values((3,), 1, dtype), values((4, 3), 2, dtype)
    c = ARITHMETIC[op](a, b).astype(dtype)
    da, db = run(op + "Gradient", dc, a, b, *([c] if op == "Div" else []), outputs=2)
    expected = {
        "Add": (dc, dc),
        "Sub": (dc, -dc),
        "Mul": (dc * b, dc * a),
        "Div": (
            np.trunc(dc / b) if dtype == np.int64 else dc / b,
            np.trunc(-dc * c / b) if dtype == np.int64 else -dc * c / b,
        ),
    }[op]
    assert da.dtype == db.dtype == dtype
    np.testing.assert_allclose(da, expected[0], rtol=1e-12)
    np.testing.assert_allclose(db, expected[1].sum(0), rtol=1e-12)


@each
@pytest.mark.parametrize(
    "pair",
    [
        ((700, 500), (700, 500)),
        ((700, 500), (500,)),
        ((700, 500), (700, 1)),
        ((1, 500), (700, 1)),
        ((200000, 3), (3,)),
        ((3, 200000), (3, 1)),
        ((20, 30, 40, 20), (30, 1, 20)),
        ((), (300000,)),
    ],
)
def test_large(op, pair):
    a, b = values(pair[0]), values(pair[1], 1)
    (c,) = run(op, a, b)
    np.testing.assert_allclose(c, ARITHMETIC[op](a, b), rtol=1e-6)
    dc = values(c.shape, 2)
    da, db = gradients(op, [a, b], [dc])
    wide_a, wide_b, g = (x.astype(float) for x in (a, b, dc))
    ones = np.ones_like(g)
    for got, terms, like in (
        (da, {"Mul": g * wide_b, "Div": g / wide_b}.get(op, g), a),
        (db, {"Sub": -g, "Mul": g * wide_a, "Div": -g * wide_a / wide_b**2}.get(op, g), b),
    ):
        gone = tuple(range(g.ndim - like.ndim))
        gone += tuple(i for i in range(len(gone), g.ndim) if like.shape[i - len(gone)] == 1)
        size = np.sqrt((ones * terms**2).sum(gone).reshape(like.shape))
        np.testing.assert_array_less(
            abs(got - terms.sum(gone).reshape(like.shape)), 1e-5 * size + 1e-6
        )


@each
@pytest.mark.parametrize(
    "pair, shape",
    [
        (((0, 3), (3,)), (0, 3)),
        (((0,), (1,)), (0,)),
        (((2, 0), ()), (2, 0)),
        (((0, 0), (0,)), (0, 0)),
    ],
)
def test_empty(op, pair, shape):
    a, b = np.empty(pair[0], F), np.ones(pair[1], F)
    (c,) = run(op, a, b)
    assert c.shape == shape
    da, db = gradients(op, [a, b], [c])
    assert da.shape == a.shape
    np.testing.assert_array_equal(db, np.zeros_like(b))


@pytest.mark.parametrize(
    "op, which",
    [
        ("Add", 0),
        ("Add", 1),
        ("Sub", 0),
        ("Sub", 1),
        ("Mul", 0),
        ("Mul", 1),
        ("Div", 0),
    ],
)
@pytest.mark.parametrize("other", [(3, 4), (4,), (3, 1), ()])
def test_in_place(op, which, other):
    arrays = [values(other, 1), values(other, 1)]
    arrays[which] = values((3, 4))
    expected = ARITHMETIC[op](*arrays)
    (c,) = run(op, *arrays, inplace={0: which})
    np.testing.assert_allclose(c, expected, rtol=1e-6)


@each
@pytest.mark.parametrize(
    "inputs, args, message",
    [
        ([values((2, 3)), values((2,))], {}, r"broadcast.*x0.*x1"),
        ([values((2, 3)), values((2,))], {"broadcast": 1}, r"differ.*x0.*x1"),
        ([values((2, 3)), values((2, 3))], {"axis": 0}, "axis.*broadcast=1"),
        ([values((2, 3)), values((2, 2))], {"broadcast": 1, "axis": 1}, "axis"),
        ([values((2,)), values((1, 2))], {"broadcast": 1}, "dimensions"),
        ([values((2,)), values((2,))], {"broadcast": 1, "axis": 0, "axis_str": "C"}, "exclude"),
        ([values((2,)), values((2,))], {"broadcast": 1, "axis_str": "D"}, "axis_str"),
        ([values((2,)), values((2,), dtype=float)], {}, "x1.*float"),
        ([np.ones(2, bool), np.ones(2, bool)], {}, "x0.*bool"),
    ],
)
def test_refuses(op, inputs, args, message):
    with pytest.raises(RuntimeError, match=message):
        run(op, *inputs, **args)


def test_refuses_to_overwrite_what_is_broadcast():
    with pytest.raises(RuntimeError, match="broadcast"):
        run("Add", values((3,)), values((2, 3)), inplace={0: 0})
    with pytest.raises(RuntimeError, match="same blob"):
        run("Div", values((3,)), values((3,)), inplace={0: 1})


@each
def test_gradient_in_place(op):
    a, b, dc = values((3, 4)), values((3, 4), 1), values((3, 4), 2)
    inputs = [dc, a, b] + ([a / b] if op == "Div" else [])
    expected = run(op + "Gradient", *inputs, outputs=2)
    for o in (0,) if op == "Div" else (0, 1):
        got = run(op + "Gradient", *inputs, outputs=2, inplace={o: 0})
        np.testing.assert_array_equal(got, expected)
    small = run(op + "Gradient", *[dc, a, b[0]] + inputs[3:], outputs=2)
    got = run(op + "Gradient", *[dc, a, b[0]] + inputs[3:], outputs=2, inplace={0: 0})
    np.testing.assert_array_equal(got[1], small[1])
    if op != "Div":
        with pytest.raises(RuntimeError, match="in place"):
            run(op + "Gradient", dc, a, b[0], outputs=2, inplace={1: 0})


def test_gradient_of_division_from_three_inputs():
    a, b, dc = values((4, 3)), values((3,), 1), values((4, 3), 2)
    da, db = run("DivGradient", b, a / b, dc, outputs=2)
    np.testing.assert_allclose(da, dc / b, rtol=1e-5)
    np.testing.assert_allclose(db, (-dc * a / b**2).sum(0), rtol=1e-5)
    b, expected = values((4, 3), 1), run("DivGradient", values((4, 3), 1), a, dc, outputs=2)
    got = run("DivGradient", b, a, dc, outputs=2, inplace={0: 0})
    np.testing.assert_array_equal(got, expected)


@each
def test_gradient_refuses(op):
    a, b = values((2, 3)), values((3,))
    more = [a] if op == "Div" else []
    with pytest.raises(RuntimeError, match="shaped like the result"):
        run(op + "Gradient", values((3,)), a, b, *more, outputs=2)
    with pytest.raises(RuntimeError, match="x2.*float"):
        run(op + "Gradient", a, a, b.astype(float), *more, outputs=2)


def test_inferred_shapes():
    schema = OpSchema.get("Add")
    op = operator("Add", [0, 0])
    for a, b, c in (
        ((2, 3), (3,), (2, 3)),
        ((-1, 1), (4,), (-1, 4)),
        ((-1,), (1,), (-1,)),
        ((0, 1), (5,), (0, 5)),
    ):
        assert schema.infer(op, [TensorInfo(a), TensorInfo(b)]) == [TensorInfo(c)]
    assert schema.infer(op, [TensorInfo(), TensorInfo((3,))]) == [TensorInfo()]
    with pytest.raises(ValueError, match="broadcast"):
        schema.infer(op, [TensorInfo((2,)), TensorInfo((3,))])
    cost = schema.cost(op, [TensorInfo((2, 3)), TensorInfo((3,))])
    assert cost == {"flops": 6, "bytes_read": 36, "bytes_written": 24, "params_bytes": 0}


@given(case=legacy())
def test_sum_reduce_like(case):
    a, b, axis = case
    x = values(a)
    (y,) = run("SumReduceLike", x, values(b), **({} if axis == -1 else {"axis": axis}))
    start = len(a) - len(b) if axis == -1 else axis
    gone = tuple(i for i in range(len(a)) if not start <= i < start + len(b) or b[i - start] == 1)
    np.testing.assert_allclose(y, x.astype(float).sum(gone).reshape(b), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- many inputs

MANY = {
    "Sum": lambda *x: sum(x),
    "Mean": lambda *x: sum(x) / len(x),
    "Max": lambda *x: np.max(x, 0),
    "Min": lambda *x: np.min(x, 0),
}


@pytest.mark.parametrize("op", MANY)
@given(shape=shapes, n=st.integers(1, 4))
@settings(max_examples=20)
def test_many_inputs(op, shape, n):
    # distinct values, as extremes have no slope where they change hands
    x = np.random.default_rng(n).permutation(n * int(np.prod(shape))).reshape(n, *shape).astype(F)
    check(op, lambda *x: (MANY[op](*x),), list(x / 8), wanted=range(n))


@pytest.mark.parametrize("op", [*MANY, "SumInt"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_many_inputs_of_other_dtypes(op, dtype):
    x = [values((3, 5), i, dtype) for i in range(3)]
    (y,) = run(op, *x)
    expected = MANY.get(op, MANY["Sum"])(*x)
    assert y.dtype == dtype
    np.testing.assert_allclose(
        y, np.trunc(expected) if np.dtype(dtype).kind == "i" else expected, rtol=1e-6
    )


@pytest.mark.parametrize("op", MANY)
def test_many_large_inputs_in_place(op):
    x = [values((300001,), i) for i in range(3)]
    (y,) = run(op, *x, inplace={0: 0})
    np.testing.assert_allclose(y, MANY[op](*x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_equal_extremes_share_the_gradient_and_nan_wins(op):
    x = np.array([1, 2, 3], F)
    dx = gradients(op, [x, x], [x]) if run(op, x, x) else None
    np.testing.assert_array_equal(dx, [x, x])
    (y,) = run(op, x, np.array([np.nan, 2, 5], F))
    assert np.isnan(y[0])
    (y,) = run(op, np.array([np.nan, 2, 5], F), x)
    assert np.isnan(y[0])


def test_sum_relu():
    x, y = values((4, 5)), values((4, 5), 1)
    np.testing.assert_array_equal(run("SumRelu", x, y)[0], np.maximum(x + y, 0))


def test_sum_passes_the_gradient_on():
    x = values((3,))
    run("Sum", x, x)
    for dx in gradients("Sum", [x, x], [values((3,), 1)]):
        np.testing.assert_array_equal(dx, values((3,), 1))


@pytest.mark.parametrize("op", [*MANY, "SumInt", "SumRelu"])
def test_many_inputs_refuse(op):
    with pytest.raises(RuntimeError, match="same shape"):
        run(op, values((2, 3)), values((3,)))
    with pytest.raises(RuntimeError, match="x1.*float"):
        run(op, values((3,)), values((3,), dtype=float))
    with pytest.raises(RuntimeError, match="x0.*bool"):
        run(op, np.ones(3, bool))
    with pytest.raises(RuntimeError, match="same blob"):
        run(op, values((3,)), values((3,)), inplace={0: 1})
    assert run(op, np.empty((0, 2), F), np.empty((0, 2), F))[0].shape == (0, 2)


def test_gradients_of_many_inputs():
    x = values((2, 3))
    for y in run("MeanGradient", x, outputs=3, inplace={0: 0}):
        np.testing.assert_allclose(y, x / 3, rtol=1e-6)
    for y in run("MeanGradient", x.astype(float), outputs=2):
        np.testing.assert_array_equal(y, x.astype(float) / 2)
    with pytest.raises(RuntimeError, match="an input for each output"):
        run("MaxGradient", x, x, x, outputs=2)
    with pytest.raises(RuntimeError, match="x2.*elements"):
        run("MaxGradient", x, x, values((2,)))


# ---------------------------------------------------------------- remainders and powers


@given(
    x=hnp.arrays(st.sampled_from([np.int32, np.int64]), shapes, elements=st.integers(-100, 100)),
    divisor=st.integers(-9, 9).filter(bool),
    follow=st.booleans(),
)
def test_mod(x, divisor, follow):
    (y,) = run("Mod", x, divisor=divisor, sign_follow_divisor=int(follow), inplace={0: 0})
    np.testing.assert_array_equal(y, (np.mod if follow else np.fmod)(x, divisor))
    assert y.dtype == x.dtype


def test_mod_refuses():
    with pytest.raises(RuntimeError, match="divisor"):
        run("Mod", np.array([1]), divisor=0)
    with pytest.raises(RuntimeError, match="x0.*float"):
        run("Mod", values((2,)), divisor=2)
    assert run("Mod", np.array([np.iinfo(np.int64).min]), divisor=-1)[0] == 0


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, -1.0, 0.5, -1.5])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_pow_of_an_argument(exponent, shape):
    x = abs(values(shape))
    check("Pow", lambda x: (x**exponent,), [x], exponent=exponent)
    (y,) = run("Pow", x, exponent=exponent, inplace={0: 0})
    np.testing.assert_allclose(y, x**exponent, rtol=1e-5)
    (y,) = run("Pow", x.astype(float), exponent=exponent)
    np.testing.assert_allclose(y, x.astype(float) ** exponent, rtol=1e-12)


@given(shape=shapes)
@settings(max_examples=20)
def test_pow_of_a_tensor(shape):
    check("Pow", lambda x, e: (x**e,), [abs(values(shape)), values(shape, 1)], wanted=(0, 1))


@given(case=legacy())
@settings(max_examples=20)
def test_pow_of_a_broadcast_tensor(case):
    a, b, axis = case
    check(
        "Pow",
        lambda x, e: (x ** spread(x, e, axis),),
        [abs(values(a)), values(b, 1)],
        wanted=(0, 1),
        broadcast=1,
        **({} if axis == -1 else {"axis": axis}),
    )


def test_gradient_of_pow_in_place():
    x, dy = abs(values((5,))), values((5,), 1)
    run("Pow", x, exponent=3.0, inplace={0: 0})
    (dx,) = gradients("Pow", [x], [dy], exponent=3.0, inplace={0: 0})
    np.testing.assert_allclose(dx, 3 * x**2 * dy, rtol=1e-5)
    with pytest.raises(RuntimeError, match="no gradient"):
        gradients("Pow", [x], [dy], exponent=0.0, inplace={0: 0})
    with pytest.raises(RuntimeError, match="no gradient"):
        gradients("Pow", [x, x], [dy], inplace={0: 0})


def test_pow_refuses():
    with pytest.raises(RuntimeError, match="exponent"):
        run("Pow", values((2,)))
    with pytest.raises(RuntimeError, match="x0.*int"):
        run("Pow", np.array([1]), exponent=2.0)


# ---------------------------------------------------------------- scaled rows and columns


@given(shape=hnp.array_shapes(max_dims=4, max_side=4))
@settings(max_examples=20)
def test_row_mul(shape):
    check(
        "RowMul",
        lambda x, w: (x * w.reshape(-1, *[1] * (x.ndim - 1)),),
        [values(shape), values(shape[:1], 1)],
        wanted=(0, 1),
    )


@given(shape=hnp.array_shapes(max_dims=4, max_side=4), data=st.data())
@settings(max_examples=20)
def test_elementwise_linear(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    columns = shape[axis % len(shape) :]
    d = (int(np.prod(columns)),)
    check(
        "ElementwiseLinear",
        lambda x, w, b: (x * w.reshape(columns) + b.reshape(columns),),
        [values(shape), values(d, 1), values(d, 2)],
        wanted=(0, 1, 2),
        axis=axis,
    )


def test_scaled_rows_refuse():
    with pytest.raises(RuntimeError, match="x1.*elements"):
        run("RowMul", values((2, 3)), values((3,)))
    with pytest.raises(RuntimeError, match="dimension"):
        run("RowMul", values(()), values((1,)))
    with pytest.raises(RuntimeError, match="x1.*elements"):
        run("ElementwiseLinear", values((2, 3)), values((2,)), values((3,)))
    with pytest.raises(RuntimeError, match="x2.*dimensions"):
        run("ElementwiseLinear", values((2, 3)), values((3,)), values((1, 3)))
    with pytest.raises(RuntimeError, match="axis"):
        run("ElementwiseLinear", values((2, 3)), values((3,)), values((3,)), axis=2)
    assert run("RowMul", np.empty((0, 3), F), np.empty(0, F))[0].shape == (0, 3)


def test_operators_on_something_else_than_a_tensor():
    workspace.RunOperatorOnce(operator("CreateCounter", []))
    for name in ARITHMETIC.keys() | MANY.keys():
        op = operator(name, [0])
        op.input[:] = ["y0"] if name in MANY else ["y0", "y0"]
        op.output[0] = "z"
        with pytest.raises(RuntimeError, match="not a tensor"):
            workspace.RunOperatorOnce(op)

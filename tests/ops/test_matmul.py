"""Fully connected layers, MatMul and BatchMatMul against numpy, their gradients and their errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.python import core, workspace

F = np.float32
CLOSE = dict(rtol=2e-5, atol=2e-5)


def run(op, *arrays, outputs=1, **args):
    """Run an operator on arrays; returns its outputs."""
    workspace.ResetWorkspace()
    inputs = [f"x{i}" for i in range(len(arrays))]
    names = [f"y{i}" for i in range(outputs)]
    for name, value in zip(inputs, arrays):
        workspace.FeedBlob(name, value)
    workspace.RunOperatorOnce(core.CreateOperator(op, inputs, names, **args))
    results = [workspace.FetchBlob(name) for name in names]
    return results[0] if outputs == 1 else results


def normal(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(F)


def gradients(op, arrays, output_gradient, **args):
    """Run the gradient operators that the registry makes; returns the gradients of the inputs."""
    workspace.ResetWorkspace()
    names = [f"x{i}" for i in range(len(arrays))]
    for name, value in zip(names, arrays):
        workspace.FeedBlob(name, value)
    workspace.FeedBlob("y_grad", output_gradient)
    made, wanted = core.GradientRegistry.GetGradientForOp(
        core.CreateOperator(op, names, ["y"], **args), ["y_grad"])
    for operator in made:
        workspace.RunOperatorOnce(operator)
    return [workspace.FetchBlob(str(name)) for name in wanted]


def inferred(op, *arrays, outputs=1, **args):
    """Shapes that shape inference finds."""
    net = core.Net("inferred")
    inputs = [f"x{i}" for i in range(len(arrays))]
    names = [f"y{i}" for i in range(outputs)]
    net.Proto().op.extend([core.CreateOperator(op, inputs, names, **args)])
    shapes, _ = workspace.InferShapesAndTypes(
        [net], {name: list(x.shape) for name, x in zip(inputs, arrays)})
    return [tuple(shapes[name]) for name in names]


# ---------------------------------------------------------------- fully connected

dims = st.lists(st.integers(1, 6), min_size=1, max_size=2).map(tuple)


@pytest.mark.parametrize("transposed", [False, True])
@given(rows=dims, columns=dims, outputs=dims, from_end=st.booleans())
def test_fc(transposed, rows, columns, outputs, from_end):
    op = "FCTransposed" if transposed else "FC"
    x = normal(*rows, *columns)
    w = normal(*columns, *outputs) if transposed else normal(*outputs, *columns)
    m, n, k = (int(np.prod(d)) for d in (rows, outputs, columns))
    b = normal(n)
    args = {"axis": len(rows), "axis_w": len(columns if transposed else outputs)}
    if from_end:
        args = {"axis": args["axis"] - x.ndim, "axis_w": args["axis_w"] - w.ndim}
    x2 = x.reshape(m, k).astype(float)
    w2 = (w.reshape(k, n) if transposed else w.reshape(n, k).T).astype(float)

    y = run(op, x, w, b, **args)
    assert y.shape == (*rows, n)
    assert inferred(op, x, w, b, **args) == [y.shape]
    np.testing.assert_allclose(y.reshape(m, n), x2 @ w2 + b, **CLOSE)

    dy = normal(*y.shape, seed=1)
    g = dy.reshape(m, n).astype(float)
    dx, dw, db = gradients(op, [x, w, b], dy, **args)
    dw2 = x2.T @ g
    np.testing.assert_allclose(dx, (g @ w2.T).reshape(x.shape), **CLOSE)
    np.testing.assert_allclose(dw, (dw2 if transposed else dw2.T).reshape(w.shape), **CLOSE)
    np.testing.assert_allclose(db, g.sum(0), **CLOSE)
    shapes = inferred(op + "Gradient", x, w, dy, outputs=3, **args)
    assert shapes == [w.shape, (n,), x.shape]


def test_fc_default_axis_and_two_outputs():
    x, w, b = normal(4, 2, 3), normal(5, 6), normal(5)
    np.testing.assert_allclose(run("FC", x, w, b), x.reshape(4, 6) @ w.T + b, **CLOSE)
    dy = normal(4, 5)
    dw, db = run("FCGradient", x, w, dy, outputs=2)
    np.testing.assert_allclose(dw, dy.T @ x.reshape(4, 6), **CLOSE)
    np.testing.assert_allclose(db, dy.sum(0), **CLOSE)


def test_fc_large():
    """Large enough for several threads."""
    x, w, b = normal(300, 700), normal(130, 700), normal(130)
    expected = x.astype(float) @ w.T + b
    np.testing.assert_allclose(run("FC", x, w, b), expected, rtol=1e-5, atol=3e-4)


@pytest.mark.parametrize("m, k", [(0, 3), (2, 0), (0, 0)])
def test_fc_empty(m, k):
    """Without rows nothing comes out; without columns the bias does; gradients are zeros."""
    x, w, b = normal(m, k), normal(4, k), normal(4)
    np.testing.assert_array_equal(run("FC", x, w, b), np.broadcast_to(b, (m, 4)))
    dw, db, dx = run("FCGradient", x, w, np.ones((m, 4), F), outputs=3)
    np.testing.assert_array_equal(dw, np.zeros((4, k)))
    np.testing.assert_array_equal(db, np.full(4, m))
    assert dx.shape == (m, k)


def test_fc_follows_its_inputs():
    """A bound operator sees new shapes and values at each run."""
    net = core.Net("fc")
    net.FC(["x", "w", "b"], "y")
    for name in "xwb":
        workspace.FeedBlob(name, F([0]))
    workspace.CreateNet(net)
    for m, n, k in [(2, 3, 4), (5, 1, 7), (1, 20, 2)]:
        x, w, b = normal(m, k), normal(n, k), normal(n)
        for name, value in zip("xwb", (x, w, b)):
            workspace.FeedBlob(name, value)
        workspace.RunNet(net)
        np.testing.assert_allclose(workspace.FetchBlob("y"), x @ w.T + b, **CLOSE)


@given(m=st.integers(0, 40), n=st.integers(0, 70), k=st.one_of(st.integers(0, 20), st.integers(500, 800)),
       relu=st.booleans(), residual=st.sampled_from([None, "r", "y"]))
def test_fused(m, n, k, relu, residual):
    values = {"x": normal(m, k), "w": normal(n, k), "b": normal(n), residual or "r": normal(m, n)}
    for name, value in values.items():
        workspace.FeedBlob(name, value)
    inputs = ["x", "w", "b"] + ([residual] if residual else [])
    workspace.RunOperatorOnce(core.CreateOperator("FCFused", inputs, ["y"], relu=int(relu)))
    expected = values["x"].astype(float) @ values["w"].T + values["b"] + (values[residual] if residual else 0)
    np.testing.assert_allclose(workspace.FetchBlob("y"), np.maximum(expected, 0) if relu else expected,
                               rtol=1e-5, atol=3e-4)


@pytest.mark.parametrize("shape", [(2, 3), (4,), (1, 4), (2, 4, 1), ()])
def test_fused_residual_must_fit(shape):
    with pytest.raises(RuntimeError, match="the residual must have the shape of Y"):
        run("FCFused", normal(2, 5), normal(4, 5), normal(4), np.ones(shape, F))


BAD_FC = {
    "rows of X and W differ": ((2, 3), (4, 5), (4,)),
    "bias too short": ((2, 3), (4, 3), (3,)),
    "bias is a matrix": ((2, 3), (4, 3), (4, 1)),
    "X has no axis 1": ((3,), (4, 3), (4,)),
}


@pytest.mark.parametrize("shapes", BAD_FC.values(), ids=BAD_FC)
def test_fc_bad_shapes(shapes):
    with pytest.raises(RuntimeError, match="FC"):
        run("FC", *(np.ones(s, F) for s in shapes))


def test_fc_bad_types():
    with pytest.raises(RuntimeError, match="int32"):
        run("FC", np.ones((2, 3), np.int32), normal(4, 3), normal(4))
    with pytest.raises(RuntimeError, match="double|float64"):
        run("FC", normal(2, 3), np.ones((4, 3)), normal(4))


def test_failed_run_leaves_output():
    workspace.FeedBlob("y", F([7]))
    for name, shape in (("x", (2, 3)), ("w", (4, 5)), ("b", (4,))):
        workspace.FeedBlob(name, np.ones(shape, F))
    with pytest.raises(RuntimeError):
        workspace.RunOperatorOnce(core.CreateOperator("FC", ["x", "w", "b"], ["y"]))
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [7])


def test_fc_gradient_wants_fitting_dy():
    with pytest.raises(RuntimeError, match="elements"):
        run("FCGradient", normal(2, 3), normal(4, 3), normal(2, 3), outputs=2)


# ---------------------------------------------------------------- MatMul


@given(rows=dims, inner=dims, columns=dims, trans_a=st.booleans(), trans_b=st.booleans())
def test_matmul(rows, inner, columns, trans_a, trans_b):
    shape_a = (*inner, *rows) if trans_a else (*rows, *inner)
    shape_b = (*columns, *inner) if trans_b else (*inner, *columns)
    a, b = normal(*shape_a), normal(*shape_b, seed=1)
    args = {
        "axis_a": len(inner if trans_a else rows), "trans_a": int(trans_a),
        "axis_b": len(columns if trans_b else inner), "trans_b": int(trans_b),
    }
    m, k, n = (int(np.prod(d)) for d in (rows, inner, columns))
    a2 = (a.reshape(k, m).T if trans_a else a.reshape(m, k)).astype(float)
    b2 = (b.reshape(n, k).T if trans_b else b.reshape(k, n)).astype(float)
    y = run("MatMul", a, b, **args)
    np.testing.assert_allclose(y, a2 @ b2, **CLOSE)
    assert inferred("MatMul", a, b, **args) == [(m, n)]
    dy = normal(m, n, seed=2)
    da, db = gradients("MatMul", [a, b], dy, **args)
    da2, db2 = dy @ b2.T, a2.T @ dy
    np.testing.assert_allclose(da, (da2.T if trans_a else da2).reshape(a.shape), **CLOSE)
    np.testing.assert_allclose(db, (db2.T if trans_b else db2).reshape(b.shape), **CLOSE)


def test_matmul_third_input_gives_shape():
    a, b, like = normal(4, 3), normal(3, 6), normal(2, 2, 6)
    y = run("MatMul", a, b, like)
    np.testing.assert_allclose(y, (a @ b).reshape(2, 2, 6), **CLOSE)
    assert inferred("MatMul", a, b, like) == [(2, 2, 6)]
    with pytest.raises(RuntimeError, match="elements"):
        run("MatMul", a, b, normal(5))


def test_matmul_bad_input():
    with pytest.raises(RuntimeError, match="columns of A"):
        run("MatMul", normal(2, 3), normal(2, 3))
    with pytest.raises(RuntimeError, match="MatMul"):
        run("MatMul", normal(2, 3), normal(3, 2), axis_a=5)


# ---------------------------------------------------------------- BatchMatMul


def swapped(x, swap):
    return np.ascontiguousarray(np.swapaxes(x, -1, -2)) if swap else x


@given(batch=st.lists(st.integers(0, 3), max_size=3).map(tuple), m=st.integers(0, 5),
       n=st.integers(1, 5), k=st.integers(1, 5), trans_a=st.booleans(), trans_b=st.booleans())
def test_batch_matmul(batch, m, n, k, trans_a, trans_b):
    a, b = normal(*batch, m, k), normal(*batch, k, n, seed=1)
    args = {"trans_a": int(trans_a), "trans_b": int(trans_b)}
    inputs = [swapped(a, trans_a), swapped(b, trans_b)]
    y = run("BatchMatMul", *inputs, **args)
    np.testing.assert_allclose(y, a.astype(float) @ b, **CLOSE)
    assert inferred("BatchMatMul", *inputs, **args) == [y.shape]
    dy = normal(*y.shape, seed=2)
    da, db = gradients("BatchMatMul", inputs, dy, **args)
    np.testing.assert_allclose(da, swapped(dy @ np.swapaxes(b, -1, -2), trans_a), **CLOSE)
    np.testing.assert_allclose(db, swapped(np.swapaxes(a, -1, -2) @ dy, trans_b), **CLOSE)


BROADCAST = [
    ((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)),
    ((6, 5, 2, 3), (5, 3, 4)), ((5, 2, 3), (6, 5, 3, 4)), ((6, 1, 2, 3), (5, 3, 4)),
    ((1, 5, 2, 3), (6, 1, 3, 4)), ((5, 2, 3), (3,)), ((3,), (5, 3, 4)), ((0, 2, 3), (3, 4)),
]


@pytest.mark.parametrize("shape_a, shape_b", BROADCAST)
def test_batch_matmul_broadcast(shape_a, shape_b):
    a, b = normal(*shape_a), normal(*shape_b, seed=1)
    y = run("BatchMatMul", a, b, broadcast=1)
    np.testing.assert_allclose(y, np.matmul(a.astype(float), b), **CLOSE)
    assert inferred("BatchMatMul", a, b, broadcast=1) == [y.shape]


def test_batch_matmul_of_vectors():
    """Two vectors give one element, in one dimension."""
    y = run("BatchMatMul", F([1, 2, 3]), F([4, 5, 6]), broadcast=1)
    np.testing.assert_array_equal(y, [32])


@pytest.mark.parametrize("shape_a, shape_b, broadcast", [
    ((2, 3), (5, 3, 4), 0),         # numbers of dimensions differ
    ((3,), (3,), 0),                # vectors
    ((5, 2, 3), (6, 3, 4), 0),      # batches differ
    ((5, 2, 3), (6, 3, 4), 1),
    ((1, 2, 3), (6, 3, 4), 0),
    ((5, 2, 3), (5, 2, 3), 0),      # inner dimensions differ
    ((), (3, 4), 1),                # a scalar
])
def test_batch_matmul_bad_shapes(shape_a, shape_b, broadcast):
    with pytest.raises(RuntimeError, match="BatchMatMul"):
        run("BatchMatMul", np.ones(shape_a, F), np.ones(shape_b, F), broadcast=broadcast)


def test_batch_matmul_has_no_gradient_with_broadcast():
    with pytest.raises(Exception, match="broadcast=1"):
        gradients("BatchMatMul", [normal(2, 3), normal(3, 2)], normal(2, 2), broadcast=1)

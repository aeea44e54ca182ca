"""Selection and search against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from opcheck import check_linear_gradient, gradients, run, strings

REAL = [np.float32, np.float64, np.int32, np.int64]


def top_k(x, k, axis):
    """Values and indices, padded with 0 and -1."""
    order = np.argsort(-x.astype(float), axis, kind="stable")
    n = min(k, x.shape[axis])
    indices = np.take(order, range(n), axis)
    values = np.take_along_axis(x, indices, axis)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, k - n)
    return np.pad(values, pad), np.pad(indices, pad, constant_values=-1)


@given(
    array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9), st.sampled_from(REAL), st.integers(1, 10), st.data()
)
def test_top_k(shape, dtype, k, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = data.draw(arrays(dtype, shape, elements=st.integers(-3, 3)))  # many ties
    values, indices = top_k(x, k, axis)
    for inputs, args in (((), {"k": k}), ((np.array([k]),), {})):
        y, i, flat = run("TopK", x, *inputs, outputs=3, axis=axis, **args)
        np.testing.assert_array_equal(y, values, strict=True)
        np.testing.assert_array_equal(i, indices, strict=True)
    known = flat >= 0
    np.testing.assert_array_equal(x.ravel()[flat[known]], values.ravel()[known])
    np.testing.assert_array_equal(known, indices.ravel() >= 0)


def test_top_k_large():
    x = np.random.default_rng(0).standard_normal((50, 3000)).astype("f")
    for axis, k in ((1, 1), (1, 20), (0, 7), (1, 3000)):
        y, i = run("TopK", x, outputs=2, k=k, axis=axis)
        values, indices = top_k(x, k, axis)
        np.testing.assert_array_equal(y, values)
        np.testing.assert_array_equal(i, indices)


@pytest.mark.parametrize("k, axis", [(2, -1), (2, 0), (5, 1)])
def test_top_k_gradient(k, axis):
    x = np.float32([[3, 1, 2], [0, 5, 4]])
    _, i = run("TopK", x, outputs=2, k=k, axis=axis)
    dy = np.arange(1, i.size + 1, dtype="f").reshape(i.shape)
    want = np.zeros_like(x)
    for at in np.ndindex(i.shape):
        if i[at] >= 0:
            to = list(at)
            to[axis] = i[at]
            want[tuple(to)] = dy[at]
    np.testing.assert_array_equal(gradients("TopK", [x], [dy, None], k=k, axis=axis)[0], want)


def test_top_k_refuses():
    x = np.ones((2, 3), "f")
    for args in ({}, {"k": 0}, {"k": 2, "axis": 2}):
        with pytest.raises(RuntimeError, match="TopK"):
            run("TopK", x, outputs=2, **args)
    with pytest.raises(RuntimeError, match="out of range"):
        run("TopKGradient", np.ones((2, 1), "f"), np.array([[0], [3]]), x, k=1)
    with pytest.raises(RuntimeError, match="fit"):
        run("TopKGradient", np.ones((2, 1), "f"), np.array([[0], [0]]), np.ones((3, 3), "f"), k=1)


def test_flexible_top_k():
    x, k = np.float32([[3, 1, 2], [0, 5, 4]]), np.array([1, 3])
    values, indices = run("FlexibleTopK", x, k, outputs=2)
    np.testing.assert_array_equal(values, [3, 5, 4, 0])
    np.testing.assert_array_equal(indices, [0, 1, 2, 0])
    grad, _ = gradients("FlexibleTopK", [x, k], [np.float32([1, 2, 3, 4]), None])
    np.testing.assert_array_equal(grad, [[1, 0, 0], [4, 2, 3]])
    for bad in ([0, 1], [1, 4], [1]):
        with pytest.raises(RuntimeError, match="FlexibleTopK"):
            run("FlexibleTopK", x, np.array(bad), outputs=2)


@given(array_shapes(min_dims=1, max_dims=3, max_side=6), st.sampled_from(REAL), st.booleans(), st.data())
def test_arg(shape, dtype, keepdims, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = data.draw(arrays(dtype, shape, elements=st.integers(-3, 3)))
    np.testing.assert_array_equal(
        run("ArgMax", x, axis=axis, keepdims=keepdims)[0], np.argmax(x, axis, keepdims=keepdims)
    )
    np.testing.assert_array_equal(
        run("ArgMin", x, axis=axis, keepdims=keepdims)[0], np.argmin(x, axis, keepdims=keepdims)
    )


def test_arg_edges():
    assert run("ArgMax", np.ones((0, 3), "f"))[0].shape == (0, 1)
    x = np.random.default_rng(0).standard_normal((300, 400)).astype("f")
    for axis in (0, 1):
        np.testing.assert_array_equal(run("ArgMax", x, axis=axis, keepdims=0)[0], x.argmax(axis))
    with pytest.raises(RuntimeError, match="no element"):
        run("ArgMax", np.ones((3, 0), "f"))
    with pytest.raises(RuntimeError, match="axis"):
        run("ArgMax", np.float32(1))


@given(st.data(), st.sampled_from([np.int32, np.int64]))
def test_unique(data, dtype):
    info = np.iinfo(dtype)
    element = st.integers(info.min, info.max) | st.integers(-2, 2) | st.integers(0, 70000)
    x = data.draw(arrays(dtype, st.integers(0, 30), elements=element))
    y, remapping = run("Unique", x, outputs=2)
    want, inverse = np.unique(x, return_inverse=True)
    np.testing.assert_array_equal(y, want, strict=True)
    np.testing.assert_array_equal(remapping, inverse.astype(np.int32), strict=True)
    np.testing.assert_array_equal(run("Unique", x)[0], want)


@given(
    st.lists(st.integers(-5, 5), max_size=20),
    st.lists(st.integers(-9, 9), max_size=20),
    st.sampled_from([np.int32, np.int64]),
)
def test_find(index, query, dtype):
    last = {v: i for i, v in enumerate(index)}
    (y,) = run("Find", np.array(index, dtype), np.array(query, dtype), missing_value=-7)
    np.testing.assert_array_equal(y, np.array([last.get(q, -7) for q in query], dtype), strict=True)


@given(st.lists(st.sampled_from([0, 1, -0.0, 2.5, 1e300, float("nan")]), max_size=20), st.sampled_from(REAL + [object]))
def test_find_duplicate_elements(values, dtype):
    if dtype is object:
        x = strings([str(v).encode() for v in values])
    else:
        x = np.array([v if dtype == np.float64 or abs(v) < 9 else 3 for v in values], dtype)
    seen, want = set(), []
    for i, v in enumerate(x.tolist()):
        if v in seen:
            want.append(i)
        if v == v:
            seen.add(v)
    np.testing.assert_array_equal(run("FindDuplicateElements", x)[0], np.array(want, np.int64), strict=True)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.bool_])
def test_is_member_of(dtype):
    x = np.array([[0, 1], [2, 3]]).astype(dtype)
    np.testing.assert_array_equal(run("IsMemberOf", x, value=[1, 3])[0], np.isin(x.astype(int), [1, 3]), strict=True)


def test_is_member_of_strings():
    (y,) = run("IsMemberOf", strings([b"a", b"b", b""]), value=["a", ""], dtype=4)
    np.testing.assert_array_equal(y, [True, False, True])


def test_gradient_of_top_k_is_linear_where_order_stays():
    check_linear_gradient("TopK", np.float32([[5, 1, 3, 2], [9, 8, 0, 1]]), outputs=2, k=3)

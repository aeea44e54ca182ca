"""Concat, Split and relatives against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from opcheck import NUMBERS, check_linear_gradient, gradients, run, strings


def numbers(shape, dtype=np.float32, start=0):
    return np.arange(start, start + np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


@given(
    array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.data(),
)
def test_concat_and_split(shape, sizes, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    dtype = data.draw(st.sampled_from(NUMBERS))
    parts = []
    for k, n in enumerate(sizes):
        s = list(shape)
        s[axis] = n
        parts.append(numbers(s, dtype, 10 * k))
    want = np.concatenate(parts, axis)
    y, split = run("Concat", *parts, outputs=2, axis=axis)
    np.testing.assert_array_equal(y, want, strict=True)
    np.testing.assert_array_equal(split, np.int32(sizes), strict=True)
    for back in (
        run("Split", want, outputs=len(sizes), axis=axis, split=sizes),
        run("Split", want, split, outputs=len(sizes), axis=axis),
    ):
        for a, b in zip(back, parts, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


@given(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), st.integers(1, 3), st.data())
def test_new_axis(shape, n, data):
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    parts = [numbers(shape, np.int64, 100 * k) for k in range(n)]
    y, split = run("Concat", *parts, outputs=2, axis=axis, add_axis=1)
    np.testing.assert_array_equal(y, np.stack(parts, axis))
    np.testing.assert_array_equal(split, [1] * n)
    for a, b in zip(run("Split", y, split, outputs=n, axis=axis, add_axis=1), parts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_order_and_strings():
    a = strings(np.full((1, 2, 3, 4), b"a"))
    b = strings(np.full((1, 2, 3, 1), b"b"))
    y, _ = run("Concat", a, b, outputs=2, order="NHWC")
    np.testing.assert_array_equal(y, np.concatenate([a, b], 3))
    back = run("Split", y, outputs=2, axis=3, split=[4, 1])
    np.testing.assert_array_equal(back[1], b)
    np.testing.assert_array_equal(run("DepthConcat", a, a, outputs=2)[0], np.concatenate([a, a], 1))
    assert [p.shape for p in run("DepthSplit", a, outputs=2)] == [(1, 1, 3, 4)] * 2


def test_strings_survive_their_source():
    """Strings that were moved live on when what they came from is overwritten, run after run."""
    for i in range(3):
        a = strings([b"%d" % (100 * i + j) for j in range(50)])
        y, _ = run("Concat", a, a[::-1], outputs=2, axis=0)
        assert list(y) == list(a) + list(a[::-1])


@pytest.mark.parametrize("shape, big", [((64, 3), 5000), ((4, 100000), 2)])
def test_large(shape, big):
    parts = [numbers(shape), numbers((shape[0], big))]
    np.testing.assert_array_equal(run("Concat", *parts, outputs=2, axis=1)[0], np.concatenate(parts, 1))


def test_gradients():
    x = numbers((2, 3, 2))
    check_linear_gradient("Concat", x, 0 * x, outputs=2, axis=1, which=0)
    grads = gradients("Split", [x], [x[:, :1], None, x[:, 2:]], axis=1)
    np.testing.assert_array_equal(grads[0], x[:, [0, 2]])
    run("Concat", x, x, outputs=2, axis=0, add_axis=1)
    grads = gradients("Concat", [x, x], [numbers((2, 2, 3, 2)), None], axis=0, add_axis=1)
    np.testing.assert_array_equal(grads[1], numbers((2, 2, 3, 2))[1])


@pytest.mark.parametrize(
    "inputs, args",
    [
        ((np.zeros((2, 3), "f"), np.zeros((3, 3), "f")), {"axis": 1}),
        ((np.zeros(2, "f"), np.zeros(2)), {"axis": 0}),
        ((np.zeros(2), np.zeros((2, 1))), {"axis": 0}),
        ((np.zeros(2),), {"axis": 1}),
        ((np.zeros(2), np.zeros(3)), {"axis": 0, "add_axis": 1}),
        ((np.zeros((1, 1, 1, 1)),), {"order": "CHWN"}),
        ((np.zeros(2),), {"axis": 0, "order": "NCHW"}),
    ],
)
def test_concat_refuses(inputs, args):
    with pytest.raises(RuntimeError, match="Concat"):
        run("Concat", *inputs, outputs=2, **args)


@pytest.mark.parametrize(
    "args",
    [
        {"axis": 0},
        {"axis": 1, "split": [1, 1]},
        {"axis": 1, "split": [5, -1]},
        {"axis": 1, "split": [4]},
        {"axis": 2},
        {"axis": 0, "add_axis": 1},
    ],
)
def test_split_refuses(args):
    with pytest.raises(RuntimeError, match="Split"):
        run("Split", np.zeros((3, 4), "f"), outputs=2, **args)


def test_split_by_lengths():
    x = numbers((6, 2))
    a, b = run("SplitByLengths", x, np.int32([1, 0, 2, 3]), outputs=2, axis=0)
    np.testing.assert_array_equal(a, x[:1])
    np.testing.assert_array_equal(b, x[1:])
    a, b = run("SplitByLengths", x, np.int32([1, 2]), outputs=2, axis=0, use_scaling_lengths=True)
    np.testing.assert_array_equal(a, x[:2])
    check_linear_gradient("SplitByLengths", x, np.int32([6]), axis=0)
    for lengths in ([1, 2, 3], [1, 2], [7, -1]):
        with pytest.raises(RuntimeError, match="length|sizes"):
            run("SplitByLengths", x, np.int32(lengths), outputs=2, axis=0)


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 5))
def test_lengths_split(lengths, n):
    (y,) = run("LengthsSplit", np.int32(lengths), n_split=n)
    want = [len(part) for length in lengths for part in np.array_split(np.arange(length), n)]
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(run("LengthsSplit", np.int32(lengths), np.int32([n]))[0], want)


def test_lengths_split_refuses():
    for args in ({}, {"n_split": 0}, {"n_split": -1}):
        with pytest.raises(RuntimeError, match="n_split"):
            run("LengthsSplit", np.int32([4]), **args)

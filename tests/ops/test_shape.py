"""Shape operators against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from caffe2.python import workspace
from opcheck import NUMBERS, check_linear_gradient, operator, run, strings


def numbers(shape, dtype=np.float32):
    return np.arange(1, np.prod(shape, dtype=int) + 1).reshape(shape).astype(dtype)


@pytest.mark.parametrize(
    "shape, want",
    [
        ((6, 4), (6, 4)),
        ((-1,), (24,)),
        ((0, -1), (2, 12)),
        ((3, -1, 2), (3, 4, 2)),
        ((0, 0, 0), (2, 3, 4)),
        ((24, 1), (24, 1)),
    ],
)
def test_reshape(shape, want):
    x = numbers((2, 3, 4))
    y, old = run("Reshape", x, outputs=2, shape=list(shape))
    np.testing.assert_array_equal(y, x.reshape(want))
    np.testing.assert_array_equal(old, [2, 3, 4])
    for dtype in (np.int32, np.int64):
        y, old = run("Reshape", x, np.array(shape, dtype), outputs=2)
        np.testing.assert_array_equal(y, x.reshape(want))
        assert old.dtype == dtype


def test_reshape_in_place_and_back():
    x = numbers((2, 3))
    y, old = run("Reshape", x, outputs=2, inplace={0: 0}, shape=[6])
    assert y.shape == (6,)
    check_linear_gradient("Reshape", x, outputs=2, shape=[3, -1])


@pytest.mark.parametrize("shape, want", [((0, -1), (0, 0)), ((-1, 5), (0, 5)), ((0,), (0,))])
def test_reshape_empty(shape, want):
    assert run("Reshape", np.zeros((0, 3), "f"), outputs=2, shape=list(shape))[0].shape == want


@pytest.mark.parametrize("shape", [(5,), (-1, -1), (-1, 7), (-2, 3), (2**40, 2**40), (0, 0, 0, 0)])
def test_reshape_misfit(shape):
    workspace.FeedBlob("y0", np.float32([7]))
    with pytest.raises(RuntimeError, match="Reshape"):
        run("Reshape", numbers((2, 3)), outputs=2, shape=list(shape))
    np.testing.assert_array_equal(workspace.FetchBlob("y0"), [7])


def test_reshape_needs_one_shape():
    with pytest.raises(RuntimeError, match="shape"):
        run("Reshape", numbers((2, 3)), outputs=2)
    with pytest.raises(RuntimeError, match="shape"):
        run("Reshape", numbers((2, 3)), np.array([6]), outputs=2, shape=[6])


@given(array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=4), st.data())
def test_flatten(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape)))
    x = numbers(shape)
    at = axis % len(shape) if axis < len(shape) else axis
    want = (np.prod(shape[:at], dtype=int), np.prod(shape[at:], dtype=int))
    np.testing.assert_array_equal(run("Flatten", x, axis=axis)[0], x.reshape(want))
    np.testing.assert_array_equal(run("FlattenToVec", x)[0], x.ravel())


def test_flatten_of_nothing():
    workspace.CreateBlob("x0")
    with pytest.raises(RuntimeError, match="x0"):
        workspace.RunOperatorOnce(operator("Flatten", [None]))
    with pytest.raises(RuntimeError):
        run("FlattenToVec", np.float32(1))


@given(array_shapes(min_dims=1, max_dims=4), st.sets(st.integers(0, 3), min_size=1, max_size=3))
def test_squeeze_undoes_expand_dims(shape, dims):
    x = numbers(shape, np.int64)
    if max(dims) >= len(shape) + len(dims):
        with pytest.raises(RuntimeError):
            run("ExpandDims", x, dims=list(dims))
        return
    want = x
    for d in sorted(dims):
        want = np.expand_dims(want, d)
    (y,) = run("ExpandDims", x, dims=list(dims))
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(run("Squeeze", y, dims=list(dims), inplace={0: 0})[0], x)


@pytest.mark.parametrize("dims", [[], [-1], [0], [3], [99]])
def test_squeeze_misfit(dims):
    with pytest.raises(RuntimeError, match="dim"):
        run("Squeeze", numbers((2, 1)), dims=dims)


def test_prepend_and_merge():
    x = numbers((6, 2))
    (y,) = run("PrependDim", x, dim_size=3)
    np.testing.assert_array_equal(y, x.reshape(3, 2, 2))
    np.testing.assert_array_equal(run("MergeDim", y)[0], x)
    with pytest.raises(RuntimeError, match="multiple"):
        run("PrependDim", x, dim_size=4)
    with pytest.raises(RuntimeError, match="dim_size"):
        run("PrependDim", x)


def test_resize_like():
    np.testing.assert_array_equal(run("ResizeLike", numbers((2, 3)), np.zeros((3, 2), bool))[0], numbers((3, 2)))
    with pytest.raises(RuntimeError, match="6 elements"):
        run("ResizeLike", numbers((2, 3)), np.zeros((3, 3)))


@pytest.mark.parametrize(
    "op", ["Flatten", "FlattenToVec", "ExpandDims", "PrependDim", "Transpose", "NCHW2NHWC", "NHWC2NCHW"]
)
def test_linear_gradients(op):
    args = {"ExpandDims": {"dims": [1]}, "PrependDim": {"dim_size": 2}, "Transpose": {"axes": [2, 0, 1]}}.get(op, {})
    check_linear_gradient(op, numbers((2, 3, 4)), **args)


def test_squeeze_gradient():
    check_linear_gradient("Squeeze", numbers((2, 1, 4)), dims=[1])


def test_shape_and_size():
    x = strings([[b"a", b"b", b"c"]])
    np.testing.assert_array_equal(run("Shape", x)[0], [1, 3])
    np.testing.assert_array_equal(run("Shape", x, axes=[1])[0], [3])
    assert run("Size", x)[0] == 3
    with pytest.raises(RuntimeError, match="axis 2"):
        run("Shape", x, axes=[2])


def test_empty_or_not():
    some, none = np.ones(2, "f"), np.ones((0, 2), "f")
    assert run("HasElements", some)[0] and not run("HasElements", none)[0] and run("HasElements", none, some)[0]
    assert run("IsEmpty", none)[0] and not run("IsEmpty", some)[0]


def test_lengths_to_shape():
    np.testing.assert_array_equal(run("LengthsToShape", np.int32([10] * 3))[0], [3, 10])
    for bad in ([], [1, 2]):
        with pytest.raises(RuntimeError, match="length"):
            run("LengthsToShape", np.int32(bad))


@given(
    st.permutations(range(5)), array_shapes(min_dims=5, max_dims=5, min_side=0, max_side=4), st.sampled_from(NUMBERS)
)
def test_transpose(axes, shape, dtype):
    x = numbers(shape, dtype)
    np.testing.assert_array_equal(run("Transpose", x, axes=axes)[0], x.transpose(axes))


@pytest.mark.parametrize(
    "shape, axes",
    [
        ((300, 500), (1, 0)),
        ((3, 200, 301), (0, 2, 1)),
        ((3, 200, 301), (2, 1, 0)),
        ((64, 3, 50, 50), (0, 2, 3, 1)),
        ((1000, 37), (1, 0)),
        ((7, 1, 9001), (2, 1, 0)),
        ((40, 50, 60), (1, 0, 2)),
        ((2, 2, 2, 2, 2, 2, 2, 2, 300), (8, 7, 6, 5, 4, 3, 2, 1, 0)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_transpose_large(shape, axes, dtype):
    x = (np.arange(np.prod(shape)) % 2039).reshape(shape).astype(dtype)
    np.testing.assert_array_equal(run("Transpose", x, axes=axes)[0], x.transpose(axes))


def test_transpose_strings_and_default():
    x = strings([[b"a", b"b", b"c"], [b"d", b"e", b"f"]])
    np.testing.assert_array_equal(run("Transpose", x)[0], x.T)
    np.testing.assert_array_equal(run("Transpose", np.float32(5))[0], 5)


@pytest.mark.parametrize("axes", [[0], [0, 0], [0, 2], [1, -1], [0, 1, 2]])
def test_transpose_misfit(axes):
    with pytest.raises(RuntimeError, match="axes"):
        run("Transpose", numbers((2, 3)), axes=axes)


@given(array_shapes(min_dims=3, max_dims=5, min_side=0, max_side=5))
def test_order_switch(shape):
    x = numbers(shape)
    (y,) = run("NCHW2NHWC", x)
    np.testing.assert_array_equal(y, np.moveaxis(x, 1, -1))
    np.testing.assert_array_equal(run("NHWC2NCHW", y)[0], x)


@given(array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4), st.integers(0, 3), st.data())
def test_tile(shape, tiles, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = numbers(shape)
    repeats = [1] * len(shape)
    repeats[axis] = tiles
    np.testing.assert_array_equal(run("Tile", x, tiles=tiles, axis=axis)[0], np.tile(x, repeats))
    np.testing.assert_array_equal(run("NumpyTile", x, np.array(repeats))[0], np.tile(x, repeats))
    (y,) = run("Tile", x, np.int32([tiles]), np.int32([axis]))
    np.testing.assert_array_equal(y, np.tile(x, repeats))


def test_tile_gradient_and_misfits():
    check_linear_gradient("Tile", numbers((2, 3)), tiles=4, axis=1)
    check_linear_gradient("Tile", numbers((2, 3)), tiles=2, axis=-2)
    check_linear_gradient("Tile", numbers((2, 3)), np.int32([3]), np.int32([0]))
    for args in (
        {"tiles": 2},
        {"axis": 0},
        {"tiles": 2, "axis": 2},
        {"tiles": -1, "axis": 0},
        {"tiles": 2**60, "axis": 0},
    ):
        with pytest.raises(RuntimeError, match="tiles|axis|large"):
            run("Tile", numbers((2, 3)), **args)


def test_numpy_tile():
    x = strings([b"a", b"b"])
    np.testing.assert_array_equal(run("NumpyTile", x, np.int32([2]))[0], strings([b"a", b"b", b"a", b"b"]))
    x = numbers((2, 1, 3))
    np.testing.assert_array_equal(run("NumpyTile", x, np.int32([3, 2, 2]))[0], np.tile(x, (3, 2, 2)))
    for repeats in ([2], [2, -1, 1], [2**62, 1, 1]):
        with pytest.raises(RuntimeError, match="repeats|large|OverflowError"):
            run("NumpyTile", x, np.array(repeats))


@pytest.mark.parametrize(
    "have, wanted",
    [
        ((1, 3), (2, 1)),
        ((3,), (2, 3)),
        ((2, 1, 3), (4, 3)),
        ((2, 3), ()),
        ((), (2, 2)),
        ((2, 1), (-1, 4)),
        ((0, 1), (1, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_expand(have, wanted, dtype):
    x = numbers(have, dtype)
    want = np.broadcast_to(x, np.broadcast_shapes(have, [1 if d < 0 else d for d in wanted]))
    np.testing.assert_array_equal(run("Expand", x, np.int32(wanted))[0], want)
    if dtype == np.float32:
        check_linear_gradient("Expand", x, np.int64(wanted))


def test_expand_misfit():
    with pytest.raises(RuntimeError, match="broadcast"):
        run("Expand", numbers((2, 3)), np.array([2, 4]))

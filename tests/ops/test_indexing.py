"""Slices, gathers, scatters and masks against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from caffe2.python import workspace
from opcheck import check_linear_gradient, gradients, operator, run, strings


def numbers(shape, dtype=np.float32):
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


@given(array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5), st.data())
def test_slice(shape, data):
    n = data.draw(st.integers(0, len(shape)))
    bounds = [sorted(data.draw(st.tuples(*[st.integers(0, d + 2)] * 2))) for d in shape[:n]]
    starts, ends = [b[0] for b in bounds], [b[1] for b in bounds]
    box = tuple(slice(*b) for b in bounds)
    x = numbers(shape)
    np.testing.assert_array_equal(run("Slice", x, np.int32(starts), np.int64(ends))[0], x[box])
    if not n:
        return
    check_linear_gradient("Slice", x, starts=starts, ends=ends)
    check_linear_gradient("Slice", x, np.int32(starts), np.int32(ends))
    ends = [e if e < d else -1 for e, d in zip(ends, shape, strict=False)]
    np.testing.assert_array_equal(run("Slice", x, starts=starts, ends=ends)[0], x[box])


def test_slice_from_the_end():
    """-1 is the end itself."""
    x = strings([b"a", b"b", b"c", b"d"])
    np.testing.assert_array_equal(run("Slice", x, starts=[-3], ends=[-1])[0], x[2:])
    np.testing.assert_array_equal(run("Slice", x, starts=[0], ends=[-2])[0], x[:3])


@pytest.mark.parametrize("starts, ends", [([2], [1]), ([-9], [2]), ([0, 0, 0], [1, 1, 1]), ([0], [1, 2]), ([0], [-9])])
def test_slice_refuses(starts, ends):
    for inputs, args in (((np.array(starts), np.array(ends)), {}), ((), {"starts": starts, "ends": ends})):
        with pytest.raises(RuntimeError, match="Slice"):
            run("Slice", numbers((4, 3)), *inputs, **args)


def test_slice_needs_bounds():
    for args in ({}, {"starts": [0]}):
        with pytest.raises(RuntimeError, match="starts and ends"):
            run("Slice", numbers((4, 3)), **args)


@given(
    array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4),
    array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4),
    st.data(),
)
def test_gather(shape, taken, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    n = shape[axis]
    dtype = data.draw(st.sampled_from([np.int32, np.int64]))
    indices = np.array(
        data.draw(st.lists(st.integers(-n, n - 1), min_size=int(np.prod(taken)), max_size=int(np.prod(taken)))), dtype
    )
    indices = indices.reshape(taken)
    x = numbers(shape, data.draw(st.sampled_from([np.float32, np.uint8, np.int16, np.float64])))
    np.testing.assert_array_equal(run("Gather", x, indices, axis=axis)[0], np.take(x, indices, axis), strict=True)
    check_linear_gradient("Gather", x.astype("f"), indices % n, axis=axis)
    if axis == 0:
        check_linear_gradient("Gather", x.astype("f"), indices.ravel() % n, dense_gradient=1)


def test_match_outer():
    x = numbers((2, 3, 4))
    indices = np.array([[0, 2, 2], [1, 0, 1]])
    want = np.stack([x[b][indices[b]] for b in range(2)])
    np.testing.assert_array_equal(run("BatchGather", x, indices, match_outer=1)[0], want)
    np.testing.assert_array_equal(run("Gather", x, indices, axis=1, match_outer=1)[0], want)
    check_linear_gradient("BatchGather", x, indices, match_outer=1)
    check_linear_gradient("Gather", x, indices, axis=1, match_outer=1)
    np.testing.assert_array_equal(run("BatchGather", x, np.array([[2], [0]]))[0], np.take(x, [[2], [0]], 1))
    check_linear_gradient("BatchGather", x, np.array([[2], [0]]))


def test_gather_large_and_strings():
    rng = np.random.default_rng(0)
    x, i = rng.standard_normal((5000, 7)).astype("f"), rng.integers(0, 5000, 40000)
    np.testing.assert_array_equal(run("Gather", x, i)[0], x[i])
    np.testing.assert_array_equal(run("Gather", x.T.copy(), i, axis=1)[0], x.T[:, i])
    s = strings([b"%d" % k for k in range(100)])
    np.testing.assert_array_equal(run("Gather", s, i % 100)[0], s[i % 100])


def test_gather_sparse_gradient():
    x, i = numbers((4, 2)), np.array([1, 1, 3])
    run("Gather", x, i)
    (indices, values), none = gradients("Gather", [x, i], [numbers((3, 2))])
    np.testing.assert_array_equal(indices, i)
    np.testing.assert_array_equal(values, numbers((3, 2)))
    assert none is None


@pytest.mark.parametrize("index", [4, -5, 2**40])
def test_out_of_range_leaves_the_output_alone(index):
    workspace.FeedBlob("y0", np.float32([7]))
    cases = [
        ("Gather", [numbers((4, 2)), np.array([0, index])], {}),
        ("BatchGather", [numbers((2, 4)), np.array([0, index])], {}),
        ("RemoveDataBlocks", [numbers((4, 2)), np.array([0, index])], {}),
        ("LengthsGather", [numbers(4), np.int32([1] * 4), np.array([index])], {}),
        ("OneHot", [np.array([0, index]), np.array([4])], {}),
        ("SparseToDense", [np.array([index]), numbers(1), numbers((4,))], {}),
        ("SegmentOneHot", [np.int32([1]), np.array([index]), np.array([4])], {}),
        ("Scatter", [numbers((4, 4)), np.array([[index]]), numbers((1, 1))], {}),
    ]
    for op, inputs, args in cases:
        for k, x in enumerate(inputs):
            workspace.FeedBlob(f"x{k}", x)
        with pytest.raises(RuntimeError, match=f"index {index} is out of range for 4"):
            workspace.RunOperatorOnce(operator(op, inputs, **args))
        np.testing.assert_array_equal(workspace.FetchBlob("y0"), [7])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_gather_ranges(dtype):
    x = strings([b"a", b"b", b"c", b"d", b"e", b"f"])
    ranges = np.array([[[0, 1], [2, 2]], [[4, 1], [5, 1]], [[6, 0], [1, 0]]], dtype)
    y, lengths = run("GatherRanges", x, ranges, outputs=2)
    assert b"".join(y) == b"acdef"
    np.testing.assert_array_equal(lengths, np.int32([3, 2, 0]), strict=True)
    for bad in ([[[5, 2]]], [[[-1, 1]]], [[[0, -1]]], [[[2**31 - 1, 1]]]):
        with pytest.raises(RuntimeError, match="range"):
            run("GatherRanges", x, np.array(bad, dtype), outputs=2)


def test_lengths_gather():
    (y,) = run("LengthsGather", numbers((10, 2)), np.int32([0, 2, 3, 1, 4]), np.array([0, 2, 4]))
    np.testing.assert_array_equal(y, numbers((10, 2))[[2, 3, 4, 6, 7, 8, 9]])
    for lengths in ([5, 6], [11, -1]):
        with pytest.raises(RuntimeError, match="lengths"):
            run("LengthsGather", numbers((10, 2)), np.int32(lengths), np.array([0]))


def test_scatter_assign():
    for x in (numbers((5, 2)), numbers((5, 2), np.float16), strings(numbers((5, 2)).astype("S"))):
        (y,) = run("ScatterAssign", x, np.array([3, 0]), x[[1, 2]], inplace={0: 0})
        want = x.copy()
        want[[3, 0]] = x[[1, 2]]
        np.testing.assert_array_equal(y, want)
    for indices, slices in (([5], x[:1]), ([0], x[:2]), ([-1], x[:1]), ([0], np.zeros((1, 2)))):
        with pytest.raises(RuntimeError, match="ScatterAssign"):
            run("ScatterAssign", x, np.array(indices), slices, inplace={0: 0})
    with pytest.raises(RuntimeError, match="same blob"):
        run("ScatterAssign", x, np.array([0]), x[:1])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter(axis):
    x, updates = numbers((4, 5)), -1 - numbers((2, 3))
    indices = np.array([[0, 2, 1], [3, 1, 0]])
    want = x.copy()
    for i in range(2):
        for j in range(3):
            want[(indices[i, j], j) if axis == 0 else (i, indices[i, j])] = updates[i, j]
    np.testing.assert_array_equal(run("Scatter", x, indices, updates, axis=axis)[0], want)


@pytest.mark.parametrize("make", [numbers, lambda s: numbers(s, bool), lambda s: strings(numbers(s).astype("S"))])
def test_where(make):
    x, y = make((3, 2)), make((3, 2))[::-1].copy()
    c = np.array([[True, False], [False, False], [True, True]])
    np.testing.assert_array_equal(run("Where", c, x, y)[0], np.where(c, x, y))
    np.testing.assert_array_equal(run("Where", c[:, 0].copy(), x, y, broadcast_on_rows=1)[0], np.where(c[:, :1], x, y))
    with pytest.raises(RuntimeError, match="shape"):
        run("Where", c[:2], x, y)


@given(st.lists(st.booleans(), max_size=20), st.integers(0, 3))
def test_boolean_mask(mask, width):
    mask = np.array(mask, bool)
    x = numbers((len(mask), width))
    y, indices = run("BooleanMask", x, mask, outputs=2)
    np.testing.assert_array_equal(y, x[mask])
    np.testing.assert_array_equal(indices, np.flatnonzero(mask))
    check_linear_gradient("BooleanMask", x, mask)
    s = strings([b"%d" % i for i in range(len(mask))])
    np.testing.assert_array_equal(run("BooleanMask", s, mask)[0], s[mask])


def test_boolean_mask_lengths():
    mask = np.array([True, False, True, True, False])
    (y,) = run("BooleanMaskLengths", np.int32([2, 0, 3]), mask)
    np.testing.assert_array_equal(y, np.int32([1, 0, 2]), strict=True)
    with pytest.raises(RuntimeError, match="add up"):
        run("BooleanMaskLengths", np.array([2, 4]), mask)


def test_boolean_unmask():
    masks = [np.array(m, bool) for m in ([1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 1, 1])]
    values = [strings([b"1", b"3"]), strings([b"2"]), strings([b"4", b"5"])]
    pairs = [a for pair in zip(masks, values, strict=True) for a in pair]
    assert b"".join(run("BooleanUnmask", *pairs)[0]) == b"12345"
    with pytest.raises(RuntimeError, match="no mask"):
        run("BooleanUnmask", *pairs[:4])
    with pytest.raises(RuntimeError, match="2 elements"):
        run("BooleanUnmask", *pairs[:5], strings([b"4"]))
    with pytest.raises(RuntimeError, match="pairs"):
        run("BooleanUnmask", *pairs[:3])


def test_remove_data_blocks():
    x = numbers((6, 2))
    np.testing.assert_array_equal(run("RemoveDataBlocks", x, np.int32([4, 1, 4]))[0], x[[0, 2, 3, 5]])
    np.testing.assert_array_equal(run("RemoveDataBlocks", x, np.array([], int))[0], x)


def test_one_hot():
    np.testing.assert_array_equal(run("OneHot", np.array([1, 0, 2]), np.array([3]))[0], np.eye(3, dtype="f")[[1, 0, 2]])
    (y,) = run("SegmentOneHot", np.int32([2, 0, 1]), np.array([0, 2, 1]), np.array([4]))
    np.testing.assert_array_equal(y, np.float32([[1, 0, 1, 0], [0] * 4, [0, 1, 0, 0]]), strict=True)
    with pytest.raises(RuntimeError, match="add up"):
        run("SegmentOneHot", np.int32([2]), np.array([0]), np.array([4]))
    with pytest.raises(RuntimeError, match="negative"):
        run("OneHot", np.array([0]), np.array([-3]))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_batch_one_hot(dtype):
    data, values = np.array([[2, 3], [4, 1], [2, 5]], dtype), np.array([2, 4, 1, 3, 5], dtype)
    (y,) = run("BatchOneHot", data, np.int32([2, 3]), values)
    np.testing.assert_array_equal(y, np.array([[1, 0, 0, 1, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 1]], dtype), strict=True)
    for lengths in ([2, 4], [6, -1], [5]):
        with pytest.raises(RuntimeError, match="BatchOneHot"):
            run("BatchOneHot", data, np.int32(lengths), values)


@given(st.lists(st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=2), max_size=5))
def test_batch_bucket_one_hot(rows):
    data = np.array(rows, "f").reshape(-1, 2)
    bounds = [np.float32([-1, 0.5]), np.float32([-1, 0, 1])]
    want = np.concatenate([np.eye(len(b) + 1)[np.searchsorted(b, data[:, j])] for j, b in enumerate(bounds)], 1)
    np.testing.assert_array_equal(run("BatchBucketOneHot", data, np.int32([2, 3]), np.concatenate(bounds))[0], want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan(dtype):
    x = np.array([[1, np.nan], [np.inf, -0.0]], dtype)
    np.testing.assert_array_equal(run("ReplaceNaN", x, value=3.0)[0], np.where(np.isnan(x), 3, x), strict=True)
    np.testing.assert_array_equal(run("ReplaceNaN", x, inplace={0: 0})[0], np.where(np.isnan(x), 0, x))
    np.testing.assert_array_equal(run("IsNaN", x)[0], np.isnan(x).astype(np.uint8), strict=True)


def test_accumulate():
    x, total = np.float32([1, 2]), 0
    for _ in range(3):
        total = x + 0.5 * total
        np.testing.assert_array_equal(run("Accumulate", x, gamma=0.5)[0], total)
    np.testing.assert_array_equal(run("Accumulate", np.ones((1, 2), "f"), gamma=0.5)[0], [[1, 1]])

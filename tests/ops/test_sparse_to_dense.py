"""Between sparse and dense tensors, against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opcheck import check_linear_gradient, gradients, run, strings


def numbers(shape, dtype=np.float32):
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


@given(st.lists(st.integers(0, 9), max_size=12), st.sampled_from([np.float32, np.float64, np.int32, np.int64]))
def test_sparse_to_dense(indices, dtype):
    values = numbers((len(indices), 2), dtype)
    for n, inputs, args in (
        (12, (np.zeros((12, 1)),), {}),
        (10, (), {"output_first_dim": 10}),
        (max(indices, default=-1) + 1, (), {}),
    ):
        want = np.zeros((n, 2), dtype)
        np.add.at(want, np.array(indices, int), values)
        np.testing.assert_array_equal(
            run("SparseToDense", np.array(indices, np.int32), values, *inputs, **args)[0], want
        )


def test_sparse_to_dense_gradient():
    i, v, like = np.array([2, 0, 2]), numbers((3, 2)), np.zeros((4, 1))
    run("SparseToDense", i, v, like)
    grad = gradients("SparseToDense", [i, v, like], [numbers((4, 2))])
    assert grad[0] is None and grad[2] is None
    np.testing.assert_array_equal(grad[1], numbers((4, 2))[i])


def masked(mask, indices, values, default, lengths):
    """One dictionary an example."""
    output, presence, at = [], [], 0
    for n in [len(indices)] if lengths is None else lengths:
        example = dict(zip(indices[at : at + n].tolist(), values[at : at + n], strict=True))
        output.append([example.get(id, default) for id in mask])
        presence.append([id in example for id in mask])
        at += n
    output = np.array(output, values.dtype).reshape(-1, len(mask), *values.shape[1:])
    presence = np.array(presence, bool).reshape(-1, len(mask))
    return (output[0], presence[0]) if lengths is None else (output, presence)


@given(
    st.lists(st.integers(0, 6), min_size=1, unique=True),
    st.lists(st.integers(0, 4), max_size=4) | st.none(),
    st.sampled_from([(), (2,), (1, 3)]),
    st.data(),
)
def test_sparse_to_dense_mask(mask, lengths, row, data):
    n = data.draw(st.integers(0, 5)) if lengths is None else sum(lengths)
    scale = data.draw(st.sampled_from([1, 10**10]))
    indices = np.array(data.draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)), np.int64) * scale
    mask = [scale * id for id in mask]
    inputs = [indices, numbers((n, *row)), np.full(row, -1, "f")] + ([] if lengths is None else [np.int32(lengths)])
    output, presence = run("SparseToDenseMask", *inputs, outputs=2, mask=mask, return_presence_mask=1)
    want, there = masked(mask, indices, inputs[1], inputs[2], lengths)
    np.testing.assert_array_equal(output, want, strict=True)
    np.testing.assert_array_equal(presence, there, strict=True)
    inputs[2] = np.zeros(row, "f")
    others = inputs[:1] + inputs[2:]
    check_linear_gradient("SparseToDenseMask", inputs[1], *others, which=1, mask=mask)


def test_sparse_to_dense_mask_strings():
    values = strings([b"a", b"b", b"c"])
    (y,) = run("SparseToDenseMask", np.int32([2, 7, 1]), values, strings(b"?"), mask=[1, 3, 2])
    np.testing.assert_array_equal(y, strings([b"c", b"?", b"a"]))


def test_negative_indices_are_skipped_up_to_a_limit():
    inputs = [np.array([-1, 1, -1]), numbers(3), np.float32(9)]
    np.testing.assert_array_equal(run("SparseToDenseMask", *inputs, mask=[0, 1], max_skipped_indices=3)[0], [9, 1])
    with pytest.raises(RuntimeError, match="skipped"):
        run("SparseToDenseMask", *inputs, mask=[0, 1], max_skipped_indices=2)


@pytest.mark.parametrize(
    "mask, inputs",
    [
        ([], []),
        ([1, 1], []),
        ([-1], []),
        ([1], [np.int32([2])]),
        ([1], [np.int32([4, -1])]),
        ([1], [np.array([3])]),
    ],
)
def test_sparse_to_dense_mask_refuses(mask, inputs):
    with pytest.raises(RuntimeError, match="mask|length|int32"):
        run("SparseToDenseMask", np.array([0, 1, 2]), numbers(3), np.float32(0), *inputs, mask=mask)


def test_batch():
    lengths, indices = np.array([2, 0, 3]), np.array([0, 1, 3, 0, 2])
    values = np.float32([6, 7, 8, 9, 10])
    dense = np.full((3, 4), 0.5, "f")
    dense[[0, 0, 2, 2, 2], indices] = values
    (y,) = run("BatchSparseToDense", lengths, indices, values, dense_last_dim=4, default_value=0.5)
    np.testing.assert_array_equal(y, dense)
    (y,) = run("BatchSparseToDense", lengths.astype(np.int32), indices, values, dense, default_value=0.5)
    np.testing.assert_array_equal(y, dense)
    np.testing.assert_array_equal(run("BatchDenseToSparse", lengths, indices, dense)[0], values)
    check_linear_gradient("BatchDenseToSparse", dense, lengths, indices, which=2)
    check_linear_gradient("BatchSparseToDense", values, lengths, indices, which=2, dense_last_dim=4)


@pytest.mark.parametrize(
    "lengths, indices", [([2, 0, 2], [0, 1, 2, 3, 0]), ([5, 0, 0], [0, 1, 2, 3, 4]), ([6, 0, -1], [0] * 5)]
)
def test_batch_refuses(lengths, indices):
    with pytest.raises(RuntimeError, match="elements|length"):
        run("BatchDenseToSparse", np.array(lengths), np.array(indices), numbers((3, 4)))
    with pytest.raises(RuntimeError, match="elements|length"):
        run("BatchSparseToDense", np.array(lengths), np.array(indices), numbers(5), dense_last_dim=4)

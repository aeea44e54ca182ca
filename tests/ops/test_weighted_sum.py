"""Weighted sums of tensors and of rows, their gradients, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.python import core, gradient_checker, workspace

F = np.float32


def run(op, feeds, inputs, outputs, **args):
    for name, value in feeds.items():
        workspace.FeedBlob(name, value)
    workspace.RunOperatorOnce(core.CreateOperator(op, inputs, outputs, **args))
    return [workspace.FetchBlob(o) for o in outputs]


def pairs(n, shape, seed=0):
    rng = np.random.default_rng(seed)
    feeds = {}
    for i in range(n):
        feeds[f"x{i}"] = rng.normal(size=shape).astype(F)
        feeds[f"w{i}"] = rng.normal(size=1).astype(F)
    return feeds


@given(n=st.integers(1, 4), in_place=st.booleans(),
       shape=st.lists(st.integers(0, 5), max_size=3).map(tuple) | st.just((40000,)))
def test_weighted_sum(n, in_place, shape):
    feeds = pairs(n, shape)
    got, = run("WeightedSum", feeds, list(feeds), ["x0" if in_place else "y"])
    want = sum(feeds[f"x{i}"].astype(float) * feeds[f"w{i}"] for i in range(n))
    assert got.shape == shape and got.dtype == F
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_same_tensor_twice():
    x = np.array([1, 2], F)
    feeds = {"x": x, "w": np.array([3], F), "v": np.array([0.5], F)}
    assert run("WeightedSum", feeds, ["x", "w", "x", "v"], ["y"])[0].tolist() == [3.5, 7]


@pytest.mark.parametrize("checked", range(4))
def test_gradient(checked):
    feeds = pairs(2, (3, 2))
    op = core.CreateOperator("WeightedSum", list(feeds), ["y"], grad_on_w=1)
    checker = gradient_checker.GradientChecker(0.01, 1e-3)
    agree, _, _ = checker.CheckSimple(
        op, list(feeds.values()), checked, [0], ensure_outputs_are_inferred=True)
    assert agree


def test_gradient_of_large_tensors():
    feeds = pairs(2, (50001,))
    dy = np.random.default_rng(5).normal(size=50001).astype(F)
    got = run("WeightedSumGradient", {**feeds, "dy": dy}, ["dy", *feeds],
              ["dx0", "dx1", "dw0", "dw1"], grad_on_w=1)
    for i in range(2):
        np.testing.assert_allclose(got[i], dy * feeds[f"w{i}"], rtol=1e-6)
        want = np.dot(dy.astype(float), feeds[f"x{i}"].astype(float))
        np.testing.assert_allclose(got[2 + i], [want], rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@given(rows=st.integers(1, 6), width=st.sampled_from([1, 3, 700]), n=st.integers(1, 2),
       first=st.sampled_from([1.0, 0.5]), data=st.data())
def test_scatter_weighted_sum(dtype, rows, width, n, first, data):
    indices = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=40)), dtype)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, width)).astype(F)
    feeds = {"x": x, "w": np.array([first], F), "i": indices,
             **{f"{k}{j}": v for j in range(n) for k, v in (
                 ("r", rng.normal(size=(indices.size, width)).astype(F)),
                 ("v", rng.normal(size=1).astype(F)))}}
    got, = run("ScatterWeightedSum", feeds, list(feeds), ["x"])
    want = x.astype(float)
    np.multiply.at(want, indices, first)
    for j in range(n):
        np.add.at(want, indices, feeds[f"r{j}"] * feeds[f"v{j}"].astype(float))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [-1, 4])
def test_bad_index_changes_nothing(bad):
    feeds = {"x": np.ones((4, 2), F), "w": np.array([2], F), "i": np.array([0, bad]),
             "r": np.ones((2, 2), F), "v": np.array([1], F)}
    with pytest.raises(RuntimeError, match=f"index {bad} is out of range: there are 4 rows"):
        run("ScatterWeightedSum", feeds, list(feeds), ["x"])
    np.testing.assert_array_equal(workspace.FetchBlob("x"), feeds["x"])


def test_refuses():
    feeds = {"x": np.ones(3, F), "w": np.ones(1, F), "z": np.ones(4, F), "v": np.ones(2, F),
             "d": np.ones(3), "i": np.array([0])}
    bad = [
        ("WeightedSum", ["x"], ["y"]),
        ("WeightedSum", ["x", "w", "z", "w"], ["y"]),
        ("WeightedSum", ["x", "v"], ["y"]),
        ("WeightedSum", ["d", "w"], ["y"]),
        ("WeightedSum", ["z", "w", "x", "w"], ["x"]),
        ("WeightedSumGradient", ["x", "x", "w"], ["a", "b"]),
        ("WeightedSumGradient", ["x", "z", "w"], ["a"]),
        ("ScatterWeightedSum", ["x", "w", "i"], ["y"]),
        ("ScatterWeightedSum", ["x", "w", "i", "z", "w"], ["x"]),
        ("ScatterWeightedSum", ["x", "w", "w", "w", "w"], ["x"]),
    ]
    for op, inputs, outputs in bad:
        with pytest.raises(RuntimeError, match=op):
            run(op, feeds, inputs, outputs)
        np.testing.assert_array_equal(workspace.FetchBlob("x"), feeds["x"])

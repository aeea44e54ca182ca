"""Dropout: what is dropped and scaled, in training and testing, forward and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.python import core, workspace
from opcheck import gradients, run

F = np.float32

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(shape=shapes, ratio=st.sampled_from([0.0, 0.25, 0.5, 0.9]), in_place=st.booleans())
def test_training(shape, ratio, in_place):
    x = np.random.default_rng(0).standard_normal(shape).astype(F)
    inplace = {0: 0} if in_place else None
    y, mask = run("Dropout", x, outputs=2, inplace=inplace, ratio=ratio)
    assert mask.dtype == bool and mask.shape == x.shape
    np.testing.assert_allclose(y, x * mask / (1 - ratio), rtol=1e-6)
    dy = np.random.default_rng(1).standard_normal(shape).astype(F)
    (dx,) = gradients("Dropout", [x], [dy, None], inplace=inplace, ratio=ratio)
    np.testing.assert_allclose(dx, dy * mask / (1 - ratio), rtol=1e-6)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_how_many_are_dropped(ratio):
    n = 100_000
    _, mask = run("Dropout", np.ones(n, F), outputs=2, ratio=ratio)
    # five standard deviations
    assert abs(mask.mean() - (1 - ratio)) < 5 * np.sqrt(ratio * (1 - ratio) / n)
    # and neighbours do not hang together
    together = (mask[1:] & mask[:-1]).mean()
    assert abs(together - (1 - ratio) ** 2) < 0.02


def test_default_ratio_is_a_half():
    y, mask = run("Dropout", np.ones(1000, F), outputs=2)
    assert 400 < mask.sum() < 600
    np.testing.assert_array_equal(y, 2 * mask)


def test_nothing_is_dropped_at_ratio_0():
    y, mask = run("Dropout", F([1, 2, 3]), outputs=2, ratio=0.0)
    np.testing.assert_array_equal(y, [1, 2, 3])
    assert mask.all()


def test_each_run_draws_anew_and_a_seed_repeats():
    net = core.Net("dropout")
    net.Dropout("x", ["y", "mask"])
    workspace.FeedBlob("x", np.ones(1000, F))
    workspace.CreateNet(net)
    masks = []
    for _ in range(2):
        workspace.RunNet(net)
        masks.append(workspace.FetchBlob("mask"))
    assert (masks[0] != masks[1]).any()
    first, second, third = (run("Dropout", np.ones(1000, F), outputs=2, seed=s)[1] for s in (5, 5, 6))
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("in_place", [False, True])
def test_testing(outputs, in_place):
    x = F([[1, -2], [np.nan, 3]])
    workspace.FeedBlob("x", x)
    names = ["x" if in_place else "y", "mask"][:outputs]
    workspace.RunOperatorOnce(core.CreateOperator("Dropout", ["x"], names, is_test=1))
    np.testing.assert_array_equal(workspace.FetchBlob(names[0]), x)
    if outputs == 2:
        with pytest.raises(RuntimeError, match="mask"):
            workspace.FetchBlob("mask")


@pytest.mark.parametrize("outputs", [1, 2])
def test_gradient_when_testing(outputs):
    op = core.CreateOperator("Dropout", ["x"], ["y", "mask"][:outputs], is_test=1, ratio=0.9)
    made, wanted = core.GradientRegistry.GetGradientForOp(op, ["dy", None][:outputs])
    workspace.FeedBlob("dy", F([1, 2]))
    workspace.RunOperatorsOnce(made)
    np.testing.assert_array_equal(workspace.FetchBlob(str(wanted[0])), [1, 2])


@pytest.mark.parametrize("args, message", [
    ({"ratio": 1.0}, "ratio"), ({"ratio": -0.1}, "ratio"), ({"ratio": float("nan")}, "ratio"),
])
def test_refuses_arguments(args, message):
    for op, inputs in (("Dropout", [F([1])]), ("DropoutGrad", [F([1]), np.array([True])])):
        with pytest.raises(RuntimeError, match=f"{message}.*{op}.*x0"):
            run(op, *inputs, outputs=2 if op == "Dropout" else 1, **args)


def test_refuses_inputs():
    with pytest.raises(RuntimeError, match="x0.*float.*Dropout"):
        run("Dropout", np.ones(3), outputs=2)
    with pytest.raises(RuntimeError, match="mask.*Dropout"):
        run("Dropout", F([1]))
    with pytest.raises(RuntimeError, match="mask.*DropoutGrad"):
        run("DropoutGrad", F([1]))
    with pytest.raises(RuntimeError, match="x1.*bool.*DropoutGrad"):
        run("DropoutGrad", F([1]), F([1]))
    with pytest.raises(RuntimeError, match="x1.*1 elements.*DropoutGrad"):
        run("DropoutGrad", F([1]), np.array([True, False]))

"""Cross entropies, averages, ranking and accuracies: values and gradients against numpy, bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numeric import check
from opcheck import run

F = np.float32
INT = np.int32

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
seeds = st.integers(0, 99)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(F)


def probabilities(rng, *shape):
    """Rows that sum to 1, none of them close to 0."""
    p = rng.random(shape) + 0.2
    return (p / p.sum(-1, keepdims=True)).astype(F)


# ---------------------------------------------------------------- cross entropy of probabilities


def rows(x):
    return x.reshape(1, -1) if x.ndim == 1 else x.reshape(len(x), -1)


@given(shape=shapes, seed=seeds, column=st.booleans())
def test_label_cross_entropy(shape, seed, column):
    rng = np.random.default_rng(seed)
    x = probabilities(rng, *shape)
    n, d = rows(x).shape
    label = rng.integers(0, d, (n, 1) if column else n).astype(INT)
    check("LabelCrossEntropy", lambda x, t: (-np.log(rows(x)[np.arange(n), t.ravel()]),), [x, label])


@given(shape=shapes, seed=seeds)
def test_cross_entropy(shape, seed):
    rng = np.random.default_rng(seed)
    x = probabilities(rng, *shape)
    check("CrossEntropy", lambda x, t: (-(rows(t) * np.log(rows(x))).sum(1),), [x, probabilities(rng, *shape)])


def test_probabilities_of_nothing_count_as_little():
    x = F([[0, 1], [1e-30, 0.5]])
    (y,) = run("LabelCrossEntropy", x, INT([0, 0]))
    np.testing.assert_allclose(y, [-np.log(1e-20)] * 2, rtol=1e-6)
    (y,) = run("CrossEntropy", x, F([[1, 0], [1, 0]]))
    np.testing.assert_allclose(y, [-np.log(1e-20)] * 2, rtol=1e-6)
    (dx,) = run("LabelCrossEntropyGradient", x, INT([0, 1]), F([1, 1]))
    np.testing.assert_allclose(dx, [[-1e20, 0], [0, -2]], rtol=1e-6)


def test_cross_entropy_of_what_is_not_a_number():
    x = F([[np.nan, 0.5], [0.5, 0.5]])
    (y,) = run("LabelCrossEntropy", x, INT([0, 1]))
    np.testing.assert_allclose(y, [np.nan, np.log(2)], rtol=1e-6)
    (y,) = run("CrossEntropy", x, F([[1, 0], [1, 0]]))
    np.testing.assert_allclose(y, [np.nan, np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("op, label", [("LabelCrossEntropy", np.empty(0, INT)), ("CrossEntropy", np.empty((0, 3), F))])
def test_cross_entropy_of_no_rows(op, label):
    x = np.empty((0, 3), F)
    (y,) = run(op, x, label)
    assert y.shape == (0,)
    (dx,) = run(op + "Gradient", x, label, y)
    assert dx.shape == (0, 3)


P = np.full((2, 3), F(1 / 3))
BAD_ENTROPY = {
    "label too large": ("LabelCrossEntropy", [P, INT([0, 3])], "label.*class"),
    "negative label": ("LabelCrossEntropy", [P, INT([0, -1])], "label.*class"),
    "int64 labels": ("LabelCrossEntropy", [P, np.array([0, 1])], "x1.*int32"),
    "float labels": ("LabelCrossEntropy", [P, F([0, 1])], "x1.*int32"),
    "too few labels": ("LabelCrossEntropy", [P, INT([0])], "label"),
    "too many labels": ("LabelCrossEntropy", [P, INT([0, 1, 2])], "label"),
    "int probabilities": ("LabelCrossEntropy", [P.astype(INT), INT([0, 1])], "x0.*float"),
    "scalar": ("LabelCrossEntropy", [F(1), INT([0])], "dimension"),
    "classes": ("CrossEntropy", [P, INT([0, 1])], "x1.*float"),
    "labels of another size": ("CrossEntropy", [P, P[:1]], "label"),
    "label above 1": ("CrossEntropy", [P, 4 * P], "probability"),
    "label below 0": ("CrossEntropy", [P, -P], "probability"),
    "label not a number": ("CrossEntropy", [P, P * F(np.nan)], "probability"),
}


@pytest.mark.parametrize("op, inputs, message", BAD_ENTROPY.values(), ids=BAD_ENTROPY)
def test_cross_entropy_refuses(op, inputs, message):
    with pytest.raises(RuntimeError, match=rf"({message}).*{op}.*x0.*x1"):
        run(op, *inputs)


@pytest.mark.parametrize("op, label", [("LabelCrossEntropy", INT([0, 1])), ("CrossEntropy", P)])
def test_cross_entropy_gradient_refuses(op, label):
    for dy in (F([1]), np.ones(2), INT([1, 1])):
        with pytest.raises(RuntimeError, match=f"x2.*{op}Gradient"):
            run(op + "Gradient", P, label, dy)


# ---------------------------------------------------------------- cross entropy of logits


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def joined(x, t):
    return t * log_sigmoid(x) + (1 - t) * log_sigmoid(-x)


def log_d(x, t):
    return (2 * t - 1) * log_sigmoid(x)


def unjoined(x, t):
    return t * x + (1 - t) * log_sigmoid(-x)


FORMS = {"joined": ({}, joined), "log_D_trick": ({"log_D_trick": 1}, log_d),
         "unjoined_lr_loss": ({"unjoined_lr_loss": 1}, unjoined)}


@pytest.mark.parametrize("args, likelihood", FORMS.values(), ids=FORMS)
@given(shape=shapes, seed=seeds)
def test_sigmoid_cross_entropy(args, likelihood, shape, seed):
    rng = np.random.default_rng(seed)
    inputs = [3 * normal(rng, *shape), rng.random(shape).astype(F)]
    check("SigmoidCrossEntropyWithLogits", lambda x, t: (-likelihood(x, t).mean(-1),), inputs, **args)


@given(shape=shapes, seed=seeds)
def test_weighted_sigmoid_cross_entropy(shape, seed):
    rng = np.random.default_rng(seed)
    inputs = [3 * normal(rng, *shape), rng.random(shape).astype(F), normal(rng, *shape)]
    check("WeightedSigmoidCrossEntropyWithLogits", lambda x, t, w: (-(w * joined(x, t)).mean(-1),), inputs)


@pytest.mark.parametrize("args, likelihood", FORMS.values(), ids=FORMS)
def test_sigmoid_cross_entropy_does_not_overflow(args, likelihood):
    x, t = F([[1000, 1000, -1000, -1000]]), F([[0, 1, 0, 1]])
    (y,) = run("SigmoidCrossEntropyWithLogits", x, t, **args)
    np.testing.assert_allclose(y, -likelihood(x.astype(float), t).mean(-1), rtol=1e-6)
    (dx,) = run("SigmoidCrossEntropyWithLogitsGradient", F([1]), x, t, **args)
    assert np.isfinite(dx).all()


def test_sigmoid_cross_entropy_of_what_is_not_a_number():
    (y,) = run("SigmoidCrossEntropyWithLogits", F([[0, np.nan], [0, 0]]), F([[1, 1], [1, 1]]))
    np.testing.assert_allclose(y, [np.nan, np.log(2)], rtol=1e-6)


def test_sigmoid_cross_entropy_of_a_scalar_and_of_nothing():
    (y,) = run("SigmoidCrossEntropyWithLogits", F(0), F(1))
    np.testing.assert_allclose(y, np.log(2), rtol=1e-6)
    assert y.shape == ()
    empty = np.empty((0, 3), F)
    (y,) = run("SigmoidCrossEntropyWithLogits", empty, empty)
    assert y.shape == (0,)
    (dx,) = run("SigmoidCrossEntropyWithLogitsGradient", y, empty, empty)
    assert dx.shape == (0, 3)


BAD_SIGMOID = {
    "another shape": ([P, P.T], {}, "same shape"),
    "int targets": ([P, P.astype(INT)], {}, "x1.*float"),
    "double logits": ([P.astype(float), P], {}, "x0.*float"),
    "both forms": ([P, P], {"log_D_trick": 1, "unjoined_lr_loss": 1}, "exclude"),
}


@pytest.mark.parametrize("inputs, args, message", BAD_SIGMOID.values(), ids=BAD_SIGMOID)
def test_sigmoid_cross_entropy_refuses(inputs, args, message):
    with pytest.raises(RuntimeError, match=rf"{message}.*SigmoidCrossEntropyWithLogits.*x0.*x1"):
        run("SigmoidCrossEntropyWithLogits", *inputs, **args)


def test_weighted_sigmoid_cross_entropy_refuses():
    with pytest.raises(RuntimeError, match="same shape.*WeightedSigmoidCrossEntropyWithLogits.*x2"):
        run("WeightedSigmoidCrossEntropyWithLogits", P, P, P[:1])
    with pytest.raises(RuntimeError, match="2 elements.*SigmoidCrossEntropyWithLogitsGradient"):
        run("SigmoidCrossEntropyWithLogitsGradient", F([1]), P, P)


# ---------------------------------------------------------------- sums


@given(shape=st.lists(st.integers(0, 4), max_size=3).map(tuple), seed=seeds)
@pytest.mark.parametrize("op, args, reference", [
    ("AveragedLoss", {}, lambda x: x.mean() if x.size else 0),
    ("SumElements", {}, np.sum),
    ("SumElements", {"average": 1}, lambda x: x.mean() if x.size else 0),
])
def test_sums(op, args, reference, shape, seed):
    x = normal(np.random.default_rng(seed), *shape)
    check(op, lambda x: (np.array(reference(x)),), [x], **args)


def test_sums_of_other_types():
    (y,) = run("SumElementsInt", INT([[1, 2], [3, 4]]))
    assert y == 10 and y.dtype == INT
    (y,) = run("SumSqrElements", F([1, 2, 3]))
    assert y == 14
    (y,) = run("SumSqrElements", F([1, 3]), average=1)
    assert y == 5


def test_sum_of_many():
    """Sums do not lose what a float accumulator would."""
    (y,) = run("SumElements", np.full(20_000_001, F(0.1)))
    np.testing.assert_allclose(y, 2_000_000.1 * (F(0.1) / 0.1), rtol=1e-6)
    (y,) = run("AveragedLoss", np.full(1_000_003, F(1e30)))
    np.testing.assert_allclose(y, 1e30, rtol=1e-6)


def test_sum_of_what_is_not_finite():
    for value in (np.nan, np.inf):
        (y,) = run("AveragedLoss", F([1, value]))
        np.testing.assert_equal(float(y), value)


def test_sums_refuse():
    for op, x in (("AveragedLoss", np.array([b"a"], object)), ("SumSqrElements", INT([1])),
                  ("SumElements", np.array([True]))):
        with pytest.raises(RuntimeError, match=f"x0.*{op}"):
            run(op, x)
    with pytest.raises(RuntimeError, match="x1.*1 elements.*AveragedLossGradient"):
        run("AveragedLossGradient", F([1, 2]), F([1, 2]))


# ---------------------------------------------------------------- two classes, ranking


@given(shape=st.lists(st.integers(0, 4), max_size=3).map(tuple), seed=seeds)
def test_make_two_class(shape, seed):
    x = np.random.default_rng(seed).random(shape).astype(F)
    check("MakeTwoClass", lambda x: (np.stack([1 - x, x], -1),), [x])


def test_make_two_class_refuses():
    with pytest.raises(RuntimeError, match="x0.*float.*MakeTwoClass"):
        run("MakeTwoClass", INT([1]))
    with pytest.raises(RuntimeError, match="2.*MakeTwoClassGradient"):
        run("MakeTwoClassGradient", F([[1, 2, 3]]))
    with pytest.raises(RuntimeError, match="MakeTwoClass"):
        run("MakeTwoClass", np.ones((1,) * 16, F))


@given(shape=shapes, margin=st.sampled_from([0.0, 0.5, 1.0, 3.0]), seed=seeds)
def test_margin_ranking_criterion(shape, margin, seed):
    rng = np.random.default_rng(seed)
    x1, x2 = normal(rng, *shape), normal(rng, *shape)
    label = rng.choice([-1, 1], shape).astype(INT)
    distance = margin - label * (x1 - x2)
    x1 = np.where(np.abs(distance) < 0.01, x1 + F(0.1), x1)     # away from the kink
    check("MarginRankingCriterion", lambda x1, x2, t: (np.maximum(0, margin - t * (x1 - x2)),), [x1, x2, label],
          wanted=(0, 1), margin=margin)


def test_margin_ranking_criterion_of_what_is_not_a_number():
    (y,) = run("MarginRankingCriterion", F([np.nan, 0]), F([0, 0]), INT([1, 1]))
    np.testing.assert_array_equal(y, [np.nan, 1])


@pytest.mark.parametrize("inputs, message", [
    ([F([1]), F([1, 2]), INT([1])], "x1.*1 elements"),
    ([F([1]), F([1]), INT([1, 1])], "x2.*1 elements"),
    ([F([1]), F([1]), np.array([1])], "x2.*int32"),
    ([F([1]), F([1]), F([1])], "x2.*int32"),
    ([INT([1]), F([1]), INT([1])], "x0.*float"),
])
def test_margin_ranking_criterion_refuses(inputs, message):
    with pytest.raises(RuntimeError, match=f"{message}.*MarginRankingCriterion.*x0.*x1.*x2"):
        run("MarginRankingCriterion", *inputs)


# ---------------------------------------------------------------- accuracies


@given(n=st.integers(1, 8), d=st.integers(1, 6), top_k=st.integers(1, 7), seed=seeds)
def test_accuracy(n, d, top_k, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (n, d)).astype(F)        # with equal scores
    label = rng.integers(0, d, n).astype(INT)
    best = np.argsort(-x, axis=1, kind="stable")[:, :top_k]
    (y,) = run("Accuracy", x, label, top_k=top_k)
    np.testing.assert_allclose(y, (best == label[:, None]).any(1).mean(), rtol=1e-6)
    assert y.shape == ()


@given(n=st.integers(0, 8), d=st.integers(1, 6), seed=seeds)
def test_multi_class_accuracy(n, d, seed):
    rng = np.random.default_rng(seed)
    x = rng.permuted(np.tile(np.arange(d, dtype=F), (n, 1)), axis=1)
    label = rng.integers(0, d, n).astype(INT)
    accuracies, amounts = run("MultiClassAccuracy", x, label, outputs=2)
    right = x.argmax(1) == label
    np.testing.assert_array_equal(amounts, np.bincount(label, minlength=d))
    np.testing.assert_allclose(accuracies, [right[label == k].mean() if (label == k).any() else 0 for k in range(d)],
                               rtol=1e-6)


def test_accuracy_of_no_rows():
    (y,) = run("Accuracy", np.empty((0, 3), F), np.empty(0, INT))
    assert np.isnan(y)


@pytest.mark.parametrize("op, outputs", [("Accuracy", 1), ("MultiClassAccuracy", 2)])
@pytest.mark.parametrize("inputs, message", [
    ([P, INT([0, 3])], "label.*class"),
    ([P, INT([-1, 0])], "label.*class"),
    ([P, INT([0])], "x1.*2 elements"),
    ([P, np.array([0, 1])], "x1.*int32"),
    ([P, INT([[0], [1]])], "x1.*1 dimensions"),
    ([P.ravel(), INT([0])], "x0.*2 dimensions"),
    ([P.astype(float), INT([0, 1])], "x0.*float"),
])
def test_accuracy_refuses(op, outputs, inputs, message):
    with pytest.raises(RuntimeError, match=f"({message}).*{op}.*x0.*x1"):
        run(op, *inputs, outputs=outputs)


# ---------------------------------------------------------------- in place


@pytest.mark.parametrize("op, inputs", [
    ("LabelCrossEntropy", [P, INT([0, 1])]), ("CrossEntropy", [P, P]), ("SigmoidCrossEntropyWithLogits", [P, P]),
    ("AveragedLoss", [P]), ("SumElements", [P]), ("MakeTwoClass", [P]), ("MarginRankingCriterion", [P, P, P]),
    ("Accuracy", [P, INT([0, 1])]),
])
def test_not_in_place(op, inputs):
    with pytest.raises(RuntimeError, match=f"same blob.*{op}"):
        run(op, *inputs, inplace={0: 0})

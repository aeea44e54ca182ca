"""Iteration counters, and every learning rate policy against its formula."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.python import core, workspace

BASE = -0.5


def warmup(i, rest):
    if i < 10:
        return 0.2
    return 0.2 + 0.8 * (i - 10) / 20 if i < 30 else rest(i - 30)


def triangle(i, high, size, decay):
    cycle, place = divmod(i, 2 * size)
    return 1 + (high / 0.5 - 1) * (1 - abs(place - size) / size) * decay ** cycle


def cosine(i, high, low, period, growth, shrink):
    cycle = 0
    while i >= period:
        i -= period
        period *= growth
        cycle += 1
    return shrink ** cycle * (low + (high - low) * (1 + math.cos(math.pi * i / period)) / 2)


WARMUP = dict(start_warmup_multiplier=0.2, constant_warmup_num_iter=10, linear_warmup_num_iter=20)
COSINE = dict(max_lr=0.8, min_lr=0.3, period=16, t_mult=2.0, lr_shrink=0.5)
CYCLE = dict(max_lr=0.9, stepsize=7, decay=0.5)

# policy, arguments, factor by iteration
POLICIES = [
    ("fixed", {}, lambda i: 1),
    ("step", dict(stepsize=5, gamma=0.5), lambda i: 0.5 ** (i // 5)),
    ("exp", dict(gamma=0.9), lambda i: 0.9 ** i),
    ("inv", dict(gamma=0.1, power=0.75), lambda i: (1 + 0.1 * i) ** -0.75),
    ("poly", dict(power=2.0, max_iter=300), lambda i: (1 - i / 300) ** 2),
    ("poly", dict(power=2.0), lambda i: 1),
    ("linearWarmup", dict(start_multiplier=0.1, num_iter=20),
     lambda i: min(1, 0.1 + 0.9 * i / 20)),
    ("constantWarmup", dict(multiplier=0.3, num_iter=20), lambda i: 0.3 if i < 20 else 1),
    ("constantWarmup", dict(num_iter=20), lambda i: 0.5 if i < 20 else 1),
    ("gate", dict(multiplier_1=0.3, multiplier_2=2.0, num_iter=20), lambda i: 0.3 if i < 20 else 2),
    ("slope", dict(num_iter_1=20, multiplier_1=1.0, num_iter_2=50, multiplier_2=0.25),
     lambda i: float(np.interp(i, [20, 50], [1, 0.25]))),
    ("alter", dict(active_period=3, inactive_period=4), lambda i: i % 7 < 3),
    ("alter", dict(active_period=3, inactive_period=4, active_first=False), lambda i: i % 7 >= 4),
    ("hill", dict(num_iter=20, start_multiplier=0.1, gamma=0.5, power=1.0, end_multiplier=0.2),
     lambda i: 0.1 + 0.9 * i / 20 if i < 20 else max(0.2, 1 / (1 + 0.5 * (i - 20)))),
    ("cyclical", CYCLE, lambda i: triangle(i, 0.9, 7, 0.5)),
    ("cosine", COSINE, lambda i: cosine(i, 0.8, 0.3, 16, 2, 0.5)),
    ("cosine", {**COSINE, "t_mult": 1.0}, lambda i: cosine(i, 0.8, 0.3, 16, 1, 0.5)),
    ("constantThenLinearWarmup", WARMUP, lambda i: warmup(i, lambda j: 1)),
    ("compositeCyclical",
     {**WARMUP, "cyclical_max_lr": 0.9, "cyclical_step_size": 7, "cyclical_decay": 0.5},
     lambda i: warmup(i, lambda j: triangle(j, 0.9, 7, 0.5))),
    ("compositeCosine", {**WARMUP, **{"cosine_" + k: v for k, v in COSINE.items()}},
     lambda i: warmup(i, lambda j: cosine(j, 0.8, 0.3, 16, 2, 0.5))),
    ("composite",
     dict(sub_policy_num_iters=[10, 5, 30], sub_policy_0_policy="exp", sub_policy_0_gamma=0.9,
          sub_policy_1_policy="fixed", sub_policy_1_lr_scale=0.7, sub_policy_2_policy="step",
          sub_policy_2_stepsize=8, sub_policy_2_gamma=0.5, sub_policy_2_lr_scale=2.0),
     # iterations count from 1, and go on counting
     lambda i: 0.9 ** i if i <= 10 else 0.7 if i <= 15 else 2 * 0.5 ** (i // 8)),
]


def rate(i, policy, **args):
    workspace.FeedBlob("iter", np.array([i]))
    workspace.RunOperatorOnce(
        core.CreateOperator("LearningRate", ["iter"], ["lr"], policy=policy, **args))
    return workspace.FetchBlob("lr")


@pytest.mark.parametrize("policy, args, factor", POLICIES,
                         ids=[f"{p[0]}-{i}" for i, p in enumerate(POLICIES)])
@given(i=st.integers(0, 200))
def test_policy(policy, args, factor, i):
    lr = rate(i, policy, base_lr=BASE, **args)
    assert lr.shape == () and lr.dtype == np.float32
    assert lr == pytest.approx(BASE * factor(i), rel=1e-5, abs=1e-6)


def test_cosine_at_period_borders():
    """The logarithm that finds the cycle must not slip at its ends."""
    for i, cycle in ((15, 0), (17, 1), (47, 1), (49, 2)):
        assert rate(i, "cosine", base_lr=1.0, **COSINE) == pytest.approx(
            cosine(i, 0.8, 0.3, 16, 2, 0.5), rel=1e-5), cycle


@pytest.mark.parametrize("args, message", [
    (dict(policy="fixed"), "base_lr must be given"),
    (dict(base_lr=1.0), "policy must be one of fixed, .*step"),
    (dict(base_lr=1.0, policy="stp"), "policy must be one of fixed, .*step.*'stp'"),
    (dict(base_lr=1.0, policy="step", gamma=0.1), "stepsize must be positive"),
    (dict(base_lr=1.0, policy="alter"), "active_period"),
    (dict(base_lr=1.0, policy="alter", active_period=0, inactive_period=0), "active_period"),
    (dict(base_lr=1.0, policy="poly", max_iter=0), "max_iter must not be 0"),
    (dict(base_lr=1.0, policy="cosine", period=0), "period must be positive"),
    (dict(base_lr=1.0, policy="compositeCosine", cosine_period=0), "cosine_period must be"),
    (dict(base_lr=0.0, policy="cyclical", stepsize=3), "base_lr other than 0"),
    (dict(base_lr=1.0, policy="slope", num_iter_1=5, num_iter_2=5), "num_iter_2"),
    (dict(base_lr=1.0, policy="composite"), "sub_policy_num_iters"),
    (dict(base_lr=1.0, policy="composite", sub_policy_num_iters=[3],
          sub_policy_0_policy="composite"), "may not be part of a composite"),
    (dict(base_lr=1.0, policy="composite", sub_policy_num_iters=[3]), "sub_policy_0_policy must"),
    (dict(base_lr="fast", policy="fixed"), "base_lr must be a float"),
])
def test_refuses(args, message):
    workspace.FeedBlob("iter", np.array([1]))
    with pytest.raises(RuntimeError, match=f"{message}.*LearningRate"):
        workspace.RunOperatorOnce(core.CreateOperator("LearningRate", ["iter"], ["lr"], **args))


def test_refuses_float_iteration():
    workspace.FeedBlob("iter", np.ones(1, np.float32))
    with pytest.raises(RuntimeError, match="iter"):
        workspace.RunOperatorOnce(core.CreateOperator(
            "LearningRate", ["iter"], ["lr"], policy="fixed", base_lr=1.0))


# ---------------------------------------------------------------- counters


def test_iter_counts():
    op = core.CreateOperator("Iter", ["i"], ["i"])
    workspace.FeedBlob("i", np.array([41]))
    workspace.RunOperatorOnce(op)
    np.testing.assert_array_equal(workspace.FetchBlob("i"), [42])


def test_iter_widens_an_int32():
    op = core.CreateOperator("Iter", ["i"], ["i"])
    workspace.FeedBlob("i", np.array([41], np.int32))
    for want in (42, 43):
        workspace.RunOperatorOnce(op)
        got = workspace.FetchBlob("i")
        assert got.dtype == np.int64 and got.tolist() == [want]


def test_iter_without_input_starts_at_zero():
    op = core.CreateOperator("Iter", [], ["i"])
    for want in (1, 2):
        workspace.RunOperatorOnce(op)
        np.testing.assert_array_equal(workspace.FetchBlob("i"), [want])


@pytest.mark.parametrize("value", [np.array([-1]), np.array([2**63 - 1]), np.array([1, 2]),
                                   np.ones(1, np.float32)])
def test_iter_refuses(value):
    workspace.FeedBlob("i", value)
    workspace.FeedBlob("m", np.zeros(1))
    for op, inputs in (("Iter", ["i"]), ("AtomicIter", ["m", "i"])):
        with pytest.raises(RuntimeError, match=f"{op}.*i"):
            workspace.RunOperatorOnce(core.CreateOperator(op, inputs, ["i"]))
        np.testing.assert_array_equal(workspace.FetchBlob("i"), value)


def test_atomic_iter_loses_no_count():
    workspace.RunOperatorOnce(core.CreateOperator("CreateMutex", [], ["m"]))
    workspace.FeedBlob("i", np.array([0]))
    nets = []
    for k in range(4):
        net = core.Net(f"count{k}")
        net.Proto().op.extend([core.CreateOperator("AtomicIter", ["m", "i"], ["i"])] * 50)
        workspace.CreateNet(net)
        nets.append(net)
    threads = [threading.Thread(target=workspace.RunNet, args=(n, 200)) for n in nets]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    np.testing.assert_array_equal(workspace.FetchBlob("i"), [4 * 50 * 200])

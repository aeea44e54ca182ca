"""Updates of optimizers against formulas in numpy, dense and sparse, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.python import core, workspace

F = np.float32


def run(op, feeds, inputs, outputs, **args):
    """Feed blobs, run an operator, fetch its outputs."""
    for name, value in feeds.items():
        workspace.FeedBlob(name, value)
    workspace.RunOperatorOnce(core.CreateOperator(op, inputs, outputs, **args))
    return [workspace.FetchBlob(o) for o in outputs]


# ---------------------------------------------------------------- formulas
# Each takes arguments, the state (a dict, changed in place) and the gradient of one place, or row.


def momentum(a, s, g, lr, t):
    before = s["moment"]
    s["moment"] = a["momentum"] * before + lr * g
    step = s["moment"]
    if a["nesterov"]:
        step = (1 + a["momentum"]) * s["moment"] - a["momentum"] * before
    s["param"] = s["param"] - step


def adagrad(a, s, g, lr, t):
    g = g + a["weight_decay"] * s["param"]
    s["moment"] = s["moment"] + g * g
    s["param"] = s["param"] + lr * g / (np.sqrt(s["moment"]) + a["epsilon"])


def adadelta(a, s, g, lr, t):
    s["moment"] = a["decay"] * s["moment"] + (1 - a["decay"]) * g * g
    d = g * np.sqrt(s["moment_delta"] + a["epsilon"]) / np.sqrt(s["moment"] + a["epsilon"])
    s["moment_delta"] = a["decay"] * s["moment_delta"] + (1 - a["decay"]) * d * d
    s["param"] = s["param"] + lr * d


def adam(a, s, g, lr, t):
    s["moment_1"] = a["beta1"] * s["moment_1"] + (1 - a["beta1"]) * g
    s["moment_2"] = a["beta2"] * s["moment_2"] + (1 - a["beta2"]) * g * g
    m = s["moment_1"] / (1 - a["beta1"] ** t)
    v = s["moment_2"] / (1 - a["beta2"] ** t)
    s["param"] = s["param"] + lr * m / (np.sqrt(v) + a["epsilon"] / np.sqrt(1 - a["beta2"] ** t))


def ftrl(a, s, g, lr, t):
    n, z = s["n_z"][..., 0], s["n_z"][..., 1]
    z = z + g - (np.sqrt(n + g * g) - np.sqrt(n)) / a["alpha"] * s["param"]
    n = n + g * g
    s["n_z"] = np.stack([n, z], axis=-1)
    s["param"] = -np.sign(z) * np.maximum(np.abs(z) - a["lambda1"], 0) / (
        (a["beta"] + np.sqrt(n)) / a["alpha"] + a["lambda2"])


# dense, sparse, formula, state, other inputs after the gradient, arguments
RULES = {
    "momentum": ("MomentumSGDUpdate", "SparseMomentumSGDUpdate", momentum, ["moment"],
                 {"momentum": 0.9, "nesterov": 0}),
    "nesterov": ("MomentumSGDUpdate", "SparseMomentumSGDUpdate", momentum, ["moment"],
                 {"momentum": 0.9, "nesterov": 1}),
    "adagrad": ("Adagrad", "SparseAdagrad", adagrad, ["moment"],
                {"epsilon": 1e-3, "weight_decay": 0.1}),
    "adadelta": ("Adadelta", "SparseAdadelta", adadelta, ["moment", "moment_delta"],
                 {"epsilon": 1e-3, "decay": 0.9}),
    "adam": ("Adam", "SparseAdam", adam, ["moment_1", "moment_2"],
             {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3}),
    "ftrl": ("Ftrl", "SparseFtrl", ftrl, ["n_z"],
             {"alpha": 0.1, "beta": 0.5, "lambda1": 0.2, "lambda2": 0.1}),
}
rules = pytest.mark.parametrize("rule", RULES)


def start(rule, shape, seed=0):
    rng = np.random.default_rng(seed)
    state = {"param": rng.normal(size=shape).astype(F)}
    for name in RULES[rule][3]:
        extra = (2,) if name == "n_z" else ()
        state[name] = np.abs(rng.normal(size=shape + extra)).astype(F)
    return state, {"lr": np.array([-0.1], F), "iter": np.array([4])}


def blobs(rule, sparse):
    """Inputs and outputs of the rule's operator, by name."""
    names = ["param", *RULES[rule][3]]
    if "Momentum" in RULES[rule][0]:
        return (["grad", "moment", "lr", "param"] + ["indices"] * sparse,
                ["grad", "moment", "param"])
    inputs = names + ["indices"] * sparse + ["grad"]
    if rule != "ftrl":
        inputs.append("lr")
    if rule == "adam":
        inputs.append("iter")
    return inputs, names


def expected(rule, state, grad, others, indices=None):
    _, _, formula, _, args = RULES[rule]
    state = {n: v.astype(np.float64) for n, v in state.items()}
    lr, t = others["lr"][0], others["iter"][0] + 1
    if indices is None:
        formula(args, state, grad, lr, t)
        return state
    for i, row in enumerate(indices):
        part = {n: v[row] for n, v in state.items()}
        formula(args, part, grad[i].astype(np.float64), lr, t)
        for n, v in part.items():
            state[n][row] = v
    return state


def check(rule, state, got, outputs):
    got = dict(zip(outputs, got))
    for name, value in state.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@rules
@given(shape=shapes)
def test_dense(rule, shape):
    state, others = start(rule, shape)
    grad = np.random.default_rng(1).normal(size=shape).astype(F)
    inputs, outputs = blobs(rule, False)
    got = run(RULES[rule][0], {**state, **others, "grad": grad}, inputs, outputs, **RULES[rule][4])
    check(rule, expected(rule, state, grad, others), got, outputs)


@rules
def test_not_in_place_leaves_inputs(rule):
    state, others = start(rule, (3, 4))
    grad = np.random.default_rng(1).normal(size=(3, 4)).astype(F)
    inputs, outputs = blobs(rule, False)
    new = ["new_" + o for o in outputs]
    got = run(RULES[rule][0], {**state, **others, "grad": grad}, inputs, new, **RULES[rule][4])
    check(rule, expected(rule, state, grad, others), got, outputs)
    for name, value in {**state, "grad": grad}.items():
        np.testing.assert_array_equal(workspace.FetchBlob(name), value)


@rules
def test_threads_agree(rule):
    """A parameter large enough for several threads: stretches meet without gap or overlap."""
    state, others = start(rule, (20011,))
    grad = np.random.default_rng(1).normal(size=20011).astype(F)
    inputs, outputs = blobs(rule, False)
    got = run(RULES[rule][0], {**state, **others, "grad": grad}, inputs, outputs, **RULES[rule][4])
    check(rule, expected(rule, state, grad, others), got, outputs)


@rules
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@given(shape=shapes, data=st.data())
def test_sparse(rule, dtype, shape, data):
    """Rows one after the other, as often as they occur."""
    indices = np.array(data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=6)), dtype)
    state, others = start(rule, shape)
    grad = np.random.default_rng(1).normal(size=(indices.size, *shape[1:])).astype(F)
    inputs, outputs = blobs(rule, True)
    got = run(RULES[rule][1], {**state, **others, "grad": grad, "indices": indices},
              inputs, outputs, **RULES[rule][4])
    check(rule, expected(rule, state, grad, others, indices), got, outputs)


@rules
def test_sparse_threads_keep_order_of_duplicates(rule):
    indices = np.random.default_rng(2).integers(0, 37, size=300)
    state, others = start(rule, (37, 64))
    grad = np.random.default_rng(1).normal(size=(300, 64)).astype(F)
    inputs, outputs = blobs(rule, True)
    got = run(RULES[rule][1], {**state, **others, "grad": grad, "indices": indices},
              inputs, outputs, **RULES[rule][4])
    check(rule, expected(rule, state, grad, others, indices), got, outputs)


ALL_ROWS = {**{r: (v[0], v[1]) for r, v in RULES.items()},
            "storm": ("Storm", "SparseStorm"), "wngrad": ("Wngrad", "SparseWngrad")}


@pytest.mark.parametrize("rule", ALL_ROWS)
def test_sparse_with_all_rows_is_dense(rule):
    rng = np.random.default_rng(3)
    shape = (6, 5)
    order = rng.permutation(6)
    grad = rng.normal(size=shape).astype(F)
    args = RULES[rule][4] if rule in RULES else {}
    if rule in RULES:
        state, others = start(rule, shape)
        (inputs, outputs), (sparse_inputs, _) = blobs(rule, False), blobs(rule, True)
    elif rule == "storm":
        state = {"param": rng.normal(size=shape).astype(F),
                 "moment": rng.normal(size=shape).astype(F), "sum": np.array([0.5], F)}
        inputs, sparse_inputs = [*state, "grad", "lr"], [*state, "grad", "indices", "lr"]
        others, outputs = {"lr": np.array([-0.1], F)}, list(state)
    else:
        state = {"param": rng.normal(size=shape).astype(F), "b": np.array([2], F)}
        inputs, sparse_inputs = [*state, "grad", "lr"], [*state, "indices", "grad", "lr"]
        others, outputs = {"lr": np.array([-0.1], F)}, list(state)
    dense_op, sparse_op = ALL_ROWS[rule]
    dense = run(dense_op, {**state, **others, "grad": grad}, inputs, outputs, **args)
    sparse = run(sparse_op, {**state, **others, "grad": grad[order], "indices": order},
                 sparse_inputs, outputs, **args)
    for name, a, b in zip(outputs, dense, sparse):
        np.testing.assert_allclose(b, a[order] if name == "grad" else a, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- rules of their own


def test_wngrad():
    w, g = np.array([1, 2], F), np.array([3, 4], F)
    feeds = {"w": w, "b": np.array([5], F), "g": g, "lr": np.array([-2], F)}
    got = run("Wngrad", feeds, ["w", "b", "g", "lr"], ["w", "b", "rate", "step"], epsilon=5.0)
    for value, want in zip(got, ([0.4, 1.2], [7.5], [-0.2], [-0.6, -0.8])):
        np.testing.assert_allclose(value, want, rtol=1e-6)


def test_storm():
    w, m, g = np.array([1, 2], F), np.array([1, 1], F), np.array([2, 0], F)
    feeds = {"w": w, "m": m, "s": np.array([3], F), "g": g, "lr": np.array([-2], F)}
    got = run("Storm", feeds, ["w", "m", "s", "g", "lr"], ["w", "m", "s"], momentum=0.5, beta=1.0)
    rate = -2 * 8 ** (-1 / 3)           # 3 + 4 + beta = 8
    share = 1 - 0.5 * rate ** 2
    moment = g + share * (m - g)
    for value, want in zip(got, (w + rate * moment, moment, [7])):
        np.testing.assert_allclose(value, want, rtol=1e-6)


def test_rmsprop():
    rng = np.random.default_rng(0)
    g, s, m = (np.abs(rng.normal(size=(4, 3))).astype(F) for _ in range(3))
    feeds = {"g": g, "s": s, "m": m, "lr": np.array([0.5], F)}
    args = dict(decay=0.7, momentum=0.3, epsilon=0.1)
    step, squares, moment = run("RmsProp", feeds, ["g", "s", "m", "lr"], ["o", "s", "m"], **args)
    want = 0.7 * s + 0.3 * g * g
    np.testing.assert_allclose(squares, want, rtol=1e-5)
    np.testing.assert_allclose(moment, 0.3 * m + 0.5 * g / np.sqrt(want + 0.1), rtol=1e-5)
    np.testing.assert_array_equal(step, moment)


def test_row_wise_adagrad():
    rng = np.random.default_rng(0)
    w, h, g = rng.normal(size=(5, 3)), np.abs(rng.normal(size=5)), rng.normal(size=(2, 3))
    indices = np.array([4, 1])
    feeds = {"w": w.astype(F), "h": h.astype(F), "g": g.astype(F), "i": indices,
             "lr": np.array([-0.5], F), "c": np.array([0, 8, 0, 0, 0], np.float64)}
    got = run("RowWiseSparseAdagrad", feeds, ["w", "h", "i", "g", "lr", "c"], ["w", "h"],
              epsilon=0.1, weight_decay=0.2, counter_halflife=4)
    g = g + 0.2 * np.array([[1], [4 / 8]]) * w[indices]     # row 4 was never seen: full decay
    h[indices] += (g * g).mean(axis=1)
    w[indices] -= 0.5 * g / (np.sqrt(h[indices, None]) + 0.1)
    np.testing.assert_allclose(got[0], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], h, rtol=1e-5)


def test_row_wise_adam():
    rng = np.random.default_rng(0)
    w, m, g = (rng.normal(size=s) for s in ((5, 3), (5, 3), (2, 3)))
    v, indices = np.abs(rng.normal(size=5)), np.array([4, 1])
    feeds = {"w": w.astype(F), "m": m.astype(F), "v": v.astype(F), "g": g.astype(F), "i": indices,
             "lr": np.array([-0.5], F), "t": np.array([2])}
    got = run("RowWiseSparseAdam", feeds, ["w", "m", "v", "i", "g", "lr", "t"],
              ["w", "m", "v", "step"], beta1=0.8, beta2=0.9, epsilon=0.1)
    m[indices] = 0.8 * m[indices] + 0.2 * g
    v[indices] = 0.9 * v[indices] + 0.1 * (g * g).mean(axis=1)
    c = np.sqrt(1 - 0.9 ** 3) / (1 - 0.8 ** 3)
    step = c * m[indices] / (np.sqrt(v[indices, None]) + 0.1)
    w[indices] -= 0.5 * step
    for value, want in zip(got, (w, m, v, step)):
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)


def test_adam_emits_step():
    state, others = start("adam", (7,))
    grad = np.random.default_rng(1).normal(size=7).astype(F)
    inputs, outputs = blobs("adam", False)
    got = run("Adam", {**state, **others, "grad": grad}, inputs, [*outputs, "step"],
              **RULES["adam"][4])
    np.testing.assert_allclose(got[0], state["param"] - 0.1 * got[3], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(workspace.FetchBlob("grad"), grad)


@pytest.mark.parametrize("step", [1, 3, 100])
def test_rectified_adam(step):
    """The first steps, whose variance is not tractable, use the corrected first moment alone."""
    b1, b2, eps = 0.9, 0.99, 1e-3
    g = np.array([[0.5, -2]])
    feeds = {"w": np.zeros((1, 2), F), "m": np.zeros((1, 2), F), "v": np.zeros((1, 2), F),
             "i": np.array([0]), "g": g.astype(F), "lr": np.array([1], F),
             "t": np.array([step - 1])}
    w, = run("SparseAdam", feeds, ["w", "m", "v", "i", "g", "lr", "t"], ["w", "m", "v"],
             beta1=b1, beta2=b2, epsilon=eps, enableRAdam=True)[:1]
    m = (1 - b1) * g / (1 - b1 ** step)
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * step * b2 ** step / (1 - b2 ** step)
    if rho >= 5:
        r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        m *= r * np.sqrt(1 - b2 ** step) / (np.sqrt((1 - b2) * g * g) + eps)
    np.testing.assert_allclose(w, m, rtol=1e-4)


def test_smart_decay_adam_catches_up():
    """A row not seen for k steps moves as by k steps without gradient, but for the divisor."""
    b1, b2, eps = 0.8, 0.9, 0.1
    g, m, v = 0.5, 0.3, 0.4
    feeds = {"w": np.zeros(3, F), "m": np.full(3, m, F), "v": np.full(3, v, F),
             "seen": np.array([2, 5, 0]), "i": np.array([0]), "g": np.array([g], F),
             "lr": np.array([-1], F), "t": np.array([5])}
    names = ["w", "m", "v", "seen"]
    got = run("SmartDecaySparseAdam", feeds, [*names, "i", "g", "lr", "t"], names,
              beta1=b1, beta2=b2, epsilon=eps)
    k = 6 - 2
    new_m, new_v = m * b1 ** k + (1 - b1) * g, v * b2 ** k + (1 - b2) * g * g
    moved = sum(m * b1 ** i for i in range(1, k)) + new_m
    np.testing.assert_allclose(got[0], [-moved / (np.sqrt(new_v) + eps), 0, 0], rtol=1e-5)
    np.testing.assert_allclose(got[1], [new_m, m, m], rtol=1e-6)
    np.testing.assert_allclose(got[2], [new_v, v, v], rtol=1e-6)
    np.testing.assert_array_equal(got[3], [6, 5, 0])


def test_decay_adagrad_without_correction():
    w, m, h, g = (np.array([x], F) for x in (1, 0.5, 4, 2))
    feeds = {"w": w, "m": m, "h": h, "g": g, "lr": np.array([-0.1], F), "t": np.array([9])}
    args = dict(beta1=0.5, beta2=0.9, epsilon=1.0, weight_decay=0.1)
    for correct in (0, 1):
        got = run("DecayAdagrad", feeds, ["w", "m", "h", "g", "lr", "t"], ["w", "m", "h"],
                  bias_correction_first=correct, **args)
        moment = 1.25 / (1 - 0.5 ** 10 if correct else 1)
        want = 1 - 0.1 * (moment / (np.sqrt(8) + 1) + 0.1)
        np.testing.assert_allclose([x[0] for x in got], [want, 1.25, 8], rtol=1e-6)


@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_group_ftrl(shape):
    rng = np.random.default_rng(sum(shape))
    w, g, z, n = (rng.normal(size=shape) for _ in range(4))
    n = np.abs(n)
    a = dict(alpha=0.3, beta=0.2, lambda1=0.6, lambda2=0.1)
    feeds = {"w": w.astype(F), "nz": np.stack([n, z], -1).astype(F), "g": g.astype(F)}
    got = run("GFtrl", feeds, ["w", "nz", "g"], ["w", "nz"], **a)
    z = z + g - (np.sqrt(n + g * g) - np.sqrt(n)) / a["alpha"] * w
    n = n + g * g
    norm = np.sqrt((z * z).sum(axis=0))
    shrink = np.maximum(1 - a["lambda1"] * np.sqrt(shape[0]) / norm, 0)
    want = -z * shrink / ((a["beta"] + np.sqrt(n)) / a["alpha"] + a["lambda2"])
    np.testing.assert_allclose(got[0], want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(got[1], np.stack([n, z], -1), rtol=1e-4, atol=1e-5)


def test_ftrl_alpha_as_input():
    state, others = start("ftrl", (4,))
    grad = np.ones(4, F)
    args = {k: v for k, v in RULES["ftrl"][4].items() if k != "alpha"}
    by_argument = run("Ftrl", {**state, "grad": grad}, ["param", "n_z", "grad"], ["param", "n_z"],
                      **RULES["ftrl"][4])
    by_input = run("Ftrl", {**state, "grad": grad, "alpha": np.array([0.1], F)},
                   ["param", "n_z", "grad", "alpha"], ["param", "n_z"], **args)
    for a, b in zip(by_argument, by_input):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(RuntimeError, match="alpha may be an input or an argument"):
        run("Ftrl", {}, ["param", "n_z", "grad", "alpha"], ["param", "n_z"], alpha=0.1)


def test_fp32_momentum_decays_weights():
    g, m, w = (np.array(x, F) for x in ([1, 2], [3, 4], [5, 6]))
    feeds = {"g": g, "m": m, "lr": np.array([0.1], F), "w": w}
    got = run("FP32MomentumSGDUpdate", feeds, ["g", "m", "lr", "w"], ["g", "m", "w"],
              momentum=0.5, weight_decay=0.2)
    moment = 0.5 * m + 0.1 * (g + 0.2 * w)
    for value, want in zip(got, (moment, moment, w - moment)):
        np.testing.assert_allclose(value, want, rtol=1e-6)


@pytest.mark.parametrize("t, factor", [(3, 0.5), (4, 1), (7, 0.5), (11, 1), (15, 1)])
def test_weight_scale(t, factor):
    """Every fourth step, counted from 1, below the tenth."""
    w = np.array([2, 4], F)
    got, = run("WeightScale", {"w": w, "t": np.array([t])}, ["w", "t"], ["w"],
               stepsize=4, upper_bound_iter=10, scale=0.5)
    np.testing.assert_array_equal(got, w * factor)


def test_row_wise_counter():
    feeds = {"last": np.array([0, 2, 9]), "count": np.array([1, 4, 7], np.float64),
             "i": np.array([1, 0, 1], np.int32), "t": np.array([6])}
    last, count = run("RowWiseCounter", feeds, ["last", "count", "i", "t"], ["last", "count"],
                      counter_halflife=4)
    np.testing.assert_array_equal(last, [6, 6, 9])
    np.testing.assert_allclose(count, [1 + 0.5 ** 1.5, 1 + (1 + 4 * 0.5), 7])


def test_lars():
    x, g = np.full((3, 4), 2, F), np.full((3, 4), 1, F)
    feeds = {"x": x, "g": g, "wd": np.array([0.1], F), "trust": np.array([0.6], F),
             "max": np.array([10], F)}
    inputs = ["x", "g", "wd", "trust", "max"]
    assert run("Lars", feeds, inputs, ["r"], offset=0.4)[0] == pytest.approx(0.6)
    assert run("Lars", feeds, inputs, ["r"], offset=0.4, lr_min=0.7)[0] == pytest.approx(0.7)
    feeds["max"] = np.array([0.3], F)
    assert run("Lars", feeds, inputs, ["r"], offset=0.4)[0] == pytest.approx(0.3)
    feeds.update(x=x * 0, max=np.array([10], F))
    assert run("Lars", feeds, inputs, ["r"])[0] == 1


@pytest.mark.parametrize("normalized", [0, 1])
def test_learning_rate_adaption(normalized):
    rng = np.random.default_rng(0)
    g, e = (rng.normal(size=5000).astype(F) for _ in range(2))
    e += g
    c = float(np.dot(g, e))
    feeds = {"lr": np.array([0.5], F), "g": g, "e": e}
    got, = run("LearningRateAdaption", feeds, ["lr", "g", "e"], ["lr"], lr_alpha=0.01,
               normalized_lr_adaption=normalized)
    want = 0.5 - 0.01 * c
    if normalized:
        want = 0.5 * (1 - 0.01 * c / np.linalg.norm(g) / np.linalg.norm(e))
    np.testing.assert_allclose(got, [want], rtol=1e-5)


def yellowfin(state, g, t, beta, eps, width, debias, nesterov):
    """arXiv:1706.03471, algorithm 1, on a dict of float64 arrays."""
    s = state
    step = s["mu"] * s["moment"] + s["lr"] * g
    s["param"] = s["param"] - ((1 + s["mu"]) * step - s["mu"] * s["moment"] if nesterov else step)
    s["moment"] = step
    c = 1 / (1 - beta ** t) if debias else 1

    def mean(key, value):
        s[key] = beta * s[key] + (1 - beta) * value
        return c * s[key]

    g_mean = mean("g_avg", g)
    mean("g2_avg", g * g)
    norm2 = max((g * g).sum(), eps)
    norm2_mean = mean("norm2", norm2)
    mean("norm", np.sqrt(norm2))
    s["window"] = [*s["window"], np.log(norm2)][-width:]
    h_min, h_max = (max(np.exp(mean(k, f(s["window"]))), eps)
                    for k, f in (("h_min", min), ("h_max", max)))
    variance = max(norm2_mean - (g_mean * g_mean).sum(), eps)
    distance = mean("distance", s["norm"] / s["norm2"])
    if t > 1:
        p = (distance * h_min) ** 2 / 2 / variance
        # mu = x ** 2 where p * x = (1 - x) ** 3
        roots = np.roots([1, -3, 3 + p, -1])
        x = roots[np.argmin(np.abs(roots.imag))].real
        spread = np.sqrt(h_max / h_min)
        mu = max(x, (spread - 1) / (spread + 1)) ** 2
        s["mu"] = beta * s["mu"] + (1 - beta) * mu
        s["lr"] = beta * s["lr"] + (1 - beta) * (1 - np.sqrt(mu)) ** 2 / h_min


@pytest.mark.parametrize("debias", [0, 1])
@pytest.mark.parametrize("nesterov", [0, 1])
def test_yellowfin(debias, nesterov):
    rng = np.random.default_rng(0)
    n, width, beta, eps = 50, 3, 0.9, 1e-6
    state = dict(param=rng.normal(size=n), moment=np.zeros(n), lr=0.1, mu=0.2, g_avg=np.zeros(n),
                 g2_avg=np.zeros(n), window=[], norm=0, norm2=0, h_min=0, h_max=0, distance=0)
    names = ["param", "moment", "lr", "mu", "curv_win", "g_avg", "g2_avg", "scalars"]
    for name in names:
        value = np.zeros({"curv_win": width, "scalars": 5}[name]) if name not in state else \
            np.atleast_1d(state[name])
        workspace.FeedBlob(name, value.astype(F))
    for t in range(1, 8):
        g = rng.normal(size=n) + 0.3
        yellowfin(state, g, t, beta, eps, width, debias, nesterov)
        got = run("YellowFin", {"grad": g.astype(F), "iter": np.array([t])},
                  [*names, "grad", "iter"], names, beta=beta, epsilon=eps, curv_win_width=width,
                  zero_debias=debias, nesterov=nesterov)
        for name, value in zip(names, got):
            if name in state:
                np.testing.assert_allclose(
                    value, np.atleast_1d(state[name]), rtol=1e-3, atol=1e-4, err_msg=name)


# ---------------------------------------------------------------- bad input


@rules
@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1])
def test_bad_index_changes_nothing(rule, bad):
    state, others = start(rule, (5, 3))
    grad = np.ones((2, 3), F)
    inputs, outputs = blobs(rule, True)
    feeds = {**state, **others, "grad": grad, "indices": np.array([0, bad])}
    with pytest.raises(RuntimeError, match=f"index {bad} is out of range: there are 5 rows"):
        run(RULES[rule][1], feeds, inputs, outputs, **RULES[rule][4])
    for name, value in feeds.items():
        np.testing.assert_array_equal(workspace.FetchBlob(name), value)


@rules
def test_misfits_change_nothing(rule):
    state, others = start(rule, (5, 3))
    grad = np.ones((5, 3), F)
    inputs, outputs = blobs(rule, False)
    first = RULES[rule][3][0]
    wrong = [{"grad": np.ones((5, 2), F)}, {"grad": np.ones((5, 3))}, {first: np.ones(7, F)}]
    if rule != "ftrl":
        wrong.append({"lr": np.ones(2, F)})
    for change in wrong:
        feeds = {**state, **others, "grad": grad, **change}
        with pytest.raises(RuntimeError, match=f"{RULES[rule][0]}.*{inputs[0]}"):
            run(RULES[rule][0], feeds, inputs, outputs, **RULES[rule][4])
        for name, value in feeds.items():
            np.testing.assert_array_equal(workspace.FetchBlob(name), value)


def test_sparse_must_be_in_place():
    state, others = start("adagrad", (5, 3))
    feeds = {**state, **others, "grad": np.ones((1, 3), F), "indices": np.array([0])}
    with pytest.raises(RuntimeError, match="must be the same blob"):
        run("SparseAdagrad", feeds, ["param", "moment", "indices", "grad", "lr"], ["p", "m"])


def test_indices_of_wrong_type():
    state, others = start("adagrad", (5, 3))
    feeds = {**state, **others, "grad": np.ones((1, 3), F), "indices": np.zeros(1, F)}
    with pytest.raises(RuntimeError, match="indices"):
        run("SparseAdagrad", feeds, ["param", "moment", "indices", "grad", "lr"],
            ["param", "moment"])


def test_empty_parameter():
    feeds = {"w": np.zeros((0, 3), F), "h": np.zeros((0, 3), F), "lr": np.array([1], F),
             "i": np.zeros(0, np.int64), "g": np.zeros((0, 3), F)}
    got = run("SparseAdagrad", feeds, ["w", "h", "i", "g", "lr"], ["w", "h"])
    assert got[0].shape == got[1].shape == (0, 3)
    feeds.update(i=np.array([0]), g=np.ones((1, 3), F))
    with pytest.raises(RuntimeError, match="there are 0 rows"):
        run("SparseAdagrad", feeds, ["w", "h", "i", "g", "lr"], ["w", "h"])


def test_shapes_are_inferred():
    op = core.CreateOperator(
        "Adagrad", ["w", "h", "g", "lr"], ["w", "h", "rate", "step"])
    net = core.Net("n")
    net.Proto().op.extend([op])
    shapes, _ = workspace.InferShapesAndTypes(
        [net], {"w": [3, 4], "h": [3, 4], "g": [3, 4], "lr": [1]})
    assert [shapes[n] for n in ("w", "h", "rate", "step")] == [[3, 4]] * 4

"""Regularizers and normalizers: the terms they add, evaluated in numpy, and their contexts."""

import itertools

import numpy as np
import pytest

from caffe2.python import core, regularizer
from caffe2.python.normalizer import BatchNormalizer, LayerNormalizer
from caffe2.python.normalizer_context import NormalizerContext, UseNormalizer
from caffe2.python.regularizer import RegularizationBy
from caffe2.python.regularizer_context import RegularizerContext, UseRegularizer

LOSS, AFTER = RegularizationBy.ON_LOSS, RegularizationBy.AFTER_OPTIMIZER

OPERATORS = {
    "Abs": np.abs, "Sqr": np.square, "Sqrt": np.sqrt, "Log": np.log, "Relu": lambda x: x * (x > 0),
    "Add": lambda x, y, **_: x + y, "Sub": np.subtract, "Mul": lambda x, y, **_: x * y,
    "Pow": lambda x, exponent: x ** exponent, "Scale": lambda x, scale: x * scale,
    "LpNorm": lambda x, p: (np.abs(x) ** p).sum(),
    "SumElements": lambda x, average=False: x.sum(),
    "TopK": lambda x, k: (-np.sort(-x, axis=-1)[..., :k], None, None),
    "ReduceFrontSum": lambda x: x.sum(axis=0),
    "ReduceSum": lambda x, axes, keepdims: x.sum(axis=tuple(axes), keepdims=bool(keepdims)),
    "Clip": lambda x, min=-np.inf, max=np.inf: np.clip(x, min, max),
    "LengthsSum": lambda x, n: np.add.reduceat(x, np.cumsum([0, *n[:-1]])),
    "ConstantFill": lambda value, shape=(1,), **_: np.full(shape, value),
    "GivenTensorFill": lambda shape, values: np.reshape(values, shape),
    "GivenTensorIntFill": lambda shape, values: np.reshape(values, shape),
    "LearningRate": lambda i, base_lr, gamma, power, policy: base_lr * (1 + gamma * i) ** -power,
}


class NumpyNet:
    """Takes the calls that a Net takes, and computes at once what its operators would."""

    def __init__(self, **values):
        self.values = values
        self.calls = []
        self.count = itertools.count()

    def NextScopedBlob(self, name):
        return f"{name}_{next(self.count)}"

    def BlobIsDefined(self, name):
        return str(name) in self.values

    def GetBlobRef(self, name):
        return core.BlobReference(name)

    def __getattr__(self, op):
        def call(inputs=(), outputs=1, **args):
            inputs = [inputs] if isinstance(inputs, (str, core.BlobReference)) else inputs
            if isinstance(outputs, str):
                outputs = [outputs]
            if isinstance(outputs, int):
                outputs = [self.NextScopedBlob("out") for _ in range(outputs)]
            self.calls.append((op, [str(i) for i in inputs], [str(o) for o in outputs], args))
            if op in OPERATORS:
                result = OPERATORS[op](*(self.values[str(i)] for i in inputs), **args)
                results = result if isinstance(result, tuple) else (result,)
                self.values.update(zip(map(str, outputs), results))
            blobs = [core.BlobReference(str(o)) for o in outputs]
            return blobs[0] if len(blobs) == 1 else blobs
        return call


W = np.array([[1.0, -2, 0.5, 0], [3, 0.25, -1, 0]])
COLUMNS = np.sqrt((W ** 2).sum(axis=0))
ROWS = core.GradientSlice(indices=core.BlobReference("i"), values=core.BlobReference("v"))


def on_loss(reg, w=W, iteration=0):
    net = NumpyNet(w=np.asarray(w), optimizer_iteration=iteration)
    term = reg(net, net, core.BlobReference("w"), by=LOSS)
    return float(net.values[str(term)].sum())


def after(reg, grad=None):
    net = NumpyNet(w=W)
    assert reg(net, net, core.BlobReference("w"), grad, by=AFTER) is None
    return net.calls


@pytest.mark.parametrize("reg, want", [
    (regularizer.L1Norm(0.5), 0.5 * np.abs(W).sum()),
    (regularizer.L2Norm(0.5), 0.5 * (W ** 2).sum()),
    (regularizer.ElasticNet(0.5, 0.25), 0.5 * np.abs(W).sum() + 0.25 * (W ** 2).sum()),
    (regularizer.LpNorm(0.5, 0.5), 0.5 * np.sqrt(COLUMNS).sum() ** 2),
    (regularizer.L0ApproxNorm(0.5, alpha=2.0), 0.5 * np.minimum(COLUMNS, 2).sum() / 2),
    (regularizer.L0ApproxNorm(0.5, alpha=0.1, budget=2), 0.5 * (3 - 2)),
    (regularizer.L0ApproxNorm(0.5, alpha=0.1, budget=4), 0),
    (regularizer.GroupL1Norm(0.5, [1, 3]),
     0.5 * (COLUMNS[0] + np.sqrt(3 * (COLUMNS[1:] ** 2).sum()))),
    (regularizer.GroupL1Norm(0.5, [1, 3], stabilizing_val=2.0),
     0.5 * (np.sqrt(COLUMNS[0] ** 2 + 2) + np.sqrt(3 * ((COLUMNS[1:] ** 2).sum() + 2)))),
])
def test_terms_of_the_loss(reg, want):
    assert on_loss(reg) == pytest.approx(want)


def test_trimmed_terms_leave_out_the_largest():
    w = [1.0, -4, 2, 0.5]
    assert on_loss(regularizer.L1NormTrimmed(0.5, 2), w) == pytest.approx(0.5 * 1.5)
    assert on_loss(regularizer.ElasticNetL1NormTrimmed(0.5, 2.0, 1), w) == pytest.approx(
        0.5 * 3.5 + 2 * (1 + 16 + 4 + 0.25))


def test_log_barrier_falls_with_the_iteration():
    w = np.array([0.5, 2, 3])
    reg = regularizer.LogBarrier(0.1, discount_options={"gamma": 1.0, "power": 2.0})
    for i in (0, 3):
        assert on_loss(reg, w, i) == pytest.approx(-0.1 / (1 + i) ** 2 * np.log(w).sum())
    assert np.isfinite(on_loss(reg, [-1.0, 1]))


EPS = 1e-9


@pytest.mark.parametrize("reg, op, args", [
    (regularizer.LogBarrier(1.0), "EnsureClipped", {"min": EPS}),
    (regularizer.BoundedGradientProjection(lb=-1, ub=2), "EnsureClipped",
     {"min": -1.0, "max": 2.0}),
    (regularizer.BoundedGradientProjection(lb=-1, left_open=True, epsilon=0.5), "EnsureClipped",
     {"min": -0.5}),
    (regularizer.BoundedGradientProjection(ub=2, right_open=True, epsilon=0.5), "EnsureClipped",
     {"max": 1.5}),
    (regularizer.MaxNorm(2.0), "SparseNormalize", {"use_max_norm": True, "norm": 2.0}),
    (regularizer.MaxNorm(2.0, dtype="fp16"), "Float16SparseNormalize",
     {"use_max_norm": True, "norm": 2.0}),
    (regularizer.ConstantNorm(2.0), "SparseNormalize", {"use_max_norm": False, "norm": 2.0}),
    (regularizer.SparseL1Norm(0.1), "SparseLpRegularizer", {"p": 1.0, "reg_lambda": 0.1}),
    (regularizer.SparseL2Norm(0.1), "SparseLpRegularizer", {"p": 2.0, "reg_lambda": 0.1}),
])
def test_after_the_optimizer(reg, op, args):
    assert after(reg, ROWS) == [(op, ["w", "i", "v"], ["w"], args)]
    if op == "EnsureClipped":
        assert after(reg, core.BlobReference("g")) == [(op, ["w"], ["w"], args)]
    else:
        with pytest.raises(NotImplementedError, match="sparse"):
            after(reg, core.BlobReference("g"))


def test_each_does_nothing_at_the_other_time():
    assert after(regularizer.L1Norm(1.0)) == []
    net = NumpyNet()
    assert regularizer.MaxNorm()(net, net, core.BlobReference("w"), by=LOSS) is None
    assert net.calls == []


@pytest.mark.parametrize("make", [
    lambda: regularizer.L1Norm(-1), lambda: regularizer.L2Norm(-1),
    lambda: regularizer.LpNorm(0), lambda: regularizer.LpNorm(1, p_value=0),
    lambda: regularizer.L0ApproxNorm(0), lambda: regularizer.L0ApproxNorm(1, budget=-1),
    lambda: regularizer.L0ApproxNorm(1, alpha=0), lambda: regularizer.L1NormTrimmed(1, 0),
    lambda: regularizer.GroupL1Norm(-1, [1]), lambda: regularizer.LogBarrier(0),
    lambda: regularizer.SparseLpNorm(3.0, 1), lambda: regularizer.SparseL1Norm(0),
    lambda: regularizer.BoundedGradientProjection(lb=2, ub=1),
    lambda: regularizer.BoundedGradientProjection(lb=1, ub=1, left_open=True, epsilon=0),
])
def test_refuses_what_makes_no_sense(make):
    with pytest.raises(ValueError):
        make()


def test_refuses_misuse():
    net = NumpyNet()
    with pytest.raises(TypeError, match="BlobReference"):
        regularizer.L1Norm(1.0)(net, net, "w", by=LOSS)
    with pytest.raises(ValueError, match="after_optimizer.*on_loss"):
        regularizer.L1Norm(1.0)(net, net, core.BlobReference("w"), by="now")
    with pytest.raises(ValueError, match="norm must be positive"):
        after(regularizer.MaxNorm(0), ROWS)


@pytest.mark.parametrize("Use, Context, kind", [
    (UseRegularizer, RegularizerContext, "regularizer"),
    (UseNormalizer, NormalizerContext, "normalizer"),
])
def test_contexts(Use, Context, kind):
    has = lambda name: getattr(Context.current(), "has_" + kind)(name)      # noqa: E731
    get = lambda name: getattr(Context.current(), "get_" + kind)(name)      # noqa: E731
    with Use({"WEIGHT": 1, "BIAS": 2}):
        with Use({"WEIGHT": 3}), Use(4):
            assert (get("WEIGHT"), get("BIAS"), get("DEFAULT")) == (3, 2, 4)
        assert get("WEIGHT") == 1 and not has("DEFAULT")
    assert not has("WEIGHT")
    with pytest.raises(KeyError, match="WEIGHT"):
        get("WEIGHT")
    with pytest.raises(RuntimeError, match="no modifiers to pop"):
        Context.current().pop_modifiers()


class LayerModel:
    def __getattr__(self, layer):
        return lambda param, **args: (layer, param, args)


def test_normalizers_add_their_layer():
    assert BatchNormalizer(momentum=0.9)(LayerModel(), "p") == (
        "BatchNormalization", "p", {"momentum": 0.9, "scale_init_value": 1.0})
    assert LayerNormalizer(epsilon=1e-3, use_layer_norm_op=False)(LayerModel(), "p") == (
        "LayerNormalization", "p",
        {"epsilon": 1e-3, "use_layer_norm_op": False, "scale_init_value": 1.0})

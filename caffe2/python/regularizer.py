"""Regularizers: penalties on the loss, and projections after each update."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe2.python import core, utils


class RegularizationBy:
    """When a regularizer acts: as a term of the loss, or on the parameter after its update."""

    AFTER_OPTIMIZER = "after_optimizer"
    ON_LOSS = "on_loss"


class Regularizer:
    """Adds the regularization of one parameter to a net.

    A new regularizer overrides `_run_on_loss`, `_run_after_optimizer` or both; each takes
    `(net, param_init_net, param, grad)`. What it does not override does nothing.
    """

    def __init__(self):
        self.kEpsilon = 1e-9

    def __call__(self, net: core.Net, param_init_net: core.Net, param: core.BlobReference,
                 grad: core.BlobReference | core.GradientSlice | None = None,
                 by: str | None = None) -> core.BlobReference | None:
        """Add the operators.

        Parameters
        ----------
        by
            A value of `RegularizationBy`.

        Returns
        -------
        BlobReference or None
            On the loss: the term to add to it, a scalar.
        """
        if not isinstance(param, core.BlobReference):
            raise TypeError(f"expected the parameter as a BlobReference, got {param!r}")
        known = utils.EnumClassKeyVals(RegularizationBy).values()
        if by not in known:
            raise ValueError(f"regularization is by one of {sorted(known)}, not by {by!r}")
        return getattr(self, "_run_" + by)(net, param_init_net, param, grad)

    def _run_on_loss(self, net, param_init_net, param, grad=None):
        return None

    def _run_after_optimizer(self, net, param_init_net, param, grad):
        return None

    @staticmethod
    def _scaled_norm(net, param, name, p, scale):
        """scale * sum(|param| ** p)"""
        norm = net.NextScopedBlob(param + name)
        net.LpNorm([param], [norm], p=p)
        net.Scale([norm], [norm], scale=scale)
        return norm

    @staticmethod
    def _trimmed_l1(net, param, k):
        """The sum of magnitudes without the k largest."""
        magnitudes = net.Abs([param], [net.NextScopedBlob("abs")])
        total = net.SumElements([magnitudes], [net.NextScopedBlob("sum_abs")], average=False)
        largest, _, _ = net.TopK(
            [magnitudes], [net.NextScopedBlob(n) for n in ("topk", "id", "flat_id")], k=k)
        kept = net.SumElements([largest], [net.NextScopedBlob("topk_sum")], average=False)
        return net.Sub([total, kept], [net.NextScopedBlob(param + "_trimmed")])

    @staticmethod
    def _feature_norms(net, param):
        """The L2 norm of each column: one number for each input feature."""
        squares = net.Mul([param, param], [net.NextScopedBlob("param_mul")])
        sums = net.ReduceFrontSum([squares], [net.NextScopedBlob("param_reduced")])
        return net.Pow([sums], [net.NextScopedBlob("grouped_feature_weight_vec")], exponent=0.5)

    def _ensure_clipped(self, net, param, grad=None, min=None, max=None, open_range=False,
                        left_open=False, right_open=False):
        """Clip to [min, max]; an open end is moved inwards by epsilon."""
        limits = {}
        if min is not None:
            limits["min"] = min + (self.kEpsilon if open_range or left_open else 0)
        if max is not None:
            limits["max"] = max - (self.kEpsilon if open_range or right_open else 0)
        inputs = [param]
        if isinstance(grad, core.GradientSlice):
            inputs += [grad.indices, grad.values]
        net.EnsureClipped(inputs, [param], **limits)


def _check_factor(**factors: float) -> None:
    for name, value in factors.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")


class L1Norm(Regularizer):
    """reg_lambda * sum(|param|), on the loss."""

    def __init__(self, reg_lambda: float):
        super().__init__()
        _check_factor(reg_lambda=reg_lambda)
        self.reg_lambda = reg_lambda

    def _run_on_loss(self, net, param_init_net, param, grad=None):
        return self._scaled_norm(net, param, "_l1_regularization", 1, self.reg_lambda)


class L2Norm(Regularizer):
    """reg_lambda * sum(param ** 2), on the loss."""

    def __init__(self, reg_lambda: float):
        super().__init__()
        _check_factor(reg_lambda=reg_lambda)
        self.reg_lambda = reg_lambda

    def _run_on_loss(self, net, param_init_net, param, grad=None):
        return self._scaled_norm(net, param, "_l2_regularization", 2, self.reg_lambda)


class ElasticNet(Regularizer):
    """l1 * sum(|param|) + l2 * sum(param ** 2), on the loss."""

    def __init__(self, l1: float, l2: float):
        super().__init__()
        self.l1 = l1
        self.l2 = l2

    def _run_on_loss(self, net, param_init_net, param, grad=None):
        return net.Add(
            [self._scaled_norm(net, param, "_l1_blob", 1, self.l1),
             self._scaled_norm(net, param, "_l2_blob", 2, self.l2)],
            [net.NextScopedBlob(param + "_elastic_net_regularization")])


class L1NormTrimmed(Regularizer):
    """reg_lambda * sum(|param|) without the k largest, on the loss (arXiv:1708.04527)."""

    def __init__(self, reg_lambda: float, k: int):
        super().__init__()
        _check_factor(reg_lambda=reg_lambda)
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a positive integer, got {k!r}")
        self.reg_lambda = reg_lambda
        self.k = k

    def _run_on_loss(self, net, param_init_net, param, grad=None):
        output = net.NextScopedBlob(param + "_l1_trimmed_regularization")
        return net.Scale([self._trimmed_l1(net, param, self.k)], [output], scale=self.reg_lambda)


class ElasticNetL1NormTrimmed(Regularizer):
    """l1 * sum(|param|) without the k largest + l2 * sum(param ** 2), on the loss."""

    def __init__(self, l1: float, l2: float, k: int):
        super().__init__()
        self.l1 = l1
        self.l2 = l2
        self.k = k

    def _run_on_loss(self, net, param_init_net, param, grad=None):
        l1 = net.Scale([self._trimmed_l1(net, param, self.k)],
                       [net.NextScopedBlob(param + "_l1_trimmed")], scale=self.l1)
        l2 = self._scaled_norm(net, param, "_l2_blob", 2, self.l2)
        return net.Add(
            [l1, l2], [net.NextScopedBlob(param + "_elastic_net_l1_trimmed_regularization")])


class LpNorm(Regularizer):
    """reg_lambda * the Lp norm, 0 < p < 1, of the norms of the features' weights, on the loss."""

    def __init__(self, reg_lambda: float, p_value: float = 0.5):
        super().__init__()
        if reg_lambda <= 0:
            raise ValueError(f"reg_lambda must be positive, got {reg_lambda}")
        if p_value <= 0:
            raise ValueError(f"p_value must be positive, got {p_value}")
        self.reg_lambda = reg_lambda
        self.p_value = p_value

    def _run_on_loss(self, net, param_init_net, param, grad=None):
        features = self._feature_norms(net, param)
        raised = net.Pow(
            [features], [net.NextScopedBlob("lp_vec_raised")], exponent=self.p_value)
        total = net.ReduceFrontSum([raised], [net.NextScopedBlob("lp_vec_summed")])
        norm = net.Pow([total], [net.NextScopedBlob("lp_vec")], exponent=1 / self.p_value)
        output = net.NextScopedBlob(param + "_dense_feature_regularization")
        return net.Scale([norm], [output], scale=self.reg_lambda)


class L0ApproxNorm(Regularizer):
    """reg_lambda * how many features have weights, approximately, beyond a budget, on the loss.

    Parameters
    ----------
    alpha
        A feature counts as one from this norm on, and proportionally less below.
    budget
        How many features are free.
    """

    def __init__(self, reg_lambda: float, alpha: float = 0.01, budget: int = 0):
        super().__init__()
        if reg_lambda <= 0:
            raise ValueError(f"reg_lambda must be positive, got {reg_lambda}")
        if alpha <= 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        _check_factor(budget=budget)
        self.reg_lambda = reg_lambda
        self.alpha = alpha
        self.budget = float(budget)

    def _run_on_loss(self, net, param_init_net, param, grad=None):
        magnitudes = net.Abs(
            [self._feature_norms(net, param)], [net.NextScopedBlob("l0_abs")])
        capped = net.Clip([magnitudes], [net.NextScopedBlob("l0_min")], max=self.alpha)
        total = net.ReduceFrontSum([capped], [net.NextScopedBlob("l0_summed")])
        count = net.Scale([total], [net.NextScopedBlob("l0_norm")], scale=1 / self.alpha)
        if self.budget:
            budget = net.ConstantFill(
                [], [net.NextScopedBlob("budget")], shape=[1], value=self.budget)
            over = net.Sub([count, budget], [net.NextScopedBlob("l0_budget")])
            count = net.Relu([over], [net.NextScopedBlob("relu_l0_sub_budget")])
        output = net.NextScopedBlob(param + "_dense_feature_regularization")
        return net.Scale([count], [output], scale=self.reg_lambda)


class GroupL1Norm(Regularizer):
    """reg_lambda * sum over groups of columns of sqrt(group size) * its L2 norm, on the loss.

    From "Group sparse regularization for deep neural networks", Scardapane et al., 2017.

    Parameters
    ----------
    groups
        Sizes of the groups; their sum is the number of columns (input features).
    stabilizing_val
        Added below the root: keeps the gradient finite where a group is zero.
    """

    def __init__(self, reg_lambda: float, groups: Sequence[int], stabilizing_val: float = 0):
        super().__init__()
        if reg_lambda < 0:
            raise ValueError(f"reg_lambda must not be negative, got {reg_lambda}")
        if not isinstance(groups, list):
            raise TypeError(f"groups must be a list, got {groups!r}")
        self.reg_lambda = reg_lambda
        self.groups = groups
        self.stabilizing_val = stabilizing_val

    def _run_on_loss(self, net, param_init_net, param, grad=None):
        columns = net.ReduceSum(net.Sqr(param), axes=[0], keepdims=0)
        lengths = net.GivenTensorIntFill([], 1, shape=[len(self.groups)], values=self.groups)
        sums = net.LengthsSum([columns, lengths])
        if self.stabilizing_val:
            extra = net.ConstantFill([], 1, value=self.stabilizing_val)
            net.Add([sums, extra], [sums], broadcast=1)
        weights = net.GivenTensorFill(
            [], shape=[len(self.groups)], values=np.sqrt(self.groups) * self.reg_lambda)
        scaled = net.Mul([net.Sqrt(sums), weights], [param + "_normalized_l2_norm_scaled"])
        return net.LpNorm(scaled, [param + "_group_l1_norm"], p=1)


class LogBarrier(Regularizer):
    """Keeps a parameter positive: -discount * sum(log(param)) on the loss, clipping afterwards.

    From "Numerical optimization", Wright and Nocedal, 1999.

    Parameters
    ----------
    reg_lambda
        Initial discount.
    discount_policy, discount_options
        How the discount falls, as a policy of the operator LearningRate with its arguments.
    """

    def __init__(self, reg_lambda: float, discount_policy: str = "inv",
                 discount_options: dict | None = None):
        super().__init__()
        if reg_lambda <= 0:
            raise ValueError(f"reg_lambda must be positive, got {reg_lambda}")
        self.reg_lambda = reg_lambda
        self.discount_policy = discount_policy
        self.discount_options = discount_options or {"gamma": 1.0, "power": 1.0}

    def _run_on_loss(self, net, param_init_net, param, grad=None):
        iteration = utils.BuildUniqueMutexIter(param_init_net, net)
        discount = net.NextScopedBlob(param + "_log_barrier_discount")
        net.LearningRate([iteration], [discount], base_lr=-self.reg_lambda,
                         policy=self.discount_policy, **self.discount_options)
        # Initial values and updates by others may be slightly negative.
        positive = net.NextScopedBlob(param + "_non_neg")
        net.Clip([param], [positive], min=self.kEpsilon)
        log = net.NextScopedBlob(param + "_log")
        net.Log([positive], [log])
        total = net.NextScopedBlob(param + "_log_sum")
        net.SumElements([log], [total])
        output = net.NextScopedBlob(param + "_log_barrier")
        net.Mul([total, discount], [output], broadcast=1)
        return output

    def _run_after_optimizer(self, net, param_init_net, param, grad):
        self._ensure_clipped(net, param, grad, min=0, open_range=True)


class BoundedGradientProjection(Regularizer):
    """Clips a parameter into an interval after each update.

    Parameters
    ----------
    lb, ub
        Bounds; None: unbounded.
    left_open, right_open
        Whether a bound itself is excluded, by `epsilon`.
    """

    def __init__(self, lb: float | None = None, ub: float | None = None,
                 left_open: bool = False, right_open: bool = False,
                 epsilon: float | None = None):
        super().__init__()
        self.lb = None if lb is None else float(lb)
        self.ub = None if ub is None else float(ub)
        self.left_open = left_open
        self.right_open = right_open
        if epsilon is not None:
            self.kEpsilon = float(epsilon)
        if self.kEpsilon <= 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        if self.lb is not None and self.ub is not None:
            low = self.lb + (self.kEpsilon if left_open else 0)
            high = self.ub - (self.kEpsilon if right_open else 0)
            if low > high:
                raise ValueError(f"no number lies between {self.lb} and {self.ub}")

    def _run_after_optimizer(self, net, param_init_net, param, grad):
        self._ensure_clipped(net, param, grad, min=self.lb, max=self.ub,
                             left_open=self.left_open, right_open=self.right_open)


class MaxNorm(Regularizer):
    """Shrinks each updated row to at most this L2 norm; `dtype="fp16"` for float16 parameters."""

    _use_max_norm = True

    def __init__(self, norm: float = 1.0, dtype: str | None = None):
        super().__init__()
        self.norm = norm
        self.dtype = dtype

    def _run_after_optimizer(self, net, param_init_net, param, grad):
        if self.norm <= 0:
            raise ValueError(f"norm must be positive, got {self.norm}")
        if not isinstance(grad, core.GradientSlice):
            raise NotImplementedError(f"{type(self).__name__} is for sparse parameters only")
        op = net.Float16SparseNormalize if self.dtype == "fp16" else net.SparseNormalize
        op([param, grad.indices, grad.values], [param], use_max_norm=self._use_max_norm,
           norm=self.norm)


class ConstantNorm(MaxNorm):
    """Gives each updated row this L2 norm."""

    _use_max_norm = False

    def __init__(self, norm: float = 1.0):
        super().__init__(norm)


class SparseLpNorm(Regularizer):
    """Shrinks each updated row of a sparse parameter, as an L1 or L2 penalty would."""

    def __init__(self, p: float, reg_lambda: float):
        super().__init__()
        if p not in (1.0, 2.0):
            raise ValueError(f"only the norms 1 and 2 are known, not {p}")
        if reg_lambda <= 0:
            raise ValueError(f"reg_lambda must be positive, got {reg_lambda}")
        self.p = p
        self.reg_lambda = reg_lambda

    def _run_after_optimizer(self, net, param_init_net, param, grad):
        if not isinstance(grad, core.GradientSlice):
            raise NotImplementedError("SparseLpNorm is for sparse parameters only")
        net.SparseLpRegularizer([param, grad.indices, grad.values], [param], p=self.p,
                                reg_lambda=self.reg_lambda)


class SparseL1Norm(SparseLpNorm):
    """`SparseLpNorm` with p = 1."""

    def __init__(self, reg_lambda: float):
        super().__init__(1.0, reg_lambda)


class SparseL2Norm(SparseLpNorm):
    """`SparseLpNorm` with p = 2."""

    def __init__(self, reg_lambda: float):
        super().__init__(2.0, reg_lambda)

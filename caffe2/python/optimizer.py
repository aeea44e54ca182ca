"""Optimizers: what a training net does with the gradients.

An `Optimizer` is called once for each parameter and adds, to the training net, the operators that
update it and, to the initialization net, the state that these need. `build_sgd`, `build_adam` and
their kin do that for all parameters of a model.
"""
from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from caffe2.proto import caffe2_pb2
from caffe2.python import core, scope, utils, workspace
from caffe2.python.modeling import parameter_info

_LEARNING_RATE_INJECTION = "lr_injection"

_optimizer_instance_count: dict[str, int] = defaultdict(int)

Gradient = core.BlobReference | core.GradientSlice


class AuxOptimizerParams(NamedTuple):
    """State that an optimizer created: a parameter's own, and what all parameters share."""

    local: list
    shared: list


def _is_sparse(grad) -> bool:
    return isinstance(grad, core.GradientSlice)


def _device() -> caffe2_pb2.DeviceOption:
    device = scope.CurrentDeviceScope()
    return core.DeviceOption(caffe2_pb2.CPU) if device is None else device


def _on_gpu() -> bool:
    return core.IsGPUDeviceType(_device().device_type)


class Optimizer:
    """What all optimizers share: names, learning rates, auxiliary parameters.

    A new optimizer overrides `_run(net, param_init_net, param_info)`.
    """

    def __init__(self):
        self._aux_params = AuxOptimizerParams(local=[], shared=[])
        name = type(self).__name__
        self._instance_num = _optimizer_instance_count[name]
        _optimizer_instance_count[name] += 1
        self._lr_multiplier = None
        self._local_lr_multiplier = None
        self._local_lr_multiplier_on_gpu = False

    def __call__(self, net: core.Net, param_init_net: core.Net,
                 param: parameter_info.ParameterInfo | core.BlobReference | str,
                 grad: Gradient | None = None) -> None:
        """Add the operators that update one parameter.

        Parameters
        ----------
        net, param_init_net
            Where the update, and the state it needs, are added.
        param
            A `ParameterInfo` that knows its gradient, or a blob; then `grad` is needed.
        grad
            The gradient: a blob, or a `GradientSlice` if only some rows have one.
        """
        if grad is None:
            if not isinstance(param, parameter_info.ParameterInfo):
                raise TypeError(f"without a gradient a ParameterInfo is needed, got {param!r}")
            if param.grad is None:
                raise ValueError(f"parameter {param} has no gradient")
        else:
            if isinstance(param, str):
                param = core.BlobReference(param)
            param = parameter_info.ParameterInfo(param_id=None, param=param, grad=grad)
        self._run(net, param_init_net, param)

    def _run(self, net, param_init_net, param_info):
        raise NotImplementedError(f"{type(self).__name__} does not say how to update a parameter")

    # ------------------------------------------------------------------ names

    def get_cpu_blob_name(self, base_str: str, node_name: str = "") -> str:
        return f"{type(self).__name__}_{self._instance_num}_{base_str}{node_name}_cpu"

    def get_gpu_blob_name(self, base_str: str, gpu_id: int, node_name: str) -> str:
        return f"{type(self).__name__}_{self._instance_num}_{base_str}{node_name}_gpu{gpu_id}"

    def make_unique_blob_name(self, base_str: str) -> str:
        """A blob name that is this optimizer's own on the current device."""
        device = _device()
        if core.IsGPUDeviceType(device.device_type):
            return self.get_gpu_blob_name(base_str, device.device_id, device.node_name)
        return self.get_cpu_blob_name(base_str, device.node_name)

    @property
    def attributes(self) -> dict[str, Any]:
        """A copy of what describes this optimizer, apart from its instance number."""
        attributes = copy.deepcopy(self.__dict__)
        del attributes["_instance_num"]
        return attributes

    # ------------------------------------------------------------------ learning rates

    def build_lr(self, net: core.Net, param_init_net: core.Net, base_learning_rate: float,
                 learning_rate_blob: str | None = None, policy: str = "fixed", iter_val: int = 0,
                 **kwargs) -> tuple[core.BlobReference, core.BlobReference]:
        """Add the learning rate, unless the net has it already.

        The rate's sign is turned: a positive base gives a negative rate, which the updates add.

        Parameters
        ----------
        base_learning_rate, policy, **kwargs
            Arguments of the operator LearningRate.
        iter_val
            The iteration to start from.

        Returns
        -------
        (lr, iteration)
            The blobs of the rate and of the iteration number.
        """
        name = learning_rate_blob
        if name is None:
            name = self.make_unique_blob_name("lr")
        iteration = utils.BuildUniqueMutexIter(param_init_net, net, iter_val=iter_val)
        if net.BlobIsDefined(name):
            lr = net.GetBlobRef(name)
        else:
            lr = net.LearningRate(
                [iteration], name, base_lr=-base_learning_rate, policy=policy, **kwargs)

        if self._lr_multiplier is not None:
            multiplier = net.CopyFromCPUInput(
                self._lr_multiplier, self.make_unique_blob_name("lr_multiplier"))
            lr = net.Mul(
                [lr, multiplier], self.make_unique_blob_name("scaled_lr"), broadcast=1)
        if self._local_lr_multiplier is not None:
            multiplier = self._local_lr_multiplier
            if _on_gpu() and not self._local_lr_multiplier_on_gpu:
                multiplier = net.CopyFromCPUInput(
                    multiplier, self.make_unique_blob_name("local_lr_multiplier"))
            lr = net.Mul(
                [lr, multiplier], self.make_unique_blob_name("local_scaled_lr"), broadcast=1)
        return lr, iteration

    def add_lr_multiplier(self, lr_multiplier: core.BlobReference | str | None) -> None:
        """Multiply all learning rates by the value of a blob on the CPU."""
        self._lr_multiplier = lr_multiplier

    def _add_local_lr_multiplier(self, lr_multiplier, is_gpu_blob=False):
        self._local_lr_multiplier = lr_multiplier
        self._local_lr_multiplier_on_gpu = is_gpu_blob

    def create_lars_inputs(self, param_init_net: core.Net, weight_decay: float, trust: float,
                           lr_max: float) -> tuple[core.BlobReference, ...]:
        """The scalar inputs of the operator Lars."""
        return tuple(
            param_init_net.ConstantFill([], name, shape=[1], value=value)
            for name, value in
            (("weight_decay", weight_decay), ("trust", trust), ("lr_max", lr_max)))

    def _add_lars(self, net, param_init_net, param, grad, lars):
        """Scale a dense parameter's rate by the ratio of its norm to its gradient's."""
        if lars is None or _is_sparse(grad):
            return
        if lars < 0:
            raise ValueError(f"the lars offset must not be negative, got {lars}")
        inputs = self.create_lars_inputs(
            param_init_net, 0.0, 1.0, float(np.finfo(np.float32).max))
        multiplier = net.Lars(
            [param, grad, *inputs], self.make_unique_blob_name(f"{param}_lars"),
            offset=lars, lr_min=0.0)
        self._add_local_lr_multiplier(multiplier, is_gpu_blob=_on_gpu())

    def scale_learning_rate(self, *args, **kwargs) -> None:
        """Multiply the base learning rate, before any operator is built, by a factor."""
        raise NotImplementedError(f"{type(self).__name__} has no learning rate to scale")

    # ------------------------------------------------------------------ state and gradients

    @staticmethod
    def dedup(net: core.Net, sparse_dedup_aggregator: str | None,
              grad: core.GradientSlice) -> core.GradientSlice:
        """Merge the rows that a sparse gradient holds more than once, if an aggregator is named."""
        if not _is_sparse(grad):
            raise TypeError(f"only a sparse gradient has duplicate rows, got {grad}")
        if not sparse_dedup_aggregator:
            return grad
        return net.DeduplicateGradientSlices(grad, aggregator=sparse_dedup_aggregator)

    def get_auxiliary_parameters(self) -> AuxOptimizerParams:
        """The state this optimizer has created.

        Returns
        -------
        AuxOptimizerParams
            `local`: blobs that belong to one parameter each, such as Adagrad's sums of squares.
            `shared`: blobs that serve all parameters, such as Adam's iteration.
        """
        return self._aux_params

    def _state(self, param_init_net, param, suffix, like=True, value=0.0, **fill):
        """A blob of this parameter's own: of its shape, or of the shape given."""
        blob = param_init_net.ConstantFill(
            [param] if like else [], f"{param}{suffix}", value=value, **fill)
        self._aux_params.local.append(blob)
        return blob

    def _row_state(self, param_init_net, param, suffix, **fill):
        """A blob with one value for each row of the parameter."""
        shapes, _ = workspace.InferShapesAndTypes([param_init_net])
        if str(param) in shapes:
            return self._state(param_init_net, param, suffix, like=False,
                               shape=[shapes[str(param)][0]], **fill)
        # Created where inference cannot see it: ask when the net runs.
        shape = param_init_net.Shape(param, f"{param}_shape")
        rows = param_init_net.Slice([shape], f"{shape}_numrows", starts=[0], ends=[1])
        blob = param_init_net.ConstantFill(
            rows, f"{param}{suffix}", input_as_shape=1, **{"value": 0.0, **fill})
        self._aux_params.local.append(blob)
        return blob

    def _shared(self, blob):
        if blob not in self._aux_params.shared:
            self._aux_params.shared.append(blob)
        return blob

    @staticmethod
    def _one(param_init_net, node_name=True):
        # Each device needs a one of its own, hence the name.
        device = _device()
        name = f"ONE_{device.device_type}_{device.device_id}"
        if node_name:
            name += device.node_name
        return param_init_net.ConstantFill([], name, shape=[1], value=1.0)


class _ScaledByAlpha(Optimizer):
    """An optimizer whose base learning rate is `alpha`."""

    def scale_learning_rate(self, scale: float) -> None:
        self.alpha *= scale


class SgdOptimizer(Optimizer):
    """Stochastic gradient descent, plain, with momentum or with Nesterov's.

    Parameters
    ----------
    base_learning_rate, policy, **kwargs
        Arguments of the operator LearningRate. A rate of 0 leaves the parameter as it is.
    momentum, nesterov
        Share of the last step that is taken again, and whether the gradient looks ahead.
    sparse_dedup_aggregator
        How rows that occur twice in a sparse gradient are merged: None (not), "sum" or "mean".
    lars
        Offset of layer-wise adaptive rate scaling for dense parameters; None: no scaling.
    """

    def __init__(self, base_learning_rate: float = 0.01, policy: str = "fixed",
                 momentum: float = 0.0, nesterov: bool = True,
                 sparse_dedup_aggregator: str | None = None, lars: float | None = None, **kwargs):
        super().__init__()
        self.base_learning_rate = base_learning_rate
        self.policy = policy
        self.momentum = momentum
        self.nesterov = nesterov
        self.sparse_dedup_aggregator = sparse_dedup_aggregator
        self.lars = lars
        self.init_kwargs = kwargs

    def _base_lr(self):
        if self.base_learning_rate < 0:
            raise ValueError(
                f"the base learning rate must be positive, got {self.base_learning_rate}")
        return self.base_learning_rate

    def _run(self, net, param_init_net, param_info):
        param, grad = param_info.blob, param_info.grad
        base_lr = self._base_lr()
        if base_lr == 0:
            return
        self._add_lars(net, param_init_net, param, grad, self.lars)
        # The momentum operators subtract their step, WeightedSum adds it.
        lr, _ = self.build_lr(
            net, param_init_net, base_learning_rate=-base_lr if self.momentum else base_lr,
            policy=self.policy, **self.init_kwargs)
        one = self._shared(self._one(param_init_net))
        if _is_sparse(grad):
            grad = self.dedup(net, self.sparse_dedup_aggregator, grad)

        if self.momentum > 0:
            momentum = self._state(param_init_net, param, "_momentum")
            kwargs = dict(momentum=self.momentum, nesterov=self.nesterov)
            if _is_sparse(grad):
                net.SparseMomentumSGDUpdate(
                    [grad.values, momentum, lr, param, grad.indices],
                    [grad.values, momentum, param], **kwargs)
            else:
                net.MomentumSGDUpdate(
                    [grad, momentum, lr, param], [grad, momentum, param], **kwargs)
        elif _is_sparse(grad):
            net.ScatterWeightedSum([param, one, grad.indices, grad.values, lr], param)
        else:
            net.WeightedSum([param, one, grad, lr], param)

    def scale_learning_rate(self, scale: float) -> None:
        self.base_learning_rate *= scale


class MultiPrecisionSgdOptimizer(SgdOptimizer):
    """SGD on a float32 copy of each float16 parameter; without such a copy as `SgdOptimizer`."""

    def __init__(self, base_learning_rate: float = 0.1, momentum: float = 0.0,
                 policy: str = "fixed", nesterov: bool = True,
                 sparse_dedup_aggregator: str | None = None, **kwargs):
        super().__init__(
            base_learning_rate=base_learning_rate, policy=policy, momentum=momentum,
            nesterov=nesterov, sparse_dedup_aggregator=sparse_dedup_aggregator, **kwargs)

    def _run(self, net, param_init_net, param_info):
        if param_info.blob_copy is None:
            super()._run(net, param_init_net, param_info)
            return
        param, grad = param_info.blob, param_info.grad
        param_fp32 = param_info.blob_copy[core.DataType.FLOAT]
        base_lr = self._base_lr()
        if base_lr == 0:
            return
        if _is_sparse(grad):
            raise ValueError("multi-precision SGD does not take sparse gradients")
        lr, _ = self.build_lr(net, param_init_net, base_learning_rate=-base_lr,
                              policy=self.policy, **self.init_kwargs)
        momentum = param_init_net.ConstantFill(param_fp32, f"{param}_momentum", value=0.0)
        self._aux_params.local.append(momentum)
        grad_fp32 = net.HalfToFloat(grad, grad + "_fp32")
        net.MomentumSGDUpdate(
            [grad_fp32, momentum, lr, param_fp32], [grad_fp32, momentum, param_fp32],
            momentum=self.momentum, nesterov=self.nesterov)
        net.FloatToHalf(param_fp32, param)


class FP16SgdOptimizer(SgdOptimizer):
    """Momentum SGD with weight decay, in float16 wherever the parameter has such a form."""

    def __init__(self, base_learning_rate: float = 0.1, momentum: float = 0.0,
                 policy: str = "fixed", nesterov: bool = True, weight_decay: float = 0.0001,
                 sparse_dedup_aggregator: str | None = None, **kwargs):
        super().__init__(
            base_learning_rate=base_learning_rate, policy=policy, momentum=momentum,
            nesterov=nesterov, sparse_dedup_aggregator=sparse_dedup_aggregator, **kwargs)
        self.weight_decay = weight_decay

    def _run(self, net, param_init_net, param_info, fp32_update=False):
        param, grad = param_info.blob, param_info.grad
        copies = param_info.blob_copy
        # The scale and bias of spatial batch normalization stay float32 in a float16 model.
        fp32_update = fp32_update or copies is None or "spatbn" in str(param)
        param_fp32 = param
        if not fp32_update:
            if core.DataType.FLOAT in copies:
                param_fp32 = copies[core.DataType.FLOAT]
            elif core.DataType.FLOAT16 in copies:
                param = copies[core.DataType.FLOAT16]
            else:
                raise ValueError(
                    f"parameter {param_info.name} has neither a float nor a float16 copy")
        base_lr = self._base_lr()
        if base_lr == 0:
            return
        if _is_sparse(grad):
            raise ValueError("float16 SGD does not take sparse gradients")
        lr, _ = self.build_lr(net, param_init_net, base_learning_rate=-base_lr,
                              policy=self.policy, **self.init_kwargs)
        momentum_fp32 = param_init_net.ConstantFill(
            param_fp32, f"{param}_momentum_fp32", value=0.0)
        momentum = param_init_net.FloatToHalf(momentum_fp32, f"{param}_momentum")
        self._aux_params.local.append(momentum)
        kwargs = dict(momentum=self.momentum, nesterov=self.nesterov,
                      weight_decay=self.weight_decay)
        if fp32_update:
            net.FP32MomentumSGDUpdate(
                [grad, momentum_fp32, lr, param], [grad, momentum_fp32, param], **kwargs)
        else:
            net.FP16MomentumSGDUpdate(
                [grad, momentum, lr, param], [grad, momentum, param], **kwargs)


class WeightDecayBuilder(Optimizer):
    """Adds `weight_decay` times the parameter to its gradient."""

    def __init__(self, weight_decay: float):
        super().__init__()
        self.weight_decay = weight_decay

    def _run(self, net, param_init_net, param_info):
        if _is_sparse(param_info.grad):
            raise ValueError("weight decay does not take sparse gradients")
        device = _device()
        decay = param_init_net.ConstantFill(
            [], f"wd_{device.device_type}_{device.device_id}", shape=[1], value=self.weight_decay)
        one = self._one(param_init_net, node_name=False)
        net.WeightedSum([param_info.grad, one, param_info.blob, decay], param_info.grad)


def _refuse(**options):
    """Options of the interface that need operators which no release has ever had."""
    for name, (value, operator) in options.items():
        if value:
            raise NotImplementedError(
                f"{name} needs the operator {operator}, which is not part of this package")


class AdagradOptimizer(_ScaledByAlpha):
    """Adagrad: rates divided by the root of the sum of squared gradients.

    Parameters
    ----------
    alpha, policy, **kwargs
        Arguments of the operator LearningRate, `alpha` its base.
    epsilon
        Keeps the divisor from zero.
    decay
        Factor of the sum before each addition, for dense parameters.
    weight_decay
        Factor of the parameter that is added to its gradient.
    rowWise
        One sum for each row of a sparse parameter, of the row's mean square.
    counter_halflife
        With rowWise: rows seen often decay less; how long, in iterations, a sighting counts half.
    lars
        See `SgdOptimizer`.
    output_effective_lr, output_effective_lr_and_update
        Whether the operator also writes `<param>_effective_lr` and `<param>_update`.
    weight_scale
        An object with `stepsize`, `upper_bound_iter`, `scale` and `to_aux`: multiply the
        parameter, and its sums if `to_aux`, now and then (see the operator WeightScale).
    """

    def __init__(self, alpha: float = 0.01, epsilon: float = 1e-4, decay: float = 1,
                 weight_decay: float = 0.0, policy: str = "fixed",
                 sparse_dedup_aggregator: str | None = None, rowWise: bool = False,
                 engine: str = "", lars: float | None = None, output_effective_lr: bool = False,
                 output_effective_lr_and_update: bool = False, pruning_options=None,
                 swa_options=None, ema_options=None, weight_scale=None,
                 counter_halflife: int = -1, **kwargs):
        _refuse(pruning_options=(pruning_options, "MaskedAdagrad"),
                swa_options=(swa_options, "SWA"), ema_options=(ema_options, "EMA"))
        super().__init__()
        self.alpha = alpha
        self.epsilon = epsilon
        self.decay = decay
        self.weight_decay = float(weight_decay)
        self.policy = policy
        self.sparse_dedup_aggregator = sparse_dedup_aggregator
        self.rowWise = rowWise
        self.engine = engine
        self.lars = lars
        self.output_effective_lr = output_effective_lr
        self.output_effective_lr_and_update = output_effective_lr_and_update
        self.weight_scale = weight_scale
        self.counter_halflife = counter_halflife
        self.init_kwargs = kwargs

    def _run(self, net, param_init_net, param_info):
        param, grad = param_info.blob, param_info.grad
        if self.alpha <= 0:
            return
        sparse = _is_sparse(grad)
        if self.rowWise and not sparse:
            raise ValueError("row-wise Adagrad needs a sparse gradient")
        if sparse and self.decay != 1:
            raise ValueError("Adagrad for sparse gradients has no decay: it must be 1")
        self._add_lars(net, param_init_net, param, grad, self.lars)
        lr, iteration = self.build_lr(net, param_init_net, base_learning_rate=self.alpha,
                                      policy=self.policy, **self.init_kwargs)
        kwargs = dict(epsilon=self.epsilon, weight_decay=self.weight_decay, engine=self.engine)
        if self.rowWise:
            squares = self._row_state(param_init_net, param, "_avg_squared_sum")
        else:
            squares = self._state(param_init_net, param, "_squared_sum")

        if sparse:
            grad = self.dedup(net, self.sparse_dedup_aggregator, grad)
            inputs = [param, squares, grad.indices, grad.values, lr]
            if self.rowWise and self.counter_halflife > 0:
                last = self._row_state(param_init_net, param, "_last_update_iter", value=0,
                                       dtype=core.DataType.INT64)
                counter = self._row_state(param_init_net, param, "_update_counter",
                                          dtype=core.DataType.DOUBLE)
                net.RowWiseCounter([last, counter, grad.indices, iteration], [last, counter],
                                   counter_halflife=self.counter_halflife)
                inputs.append(counter)
                kwargs["counter_halflife"] = self.counter_halflife
            op = net.RowWiseSparseAdagrad if self.rowWise else net.SparseAdagrad
            op(inputs, [param, squares], **kwargs)
        else:
            outputs = [param, squares]
            if self.output_effective_lr or self.output_effective_lr_and_update:
                outputs.append(f"{param}_effective_lr")
            if self.output_effective_lr_and_update:
                outputs.append(f"{param}_update")
            net.Adagrad([param, squares, grad, lr], outputs, decay=float(self.decay), **kwargs)

        if self.weight_scale:
            scale = self.weight_scale
            for blob in [param, squares] if scale.to_aux else [param]:
                net.WeightScale(
                    [blob, iteration], [blob], stepsize=scale.stepsize,
                    upper_bound_iter=scale.upper_bound_iter, scale=float(scale.scale))


class WngradOptimizer(_ScaledByAlpha):
    """WNGrad: one rate for each parameter, divided by a sum that grows with the gradient's norm.

    Parameters
    ----------
    moment_init
        The sum's initial value. For the others see `AdagradOptimizer`.
    """

    def __init__(self, alpha: float = 1.0, epsilon: float = 1e-9, policy: str = "fixed",
                 sparse_dedup_aggregator: str | None = None, engine: str = "",
                 moment_init: float = 100.0, lars: float | None = None,
                 output_effective_lr: bool = False, output_effective_lr_and_update: bool = False,
                 **kwargs):
        super().__init__()
        self.alpha = alpha
        self.epsilon = epsilon
        self.policy = policy
        self.sparse_dedup_aggregator = sparse_dedup_aggregator
        self.engine = engine
        self.moment_init = moment_init
        self.lars = lars
        self.output_effective_lr = output_effective_lr
        self.output_effective_lr_and_update = output_effective_lr_and_update
        self.init_kwargs = kwargs

    def _run(self, net, param_init_net, param_info):
        param, grad = param_info.blob, param_info.grad
        if self.alpha <= 0:
            return
        self._add_lars(net, param_init_net, param, grad, self.lars)
        lr, _ = self.build_lr(net, param_init_net, base_learning_rate=self.alpha,
                              policy=self.policy, **self.init_kwargs)
        moment = self._state(param_init_net, param, "_moment", like=False, shape=[1],
                             value=self.moment_init)
        kwargs = dict(epsilon=self.epsilon, engine=self.engine)
        outputs = [param, moment]
        if _is_sparse(grad):
            grad = self.dedup(net, self.sparse_dedup_aggregator, grad)
            net.SparseWngrad([param, moment, grad.indices, grad.values, lr], outputs, **kwargs)
            return
        if self.output_effective_lr or self.output_effective_lr_and_update:
            outputs.append(f"{param}_effective_lr")
        if self.output_effective_lr_and_update:
            outputs.append(f"{param}_update")
        net.Wngrad([param, moment, grad, lr], outputs, **kwargs)


class StormOptimizer(Optimizer):
    """STORM: momentum whose share and rate follow from the gradients seen (arXiv:1905.10018).

    Parameters
    ----------
    lr, policy, **kwargs
        Arguments of the operator LearningRate, `lr` its base.
    momentum, beta
        The method's c and w.
    grad_sq_init
        Initial value of the sum of squared gradients.
    """

    def __init__(self, lr: float = 0.1, momentum: float = 10.0, beta: float = 0.1,
                 grad_sq_init: float = 0.01, policy: str = "fixed",
                 sparse_dedup_aggregator: str | None = None, lars: float | None = None, **kwargs):
        super().__init__()
        self.lr = lr
        self.momentum = momentum
        self.beta = beta
        self.grad_sq_init = grad_sq_init
        self.policy = policy
        self.sparse_dedup_aggregator = sparse_dedup_aggregator
        self.lars = lars
        self.init_kwargs = kwargs

    def _run(self, net, param_init_net, param_info):
        param, grad = param_info.blob, param_info.grad
        if self.lr <= 0:
            return
        self._add_lars(net, param_init_net, param, grad, self.lars)
        lr, _ = self.build_lr(net, param_init_net, base_learning_rate=self.lr,
                              policy=self.policy, **self.init_kwargs)
        moment = self._state(param_init_net, param, "_moment")
        squares = self._state(param_init_net, param, "_grad_sq_sum", like=False, shape=[1],
                              value=self.grad_sq_init)
        outputs = [param, moment, squares]
        kwargs = dict(momentum=self.momentum, beta=self.beta)
        if _is_sparse(grad):
            grad = self.dedup(net, self.sparse_dedup_aggregator, grad)
            net.SparseStorm([*outputs, grad.values, grad.indices, lr], outputs, **kwargs)
        else:
            net.Storm([*outputs, grad, lr], outputs, **kwargs)

    def scale_learning_rate(self, scale: float) -> None:
        self.lr *= scale


class AdadeltaOptimizer(_ScaledByAlpha):
    """Adadelta: steps scaled by the ratio of past steps to past gradients.

    Parameters
    ----------
    decay
        Share of the past in both running mean squares. For the others see `AdagradOptimizer`.
    """

    def __init__(self, alpha: float = 0.01, epsilon: float = 1e-4, decay: float = 0.95,
                 policy: str = "fixed", sparse_dedup_aggregator: str | None = None,
                 engine: str = "", **kwargs):
        super().__init__()
        self.alpha = alpha
        self.epsilon = epsilon
        self.decay = decay
        self.policy = policy
        self.sparse_dedup_aggregator = sparse_dedup_aggregator
        self.engine = engine
        self.init_kwargs = kwargs

    def _run(self, net, param_init_net, param_info):
        param, grad = param_info.blob, param_info.grad
        if self.alpha <= 0:
            return
        lr, _ = self.build_lr(net, param_init_net, base_learning_rate=self.alpha,
                              policy=self.policy, **self.init_kwargs)
        outputs = [
            param,
            self._state(param_init_net, param, "_squared_moment"),
            self._state(param_init_net, param, "_squared_moment_update"),
        ]
        kwargs = dict(epsilon=self.epsilon, decay=self.decay, engine=self.engine)
        if _is_sparse(grad):
            grad = self.dedup(net, self.sparse_dedup_aggregator, grad)
            net.SparseAdadelta([*outputs, grad.indices, grad.values, lr], outputs, **kwargs)
        else:
            net.Adadelta([*outputs, grad, lr], outputs, **kwargs)


class FtrlOptimizer(_ScaledByAlpha):
    """Follow the regularized leader, per coordinate (FTRL-Proximal).

    Parameters
    ----------
    alpha, beta
        The learning rate's numerator, and what is added to its divisor.
    lambda1, lambda2
        Strengths of the L1 and L2 penalties.
    """

    _operator, _suffix = "Ftrl", "_ftrl_nz"

    def __init__(self, alpha: float = 0.01, beta: float = 1e-4, lambda1: float = 0,
                 lambda2: float = 0, sparse_dedup_aggregator: str | None = None, engine: str = ""):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.lambda1 = lambda1
        self.lambda2 = lambda2
        self.sparse_dedup_aggregator = sparse_dedup_aggregator
        self.engine = engine

    def _run(self, net, param_init_net, param_info):
        param, grad = param_info.blob, param_info.grad
        if self.alpha <= 0:
            return
        nz = self._state(param_init_net, param, self._suffix, extra_shape=[2])
        inputs = [param, nz]
        if _is_sparse(grad):
            grad = self.dedup(net, self.sparse_dedup_aggregator, grad)
            inputs += [grad.indices, grad.values]
        else:
            inputs.append(grad)
        operator = ("Sparse" if _is_sparse(grad) else "") + self._operator
        getattr(net, operator)(
            inputs, [param, nz], engine=self.engine or "", alpha=self.alpha, beta=self.beta,
            lambda1=self.lambda1, lambda2=self.lambda2)


class GFtrlOptimizer(FtrlOptimizer):
    """FTRL with an L1 penalty on groups: all weights of one input feature leave together.

    Parameters as of `FtrlOptimizer`; dense gradients only.
    """

    _operator, _suffix = "GFtrl", "_gftrl_nz"

    def _run(self, net, param_init_net, param_info):
        if _is_sparse(param_info.grad):
            raise ValueError("group FTRL does not take sparse gradients")
        super()._run(net, param_init_net, param_info)


class AdamOptimizer(_ScaledByAlpha):
    """Adam, and its relatives for sparse parameters.

    Parameters
    ----------
    alpha, policy, **kwargs
        Arguments of the operator LearningRate, `alpha` its base.
    beta1, beta2
        Shares of the past in the running means of gradients and of their squares.
    epsilon
        Keeps the divisor from zero.
    use_lr_adaption, lr_alpha, normalized_lr_adaption
        Whether, how fast, and by which measure the learning rate itself is learned
        (see the operator LearningRateAdaption).
    rowWise
        One second moment for each row of a sparse parameter.
    enableRAdam
        Rectify the variance in early steps, for sparse gradients.
    use_smart_decay
        Decay a sparse parameter's moments by the steps since its row was last seen.
    """

    def __init__(self, alpha: float = 0.001, beta1: float = 0.9, beta2: float = 0.999,
                 epsilon: float = 1e-8, policy: str = "fixed", use_lr_adaption: bool = False,
                 lr_alpha: float = 0.01, normalized_lr_adaption: bool = True,
                 sparse_dedup_aggregator: str | None = None, rowWise: bool = False,
                 engine: str = "", enableRAdam: bool = False, use_smart_decay: bool = False,
                 **kwargs):
        super().__init__()
        self.alpha = alpha
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.policy = policy
        self.use_lr_adaption = use_lr_adaption
        self.lr_alpha = lr_alpha
        self.normalized_lr_adaption = normalized_lr_adaption
        self.sparse_dedup_aggregator = sparse_dedup_aggregator
        self.rowWise = rowWise
        self.engine = engine
        self.enableRAdam = enableRAdam
        self.use_smart_decay = use_smart_decay
        self.init_kwargs = kwargs

    def _run(self, net, param_init_net, param_info):
        param, grad = param_info.blob, param_info.grad
        if self.alpha <= 0:
            return
        sparse = _is_sparse(grad)
        if self.rowWise and not sparse:
            raise ValueError("row-wise Adam needs a sparse gradient")
        smart = self.use_smart_decay and sparse
        if smart and (self.rowWise or self.enableRAdam or self.use_lr_adaption):
            raise ValueError("use_smart_decay goes with neither rowWise, enableRAdam "
                             "nor use_lr_adaption")
        if self.enableRAdam and self.rowWise:
            raise ValueError("enableRAdam does not go with rowWise")

        lr, iteration = self.build_lr(net, param_init_net, base_learning_rate=self.alpha,
                                      policy=self.policy, **self.init_kwargs)
        self._shared(iteration)
        outputs = [param, self._state(param_init_net, param, "_first_moment")]
        if self.rowWise:
            outputs.append(self._row_state(param_init_net, param, "_avg_second_moment"))
        else:
            outputs.append(self._state(param_init_net, param, "_second_moment"))
        if smart:
            outputs.append(self._row_state(param_init_net, param, "_last_seen", value=0,
                                           dtype=core.DataType.INT64))

        inputs = list(outputs)
        kwargs = dict(beta1=self.beta1, beta2=self.beta2, epsilon=self.epsilon)
        values = grad
        if sparse:
            grad = self.dedup(net, self.sparse_dedup_aggregator, grad)
            values = grad.values
            inputs.append(grad.indices)
            operator = ("SmartDecaySparseAdam" if smart else
                        "RowWiseSparseAdam" if self.rowWise else "SparseAdam")
            if operator == "SparseAdam":
                kwargs["enableRAdam"] = self.enableRAdam
        else:
            operator = "Adam"
        inputs += [values, lr, iteration]
        if self.use_lr_adaption:
            effective_grad = f"{param}_effective_grad"
            outputs.append(effective_grad)
        getattr(net, operator)(inputs, outputs, **kwargs)
        if self.use_lr_adaption:
            net.LearningRateAdaption(
                [lr, values, effective_grad], [lr], lr_alpha=self.lr_alpha,
                normalized_lr_adaption=self.normalized_lr_adaption)


class DecayAdagradOptimizer(_ScaledByAlpha):
    """Adagrad with momentum, bias correction and weight decay that is not part of the gradient.

    Parameters
    ----------
    beta1, beta2
        Share of the past in the running mean of gradients; beta2 is kept for compatibility.
    bias_correction_first
        Whether that mean is corrected for its start at zero.
    """

    def __init__(self, alpha: float = 0.01, beta1: float = 0.0, beta2: float = 0.999,
                 epsilon: float = 0.1, weight_decay: float = 0.0, ema_options=None,
                 bias_correction_first: bool = True, policy: str = "fixed", engine: str = "",
                 **kwargs):
        _refuse(ema_options=(ema_options, "EMA"))
        super().__init__()
        self.alpha = alpha
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.bias_correction_first = bias_correction_first
        self.policy = policy
        self.engine = engine
        self.init_kwargs = kwargs

    def _run(self, net, param_init_net, param_info):
        param, grad = param_info.blob, param_info.grad
        if self.alpha <= 0:
            return
        if _is_sparse(grad):
            raise ValueError("decaying Adagrad does not take sparse gradients")
        lr, iteration = self.build_lr(net, param_init_net, base_learning_rate=self.alpha,
                                      policy=self.policy, **self.init_kwargs)
        self._shared(iteration)
        outputs = [
            param,
            self._state(param_init_net, param, "_first_mo1ment"),   # checkpoints know this name
            self._state(param_init_net, param, "_second_moment"),
        ]
        net.DecayAdagrad(
            [*outputs, grad, lr, iteration], outputs, beta1=self.beta1, beta2=self.beta2,
            epsilon=self.epsilon, weight_decay=self.weight_decay,
            bias_correction_first=self.bias_correction_first)


class YellowFinOptimizer(_ScaledByAlpha):
    """YellowFin: momentum SGD that tunes its rate and momentum itself (arXiv:1706.03471).

    Each parameter has a rate and a momentum of its own.

    Parameters
    ----------
    alpha, mu
        Initial learning rate and momentum.
    beta
        Share of the past in the running means.
    curv_win_width
        How many past squared norms give the range of curvatures.
    zero_debias
        Whether the means are corrected for their start at zero.
    """

    # Running means that the operator keeps: norm, squared norm, its least and greatest, distance.
    _SCALARS = 5

    def __init__(self, alpha: float = 0.1, mu: float = 0.0, beta: float = 0.999,
                 curv_win_width: int = 20, zero_debias: bool = True, epsilon: float = 0.1 ** 6,
                 policy: str = "fixed", sparse_dedup_aggregator: str | None = None, **kwargs):
        super().__init__()
        self.alpha = alpha
        self.mu = mu
        self.beta = beta
        self.curv_win_width = curv_win_width
        self.zero_debias = zero_debias
        self.epsilon = epsilon
        self.policy = policy
        self.sparse_dedup_aggregator = sparse_dedup_aggregator
        self.init_kwargs = kwargs

    def _run(self, net, param_init_net, param_info):
        param, grad = param_info.blob, param_info.grad
        if self.alpha <= 0:
            raise ValueError(f"the initial learning rate must be positive, got {self.alpha}")
        if _is_sparse(grad):
            raise ValueError("YellowFin does not take sparse gradients")
        iteration = self._shared(utils.BuildUniqueMutexIter(param_init_net, net, iter_val=0))

        def state(suffix, size=None, value=0.0):
            fill = {} if size is None else {"shape": [size]}
            return self._state(
                param_init_net, param, suffix, like=size is None, value=value, **fill)

        outputs = [
            param,
            state("_moment"),
            state("_lr_avg", 1, self.alpha),
            state("_mu_avg", 1, self.mu),
            state("_curv_win", self.curv_win_width),
            state("_g_avg"),
            state("_g2_avg"),
            state("_scalars_memory", self._SCALARS),
        ]
        net.YellowFin(
            [*outputs, grad, iteration], outputs, beta=self.beta, epsilon=self.epsilon,
            curv_win_width=self.curv_win_width, zero_debias=self.zero_debias)


class RmsPropOptimizer(_ScaledByAlpha):
    """RMSProp: gradients divided by the root of their running mean square.

    Parameters
    ----------
    decay
        Share of the past in the mean square.
    momentum
        Share of the last step that is taken again.
    """

    def __init__(self, alpha: float = 0.01, decay: float = 0.9, momentum: float = 0.0,
                 epsilon: float = 1e-5, policy: str = "fixed", engine: str = "", **kwargs):
        super().__init__()
        self.alpha = alpha
        self.decay = decay
        self.momentum = momentum
        self.epsilon = epsilon
        self.policy = policy
        self.engine = engine
        self.init_kwargs = kwargs

    def _run(self, net, param_init_net, param_info):
        param, grad = param_info.blob, param_info.grad
        if self.alpha <= 0:
            raise ValueError(f"the base learning rate must be positive, got {self.alpha}")
        if _is_sparse(grad):
            raise ValueError("RMSProp does not take sparse gradients")
        one = self._one(param_init_net, node_name=False)
        lr, _ = self.build_lr(net, param_init_net, base_learning_rate=-self.alpha,
                              policy=self.policy, **self.init_kwargs)
        step = param_init_net.ConstantFill([param], f"{param}_grad_o", value=0.0)
        mean_squares = self._state(param_init_net, param, "_mean_squares")
        momentum = self._state(param_init_net, param, "_momentum")
        net.RmsProp(
            [grad, mean_squares, momentum, one], [step, mean_squares, momentum],
            decay=self.decay, momentum=self.momentum, epsilon=self.epsilon, engine=self.engine)
        net.MomentumSGDUpdate([step, momentum, lr, param], [step, momentum, param])


# ---------------------------------------------------------------------- models

def _get_param_to_device(model):
    # A parameter's device is that of the operators which create or use it.
    devices = core.InferBlobDevices(model.net)
    devices.update(core.InferBlobDevices(model.param_init_net))
    return devices


def get_param_device(param_name: str, grad: Gradient, param_to_device: dict | None = None,
                     default_device: caffe2_pb2.DeviceOption | None = None
                     ) -> caffe2_pb2.DeviceOption:
    """The device a parameter lives on: its own if known, else its gradient's, else the default."""
    devices = param_to_device or {}
    candidates = [grad.values, grad.indices] if _is_sparse(grad) else [grad]
    for name in [param_name, *map(str, candidates)]:
        if name in devices:
            return devices[name]
    if default_device is None:
        raise ValueError(f"no operator creates {param_name}: its device is unknown")
    return default_device


def get_lr_injection() -> np.ndarray:
    """The factor of all learning rates in models built with `allow_lr_injection=True`."""
    return workspace.FetchBlob(_LEARNING_RATE_INJECTION)


def set_lr_injection(lr_injection_value: float) -> None:
    """Set the factor of all learning rates in models built with `allow_lr_injection=True`."""
    workspace.FeedBlob(
        _LEARNING_RATE_INJECTION, np.array([float(lr_injection_value)], dtype=np.float32))


def reset_optimizer_instance_count() -> None:
    """Number optimizers from zero again, so that a model built anew gets the same blob names."""
    _optimizer_instance_count.clear()


def _calc_norm_ratio(model, params, name_scope, param_to_device, max_gradient_norm):
    """min(1, max_gradient_norm / norm of all gradients together)"""
    with core.NameScope(name_scope):
        squares = []
        for i, param in enumerate(params):
            device = get_param_device(str(param.blob), param.grad, param_to_device)
            with core.DeviceScope(device):
                grad = param.grad.values if _is_sparse(param.grad) else param.grad
                square = model.net.SumSqrElements(grad, f"grad_{i}_squared_sum")
                squares.append(model.net.EnsureCPUOutput(square))
        with core.DeviceScope(core.DeviceOption(caffe2_pb2.CPU)):
            total = model.net.Sum(squares, "grad_squared_full_sum")
            global_norm = model.net.Pow(total, "global_norm", exponent=0.5)
            clip_norm = model.param_init_net.ConstantFill(
                [], "clip_norm", shape=[], value=float(max_gradient_norm))
            max_norm = model.net.Max([global_norm, clip_norm], "max_norm")
            return model.net.Div([clip_norm, max_norm], "norm_ratio")


def _build(model, optimizer, weights_only=False, use_param_info_optim=True,
           max_gradient_norm=None, allow_lr_injection=False):
    param_to_device = _get_param_to_device(model)
    model.Validate()
    params = [
        info for info in model.GetOptimizationParamInfo()
        if not weights_only or info.blob in model.weights
    ]

    lr_multiplier = None
    if max_gradient_norm is not None:
        lr_multiplier = _calc_norm_ratio(
            model, params, "norm_clipped_grad_update", param_to_device, max_gradient_norm)
    if allow_lr_injection:
        injection = _LEARNING_RATE_INJECTION
        if not model.net.BlobIsDefined(injection):
            injection = model.param_init_net.ConstantFill([], injection, shape=[1], value=1.0)
        if lr_multiplier is None:
            lr_multiplier = injection
        else:
            lr_multiplier = model.net.Mul(
                [lr_multiplier, injection], "lr_multiplier", broadcast=1)
    optimizer.add_lr_multiplier(lr_multiplier)

    for info in params:
        device = get_param_device(str(info.blob), info.grad, param_to_device)
        with core.DeviceScope(device):
            own = info.optimizer if use_param_info_optim else None
            (own or optimizer)(model.net, model.param_init_net, info)
    return optimizer


def add_weight_decay(model, weight_decay: float) -> None:
    """Add `weight_decay` times each weight to its gradient: L2 regularization."""
    _build(model, WeightDecayBuilder(weight_decay=weight_decay), weights_only=True,
           use_param_info_optim=False)


# Each takes a model whose gradients are built, adds the updates of all its parameters (a parameter
# that has an optimizer of its own keeps it) and returns the optimizer. `max_gradient_norm` bounds
# the norm of all gradients together; `allow_lr_injection` lets `set_lr_injection` scale the rates
# of a running model; `parameters` is accepted and has no effect; further arguments go to the
# optimizer.

def build_sgd(model, base_learning_rate: float, max_gradient_norm: float | None = None,
              allow_lr_injection: bool = False, **kwargs) -> SgdOptimizer:
    """Train a model's parameters with `SgdOptimizer`."""
    return _build(model, SgdOptimizer(base_learning_rate, **kwargs),
                  max_gradient_norm=max_gradient_norm, allow_lr_injection=allow_lr_injection)


def build_multi_precision_sgd(model, base_learning_rate: float,
                              max_gradient_norm: float | None = None,
                              allow_lr_injection: bool = False,
                              **kwargs) -> MultiPrecisionSgdOptimizer:
    """Train a model's parameters with `MultiPrecisionSgdOptimizer`."""
    return _build(model, MultiPrecisionSgdOptimizer(base_learning_rate, **kwargs),
                  max_gradient_norm=max_gradient_norm, allow_lr_injection=allow_lr_injection)


def build_fp16_sgd(model, base_learning_rate: float, **kwargs) -> FP16SgdOptimizer:
    """Train a model's parameters with `FP16SgdOptimizer`."""
    return _build(model, FP16SgdOptimizer(base_learning_rate, **kwargs))


def build_ftrl(model, engine: str = "SIMD", **kwargs) -> FtrlOptimizer:
    """Train a model's parameters with `FtrlOptimizer`."""
    return _build(model, FtrlOptimizer(engine=engine, **kwargs))


def build_gftrl(model, engine: str = "", **kwargs) -> GFtrlOptimizer:
    """Train a model's parameters with `GFtrlOptimizer`."""
    return _build(model, GFtrlOptimizer(engine=engine, **kwargs))


def build_adagrad(model, base_learning_rate: float, parameters=None,
                  max_gradient_norm: float | None = None, allow_lr_injection: bool = False,
                  **kwargs) -> AdagradOptimizer:
    """Train a model's parameters with `AdagradOptimizer`."""
    return _build(model, AdagradOptimizer(alpha=base_learning_rate, **kwargs),
                  max_gradient_norm=max_gradient_norm, allow_lr_injection=allow_lr_injection)


def build_wngrad(model, base_learning_rate: float, parameters=None,
                 max_gradient_norm: float | None = None, allow_lr_injection: bool = False,
                 **kwargs) -> WngradOptimizer:
    """Train a model's parameters with `WngradOptimizer`."""
    return _build(model, WngradOptimizer(alpha=base_learning_rate, **kwargs),
                  max_gradient_norm=max_gradient_norm, allow_lr_injection=allow_lr_injection)


def build_storm(model, base_learning_rate: float, parameters=None,
                max_gradient_norm: float | None = None, allow_lr_injection: bool = False,
                **kwargs) -> StormOptimizer:
    """Train a model's parameters with `StormOptimizer`."""
    return _build(model, StormOptimizer(lr=base_learning_rate, **kwargs),
                  max_gradient_norm=max_gradient_norm, allow_lr_injection=allow_lr_injection)


def build_adadelta(model, base_learning_rate: float, parameters=None,
                   max_gradient_norm: float | None = None, allow_lr_injection: bool = False,
                   **kwargs) -> AdadeltaOptimizer:
    """Train a model's parameters with `AdadeltaOptimizer`."""
    return _build(model, AdadeltaOptimizer(alpha=base_learning_rate, **kwargs),
                  max_gradient_norm=max_gradient_norm, allow_lr_injection=allow_lr_injection)


def build_adam(model, base_learning_rate: float, max_gradient_norm: float | None = None,
               allow_lr_injection: bool = False, **kwargs) -> AdamOptimizer:
    """Train a model's parameters with `AdamOptimizer`."""
    return _build(model, AdamOptimizer(alpha=base_learning_rate, **kwargs),
                  max_gradient_norm=max_gradient_norm, allow_lr_injection=allow_lr_injection)


def build_decay_adagrad(model, base_learning_rate: float, max_gradient_norm: float | None = None,
                        allow_lr_injection: bool = False, **kwargs) -> DecayAdagradOptimizer:
    """Train a model's parameters with `DecayAdagradOptimizer`."""
    return _build(model, DecayAdagradOptimizer(alpha=base_learning_rate, **kwargs),
                  max_gradient_norm=max_gradient_norm, allow_lr_injection=allow_lr_injection)


def build_yellowfin(model, base_learning_rate: float = 0.1, **kwargs) -> YellowFinOptimizer:
    """Train a model's parameters with `YellowFinOptimizer`."""
    return _build(model, YellowFinOptimizer(alpha=base_learning_rate, **kwargs))


def build_rms_prop(model, base_learning_rate: float, max_gradient_norm: float | None = None,
                   allow_lr_injection: bool = False, **kwargs) -> RmsPropOptimizer:
    """Train a model's parameters with `RmsPropOptimizer`."""
    return _build(model, RmsPropOptimizer(alpha=base_learning_rate, **kwargs),
                  max_gradient_norm=max_gradient_norm, allow_lr_injection=allow_lr_injection)

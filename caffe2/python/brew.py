"""Helper functions that add layers with their parameters to a model.

Each takes the model first, then input and output blobs, then what the layer needs::

    model = model_helper.ModelHelper(name="net")
    conv1 = brew.conv(model, "data", "conv1", dim_in=1, dim_out=20, kernel=5)
    pool1 = brew.max_pool(model, conv1, "pool1", kernel=2, stride=2)

Arguments that a call does not give come from `arg_scope`, then from the model's own.
"""
import functools
import inspect
from collections.abc import Callable

from caffe2.python.helpers import (
    algebra,
    array_helpers,
    nonlinearity,
    normalization,
    pooling,
    quantization,
    tools,
    train,
)
from caffe2.python.helpers import (
    conv as _conv,
)
from caffe2.python.helpers import (
    db_input as _db_input,
)
from caffe2.python.helpers import (
    dropout as _dropout,
)
from caffe2.python.helpers import (
    elementwise_linear as _elementwise_linear,
)
from caffe2.python.helpers import (
    fc as _fc,
)
from caffe2.python.helpers.arg_scope import arg_scope, get_current_scope
from caffe2.python.model_helper import ModelHelper

_registry: dict[str, Callable | None] = {"arg_scope": arg_scope}


_CONTROL = ("cond", "loop")  # added at first use: only these need the modules of control flow
_registry.update(dict.fromkeys(_CONTROL))


def _scoped(helper: Callable) -> Callable:
    """Wrap a helper so that it takes its missing arguments from the scopes."""
    name = helper.__name__
    parameters = inspect.signature(helper).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    @functools.wraps(helper)
    def wrapper(*args, **kwargs):
        model = args[0] if args and isinstance(args[0], ModelHelper) else kwargs.get("model")
        if model is None:
            raise RuntimeError(
                "The first input of helper function should be model. "
                "Or you can provide it in kwargs as model=<your_model>.")
        merged = {
            k: v for k, v in model.arg_scope.items() if takes_any or k in parameters}
        merged.update(get_current_scope().get(name, {}))
        merged.update(kwargs)
        return helper(*args, **merged)

    return wrapper


def Register(helper: Callable) -> None:
    """Make a function, whose first argument is the model, a helper under its name."""
    name = helper.__name__
    if name in _registry:
        raise AttributeError(
            f"Helper {name} already exists. Please change your helper name.")
    _add(helper)


def _add(helper: Callable) -> None:
    _registry[helper.__name__] = helper
    globals()[helper.__name__] = _scoped(helper)


def has_helper(helper_or_helper_name: Callable | str) -> bool:
    """Say whether there is a helper of this name, or of the name of this function."""
    name = helper_or_helper_name
    return (name if isinstance(name, str) else name.__name__) in _registry


def __getattr__(name: str):
    if name in _CONTROL:
        from caffe2.python.helpers import control_ops
        _add(getattr(control_ops, name))
        return globals()[name]
    raise AttributeError(f"Helper function {name} not registered.")


for _helper in (
    algebra.arg_min,
    algebra.batch_mat_mul,
    algebra.mat_mul,
    algebra.reduce_sum,
    algebra.sparse_lengths_sum_4bit_rowwise_sparse,
    algebra.sub,
    algebra.sum,
    algebra.transpose,
    array_helpers.concat,
    array_helpers.depth_concat,
    _conv.conv,
    _conv.conv_nd,
    _conv.conv_transpose,
    _conv.group_conv,
    _conv.group_conv_deprecated,
    _db_input.db_input,
    _dropout.dropout,
    _elementwise_linear.elementwise_linear,
    _fc.fc,
    _fc.fc_decomp,
    _fc.fc_prune,
    _fc.fc_sparse,
    _fc.packed_fc,
    nonlinearity.prelu,
    nonlinearity.relu,
    nonlinearity.tanh,
    normalization.instance_norm,
    normalization.layer_norm,
    normalization.lrn,
    normalization.moments_with_running_stats,
    normalization.softmax,
    normalization.spatial_bn,
    normalization.spatial_gn,
    pooling.average_pool,
    pooling.max_pool,
    pooling.max_pool_with_index,
    quantization.fused_8bit_rowwise_quantized_to_float,
    tools.image_input,
    tools.video_input,
    train.accuracy,
    train.add_weight_decay,
    train.iter,
):
    _add(_helper)

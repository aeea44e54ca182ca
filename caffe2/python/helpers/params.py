"""Parameters as most helpers make them."""
from typing import Any

from caffe2.python import core
from caffe2.python.modeling import initializers


def create_param(
        model: Any, name: Any, shape: list, initializer: Any = None, init: tuple | None = None,
        default: tuple = ("ConstantFill", {}), tags: Any = None) -> core.BlobReference:
    """Create a parameter, external if the model does not initialize its own.

    Parameters
    ----------
    initializer : class, optional
    init : (str, dict), optional
        Fill operator and its arguments, as the caller gave them.
    default : (str, dict)
        Fill operator if the caller gave none.
    """
    if model.init_params:
        initializer = initializers.update_initializer(initializer, init, default)
    else:
        initializer = initializers.ExternalInitializer()
    return model.create_param(
        param_name=name, shape=shape, initializer=initializer, tags=tags)


def fill(model: Any, name: Any, shape: list, init: tuple) -> core.BlobReference:
    """Return a blob that the model's init net fills, external if it initializes none.

    Unlike a parameter of `create_param`, it is neither shared nor registered.
    """
    if not model.init_params:
        return core.ScopedBlobReference(name, model.param_init_net)
    return getattr(model.param_init_net, init[0])([], name, shape=shape, **init[1])

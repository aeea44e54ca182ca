"""Default arguments of helper functions."""
import contextlib
import threading
from collections.abc import Callable, Iterator

_threadlocal_scope = threading.local()


@contextlib.contextmanager
def arg_scope(single_helper_or_list: Callable | list[Callable], **kwargs) -> Iterator[None]:
    """Give one or several helper functions default arguments inside this context.

    Examples
    --------
    >>> from caffe2.python import brew, model_helper
    >>> model = model_helper.ModelHelper(name="net")
    >>> with brew.arg_scope([brew.conv, brew.relu], order="NHWC"):
    ...     conv1 = brew.conv(model, "data", "conv1", 3, 8, kernel=3)
    """
    helpers = single_helper_or_list
    if not isinstance(helpers, list):
        helpers = [helpers]
    if not all(map(callable, helpers)):
        raise TypeError("arg_scope takes a helper function or a list of them")
    previous = get_current_scope()
    _threadlocal_scope.current_scope = previous | {
        h.__name__: previous.get(h.__name__, {}) | kwargs for h in helpers}
    try:
        yield
    finally:
        _threadlocal_scope.current_scope = previous


def get_current_scope() -> dict[str, dict]:
    """Return the default arguments in force, by name of the helper function."""
    return getattr(_threadlocal_scope, "current_scope", {})

"""Name and device scopes. Both belong to the thread that enters them."""

import contextlib
import threading
from collections.abc import Iterator

from caffe2.proto import caffe2_pb2

_NAMESCOPE_SEPARATOR = "/"


class _Scopes(threading.local):
    namescope = ""
    devicescope = None


_threadlocal_scope = _Scopes()


def CurrentNameScope() -> str:
    """Prefix of names created now: empty, or ending in the separator."""
    return _threadlocal_scope.namescope


def CurrentDeviceScope() -> caffe2_pb2.DeviceOption | None:
    """Device option given to operators created now, None outside of any scope."""
    return _threadlocal_scope.devicescope


@contextlib.contextmanager
def NameScope(prefix: str | None, reset: bool = False) -> Iterator[None]:
    """Prepend `prefix` to the blob names given as strings inside the block.

    Parameters
    ----------
    prefix : str or None
        Added to the enclosing scope; None or an empty string adds nothing.
    reset : bool
        Start from an empty scope instead of the enclosing one.
    """
    assert prefix is None or isinstance(prefix, str), "NameScope takes in a string as its argument."
    old = _threadlocal_scope.namescope
    new = ("" if reset else old) + (prefix + _NAMESCOPE_SEPARATOR if prefix else "")
    _threadlocal_scope.namescope = new
    try:
        yield
    finally:
        changed = _threadlocal_scope.namescope != new
        _threadlocal_scope.namescope = old
        assert not changed, "The name scope was changed from outside of NameScope()."


@contextlib.contextmanager
def DeviceScope(
    scope: caffe2_pb2.DeviceOption | None, node_name: str | None = None
) -> Iterator[None]:
    """Give the operators created inside the block a device option.

    Parameters
    ----------
    scope : DeviceOption or None
        The device; where it has no node name, that of the enclosing scope holds. Its `extra_info`
        is added to that of the enclosing scope.
    node_name : str, optional
        Overrides the node name of `scope`.
    """
    new = caffe2_pb2.DeviceOption()
    if scope is not None:
        assert isinstance(scope, caffe2_pb2.DeviceOption), (
            "DeviceScope takes in a caffe2_pb2.DeviceOption as its argument."
        )
        new.CopyFrom(scope)
    else:
        assert node_name, "At least one argument should be non-null in DeviceScope"
    if node_name:
        new.node_name = node_name

    old = _threadlocal_scope.devicescope
    if old is not None:
        if old.HasField("node_name") and not new.HasField("node_name"):
            new.node_name = old.node_name
        new.extra_info.extend(old.extra_info)
    new.extra_info.sort()

    _threadlocal_scope.devicescope = new
    try:
        yield
    finally:
        changed = _threadlocal_scope.devicescope != new
        _threadlocal_scope.devicescope = old
        assert not changed, "The device scope was changed from outside of DeviceScope()."


@contextlib.contextmanager
def EmptyNameScope() -> Iterator[None]:
    """Create names without any prefix inside the block."""
    with NameScope(None, reset=True):
        yield


@contextlib.contextmanager
def EmptyDeviceScope() -> Iterator[None]:
    """Create operators without a device option inside the block, so that their net's holds."""
    old = _threadlocal_scope.devicescope
    _threadlocal_scope.devicescope = None
    try:
        yield
    finally:
        _threadlocal_scope.devicescope = old

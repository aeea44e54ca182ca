"""Classes whose instances are entered with ``with`` and found again with ``current``."""
import functools
import threading
from collections.abc import Callable
from typing import Any


class Managed:
    """Base of context-managed classes; each thread has a stack of its own.

    Entering an instance makes it the current one of its class and of every managed base class.

    Examples
    --------
    >>> class Settings(Managed):
    ...     pass
    >>> with Settings() as s:
    ...     Settings.current() is s
    True
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._active = threading.local()

    @classmethod
    def _stack(cls) -> list:
        local = cls._active
        if not hasattr(local, "stack"):
            local.stack = []
        return local.stack

    @classmethod
    def _managed_classes(cls) -> list[type]:
        return [c for c in cls.__mro__ if "_active" in vars(c) and c is not DefaultManaged]

    @classmethod
    def current(cls, value: Any = None, required: bool = True) -> Any:
        """Return `value` if given, else the innermost active instance.

        Parameters
        ----------
        value : instance of the class, optional
            Returned as it is, after its type has been checked.
        required : bool
            Whether a missing context is an error; otherwise None is returned.
        """
        if value is not None:
            assert isinstance(value, cls), (
                f"Wrong context type. Expected: {cls}, got {type(value)}.")
            return value
        stack = cls._stack()
        if not stack:
            if not required:
                return None
            assert issubclass(cls, DefaultManaged), (
                f"Context {cls} is required but none is active.")
            stack.append(cls())
        return stack[-1]

    def __enter__(self):
        for cls in self._managed_classes():
            cls._stack().append(self)
        return self

    def __exit__(self, *args) -> None:
        for cls in self._managed_classes():
            stack = cls._stack()
            assert stack, f"Context {cls} is empty."
            assert stack.pop() is self, f"Contexts {cls} are left in the wrong order."

    def __call__(self, func: Callable) -> Callable:
        @functools.wraps(func)
        def wrapper(*args, **kwargs):
            with self:
                return func(*args, **kwargs)

        return wrapper


class DefaultManaged(Managed):
    """A managed class with a default instance, made when none is active."""

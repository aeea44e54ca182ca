"""Imports put off until an operator is first asked for."""

from collections.abc import Callable

_lazy_imports: list[Callable[[], None]] = []


def RegisterLazyImport(lazy: Callable[[], None]) -> None:
    """Have `lazy` called whenever the operators must be complete; it must tolerate repetition."""
    _lazy_imports.append(lazy)


def TriggerLazyImport() -> None:
    """Call every registered lazy import."""
    for lazy in _lazy_imports:
        lazy()

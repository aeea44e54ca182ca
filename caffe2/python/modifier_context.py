"""Named modifiers, such as optimizers and regularizers, that layers created in a scope pick up."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_MODIFIER = "DEFAULT"


class ModifierContext:
    """Modifiers by name; the ones pushed last win."""

    def __init__(self):
        self._modifiers: dict[str, Any] = {}
        self._modifiers_list: list[Mapping[str, Any]] = []

    def _has_modifier(self, name: str) -> bool:
        return name in self._modifiers

    def _get_modifier(self, name: str) -> Any:
        return self._modifiers.get(name)

    def push_modifiers(self, modifiers: Mapping[str, Any]) -> None:
        """Add modifiers; names that exist are overridden until these are popped."""
        self._modifiers_list.append(modifiers)
        self._modifiers.update(modifiers)

    def pop_modifiers(self) -> None:
        """Take away the modifiers pushed last."""
        if not self._modifiers_list:
            raise RuntimeError("there are no modifiers to pop")
        self._modifiers_list.pop()
        self._modifiers = {}
        for modifiers in self._modifiers_list:
            self._modifiers.update(modifiers)


class UseModifierBase:
    """Context manager that pushes modifiers onto the current context of one kind.

    Parameters
    ----------
    modifier_or_dict
        Modifiers by name, or one modifier that becomes the default.
    """

    def __init__(self, modifier_or_dict: Any):
        if not isinstance(modifier_or_dict, dict):
            modifier_or_dict = {DEFAULT_MODIFIER: modifier_or_dict}
        self._modifiers = modifier_or_dict

    def _context_class(self) -> type[ModifierContext]:
        raise NotImplementedError

    def __enter__(self) -> UseModifierBase:
        self._context_class().current().push_modifiers(self._modifiers)
        return self

    def __exit__(self, *exc_info) -> None:
        self._context_class().current().pop_modifiers()

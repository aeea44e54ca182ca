"""Which regularizer the layers created in a scope use."""
from __future__ import annotations

from typing import Any

from caffe2.python import context
from caffe2.python.modifier_context import ModifierContext, UseModifierBase


class RegularizerContext(ModifierContext, context.DefaultManaged):
    """The current regularizers by name."""

    def has_regularizer(self, name: str) -> bool:
        return self._has_modifier(name)

    def get_regularizer(self, name: str) -> Any:
        if not self.has_regularizer(name):
            raise KeyError(f"{name} regularizer is not provided")
        return self._get_modifier(name)


class UseRegularizer(UseModifierBase):
    """Use a regularizer, or several by name, inside a `with` block.

    Examples
    --------
    >>> from caffe2.python.regularizer import L1Norm
    >>> with UseRegularizer({"WEIGHT": L1Norm(0.2)}):
    ...     regularizer = RegularizerContext.current().get_regularizer("WEIGHT")
    """

    def _context_class(self) -> type[RegularizerContext]:
        return RegularizerContext

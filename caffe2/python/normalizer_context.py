"""Which normalizer the layers created in a scope use."""
from __future__ import annotations

from typing import Any

from caffe2.python import context
from caffe2.python.modifier_context import ModifierContext, UseModifierBase


class NormalizerContext(ModifierContext, context.DefaultManaged):
    """The current normalizers by name."""

    def has_normalizer(self, name: str) -> bool:
        return self._has_modifier(name)

    def get_normalizer(self, name: str) -> Any:
        if not self.has_normalizer(name):
            raise KeyError(f"{name} normalizer is not provided")
        return self._get_modifier(name)


class UseNormalizer(UseModifierBase):
    """Use a normalizer, or several by name, inside a `with` block.

    Examples
    --------
    >>> from caffe2.python.normalizer import BatchNormalizer
    >>> with UseNormalizer({"BATCH": BatchNormalizer(momentum=0.1)}):
    ...     norm = NormalizerContext.current().get_normalizer("BATCH")
    """

    def _context_class(self) -> type[NormalizerContext]:
        return NormalizerContext

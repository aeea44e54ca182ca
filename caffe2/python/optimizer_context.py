"""Which optimizer the layers created in a scope use."""
from __future__ import annotations

from typing import Any

from caffe2.python import context
from caffe2.python.modifier_context import ModifierContext, UseModifierBase

DEFAULT_OPTIM = "DEFAULT"


class OptimizerContext(ModifierContext, context.DefaultManaged):
    """The current optimizers by name."""

    def has_optimizer(self, name: str) -> bool:
        return self._has_modifier(name)

    def get_optimizer(self, name: str) -> Any:
        if not self.has_optimizer(name):
            raise KeyError(f"{name} optimizer is not provided")
        return self._get_modifier(name)


class UseOptimizer(UseModifierBase):
    """Use an optimizer, or several by name, inside a `with` block.

    Examples
    --------
    One for all parameters created in the block, or others for weights and biases:

    >>> with UseOptimizer(adam):
    ...     brew.fc(model, "data", "fc1", 10, 10)
    >>> with UseOptimizer({"DEFAULT": adam, "BIAS": sgd}):
    ...     brew.fc(model, "fc1", "fc2", 10, 10)

    Layers ask by name:

    >>> with UseOptimizer({"slow": sgd}):
    ...     layer(optim=OptimizerContext.current().get_optimizer("slow"))
    """

    def _context_class(self) -> type[OptimizerContext]:
        return OptimizerContext

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

    >>> from caffe2.python import brew, model_helper
    >>> from caffe2.python.optimizer import AdamOptimizer, SgdOptimizer
    >>> model = model_helper.ModelHelper(name="net")
    >>> adam, sgd = AdamOptimizer(0.001), SgdOptimizer(0.1)
    >>> with UseOptimizer(adam):
    ...     fc1 = brew.fc(model, "data", "fc1", 10, 10)
    >>> with UseOptimizer({"DEFAULT": adam, "BIAS": sgd}):
    ...     fc2 = brew.fc(model, "fc1", "fc2", 10, 10)

    Layers ask by name:

    >>> with UseOptimizer({"slow": sgd}):
    ...     optimizer = OptimizerContext.current().get_optimizer("slow")
    """

    def _context_class(self) -> type[OptimizerContext]:
        return OptimizerContext

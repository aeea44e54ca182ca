"""Exceptions of the runtime."""


class OperatorError(RuntimeError):
    """An operator could not be bound or run; the message names it, its net, its blobs and their shapes."""

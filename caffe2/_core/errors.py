"""Exceptions of the runtime."""


class OperatorError(RuntimeError):
    """An operator could not be bound or run; the message names it, its net, its blobs and their shapes.

    Attributes
    ----------
    position : int or None
        Which of its net's operators it is.
    """

    position = None


class BlobNotFound(RuntimeError, KeyError):
    """A workspace has no blob of that name."""

    __str__ = RuntimeError.__str__

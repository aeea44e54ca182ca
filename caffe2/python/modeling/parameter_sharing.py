"""Parameters shared between name scopes."""
import contextlib
from collections.abc import Iterator

from caffe2.python import scope

_SEPARATOR = scope._NAMESCOPE_SEPARATOR


class ParameterSharingContext:
    """Which name scopes take their parameters from which others.

    Overrides apply as long as one matches, the one of the longest prefix first. With
    ``{'b/': 'a/', 'b/shared/': 'b/'}``, the parameter w of scope 'b/' is 'a/w', and so is that
    of 'b/shared/', while that of 'b/other/' is 'a/other/w'.
    """

    def __init__(self):
        self._scope_overrides: dict[str, str] = {}
        self._contexts: list[dict[str, str]] = []

    def _resolve_scope_overrides(self, candidate: str) -> str:
        ends = [i + 1 for i, c in enumerate(candidate) if c == _SEPARATOR]
        for end in reversed(ends):
            override = self._scope_overrides.get(candidate[:end])
            if override is not None and override != candidate[:end]:
                return self._resolve_scope_overrides(override) + candidate[end:]
        return candidate

    def get_parameter_name(self, name: str) -> str:
        """Return the full name of parameter `name` of the current name scope."""
        return self._resolve_scope_overrides(scope.CurrentNameScope()) + name

    def add_scope_overrides(self, shared_scopes: dict[str, str]) -> None:
        """Add overrides until the matching `pop`."""
        self._contexts.append(shared_scopes)
        self._scope_overrides.update(shared_scopes)

    def pop(self) -> None:
        """Remove the overrides that were added last."""
        assert self._contexts
        self._contexts.pop()
        self._scope_overrides = {k: v for c in self._contexts for k, v in c.items()}


parameter_sharing_context = ParameterSharingContext()


def _normalize_namescope(namescope: str) -> str:
    if namescope and not namescope.endswith(_SEPARATOR):
        return namescope + _SEPARATOR
    return namescope


@contextlib.contextmanager
def ParameterSharing(shared_scopes: dict[str, str]) -> Iterator[None]:
    """Let scopes take their parameters from others inside this context.

    Parameters
    ----------
    shared_scopes : dict of str to str
        From a scope to the one whose parameters it uses, both below the current scope.
    """
    assert isinstance(shared_scopes, dict)
    current = scope.CurrentNameScope()
    overrides = {}
    for k, v in shared_scopes.items():
        assert not v.startswith(k), (
            f"Illegal override for parameter sharing. {k} is prefix of {v}")
        overrides[_normalize_namescope(current + k)] = _normalize_namescope(current + v)
    parameter_sharing_context.add_scope_overrides(overrides)
    try:
        yield
    finally:
        parameter_sharing_context.pop()

"""Libraries of custom operators that are loaded when an operator is first asked for."""
from collections.abc import Callable

from caffe2.python import dyndep, lazy

_LAZY_IMPORTED_DYNDEPS: set[str] = set()
_error_handler: Callable[[BaseException], object] | None = None


def RegisterOpsLibrary(name: str) -> None:
    """Have the library at path `name` loaded when the registered operators are next needed."""
    _LAZY_IMPORTED_DYNDEPS.add(name)


def SetErrorHandler(handler: Callable[[BaseException], object] | None) -> None:
    """Set what is called with the exception of a library that fails to load.

    Without a handler the exception is raised where the operators are needed.
    """
    global _error_handler
    _error_handler = handler


def GetImportedOpsLibraries() -> set[str]:
    """Load what is registered and return the paths of all libraries loaded so far."""
    _import_lazy()
    return dyndep.GetImportedOpsLibraries()


def _import_lazy() -> None:
    while _LAZY_IMPORTED_DYNDEPS:
        name = _LAZY_IMPORTED_DYNDEPS.pop()
        try:
            dyndep.InitOpsLibrary(name, trigger_lazy=False)
        except Exception as error:
            if _error_handler is None:
                raise
            _error_handler(error)


lazy.RegisterLazyImport(_import_lazy)

"""Loading libraries of custom operators."""
import ctypes
import importlib.machinery
import importlib.util
import logging
import os
import sys
from threading import Lock

from caffe2.python import core, extension_loader

logger = logging.getLogger(__name__)

_IMPORTED_DYNDEPS: set[str] = set()
_lock = Lock()
_LOADERS = {
    ".py": importlib.machinery.SourceFileLoader,
    **dict.fromkeys(
        (".so", ".pyd", ".dylib", ".dll"), importlib.machinery.ExtensionFileLoader),
}


def InitOpsLibrary(name: str, trigger_lazy: bool = True) -> None:
    """Load a library of operators and make them known.

    The library is a Python module, compiled or not, that registers its operators when it is
    imported, or any shared library that registers them when it is loaded.

    Parameters
    ----------
    name : str
        Path of the library. A path that does not exist is ignored, so that a missing operator
        is reported where it is used.
    trigger_lazy : bool
        Whether lazily registered libraries are loaded too.
    """
    if not os.path.exists(name):
        logger.info("Ignoring %s as it is not a valid file.", name)
        return
    _init_impl(name, trigger_lazy)


def GetImportedOpsLibraries() -> set[str]:
    """Return the paths of the libraries loaded so far."""
    return _IMPORTED_DYNDEPS


def _init_impl(path: str, trigger_lazy: bool = True) -> None:
    with _lock:
        if path not in _IMPORTED_DYNDEPS:
            with extension_loader.DlopenGuard():
                _load(path)
            _IMPORTED_DYNDEPS.add(path)
        core.RefreshRegisteredOperators(trigger_lazy)


def _load(path: str) -> None:
    module_name = os.path.basename(path).split(".")[0]
    loader = _LOADERS.get(os.path.splitext(path)[1])
    if loader is None:
        ctypes.CDLL(path)
        return
    if loader is importlib.machinery.ExtensionFileLoader:
        if not hasattr(ctypes.CDLL(path), f"PyInit_{module_name}"):
            return
    spec = importlib.util.spec_from_file_location(
        module_name, path, loader=loader(module_name, path))
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(module_name, module)
    spec.loader.exec_module(module)

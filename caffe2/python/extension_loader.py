"""Loading shared libraries so that later ones see their symbols."""
import contextlib
import ctypes
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def DlopenGuard() -> Iterator[None]:
    """Load shared libraries with global symbols inside this context, where the system can."""
    if not hasattr(sys, "setdlopenflags"):
        yield
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | ctypes.RTLD_GLOBAL)
    try:
        yield
    finally:
        sys.setdlopenflags(flags)

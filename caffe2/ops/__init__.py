"""The operators. Importing this package registers them: every module in it is imported, none is listed."""
import importlib
import pkgutil

from caffe2._core.registry import CUDA, load_later

for _module in pkgutil.iter_modules(__path__):
    if _module.name not in ("kernels", "cuda"):
        importlib.import_module(f"{__name__}.{_module.name}")
del _module
load_later(CUDA, lambda: importlib.import_module("caffe2.ops.cuda"))

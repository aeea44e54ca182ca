"""The operators. Importing this package registers them: every module in it is imported, none is listed."""
import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    if _module.name != "kernels":
        importlib.import_module(f"{__name__}.{_module.name}")
del _module

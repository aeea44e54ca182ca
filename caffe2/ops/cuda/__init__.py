"""Operators on CUDA devices. Importing this package, as the first look-up of one does, registers them all."""
import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
del _module

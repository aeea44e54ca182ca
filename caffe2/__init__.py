"""Caffe2: nets that are data instead of code, and a small, fast engine that runs them."""


def __getattr__(name):
    if name == "__version__":
        from importlib.metadata import version

        return version("caffe2")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

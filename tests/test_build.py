"""What the build promises about the package."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "caffe2"
PARALLEL = [
    ".".join(p.relative_to(SOURCE.parent).with_suffix("").parts)
    for p in sorted(SOURCE.rglob("*.pyx"))
    if "prange" in p.read_text()
]


@pytest.mark.parametrize("module", [*PARALLEL, "caffe2.ops.kernels.dispatch"])
def test_threads_are_compiled_in(module):
    binary = Path(importlib.import_module(module).__file__).read_bytes()
    assert b"caffe2_team_run" in binary or b"__kmpc_fork_call" in binary


def test_imports_are_lazy():
    """Optional packages are imported at first use only."""
    optional = "IPython PIL lmdb matplotlib mpi4py onnx pycuda pydot scipy tensorboard torch"
    code = f"""if True:
        import sys
        import caffe2
        assert "numpy" not in sys.modules and "google.protobuf" not in sys.modules
        from caffe2.python import brew, cnn, core, model_helper, workspace
        print(*[m for m in {optional.split()} if m in sys.modules])"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert result.stdout.split() == []


def test_version():
    import caffe2

    assert caffe2.__version__.startswith("1.")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = caffe2.nonsense

"""These tests run on a CUDA device where there is one, else on an emulated one (tests/cuda/emulation)."""
import hashlib
from pathlib import Path

import pytest

from caffe2._core import cuda

HERE = Path(__file__).parent
EMULATION = HERE / "emulation"
REASON = cuda.unavailable()
_emulated = {}


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.cuda)


def pytest_report_header():
    return f"cuda: emulated ({REASON})" if REASON else f"cuda: {cuda.get_device(0)}"


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """Device 0, emulated where there is none."""
    if REASON is None:
        return cuda.get_device(0)
    monkeypatch.syspath_prepend(str(EMULATION))
    import cuda_emulation
    from pycuda import compiler

    shim = (EMULATION / "shim.h").read_text() + " ".join(compiler.OPTIONS)
    cache = cuda_emulation.CACHE / hashlib.sha256(shim.encode()).hexdigest()[:16]
    monkeypatch.setenv("CAFFE2_CUDA_CACHE", str(cache))
    monkeypatch.setenv("CUDA_HOME", str(EMULATION))         # any nvcc will do: it is not run
    monkeypatch.setattr("caffe2._core.cuda_compiler.find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(cuda, "LIBRARY", cuda_emulation.LIBRARY)
    monkeypatch.setattr(cuda, "_unavailable", None)
    yield cuda.get_device(0)
    cuda_emulation.MEMORY.check_all()

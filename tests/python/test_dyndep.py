"""Libraries of custom operators."""
import subprocess
import sys
import textwrap

import pytest

from caffe2.python import core, dyndep, lazy_dyndep

LIBRARY = """
from caffe2._core.operator import Operator
from caffe2._core.registry import register

class Twice(Operator):
    def execute(self):
        self.set_output(0, 2 * self.inputs[0].fetch())

register("Twice", Twice, 1, 1)
"""


@pytest.fixture
def registered(monkeypatch):
    """Note when the list of operators is refreshed."""
    calls = []
    monkeypatch.setattr(core, "RefreshRegisteredOperators", lambda *a: calls.append(a))
    monkeypatch.setattr(dyndep, "_IMPORTED_DYNDEPS", set())
    return calls


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "my_custom_ops.py"
    path.write_text("import sys\nsys.modules[__name__].loaded = __name__\n")
    yield str(path)
    sys.modules.pop("my_custom_ops", None)


def test_python_library(library, registered):
    dyndep.InitOpsLibrary(library)
    assert sys.modules["my_custom_ops"].loaded == "my_custom_ops"
    assert dyndep.GetImportedOpsLibraries() == {library}
    assert registered == [(True,)]


def test_operators_of_a_library(tmp_path):
    path = tmp_path / "twice.py"
    path.write_text(LIBRARY)
    result = subprocess.run([sys.executable, "-c", textwrap.dedent("""
        import sys
        import numpy as np
        from caffe2.python import core, dyndep, workspace
        net = core.Net("net")
        assert not core.IsOperator("Twice")
        dyndep.InitOpsLibrary(sys.argv[1])
        net.Twice("x", "y")
        workspace.FeedBlob("x", np.arange(3.0))
        workspace.RunNetOnce(net)
        print(workspace.FetchBlob("y"))
    """), str(path)], capture_output=True, text=True)
    assert result.stdout == "[0. 2. 4.]\n", result.stderr


def test_loaded_once(library, registered):
    dyndep.InitOpsLibrary(library)
    sys.modules["my_custom_ops"].loaded = "kept"
    dyndep.InitOpsLibrary(library)
    assert sys.modules["my_custom_ops"].loaded == "kept"


def test_missing_library_is_ignored(registered):
    dyndep.InitOpsLibrary("@/no/such:library")
    assert dyndep.GetImportedOpsLibraries() == set()


def test_broken_library(tmp_path, registered):
    path = tmp_path / "broken_ops.so"
    path.write_bytes(b"not a library")
    with pytest.raises(OSError):
        dyndep.InitOpsLibrary(str(path))
    assert dyndep.GetImportedOpsLibraries() == set()


def test_lazy(library, registered, monkeypatch):
    lazy_dyndep.RegisterOpsLibrary(library)
    assert "my_custom_ops" not in sys.modules
    assert lazy_dyndep.GetImportedOpsLibraries() == {library}
    assert "my_custom_ops" in sys.modules
    assert registered == [(False,)]


def test_lazy_error(tmp_path, registered):
    path = tmp_path / "broken_ops.py"
    path.write_text("raise KeyError('broken')")
    lazy_dyndep.RegisterOpsLibrary(str(path))
    with pytest.raises(KeyError):
        lazy_dyndep.GetImportedOpsLibraries()
    errors = []
    lazy_dyndep.SetErrorHandler(errors.append)
    try:
        lazy_dyndep.RegisterOpsLibrary(str(path))
        assert lazy_dyndep.GetImportedOpsLibraries() == set()
    finally:
        lazy_dyndep.SetErrorHandler(None)
    assert [type(e) for e in errors] == [KeyError]

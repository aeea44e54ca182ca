"""Helpers for tests of operators and nets."""

import unittest

import numpy as np

from caffe2.python import core, workspace


def rand_array(*dims: int) -> np.ndarray:
    """A float32 array, zero-dimensional without `dims`, uniform in [-0.5, 0.5)."""
    return np.asarray(np.random.rand(*dims) - 0.5, dtype=np.float32)


def randBlob(name: str, type: type, *dims: int, offset: float = 0.0) -> None:
    """Feed a blob with values uniform in [0, 1), plus `offset`."""
    workspace.FeedBlob(name, np.asarray(np.random.rand(*dims)).astype(type) + type(offset))


def randBlobFloat32(name: str, *dims: int, **kwargs: float) -> None:
    """`randBlob` with float32."""
    randBlob(name, np.float32, *dims, **kwargs)


def randBlobsFloat32(names: list[str], *dims: int, **kwargs: float) -> None:
    """`randBlobFloat32` for several blobs of one shape."""
    for name in names:
        randBlobFloat32(name, *dims, **kwargs)


def numOps(net: core.Net) -> int:
    """Number of operators of a net."""
    return len(net.Proto().op)


def str_compare(a: str | bytes, b: str | bytes, encoding: str = "utf8") -> bool:
    """Whether two strings are equal, be they decoded or not."""
    a, b = (s.decode(encoding) if isinstance(s, bytes) else s for s in (a, b))
    return a == b


def get_default_test_flags() -> list[str]:
    """Arguments that `TestCase` gives to GlobalInit."""
    return [
        "caffe2",
        "--caffe2_log_level=0",
        "--caffe2_cpu_allocator_do_zero_fill=0",
        "--caffe2_cpu_allocator_do_junk_fill=1",
    ]


class TestCase(unittest.TestCase):
    """Starts and ends each test with an empty workspace; `self.ws` is one more."""

    @classmethod
    def setUpClass(cls) -> None:
        workspace.GlobalInit(get_default_test_flags())
        # Preferences set elsewhere do not matter.
        core.SetEnginePref({}, {})

    def setUp(self) -> None:
        self.ws = workspace.C.Workspace()
        workspace.ResetWorkspace()

    def tearDown(self) -> None:
        workspace.ResetWorkspace()

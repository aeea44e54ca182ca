"""The pool of threads: many callers, pauses, forks; the loops themselves are tested with the operators."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from caffe2._core import threads
from caffe2.ops.kernels import dispatch

LEVEL = dispatch.level(dispatch.available()[-1])


def factors():
    """Of a float64 product and of a float32 batch."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((2, 96, 96)), rng.standard_normal((2, 12, 20, 20)).astype(np.float32)


def products(nth):
    """Of the factors; regions of the first have barriers, since they are packed first."""
    (a, b), (x, y) = factors()
    return LEVEL.gemm(a, b, np.empty_like(a), nth=nth), LEVEL.gemm_batch(x, y, np.empty_like(x), nth=nth)


@pytest.mark.parametrize("callers, nth", [(1, 2), (2, 2), (3, 5), (8, 3)])
def test_many_callers(callers, nth):
    one = products(1)

    def call(_):
        for _ in range(60):
            for ours, expected in zip(products(nth), one, strict=True):
                np.testing.assert_array_equal(ours, expected)
        return True

    with ThreadPoolExecutor(callers) as pool:
        assert all(pool.map(call, range(callers)))
    for ours, (a, b) in zip(one, factors(), strict=True):
        np.testing.assert_allclose(ours, a @ b, rtol=0, atol=1e-4)


def test_more_threads_than_the_pool_may_have():
    np.testing.assert_array_equal(products(300)[0], products(1)[0])


def test_after_pauses():
    """Threads are awake, or about to sleep, or sleep, when the next region comes."""
    expected = products(1)[0]
    for pause in [0, 1e-5, 1e-4, 4e-4, 5e-4, 6e-4, 2e-3] * 10:
        time.sleep(pause)
        np.testing.assert_array_equal(products(2)[0], expected)


def test_callers_come_and_go():
    """Workers outlive the thread that they were made for."""
    for _ in range(20):
        results = []
        thread = threading.Thread(target=lambda r=results: r.append(products(3)[0]))
        thread.start()
        thread.join()
        np.testing.assert_array_equal(results[0], products(1)[0])


# numpy multiplies no matrices here: the child would wait for a lock of its BLAS that a thread of the parent held.
FORK = """
import os, signal, sys, threading
sys.path.insert(0, {folder!r})
import numpy as np
from test_threads import products

expected = products(3)[0]
stop = threading.Event()
busy = [threading.Thread(target=lambda: [products(2) for _ in iter(stop.is_set, True)]) for _ in range(2)]
for thread in busy:
    thread.start()
for _ in range(20):
    pid = os.fork()
    if not pid:
        signal.alarm(20)        # ends a child that hangs
        ok = all(np.array_equal(products(n)[0], expected) for n in (1, 2, 4))
        os._exit(0 if ok else 3)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
stop.set()
for thread in busy:
    thread.join()
print("done")
"""


def test_fork():
    """A child has no threads of the pool but makes its own, whatever the parent's were doing."""
    code = FORK.format(folder=str(Path(__file__).parent))
    result = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], capture_output=True,
                            text=True, timeout=120)
    assert result.stdout == "done\n", result.stderr


def test_numbers_of_threads():
    before = threads.get_num_threads()
    try:
        threads.set_num_threads(3)
        assert threads.get_num_threads() == 3
        with pytest.raises(ValueError, match="must be positive, not 0"):
            threads.set_num_threads(0)
    finally:
        threads.set_num_threads(before)

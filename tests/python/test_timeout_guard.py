"""The time limit of calls that may hang."""
import subprocess
import sys
import textwrap
import threading

import pytest

from caffe2.python import timeout_guard


def run(code):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True,
        timeout=60)


def test_in_time():
    with timeout_guard.CompleteInTimeOrDie(60):
        watcher = next(
            t for t in threading.enumerate() if isinstance(t, timeout_guard.WatcherThread))
        assert watcher.daemon and not watcher.completed
    assert watcher.completed
    watcher.join(10)
    assert not watcher.is_alive()


def test_an_exception_ends_the_watch():
    with pytest.raises(ValueError), timeout_guard.CompleteInTimeOrDie(60):
        raise ValueError
    assert all(t.completed for t in threading.enumerate()
               if isinstance(t, timeout_guard.WatcherThread))


def test_too_late_is_interrupted():
    result = run("""
        import time
        from caffe2.python import timeout_guard
        try:
            with timeout_guard.CompleteInTimeOrDie(0.05):
                time.sleep(30)
        except KeyboardInterrupt:
            print("interrupted")
    """)
    assert result.returncode == 0
    assert result.stdout == "interrupted\n"
    assert "did not finish in time" in result.stderr
    assert "time.sleep" not in result.stderr and "<module>" in result.stderr


def test_aborted_when_it_ignores_the_interrupt():
    result = run("""
        import signal, time
        from caffe2.python import timeout_guard
        timeout_guard.GRACE_SECONDS = 0.05
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        timeout_guard.EuthanizeIfNecessary(0.05)
        time.sleep(30)
    """)
    assert result.returncode < 0
    assert "forcing" in result.stderr

"""A time limit for calls that may hang in a device or a network.

Examples
--------
>>> from caffe2.python import timeout_guard
>>> with timeout_guard.CompleteInTimeOrDie(10.0):
...     done = True
"""
import contextlib
import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Iterator

logger = logging.getLogger("timeout_guard")

GRACE_SECONDS = 10.0


class WatcherThread(threading.Thread):
    """Ends the process unless `complete` is called in time.

    The stacks of all threads are written first. Then the process is interrupted, and aborted
    if that does not help.

    Parameters
    ----------
    timeout_secs : float
    """

    def __init__(self, timeout_secs: float):
        super().__init__(daemon=True)
        self.timeout_secs = timeout_secs
        self.caller_thread = threading.current_thread()
        self._completed = threading.Event()

    @property
    def completed(self) -> bool:
        return self._completed.is_set()

    def complete(self) -> None:
        """Let the process live."""
        self._completed.set()

    def run(self) -> None:
        """Wait."""
        if self._completed.wait(self.timeout_secs):
            return
        logger.error("Call of %s did not finish in time. Timeout: %ss PID: %s",
                     self.caller_thread.name, self.timeout_secs, os.getpid())
        faulthandler.dump_traceback(all_threads=True)
        os.kill(os.getpid(), signal.SIGINT)
        if not self._completed.wait(GRACE_SECONDS):
            logger.error("Process did not terminate in %s s, forcing", GRACE_SECONDS)
            faulthandler.dump_traceback(all_threads=True)
            os.abort()


@contextlib.contextmanager
def CompleteInTimeOrDie(timeout_secs: float) -> Iterator[None]:
    """End the process if this context is not left in time."""
    watcher = WatcherThread(timeout_secs)
    watcher.start()
    try:
        yield
    finally:
        watcher.complete()


def EuthanizeIfNecessary(timeout_secs: float = 120) -> None:
    """End the process if it still runs after a time; for programs that hang at their end."""
    WatcherThread(timeout_secs).start()

"""A log of a training run, as comma-separated values."""
import abc
import datetime
import logging
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

logger = logging.getLogger(__name__)


class ExternalLogger(abc.ABC):
    """A further destination of the log."""

    @abc.abstractmethod
    def set_runtime_args(self, runtime_args: dict) -> None:
        """Take the arguments of the run."""

    @abc.abstractmethod
    def log(self, log_dict: dict) -> None:
        """Take one entry."""


class ModelTrainerLog:
    """Writes the arguments of a run and one line for each call of `log`.

    Parameters
    ----------
    expname : str
        Begins the name of the file, which ends in the time and ``.log``.
    runtime_args : dict or namespace
        Arguments of the run.
    external_loggers : iterable of ExternalLogger, optional
    """

    def __init__(
            self, expname: str, runtime_args: Any,
            external_loggers: Iterable[ExternalLogger] | None = None):
        self.experiment_id = f"{expname}_{datetime.datetime.now():%Y%m%d_%H%M%S}"
        self.filename = f"{self.experiment_id}.log"
        self.logstr(f"# {runtime_args}")
        self.headers: list[str] | None = None
        self.start_time = self.last_time = time.time()
        self.last_input_count = 0
        self.external_loggers = list(external_loggers or ())
        if self.external_loggers:
            args = runtime_args if isinstance(runtime_args, dict) else vars(runtime_args)
            args = {**args, "experiment_id": self.experiment_id,
                    "hostname": socket.gethostname()}
            for external in self.external_loggers:
                external.set_runtime_args(args)

    def logstr(self, str: str) -> None:
        """Write a line."""
        with open(self.filename, "a") as f:
            f.write(str + "\n")
        logging.getLogger("experiment_logger").info(str)

    def log(self, input_count: int, batch_count: int, additional_values: Mapping) -> None:
        """Write an entry.

        Parameters
        ----------
        input_count, batch_count : int
            Since the start of the run.
        additional_values : dict
            Further columns, the same at every call.
        """
        now = time.time()
        seconds, inputs = now - self.last_time, input_count - self.last_input_count
        self.last_time, self.last_input_count = now, input_count
        entry = {
            "time_spent": seconds,
            "cumulative_time_spent": now - self.start_time,
            "input_count": inputs,
            "cumulative_input_count": input_count,
            "cumulative_batch_count": batch_count,
            "inputs_per_sec": inputs / seconds if seconds > 0 else 0.0,
            **dict(sorted(additional_values.items())),
        }
        if self.headers is None:
            self.headers = list(entry)
            self.logstr(",".join(self.headers))
        self.logstr(",".join(map(str, entry.values())))
        for external in self.external_loggers:
            try:
                external.log(entry)
            except Exception:  # the run is worth more than its log
                logger.exception("External logger %r failed", external)

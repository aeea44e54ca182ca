"""The log of a training run."""
import argparse
import csv
import logging

import pytest

from caffe2.python.experiment_util import ExternalLogger, ModelTrainerLog


class Recorder(ExternalLogger):
    def __init__(self):
        self.args, self.entries = None, []

    def set_runtime_args(self, runtime_args):
        self.args = runtime_args

    def log(self, log_dict):
        self.entries.append(log_dict)


class Broken(Recorder):
    def log(self, log_dict):
        raise OSError("down")


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_file():
    log = ModelTrainerLog("run", {"lr": 0.1})
    log.log(64, 1, {"loss": 2.5, "accuracy": 0.25})
    log.log(192, 3, {"accuracy": 0.5, "loss": 1.5})
    with open(log.filename) as f:
        assert f.readline() == "# {'lr': 0.1}\n"
        first, second = csv.DictReader(f)
    assert log.filename.startswith("run_")
    assert list(first)[-2:] == ["accuracy", "loss"]
    assert (first["input_count"], second["input_count"]) == ("64", "128")
    assert (second["cumulative_input_count"], second["cumulative_batch_count"]) == ("192", "3")
    assert (second["loss"], second["accuracy"]) == ("1.5", "0.5")
    assert float(second["cumulative_time_spent"]) >= float(first["cumulative_time_spent"])


def test_external_loggers(caplog):
    recorder = Recorder()
    args = argparse.Namespace(lr=0.1)
    log = ModelTrainerLog("run", args, [Broken(), recorder])
    assert recorder.args["lr"] == 0.1
    assert recorder.args["experiment_id"] == log.experiment_id
    assert recorder.args["hostname"]
    with caplog.at_level(logging.ERROR):
        log.log(10, 1, {"loss": 1.0})
    assert recorder.entries[0]["loss"] == 1.0
    assert "Broken" in caplog.text and "down" in caplog.text


def test_external_logger_is_abstract():
    with pytest.raises(TypeError):
        ExternalLogger()

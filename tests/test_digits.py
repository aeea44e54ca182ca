"""The main job: train, save, load in a fresh process, classify."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples/digits.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("db_type, net_type", [("minidb", "simple"), ("lmdb", "dag")])
def test_short_run(tmp_path, db_type, net_type):
    output = tmp_path / "new" / "folder"
    result = run("--db-type", db_type, "--net-type", net_type, "--epochs", 1,
                 "--batch-size", 32, "--output", output)
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in output.iterdir()) == [
        "init_net.pb", "predict_net.pb", f"test.{db_type}", f"train.{db_type}",
        "training_curve.png"]
    assert (output / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"epoch 1/1  loss \d\.\d+  held-out accuracy", result.stderr)

    trained = re.search(r"1 epochs in .* held-out accuracy (\S+) %", result.stdout)
    classified = re.search(r"of 360 are right: (\S+) %", result.stdout)
    assert float(trained[1]) > 94
    assert classified[1] == trained[1]

    again = run("classify", "--db-type", db_type, "--output", output)
    assert again.returncode == 0, again.stderr
    assert again.stdout == result.stdout[-len(again.stdout):]


def test_help():
    text = " ".join(run("--help").stdout.split())
    for flag in ("--db-type", "--epochs", "--batch-size", "--net-type", "--device", "--seed", "--output"):
        assert re.search(rf"{flag} \S+ \S.*?\(default \S+\)", text), flag


@pytest.mark.parametrize("arguments, message", [
    (["--epochs", "0"], "must be at least 1"),
    (["--batch-size", "100000"], "must be at most 5748"),
    (["classify"], "init_net.pb is missing"),
    (["--db-type", "nothing"], "invalid choice"),
])
def test_wrong_use(tmp_path, arguments, message):
    result = run("--output", tmp_path, *arguments)
    assert result.returncode != 0
    assert message in result.stderr and "Traceback" not in result.stderr

"""Shared by all tests."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Timing on a shared machine says nothing about the code under test.
settings.register_profile("caffe2", deadline=None)
settings.load_profile("caffe2")

# Some test Ctrl-C; a shell that starts the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Python programs that tests start find the package that is installed, not the source folder they stand in.
os.environ["PYTHONSAFEPATH"] = "1"

CASES = Path(__file__).parent / "conformance/cases"


def pytest_report_header():
    from caffe2.python import workspace

    recorded = {p.stem for p in CASES.glob("*.npz")}
    here = recorded & set(workspace.RegisteredOperators())
    return f"caffe2: {len(here)} of {len(recorded)} operators with recorded cases are registered"


@pytest.fixture(autouse=True)
def fresh_workspace():
    from caffe2.python import workspace

    workspace.SwitchWorkspace("default", True)
    workspace.ResetWorkspace()

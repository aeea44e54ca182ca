#!/usr/bin/env python3
"""Set everything up in .venv, then run something. Needs Python, pip and a C compiler only.

usage: run.py digits [ARGUMENT ...]    train, save and reload a classifier (examples/digits.py)
       run.py tests  [ARGUMENT ...]    the tests (pytest)

Further arguments go to the program that is run. A later call rebuilds only what has changed.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv/bin"
FOLDER = "--config-settings=build-dir=build/run"

# name: the extra that it needs, the command. Not `python -m pytest`, which would import the source
# folder instead of the package that was installed.
TASKS = {
    "digits": ("draw", [BIN / "python", "examples/digits.py"]),
    "tests": ("test", [BIN / "pytest", "-n", "2"]),
}


def run(*command):
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=ROOT, env=environment)
    if result.returncode:
        sys.exit(result.returncode)


def pip(*arguments):
    run(sys.executable, "-m", "pip", "--python", BIN / "python", *arguments)


def install(extra):
    """Build in one folder that is kept, and install into .venv."""
    if not (BIN / "python").exists():
        run(sys.executable, "-m", "venv", "--without-pip", ROOT / ".venv")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pip("install", "--quiet", "ninja", *project["build-system"]["requires"])
    print("building caffe2 (the first time takes some minutes)", flush=True)
    pip("install", "--quiet", "--no-build-isolation", FOLDER, f".[{extra}]")


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in TASKS:
        sys.exit(__doc__)
    extra, command = TASKS[sys.argv[1]]
    install(extra)
    run(*command, *sys.argv[2:])


if __name__ == "__main__":
    main()

"""What the build finds in caffe2/; called by meson.build, prints one name a line."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "caffe2"
SOURCES = {".pyx", ".pxd", ".pxi", ".c", ".h", ".build", ".in"}


def packages():
    """Folders with compiled modules. `ops/kernels` comes first: the others may cimport it."""
    found = {p.parent.relative_to(ROOT).as_posix() for p in PACKAGE.rglob("*.pyx")}
    return sorted(found | {"caffe2/ops/kernels"}, key=lambda p: (p != "caffe2/ops/kernels", p))


def modules(package):
    return sorted(p.stem for p in (ROOT / package).glob("*.pyx"))


def kernels():
    """C sources that are compiled once for each instruction set."""
    folder = PACKAGE / "ops/kernels"
    return sorted(p.name for p in folder.glob("*.c") if p.name != "dispatch.c")


def protos():
    return sorted(p.stem for p in (ROOT / "proto").glob("*.proto"))


def excluded():
    """Files under caffe2/ that are not installed."""
    files = (p for p in PACKAGE.rglob("*") if p.suffix in SOURCES)
    return sorted(p.relative_to(PACKAGE).as_posix() for p in files)


def excluded_directories():
    return sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("__pycache__"))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    print(*globals()[command](*arguments), sep="\n")

"""The examples in docstrings do what they say."""
import doctest
import importlib
from pathlib import Path

import pytest

import caffe2.python

FOLDER = Path(caffe2.python.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for path in FOLDER.rglob("*.py") if ">>>" in path.read_text())


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"caffe2.python.{name}"))
    assert result.attempted > 0 and result.failed == 0

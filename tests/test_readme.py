"""The README's code runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("code", BLOCKS)
def test_example(code, capsys):
    np.random.seed(0)
    exec(compile(code, str(README), "exec"), {})
    assert float(capsys.readouterr().out) < 2.3  # log(10), a guess's loss

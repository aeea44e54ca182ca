"""The table of layers, which needs no peer; what runs beside peers is tested by `pytest bench`."""
import layers
import pytest

from caffe2._core import predictor


@pytest.mark.parametrize("arguments, title", [
    (["squeezenet"], "squeezenet, batch 1"),
    (["lenet", "--train", "--batch", "2"], "lenet, batch 2, training"),
], ids=["inference", "training"])
def test_layers(arguments, title, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["layers.py", *arguments, "--rounds", "1"])
    monkeypatch.setattr(predictor, "BATCH_MEMORY", predictor.BATCH_MEMORY)    # which it changes
    layers.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == title
    assert any(" Conv" in line and line.count("%") for line in lines)

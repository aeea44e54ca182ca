"""Print, NanCheck, EnforceFinite, Assert, Summarize, Free and WallClockTime."""

import shutil
import time

import numpy as np
import pytest

from caffe2.python import core, workspace
from opcheck import gradients, run

F = np.float32


def once(op, inputs, outputs=(), **args):
    workspace.RunOperatorOnce(core.CreateOperator(op, inputs, list(outputs), **args))


@pytest.fixture(autouse=True)
def folder(tmp_path):
    """Operators write into a folder that goes away."""
    workspace.ResetWorkspace(str(tmp_path))


def _log(name):
    with open(f"{workspace.RootFolder()}/{name}") as f:
        return f.read()


# ---------------------------------------------------------------- Print


@pytest.mark.parametrize("value, line", [
    (F([[1.5, 2], [3, 4]]), "Tensor x of type float32. Dims: (2,2): 1.5,2.0,3.0,4.0"),
    (np.array([True, False]), "Tensor x of type bool. Dims: (2): True,False"),
    (np.array(7), "Tensor x of type int64. Dims: (): 7"),
    (np.array([b"one", b"\xff"], object), "Tensor x of type string. Dims: (2): one,\\xff"),
    (np.empty((0, 3), np.int32), "Tensor x of type int32. Dims: (0,3): "),
    (F([np.nan, np.inf]), "Tensor x of type float32. Dims: (2): nan,inf"),
])
def test_print(capfd, value, line):
    workspace.FeedBlob("x", value)
    once("Print", ["x"])
    assert capfd.readouterr().err == line + "\n"


def test_print_limits():
    workspace.FeedBlob("x", np.arange(2000, dtype=np.int32))
    once("Print", ["x"], to_file=1)
    assert _log("x.log").count(",") == 999
    once("Print", ["x"], to_file=1, limit=3)
    assert _log("x.log").endswith(": 0,1,2\n")


def test_print_every_n(capfd):
    net = core.Net("print")
    net.Print("x", [], every_n=3)
    workspace.FeedBlob("x", F([1]))
    workspace.CreateNet(net)
    workspace.RunNet(net, 7)
    assert capfd.readouterr().err.count("Tensor x") == 3


def test_print_to_file(capfd):
    net = core.Net("print")
    net.Print("scope/x", [], to_file=1)
    for value in (1, 2):
        workspace.FeedBlob("scope/x", F([value]))
        if value == 1:
            workspace.CreateNet(net)
        workspace.RunNet(net)
    assert _log("scope#x.log").splitlines() == [
        f"Tensor scope/x of type float32. Dims: (1): {v}.0" for v in (1, 2)]
    assert capfd.readouterr().err == ""


def test_print_of_what_is_no_tensor(capfd):
    once("CreateCounter", [], ["counter"], init_count=1)
    once("Print", ["counter"])
    assert "counter" in capfd.readouterr().err


def test_print_refuses():
    workspace.FeedBlob("x", F([1]))
    with pytest.raises(RuntimeError, match="every_n.*Print.*x"):
        once("Print", ["x"], every_n=0)
    shutil.rmtree(workspace.RootFolder())
    with pytest.raises(RuntimeError, match="x.log.*Print.*x"):
        once("Print", ["x"], to_file=1)


# ---------------------------------------------------------------- NanCheck, EnforceFinite, Assert


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("x", [F([[1, -2]]), np.array([1.0, 2]), np.array([1, 2]), np.empty((0, 2), F)])
def test_nan_check_copies(x, in_place):
    (y,) = run("NanCheck", x, inplace={0: 0} if in_place else None)
    np.testing.assert_array_equal(y, x)
    assert y.dtype == x.dtype


def test_nan_check_gradient():
    run("NanCheck", F([1, 2]), F([3]))
    dx, other = gradients("NanCheck", [F([1, 2]), F([3])], [F([4, 5])])
    np.testing.assert_array_equal(dx, [4, 5])
    assert other is None
    with pytest.raises(RuntimeError, match="not finite.*NanCheck"):
        gradients("NanCheck", [F([1, 2])], [F([4, np.nan])])


@pytest.mark.parametrize("bad, name", [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("op, outputs", [("NanCheck", 1), ("EnforceFinite", 0)])
def test_not_finite(op, outputs, bad, name):
    x = np.zeros((2, 3), F)
    x[1, 0] = x[1, 2] = bad
    with pytest.raises(RuntimeError, match=rf"x0 has 2 values.*{name} at \[1, 0\].*{op}\(x0 float\[2, 3\]"):
        run(op, x, outputs=outputs)


@pytest.mark.parametrize("op, outputs", [("NanCheck", 1), ("EnforceFinite", 0)])
def test_not_numbers(op, outputs):
    with pytest.raises(RuntimeError, match=f"numbers.*{op}"):
        run(op, np.array([b"a"], object), outputs=outputs)


def test_nan_check_looks_at_the_others_only_when_it_fails():
    good, bad = F([1, 2]), F([np.nan])
    (y,) = run("NanCheck", good, bad, np.array([1]))
    np.testing.assert_array_equal(y, good)
    with pytest.raises(RuntimeError, match="x0 has 1 values.*; x1 has 1 values.*NanCheck"):
        run("NanCheck", bad, bad, np.array([1]), np.array([b"a"], object))


@pytest.mark.parametrize("dtype", [bool, np.int32, np.int64])
def test_assert(dtype):
    run("Assert", np.ones((2, 2), dtype), outputs=0)
    run("Assert", np.ones(0, dtype), outputs=0)
    x = np.ones(4, dtype)
    x[2] = 0
    with pytest.raises(RuntimeError, match="element 2 of x0: some text.*Assert"):
        run("Assert", x, outputs=0, error_msg="some text")


def test_assert_refuses():
    with pytest.raises(RuntimeError, match="x0.*float32.*Assert"):
        run("Assert", F([1]), outputs=0)


# ---------------------------------------------------------------- Summarize


def test_summarize():
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(F)
    (y,) = run("Summarize", x, to_file=1)
    expected = [x.min(), x.max(), x.mean(), x.std(ddof=1)]
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    np.testing.assert_allclose([float(v) for v in _log("x0.summary").split()], expected, rtol=1e-5)


def test_summarize_one():
    (y,) = run("Summarize", F([3]))
    np.testing.assert_array_equal(y, [3, 3, 3, 0])


def test_summarize_without_output():
    workspace.FeedBlob("scope/x", F([1, 3]))
    once("Summarize", ["scope/x"])
    once("Summarize", ["scope/x"], to_file=1)
    np.testing.assert_allclose([float(v) for v in _log("scope#x.summary").split()], [1, 3, 2, np.sqrt(2)], rtol=1e-6)


def test_summarize_what_is_not_finite():
    (y,) = run("Summarize", F([1, np.inf]))
    np.testing.assert_array_equal(y[:3], [1, np.inf, np.inf])


@pytest.mark.parametrize("x", [np.ones(2), np.ones(2, np.int32), np.empty(0, F), np.array([b"a"], object)])
def test_summarize_refuses(x):
    with pytest.raises(RuntimeError, match="x0.*Summarize"):
        run("Summarize", x)


# ---------------------------------------------------------------- Free, WallClockTime


def test_free():
    for name in "ab":
        workspace.FeedBlob(name, F([1]))
    once("Free", ["a", "b"], ["a", "b"])
    for name in "ab":
        assert workspace.HasBlob(name)
        with pytest.raises(RuntimeError, match=name):
            workspace.FetchBlob(name)
    workspace.FeedBlob("a", F([2]))
    np.testing.assert_array_equal(workspace.FetchBlob("a"), [2])


def test_free_wants_the_same_blob():
    workspace.FeedBlob("a", F([1]))
    with pytest.raises(RuntimeError, match="same blob.*Free"):
        once("Free", ["a"], ["b"])


def test_wall_clock_time():
    before = time.time_ns()
    (y,) = run("WallClockTime")
    assert before <= y <= time.time_ns() and y.dtype == np.int64

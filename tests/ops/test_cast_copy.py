"""Casts and copies."""

import numpy as np
import pytest

from caffe2.python import core, workspace
from opcheck import DTYPES, NUMBERS, gradients, run, strings


@pytest.mark.parametrize("to", NUMBERS, ids=str)
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_cast(dtype, to):
    x = np.array([0, 1, 2, 3.75, 100, 0.5, 7] * 50).astype(dtype)
    (y,) = run("Cast", x, to=DTYPES[to])
    np.testing.assert_array_equal(y, x.astype(to), strict=True)


@pytest.mark.parametrize("to", [np.int8, np.uint8, np.uint16, np.int32, np.int64, np.float64, np.float16], ids=str)
def test_cast_integers_wrap(to):
    x = np.array([-1, 300, -70000, 2**20], np.int32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(run("Cast", x, to=DTYPES[np.dtype(to)])[0], x.astype(to))


def test_cast_large_and_special():
    x = np.random.default_rng(0).standard_normal(300001).astype("f")
    np.testing.assert_array_equal(run("Cast", x, to=core.DataType.DOUBLE)[0], x.astype(float))
    np.testing.assert_array_equal(run("Cast", x, to=core.DataType.FLOAT16)[0], x.astype(np.float16))
    x = np.array([np.inf, -np.inf, np.nan, 65504, 65519.9, 65520, 1e-8, 6e-8, -0.0], "f")
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    np.testing.assert_array_equal(run("FloatToHalf", x)[0], half)
    np.testing.assert_array_equal(run("HalfToFloat", half)[0], half.astype("f"))
    np.testing.assert_array_equal(
        run("Cast", np.float32([np.nan, -0.0, 1e-30]), to=core.DataType.BOOL)[0], [True, False, True]
    )


def test_every_half():
    bits = np.arange(65536, dtype=np.uint16).view(np.float16)
    (y,) = run("Cast", bits, to="float")
    np.testing.assert_array_equal(y, bits.astype("f"))
    np.testing.assert_array_equal(run("Cast", y, to="FLOAT16")[0], bits)


def test_cast_to_strings():
    np.testing.assert_array_equal(run("Cast", np.int64([-3, 2**60]), to="string")[0], strings([b"-3", b"%d" % 2**60]))
    np.testing.assert_array_equal(run("Cast", np.float32([0.5]), to="string")[0], strings([b"0.500000"]))
    x = strings([b"a"])
    np.testing.assert_array_equal(run("Cast", x, to="string")[0], x)
    with pytest.raises(RuntimeError, match="string"):
        run("Cast", x, to="float")


@pytest.mark.parametrize("args", [{}, {"to": "complex"}, {"to": 99}, {"to": 0}, {"to": 3}, {"to": 1.5}])
def test_cast_refuses(args):
    with pytest.raises(RuntimeError, match="to"):
        run("Cast", np.zeros(2), **args)


def test_cast_gradient():
    x = np.float64([1, 2])
    run("Cast", x, to="float", from_type="double")
    (grad,) = gradients("Cast", [x], [np.float32([3, 4])], to="float", from_type="double")
    np.testing.assert_array_equal(grad, np.float64([3, 4]), strict=True)
    with pytest.raises(Exception, match="from_type"):
        gradients("Cast", [x], [np.float32([3, 4])], to="float")


@pytest.mark.parametrize(
    "op", ["Copy", "CopyFromCPUInput", "EnsureCPUOutput", "StopGradient", "EnsureDense", "Alias", "AliasWithName"]
)
@pytest.mark.parametrize(
    "x", [np.float32([[1], [2]]), strings([b"a", b""]), np.zeros((0, 3), np.int8)], ids=["float", "string", "empty"]
)
def test_copies(op, x):
    np.testing.assert_array_equal(run(op, x)[0], x, strict=True)


def test_copy_is_one_and_alias_is_none():
    for op, shared in (("Copy", False), ("Alias", True)):
        run(op, np.float32([1, 2]))
        workspace.RunOperatorOnce(core.CreateOperator("ConstantFill", ["x0"], ["x0"], value=5.0))
        np.testing.assert_array_equal(workspace.FetchBlob("y0"), [5, 5] if shared else [1, 2])


def test_alias_outlives_its_source():
    for x in (np.float32([1, 2]), strings([b"a", b"b"])):
        run("Alias", x)
        workspace.FeedBlob("x0", np.zeros((100, 100)))
        np.testing.assert_array_equal(workspace.FetchBlob("y0"), x)


def test_strings_through_aliases():
    """Operators that move strings between two views of one memory."""
    run("Alias", strings([b"%d" % i for i in range(20)]))
    workspace.FeedBlob("i", np.arange(20)[::-1].copy())
    for _ in range(3):
        workspace.RunOperatorOnce(core.CreateOperator("Gather", ["x0", "i"], ["y0"]))
        workspace.RunOperatorOnce(core.CreateOperator("Copy", ["y0"], ["x0"]))
        assert all(isinstance(v, bytes) for v in workspace.FetchBlob("x0"))


def test_copy_gradients():
    x, g = np.float32([1, 2]), np.float32([3, 4])
    run("Copy", x)
    np.testing.assert_array_equal(gradients("Copy", [x], [g])[0], g)
    np.testing.assert_array_equal(gradients("Alias", [x], [g])[0], g)
    np.testing.assert_array_equal(gradients("AliasWithName", [x], [g], name="a")[0], g)
    assert gradients("StopGradient", [x], [g]) == [None]
    np.testing.assert_array_equal(run("CopyOnDeviceLike", x, g)[0], x)


def test_ensure_dense_gradient():
    """A sparse gradient becomes a dense one."""
    from caffe2.python.core import GradientRegistry, GradientSlice

    x = np.ones((3, 2), "f")
    run("EnsureDense", x)
    workspace.FeedBlob("i", np.array([2, 0, 2]))
    workspace.FeedBlob("v", np.ones((3, 2), "f"))
    op = core.CreateOperator("EnsureDense", ["x0"], ["y0"])
    ops, (grad,) = GradientRegistry.GetGradientForOp(op, [GradientSlice("i", "v")])
    for o in ops:
        workspace.RunOperatorOnce(o)
    np.testing.assert_array_equal(workspace.FetchBlob(grad), [[1, 1], [0, 0], [2, 2]])


def test_gpu_copies_need_a_gpu():
    workspace.FeedBlob("x0", np.zeros(2))
    for op in ("CopyCPUToGPU", "CopyGPUToCPU"):
        with pytest.raises(RuntimeError, match="CPU"):
            workspace.RunOperatorOnce(core.CreateOperator(op, ["x0"], ["y"]))


def test_ensure_clipped():
    x = np.float32([[-3, 0.5], [2, 5], [-9, 9]])
    np.testing.assert_array_equal(run("EnsureClipped", x, min=-1.0, max=1.0)[0], np.clip(x, -1, 1))
    (y,) = run("EnsureClipped", x, np.array([2, 0]), np.zeros((2, 2), "f"), inplace={0: 0}, min=-1.0, max=4.0)
    np.testing.assert_array_equal(y, [[-1, 0.5], [2, 5], [-1, 4]])
    with pytest.raises(RuntimeError, match="range"):
        run("EnsureClipped", x, np.array([3]), np.zeros((1, 2), "f"), inplace={0: 0})
    with pytest.raises(RuntimeError, match="in place"):
        run("EnsureClipped", x, np.array([1]), np.zeros((1, 2), "f"))

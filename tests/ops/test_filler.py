"""Fillers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from caffe2.python import core, workspace
from opcheck import DTYPES, NUMBERS, run, strings


@given(array_shapes(min_dims=0, max_dims=4, min_side=0), st.sampled_from(NUMBERS))
def test_constant(shape, dtype):
    value = 1 if dtype.kind == "b" else 5
    value = float(value) if dtype.kind == "f" else value
    (y,) = run("ConstantFill", shape=shape, dtype=DTYPES[dtype], value=value)
    np.testing.assert_array_equal(y, np.full(shape, value, dtype), strict=True)


@pytest.mark.parametrize("value, dtype", [(2.5, np.float32), (2**40, np.int64), (None, np.float32)])
def test_constant_takes_the_type_of_its_value(value, dtype):
    args = {} if value is None else {"value": value}
    np.testing.assert_array_equal(run("ConstantFill", shape=[2], **args)[0], np.full(2, value or 0, dtype), strict=True)


def test_constant_strings():
    (y,) = run("ConstantFill", shape=[2, 1], dtype=core.DataType.STRING, value="a")
    np.testing.assert_array_equal(y, strings([[b"a"], [b"a"]]))
    assert run("ConstantFill", shape=[1], value=b"b")[0] == b"b"


def test_shape_from_input():
    x = np.zeros((2, 3), np.int8)
    np.testing.assert_array_equal(run("ConstantFill", x, extra_shape=[2], value=1.0)[0], np.ones((2, 3, 2)))
    for dtype in (np.int32, np.int64):
        (y,) = run("ConstantFill", np.array([2, 0], dtype), input_as_shape=1, extra_shape=[4])
        assert y.shape == (2, 0, 4)
    np.testing.assert_array_equal(run("ConstantFill", x, inplace={0: 0}, value=3.0)[0], np.full((2, 3), 3, "f"))


def test_value_from_input():
    (y,) = run("ConstantFill", np.zeros(2), np.float32([4]))
    np.testing.assert_array_equal(y, np.float32([4, 4]))
    with pytest.raises(RuntimeError, match="float"):
        run("ConstantFill", np.zeros(2), np.array([4]))


@pytest.mark.parametrize(
    "inputs, args",
    [
        ((np.zeros(2),), {"shape": [2]}),
        ((), {"shape": [2], "extra_shape": [1]}),
        ((), {"input_as_shape": 1}),
        ((np.zeros((2, 2), int),), {"input_as_shape": 1}),
        ((np.zeros(2, "f"),), {"input_as_shape": 1}),
        ((), {"shape": [-1]}),
        ((), {"shape": [2**40, 2**40]}),
        ((), {"shape": [1] * 17}),
        ((), {"shape": [1], "dtype": 7, "value": 1000}),
        ((), {"shape": [1], "dtype": 99}),
        ((np.arange(17),), {"input_as_shape": 1}),
    ],
)
def test_constant_refuses(inputs, args):
    with pytest.raises(RuntimeError, match="ConstantFill"):
        run("ConstantFill", *inputs, **args)


def test_diagonal():
    np.testing.assert_array_equal(run("DiagonalFill", shape=[3, 4], value=2.0)[0], 2 * np.eye(3, 4))
    (y,) = run("DiagonalFill", shape=[3, 3, 3], value=7)
    want = np.zeros((3, 3, 3), int)
    want[range(3), range(3), range(3)] = 7
    np.testing.assert_array_equal(y, want)
    for shape in ([3], [2, 2, 3]):
        with pytest.raises(RuntimeError, match="dimensions"):
            run("DiagonalFill", shape=shape)


@pytest.mark.parametrize(
    "op, dtype, values",
    [
        ("GivenTensorFill", np.float32, [1.5, -2.0]),
        ("GivenTensorDoubleFill", np.float64, [0.25, 2.0]),
        ("GivenTensorBoolFill", np.bool_, [1, 0]),
        ("GivenTensorInt16Fill", np.int16, [-3, 4]),
        ("GivenTensorIntFill", np.int32, [-3, 2**31 - 1]),
        ("GivenTensorInt64Fill", np.int64, [2**60, 1]),
    ],
)
def test_given(op, dtype, values):
    np.testing.assert_array_equal(
        run(op, shape=[2, 1], values=values)[0], np.array(values, dtype)[:, None], strict=True
    )
    with pytest.raises(RuntimeError, match="values"):
        run(op, shape=[3], values=values)


def test_given_strings_and_dtype():
    np.testing.assert_array_equal(
        run("GivenTensorStringFill", shape=[2], values=["a", "bc"])[0], strings([b"a", b"bc"])
    )
    (y,) = run("GivenTensorByteStringToUInt8Fill", shape=[3], values=[b"\x00\xff\x01"])
    np.testing.assert_array_equal(y, np.uint8([0, 255, 1]))
    (y,) = run("GivenTensorFill", shape=[2], values=[3, 4], dtype=core.DataType.INT64)
    np.testing.assert_array_equal(y, np.int64([3, 4]), strict=True)
    with pytest.raises(RuntimeError, match="values"):
        run("GivenTensorFill", shape=[0])


def test_scales():
    (y,) = run("XavierFill", shape=[40, 30, 10])
    assert 0.95 < np.abs(y).max() / np.sqrt(3 / 300) <= 1
    (y,) = run("MSRAFill", shape=[40, 30, 10])
    assert abs(y.std() / np.sqrt(2 / 400) - 1) < 0.05
    (y,) = run("GaussianFill", shape=[10000], mean=3.0, std=0.5)
    assert abs(y.mean() - 3) < 0.05 and abs(y.std() - 0.5) < 0.05
    for op, shape in (("XavierFill", []), ("MSRAFill", [3])):
        with pytest.raises(RuntimeError, match="dimension"):
            run(op, shape=shape)
        assert run(op, shape=[0, 0])[0].shape == (0, 0)


def test_bounds():
    shape = np.array([50, 2])
    (y,) = run("UniformFill", shape, np.float32(2), np.float32(3), input_as_shape=1)
    assert y.shape == (50, 2) and y.min() >= 2 and y.max() <= 3
    (y,) = run("UniformIntFill", shape, np.int32([2]), np.int32([3]), input_as_shape=1)
    assert set(y.ravel().tolist()) == {2, 3}
    workspace.ResetWorkspace()
    for name, x in (("x0", shape), ("x1", np.float32(3)), ("x2", np.float32(2))):
        workspace.FeedBlob(name, x)
    workspace.RunOperatorOnce(core.CreateOperator("UniformFill", ["x0", "x1", "x2"], ["y"], input_as_shape=1))
    assert workspace.FetchBlob("y").shape == (0, 2)
    for args in ({"min": 1.0, "max": 1.0}, {"min": 2.0}):
        with pytest.raises(RuntimeError, match="max"):
            run("UniformFill", shape=[2], **args)
    with pytest.raises(RuntimeError, match="0, 1 or 3"):
        run("UniformFill", shape, np.float32(2))
    with pytest.raises(RuntimeError, match="min"):
        run("UniformFill", shape, np.float32(2), np.float32(3), min=0.0)


def test_float16():
    (y,) = run("Float16UniformFill", shape=[3000], min=-1.0, max=1.0)
    assert y.dtype == np.float16 and -1 <= y.min() < -0.9 and 0.9 < y.max() <= 1
    np.testing.assert_array_equal(
        run("Float16ConstantFill", shape=[2], value=0.1)[0], np.full(2, 0.1, np.float16), strict=True
    )


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_unique(dtype):
    (y,) = run("UniqueUniformFill", shape=[40], min=-20, max=20, dtype=DTYPES[np.dtype(dtype)])
    assert y.dtype == dtype and len(set(y.tolist())) == 40 and y.min() >= -20 and y.max() <= 20
    (y,) = run(
        "UniqueUniformFill",
        np.array([20]),
        np.arange(0, 11, dtype=dtype),
        input_as_shape=1,
        min=0,
        max=30,
        dtype=DTYPES[np.dtype(dtype)],
    )
    assert set(y.tolist()) == set(range(11, 31))
    with pytest.raises(RuntimeError, match="41 values"):
        run("UniqueUniformFill", shape=[42], min=-20, max=20)
    with pytest.raises(RuntimeError, match="min and max"):
        run("UniqueUniformFill", shape=[4])


def test_range_fill():
    np.testing.assert_array_equal(run("RangeFill", shape=[2, 3])[0], np.arange(6, dtype="f").reshape(2, 3), strict=True)


def test_lengths_range():
    np.testing.assert_array_equal(
        run("LengthsRangeFill", np.int32([4, 3, 0, 1]))[0], np.int32([0, 1, 2, 3, 0, 1, 2, 0])
    )
    with pytest.raises(RuntimeError, match="negative"):
        run("LengthsRangeFill", np.int32([1, -1]))


@given(
    st.tuples(*[st.integers(-50, 50)] * 3).filter(lambda t: t[2]),
    st.sampled_from([np.int32, np.int64, np.float32, np.float64]),
    st.integers(1, 3),
)
def test_range(bounds, dtype, n):
    scalars = [np.array(v, dtype) for v in bounds[:n]]
    if n == 3 and dtype in (np.float32, np.float64):
        scalars[2] = scalars[2] / dtype(4)
    (y,) = run("Range", *scalars)
    np.testing.assert_allclose(y, np.arange(*scalars, dtype=dtype), rtol=1e-6)
    assert y.dtype == dtype


def test_range_refuses():
    for bad in (0.0, np.nan, 1e-30):
        with pytest.raises(RuntimeError, match="step|finite"):
            run("Range", np.float32(0), np.float32(1), np.float32(bad))
    with pytest.raises(RuntimeError, match="float"):
        run("Range", np.float32(0), np.int32(1))

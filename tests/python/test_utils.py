"""Arguments, tensors and messages."""
import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caffe2.proto import caffe2_pb2
from caffe2.python import core, utils, workspace

DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8,
          np.uint16, np.bool_]


@given(st.sampled_from(DTYPES).flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))))
def test_tensor_round_trip(x):
    proto = utils.NumpyArrayToCaffe2Tensor(x, "x")
    assert proto.name == "x"
    assert list(proto.dims) == list(x.shape)
    y = utils.Caffe2TensorToNumpyArray(proto)
    assert y.dtype == x.dtype and y.shape == x.shape
    np.testing.assert_array_equal(x, y)


def test_string_tensor_round_trip():
    x = np.array([["a", b"\xff\0b"], ["", "\N{SNOWMAN}"]], dtype=object)
    y = utils.Caffe2TensorToNumpyArray(utils.NumpyArrayToCaffe2Tensor(x))
    assert y.tolist() == [[b"a", b"\xff\0b"], [b"", "\N{SNOWMAN}".encode()]]


@pytest.mark.parametrize("text, expected", [
    ("data_type: FLOAT dims: 2 float_data: 1.5 float_data: 2", np.array([1.5, 2], np.float32)),
    ("data_type: BYTE dims: 2 byte_data: '\\001\\377'", np.array([1, 255], np.uint8)),
    ("data_type: BOOL dims: 2 int32_data: 0 int32_data: 1", np.array([False, True])),
    ("data_type: FLOAT16 dims: 1 byte_data: '\\000\\074'", np.array([1], np.float16)),
    ("data_type: INT64 dims: 1 raw_data: '\\002\\0\\0\\0\\0\\0\\0\\0'", np.array([2], np.int64)),
])
def test_tensor_fields(text, expected):
    tensor = text_format.Parse(text, caffe2_pb2.TensorProto())
    x = utils.Caffe2TensorToNumpyArray(tensor)
    assert x.dtype == expected.dtype
    np.testing.assert_array_equal(x, expected)


def test_tensor_of_unknown_type():
    with pytest.raises(RuntimeError, match="not supported"):
        utils.NumpyArrayToCaffe2Tensor(np.zeros(2, complex))
    with pytest.raises(RuntimeError, match="not supported"):
        utils.Caffe2TensorToNumpyArray(caffe2_pb2.TensorProto(data_type=0))


def test_caffe_blob():
    from caffe2.proto import caffe2_legacy_pb2  # noqa: F401  both styles are duck-typed

    class Old:
        num, channels, height, width = 1, 2, 1, 2
        data = [1.0, 2.0, 3.0, 4.0]

    class New:
        num = 0
        data = [1.0, 2.0]

        class shape:
            dim = [2, 1]

    np.testing.assert_array_equal(
        utils.CaffeBlobToNumpyArray(Old), np.array([[[[1, 2]], [[3, 4]]]], np.float32))
    np.testing.assert_array_equal(
        utils.CaffeBlobToNumpyArray(New), np.array([[1], [2]], np.float32))


@pytest.mark.parametrize("value, field, expected", [
    (1.5, "f", 1.5),
    (np.float32(1.5), "f", 1.5),
    (3, "i", 3),
    (np.int32(3), "i", 3),
    (np.uint8(3), "i", 3),
    (True, "i", 1),
    (np.bool_(True), "i", 1),
    ("text", "s", b"text"),
    (b"\xff", "s", b"\xff"),
    ([1.5, np.float32(2)], "floats", [1.5, 2.0]),
    (np.array([[1, 2]], np.float32), "floats", [1.0, 2.0]),
    (np.array([1, 2], np.float64), "floats", [1.0, 2.0]),
    ((1, 2), "ints", [1, 2]),
    ([True, np.int64(2), 3], "ints", [1, 2, 3]),
    (np.array([[1], [2]], np.int16), "ints", [1, 2]),
    (range(3), "ints", [0, 1, 2]),
    (["a", b"b"], "strings", [b"a", b"b"]),
])
def test_make_argument(value, field, expected):
    arg = utils.MakeArgument("key", value)
    assert arg.name == "key"
    set_fields = {f.name: v for f, v in arg.ListFields() if f.name != "name"}
    assert list(set_fields) == [field]
    got = set_fields[field]
    assert (list(got) if field.endswith("s") and field != "s" else got) == expected


def test_make_argument_of_messages():
    net, op = caffe2_pb2.NetDef(name="n"), caffe2_pb2.OperatorDef(type="Relu")
    assert utils.MakeArgument("a", net).n == net
    assert list(utils.MakeArgument("a", [net, net]).nets) == [net, net]
    assert utils.MakeArgument("a", op).s == op.SerializeToString()
    assert list(utils.MakeArgument("a", [op]).strings) == [op.SerializeToString()]


def test_make_argument_of_nothing():
    assert utils.MakeArgument("a", []).ListFields()[1:] == []


@pytest.mark.parametrize("value", [None, object(), 1j, [1, "a"], [1, 2.0], [None], [[1], [2]]])
def test_make_argument_refuses(value):
    with pytest.raises(ValueError, match="argument type: key=a"):
        utils.MakeArgument("a", value)


def test_args_to_dict():
    args = [utils.MakeArgument(k, v) for k, v in (("f", 0.5), ("i", 0), ("s", "x"), ("l", [1, 2]))]
    args.append(caffe2_pb2.Argument(name="empty"))
    args.append(caffe2_pb2.Argument(i=1))
    assert {k: v if v is None or isinstance(v, (float, int, bytes)) else list(v)
            for k, v in utils.ArgsToDict(args).items()} == {
        "f": 0.5, "i": 0, "s": b"x", "l": [1, 2], "empty": None}


def test_op_almost_equal():
    a = core.CreateOperator("Relu", ["x"], ["y"], name="one")
    b = core.CreateOperator("Relu", ["x"], ["y"], name="two")
    for op in (a, b):
        op.debug_info = op.name
    assert not utils.OpAlmostEqual(a, b)
    assert not utils.OpAlmostEqual(a, b, "debug_info")
    assert utils.OpAlmostEqual(a, b, ["debug_info", "name"])
    assert a.name == "one"
    b.input[0] = "z"
    assert not utils.OpAlmostEqual(a, b, ["debug_info", "name"])
    assert utils.OpAlmostEqual(a, b, ["debug_info", "name", "input"])


def test_protos_from_text_and_binary(tmp_path):
    net = caffe2_pb2.NetDef(name="n", op=[caffe2_pb2.OperatorDef(type="Relu", input=["x"])])
    text = str(net)
    assert utils.TryReadProtoWithClass(caffe2_pb2.NetDef, text) == net
    assert utils.TryReadProtoWithClass(caffe2_pb2.NetDef, text.encode()) == net
    assert utils.TryReadProtoWithClass(caffe2_pb2.NetDef, net.SerializeToString()) == net
    for garbage in (b"\xff\xff\xff", "no { message", "\N{SNOWMAN}"):
        with pytest.raises(DecodeError):
            utils.TryReadProtoWithClass(caffe2_pb2.NetDef, garbage)
    functions = {caffe2_pb2.DeviceOption: lambda m: "device", caffe2_pb2.NetDef: lambda m: m.name}
    assert utils.GetContentFromProto(net, functions) == "n"
    assert utils.GetContentFromProto(caffe2_pb2.PlanDef(), functions) is None
    assert utils.GetContentFromProtoString(text, functions) == "n"
    with pytest.raises(DecodeError):
        utils.GetContentFromProtoString("no { message", functions)
    (tmp_path / "net.txt").write_text(text)
    utils.ConvertProtoToBinary(caffe2_pb2.NetDef, tmp_path / "net.txt", tmp_path / "net.pb")
    assert caffe2_pb2.NetDef.FromString((tmp_path / "net.pb").read_bytes()) == net


@given(hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=5)))
def test_storage_orders(x):
    axes = [0, *range(2, x.ndim), 1]
    np.testing.assert_array_equal(utils.NCHW2NHWC(x), x.transpose(axes))
    np.testing.assert_array_equal(utils.NHWC2NCHW(utils.NCHW2NHWC(x)), x)


def test_enum_class():
    class Good:
        A, B, lower, NUMBER = "a", "b", "c", 1

    class Bad:
        A = B = "a"

    assert utils.EnumClassKeyVals(Good) == {"A": "a", "B": "b"}
    with pytest.raises(AssertionError, match="duplicate"):
        utils.EnumClassKeyVals(Bad)


def test_raise_if_not_equal():
    utils.raiseIfNotEqual(1, 1, "no")
    with pytest.raises(Exception, match="differ. 1 != 2"):
        utils.raiseIfNotEqual(1, 2, "differ")


def test_debug_mode(monkeypatch, capsys):
    started = []
    monkeypatch.setattr("pdb.post_mortem", lambda: started.append(True))

    @utils.debug
    def good(x):
        return x + 1

    @utils.debug
    def bad():
        raise KeyError("why")

    assert good(1) == 2
    with pytest.raises(SystemExit):
        bad()
    assert started == [True]
    assert "why" in capsys.readouterr().out


def test_unique_mutex_iter():
    init_net, net = core.Net("init"), core.Net("net")
    first = utils.BuildUniqueMutexIter(init_net, net, iter_val=5)
    assert utils.BuildUniqueMutexIter(init_net, net) == first == "optimizer_iteration"
    assert [op.type for op in init_net.Proto().op] == ["ConstantFill", "CreateMutex"]
    assert [op.type for op in net.Proto().op] == ["AtomicIter"]
    workspace.ResetWorkspace()
    workspace.RunNetOnce(init_net)
    workspace.CreateNet(net)
    workspace.RunNet(net, 3)
    value = workspace.FetchBlob(first)
    assert value.dtype == np.int64
    assert value.tolist() == [8]


def test_reset_blobs():
    workspace.ResetWorkspace()
    workspace.FeedBlob("x", np.ones(3, np.float32))
    utils.ResetBlobs(["x"])
    assert workspace.HasBlob("x")
    assert workspace.GetBlobSizeBytes("x") == 0

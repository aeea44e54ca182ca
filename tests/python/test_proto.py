"""Message classes: wire and text format, copies, pickles, enums."""

import copy
import importlib
import pickle
from pathlib import Path

import pytest
from google.protobuf import text_format

from caffe2.proto import caffe2_legacy_pb2, caffe2_pb2, metanet_pb2, predictor_consts_pb2, torch_pb2

SAMPLES = Path(__file__).parents[1] / "data/samples"


def sample_messages():
    for path in sorted(SAMPLES.glob("*.pb")):
        kind = caffe2_pb2.BlobProto if path.stem.startswith("blob_") else caffe2_pb2.NetDef
        yield pytest.param(kind, path.read_bytes(), id=path.name)


@pytest.mark.parametrize("kind, data", [*sample_messages()])
def test_wire_round_trip(kind, data):
    message = kind.FromString(data)
    assert message.ListFields()
    again = message.SerializeToString()
    assert len(again) == len(data)  # nothing unknown, nothing lost; field order is free
    assert kind.FromString(again) == message


def test_text_format():
    text = (SAMPLES / "predict_net.pbtxt").read_text()
    net = text_format.Parse(text, caffe2_pb2.NetDef())
    assert net == caffe2_pb2.NetDef.FromString((SAMPLES / "predict_net.pb").read_bytes())
    assert [op.type for op in net.op] == ["Conv", "Relu", "MaxPool", "FC", "Softmax"]
    assert text_format.Parse(str(net), caffe2_pb2.NetDef()) == net


def test_string_argument_on_the_wire():
    # By hand: field 5 (arg), length 8; field 1 (name) "a"; field 4 (s) "\xff\x00z".
    data = b"\x2a\x08" + b"\x0a\x01a" + b"\x22\x03\xff\x00z"
    (arg,) = caffe2_pb2.OperatorDef.FromString(data).arg
    assert (arg.name, arg.s) == ("a", b"\xff\x00z")
    assert arg.HasField("s") and not arg.HasField("i")


def test_floats_are_packed():
    data = caffe2_pb2.TensorProto(float_data=[1.0, 2.0]).SerializeToString()
    assert data == b"\x1a\x08" + b"\x00\x00\x80\x3f" + b"\x00\x00\x00\x40"


def test_unknown_fields_survive():
    data = caffe2_pb2.NetDef(name="n").SerializeToString() + b"\xf8\x7f\x05"  # field 2047 = 5
    assert caffe2_pb2.NetDef.FromString(data).SerializeToString() == data


def test_truncated():
    from google.protobuf.message import DecodeError

    data = (SAMPLES / "init_net.pb").read_bytes()
    with pytest.raises(DecodeError):
        caffe2_pb2.NetDef.FromString(data[:-5])


def test_enums():
    assert caffe2_pb2.TensorProto.FLOAT == caffe2_pb2.TensorProto.DataType.Value("FLOAT") == 1
    assert caffe2_pb2.TensorProto.DataType.Name(12) == "FLOAT16"
    assert caffe2_pb2.CPU == caffe2_pb2.PROTO_CPU == 0
    assert caffe2_pb2.CUDA == caffe2_pb2.DeviceTypeProto.Value("PROTO_CUDA") == 1
    assert caffe2_legacy_pb2.CAFFE_LEGACY_POOLING == 3
    assert torch_pb2.ProtoVersion.Value("PROTO_VERSION_NEWEST") == 6
    assert predictor_consts_pb2.PredictorConsts().META_NET_DEF == "!!META_NET_DEF"


MESSAGES = [
    caffe2_pb2.NetDef(name="n", op=[caffe2_pb2.OperatorDef(type="Relu", input=["a"])]),
    caffe2_pb2.TensorProto.Segment(begin=1, end=2),
    metanet_pb2.MetaNetDef(nets=[dict(key="k", value=caffe2_pb2.NetDef(name="n"))]),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copy_and_pickle(message, duplicate):
    other = duplicate(message)
    assert other == message and other is not message
    assert type(other) is type(message)


def test_classes_are_shared_between_modules():
    (entry,) = MESSAGES[2].nets
    assert type(entry.value) is caffe2_pb2.NetDef
    assert type(torch_pb2.ModuleDef().caffe2_nets.add()) is caffe2_pb2.NetDef


@pytest.mark.parametrize("name", ["hsm", "prof_dag"])
def test_module(name):
    module = importlib.import_module(f"caffe2.proto.{name}_pb2")
    assert module.DESCRIPTOR.name == f"caffe2/proto/{name}.proto"
    for message in module.DESCRIPTOR.message_types_by_name:
        assert pickle.loads(pickle.dumps(getattr(module, message))) is getattr(module, message)

"""Blobs on the wire, held against files of the original and against the protobuf library."""

from pathlib import Path

import numpy as np
import pytest
from caffe2._core.blob import Blob
from caffe2._core.serialization import Assembler, chunks, deserialize, serialize
from caffe2._core.tensor import Tensor
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caffe2._core import serialization
from caffe2.proto import caffe2_pb2
from caffe2.python import workspace

SAMPLES = Path(__file__).parents[1] / "data/samples"
TYPES = caffe2_pb2.TensorProto
TEXTS = np.array([b"alpha", b"beta\x00gamma", b""], object)
FIELDS = {
    "float32": (TYPES.FLOAT, "float_data"),
    "float64": (TYPES.DOUBLE, "double_data"),
    "float16": (TYPES.FLOAT16, "int32_data"),
    "bool": (TYPES.BOOL, "int32_data"),
    "uint8": (TYPES.UINT8, "int32_data"),
    "int8": (TYPES.INT8, "int32_data"),
    "uint16": (TYPES.UINT16, "int32_data"),
    "int16": (TYPES.INT16, "int32_data"),
    "int32": (TYPES.INT32, "int32_data"),
    "int64": (TYPES.INT64, "int64_data"),
}
arrays = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)))


def same(a, b):
    """Equal in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def message(**fields):
    """A serialized BlobProto of a tensor."""
    return caffe2_pb2.BlobProto(
        name="x", type="Tensor", tensor=caffe2_pb2.TensorProto(**fields)).SerializeToString()


def values_of(array):
    stored = {"float16": np.uint16, "bool": np.uint8}.get(array.dtype.name, array.dtype)
    return array.view(stored).ravel().tolist()


# ---------------------------------------------------------------- files of the original

@pytest.mark.parametrize("path", sorted(SAMPLES.glob("blob_*.pb")), ids=lambda p: p.stem)
def test_sample(path):
    name = path.stem.removeprefix("blob_")
    expected = TEXTS if name == "s" else np.load(SAMPLES / "blobs.npz")[name]
    tensor = deserialize(path.read_bytes())
    if name == "s":
        assert tensor.shape == (3,) and tensor.data.tolist() == TEXTS.tolist()
    else:
        assert same(tensor.data, expected)
    assert serialize(Tensor(expected), name) == path.read_bytes()


# ---------------------------------------------------------------- against the protobuf library

@given(arrays)
def test_write(array):
    proto = caffe2_pb2.BlobProto.FromString(serialize(Tensor(array), "some blob"))
    data_type, field = FIELDS[array.dtype.name]
    tensor = proto.tensor
    assert (proto.name, proto.type, tensor.name) == ("some blob", "Tensor", "some blob")
    assert tensor.data_type == data_type and tuple(tensor.dims) == array.shape
    assert (tensor.segment.begin, tensor.segment.end) == (0, array.size)
    assert tensor.device_detail.device_type == caffe2_pb2.CPU
    if array.dtype.kind == "f":
        got = np.array(getattr(tensor, field))
        got = got.astype(np.uint16).view(np.float16) if array.dtype == np.float16 else got
        np.testing.assert_array_equal(got.astype(array.dtype), array.ravel())
    else:
        assert list(getattr(tensor, field)) == values_of(array)
    # the library writes the same message in the same bytes
    assert proto.SerializeToString() == serialize(Tensor(array), "some blob")


@given(arrays)
def test_read(array):
    data_type, field = FIELDS[array.dtype.name]
    data = message(dims=array.shape, data_type=data_type, **{field: values_of(array)})
    got = deserialize(data).data
    assert got.dtype == array.dtype and got.shape == array.shape
    np.testing.assert_array_equal(got, array)


@given(arrays)
def test_round_trip(array):
    assert same(deserialize(serialize(Tensor(array), "x")).data, array)
    data = serialization.serialize_tensor(Tensor(array), "x")
    assert same(serialization.deserialize_tensor(data).data, array)


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_strings(texts):
    array = np.empty(len(texts), object)
    array[:] = texts
    data = serialize(Tensor(array), "x")
    assert list(caffe2_pb2.BlobProto.FromString(data).tensor.string_data) == texts
    assert deserialize(data).data.tolist() == texts


def test_string_blob():
    data = serialize(b"a\x00b", "x")
    proto = caffe2_pb2.BlobProto(name="x", type="std::string", content=b"a\x00b")
    assert data == proto.SerializeToString()
    assert deserialize(data) == b"a\x00b"


def test_values_one_by_one():
    """Repeated fields may come unpacked, or packed in several pieces."""
    floats = np.array([1.5, -2, 3], np.float32)
    tensor = b"\x08\x03\x10\x01"                    # dims: 3, data_type: FLOAT
    tensor += b"\x1d" + floats[:1].tobytes() + b"\x1a\x08" + floats[1:].tobytes()
    np.testing.assert_array_equal(serialization.deserialize_tensor(tensor).data, floats)
    packed_dims = b"\x0a\x01\x03\x10\x02" + b"\x20\x05" + b"\x22\x02\x07\x09"
    assert serialization.deserialize_tensor(packed_dims).data.tolist() == [5, 7, 9]


def test_bytes_fields():
    a = np.arange(5, dtype=np.uint8)
    got = deserialize(message(dims=[5], data_type=TYPES.BYTE, byte_data=a.tobytes()))
    assert same(got.data, a)
    h = np.array([0.5, -3, 65504], np.float16)
    got = deserialize(message(dims=[3], data_type=TYPES.FLOAT16, byte_data=h.tobytes()))
    assert same(got.data, h)


def test_bool_is_zero_or_one():
    got = deserialize(message(dims=[3], data_type=TYPES.BOOL, int32_data=[0, 2, -1]))
    assert got.data.view(np.uint8).tolist() == [0, 1, 1]


@given(hnp.arrays(np.float32, st.integers(0, 9), elements=st.floats(width=32)))
def test_bfloat16(array):
    ((_, data),) = chunks(Tensor(array), "x", bfloat16=True)
    proto = caffe2_pb2.BlobProto.FromString(data).tensor
    assert proto.data_format == caffe2_pb2.TensorProto.FMT_BFLOAT16
    assert len(proto.raw_data) == 2 * len(array) and not proto.float_data
    got = deserialize(data).data
    assert got.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(got), np.isnan(array))
    bits = array.view(np.uint32).astype(np.uint64)
    expected = ((bits + 0x8000) >> 16 << 16).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(got[~np.isnan(array)], expected[~np.isnan(array)])


# ---------------------------------------------------------------- chunks

def test_keys_and_segments():
    parts = list(chunks(Tensor(np.arange(25, dtype=np.float32).reshape(5, 5)), "w", 10))
    assert [k for k, _ in parts] == ["w#%0", "w#%1", "w#%2"]
    tensors = [caffe2_pb2.BlobProto.FromString(d).tensor for _, d in parts]
    assert [(t.segment.begin, t.segment.end) for t in tensors] == [(0, 10), (10, 20), (20, 25)]
    assert all(list(t.dims) == [5, 5] for t in tensors)
    assert np.concatenate([t.float_data for t in tensors]).tolist() == list(range(25))


def test_default_chunk():
    n = 2 * serialization.DEFAULT_CHUNK + 1
    tensor = Tensor(np.zeros(n, bool))
    assert [k for k, _ in chunks(tensor, "x")] == ["x#%0", "x#%1", "x#%2"]
    assert [k for k, _ in chunks(tensor, "x", serialization.NO_CHUNKS)] == ["x#%0"]
    assert [k for k, _ in chunks(b"text", "x")] == ["x"]


@given(arrays, st.integers(1, 12), st.randoms())
def test_parts_in_any_order(array, chunk_size, random):
    parts = [d for _, d in chunks(Tensor(array), "x", chunk_size)]
    random.shuffle(parts)
    assembler = Assembler()
    done = [assembler.add("x", p) for p in parts]
    assert done == [False] * (len(parts) - 1) + [True]
    assembler.finish()
    assert same(assembler.contents["x"].data, array)


def test_wrong_parts():
    first, second = (d for _, d in chunks(Tensor(np.arange(10)), "x", 5))
    other = next(d for _, d in chunks(Tensor(np.arange(12)), "x", 6))

    def refuses(match, *parts):
        assembler = Assembler()
        with pytest.raises(RuntimeError, match=match):
            for p in parts:
                assembler.add("x", p)
            assembler.finish()

    refuses("twice", first, first)
    refuses("different", first, other)
    refuses("different", first, serialize(b"text", "x"))
    refuses("complete", first, second, first)
    refuses("incomplete: 5 of 10", second)


def test_chunk_fills_its_part_of_a_blob():
    first, second = (d for _, d in chunks(Tensor(np.arange(10)), "x", 5))
    workspace.FeedBlob("x", np.full(10, -1))
    workspace.DeserializeBlob("x", second)
    assert workspace.FetchBlob("x").tolist() == [-1] * 5 + [5, 6, 7, 8, 9]
    workspace.DeserializeBlob("x", first)
    assert workspace.FetchBlob("x").tolist() == list(range(10))


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize("fields, match", [
    ({"dims": [3], "float_data": [1, 2]}, "2 float values where 3"),
    ({"dims": [3], "float_data": [1, 2, 3, 4]}, "4 float values where 3"),
    ({"dims": [2], "data_type": TYPES.INT64, "int32_data": [1, 2]}, "0 int64 values"),
    ({"dims": [2], "data_type": TYPES.STRING, "string_data": [b"a"]}, "1 string values"),
    ({"dims": [3], "data_type": TYPES.FLOAT16, "byte_data": b"12345"}, "cut off"),
    ({"dims": [-1], "float_data": []}, "negative"),
    ({"dims": [2**40, 2**40]}, "address space"),
    ({"dims": [2**62], "segment": {"begin": 0, "end": 0}}, "address space"),
    ({"dims": [1] * 17, "float_data": [1]}, "too many dimensions"),
    ({"dims": [4], "segment": {"begin": 3, "end": 5}, "float_data": [1, 2]}, "segment"),
    ({"dims": [4], "segment": {"begin": -1, "end": 1}, "float_data": [1, 2]}, "segment"),
    ({"dims": [4], "segment": {"begin": 3, "end": 2}}, "segment"),
    ({"dims": [0], "data_type": TYPES.UNDEFINED}, "unknown data type"),
    ({"dims": [0], "data_type": TYPES.REBATCHING_BUFFER}, "unknown data type"),
    ({"dims": [0], "data_format": 7}, "unknown data format"),
])
def test_refused(fields, match):
    data = message(**fields)
    with pytest.raises(RuntimeError, match=match):
        deserialize(data)
    workspace.FeedBlob("kept", np.arange(4))
    with pytest.raises(RuntimeError, match=match):
        workspace.DeserializeBlob("kept", data)
    assert workspace.FetchBlob("kept").tolist() == [0, 1, 2, 3]
    with pytest.raises(RuntimeError):
        workspace.DeserializeBlob("new", data)
    assert not workspace.HasBlob("new")


@pytest.mark.parametrize("name", ["f32", "i64", "i8", "s", "f16", "f64"])
def test_truncated(name):
    data = (SAMPLES / f"blob_{name}.pb").read_bytes()
    for n in range(len(data)):
        with pytest.raises(RuntimeError):
            deserialize(data[:n])


@given(st.sampled_from(sorted(SAMPLES.glob("blob_*.pb"))),
       st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged(path, changes):
    """Damage that is noticed changes nothing; any other gives some value."""
    data = bytearray(path.read_bytes())
    for at, byte in changes:
        data[at % len(data)] = byte
    blob = Blob("x")
    blob.feed(np.arange(3))
    try:
        blob.deserialize(bytes(data))
    except (RuntimeError, MemoryError):
        assert blob.fetch().tolist() == [0, 1, 2]
    else:
        assert blob.content is not None


@given(st.binary(max_size=60))
def test_noise(data):
    with pytest.raises(RuntimeError):
        deserialize(data)


@pytest.mark.parametrize("varint", [b"\x80" * 11 + b"\x01", b"\xff" * 10, b"\x80"])
def test_endless_varint(varint):
    with pytest.raises(RuntimeError, match="corrupt"):
        serialization.deserialize_tensor(
            b"\x08\x01\x10\x02\x22" + bytes([len(varint)]) + varint)


def test_unknown_type():
    data = caffe2_pb2.BlobProto(name="x", type="Wonder", content=b"").SerializeToString()
    with pytest.raises(RuntimeError, match="no deserializer for type 'Wonder'"):
        deserialize(data)
    with pytest.raises(RuntimeError, match="holds a complex"):
        serialize(1j, "x")
    with pytest.raises(RuntimeError, match="holds nothing"):
        serialize(None, "x")
    with pytest.raises(RuntimeError, match="holds nothing"):
        serialize(Tensor(), "x")


def test_register_type():
    class Point:
        def __init__(self, x):
            self.x = x

    def fill(point, message):
        message.content = str(point.x).encode()

    serialization.register_type("Point of this test", Point, fill, lambda m: Point(int(m.content)))
    data = serialize(Point(7), "p")
    assert caffe2_pb2.BlobProto.FromString(data).type == "Point of this test"
    assert deserialize(data).x == 7
    with pytest.raises(ValueError, match="has a serializer already"):
        serialization.register_type("Point of this test", Point, fill, None)

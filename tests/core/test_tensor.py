"""Tensors and blobs: shapes, dtypes, sharing, what cannot be."""
import gc
import sys

import numpy as np
import pytest
from caffe2._core.blob import Blob
from caffe2._core.tensor import Tensor
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caffe2.proto import caffe2_pb2
from caffe2.python import workspace

DTYPES = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool"]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)))


@given(arrays)
def test_feed_and_fetch_are_inverse(a):
    workspace.FeedBlob("x", a)
    b = workspace.FetchBlob("x")
    assert b.dtype == a.dtype and b.shape == a.shape
    assert b.tobytes() == a.tobytes()
    assert b.flags.owndata and b.flags.writeable


def test_large_arrays_are_fed_also_from_the_blob_itself():
    a = np.arange(300_001, dtype=np.float32)
    workspace.FeedBlob("x", a)
    np.testing.assert_array_equal(workspace.FetchBlob("x"), a)
    workspace.FeedBlob("x", workspace.blobs.view("x")[1:])
    np.testing.assert_array_equal(workspace.FetchBlob("x"), a[1:])


@pytest.mark.parametrize("shape", [
    (1, 3, 301, 299), (2, 3, 201, 199), (1, 200_000, 1, 1), (1, 7, 65, 65, 5), (1, 0, 999, 9)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "uint8", "float64"])
def test_images_are_fed(shape, dtype):
    a = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    workspace.FeedBlob("x", a)
    np.testing.assert_array_equal(workspace.FetchBlob("x"), a)


@given(arrays)
def test_any_layout_is_fed(a):
    for b in (a.T, a[..., ::-1] if a.ndim else a, np.asfortranarray(a)):
        workspace.FeedBlob("x", b)
        assert np.array_equal(workspace.FetchBlob("x"), b, equal_nan=b.dtype.kind == "f")


def test_read_only_and_swapped_arrays_are_fed():
    a = np.arange(6.0).reshape(2, 3)
    a.setflags(write=False)
    workspace.FeedBlob("x", a)
    assert np.array_equal(workspace.FetchBlob("x"), a)
    workspace.FeedBlob("x", a.astype(">f8"))
    assert np.array_equal(workspace.FetchBlob("x"), a)
    assert workspace.FetchBlob("x").dtype == np.float64


def test_strings():
    for given_, want in (
        (np.array([["a", "b\0c"], ["", "é"]], dtype=object), [[b"a", b"b\0c"], [b"", "é".encode()]]),
        (np.array(["ab", "c"]), [b"ab", b"c"]),
        (np.array([b"ab", b"c"]), [b"ab", b"c"]),
        (np.array([], dtype=object), []),
    ):
        workspace.FeedBlob("s", given_)
        assert workspace.FetchBlob("s").tolist() == want
    workspace.FeedBlob("s", "one text")
    assert workspace.FetchBlob("s") == b"one text"


def test_strings_are_released():
    texts = [b"x%d" % i for i in range(5)]
    counts = [sys.getrefcount(t) for t in texts]
    workspace.FeedBlob("s", np.array(texts, dtype=object))
    assert [sys.getrefcount(t) for t in texts] == [n + 1 for n in counts]
    workspace.FeedBlob("s", np.array([b"y"], dtype=object))
    assert sys.getrefcount(texts[0]) == counts[0]
    workspace.FeedBlob("s", np.zeros(2))
    assert [sys.getrefcount(t) for t in texts] == counts


@pytest.mark.parametrize("bad", [np.zeros(2, dtype=np.complex64), np.array([object()]), np.zeros(2, "M8[s]")])
def test_what_no_tensor_can_hold_leaves_the_blob_alone(bad):
    workspace.FeedBlob("x", np.ones(3))
    with pytest.raises(TypeError):
        workspace.FeedBlob("x", bad)
    assert np.array_equal(workspace.FetchBlob("x"), np.ones(3))
    with pytest.raises(TypeError):
        workspace.FeedBlob("new", bad)
    assert not workspace.HasBlob("new")


def test_too_many_dimensions():
    with pytest.raises(ValueError, match="16 dimensions"):
        workspace.FeedBlob("x", np.zeros((1,) * 17))
    with pytest.raises(ValueError, match="16 dimensions"):
        Tensor().init([1] * 17, caffe2_pb2.TensorProto.FLOAT)


@pytest.mark.parametrize("shape", [(2**62, 4), (2**32, 2**31), (2**63 - 1,), (2**61, 0, 2**61)])
def test_sizes_that_overflow(shape):
    t = Tensor(np.arange(4))
    with pytest.raises((OverflowError, MemoryError)):
        t.init(shape, caffe2_pb2.TensorProto.DOUBLE)
    assert t.fetch().tolist() == [0, 1, 2, 3]


def test_a_negative_dimension():
    t = Tensor(np.arange(4))
    with pytest.raises(ValueError, match="negative"):
        t.init((2, -1), caffe2_pb2.TensorProto.FLOAT)
    assert t.shape == (4,)


def test_views_share_memory_and_outlive_the_blob():
    workspace.FeedBlob("x", np.arange(6, dtype=np.float32).reshape(2, 3))
    view = workspace.blobs.view("x")
    view[0, 0] = 7
    assert workspace.FetchBlob("x")[0, 0] == 7
    workspace.FeedBlob("x", np.zeros(1000, dtype=np.float32))
    workspace.ResetWorkspace()
    gc.collect()
    assert view.tolist() == [[7, 1, 2], [3, 4, 5]]


def test_buffer_array_and_dlpack_see_the_same_memory():
    workspace.FeedBlob("x", np.arange(6, dtype=np.int32).reshape(2, 3))
    t = workspace.C.Workspace.current.blobs["x"].tensor()
    views = [np.asarray(t), np.asarray(memoryview(t)), np.from_dlpack(t)]
    t.data[1, 2] = 9
    assert all(v.tolist() == [[0, 1, 2], [3, 4, 9]] for v in views)
    assert np.array(t, copy=True).base is None
    for dtype in DTYPES:
        a = np.ones((2, 2), dtype)
        assert np.from_dlpack(Tensor(a)).dtype == a.dtype
    with pytest.raises(BufferError):
        Tensor(np.array([b"x"], dtype=object)).__dlpack__()


def test_storage_is_kept_when_a_tensor_shrinks():
    t = Tensor(np.zeros(1000, dtype=np.float32))
    address = t.data.ctypes.data
    assert address % 64 == 0
    t.feed(np.zeros(10, dtype=np.float32))
    assert t.data.ctypes.data == address


def test_versions_grow_with_each_write():
    t = Tensor(np.zeros(3))
    version = t.version
    t.feed(np.ones(3))
    assert t.version > version


def test_reprs():
    assert repr(Tensor(np.zeros((2, 3), np.float32))) == "Tensor(shape=(2, 3), dtype=float)"
    blob = Blob("b")
    assert repr(blob) == "Blob(b (empty))"
    blob.feed(np.zeros((2, 3), np.int64))
    assert repr(blob) == "Blob(b int64[2, 3])"


def test_an_empty_blob_says_so():
    workspace.CreateBlob("empty")
    with pytest.raises(RuntimeError, match="empty"):
        workspace.FetchBlob("empty")
    with pytest.raises(KeyError, match="nowhere"):
        workspace.FetchBlob("nowhere")

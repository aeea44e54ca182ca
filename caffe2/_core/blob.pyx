"""Blobs: named slots for a tensor or any other object."""
from libc.stdint cimport int64_t

import numpy as np

from caffe2._core.serialization import deserialize, serialize

from caffe2._core.tensor cimport (
    DEVICE, UNDEFINED, Tensor, clear, dtype_name, from_numpy, itemsize, make_plain, put_rows, shape_of, share, swap,
    to_numpy,
)


cdef class Blob:
    """A named slot for a tensor or any other object (queue, mutex, cursor, database, ...)."""

    def __init__(self, str name=""):
        self.name = name

    def __dealloc__(self):
        clear(&self.t)

    cdef object get(self):
        """The object held, None for a tensor or nothing."""
        return None if self.t.dtype != UNDEFINED else self.value

    cdef int set(self, object value) except -1:
        clear(&self.t)
        self.value = value
        return 0

    @property
    def content(self):
        """What the blob holds: a `Tensor` that shares its memory, another object, or None."""
        return self.tensor() if self.t.dtype != UNDEFINED else self.value

    @content.setter
    def content(self, value):
        if isinstance(value, Tensor):
            share(&self.t, (<Tensor>value).t)
        else:
            self.set(value)

    @property
    def is_tensor(self):
        return self.t.dtype != UNDEFINED

    @property
    def nbytes(self):
        """int: bytes that the blob's tensor takes, 0 where it holds none."""
        return self.t.size * itemsize(self.t.dtype)

    def tensor(self):
        """The blob's tensor itself: what is done to it is done to the blob.

        Raises
        ------
        RuntimeError
            If the blob holds no tensor.
        """
        if self.t.dtype == UNDEFINED:
            raise RuntimeError(f"{self.describe()} is not a tensor")
        return self.writable()

    def writable(self):
        """The blob's tensor, which may be empty still, to be written."""
        cdef Tensor t = Tensor.__new__(Tensor)
        if self.t.layout != DEVICE:
            make_plain(&self.t)
        t.t = &self.t
        t.blob = self
        return t

    def fetch(self):
        """The value: a numpy array that owns its memory for a tensor, else the object held.

        Raises
        ------
        RuntimeError
            If the blob is empty.
        """
        if self.t.dtype != UNDEFINED:
            return to_numpy(&self.t, False)
        if self.value is None:
            raise RuntimeError(f"blob {self.name} holds nothing yet: feed it, or run the operator that writes it")
        fetch = getattr(self.value, "__fetch__", None)
        return self.value if fetch is None else fetch()

    def view(self):
        """A numpy array that shares the tensor's memory."""
        if self.t.dtype == UNDEFINED:
            raise RuntimeError(f"{self.describe()} is not a tensor")
        return to_numpy(&self.t, True)

    def feed(self, value, device_option=None):
        """Copy an array (or anything numpy understands) in; text is kept as bytes.

        device_option : DeviceOption, or one serialized
            Whose memory is to hold it. Arrays of other CUDA libraries are understood there.
        """
        if device_option and not isinstance(value, (str, bytes)) and not hasattr(value, "__feed__"):
            if isinstance(device_option, bytes):
                from caffe2.proto import caffe2_pb2

                device_option = caffe2_pb2.DeviceOption.FromString(device_option)
            if device_option.device_type:
                if not hasattr(value, "__dlpack__") and not hasattr(value, "__cuda_array_interface__"):
                    value = np.asarray(value)
                if not isinstance(value, np.ndarray) or value.dtype.kind not in "OSU":  # text stays with the CPU
                    self.feed_tensor(value, device_option)
                    return
        if isinstance(value, Tensor):
            value = value.fetch()
        if isinstance(value, (str, bytes)):
            self.set(value.encode() if isinstance(value, str) else value)
            return
        if not isinstance(value, np.ndarray):
            if hasattr(value, "__feed__"):
                value.__feed__(self)
                return
            value = np.asarray(value)
        from_numpy(&self.t, value)
        self.value = None

    def put_rows(self, Tensor to, int64_t rows, int64_t at):
        """Copy the tensor, in whatever layout it is, into the rows from `at` on of another one, of `rows` rows."""
        put_rows(to.t, rows, at, &self.t)

    def swap(self, Tensor other):
        """Exchange shape and memory with a tensor."""
        swap(&self.t, other.t)

    cdef int feed_tensor(self, value, device_option) except -1:
        cdef Tensor t = Tensor.__new__(Tensor)
        t.feed(value, device_option)
        share(&self.t, t.t)
        self.value = None
        return 0

    def reset(self):
        """Empty the blob."""
        self.set(None)

    def serialize(self, name=None):
        """The blob's contents as a serialized BlobProto (bytes)."""
        content = self.content
        if self.t.layout == DEVICE:
            content = Tensor(self.fetch())
        return serialize(content, self.name if name is None else name)

    def deserialize(self, data):
        """Become what a serialized BlobProto holds; untouched where that is corrupt.

        One chunk of a tensor of the shape and type held here replaces those elements alone.
        """
        self.content = deserialize(data, self.tensor() if self.is_tensor and self.t.layout != DEVICE else None)

    def describe(self):
        """Name, shape and type in a few words, for messages."""
        if self.t.dtype != UNDEFINED:
            return f"{self.name} {dtype_name(self.t.dtype)}{list(shape_of(&self.t))}"
        if self.value is None:
            return f"{self.name} (empty)"
        return f"{self.name} ({type(self.value).__name__})"

    def __repr__(self):
        return f"Blob({self.describe()})"

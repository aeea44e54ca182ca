"""Blobs on the wire: BlobProto and TensorProto.

Values go between tensors and the wire by memcpy or one pass of C; messages of the protobuf library,
from which each number comes as an object, serve only what is no tensor.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from google.protobuf.message import DecodeError

from libc.stdint cimport (
    INT64_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.string cimport memcpy, memset

from caffe2._core.tensor cimport (
    BOOL, BYTE, DOUBLE, FLOAT, FLOAT16, INT8, INT16, INT32, INT64, MAX_DIMS, STRING, UINT8, UINT16,
    Tensor, dtype_name, get_string, itemsize, resize, set_string, tensor_t,
)

cdef extern from "Python.h":
    enum: PyBUF_READ

DEFAULT_CHUNK = 1_000_000       # elements
NO_CHUNKS = -1
_TENSOR = "Tensor"
_STRING = "std::string"

# Field numbers of TensorProto.
cdef enum:
    DIMS = 1
    DATA_TYPE = 2
    FLOAT_DATA = 3
    INT32_DATA = 4
    BYTE_DATA = 5
    STRING_DATA = 6
    NAME = 7
    DEVICE_DETAIL = 8
    DOUBLE_DATA = 9
    INT64_DATA = 10
    SEGMENT = 11
    RAW_DATA = 13
    DATA_FORMAT = 15


cdef int field_of(int dtype) noexcept nogil:
    """The field that holds values of a dtype, 0 where there is none."""
    if dtype == FLOAT:
        return FLOAT_DATA
    if dtype == DOUBLE:
        return DOUBLE_DATA
    if dtype == INT64:
        return INT64_DATA
    if dtype == STRING:
        return STRING_DATA
    if dtype == BYTE:
        return BYTE_DATA
    if dtype in (INT32, BOOL, UINT8, INT8, UINT16, INT16, FLOAT16):
        return INT32_DATA
    return 0


def parse(message, data):
    """A message that comes as bytes, or parsed already.

    Parameters
    ----------
    message : type
        Its class.
    data : bytes or message

    Raises
    ------
    RuntimeError
        If the bytes are not such a message.
    """
    if isinstance(data, message):
        return data
    try:
        return message.FromString(data)
    except (DecodeError, TypeError) as e:
        raise RuntimeError(f"not a {message.DESCRIPTOR.name}, or a corrupt or truncated one: {e}") from e


# ---------------------------------------------------------------- varints

cdef int corrupt(const char* why) except -1 nogil:
    with gil:
        raise RuntimeError(f"corrupt message: {why.decode()}")


cdef inline size_t varint_size(uint64_t v) noexcept nogil:
    cdef size_t n = 1
    while v >= 0x80:
        v >>= 7
        n += 1
    return n


cdef inline unsigned char* put_varint(unsigned char* p, uint64_t v) noexcept nogil:
    while v >= 0x80:
        p[0] = <unsigned char>(v | 0x80)
        p += 1
        v >>= 7
    p[0] = <unsigned char>v
    return p + 1


cdef inline bytes_t get_varint(bytes_t p, bytes_t end, uint64_t* v) noexcept nogil:
    """The byte after the varint at p, NULL where it is cut off or too long."""
    cdef int shift = 0
    v[0] = 0
    while p < end and shift < 70:
        v[0] |= <uint64_t>(p[0] & 0x7f) << shift
        if p[0] < 0x80:
            return p + 1
        p += 1
        shift += 7
    return NULL


cdef int64_t count_varints(bytes_t p, bytes_t end) noexcept nogil:
    """How many there are, -1 where one is cut off or too long."""
    cdef int64_t n = 0
    cdef int more = 0
    while p < end:
        if p[0] < 0x80:
            n += 1
            more = 0
        else:
            more += 1
            if more > 9:
                return -1
        p += 1
    return -1 if more else n


# ---------------------------------------------------------------- integers of any width

cdef inline int64_t load(const void* x, int64_t i, int dtype) noexcept nogil:
    if dtype == INT64:
        return (<const int64_t*>x)[i]
    if dtype == INT32:
        return (<const int32_t*>x)[i]
    if dtype == INT16:
        return (<const int16_t*>x)[i]
    if dtype == INT8:
        return (<const int8_t*>x)[i]
    if dtype == UINT16 or dtype == FLOAT16:
        return (<const uint16_t*>x)[i]
    return (<const uint8_t*>x)[i]


cdef inline void store(void* y, int64_t i, int dtype, int64_t v) noexcept nogil:
    if dtype == INT64:
        (<int64_t*>y)[i] = v
    elif dtype == INT32:
        (<int32_t*>y)[i] = <int32_t>v
    elif dtype in (INT16, UINT16, FLOAT16):
        (<uint16_t*>y)[i] = <uint16_t>v
    elif dtype == BOOL:
        (<uint8_t*>y)[i] = v != 0
    else:
        (<uint8_t*>y)[i] = <uint8_t>v


# ---------------------------------------------------------------- reading

cdef int next_field(bytes_t* p, bytes_t end, field_t* field) except -1 nogil:
    cdef uint64_t tag, v
    cdef bytes_t at = p[0]
    if at >= end:
        return 0
    at = get_varint(at, end, &tag)
    if at == NULL or tag >> 3 == 0 or tag >> 3 >= 1 << 29:
        return corrupt(b"bad field number")
    field.number = <int>(tag >> 3)
    field.wire_type = <int>(tag & 7)
    field.data = field.end = NULL
    if field.wire_type == 0:
        at = get_varint(at, end, &v)
        if at == NULL:
            return corrupt(b"it is truncated")
        field.value = v
        p[0] = at
        return 1
    if field.wire_type == 2:
        at = get_varint(at, end, &v)
        if at == NULL:
            return corrupt(b"it is truncated")
    elif field.wire_type == 1:
        v = 8
    elif field.wire_type == 5:
        v = 4
    else:
        return corrupt(b"unknown wire type")
    if v > <uint64_t>(end - at):
        return corrupt(b"it is truncated")
    field.data = at
    field.end = p[0] = at + v
    return 1


cdef int64_t count_values(const field_t* f) except -1 nogil:
    """How many values a field of TensorProto holds; packed and single ones are both valid."""
    cdef int64_t n = f.end - f.data
    cdef int width
    if f.number == FLOAT_DATA or f.number == DOUBLE_DATA:
        width = 4 if f.number == FLOAT_DATA else 8
        if f.wire_type == 0 or n % width:
            return corrupt(b"values are cut off")
        return n // width
    if f.number == INT32_DATA or f.number == INT64_DATA:
        if f.wire_type == 0:
            return 1
        n = count_varints(f.data, f.end)
        return corrupt(b"values are cut off") if n < 0 or f.wire_type != 2 else n
    if f.wire_type != 2:
        return corrupt(b"bytes expected")
    return 1 if f.number == STRING_DATA else n


cdef int parse_segment(proto_t* proto, const field_t* segment) except -1 nogil:
    cdef field_t f
    cdef bytes_t p = segment.data
    if segment.wire_type != 2:
        return corrupt(b"bad segment")
    while next_field(&p, segment.end, &f):
        if f.wire_type == 0 and f.number == 1:
            proto.begin = <int64_t>f.value
        elif f.wire_type == 0 and f.number == 2:
            proto.stop = <int64_t>f.value
    return 0


cdef int add_dims(proto_t* proto, const field_t* f) except -1 nogil:
    cdef bytes_t p = f.data
    cdef uint64_t v = f.value
    while True:
        if f.wire_type == 2:
            if p == f.end:
                return 0
            p = get_varint(p, f.end, &v)
        if (f.wire_type != 0 and f.wire_type != 2) or (f.wire_type == 2 and p == NULL):
            return corrupt(b"bad dimensions")
        if proto.ndim == MAX_DIMS:
            return corrupt(b"the tensor has too many dimensions")
        if <int64_t>v < 0:
            return corrupt(b"negative dimension")
        proto.shape[proto.ndim] = <int64_t>v
        proto.ndim += 1
        if f.wire_type == 0:
            return 0


cdef int parse_tensor(proto_t* proto, bytes_t data, bytes_t end) except -1 nogil:
    cdef field_t f
    cdef bytes_t p = data
    cdef int64_t[16] counts
    cdef int64_t positive = 1
    cdef int i, dtype = FLOAT
    cdef bint empty = False
    memset(counts, 0, sizeof(counts))
    memset(proto, 0, sizeof(proto_t))
    proto.start = data
    proto.end = end
    proto.stop = -1
    while next_field(&p, end, &f):
        if f.number == DIMS:
            add_dims(proto, &f)
        elif f.number == DATA_TYPE and f.wire_type == 0:
            dtype = <int>f.value
        elif f.number == DATA_FORMAT and f.wire_type == 0:
            if f.value > 1:
                return corrupt(b"unknown data format")
            proto.bfloat16 = f.value == 1
        elif f.number == SEGMENT:
            parse_segment(proto, &f)
        elif f.number in (FLOAT_DATA, INT32_DATA, STRING_DATA, DOUBLE_DATA, INT64_DATA):
            counts[f.number] += count_values(&f)
        elif f.number == BYTE_DATA or f.number == RAW_DATA:    # the last one holds
            counts[f.number] = count_values(&f)
    proto.dtype = UINT8 if dtype == BYTE else dtype
    proto.field = field_of(dtype)
    if proto.field == 0:
        return corrupt(b"unknown data type")
    for i in range(proto.ndim):
        if proto.shape[i] == 0:
            empty = True
        elif positive > INT64_MAX // proto.shape[i]:
            return corrupt(b"dimensions exceed the address space")
        else:
            positive *= proto.shape[i]
    proto.size = 0 if empty else positive
    if proto.stop == -1:
        proto.stop = proto.size
    if not 0 <= proto.begin <= proto.stop <= proto.size:
        return corrupt(b"the segment lies outside of the tensor")
    proto.bfloat16 = proto.bfloat16 and dtype == FLOAT
    if proto.bfloat16:
        proto.field = RAW_DATA
    elif dtype == FLOAT16 and counts[BYTE_DATA]:
        proto.field = BYTE_DATA
    if proto.field == BYTE_DATA and dtype == FLOAT16 or proto.field == RAW_DATA:
        if counts[proto.field] % 2:
            return corrupt(b"values are cut off")
        counts[proto.field] //= 2
    if counts[proto.field] != proto.stop - proto.begin:
        with gil:
            raise RuntimeError(f"corrupt message: {counts[proto.field]} {dtype_name(dtype)} values "
                               f"where {proto.stop - proto.begin} are announced")
    return 0


cdef int write_values(const proto_t* proto, tensor_t* t, int64_t at) except -1 nogil:
    cdef field_t f
    cdef bytes_t p = proto.start
    cdef bytes_t v
    cdef uint64_t value
    cdef int64_t i, n
    cdef int64_t start = at
    cdef size_t width = itemsize(t.dtype)
    while next_field(&p, proto.end, &f):
        if f.number != proto.field:
            continue
        if f.number == INT32_DATA or f.number == INT64_DATA:
            if f.wire_type == 0:
                store(t.data, at, t.dtype, <int64_t>f.value)
                at += 1
                continue
            v = f.data
            while v < f.end:
                if v[0] < 0x80:
                    value = v[0]
                    v += 1
                else:
                    v = get_varint(v, f.end, &value)
                store(t.data, at, t.dtype, <int64_t>value)
                at += 1
        elif f.number == STRING_DATA:
            with gil:
                set_string(t, at, PyBytes_FromStringAndSize(<const char*>f.data, f.end - f.data))
            at += 1
        elif f.number == RAW_DATA:
            n = (f.end - f.data) // 2
            for i in range(n):
                value = f.data[2 * i] | f.data[2 * i + 1] << 8
                (<uint32_t*>t.data)[start + i] = <uint32_t>value << 16
        else:
            if f.number == BYTE_DATA:
                at = start
            memcpy(<char*>t.data + at * width, f.data, f.end - f.data)
            at += (f.end - f.data) // width
    return 0


cdef struct blob_t:
    field_t type
    field_t tensor
    int chunks


cdef int parse_blob(blob_t* blob, bytes_t p, bytes_t end) except -1 nogil:
    cdef field_t f
    memset(blob, 0, sizeof(blob_t))
    while next_field(&p, end, &f):
        if f.number == 2 and f.wire_type == 2:
            blob.type = f
        elif f.number == 3 and f.wire_type == 2:
            blob.tensor = f
        elif f.number == 6 and f.wire_type == 0:
            blob.chunks = <int>f.value
    return 0


cdef str type_of(const blob_t* blob):
    if blob.type.data == NULL:
        return ""
    return blob.type.data[:blob.type.end - blob.type.data].decode(errors="replace")


cdef Tensor new_tensor(const proto_t* proto):
    cdef Tensor t = Tensor.__new__(Tensor)
    try:
        resize(t.t, proto.ndim, proto.shape, proto.dtype)
    except (ValueError, OverflowError) as e:
        raise RuntimeError(f"corrupt message: {e}") from None
    return t


cdef bint fits(const proto_t* proto, const tensor_t* t) noexcept:
    """Whether t has the shape and dtype of the tensor that the message is about."""
    cdef int i
    for i in range(proto.ndim):
        if i >= t.ndim or t.shape[i] != proto.shape[i]:
            return False
    return t.ndim == proto.ndim and t.dtype == proto.dtype


def deserialize_tensor(const unsigned char[::1] data not None):
    """The `Tensor` that a serialized TensorProto (bytes) describes."""
    cdef proto_t proto
    cdef bytes_t start = &data[0] if data.shape[0] else NULL
    parse_tensor(&proto, start, start + data.shape[0])
    if proto.stop - proto.begin != proto.size:
        raise RuntimeError(
            f"the message holds elements {proto.begin} to {proto.stop} of {proto.size} only")
    cdef Tensor t = new_tensor(&proto)
    with nogil:
        write_values(&proto, t.t, 0)
    return t


cdef object restore(const blob_t* blob, bytes data):
    """Contents that are no tensor."""
    from caffe2.proto import caffe2_pb2

    type_name = type_of(blob)
    if type_name not in _restore:
        raise RuntimeError(f"no deserializer for type {type_name!r}")
    if blob.chunks > 1:
        raise RuntimeError(f"a blob of type {type_name!r} in chunks cannot be read")
    try:
        message = caffe2_pb2.BlobProto.FromString(data)
    except Exception as e:
        raise RuntimeError(f"corrupt message: {e}") from None
    return _restore[type_name](message)


def deserialize(bytes data not None, Tensor into=None):
    """What a serialized BlobProto holds.

    Parameters
    ----------
    data : bytes
        The message.
    into : Tensor, optional
        Where the message is a chunk of a tensor of this shape and type, it is written into it.

    Returns
    -------
    Tensor, bytes or another object

    Raises
    ------
    RuntimeError
        If the message is corrupt, or of a type that nobody registered.
    """
    cdef blob_t blob
    cdef proto_t proto
    cdef Tensor t
    cdef bytes_t start = <bytes_t>PyBytes_AS_STRING(data)
    parse_blob(&blob, start, start + len(data))
    if type_of(&blob) != _TENSOR:
        return restore(&blob, data)
    parse_tensor(&proto, blob.tensor.data, blob.tensor.end)
    if into is not None and proto.stop - proto.begin < proto.size and fits(&proto, into.t):
        t = into
        t.t.version += 1
    else:
        t = new_tensor(&proto)
    with nogil:
        write_values(&proto, t.t, proto.begin)
    return t


cdef class Assembler:
    """Puts blobs together from serialized parts, which may come in any order.

    Attributes
    ----------
    contents : dict
        Name -> content, of complete and incomplete blobs.
    """

    cdef readonly dict contents
    cdef dict _parts            # name -> [(begin, end), ...] of tensors that wait for more

    def __init__(self):
        self.contents = {}
        self._parts = {}

    def add(self, name, bytes data not None):
        """Take one serialized BlobProto; return whether the blob is now complete.

        Raises
        ------
        RuntimeError
            If the part is corrupt, does not fit the others of that name, or is one too many.
        """
        cdef blob_t blob
        cdef proto_t proto
        cdef Tensor t
        cdef bytes_t start = <bytes_t>PyBytes_AS_STRING(data)
        if name in self.contents and name not in self._parts:
            raise RuntimeError(f"blob {name} is complete, yet another part of it was found")
        try:
            parse_blob(&blob, start, start + len(data))
            if type_of(&blob) != _TENSOR:
                if name in self._parts:
                    raise RuntimeError("parts are of different types")
                self.contents[name] = restore(&blob, data)
                return True
            parse_tensor(&proto, blob.tensor.data, blob.tensor.end)
            t = self.contents.get(name)
            if t is None:
                t = self.contents[name] = new_tensor(&proto)
            elif not fits(&proto, t.t):
                raise RuntimeError("parts are of different shapes or types")
        except RuntimeError as e:
            raise RuntimeError(f"blob {name}: {e}") from None
        parts = self._parts.setdefault(name, [])
        if any(b < proto.stop and proto.begin < e for b, e in parts):
            raise RuntimeError(f"blob {name}: elements {proto.begin} to {proto.stop} occur twice")
        with nogil:
            write_values(&proto, t.t, proto.begin)
        parts.append((proto.begin, proto.stop))
        if sum([e - b for b, e in parts]) < t.t.size:
            return False
        del self._parts[name]
        return True

    def finish(self):
        """Raise RuntimeError if a blob is incomplete."""
        for name, parts in self._parts.items():
            raise RuntimeError(f"blob {name} is incomplete: {sum([e - b for b, e in parts])} of "
                               f"{self.contents[name].size} elements found")


# ---------------------------------------------------------------- writing

cdef bytes varint(uint64_t v):
    cdef unsigned char[10] buffer
    cdef Py_ssize_t n = put_varint(buffer, v) - buffer
    return buffer[:n]


cdef list block(int number, data):
    """A field of bytes."""
    return [varint(number << 3 | 2), varint(len(data)), data]


cdef bytes integers(const tensor_t* t, int64_t begin, int64_t end):
    cdef size_t n = 0
    cdef int64_t i
    cdef bytes result
    cdef unsigned char* p
    with nogil:
        for i in range(begin, end):
            n += varint_size(load(t.data, i, t.dtype))
    result = PyBytes_FromStringAndSize(NULL, n)
    p = <unsigned char*>PyBytes_AS_STRING(result)
    with nogil:
        for i in range(begin, end):
            p = put_varint(p, load(t.data, i, t.dtype))
    return result


cdef bytes rounded(const tensor_t* t, int64_t begin, int64_t end):
    """Floats as bfloat16, rounded to nearest."""
    cdef bytes result = PyBytes_FromStringAndSize(NULL, 2 * (end - begin))
    cdef uint16_t* to = <uint16_t*>PyBytes_AS_STRING(result)
    cdef const uint32_t* x = <const uint32_t*>t.data
    cdef int64_t i
    for i in range(begin, end):
        if (x[i] & 0x7fffffff) > 0x7f800000:                        # NaN stays one
            to[i - begin] = <uint16_t>(x[i] >> 16 | 0x40)
        else:
            to[i - begin] = <uint16_t>((x[i] + 0x8000) >> 16)
    return result


cdef bytes encode_tensor(Tensor tensor, bytes name, int64_t begin, int64_t end, bint bfloat16):
    """TensorProto of elements begin to end."""
    cdef tensor_t* t = tensor.t
    cdef int64_t i
    cdef int number = field_of(t.dtype)
    cdef size_t width = itemsize(t.dtype)
    cdef char* start
    cdef list parts = []
    cdef list tail = []
    if number == 0:
        raise RuntimeError("a tensor that holds nothing yet cannot be serialized")
    device = tensor.device
    if device[0] != 0:
        tensor = Tensor(tensor.fetch())
        t = tensor.t
    for i in range(t.ndim):
        parts += [b"\x08", varint(t.shape[i])]
    parts += [b"\x10", varint(t.dtype)]
    if bfloat16 and t.dtype == FLOAT:
        tail = block(RAW_DATA, rounded(t, begin, end))
        values = []
    elif number == STRING_DATA:
        values = []
        for i in range(begin, end):
            values += block(STRING_DATA, get_string(t, i))
    elif begin == end:
        values = []
    elif number == FLOAT_DATA or number == DOUBLE_DATA:
        start = <char*>t.data + begin * width
        values = block(number, PyMemoryView_FromMemory(start, (end - begin) * width, PyBUF_READ))
    else:
        values = block(number, integers(t, begin, end))
    detail = b"\x08" + varint(device[0]) + (b"\x10" + varint(device[1]) if device[0] else b"")
    between = block(NAME, name) + block(DEVICE_DETAIL, detail)
    # in the order of field numbers
    parts += between + values if number in (DOUBLE_DATA, INT64_DATA) else values + between
    parts += block(SEGMENT, b"\x08" + varint(begin) + b"\x10" + varint(end)) + tail
    if t.dtype == FLOAT:
        parts += [b"\x78", b"\x01" if bfloat16 else b"\x00"]
    return b"".join(parts)


cdef bytes encode(name):
    return name if isinstance(name, bytes) else name.encode()


def serialize_tensor(Tensor tensor not None, name=""):
    """A tensor as a serialized TensorProto (bytes)."""
    return encode_tensor(tensor, encode(name), 0, tensor.t.size, False)


cdef bytes encode_blob(Tensor tensor, bytes name, int64_t begin, int64_t end, bint bfloat16):
    message = encode_tensor(tensor, name, begin, end, bfloat16)
    return b"".join(block(1, name) + block(2, _TENSOR.encode()) + block(3, message))


def check_serializable(content, name):
    """Raise RuntimeError unless `serialize` knows how to write that."""
    if content is None:
        raise RuntimeError(f"blob {name} holds nothing yet and cannot be serialized")
    if not isinstance(content, Tensor) and _writer(content) is None:
        raise RuntimeError(f"blob {name} cannot be serialized: it holds a {type(content).__name__}")


def serialize(content, name):
    """A blob's content as a serialized BlobProto.

    Parameters
    ----------
    content : Tensor, bytes or any object whose type was registered
        What to write.
    name : str
        The blob's name, which the message carries.

    Returns
    -------
    bytes
    """
    ((_, data),) = chunks(content, name, NO_CHUNKS)
    return data


def chunks(content, name, int64_t chunk_size=0, bint bfloat16=False):
    """Serialize as `serialize` does, a tensor in chunks.

    Parameters
    ----------
    content, name
        As in `serialize`.
    chunk_size : int
        Elements in a chunk; 0 stands for `DEFAULT_CHUNK`, `NO_CHUNKS` for all.
    bfloat16 : bool
        Whether float tensors are rounded to that format, which takes half the room.

    Yields
    ------
    key : str
        Under which a database holds the chunk.
    data : bytes
        A serialized BlobProto.
    """
    cdef int64_t begin, end, size, step
    check_serializable(content, name)
    if isinstance(content, Tensor):
        size = content.size
        step = chunk_size or DEFAULT_CHUNK
        if step < 0:
            step = max(size, 1)
        for begin in range(0, max(size, 1), step):
            end = min(begin + step, size)
            data = encode_blob(content, encode(name), begin, end, bfloat16)
            yield f"{name}#%{begin // step}", data
        return
    from caffe2.proto import caffe2_pb2

    type_name, fill = _writer(content)
    message = caffe2_pb2.BlobProto(name=name, type=type_name)
    fill(content, message)
    yield name, message.SerializeToString()


# ---------------------------------------------------------------- other types

cdef dict _fill = {}            # class -> (type name, function)
cdef dict _restore = {}         # type name -> function


def _writer(content):
    for cls in type(content).__mro__:
        if cls in _fill:
            return _fill[cls]
    return None


def register_type(type_name, cls, fill, restore):
    """Make objects of a class serializable.

    Parameters
    ----------
    type_name : str
        What the BlobProto calls the type.
    cls : type
        Subclasses are included.
    fill : callable
        ``fill(object, message)`` writes it to a BlobProto, whose name and type are set.
    restore : callable
        ``restore(message)`` makes the object of a BlobProto.
    """
    if type_name in _restore:
        raise ValueError(f"type {type_name!r} has a serializer already")
    _fill[cls] = type_name, fill
    _restore[type_name] = restore


def _fill_bytes(content, message):
    message.content = content


register_type(_STRING, bytes, _fill_bytes, lambda message: message.content)

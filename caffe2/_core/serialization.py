"""BlobProto <-> the contents of a blob."""
from caffe2._core.tensor import Tensor


def serialize(content, name, chunk_size=None):
    import numpy as np

    from caffe2.proto import caffe2_pb2

    p = caffe2_pb2.BlobProto(name=name)
    if isinstance(content, bytes):
        p.type = "std::string"
        p.content = content
        return p.SerializeToString()
    a = content.fetch()
    p.type = "Tensor"
    t = p.tensor
    t.name = name
    t.dims.extend(a.shape)
    t.data_type = content.data_type
    t.segment.begin, t.segment.end = 0, a.size
    flat = a.ravel()
    field = {1: "float_data", 10: "int64_data", 13: "double_data", 4: "string_data"}.get(t.data_type, "int32_data")
    if t.data_type == 12:
        flat = flat.view(np.uint16)
    getattr(t, field).extend(flat.tolist())
    return p.SerializeToString()


def deserialize(data):
    import numpy as np

    from caffe2.proto import caffe2_pb2

    p = caffe2_pb2.BlobProto.FromString(data)
    if p.type != "Tensor":
        return p.content
    t = p.tensor
    dtype = {1: "f4", 2: "i4", 3: "u1", 4: object, 5: "?", 6: "u1", 7: "i1", 8: "u2", 9: "i2", 10: "i8", 12: "u2",
             13: "f8"}[t.data_type]
    field = {1: "float_data", 10: "int64_data", 13: "double_data", 4: "string_data"}.get(t.data_type, "int32_data")
    a = np.array(getattr(t, field), dtype)
    if t.data_type == 12:
        a = a.view(np.float16)
    return Tensor(a.reshape(tuple(t.dims)))

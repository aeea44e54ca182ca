"""Arguments, tensors and messages: small conversions used everywhere."""
import copy
import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message

from caffe2.proto import caffe2_pb2

OPTIMIZER_ITERATION_NAME = "optimizer_iteration"
ITERATION_MUTEX_NAME = "iteration_mutex"

string_types = (str,)
integer_types = (int,)

_T = caffe2_pb2.TensorProto
# TensorProto.DataType -> numpy dtype, field of TensorProto that holds the values
_TENSOR_FIELDS = {
    _T.FLOAT: (np.float32, "float_data"),
    _T.DOUBLE: (np.float64, "double_data"),
    _T.INT32: (np.int32, "int32_data"),
    _T.INT64: (np.int64, "int64_data"),
    _T.INT16: (np.int16, "int32_data"),
    _T.UINT16: (np.uint16, "int32_data"),
    _T.INT8: (np.int8, "int32_data"),
    _T.UINT8: (np.uint8, "int32_data"),
    _T.BOOL: (np.bool_, "int32_data"),
    _T.BYTE: (np.uint8, "byte_data"),
    _T.FLOAT16: (np.float16, "byte_data"),
    _T.STRING: (object, "string_data"),
}
_DATA_TYPES = {np.dtype(d): t for t, (d, _) in _TENSOR_FIELDS.items() if t != _T.BYTE}


def OpAlmostEqual(op_a: Message, op_b: Message, ignore_fields: Any = None) -> bool:
    """Say whether two operators are equal but for the fields named in `ignore_fields`."""
    fields = ignore_fields or []
    if not isinstance(fields, list):
        fields = [fields]
    assert all(isinstance(f, str) for f in fields), f"Expect field names, but got {fields}"

    def cleaned(op: Message) -> Message:
        op = copy.deepcopy(op)
        for f in fields:
            op.ClearField(f)
        return op

    return cleaned(op_a) == cleaned(op_b)


def CaffeBlobToNumpyArray(blob: Any) -> np.ndarray:
    """Convert a BlobProto of Caffe, old (num, channels, height, width) or new (shape) style."""
    dims = ((blob.num, blob.channels, blob.height, blob.width) if blob.num != 0
            else blob.shape.dim)
    return np.asarray(blob.data, dtype=np.float32).reshape(dims)


def Caffe2TensorToNumpyArray(tensor: caffe2_pb2.TensorProto) -> np.ndarray:
    """Convert a TensorProto to an array; strings become bytes in an object array."""
    if tensor.data_type not in _TENSOR_FIELDS:
        raise RuntimeError(f"Tensor data type not supported yet: {tensor.data_type}")
    dtype, field = _TENSOR_FIELDS[tensor.data_type]
    if tensor.raw_data or field == "byte_data":
        raw = tensor.raw_data or tensor.byte_data
        flat = np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).astype(dtype)
    else:
        values = getattr(tensor, field)
        flat = np.empty(len(values), dtype)
        flat[:] = values
    return flat.reshape(tuple(tensor.dims))


def NumpyArrayToCaffe2Tensor(arr: np.ndarray, name: str | None = None) -> caffe2_pb2.TensorProto:
    """Convert an array to a TensorProto."""
    arr = np.asarray(arr)
    if arr.dtype.kind in "SU":
        arr = arr.astype(object)
    if arr.dtype not in _DATA_TYPES:
        raise RuntimeError(f"Numpy data type not supported yet: {arr.dtype}")
    tensor = caffe2_pb2.TensorProto(dims=arr.shape, data_type=_DATA_TYPES[arr.dtype])
    if name:
        tensor.name = str(name)
    field = _TENSOR_FIELDS[tensor.data_type][1]
    if field == "byte_data":
        tensor.byte_data = arr.astype(arr.dtype.newbyteorder("<")).tobytes()
    else:
        values = (arr.view(np.uint8) if arr.dtype == bool else arr).ravel().tolist()
        if field == "string_data":
            values = [v.encode() if isinstance(v, str) else v for v in values]
        getattr(tensor, field).extend(values)
    return tensor


_SCALAR_FIELDS = {float: "f", int: "i", bool: "i", bytes: "s", str: "s"}
_LIST_FIELDS = {"f": "floats", "i": "ints", "s": "strings"}


def MakeArgument(key: str, value: Any) -> caffe2_pb2.Argument:
    """Make an argument whose field follows from the type of `value`.

    Parameters
    ----------
    key : str
    value : number, string, NetDef, other message, or an iterable of one of these kinds
        Booleans are stored as integers, messages other than NetDef as strings.
    """
    argument = caffe2_pb2.Argument(name=key)
    if isinstance(value, np.ndarray):
        value = value.ravel().tolist()
    if isinstance(value, caffe2_pb2.NetDef):
        argument.n.CopyFrom(value)
        return argument
    if isinstance(value, (str, bytes, Message)) or not isinstance(value, Iterable):
        kind, value = _plain(value)
        if kind is None:
            raise ValueError(
                f"Unknown argument type: key={key} value={value}, value type={type(value)}")
        setattr(argument, kind, value)
        return argument

    value = list(value)
    kinds = {_SCALAR_FIELDS.get(t) for t in set(map(type, value))}
    if len(kinds) == 1 and kinds <= {"f", "i"}:  # long lists of numbers are common
        convert = {"f": float, "i": int}[kind := kinds.pop()]  # protobuf refuses booleans
        getattr(argument, _LIST_FIELDS[kind]).extend(map(convert, value))
        return argument
    if all(isinstance(v, caffe2_pb2.NetDef) for v in value):
        argument.nets.extend(value)
        return argument
    plain = [_plain(v) for v in value]
    kinds = {kind for kind, _ in plain}
    if None in kinds or len(kinds) != 1:
        raise ValueError(
            f"Unknown iterable argument type: key={key} value={value}, "
            f"value type={type(value)}[{ {type(v) for v in value} }]")
    getattr(argument, _LIST_FIELDS[kinds.pop()]).extend(v for _, v in plain)
    return argument


def _plain(value: Any) -> tuple[str | None, Any]:
    """Return the field of Argument for a single value, None if there is none, and the value."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):  # protobuf refuses booleans
        return "i", int(value)
    if isinstance(value, Message):
        return "s", value.SerializeToString()
    for cls in type(value).__mro__:
        if cls in _SCALAR_FIELDS:
            return _SCALAR_FIELDS[cls], value.encode() if cls is str else value
    return None, value


def TryReadProtoWithClass(cls: type, s: str | bytes) -> Message:
    """Read a message of class `cls` from its text or its binary form.

    Raises
    ------
    google.protobuf.message.DecodeError
        If it is neither.
    """
    try:
        return text_format.Parse(s, cls())
    except (text_format.ParseError, UnicodeDecodeError):
        pass
    try:
        return cls.FromString(s.encode("latin-1") if isinstance(s, str) else s)
    except UnicodeEncodeError as error:
        raise DecodeError(f"Not a {cls.__name__} in text or binary form") from error


def GetContentFromProto(obj: Message, function_map: Mapping[type, Callable]) -> Any:
    """Apply the function that `function_map` has for the class of `obj`, if any."""
    func = function_map.get(type(obj))
    return None if func is None else func(obj)


def GetContentFromProtoString(s: str | bytes, function_map: Mapping[type, Callable]) -> Any:
    """Apply the function of the first class in `function_map` as which `s` can be read."""
    for cls, func in function_map.items():
        try:
            obj = TryReadProtoWithClass(cls, s)
        except DecodeError:
            continue
        return func(obj)
    raise DecodeError("Cannot find a fit protobuffer class.")


def ConvertProtoToBinary(proto_class: type, filename: str, out_filename: str) -> None:
    """Convert a file with a message in text form to binary form."""
    with open(filename, "rb") as f:
        proto = TryReadProtoWithClass(proto_class, f.read())
    with open(out_filename, "wb") as f:
        f.write(proto.SerializeToString())


def GetGPUMemoryUsageStats() -> dict:
    """Return current and largest memory use, by GPU and in total."""
    from caffe2.python import core, workspace
    workspace.RunOperatorOnce(core.CreateOperator(
        "GetGPUMemoryUsage", [], ["____mem____"],
        device_option=core.DeviceOption(workspace.GpuDeviceType, 0)))
    used, largest = workspace.FetchBlob("____mem____")
    return {"total_by_gpu": used, "max_by_gpu": largest,
            "total": np.sum(used), "max_total": np.sum(largest)}


def ResetBlobs(blobs: Iterable) -> None:
    """Free the content of blobs."""
    from caffe2.python import core, workspace
    blobs = list(blobs)
    workspace.RunOperatorOnce(core.CreateOperator(
        "Free", blobs, blobs, device_option=core.DeviceOption(caffe2_pb2.CPU)))


def BuildUniqueMutexIter(
        init_net: Any, net: Any, iter: Any = None, iter_mutex: Any = None,
        iter_val: int = 0) -> Any:
    """Return the iteration counter of a training net, made at the first call.

    Parameters
    ----------
    init_net, net : Net
        The net that fills the counter and the one that counts.
    iter, iter_mutex : blob name, optional
        The counter and the mutex that guards it.
    iter_val : int
        First value.
    """
    from caffe2.python import core
    iter = OPTIMIZER_ITERATION_NAME if iter is None else iter
    iter_mutex = ITERATION_MUTEX_NAME if iter_mutex is None else iter_mutex
    if init_net.BlobIsDefined(iter):
        return init_net.GetBlobRef(iter)
    device = core.DeviceOption(caffe2_pb2.CPU, extra_info=["device_type_override:cpu"])
    with core.DeviceScope(device):
        iteration = init_net.ConstantFill(
            [], iter, shape=[1], value=iter_val, dtype=core.DataType.INT64)
        mutex = init_net.CreateMutex([], [iter_mutex])
        net.AtomicIter([mutex, iteration], [iteration])
    return iteration


def EnumClassKeyVals(cls: type) -> dict[str, str]:
    """Return the attributes of a class used as an enumeration: capital names, string values."""
    assert type(cls) is type, f"{cls} is not a plain class"
    enum = {k: v for k in dir(cls) if k == k.upper() and isinstance(v := getattr(cls, k), str)}
    assert len(set(enum.values())) == len(enum), f"{cls} has duplicate values: {enum}"
    return enum


def ArgsToDict(args: Iterable) -> dict:
    """Return the values of arguments by name; None for an argument without a value."""
    return {
        arg.name: next(
            (value for field, value in arg.ListFields() if field.name != "name"), None)
        for arg in args if arg.HasField("name")
    }


def NHWC2NCHW(tensor: np.ndarray) -> np.ndarray:
    """Move the last axis, channels, behind the first."""
    assert tensor.ndim >= 1
    return np.moveaxis(tensor, -1, 1) if tensor.ndim > 1 else tensor


def NCHW2NHWC(tensor: np.ndarray) -> np.ndarray:
    """Move the second axis, channels, to the end."""
    assert tensor.ndim >= 2
    return np.moveaxis(tensor, 1, -1)


class DebugMode:
    """Drops into the debugger at an unhandled exception: ``DebugMode.run(main)``."""

    @classmethod
    def run(cls, func: Callable) -> Any:
        """Call `func`; on an exception start the debugger, then exit."""
        try:
            return func()
        except Exception as error:
            import pdb
            print(error)
            pdb.post_mortem()
            sys.exit(1)


def raiseIfNotEqual(a: Any, b: Any, msg: str) -> None:
    """Raise an exception with `msg` if the values differ."""
    if a != b:
        raise Exception(f"{msg}. {a} != {b}")


def debug(f: Callable) -> Callable:
    """Decorate a function so that it runs in DebugMode."""

    @functools.wraps(f)
    def wrapper(*args, **kwargs):
        return DebugMode.run(functools.partial(f, *args, **kwargs))

    return wrapper

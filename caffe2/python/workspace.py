"""Blobs, nets and plans of the current workspace: feed, fetch, create and run."""
import contextlib
import os
import shutil
import sys
import tempfile
from collections import defaultdict, namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message

import caffe2.python._import_c_extension as C
from caffe2.proto import caffe2_pb2
from caffe2.python import scope, utils

Blobs = C.blobs
CreateBlob = C.create_blob
CreateOfflineTensor = C.create_offline_tensor
CurrentWorkspace = C.current_workspace
DeserializeBlob = C.deserialize_blob
GlobalInit = C.global_init
HasBlob = C.has_blob
RegisteredOperators = C.registered_operators
ResetBlob = C.reset_blob
SerializeBlob = C.serialize_blob
SwitchWorkspace = C.switch_workspace
RootFolder = C.root_folder
Workspaces = C.workspaces
BenchmarkNet = C.benchmark_net
BenchmarkNetOnce = C.benchmark_net_once
GetStats = C.get_stats
IsNUMAEnabled = C.is_numa_enabled
GetNumNUMANodes = C.get_num_numa_nodes
GetBlobNUMANode = C.get_blob_numa_node
GetBlobSizeBytes = C.get_blob_size_bytes

is_asan = C.is_asan
has_fbgemm = C.has_fbgemm
has_hip_support = C.has_hip_support
GpuDeviceType = caffe2_pb2.HIP if has_hip_support else caffe2_pb2.CUDA

# net name -> operator index -> stack in which the operator was made, innermost frame first
operator_tracebacks: dict[str, dict[int, list[tuple]]] = defaultdict(dict)

_FOLDER = os.path.dirname(__file__)

Int8Tensor = namedtuple("Int8Tensor", ["data", "scale", "zero_point"])


def __getattr__(name: str) -> Any:
    if name in ("has_cuda_support", "has_gpu_support"):
        return getattr(C, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def NumGpuDevices() -> int:
    """Return the number of GPUs."""
    return C.num_cuda_devices()


NumCudaDevices = NumGpuDevices


def GetCUDAVersion() -> int:
    """Return the version of CUDA, 0 without GPU support."""
    return C.get_cuda_version() if C.has_gpu_support else 0


def GetCuDNNVersion() -> int:
    """Return the version of cuDNN, 0 without GPU support."""
    return C.get_cudnn_version() if C.has_gpu_support else 0


def GetGpuPeerAccessPattern() -> np.ndarray:
    """Return a matrix that says which GPU reaches the memory of which other."""
    return np.asarray(C.get_cuda_peer_access_pattern() if C.has_gpu_support else [])


GetCudaPeerAccessPattern = GetGpuPeerAccessPattern


def GetDeviceProperties(x: int) -> dict | None:
    """Return the properties of GPU `x`, None without GPU support."""
    return C.get_device_properties(x) if C.has_gpu_support else None


def GetGPUMemoryInfo() -> tuple[int, int] | None:
    """Return free and total memory of the current GPU in bytes, None without GPU support."""
    return C.get_gpu_memory_info() if C.has_gpu_support else None


def _free_port(wanted: int = 5000) -> int:
    import socket
    for port in (wanted, 0):
        with socket.socket() as s:
            try:
                s.bind(("", port))
            except OSError:
                continue
            return s.getsockname()[1]
    raise RuntimeError("no free port")


def StartMint(root_folder: str | None = None, port: int | None = None):
    """Start the web page that shows nets and summaries of a folder, in a process of its own."""
    from multiprocessing import Process

    from caffe2.python.mint import app
    if root_folder is None:
        root_folder = C.root_folder()
    if port is None:
        port = _free_port()
    process = Process(target=app.main, args=(["-p", str(port), "-r", root_folder],))
    process.start()
    print(f"Mint running at http://localhost:{port}")
    return process


def StringifyProto(obj: Any) -> bytes | str:
    """Serialize a message, or an object with a ``Proto()``; strings are returned as they are."""
    if isinstance(obj, (bytes, str)):
        return obj
    if isinstance(obj, Message):
        return obj.SerializeToString()
    if hasattr(obj, "Proto"):
        return obj.Proto().SerializeToString()
    raise ValueError(f"Unexpected argument to StringifyProto of type {type(obj).__name__}")


def ResetWorkspace(root_folder: str | None = None) -> bool:
    """Empty the current workspace.

    Parameters
    ----------
    root_folder : str, optional
        The new root folder, made if it is missing; by default it stays as it is.
    """
    if root_folder is None:
        return C.reset_workspace(C.root_folder())
    os.makedirs(root_folder, exist_ok=True)
    return C.reset_workspace(root_folder)


def CreateNet(net: Any, overwrite: bool = False, input_blobs: Iterable | None = None) -> bool:
    """Bind a net in the current workspace.

    Parameters
    ----------
    net : Net, NetDef or bytes
    overwrite : bool
        Whether a net of the same name is replaced; otherwise it is an error.
    input_blobs : iterable of blob names, optional
        Blobs made first, if they are missing.
    """
    for blob in input_blobs or ():
        C.create_blob(str(blob))
    return CallWithExceptionIntercept(
        C.create_net, _failed_op, GetNetName(net), StringifyProto(net), overwrite)


def Predictor(init_net: Any, predict_net: Any, optimize: bool = True):
    """Return an object whose ``run`` maps a list or dict of arrays to the list of outputs.

    Parameters
    ----------
    init_net, predict_net : Net, NetDef or bytes
    optimize : bool
        Whether the predict net is rewritten for inference when it first runs, see
        `caffe2.python.transformations.optimizeForInference`. Its outputs then differ by rounding.
    """
    return C.Predictor(StringifyProto(init_net), StringifyProto(predict_net), optimize)


def GetOperatorCost(operator: Any, blobs: Sequence[str]) -> tuple:
    """Return (flops, bytes_written, bytes_read) of an operator on blobs of the workspace."""
    return C.get_operator_cost(StringifyProto(operator), [str(b) for b in blobs])


def RunOperatorOnce(operator: Any) -> bool:
    """Bind and run an operator."""
    return C.run_operator_once(StringifyProto(operator))


def RunOperatorMultiple(operator: Any, num_runs: int) -> bool:
    """Bind an operator once and run it `num_runs` times."""
    return C.run_operator_multiple(StringifyProto(operator), num_runs)


def RunOperatorsOnce(operators: Iterable) -> bool:
    """Run operators one after the other."""
    return all(RunOperatorOnce(op) for op in operators)


def _failed_op() -> int | None:
    return getattr(sys.exception(), "position", None)


def CallWithExceptionIntercept(
        func: Callable, op_id_fetcher: Callable[[], int | None], net_name: str, *args, **kwargs) -> Any:
    """Call `func`; note on its exception where the failing operator was made.

    The note holds the innermost frames outside this package.
    """
    try:
        return func(*args, **kwargs)
    except Exception as error:
        tracebacks = operator_tracebacks.get(net_name)
        frames = (tracebacks and tracebacks.get(op_id_fetcher())) or ()
        frames = [f for f in frames if not f[0].startswith(_FOLDER)][:4]
        if frames:
            error.add_note("The operator was made here (most recent call last):\n" + "\n".join(
                f'  File "{frame[0]}", line {frame[1]}, in {frame[2]}'
                for frame in reversed(frames)))
        raise


def RunNetOnce(net: Any) -> bool:
    """Bind a net, run it and forget it."""
    return CallWithExceptionIntercept(
        C.run_net_once, _failed_op, GetNetName(net), StringifyProto(net))


def RunNet(name: Any, num_iter: int = 1, allow_fail: bool = False) -> bool:
    """Run a net that CreateNet has bound.

    Parameters
    ----------
    name : str or Net
    num_iter : int
        Number of runs.
    allow_fail : bool
        Whether a failed run returns False instead of raising.
    """
    return CallWithExceptionIntercept(
        C.run_net, _failed_op, GetNetName(name),
        StringifyNetName(name), num_iter, allow_fail)


def _plan_string(plan_or_step: Any) -> bytes | str:
    from caffe2.python import core
    if isinstance(plan_or_step, core.ExecutionStep):
        plan_or_step = core.Plan(plan_or_step)
    return StringifyProto(plan_or_step)


def RunPlan(plan_or_step: Any) -> bool:
    """Run a plan or a single execution step."""
    return C.run_plan(_plan_string(plan_or_step))


def RunPlanInBackground(plan_or_step: Any):
    """Start a plan; the object returned has ``is_done()`` and ``is_succeeded()``."""
    return C.run_plan_in_background(_plan_string(plan_or_step))


def InferShapesAndTypes(
        nets: Iterable, blob_dimensions: Mapping | None = None, nets_proto: bool = False,
        blob_types: Mapping | None = None) -> tuple[dict, dict]:
    """Infer shapes and types of the blobs of some nets.

    Parameters
    ----------
    nets : iterable of Net (NetDef if `nets_proto`)
    blob_dimensions : dict of blob name to dimensions, optional
        Shapes of the inputs; by default the blobs of the workspace tell them.
    blob_types : dict of blob name to TensorProto.DataType, optional
        Types of the inputs, FLOAT where they are not given.

    Returns
    -------
    shapes, types : dict
        By blob name, for the blobs whose shape is known.
    """
    protos = [StringifyProto(n if nets_proto else n.Proto()) for n in nets]
    if blob_dimensions is None:
        if blob_types is not None:
            raise ValueError("blob_types needs blob_dimensions")
        inferred = C.infer_shapes_and_types_from_workspace(protos)
    else:
        maps = [{str(k): list(v) for k, v in blob_dimensions.items()}]
        if blob_types is not None:
            maps.append({str(k): v for k, v in blob_types.items()})
        inferred = C.infer_shapes_and_types_from_map(protos, *maps)
    known = [s for s in caffe2_pb2.TensorShapes.FromString(inferred).shapes
             if not s.unknown_shape]
    return {s.name: list(s.dims) for s in known}, {s.name: s.data_type for s in known}


def _stringify_name(name: Any, expected_type: str) -> str:
    if isinstance(name, str):
        return name
    if isinstance(name, bytes):
        return name.decode()
    assert type(name).__name__ == expected_type, (
        f"Expected a string or {expected_type}, not {type(name).__name__}")
    return str(name)


def StringifyBlobName(name: Any) -> str:
    """Return the name of a blob given as a string or a BlobReference."""
    return _stringify_name(name, "BlobReference")


def StringifyNetName(name: Any) -> str:
    """Return the name of a net given as a string or a Net."""
    return _stringify_name(name, "Net")


def GetNetName(net: Any) -> str:
    """Return the name of a net given as a string, Net or NetDef."""
    if isinstance(net, str):
        return net
    if isinstance(net, bytes):
        return net.decode(errors="replace")
    if type(net).__name__ == "Net":
        return net.Name()
    if isinstance(net, caffe2_pb2.NetDef):
        return net.name
    raise TypeError(f"Not a Net object: {net}")


def FeedBlob(name: Any, arr: Any, device_option: Any = None) -> bool:
    """Copy a value into a blob, which is made if it is missing.

    Parameters
    ----------
    name : str or BlobReference
    arr : array, TensorProto, str or bytes
        What can be made an array becomes a tensor; a string becomes a string blob.
    device_option : DeviceOption, optional
        Where the tensor lives, by default the current device scope.

    Examples
    --------
    >>> from caffe2.python import workspace
    >>> workspace.FeedBlob("x", np.ones(3, np.float32))
    True
    """
    if type(arr) is not np.ndarray:
        if isinstance(arr, caffe2_pb2.TensorProto):
            arr = utils.Caffe2TensorToNumpyArray(arr)
    elif arr.dtype.char in "SU":
        arr = arr.astype(object)
    if device_option is None:
        device_option = scope.CurrentDeviceScope()
        if device_option is None:
            return C.feed_blob(name, arr)
    return C.feed_blob(name, arr, StringifyProto(device_option))


def FetchBlobs(names: Iterable) -> list:
    """Fetch several blobs."""
    return [FetchBlob(name) for name in names]


# A copy: numpy array of a tensor, bytes of a string blob, a description of anything else.
FetchBlob = C.fetch_blob


def FetchTorch(name: Any):
    """Return a torch tensor that shares the memory of a blob's tensor."""
    import torch
    return torch.from_numpy(C.view_blob(name))


def FetchInt8Blob(name: Any) -> Int8Tensor:
    """Fetch a quantized tensor with its scale and zero point."""
    result = FetchBlob(name)
    if not isinstance(result, tuple):
        raise TypeError(f"{name} is not an Int8 blob, use FetchBlob")
    return Int8Tensor(*result)


def FetchInt8BlobRealVal(name: Any) -> np.ndarray:
    """Fetch the float values that a quantized tensor stands for."""
    blob = FetchInt8Blob(name)
    return (blob.data.astype(np.int32) - int(blob.zero_point)).astype(np.float32) * blob.scale


def ApplyTransform(transform_key: str, net: caffe2_pb2.NetDef) -> caffe2_pb2.NetDef:
    """Return a transformed copy of a net.

    Parameters
    ----------
    transform_key : str
        Name under which the transform is registered.
    net : NetDef
    """
    return caffe2_pb2.NetDef.FromString(
        C.apply_transform(str(transform_key).encode(), net.SerializeToString()))


def ApplyTransformIfFaster(
        transform_key: str, net: caffe2_pb2.NetDef, init_net: caffe2_pb2.NetDef,
        **kwargs) -> caffe2_pb2.NetDef:
    """Return a transformed copy of a net if it runs faster in this workspace, else the net.

    Parameters
    ----------
    transform_key : str
        Name under which the transform is registered.
    net, init_net : NetDef
        The net and the one that fills its inputs.
    warmup_runs, main_runs : int, optional
        Runs before and during the measurement, 5 and 10 by default.
    improvement_threshold : float, optional
        How many times faster the transformed net must be, 1.01 by default.
    """
    return caffe2_pb2.NetDef.FromString(C.apply_transform_if_faster(
        str(transform_key).encode(), net.SerializeToString(), init_net.SerializeToString(),
        kwargs.get("warmup_runs", 5), kwargs.get("main_runs", 10),
        float(kwargs.get("improvement_threshold", 1.01))))


def FillRandomNetworkInputs(net: Any, input_dims: list, input_types: list) -> None:
    """Feed random values to the inputs of a net.

    Parameters
    ----------
    net : Net
    input_dims : list of lists of dimensions, for each operator that reads external inputs
    input_types : list of lists of type names, likewise
    """
    C.fill_random_network_inputs(net.Proto().SerializeToString(), input_dims, input_types)


def ClearGlobalNetObserver() -> None:
    """Remove the observer that is attached to every new net."""
    C.clear_global_net_observer()


def GetNameScope() -> str:
    """Return the current name scope, the prefix of the blobs made in it."""
    return scope.CurrentNameScope()


class _BlobDict(MutableMapping):
    """The blobs of the current workspace as a mapping: reading fetches, writing feeds."""

    def __getitem__(self, key: Any) -> Any:
        return FetchBlob(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        FeedBlob(key, value)

    def __delitem__(self, key: Any) -> None:
        if not C.has_blob(key):
            raise KeyError(str(key))
        C.Workspace.current.remove_blob(str(key))

    def __len__(self) -> int:
        return len(C.blobs())

    def __iter__(self) -> Iterator[str]:
        return iter(C.blobs())

    def __contains__(self, item: Any) -> bool:
        return C.has_blob(item)

    def view(self, key: Any) -> np.ndarray:
        """Return an array that shares the memory of a tensor.

        It holds what the tensor holds; a run that changes the tensor's shape detaches it.
        """
        return C.view_blob(key)

    def __repr__(self) -> str:
        lines = [f"  {blob.describe()}" for blob in C.Workspace.current.blobs.values()]
        return "\n".join([f"{len(lines)} blobs in workspace {CurrentWorkspace()!r}", *lines])


blobs = _BlobDict()


# Immediate mode: between StartImmediate and StopImmediate every operator that is created also
# runs, in a workspace of its own. It is there for debugging: operators must be created in an
# order in which they can run, and each is bound for one run only.

_immediate_mode = False
_immediate_workspace_name = "_CAFFE2_IMMEDIATE"
_immediate_root_folder = ""


def IsImmediate() -> bool:
    """Say whether operators run as they are created."""
    return _immediate_mode


@contextlib.contextmanager
def WorkspaceGuard(workspace_name: str) -> Iterator[None]:
    """Switch to a workspace, made if it is missing, and back at the end."""
    current = CurrentWorkspace()
    SwitchWorkspace(workspace_name, True)
    try:
        yield
    finally:
        SwitchWorkspace(current)


def StartImmediate(i_know: bool = False) -> None:
    """Start immediate mode afresh; `i_know` is accepted for compatibility."""
    global _immediate_mode, _immediate_root_folder
    StopImmediate()
    _immediate_root_folder = tempfile.mkdtemp()
    _immediate_mode = True
    with WorkspaceGuard(_immediate_workspace_name):
        ResetWorkspace(_immediate_root_folder)


def StopImmediate() -> None:
    """End immediate mode and free its workspace."""
    global _immediate_mode, _immediate_root_folder
    if not IsImmediate():
        return
    with WorkspaceGuard(_immediate_workspace_name):
        ResetWorkspace()
    shutil.rmtree(_immediate_root_folder)
    _immediate_root_folder = ""
    _immediate_mode = False


def ImmediateBlobs() -> list[str]:
    """Return the names of the blobs in the immediate workspace."""
    with WorkspaceGuard(_immediate_workspace_name):
        return Blobs()


def RunOperatorImmediate(op: Any) -> bool:
    """Run an operator in the immediate workspace."""
    with WorkspaceGuard(_immediate_workspace_name):
        return RunOperatorOnce(op)


def FetchImmediate(*args, **kwargs) -> Any:
    """FetchBlob in the immediate workspace."""
    with WorkspaceGuard(_immediate_workspace_name):
        return FetchBlob(*args, **kwargs)


def FeedImmediate(*args, **kwargs) -> bool:
    """FeedBlob in the immediate workspace."""
    with WorkspaceGuard(_immediate_workspace_name):
        return FeedBlob(*args, **kwargs)

# cython: binding=False
# Plain built-in functions, as those of an extension module are.
"""The runtime under the names by which clients of the original's C extension reach it (``workspace.C``).

Messages come in and go out serialized, as bytes.
"""
import contextlib
import threading

import numpy as np

from caffe2._core import gradient as _gradient
from caffe2._core import inference as _inference
from caffe2._core import registry as _registry
from caffe2._core import workspace as _workspace
from caffe2._core.blob import Blob
from caffe2._core.db import DB, Cursor, Mode, Transaction, create_db, registered_dbs
from caffe2._core.executor import bind_net
from caffe2._core.executor import create_net as _create_net
from caffe2._core.gradient import GradientWrapper
from caffe2._core.observer import OBSERVERS as _OBSERVERS
from caffe2._core.observer import Observer
from caffe2._core.operator import Operator, run_once
from caffe2._core.plan import run_plan as _run_plan
from caffe2._core.predictor import Predictor
from caffe2._core.schema import OpSchema, TensorInfo
from caffe2._core.serialization import parse
from caffe2._core.tensor import Tensor
from caffe2._core.workspace import Workspace, feed_blob, fetch_blob, view_blob, workspaces
from caffe2._core.workspace import current_name as current_workspace
# importing anything from caffe2.ops registers the operators
from caffe2.ops.python_op import register_python_gradient_op, register_python_op
from caffe2.proto import caffe2_pb2

__all__ = [
    "Blob", "Cursor", "DB", "GradientWrapper", "Mode", "Observer", "OpSchema", "Operator", "Predictor", "Tensor",
    "TensorCPU",
    "Transaction", "Workspace", "create_db", "feed_blob", "fetch_blob", "nearby_opnames", "op_registry_key",
    "register_python_gradient_op", "register_python_op", "registered_dbs", "registered_operators", "view_blob",
    "current_workspace", "workspaces",
]

TensorCPU = Tensor

has_hip_support = False
has_mkldnn = False
has_fbgemm = False
is_asan = False
use_mkldnn = False
use_rocm = False
use_trt = False
define_caffe2_no_operator_schema = False


def __getattr__(name):
    # asks the driver, so not before somebody wants to know
    if name in ("has_cuda_support", "has_gpu_support"):
        from caffe2._core import cuda

        return cuda.unavailable() is None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _current():
    return _workspace.current()


# ---------------------------------------------------------------- workspaces and blobs

def switch_workspace(name, create_if_missing=None):
    """Make another workspace the current one; `create_if_missing` makes a new one of that name."""
    _workspace.switch(name, bool(create_if_missing))


def reset_workspace(root_folder=None):
    """Empty the current workspace."""
    _workspace.reset(root_folder)
    return True


def create_child_workspace(parent, name):
    """Make a named workspace that sees the blobs of another."""
    _workspace.create_child(parent, name)


def root_folder():
    """Folder from which operators of the current workspace read and write files."""
    return _current().root_folder


def blobs():
    """Sorted names of the blobs of the current workspace."""
    return _current().names()


def local_blobs():
    """Sorted names of the blobs that are the current workspace's own."""
    return _current().local_names()


def has_blob(name):
    """Whether the current workspace has a blob of that name."""
    return str(name) in _current()


def create_blob(name):
    """Make an empty blob, unless there is one of that name."""
    _current().create(str(name))
    return True


def reset_blob(name):
    """Empty a blob."""
    _current()[name].reset()


def create_offline_tensor(name, dims, data_type, device_option=None):
    """Make a tensor whose values are never needed, for nets that are only looked at."""
    t = Tensor()
    t.init(list(dims), data_type)
    _current().create(str(name)).content = t
    return True


def serialize_blob(name):
    """A blob as a serialized BlobProto."""
    return _current()[name].serialize(str(name))


def deserialize_blob(name, data):
    """Make a blob what a serialized BlobProto says; untouched where that is corrupt."""
    blob = _current().get(str(name)) or Blob(str(name))
    blob.deserialize(data)
    _current().create(str(name)).content = blob.content


def get_blob_size_bytes(name):
    """Bytes of a blob's tensor."""
    return _current()[name].nbytes


def is_numa_enabled():
    return False


def get_num_numa_nodes():
    return 1


def get_blob_numa_node(name):
    _current()[name]
    return -1


# ---------------------------------------------------------------- nets, operators, plans

def _net(name):
    net = _current().nets.get(str(name))
    if net is None:
        known = ", ".join(sorted(_current().nets)) or "none"
        raise RuntimeError(f"no net is named {str(name)!r} in workspace {current_workspace()!r} (there are: {known})")
    return net


def create_net(net_def, overwrite=False):
    """Bind a net in the current workspace."""
    _create_net(parse(caffe2_pb2.NetDef, net_def), _current(), overwrite)
    return True


def delete_net(name):
    """Forget a net."""
    _current().nets.pop(str(name), None)
    return True


def nets():
    """Names of the current workspace's nets."""
    return sorted(_current().nets)


def run_net(name, num_iter=1, allow_fail=False):
    """Run a net `num_iter` times; with `allow_fail` a failure is returned as False."""
    try:
        return _net(name).run(num_iter)
    except RuntimeError:
        if allow_fail and str(name) in _current().nets:
            return False
        raise


def run_net_once(net_def):
    """Bind a net, run it once and forget it."""
    return bind_net(parse(caffe2_pb2.NetDef, net_def), _current()).run()


def run_operator_once(op_def):
    """Bind an operator and run it once."""
    run_once(parse(caffe2_pb2.OperatorDef, op_def), _current())
    return True


def run_operator_multiple(op_def, num_runs):
    """Bind an operator once and run it `num_runs` times."""
    net = caffe2_pb2.NetDef(op=[parse(caffe2_pb2.OperatorDef, op_def)])
    return bind_net(net, _current()).run(num_runs)


def run_plan(plan_def):
    """Run a plan in the current workspace."""
    return _run_plan(parse(caffe2_pb2.PlanDef, plan_def), _current())


class BackgroundPlan:
    """A plan that runs in a thread of its own."""

    def __init__(self, plan, workspace):
        self._error = None
        self._thread = threading.Thread(target=self._run, args=(plan, workspace), daemon=True)
        self._thread.start()

    def _run(self, plan, workspace):
        try:
            _run_plan(plan, workspace)
        except BaseException as e:
            self._error = e

    def is_done(self):
        """Whether it has ended."""
        return not self._thread.is_alive()

    def is_succeeded(self):
        """Wait for its end; whether it ended well."""
        self._thread.join()
        return self._error is None

    def result(self):
        """Wait for its end; raises what made it fail."""
        self._thread.join()
        if self._error is not None:
            raise self._error


def run_plan_in_background(plan_def):
    """Start a plan in a thread of its own."""
    return BackgroundPlan(parse(caffe2_pb2.PlanDef, plan_def), _current())


def benchmark_net(name, warmup_runs, main_runs, run_individual):
    """Milliseconds of a run of the net, then, if asked for, of each operator."""
    return _net(name).benchmark(warmup_runs, main_runs, run_individual)


def benchmark_net_once(net_def):
    """Milliseconds of each operator in one run of a net, after the whole's."""
    return bind_net(parse(caffe2_pb2.NetDef, net_def), _current()).benchmark(0, 1, True)


def add_observer_to_net(net_name, observer_type):
    """Attach an observer, by the name of its type or as an object, to a net; returns it."""
    net = _net(net_name)
    if isinstance(observer_type, str):
        if observer_type not in _OBSERVERS:
            raise RuntimeError(f"no observer is named {observer_type!r}; there are {', '.join(sorted(_OBSERVERS))}")
        observer_type = _OBSERVERS[observer_type]()
    net.observers.append(observer_type)
    return observer_type


def remove_observer_from_net(net_name, observer):
    """Detach an observer from a net."""
    with contextlib.suppress(ValueError):
        _net(net_name).observers.remove(observer)


def clear_global_net_observer():
    """Forget the observer of all nets; there is none."""


def num_observers_on_net(net_name):
    """How many observers a net has."""
    return len(_net(net_name).observers)


# ---------------------------------------------------------------- schemas, gradients, inference

def registered_operators():
    """Sorted names of all operators."""
    return _registry.registered()


def nearby_opnames(name):
    """Names of operators that are close to `name`, best first."""
    return _registry.nearby(name)


def op_registry_key(op_type, engine):
    """Name under which an operator of some engine is known."""
    return _registry.registry_key(op_type, engine)


def get_gradient_defs(op_def, output_gradients):
    """Serialized operators that compute an operator's gradient, and the gradients of its inputs."""
    ops, grads = _gradient.gradient_ops(parse(caffe2_pb2.OperatorDef, op_def), output_gradients)
    return [op.SerializeToString() for op in ops], grads


def _infer(net_defs, known):
    nets = [parse(caffe2_pb2.NetDef, n) for n in net_defs]
    return _inference.to_proto(_inference.infer_nets(nets, known)).SerializeToString()


def infer_shapes_and_types_from_workspace(net_defs):
    """Serialized TensorShapes of all blobs of some nets, starting from the current workspace."""
    return _infer(net_defs, _inference.workspace_infos(_current()))


def infer_shapes_and_types_from_map(net_defs, blob_dimensions, blob_types=None):
    """Serialized TensorShapes of all blobs of some nets, starting from {name: dimensions} and {name: data type}."""
    types = blob_types or {}
    known = {str(n): TensorInfo(d, types.get(n, caffe2_pb2.TensorProto.FLOAT)) for n, d in blob_dimensions.items()}
    return _infer(net_defs, known)


def infer_op_input_output_device(op_def):
    """Serialized DeviceOptions of an operator's inputs, and of its outputs."""
    op = parse(caffe2_pb2.OperatorDef, op_def)
    schema = OpSchema.get(op.type)
    if schema is None:
        raise RuntimeError(f"operator {op.type} has no schema")
    inputs, outputs = schema.infer_devices(op)
    return [d.SerializeToString() for d in inputs], [d.SerializeToString() for d in outputs]


def get_operator_cost(op_def, input_blobs):
    """(flops, bytes written, bytes read) of one run of an operator on blobs of the current workspace."""
    op = parse(caffe2_pb2.OperatorDef, op_def)
    schema = OpSchema.get(op.type)
    if schema is None:
        raise RuntimeError(f"operator {op.type} has no schema")
    infos = _inference.workspace_infos(_current())
    cost = schema.cost(op, [infos.get(str(b), TensorInfo()) for b in input_blobs])
    if cost is None:
        raise RuntimeError(f"the cost of operator {op.type} is not known")
    return cost["flops"], cost["bytes_written"], cost["bytes_read"]


def set_per_op_engine_pref(preference):
    """{device type: {operator type: [engine, ...]}}: engines to prefer, instead of those set before."""
    by_op = {}
    for device, ops in preference.items():
        for op, engines in ops.items():
            by_op.setdefault(op, {})[device] = list(engines)
    _registry.set_op_preference(by_op)


def set_global_engine_pref(preference):
    """{device type: [engine, ...]}: engines to prefer for all operators."""
    _registry.set_device_preference({d: list(e) for d, e in preference.items()})


def set_engine_pref(per_op, device):
    """Both of the above at once."""
    set_per_op_engine_pref(per_op)
    set_global_engine_pref(device)


def set_op_engine_pref(op_type, preference):
    """{device type: [engine, ...]}: engines to prefer for one operator type."""
    _registry.preferences()[0][op_type] = {d: list(e) for d, e in preference.items()}


# ---------------------------------------------------------------- rewriting of nets

def _text(name):
    return name.decode() if isinstance(name, bytes) else str(name)


def transform_exists(name):
    """Whether there is a transform of that name that looks at the net alone."""
    from caffe2.python.transformations import _TRANSFORMS

    return _text(name) in _TRANSFORMS and not workspace_transform_exists(name)


def workspace_transform_exists(name):
    """Whether there is a transform of that name that takes parameters from, and feeds them to, the workspace."""
    return _text(name) in ("FuseConvBN", "FuseConv3DBN")


def run_transform(name, net_def):
    """A serialized net, transformed; see `caffe2.python.transformations.Transformer`."""
    from caffe2.python.transformations import Transformer

    net = caffe2_pb2.NetDef.FromString(net_def)
    Transformer.runTransform(_text(name), net)
    return net.SerializeToString()


run_workspace_transform = run_transform


def transform_addNNPACK(net_def):
    return run_transform("AddNNPACK", net_def)


def transform_fuseConvBN(net_def):
    return run_transform("FuseConvBN", net_def)


def transform_fuseNNPACKConvRelu(net_def):
    return run_transform("FuseNNPACKConvRelu", net_def)


def transform_optimizeForMKLDNN(net_def, training_mode=False):
    return net_def


def memonger_optimize_inference_net(net_def, static_blobs):
    """A serialized net whose blobs share memory; see `caffe2.python.memonger.optimize_inference_fast`."""
    from caffe2.python.memonger import optimize_inference_fast

    return optimize_inference_fast(parse(caffe2_pb2.NetDef, net_def), map(_text, static_blobs)).SerializeToString()


def memonger_compute_blob_recycling_for_dag(
        net_def, heads, op_indices, shareable, namescope, dont_share=(), blob_shapes=None):
    """A serialized net in which some outputs of some operators share memory; see `caffe2.python.memonger`."""
    from caffe2.python.memonger import _share

    return _share(
        parse(caffe2_pb2.NetDef, net_def), set(map(_text, heads)), op_indices, set(map(_text, shareable)),
        _text(namescope), set(map(_text, dont_share)),
        {_text(n): s for n, s in (blob_shapes or {}).items()}).SerializeToString()


# ---------------------------------------------------------------- the rest

def global_init(args):
    """Accepts the original's command-line flags; nothing needs them here."""


def on_module_exit():
    """Nothing is left to do at exit."""


def get_build_options():
    """{option: value} of this build."""
    from caffe2.ops.kernels import dispatch

    return {"USE_OPENMP": "ON", "USE_CUDA": "ON", "ISA": dispatch.isa()}


def builtin_cpu_supports_avx2():
    """Whether this processor has AVX2."""
    from caffe2.ops.kernels import dispatch

    return "v3" in dispatch.available()


def get_stats():
    """{name: value} of the statistics that operators have published."""
    from caffe2._core.stats import export

    return export()


# ---------------------------------------------------------------- CUDA

def num_cuda_devices():
    """How many CUDA devices there are."""
    from caffe2._core import cuda

    return cuda.device_count()


def get_cuda_version():
    """Version of CUDA that the driver supports: 13000 for 13.0."""
    from caffe2._core import cuda

    return cuda.driver_version()


def get_cudnn_version():
    """Version of cuDNN, 0 where it is not installed."""
    from caffe2.ops.cuda.libraries import cudnn_version

    return cudnn_version()


def get_cuda_peer_access_pattern():
    """Matrix that says which device reaches the memory of which other."""
    from caffe2._core import cuda

    return cuda.peer_access()


def get_device_properties(index):
    """dict: name, totalGlobalMem and so on of a device."""
    from caffe2._core import cuda

    return cuda.properties(index)


def get_gpu_memory_info(index=0):
    """Free and total bytes of a device's memory."""
    from caffe2._core import cuda

    m = cuda.get_device(index).memory()
    return m["free"], m["total"]


def fill_random_network_inputs(net_def, input_dims, input_types):
    """Feed a net's external inputs with random values.

    Parameters
    ----------
    net_def : bytes
    input_dims : list of list of list of int
        For each operator, the dimensions of its inputs.
    input_types : list of list of str
        For each operator, ``float`` or ``int`` for each of its inputs.
    """
    net = parse(caffe2_pb2.NetDef, net_def)
    rng = np.random.default_rng(0)
    written = set()
    for op, dims, types in zip(net.op, input_dims, input_types, strict=True):
        for name, shape, kind in zip(op.input, dims, types, strict=True):
            if name in written:
                continue
            if kind.startswith("int"):
                feed_blob(name, rng.integers(0, 10, shape).astype(np.int64 if kind == "int64_t" else np.int32))
            else:
                feed_blob(name, rng.standard_normal(shape, dtype=np.float32))
        written.update(op.output)

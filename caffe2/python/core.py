"""Nets as Python objects: blobs, operators, gradients, execution steps and plans.

A `Net` wraps a NetDef; calling `net.FC(inputs, outputs, ...)` appends an operator to it. `IR` and
`GradientRegistry` derive gradient operators from a list of operators. `ExecutionStep` and `Plan`
arrange nets in time. Nothing here runs a net; `workspace` does.
"""

import copy
import os
import pickle
import sys
import traceback
import zlib
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

import caffe2.python._import_c_extension as C
from caffe2.proto import caffe2_pb2
from caffe2.python import scope, utils, workspace
from caffe2.python.control_ops_grad import (
    disambiguate_grad_if_op_output,
    gen_do_gradient,
    gen_if_gradient,
    gen_while_gradient,
)
from caffe2.python.lazy import RegisterLazyImport, TriggerLazyImport  # noqa: F401

DeviceScope = scope.DeviceScope
NameScope = scope.NameScope

string_types = (str,)


class DataType:
    """The members of TensorProto.DataType as attributes."""


for _name, _value in caffe2_pb2.TensorProto.DataType.items():
    setattr(DataType, _name, _value)


# ---------------------------------------------------------------- registered operators


def _GetRegisteredOperators() -> set[str]:
    return set(workspace.RegisteredOperators())


_REGISTERED_OPERATORS = _GetRegisteredOperators()


def RefreshRegisteredOperators(trigger_lazy: bool = True) -> None:
    """Look again at what is registered, after a library of operators was loaded."""
    if trigger_lazy:
        TriggerLazyImport()
    global _REGISTERED_OPERATORS
    _REGISTERED_OPERATORS = _GetRegisteredOperators()


_GLOBAL_INIT_ARGS: list[str] = []


def GlobalInit(args: Sequence[str]) -> None:
    """Initialize the runtime with command-line arguments, `args[0]` being the program."""
    _GLOBAL_INIT_ARGS.extend(args[1:])
    C.global_init(args)


def GetGlobalInitArgs() -> list[str]:
    """Arguments given to `GlobalInit` so far."""
    return _GLOBAL_INIT_ARGS[:]


def IsOperator(op_type: str) -> bool:
    """Whether an operator of this type is registered."""
    return op_type in _REGISTERED_OPERATORS or IsOperatorWithEngine(op_type, engine="DEFAULT")


def IsOperatorWithEngine(op_type: str, engine: str) -> bool:
    """Whether an operator of this type is registered for this engine."""
    TriggerLazyImport()
    return C.op_registry_key(op_type, engine) in _REGISTERED_OPERATORS


def _unknown_operator(op_type: str) -> str:
    return (
        f"Method {op_type} is not a registered operator. "
        f"Did you mean: [{', '.join(C.nearby_opnames(op_type))}]"
    )


# ---------------------------------------------------------------- devices


def IsGPUDeviceType(device_type: int) -> bool:
    """Whether the device type is that of a graphics card."""
    return device_type in (caffe2_pb2.CUDA, caffe2_pb2.HIP)


def DeviceOption(
    device_type: int,
    device_id: int = 0,
    random_seed: int | None = None,
    node_name: str | None = None,
    numa_node_id: int | None = None,
    extra_info: Iterable[str] | None = None,
) -> caffe2_pb2.DeviceOption:
    """Make a DeviceOption; a NUMA node can be given for the CPU only."""
    assert numa_node_id is None or device_type == caffe2_pb2.CPU, (
        "numa_node_id can be given for the CPU only"
    )
    option = caffe2_pb2.DeviceOption(device_type=device_type, device_id=device_id)
    if node_name is not None:
        option.node_name = node_name
    if random_seed is not None:
        option.random_seed = random_seed
    if numa_node_id is not None:
        option.numa_node_id = numa_node_id
    if extra_info is not None:
        option.extra_info.extend(extra_info)
    return option


def device_option_equal(
    opt1: caffe2_pb2.DeviceOption | None,
    opt2: caffe2_pb2.DeviceOption | None,
    ignore_node_name: bool = True,
    ignore_random_seed: bool = True,
) -> bool:
    """Whether two options mean the same device. All CPUs are the same one."""
    if not opt1 or not opt2:
        return opt1 == opt2
    if not ignore_node_name and opt1.node_name != opt2.node_name:
        return False
    if not ignore_random_seed and opt1.random_seed != opt2.random_seed:
        return False
    if opt1.device_type == caffe2_pb2.CPU or opt2.device_type == caffe2_pb2.CPU:
        return opt1.device_type == opt2.device_type
    return opt1.device_id == opt2.device_id


def device_equal(src: caffe2_pb2.DeviceOption, dst: caffe2_pb2.DeviceOption) -> bool:
    """Whether type and id agree, an unset field counting as its default."""
    return src.device_type == dst.device_type and src.device_id == dst.device_id


def InferBlobDevices(net: "Net") -> dict[str, caffe2_pb2.DeviceOption]:
    """Map each blob that the net writes to the device option of the operator that writes it."""
    return {blob: op.device_option for op in net.Proto().op for blob in op.output}


def InferOpBlobDevices(
    op: caffe2_pb2.OperatorDef,
) -> tuple[list[caffe2_pb2.DeviceOption], list[caffe2_pb2.DeviceOption]]:
    """Where the schema of an operator places its inputs and outputs."""
    inputs, outputs = C.infer_op_input_output_device(op.SerializeToString())
    parse = caffe2_pb2.DeviceOption.FromString
    return [parse(d) for d in inputs], [parse(d) for d in outputs]


def InferOpBlobDevicesAsDict(
    op: caffe2_pb2.OperatorDef,
) -> tuple[dict[str, caffe2_pb2.DeviceOption], dict[str, caffe2_pb2.DeviceOption]]:
    """Like `InferOpBlobDevices`, by blob name."""
    inputs, outputs = InferOpBlobDevices(op)
    return dict(zip(op.input, inputs)), dict(zip(op.output, outputs))


def InferOpDeviceAsBlobDevices(
    op: caffe2_pb2.OperatorDef,
) -> tuple[list[caffe2_pb2.DeviceOption], list[caffe2_pb2.DeviceOption]]:
    """Place all inputs and outputs on the device of the operator itself."""
    return [op.device_option] * len(op.input), [op.device_option] * len(op.output)


# ---------------------------------------------------------------- blobs

# A sparse gradient: `values[i]` is the gradient of row `indices[i]`.
GradientSlice = namedtuple("GradientSlice", ["indices", "values"])


class BlobReference:
    """The name of a blob, together with the net that it comes from.

    Where the net is known, operators can be called on the blob: `blob.Relu("y")` is
    `net.Relu([blob], "y")`.

    Parameters
    ----------
    name : str or bytes
        Full name. `ScopedBlobReference` prepends the current name scope.
    net : Net, optional
        The net that operators called on the blob are added to.
    """

    def __init__(self, name: str | bytes, net: "Net | None" = None) -> None:
        self._name = name.decode("utf-8") if isinstance(name, bytes) else str(name)
        self._from_net = net
        # For helpers to attach what they need.
        self.meta: dict[Any, Any] = {}

    def __hash__(self) -> int:
        return hash(self._name)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BlobReference):
            return self._name == other._name
        if isinstance(other, bytes):
            return self._name == other.decode("utf-8")
        return isinstance(other, str) and self._name == other

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f'BlobReference("{self._name}")'

    def __add__(self, other: str) -> "BlobReference":
        if not isinstance(other, str):
            raise RuntimeError("Cannot add BlobReference to a non-string.")
        return BlobReference(self._name + other, self._from_net)

    def __radd__(self, other: str) -> "BlobReference":
        if not isinstance(other, str):
            raise RuntimeError("Cannot add a non-string to BlobReference.")
        return BlobReference(other + self._name, self._from_net)

    def Net(self) -> "Net | None":
        """The net that the blob comes from."""
        return self._from_net

    def GetNameScope(self) -> str:
        """Prefix of the name, with its separator."""
        return self._name[: self._name.rfind(scope._NAMESCOPE_SEPARATOR) + 1]

    def GetUnscopedName(self) -> str:
        """Name without its prefix."""
        return self._name[self._name.rfind(scope._NAMESCOPE_SEPARATOR) + 1 :]

    def _CreateAndAddToNet(self, op_type, inputs=None, *args, **kwargs):
        if inputs is None:
            inputs = []
        elif isinstance(inputs, (BlobReference, str, bytes)):
            inputs = [inputs]
        return getattr(self._from_net, op_type)([self, *inputs], *args, **kwargs)

    def __getattr__(self, op_type: str) -> Callable:
        if op_type.startswith("__"):
            raise AttributeError(f"Attribute {op_type} not found.")
        if self._from_net is None:
            raise RuntimeError(
                f"Blob {self._name} does not know its net, so {op_type} cannot be called on it. "
                "Call the operator on a net instead."
            )
        if not IsOperator(op_type):
            raise RuntimeError(_unknown_operator(op_type))
        return partial(self._CreateAndAddToNet, op_type)

    def __dir__(self) -> list[str]:
        operators = {o for o in _REGISTERED_OPERATORS if "_ENGINE_" not in o}
        return sorted({*dir(type(self)), *self.__dict__, *operators})


# What may be given where a blob is expected; strings are prefixed by the name scope.
BlobLike = BlobReference | str | bytes


def ScopedName(name: str | bytes) -> str:
    """Prepend the current name scope."""
    if isinstance(name, bytes):
        name = name.decode("ascii")
    return scope.CurrentNameScope() + name


def ScopedBlobReference(name: str | bytes, *args: Any, **kwargs: Any) -> BlobReference:
    """Reference to a blob whose name is prefixed by the current name scope."""
    return BlobReference(ScopedName(name), *args, **kwargs)


def _RectifyInputOutput(blobs, net=None) -> list[BlobReference]:
    """List of references for one blob, or for a list or tuple of them."""
    if isinstance(blobs, BlobReference):
        return [blobs]
    if isinstance(blobs, (str, bytes)):
        return [ScopedBlobReference(blobs, net=net)]
    if not isinstance(blobs, (list, tuple)):
        raise TypeError(f"Unknown input/output type: {blobs} of type {type(blobs)}.")
    rectified = []
    for blob in blobs:
        if isinstance(blob, BlobReference):
            rectified.append(blob)
        elif isinstance(blob, (str, bytes)):
            rectified.append(ScopedBlobReference(blob, net=net))
        else:
            raise TypeError(
                f"I/O blob #{len(rectified)} of unsupported type: {blob} of type {type(blob)}"
            )
    return rectified


def _get_blob_ref(blob: BlobReference | str | bytes) -> BlobReference:
    return blob if isinstance(blob, BlobReference) else BlobReference(blob)


def output_to_list(op_output: BlobReference | Sequence[BlobReference]) -> list[BlobReference]:
    """Make a list of what an operator call returned, be it one blob or several."""
    assert isinstance(op_output, (list, tuple, BlobReference))
    return [op_output] if isinstance(op_output, BlobReference) else list(op_output)


# ---------------------------------------------------------------- operators


def CreateOperator(
    operator_type: str,
    inputs: BlobLike | Sequence[BlobLike],
    outputs: BlobLike | Sequence[BlobLike],
    name: str = "",
    control_input: BlobLike | Sequence[BlobLike] | None = None,
    device_option: caffe2_pb2.DeviceOption | None = None,
    arg: Iterable[caffe2_pb2.Argument] | None = None,
    engine: str | None = None,
    debug_info: str | None = None,
    **kwargs: Any,
) -> caffe2_pb2.OperatorDef:
    """Make an OperatorDef.

    Parameters
    ----------
    operator_type : str
        Its type. It need not be registered.
    inputs, outputs : blob or list of blobs
        References are taken as they are, strings are prefixed by the current name scope.
    name : str
        Name of the operator.
    control_input : blob or list of blobs, optional
        Blobs that must have been written before it runs.
    device_option : DeviceOption, optional
        Its device; without it that of the current device scope, if any.
    arg : iterable of Argument, optional
        Arguments that are ready made.
    engine : str, optional
        The implementation to prefer.
    debug_info : str, optional
        Shown with errors. With CAFFE2_DEBUG in the environment it is the Python stack.
    **kwargs
        Further arguments, by name. `random_seed` becomes part of the device option.
    """
    operator = caffe2_pb2.OperatorDef(
        type=operator_type,
        name=name,
        input=[blob._name for blob in _RectifyInputOutput(inputs)],
        output=[blob._name for blob in _RectifyInputOutput(outputs)],
    )
    if control_input:
        operator.control_input.extend([str(b) for b in _RectifyInputOutput(control_input)])
    if device_option is None:
        device_option = scope.CurrentDeviceScope()
    if device_option is not None:
        operator.device_option.CopyFrom(device_option)
    if engine is not None:
        operator.engine = engine
    if debug_info is not None:
        operator.debug_info = debug_info
    elif os.environ.get("CAFFE2_DEBUG"):
        operator.debug_info = "".join(traceback.format_stack()[:-1])
    if "random_seed" in kwargs:
        operator.device_option.random_seed = kwargs.pop("random_seed")
    if arg is not None:
        operator.arg.extend(arg)
    if kwargs:
        operator.arg.extend([utils.MakeArgument(k, v) for k, v in kwargs.items()])

    if workspace.IsImmediate():
        workspace.RunOperatorImmediate(operator)
    return operator


def _RegisterPythonImpl(f, grad_f=None, python_func_type=None, pass_workspace=False) -> str:
    """Register functions with the runtime and return the token of their Python operator."""
    if python_func_type:
        func = python_func_type(f)
        f, grad_f = func.forward, func.backward
    else:
        if isinstance(f, tuple):
            f = f[0](*f[1], **f[2])
        if isinstance(grad_f, tuple):
            grad_f = grad_f[0](*grad_f[1], **grad_f[2])
    token = C.register_python_op(f, pass_workspace, "")
    if grad_f:
        C.register_python_gradient_op(token, grad_f)
    return token


def CreatePythonOperator(
    f: Callable | tuple,
    inputs: BlobLike | Sequence[BlobLike],
    outputs: BlobLike | Sequence[BlobLike],
    grad_f: Callable | tuple | None = None,
    pass_workspace: bool = False,
    python_func_type: type | None = None,
    *args: Any,
    **kwargs: Any,
) -> caffe2_pb2.OperatorDef:
    """Make an operator that calls Python functions; see `Net.Python` for the parameters."""
    kwargs["token"] = _RegisterPythonImpl(
        f, grad_f, python_func_type, pass_workspace=pass_workspace
    )
    return CreateOperator("Python", inputs, outputs, *args, **kwargs)


def remap_input(op: caffe2_pb2.OperatorDef, blob_name_remapping: dict[str, str]) -> None:
    """Rename inputs of an operator in place."""
    op.input[:] = [blob_name_remapping.get(b, b) for b in op.input]


# ---------------------------------------------------------------- gradients


def GetIndexFromGradientList(
    g_list: Sequence[str | GradientSlice | None], name: str
) -> int | None:
    """Position of the gradient that is, or has as its indices or values, the blob `name`."""
    for i, g in enumerate(g_list):
        if isinstance(g, GradientSlice):
            if name in (g.indices, g.values):
                return i
        elif g == name:
            return i
    return None


# An operator with the version of each blob that it reads and of each that it writes.
OpSSA = namedtuple("OpSSA", ["op", "in_versions", "out_versions"])

# How a gradient comes about: output `idx` of `grad_op`. Where `grad_op` is None the gradient is a
# blob that exists already, handed through by the gradient of, say, Add.
GradGenMeta = namedtuple("GradGenMeta", ["grad_op", "idx", "gradient", "device_option"])

# The same for the two blobs of a sparse gradient.
SparseGradGenMeta = namedtuple(
    "SparseGradGenMeta",
    ["grad_op_indices", "idx_indices", "grad_op_values", "idx_values", "gradient", "device_option"],
)


class IR:
    """Versions and uses of the blobs of a list of operators, and the backward pass through it.

    Parameters
    ----------
    operators : iterable of OperatorDef
        The forward pass, in order.

    Attributes
    ----------
    ssa : list of OpSSA
        The operators with the versions of their blobs. A blob starts as version 0 and each write
        after its first makes a new one.
    input_usages : dict
        blob -> version -> indices of the operators that read it.
    frontier : dict
        blob -> version after all operators ran, the only one a gradient operator can still read.
    gradient_frontier : dict
        blob -> version that its gradient, as known so far, belongs to.
    gradient_generators : dict
        blob -> version -> what makes the gradients that have to be summed.
    """

    IS_AUTO_GEN_SUM_OPS_TAG = "is_auto_gen_sum_ops"
    ONLY_KEEP_IS_AUTO_GEN_SUM_OPS_TAG = "only_keep_is_auto_gen_sum_ops_tag"
    AUTOGEN_GRAD_SUFFIX = "_autogen_grad"

    def __init__(self, operators: Iterable[caffe2_pb2.OperatorDef]) -> None:
        self.ssa: list[OpSSA] = []
        self.input_usages = defaultdict(lambda: defaultdict(list))
        self.frontier = defaultdict(int)
        self.gradient_frontier: dict[str, int] = {}
        self.gradient_generators = defaultdict(lambda: defaultdict(list))
        self.out_version_history = defaultdict(list)
        self.in_version_history = defaultdict(list)

        for op in operators:
            self.Play(op)
        self.SanityCheck(operators)

    def SanityCheck(self, operators: Iterable[caffe2_pb2.OperatorDef]) -> None:
        """Refuse a StopGradient whose output nobody reads: it would stop nothing."""
        for op in operators:
            if op.type == "StopGradient" and op.output[0] not in self.input_usages:
                raise ValueError(
                    f"StopGradient's output '{op.output[0]}' is orphan. You typically want to "
                    f"specify same input and output for StopGradient. Op:\n\n{op}"
                )

    def Play(self, op: caffe2_pb2.OperatorDef) -> None:
        """Record one more operator of the forward pass."""
        in_versions = {}
        for blob in op.input:
            version = in_versions[blob] = self.frontier[blob]
            self.input_usages[blob][version].append(len(self.ssa))
            self.in_version_history[blob].append((op, version))
        out_versions = {}
        for blob in op.output:
            if blob in self.frontier:
                self.frontier[blob] += 1
            version = out_versions[blob] = self.frontier[blob]
            self.out_version_history[blob].append((op, version))
        self.ssa.append(OpSSA(op, in_versions, out_versions))

    def CheckGradientOperatorInput(
        self,
        grad_op_input: str,
        g_output: Sequence[str | GradientSlice | None],
        fwd_op_idx: int,
        locally_generated_blobs: Iterable[str],
    ) -> None:
        """Raise unless the blob still has, at backward time, the value that is meant.

        A gradient operator may read gradients of the outputs of its forward operator, inputs and
        outputs of the latter, and what the gradient operators before it made.
        """
        forward_op, in_versions, out_versions = self.ssa[fwd_op_idx]

        def refuse(what, blob, wanted, has, direction):
            history = getattr(self, f"{direction}_version_history")[blob]
            hint = (
                "Maybe two operators write this blob?"
                if direction == "out"
                else "Maybe another operator overwrote this blob?"
            )
            lines = "\n".join(f"version ({direction}) {v} <-- {op}" for op, v in history)
            raise RuntimeError(
                f"{what} at version {wanted}, but currently we have version {has}. {hint}\n"
                f"Version history of blob [{blob}]:\n{lines}"
            )

        index = GetIndexFromGradientList(g_output, grad_op_input)
        if index is not None:
            blob = forward_op.output[index]
            wanted, has = out_versions[blob], self.gradient_frontier[blob]
            if wanted != has:
                refuse(f'Gradient "{grad_op_input}" must be of "{blob}"', blob, wanted, has, "out")
        elif grad_op_input in out_versions:
            wanted, has = out_versions[grad_op_input], self.frontier[grad_op_input]
            if wanted != has:
                what = f'The gradient of {forward_op.type} needs its output "{grad_op_input}"'
                refuse(what, grad_op_input, wanted, has, "out")
        elif grad_op_input in in_versions:
            wanted, has = in_versions[grad_op_input], self.frontier[grad_op_input]
            if wanted != has:
                what = f'The gradient of {forward_op.type} needs its input "{grad_op_input}"'
                refuse(what, grad_op_input, wanted, has, "in")
        elif grad_op_input not in locally_generated_blobs:
            raise RuntimeError(
                f'Blob name "{grad_op_input}" not in the scope of operator: {forward_op}\n'
                "and is not generated by any of the local gradient operators."
            )

    def AppendSparseGenerators(
        self, sparse_generators: dict[str, dict[int, list[SparseGradGenMeta]]]
    ) -> None:
        """Add generators of sparse gradients, merging that of the indices and that of the values.

        There is one of them where the other blob exists already.
        """
        for name, by_version in sparse_generators.items():
            for version, generators in by_version.items():
                generator = generators[0]
                if len(generators) > 1:
                    a, b = generators
                    assert a.gradient == b.gradient
                    assert a.grad_op_indices is None or b.grad_op_indices is None
                    assert a.grad_op_values is None or b.grad_op_values is None
                    assert a.device_option == b.device_option, (
                        f"Unequal devices for sparse generators: {a} and {b}"
                    )
                    generator = SparseGradGenMeta(
                        a.grad_op_indices or b.grad_op_indices,
                        a.idx_indices + b.idx_indices,
                        a.grad_op_values or b.grad_op_values,
                        a.idx_values + b.idx_values,
                        a.gradient,
                        a.device_option,
                    )
                self.gradient_generators[name][version].append(generator)

    def BuildGradientGenerators(
        self,
        fwd_op_idx: int,
        gradient_ops: Sequence[caffe2_pb2.OperatorDef],
        g_output: Sequence[str | GradientSlice | None],
        g_input: Sequence[str | GradientSlice | None],
    ) -> None:
        """Check the gradient operators of one operator and record the gradients they make."""
        forward_op, in_versions, _ = self.ssa[fwd_op_idx]
        generators = self.gradient_generators
        local_blobs: set[str] = set()
        sparse_generators = defaultdict(lambda: defaultdict(list))

        for grad_op in gradient_ops:
            for blob in grad_op.input:
                self.CheckGradientOperatorInput(blob, g_output, fwd_op_idx, local_blobs)
            local_blobs.update(grad_op.output)
            for i, output in enumerate(grad_op.output):
                index = GetIndexFromGradientList(g_input, output)
                if index is None:
                    continue
                name, g, device = forward_op.input[index], g_input[index], grad_op.device_option
                version = in_versions[name]
                if not isinstance(g, GradientSlice):
                    generators[name][version].append(GradGenMeta(grad_op, i, g, device))
                elif g.indices == output:
                    sparse_generators[name][version].append(
                        SparseGradGenMeta(grad_op, i, None, 0, g, device)
                    )
                else:
                    sparse_generators[name][version].append(
                        SparseGradGenMeta(None, 0, grad_op, i, g, device)
                    )

        self.AppendSparseGenerators(sparse_generators)

        # Gradients that are handed through have no operator but take part in sums. All gradients
        # given are now those of the versions that the forward operator read.
        device = forward_op.device_option
        for name, g in zip(forward_op.input, g_input):
            if g is None:
                continue
            version = in_versions[name]
            self.gradient_frontier[name] = version
            if isinstance(g, GradientSlice):
                if str(g.indices) not in local_blobs and str(g.values) not in local_blobs:
                    generators[name][version].append(
                        SparseGradGenMeta(None, 0, None, 0, g, device)
                    )
            elif g and str(g) not in local_blobs:
                generators[name][version].append(GradGenMeta(None, 0, g, device))

    def _GetSumOpOutputName(self, generators, input_name):
        for g in generators:
            if isinstance(g, GradGenMeta):
                if g.grad_op:
                    return g.grad_op.output[g.idx]
            elif g.grad_op_indices:
                return g.grad_op_indices.output[g.idx_indices].removesuffix("_indices")
            elif g.grad_op_values:
                return g.grad_op_values.output[g.idx_values].removesuffix("_values")
        return input_name + "_grad"

    def _SetSumOpsDeviceOption(self, sum_ops, generators):
        # All generators are on the same device: the first speaks for them.
        device_option = caffe2_pb2.DeviceOption()
        device_option.CopyFrom(generators[0].device_option)
        keep_only_tag = f"{IR.ONLY_KEEP_IS_AUTO_GEN_SUM_OPS_TAG}:1"
        if any(keep_only_tag in g.device_option.extra_info for g in generators):
            del device_option.extra_info[:]
        device_option.extra_info.append(f"{IR.IS_AUTO_GEN_SUM_OPS_TAG}:1")
        for op in sum_ops:
            op.device_option.CopyFrom(device_option)

    def _DisambiguateGradOpOutput(self, grad_op, idx, cnt):
        """Give an output a name of its own, so that it can be summed with its likes."""
        new_name = f"_{grad_op.output[idx]}_autosplit_{cnt}"
        if grad_op.type == "If":
            disambiguate_grad_if_op_output(grad_op, idx, new_name)
        else:
            grad_op.output[idx] = new_name
        return new_name, cnt + 1

    def _CheckSumOpsConflict(self, out_base_name, g):
        if str(out_base_name) == str(g):
            raise RuntimeError(
                f'The gradient "{g}" is handed through from another blob and would be overwritten '
                "by the sum of gradients, which has the same name."
            )

    def _MakeDenseSumOps(self, generators, out_base_name):
        inputs = []
        cnt = 0
        first = True
        for grad_op, idx, g, _ in generators:
            if not grad_op:
                self._CheckSumOpsConflict(out_base_name, g)
                inputs.append(str(g))
            elif first:
                first = False
                inputs.append(grad_op.output[idx])
            else:
                out, cnt = self._DisambiguateGradOpOutput(grad_op, idx, cnt)
                inputs.append(out)
        if out_base_name in inputs:
            # Sum works in place on its first input only.
            idx = inputs.index(out_base_name)
            inputs[0], inputs[idx] = inputs[idx], inputs[0]
        sum_op = CreateOperator(
            "Sum", [BlobReference(x) for x in inputs], BlobReference(out_base_name)
        )
        return [sum_op], out_base_name

    def _MakeSparseSumOps(self, generators, out_base_name):
        """Sum by concatenation; optimizers deal with indices that repeat."""
        parts = {"indices": [], "values": []}
        counts = dict.fromkeys(parts, 0)
        for g in generators:
            for part, op, idx in (
                ("indices", g.grad_op_indices, g.idx_indices),
                ("values", g.grad_op_values, g.idx_values),
            ):
                if op:
                    out, counts[part] = self._DisambiguateGradOpOutput(op, idx, counts[part])
                else:
                    out = getattr(g.gradient, part)
                    self._CheckSumOpsConflict(out_base_name, out)
                parts[part].append(out)
        sum_ops = [
            CreateOperator(
                "Concat",
                [BlobReference(x) for x in inputs],
                [
                    BlobReference(f"{out_base_name}_{part}_concat"),
                    BlobReference(f"{out_base_name}_{part}_concat_split"),
                ],
                axis=0,
            )
            for part, inputs in parts.items()
        ]
        return sum_ops, GradientSlice(
            indices=f"{out_base_name}_indices_concat", values=f"{out_base_name}_values_concat"
        )

    def _MakeSumOps(self, input_name, input_version):
        generators = self.gradient_generators[input_name][input_version]
        out_base_name = self._GetSumOpOutputName(generators, input_name)
        make = (
            self._MakeDenseSumOps
            if isinstance(generators[0], GradGenMeta)
            else self._MakeSparseSumOps
        )
        sum_ops, g = make(generators, out_base_name)
        self._SetSumOpsDeviceOption(sum_ops, generators)
        return sum_ops, g

    def _VerifyGradientGenerators(self, generators):
        """Whether there is something to sum; raise where it cannot be summed."""
        if len({type(g) for g in generators}) > 1:
            raise RuntimeError(
                "Automatic aggregation of a mix of sparse and dense gradients "
                "is not supported yet"
            )
        if len(generators) < 2:
            return False
        first = generators[0].device_option
        if not all(device_option_equal(g.device_option, first) for g in generators):
            raise RuntimeError(
                "Unexpected behavior: not all grad ops have the same device option."
            )
        return True

    def DoGradientAccumulation(
        self, fwd_op_idx: int
    ) -> tuple[list[caffe2_pb2.OperatorDef], dict[str, str | GradientSlice]]:
        """Sum the gradients of the inputs that this operator is the first to read.

        Going backwards it is the last that may contribute. All contributions but one get names of
        their own and one Sum adds them up, which takes more memory than adding as we go but is
        usually faster.

        Returns
        -------
        list of OperatorDef
            The operators that sum.
        dict
            blob -> its summed gradient.
        """
        forward_op, in_versions, _ = self.ssa[fwd_op_idx]
        additional_sum_ops = []
        grad_map = {}
        for name in dict.fromkeys(forward_op.input):
            version = in_versions[name]
            usages = self.input_usages[name][version]
            if len(usages) <= 1 or fwd_op_idx != usages[0]:
                continue
            try:
                if not self._VerifyGradientGenerators(self.gradient_generators[name][version]):
                    continue
            except RuntimeError as error:
                raise RuntimeError(f"Gradients of '{name}' failed to verify: {error}") from None
            sum_ops, grad_map[name] = self._MakeSumOps(name, version)
            additional_sum_ops.extend(sum_ops)
        return additional_sum_ops, grad_map

    def _GetInitGradients(self, ys):
        input_to_grad = {}
        gradient_ops = []
        for y, g in ys.items():
            if g is None:
                op = CreateOperator(
                    "ConstantFill", [y], [str(y) + IR.AUTOGEN_GRAD_SUFFIX], value=1.0
                )
                gradient_ops.append(op)
                g = op.output[0]
                # It belongs to the last version and takes part in sums.
                self.gradient_generators[str(y)][self.frontier[str(y)]].append(
                    GradGenMeta(op, 0, g, op.device_option)
                )
            # The makers of gradients know names only.
            input_to_grad[str(y)] = (
                GradientSlice(str(g.indices), str(g.values))
                if isinstance(g, GradientSlice)
                else str(g)
            )
        return input_to_grad, gradient_ops

    def _GenerateGradientsForForwardOp(self, forward_op_idx, input_to_grad):
        forward_op = self.ssa[forward_op_idx].op
        g_output = [input_to_grad.get(name) for name in forward_op.output]
        # ZeroGradient has no outputs; it exists to give gradients to those that have none.
        if all(g is None for g in g_output) and forward_op.type != "ZeroGradient":
            return {}, []
        gradient_ops, g_input = GradientRegistry.GetGradientForOp(forward_op, g_output)
        self.BuildGradientGenerators(forward_op_idx, gradient_ops, g_output, g_input)
        # None replaces a known gradient only if the operator overwrote the blob, the known one
        # then being that of the overwritten value.
        overwritten = set(forward_op.output)
        new_input_to_grad = {
            name: g
            for name, g in zip(forward_op.input, g_input)
            if g is not None or name not in input_to_grad or name in overwritten
        }
        return new_input_to_grad, gradient_ops

    def GetBackwardPass(
        self, ys: list | dict
    ) -> tuple[list[caffe2_pb2.OperatorDef], dict[BlobReference, BlobReference | GradientSlice]]:
        """Make the operators that compute derivatives of `ys`.

        Parameters
        ----------
        ys : list or dict
            The blobs to derive; a dict maps each to the blob holding its gradient. Where that is
            None, or with a list, the gradient is all ones.

        Returns
        -------
        list of OperatorDef
            The backward pass.
        dict
            blob -> its gradient, for all that have one.
        """
        if isinstance(ys, list):
            ys = dict.fromkeys(ys)
        elif not isinstance(ys, dict):
            raise TypeError("ys should either be a list or a dict.")

        for y in map(str, ys):
            self.gradient_frontier[y] = self.frontier[y]
            self.input_usages[y][self.frontier[y]].append(len(self.ssa))

        all_input_to_grad, all_gradient_ops = self._GetInitGradients(ys)
        for forward_op_idx in reversed(range(len(self.ssa))):
            input_to_grad, gradient_ops = self._GenerateGradientsForForwardOp(
                forward_op_idx, all_input_to_grad
            )
            all_input_to_grad.update(input_to_grad)
            all_gradient_ops += gradient_ops
            sum_ops, grad_map = self.DoGradientAccumulation(forward_op_idx)
            all_input_to_grad.update(grad_map)
            all_gradient_ops += sum_ops

        return all_gradient_ops, {
            BlobReference(name): (
                GradientSlice(*map(BlobReference, g))
                if isinstance(g, GradientSlice)
                else BlobReference(g)
            )
            for name, g in all_input_to_grad.items()
            if g is not None
        }


class GradientRegistry:
    """From an operator to its gradient operators.

    The makers that stand beside the operators come first; `RegisterGradient` adds makers written
    in Python for operators without one.
    """

    gradient_registry_: dict[str, Callable] = {}

    @classmethod
    def RegisterGradient(cls, op_type: str) -> Callable[[Callable], Callable]:
        """Decorate `f(op, g_output) -> (gradient operators, g_input)` as the maker for a type.

        `g_output` and `g_input` hold, for each output and input of `op`, the name of its gradient,
        a GradientSlice, or None. The gradient operators may be a list, a single one or None.
        """

        def wrapper(func):
            cls.gradient_registry_[op_type] = func
            return func

        return wrapper

    @classmethod
    def _GetGradientForOpCC(cls, op_def, g_output):
        def wrap(grad):
            wrapper = C.GradientWrapper()
            if isinstance(grad, (GradientSlice, tuple)):
                wrapper.indices, wrapper.values = map(str, grad)
            elif grad is not None:
                wrapper.dense = str(grad)
            return wrapper

        def unwrap(wrapper):
            if wrapper.is_empty():
                return None
            if wrapper.is_sparse():
                return GradientSlice(wrapper.indices, wrapper.values)
            return wrapper.dense

        defs, g_input = C.get_gradient_defs(op_def.SerializeToString(), [wrap(g) for g in g_output])
        return [caffe2_pb2.OperatorDef.FromString(d) for d in defs], [unwrap(g) for g in g_input]

    @classmethod
    def GetGradientForOp(
        cls, op: caffe2_pb2.OperatorDef, g_output: Sequence[str | GradientSlice | None]
    ) -> tuple[list[caffe2_pb2.OperatorDef], list[str | GradientSlice | None]]:
        """Gradient operators of one operator, and the gradients of its inputs."""
        try:
            gradient_ops, g_input = cls._GetGradientForOpCC(op, g_output)
        except Exception as error:
            maker = cls.gradient_registry_.get(op.type)
            if maker is None:
                raise RuntimeError(
                    f"Exception when creating gradient for [{op.type}]:{error}.\nOp: \n{op}"
                ) from error
            gradient_ops, g_input = maker(op, g_output)
        if gradient_ops is None:
            gradient_ops = []
        elif not isinstance(gradient_ops, list):
            gradient_ops = [gradient_ops]
        return gradient_ops, g_input

    @classmethod
    def GetBackwardPass(
        cls,
        operators: Iterable[caffe2_pb2.OperatorDef],
        ys: list | dict,
        ys_generate_gradient: bool = False,
    ) -> tuple[list[caffe2_pb2.OperatorDef], dict[BlobReference, BlobReference | GradientSlice]]:
        """Make the backward pass of a list of operators; see `IR.GetBackwardPass`."""
        return IR(operators).GetBackwardPass(ys)


GradientRegistry.RegisterGradient("Do")(gen_do_gradient)
GradientRegistry.RegisterGradient("If")(gen_if_gradient)
GradientRegistry.RegisterGradient("AsyncIf")(gen_if_gradient)
GradientRegistry.RegisterGradient("While")(gen_while_gradient)


# ---------------------------------------------------------------- static single assignment


def get_ssa(net: "Net | caffe2_pb2.NetDef | list", blob_versions: dict[str, int] | None = None):
    """Versions of the blobs that each operator of a net reads and writes.

    Parameters
    ----------
    net : Net, NetDef or a list of them
        With a list, versions go on from net to net.
    blob_versions : dict, optional
        Versions to start from, updated in place; others start at 0.

    Returns
    -------
    ssa : list of (inputs, outputs)
        For each operator two lists of (blob, version). With a list of nets, one list for each.
    blob_versions : dict
        Last version of each blob.
    """
    if blob_versions is None:
        blob_versions = {}
    if isinstance(net, list):
        return [get_ssa(n, blob_versions)[0] for n in net], blob_versions
    proto = net.Proto() if isinstance(net, Net) else net
    assert isinstance(proto, caffe2_pb2.NetDef)
    for blob in proto.external_input:
        blob_versions.setdefault(blob, 0)
    has_external_input = bool(proto.external_input)
    ssa = []
    for op in proto.op:
        if not has_external_input:
            for blob in op.input:
                blob_versions.setdefault(blob, 0)
        inputs = [(blob, blob_versions.get(blob, 0)) for blob in op.input]
        for blob in op.output:
            blob_versions[blob] = blob_versions.get(blob, 0) + 1
        ssa.append((inputs, [(blob, blob_versions[blob]) for blob in op.output]))
    return ssa, blob_versions


def get_undefined_blobs(ssa: list) -> set[str]:
    """Blobs that are read before they are written, from the output of `get_ssa`."""
    return {name for inputs, _ in ssa for name, version in inputs if version == 0}


def get_output_producers(ssa: list) -> dict[tuple[str, int], int]:
    """Map each (blob, version) to the index of the operator that writes it."""
    return {output: i for i, (_, outputs) in enumerate(ssa) for output in outputs}


def get_op_ids_in_path(
    ssa: list, blob_versions: dict[str, int], inputs: Iterable, outputs: Iterable
) -> list[int]:
    """Indices of the operators needed to compute `outputs` given `inputs` in their last version."""
    given = {(str(i), blob_versions[str(i)]) for i in inputs}
    producers = get_output_producers(ssa)
    queue = [(str(o), blob_versions[str(o)]) for o in outputs]
    used_op_ids = set()
    while queue:
        blob = queue.pop()
        op_id = None if blob in given else producers.get(blob)
        if op_id is not None and op_id not in used_op_ids:
            used_op_ids.add(op_id)
            queue.extend(ssa[op_id][0])
    return sorted(used_op_ids)


# ---------------------------------------------------------------- renaming blobs in arguments


def recurrent_network_op_remap(
    op: caffe2_pb2.OperatorDef, prefix: str, blob_remap: dict[str, str]
) -> None:
    """Rename the blobs that RecurrentNetwork and its gradient name in their arguments.

    `prefix` is not used.
    """

    def remap(blob):
        name = blob.decode("utf-8")
        return str(blob_remap.get(name, name)).encode("utf-8")

    for argument in op.arg:
        if argument.strings:
            argument.strings[:] = [remap(s) for s in argument.strings]
        elif argument.name == "timestep":
            argument.s = remap(argument.s)
        elif argument.name.endswith("step_net"):
            remap_proto(argument, blob_remap)


def control_op_remap(
    op: caffe2_pb2.OperatorDef, prefix: str, blob_remap: dict[str, str]
) -> None:
    """Rename the blobs in the nets of If, AsyncIf and While. `prefix` is not used."""
    if op.type in ("If", "AsyncIf"):
        net_arg_names = ("then_net", "else_net")
    else:
        net_arg_names = ("loop_net", "cond_net")
    for argument in op.arg:
        if argument.name in net_arg_names:
            assert argument.HasField("n"), f"Expected non empty net in {op.type}'s {argument.name}"
            subnet = Net(argument.n)
            remapped = subnet.Clone(f"{subnet.Name()}_remapped", blob_remap)
            argument.n.CopyFrom(remapped.Proto())


DEFAULT_REMAP_FUNCS: dict[str, Callable] = {
    "RecurrentNetwork": recurrent_network_op_remap,
    "RecurrentNetworkGradient": recurrent_network_op_remap,
    "If": control_op_remap,
    "While": control_op_remap,
    "AsyncIf": control_op_remap,
}


def remap_proto(argument: caffe2_pb2.Argument, blob_remap: dict[str, str]) -> None:
    """Rename the blobs in the net that an argument holds."""
    argument.n.CopyFrom(Net(argument.n).Clone("cloned_sub_net", blob_remap).Proto())


def clone_and_bind_net(
    net: "Net",
    name: str,
    prefix: str,
    blob_remap: dict[str, str] | None = None,
    inputs=None,
    keep_schema: bool = True,
) -> tuple["Net", dict[str, str]]:
    """Clone a net, prefixing the blobs it defines and binding its input record to other blobs.

    Parameters
    ----------
    net : Net
        The net to clone.
    name : str
        Name of the clone.
    prefix : str
        Prepended to the blobs that the net writes.
    blob_remap : dict, optional
        Further renaming; it is extended in place.
    inputs : schema.Field, optional
        Blobs to read in place of those of the net's input record. Must have all its fields.
    keep_schema : bool
        Keep the renamed records of the net; else the input record is `inputs`.

    Returns
    -------
    Net
        The clone.
    dict
        From names in the original to names in the clone.
    """
    assert isinstance(net, Net)
    if blob_remap is None:
        blob_remap = {}
    if inputs is not None:
        from caffe2.python import schema

        assert isinstance(inputs, schema.Field)
        original = net.input_record()
        assert original is not None, f"Net {net.Name()} has no input record"
        missing = set(original.field_names()) - set(inputs.field_names())
        assert not missing, (
            f"Schemas don't match, extra fields {missing} found in the net {net.Name()}. "
            f"original: {original.field_names()}; inputs: {inputs.field_names()}"
        )
        original_blobs = dict(zip(original.field_names(), original.field_blobs()))
        for field, blob in zip(inputs.field_names(), inputs.field_blobs()):
            if field in original_blobs:
                blob_remap[str(original_blobs[field])] = str(blob)
    ssa, blob_versions = get_ssa(net.Proto())
    undefined = get_undefined_blobs(ssa)
    for blob in blob_versions:
        blob_remap.setdefault(blob, blob if blob in undefined else prefix + blob)
    cloned_net = net.Clone(name, blob_remap, keep_schema=keep_schema)
    if not keep_schema and inputs is not None:
        cloned_net.set_input_record(inputs)
    return cloned_net, blob_remap


def _recover_record_by_prefix(names: Iterable[str], prefix: str = ""):
    """Record of the blobs whose names start with `prefix`, the rest being column names."""
    from caffe2.python import schema

    columns = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not columns:
        return None
    return schema.from_column_list(
        columns, col_blobs=[BlobReference(prefix + name) for name in columns]
    )


# ---------------------------------------------------------------- nets


class Net:
    """A NetDef under construction.

    `net.Relu("x", "y")` appends an operator and returns a reference to its output, or a tuple of
    them. Outputs may be names, a number (of outputs to be named automatically) or absent (one
    such output). Inputs unknown to the net become external inputs.

    Parameters
    ----------
    name_or_proto : str or NetDef
        Name of an empty net, or a definition to start from. A name that another net of this
        process has gets a number appended.
    inplace : bool
        Take the given NetDef itself instead of a copy.
    """

    _net_names_used: set[str] = set()
    _net_names_used_counters: dict[str, int] = {}
    operator_registry_: dict[str, Callable] = {}

    @staticmethod
    def current_prefix() -> str:
        """Name of the current NetBuilder, which prefixes the names of nets made inside it."""
        # Without the module having been imported there is no builder.
        module = sys.modules.get("caffe2.python.net_builder")
        builder = module.NetBuilder.current(required=False) if module else None
        return builder.name if builder else ""

    @staticmethod
    def _reset_used_names() -> None:
        Net._net_names_used = set()
        Net._net_names_used_counters = {}

    @staticmethod
    def _get_next_net_name(basename: str) -> str:
        basename = "/".join(x for x in (Net.current_prefix(), basename) if x)
        index = Net._net_names_used_counters.get(basename, 0)
        name = basename if index == 0 else f"{basename}_{index}"
        while name in Net._net_names_used:
            index += 1
            name = f"{basename}_{index}"
        Net._net_names_used_counters[basename] = index + 1
        Net._net_names_used.add(name)
        return name

    def __init__(self, name_or_proto: str | caffe2_pb2.NetDef, inplace: bool = False) -> None:
        self._input_record = None
        self._output_record = None
        # Names handed out by NextBlob, and where to go on looking for free names.
        self._registered_blob_names: set[str] = set()
        self._next_free_index: dict[tuple, int] = {}
        self._recreate_lookup_tables = False
        self._op_outputs: set[str] = set()
        self._external_input_map: set[str] = set()
        self._attr_dict = defaultdict(list)
        self._next_name_index = 0
        if isinstance(name_or_proto, caffe2_pb2.NetDef):
            if inplace:
                self._net = name_or_proto
            else:
                self._net = caffe2_pb2.NetDef()
                self._net.CopyFrom(name_or_proto)
            name = self._net.name
            self._RecreateLookupTables()
            prefix = name + "_blob_"
            for op in self._net.op:
                for blob in (*op.input, *op.output):
                    if blob.startswith(prefix) and (index := blob[len(prefix) :]).isdecimal():
                        self._next_name_index = max(self._next_name_index, int(index) + 1)
        else:
            name = name_or_proto
            self._net = caffe2_pb2.NetDef()
        self._net.name = Net._get_next_net_name(name)

    def Name(self) -> str:
        """Name of the net."""
        return self._net.name

    def __str__(self) -> str:
        return self.Name()

    def __repr__(self) -> str:
        types = [op.type for op in self._net.op[:8]]
        if len(self._net.op) > len(types):
            types.append("...")
        count = len(self._net.op)
        return (
            f'Net("{self._net.name}", {count} operator{"" if count == 1 else "s"}'
            f"{': ' if types else ''}{', '.join(types)})"
        )

    def _repr_svg_(self) -> str | None:
        """Drawing for a notebook; without pydot and Graphviz it shows the repr instead."""
        from caffe2.python import net_drawer

        try:
            return net_drawer.GetPydotGraph(self).create_svg().decode()
        except (ImportError, OSError):
            return None

    def Proto(self) -> caffe2_pb2.NetDef:
        """The live NetDef; changes to it are changes to the net."""
        # It may be changed from now on, by whoever asked for it.
        self._InvalidateLookupTables()
        return self._net

    # ------------------------------------------------ operators

    def __getattr__(self, op_type: str) -> Callable:
        if op_type.startswith("__"):
            raise AttributeError(f"Attribute {op_type} not found.")
        if not IsOperator(op_type) and not IsOperatorWithEngine(op_type, "CUDNN"):
            raise AttributeError(_unknown_operator(op_type))
        return partial(self._CreateAndAddToSelf, op_type)

    def __dir__(self) -> list[str]:
        operators = {o for o in _REGISTERED_OPERATORS if "_ENGINE_" not in o}
        return sorted({*dir(type(self)), *self.__dict__, *operators})

    def _CreateAndAddToSelf(self, op_type, inputs, outputs=None, **kwargs):
        inputs = _RectifyInputOutput(inputs)
        for blob in inputs:
            if not self.BlobIsDefined(blob):
                assert blob.Net() is not self, (
                    f"Blob {blob} claims to come from net {self.Name()}, which does not define it"
                )
                self.AddExternalInput(blob)
        if outputs is None:
            outputs = self.NextName(prefix=op_type)
        elif isinstance(outputs, int):
            outputs = [self.NextName(prefix=op_type, output_id=i) for i in range(outputs)]
        outputs = _RectifyInputOutput(outputs, net=self)
        op = CreateOperator(op_type, inputs, outputs, **kwargs)
        self._ExtendOps([op])
        workspace.operator_tracebacks[self.Name()][len(self._net.op) - 1] = _extract_stacktrace()

        refs = tuple(BlobReference(o, self) for o in op.output)
        if not refs:
            return None
        return refs[0] if len(refs) == 1 else refs

    def Python(
        self,
        f: Callable | tuple,
        grad_f: Callable | tuple | None = None,
        python_func_type: type | None = None,
        pass_workspace: bool = False,
        grad_output_indices: Sequence[int] | None = None,
        grad_input_indices: Sequence[int] | None = None,
    ) -> Callable:
        """Make an operator of Python functions; call what is returned with inputs and outputs.

        Parameters
        ----------
        f : callable or tuple
            `f(inputs, outputs)`, called with lists of tensors whenever the operator runs. A tuple
            (builder, args, kwargs) is instead pickled into the net, and `builder(*args, **kwargs)`
            makes the function where the net is created; so a net can go to another process, and
            the function can keep state there.
        grad_f : callable or tuple, optional
            The gradient, of the same kind. Its inputs are all inputs of `f`, all its outputs and
            the gradients of its outputs; its outputs are the gradients of the inputs of `f`.
        python_func_type : type, optional
            `python_func_type(f)` gives an object whose methods `forward` and `backward` serve.
        pass_workspace : bool
            Call `f(inputs, outputs, workspace)` instead.
        grad_output_indices, grad_input_indices : sequence of int, optional
            Restrict the gradients that `grad_f` reads and writes to these outputs and inputs.
        """
        assert IsOperator("Python")

        def pickled(builder):
            if not isinstance(builder, tuple):
                return ""
            assert len(builder) == 3, "Expected builder tuple (func, args, kwargs)"
            func, args, kwargs = builder
            return pickle.dumps((func, tuple(args), dict(kwargs)))

        f_builder, grad_f_builder = pickled(f), pickled(grad_f)
        assert not grad_f or bool(f_builder) == bool(grad_f_builder), (
            "A tuple has to be passed to both f and grad_f or neither."
        )
        if f_builder:
            core_kwargs = {
                "pickled_builder": f_builder,
                "pickled_grad_builder": grad_f_builder,
                "pass_workspace": pass_workspace,
            }
        else:
            core_kwargs = {
                "token": _RegisterPythonImpl(
                    f, grad_f, python_func_type, pass_workspace=pass_workspace
                )
            }
        core_kwargs["grad_output_indices"] = grad_output_indices or []
        core_kwargs["grad_input_indices"] = grad_input_indices or []
        return lambda *args, **kwargs: self._CreateAndAddToSelf(
            "Python", *args, **{**kwargs, **core_kwargs}
        )

    def _ExtendOps(self, new_ops):
        new_ops = list(new_ops)
        self._net.op.extend(new_ops)
        for op in new_ops:
            self._op_outputs.update(op.output)

    def extend_ops(self, new_ops: Iterable[caffe2_pb2.OperatorDef]) -> None:
        """Append operators that are ready made."""
        self._ExtendOps(new_ops)

    def insert_op_at_idx(self, op: caffe2_pb2.OperatorDef, op_idx: int) -> None:
        """Insert an operator; what it reads and nobody before it writes becomes external input."""
        assert op_idx >= 0
        following = list(self._net.op[op_idx:])
        defined = set(self._net.external_input)
        for previous in self._net.op[:op_idx]:
            defined.update(previous.output)
        del self._net.op[op_idx:]
        self._net.op.append(op)
        self._net.op.extend(following)
        self._net.external_input.extend([b for b in dict.fromkeys(op.input) if b not in defined])
        self._InvalidateLookupTables()

    def reroute_tensor(
        self,
        tensor: BlobReference | str,
        new_producer: caffe2_pb2.OperatorDef,
        can_modify: Iterable[caffe2_pb2.OperatorDef] | None = None,
    ) -> int:
        """Insert an operator behind a blob, and have the readers of the blob read its output.

        The net must not write blobs in place.

        Parameters
        ----------
        tensor : blob
            An input of the new operator.
        new_producer : OperatorDef
            The operator. Its first output takes the place of `tensor`.
        can_modify : iterable of OperatorDef, optional
            The readers that may be changed; without it, all.

        Returns
        -------
        int
            How many operators were changed.
        """
        tensor = str(tensor)
        assert tensor in new_producer.input, f"{new_producer.type} does not take in {tensor}"
        new_tensor = new_producer.output[0]
        producers = {blob: i for i, op in enumerate(self._net.op) for blob in op.output}
        index = max(producers.get(blob, -1) for blob in new_producer.input) + 1
        allowed = None if can_modify is None else list(can_modify)
        readers = [
            op
            for op in self._net.op
            if tensor in op.input and (allowed is None or op in allowed)
        ]
        for op in readers:
            remap_input(op, {tensor: new_tensor})
        self.insert_op_at_idx(new_producer, index)
        outputs = self._net.external_output
        outputs[:] = [new_tensor if b == tensor else b for b in outputs]
        return len(readers)

    def AppendNet(
        self, net: "Net", device_option: caffe2_pb2.DeviceOption | None = None
    ) -> "Net":
        """Append the operators of another net, on another device if one is given."""
        assert isinstance(net, Net)
        other = net._net
        new_inputs = [b for b in other.external_input if not self.BlobIsDefined(b)]
        external_outputs = set(self._net.external_output)
        ops = list(other.op)
        if device_option is not None:
            ops = [copy.deepcopy(op) for op in ops]
            for op in ops:
                op.device_option.CopyFrom(device_option)
                if op.type == "RecurrentNetwork":
                    for arg in op.arg:
                        if arg.name.endswith("step_net"):
                            for step_op in arg.n.op:
                                step_op.device_option.CopyFrom(device_option)
        self._net.external_input.extend(new_inputs)
        self._net.external_output.extend(
            [b for b in other.external_output if b not in external_outputs]
        )
        self._ExtendOps(ops)
        self._InvalidateLookupTables()
        return self

    def AddGradientOperators(
        self, ys: list | dict, skip: int = 0
    ) -> dict[BlobReference, BlobReference | GradientSlice]:
        """Append the backward pass of the net.

        Parameters
        ----------
        ys : list or dict
            The blobs to derive; a dict maps each to the blob holding its gradient. Where that is
            None, or with a list, the gradient is all ones.
        skip : int
            Leave out this many operators at the beginning, such as those that read data.

        Returns
        -------
        dict
            blob -> its gradient, a GradientSlice where it is sparse.
        """
        grad_ops, input_to_grad = GradientRegistry.GetBackwardPass(self._net.op[skip:], ys)
        if workspace.IsImmediate():
            for op in grad_ops:
                workspace.RunOperatorImmediate(op)
        self._ExtendOps(grad_ops)
        return input_to_grad

    def DeduplicateGradientSlices(
        self, g: GradientSlice, aggregator: str = "sum"
    ) -> GradientSlice:
        """Make the indices of a sparse gradient unique; `aggregator` is "sum" or "mean"."""
        assert isinstance(g, GradientSlice)
        aggregators = {"sum": "UnsortedSegmentSum", "mean": "UnsortedSegmentMean"}
        if aggregator.lower() not in aggregators:
            raise ValueError(f"{aggregator} is not supported")
        unique, remapping = self.Unique([g.indices], 2, engine="SparseHash")
        values = getattr(self, aggregators[aggregator.lower()])([g.values, remapping], 1)
        return GradientSlice(indices=unique, values=values)

    def Const(self, array: Any, blob_out: BlobLike | None = None, dtype=None) -> BlobReference:
        """Fill a blob with a constant: a number, bool, string or array. Floats become float32."""
        outputs = 1 if blob_out is None else blob_out
        if isinstance(array, bool):
            return self.ConstantFill([], outputs, dtype=DataType.BOOL, value=array)
        array = np.asarray(array, dtype=dtype)
        if array.dtype.kind in "USO":
            fill = self.GivenTensorStringFill
        else:
            fill = {
                np.dtype(np.int32): self.GivenTensorIntFill,
                np.dtype(np.int64): self.GivenTensorInt64Fill,
                np.dtype(np.bool_): self.GivenTensorBoolFill,
            }.get(array.dtype, self.GivenTensorFill)
        return fill([], outputs, shape=array.shape, values=array.ravel().tolist())

    def LogInfo(self, *msg_or_blobs: BlobReference | str) -> None:
        """Print messages and the contents of blobs whenever the net runs."""
        for item in msg_or_blobs:
            if not isinstance(item, BlobReference):
                item = self.GivenTensorStringFill(
                    [], self.NextName("log"), shape=[], values=[item]
                )
            self.Print(item, [])

    # ------------------------------------------------ blobs

    def BlobIsDefined(self, blob: BlobReference | str) -> bool:
        """Whether an operator of the net writes the blob, or it is an external input."""
        if self._recreate_lookup_tables:
            self._RecreateLookupTables()
        name = str(blob)
        return name in self._op_outputs or name in self._external_input_map

    def UsesBlob(self, blob: BlobReference | str) -> bool:
        """Whether an operator of the net reads the blob, or it is an external input."""
        name = str(blob)
        return self.is_external_input(name) or any(name in op.input for op in self._net.op)

    def UsedBlobNames(self) -> set[str]:
        """Names of all blobs of the net."""
        names = {*self._net.external_input, *self._net.external_output}
        for op in self._net.op:
            names.update(op.input, op.output)
        return names

    def GetBlobRef(self, blob_name: BlobReference | str) -> BlobReference:
        """Reference to a blob that the net defines; KeyError if it does not."""
        blob_name = str(blob_name)
        if not self.BlobIsDefined(blob_name):
            raise KeyError(f"Net does not define blob {blob_name}")
        return BlobReference(blob_name, self)

    def NextScopedBlob(self, prefix: str = "unnamed") -> BlobReference:
        """Like `NextBlob`, with the current name scope prepended."""
        return self.NextBlob(ScopedName(prefix))

    def NextBlob(self, prefix: str = "unnamed") -> BlobReference:
        """A blob that is new to the net: `prefix`, else `prefix_auto_0` and so on.

        No two calls return the same.
        """
        taken = self._registered_blob_names
        prefix = str(prefix)
        name = prefix
        if name in taken or self.BlobIsDefined(name):
            index = self._next_free_index.get((prefix,), 0)
            while (name := f"{prefix}_auto_{index}") in taken or self.BlobIsDefined(name):
                index += 1
            self._next_free_index[prefix,] = index + 1
        taken.add(name)
        return BlobReference(name)

    def NextName(self, prefix: str | None = None, output_id: int | None = None) -> str:
        """A name that is new to the net, for outputs that nobody named. Prefer `NextBlob`."""
        if not prefix:
            name = f"{self._net.name}_blob_{self._next_name_index}"
            self._next_name_index += 1
            return name
        base = f"{self._net.name}/{prefix}"
        suffix = "" if output_id is None else f":{output_id}"
        name = base + suffix
        if self.BlobIsDefined(ScopedName(name)):
            key = (ScopedName(base), suffix)
            index = self._next_free_index.get(key, 2)
            while self.BlobIsDefined(ScopedName(name := f"{base}_{index}{suffix}")):
                index += 1
            self._next_free_index[key] = index
        return name

    def _CheckLookupTables(self):
        """For tests: the tables know everything that the proto holds."""
        assert {o for op in self._net.op for o in op.output} <= self._op_outputs
        assert set(self._net.external_input) <= self._external_input_map

    def _InvalidateLookupTables(self):
        self._recreate_lookup_tables = True

    def _RecreateLookupTables(self):
        self._op_outputs = {o for op in self._net.op for o in op.output}
        self._external_input_map = set(self._net.external_input)
        # Blobs may be gone, their names free again.
        self._next_free_index.clear()
        self._recreate_lookup_tables = False

    # ------------------------------------------------ external inputs and outputs

    def AddExternalInput(self, *inputs: BlobLike) -> BlobReference | list[BlobReference]:
        """Declare blobs that the net reads and others write; names are taken as they are."""
        assert inputs, "Expected at least one input"
        names = [str(_get_blob_ref(i)) for i in inputs]
        for name in names:
            assert not self.is_external_input(name), (
                f"Net {self.Name()} already contains an input named {name}"
            )
        self._net.external_input.extend(names)
        self._external_input_map.update(names)
        refs = [BlobReference(name) for name in names]
        return refs[0] if len(refs) == 1 else refs

    def AddExternalInputs(self, *inputs: BlobLike) -> BlobReference | list[BlobReference]:
        """The same as `AddExternalInput`."""
        return self.AddExternalInput(*inputs)

    def AddScopedExternalInputs(self, *inputs: str) -> list[BlobReference]:
        """Declare external inputs, prefixing their names by the current name scope."""
        return output_to_list(self.AddExternalInput(*map(ScopedBlobReference, inputs)))

    def AddExternalOutput(self, *outputs: BlobReference) -> None:
        """Declare blobs that the net writes for others."""
        for output in outputs:
            assert isinstance(output, BlobReference), f"{output!r} is not a BlobReference"
            assert self.BlobIsDefined(output), f"{output} is not defined in net {self.Name()}"
        self._net.external_output.extend([str(o) for o in outputs])

    def AddExternalOutputs(self, *outputs: BlobReference) -> None:
        """The same as `AddExternalOutput`."""
        self.AddExternalOutput(*outputs)

    def AddScopedExternalOutputs(self, *outputs: str) -> None:
        """Declare external outputs, prefixing their names by the current name scope."""
        self.AddExternalOutput(*map(ScopedBlobReference, outputs))

    @property
    def external_inputs(self) -> list[BlobReference]:
        """References to the external inputs."""
        return [BlobReference(b) for b in self._net.external_input]

    @property
    def external_outputs(self) -> list[BlobReference]:
        """References to the external outputs."""
        return [BlobReference(b) for b in self._net.external_output]

    def is_external_input(self, blob: BlobReference | str) -> bool:
        """Whether the blob is an external input."""
        if self._recreate_lookup_tables:
            self._RecreateLookupTables()
        return str(blob) in self._external_input_map

    # ------------------------------------------------ records

    def input_record(self):
        """Schema of the inputs, if one was set."""
        return self._input_record

    def output_record(self):
        """Schema of the outputs, if one was set."""
        return self._output_record

    def _assert_record_can_be_set(self, old, new, which):
        assert old is None or (
            new.has_blobs() and set(new.field_blobs()) == set(old.field_blobs())
        ), f"{which} schema cannot be reset"

    def set_input_record(self, input_record):
        """Declare the schema of the inputs; blobs are made for a schema that has none."""
        self._assert_record_can_be_set(self._input_record, input_record, "Input")
        if not input_record.has_blobs():
            from caffe2.python import schema

            with NameScope(self.Name()):
                input_record = schema.NewRecord(self, input_record)
        self._input_record = input_record
        for blob in input_record.field_blobs():
            if not self.is_external_input(blob):
                self.AddExternalInput(blob)
        return input_record

    def set_output_record(self, record) -> None:
        """Declare the schema of the outputs, whose blobs the net must define."""
        self._assert_record_can_be_set(self._output_record, record, "Output")
        blobs = record.field_blobs()
        for blob in blobs:
            assert self.BlobIsDefined(blob), f"{blob} is not defined in net {self.Name()}"
        known = set(self._net.external_output)
        for blob in blobs:
            if str(blob) not in known:
                self.AddExternalOutput(blob)
        self._output_record = record

    def AppendOutputRecordField(self, field_name: str, record) -> None:
        """Add a field to the schema of the outputs."""
        from caffe2.python import schema

        assert self._output_record is not None, "Tried to append to missing output record"
        self.AddExternalOutput(*record.field_blobs())
        self._output_record = self._output_record + schema.Struct((field_name, record))

    def recover_input_record_by_prefix(self, prefix: str) -> None:
        """Set the input record from the external inputs that start with `prefix`."""
        record = _recover_record_by_prefix(self._net.external_input, prefix)
        if record:
            self.set_input_record(record)

    def recover_output_record_by_prefix(self, prefix: str) -> None:
        """Set the output record from the external outputs that start with `prefix`."""
        record = _recover_record_by_prefix(self._net.external_output, prefix)
        if record:
            self.set_output_record(record)

    # ------------------------------------------------ cloning

    def Clone(
        self,
        name: str,
        blob_remap: dict[str, str] | None = None,
        op_id_mask: Iterable[int] | None = None,
        remap_funcs: dict[str, Callable] | None = None,
        keep_schema: bool = True,
        update_external_list: bool = False,
    ) -> "Net":
        """Copy the net.

        Parameters
        ----------
        name : str
            Name of the copy.
        blob_remap : dict, optional
            Blobs to rename.
        op_id_mask : iterable of int, optional
            Indices of the operators to copy; without it, all.
        remap_funcs : dict, optional
            Operator type -> `f(op, prefix, blob_remap)`, to rename what stands in arguments.
            Recurrent networks and control operators are known.
        keep_schema : bool
            Copy the input and output records.
        update_external_list : bool
            Derive external inputs and outputs from the operators of the copy.
        """
        blob_remap = blob_remap or {}
        remap_funcs = {**DEFAULT_REMAP_FUNCS, **(remap_funcs or {})}
        proto = caffe2_pb2.NetDef()
        proto.CopyFrom(self._net)
        proto.name = name
        ops = list(self._net.op)
        if op_id_mask is not None:
            ops = [ops[i] for i in op_id_mask]
            del proto.op[:]
            proto.op.extend(ops)

        def remap(blob):
            return str(blob_remap.get(str(blob), blob))

        def remap_list(blobs):
            if blob_remap:
                blobs[:] = [remap(b) for b in blobs]

        for op in proto.op:
            remap_list(op.input)
            remap_list(op.output)
            if op.type in remap_funcs:
                remap_funcs[op.type](op, f"{name}/" if name else "", blob_remap)
        remap_list(proto.external_input)
        remap_list(proto.external_output)
        if update_external_list:
            needed, produced, consumed = {}, {}, set()
            for op in proto.op:
                consumed.update(b for b in op.input if b in produced)
                needed.update((b, None) for b in op.input if b not in produced)
                produced.update(dict.fromkeys(op.output))
            proto.external_input[:] = list(needed)
            proto.external_output[:] = [b for b in produced if b not in consumed]
        net = Net(proto, inplace=True)

        def remap_record(record):
            from caffe2.python import schema

            blobs = [BlobReference(remap(b), net=net) for b in record.field_blobs()]
            return schema.from_blob_list(record, blobs)

        if keep_schema:
            if self._input_record:
                net._input_record = remap_record(self._input_record)
            if self._output_record:
                net._output_record = remap_record(self._output_record)
        net._attr_dict.update(self._attr_dict)
        return net

    def ClonePartial(
        self,
        name: str,
        inputs: dict | list,
        outputs: Sequence[BlobReference],
        remap_funcs: dict[str, Callable] | None = None,
    ) -> tuple["Net", list[BlobReference]]:
        """Copy the operators that are needed to compute `outputs` given `inputs`.

        Blobs that the copied operators write are prefixed by `name` and a slash.

        Parameters
        ----------
        name : str
            Name of the copy.
        inputs : dict, list of pairs or list
            From blobs of the net to the external inputs of the copy that stand for them; a list
            of blobs keeps their names.
        outputs : list of blobs
            What the copy computes.
        remap_funcs : dict, optional
            See `Clone`.

        Returns
        -------
        Net
            The copy.
        list of BlobReference
            Its outputs.
        """
        is_pair_list = isinstance(inputs, list) and all(
            isinstance(i, tuple) and len(i) == 2 for i in inputs
        )
        inputs = dict(inputs if isinstance(inputs, dict) or is_pair_list else zip(inputs, inputs))
        for output in outputs:
            assert self.BlobIsDefined(output), f"{output} is not defined in net {self.Name()}"
        input_names = {str(k): str(v) for k, v in inputs.items()}
        ssa, blob_versions = get_ssa(self._net, dict.fromkeys(input_names, 0))
        used_op_ids = get_op_ids_in_path(ssa, blob_versions, inputs, outputs)
        disallowed_op_ids = get_op_ids_in_path(ssa, blob_versions, [], inputs)
        assert not set(used_op_ids) & set(disallowed_op_ids), (
            "Cannot partially clone net: some of the ops required would generate the given input."
        )
        undefined = get_undefined_blobs([ssa[i] for i in used_op_ids]) - set(input_names)
        prefix = f"{name}/" if name else ""
        mapping = {
            b: input_names.get(b, b if b in undefined else prefix + b) for b in blob_versions
        }
        net = self.Clone(name, mapping, used_op_ids, remap_funcs)
        new_outputs = [mapping[str(o)] for o in outputs]
        net._net.external_input[:] = [mapping[i] for i in input_names] + sorted(undefined)
        net._net.external_output[:] = new_outputs
        net._InvalidateLookupTables()
        return net, [net.GetBlobRef(o) for o in new_outputs]

    # ------------------------------------------------ attributes of the net

    def AddArgument(self, arg_name: str, arg_value: Any) -> None:
        """Add an argument to the net itself."""
        self._net.arg.append(utils.MakeArgument(arg_name, arg_value))

    def add_attribute(self, name: str, obj: Any) -> None:
        """Append to the objects kept with the net under `name`; what they mean is up to you."""
        self._attr_dict[name].append(obj)

    def get_attributes(self, name: str) -> list:
        """Objects kept with the net under `name`."""
        return self._attr_dict.get(name, [])

    def set_rand_seed(
        self, seed: int = 100, sequence_seed: bool = True, seed_on_op_def: bool = False
    ) -> None:
        """Give each operator a random seed.

        Parameters
        ----------
        seed : int
            Seed of all operators.
        sequence_seed : bool
            Let it grow by one from operator to operator.
        seed_on_op_def : bool
            Derive it from the definition of each operator instead.
        """
        assert not (sequence_seed and seed_on_op_def), (
            "sequence_seed and seed_on_op_def cannot be both set to True."
        )
        for i, op in enumerate(self._net.op):
            if sequence_seed:
                op.device_option.random_seed = seed + i
            elif seed_on_op_def:
                op.device_option.random_seed = zlib.crc32(f"{op}{seed}".encode())
            else:
                op.device_option.random_seed = seed

    def PopulateProtoWithFileName(self) -> None:
        """Name each operator after the place in the source that made it."""
        tracebacks = workspace.operator_tracebacks.get(self.Name())
        if tracebacks is not None:
            for i, op in enumerate(self._net.op):
                if i in tracebacks:
                    op.name = ":".join(map(str, tracebacks[i][0]))

    def _run_all_on(self, device_type, device_id=None):
        self._net.device_option.Clear()
        self._net.device_option.device_type = device_type
        if device_id is not None:
            self._net.device_option.device_id = device_id

    def RunAllOnGPU(self, gpu_id: int = 0, use_cudnn: bool = False) -> None:
        """Run all operators that have no device of their own on a graphics card."""
        self._run_all_on(workspace.GpuDeviceType, gpu_id)
        if use_cudnn:
            for op in self._net.op:
                op.engine = "CUDNN"

    def RunAllOnMKL(self) -> None:
        """Ask for the MKLDNN device."""
        self._run_all_on(caffe2_pb2.MKLDNN)

    def RunAllOnIDEEP(self) -> None:
        """Ask for the IDEEP device."""
        self._run_all_on(caffe2_pb2.IDEEP)

    def AddObserver(self, observer_type: str):
        """Attach an observer to the net, which must have been created; returns it."""
        return C.add_observer_to_net(self._net.name, observer_type)

    def RemoveObserver(self, observer) -> None:
        """Detach an observer."""
        C.remove_observer_from_net(self._net.name, observer)

    def NumObservers(self) -> int:
        """How many observers are attached."""
        return C.num_observers_on_net(self._net.name)


def get_net_name(netlike: Net | caffe2_pb2.NetDef | str) -> str:
    """Name of a net, however it is given."""
    if isinstance(netlike, Net):
        return netlike.Name()
    if isinstance(netlike, caffe2_pb2.NetDef):
        return netlike.name
    return netlike


# ---------------------------------------------------------------- copies between devices


def copy_func_between_devices(
    src: caffe2_pb2.DeviceOption, dst: caffe2_pb2.DeviceOption
) -> Callable | None:
    """What to call as `f(net, inputs, outputs)` to copy between two devices; None if nothing."""

    def copier(op_type, device):
        def func(net, *args, **kw):
            with DeviceScope(device):
                return getattr(net, op_type)(*args, **kw)

        return func

    from_gpu, to_gpu = IsGPUDeviceType(src.device_type), IsGPUDeviceType(dst.device_type)
    from_cpu, to_cpu = (d.device_type == caffe2_pb2.CPU for d in (src, dst))
    if from_cpu and to_cpu:
        return None
    if from_gpu and to_gpu:
        return None if src.device_id == dst.device_id else copier("Copy", dst)
    if from_gpu and to_cpu:
        return copier("CopyGPUToCPU", src)
    if from_cpu and to_gpu:
        return copier("CopyCPUToGPU", dst)
    raise ValueError(f"Non-supported devices: {src} and {dst}")


def update_placeholder_op_output(
    op: caffe2_pb2.OperatorDef, blob_to_device: dict[str, caffe2_pb2.DeviceOption]
) -> None:
    """Rename the outputs of a placeholder, which are on the CPU, where their blobs are not."""
    op.output[:] = [
        blob if blob_to_device[blob].device_type == caffe2_pb2.CPU else blob + "_cpu"
        for blob in op.output
    ]


class RemapEntry:
    """A blob on a device, as a key."""

    def __init__(self, blob: str, device: caffe2_pb2.DeviceOption) -> None:
        self.blob = blob
        self.device = device

    def __eq__(self, other: object) -> bool:
        return self.blob == other.blob and self.device == other.device

    def __hash__(self) -> int:
        return hash(self.blob + str(self.device))


def _name_on_device(blob: str, device: caffe2_pb2.DeviceOption) -> str:
    if device.device_type == caffe2_pb2.CPU:
        return blob + "_cpu"
    if IsGPUDeviceType(device.device_type):
        return f"{blob}_gpu_{device.device_id}"
    raise RuntimeError(f"Unknown device type: {device.device_type}")


def InjectCrossDeviceCopies(
    net: Net,
    blob_to_device: dict[str, caffe2_pb2.DeviceOption] | None = None,
    blob_remap: dict[RemapEntry, str] | None = None,
    placeHolderOps: Sequence[str] | None = None,
) -> tuple[Net, dict[str, caffe2_pb2.DeviceOption]]:
    """Copy a net, adding copies of blobs where an operator needs them on another device.

    Parameters
    ----------
    net : Net
        A net whose operators have device options.
    blob_to_device : dict, optional
        Where blobs are; extended in place. External inputs not in it are on the device of the net.
    blob_remap : dict, optional
        RemapEntry -> name of the copy that exists already; extended in place.
    placeHolderOps : sequence of str, optional
        Operator types that have no schema; their blobs are on the device of the operator.

    Returns
    -------
    Net
        The net with copies.
    dict
        blob -> its device.
    """
    new_net = net.Clone(net.Name() + "_cross_device", keep_schema=True)
    del new_net.Proto().op[:]
    if blob_to_device is None:
        blob_to_device = {}
    if blob_remap is None:
        blob_remap = {}
    placeholders = placeHolderOps or ()

    # Copies of external inputs that earlier nets made are external inputs too.
    copies = defaultdict(list)
    for entry, copied in blob_remap.items():
        copies[entry.blob].append(copied)
    inputs = list(new_net._net.external_input)
    new_net._net.external_input.extend([c for i in inputs for c in copies.get(i, ())])

    for op in net.Proto().op:
        is_placeholder = op.type in placeholders
        infer = InferOpDeviceAsBlobDevices if is_placeholder else InferOpBlobDevices
        input_dev, output_dev = infer(op)

        op_remap = {}
        for dev, blob in zip(input_dev, op.input):
            assert net.BlobIsDefined(blob), f"input {blob} should be defined in the net."
            if blob not in blob_to_device:
                if not net.is_external_input(blob):
                    raise AttributeError(f"No device information found for blob {blob}.")
                blob_to_device[blob] = net._net.device_option
            source = blob_to_device[blob]
            if device_equal(source, dev):
                continue
            entry = RemapEntry(blob, dev)
            copied = blob_remap.get(entry)
            if copied is None or blob_to_device.get(copied) != dev:
                copy_func = copy_func_between_devices(source, dev)
                if copy_func is None:
                    continue
                copied = _name_on_device(blob, dev)
                copy_func(new_net, blob, copied)
                blob_remap[entry] = copied
                blob_to_device[copied] = dev
            op_remap[blob] = copied

        if is_placeholder:
            update_placeholder_op_output(op, blob_to_device)

        # A blob stays on its device, whichever operator writes it; in place the copied input is
        # what is written.
        for dev, blob in zip(output_dev, op.output):
            if (
                blob in blob_to_device
                and blob not in op.input
                and not device_equal(blob_to_device[blob], dev)
            ):
                raise RuntimeError(
                    f"In-place blob: {blob} is not supported between operators with different "
                    f"device option previous:{blob_to_device[blob]} now: {dev}. Failed op:\n {op}"
                )
        new_op = caffe2_pb2.OperatorDef()
        new_op.CopyFrom(op)
        remap_input(new_op, op_remap)
        new_op.output[:] = [op_remap.get(b, b) if b in op.input else b for b in op.output]
        blob_to_device.update(zip(new_op.output, output_dev))
        new_net.extend_ops([new_op])

    return new_net, blob_to_device


def InjectDeviceCopiesAmongNets(
    nets: list[Net], blob_to_device_init: dict[str, caffe2_pb2.DeviceOption] | None = None
) -> tuple[list[Net], dict[str, caffe2_pb2.DeviceOption]]:
    """`InjectCrossDeviceCopies` for nets in the order in which they run, sharing their blobs."""
    assert isinstance(nets, list) and all(isinstance(net, Net) for net in nets), (
        f"nets {nets} should be a list of nets."
    )
    blob_to_device = blob_to_device_init or {}
    blob_remap: dict[RemapEntry, str] = {}
    new_nets = []
    for net in nets:
        new_net, blob_to_device = InjectCrossDeviceCopies(
            net, blob_to_device=blob_to_device, blob_remap=blob_remap
        )
        new_nets.append(new_net)
    return new_nets, blob_to_device


def InjectDeviceCopiesAmongNetsWithoutB2D(
    nets: list[Net], blob_to_device_init: dict[str, caffe2_pb2.DeviceOption] | None = None
) -> list[Net]:
    """`InjectDeviceCopiesAmongNets` without the map of devices."""
    return InjectDeviceCopiesAmongNets(nets, blob_to_device_init)[0]


# ---------------------------------------------------------------- execution steps and plans


def _add_net_to_dict(net_dict: dict[str, Net | None], net) -> bool:
    """Enter a net under its name; False if it is there already."""
    name = get_net_name(net)
    if name in net_dict:
        assert net_dict[name] is None or net is net_dict[name], (
            f"Different nets with same name: {name}"
        )
        return False
    net_dict[name] = net if isinstance(net, Net) else None
    return True


class ExecutionStep:
    """Nets, or further steps, that run one after the other or side by side, once or often.

    Parameters
    ----------
    name : str
        Name of the step; an empty one is replaced by a free one.
    nets : Net or list of Net, optional
        The nets to run.
    num_iter : int, optional
        How often to run them.
    """

    _step_names_used: set[str] = set()

    @staticmethod
    def _get_next_step_name(basename):
        name = basename
        index = 1
        while name in ExecutionStep._step_names_used:
            name = f"{basename}_{index}"
            index += 1
        ExecutionStep._step_names_used.add(name)
        return name

    def __init__(
        self, name: str | None, nets: Net | list[Net] | None = None, num_iter: int | None = None
    ) -> None:
        self._step = caffe2_pb2.ExecutionStep()
        self._step.name = name or ExecutionStep._get_next_step_name("step")
        self._net_dict: dict[str, Net | None] = OrderedDict()
        self._is_used = False
        self._substeps: list[ExecutionStep] = []
        if nets is not None:
            for net in [nets] if isinstance(nets, Net) else nets:
                if _add_net_to_dict(self._net_dict, net):
                    self._step.network.append(get_net_name(net))
        if num_iter is not None:
            self._step.num_iter = num_iter

    def get_net(self, name: str) -> Net | None:
        """The net of this name."""
        return self._net_dict[name]

    def Name(self) -> str:
        """Name of the step."""
        return self._step.name

    def __str__(self) -> str:
        return self._step.name

    def _assert_can_mutate(self):
        assert not self._is_used, (
            "Cannot mutate a step that has already been added to a plan/step."
        )

    def _notify_is_used(self):
        self._is_used = True

    def Proto(self) -> caffe2_pb2.ExecutionStep:
        """The live ExecutionStep message."""
        return self._step

    def HasNets(self) -> bool:
        """Whether the step runs nets."""
        return bool(self._step.network)

    def HasSubsteps(self) -> bool:
        """Whether the step runs further steps."""
        return bool(self._step.substep)

    def Nets(self) -> list[Net | None]:
        """Nets of the step and of all below it."""
        return list(self._net_dict.values())

    def Substeps(self) -> list["ExecutionStep"]:
        """Steps directly below."""
        return self._substeps

    def _set(self, field, value):
        self._assert_can_mutate()
        setattr(self._step, field, value)

    def SetIter(self, num_iter: int) -> None:
        """Run this often."""
        self._set("num_iter", num_iter)

    def SetCreateWorkspace(self, create_workspace: bool) -> None:
        """Run in a workspace of its own, below the current one."""
        self._set("create_workspace", create_workspace)

    def SetNumConcurrentInstances(self, num_concurrent_instances: int) -> None:
        """Run this many copies side by side."""
        self._set("num_concurrent_instances", num_concurrent_instances)

    def SetOnlyOnce(self, only_once: bool) -> None:
        """Run once in the life of the plan, however often the step above iterates."""
        self._set("only_once", only_once)

    def SetShouldStopBlob(self, should_stop_blob: BlobReference) -> None:
        """Iterate until this boolean is true; it is looked at after each net and substep."""
        assert isinstance(should_stop_blob, BlobReference), (
            f"expects BlobReference here, got {type(should_stop_blob)}"
        )
        self._set("should_stop_blob", str(should_stop_blob))

    def RunEveryMillis(self, interval: int) -> None:
        """Run at this interval while the siblings run, and at least once after them."""
        self._step.run_every_ms = interval

    def SetReportNet(self, report_net: Net | str, report_interval: int) -> None:
        """Run a net at an interval in seconds. Prefer `RunEveryMillis`."""
        self._assert_can_mutate()
        _add_net_to_dict(self._net_dict, report_net)
        self._step.report_net = get_net_name(report_net)
        self._step.report_interval = report_interval

    def AddSubstep(self, substep: "ExecutionStep | caffe2_pb2.ExecutionStep") -> "ExecutionStep":
        """Append a step; one with nothing to do is left out."""
        self._assert_can_mutate()
        assert not self.HasNets(), "Cannot have both network and substeps."
        if isinstance(substep, ExecutionStep):
            substep._notify_is_used()
            if not substep.HasNets() and not substep.HasSubsteps():
                return self
            for name, net in substep._net_dict.items():
                _add_net_to_dict(self._net_dict, net or name)
            self._substeps.append(substep)
            substep = substep.Proto()
        self._step.substep.add().CopyFrom(substep)
        return self

    def SetConcurrentSubsteps(self, concurrent_substeps: bool) -> None:
        """Run the substeps side by side."""
        assert not self.HasNets(), "Cannot have both network and substeps."
        self._set("concurrent_substeps", concurrent_substeps)

    def AddNet(self, net: Net) -> "ExecutionStep":
        """Append a net."""
        self._assert_can_mutate()
        assert not self.HasSubsteps(), "Cannot have both network and substeps."
        assert isinstance(net, Net)
        _add_net_to_dict(self._net_dict, net)
        self._step.network.append(net.Name())
        return self

    def get_all_attributes(self, name: str) -> list:
        """Attributes of this name of all nets of the step and below."""
        return [attr for net in self._net_dict.values() for attr in net.get_attributes(name)]

    @classmethod
    def create_from_proto(
        cls,
        step_proto: caffe2_pb2.ExecutionStep,
        net_obj_dict: dict[str, Net],
        net_proto_dict: dict[str, caffe2_pb2.NetDef],
    ) -> "ExecutionStep":
        """Make a step, and the nets it names, from messages.

        Parameters
        ----------
        step_proto : ExecutionStep message
            With either nets or substeps.
        net_obj_dict : dict
            Nets made so far, by name; extended in place.
        net_proto_dict : dict
            Definitions of the nets, by name.
        """
        assert isinstance(step_proto, caffe2_pb2.ExecutionStep)
        assert bool(step_proto.network) != bool(step_proto.substep), (
            f"Step {step_proto.name} must have either networks or substeps"
        )
        if step_proto.substep:
            steps_or_nets = [
                cls.create_from_proto(s, net_obj_dict, net_proto_dict) for s in step_proto.substep
            ]
        else:
            steps_or_nets = []
            for name in step_proto.network:
                if name not in net_obj_dict:
                    assert name in net_proto_dict, f"Net {name} is not defined"
                    net_obj_dict[name] = Net(net_proto_dict[name])
                steps_or_nets.append(net_obj_dict[name])

        def given(field):
            return getattr(step_proto, field) if step_proto.HasField(field) else None

        stop_blob = given("should_stop_blob")
        return execution_step(
            step_proto.name,
            steps_or_nets,
            should_stop_blob=None if stop_blob is None else BlobReference(stop_blob),
            **{
                field: given(field)
                for field in (
                    "num_iter",
                    "concurrent_substeps",
                    "only_once",
                    "num_concurrent_instances",
                    "create_workspace",
                    "run_every_ms",
                )
            },
        )


def add_nets_in_order(step: ExecutionStep, net_list: list[str]) -> None:
    """Append the names of the nets of a step in the order of use, report nets after the rest."""
    proto = step.Proto()
    for substep in step.Substeps():
        add_nets_in_order(substep, net_list)
    names = list(proto.network)
    if proto.report_net:
        names.append(proto.report_net)
    net_list.extend(name for name in dict.fromkeys(names) if name not in net_list)


class Plan:
    """Execution steps with the nets that they name.

    Parameters
    ----------
    name_or_step : str or ExecutionStep
        Name of an empty plan, or its only step, whose name it takes.
    """

    def __init__(self, name_or_step: str | ExecutionStep) -> None:
        self._plan = caffe2_pb2.PlanDef()
        self._net_dict: dict[str, Net | None] = OrderedDict()
        self._steps: list[ExecutionStep] = []
        if isinstance(name_or_step, ExecutionStep):
            self._plan.name = name_or_step.Name()
            self.AddStep(name_or_step)
        elif isinstance(name_or_step, str):
            self._plan.name = name_or_step
        else:
            raise ValueError("name_or_step must be a string or ExecutionStep")

    def __str__(self) -> str:
        return self._plan.name

    def Proto(self) -> caffe2_pb2.PlanDef:
        """The live PlanDef."""
        return self._plan

    def AddNets(self, nets: Iterable[Net]) -> None:
        """Add nets, which are copied as they are now."""
        for net in nets:
            if _add_net_to_dict(self._net_dict, net):
                assert isinstance(net, Net)
                self._plan.network.add().CopyFrom(net.Proto())

    def Nets(self) -> list[Net]:
        """Nets of the plan."""
        return list(self._net_dict.values())

    def AddStep(self, step: ExecutionStep) -> None:
        """Append a step with its nets; one with nothing to do is left out."""
        assert isinstance(step, ExecutionStep)
        step._notify_is_used()
        if not step.HasNets() and not step.HasSubsteps():
            return
        self._plan.execution_step.add().CopyFrom(step.Proto())
        self._steps.append(step)
        net_list: list[str] = []
        add_nets_in_order(step, net_list)
        self.AddNets([step.get_net(n) for n in net_list])

    def Steps(self) -> list[ExecutionStep]:
        """Steps of the plan."""
        return self._steps

    def get_all_attributes(self, name: str) -> list:
        """Attributes of this name of all nets of the plan."""
        return [attr for net in self._net_dict.values() for attr in net.get_attributes(name)]

    @classmethod
    def create_from_proto(cls, plan_proto: caffe2_pb2.PlanDef) -> "Plan":
        """Make a plan, its steps and nets, from a message. Nets may get new names."""
        assert isinstance(plan_proto, caffe2_pb2.PlanDef)
        net_protos = {net.name: net for net in plan_proto.network}
        assert len(net_protos) == len(plan_proto.network), "Two nets of the plan share a name"
        plan = cls(plan_proto.name)
        plan._plan.CopyFrom(plan_proto)
        del plan._plan.network[:], plan._plan.execution_step[:]
        nets: dict[str, Net] = {}
        for step_proto in plan_proto.execution_step:
            plan.AddStep(ExecutionStep.create_from_proto(step_proto, nets, net_protos))
        return plan


def to_execution_step(step_or_nets, default_name: str | None = None) -> ExecutionStep:
    """Make a step of what can be one: a step, a net, a NetBuilder or a list of them."""
    if isinstance(step_or_nets, ExecutionStep):
        return step_or_nets
    if not default_name and not isinstance(step_or_nets, Net):
        default_name = getattr(step_or_nets, "name", None)
    stop_blob = None
    module = sys.modules.get("caffe2.python.net_builder")
    if module and isinstance(step_or_nets, module.NetBuilder):
        stop_blob = step_or_nets._stop_blob
        step_or_nets = step_or_nets.get()
    return execution_step(default_name, step_or_nets, should_stop_blob=stop_blob)


def execution_step(
    default_name: str | None,
    steps_or_nets,
    num_iter: int | None = None,
    report_net: Net | None = None,
    report_interval: int | None = None,
    concurrent_substeps: bool | None = None,
    should_stop_blob: BlobReference | None = None,
    only_once: bool | None = None,
    num_concurrent_instances: int | None = None,
    create_workspace: bool = False,
    run_every_ms: int | None = None,
) -> ExecutionStep:
    """Make an execution step.

    Parameters
    ----------
    default_name : str or None
        Name of the step.
    steps_or_nets : Net, ExecutionStep, list of either, or None
        What it runs.
    num_iter : int, optional
        How often; once where neither this nor `should_stop_blob` is given.
    should_stop_blob : BlobReference, optional
        A boolean that ends the step when true. It is looked at after each substep or net, so
        beware of races if concurrent threads write it.
    report_net, report_interval, concurrent_substeps, only_once, num_concurrent_instances, \
create_workspace, run_every_ms
        See the setters of `ExecutionStep`.
    """
    assert should_stop_blob is None or num_iter is None, (
        "Cannot set both should_stop_blob and num_iter."
    )
    if should_stop_blob is None and num_iter is None:
        num_iter = 1

    step = ExecutionStep(default_name)
    if should_stop_blob is not None:
        step.SetShouldStopBlob(should_stop_blob)
    if num_iter is not None:
        step.SetIter(num_iter)
    if only_once is not None:
        step.SetOnlyOnce(only_once)
    if concurrent_substeps is not None:
        step.SetConcurrentSubsteps(concurrent_substeps)
    if report_net is not None:
        assert report_interval is not None
        step.SetReportNet(report_net, report_interval)
    if num_concurrent_instances is not None:
        step.SetNumConcurrentInstances(num_concurrent_instances)
    if create_workspace:
        step.SetCreateWorkspace(True)
    if run_every_ms:
        step.RunEveryMillis(run_every_ms)

    if isinstance(steps_or_nets, ExecutionStep):
        step.AddSubstep(steps_or_nets)
    elif isinstance(steps_or_nets, Net):
        step.AddNet(steps_or_nets)
    elif isinstance(steps_or_nets, list):
        if all(isinstance(x, Net) for x in steps_or_nets):
            for net in steps_or_nets:
                step.AddNet(net)
        else:
            for item in steps_or_nets:
                step.AddSubstep(to_execution_step(item))
    elif steps_or_nets:
        raise ValueError("steps_or_nets must be a step, a net, or a list of nets or steps.")
    return step


def scoped_execution_step(name: str | None, *args: Any, **kwargs: Any) -> ExecutionStep:
    """`execution_step` with the current name scope prepended to the name."""
    return execution_step(ScopedName(name) if name else name, *args, **kwargs)


def _extract_stacktrace() -> list[tuple[str, int, str]]:
    """(file, line, function) from the innermost frame outside of this module to the outermost.

    Unlike `inspect` and `traceback` this opens no source file.
    """
    frame = sys._getframe(1)
    while frame and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    result = []
    while frame:
        result.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return result


SetPerOpEnginePref = C.set_per_op_engine_pref
SetGlobalEnginePref = C.set_global_engine_pref
SetEnginePref = C.set_engine_pref
SetOpEnginePref = C.set_op_engine_pref

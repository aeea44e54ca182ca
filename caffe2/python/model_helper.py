"""A model: a net, the net that fills its parameters, and what is known of the parameters."""
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from caffe2.proto import caffe2_pb2
from caffe2.python import core, scope, workspace
from caffe2.python.helpers import db_input
from caffe2.python.modeling import parameter_info
from caffe2.python.modeling.parameter_sharing import parameter_sharing_context
from caffe2.python.optimizer_context import DEFAULT_OPTIM, OptimizerContext
from caffe2.python.regularizer_context import RegularizerContext

logger = logging.getLogger(__name__)

# Operators without parameters, safe to call on any model.
_known_working_ops = [
    "Accuracy", "Adam", "Add", "Adagrad", "SparseAdagrad", "Adadelta", "SparseAdadelta",
    "AveragedLoss", "Cast", "Checkpoint", "ConstantFill", "Copy", "CopyGPUToCPU",
    "CopyCPUToGPU", "DequeueBlobs", "EnsureCPUOutput", "ExpandDims", "Flatten",
    "FlattenToVec", "LabelCrossEntropy", "LearningRate", "MakeTwoClass", "MatMul",
    "NCCLAllreduce", "NHWC2NCHW", "PackSegments", "Print", "PRelu", "ReduceFrontSum",
    "Scale", "ScatterWeightedSum", "Sigmoid", "SortedSegmentSum", "Snapshot", "Softmax",
    "SoftmaxWithLoss", "SquaredL2Distance", "Squeeze", "StopGradient", "Summarize", "Tanh",
    "Transpose", "UnpackSegments", "WeightedSum", "YellowFin",
]

_INIT_NET_MARK = "/param_init_net"


class ModelHelper:
    """A net under construction with its parameters.

    Operators are called as methods of the model or its net; `brew` adds whole layers with
    their parameters.

    Parameters
    ----------
    name : str, optional
        Name of the net, "model" by default; that of the init net ends in ``_init``.
    init_params : bool
        Whether helpers add fill operators for the parameters they make.
    allow_not_known_ops : bool
        Whether any registered operator can be called as a method of the model.
    skip_sparse_optim : bool
        Whether parameters with sparse gradients are left to the caller.
    param_model : ModelHelper, optional
        The model whose parameters are shared.
    arg_scope : dict, optional
        Default arguments of helpers, such as ``{"order": "NHWC"}``.

    Examples
    --------
    >>> from caffe2.python import brew
    >>> model = ModelHelper(name="net")
    >>> fc1 = brew.fc(model, "data", "fc1", dim_in=100, dim_out=10)
    >>> [str(p) for p in model.params]
    ['fc1_w', 'fc1_b']
    """

    def __init__(
            self, name: str | None = None, init_params: bool = True,
            allow_not_known_ops: bool = True, skip_sparse_optim: bool = False,
            param_model: "ModelHelper | None" = None, arg_scope: dict | None = None):
        self.name = name or "model"
        self.net = core.Net(self.name)
        if param_model is None:
            self.param_init_net = core.Net(self.name + "_init")
            self.param_to_grad = {}
            self.params = []
            self._parameters_info = {}
            self._computed_params = []
        else:
            self.param_init_net = param_model.param_init_net
            self.param_to_grad = param_model.param_to_grad
            self.params = param_model.params
            self._parameters_info = param_model._parameters_info
            self._computed_params = param_model._computed_params
        self._param_info_deprecated = []
        self._devices = []
        self.gradient_ops_added = False
        self.init_params = init_params
        self.allow_not_known_ops = allow_not_known_ops
        self.skip_sparse_optim = skip_sparse_optim
        self.weights = []
        self.biases = []
        self._arg_scope = {
            "order": "NCHW",
            "use_cudnn": True,
            "cudnn_exhaustive_search": False,
            **(arg_scope or {}),
        }

    @property
    def arg_scope(self) -> dict:
        """Default arguments of helpers."""
        return self._arg_scope

    def get_name(self) -> str:
        return self.name

    def _infer_param_shape(self, param: Any) -> list | None:
        for op in self.param_init_net.Proto().op:
            if str(param) in op.output:
                for arg in op.arg:
                    if arg.name == "shape":
                        return list(arg.ints)
        return None

    def _update_param_info_deprecated(self) -> None:
        known = self._param_info_deprecated
        assert len(known) <= len(self.params)
        for param in self.params[len(known):]:
            if not isinstance(param, core.BlobReference):
                raise ValueError(f"Param {param} must be a BlobReference!")
            known.append(parameter_info.ParameterInfo(
                param_id=len(known), param=param, shape=self._infer_param_shape(param)))
        for info in known:
            info.grad = self.param_to_grad.get(info.name)

    @staticmethod
    def _normalize_tags(tags: Any) -> set:
        return set(tags or ()) if not isinstance(tags, str) else {tags}

    def create_param(
            self, param_name: Any, shape: list, initializer: Any,
            tags: Any = None) -> core.BlobReference:
        """Create a parameter, or return it if the model has it.

        Parameters
        ----------
        param_name : str or BlobReference
            A string is put into the current name scope, as `ParameterSharing` redirects it.
        shape : list of int
        initializer : Initializer
        tags : str or list of str, optional
            ParameterTags and names of optimizers in the OptimizerContext.
        """
        if isinstance(param_name, core.BlobReference):
            param_name = str(param_name)
        elif isinstance(param_name, str):
            param_name = parameter_sharing_context.get_parameter_name(param_name)
        else:
            raise TypeError(f"Unsupported type for param_name: {type(param_name)}")

        if param_name in self._parameters_info:
            info = self._parameters_info[param_name]
            assert info.shape == shape, (
                f"parameter {param_name} has shape {info.shape}, not {shape}")
            return info.blob

        info = initializer.create_param(
            param_name=core.BlobReference(param_name), init_net=self.param_init_net,
            shape=shape)
        optimizers = OptimizerContext.current()
        for tag in self._normalize_tags(tags):
            if optimizers.has_optimizer(tag):
                info.optimizer = optimizers.get_optimizer(tag)
        if not info.optimizer and optimizers.has_optimizer(DEFAULT_OPTIM):
            info.optimizer = optimizers.get_optimizer(DEFAULT_OPTIM)
        info.regularizer = RegularizerContext.current()

        self._parameters_info[param_name] = info
        self.AddParameter(info.blob, tags)
        return info.blob

    def get_param_info(self, param: core.BlobReference) -> parameter_info.ParameterInfo | None:
        """Return what is known of a parameter, None if it was not made by `create_param`."""
        assert isinstance(param, core.BlobReference), f"Param {param} is not a BlobReference"
        return self._parameters_info.get(param)

    def add_param_DEPRECATED(
            self, param: core.BlobReference, key: Any = None, shape: list | None = None,
            length: int | None = None) -> parameter_info.ParameterInfo:
        """Register a parameter that is initialized elsewhere; `create_param` does both."""
        self._update_param_info_deprecated()
        self.AddParameter(param)
        if key is not None and self.net.input_record() is not None:
            record = self.net.input_record()
            key = record.field_names()[record.field_blobs().index(key)]
        info = parameter_info.ParameterInfo(
            param_id=len(self._param_info_deprecated), param=param, key=key, length=length,
            shape=self._infer_param_shape(param) if shape is None else shape)
        self._param_info_deprecated.append(info)
        return info

    def param_info(self, grad_type: str | None = None, id: int | None = None) -> Any:
        """Return parameters by place or kind of gradient; `get_param_info` finds one by name."""
        self._update_param_info_deprecated()
        infos = self._param_info_deprecated
        if id is not None:
            assert grad_type is None
            return infos[id]
        if grad_type is not None:
            return [info for info in infos if info.grad_type() == grad_type]
        return infos

    def AddParameter(self, param: core.BlobReference, tags: Any = None) -> None:
        """Register a blob as a parameter."""
        assert isinstance(param, core.BlobReference)
        tags = self._normalize_tags(tags)
        kind = parameter_info.ParameterTags
        (self._computed_params if kind.COMPUTED_PARAM in tags else self.params).append(param)
        if kind.WEIGHT in tags:
            self.weights.append(param)
        if kind.BIAS in tags:
            self.biases.append(param)

    @staticmethod
    def _NormalizeNamescope(namescope: str | None) -> str:
        if namescope is None:
            return scope.CurrentNameScope()
        if namescope == "" or namescope.endswith(scope._NAMESCOPE_SEPARATOR):
            return namescope
        return namescope + scope._NAMESCOPE_SEPARATOR

    @classmethod
    def _in_namescope(cls, params: list, namescope: str | None) -> list:
        namescope = cls._NormalizeNamescope(namescope)
        if namescope == "":
            return params[:]
        return [p for p in params if p.GetNameScope().startswith(namescope)]

    def GetParams(self, namescope: str | None = None, top_scope: bool = False) -> list:
        """Return the parameters in a name scope, by default the current one."""
        return self._in_namescope(self.params, namescope)

    def GetComputedParams(self, namescope: str | None = None) -> list:
        """Return the parameters in a name scope that are not trained by gradients.

        They come from the data, as the running mean and variance of SpatialBN do.
        """
        return self._in_namescope(self._computed_params, namescope)

    def GetAllParams(self, namescope: str | None = None) -> list:
        """Return trained and computed parameters in a name scope."""
        return self.GetParams(namescope) + self.GetComputedParams(namescope)

    def Proto(self) -> caffe2_pb2.NetDef:
        """Return the NetDef of the net."""
        return self.net.Proto()

    def InitProto(self) -> caffe2_pb2.NetDef:
        """Return the NetDef of the init net."""
        return self.param_init_net.Proto()

    def RunAllOnGPU(self, *args, **kwargs) -> None:
        """Put both nets on a GPU."""
        self.param_init_net.RunAllOnGPU(*args, **kwargs)
        self.net.RunAllOnGPU(*args, **kwargs)

    def CreateDB(self, blob_out: Any, db: str, db_type: str, **kwargs) -> core.BlobReference:
        """Open a database in the init net."""
        return self.param_init_net.CreateDB([], blob_out, db=db, db_type=db_type, **kwargs)

    def TensorProtosDBInput(
            self, unused_blob_in: list, blob_out: list, batch_size: int, db: str,
            db_type: str, **kwargs) -> Any:
        """Open a database in the init net and read a batch at every run.

        For a reader that exists, call ``model.net.TensorProtosDBInput``.
        """
        assert len(unused_blob_in) == 0, (
            "You cannot pass reader to model_helper.TensorProtosDBInput. "
            "Use model.net.TensorProtosDBInput instead to create the op.")
        return db_input.db_input(self, blob_out, batch_size, db, db_type, **kwargs)

    def AddGradientOperators(self, *args, **kwargs) -> dict:
        """Add the operators that compute gradients; see core.Net.AddGradientOperators.

        Returns
        -------
        dict
            From the name of a blob to its gradient.
        """
        if self.gradient_ops_added:
            raise RuntimeError("You cannot run AddGradientOperators twice.")
        self.Validate()
        self.gradient_ops_added = True
        self.grad_map = self.net.AddGradientOperators(*args, **kwargs)
        self.param_to_grad = self.get_param_to_grad(self.params)
        for param, grad in self.param_to_grad.items():
            info = self.get_param_info(param)
            if info:
                info.grad = grad
            else:
                self._parameters_info[param] = parameter_info.ParameterInfo(
                    param_id=None, param=param, grad=grad)
        return self.grad_map

    def get_param_to_grad(self, params: Iterable) -> dict:
        """Return the gradients of those parameters that have one."""
        if not self.gradient_ops_added:
            raise RuntimeError("You need to run AddGradientOperators first.")
        return {p: self.grad_map[str(p)] for p in params if str(p) in self.grad_map}

    def GetOptimizationParamInfo(
            self, params: Iterable | None = None) -> list[parameter_info.ParameterInfo]:
        """Return what an optimizer must know of the parameters, by default all with gradients."""
        if not self.gradient_ops_added:
            raise RuntimeError("Need to call AddGradientOperators first")
        param_to_grad = self.get_param_to_grad(params) if params else self.param_to_grad
        return [
            self.get_param_info(param) for param, grad in param_to_grad.items()
            if not (self.skip_sparse_optim and isinstance(grad, core.GradientSlice))
        ]

    def _Validate(self) -> list[str]:
        counts = Counter(map(str, self.params))
        return sorted(name for name, n in counts.items() if n > 1)

    def Validate(self) -> None:
        """Check that no parameter is registered twice."""
        duplicates = self._Validate()
        assert not duplicates, f"Duplicate params: {duplicates}"

    def GetCompleteNet(self) -> core.Net:
        """Return one net that runs the init net's operators, then the net's."""
        net = self.param_init_net.Clone(self.name + "_complete_net", keep_schema=True)
        for op in net.Proto().op:
            op.debug_info += _INIT_NET_MARK
        net.AppendNet(self.net)
        if self.net.Proto().HasField("type"):
            net.Proto().type = self.net.Proto().type
        return net

    def ConstructInitTrainNetfromNet(self, net: core.Net) -> None:
        """Set init net and net from one that `GetCompleteNet` made."""
        masks = {True: [], False: []}
        for i, op in enumerate(net.Proto().op):
            masks[op.debug_info.endswith(_INIT_NET_MARK)].append(i)
        self.param_init_net, self.net = [
            net.Clone(net.Name() + suffix, keep_schema=True, op_id_mask=masks[is_init],
                      update_external_list=True)
            for is_init, suffix in (
                (True, "/generated_param_init_net"), (False, "/generated_net"))
        ]

    def GetDevices(self) -> list:
        """Return the devices of a data-parallel model."""
        assert self._devices, "Use data_parallel_model to run model on multiple GPUs."
        return self._devices

    def __getattr__(self, op_type: str) -> Any:
        if op_type.startswith("__"):
            raise AttributeError(op_type)
        if not core.IsOperator(op_type):
            near = ", ".join(workspace.C.nearby_opnames(op_type))
            raise AttributeError(
                f"Method {op_type} is not a registered operator. Did you mean: [{near}]")
        if op_type not in _known_working_ops and not self.allow_not_known_ops:
            raise AttributeError(f"Operator {op_type} is not known to be safe")
        return getattr(self.net, op_type)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_known_working_ops})

    def __repr__(self) -> str:
        return (f"{type(self).__name__}({self.name!r}: {len(self.net.Proto().op)} operators, "
                f"{len(self.params)} parameters)")


def ExtractPredictorNet(
        net_proto: caffe2_pb2.NetDef, input_blobs: Iterable, output_blobs: Iterable,
        device: caffe2_pb2.DeviceOption | None = None, renames: dict | None = None,
        disabled_inputs: Iterable | None = None) -> tuple[core.Net, list[str]]:
    """Cut the net that predicts out of a net that may also read data and train.

    Parameters
    ----------
    net_proto : NetDef
    input_blobs, output_blobs : iterable of blob names
        Where the prediction starts and ends.
    device : DeviceOption, optional
        Device of all operators.
    renames : dict of str to str, optional
        New names of blobs.
    disabled_inputs : iterable of blob names, optional
        Blobs that are taken as absent, so that operators that need them are left out.

    Returns
    -------
    net : Net
    parameters : list of str
        External inputs other than `input_blobs`.
    """
    renames = renames or {}
    input_blobs = [str(b) for b in input_blobs]
    output_blobs = [str(b) for b in output_blobs]
    inputs, outputs = set(input_blobs), set(output_blobs)
    external_inputs, external_outputs = set(inputs), set(outputs)
    known = (set(net_proto.external_input) | inputs) - set(map(str, disabled_inputs or ()))

    def positions(chosen: list[int], what: str, blobs: set) -> list[int]:
        if not chosen:
            raise Exception(f"No ops with {what}={blobs}")
        return chosen

    ops = list(net_proto.op)
    first = min(positions(
        [i for i, op in enumerate(ops)
         if inputs.intersection(op.input) and op.type != "StopGradient"], "input", inputs))
    last = max(positions(
        [i for i, op in enumerate(ops) if outputs.intersection(op.output)],
        "output", outputs))

    def rename(*lists: Any) -> None:
        for names in lists:
            names[:] = [renames.get(n, n) for n in names]

    def set_device(op: caffe2_pb2.OperatorDef) -> None:
        if device is not None:
            op.device_option.device_type = device.device_type
            op.device_option.device_id = device.device_id

    predict_net = core.Net(net_proto.name + "_predict")
    proto = predict_net.Proto()
    for source in ops[first:last + 1]:
        if not known.issuperset(source.input):
            logger.debug("Op %s had unknown inputs: %s",
                         source.type, set(source.input) - known)
            continue
        if any(arg.name == "is_test" and arg.i == 0 for arg in source.arg):
            raise Exception(
                "An operator had is_test=0, did you try to extract a predictor from a train "
                f"model (instead of test model)? Op was: {source}")
        op = proto.op.add()
        op.CopyFrom(source)
        known.update(op.output)
        external_inputs.update(set(op.input).intersection(net_proto.external_input))
        external_outputs.update(set(op.output).intersection(net_proto.external_output))
        if op.type == "RecurrentNetwork":
            for arg in op.arg:
                if arg.name == "backward_step_net":
                    arg.ClearField("n")
                elif arg.name == "step_net":
                    external_inputs.update(
                        set(arg.n.external_input).intersection(net_proto.external_input))
                    for step_op in arg.n.op:
                        rename(step_op.input, step_op.output)
                        set_device(step_op)
                    rename(arg.n.external_input, arg.n.external_output)
        set_device(op)
        rename(op.input, op.output)

    # The order is the caller's, then the net's, so that equal nets give equal files.
    def in_order(blobs: set, order: Iterable) -> list[str]:
        return [b for b in dict.fromkeys(order) if b in blobs]

    proto.external_input.extend(
        in_order(external_inputs, [*input_blobs, *net_proto.external_input]))
    proto.external_output.extend(
        in_order(external_outputs, [*output_blobs, *net_proto.external_output]))
    rename(proto.external_input, proto.external_output)
    renamed_inputs = {renames.get(b, b) for b in inputs}
    return predict_net, [b for b in proto.external_input if b not in renamed_inputs]

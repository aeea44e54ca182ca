"""A predictor in one database: its nets, the names of its blobs and its parameters."""
from collections.abc import Iterable
from typing import Any, NamedTuple

from caffe2.proto import caffe2_pb2, metanet_pb2
from caffe2.python import core, scope, workspace
from caffe2.python.predictor import predictor_py_utils as utils
from caffe2.python.predictor import serde
from caffe2.python.predictor_constants import predictor_constants


class _Fields(NamedTuple):
    predict_net: Any
    parameters: list[str]
    inputs: list[str]
    outputs: list[str]
    shapes: dict
    name: str
    extra_init_net: Any
    global_init_net: Any
    net_type: str | None
    num_workers: int | None
    trainer_prefix: str | None


class PredictorExportMeta(_Fields):
    """What is needed to store a prediction net.

    Parameters
    ----------
    predict_net : Net, NetDef, Plan or PlanDef
    parameters, inputs, outputs : iterable of blob names
    shapes : dict of blob name to shape, optional
        Of inputs and outputs; those that are missing come from the workspace.
    name : str
        Tells several nets in one file apart.
    extra_init_net, global_init_net : Net, optional
        Run after inputs and outputs are filled, and after the parameters are loaded.
    net_type : str, optional
        "simple", "dag" and so on.
    num_workers : int, optional
        Threads of a net that runs operators in parallel.
    """

    def __new__(
            cls, predict_net: Any, parameters: Iterable, inputs: Iterable, outputs: Iterable,
            shapes: dict | None = None, name: str = "", extra_init_net: Any = None,
            global_init_net: Any = None, net_type: str | None = None,
            num_workers: int | None = None, trainer_prefix: str | None = None):
        parameters, inputs, outputs = [
            [str(b) for b in blobs] for blobs in (parameters, inputs, outputs)]
        assert len(set(inputs)) == len(inputs), "All inputs to the predictor should be unique"
        for what, blobs in (("inputs", inputs), ("outputs", outputs)):
            common = set(parameters) & set(blobs)
            assert not common, (
                f"Parameters and {what} are required to be disjoint. Intersection: {common}")
        if isinstance(predict_net, (core.Net, core.Plan)):
            predict_net = predict_net.Proto()
        assert isinstance(predict_net, (caffe2_pb2.NetDef, caffe2_pb2.PlanDef))
        return super().__new__(
            cls, predict_net, parameters, inputs, outputs, shapes or {}, name, extra_init_net,
            global_init_net, net_type, num_workers, trainer_prefix)

    def inputs_name(self) -> str:
        return utils.get_comp_name(predictor_constants.INPUTS_BLOB_TYPE, self.name)

    def outputs_name(self) -> str:
        return utils.get_comp_name(predictor_constants.OUTPUTS_BLOB_TYPE, self.name)

    def parameters_name(self) -> str:
        return utils.get_comp_name(predictor_constants.PARAMETERS_BLOB_TYPE, self.name)

    def global_init_name(self) -> str:
        return utils.get_comp_name(predictor_constants.GLOBAL_INIT_NET_TYPE, self.name)

    def predict_init_name(self) -> str:
        return utils.get_comp_name(predictor_constants.PREDICT_INIT_NET_TYPE, self.name)

    def predict_net_name(self) -> str:
        return utils.get_comp_name(predictor_constants.PREDICT_NET_TYPE, self.name)

    def train_init_plan_name(self) -> str:
        return self._prefixed(
            utils.get_comp_name(predictor_constants.TRAIN_INIT_PLAN_TYPE, self.name))

    def train_plan_name(self) -> str:
        return self._prefixed(
            utils.get_comp_name(predictor_constants.TRAIN_PLAN_TYPE, self.name))

    def _prefixed(self, name: str) -> str:
        return f"{self.trainer_prefix}_{name}" if self.trainer_prefix else name


def get_predictor_exporter_helper(submodelNetName: str) -> PredictorExportMeta:
    """Return meta data that serves for the names of the parts of a model only."""
    return PredictorExportMeta(
        predict_net=core.Net(submodelNetName), parameters=[], inputs=[], outputs=[],
        name=submodelNetName)


def prepare_prediction_net(
        filename: str, db_type: str, device_option: Any = None) -> core.Net:
    """Load a predictor into the workspace and return its net, ready to run."""
    meta_net_def = load_from_db(filename, db_type, device_option)
    for key in (predictor_constants.GLOBAL_INIT_NET_TYPE,
                predictor_constants.PREDICT_INIT_NET_TYPE):
        workspace.RunNetOnce(utils.GetNet(meta_net_def, key))
    predict_net = core.Net(utils.GetNet(meta_net_def, predictor_constants.PREDICT_NET_TYPE))
    workspace.CreateNet(predict_net)
    return predict_net


def _global_init_net(predictor_export_meta: PredictorExportMeta) -> caffe2_pb2.NetDef:
    net = core.Net("global-init")
    net.Load([predictor_constants.PREDICTOR_DBREADER], predictor_export_meta.parameters)
    net.Proto().external_input.extend([predictor_constants.PREDICTOR_DBREADER])
    net.Proto().external_output.extend(predictor_export_meta.parameters)
    if predictor_export_meta.global_init_net:
        net.AppendNet(predictor_export_meta.global_init_net)
    utils.AddModelIdArg(predictor_export_meta, net.Proto())
    return net.Proto()


def get_meta_net_def(
        predictor_export_meta: PredictorExportMeta, ws: Any = None,
        db_type: str | None = None) -> metanet_pb2.MetaNetDef:
    """Return all of a predictor but the values of its parameters.

    Parameters
    ----------
    predictor_export_meta : PredictorExportMeta
    ws : Workspace, optional
        Where shapes are looked up, by default the current one.
    db_type : str, optional
        Accepted for compatibility.
    """
    meta = predictor_export_meta
    ws = ws or workspace.C.Workspace.current
    meta_net_def = metanet_pb2.MetaNetDef()
    for name, net in (
            (meta.predict_init_name(), utils.create_predict_init_net(ws, meta)),
            (meta.global_init_name(), _global_init_net(meta)),
            (meta.predict_net_name(), utils.create_predict_net(meta))):
        utils.AddNet(meta_net_def, name, net)
    for name, blobs in (
            (meta.parameters_name(), meta.parameters),
            (meta.inputs_name(), meta.inputs),
            (meta.outputs_name(), meta.outputs)):
        utils.AddBlobs(meta_net_def, name, blobs)
    return meta_net_def


def set_model_info(
        meta_net_def: metanet_pb2.MetaNetDef, project_str: str, model_class_str: str,
        version: str) -> None:
    """Set project, class and version of a model."""
    assert isinstance(meta_net_def, metanet_pb2.MetaNetDef)
    meta_net_def.modelInfo.project = project_str
    meta_net_def.modelInfo.modelClass = model_class_str
    meta_net_def.modelInfo.version = version


def save_to_db(
        db_type: str, db_destination: str, predictor_export_meta: PredictorExportMeta,
        use_ideep: bool = False, *args, **kwargs) -> None:
    """Save a predictor with the parameters in the workspace.

    Parameters
    ----------
    db_type, db_destination : str
        Kind and path of the database.
    predictor_export_meta : PredictorExportMeta
    use_ideep : bool
        Whether the parameters are saved from IDEEP tensors.
    **kwargs
        Further arguments of the operator Save.
    """
    meta_net_def = get_meta_net_def(predictor_export_meta, db_type=db_type)
    with core.DeviceScope(core.DeviceOption(caffe2_pb2.CPU)):
        workspace.FeedBlob(
            predictor_constants.META_NET_DEF, serde.serialize_protobuf_struct(meta_net_def))
    workspace.RunOperatorOnce(core.CreateOperator(
        "Save", [predictor_constants.META_NET_DEF, *predictor_export_meta.parameters], [],
        device_option=core.DeviceOption(
            caffe2_pb2.IDEEP if use_ideep else caffe2_pb2.CPU),
        absolute_path=True, db=db_destination, db_type=db_type, **kwargs))


def load_from_db(
        filename: str, db_type: str, device_option: Any = None, *args,
        **kwargs) -> metanet_pb2.MetaNetDef:
    """Open a predictor's database and return its MetaNetDef.

    The parameters are loaded when its global init net runs.

    Parameters
    ----------
    filename, db_type : str
        Path and kind of the database.
    device_option : DeviceOption, optional
        Device of all operators, by default the current device scope.
    """
    reader = core.BlobReference(predictor_constants.PREDICTOR_DBREADER)
    meta_blob = core.BlobReference(predictor_constants.META_NET_DEF)
    for op in (
            core.CreateOperator("CreateDB", [], [reader], db=filename, db_type=db_type),
            core.CreateOperator("Load", [reader], [meta_blob])):
        workspace.RunOperatorOnce(op)
    meta_net_def = serde.deserialize_protobuf_struct(
        workspace.FetchBlob(meta_blob), metanet_pb2.MetaNetDef)
    if device_option is None:
        device_option = scope.CurrentDeviceScope()
    if device_option is not None:
        for item in meta_net_def.nets:
            for op in item.value.op:
                op.device_option.CopyFrom(device_option)
    return meta_net_def

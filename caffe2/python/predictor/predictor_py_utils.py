"""Parts of a MetaNetDef: nets, plans and lists of blobs by name."""
from collections.abc import Iterable
from typing import Any

from caffe2.python import core, scope


def create_predict_net(predictor_export_meta: Any) -> Any:
    """Return the prediction net with only what prediction needs."""
    meta = predictor_export_meta
    proto = core.Net(meta.predict_net.name or "predict").Proto()
    proto.op.extend(meta.predict_net.op)
    proto.partition_info.extend(meta.predict_net.partition_info)
    proto.external_input.extend(meta.inputs + meta.parameters)
    proto.external_output.extend(meta.outputs)
    proto.arg.extend(meta.predict_net.arg)
    if meta.net_type is not None:
        proto.type = meta.net_type
    if meta.num_workers is not None:
        proto.num_workers = meta.num_workers
    return proto


def create_predict_init_net(ws: Any, predictor_export_meta: Any) -> Any:
    """Return the net that fills inputs and outputs with zeros.

    Their shapes come from the meta data or, if they are missing there, from workspace `ws`.
    """
    meta = predictor_export_meta
    net = core.Net("predict-init")
    external_blobs = meta.inputs + meta.outputs
    for blob in external_blobs:
        shape = meta.shapes.get(blob)
        if shape is None:
            if blob not in ws.blobs:
                raise Exception(f"{blob} not in workspace but needed for shape: {ws.blobs}")
            shape = ws.blobs[blob].fetch().shape
        with scope.EmptyDeviceScope():  # whoever loads the net chooses the device
            net.ConstantFill([], blob, shape=shape, value=0.0)
    net.Proto().external_input.extend(external_blobs)
    if meta.extra_init_net:
        net.AppendNet(meta.extra_init_net)
    AddModelIdArg(meta, net.Proto())
    return net.Proto()


def get_comp_name(string: str, name: str) -> str:
    """Return the name of a part of the model `name`."""
    return f"{string}_{name}" if name else string


def to_first_match_dict(kv_list: Iterable) -> dict:
    """Return keys and values as a dict; of equal keys the first counts."""
    result: dict = {}
    for item in kv_list:
        result.setdefault(item.key, item.value)
    return result


def _get(field: Iterable, key: str) -> Any:
    return to_first_match_dict(field).get(key)


def GetPlan(meta_net_def: Any, key: str) -> Any:
    """Return a plan, None if it is missing."""
    return _get(meta_net_def.plans, key)


def GetPlanOriginal(meta_net_def: Any, key: str) -> Any:
    """Return a plan, None if it is missing."""
    return _get(meta_net_def.plans, key)


def GetBlobs(meta_net_def: Any, key: str) -> Any:
    """Return a list of blob names, empty if it is missing."""
    blobs = _get(meta_net_def.blobs, key)
    return [] if blobs is None else blobs


def GetBlobsByTypePrefix(meta_net_def: Any, blob_type_prefix: str) -> list[str]:
    """Return the blobs of all lists whose key has a prefix, each once, in order."""
    return list(dict.fromkeys(
        blob for item in meta_net_def.blobs if item.key.startswith(blob_type_prefix)
        for blob in item.value))


def GetNet(meta_net_def: Any, key: str) -> Any:
    """Return a net, None if it is missing."""
    return _get(meta_net_def.nets, key)


def GetNetOriginal(meta_net_def: Any, key: str) -> Any:
    """Return a net, None if it is missing."""
    return _get(meta_net_def.nets, key)


def GetApplicationSpecificInfo(meta_net_def: Any, key: str) -> str | None:
    """Return a string that an application stored, None if it is missing."""
    return _get(meta_net_def.applicationSpecificInfo, key)


def GetApplicationSpecificInfoDict(meta_net_def: Any) -> dict[str, str]:
    """Return all strings that an application stored."""
    return to_first_match_dict(meta_net_def.applicationSpecificInfo)


def AddBlobs(meta_net_def: Any, blob_name: str, blob_def: Iterable[str]) -> None:
    """Append blob names to a list, which is made if it is missing."""
    blobs = _get(meta_net_def.blobs, blob_name)
    if blobs is None:
        blobs = meta_net_def.blobs.add(key=blob_name).value
    blobs.extend(blob_def)


def ReplaceBlobs(meta_net_def: Any, blob_name: str, blob_def: Iterable[str]) -> None:
    """Set a list of blob names, which must exist."""
    blobs = _get(meta_net_def.blobs, blob_name)
    assert blobs is not None, f"The blob_name:{blob_name} does not exist"
    blobs[:] = blob_def


def AddPlan(meta_net_def: Any, plan_name: str, plan_def: Any) -> None:
    """Add a plan."""
    meta_net_def.plans.add(key=plan_name, value=plan_def)


def AddNet(meta_net_def: Any, net_name: str, net_def: Any) -> None:
    """Add a net."""
    meta_net_def.nets.add(key=net_name, value=net_def)


def SetBlobsOrder(meta_net_def: Any, blobs_order: Iterable[str]) -> None:
    """Append to the order in which blobs are loaded."""
    meta_net_def.blobsOrder.extend(blobs_order)


def GetBlobsOrder(meta_net_def: Any) -> Any:
    """Return the order in which blobs are loaded."""
    return meta_net_def.blobsOrder


def SetPreLoadBlobs(meta_net_def: Any, pre_load_blobs: Iterable[str]) -> None:
    """Append to the blobs that are loaded first."""
    meta_net_def.preLoadBlobs.extend(pre_load_blobs)


def SetRequestOnlyEmbeddings(meta_net_def: Any, request_only_embeddings: Iterable[str]) -> None:
    """Append to the embeddings that do not depend on the items of a request."""
    meta_net_def.requestOnlyEmbeddings.extend(request_only_embeddings)


def SetTensorBoundShapes(meta_net_def: Any, tensor_bound_shapes: Any) -> None:
    """Set the largest shapes of the tensors."""
    meta_net_def.tensorBoundShapes.CopyFrom(tensor_bound_shapes)


def SetAOTConfig(meta_net_def: Any, aot_config: Any) -> None:
    """Set what a compiler ahead of time needs."""
    meta_net_def.aotConfig.CopyFrom(aot_config)


def GetArgumentByName(net_def: Any, arg_name: str) -> Any:
    """Return an argument of a net, None if it is missing."""
    return next((arg for arg in net_def.arg if arg.name == arg_name), None)


def AddModelIdArg(meta_net_def: Any, net_def: Any) -> None:
    """Give a net the ``model_id`` of the prediction net, if that has one."""
    model_id = GetArgumentByName(meta_net_def.predict_net, "model_id")
    if model_id is not None:
        arg = GetArgumentByName(net_def, "model_id") or net_def.arg.add(name="model_id")
        arg.i = model_id.i

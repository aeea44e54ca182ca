"""A predictor in one database."""
import numpy as np
import pytest

from caffe2.proto import caffe2_pb2, metanet_pb2
from caffe2.python import brew, core, model_helper, workspace
from caffe2.python.predictor import predictor_exporter as exporter
from caffe2.python.predictor import predictor_py_utils as parts
from caffe2.python.predictor_constants import predictor_constants as names


@pytest.fixture
def model():
    model = model_helper.ModelHelper(name="model")
    brew.fc(model, "data", "y", 5, 10, bias_init=("UniformFill", {}))
    return model


def meta(model, **kwargs):
    return exporter.PredictorExportMeta(
        predict_net=model.net, parameters=model.params, inputs=["data"], outputs=["y"],
        **{"shapes": {"data": (1, 5), "y": (1, 10)}, **kwargs})


@pytest.fixture
def saved(model, tmp_path):
    """The path of a saved predictor, and its parameters."""
    extra = core.Net("extra")
    extra.ConstantFill("data", "data", value=1.0)
    model.net.AddArgument("model_id", 7)
    workspace.RunNetOnce(model.param_init_net)
    path = str(tmp_path / "predictor.minidb")
    exporter.save_to_db("minidb", path, meta(model, extra_init_net=extra, net_type="dag",
                                             num_workers=3))
    params = {str(p): workspace.FetchBlob(p) for p in model.params}
    workspace.ResetWorkspace()
    return path, params


def test_load(saved):
    path, params = saved
    meta_net_def = exporter.load_from_db(path, "minidb")
    assert "data" not in workspace.Blobs()
    init, load, predict = [parts.GetNet(meta_net_def, key) for key in (
        names.PREDICT_INIT_NET_TYPE, names.GLOBAL_INIT_NET_TYPE, names.PREDICT_NET_TYPE)]
    assert [parts.GetArgumentByName(n, "model_id").i for n in (init, load, predict)] == [7, 7, 7]
    assert (predict.type, predict.num_workers) == ("dag", 3)

    workspace.RunNetOnce(init)
    np.testing.assert_array_equal(workspace.FetchBlob("data"), np.ones((1, 5)))
    np.testing.assert_array_equal(workspace.FetchBlob("y"), np.zeros((1, 10)))
    workspace.RunNetOnce(load)
    data = np.random.randn(2, 5).astype(np.float32)
    workspace.FeedBlob("data", data)
    workspace.RunNetOnce(predict)
    np.testing.assert_allclose(
        workspace.FetchBlob("y"), data @ params["y_w"].T + params["y_b"], rtol=1e-5, atol=1e-6)


def test_prepare(saved):
    path, params = saved
    net = exporter.prepare_prediction_net(path, "minidb")
    workspace.RunNet(net)
    np.testing.assert_allclose(
        workspace.FetchBlob("y"), np.ones((1, 5)) @ params["y_w"].T + params["y_b"], rtol=1e-5)


def test_device(saved):
    device = core.DeviceOption(caffe2_pb2.CPU, 1)
    given = exporter.load_from_db(saved[0], "minidb", device)
    with core.DeviceScope(device):
        scoped = exporter.load_from_db(saved[0], "minidb")
    for meta_net_def in (given, scoped):
        assert all(op.device_option == device for kv in meta_net_def.nets for op in kv.value.op)


def test_shapes_from_the_workspace(model):
    workspace.FeedBlob("data", np.zeros((3, 5), np.float32))
    workspace.FeedBlob("y", np.zeros((3, 10), np.float32))
    meta_net_def = exporter.get_meta_net_def(meta(model, shapes=None))
    fills = parts.GetNet(meta_net_def, names.PREDICT_INIT_NET_TYPE).op
    assert [list(a.ints) for op in fills for a in op.arg if a.name == "shape"] == [[3, 5], [3, 10]]
    assert list(parts.GetBlobs(meta_net_def, names.INPUTS_BLOB_TYPE)) == ["data"]
    assert list(parts.GetBlobs(meta_net_def, names.OUTPUTS_BLOB_TYPE)) == ["y"]
    assert list(parts.GetBlobs(meta_net_def, names.PARAMETERS_BLOB_TYPE)) == ["y_w", "y_b"]
    workspace.ResetWorkspace()
    with pytest.raises(Exception, match="needed for shape"):
        exporter.get_meta_net_def(meta(model, shapes=None))


def test_without_parameters(model, tmp_path):
    with pytest.raises(RuntimeError):
        exporter.save_to_db("minidb", str(tmp_path / "p.minidb"), meta(model))


@pytest.mark.parametrize("change", [
    {"inputs": ["data", "y_w"]}, {"outputs": ["y_w"]}, {"inputs": ["data", "data"]},
    {"predict_net": "net"},
])
def test_wrong_meta(model, change):
    fields = {"predict_net": model.net.Proto(), "parameters": model.params, "inputs": ["data"],
              "outputs": ["y"]}
    exporter.PredictorExportMeta(**fields)
    with pytest.raises(AssertionError):
        exporter.PredictorExportMeta(**(fields | change))


def test_names():
    plain = exporter.get_predictor_exporter_helper("")
    helper = exporter.get_predictor_exporter_helper("sub")
    assert plain.inputs_name() == names.INPUTS_BLOB_TYPE
    assert [getattr(helper, f"{part}_name")() for part in (
        "inputs", "outputs", "parameters", "global_init", "predict_init", "predict_net",
        "train_init_plan", "train_plan")] == [f"{n}_sub" for n in (
            names.INPUTS_BLOB_TYPE, names.OUTPUTS_BLOB_TYPE, names.PARAMETERS_BLOB_TYPE,
            names.GLOBAL_INIT_NET_TYPE, names.PREDICT_INIT_NET_TYPE, names.PREDICT_NET_TYPE,
            names.TRAIN_INIT_PLAN_TYPE, names.TRAIN_PLAN_TYPE)]
    assert helper._replace(trainer_prefix="t").train_plan_name() == "t_TRAIN_PLAN_TYPE_sub"


def test_model_info():
    meta_net_def = metanet_pb2.MetaNetDef()
    exporter.set_model_info(meta_net_def, "project", "class", "1")
    info = meta_net_def.modelInfo
    assert (info.project, info.modelClass, info.version) == ("project", "class", "1")


def test_parts():
    m = metanet_pb2.MetaNetDef()
    net, plan = caffe2_pb2.NetDef(name="n"), caffe2_pb2.PlanDef(name="p")
    parts.AddNet(m, "net", net)
    parts.AddNet(m, "net", caffe2_pb2.NetDef(name="later"))
    parts.AddPlan(m, "plan", plan)
    assert parts.GetNet(m, "net") == parts.GetNetOriginal(m, "net") == net
    assert parts.GetPlan(m, "plan") == parts.GetPlanOriginal(m, "plan") == plan
    assert parts.GetNet(m, "nothing") is None

    parts.AddBlobs(m, "kind_a", ["x"])
    parts.AddBlobs(m, "kind_a", ["y"])
    parts.AddBlobs(m, "kind_b", ["y", "z"])
    parts.AddBlobs(m, "other", ["o"])
    assert list(parts.GetBlobs(m, "kind_a")) == ["x", "y"]
    assert parts.GetBlobs(m, "nothing") == []
    assert parts.GetBlobsByTypePrefix(m, "kind") == ["x", "y", "z"]
    parts.ReplaceBlobs(m, "kind_a", ["w"])
    assert list(parts.GetBlobs(m, "kind_a")) == ["w"]
    with pytest.raises(AssertionError):
        parts.ReplaceBlobs(m, "nothing", [])

    m.applicationSpecificInfo.add(key="k", value="v")
    assert parts.GetApplicationSpecificInfo(m, "k") == "v"
    assert parts.GetApplicationSpecificInfoDict(m) == {"k": "v"}

    parts.SetBlobsOrder(m, ["a", "b"])
    parts.SetPreLoadBlobs(m, ["c"])
    parts.SetRequestOnlyEmbeddings(m, ["d"])
    bounds = caffe2_pb2.TensorBoundShapes(max_batch_size=3)
    parts.SetTensorBoundShapes(m, bounds)
    config = caffe2_pb2.AOTConfig(max_batch_size=1, max_seq_size=2, in_batch_broadcast=True)
    parts.SetAOTConfig(m, config)
    assert list(parts.GetBlobsOrder(m)) == ["a", "b"]
    assert (list(m.preLoadBlobs), list(m.requestOnlyEmbeddings)) == (["c"], ["d"])
    assert (m.tensorBoundShapes, m.aotConfig) == (bounds, config)

"""Models: parameters, gradients, and the nets cut out of them."""
import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import brew, core, model_helper, optimizer, scope, workspace
from caffe2.python.modeling.initializers import ExternalInitializer, Initializer
from caffe2.python.modeling.parameter_info import ParameterTags
from caffe2.python.optimizer_context import UseOptimizer

ZERO = Initializer("ConstantFill")


@pytest.fixture
def model():
    return model_helper.ModelHelper(name="test")


def types(net):
    return [op.type for op in net.Proto().op]


# ---------------------------------------------------------------- parameters

def test_create_param(model):
    with scope.NameScope("a"):
        w = model.create_param("w", [2, 3], ZERO, tags=[ParameterTags.WEIGHT])
        again = model.create_param("w", [2, 3], ZERO)
        with pytest.raises(AssertionError, match="shape"):
            model.create_param("w", [3], ZERO)
    unscoped = model.create_param(core.BlobReference("b"), [3], ZERO, tags=ParameterTags.BIAS)
    assert w == again == "a/w" and unscoped == "b"
    assert types(model.param_init_net) == ["ConstantFill"] * 2
    assert (model.weights, model.biases) == (["a/w"], ["b"])
    info = model.get_param_info(w)
    assert (info.name, info.shape, info.size) == ("a/w", [2, 3], 6)
    assert info.parameter == w and str(info) == "a/w" and info.grad_type() is None
    assert model.get_param_info(core.BlobReference("other")) is None
    with pytest.raises(TypeError):
        model.create_param(3, [1], ZERO)


def test_external_param(model):
    w = model.create_param("w", [2], ExternalInitializer())
    assert w == "w" and types(model.param_init_net) == []


def test_optimizers_of_parameters(model):
    sgd, adam = optimizer.SgdOptimizer(0.1), optimizer.AdamOptimizer(0.1)
    with UseOptimizer({"DEFAULT": sgd, ParameterTags.BIAS: adam}):
        brew.fc(model, "x", "y", 4, 3)
    brew.fc(model, "y", "z", 3, 1)
    assert [model.get_param_info(p).optimizer for p in model.params] == [sgd, adam, None, None]


def test_params_of_a_scope(model):
    def add(name, tags=None):
        model.AddParameter(core.ScopedBlobReference(name), tags)

    add("a")
    add("b", ParameterTags.COMPUTED_PARAM)
    with scope.NameScope("c"):
        add("a")
        add("d", ParameterTags.COMPUTED_PARAM)
        assert model.GetParams() == ["c/a"]
        assert model.GetComputedParams() == ["c/d"]
        assert model.GetAllParams("") == ["a", "c/a", "b", "c/d"]
    assert model.GetParams() == ["a", "c/a"]
    for namescope in ("c", "c/"):
        assert model.GetAllParams(namescope) == ["c/a", "c/d"]


def test_duplicates(model):
    for name in "aabbc":
        model.params.append(core.BlobReference(name))
    assert model._Validate() == ["a", "b"]
    with pytest.raises(AssertionError, match="Duplicate"):
        model.Validate()


def test_shared_parameters(model):
    y = brew.fc(model, "x", "y", 4, 3)
    other = model_helper.ModelHelper(name="other", param_model=model)
    brew.fc(other, y, "z", 3, 2)
    assert model.params == other.params == ["y_w", "y_b", "z_w", "z_b"]
    assert model.param_init_net is other.param_init_net


def test_old_registration(model):
    w = model.param_init_net.ConstantFill([], "w", shape=[2, 3])
    info = model.add_param_DEPRECATED(w)
    assert (info.param_id, info.shape) == (0, [2, 3])
    model.AddParameter(model.param_init_net.ConstantFill([], "v", shape=[4]))
    assert [i.shape for i in model.param_info()] == [[2, 3], [4]]
    assert model.param_info(id=1).name == "v"
    assert model.param_info(grad_type="dense") == []


# ---------------------------------------------------------------- gradients

def test_gradients(model):
    brew.fc(model, "x", "y", 4, 1)
    loss = model.AveragedLoss("y", "loss")
    with pytest.raises(RuntimeError):
        model.get_param_to_grad(model.params)
    with pytest.raises(RuntimeError):
        model.GetOptimizationParamInfo()
    grad_map = model.AddGradientOperators([loss])
    assert grad_map["y_w"] == "y_w_grad"
    assert model.param_to_grad == {"y_w": "y_w_grad", "y_b": "y_b_grad"}
    assert [i.grad for i in model.GetOptimizationParamInfo()] == ["y_w_grad", "y_b_grad"]
    assert [i.name for i in model.GetOptimizationParamInfo(model.params[1:])] == ["y_b"]
    with pytest.raises(RuntimeError, match="twice"):
        model.AddGradientOperators([loss])


@pytest.mark.parametrize("skip", [False, True])
def test_sparse_gradients(skip):
    model = model_helper.ModelHelper(name="test", skip_sparse_optim=skip)
    table = model.create_param("table", [5, 2], ZERO)
    dense = model.create_param("dense", [2], ZERO)
    rows = model.net.Gather([table, "indices"], "rows")
    model.AddGradientOperators([model.net.AveragedLoss(
        model.net.Add([rows, dense], "sum", broadcast=1), "loss")])
    infos = {i.name: i.grad_type() for i in model.GetOptimizationParamInfo()}
    assert infos == {"dense": "dense"} | ({} if skip else {"table": "sparse"})


# ---------------------------------------------------------------- operators as methods

def test_operators_as_methods(model):
    y = model.Sigmoid("x", "y")
    assert y == "y" and types(model.net) == ["Sigmoid"]
    with pytest.raises(AttributeError, match="Did you mean: .*Sigmoid"):
        model.Sigmoidd("x")
    assert "Sigmoid" in dir(model) and "create_param" in dir(model)
    assert repr(model) == "ModelHelper('test': 1 operators, 0 parameters)"


def test_only_known_operators():
    model = model_helper.ModelHelper(name="test", allow_not_known_ops=False)
    model.Sigmoid("x")
    with pytest.raises(AttributeError, match="not known to be safe"):
        model.MaxPool("x")


def test_copies_and_pickles_do_not_look_for_operators(model):
    with pytest.raises(AttributeError):
        model.__no_such_protocol__()


# ---------------------------------------------------------------- nets of a model

def test_protos(model):
    brew.fc(model, "x", "y", 4, 3)
    assert model.Proto() is model.net.Proto()
    assert model.InitProto() is model.param_init_net.Proto()
    assert (model.get_name(), model.Proto().name[:4]) == ("test", "test")
    model.RunAllOnGPU()
    assert all(net.device_option.device_type == caffe2_pb2.CUDA
               for net in (model.Proto(), model.InitProto()))


def test_databases(model):
    reader = model.CreateDB("reader", db="folder", db_type="minidb")
    model.TensorProtosDBInput([], ["data", "label"], batch_size=3, db="d", db_type="minidb")
    assert reader == "reader"
    assert types(model.param_init_net) == ["CreateDB", "CreateDB"]
    assert types(model.net) == ["TensorProtosDBInput"]
    with pytest.raises(AssertionError, match="cannot pass reader"):
        model.TensorProtosDBInput(["reader"], ["data"], 3, "d", "minidb")


def test_devices(model):
    with pytest.raises(AssertionError, match="data_parallel_model"):
        model.GetDevices()


def test_complete_net(model):
    brew.fc(model, "x", "y", 4, 3)
    model.net.Proto().type = "dag"
    complete = model.GetCompleteNet()
    assert types(complete) == ["XavierFill", "ConstantFill", "FC"]
    assert complete.Proto().type == "dag"
    workspace.FeedBlob("x", np.ones((2, 4), np.float32))
    workspace.RunNetOnce(complete)
    assert workspace.FetchBlob("y").shape == (2, 3)

    other = model_helper.ModelHelper(name="other")
    other.ConstructInitTrainNetfromNet(complete)
    assert types(other.param_init_net) == ["XavierFill", "ConstantFill"]
    assert types(other.net) == ["FC"]
    assert sorted(map(str, other.net.external_inputs)) == ["x", "y_b", "y_w"]


def training_net():
    model = model_helper.ModelHelper(name="train")
    model.net.AddExternalInput("db", "label", "extra")
    model.net.TensorProtosDBInput("db", ["raw", "label"], batch_size=1)
    data = model.net.StopGradient("raw", "data")
    brew.fc(model, data, "fc1", 4, 3)
    brew.fc(model, "extra", "fc2", 4, 3)
    model.net.Add(["fc1", "fc2"], "sum")
    pred = brew.softmax(model, "fc1", "pred")
    loss = model.net.AveragedLoss(model.net.LabelCrossEntropy([pred, "label"], "xent"), "loss")
    model.AddGradientOperators([loss])
    return model.net.Proto()


def test_extract_predictor_net():
    proto = training_net()
    before = proto.SerializeToString()
    net, params = model_helper.ExtractPredictorNet(
        proto, ["data"], ["pred"], device=core.DeviceOption(caffe2_pb2.CUDA, 1),
        renames={"data": "input", "pred": "output"}, disabled_inputs=["extra"])
    assert [(op.type, list(op.input), list(op.output)) for op in net.Proto().op] == [
        ("FC", ["input", "fc1_w", "fc1_b"], ["fc1"]),
        ("Softmax", ["fc1"], ["output"])]
    assert params == ["fc1_w", "fc1_b"]
    assert list(net.Proto().external_input) == ["input", "fc1_w", "fc1_b"]
    assert list(net.Proto().external_output) == ["output"]
    assert net.Proto().name.startswith("train") and net.Proto().name.endswith("_predict")
    assert all(op.device_option.device_type == caffe2_pb2.CUDA
               and op.device_option.device_id == 1 for op in net.Proto().op)
    assert proto.SerializeToString() == before


def test_extract_from_recurrent_net():
    step = caffe2_pb2.NetDef(external_input=["h", "w"], external_output=["h2"], op=[
        caffe2_pb2.OperatorDef(type="Mul", input=["h", "w"], output=["h2"])])
    proto = caffe2_pb2.NetDef(name="rnn", external_input=["x", "w"], op=[
        caffe2_pb2.OperatorDef(type="RecurrentNetwork", input=["x"], output=["y"], arg=[
            caffe2_pb2.Argument(name="step_net", n=step),
            caffe2_pb2.Argument(name="backward_step_net", n=step)])])
    net, params = model_helper.ExtractPredictorNet(proto, ["x"], ["y"], renames={"w": "weight"})
    step, backward = net.Proto().op[0].arg
    assert not backward.HasField("n")
    assert list(step.n.op[0].input) == list(step.n.external_input) == ["h", "weight"]
    assert params == ["weight"]


@pytest.mark.parametrize("inputs, outputs, message", [
    (["nothing"], ["pred"], "No ops with input={'nothing'}"),
    (["data"], ["nothing"], "No ops with output={'nothing'}"),
])
def test_extract_without_ends(inputs, outputs, message):
    with pytest.raises(Exception, match=message):
        model_helper.ExtractPredictorNet(training_net(), inputs, outputs)


def test_extract_from_a_training_model():
    model = model_helper.ModelHelper(name="train")
    brew.spatial_bn(model, "x", "y", 3, is_test=False)
    with pytest.raises(Exception, match="is_test=0"):
        model_helper.ExtractPredictorNet(model.net.Proto(), ["x"], ["y"])

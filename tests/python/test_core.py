import copy
import inspect
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace

CPU = caffe2_pb2.DeviceOption()
CUDA1 = core.DeviceOption(caffe2_pb2.CUDA, 1)


@pytest.fixture(autouse=True)
def empty_workspace():
    workspace.ResetWorkspace()
    yield
    workspace.ResetWorkspace()


def args_of(op):
    return {a.name: a for a in op.arg}


# ---------------------------------------------------------------- blobs


def test_blob_reference_is_its_name():
    blob = core.BlobReference("a/b/c")
    assert str(blob) == "a/b/c"
    assert repr(blob) == 'BlobReference("a/b/c")'
    assert blob == "a/b/c" == blob and blob == b"a/b/c" and blob == core.BlobReference(b"a/b/c")
    assert blob != "c" and blob != 3
    assert {blob: 1}["a/b/c"] == 1
    assert blob.GetNameScope() == "a/b/" and blob.GetUnscopedName() == "c"
    assert core.BlobReference("c").GetNameScope() == ""


def test_blob_reference_concatenates_with_strings():
    net = core.Net("net")
    blob = core.BlobReference("x", net)
    assert blob + "_w" == "x_w" and (blob + "_w").Net() is net
    assert "pre_" + blob == "pre_x" and ("pre_" + blob).Net() is net
    with pytest.raises(RuntimeError, match="non-string"):
        blob + 1
    with pytest.raises(RuntimeError, match="non-string"):
        1 + blob


def test_operators_called_on_blobs():
    net = core.Net("net")
    x = net.Relu("in", "x")
    y = x.Relu([], "y")
    z = y.Sum(x, "z")
    assert [(list(o.input), list(o.output)) for o in net.Proto().op[1:]] == [
        (["x"], ["y"]),
        (["y", "x"], ["z"]),
    ]
    assert z.Net() is net
    with pytest.raises(RuntimeError, match="Did you mean.*Relu"):
        x.Rellu([], "y")
    with pytest.raises(RuntimeError, match="does not know its net"):
        core.BlobReference("x").Relu([], "y")
    assert {"Relu", "GetNameScope"} <= set(dir(x))


def test_calling_on_a_blob_leaves_the_callers_list_alone():
    others = ["b"]
    core.Net("net").Relu("in", "a").Sum(others, "c")
    assert others == ["b"]


def test_blob_references_copy_and_pickle():
    blob = core.BlobReference("x")
    for twin in (copy.copy(blob), copy.deepcopy(blob), pickle.loads(pickle.dumps(blob))):
        assert twin == blob and twin.meta == {}


def test_scoped_names():
    with core.NameScope("s"):
        assert core.ScopedName("x") == core.ScopedName(b"x") == "s/x"
        assert core.ScopedBlobReference("x") == "s/x"
        assert core.BlobReference("x") == "x"


def test_output_to_list():
    a, b = core.BlobReference("a"), core.BlobReference("b")
    assert core.output_to_list(a) == [a]
    assert core.output_to_list((a, b)) == [a, b]
    with pytest.raises(AssertionError):
        core.output_to_list("a")


# ---------------------------------------------------------------- operators


def test_create_operator_sets_every_field():
    extra = caffe2_pb2.Argument(name="extra", i=9)
    op = core.CreateOperator(
        "NotRegistered",
        ["x", core.BlobReference("y")],
        b"z",
        name="n",
        control_input="c",
        device_option=CUDA1,
        arg=[extra],
        engine="E",
        debug_info="here",
        random_seed=4,
        number=1,
        fraction=0.5,
        text="t",
        numbers=[1, 2],
    )
    assert (op.type, op.name, op.engine, op.debug_info) == ("NotRegistered", "n", "E", "here")
    assert (list(op.input), list(op.output), list(op.control_input)) == (["x", "y"], ["z"], ["c"])
    assert op.device_option == core.DeviceOption(caffe2_pb2.CUDA, 1, random_seed=4)
    args = args_of(op)
    assert set(args) == {"extra", "number", "fraction", "text", "numbers"}
    assert args["number"].i == 1 and args["fraction"].f == 0.5 and args["text"].s == b"t"
    assert list(args["numbers"].ints) == [1, 2]


def test_create_operator_defaults():
    op = core.CreateOperator("Relu", "x", "y")
    assert not op.HasField("device_option") and not op.HasField("engine")
    assert op.HasField("name") and op.name == ""


def test_name_scope_prefixes_strings_only():
    with core.NameScope("s"):
        op = core.CreateOperator("Sum", ["x", core.BlobReference("y")], "z", control_input="c")
    assert (list(op.input), list(op.output)) == (["s/x", "y"], ["s/z"])
    assert list(op.control_input) == ["s/c"]


def test_device_scope_is_the_default_device():
    with core.DeviceScope(CUDA1):
        assert core.CreateOperator("Relu", "x", "y").device_option == CUDA1
        given_ = core.CreateOperator("Relu", "x", "y", device_option=CPU)
        assert given_.device_option == CPU


@pytest.mark.parametrize("bad", [3, None, [3], ["x", None], {"x": 1}])
def test_blobs_of_wrong_type(bad):
    with pytest.raises(TypeError, match="type"):
        core.CreateOperator("Relu", bad, "y")


def test_argument_of_no_type():
    with pytest.raises(ValueError):
        core.CreateOperator("Relu", "x", "y", something=None)


def test_debug_information_from_the_environment(monkeypatch):
    monkeypatch.setenv("CAFFE2_DEBUG", "1")
    info = core.CreateOperator("Relu", "x", "y").debug_info
    assert "test_debug_information_from_the_environment" in info


def test_is_operator():
    assert core.IsOperator("Relu") and not core.IsOperator("NoSuchThing")
    assert core.IsOperatorWithEngine("Relu", "DEFAULT")
    assert not core.IsOperatorWithEngine("Relu", "NoSuchEngine")


def test_remap_input():
    op = core.CreateOperator("Sum", ["a", "b", "a"], "a")
    core.remap_input(op, {"a": "z"})
    assert (list(op.input), list(op.output)) == (["z", "b", "z"], ["a"])


def test_data_types():
    assert core.DataType.FLOAT == caffe2_pb2.TensorProto.FLOAT
    assert core.DataType.INT64 == caffe2_pb2.TensorProto.INT64


# ---------------------------------------------------------------- devices


def test_device_option():
    option = core.DeviceOption(caffe2_pb2.CPU, numa_node_id=1, extra_info=["k:v"], node_name="n")
    assert option.numa_node_id == 1 and list(option.extra_info) == ["k:v"]
    with pytest.raises(AssertionError):
        core.DeviceOption(caffe2_pb2.CUDA, numa_node_id=1)
    assert core.IsGPUDeviceType(caffe2_pb2.CUDA) and not core.IsGPUDeviceType(caffe2_pb2.CPU)


def test_device_option_equal():
    equal = core.device_option_equal
    assert equal(CPU, core.DeviceOption(caffe2_pb2.CPU, 3))
    assert not equal(CPU, CUDA1)
    assert not equal(CUDA1, core.DeviceOption(caffe2_pb2.CUDA, 0))
    named = core.DeviceOption(caffe2_pb2.CPU, node_name="n", random_seed=1)
    assert equal(CPU, named)
    assert not equal(CPU, named, ignore_node_name=False)
    assert not equal(CPU, named, ignore_random_seed=False)
    assert equal(None, None) and not equal(None, CPU)


def test_device_inference():
    op = core.CreateOperator("FC", ["x", "w", "b"], "y", device_option=CUDA1)
    assert core.InferOpBlobDevices(op) == ([CUDA1] * 3, [CUDA1])
    assert core.InferOpBlobDevicesAsDict(op)[0] == {"x": CUDA1, "w": CUDA1, "b": CUDA1}
    assert core.InferOpDeviceAsBlobDevices(op) == ([CUDA1] * 3, [CUDA1])
    concat = core.CreateOperator("Concat", ["x", "y"], ["z", "dims"], device_option=CUDA1)
    assert core.InferOpBlobDevices(concat)[1] == [CUDA1, CPU]
    split = core.CreateOperator("Split", ["x", "sizes"], ["y", "z"], device_option=CUDA1)
    assert core.InferOpBlobDevices(split) == ([CUDA1, CPU], [CUDA1, CUDA1])
    net = core.Net("net")
    net.Relu("x", "y", device_option=CUDA1)
    assert core.InferBlobDevices(net) == {"y": CUDA1}


def test_copies_between_devices():
    cuda0 = core.DeviceOption(caffe2_pb2.CUDA, 0)
    assert core.copy_func_between_devices(CPU, CPU) is None
    assert core.copy_func_between_devices(CUDA1, CUDA1) is None
    with pytest.raises(ValueError, match="Non-supported"):
        core.copy_func_between_devices(CPU, core.DeviceOption(caffe2_pb2.OPENGL))
    net = core.Net("net")
    core.copy_func_between_devices(cuda0, CUDA1)(net, "a", "b")
    assert net.Proto().op[0].type == "Copy" and net.Proto().op[0].device_option == CUDA1


def test_injected_copies_are_shared_and_known_to_later_nets(monkeypatch):
    known = core._REGISTERED_OPERATORS | {"CopyCPUToGPU"}
    monkeypatch.setattr(core, "_REGISTERED_OPERATORS", known)
    init, net = core.Net("init"), core.Net("net")
    init.ConstantFill([], "w", shape=[1])
    with core.DeviceScope(CUDA1):
        net.Relu("w", "a")
    net.Relu("w", "b")
    with core.DeviceScope(CUDA1):
        net.Relu("w", "c")
    (_, new), devices = core.InjectDeviceCopiesAmongNets([init, net])
    assert [(o.type, list(o.input), list(o.output)) for o in new.Proto().op] == [
        ("CopyCPUToGPU", ["w"], ["w_gpu_1"]),
        ("Relu", ["w_gpu_1"], ["a"]),
        ("Relu", ["w"], ["b"]),
        ("Relu", ["w_gpu_1"], ["c"]),
    ]
    assert devices["w_gpu_1"] == CUDA1 and devices["w"].device_type == caffe2_pb2.CPU


def test_no_copies_where_devices_agree():
    net = core.Net("net")
    with core.DeviceScope(CUDA1):
        net.Relu("x", "y")
        net.Relu("y", "y")
    new, devices = core.InjectCrossDeviceCopies(net, {"x": CUDA1})
    assert [o.type for o in new.Proto().op] == ["Relu", "Relu"]
    assert devices == {"x": CUDA1, "y": CUDA1}


def test_a_blob_cannot_change_its_device():
    net = core.Net("net")
    net.Relu("x", "y")
    net.Relu("z", "y", device_option=CUDA1)
    with pytest.raises(RuntimeError, match="In-place blob: y"):
        core.InjectCrossDeviceCopies(net, {"z": CUDA1})


# ---------------------------------------------------------------- nets: names and blobs


def test_net_names_are_unique():
    a, b, c = (core.Net("twin") for _ in range(3))
    assert len({a.Name(), b.Name(), c.Name()}) == 3
    taken = core.Net(b.Name() + "_x")
    assert core.Net(taken.Name()).Name() == taken.Name() + "_1"
    assert str(a) == a.Name() == core.get_net_name(a) == core.get_net_name(a.Proto())


def test_automatic_names_do_not_clash():
    net = core.Net("auto")
    name = net.Name()
    outputs = [net.Relu("x"), net.Relu("x"), *net.Split("x", 2), *net.Split("x", 2)]
    assert outputs == [
        f"{name}/Relu",
        f"{name}/Relu_2",
        f"{name}/Split:0",
        f"{name}/Split:1",
        f"{name}/Split_2:0",
        f"{name}/Split_2:1",
    ]
    with core.NameScope("s"):
        assert net.Relu("x") == f"s/{name}/Relu"
    # The tables are built anew after the proto was handed out.
    assert net.Proto().name == name
    assert net.Relu("x") == f"{name}/Relu_3"
    del net.Proto().op[:]
    assert net.Relu("x") == f"{name}/Relu"
    assert net.NextName() == f"{name}_blob_0" and net.NextName() == f"{name}_blob_1"


def test_next_blob():
    net = core.Net("net")
    assert [net.NextBlob("b") for _ in range(3)] == ["b", "b_auto_0", "b_auto_1"]
    net.AddExternalInput("c", "d_auto_0", "d")
    assert net.NextBlob("c") == "c_auto_0" and net.NextBlob("d") == "d_auto_1"
    with core.NameScope("s"):
        assert net.NextScopedBlob("b") == "s/b"


def test_numbering_goes_on_in_a_net_made_from_a_proto():
    proto = caffe2_pb2.NetDef(name="from_proto_numbers")
    proto.op.append(core.CreateOperator("Relu", "x", "from_proto_numbers_blob_12"))
    net = core.Net(proto)
    assert net.NextName() == net.Name() + "_blob_13"


def test_net_from_proto_copies_unless_told():
    proto = caffe2_pb2.NetDef(name="net_from_proto", external_input=["x"])
    assert core.Net(proto).Proto() is not proto
    net = core.Net(proto, inplace=True)
    assert net.Proto() is proto and net.BlobIsDefined("x")
    assert proto.name == net.Name() != "net_from_proto"


def test_inputs_become_external_once():
    net = core.Net("net")
    net.Sum(["x", "y", "x"], "z")
    net.Relu("z", "w")
    assert list(net.Proto().external_input) == ["x", "y"]
    assert net.external_inputs == ["x", "y"] and net.is_external_input("x")
    with pytest.raises(AssertionError, match="already contains an input named x"):
        net.AddExternalInput("x")
    assert net.AddExternalInput("p", "q") == ["p", "q"]
    with core.NameScope("s"):
        assert net.AddScopedExternalInputs("p") == ["s/p"]


def test_external_outputs():
    net = core.Net("net")
    y = net.Relu("x", "y")
    net.AddExternalOutput(y)
    assert net.external_outputs == ["y"]
    with pytest.raises(AssertionError):
        net.AddExternalOutput("y")
    with pytest.raises(AssertionError, match="not defined"):
        net.AddExternalOutput(core.BlobReference("nowhere"))


def test_which_blobs_a_net_knows():
    net = core.Net("net")
    net.Relu("x", "y")
    assert net.BlobIsDefined("x") and net.BlobIsDefined("y") and not net.BlobIsDefined("z")
    assert net.UsesBlob("x") and not net.UsesBlob("y")
    assert net.UsedBlobNames() == {"x", "y"}
    assert net.GetBlobRef("y").Net() is net
    with pytest.raises(KeyError, match="z"):
        net.GetBlobRef("z")
    net.Proto().op.append(core.CreateOperator("Relu", "y", "z"))
    assert net.BlobIsDefined("z")


def test_unknown_operators_and_attributes():
    net = core.Net("net")
    with pytest.raises(AttributeError, match="Did you mean.*Softmax"):
        net.Sofmax("x", "y")
    assert not hasattr(net, "__array__")
    assert {"Relu", "Clone"} <= set(dir(net))


def test_number_of_returned_blobs():
    net = core.Net("net")
    assert net.Print("x", []) is None
    assert isinstance(net.Relu("x", "y"), core.BlobReference)
    assert net.Split("x", ["a", "b"]) == ("a", "b")


def test_repr():
    net = core.Net("shown")
    assert repr(net) == f'Net("{net.Name()}", 0 operators)'
    net.Relu("x", "y")
    assert repr(net) == f'Net("{net.Name()}", 1 operator: Relu)'


@pytest.mark.parametrize("problem, shown", [(None, "<svg/>"), (ImportError, None), (OSError, None)])
def test_drawing_for_notebooks(monkeypatch, problem, shown):
    from caffe2.python import net_drawer

    class Graph:
        def create_svg(self):
            if problem:
                raise problem
            return b"<svg/>"

    monkeypatch.setattr(net_drawer, "GetPydotGraph", lambda net: Graph())
    assert core.Net("net")._repr_svg_() == shown


# ---------------------------------------------------------------- nets: operators


def test_insert_op_at_idx():
    net = core.Net("net")
    net.Relu("x", "y")
    net.Relu("y", "z")
    net.insert_op_at_idx(core.CreateOperator("Sum", ["y", "p"], "q"), 1)
    assert [o.type for o in net.Proto().op] == ["Relu", "Sum", "Relu"]
    assert list(net.Proto().external_input) == ["x", "p"]


def test_reroute_tensor():
    def build():
        net = core.Net("net")
        net.Relu("x", "y")
        net.Sigmoid("y", "a")
        net.Tanh("y", "b")
        net.AddExternalOutput(core.BlobReference("y"))
        return net, core.CreateOperator("Sum", ["y", "bias"], "y2")

    net, op = build()
    assert net.reroute_tensor("y", op) == 2
    assert [(o.type, list(o.input)) for o in net.Proto().op] == [
        ("Relu", ["x"]),
        ("Sum", ["y", "bias"]),
        ("Sigmoid", ["y2"]),
        ("Tanh", ["y2"]),
    ]
    assert list(net.Proto().external_output) == ["y2"]
    net, op = build()
    assert net.reroute_tensor("y", op, [net.Proto().op[2]]) == 1
    assert [list(o.input) for o in net.Proto().op[2:]] == [["y"], ["y2"]]


def test_append_net():
    a, b = core.Net("a"), core.Net("b")
    a.Relu("x", "y")
    b.Sum(["y", "w"], "z")
    b.AddExternalOutput(core.BlobReference("z"))
    assert a.AppendNet(b, device_option=CUDA1) is a
    assert list(a.Proto().external_input) == ["x", "w"]
    assert list(a.Proto().external_output) == ["z"]
    assert not a.Proto().op[0].HasField("device_option")
    assert a.Proto().op[1].device_option == CUDA1
    assert not b.Proto().op[0].HasField("device_option")


def test_random_seeds():
    net = core.Net("net")
    for name in "abb":
        net.UniformFill([], name, shape=[1])

    def seeds():
        return [o.device_option.random_seed for o in net.Proto().op]

    net.set_rand_seed(7)
    assert seeds() == [7, 8, 9]
    net.set_rand_seed(7, sequence_seed=False)
    assert seeds() == [7, 7, 7]
    for op in net.Proto().op:
        op.ClearField("device_option")
    net.set_rand_seed(7, sequence_seed=False, seed_on_op_def=True)
    a, b, c = seeds()
    assert a != b == c
    with pytest.raises(AssertionError):
        net.set_rand_seed(7, sequence_seed=True, seed_on_op_def=True)


def test_arguments_and_attributes_of_a_net():
    net = core.Net("net")
    net.AddArgument("k", 3)
    assert net.Proto().arg[0].name == "k" and net.Proto().arg[0].i == 3
    net.add_attribute("a", "first")
    net.add_attribute("a", "second")
    assert net.get_attributes("a") == ["first", "second"] and net.get_attributes("b") == []
    assert net.Clone("clone").get_attributes("a") == ["first", "second"]


def test_devices_of_a_net():
    net = core.Net("net")
    net.Relu("x", "y")
    net.RunAllOnGPU(gpu_id=1, use_cudnn=True)
    assert net.Proto().device_option == CUDA1 and net.Proto().op[0].engine == "CUDNN"
    net.RunAllOnMKL()
    assert net.Proto().device_option == caffe2_pb2.DeviceOption(device_type=caffe2_pb2.MKLDNN)
    net.RunAllOnIDEEP()
    assert net.Proto().device_option.device_type == caffe2_pb2.IDEEP


def test_operators_are_named_after_their_line():
    net = core.Net("net")
    net.Relu("x", "y"); line = inspect.currentframe().f_lineno  # noqa: E702
    net.Proto().op[0].name = ""
    net.PopulateProtoWithFileName()
    assert net.Proto().op[0].name == (
        f"{__file__}:{line}:test_operators_are_named_after_their_line"
    )


@pytest.mark.parametrize(
    "value",
    [3, 2.5, True, [1, 2], [[1.0, 2.0]], [True, False], np.arange(3, dtype=np.int32)],
)
def test_constants(value):
    net = core.Net("net")
    blob = net.Const(value)
    workspace.RunNetOnce(net)
    want = np.asarray(value)
    if want.dtype == np.float64:
        want = want.astype(np.float32)
    got = workspace.FetchBlob(blob)
    np.testing.assert_array_equal(got, want if not isinstance(value, bool) else [want])
    assert got.dtype == want.dtype


def test_string_constants():
    net = core.Net("net")
    net.Const(["a", "bc"], blob_out="s")
    net.Const("one", blob_out="t")
    workspace.RunNetOnce(net)
    assert list(workspace.FetchBlob("s")) == [b"a", b"bc"]
    assert workspace.FetchBlob("t").tolist() == b"one"


# ---------------------------------------------------------------- operators written in Python


def double(inputs, outputs):
    outputs[0].feed(inputs[0].data * 2)


def double_gradient(inputs, outputs):
    # x, y and the gradient of y
    outputs[0].feed(inputs[2].data * 2)


def make_scaled(factor, shift=0.0):
    calls = []

    def scaled(inputs, outputs):
        calls.append(1)
        outputs[0].feed(inputs[0].data * np.float32(factor) + np.float32(shift) * len(calls))

    return scaled


def test_create_python_operator():
    x = np.float32([1, 2])
    workspace.FeedBlob("x", x)
    op = core.CreatePythonOperator(double, ["x"], ["y"], grad_f=double_gradient)
    workspace.RunOperatorOnce(op)
    np.testing.assert_array_equal(workspace.FetchBlob("y"), 2 * x)
    grad_ops, grads = core.GradientRegistry.GetBackwardPass([op], ["y"])
    workspace.RunOperatorsOnce(grad_ops)
    np.testing.assert_array_equal(workspace.FetchBlob(grads["x"]), [2, 2])


def test_python_in_a_net_with_gradient_of_some_inputs():
    def product(inputs, outputs):
        outputs[0].feed(inputs[0].data * inputs[1].data)

    def gradient(inputs, outputs):
        a, b, y, dy = (t.data for t in inputs)
        assert len(outputs) == 1
        outputs[0].feed(dy * a)

    net = core.Net("net")
    net.Python(product, gradient, grad_input_indices=[1])(["a", "b"], "y")
    grads = net.AddGradientOperators({"y": net.AddExternalInput("dy")})
    assert "b" in grads and "a" not in grads
    for name, value in {"a": [2.0], "b": [3.0], "dy": [10.0]}.items():
        workspace.FeedBlob(name, np.float32(value))
    workspace.RunNetOnce(net)
    assert workspace.FetchBlob("y") == 6 and workspace.FetchBlob(grads["b"]) == 20


def test_python_function_with_workspace():
    def f(inputs, outputs, ws):
        ws.create_blob("made").feed(np.float32([len(inputs)]))

    net = core.Net("net")
    net.Python(f, pass_workspace=True)(["x"], [])
    workspace.FeedBlob("x", np.float32([1]))
    workspace.RunNetOnce(net)
    assert workspace.FetchBlob("made") == 1


def test_python_function_type():
    class Twice:
        def __init__(self, f):
            self.f = f

        def forward(self, inputs, outputs):
            outputs[0].feed(self.f(inputs[0].data))

        def backward(self, inputs, outputs):
            outputs[0].feed(inputs[2].data * 2)

    net = core.Net("net")
    net.Python(lambda x: 2 * x, python_func_type=Twice)("x", "y")
    grads = net.AddGradientOperators(["y"])
    workspace.FeedBlob("x", np.float32([4]))
    workspace.RunNetOnce(net)
    assert workspace.FetchBlob("y") == 8 and workspace.FetchBlob(grads["x"]) == 2


def test_python_builders_run_once_for_each_created_net():
    net = core.Net("net")
    net.Python((make_scaled, [3.0], {"shift": 1.0}))("x", "y")
    assert not any(a.name == "token" for a in net.Proto().op[0].arg)
    workspace.FeedBlob("x", np.float32([2]))
    for n in range(2):
        clone = net.Clone(f"clone{n}")
        workspace.CreateNet(clone)
        results = []
        for _ in range(2):
            workspace.RunNet(clone)
            results.append(workspace.FetchBlob("y").item())
        assert results == [7, 8]  # what the function counts begins anew


def test_builders_must_come_for_both_or_neither():
    net = core.Net("net")
    with pytest.raises(AssertionError, match="both f and grad_f"):
        net.Python((make_scaled, [3.0], {}), double_gradient)
    with pytest.raises(AssertionError, match="builder tuple"):
        net.Python((make_scaled, [3.0]))


def test_errors_in_python_functions():
    def fail(inputs, outputs):
        raise KeyError("on purpose")

    workspace.FeedBlob("x", np.float32([1]))
    with pytest.raises(Exception, match="on purpose"):
        workspace.RunOperatorOnce(core.CreatePythonOperator(fail, ["x"], ["y"]))
    np.testing.assert_array_equal(workspace.FetchBlob("x"), [1])


# ---------------------------------------------------------------- cloning


def test_clone_renames_blobs():
    net = core.Net("net")
    net.Sum(["x", "y"], "z")
    net.Relu("z", "z")
    net.AddExternalOutput(core.BlobReference("z"))
    clone = net.Clone("clone", blob_remap={"x": "a", "z": core.BlobReference("c")})
    assert [(list(o.input), list(o.output)) for o in clone.Proto().op] == [
        (["a", "y"], ["c"]),
        (["c"], ["c"]),
    ]
    assert list(clone.Proto().external_input) == ["a", "y"]
    assert list(clone.Proto().external_output) == ["c"]
    assert list(net.Proto().op[0].input) == ["x", "y"]


def test_clone_of_some_operators_with_new_external_lists():
    net = core.Net("net")
    net.Relu("x", "y")
    net.Relu("y", "z")
    net.Sum(["z", "w"], "z")
    clone = net.Clone("clone", op_id_mask=[1, 2], update_external_list=True)
    assert [o.type for o in clone.Proto().op] == ["Relu", "Sum"]
    assert list(clone.Proto().external_input) == ["y", "w"]
    assert list(clone.Proto().external_output) == []
    last = net.Clone("clone", op_id_mask=[0], update_external_list=True)
    assert list(last.Proto().external_output) == ["y"]


def test_clone_applies_remap_functions():
    net = core.Net("net")
    net.Relu("x", "y", note="x")
    seen = []

    def remap(op, prefix, blob_remap):
        seen.append(prefix)
        op.arg[0].s = blob_remap["x"].encode()

    clone = net.Clone("clone", {"x": "a"}, remap_funcs={"Relu": remap})
    assert seen == ["clone/"] and clone.Proto().op[0].arg[0].s == b"a"


def test_clone_renames_inside_control_and_recurrent_operators():
    body = caffe2_pb2.NetDef(name="body")
    body.op.append(core.CreateOperator("Relu", "x", "y"))
    net = core.Net("net")
    net.extend_ops(
        [
            core.CreateOperator("If", ["c", "x"], "y", then_net=body),
            core.CreateOperator("While", ["c", "x"], "y", loop_net=body),
            core.CreateOperator(
                "RecurrentNetwork", "x", "y", step_net=body, timestep="x", alias_src=["x", "q"]
            ),
        ]
    )
    ops = net.Clone("clone", {"x": "a", "y": "b"}).Proto().op
    for op, name in zip(ops, ("then_net", "loop_net", "step_net")):
        inner = args_of(op)[name].n.op[0]
        assert (list(inner.input), list(inner.output)) == (["a"], ["b"])
    recurrent = args_of(ops[2])
    assert recurrent["timestep"].s == b"a" and list(recurrent["alias_src"].strings) == [b"a", b"q"]


def build_chain():
    """x, w -> a -> b -> c, and k aside."""
    net = core.Net("chain")
    a = net.Sum(["x", "w"], "a")
    b = net.Relu(a, "b")
    net.Relu("w", "k")
    c = net.Sum([b, "k"], "c")
    return net, a, b, c


def test_partial_clone():
    net, a, b, c = build_chain()
    clone, (out,) = net.ClonePartial("part", {a: "given"}, [c])
    assert [(list(o.input), list(o.output)) for o in clone.Proto().op] == [
        (["given"], ["part/b"]),
        (["w"], ["part/k"]),
        (["part/b", "part/k"], ["part/c"]),
    ]
    assert list(clone.Proto().external_input) == ["given", "w"]
    assert list(clone.Proto().external_output) == ["part/c"]
    assert out == "part/c" and out.Net() is clone


def test_partial_clone_from_lists():
    net, a, b, _ = build_chain()
    by_name, _ = net.ClonePartial("p", [a], [b])
    assert list(by_name.Proto().external_input) == ["a"]
    by_pair, _ = net.ClonePartial("p", [(a, "q")], [b])
    assert list(by_pair.Proto().external_input) == ["q"]


def test_partial_clone_refuses_to_compute_a_given_input():
    net, a, _, c = build_chain()
    with pytest.raises(AssertionError, match="would generate the given input"):
        net.ClonePartial("p", ["x", "w", "b"], [a, c])
    with pytest.raises(AssertionError, match="not defined"):
        net.ClonePartial("p", ["x"], ["nowhere"])


def test_clone_and_bind_net():
    net, *_ = build_chain()
    clone, remap = core.clone_and_bind_net(net, "bound", "pre/", {"w": "weight"})
    assert remap == {
        "x": "x", "w": "weight", "a": "pre/a", "b": "pre/b", "k": "pre/k", "c": "pre/c"
    }  # fmt: skip
    assert list(clone.Proto().op[0].input) == ["x", "weight"]


# ---------------------------------------------------------------- single assignment


def test_get_ssa_counts_versions():
    net = core.Net("net")
    net.Relu("x", "y")
    net.Sum(["y", "x"], "y")
    ssa, versions = core.get_ssa(net)
    assert ssa == [
        ([("x", 0)], [("y", 1)]),
        ([("y", 1), ("x", 0)], [("y", 2)]),
    ]
    assert versions == {"x": 0, "y": 2}
    assert core.get_ssa(net.Proto()) == (ssa, versions)
    assert core.get_undefined_blobs(ssa) == {"x"}
    assert core.get_output_producers(ssa) == {("y", 1): 0, ("y", 2): 1}
    assert core.get_op_ids_in_path(ssa, versions, [], ["y"]) == [0, 1]
    assert core.get_op_ids_in_path(ssa, versions, ["y"], ["y"]) == []


def test_get_ssa_of_several_nets_goes_on_counting():
    a, b = core.Net("a"), core.Net("b")
    a.Relu("x", "y")
    b.Relu("y", "y")
    (_, second), versions = core.get_ssa([a, b])
    assert second == [([("y", 1)], [("y", 2)])] and versions == {"x": 0, "y": 2}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=12))
def test_ssa_writes_every_version_once(pairs):
    proto = caffe2_pb2.NetDef(op=[core.CreateOperator("Relu", x, y) for x, y in pairs])
    ssa, versions = core.get_ssa(proto)
    written = [output for _, outputs in ssa for output in outputs]
    assert len(set(written)) == len(written) == len(pairs)
    for blob, version in versions.items():
        assert version == sum(y == blob for _, y in pairs)


# ---------------------------------------------------------------- execution steps and plans


def test_execution_step_fields():
    net, stop = core.Net("net"), core.BlobReference("stop")
    step = core.execution_step(
        "step", net, should_stop_blob=stop, only_once=True, num_concurrent_instances=2,
        create_workspace=True, run_every_ms=5,
    )  # fmt: skip
    proto = step.Proto()
    assert list(proto.network) == [net.Name()] and step.Nets() == [net] and step.HasNets()
    assert proto.should_stop_blob == "stop" and not proto.HasField("num_iter")
    assert proto.only_once and proto.num_concurrent_instances == 2
    assert proto.create_workspace and proto.run_every_ms == 5
    assert step.get_net(net.Name()) is net and str(step) == step.Name() == "step"


def test_execution_step_runs_once_unless_told():
    assert core.execution_step("s", core.Net("n")).Proto().num_iter == 1
    assert core.execution_step("s", core.Net("n"), num_iter=4).Proto().num_iter == 4
    with pytest.raises(AssertionError, match="both"):
        core.execution_step("s", None, num_iter=1, should_stop_blob=core.BlobReference("b"))
    with pytest.raises(ValueError, match="must be"):
        core.execution_step("s", "text")
    with pytest.raises(AssertionError, match="BlobReference"):
        core.ExecutionStep("s").SetShouldStopBlob("b")


def test_steps_nest():
    a, b, c = core.Net("a"), core.Net("b"), core.Net("c")
    inner = core.execution_step("inner", [a, b], num_iter=2)
    outer = core.execution_step("outer", [inner, c], concurrent_substeps=True)
    assert [s.name for s in outer.Proto().substep] == ["inner", outer.Proto().substep[1].name]
    assert outer.Nets() == [a, b, c] and outer.HasSubsteps() and not outer.HasNets()
    assert outer.Substeps()[0] is inner and outer.Proto().concurrent_substeps
    with pytest.raises(AssertionError, match="already been added"):
        inner.SetIter(3)
    with pytest.raises(AssertionError, match="both network and substeps"):
        outer.AddNet(a)
    with pytest.raises(AssertionError, match="both network and substeps"):
        core.ExecutionStep("s", a).AddSubstep(inner)
    assert not outer.AddSubstep(core.ExecutionStep("empty")).Proto().substep[2:]


def test_different_nets_of_the_same_name():
    a, b = core.Net("a"), core.Net("b")
    b.Proto().name = a.Name()
    with pytest.raises(AssertionError, match="Different nets with same name"):
        core.ExecutionStep("s", [a, b])


def test_names_of_steps():
    with core.NameScope("s"):
        assert core.scoped_execution_step("n", core.Net("net")).Name() == "s/n"
    assert core.ExecutionStep(None).Name() != core.ExecutionStep("").Name()


def test_plan_holds_nets_in_order_of_use():
    a, b, report = core.Net("a"), core.Net("b"), core.Net("report")
    step = core.execution_step(
        "outer",
        [core.execution_step("one", a, report_net=report, report_interval=1),
         core.execution_step("two", [b, a])],
    )  # fmt: skip
    a.add_attribute("k", 1)
    plan = core.Plan(step)
    assert [n.name for n in plan.Proto().network] == [a.Name(), report.Name(), b.Name()]
    assert plan.Nets() == [a, report, b] and plan.Steps() == [step]
    assert str(plan) == "outer" and plan.get_all_attributes("k") == [1]
    assert step.get_all_attributes("k") == [1]
    plan.AddStep(core.execution_step("more", b))
    assert len(plan.Proto().network) == 3 and len(plan.Proto().execution_step) == 2
    with pytest.raises(ValueError):
        core.Plan(3)


def test_plan_from_proto():
    a, b = core.Net("a"), core.Net("b")
    a.Relu("x", "y")
    stop = core.BlobReference("stop")
    plan = core.Plan("plan")
    plan.AddStep(
        core.execution_step(
            "outer",
            [core.execution_step("inner", [a, b], num_iter=3, run_every_ms=2),
             core.execution_step("again", a, should_stop_blob=stop)],
        )
    )  # fmt: skip
    twin = core.Plan.create_from_proto(plan.Proto())
    names = [n.Name() for n in twin.Nets()]
    assert len(names) == 2 and names[0].startswith(a.Name()) and names[1].startswith(b.Name())
    want = copy.deepcopy(plan.Proto())
    want.execution_step[0].substep[0].network[:] = names
    want.execution_step[0].substep[1].network[:] = names[:1]
    assert list(twin.Proto().execution_step) == list(want.execution_step)
    assert [list(n.op) for n in twin.Proto().network] == [list(n.op) for n in want.network]


def test_global_init_arguments():
    before = core.GetGlobalInitArgs()
    core.GlobalInit(["program", "--caffe2_log_level=0"])
    assert core.GetGlobalInitArgs() == [*before, "--caffe2_log_level=0"]

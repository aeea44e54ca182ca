"""Bad input: each raises, names what is wrong and where, and loses nothing that was there."""
import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace


@pytest.fixture(autouse=True)
def kept():
    """A blob and a net that must survive whatever the test does."""
    workspace.FeedBlob("kept", np.arange(3, dtype=np.float32))
    workspace.CreateNet(net_of("good", ("Relu", "kept", "out")))
    yield
    assert workspace.FetchBlob("kept").tolist() == [0, 1, 2]
    assert workspace.RunNet("good")
    assert workspace.FetchBlob("out").tolist() == [0, 1, 2]


def net_of(name, *ops):
    net = caffe2_pb2.NetDef(name=name)
    for type_, inputs, outputs, *args in ops:
        net.op.append(core.CreateOperator(type_, inputs, outputs, **(args[0] if args else {})))
    return net


def create_fails(net, *words):
    """Creating the net raises a message with these words and leaves no blob and no net behind."""
    blobs, nets = workspace.Blobs(), workspace.C.nets()
    with pytest.raises(RuntimeError) as e:
        workspace.CreateNet(net)
    for word in words:
        assert word in str(e.value), str(e.value)
    assert "\n" not in str(e.value).strip()
    assert workspace.Blobs() == blobs and workspace.C.nets() == nets


def run_fails(net, *words):
    workspace.CreateNet(net)
    with pytest.raises(RuntimeError) as e:
        workspace.RunNet(net.name)
    for word in words:
        assert word in str(e.value), str(e.value)


def test_unknown_operator():
    net = caffe2_pb2.NetDef(name="bad")
    net.op.add(type="Relu", input=["kept"], output=["y"])
    net.op.add(type="Sigmoidd", input=["y"], output=["z"])
    create_fails(net, "Sigmoidd", "Sigmoid", "bad")


def test_wrong_number_of_inputs():
    net = caffe2_pb2.NetDef(name="bad")
    net.op.add(type="FC", input=["kept"], output=["y"])
    create_fails(net, "FC(kept) -> (y)", "takes 3 inputs", "1", "'bad'")


def test_missing_blob():
    create_fails(net_of("bad", ("Relu", "kept", "y"), ("Relu", "nowhere", "z")), "nowhere", "Relu", "'bad'")


@pytest.mark.parametrize("args, words", [
    ({"axis": 1.5}, ("axis", "an int", "a float")),
    ({"axis": "one"}, ("axis", "an int", "a string")),
    ({"axis": [1, 2]}, ("axis", "an int", "ints")),
])
def test_argument_of_the_wrong_kind(args, words):
    create_fails(net_of("bad", ("Softmax", "kept", "y", args)), "Softmax", "'bad'", *words)


def test_argument_given_twice():
    net = net_of("bad", ("Softmax", "kept", "y", {"axis": 1}))
    net.op[0].arg.add(name="axis", i=0)
    create_fails(net, "axis", "twice")


def test_shapes_that_do_not_fit():
    workspace.FeedBlob("w", np.zeros((4, 7), np.float32))
    workspace.FeedBlob("b", np.zeros(4, np.float32))
    workspace.FeedBlob("x", np.zeros((2, 5), np.float32))
    net = net_of("bad", ("FC", ["x", "w", "b"], "y"))
    run_fails(net, "FC", "x float[2, 5]", "w float[4, 7]", "b float[4]", "'bad'")


def test_dtypes_that_do_not_fit():
    workspace.FeedBlob("x", np.zeros((2, 5)))
    run_fails(net_of("bad", ("Sigmoid", "x", "y")), "Sigmoid", "x double[2, 5]", "float", "'bad'")


def test_an_input_that_is_no_tensor():
    workspace.FeedBlob("x", "text")
    run_fails(net_of("bad", ("Sigmoid", "x", "y")), "Sigmoid", "x", "bytes", "'bad'")


def test_an_input_that_is_empty():
    workspace.CreateBlob("x")
    run_fails(net_of("bad", ("Sigmoid", "x", "y")), "Sigmoid", "x (empty)", "'bad'")


def test_in_place_use_that_is_not_allowed():
    create_fails(net_of("bad", ("Softmax", "kept", "kept")), "Softmax", "same blob", "kept", "'bad'")


def test_in_place_use_that_is_required():
    create_fails(net_of("bad", ("Free", "kept", "other")), "Free", "must be the same blob", "'bad'")


def test_a_name_that_is_taken():
    net = net_of("good", ("Relu", "kept", "y"))
    with pytest.raises(RuntimeError, match="'good' exists already"):
        workspace.C.create_net(net.SerializeToString())
    assert not workspace.HasBlob("y")


def test_overwriting_by_a_net_that_fails_keeps_the_old_one():
    with pytest.raises(RuntimeError, match="nowhere"):
        workspace.CreateNet(net_of("good", ("Relu", "nowhere", "y")), overwrite=True)


def test_a_net_without_a_name_or_of_unknown_type():
    net = net_of("bad", ("Relu", "kept", "y"))
    net.ClearField("name")
    with pytest.raises(RuntimeError, match="name"):
        workspace.C.create_net(net.SerializeToString())
    net = net_of("bad", ("Relu", "kept", "y"))
    net.type = "fastest"
    create_fails(net, "fastest", "async_scheduling")


def test_a_blob_that_comes_from_nowhere():
    net = net_of("bad", ("Relu", "kept", "y"))
    net.external_input.append("other")
    create_fails(net, "kept", "Relu", "'bad'")
    net = net_of("bad", ("Relu", "kept", "y"))
    net.external_input.append("kept")
    net.external_output.append("z")
    create_fails(net, "z", "'bad'")


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"\xff" * 20, lambda b: b[:5] + b"\xff\xff" + b[7:]])
def test_corrupt_nets(damage):
    data = damage(net_of("bad", ("Relu", "kept", "y")).SerializeToString())
    for call in (workspace.C.create_net, workspace.C.run_net_once, workspace.C.run_plan):
        with pytest.raises(RuntimeError):
            call(data)
    assert workspace.C.nets() == ["good"]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_truncated_blobs(cut):
    data = workspace.SerializeBlob("kept")
    with pytest.raises((RuntimeError, ValueError)):
        workspace.DeserializeBlob("kept", data[:-cut])
    assert workspace.FetchBlob("kept").tolist() == [0, 1, 2]


def test_a_blob_whose_declared_size_overflows():
    proto = caffe2_pb2.BlobProto(name="x", type="Tensor")
    proto.tensor.dims.extend([2**40, 2**40])
    proto.tensor.data_type = caffe2_pb2.TensorProto.FLOAT
    proto.tensor.float_data.extend([1, 2])
    with pytest.raises((RuntimeError, ValueError, OverflowError)):
        workspace.DeserializeBlob("kept", proto.SerializeToString())
    del proto.tensor.dims[:]
    proto.tensor.dims.extend([3, -1])
    with pytest.raises((RuntimeError, ValueError, OverflowError)):
        workspace.DeserializeBlob("kept", proto.SerializeToString())


def test_a_fill_whose_size_overflows():
    net = net_of("bad", ("ConstantFill", [], "y", {"shape": [2**40, 2**40]}))
    with pytest.raises(RuntimeError, match="ConstantFill"):
        workspace.RunNetOnce(net)


def test_the_failing_operator_is_named_and_earlier_results_stay():
    workspace.FeedBlob("x", np.zeros(2))
    net = net_of("bad", ("Relu", "kept", "a"), ("Relu", "x", "b"), ("Relu", "kept", "c"))
    run_fails(net, "Relu(x double[2]) -> (b (empty))", "'bad'")
    assert workspace.FetchBlob("a").tolist() == [0, 1, 2]
    workspace.FeedBlob("x", np.ones(2, np.float32))
    assert workspace.RunNet("bad")


def test_names_that_are_not_there():
    with pytest.raises(RuntimeError, match="nowhere"):
        workspace.RunNet("nowhere")
    with pytest.raises(RuntimeError, match="nowhere"):
        workspace.SwitchWorkspace("nowhere")

"""Operators written in Python: tensors in and out, gradients, builders, workspaces, errors."""

import gc
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.python import core, workspace
from caffe2.python.core import CreatePythonOperator

F = np.float32

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def twice(inputs, outputs):
    for x, y in zip(inputs, outputs):
        y.reshape(x.shape)
        y.data[...] = 2 * x.data


def twice_gradient(inputs, outputs):
    """Inputs are those of the forward operator, its outputs, and the gradients of these."""
    for dy, dx in zip(inputs[-len(outputs):], outputs):
        dx.reshape(dy.shape)
        dx.data[...] = 2 * dy.data


def make_scale(name, factor):
    """Builder: a function that counts its runs."""
    runs = 0

    def scale(inputs, outputs):
        nonlocal runs
        runs += 1
        outputs[0].feed(factor * inputs[0].data)
        outputs[1].feed(np.array(runs))
    return scale


def make_scale_gradient(name, factor):
    def gradient(inputs, outputs):
        outputs[0].feed(factor * inputs[3].data)
    return gradient


def put_from_workspace(inputs, outputs, ws):
    outputs[0].feed(ws.blobs["hidden"].fetch() + 1)


def make_put_from_workspace():
    return put_from_workspace


# ---------------------------------------------------------------- values


@given(shape=shapes, in_place=st.booleans(), seed=st.integers(0, 99))
def test_values(shape, in_place, seed):
    x = np.random.default_rng(seed).standard_normal(shape).astype(F)
    workspace.FeedBlob("x", x)
    y = "x" if in_place else "y"
    workspace.RunOperatorOnce(CreatePythonOperator(twice, ["x"], [y]))
    np.testing.assert_array_equal(workspace.FetchBlob(y), 2 * x)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8, np.uint16, np.int64, bool, object])
def test_types(dtype):
    value = np.array([[b"a", b"bc"]], object) if dtype is object else np.array([[0, 1, 1]], dtype)
    seen = []

    def f(inputs, outputs):
        seen.append((inputs[0].data.dtype, inputs[0].shape))
        outputs[0].feed(inputs[0].data)

    workspace.FeedBlob("x", value)
    workspace.RunOperatorOnce(CreatePythonOperator(f, ["x"], ["y"]))
    assert seen == [(value.dtype, value.shape)]
    y = workspace.FetchBlob("y")
    assert y.dtype == value.dtype
    np.testing.assert_array_equal(y, value)


def test_tensors():
    """What a function gets: shapes are tuples, data are arrays that share the blob's memory."""
    def f(inputs, outputs):
        x, = inputs
        assert type(x.shape) is tuple and type(x.data) is np.ndarray
        before = x.data.ctypes.data
        assert x.data.ctypes.data == before
        np.testing.assert_array_equal(np.asarray(x), x.data)
        outputs[0].reshape([2, 3])
        outputs[0].data[:] = 7
        assert outputs[0].shape == (2, 3) and outputs[0].data.dtype == F

    workspace.FeedBlob("x", F([1, 2]))
    workspace.RunOperatorOnce(CreatePythonOperator(f, ["x"], ["y"]))
    np.testing.assert_array_equal(workspace.FetchBlob("y"), np.full((2, 3), 7))


@pytest.mark.parametrize("shape, value", [
    ((4,), [1, 2, 3, 4]), ((1, 4, 1), [[[1], [2], [3], [4]]]), ((1, 3), [[0, 0, 0]]),
])
def test_reshape_keeps_as_many_values(shape, value):
    workspace.FeedBlob("x", F([[1, 2], [3, 4]]))
    workspace.RunOperatorOnce(CreatePythonOperator(lambda i, o: o[0].reshape(shape), ["x"], ["x"]))
    np.testing.assert_array_equal(workspace.FetchBlob("x"), value)


def test_nothing_in_or_out():
    calls = []
    workspace.RunOperatorOnce(CreatePythonOperator(lambda i, o: calls.append((i, o)), [], []))
    assert calls == [([], [])]


def test_output_that_is_not_written():
    workspace.RunOperatorOnce(CreatePythonOperator(lambda i, o: None, [], ["y"]))
    assert workspace.HasBlob("y")
    with pytest.raises(RuntimeError, match="y"):
        workspace.FetchBlob("y")
    workspace.FeedBlob("y", F([3]))
    workspace.RunOperatorOnce(CreatePythonOperator(lambda i, o: None, [], ["y"]))
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [3])


def test_functions_outlive_their_names():
    def f(inputs, outputs):
        outputs[0].feed(inputs[0].data + 1)
    op = CreatePythonOperator(f, ["x"], ["y"])
    del f
    gc.collect()
    workspace.FeedBlob("x", F([1]))
    workspace.RunOperatorOnce(op)
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [2])


def test_between_other_operators():
    """Others see what it wrote, in shapes that change from run to run."""
    net = core.Net("mixed")
    net.Relu("x", "a")
    net.Python(twice)(["a"], ["b"])
    net.Sigmoid("b", "c")
    workspace.FeedBlob("x", F([0]))
    workspace.CreateNet(net)
    for shape in ((3,), (2, 5), (0, 4), (1,)):
        x = np.random.default_rng(0).standard_normal(shape).astype(F)
        workspace.FeedBlob("x", x)
        workspace.RunNet(net)
        np.testing.assert_allclose(workspace.FetchBlob("c"), 1 / (1 + np.exp(-2 * np.maximum(x, 0))), rtol=1e-6)


@pytest.mark.parametrize("net_type", ["simple", "dag", "async_scheduling"])
@pytest.mark.parametrize("workers", [1, 4])
def test_many_at_once(net_type, workers):
    net = core.Net("many")
    net.Proto().type = net_type
    net.Proto().num_workers = workers
    net.Proto().op.extend([CreatePythonOperator(twice, ["x"], [f"y{i}"]) for i in range(12)])
    plan = core.Plan("plan")
    plan.AddStep(core.ExecutionStep("step", net, 20))
    workspace.FeedBlob("x", F([1, 2]))
    workspace.RunPlan(plan)
    for i in range(12):
        np.testing.assert_array_equal(workspace.FetchBlob(f"y{i}"), [2, 4])


def test_in_several_threads():
    nets = []
    for i in range(4):
        ws = workspace.C.Workspace()
        net = core.Net(f"net{i}")
        net.Python(twice)(["x"], ["x"])
        ws.feed_blob("x", np.ones(3))
        nets.append((ws, ws.create_net(net)))
    threads = [threading.Thread(target=net.run, args=(50,)) for _, net in nets]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for ws, _ in nets:
        np.testing.assert_array_equal(ws.fetch_blob("x"), np.full(3, 2.0**50))


def test_may_run_nets_itself():
    net = core.Net("inner")
    net.Relu("x", "y")
    workspace.FeedBlob("x", F([-1, 2]))
    workspace.CreateNet(net)
    workspace.RunOperatorOnce(CreatePythonOperator(lambda i, o: workspace.RunNet(net), [], []))
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [0, 2])


# ---------------------------------------------------------------- gradients


def gradients(op, grads):
    """Run the gradient operators of an operator; gradients of its inputs."""
    made, wanted = core.GradientRegistry.GetGradientForOp(op, grads)
    workspace.RunOperatorsOnce(made)
    return [None if g is None else workspace.FetchBlob(str(g)) for g in wanted]


@given(shape=shapes, in_place=st.booleans())
def test_gradient(shape, in_place):
    op = CreatePythonOperator(twice, ["x"], ["x" if in_place else "y"], grad_f=twice_gradient)
    workspace.FeedBlob("x", np.ones(shape, F))
    workspace.RunOperatorOnce(op)
    dy = np.random.default_rng(0).standard_normal(shape).astype(F)
    workspace.FeedBlob("dy", dy)
    (dx,) = gradients(op, ["dy"])
    np.testing.assert_array_equal(dx, 2 * dy)


def test_gradient_in_a_net():
    """Through Python and other operators, down to the input."""
    net = core.Net("train")
    a = net.Python(twice, twice_gradient)(["x"], ["a"])
    net.AveragedLoss(net.Sigmoid(a, "b"), "loss")
    grads = net.AddGradientOperators(["loss"])
    x = F([[1, -2], [0.5, 3]])
    workspace.FeedBlob("x", x)
    workspace.RunNetOnce(net)
    s = 1 / (1 + np.exp(-2.0 * x))
    np.testing.assert_allclose(workspace.FetchBlob(grads["x"]), 2 * s * (1 - s) / 4, rtol=1e-5)


def three(inputs, outputs):
    """z0 = x0 x1, z1 = x1 + x2"""
    a, b, c = (x.data for x in inputs)
    outputs[0].feed(a * b)
    outputs[1].feed(b + c)


def test_gradient_of_several():
    def gradient(inputs, outputs):
        a, b, c, z0, z1, g0, g1 = (x.data for x in inputs)
        np.testing.assert_array_equal([z0, z1], [a * b, b + c])
        for output, value in zip(outputs, (g0 * b, g0 * a + g1, g1), strict=True):
            output.feed(value)

    op = CreatePythonOperator(three, ["a", "b", "c"], ["z0", "z1"], grad_f=gradient)
    for name, value in zip(["a", "b", "c", "g0", "g1"], np.arange(1, 11, dtype=F).reshape(5, 2)):
        workspace.FeedBlob(name, value)
    workspace.RunOperatorOnce(op)
    np.testing.assert_array_equal(gradients(op, ["g0", "g1"]), [[21, 32], [16, 26], [9, 10]])


def test_gradient_indices():
    """Only some gradients are taken, and only some are given."""
    def gradient(inputs, outputs):
        a, b, c, _, _, g1 = (x.data for x in inputs)
        assert len(outputs) == 1
        outputs[0].feed(10 * g1)

    op = CreatePythonOperator(three, ["a", "b", "c"], ["z0", "z1"], grad_f=gradient, grad_output_indices=[1],
                              grad_input_indices=[2])
    for name in ("a", "b", "c", "g1"):
        workspace.FeedBlob(name, F([1, 2]))
    workspace.RunOperatorOnce(op)
    made, wanted = core.GradientRegistry.GetGradientForOp(op, [None, "g1"])
    assert [list(o.input) for o in made] == [["a", "b", "c", "z0", "z1", "g1"]]
    assert [g and str(g) for g in wanted] == [None, None, "c_grad"]
    workspace.RunOperatorsOnce(made)
    np.testing.assert_array_equal(workspace.FetchBlob("c_grad"), [10, 20])


def test_gradient_of_index_0():
    """Index 0 alone is not taken for 'all'."""
    op = CreatePythonOperator(three, ["a", "b", "c"], ["z0", "z1"], grad_f=twice_gradient, grad_output_indices=[0],
                              grad_input_indices=[0])
    made, wanted = core.GradientRegistry.GetGradientForOp(op, ["g0", "g1"])
    assert list(made[0].input)[5:] == ["g0"] and list(made[0].output) == ["a_grad"]
    assert [g and str(g) for g in wanted] == ["a_grad", None, None]


class Doubling:
    """What python_func_type wraps a function with."""

    def __init__(self, f):
        self.f = f

    def forward(self, inputs, outputs):
        outputs[0].feed(2 * self.f(inputs[0].data))

    def backward(self, inputs, outputs):
        outputs[0].feed(2 * inputs[2].data)


def test_func_type():
    net = core.Net("typed")
    net.AddExternalInput("dy")
    net.Python(np.negative, python_func_type=Doubling)(["x"], ["y"])
    grads = net.AddGradientOperators({"y": "dy"})
    workspace.FeedBlob("x", F([1, 2]))
    workspace.FeedBlob("dy", F([3, 4]))
    workspace.RunNetOnce(net)
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [-2, -4])
    np.testing.assert_array_equal(workspace.FetchBlob(grads["x"]), [6, 8])


# ---------------------------------------------------------------- builders


def test_builder_is_called_once_for_each_net():
    """Its function keeps its state from run to run, and a clone of the net has its own."""
    net = core.Net("built")
    net.Python((make_scale, ["name"], {"factor": 3}))(["x"], ["y", "runs"])
    workspace.FeedBlob("x", F([1, 2]))
    for clone in range(2):
        cloned = net.Clone(f"clone{clone}")
        workspace.CreateNet(cloned)
        for run in range(1, 4):
            workspace.RunNet(cloned)
            np.testing.assert_array_equal(workspace.FetchBlob("y"), [3, 6])
            assert workspace.FetchBlob("runs") == run


def test_builder_with_gradient():
    net = core.Net("built")
    net.AddExternalInput("dy")
    net.Python((make_scale, ["name", 3], {}), (make_scale_gradient, ["name"], {"factor": 3}), grad_output_indices=[0])(
        ["x"], ["y", "runs"])
    grads = net.AddGradientOperators({"y": "dy"})
    workspace.FeedBlob("x", F([1]))
    workspace.FeedBlob("dy", F([5]))
    workspace.RunNetOnce(net)
    np.testing.assert_array_equal(workspace.FetchBlob(grads["x"]), [15])


def test_builder_survives_serialization():
    """The net carries the builder, so another process can run it."""
    net = core.Net("built")
    net.Python((make_scale, ["name", 3], {}))(["x"], ["y", "runs"])
    (argument,) = [a for a in net.Proto().op[0].arg if a.name == "pickled_builder"]
    builder, args, kwargs = pickle.loads(argument.s)
    assert builder.__name__ == "make_scale" and args == ("name", 3) and kwargs == {}
    copy = core.Net(type(net.Proto()).FromString(net.Proto().SerializeToString()))
    workspace.FeedBlob("x", F([1]))
    workspace.RunNetOnce(copy)
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [3])


def test_builder_given_to_the_operator():
    """CreatePythonOperator calls the builder at once."""
    op = CreatePythonOperator((make_scale, ["name", 4], {}), ["x"], ["y", "runs"])
    workspace.FeedBlob("x", F([1]))
    workspace.RunOperatorOnce(op)
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [4])


# ---------------------------------------------------------------- workspaces


@pytest.mark.parametrize("f", [put_from_workspace, (make_put_from_workspace, [], {})], ids=["function", "builder"])
def test_workspace_is_passed(f):
    """The one that the net runs in, current or not."""
    ws = workspace.C.Workspace()
    ws.feed_blob("hidden", F([1, 2]))
    workspace.FeedBlob("hidden", F([100]))
    net = core.Net("net")
    net.Python(f, pass_workspace=True)([], ["y"])
    ws.run(net)
    np.testing.assert_array_equal(ws.fetch_blob("y"), [2, 3])
    workspace.RunNetOnce(net)
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [101])


def test_workspace_can_be_written():
    def f(inputs, outputs, ws):
        ws.create_blob("made").feed(F([5]))
        outputs[0].feed(ws.blobs["made"].fetch())

    workspace.RunOperatorOnce(CreatePythonOperator(f, [], ["y"], pass_workspace=True))
    np.testing.assert_array_equal(workspace.FetchBlob("made"), [5])
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [5])


# ---------------------------------------------------------------- errors


def test_exceptions_say_where():
    def f(inputs, outputs):
        raise ValueError("something is wrong")

    net = core.Net("failing")
    net.Python(f)(["x"], ["y"])
    workspace.FeedBlob("x", F([1, 2]))
    workspace.FeedBlob("y", F([7]))
    with pytest.raises(RuntimeError, match=r"something is wrong.*Python\(x float\[2\].*failing") as raised:
        workspace.RunNetOnce(net)
    # the function's own exception is at hand, with its traceback
    assert isinstance(raised.value.__cause__, ValueError)
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [7])
    np.testing.assert_array_equal(workspace.FetchBlob("x"), [1, 2])


@pytest.mark.parametrize("net_type", ["simple", "dag"])
def test_net_runs_after_a_failure(net_type):
    fail = [True]

    def f(inputs, outputs):
        if fail[0]:
            raise KeyError("not yet")
        outputs[0].feed(inputs[0].data)

    net = core.Net("recovers")
    net.Proto().type = net_type
    net.Python(f)(["x"], ["y"])
    workspace.FeedBlob("x", F([1]))
    workspace.CreateNet(net)
    with pytest.raises(RuntimeError, match="not yet"):
        workspace.RunNet(net)
    fail[0] = False
    workspace.RunNet(net)
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [1])


def test_bad_reshape_is_an_exception():
    def f(inputs, outputs):
        outputs[0].reshape([-2, 3])

    with pytest.raises(RuntimeError, match="Python.*y"):
        workspace.RunOperatorOnce(CreatePythonOperator(f, [], ["y"]))

    def huge(inputs, outputs):
        outputs[0].reshape([2**62, 2**62])

    with pytest.raises(RuntimeError, match="Python.*y"):
        workspace.RunOperatorOnce(CreatePythonOperator(huge, [], ["y"]))


def test_input_that_is_no_tensor():
    workspace.RunOperatorOnce(core.CreateOperator("CreateCounter", [], ["counter"]))
    with pytest.raises(RuntimeError, match="counter.*Python"):
        workspace.RunOperatorOnce(CreatePythonOperator(twice, ["counter"], ["y"]))


@pytest.mark.parametrize("args, message", [
    ({}, "token"), ({"token": "nobody"}, "nobody"), ({"pickled_builder": b"rubbish"}, "builder"),
    ({"pickled_builder": pickle.dumps(make_scale)}, "builder"),
    ({"pickled_builder": pickle.dumps((make_put_from_workspace, (1, 2), {}))}, "argument"),
])
@pytest.mark.parametrize("op", ["Python", "PythonDLPack"])
def test_what_cannot_be_bound(op, args, message):
    with pytest.raises(RuntimeError, match=f"({message}).*{op}"):
        workspace.RunOperatorOnce(core.CreateOperator(op, [], ["y"], **args))
    assert not workspace.HasBlob("y")


def test_gradient_that_is_missing():
    op = CreatePythonOperator(twice, ["x"], ["y"])
    made, _ = core.GradientRegistry.GetGradientForOp(op, ["dy"])
    for name in ("x", "y", "dy"):
        workspace.FeedBlob(name, F([1]))
    with pytest.raises(RuntimeError, match="no Python gradient.*PythonGradient"):
        workspace.RunOperatorOnce(made[0])
    with pytest.raises(RuntimeError, match="nobody"):
        workspace.C.register_python_gradient_op("nobody", twice)


def test_function_and_builder_do_not_mix():
    with pytest.raises(AssertionError, match="tuple"):
        core.Net("net").Python((make_scale, ["a", 1], {}), twice_gradient)


# ---------------------------------------------------------------- DLPack


def test_dlpack():
    """Tensors can be handed to other libraries without a copy."""
    def f(inputs, outputs):
        x = np.from_dlpack(inputs[0])
        outputs[0].feed(x + 1)

    token = workspace.C.register_python_op(f, False, "")
    workspace.FeedBlob("x", F([1, 2]))
    workspace.RunOperatorOnce(core.CreateOperator("PythonDLPack", ["x"], ["y"], token=token))
    np.testing.assert_array_equal(workspace.FetchBlob("y"), [2, 3])

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace
from caffe2.python.core import CreateOperator, GradientRegistry, GradientSlice

CUDA1 = core.DeviceOption(caffe2_pb2.CUDA, 1)
TAG = f"{core.IR.IS_AUTO_GEN_SUM_OPS_TAG}:1"


@pytest.fixture(autouse=True)
def empty_workspace():
    workspace.ResetWorkspace()
    yield
    workspace.ResetWorkspace()


@pytest.fixture(autouse=True, scope="module")
def operators_of_our_own():
    """Operator types that exist only for the registry.

    Linear needs gradients of outputs only, NeedsInput and NeedsOutput blobs of the forward pass,
    Blind has no gradient, Pass hands the gradient of its output through, Rows has a sparse one.
    """
    names = {}

    def register(op_type):
        names[op_type] = True
        return GradientRegistry.RegisterGradient(op_type)

    def made(op, inputs):
        g_input = [f"{i}_grad" for i in op.input]
        grad_op = CreateOperator(f"{op.type}Gradient", inputs, g_input)
        if op.HasField("device_option"):
            grad_op.device_option.CopyFrom(op.device_option)
        return grad_op, g_input

    @register("Linear")
    def linear(op, g_output):
        assert all(g_output), f"{op.type} needs all gradients"
        return made(op, g_output)

    register("NeedsInput")(lambda op, g_output: made(op, [*op.input, *g_output]))
    register("NeedsOutput")(lambda op, g_output: made(op, [*op.output, *g_output]))
    register("Blind")(lambda op, g_output: (None, [None] * len(op.input)))
    register("Pass")(lambda op, g_output: ([], [g_output[0]] * len(op.input)))
    register("Rows")(
        lambda op, g_output: ([], [GradientSlice(op.input[1], g_output[0]), None])
    )

    @register("Hash")
    def hashed(op, g_output):
        g = GradientSlice(op.input[0] + "_grad_indices", op.input[0] + "_grad_values")
        return CreateOperator("HashGradient", g_output, list(g)), [g]

    yield
    for name in names:
        del GradientRegistry.gradient_registry_[name]


def op(op_type, inputs, outputs, **kwargs):
    return CreateOperator(op_type, inputs.split(), outputs.split(), **kwargs)


def backward(operators, ys):
    """Gradient operators in short, and the map of gradients by name."""
    ops, grads = GradientRegistry.GetBackwardPass(operators, ys)
    short = [f"{o.type}: {' '.join(o.input)} -> {' '.join(o.output)}" for o in ops]
    return short, {str(k): v if isinstance(v, GradientSlice) else str(v) for k, v in grads.items()}


# ---------------------------------------------------------------- chains


def test_chain_with_given_and_generated_gradient():
    chain = [op("Linear", "x", "y"), op("Linear", "y", "z")]
    ops, grads = backward(chain, {"z": "dz"})
    assert ops == ["LinearGradient: dz -> y_grad", "LinearGradient: y_grad -> x_grad"]
    assert grads == {"z": "dz", "y": "y_grad", "x": "x_grad"}
    ops, grads = backward(chain, ["z"])
    assert ops[0] == "ConstantFill: z -> z_autogen_grad"
    assert ops[1:] == ["LinearGradient: z_autogen_grad -> y_grad"] + [
        "LinearGradient: y_grad -> x_grad"
    ]
    fill = GradientRegistry.GetBackwardPass(chain, ["z"])[0][0]
    assert fill.arg[0].name == "value" and fill.arg[0].f == 1.0


def test_keys_and_gradients_are_references():
    _, grads = GradientRegistry.GetBackwardPass(
        [op("Linear", "x", "y")], {core.BlobReference("y"): core.BlobReference("dy")}
    )
    assert grads["x"] == "x_grad" and isinstance(grads["x"], core.BlobReference)
    assert all(isinstance(k, core.BlobReference) for k in grads)


def test_only_what_leads_to_a_gradient_is_derived():
    chain = [op("Linear", "x", "y"), op("Linear", "y", "z"), op("Linear", "w", "v")]
    assert backward(chain, {"y": "dy"})[0] == ["LinearGradient: dy -> x_grad"]
    assert backward(chain, {}) == ([], {})


def test_wrong_kind_of_ys():
    with pytest.raises(TypeError, match="list or a dict"):
        GradientRegistry.GetBackwardPass([op("Linear", "x", "y")], "y")


def test_operator_without_gradient():
    with pytest.raises(RuntimeError, match=r"creating gradient for \[NoSuchOperator\]"):
        backward([op("NoSuchOperator", "x", "y")], ["y"])


def test_blind_operators_end_the_flow():
    ops, grads = backward([op("Linear", "x", "y"), op("Blind", "y", "z")], {"z": "dz"})
    assert ops == [] and grads == {"z": "dz"}


# ---------------------------------------------------------------- versions


def test_in_place_chain():
    chain = [op("Linear", "x", "x"), op("NeedsOutput", "x", "y")]
    ops, grads = backward(chain, {"y": "dy"})
    assert ops == ["NeedsOutputGradient: y dy -> x_grad", "LinearGradient: x_grad -> x_grad"]
    assert grads["x"] == "x_grad"


@pytest.mark.parametrize(
    "operators, complaint",
    [
        ([("NeedsInput", "x", "y"), ("Linear", "x", "x")], 'needs its input "x" at version 0'),
        (
            [("NeedsOutput", "x", "h"), ("Linear", "h", "h"), ("Linear", "h", "y")],
            'needs its output "h" at version 0',
        ),
        (
            [("Linear", "a", "x"), ("Linear", "b", "x"), ("Linear", "x", "y")],
            'Gradient "x_grad" must be of "x" at version 0',
        ),
    ],
)
def test_overwritten_blobs_are_refused(operators, complaint):
    with pytest.raises(RuntimeError, match=complaint) as error:
        backward([op(*o) for o in operators], {"y": "dy"})
    assert "Version history of blob" in str(error.value)


def test_gradient_that_reads_an_unknown_blob():
    GradientRegistry.RegisterGradient("Stray")(
        lambda o, g: (CreateOperator("StrayGradient", ["elsewhere"], ["x_grad"]), ["x_grad"])
    )
    try:
        with pytest.raises(RuntimeError, match='"elsewhere" not in the scope'):
            backward([op("Stray", "x", "y")], {"y": "dy"})
    finally:
        del GradientRegistry.gradient_registry_["Stray"]


def test_later_gradient_operators_read_what_earlier_ones_made():
    def two_steps(o, g):
        return [
            CreateOperator("First", g, ["tmp"]),
            CreateOperator("Second", ["tmp"], ["x_grad"]),
        ], ["x_grad"]

    GradientRegistry.RegisterGradient("TwoSteps")(two_steps)
    try:
        ops, _ = backward([op("TwoSteps", "x", "y")], {"y": "dy"})
    finally:
        del GradientRegistry.gradient_registry_["TwoSteps"]
    assert ops == ["First: dy -> tmp", "Second: tmp -> x_grad"]


# ---------------------------------------------------------------- sums


def test_two_uses_are_summed():
    ops, grads = backward(
        [op("Linear", "x", "a"), op("Linear", "x", "b"), op("Linear", "a b", "y")], {"y": "dy"}
    )
    assert ops == [
        "LinearGradient: dy -> a_grad b_grad",
        "LinearGradient: b_grad -> x_grad",
        "LinearGradient: a_grad -> _x_grad_autosplit_0",
        "Sum: x_grad _x_grad_autosplit_0 -> x_grad",
    ]
    assert grads["x"] == "x_grad"


def test_one_operator_that_uses_a_blob_twice():
    ops, _ = backward([op("Linear", "x x", "y")], {"y": "dy"})
    assert ops == ["LinearGradient: dy -> x_grad _x_grad_autosplit_0"] + [
        "Sum: x_grad _x_grad_autosplit_0 -> x_grad"
    ]


def test_each_version_has_its_own_sum():
    ops, _ = backward(
        [
            op("Linear", "x", "a"),
            op("Linear", "x", "b"),
            op("Linear", "a b", "x"),
            op("Linear", "x", "c"),
            op("Linear", "x", "d"),
            op("Linear", "x", "e"),
            op("Linear", "c d e", "y"),
        ],
        {"y": "dy"},
    )
    assert [o for o in ops if o.startswith("Sum")] == [
        "Sum: x_grad _x_grad_autosplit_0 _x_grad_autosplit_1 -> x_grad",
        "Sum: x_grad _x_grad_autosplit_0 -> x_grad",
    ]
    assert ops[5] == "LinearGradient: x_grad -> a_grad b_grad"


def test_uses_without_gradient_do_not_count():
    ops, _ = backward(
        [op("Linear", "x", "a"), op("Blind", "x", "b"), op("Linear", "a b", "y")], {"y": "dy"}
    )
    assert ops == ["LinearGradient: dy -> a_grad b_grad", "LinearGradient: a_grad -> x_grad"]


def test_gradients_handed_through_are_summed_under_their_names():
    ops, grads = backward([op("Linear", "x", "a"), op("Pass", "x a", "y")], {"y": "dy"})
    assert ops == ["LinearGradient: dy -> x_grad", "Sum: x_grad dy -> x_grad"]
    assert grads["x"] == "x_grad"
    ops, grads = backward(
        [op("Pass", "x a", "p"), op("Pass", "x b", "q"), op("Linear", "p q", "y")], {"y": "dy"}
    )
    assert ops == ["LinearGradient: dy -> p_grad q_grad", "Sum: q_grad p_grad -> x_grad"]
    assert (grads["a"], grads["b"], grads["x"]) == ("p_grad", "q_grad", "x_grad")


def test_a_sum_must_not_overwrite_a_gradient_handed_through():
    with pytest.raises(RuntimeError, match="would be overwritten"):
        backward([op("Pass", "x", "y"), op("Linear", "x", "z")], {"y": "x_grad", "z": "dz"})


def test_gradient_of_a_blob_that_is_itself_derived():
    ops, _ = backward([op("Linear", "x", "y"), op("Linear", "y", "z")], ["z", "y"])
    assert ops[2:] == [
        "LinearGradient: z_autogen_grad -> _y_grad_autosplit_0",
        "Sum: y_autogen_grad _y_grad_autosplit_0 -> y_autogen_grad",
        "LinearGradient: y_autogen_grad -> x_grad",
    ]


def test_sum_and_concat_are_on_the_device_of_the_gradients():
    def both(on):
        operators = [
            op("Linear", "x", "a", device_option=on[0]),
            op("Linear", "x", "b", device_option=on[1]),
        ]
        return GradientRegistry.GetBackwardPass(operators, {"a": "da", "b": "db"})[0]

    want = caffe2_pb2.DeviceOption()
    want.CopyFrom(CUDA1)
    want.extra_info.append(TAG)
    assert both([CUDA1, CUDA1])[-1].device_option == want
    # A device scope around the call does not matter.
    with core.DeviceScope(CUDA1):
        assert both([core.DeviceOption(0)] * 2)[-1].device_option.device_type == caffe2_pb2.CPU
    with pytest.raises(RuntimeError, match="Gradients of 'x'.*same device option"):
        both([CUDA1, core.DeviceOption(caffe2_pb2.CUDA, 0)])


def test_sum_without_device_carries_its_tag_only():
    operators = [op("Linear", "x", "a"), op("Linear", "x", "b")]
    ops, _ = GradientRegistry.GetBackwardPass(operators, {"a": "da", "b": "db"})
    assert ops[-1].device_option == caffe2_pb2.DeviceOption(extra_info=[TAG])


def test_sum_can_be_told_to_keep_its_tag_only():
    only = f"{core.IR.ONLY_KEEP_IS_AUTO_GEN_SUM_OPS_TAG}:1"
    device = core.DeviceOption(caffe2_pb2.CUDA, 1, extra_info=["a:1", only])
    operators = [op("Linear", "x", y, device_option=device) for y in "ab"]
    ops, _ = GradientRegistry.GetBackwardPass(operators, {"a": "da", "b": "db"})
    want = core.DeviceOption(caffe2_pb2.CUDA, 1, extra_info=[TAG])
    assert ops[-1].device_option == want


# ---------------------------------------------------------------- sparse


def test_sparse_gradient():
    ops, grads = backward([op("Rows", "w i", "y")], {"y": "dy"})
    assert ops == [] and grads["w"] == GradientSlice("i", "dy")
    assert isinstance(grads["w"].values, core.BlobReference)


def test_sparse_gradients_are_concatenated():
    ops, grads = backward(
        [op("Rows", "w i", "a"), op("Rows", "w j", "b"), op("Linear", "a b", "y")], {"y": "dy"}
    )
    assert ops[1:] == [
        "Concat: j i -> w_grad_indices_concat w_grad_indices_concat_split",
        "Concat: b_grad a_grad -> w_grad_values_concat w_grad_values_concat_split",
    ]
    assert grads["w"] == GradientSlice("w_grad_indices_concat", "w_grad_values_concat")


def test_sparse_gradients_whose_blobs_are_both_made():
    ops, grads = backward(
        [op("Hash", "w", "a"), op("Hash", "w", "b"), op("Linear", "a b", "y")], {"y": "dy"}
    )
    assert ops[1:] == [
        "HashGradient: b_grad -> _w_grad_indices_autosplit_0 _w_grad_values_autosplit_0",
        "HashGradient: a_grad -> _w_grad_indices_autosplit_1 _w_grad_values_autosplit_1",
        "Concat: _w_grad_indices_autosplit_0 _w_grad_indices_autosplit_1"
        " -> w_grad_indices_concat w_grad_indices_concat_split",
        "Concat: _w_grad_values_autosplit_0 _w_grad_values_autosplit_1"
        " -> w_grad_values_concat w_grad_values_concat_split",
    ]
    assert grads["w"] == GradientSlice("w_grad_indices_concat", "w_grad_values_concat")


def test_sparse_and_dense_gradients_do_not_mix():
    with pytest.raises(RuntimeError, match="mix of sparse and dense"):
        backward([op("Rows", "w i", "a"), op("Linear", "w", "b")], {"a": "da", "b": "db"})


def test_sparse_gradient_given_from_outside():
    given_ = GradientSlice("gi", "gv")
    ops, grads = backward([op("Pass", "x", "y")], {"y": given_})
    assert ops == [] and grads["x"] == given_


def test_index_in_a_list_of_gradients():
    g = [None, "a", GradientSlice("i", "v")]
    assert [core.GetIndexFromGradientList(g, n) for n in ("a", "i", "v", "b")] == [1, 2, 2, None]


# ---------------------------------------------------------------- stop and zero


def test_stop_gradient():
    ops, grads = backward(
        [op("Linear", "x", "h"), op("StopGradient", "h", "h"), op("Linear", "h", "y")],
        {"y": "dy"},
    )
    assert ops == ["LinearGradient: dy -> h_grad"]
    assert grads == {"y": "dy"}


def test_stop_gradient_beside_a_path_that_goes_on():
    ops, grads = backward(
        [op("Linear", "x", "h"), op("StopGradient", "h", "s"), op("Linear", "h s", "y")],
        {"y": "dy"},
    )
    assert ops == ["LinearGradient: dy -> h_grad s_grad", "LinearGradient: h_grad -> x_grad"]
    assert grads["x"] == "x_grad"


def test_orphaned_stop_gradient():
    with pytest.raises(ValueError, match="'s' is orphan"):
        backward([op("StopGradient", "x", "s"), op("Linear", "x", "y")], {"y": "dy"})


def test_zero_gradient_supplies_missing_gradients():
    chain = [op("Linear", "x", "a b"), op("Linear", "a", "y")]
    with pytest.raises(AssertionError, match="needs all gradients"):
        backward(chain, {"y": "dy"})
    ops, _ = backward([*chain, op("ZeroGradient", "b", "")], {"y": "dy"})
    assert ops == [
        "ConstantFill: b -> b_grad",
        "LinearGradient: dy -> a_grad",
        "LinearGradient: a_grad b_grad -> x_grad",
    ]


# ---------------------------------------------------------------- values


def run_with_gradient(net, ys, feeds):
    grads = net.AddGradientOperators(ys)
    for name, value in feeds.items():
        workspace.FeedBlob(name, np.asarray(value, np.float32))
    workspace.RunNetOnce(net)
    return grads, {k: workspace.FetchBlob(str(grads[k])) for k in feeds if k in grads}


def test_values_of_a_diamond():
    net = core.Net("diamond")
    net.Mul(["x", "p"], "a")
    net.Mul(["x", "q"], "b")
    net.Mul(["a", "b"], "y")
    x, p, q = np.float32([2.0]), np.float32([3.0]), np.float32([5.0])
    _, got = run_with_gradient(net, ["y"], {"x": x, "p": p, "q": q})
    # y = x^2 p q
    np.testing.assert_allclose(got["x"], 2 * x * p * q)
    np.testing.assert_allclose(got["p"], x * x * q)
    np.testing.assert_allclose(got["q"], x * x * p)


def test_values_with_a_derived_intermediate():
    net = core.Net("inner")
    m = net.Mul(["x", "p"], "m")
    y = net.Mul([m, "q"], "y")
    _, got = run_with_gradient(net, [y, m], {"x": [1.0], "p": [2.0], "q": [3.0]})
    np.testing.assert_allclose(got["x"], [2.0 * 3.0 + 2.0])


@given(
    st.lists(st.tuples(st.sampled_from(["Add", "Sub", "Mul"]), st.integers(0, 9),
                       st.integers(0, 9)), min_size=1, max_size=8),
    st.integers(0, 2**31),
)  # fmt: skip
def test_values_of_random_graphs(steps, seed):
    """Against derivatives carried forward in numpy, for every input at once."""
    workspace.ResetWorkspace()
    inputs = ["i0", "i1", "i2"]
    x = np.random.default_rng(seed).uniform(-1.5, 1.5, 3).astype(np.float32)
    value = dict(zip(inputs, x.astype(np.float64)))
    slope = dict(zip(inputs, np.eye(3)))
    net = core.Net("random")
    blobs = list(inputs)
    for n, (op_type, i, j) in enumerate(steps):
        a, b = blobs[i % len(blobs)], blobs[j % len(blobs)]
        y = f"y{n}"
        getattr(net, op_type)([a, b], y)
        sign = {"Add": 1, "Sub": -1}.get(op_type)
        if sign:
            value[y] = value[a] + sign * value[b]
            slope[y] = slope[a] + sign * slope[b]
        else:
            value[y] = value[a] * value[b]
            slope[y] = slope[a] * value[b] + value[a] * slope[b]
        blobs.append(y)
    last = blobs[-1]
    _, got = run_with_gradient(net, [last], {n: [v] for n, v in zip(inputs, x)})
    for k, name in enumerate(inputs):
        if name in got:
            np.testing.assert_allclose(got[name], [slope[last][k]], rtol=2e-4, atol=2e-4)
        else:
            assert slope[last][k] == 0


def test_values_of_a_sparse_sum():
    net = core.Net("sparse")
    net.Gather(["w", "i"], "a")
    net.Gather(["w", "j"], "b")
    net.AddExternalInput("da", "db")
    grads = net.AddGradientOperators({"a": "da", "b": "db"})
    w = np.zeros((4, 2), np.float32)
    i, j = np.int64([0, 2]), np.int64([2, 2, 3])
    da, db = np.float32([[1, 2], [3, 4]]), np.float32([[5, 6], [7, 8], [9, 10]])
    for name, v in dict(w=w, i=i, j=j, da=da, db=db).items():
        workspace.FeedBlob(name, v)
    workspace.RunNetOnce(net)
    dense = np.zeros_like(w)
    indices = workspace.FetchBlob(str(grads["w"].indices))
    np.add.at(dense, indices, workspace.FetchBlob(str(grads["w"].values)))
    want = np.zeros_like(w)
    np.add.at(want, i, da)
    np.add.at(want, j, db)
    np.testing.assert_array_equal(dense, want)


def test_skip_leaves_out_the_first_operators():
    net = core.Net("skip")
    net.Mul(["x", "p"], "m")
    net.Mul(["m", "q"], "y")
    grads = net.AddGradientOperators(["y"], skip=1)
    assert "m" in grads and "x" not in grads


def test_schema_is_checked_before_a_gradient_is_made():
    net = core.Net("wrong")
    net.Mul("a", "b")
    with pytest.raises(RuntimeError, match="schema"):
        net.AddGradientOperators(["b"])


# ---------------------------------------------------------------- control operators


def do_op(body, inputs, outputs, workspace_blob):
    """A Do operator that binds every blob under its own name with `_in` appended."""
    outer = list(dict.fromkeys(inputs + outputs))
    net = caffe2_pb2.NetDef(name="body", op=body)
    return CreateOperator(
        "Do",
        [*inputs, workspace_blob],
        [*outputs, workspace_blob],
        net=net,
        inner_blobs=[b + "_in" for b in outer],
        outer_blobs_idx=[(inputs + outputs).index(b) for b in outer],
    )


def nets_of(operator):
    return {a.name: a.n for a in operator.arg if a.HasField("n")}


def test_gradient_of_do():
    body = [op("NeedsInput", "x_in", "h"), op("NeedsInput", "h", "y_in")]
    (grad,), g_input = GradientRegistry.GetGradientForOp(
        do_op(body, ["x"], ["y"], "ws"), ["dy", None]
    )
    assert g_input == ["x_grad"]
    assert (list(grad.input), list(grad.output)) == (["dy", "x", "ws"], ["x_grad", "ws"])
    args = {a.name: a for a in grad.arg}
    inner = args["net"].n
    assert [o.type for o in inner.op] == ["NeedsInputGradient", "NeedsInputGradient", "Copy"]
    bound = dict(zip(args["inner_blobs"].strings, args["outer_blobs_idx"].ints))
    names = ["dy", "x", "x_grad"]
    assert {k.decode(): names[v] for k, v in bound.items()} == {
        "y_in/_DO_OPERATOR_INNER_GRAD_": "dy",
        "x_in": "x",
        "x_in/_DO_OPERATOR_INNER_GRAD_COPY_": "x_grad",
    }
    assert list(args["saved_fwd_blobs"].strings) == [b"h"]
    assert grad.is_gradient_op


def if_op(**branches):
    nets = {
        f"{name}_net": caffe2_pb2.NetDef(name=name, op=body) for name, body in branches.items()
    }
    return CreateOperator("If", ["cond", "x", "z"], ["y"], **nets)


def test_gradient_of_if_is_zero_in_the_branch_that_does_not_compute_it():
    (grad,), g_input = GradientRegistry.GetGradientForOp(
        if_op(**{"then": [op("Linear", "x", "y")], "else": [op("Linear", "z", "y")]}), ["dy"]
    )
    assert g_input == [None, "x_grad", "z_grad"]
    assert grad.input[0] == "cond" and list(grad.output) == ["x_grad", "z_grad"]
    nets = nets_of(grad)
    assert [(o.type, *o.input, *o.output) for o in nets["then_net"].op] == [
        ("LinearGradient", "dy", "x_grad"),
        ("ConstantFill", "z", "z_grad"),
    ]
    assert [(o.type, *o.input, *o.output) for o in nets["else_net"].op] == [
        ("LinearGradient", "dy", "z_grad"),
        ("ConstantFill", "x", "x_grad"),
    ]


def test_gradient_of_if_without_else_makes_one():
    (grad,), _ = GradientRegistry.GetGradientForOp(
        if_op(**{"then": [op("Linear", "x", "y")]}), ["dy"]
    )
    assert [o.type for o in nets_of(grad)["else_net"].op] == ["ConstantFill"]


def test_gradients_of_if_are_summed():
    operators = [
        if_op(**{"then": [op("Linear", "x", "y")], "else": [op("Linear", "x", "y")]}),
        op("Linear", "x", "v"),
        op("Linear", "y v", "loss"),
    ]
    ops, _ = GradientRegistry.GetBackwardPass(operators, {"loss": "dloss"})
    grad_if, total = ops[-2:]
    assert grad_if.type == "If" and list(grad_if.output) == ["_x_grad_autosplit_0"]
    for net in nets_of(grad_if).values():
        assert list(net.op[0].output) == ["_x_grad_autosplit_0"]
    assert list(total.input) == ["x_grad", "_x_grad_autosplit_0"]


def test_gradient_of_while_unwinds_the_workspaces(monkeypatch):
    known = core._REGISTERED_OPERATORS | {"HasScope", "Copy"}
    monkeypatch.setattr(core, "_REGISTERED_OPERATORS", known)
    body = caffe2_pb2.NetDef(
        name="loop", op=[do_op([op("Linear", "x_in", "x_in")], ["x"], ["x"], "ws")]
    )
    loop = CreateOperator("While", ["cond", "x", "ws"], ["x", "ws"], loop_net=body)
    # Do binds one to one, so an output cannot also be bound as an input.
    with pytest.raises(AssertionError, match="duplicates|share"):
        GradientRegistry.GetGradientForOp(loop, ["x_grad", None])
    ops, g_input = GradientRegistry.GetGradientForOp(loop, ["dx", None])
    assert g_input == [None, "x_grad", None]
    assert ops[-1].type == "While" and ops[-1].input[0].endswith("/cond")
    nets = nets_of(ops[-1])
    assert [o.type for o in nets["loop_net"].op] == ["Do"]
    # The next iteration starts from what this one computed.
    copies = [(o.type, *o.input, *o.output) for o in nets["cond_net"].op if o.type == "Copy"]
    assert copies == [("Copy", "x_grad", "dx")]


def test_shared_gradients_are_copied():
    from caffe2.python.control_ops_grad import dedupe_g_output

    copies, g = dedupe_g_output(op("If", "c", "a b d e"), ["g", "g", None, "h"])
    assert g == ["g", "b_g_DEDUP", None, "h"]
    assert [(o.type, *o.input, *o.output) for o in copies] == [("Copy", "g", "b_g_DEDUP")]


def test_sparse_gradients_inside_control_operators_are_refused():
    body = [op("Rows", "x_in i_in", "y_in")]
    with pytest.raises(RuntimeError, match="sparse gradients"):
        GradientRegistry.GetGradientForOp(do_op(body, ["x", "i"], ["y"], "ws"), ["dy", None])

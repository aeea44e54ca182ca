from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from caffe2._core import predictor
from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace
from caffe2.python.inference_optimizer import Division, divide, fill, optimize, optimize_nets

F = np.float32
TOLERANCE = 1e-5        # of the largest value


def arrays(seed, **shapes):
    rng = np.random.default_rng(seed)
    return {n: rng.uniform(0.5, 1.5, s).astype(F) if n.startswith("v") else rng.standard_normal(s).astype(F)
            for n, s in shapes.items()}


def init_net(values):
    return caffe2_pb2.NetDef(name="init", op=[fill(n, v) for n, v in values.items()])


def outputs(init, predict, **inputs):
    """All external outputs, in a workspace of their own."""
    ws = workspace.C.Workspace()
    ws.run(init)
    for name, value in inputs.items():
        ws.feed_blob(name, value)
    ws.run(predict)
    return [ws.fetch_blob(n) for n in predict.external_output]


def close(actual, expected, least=1):
    """Within rounding of the largest value, which counts as `least` at least."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=TOLERANCE * max(least, np.abs(e).max(initial=0)))


def check(net, values, wanted, shapes=True, **inputs):
    """Outputs stay, and these are the operators that are left."""
    proto = net.Proto() if isinstance(net, core.Net) else net
    before = proto.SerializeToString()
    init = init_net(values)
    expected = outputs(init, proto, **inputs)
    given = {n: v.shape for n, v in inputs.items()} if shapes else None
    new_init, new = optimize_nets(init, proto, given)
    assert proto.SerializeToString() == before
    assert sorted(op.type for op in new.op) == sorted(wanted)
    close(outputs(new_init, new, **inputs), expected)
    close(workspace.Predictor(init, proto).run(inputs), expected)
    for a, e in zip(workspace.Predictor(init, proto, optimize=False).run(inputs), expected):
        np.testing.assert_array_equal(a, e)
    return new


X = arrays(1, x=(2, 3, 6, 5))["x"]
CONV = dict(w=(4, 3, 3, 3), b=(4,))
BN = dict(s=(4,), t=(4,), m=(4,), v=(4,))


def conv_then(*ops, inputs=("x", "w", "b"), **args):
    net = core.Net("net")
    net.Conv(list(inputs), "y", **{"kernel": 3, "pad": 1} | args)
    for op, extra, op_args in ops:
        getattr(net, op)(["y", *extra], "y", **op_args)
    net.Proto().external_output.append("y")
    return net


# ---------------------------------------------------------------- folding

@pytest.mark.parametrize("op, extra, args, constant", [
    ("SpatialBN", ("s", "t", "m", "v"), dict(is_test=1, epsilon=1e-2), {}),
    ("Mul", ("c",), {}, dict(c=(4, 1, 1))),
    ("Mul", ("c",), {}, dict(c=(1, 4, 1, 1))),
    ("Mul", ("c",), dict(broadcast=1, axis=1), dict(c=(4,))),
    ("Add", ("c",), dict(broadcast=1, axis=1), dict(c=(4,))),
    ("Add", ("c",), {}, dict(c=(1,))),
    ("Sub", ("c",), {}, dict(c=(4, 1, 1))),
    ("Div", ("v",), {}, dict(v=(4, 1, 1))),
    ("Scale", (), dict(scale=0.3), {}),
])
@pytest.mark.parametrize("bias", [True, False])
def test_fold_after_convolution(op, extra, args, constant, bias):
    net = conv_then((op, extra, args), inputs=("x", "w", "b") if bias else ("x", "w"))
    check(net, arrays(2, **CONV | BN | constant), ["Conv"], x=X)


def test_fold_affine_channel():
    net = conv_then()
    net.Proto().op.add(type="AffineChannel", input=["y", "s", "t"], output=["y"])
    values = arrays(2, **CONV, s=(4,), t=(4,))
    new, parameters, folded = optimize(net.Proto(), values, values.get)
    parameters = {name: value for name, value, _ in parameters}
    op, = new.op
    s, t = values["s"].astype(float), values["t"].astype(float)
    np.testing.assert_array_equal(parameters[op.input[1]], (values["w"] * s[:, None, None, None]).astype(F))
    np.testing.assert_array_equal(parameters[op.input[2]], (values["b"] * s + t).astype(F))
    assert folded == {"w", "b", "s", "t"}


def test_fold_in_order_nhwc_and_groups():
    bn = ("SpatialBN", ("s", "t", "m", "v"), dict(is_test=1, order="NHWC"))
    check(conv_then(bn, order="NHWC"), arrays(3, w=(4, 3, 3, 3), b=(4,), **BN), ["Conv"],
          x=np.ascontiguousarray(X.transpose(0, 2, 3, 1)))
    bn = ("SpatialBN", ("s", "t", "m", "v"), dict(is_test=1))
    check(conv_then(bn, group=3), arrays(3, w=(3, 1, 3, 3), b=(3,), s=(3,), t=(3,), m=(3,), v=(3,)), ["Conv"], x=X)


def test_fold_chain_rounds_once():
    net = conv_then(("SpatialBN", ("s", "t", "m", "v"), dict(is_test=1)), ("Scale", (), dict(scale=1 / 3)),
                    ("Mul", ("c",), {}), ("Add", ("d",), {}))
    check(net, arrays(4, **CONV, **BN, c=(4, 1, 1), d=(4, 1, 1)), ["Conv"], x=X)


def test_fold_after_fc():
    net = core.Net("net")
    net.FC(["x", "w", "b"], "y")
    net.Mul(["y", "c"], "y")
    net.Add(["d", "y"], "z")
    net.Proto().external_output.append("z")
    check(net, arrays(5, w=(4, 90), b=(4,), c=(4,), d=(1, 4)), ["FC"], x=X)


@pytest.mark.parametrize("op, extra, args, constant", [
    ("Mul", ("c",), {}, dict(c=(5,))),                      # column by column
    ("Mul", ("c",), {}, dict(c=(2, 4, 6, 5))),
    ("SpatialBN", ("s", "t", "m", "v"), dict(is_test=1, order="NHWC"), dict(s=(5,), t=(5,), m=(5,), v=(5,))),
    ("Sub", ("c",), {}, dict(c=(1, 1, 1, 1), unused=(1,))),
])
def test_what_is_not_channel_by_channel_stays(op, extra, args, constant):
    net = conv_then((op, extra, args)) if op != "Sub" else core.Net("net")
    if op == "Sub":                                         # c - y is not y - c
        net.Conv(["x", "w", "b"], "y", kernel=3)
        net.Sub(["c", "y"], "y")
        net.Proto().external_output.append("y")
    check(net, arrays(6, **CONV | constant), ["Conv", op], x=X)


@pytest.mark.parametrize("bad", ["w", "s", "v"])
def test_values_that_are_not_finite_stay_apart(bad):
    values = arrays(7, **CONV, **BN)
    values[bad].ravel()[0] = np.nan if bad == "w" else np.inf if bad == "s" else -1
    net = conv_then(("SpatialBN", ("s", "t", "m", "v"), dict(is_test=1)))
    new = optimize_nets(init_net(values), net.Proto())[1]
    assert [op.type for op in new.op] == ["Conv", "SpatialBN"]


def test_overflow_of_folded_values_stays_apart():
    values = arrays(7, **CONV, **BN)
    values["w"][0] *= F(1e30)
    values["s"][0] = 1e20
    net = conv_then(("SpatialBN", ("s", "t", "m", "v"), dict(is_test=1)))
    assert len(optimize_nets(init_net(values), net.Proto())[1].op) == 2


def test_shared_filters_are_folded_apart():
    net = core.Net("net")
    for i in "12":
        net.Conv(["x", "w", "b"], "y" + i, kernel=3)
        net.SpatialBN(["y" + i, "s" + i, "t", "m", "v"], "z" + i, is_test=1)
    net.Conv(["x", "w", "b"], "plain", kernel=3)
    net.Proto().external_output.extend(["z1", "z2", "plain"])
    check(net, arrays(8, **CONV, s1=(4,), s2=(4,), t=(4,), m=(4,), v=(4,)), ["Conv"] * 3, x=X)


def test_outputs_that_are_asked_for_are_not_folded_away():
    net = core.Net("net")
    net.Conv(["x", "w", "b"], "y", kernel=3)
    net.SpatialBN(["y", "s", "t", "m", "v"], "z", is_test=1)
    net.Relu("z", "r")
    net.Proto().external_output.extend(["y", "r", "z"])
    check(net, arrays(9, **CONV, **BN), ["Conv", "SpatialBN", "Relu"], x=X)


def test_parameters_that_the_net_writes_are_not_constant():
    net = core.Net("net")
    net.Conv(["x", "w", "b"], "y", kernel=3)
    net.Mul(["y", "c"], "y")
    net.Scale("c", "c", scale=2.0)
    net.Proto().external_input.extend(["x", "w", "b", "c"])
    net.Proto().external_output.extend(["y", "c"])
    check(net, arrays(9, **CONV, c=(4, 1, 1)), ["Conv", "Mul", "Scale"], x=X)


# ---------------------------------------------------------------- fusing

@pytest.mark.parametrize("op, args", [("Relu", {}), ("Clip", dict(min=0.0, max=0.5)), ("Clip", dict(max=0.25))])
@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_fuse_activation(op, args, order):
    x = X if order == "NCHW" else np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    check(conv_then((op, (), args), order=order), arrays(10, **CONV), ["ConvFused"], x=x)


@pytest.mark.parametrize("add", ["Sum", "Add"])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_fuse_residual(add, swap, bias):
    net = core.Net("net")
    net.Conv(["x", "w", "b"] if bias else ["x", "w"], "y", kernel=3, pad=1)
    net.Sigmoid("x", "u")           # comes after the convolution that takes it
    pair = ["u", "y"] if swap else ["y", "u"]
    getattr(net, add)(pair, "z")
    net.Relu("z", "z")
    net.Proto().external_input.extend(["x", "w", "b"])
    net.Proto().external_output.append("z")
    check(net, arrays(11, w=(3, 3, 3, 3), b=(3,)), ["ConvFused", "Sigmoid"], x=X)


@pytest.mark.parametrize("add", ["Sum", "Add", None])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("axis", [1, 2])
def test_fuse_after_fc(add, swap, relu, axis):
    net = core.Net("net")
    net.FC(["x", "w", "b"], "y", axis=axis)
    net.FC(["x", "w2", "b"], "u", axis=axis)
    net.Sigmoid("u", "u")           # comes after the FC that takes it
    if add:
        getattr(net, add)(["u", "y"] if swap else ["y", "u"], "z")
    if relu:
        net.Relu("z" if add else "y", "z")
    net.Proto().external_output.extend(["z" if add or relu else "y"] + ([] if add else ["u"]))
    k = 90 if axis == 1 else 30
    values = arrays(12, w=(40, k), w2=(40, k), b=(40,))
    check(net, values, ["FC", "FCFused" if add or relu else "FC", "Sigmoid"], x=X)


def test_chain_of_residual_fcs():
    net = core.Net("net")
    net.FC(["data", "w0", "b0"], "x")
    for i in range(3):
        net.FC(["x", f"w{i}", f"b{i}"], "y")
        net.Relu("y", "y")
        net.FC(["y", f"v{i}", f"b{i}"], "z")
        net.Add(["x", "z"], "x")
        net.Relu("x", "x")
    net.FC(["x", "w0", "b0"], "y")
    net.Clip("y", "y", max=1.0)     # not into the FC
    net.Proto().external_output.append("y")
    values = arrays(13, **{f"{n}{i}": (50,) if n == "b" else (50, 50) for n in "wub" for i in range(3)})
    values = {n.replace("u", "v"): v / F(7) for n, v in values.items()}
    check(net, values, ["FCFused"] * 6 + ["FC", "FC", "Clip"], data=arrays(13, x=(5, 50))["x"])


def test_two_convolutions_and_their_sum():
    net = core.Net("net")
    for i in "12":
        net.Conv(["x", "w" + i, "b"], "y" + i, kernel=1)
        net.SpatialBN(["y" + i, "s", "t", "m", "v"], "y" + i, is_test=1)
    net.Sum(["y1", "y2"], "z")
    net.Relu("z", "z")
    net.Sum(["z", "z"], "twice")
    net.Proto().external_output.append("twice")
    check(net, arrays(12, w1=(4, 3, 1, 1), w2=(4, 3, 1, 1), b=(4,), **BN), ["Conv", "ConvFused", "Sum"], x=X)


def test_add_that_broadcasts_stays():
    net = conv_then(("Add", ("u",), {}))
    check(net, arrays(13, **CONV), ["Conv", "Add"], x=X, u=arrays(13, u=(1, 4, 6, 1))["u"])


def test_what_others_read_is_not_fused():
    net = core.Net("net")
    net.Conv(["x", "w", "b"], "y", kernel=3)
    net.Relu("y", "z")
    net.Sigmoid("y", "u")
    net.Proto().external_output.extend(["z", "u"])
    check(net, arrays(14, **CONV), ["Conv", "Relu", "Sigmoid"], x=X)


# ---------------------------------------------------------------- joining

BRANCHES = dict(w1=(16, 3, 1, 1), w2=(32, 3, 3, 3), w3=(5, 32, 1, 1), b1=(16,), b3=(5,))


def branches(outputs=("y",), **args):
    net = core.Net("net")
    net.Conv(["x", "w1", "b1"], "a", kernel=1)
    net.Relu("a", "a")
    net.Conv(["x", "w2"], "b", kernel=3, pad=1)
    net.Conv(["b", "w3", "b3"], "c", kernel=1)
    net.Conv(["x", "w2"], "d", kernel=3, pad=1)
    net.Concat(["d", "a", "c"], ["joined", "sizes"], **args or dict(axis=1))
    net.MaxPool("joined", "p", kernel=2)
    net.Softmax("p", "y")
    net.Proto().external_output.extend(outputs)
    return net


@pytest.mark.parametrize("shapes", [True, False])
@pytest.mark.parametrize("args", [dict(axis=1), dict(axis=-3), dict(order="NCHW"), {}])
def test_concat_of_convolutions(args, shapes):
    net, values = branches(**args), arrays(30, **BRANCHES)
    new = check(net, values, ["ConvFused"] * 3 + ["Conv", "MaxPool", "Softmax"], shapes, x=X)
    assert [[list(a.ints) or a.i for a in op.arg if a.name in ("parts", "part", "joins")]
            for op in new.op if op.type == "ConvFused"] == [[[32, 16, 5], i, j] for i, j in ((1, 0), (2, 1), (0, 1))]
    p = workspace.Predictor(init_net(values), net.Proto())
    for shape in ((2, 3, 6, 5), (5, 3, 9, 8), (1, 3, 4, 4), (1, 3, 6, 7), (0, 3, 6, 5)):
        x = arrays(31, x=shape)["x"]
        close(p.run(dict(x=x)), outputs(init_net(values), net.Proto(), x=x))


def test_joined_blobs_that_are_asked_for():
    check(branches(["joined", "y"]), arrays(30, **BRANCHES), ["ConvFused"] * 3 + ["Conv", "MaxPool", "Softmax"], x=X)


@pytest.mark.parametrize("why", ["part asked for", "sizes asked for", "axis", "graph", "uneven", "sum"])
def test_other_concats_stay(why):
    net = branches({"part asked for": ["d", "y"], "sizes asked for": ["sizes", "y"]}.get(why, ["y"]),
                   axis=1 if why != "axis" else 2)
    values = arrays(30, **BRANCHES)
    left = ["ConvFused", "Conv", "Conv", "Conv", "Concat", "MaxPool", "Softmax"]
    if why == "axis":
        values |= dict(w2=values["w2"][:16], w3=values["w3"][:, :16].repeat(4, 0)[:16], b3=values["b1"])
    elif why == "graph":
        net.Proto().type = "dag"
    elif why == "uneven":
        net.Proto().op[-3].input[:] = "dca"
    elif why == "sum":
        net.Proto().op[-3].input[:] = "dad"
    check(net, values, left if why != "sum" else ["ConvFused", "Conv", "Concat", "MaxPool", "Softmax"], x=X)


def test_parts_of_other_sizes_are_refused():
    net, values = branches(), arrays(30, **BRANCHES)
    net.Proto().op[4].arg[1].i = 0
    for optimized in (True, False):
        with pytest.raises(RuntimeError, match="must"):
            workspace.Predictor(init_net(values), net.Proto(), optimize=optimized).run(dict(x=X))


# ---------------------------------------------------------------- depthwise convolutions

SEPARABLE = dict(w=(24, 1, 3, 3), s=(24,), t=(24,), m=(24,), v=(24,), w2=(8, 24, 1, 1), b2=(8,))


def separable(outputs=("y",), depthwise=(), pixelwise=(), more=()):
    net = core.Net("net")
    net.Conv(["x", "w"], "d", **dict(kernel=3, pad=1, stride=2, group=24) | dict(depthwise))
    net.SpatialBN(["d", "s", "t", "m", "v"], "d", is_test=1)
    net.Clip("d", "d", min=0.0, max=6.0)
    net.Conv(["d", "w2", "b2"], "y", **dict(kernel=1) | dict(pixelwise))
    for op, inputs, output in more:
        getattr(net, op)(inputs, output)
    net.Proto().external_output.extend(outputs)
    return net


@pytest.mark.parametrize("shapes", [True, False])
@pytest.mark.parametrize("net_type", ["simple", "dag"])
@pytest.mark.parametrize("more", [[], [("Relu", "y", "y")], [("Sum", ["y", "r"], "y"), ("Relu", "y", "y")]])
def test_separable_convolution(more, net_type, shapes):
    net = separable(more=more)
    net.Proto().type = net_type
    given = arrays(40, x=(2, 24, 9, 8), r=(2, 8, 5, 4))
    new = check(net, arrays(41, **SEPARABLE), ["SeparableConv"], shapes,
                **{n: v for n, v in given.items() if n == "x" or len(more) == 2})
    op, = new.op
    assert list(op.input) == ["x", "w_folded", "w_bias_folded", "w2", "b2"] + ["r"] * (len(more) == 2)
    assert {a.name for a in op.arg} >= {"depthwise_kernel", "depthwise_group", "depthwise_high", "kernel"}
    p = workspace.Predictor(init_net(arrays(41, **SEPARABLE)), net.Proto())
    if len(more) < 2:
        for shape in ((2, 24, 9, 8), (300, 24, 9, 8), (1, 24, 2, 30), (0, 24, 6, 5)):
            x = arrays(42, x=shape)["x"]
            close(p.run(dict(x=x)), outputs(init_net(arrays(41, **SEPARABLE)), net.Proto(), x=x))


def test_wrong_arguments_after_a_depthwise_convolution():
    net, values = separable(pixelwise=dict(pads=[1, 2, 3])), arrays(41, **SEPARABLE)
    with pytest.raises(RuntimeError, match=r"pad needs 4 values.*operator Conv\("):
        workspace.Predictor(init_net(values), net.Proto()).run(dict(x=arrays(40, x=(2, 24, 9, 8))["x"]))


def test_separable_convolutions_in_a_row_share_memory():
    """MobileNet's blocks: what the residual adds to lives on."""
    net, values = core.Net("net"), {}
    for i in range(4):
        x = f"y{i - 1}" if i else "x"
        net.Conv([x, f"e{i}"], f"a{i}", kernel=1)
        net.Relu(f"a{i}", f"a{i}")
        net.Conv([f"a{i}", f"d{i}"], f"b{i}", kernel=3, pad=1, group=48)
        net.Relu(f"b{i}", f"b{i}")
        net.Conv([f"b{i}", f"p{i}"], f"c{i}", kernel=1)
        net.Sum([f"c{i}", x], f"y{i}")
        values |= arrays(i, **{f"e{i}": (48, 16, 1, 1), f"d{i}": (48, 1, 3, 3), f"p{i}": (16, 48, 1, 1)})
    net.Proto().external_output.append("y3")
    values = {n: v / F(3) for n, v in values.items()}
    new = check(net, values, ["ConvFused", "SeparableConv"] * 4, x=arrays(9, x=(2, 16, 7, 7))["x"])
    assert len({name for op in new.op for name in op.output}) == 3      # between, the sum, the answer
    shapes = {n: v.shape for n, v in values.items()} | {f"{n}{i}_bias": (m,) for i in range(4)
                                                       for n, m in (("e", 48), ("d", 48), ("p", 16))}
    assert divide(new, "x", shapes | {"x": (8, 16, 7, 7)}, 70000).parts > 1


@pytest.mark.parametrize("why, arguments, left", [
    ("asked for", dict(outputs=("d", "y")), 2),
    ("read twice", dict(more=[("Sigmoid", "d", "z")], outputs=("y", "z")), 3),
    ("not of pixels", dict(pixelwise=dict(stride=2)), 2),
    ("with a border", dict(pixelwise=dict(pad=1)), 2),
    ("groups", dict(depthwise=dict(group=12)), 2),
])
def test_other_convolutions_stay(why, arguments, left):
    values = arrays(43, **SEPARABLE)
    if why == "groups":
        values["w"] = arrays(44, w=(24, 2, 3, 3))["w"]
    net = separable(**arguments)
    wanted = ["ConvFused", "Conv", "Sigmoid"][:left]
    check(net, values, wanted, x=arrays(40, x=(2, 24, 9, 8))["x"])


# ---------------------------------------------------------------- leftovers, dead operators

def test_leftovers_of_training_go():
    net = core.Net("net")
    net.Copy("w", "w2")
    net.StopGradient("x", "x2")
    net.Conv(["x2", "w2", "b"], "y", kernel=3)
    net.Dropout("y", ["y", "mask"], is_test=1, ratio=0.9)
    net.Sigmoid("y", "unused")
    net.Softplus("unused", "unused2")
    net.Copy("y", "z")
    net.Sigmoid("y", "u")
    net.Proto().external_output.extend(["z", "u"])
    new = check(net, arrays(15, **CONV), ["Conv", "Sigmoid"], x=X)
    assert new.op[0].output == ["z"] and new.op[1].input == ["z"]


@pytest.mark.parametrize("read", [False, True])
def test_scale_of_normalization_goes_unless_read(read):
    net = core.Net("net")
    net.LRN("x", ["y", "scale"], size=3, alpha=0.5, beta=0.75)
    net.Proto().external_output.extend(["y", "scale"] if read else ["y"])
    new = check(net, {}, ["LRN"], x=X)
    assert new.op[0].output == (["y", "scale"] if read else ["y"])


def test_copies_of_inputs_and_between_outputs_stay():
    net = core.Net("net")
    net.Copy("x", "y")
    net.Sigmoid("x", "u")
    net.Copy("u", "z")
    net.Proto().external_output.extend(["y", "u", "z"])
    check(net, {}, ["Copy", "Copy", "Sigmoid"], x=X)


def test_copy_of_what_changes_stays():
    net = core.Net("net")
    net.Copy("x", "old")
    net.Scale("x", "x", scale=2.0)
    net.Sub(["x", "old"], "y")
    net.Proto().external_input.append("x")
    net.Proto().external_output.append("y")
    check(net, {}, ["Copy", "Scale", "Sub"], x=X)


def test_dropout_in_training_stays():
    net = core.Net("net")
    net.Dropout("x", ["y", "mask"], ratio=0.5)
    net.Proto().external_output.append("y")
    assert len(optimize_nets(init_net({}), net.Proto())[1].op) == 1


def test_effects_stay():
    net = core.Net("net")
    net.Iter("iteration", "iteration")
    net.Relu("x", "y")
    net.Proto().external_input.extend(["iteration", "x"])
    net.Proto().external_output.append("y")
    init, new = optimize_nets(init_net({"iteration": np.array([5])}), net.Proto())
    assert [op.type for op in new.op] == ["Iter", "Relu"]
    ws = workspace.C.Workspace()
    ws.run(init)
    ws.feed_blob("x", X)
    for expected in (6, 7):
        ws.run(new)
        assert ws.fetch_blob("iteration") == expected


def test_nested_nets_keep_their_blobs():
    inner = caffe2_pb2.NetDef(op=[core.CreateOperator("Relu", ["y"], ["inner"])])
    net = core.Net("net")
    net.Conv(["x", "w", "b"], "y", kernel=3)
    net.Relu("y", "z")
    op = net.Proto().op.add(type="If", input=["condition"], output=["z"])
    op.arg.add(name="then_net").n.CopyFrom(inner)
    net.Proto().external_output.append("z")
    values = arrays(16, **CONV)
    new, _, _ = optimize(net.Proto(), values, values.get)
    assert [(o.type, list(o.output)) for o in new.op] == [("Conv", ["y"]), ("Relu", ["z"]), ("If", ["z"])]


def test_without_declared_outputs_what_nobody_reads_counts():
    net = core.Net("net")
    net.Relu("x", "a")
    net.Sigmoid("a", "b")
    new = optimize_nets(init_net({}), net.Proto())[1]
    assert new.op[1].output == ["b"]


# ---------------------------------------------------------------- memory

def test_blobs_share_memory():
    net = core.Net("net")
    for i in range(10):
        net.Softmax(f"x{i}", f"x{i + 1}")           # does not run in place
    net.Proto().external_output.append("x10")
    x = arrays(17, x=(3, 4))["x"]
    new = check(net, {}, ["Softmax"] * 10, x0=x)
    assert len({n for op in new.op for n in op.output}) == 3      # two that take turns, and the output


def test_large_blobs_choose_first():
    net = core.Net("net")
    net.ReduceSum("x", "a", axes=[1], keepdims=0)
    net.Tile("a", "b", tiles=100, axis=1)
    net.Softmax("b", "c")
    net.Softmax("c", "d")
    net.ReduceSum("d", "e", axes=[1], keepdims=1)
    net.Softmax("e", "f")
    net.Proto().external_output.append("f")
    new = check(net, {}, ["ReduceSum", "Tile", "Softmax", "Softmax", "ReduceSum", "Softmax"],
                x=arrays(18, x=(3, 5, 2))["x"])
    a, b, c, d, e, _ = (op.output[0] for op in new.op)
    assert b == d != c and a == c and e in (b, c)


def largest_clipped(init, net, inputs):
    """The largest value that a Clip of the net reads, and hides: its rounding is still there."""
    ws, value = workspace.C.Workspace(), 1
    ws.run(init)
    for name, array in inputs.items():
        ws.feed_blob(name, array)
    for op in net.Proto().op:
        if op.type == "Clip":
            value = max(value, np.abs(ws.fetch_blob(op.input[0])).max(initial=0))
        ws.run(caffe2_pb2.NetDef(op=[op]))
    return value


@given(st.data())
def test_random_nets(data):
    """Any net of convolutions and what may follow them, in place or not, gives the same."""
    net, blobs = core.Net("net"), ["x"]
    n = data.draw(st.sampled_from([3, 16]))
    shapes = dict(w1=(n, n, 1, 1), w2=(n, 2 * n, 1, 1), w3=(n, n, 3, 3), wd=(n, 1, 3, 3), c=(n, 1, 1))
    shapes |= dict.fromkeys("bstmv", (n,))
    for i in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(
            ["conv1", "conv3", "depthwise", "bn", "relu", "clip", "sum", "mul", "add", "dropout", "copy", "pool",
             "concat"]))
        x = data.draw(st.sampled_from(blobs[-3:]))
        y = x if x != "x" and data.draw(st.booleans()) else f"y{i}"
        fresh = f"y{i}"
        if kind == "conv1":
            net.Conv([x, "w1", "b"], fresh, kernel=1)
        elif kind == "conv3":
            net.Conv([x, "w3"], fresh, kernel=3, pad=1)
        elif kind == "depthwise":
            net.Conv([x, "wd", "b"], fresh, kernel=3, pad=1, group=n)
        elif kind == "bn":
            net.SpatialBN([x, "s", "t", "m", "v"], y, is_test=1)
        elif kind == "relu":
            net.Relu(x, y)
        elif kind == "clip":
            net.Clip(x, y, min=0.0, max=6.0)
        elif kind in ("sum", "add"):
            other = data.draw(st.sampled_from(blobs))
            getattr(net, kind.capitalize())([x, other], y if y != other else fresh)
        elif kind == "mul":
            net.Mul([x, "c"], y)
        elif kind == "dropout":
            net.Dropout(x, [y, f"mask{i}"], is_test=1)
        elif kind == "copy":
            net.Copy(x, y)
        elif kind == "concat":
            net.Concat([x, data.draw(st.sampled_from(blobs))], [f"joined{i}", f"sizes{i}"], axis=1)
            net.Conv([f"joined{i}", "w2"], fresh, kernel=1)
        else:
            net.MaxPool(x, fresh, kernel=3, pad=1)
        last = net.Proto().op[-1].output[0]
        if last not in blobs:
            blobs.append(last)
    wanted = set(data.draw(st.lists(st.sampled_from(blobs[1:]), min_size=1, max_size=3)))
    net.Proto().external_output.extend(sorted(wanted))
    init, values = init_net(arrays(19, **shapes)), arrays(1, x=(2, n, 6, 5))
    expected, least = outputs(init, net.Proto(), **values), largest_clipped(init, net, values)
    for known in (None, {"x": values["x"].shape}):
        close(outputs(*optimize_nets(init, net.Proto(), known), **values), expected, least)
    p = workspace.Predictor(init, net.Proto())
    close(p.run(values), expected, least)
    other = dict(x=arrays(20, x=(1, n, 4, 4))["x"])
    close(p.run(other), outputs(init, net.Proto(), **other), largest_clipped(init, net, other))


# ---------------------------------------------------------------- Predictor

def bn_model():
    net = conv_then(("SpatialBN", ("s", "t", "m", "v"), dict(is_test=1)))
    net.Proto().external_input.extend(["x", "w", "b", "s", "t", "m", "v"])
    return init_net(arrays(21, **CONV, **BN)), net.Proto()


def test_parameters_may_be_given_from_the_first_run_on():
    init, net = bn_model()
    s = arrays(22, s=(4,))["s"]
    plain, optimized = (workspace.Predictor(init, net, optimize=o) for o in (False, True))
    for inputs in (dict(x=X, s=s), dict(x=X, s=2 * s), [X]):
        close(optimized.run(inputs), plain.run(inputs))


def test_folded_parameters_cannot_be_given_later():
    p = workspace.Predictor(*bn_model())
    expected, = p.run([X])
    with pytest.raises(RuntimeError, match="'s' went into other parameters.*optimize=False"):
        p.run(dict(s=np.ones(4, F)))
    np.testing.assert_array_equal(p.run([X])[0], expected)


def test_a_failed_first_run_can_be_repeated():
    init, net = bn_model()
    p = workspace.Predictor(init, net)
    with pytest.raises(RuntimeError, match="x"):
        p.run([])
    with pytest.raises(RuntimeError):
        p.run([X[:, :2]])
    close(p.run([X]), outputs(init, net, x=X))


def test_blobs_of_the_surrounding_workspace_are_not_constant():
    workspace.ResetWorkspace()
    values = arrays(23, **CONV, **BN)
    for name, value in values.items():
        workspace.FeedBlob(name, value)
    net = bn_model()[1]
    p = workspace.Predictor(init_net({}), net)
    close(p.run([X]), outputs(init_net(values), net, x=X))
    values["s"] = 2 * values["s"]
    workspace.FeedBlob("s", values["s"])
    close(p.run([X]), outputs(init_net(values), net, x=X))


@pytest.mark.parametrize("limit", [48 << 20, 9 << 10])     # whole, in parts
def test_calls_from_several_threads_take_turns(limit, monkeypatch):
    monkeypatch.setattr(predictor, "BATCH_MEMORY", limit)
    p = workspace.Predictor(*bn_model())
    images = [arrays(50 + i, x=(2 + i, *X.shape[1:]))["x"] for i in range(3)]
    expected = [p.run([x])[0] for x in images]
    with ThreadPoolExecutor(3) as pool:
        for i, (y,) in enumerate(pool.map(lambda i: p.run([images[i % 3]]), range(600))):
            np.testing.assert_array_equal(y, expected[i % 3])


def test_inputs_are_checked_in_later_runs_too():
    p = workspace.Predictor(*bn_model())
    expected, = p.run([X])
    with pytest.raises(RuntimeError, match="'nobody' is not an input of net"):
        p.run(dict(nobody=X))
    with pytest.raises(RuntimeError, match="takes .* inputs, not 30"):
        p.run([X] * 30)
    for same in (X.tolist(), np.asfortranarray(X), X[::-1, :, ::-1][::-1, :, ::-1]):
        values = np.asarray(same, F)
        np.testing.assert_array_equal(p.run([values])[0], expected)
    with pytest.raises(RuntimeError, match="Conv"):
        p.run([X.astype(np.float64)])
    np.testing.assert_array_equal(p.run([X])[0], expected)
    np.testing.assert_array_equal(p.run([])[0], expected)


def test_large_batches_go_in_parts():
    init, net = bn_model()
    rng = np.random.default_rng(24)
    p, plain = workspace.Predictor(init, net), workspace.Predictor(init, net, optimize=False)
    for shape in ((3, 3, 8, 8), (9, 3, 700, 800), (2, 3, 8, 8)):
        x = rng.standard_normal(shape, dtype=F)
        close(p.run([x]), plain.run([x]))
    assert p.divide("x", (9, 3, 700, 800))[0] == Division(6)       # 141 MB
    for limit, parts in ((9 * 7 * 8 * 8 * 4, 1), (9 * 7 * 8 * 8 * 4 - 1, 2)):
        assert divide(net, "x", dict(x=(9, 3, 8, 8), w=(4, 3, 3, 3), b=(4,), **BN), limit).parts == parts


def shrinking_net(joined=(), op="Sigmoid"):
    """Blobs of 4, 4, 1 and 0.25 values for each of the input's, and most parameters at the end."""
    net = core.Net("net")
    net.Conv(["x", "w", "b"], "a", kernel=3, pad=1)
    getattr(net, op)("a", "b1")
    net.MaxPool("b1", "c", kernel=2, stride=2)
    getattr(net, op)("c", "d")
    net.Sum(["c", "d"], "e")
    net.FC(["e", "fw", "fb"], "y")
    net.Proto().external_output.extend([*joined, "y"])
    shapes = dict(w=(16, 4, 3, 3), b=(16,), fw=(8, 16 * 4 * 4), fb=(8,))
    return net.Proto(), shapes


@pytest.mark.parametrize("limit, wanted", [
    (200000, Division()),
    (128 << 10, Division(1, 3, 3, ("c",))),     # 64 KB for c, d, e and y, and for a third of x, a, b1 and c
    (64 << 10, Division(1, 5, 6, ("e",))),
    (32 << 10, Division(2, 5, 6, ("e",))),
])
def test_division(limit, wanted):
    net, shapes = shrinking_net()
    assert divide(net, "x", dict(x=(16, 4, 8, 8), **shapes), limit) == wanted


@pytest.mark.parametrize("joined", [(), ("b1",), ("c", "d")])
@pytest.mark.parametrize("net_type", ["simple", "dag"])
@pytest.mark.parametrize("op", ["Sigmoid", "Relu"])         # the latter keeps the blocked layout
def test_rows_meet_again(joined, net_type, op, monkeypatch):
    net, shapes = shrinking_net(joined, op)
    net.type = net_type
    init = init_net(arrays(25, **shapes))
    p, plain = workspace.Predictor(init, net), workspace.Predictor(init, net, optimize=False)
    seen = set()
    for limit in (1 << 20, 64 << 10, 20 << 10, 9 << 10, 1 << 10, 1):
        monkeypatch.setattr(predictor, "BATCH_MEMORY", limit)
        for batch in (16, 7, 0, 1, 16):
            x = arrays(batch, x=(batch, 4, 8, 8))["x"]
            close(p.run([x]), plain.run([x]))
            seen.add(p.divide("x", x.shape)[0])
    assert (max(d.groups for d in seen) > 1) == (net_type == "simple") and max(d.parts for d in seen) > 1


@pytest.mark.parametrize("op, args", [
    ("Softmax", dict(axis=0)), ("ReduceSum", dict(axes=[0])), ("SpatialBN", {}), ("Transpose", {}),
])
def test_batches_whose_images_meet_stay_whole(op, args):
    net = core.Net("net")
    getattr(net, op)(["x", "s", "t", "m", "v"] if op == "SpatialBN" else "x", "y", **args)
    net.Proto().external_output.append("y")
    assert divide(net.Proto(), "x", dict(x=(4, 4, 4, 4), **BN), 1) == Division()


def test_rows_that_meet_constants_stay_whole():
    net = core.Net("net")
    net.Sum(["x", "c"], "y")
    net.Proto().external_output.append("y")
    assert divide(net.Proto(), "x", dict(x=(4, 4), c=(4, 4)), 1) == Division()
    net = core.Net("net")
    net.Relu("c", "y")
    net.Proto().external_output.append("y")
    assert divide(net.Proto(), "x", dict(x=(4, 4), c=(4, 4)), 1) == Division()


def test_corrupt_init_nets():
    init, net = (n.SerializeToString() for n in bn_model())
    expected = workspace.Predictor(init, net, optimize=False).run([X])
    close(workspace.Predictor(init, net).run([X]), expected)
    for bad in (init[:-1], init[:len(init) // 2], init + b"\x12", b"\xff" * 20):
        with pytest.raises(RuntimeError):
            workspace.Predictor(bad, net)


# ---------------------------------------------------------------- fills

@given(st.sampled_from(["float32", "float64", "int32", "int64", "bool"]), st.lists(st.integers(0, 3), max_size=3))
def test_fill(dtype, shape):
    value = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    ws = workspace.C.Workspace()
    ws.run(init_net({"x": value}))
    result = ws.fetch_blob("x")
    assert result.dtype == value.dtype
    np.testing.assert_array_equal(result, value)


def test_fill_of_an_unknown_type():
    with pytest.raises(TypeError, match="no operator fills x"):
        fill("x", np.zeros(1, complex))

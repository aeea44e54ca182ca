import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from caffe2.proto import caffe2_pb2
from caffe2.python import brew, core, memonger, model_helper, workspace
from caffe2.python.memonger import AssignmentAlgorithm, LiveRange

F = np.float32
rng = np.random.default_rng(0)


def blobs(net):
    return {b for op in net.op for b in (*op.input, *op.output)}


@pytest.fixture(autouse=True)
def fresh():
    workspace.ResetWorkspace()


def classifier(layers, scope="", branch=False):
    """Fully connected layers with one loss, or two; and the gradients."""
    m = model_helper.ModelHelper()
    with core.NameScope(scope.rstrip("/")) if scope else core.NameScope(""):
        x = "data"
        for i in range(layers):
            x = brew.fc(m, x, f"fc{i}", 4, 4)
        losses = [x.Relu([], x).Softmax([], "pred").LabelCrossEntropy(["label"], "xent").AveragedLoss([], "loss")]
        if branch:
            y = brew.fc(m, x, "side", 4, 4)
            losses.append(y.Relu([], y).Softmax([], "pred2").LabelCrossEntropy(["label"], "xent2")
                          .AveragedLoss([], "loss2"))
    grads = m.AddGradientOperators(losses)
    workspace.RunNetOnce(m.param_init_net)
    workspace.FeedBlob(scope + "data", rng.standard_normal((3, 4)).astype(F))
    workspace.FeedBlob(scope + "label", np.array([0, 3, 1], np.int32))
    return m, grads, [str(b) for b in losses]


def static(m, *names):
    return [b for op in m.param_init_net.Proto().op for b in op.output] + ["data", "label", *map(str, names)]


def values(net, *names):
    for name in names:
        workspace.FeedBlob(name, np.zeros(1, F))
    workspace.RunNetOnce(net)
    return [workspace.FetchBlob(n) for n in names]


def same(net, optimized, *names):
    names = [str(n) for n in names]
    for a, b in zip(values(net, *names), values(optimized, *names)):
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------- live ranges


@pytest.mark.parametrize("algo", AssignmentAlgorithm)
@pytest.mark.parametrize("sizes", [False, True])
@pytest.mark.parametrize("order", [
    memonger.topological_sort_traversal, memonger.topological_sort_traversal_longest_path])
def test_optimize_interference(algo, sizes, order):
    m, grads, (loss,) = classifier(3)
    workspace.RunNetOnce(m.net)
    before = m.Proto().SerializeToString()
    o = memonger.optimize_interference(
        m.Proto(), static(m, loss, grads["fc0_w"]), order, memonger.collect_blob_sizes(m.Proto()) if sizes else None,
        algo)
    assert m.Proto().SerializeToString() == before
    same(m.net, o.net, loss, grads["fc0_w"])
    memonger.verify_assignments(o.assignments)
    statistics = memonger.compute_statistics(o.assignments)
    assert statistics.optimized_nbytes < statistics.baseline_nbytes
    assert len(blobs(o.net)) < len(blobs(m.Proto()))
    assert set(o.blob_assignments.values()) <= blobs(o.net)


def test_memory_is_sized_by_the_largest():
    ranges = [("a", LiveRange(1, 3, 10)), ("b", LiveRange(3, 4, 1)), ("c", LiveRange(5, 6, 1)),
              ("d", LiveRange(5, 7, 10))]
    greedy = memonger.compute_assignments_greedy(ranges)
    assert [[name for name, _ in a] for a in greedy] == [["a", "d"], ["b", "c"]]
    assert memonger.get_memory_usage(greedy) == 11
    assert memonger.get_memory_usage(memonger.compute_assignments_dp(ranges, None)) == 11


def least_memory(ranges):
    """By trying all assignments."""
    def rest(i, places):
        if i == len(ranges):
            return sum(max(s for _, s in p) for p in places)
        _, r = ranges[i]
        results = [rest(i + 1, [*places, [(r.used, r.size)]])]
        for k, p in enumerate(places):
            if p[-1][0] < r.defined:
                results.append(rest(i + 1, [*places[:k], [*p, (r.used, r.size)], *places[k + 1:]]))
        return min(results)

    ranges = sorted(ranges, key=lambda p: p[1].defined)
    return rest(0, [])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=6))
def test_dynamic_programming_finds_the_least_memory(items):
    ranges = sorted(((f"b{i}", LiveRange(start, start + n, size)) for i, (start, n, size) in enumerate(items)),
                    key=lambda p: p[1].used)
    best = memonger.compute_assignments_dp(ranges, [])
    assert sorted(name for a in best for name, _ in a) == sorted(name for name, _ in ranges)
    memonger.verify_assignments(best)
    assert memonger.get_memory_usage(best) == least_memory(ranges)
    greedy = memonger.compute_assignments_greedy(sorted(ranges, key=lambda p: p[1].used))
    memonger.verify_assignments(greedy)


def test_ranges():
    net = core.Net("net")
    net.Relu("a", "b")
    net.Sum(["a", "b"], "c")
    net.Relu("b", "b")
    r = memonger.compute_ranges(net.Proto().op, dict(a=1, b=2, c=3))
    assert r == {"a": (None, 1, 1), "b": (0, 2, 2), "c": (1, None, 3)}
    assert memonger.get_updated_ranges(list(r.items())) == [
        ("a", (-1, 1, 1)), ("b", (0, 2, 2)), ("c", (1, 3, 3))]
    with pytest.raises(ValueError, match="Invalid algo"):
        memonger.compute_assignments(r, [], "greedy")
    with pytest.raises(AssertionError, match="a and b"):
        memonger.verify_assignments([[("a", LiveRange(0, 2, 1)), ("b", LiveRange(2, 3, 1))]])


def test_interference_graph():
    net = core.Net("net")
    for _ in range(3):
        net.Copy("a", "a")
    g = memonger.compute_interference_graph(net.Proto().op)
    assert sorted(g.edges) == [(0, 1), (0, 2), (1, 2)]
    assert g.edges[0, 1]["deps"] == {"a"}
    net = core.Net("net")
    net.Relu("x", "y")
    net.Sigmoid("z", "x")           # may not overtake
    assert list(memonger.compute_interference_graph(net.Proto().op).edges) == [(0, 1)]


def test_longest_path_goes_first():
    m = model_helper.ModelHelper()
    m.Copy("late", "w2")                            # 0
    m.Copy("early", "w1")                           # 1
    m.net.Conv(["data", "w1"], "conv1", kernel=1)   # 2
    m.net.Conv(["conv1", "w2"], "conv2", kernel=1)  # 3
    g = memonger.compute_interference_graph(m.net.Proto().op)
    assert sorted(memonger.topological_sort_traversal(g)) == [0, 1, 2, 3]
    assert memonger.topological_sort_traversal_longest_path(g) == [1, 2, 0, 3]
    one = memonger.compute_interference_graph(m.net.Proto().op[:1])
    assert memonger.topological_sort_traversal_longest_path(one) == [0]


# ---------------------------------------------------------------- one after the other


def test_optimize_inference_fast():
    m, grads, (loss,) = classifier(3)
    optimized = memonger.optimize_inference_fast(m.Proto(), static(m, loss, grads["fc0_w"]))
    assert len(blobs(optimized)) < len(blobs(m.Proto()))
    same(m.net, optimized, loss, grads["fc0_w"])
    assert memonger.optimize_inference_fast(optimized, []) is optimized


def test_inputs_that_are_read_twice_are_freed_once():
    m = model_helper.ModelHelper()
    results = []
    for i in range(4):
        x = m.net.Relu("data", f"r{i}")
        results.append(m.net.Sum([x, x], f"s{i}"))
    m.net.Sum(results, "sum")
    optimized = memonger.optimize_inference_fast(m.Proto(), ["data", "sum"])
    workspace.FeedBlob("data", rng.standard_normal((2, 3)).astype(F))
    same(m.net, optimized, "sum")


def test_nets_that_run_in_parallel_stay():
    m, *_ = classifier(2)
    m.Proto().type = "dag"
    assert memonger.optimize_inference_fast(m.Proto(), []) is m.Proto()


# ---------------------------------------------------------------- in any order


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("activations", [False, True])
@pytest.mark.parametrize("shapes", [False, True])
def test_share_grad_blobs(branch, activations, shapes):
    m, grads, losses = classifier(5, "scope/", branch)
    kept = grads["scope/fc0_w"]
    known = {b: (12,) for b in blobs(m.net.Proto())} if shapes else None
    optimized = memonger.share_grad_blobs(
        m.net, losses, set(m.param_to_grad.values()), "scope", {str(kept)}, activations, known)
    assert len(blobs(optimized)) < len(blobs(m.net.Proto()))
    assert memonger.verify_graph_equality(m.net.Proto(), optimized)
    assert memonger.verify_inplace_blobs(m.net.Proto(), optimized)
    assert "scope/fc4" in blobs(optimized)          # the last activation
    names = [*losses, *(m.param_to_grad[p] for p in m.params if p in m.param_to_grad)]
    same(m.net, optimized, *names)
    optimized.type = "dag"
    optimized.name = "parallel"
    same(m.net, optimized, *names)


def test_activations_make_room_for_gradients():
    m, grads, losses = classifier(6, "scope/")
    # one activation is as large as a gradient, the others are smaller
    shapes = {b: (1,) for b in blobs(m.net.Proto())} | {"scope/fc3": (50,), "scope/fc1_grad": (50,)}
    optimized = memonger.share_grad_blobs(
        m.net, losses, set(m.param_to_grad.values()), "scope", share_activations=True, blob_shapes=shapes)
    assert "scope/fc1_grad" not in blobs(optimized)
    writers = [op.type for op in optimized.op if "scope/fc3" in op.output]
    assert writers == ["FC", "FCGradient"]
    same(m.net, optimized, *losses)


def test_devices_do_not_share():
    m, _, losses = classifier(6, "scope/")
    proto = m.net.Proto()
    for op in proto.op[len(proto.op) // 2:]:
        op.device_option.CopyFrom(core.DeviceOption(caffe2_pb2.CUDA, 0))
    half = {b for op in proto.op[:len(proto.op) // 2] for b in op.output}
    optimized = memonger.share_grad_blobs(m.net, losses, set(m.param_to_grad.values()), "scope",
                                          share_activations=True)
    for before, after in zip(proto.op, optimized.op):
        for a, b in zip(before.output, after.output):
            assert a == b or a not in half or not b.endswith("_grad")


def test_optimize_inference_for_dag():
    m = model_helper.ModelHelper()
    with core.NameScope("scope"):
        x = brew.fc(m, "data", "fc0", 4, 4)
        ends = []
        for side in "ab":
            y = x
            for i in range(4):
                y = brew.fc(m, y, f"{side}{i}", 4, 4)
            ends.append(y)
        brew.sum(m, ends, "sum")
    m.net.Proto().external_input.append("scope/data")
    m.net.Proto().external_output.append("scope/sum")
    workspace.RunNetOnce(m.param_init_net)
    workspace.FeedBlob("scope/data", rng.standard_normal((3, 4)).astype(F))
    optimized = memonger.optimize_inference_for_dag(m.net, ["scope/data"], "scope/")
    assert len(blobs(optimized)) < len(blobs(m.net.Proto()))
    same(m.net, optimized, "scope/sum")
    for name, net in (("a", optimized), ("b", memonger.optimize_inference_for_dag(
            m.net, ["scope/data", "scope/fc0_w"], "scope/"))):
        net.name, net.type = name, "dag"
        same(m.net, net, "scope/sum")
    # neither branch uses what the other one may still need
    sides = {side: {b for op, o in zip(m.net.Proto().op, optimized.op) for a, b in zip(op.output, o.output)
                    if a.startswith("scope/" + side)} for side in "ab"}
    assert not sides["a"] & sides["b"]


def test_optimize_inference_for_dag_refuses():
    net = core.Net("net")
    net.Proto().op.append(core.CreateOperator("Relu", ["x"], ["y"]))
    with pytest.raises(AssertionError, match="x not in external input"):
        memonger.optimize_inference_for_dag(net, ["x"])
    m, *_ = classifier(1)
    with pytest.raises(AssertionError, match="inference-only"):
        memonger.optimize_inference_for_dag(m.net, ["data"])


def test_verify_graph_equality():
    def net(*names, last="Relu"):
        n = core.Net("net")
        x = n.Relu("data", names[0])
        n.Relu(x, names[1])
        n.Relu(x, names[2])
        getattr(n, last)(names[2], "out")
        return n.Proto()

    assert memonger.verify_graph_equality(net("a", "b", "c"), net("x", "y", "z"))
    assert not memonger.verify_graph_equality(net("a", "b", "c"), net("a", "b", "c", last="Sigmoid"))
    assert not memonger.verify_graph_equality(net("a", "b", "c"), net("a", "a", "c"))
    assert memonger.verify_inplace_blobs(net("a", "b", "c"), net("x", "y", "z"))
    assert not memonger.verify_inplace_blobs(net("a", "b", "c"), net("a", "a", "c"))


def test_recurrent_nets_are_told_the_new_names():
    net = caffe2_pb2.NetDef()
    op = net.op.add(type="RecurrentNetwork", input=["x"], output=["y"])
    step = op.arg.add(name="step_net").n
    step.external_input.append("x")
    step.op.add(type="Relu", input=["x"], output=["t"])
    memonger.apply_assignments(net, {"x": "shared", "other": "shared"})
    assert list(op.input) == ["shared"] == list(step.op[0].input) == list(step.external_input)
    assert {a.name: a.s for a in op.arg if a.s} == {"x.rename": b"shared"}


# ---------------------------------------------------------------- memory during a run


def test_release_blobs_when_used():
    net = core.Net("net")
    net.Relu("data", "a")
    net.Relu("a", "b")
    net.Relu("a", "c")
    net.Relu("b", "d")
    net.Alias("d", "d_alias")
    net.Sum(["c", "d"], "out")
    net.Relu("b", "kept")
    net.Proto().external_output.append("kept")
    freed = memonger.release_blobs_when_used(net.Proto(), {"data"})
    assert [(op.type, op.output[0]) for op in freed.op if op.type in ("Relu", "Free", "Sum")] == [
        ("Relu", "a"), ("Relu", "b"), ("Relu", "c"), ("Free", "a"), ("Relu", "d"), ("Sum", "out"), ("Free", "c"),
        ("Relu", "kept"), ("Free", "b")]
    workspace.FeedBlob("data", rng.standard_normal(3).astype(F))
    same(net, freed, "out", "kept")
    some = memonger.release_blobs_when_used(net.Proto(), {"c"}, lambda b: b != "a")
    assert [op.output[0] for op in some.op if op.type == "Free"] == ["b"]


def test_estimate_memory_usage():
    net = core.Net("net")
    net.Relu("data", "a")
    net.Relu("a", "b")
    net.Free("a", "a")
    net.Sigmoid("b", "c")
    with core.DeviceScope(core.DeviceOption(caffe2_pb2.CUDA, 0)):
        net.Relu("c", "elsewhere")
    shapes = dict(a=(2, 5), b=(10,), c=(3,))
    types = dict.fromkeys("ab", caffe2_pb2.TensorProto.FLOAT) | {"c": caffe2_pb2.TensorProto.INT64}
    total, highest, by_type = memonger.estimate_memory_usage(
        [net.Proto()], shapes, types, caffe2_pb2.DeviceOption())
    assert (total, highest, dict(by_type)) == (104, 80, {"Relu": 80, "Sigmoid": 24})
    assert [op.type for op in net.Proto().op].count("Relu") == 3


def test_blob_nbytes():
    workspace.FeedBlob("x", np.zeros((2, 3), F))
    assert memonger.blob_nbytes("x") == 24
    assert memonger.blob_nbytes("missing") == 0


def test_by_the_names_of_the_extension():
    c, net = workspace.C, core.Net("net")
    for i in range(5):
        net.Softmax(f"x{i}", f"x{i + 1}")
    data = net.Proto().SerializeToString()
    inner = {f"x{i}".encode() for i in range(1, 5)}
    for result in (c.memonger_optimize_inference_net(data, [b"x0", b"x5"]),
                   c.memonger_compute_blob_recycling_for_dag(data, [b"x0"], range(5), inner, b"", set(), {})):
        shared = caffe2_pb2.NetDef.FromString(result)
        assert len(blobs(shared)) == 4 and {"x0", "x5"} < blobs(shared)
        assert memonger.verify_graph_equality(net.Proto(), shared)

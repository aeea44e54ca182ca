"""Drawings of nets and plans."""
import builtins
import json
import logging
import sys

import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import core, net_drawer


@pytest.fixture
def net():
    net = core.Net("drawn: net")
    net.FC(["x", "w", "b"], "y")
    net.Relu("y", "y", name="first")
    net.Softmax("y", "z")
    return net


def edges(graph):
    """Pairs of labels."""
    labels = {n.get_name(): json.loads(n.get("label") or n.get_name()) for n in graph.get_nodes()}
    return sorted((labels[e.get_source()], labels[e.get_destination()])
                  for e in graph.get_edges())


def test_graph(net):
    graph = net_drawer.GetPydotGraph(net)
    assert edges(graph) == [
        ("FC (op#0)", "y"), ("Softmax (op#2)", "z"), ("b", "FC (op#0)"),
        ("first/Relu (op#1)", "y"), ("w", "FC (op#0)"), ("x", "FC (op#0)"),
        ("y", "Softmax (op#2)"), ("y", "first/Relu (op#1)")]
    # the overwritten blob is drawn twice
    assert len(graph.get_nodes()) == 3 + 6
    assert json.loads(graph.get_name()) == net.Name()
    assert "rankdir=LR" in graph.to_string()
    by_list = net_drawer.GetPydotGraph(list(net.Proto().op), "list", rankdir="TB")
    assert edges(by_list) == edges(graph)
    assert by_list.get_name() == '"list"' and by_list.get_rankdir() == "TB"


def test_styles(net):
    graph = net_drawer.GetPydotGraph(
        net.Proto(), op_node_producer=net_drawer.GetOpNodeProducer(True, shape="circle"),
        blob_node_producer=net_drawer.GetBlobNodeProducer(shape="plain"))
    shapes = {json.loads(n.get("label") or n.get_name()): n.get_shape()
              for n in graph.get_nodes()}
    assert shapes == {"FC (op#0)\ny": "circle", "first/Relu (op#1)\ny": "circle",
                      "Softmax (op#2)\nz": "circle", "x": "plain", "w": "plain", "b": "plain",
                      "y": "plain", "z": "plain"}


@pytest.mark.parametrize("minimal, expected", [
    (False, [("Relu (op#0)", "Add (op#2)"), ("Relu (op#0)", "Sigmoid (op#1)"),
             ("Sigmoid (op#1)", "Add (op#2)")]),
    (True, [("Relu (op#0)", "Sigmoid (op#1)"), ("Sigmoid (op#1)", "Add (op#2)")]),
])
def test_minimal(minimal, expected):
    ops = [caffe2_pb2.OperatorDef(type=t, input=i, output=o) for t, i, o in (
        ("Relu", ["x"], ["a"]), ("Sigmoid", ["a"], ["b"]), ("Add", ["a", "b"], ["c"]))]
    graph = net_drawer.GetPydotGraphMinimal(ops, minimal_dependency=minimal)
    assert edges(graph) == expected
    assert len(graph.get_nodes()) == 3


def test_plan(net):
    plan = core.Plan("plan")
    plan.AddStep(core.execution_step("first", net, report_net=net, report_interval=1))
    plan.AddStep(core.execution_step("twice", [net, net], only_once=True,
                                     should_stop_blob=core.BlobReference("stop")))
    plan.AddStep(core.execution_step(
        "parallel", [core.execution_step(f"s{i}", net) for i in range(5)],
        concurrent_substeps=True))
    graph = net_drawer.GetPlanGraph(plan.Proto())
    names = [s.name for s in plan.Proto().execution_step]
    labels = [f"{names[0]}\nReporter: {net.Name()}", f"{names[1]}\nStopper: stop\nOnce",
              f"{names[2]}\nConcurrent"]
    drawn = edges(graph)
    assert (labels[0], labels[1]) in drawn and (labels[1], labels[2]) in drawn
    assert (labels[2], "2 more steps") in drawn
    assert sum(a == labels[2] for a, _ in drawn) == 4
    assert (labels[0], net.Name()) in drawn and (net.Name(), net.Name()) in drawn
    with pytest.raises(ValueError, match="neither nets nor substeps"):
        net_drawer.GetPlanGraph(
            caffe2_pb2.PlanDef(execution_step=[caffe2_pb2.ExecutionStep(name="empty")]))


def test_operator_map():
    op = caffe2_pb2.OperatorDef(type="Relu")
    plan = caffe2_pb2.PlanDef(name="p", network=[
        caffe2_pb2.NetDef(name="n", op=[op]), caffe2_pb2.NetDef(op=[op, op])])
    sizes = {k: len(v) for k, v in net_drawer.GetOperatorMapForPlan(plan).items()}
    assert sizes == {"p_n": 1, "p_network_1": 2}


def test_json(net, tmp_path):
    net_drawer.GetGraphInJson(net, tmp_path / "graph.json")
    graph = json.loads((tmp_path / "graph.json").read_text())
    labels = [(n["label"], n["type"]) for n in graph["nodes"]]
    assert [n["id"] for n in graph["nodes"]] == list(range(len(labels)))
    assert labels == [("FC", "op"), ("x", "blob"), ("w", "blob"), ("b", "blob"), ("y", "blob"),
                      ("first/Relu", "op"), ("y", "blob"), ("Softmax", "op"), ("z", "blob")]
    assert [(e["source"], e["target"]) for e in graph["edges"]] == [
        (1, 0), (2, 0), (3, 0), (0, 4), (4, 5), (5, 6), (6, 7), (7, 8)]


def test_not_a_net():
    with pytest.raises(TypeError, match="Expecting NetDef"):
        net_drawer.GetPydotGraph(core.Plan("plan"))


def test_without_pydot(net, monkeypatch, caplog):
    imports = builtins.__import__
    monkeypatch.delitem(sys.modules, "pydot", raising=False)
    monkeypatch.setattr(builtins, "__import__", lambda name, *args: (
        imports(name, *args) if name != "pydot" else imports("no_such_module")))
    with pytest.raises(ImportError, match=r"caffe2\[draw\]"):
        net_drawer.GetPydotGraph(net)
    with caplog.at_level(logging.ERROR):
        png = net_drawer.GetGraphPngSafe(net_drawer.GetPydotGraph, net)
    assert png.startswith(b"\x89PNG") and png.endswith(b"IEND\xaeB`\x82")
    assert "Failed to draw" in caplog.text
    assert net._repr_svg_() is None


def test_command(net, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Graphviz
    monkeypatch.chdir(tmp_path)
    for form, data in (("binary", net.Proto().SerializeToString()),
                       ("text", str(net.Proto()).encode())):
        for flags in ([], ["--minimal", "--minimal_dependency", "--append_output"]):
            (tmp_path / form).write_bytes(data)
            monkeypatch.setattr(sys, "argv", [
                "net_drawer", "--input", form, "--output_prefix", form + "-", *flags])
            net_drawer.main()
            dot = (tmp_path / f"{form}-{net.Name()}.dot").read_text()
            assert "Softmax (op#2)" in dot and ("octagon" in dot) == (not flags)
            assert "needs Graphviz" in capsys.readouterr().out

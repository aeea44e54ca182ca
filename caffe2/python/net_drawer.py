"""Drawings of nets and plans, with pydot; pictures need the program ``dot`` of Graphviz too."""
import argparse
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from caffe2.proto import caffe2_pb2
from caffe2.python import utils

logger = logging.getLogger(__name__)

OP_STYLE = {
    "shape": "box",
    "color": "#0F9D58",
    "style": "filled",
    "fontcolor": "#FFFFFF",
}
BLOB_STYLE = {"shape": "octagon"}
_MAX_PARALLEL_STEPS = 3


def _pydot() -> Any:
    try:
        import pydot
    except ImportError as error:
        raise ImportError("Drawing needs pydot: pip install caffe2[draw]") from error
    return pydot


def _operators_and_name(operators_or_net: Any, name: str | None) -> tuple[Iterable, str]:
    if hasattr(operators_or_net, "Proto"):
        operators_or_net = operators_or_net.Proto()
        if not isinstance(operators_or_net, caffe2_pb2.NetDef):
            raise TypeError(f"Expecting NetDef, but got {type(operators_or_net)}")
    if isinstance(operators_or_net, caffe2_pb2.NetDef):
        return operators_or_net.op, operators_or_net.name if name is None else name
    return operators_or_net, "unnamed" if name is None else name


def _quote(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _graph(name: str | None, rankdir: str) -> Any:
    return _pydot().Dot(_quote(name or "unnamed"), rankdir=rankdir)


def GetOpNodeProducer(append_output: bool, **kwargs) -> Callable:
    """Return a function that makes the node of an operator.

    Parameters
    ----------
    append_output : bool
        Whether the label holds the names of the outputs.
    **kwargs
        Attributes of the node.
    """
    def ReallyGetOpNode(op: Any, op_id: int) -> Any:
        label = f"{op.name}/{op.type}" if op.name else op.type
        lines = [f"{label} (op#{op_id})", *(op.output if append_output else ())]
        return _pydot().Node(_quote("\n".join(lines)), **kwargs)

    return ReallyGetOpNode


def GetBlobNodeProducer(**kwargs) -> Callable:
    """Return a function that makes the node of a blob, with these attributes."""
    def ReallyGetBlobNode(node_name: str, label: str) -> Any:
        return _pydot().Node(_quote(node_name), label=_quote(label), **kwargs)

    return ReallyGetBlobNode


def _blob_versions(operators: Iterable) -> Iterator[tuple]:
    """Yield each operator with the versions of its inputs and outputs, as (blob, number)."""
    written: dict[str, int] = defaultdict(int)
    seen: set[str] = set()
    for op in operators:
        inputs = [(b, written[b]) for b in op.input]
        seen.update(op.input)
        for b in op.output:
            written[b] += b in seen
            seen.add(b)
        yield op, inputs, [(b, written[b]) for b in op.output]


def GetPydotGraph(
        operators_or_net: Any, name: str | None = None, rankdir: str = "LR",
        op_node_producer: Callable | None = None,
        blob_node_producer: Callable | None = None) -> Any:
    """Draw operators and blobs.

    Parameters
    ----------
    operators_or_net : Net, NetDef or iterable of OperatorDef
    name : str, optional
        By default that of the net.
    rankdir : str
        Direction: "LR", "TB", "RL" or "BT".
    op_node_producer, blob_node_producer : callable, optional
        See GetOpNodeProducer and GetBlobNodeProducer.

    Returns
    -------
    pydot.Dot
    """
    op_node_producer = op_node_producer or GetOpNodeProducer(False, **OP_STYLE)
    blob_node_producer = blob_node_producer or GetBlobNodeProducer(**BLOB_STYLE)
    operators, name = _operators_and_name(operators_or_net, name)
    graph = _graph(name, rankdir)
    edge = _pydot().Edge
    nodes: dict[tuple, Any] = {}

    def blob_node(blob: tuple) -> Any:
        if blob not in nodes:
            nodes[blob] = blob_node_producer(blob[0] + str(blob[1]), blob[0])
            graph.add_node(nodes[blob])
        return nodes[blob]

    for op_id, (op, inputs, outputs) in enumerate(_blob_versions(operators)):
        op_node = op_node_producer(op, op_id)
        graph.add_node(op_node)
        for blob in inputs:
            graph.add_edge(edge(blob_node(blob), op_node))
        for blob in outputs:
            graph.add_edge(edge(op_node, blob_node(blob)))
    return graph


def GetPydotGraphMinimal(
        operators_or_net: Any, name: str | None = None, rankdir: str = "LR",
        minimal_dependency: bool = False, op_node_producer: Callable | None = None) -> Any:
    """Draw operators only.

    Parameters
    ----------
    minimal_dependency : bool
        Whether an edge that follows from others is left out.

    Others are those of GetPydotGraph.
    """
    op_node_producer = op_node_producer or GetOpNodeProducer(False, **OP_STYLE)
    operators, name = _operators_and_name(operators_or_net, name)
    graph = _graph(name, rankdir)
    producer: dict[str, int] = {}
    nodes: list = []
    ancestors: list[set[int]] = []
    for op_id, op in enumerate(operators):
        nodes.append(op_node_producer(op, op_id))
        graph.add_node(nodes[-1])
        parents = list(dict.fromkeys(producer[b] for b in op.input if b in producer))
        ancestors.append(set(parents).union(*(ancestors[p] for p in parents)))
        for parent in parents:
            implied = any(parent in ancestors[other] for other in parents)
            if not (minimal_dependency and implied):
                graph.add_edge(_pydot().Edge(nodes[parent], nodes[-1]))
        producer.update(dict.fromkeys(op.output, op_id))
    return graph


def GetOperatorMapForPlan(plan_def: caffe2_pb2.PlanDef) -> dict[str, Iterable]:
    """Return the operators of each net of a plan."""
    return {
        f"{plan_def.name}_{net.name if net.HasField('name') else f'network_{i}'}": net.op
        for i, net in enumerate(plan_def.network)
    }


def _draw_nets(nets: Iterable[str], graph: Any) -> list:
    nodes: list = []
    for net in nets:
        nodes.append(_pydot().Node(_quote(net)))
        graph.add_node(nodes[-1])
        if len(nodes) > 1:
            graph.add_edge(_pydot().Edge(*nodes[-2:]))
    return nodes


def _step_label(step: caffe2_pb2.ExecutionStep) -> str:
    lines = [step.name]
    if step.report_net:
        lines.append(f"Reporter: {step.report_net}")
    if step.should_stop_blob:
        lines.append(f"Stopper: {step.should_stop_blob}")
    if step.concurrent_substeps:
        lines.append("Concurrent")
    if step.only_once:
        lines.append("Once")
    return "\n".join(lines)


def _draw_steps(steps: Iterable, graph: Any, joined: bool = True) -> list:
    pydot = _pydot()
    nodes: list = []
    for step in steps:
        nodes.append(pydot.Node(_quote(_step_label(step)), **OP_STYLE))
        graph.add_node(nodes[-1])
        if joined and len(nodes) > 1:
            graph.add_edge(pydot.Edge(*nodes[-2:]))
        parallel = step.concurrent_substeps
        if step.network:
            below = _draw_nets(step.network, graph)
        elif step.substep:
            shown = step.substep[:_MAX_PARALLEL_STEPS] if parallel else step.substep
            below = _draw_steps(shown, graph, joined=not parallel)
        else:
            raise ValueError(f"step {step.name!r} has neither nets nor substeps")
        if not parallel:
            below = below[:1]
        elif len(step.substep) > _MAX_PARALLEL_STEPS:
            more = len(step.substep) - _MAX_PARALLEL_STEPS
            below.append(pydot.Node(_quote(f"{more} more steps"), **OP_STYLE))
            graph.add_node(below[-1])
        for node in below:
            graph.add_edge(pydot.Edge(nodes[-1], node, arrowhead="dot", style="dashed"))
    return nodes


def GetPlanGraph(
        plan_def: caffe2_pb2.PlanDef, name: str | None = None, rankdir: str = "TB") -> Any:
    """Draw the execution steps of a plan."""
    graph = _graph(plan_def.name if name is None else name, rankdir)
    _draw_steps(plan_def.execution_step, graph)
    return graph


def GetGraphInJson(operators_or_net: Any, output_filepath: str) -> None:
    """Write operators and blobs as a JSON file with ``nodes`` and ``edges``."""
    operators, _ = _operators_and_name(operators_or_net, None)
    nodes: list[dict] = []
    edges: list[dict] = []
    blob_ids: dict[tuple, int] = {}

    def add(**node) -> int:
        nodes.append({"id": len(nodes), **node})
        return len(nodes) - 1

    def blob_id(blob: tuple) -> int:
        if blob not in blob_ids:
            blob_ids[blob] = add(label=blob[0], type="blob")
        return blob_ids[blob]

    for i, (op, inputs, outputs) in enumerate(_blob_versions(operators)):
        op_id = add(label=f"{op.name}/{op.type}" if op.name else op.type, op_id=i, type="op")
        edges += [{"source": blob_id(b), "target": op_id} for b in inputs]
        edges += [{"source": op_id, "target": blob_id(b)} for b in outputs]
    with open(output_filepath, "w") as f:
        json.dump({"nodes": nodes, "edges": edges}, f)


# One transparent pixel.
_DummyPngImage = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000"
    "000b49444154789c6360000200000500017a5eab3f0000000049454e44ae426082")


def GetGraphPngSafe(func: Callable, *args, **kwargs) -> bytes:
    """Return the picture of a graph that `func` draws, an empty one if that fails."""
    try:
        return func(*args, **kwargs).create_png()
    except Exception as error:
        logger.error("Failed to draw graph: %s", error)
        return _DummyPngImage


def main() -> None:
    """Draw the nets of a file."""
    parser = argparse.ArgumentParser(description="Caffe2 net drawer.")
    parser.add_argument("--input", required=True, help="The input protobuf file.")
    parser.add_argument(
        "--output_prefix", default="", help="The prefix to be added to the output filename.")
    parser.add_argument(
        "--minimal", action="store_true", help="If set, produce a minimal visualization.")
    parser.add_argument(
        "--minimal_dependency", action="store_true",
        help="If set, only draw minimal dependency.")
    parser.add_argument(
        "--append_output", action="store_true",
        help="If set, append the output blobs to the operator names.")
    parser.add_argument(
        "--rankdir", default="LR", help="The rank direction of the pydot graph.")
    args = parser.parse_args()
    with open(args.input, "rb") as f:
        graphs = utils.GetContentFromProtoString(f.read(), {
            caffe2_pb2.NetDef: lambda net: {net.name: net.op},
            caffe2_pb2.PlanDef: GetOperatorMapForPlan,
        })
    options = {
        "rankdir": args.rankdir,
        "op_node_producer": GetOpNodeProducer(args.append_output, **OP_STYLE),
    }
    for name, operators in graphs.items():
        if args.minimal:
            graph = GetPydotGraphMinimal(
                operators, name, minimal_dependency=args.minimal_dependency, **options)
        else:
            graph = GetPydotGraph(operators, name, **options)
        stem = args.output_prefix + name
        graph.write_raw(f"{stem}.dot")
        try:
            graph.write_pdf(f"{stem}.pdf")
        except OSError as error:
            print(f"{stem}.dot is written, {stem}.pdf needs Graphviz: {error}")


if __name__ == "__main__":
    main()

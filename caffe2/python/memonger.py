"""Memory of nets: blobs that are not needed at the same time share a name, and thereby their memory.

For models that are only to predict, `caffe2.python.transformations.optimizeForInference` does this and more.
"""
import collections
import dataclasses
import enum
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace

log = logging.getLogger("memonger")


class LiveRange(NamedTuple):
    """Places of a blob's first writer and last reader, None where there is none, and its size."""

    defined: int | None
    used: int | None
    size: int | None


class Optimization(NamedTuple):
    """A net, who shares with whom, and the name that each blob has now."""

    net: Any
    assignments: list
    blob_assignments: dict


class Statistics(NamedTuple):
    """Bytes without and with sharing."""

    baseline_nbytes: int
    optimized_nbytes: int


class AssignmentAlgorithm(enum.Enum):
    """How blobs are assigned: fast, or with the least memory."""

    GREEDY = 0
    DYNAMIC_PROGRAMMING = 1


def _networkx() -> Any:
    try:
        import networkx
    except ImportError as e:
        raise ImportError("graphs of operators need networkx: pip install caffe2[memonger]") from e
    return networkx


def _copy(net: Any) -> caffe2_pb2.NetDef:
    result = caffe2_pb2.NetDef()
    result.CopyFrom(net)
    return result


# ---------------------------------------------------------------- sharing along the dependencies of operators


def _share(
        net: caffe2_pb2.NetDef, heads: Collection[str], op_indices: Iterable[int], shareable: Collection[str],
        namescope: str, dont_share: Collection[str], shapes: Mapping[str, Iterable[int]]) -> caffe2_pb2.NetDef:
    """Let blobs share memory so that it holds in whatever order operators run that respects their dependencies.

    An output takes the place of a blob if every operator that touches that blob must have run before its writer.
    """
    touched = collections.defaultdict(int)      # blob -> bit set of the operators that read or write it
    writer: dict[str, int] = {}
    devices: dict[str, tuple] = {}
    before: list[int] = []                      # operator -> bit set of those that must have run
    for i, op in enumerate(net.op):
        bits = 0
        for p in {writer[name] for name in op.input if name in writer}:
            bits |= before[p] | 1 << p
        before.append(bits)
        for name in (*op.input, *op.output):
            touched[name] |= 1 << i
        writer.update(dict.fromkeys(op.output, i))
        devices.update(dict.fromkeys(op.output, _device(op)))

    fixed = {*net.external_input, *net.external_output, *map(str, dont_share)}
    reachable, indices, seen = set(heads), set(op_indices), set()
    storages: list[_Storage] = []
    home: dict[str, _Storage] = {}

    def settle(name, i=None):
        """Give a blob a storage; one that operator i writes may get one that is free then."""
        size = int(np.prod(list(shapes[name]))) if name in shapes else 0
        free = [] if i is None else [
            s for s in storages if s.device == devices[name] and not s.touched & ~before[i]]
        if free:        # the one that fits best, of these the one that is shared most
            storage = min(free, key=lambda s: (abs(s.size - size), -len(s.blobs)))
        else:
            storage = _Storage([], devices[name], 0, 0, i is None)
            storages.append(storage)
        storage.blobs.append(name)
        storage.touched |= touched[name]
        storage.size = max(storage.size, size)
        home[name] = storage

    for i, op in enumerate(net.op):
        if i in indices and reachable.intersection(op.input):
            reachable.update(op.output)
            for name in dict.fromkeys(op.input):
                if name in shareable and name in seen and name not in home and name not in fixed:
                    settle(name)            # from other operators: its storage can be taken, but it takes none
            for name in dict.fromkeys(op.output):
                if name in shareable and name not in seen and name not in fixed and name not in op.input:
                    settle(name, i)
        seen.update(op.output)
        fixed.update(name for name in op.input if name not in seen)

    names = {name for op in net.op for name in (*op.input, *op.output)}
    renamed, number = {}, 0
    for storage in storages:
        if len(storage.blobs) > 1:
            new = storage.blobs[0]
            while not storage.named and (new := f"{namescope}__m{number}_shared") in names:
                number += 1
            names.add(new)
            renamed.update(dict.fromkeys(storage.blobs, new))
    result = _copy(net)
    apply_assignments(result, renamed)
    return result


@dataclasses.dataclass
class _Storage:
    blobs: list[str]
    device: tuple
    touched: int            # bit set of the operators that read or write one of the blobs
    size: int
    named: bool             # keeps the name of the first blob


def _device(op: Any) -> tuple:
    if op.type == "CopyGPUToCPU":
        return caffe2_pb2.CPU, 0
    return op.device_option.device_type, op.device_option.device_id


def _verify(before: caffe2_pb2.NetDef, after: caffe2_pb2.NetDef) -> caffe2_pb2.NetDef:
    assert verify_graph_equality(before, after), "Memonger graph is not equal to original."
    assert verify_inplace_blobs(before, after), "Inplace assignments differ in memonger net."
    return after


def share_grad_blobs(
        net: Any, losses: Iterable, param_grads: Collection, namescope: str,
        dont_share_blobs: Collection[str] | None = None, share_activations: bool = False,
        blob_shapes: Mapping[str, Iterable[int]] | None = None) -> caffe2_pb2.NetDef:
    """Let the gradients that are passed from layer to layer share memory.

    Parameters
    ----------
    net : Net
    losses : iterable of blobs
        Where the gradients start.
    param_grads : collection of blobs
        Gradients of parameters; these are kept.
    namescope : str
        Only gradients whose names start with it are shared.
    dont_share_blobs : set of str, optional
    share_activations : bool
        Whether outputs of layers, but for the last two, share memory too.
    blob_shapes : dict of str to shape, optional
        Sizes are matched where they are known.

    Returns
    -------
    NetDef
        To be assigned to ``net._net``.
    """
    proto = net.Proto()
    kept = {str(b) for b in param_grads}
    if namescope and not namescope.endswith("/"):
        namescope += "/"

    def is_grad_blob(name):
        # gradients that are summed up have names that start with an underscore
        return name.endswith("_grad") and name.startswith((namescope, "_" + namescope)) and name not in kept

    outputs = [b for op in proto.op for b in op.output if b + "_w" in op.input and b not in proto.external_output]
    shareable = {b for op in proto.op for b in (*op.input, *op.output) if is_grad_blob(b)}
    gradient_ops = [i for i, op in enumerate(proto.op) if shareable.intersection((*op.input, *op.output))]
    if share_activations:
        shareable.update(outputs[:-2])
    return _verify(proto, _share(
        proto, {str(b) for b in losses}, gradient_ops, shareable, namescope, dont_share_blobs or (),
        blob_shapes or {}))


def optimize_inference_for_dag(net: Any, input_blobs: Iterable, namescope: str = "") -> caffe2_pb2.NetDef:
    """Let blobs share memory in a net that predicts, also where its operators run in parallel.

    Parameters
    ----------
    net : Net
        All its inputs must be among its external inputs.
    input_blobs : iterable of blobs
        Operators that depend on these are looked at.
    namescope : str
        Prefix of the names of shared blobs.

    Returns
    -------
    NetDef
    """
    proto = net.Proto()
    external = set(proto.external_input) | set(proto.external_output)
    activations: set[str] = set()
    for op in proto.op:
        assert not op.is_gradient_op, (
            "You can only pass inference-only nets to optimize_inference_for_dag")
        for b in op.input:
            assert b in external or b in activations, f"{b} not in external input"
        activations.update(b for b in op.output if b not in external)
    return _verify(proto, _share(
        proto, {str(b) for b in input_blobs}, range(len(proto.op)), activations, namescope, (), {}))


def optimize_inference_fast(net: caffe2_pb2.NetDef, static_blobs: Iterable) -> caffe2_pb2.NetDef:
    """Let blobs share memory in a net whose operators run one after the other; others are returned as they are.

    Parameters
    ----------
    net : NetDef
    static_blobs : iterable of blobs
        These keep their names.
    """
    static = {str(b) for b in static_blobs} | set(net.external_output)
    if net.type not in ("", "simple") or any(op.type == "RecurrentNetwork" for op in net.op):
        return net
    if any(name.startswith("__m") and name.endswith("_shared") for op in net.op for name in op.output):
        return net          # is optimized already
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    seen: set[str] = set()
    for i, op in enumerate(net.op):
        seen.update(op.input)
        last.update((b, i) for b in op.input if b in first)
        for b in op.output:
            if b not in static and b not in seen:
                first.setdefault(b, i)
                last[b] = i
        seen.update(op.output)
    read = {b for op in net.op for b in op.input}
    mapping: dict[str, str] = {}
    free: list[str] = []
    for i, op in enumerate(net.op):
        for b in op.output:
            if first.get(b) == i and b in read and b not in mapping:
                mapping[b] = free.pop() if free else f"__m{len(set(mapping.values()))}_shared"
        free.extend(mapping[b] for b in dict.fromkeys((*op.input, *op.output)) if b in mapping and last[b] == i)
    result = _copy(net)
    apply_assignments(result, mapping)
    return result


# ---------------------------------------------------------------- memory during a run


def estimate_memory_usage(
        protos: Iterable, shapes: Mapping[str, Iterable[int]], types: Mapping[str, int],
        devicescope: Any) -> tuple[int, int, dict]:
    """Estimate the memory of nets on one device, as if they ran one after the other.

    Parameters
    ----------
    protos : list of NetDef
    shapes, types : dict
        By name of blob; types are those of TensorProto.
    devicescope : DeviceOption

    Returns
    -------
    total, highwater, by_op_type
        Bytes; blobs that are freed count for the first, and no more for the second.
    """
    sizes = {getattr(caffe2_pb2.TensorProto, name): n for name, n in (
        ("DOUBLE", 8), ("FLOAT", 4), ("FLOAT16", 2), ("INT32", 4), ("INT8", 1), ("UINT8", 1), ("UINT16", 2),
        ("INT16", 2), ("BOOL", 1), ("INT64", 8))}

    def num_bytes(blob):
        if blob not in shapes or blob not in types:
            log.warning("Unknown blob encountered: %s", blob)
            return 0
        return int(sizes[types[blob]] * np.prod(list(shapes[blob]), dtype=np.int64))

    total = current = highest = 0
    by_op_type: dict[str, int] = collections.defaultdict(int)
    allocated: set[str] = set()
    for proto in protos:
        for op in proto.op:
            if op.type in ("Free", "Alias"):
                for b in allocated.intersection(op.output):
                    current -= num_bytes(b)
                    allocated.remove(b)
            elif op.device_option == devicescope:
                for b in op.output:
                    if b not in allocated:
                        allocated.add(b)
                        n = num_bytes(b)
                        total += n
                        current += n
                        highest = max(highest, current)
                        by_op_type[op.type] += n
    return total, highest, by_op_type


def release_blobs_when_used(
        netproto: caffe2_pb2.NetDef, dont_free_blobs: Collection[str],
        selector_fun: Callable[[str], bool] | None = None) -> caffe2_pb2.NetDef:
    """Free blobs once they have been read for the last time.

    Parameters
    ----------
    netproto : NetDef
    dont_free_blobs : set of str
        These are kept, as are external outputs, what nobody reads, and what has an Alias.
    selector_fun : callable, optional
        Says for a blob's name whether it may be freed.

    Returns
    -------
    NetDef
        With Free operators.
    """
    read: set[str] = set()
    free: set[str] = set()
    aliased = {op.input[0] for op in netproto.op if op.type == "Alias"}
    for op in netproto.op:
        if op.type != "Alias":
            read.update(op.input)
            free.update(b for b in op.output if b not in read and (selector_fun is None or selector_fun(b)))
    free = (free & read) - set(netproto.external_output) - set(dont_free_blobs) - aliased
    ops = []
    for op in reversed(netproto.op):
        gone = [b for b in dict.fromkeys(op.input) if b in free]
        ops += [core.CreateOperator("Free", [b], [b]) for b in reversed(gone)]
        free.difference_update(gone)
        ops.append(op)
    result = _copy(netproto)
    del result.op[:]
    result.op.extend(reversed(ops))
    return result


# ---------------------------------------------------------------- sharing by live ranges


def compute_interference_graph(ops: Iterable) -> Any:
    """Return a networkx.DiGraph of operators, by place, with an edge to each that must run later.

    It reads an output, or writes what was read before; ``deps`` of an edge are the outputs that are read.
    """
    g = _networkx().DiGraph()
    ops = list(ops)
    writers: dict[str, list[int]] = collections.defaultdict(list)
    readers: dict[str, list[int]] = collections.defaultdict(list)
    for i, op in enumerate(ops):
        g.add_node(i, op=op)
        for b in dict.fromkeys(op.input):
            for w in writers[b]:
                deps = g.edges[w, i]["deps"] if g.has_edge(w, i) else set()
                g.add_edge(w, i, deps=deps | {b})
        for b in dict.fromkeys(op.output):
            for r in readers[b]:
                if not g.has_edge(r, i):
                    g.add_edge(r, i, deps=set())
            writers[b].append(i)
        for b in op.input:
            readers[b].append(i)
    return g


def topological_sort_traversal(g: Any) -> list:
    """Return the nodes of a graph in an order that respects its edges."""
    return list(_networkx().topological_sort(g))


def topological_sort_traversal_longest_path(g: Any) -> list:
    """Return the nodes in such an order, what starts the longest paths first: blobs then live shorter."""
    networkx = _networkx()
    height: dict = {}
    for node in reversed(list(networkx.topological_sort(g))):
        height[node] = 1 + max((height[n] for n in g.successors(node)), default=0)
    # each node goes with the first of the sources, longest paths first, that it depends on
    order: dict = {}
    for source in sorted((n for n in g if not g.in_degree(n)), key=lambda n: -height[n]):
        for node in (source, *networkx.descendants(g, source)):
            order.setdefault(node, len(order))
    return list(networkx.lexicographical_topological_sort(g, key=order.__getitem__))


def compute_ranges(linearized_ops: Iterable, blob_sizes: Mapping[str, int] | None = None) -> dict[str, LiveRange]:
    """Return the live range of each blob of operators that run in this order."""
    ranges: dict[str, LiveRange] = {}
    for i, op in enumerate(linearized_ops):
        for blobs, use in ((op.input, True), (op.output, False)):
            for b in blobs:
                r = ranges.get(b) or LiveRange(None, None, blob_sizes[b] if blob_sizes else None)
                if use:
                    r = r._replace(used=i)
                elif r.defined is None:
                    r = r._replace(defined=i)
                ranges[b] = r
    return ranges


def is_compatible(candidate_range: LiveRange, assignment: list, static_blobs: Collection[str]) -> bool:
    """Say whether a blob can follow the last one of an assignment."""
    name, last = assignment[-1]
    if name in static_blobs or None in (candidate_range.defined, last.defined, last.used):
        return False
    return candidate_range.defined > last.used


def compute_blob_assignments(assignments: list) -> dict[str, str]:
    """Return the name that each shared blob gets, that of the last one."""
    return {name: a[-1][0] for a in assignments if len(a) > 1 for name, _ in a}


def _largest(assignment: list) -> int:
    return max((r.size or 0 for _, r in assignment), default=0)


def get_memory_usage(assignments: list) -> int:
    """Return the sum of the largest sizes of all assignments."""
    return sum(map(_largest, assignments))


def compute_assignments_greedy(ranges_sorted: list, init_assignments: list | None = None) -> list:
    """Assign each blob, in this order, to the place whose size is closest."""
    assignments = init_assignments or []
    visited = {name for a in assignments for name, _ in a}
    for name, r in ranges_sorted:
        if name in visited:
            continue
        fits = [a for a in assignments if is_compatible(r, a, [])]
        if fits:
            min(fits, key=lambda a: abs(_largest(a) - (r.size or 0))).append((name, r))
        else:
            assignments.append([(name, r)])
    return assignments


def compute_assignments_dp(
        ranges_sorted: list, init_assignment: list | None, counter: list | None = None) -> list:
    """Find the assignments that need the least memory; this may take long.

    Parameters
    ----------
    ranges_sorted : list of (name, LiveRange)
        Sorted by last use.
    init_assignment : list
        Assignments to start from.
    counter : list of int, optional
        Its first item counts the states that were looked at.

    Notes
    -----
    Blobs are assigned in the order in which they are written. What matters of the places so far is when each is free
    again and how large it is; of all ways to the same state one is kept.
    """
    blobs = sorted(ranges_sorted, key=lambda p: (p[1].defined if p[1].defined is not None else -1))
    counter = [0] if counter is None else counter
    start = [list(a) for a in init_assignment or []]
    states = {_state(start): start}
    best_greedy = None
    for i, (name, r) in enumerate(blobs):
        found: dict = {}
        for assignments in states.values():
            counter[0] += 1
            tried = set()
            for k in [*range(len(assignments)), None]:
                if k is None:
                    candidate = [*assignments, [(name, r)]]
                else:
                    if not is_compatible(r, assignments[k], []):
                        continue
                    kind = _largest(assignments[k])     # of free places of one size, any will do
                    if kind in tried:
                        continue
                    tried.add(kind)
                    candidate = list(assignments)
                    candidate[k] = [*assignments[k], (name, r)]
                found.setdefault(_state(candidate, _next_start(blobs, i + 1)), candidate)
        # memory never shrinks: what already needs more than a greedy end is no way to the best
        if best_greedy is None:
            best_greedy = get_memory_usage(compute_assignments_greedy(blobs, [list(a) for a in start]))
        states = {s: a for s, a in found.items() if get_memory_usage(a) <= best_greedy}
    return min(states.values(), key=get_memory_usage)


def _next_start(blobs: list, i: int) -> int:
    return -1 if i >= len(blobs) or blobs[i][1].defined is None else blobs[i][1].defined


def _state(assignments: list, start: int = -1) -> tuple:
    """What matters of assignments for blobs that start then: sizes, and the last uses that are still to come."""
    return tuple(sorted(
        (_largest(a), -2 if a[-1][1].used is not None and a[-1][1].used < start else
         (a[-1][1].used if a[-1][1].used is not None else float("inf"))) for a in assignments))


def get_updated_ranges(ranges: list, max_live: int | None = None) -> list:
    """Fill in what is None: written before the start, used after the end, of size 1."""
    if max_live is None:
        max_live = max((r.used for _, r in ranges if r.used is not None), default=0) + 1
    return [(name, LiveRange(
        -1 if r.defined is None else r.defined,
        max_live if r.used is None else r.used,
        1 if r.size is None else r.size)) for name, r in ranges]


def compute_assignments(
        ranges: Mapping[str, LiveRange], static_blobs: Collection[str], algo: AssignmentAlgorithm) -> list:
    """Group blobs that may share memory.

    Parameters
    ----------
    ranges : dict of str to LiveRange
    static_blobs : collection of str
        These stay alone.
    algo : AssignmentAlgorithm
        GREEDY is fast, and may be better where sizes are not known; DYNAMIC_PROGRAMMING finds the least memory.
    """
    static = {str(b) for b in static_blobs}
    ordered = get_updated_ranges(sorted(
        ranges.items(), key=lambda p: (p[1].used is None, p[1].used if p[1].used is not None else 0)))
    sharable = [p for p in ordered if p[0] not in static]
    if algo == AssignmentAlgorithm.DYNAMIC_PROGRAMMING:
        best = compute_assignments_dp(sharable, [])
    elif algo == AssignmentAlgorithm.GREEDY:
        best = compute_assignments_greedy(sharable, [])
    else:
        raise ValueError(f"Invalid algo name {algo}")
    return best + [[p] for p in ordered if p[0] in static]


def verify_assignments(assignments: list) -> None:
    """Raise AssertionError where blobs that share memory live at the same time."""
    for a in assignments:
        for (x, before), (y, after) in zip(a[:-1], a[1:]):
            assert before.used < after.defined, f"{x} and {y} live at the same time"


def apply_assignments(net: caffe2_pb2.NetDef, blob_assignments: Mapping[str, str]) -> None:
    """Rename blobs in a net, in place; also in the step nets of recurrent networks."""
    def canonical_name(blob):
        return blob_assignments.get(blob, blob)

    for op in net.op:
        if op.type.startswith("RecurrentNetwork"):
            apply_recurrent_blob_assignments(op, blob_assignments, canonical_name)
        op.input[:] = map(canonical_name, op.input)
        op.output[:] = map(canonical_name, op.output)


def apply_recurrent_blob_assignments(
        op: Any, blob_assignments: Mapping[str, str], canonical_name: Callable[[str], str]) -> None:
    """Rename blobs in the step nets of a recurrent network, and leave it arguments that tell the new names."""
    for arg in op.arg:
        if arg.name.endswith("step_net"):
            apply_assignments(arg.n, blob_assignments)
            arg.n.external_input[:] = map(canonical_name, arg.n.external_input)
    for blob in dict.fromkeys((*op.input, *op.output)):
        if blob in blob_assignments:
            op.arg.add(name=blob + ".rename", s=blob_assignments[blob].encode())


def optimize_interference(
        net: caffe2_pb2.NetDef, static_blobs: Collection[str],
        ordering_function: Callable[[Any], list] = topological_sort_traversal,
        blob_sizes: Mapping[str, int] | None = None,
        algo: AssignmentAlgorithm = AssignmentAlgorithm.GREEDY) -> Optimization:
    """Order operators and let blobs share memory.

    Parameters
    ----------
    net : NetDef
        Not changed.
    static_blobs : collection of str
        These keep their names: inputs, parameters, and what is to be fetched.
    ordering_function : callable
        `topological_sort_traversal`, or `topological_sort_traversal_longest_path`, which may need less memory.
    blob_sizes : dict of str to int, optional
        Such as `collect_blob_sizes` gives; assignments are better where they are known.
    algo : AssignmentAlgorithm
    """
    net = _copy(net)
    ops = [net.op[i] for i in ordering_function(compute_interference_graph(net.op))]
    ordered = caffe2_pb2.NetDef(op=ops)
    del net.op[:]
    net.op.extend(ordered.op)
    assignments = compute_assignments(compute_ranges(net.op, blob_sizes), static_blobs, algo)
    blob_assignments = compute_blob_assignments(assignments)
    apply_assignments(net, blob_assignments)
    return Optimization(net=net, assignments=assignments, blob_assignments=blob_assignments)


# ---------------------------------------------------------------- checks and statistics


def verify_inplace_blobs(net_a: Any, net_b: Any) -> bool:
    """Say whether the operators of two nets run in place on the same inputs and outputs."""
    def in_place(op):
        return [(i, list(op.output).index(b)) for i, b in enumerate(op.input) if b in op.output]

    return all(a.type == b.type and in_place(a) == in_place(b) for a, b in zip(net_a.op, net_b.op))


def verify_graph_equality(net_a: Any, net_b: Any) -> bool:
    """Say whether the operators of two nets are the same and read outputs of the same ones."""
    def parents(net):
        writer: dict[str, int] = {}
        result = []
        for i, op in enumerate(net.op):
            result.append([writer[b] for b in op.input if b in writer])
            writer.update(dict.fromkeys(op.output, i))
        return result

    return (
        len(net_a.op) == len(net_b.op)
        and all((a.type, a.device_option, a.engine) == (b.type, b.device_option, b.engine)
                for a, b in zip(net_a.op, net_b.op))
        and parents(net_a) == parents(net_b))


def blob_nbytes(blob: Any) -> int:
    """Return the bytes of a blob of the workspace, 0 where it is no tensor."""
    try:
        return workspace.FetchBlob(blob).nbytes
    except (RuntimeError, AttributeError):
        log.warning("Error when fetching blob %s", blob)
        return 0


def compute_statistics(assignments: list) -> Statistics:
    """Compare the memory of blobs of the workspace with what they would need if they shared it."""
    nbytes = {name: blob_nbytes(name) for a in assignments for name, _ in a}
    return Statistics(
        baseline_nbytes=sum(nbytes.values()),
        optimized_nbytes=sum(max(nbytes[name] for name, _ in a) for a in assignments))


def collect_blob_sizes(net: Any) -> dict[str, int]:
    """Return the bytes of all blobs of a net, from the workspace."""
    return {b: blob_nbytes(b) for op in net.op for b in (*op.input, *op.output)}

"""Gradients of the control operators Do, If and While.

A Do operator runs a net in a workspace of its own, under other names for the blobs it shares with
the workspace around it; its last input and output hold that workspace. The bodies of If and While
are nets of one Do operator. The gradient of a body is the backward pass of its net, run where
the forward pass left its intermediate blobs.
"""

from collections.abc import Sequence

from caffe2.proto import caffe2_pb2

_INNER_GRAD = "/_DO_OPERATOR_INNER_GRAD_"
_INNER_GRAD_COPY = "/_DO_OPERATOR_INNER_GRAD_COPY_"


def getNetArgument(op: caffe2_pb2.OperatorDef, net_name: str) -> caffe2_pb2.NetDef | None:
    """The net in the argument of this name, None without such an argument."""
    for arg in op.arg:
        if arg.name == net_name:
            assert arg.HasField("n"), f"Expected non empty net argument {net_name}"
            return arg.n
    return None


def _copy_op(source: str, target: str) -> caffe2_pb2.OperatorDef:
    return caffe2_pb2.OperatorDef(type="Copy", input=[source], output=[target])


def _gradient_net(net, grad_ops, suffix="_grad"):
    """A net like `net`, but with other operators."""
    result = caffe2_pb2.NetDef()
    result.CopyFrom(net)
    if result.name:
        result.name += suffix
    result.ClearField("external_input")
    result.ClearField("external_output")
    result.ClearField("op")
    result.op.extend(grad_ops)
    return result


def _gradient_op(op, inputs, outputs, args):
    """An operator like `op`, but with other blobs and arguments."""
    result = caffe2_pb2.OperatorDef()
    result.CopyFrom(op)
    if result.name:
        result.name += "_grad"
    result.input[:] = list(inputs)
    result.output[:] = list(outputs)
    result.ClearField("arg")
    result.ClearField("control_input")
    result.arg.extend(args)
    result.is_gradient_op = True
    return result


def _backward_pass(net, init_grad):
    """Gradient operators of a net and the map from its blobs to their gradients, by name."""
    from caffe2.python.core import IR, BlobReference, GradientSlice

    grad_ops, grad_map = IR(net.op).GetBackwardPass(
        {BlobReference(b): BlobReference(g) for b, g in init_grad.items()}
    )
    sparse = [str(b) for b, g in grad_map.items() if isinstance(g, GradientSlice)]
    if sparse:
        raise RuntimeError(
            f"Control operators cannot pass on sparse gradients, which these blobs have: {sparse}"
        )
    return grad_ops, {str(b): str(g) for b, g in grad_map.items()}


def _body_gradient(net, init_grad):
    """Backward pass of the body of If or While.

    Returns it as a net, the map of gradients, the names it reads from outside and those it writes.
    """
    grad_ops, grad_map = _backward_pass(net, init_grad)
    inputs, outputs = {}, {}
    for op in grad_ops:
        inputs.update((b, None) for b in op.input if b not in outputs)
        outputs.update(dict.fromkeys(op.output))
    return _gradient_net(net, grad_ops), grad_map, inputs, outputs


def dedupe_g_output(
    op: caffe2_pb2.OperatorDef, g_output: Sequence[str | None]
) -> tuple[list[caffe2_pb2.OperatorDef], list[str | None]]:
    """Give outputs that share a gradient blob a copy each, as blobs are bound one to one.

    Returns
    -------
    list of OperatorDef
        The copies.
    list
        The gradients.
    """
    copies = []
    deduped = []
    grad_of = {}
    for output, grad in zip(op.output, g_output):
        if grad and output in grad_of:
            grad = grad_of[output]
        elif grad:
            if grad in grad_of.values():
                shared, grad = grad, f"{output}_{grad}_DEDUP"
                assert grad not in grad_of.values()
                copies.append(_copy_op(shared, grad))
            grad_of[output] = grad
        deduped.append(grad)
    return copies, deduped


def _init_grad_map(op, op_type, g_output):
    assert len(op.output) == len(g_output), (
        f"Different number of gradient blobs and {op_type} op outputs"
    )
    grad_ops, g_output = dedupe_g_output(op, g_output)
    init_grad = {o: g for o, g in zip(op.output, g_output) if g}
    assert init_grad, f"Empty initial gradient map for {op_type} op"
    return grad_ops, init_grad


# ---------------------------------------------------------------- Do


def _do_bindings(op):
    """Check a Do operator; return its net and a map from names inside to names outside."""
    assert op.type == "Do", "Expected Do op"
    net = getNetArgument(op, "net")
    assert net is not None, "No net argument found in Do op"
    args = {arg.name: arg for arg in op.arg}
    for name in ("inner_blobs", "outer_blobs_idx"):
        assert name in args, f"No {name} argument found in Do op"
    inner = [s.decode("utf-8") for s in args["inner_blobs"].strings]
    index = list(args["outer_blobs_idx"].ints)
    assert len(inner) == len(index), (
        "Arguments inner_blobs and outer_blobs_idx of different length in Do op"
    )
    assert len(set(inner)) == len(inner), "Found duplicates in inner_blobs in Do op"
    assert op.input, "Expected at least one input blob"
    assert op.output, "Expected at least one output blob"
    assert op.input[-1] == op.output[-1], "Expected same input/output workspace blob"
    inputs, outputs = op.input[:-1], op.output[:-1]
    assert len(set(inputs)) == len(inputs), "Found duplicates in Do op inputs"
    assert len(set(outputs)) == len(outputs), "Found duplicates in Do op outputs"

    outer = [*inputs, *outputs]
    assert all(0 <= i < len(outer) for i in index), "Outer blob index is out of bounds in Do op"
    bound = [outer[i] for i in index]
    assert len(set(bound)) == len(bound), "Two inner blobs share an outer one in Do op"
    assert set(bound) == set(outer), (
        "Not all outer blob names are used in blob bindings in Do op"
    )
    return net, dict(zip(inner, bound))


def gen_do_gradient(
    op: caffe2_pb2.OperatorDef, g_output: Sequence[str | None]
) -> tuple[list[caffe2_pb2.OperatorDef], list[str | None]]:
    """Gradient of Do: a Do that runs the backward pass in the workspace of the forward one.

    Gradients of outputs are bound to names inside, those of inputs copied to blobs that are bound
    to names outside; the copy because inside one blob may be the gradient of several.
    """
    net, inner_to_outer = _do_bindings(op)
    outer_to_inner = {outer: inner for inner, outer in inner_to_outer.items()}
    assert len(g_output) == len(op.output), "Different number of gradient blobs and Do op outputs"
    grad_ops, g_output = dedupe_g_output(op, g_output)

    init_grad, outer_grad = {}, {}
    for output, grad in zip(op.output[:-1], g_output):
        if grad:
            inner = outer_to_inner[output]
            init_grad[inner] = inner + _INNER_GRAD
            outer_grad[inner + _INNER_GRAD] = str(grad)
    assert init_grad, "Empty initial gradient map for Do op"
    inner_ops, grad_map = _backward_pass(net, init_grad)
    if not inner_ops:
        return [], []

    bindings, outputs, g_input, copies = {}, [], [], []
    for outer in op.input[:-1]:
        inner = outer_to_inner[outer]
        if inner not in grad_map:
            g_input.append(None)
            continue
        copies.append(_copy_op(grad_map[inner], inner + _INNER_GRAD_COPY))
        bindings[inner + _INNER_GRAD_COPY] = outer + "_grad"
        outputs.append(outer + "_grad")
        g_input.append(outer + "_grad")

    # What the backward pass reads is shared, or is left in the workspace of the forward pass.
    inputs, saved, written = {}, {}, set()
    for grad_op in inner_ops:
        for name in grad_op.input:
            if name in written:
                continue
            outer = inner_to_outer.get(name) or outer_grad.get(name)
            if outer:
                inputs[outer] = None
                bindings[name] = outer
            else:
                saved[name] = None
        written.update(grad_op.output)

    outer_names = [*inputs, *outputs]
    workspace_blob = op.input[-1]
    gradient_do = _gradient_op(
        op,
        [*inputs, workspace_blob],
        [*outputs, workspace_blob],
        [
            caffe2_pb2.Argument(name="net", n=_gradient_net(net, inner_ops + copies)),
            caffe2_pb2.Argument(name="inner_blobs", strings=[b.encode() for b in bindings]),
            caffe2_pb2.Argument(
                name="outer_blobs_idx", ints=[outer_names.index(b) for b in bindings.values()]
            ),
            caffe2_pb2.Argument(name="saved_fwd_blobs", strings=[b.encode() for b in saved]),
        ],
    )
    _do_bindings(gradient_do)
    return [*grad_ops, gradient_do], g_input


# ---------------------------------------------------------------- While


def gen_while_gradient(
    op: caffe2_pb2.OperatorDef, g_output: Sequence[str | None]
) -> tuple[list[caffe2_pb2.OperatorDef], list[str | None]]:
    """Gradient of While: a While that unwinds the workspaces that the iterations left."""
    from caffe2.python.core import BlobReference, Net

    assert op.type == "While", "Expected While op"
    assert op.input, "Expected at least one input in While op"
    grad_ops, init_grad = _init_grad_map(op, "While", g_output)

    loop_net = getNetArgument(op, "loop_net")
    assert loop_net is not None, "Expected loop subnet in While op"
    assert len(loop_net.op) == 1 and loop_net.op[0].type == "Do", (
        "Gradient While op requires single Do op as a loop body"
    )
    do_op = loop_net.op[0]
    assert not any(arg.name == "reuse_workspace" and arg.i for arg in do_op.arg), (
        "Gradient While op requires Do loop body op without reuse_workspace set"
    )
    assert do_op.output, "Expected Do op with at least one output"
    workspace_blob = BlobReference(do_op.output[-1])
    grad_net, grad_map, inputs, outputs = _body_gradient(loop_net, init_grad)

    # An iteration starts where the one before it, in the order of running, left the gradients:
    # copy them to where the body expects those of its outputs.
    cond_net = Net("gradient_loop_cond_net")
    init_net = Net("gradient_loop_cond_net_init")
    cond_blob = cond_net.NextScopedBlob(f"{cond_net.Name()}/cond")
    init_net.HasScope(workspace_blob, cond_blob)
    cond_net.HasScope(workspace_blob, cond_blob)
    for blob, grad in init_grad.items():
        body_grad = grad_map.get(blob, grad)
        if body_grad != grad:
            cond_net.Copy(BlobReference(body_grad), BlobReference(grad))
            init_net.Copy(BlobReference(grad), BlobReference(body_grad))

    gradient_while = _gradient_op(
        op,
        [str(cond_blob), *inputs],
        list(outputs),
        [
            caffe2_pb2.Argument(name="loop_net", n=grad_net),
            caffe2_pb2.Argument(name="cond_net", n=cond_net.Proto()),
        ],
    )
    return (
        [*grad_ops, *init_net.Proto().op, gradient_while],
        [grad_map.get(blob) for blob in op.input],
    )


# ---------------------------------------------------------------- If


def _zero_init_ops(init_grad, grad_map, grads):
    """Operators that give values to gradients which only the other branch computes.

    A blob whose gradient was given keeps that; the gradient of any other is zero.
    """
    blob_of = {grad: blob for blob, grad in reversed(grad_map.items())}
    ops = []
    for grad in grads:
        blob = blob_of[grad]
        if blob not in init_grad:
            zero = caffe2_pb2.Argument(name="value", f=0.0)
            ops.append(
                caffe2_pb2.OperatorDef(
                    type="ConstantFill", input=[blob], output=[grad], arg=[zero]
                )
            )
        elif init_grad[blob] != grad:
            ops.append(_copy_op(init_grad[blob], grad))
    return ops


def gen_if_gradient(
    op: caffe2_pb2.OperatorDef, g_output: Sequence[str | None]
) -> tuple[list[caffe2_pb2.OperatorDef], list[str | None]]:
    """Gradient of If: an If on the same condition over the gradients of the branches."""
    assert op.type in ("If", "AsyncIf"), "Expected If op"
    assert op.input, "Expected at least one input in If op"
    grad_ops, init_grad = _init_grad_map(op, "If", g_output)

    then_net = getNetArgument(op, "then_net")
    assert then_net is not None, "Expected then subnet in If op"
    then_grad_net, then_map, then_inputs, then_outputs = _body_gradient(then_net, init_grad)
    grad_map = dict(then_map)

    else_grad_net, else_map, else_inputs, else_outputs = None, {}, {}, {}
    else_net = getNetArgument(op, "else_net")
    if else_net is not None:
        else_grad_net, else_map, else_inputs, else_outputs = _body_gradient(else_net, init_grad)
        for blob, grad in else_map.items():
            # A branch that does not use the blob hands its gradient on under the name given.
            given = init_grad.get(blob)
            then_grad = grad_map.setdefault(blob, grad)
            if then_grad == given:
                grad_map[blob] = grad
            elif grad not in (then_grad, given):
                raise RuntimeError(
                    f"The branches of If disagree on the gradient of {blob}: {then_grad}, {grad}"
                )

    # Both branches must write the same gradients.
    only_then = [g for g in then_outputs if g not in else_outputs and g in then_map.values()]
    only_else = [g for g in else_outputs if g not in then_outputs and g in else_map.values()]
    zero_then = _zero_init_ops(init_grad, then_map, only_then)
    if else_grad_net is not None:
        else_grad_net.op.extend(zero_then)
    elif zero_then:
        else_grad_net = _gradient_net(then_grad_net, zero_then, "_auto_else_zero_blobs_")
    then_grad_net.op.extend(_zero_init_ops(init_grad, else_map, only_else))

    args = [caffe2_pb2.Argument(name="then_net", n=then_grad_net)]
    if else_grad_net is not None:
        args.append(caffe2_pb2.Argument(name="else_net", n=else_grad_net))
    # The condition comes first.
    inputs = dict.fromkeys([op.input[0], *then_inputs, *else_inputs])
    gradient_if = _gradient_op(op, inputs, dict.fromkeys([*then_outputs, *else_outputs]), args)
    return [*grad_ops, gradient_if], [grad_map.get(blob) for blob in op.input]


def disambiguate_grad_if_op_output(
    grad_op: caffe2_pb2.OperatorDef, idx: int, new_grad_output: str
) -> None:
    """Rename an output of the gradient of If, in the operator and in its branches."""
    old = grad_op.output[idx]
    for name in ("then_net", "else_net"):
        net = getNetArgument(grad_op, name)
        for op in net.op if net is not None else ():
            op.output[:] = [new_grad_output if o == old else o for o in op.output]
    grad_op.output[idx] = new_grad_output

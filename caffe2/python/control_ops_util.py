"""Add If and While operators to nets, working out which blobs their bodies share with the net."""

from collections.abc import Iterable

from caffe2.python import core


def get_external_blob_names(
    net: core.Net, lexical_scope: Iterable[str]
) -> tuple[set[str], set[str]]:
    """Blobs that a body reads from, and writes to, the net around it.

    Parameters
    ----------
    net : Net
        The body.
    lexical_scope : iterable of str
        Names of the blobs that the body can see. All else that it writes is its own.
    """
    ssa, _ = core.get_ssa(net.Proto())
    inputs = core.get_undefined_blobs(ssa)
    undefined = sorted(set(inputs) - set(lexical_scope))
    assert not undefined, f"Input blobs {undefined} of net {net.Name()} are undefined"
    outputs = {blob for op in net.Proto().op for blob in op.output if blob in lexical_scope}
    return inputs, outputs


def _refs(names: Iterable[str]) -> list[core.BlobReference]:
    return [core.BlobReference(name) for name in names]


def _add_do(parent, body, name, workspace_name, inputs, outputs, **kwargs):
    """Wrap a body into a net with one Do operator.

    Returns that net and the blob that holds the workspace of the body, a stack of them in a loop.
    """
    do_net = core.Net(name)
    inner_blobs = sorted({*inputs, *outputs})
    outer_blobs = [*inputs, *outputs]
    # The name of the parent keeps the workspaces of several nets apart.
    workspace_blob = parent.NextScopedBlob(f"{parent.Name()}/{workspace_name}")
    do_outputs = [*_refs(outputs), workspace_blob]
    do_net.Do(
        [*_refs(inputs), workspace_blob],
        do_outputs,
        net=body.Proto(),
        inner_blobs=inner_blobs,
        outer_blobs_idx=[outer_blobs.index(b) for b in inner_blobs],
        **kwargs,
    )
    do_net.AddExternalOutput(*do_outputs)
    return do_net, workspace_blob


def add_if_op(
    if_net: core.Net,
    cond_blob: core.BlobReference,
    lexical_scope: Iterable[str],
    then_net: core.Net,
    else_net: core.Net | None = None,
) -> None:
    """Add an If operator to a net.

    Blobs that the branches read before writing them, and those whose names are in
    `lexical_scope`, are blobs of the net: branches see their values and the net sees what the
    branches write. All others exist only inside the branch.

    Parameters
    ----------
    if_net : Net
        The net to add to.
    cond_blob : BlobReference
        A boolean scalar.
    lexical_scope : iterable of str
        Names of the blobs that the branches can see.
    then_net, else_net : Net
        The branches.
    """
    branches = {"then": then_net}
    if else_net:
        branches["else"] = else_net
    inputs, outputs, workspaces, args = {}, {}, [], {}
    for branch, net in branches.items():
        names = [sorted(names) for names in get_external_blob_names(net, lexical_scope)]
        do_net, workspace_blob = _add_do(
            if_net, net, f"do_{branch}_net", f"workspace_if_{branch}", *names
        )
        inputs.update(dict.fromkeys(names[0]))
        outputs.update(dict.fromkeys(names[1]))
        workspaces.append(workspace_blob)
        args[f"{branch}_net"] = do_net.Proto()
    for workspace_blob in workspaces:
        if_net.CreateScope([], [workspace_blob])
    if_outputs = [*_refs(outputs), *workspaces]
    if_net.If([cond_blob, *_refs(inputs), *workspaces], if_outputs, **args)
    if_net.AddExternalOutput(*if_outputs)


def add_while_op(
    while_net: core.Net,
    cond_blob: core.BlobReference,
    lexical_scope: Iterable[str],
    loop_body_net: core.Net,
    condition_body_net: core.Net | None = None,
) -> None:
    """Add a While operator to a net. Which blobs are shared follows the rules of `add_if_op`.

    Parameters
    ----------
    while_net : Net
        The net to add to.
    cond_blob : BlobReference
        A boolean scalar; the loop runs while it is true.
    lexical_scope : iterable of str
        Names of the blobs that the loop can see.
    loop_body_net : Net
        What an iteration runs.
    condition_body_net : Net, optional
        Computes `cond_blob`, before the first and after each iteration.
    """
    reads, writes = get_external_blob_names(loop_body_net, lexical_scope)
    # The loop may not run even once: what it writes must have a value before.
    inputs, outputs = sorted(reads | writes), sorted(writes)
    do_net, workspace_blob = _add_do(
        while_net,
        loop_body_net,
        "do_loop_body_net",
        "workspace_loop_body",
        inputs,
        outputs,
        copy_external_blobs=True,
    )
    while_inputs = [cond_blob, *_refs(inputs), workspace_blob]
    while_outputs = [*_refs(outputs), workspace_blob]
    workspaces = [workspace_blob]
    args = {"loop_net": do_net.Proto()}

    if condition_body_net:
        cond = str(cond_blob)
        assert any(cond in op.output for op in condition_body_net.Proto().op), (
            "Condition net does not write into condition blob"
        )
        reads, writes = get_external_blob_names(condition_body_net, lexical_scope)
        cond_inputs, cond_outputs = sorted(reads), sorted(writes | {cond})
        cond_net, workspace_blob = _add_do(
            while_net,
            condition_body_net,
            "do_loop_condition_net",
            "workspace_loop_cond",
            cond_inputs,
            cond_outputs,
        )
        args["cond_net"] = cond_net.Proto()
        workspaces.append(workspace_blob)
        while_inputs += [*_refs(b for b in cond_inputs if b not in inputs), workspace_blob]
        while_outputs += [*_refs(b for b in cond_outputs if b not in outputs), workspace_blob]
        if cond not in lexical_scope:
            while_net.ConstantFill([], cond_blob, dtype=core.DataType.BOOL, value=False)

    for workspace_blob in workspaces:
        while_net.CreateScope([], [workspace_blob])
    while_net.While(while_inputs, while_outputs, **args)
    while_net.AddExternalOutput(*while_outputs)

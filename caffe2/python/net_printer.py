"""Nets, steps, tasks and jobs as readable text, and a check that their blobs are defined."""
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os.path import commonprefix as _commonprefix
from typing import Any

from caffe2.proto.caffe2_pb2 import NetDef, OperatorDef
from caffe2.python.core import ExecutionStep, Net, Plan

# Their modules are not imported here: an instance of one proves that its module is loaded.
_TASK = "caffe2.python.task.Task"
_TASK_GROUP = "caffe2.python.task.TaskGroup"
_JOB = "caffe2.python.checkpoint.Job"


class Visitor:
    """Calls the function that is registered for the class of an object."""

    @classmethod
    def register(cls, Type: type | str) -> Callable:
        """Register a function for a class, or for the dotted name of one."""
        if "visitors" not in vars(cls):
            cls.visitors = []

        def _register(func: Callable) -> Callable:
            cls.visitors.append((Type, func))
            return func

        return _register

    def __call__(self, obj: Any, *args, **kwargs) -> Any:
        if obj is None:
            return None
        for Type, func in self.__class__.visitors:
            if isinstance(Type, str):
                module, name = Type.rsplit(".", 1)
                Type = getattr(sys.modules.get(module), name, ())
            if isinstance(obj, Type):
                return func(self, obj, *args, **kwargs)
        raise TypeError(f"{self.__class__.__name__}: unsupported object type: {type(obj)}")


class Analyzer(Visitor):
    """Checks that blobs are defined before they are used, and once in concurrent steps."""

    PREFIXES_TO_IGNORE = {"distributed_ctx_init"}

    def __init__(self):
        self.workspaces: dict = defaultdict(lambda: defaultdict(int))
        self.workspace_ctx: list[dict] = []

    @property
    def workspace(self) -> dict:
        """The counts of definitions of the blobs that are visible now."""
        return self.workspace_ctx[-1]

    @contextmanager
    def set_workspace(
            self, node: Any = None, ws: dict | None = None,
            do_copy: bool = False) -> Iterator[dict]:
        """Use `ws`, or the workspace of `node`, or the current one; a copy with `do_copy`."""
        if ws is None:
            ws = self.workspace if node is None else self.workspaces[str(node)]
        self.workspace_ctx.append(ws.copy() if do_copy else ws)
        try:
            yield self.workspace
        finally:
            self.workspace_ctx.pop()

    def define_blob(self, blob: str) -> None:
        """Note that a blob is written."""
        self.workspace[blob] += 1

    def need_blob(self, blob: str) -> None:
        """Check that a blob has been written."""
        if not any(blob.startswith(p) for p in Analyzer.PREFIXES_TO_IGNORE):
            assert blob in self.workspace, f"Blob undefined: {blob}"


@Analyzer.register(OperatorDef)
def analyze_op(analyzer: Analyzer, op: OperatorDef) -> None:
    """Check an operator."""
    for x in op.input:
        analyzer.need_blob(x)
    for x in op.output:
        analyzer.define_blob(x)


@Analyzer.register(Net)
def analyze_net(analyzer: Analyzer, net: Net) -> None:
    """Check the operators of a net."""
    for op in net.Proto().op:
        analyzer(op)


def _substeps(step: ExecutionStep) -> list:
    return step.Substeps() + [step.get_net(n) for n in step.Proto().network]


@Analyzer.register(ExecutionStep)
def analyze_step(analyzer: Analyzer, step: ExecutionStep) -> None:
    """Check an execution step and what is below it."""
    proto = step.Proto()
    all_new_blobs: set = set()
    with analyzer.set_workspace(do_copy=proto.create_workspace):
        if proto.report_net:
            with analyzer.set_workspace(do_copy=True):
                analyzer(step.get_net(proto.report_net))
        for substep in _substeps(step):
            with analyzer.set_workspace(do_copy=proto.concurrent_substeps) as inner:
                analyzer(substep)
                if proto.should_stop_blob:
                    analyzer.need_blob(proto.should_stop_blob)
            if proto.concurrent_substeps:
                new_blobs = set(inner) - set(analyzer.workspace)
                repeated = all_new_blobs & new_blobs
                assert not repeated, (
                    f"Error: Blobs created by multiple parallel steps: {', '.join(repeated)}")
                all_new_blobs |= new_blobs
    for x in all_new_blobs:
        analyzer.define_blob(x)


@Analyzer.register(_TASK)
def analyze_task(analyzer: Analyzer, task: Any) -> None:
    """Check a task, and that its plan fits into a message."""
    from caffe2.python.task import WorkspaceType
    step = task.get_step()
    plan = Plan(task.node)
    plan.AddStep(step)
    size = plan.Proto().ByteSize()
    assert size < 2 ** 31, (
        f"Serialized tasks must be smaller than 2 GiB, this one has {size} bytes.")
    is_private = task.workspace_type() != WorkspaceType.GLOBAL
    with analyzer.set_workspace(do_copy=is_private):
        analyzer(step)


@Analyzer.register(_TASK_GROUP)
def analyze_task_group(analyzer: Analyzer, tg: Any) -> None:
    """Check the tasks of a group, each in the workspace of its node."""
    for task in tg.tasks_by_node().tasks():
        with analyzer.set_workspace(node=task.node):
            analyzer(task)


@Analyzer.register(_JOB)
def analyze_job(analyzer: Analyzer, job: Any) -> None:
    """Check the groups of a job."""
    analyzer(job.init_group)
    analyzer(job.epoch_group)


def analyze(obj: Any) -> None:
    """Check a net, step, task, task group or job.

    Raises
    ------
    AssertionError
        If a blob is used before it is defined, or defined in several concurrent steps.
    """
    analyzer = Analyzer()
    with analyzer.set_workspace(node=""):
        analyzer(obj)


class Text:
    """Lines of text, indented inside contexts."""

    def __init__(self):
        self._indent = 0
        self._lines_in_context = [0]
        self.lines: list[str] = []

    @contextmanager
    def context(self, text: str | None) -> Iterator[None]:
        """Indent what is added inside under ``with text:``; without a text, do nothing."""
        if text is None:
            yield
            return
        self.add(f"with {text}:")
        self._indent += 4
        self._lines_in_context.append(0)
        yield
        if self._lines_in_context[-1] == 0:
            self.add("pass")
        self._indent -= 4
        self._lines_in_context.pop()

    def add(self, text: str) -> None:
        """Add a line."""
        self._lines_in_context[-1] += 1
        self.lines.append(" " * self._indent + text)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Printer(Visitor, Text):
    """Writes objects as text.

    Parameters
    ----------
    factor_prefixes : bool
        Whether the common prefix of blob names is written once.
    c2_syntax : bool
        Whether nets are written as Python that makes them.
    """

    def __init__(self, factor_prefixes: bool = False, c2_syntax: bool = True):
        super().__init__()
        self.factor_prefixes = factor_prefixes
        self.c2_syntax = c2_syntax
        self.c2_net_name: str | None = None


def _sanitize_str(s: Any) -> str:
    text = s.decode("ascii", errors="ignore") if isinstance(s, bytes) else str(s)
    if len(text) < 64:
        return f"'{text}'"
    return f"'{text[:64]}'...<+len={len(text) - 64}>"


def _arg_val(arg: Any) -> str:
    for field, write in (("f", str), ("i", str), ("s", _sanitize_str)):
        if arg.HasField(field):
            return write(getattr(arg, field))
    if arg.strings:
        return str([_sanitize_str(s) for s in arg.strings])
    return str(list(arg.floats or arg.ints))


def commonprefix(m: list[str]) -> str:
    """Return the longest common prefix of some strings."""
    return _commonprefix(m)


def format_value(val: Any) -> str:
    """Write a value; the elements of a list are quoted."""
    if isinstance(val, list):
        return "[%s]" % ", ".join(f"'{v}'" for v in val)
    return str(val)


def factor_prefix(vals: Iterable, do_it: bool) -> str:
    """Join values, with their common prefix in front of brackets if `do_it`."""
    vals = [format_value(v) for v in vals]
    prefix = commonprefix(vals) if len(vals) > 1 and do_it else ""
    joined = ", ".join(v[len(prefix):] for v in vals)
    return f"{prefix}[{joined}]" if prefix else joined


def call(
        op: str, inputs: Iterable | None = None, outputs: Iterable | None = None,
        factor_prefixes: bool = False) -> str:
    """Write ``outputs = op(inputs)``; pairs among the inputs are keyword arguments."""
    inputs = list(inputs or ())
    values = factor_prefix([a for a in inputs if not isinstance(a, tuple)], factor_prefixes)
    pairs = ["%s=%s" % a for a in inputs if isinstance(a, tuple)]
    text = f"{op}({', '.join(x for x in (values, *pairs) if x)})"
    return f"{factor_prefix(outputs, factor_prefixes)} = {text}" if outputs else text


def format_device_option(dev_opt: Any) -> str | None:
    """Write a device option, None for an empty one."""
    if not dev_opt or not (dev_opt.device_type or dev_opt.device_id or dev_opt.node_name):
        return None
    return call(
        "DeviceOption", [dev_opt.device_type, dev_opt.device_id, f"'{dev_opt.node_name}'"])


@Printer.register(OperatorDef)
def print_op(text: Any, op: OperatorDef) -> None:
    """Write an operator and the nets among its arguments."""
    args = [(a.name, _arg_val(a)) for a in op.arg if not (a.HasField("n") or a.nets)]
    device = format_device_option(op.device_option)
    if device:
        args.append(("device_option", device))
    net_name = getattr(text, "c2_net_name", None)
    if net_name:
        text.add(call(f"{net_name}.{op.type}", [list(op.input), list(op.output), *args]))
    else:
        text.add(call(
            op.type, [*op.input, *args], op.output,
            factor_prefixes=getattr(text, "factor_prefixes", False)))
    for arg in op.arg:
        for net in [arg.n] if arg.HasField("n") else arg.nets:
            with text.context(f"arg: {arg.name}"):
                (text if isinstance(text, Printer) else Printer())(net)


@Printer.register(NetDef)
def print_net_def(text: Printer, net_def: NetDef) -> None:
    """Write the operators of a net."""
    outer = text.c2_net_name
    if text.c2_syntax:
        text.add(call("core.Net", [f"'{net_def.name}'"], [net_def.name]))
        text.c2_net_name = net_def.name
    else:
        text.add(f"# net: {net_def.name}")
    for op in net_def.op:
        text(op)
    text.c2_net_name = outer


@Printer.register(Net)
def print_net(text: Printer, net: Net) -> None:
    """Write the operators of a net."""
    text(net.Proto())


def _step_context(step: ExecutionStep) -> tuple[str | None, bool]:
    """Return what surrounds the substeps, and whether each has a context of its own."""
    proto = step.Proto()
    several = len(step.Substeps()) > 1
    if proto.should_stop_blob:
        return call("loop"), False
    if proto.num_iter and proto.num_iter != 1:
        return call("loop", [proto.num_iter]), False
    if proto.num_concurrent_instances > 1:
        return call("parallel", [("num_instances", proto.num_concurrent_instances)]), several
    if proto.concurrent_substeps and several:
        return call("parallel"), True
    if proto.report_net:
        return call("run_once"), False
    return None, False


@Printer.register(ExecutionStep)
def print_step(text: Printer, step: ExecutionStep) -> None:
    """Write an execution step and what is below it."""
    proto = step.Proto()
    step_context, each_substep = _step_context(step)
    with text.context(step_context):
        if proto.report_net:
            with text.context(call("report_net", [proto.report_interval])):
                text(step.get_net(proto.report_net))
        for substep in _substeps(step):
            sub_proto = substep.Proto() if isinstance(substep, ExecutionStep) else None
            context = None
            if sub_proto is not None and sub_proto.run_every_ms:
                context = call(
                    "reporter", [str(substep), ("interval_ms", sub_proto.run_every_ms)])
            elif each_substep:
                own = sub_proto is not None and sub_proto.create_workspace
                context = call("workspace" if own else "step", [str(substep)])
            with text.context(context):
                text(substep)
                if proto.should_stop_blob:
                    text.add(call("yield stop_if", [proto.should_stop_blob]))


def _task_output(output: Any) -> str:
    return f"Output[{', '.join(map(str, output.names))}]"


@Printer.register(_TASK)
def print_task(text: Printer, task: Any) -> None:
    """Write a task."""
    outputs = ", ".join(map(_task_output, task.outputs()))
    context = [("node", task.node), ("name", task.name), ("outputs", outputs)]
    with text.context(call("Task", context)):
        text(task.get_step())


@Printer.register(_TASK_GROUP)
def print_task_group(text: Printer, tg: Any, header: str | None = None) -> None:
    """Write the tasks of a group."""
    with text.context(header or call("TaskGroup")):
        for task in tg.tasks_by_node().tasks():
            text(task)


@Printer.register(_JOB)
def print_job(text: Printer, job: Any) -> None:
    """Write the groups of a job."""
    text(job.init_group, "Job.current().init_group")
    text(job.epoch_group, "Job.current().epoch_group")
    with text.context("Job.current().stop_signals"):
        for output in job.stop_signals:
            text.add(_task_output(output))
    text(job.download_group, "Job.current().download_group")
    text(job.exit_group, "Job.current().exit_group")


def to_string(obj: Any, **kwargs) -> str:
    """Write a net, step, task, task group or job.

    Parameters
    ----------
    obj : Net, NetDef, OperatorDef, ExecutionStep, Task, TaskGroup or Job
    **kwargs
        Options of Printer.
    """
    printer = Printer(**kwargs)
    printer(obj)
    return str(printer)


def debug_net(net: Net) -> Net:
    """Return a copy of a net that logs each operator before it runs."""
    assert isinstance(net, Net)
    logged = Net(str(net))
    for op in net.Proto().op:
        text = Text()
        print_op(text, op)
        logged.LogInfo(str(text))
        logged.Proto().op.extend([op])
    return logged

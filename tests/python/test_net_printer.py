"""Nets and steps as text, and the check of their blobs."""
import sys
import types

import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import core, net_printer


@pytest.fixture
def net():
    net = core.Net("printed")
    net.ConstantFill([], "a", shape=[2, 3], value=0.5, name="fill")
    net.FC(["a", "w", "b"], "y")
    return net


def test_net(net):
    name = net.Name()
    assert net_printer.to_string(net).splitlines() == [
        f"{name} = core.Net('{name}')",
        f"{name}.ConstantFill([], ['a'], shape=[2, 3], value=0.5)",
        f"{name}.FC(['a', 'w', 'b'], ['y'])",
    ]
    assert net_printer.to_string(net.Proto(), c2_syntax=False).splitlines() == [
        f"# net: {name}",
        "a = ConstantFill(shape=[2, 3], value=0.5)",
        "y = FC(a, w, b)",
    ]


def test_operator():
    op = core.CreateOperator(
        "Op", ["scope/a", "scope/b"], ["scope/c", "scope/d"], text="x" * 70, names=["n", "m"],
        device_option=core.DeviceOption(caffe2_pb2.CUDA, 2))
    assert net_printer.to_string(op) == (
        f"scope/c, scope/d = Op(scope/a, scope/b, text='{'x' * 64}'...<+len=6>, "
        """names=["'n'", "'m'"], device_option=DeviceOption(1, 2, ''))""")
    assert net_printer.to_string(op, factor_prefixes=True).startswith(
        "scope/[c, d] = Op(scope/[a, b], ")


def test_nets_among_arguments(net):
    op = core.CreateOperator("If", ["cond"], ["y"], then_net=net.Proto())
    assert net_printer.to_string(op, c2_syntax=False).splitlines() == [
        "y = If(cond)",
        "with arg: then_net:",
        f"    # net: {net.Name()}",
        "    a = ConstantFill(shape=[2, 3], value=0.5)",
        "    y = FC(a, w, b)",
    ]


@pytest.mark.parametrize("arguments, text", [
    ((["op"], {}), "op()"),
    ((["op", ["a", "b"]], {}), "op(a, b)"),
    ((["op", ["ab", "ac", ("k", 1)], ["x"]], {"factor_prefixes": True}), "x = op(a[b, c], k=1)"),
    ((["op", [["a", "b"], ("k", "v")]], {}), "op(['a', 'b'], k=v)"),
])
def test_call(arguments, text):
    positional, named = arguments
    assert net_printer.call(*positional, **named) == text


def test_prefix():
    assert net_printer.commonprefix(["abc", "abd", "ab"]) == "ab"
    assert net_printer.commonprefix([]) == ""


def test_device_option():
    assert net_printer.format_device_option(caffe2_pb2.DeviceOption()) is None
    assert net_printer.format_device_option(None) is None


def test_steps(net):
    name = net.Name()
    inner = core.execution_step("inner", net, num_iter=3)
    stop = core.execution_step("stop", net, should_stop_blob=core.BlobReference("y"))
    parallel = core.execution_step("parallel", [inner, stop], concurrent_substeps=True)
    reported = core.execution_step("reported", [parallel], report_net=net, report_interval=5)
    text = net_printer.to_string(reported, c2_syntax=False).splitlines()
    body = [f"# net: {name}", "a = ConstantFill(shape=[2, 3], value=0.5)", "y = FC(a, w, b)"]
    assert text == [
        "with run_once():",
        "    with report_net(5):",
        *[" " * 8 + line for line in body],
        "    with parallel():",
        f"        with step({inner}):",
        "            with loop(3):",
        *[" " * 16 + line for line in body],
        f"        with step({stop}):",
        "            with loop():",
        *[" " * 16 + line for line in body],
        "                yield stop_if(y)",
    ]


def test_empty_context():
    text = net_printer.Text()
    with text.context("outer"), text.context(None):
        pass
    assert str(text) == "with outer:\n    pass"


def test_unknown_object():
    with pytest.raises(TypeError, match="unsupported object type"):
        net_printer.to_string(3)
    assert net_printer.to_string(None) == ""


# ---------------------------------------------------------------- analysis

def defining(*blobs):
    net = core.Net("defining")
    for b in blobs:
        net.ConstantFill([], b, shape=[1])
    return net


def test_defined():
    net = defining("a")
    net.Relu("a", "b")
    net.Concat(["b", "distributed_ctx_init_x"], ["c", "dims"])
    net_printer.analyze(net)


def test_undefined():
    net = core.Net("net")
    net.Relu("a", "b")
    with pytest.raises(AssertionError, match="Blob undefined: a"):
        net_printer.analyze(net)
    step = core.execution_step("s", defining("a"), should_stop_blob=core.BlobReference("stop"))
    with pytest.raises(AssertionError, match="Blob undefined: stop"):
        net_printer.analyze(step)


def test_steps_see_what_ran_before():
    use = core.Net("use")
    use.Relu("a", "b")
    before = core.execution_step("before", defining("a"))
    after = core.execution_step("after", use)
    net_printer.analyze(core.execution_step("both", [before, after]))
    with pytest.raises(AssertionError, match="Blob undefined: a"):
        net_printer.analyze(core.execution_step("both", [before, after], concurrent_substeps=True))


@pytest.mark.parametrize("concurrent", [False, True])
def test_defined_twice(concurrent):
    steps = [core.execution_step(f"s{i}", defining("a")) for i in range(2)]
    step = core.execution_step("both", steps, concurrent_substeps=concurrent)
    if concurrent:
        with pytest.raises(AssertionError, match="multiple parallel steps: a"):
            net_printer.analyze(step)
    else:
        net_printer.analyze(step)


# ---------------------------------------------------------------- tasks and jobs

@pytest.fixture
def tasks(monkeypatch):
    """Stand-ins for tasks and jobs with what is read of them."""
    class WorkspaceType:
        GLOBAL = "global"

    class Task:
        node = "node"

        def __init__(self, name, net, workspace_type="private", outputs=()):
            self.name, self._outputs, self._type = name, outputs, workspace_type
            self._step = core.execution_step(name, net)

        def get_step(self):
            return self._step

        def workspace_type(self):
            return self._type

        def outputs(self):
            return [types.SimpleNamespace(names=[o]) for o in self._outputs]

    class TaskGroup:
        def __init__(self, *tasks):
            self._tasks = tasks

        def tasks_by_node(self):
            return self

        def tasks(self):
            return self._tasks

    class Job:
        def __init__(self, init, epoch):
            self.init_group, self.epoch_group = init, epoch
            self.download_group = self.exit_group = TaskGroup()
            self.stop_signals = [types.SimpleNamespace(names=["stop"])]

    task = types.ModuleType("caffe2.python.task")
    task.Task, task.TaskGroup, task.WorkspaceType = Task, TaskGroup, WorkspaceType
    checkpoint = types.ModuleType("caffe2.python.checkpoint")
    checkpoint.Job = Job
    for module in (task, checkpoint):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return types.SimpleNamespace(Task=Task, TaskGroup=TaskGroup, Job=Job)


def test_job(tasks):
    init = tasks.TaskGroup(tasks.Task("init", defining("a"), "global"))
    use = core.Net("use")
    use.Relu("a", "b")
    job = tasks.Job(init, tasks.TaskGroup(tasks.Task("epoch", use, outputs=["b"])))
    net_printer.analyze(job)
    text = net_printer.to_string(job, c2_syntax=False).splitlines()
    assert text[0] == "with Job.current().init_group:"
    assert text[1] == "    with Task(node=node, name=init, outputs=):"
    assert "    with Task(node=node, name=epoch, outputs=Output[b]):" in text
    assert text[-6:] == [
        "with Job.current().stop_signals:", "    Output[stop]",
        "with Job.current().download_group:", "    pass",
        "with Job.current().exit_group:", "    pass"]


def test_private_blobs_of_a_task(tasks):
    use = core.Net("use")
    use.Relu("a", "b")
    group = tasks.TaskGroup(tasks.Task("first", defining("a")), tasks.Task("second", use))
    with pytest.raises(AssertionError, match="Blob undefined: a"):
        net_printer.analyze(group)


def test_debug_net(net):
    logged = net_printer.debug_net(net)
    assert [op.type for op in logged.Proto().op] == [
        "GivenTensorStringFill", "Print", "ConstantFill", "GivenTensorStringFill", "Print", "FC"]
    assert logged.Proto().op[3].arg[1].strings[0] == b"y = FC(a, w, b)"

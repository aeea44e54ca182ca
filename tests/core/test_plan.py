"""Plans: iterations, stopping, concurrency, workspaces of their own, reports."""
import threading
import time

import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace


def python_net(name, f, outputs=()):
    net = core.Net(name)
    net.Python(f)([], list(outputs) or [f"{name}_out"])
    return net


def plan_of(*steps):
    plan = core.Plan("plan")
    for s in steps:
        plan.AddStep(s)
    return plan


def log_net(name, log):
    def f(inputs, outputs):
        log.append(name)
        outputs[0].feed(np.zeros(1))
    return python_net(name, f)


def test_iterations_and_order():
    log = []
    nets = [log_net(n, log) for n in "ab"]
    inner = core.execution_step("inner", nets, num_iter=2)
    outer = core.execution_step("outer", [inner, core.execution_step("last", log_net("c", log))], num_iter=2)
    workspace.RunPlan(plan_of(outer))
    assert log == list("ababc") * 2


def test_should_stop_blob():
    log = []

    def f(inputs, outputs):
        log.append(1)
        outputs[0].feed(np.array(len(log) >= 5))
    net = python_net("n", f, ["stop"])
    init = core.Net("init")
    init.ConstantFill([], "stop", shape=[], value=False, dtype=core.DataType.BOOL)
    loop = core.execution_step("s", net, should_stop_blob=core.BlobReference("stop"))
    plan = plan_of(core.execution_step("init", init), loop)
    workspace.FeedBlob("stop", np.array(False))
    workspace.RunPlan(plan)
    assert len(log) == 5


def test_only_once():
    log = []
    workspace.FeedBlob("stop", np.array(False))
    step = core.execution_step("s", log_net("n", log), should_stop_blob=core.BlobReference("stop"), only_once=True)
    workspace.RunPlan(plan_of(step))
    assert log == ["n"]


def test_concurrent_substeps_meet():
    meeting = threading.Barrier(3, timeout=10)

    def meet(inputs, outputs):
        meeting.wait()
        outputs[0].feed(np.zeros(1))
    steps = [core.execution_step(f"s{i}", python_net(f"n{i}", meet)) for i in range(3)]
    workspace.RunPlan(plan_of(core.execution_step("all", steps, concurrent_substeps=True)))
    assert workspace.HasBlob("n2_out")


def test_a_failure_among_concurrent_substeps_is_raised_and_stops_the_others():
    def fails(inputs, outputs):
        raise ValueError("as it must")
    count = []

    def slow(inputs, outputs):
        count.append(1)
        time.sleep(0.005)
        outputs[0].feed(np.zeros(1))
    steps = [core.execution_step("bad", python_net("bad", fails)),
             core.execution_step("long", python_net("long", slow), num_iter=10**6)]
    with pytest.raises(RuntimeError, match="as it must"):
        workspace.RunPlan(plan_of(core.execution_step("all", steps, concurrent_substeps=True)))
    assert len(count) < 1000


def test_a_workspace_of_its_own():
    net = core.Net("n")
    net.ConstantFill([], "inner", shape=[1])
    step = core.execution_step("s", net, create_workspace=True)
    workspace.RunPlan(plan_of(step))
    assert not workspace.HasBlob("inner")


def test_report_net():
    log = []
    work = python_net("work", lambda i, o: (time.sleep(0.1), o[0].feed(np.zeros(1))))
    step = core.execution_step("s", work, num_iter=5, report_net=log_net("report", log), report_interval=1)
    workspace.RunPlan(plan_of(step))
    assert log and set(log) == {"report"}


def test_run_every_ms():
    log = []
    main = core.execution_step("main", python_net("w", lambda i, o: (time.sleep(0.01), o[0].feed(np.zeros(1)))),
                               num_iter=30)
    side = core.execution_step("side", log_net("side", log))
    side.RunEveryMillis(20)
    workspace.RunPlan(plan_of(core.execution_step("all", [main, side])))
    assert 3 <= len(log) <= 40


def test_num_concurrent_instances():
    log = []
    sub = core.execution_step("s", log_net("n", log), create_workspace=True)
    step = core.execution_step("all", [sub], num_concurrent_instances=4, concurrent_substeps=True)
    workspace.RunPlan(plan_of(step))
    assert log == ["n"] * 4


def test_in_background():
    log = []
    background = workspace.RunPlanInBackground(plan_of(core.execution_step("s", log_net("n", log))))
    assert background.is_succeeded() and background.is_done()
    assert log == ["n"]


@pytest.mark.parametrize("change, word", [
    (lambda p: p.execution_step[0].network.append("nowhere"), "nowhere"),
    (lambda p: p.execution_step[0].substep.add(), "both"),
    (lambda p: setattr(p.execution_step[0], "only_once", True), "only_once"),
    (lambda p: setattr(p.execution_step[0], "should_stop_blob", "nowhere"), "nowhere"),
    (lambda p: setattr(p.execution_step[0], "report_net", "n"), "report_interval"),
    (lambda p: p.network.add(name="n"), "twice"),
])
def test_malformed_plans(change, word):
    net = core.Net("n")
    net.ConstantFill([], "x", shape=[1])
    plan = caffe2_pb2.PlanDef(name="p", network=[net.Proto()])
    plan.execution_step.add(name="s").network.append(net.Proto().name)
    plan.network[0].name = plan.execution_step[0].network[0] = "n"
    change(plan)
    with pytest.raises(RuntimeError, match=word):
        workspace.C.run_plan(plan.SerializeToString())

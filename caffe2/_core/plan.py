"""Plans: execution steps that run nets, one after the other, again and again, or side by side."""
import threading

import numpy as np

from caffe2._core.executor import create_net
from caffe2._core.workspace import Workspace


class PlanError(RuntimeError):
    """A plan cannot be run."""


class _Step:
    """An ExecutionStep bound to a workspace."""

    def __init__(self, definition, workspace, run):
        d = self.definition = definition
        if d.create_workspace:
            workspace = Workspace(workspace.root_folder, workspace)
            run.inject_workspace_id(workspace)
        self.workspace = workspace
        self.failed = False
        if d.substep and d.network:
            raise PlanError(f"execution step {d.name!r} has both substeps and nets; it may have either")
        if d.HasField("should_stop_blob") and d.HasField("num_iter"):
            raise PlanError(f"execution step {d.name!r} has both num_iter and should_stop_blob; it may have either")
        if d.HasField("only_once") and not d.HasField("should_stop_blob"):
            raise PlanError(f"execution step {d.name!r}: only_once needs should_stop_blob")
        if d.HasField("report_net") and not d.HasField("report_interval"):
            raise PlanError(f"execution step {d.name!r} has a report_net but no report_interval")
        self.recurring, self.reporting = [], []
        for sub in d.substep:
            bound = _Lazy(sub, workspace, run)
            (self.reporting if sub.HasField("run_every_ms") else self.recurring).append(bound)
        self.nets = [run.net(name, workspace, d) for name in d.network]
        self.should_stop = None
        if d.HasField("should_stop_blob"):
            self.should_stop = workspace.get(d.should_stop_blob)
            if self.should_stop is None:
                raise PlanError(f"execution step {d.name!r}: its should_stop_blob {d.should_stop_blob} does not exist")
        self.report_net = run.net(d.report_net, workspace, d) if d.HasField("report_net") else None

    def iterations(self):
        """How many times to run; None for until stopped."""
        d = self.definition
        if d.HasField("should_stop_blob"):
            return 1 if d.only_once else None
        return d.num_iter if d.HasField("num_iter") else 1

    def stopped(self):
        blob = self.should_stop
        if blob is None or not blob.is_tensor:
            return False
        value = blob.view()
        if value.dtype != np.bool_ or value.size != 1:
            raise PlanError(f"to stop execution step {self.definition.name!r}, blob {blob.describe()} must be one bool")
        return bool(value.reshape(())[()])

    def execute(self, proceed):
        """Run; `proceed` says whether the steps around this one still want it to."""
        reporters = []
        over = threading.Event()
        if self.report_net is not None:
            reporters.append((self.definition.report_interval, self.report_net.run))
        for sub in self.reporting:
            reporters.append((sub.definition.run_every_ms / 1e3, lambda sub=sub: sub.bound().execute(proceed)))
        running = [threading.Thread(target=_report, args=(over, *r), daemon=True) for r in reporters]
        for t in running:
            t.start()
        try:
            self._loop(proceed)
        finally:
            over.set()
            for t in running:
                t.join()

    def _loop(self, proceed):
        d = self.definition
        limit, i = self.iterations(), 0
        concurrent = (d.concurrent_substeps and len(d.substep) > 1) or d.num_concurrent_instances > 1
        while proceed() and (limit is None or i < limit):
            if not d.substep:
                for net in self.nets:
                    net.run()
                    if self.stopped():
                        return
                if not self.nets and limit is None and self.stopped():
                    return
            elif concurrent:
                self._side_by_side(proceed)
                if self.stopped():
                    return
            else:
                for sub in self.recurring:
                    sub.bound().execute(proceed)
                    if self.stopped():
                        return
            i += 1

    def _side_by_side(self, proceed):
        errors = []
        self.failed = False

        def work(sub):
            try:
                sub.bound().execute(lambda: not self.failed and proceed())
            except BaseException as e:
                errors.append(e)
                self.failed = True

        subs = self.recurring * max(1, self.definition.num_concurrent_instances)
        running = [threading.Thread(target=work, args=(s,), daemon=True) for s in subs]
        for t in running:
            t.start()
        try:
            for t in running:
                t.join()
        except KeyboardInterrupt:
            self.failed = True
            raise
        if errors:
            raise errors[0]


class _Lazy:
    """A substep; one with a workspace of its own is bound afresh each time it runs."""

    def __init__(self, definition, workspace, run):
        self.definition, self.workspace, self.run = definition, workspace, run
        self.step = None if definition.create_workspace else _Step(definition, workspace, run)

    def bound(self):
        return self.step or _Step(self.definition, self.workspace, self.run)


class _Run:
    """What the steps of one running plan share."""

    def __init__(self, plan):
        self.nets = {}
        for n in plan.network:
            if n.name in self.nets:
                raise PlanError(f"plan {plan.name!r} defines net {n.name!r} twice")
            self.nets[n.name] = n
        self.fresh = set()
        self.lock = threading.Lock()
        self.sequence = 0

    def net(self, name, workspace, step):
        if name not in self.nets:
            raise PlanError(f"execution step {step.name!r} uses net {name!r}, which the plan does not define")
        with self.lock:
            if name in self.fresh and name in workspace.nets:
                return workspace.nets[name]
            self.fresh.add(name)
        return create_net(self.nets[name], workspace, overwrite=True)

    def inject_workspace_id(self, workspace):
        """Number the workspaces of a node of a distributed run, so that they have names across nodes."""
        node = workspace.get("NODE_ID")
        if node is None or not node.is_tensor:
            return
        with self.lock:
            number, self.sequence = self.sequence, self.sequence + 1
        if number >= 1 << 16:
            raise PlanError("more than 65536 workspaces in one plan")
        value = number + (int(node.view().ravel()[0]) << 16)
        workspace.create_local("GLOBAL_WORKSPACE_ID").feed(np.array(value, dtype=np.int32))


def _report(over, interval, run):
    while not over.wait(interval):
        run()
    run()


def run_plan(plan, workspace):
    """Run a plan's execution steps, in order, in a workspace.

    Parameters
    ----------
    plan : PlanDef
    workspace : Workspace

    Raises
    ------
    PlanError
        If a step is malformed or uses what is not defined.
    OperatorError
        If an operator fails; of steps that run side by side, the first failure is raised, after the others ended.
    """
    if not plan.execution_step:
        return True
    run = _Run(plan)
    for step in plan.execution_step:
        _Lazy(step, workspace, run).bound().execute(lambda: True)
    return True

"""What running a net costs beside its operators: many Relus of one element; see also Walkthrough."""

import time

from caffe2.python import workspace

from .models import relus

OPERATORS = 1000


class Chain:
    params = ["simple", "dag", "async_scheduling"]
    param_names = ["net_type"]
    unit = "ns"

    def setup(self, net_type):
        workspace.ResetWorkspace()
        self.net = relus(OPERATORS, net_type=net_type)
        workspace.RunNet(self.net)

    def track_per_operator(self, net_type):
        times = []
        for _ in range(20):
            start = time.perf_counter_ns()
            workspace.RunNet(self.net, 10)
            times.append((time.perf_counter_ns() - start) / 10 / OPERATORS)
        return sorted(times)[10]


class Calls:
    """What a call costs beside the net it runs."""

    def setup(self):
        workspace.ResetWorkspace()
        self.net = relus(1)

    def time_run_net(self):
        workspace.RunNet(self.net)

    def time_create_net(self):
        relus(10)

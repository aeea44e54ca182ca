"""Observers: told before and after a net and each of its operators run.

An observer is any object with the four methods of `Observer`; a net that has one runs its operators one at a time.
"""
from time import perf_counter

from caffe2._core.inference import blob_info
from caffe2._core.schema import OpSchema


class Observer:
    """Base of observers; override what is of interest."""

    def start(self, net):
        """Called before the net runs."""

    def start_operator(self, net, operator):
        """Called before an operator runs."""

    def stop_operator(self, net, operator):
        """Called after an operator ran."""

    def stop(self, net):
        """Called after the net ran."""

    def debug_info(self):
        """What was observed, as text."""
        return "This observer has no debug info."


class TimeObserver(Observer):
    """Time of the net and of its operators.

    Attributes
    ----------
    total_time : float
        Seconds that all runs took together.
    runs : int
    operator_times : dict of Operator to float
        Seconds, all runs together.
    """

    def __init__(self):
        self.total_time = 0.0
        self.runs = 0
        self.operator_times = {}

    def start(self, net):
        self._net_start = perf_counter()

    def start_operator(self, net, operator):
        self._start = perf_counter()

    def stop_operator(self, net, operator):
        spent = perf_counter() - self._start
        self.operator_times[operator] = self.operator_times.get(operator, 0.0) + spent

    def stop(self, net):
        self.total_time += perf_counter() - self._net_start
        self.runs += 1

    def average_time(self):
        """Milliseconds a run."""
        return 1e3 * self.total_time / max(self.runs, 1)

    def average_time_children(self):
        """Milliseconds an operator's run, averaged over operators and runs."""
        n = max(len(self.operator_times) * self.runs, 1)
        return 1e3 * sum(self.operator_times.values()) / n

    def debug_info(self):
        return f"{self.runs} runs, {self.average_time():.4f} ms each"


class ProfileObserver(TimeObserver):
    """Prints each operator, its inputs' shapes and its time, run after run."""

    def start(self, net):
        super().start(net)
        print(f"net {net.name} starts")

    def stop_operator(self, net, operator):
        spent = perf_counter() - self._start
        super().stop_operator(net, operator)
        print(f"{1e3 * spent:9.4f} ms  {operator.describe()}")

    def stop(self, net):
        super().stop(net)
        print(f"net {net.name} took {1e3 * (perf_counter() - self._net_start):.4f} ms")


class CostObserver(Observer):
    """Operations and bytes of each operator, summed by operator type over the last run.

    Attributes
    ----------
    by_type : dict of str to dict
        ``flops``, ``bytes_read``, ``bytes_written``, ``params_bytes`` and ``calls``.
    """

    def start(self, net):
        self.by_type = {}

    def start_operator(self, net, operator):
        self._inputs = [blob_info(b) for b in operator.inputs]

    def stop_operator(self, net, operator):
        cost = OpSchema.get(operator.type).cost(operator.definition, self._inputs)
        total = self.by_type.setdefault(operator.type, {"calls": 0})
        total["calls"] += 1
        for key, value in (cost or {}).items():
            total[key] = total.get(key, 0) + value

    def debug_info(self):
        return "\n".join(f"{t}: {c}" for t, c in sorted(self.by_type.items()))


class RunCountObserver(Observer):
    """Number of operators' runs.

    Attributes
    ----------
    count : int
    """

    def __init__(self):
        self.count = 0

    def stop_operator(self, net, operator):
        self.count += 1

    def debug_info(self):
        return f"This operator runs {self.count} times."


OBSERVERS = {
    "TimeObserver": TimeObserver,
    "ProfileObserver": ProfileObserver,
    "CostObserver": CostObserver,
    "RunCountObserver": RunCountObserver,
}

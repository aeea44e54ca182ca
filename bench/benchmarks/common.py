"""What the benchmarks share."""

from abc import ABC, abstractmethod

from caffe2._core.threads import set_num_threads

from caffe2.python import workspace

THREADS = [1, 2]


class Fresh(ABC):
    """Base: a net in an empty workspace; the last parameter is the number of threads."""

    @abstractmethod
    def build(self, *params):
        """Bind the net and return its name."""

    def setup(self, *params):
        workspace.ResetWorkspace()
        set_num_threads(params[-1])
        self.net = self.build(*params[:-1])
        workspace.RunNet(self.net)

    def time_run(self, *params):
        workspace.RunNet(self.net)

    def peakmem_run(self, *params):
        workspace.RunNet(self.net)

"""The introduction's net: seven operators with gradients, on 16 rows."""

import threading

from caffe2.python import workspace

from .models import walk_through


class WalkThrough:
    params = [False, True]
    param_names = ["gradients"]

    def setup(self, gradients):
        workspace.ResetWorkspace()
        self.name = walk_through(gradients=gradients)[0].net.Name()

    def time_1000_iterations(self, gradients):
        workspace.RunNet(self.name, 1000)

    def peakmem_run(self, gradients):
        workspace.RunNet(self.name)


class Parallel:
    """The same number of iterations in each Python thread; ideal is the time of one."""

    params = [1, 2]
    param_names = ["python_threads"]

    def setup(self, python_threads):
        self.nets = [walk_through(workspace.C.Workspace())[1] for _ in range(python_threads)]

    def time_20000_iterations(self, python_threads):
        threads = [threading.Thread(target=net.run, args=(20000,)) for net in self.nets]
        for t in threads:
            t.start()
        for t in threads:
            t.join()

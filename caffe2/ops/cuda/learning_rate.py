"""What the CPU computes for nets on a device: counts of iterations, and learning rates."""
from caffe2._core.cuda import CudaOperator
from caffe2._core.net import run_bound
from caffe2._core.operator import create_operator
from caffe2._core.registry import find
from caffe2._core.workspace import Workspace
from caffe2.ops.cuda.pointwise import register_cuda

# Counts stay on the CPU, whichever device the operator is for.
for _name in ("Iter", "AtomicIter", "CreateMutex"):
    register_cuda(_name, find(_name))


@register_cuda("LearningRate")
class LearningRate(CudaOperator):
    """Computed on the CPU from the iteration there, and copied to the device."""

    host_inputs = (0,)

    def setup(self):
        on_cpu = type(self.definition)()
        on_cpu.CopyFrom(self.definition)
        on_cpu.ClearField("device_option")
        workspace = Workspace(".", self.workspace)
        self.result = workspace.create_local(on_cpu.output[0])
        self.operator = create_operator(on_cpu, workspace)

    def execute(self):
        run_bound(self.operator)
        self.set_from_host(0, self.result.fetch())

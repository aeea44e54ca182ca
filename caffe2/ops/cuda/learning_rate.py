"""What the CPU computes for nets on a device: counts of iterations, and learning rates."""
from caffe2._core.cuda import CudaOperator, OnCPU
from caffe2._core.operator import create_operator
from caffe2._core.registry import find
from caffe2._core.workspace import Workspace
from caffe2.ops.cuda.pointwise import FLOAT, register_cuda

# Counts stay on the CPU, whichever device the operator is for.
for _name in ("Iter", "AtomicIter", "CreateMutex"):
    register_cuda(_name, find(_name))


@register_cuda("LearningRate")
class LearningRate(CudaOperator):
    """Computed on the CPU from the iteration there; a kernel brings it to the device."""

    host_inputs = (0,)

    def setup(self):
        on_cpu = type(self.definition)()
        on_cpu.CopyFrom(self.definition)
        on_cpu.ClearField("device_option")
        workspace = Workspace(".", self.workspace)
        workspace.create_local(on_cpu.output[0])
        self.operator = create_operator(on_cpu, workspace)

    def execute(self):
        self.launch("Constant4", 1, self.target(0, (), FLOAT), 1, None, OnCPU(self.operator), stem="filler")

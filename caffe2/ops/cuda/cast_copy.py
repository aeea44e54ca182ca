"""Casts, and copies on a device, to and from it."""
from caffe2._core.cuda import CudaOperator
from caffe2.ops.cast_copy import dtype_argument
from caffe2.ops.cuda.pointwise import FLOAT, FLOAT16, SUFFIX, register_cuda


@register_cuda("StopGradient")
@register_cuda("EnsureDense")
@register_cuda("CopyOnDeviceLike")
class SameDevice(CudaOperator):
    def execute(self):
        self.copy(0, 0)


@register_cuda("Copy")
class Copy(CudaOperator):
    """From another device, too."""

    def check_input(self, i):
        if self.device_id(i) in (-1, self.device.index):
            super().check_input(i)

    def execute(self):
        self.repeats = self.device_id(0) == self.device.index
        if self.repeats:
            self.copy(0, 0)
        else:
            self.copy_across(0, 0)


@register_cuda("Alias")
@register_cuda("AliasWithName")
class Alias(CudaOperator):
    repeats = False

    def execute(self):
        self.share(0, 0)


@register_cuda("CopyCPUToGPU")
@register_cuda("CopyFromCPUInput")
class FromCPU(CudaOperator):
    """The memory is copied aside first, so nothing waits."""

    host_inputs = (0,)
    repeats = False

    def check_input(self, i):
        # what is there already is copied too
        if not self.on_device(i):
            super().check_input(i)

    def execute(self):
        if self.on_device(0):
            self.copy(0, 0)
        else:
            self.set_from_host(0, self.host(0))


@register_cuda("CopyGPUToCPU")
@register_cuda("EnsureCPUOutput")
class ToCPU(CudaOperator):
    """Waits, since the CPU may read the output next."""

    host_outputs = (0,)
    repeats = False

    def check_input(self, i):
        if self.on_device(i):
            super().check_input(i)

    def execute(self):
        self.set_output(0, self.values(0))


# ---------------------------------------------------------------- casts

@register_cuda("Cast")
class Cast(CudaOperator):
    def setup(self):
        self.to = dtype_argument(self.args, "to")
        if self.to not in SUFFIX:
            raise TypeError("no tensor on a GPU can hold such values")

    def execute(self):
        x = self.source(0, tuple(SUFFIX))
        if x.dtype == self.to:
            self.copy(0, 0)
            return
        y = self.target(0, x.shape, self.to)
        self.launch(f"Cast{SUFFIX[x.dtype]}{SUFFIX[self.to]}", y.size, x, y, y.size)


@register_cuda("FloatToHalf")
class FloatToHalf(Cast):
    def setup(self):
        self.to = FLOAT16

    def execute(self):
        self.source(0, (FLOAT,))
        super().execute()


@register_cuda("HalfToFloat")
class HalfToFloat(Cast):
    def setup(self):
        self.to = FLOAT

    def execute(self):
        self.source(0, (FLOAT16,))
        super().execute()

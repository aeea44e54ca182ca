"""Reductions over axes."""
from caffe2._core.cuda import CudaOperator
from caffe2._core.schema import OpSchema
from caffe2.ops.cuda.pointwise import FLOAT, FLOAT16, FLOATS, INT64, NUMBERS, SUFFIX, product, register_cuda


class Reducing(CudaOperator):
    """Base of operators that reduce tensors."""

    def reduce(self, kernel, x, shape, axes, y, scale=1.0, scratch=0):
        """y = the reduction of x, seen with this shape, over some axes; `scale` times, where it is a sum.

        Neighbouring axes are reduced together, from the last ones on; `scratch` and the next are the rooms used.
        """
        shape = list(shape)
        between = FLOAT if x.dtype == FLOAT16 else x.dtype
        axes = sorted(a % len(shape) for a in axes)
        groups = []
        for a in axes:
            if groups and groups[-1][-1] == a - 1:
                groups[-1].append(a)
            else:
                groups.append([a])
        passes = [(product(shape[:g[0]]), product(shape[g[0]:g[-1] + 1]), product(
            d for i, d in enumerate(shape[g[-1] + 1:], g[-1] + 1) if i not in axes)) for g in groups[::-1]]
        if not passes:
            passes = [(1, 1, product(shape))]
        first = {"SumSqr": "Sum", "SumAbs": "Sum"}
        for k, (outer, n, inner) in enumerate(passes):
            last = k == len(passes) - 1
            blocks = outer * -(-inner // 32) if inner > 1 else outer
            per_part = 4096 if inner == 1 else 256
            parts = min(-(-n // per_part), -(-8 * self.device.multiprocessors // max(blocks, 1)))
            parts = max(parts, 1)
            to = y if last and parts == 1 else self.room(scratch, outer * parts * inner, between)
            name = kernel if k == 0 else first.get(kernel, kernel)
            self.one_pass(name, x, to, outer, n, inner, parts, scale if last and parts == 1 else 1.0)
            x, scratch = to, scratch + 1
            if parts > 1:
                to = y if last else self.room(scratch, outer * inner, between)
                self.one_pass(first.get(kernel, kernel), x, to, outer, parts, inner, 1, scale if last else 1.0)
                x, scratch = to, scratch + 1

    def one_pass(self, kernel, x, y, outer, n, inner, parts, scale):
        blocks = outer * parts * (-(-inner // 32) if inner > 1 else 1)
        kernel += SUFFIX[x.dtype] + (SUFFIX[y.dtype] if y.dtype != x.dtype else "")
        self.launch_blocks(kernel, min(blocks, 1 << 20), x, y, outer, n, inner, parts, -(-n // parts), float(scale),
                           stem="reduction")

    def sum_all(self, x, y, scale=1.0, kernel="Sum", scratch=0):
        self.reduce(kernel, x, [x.size], [0], y, scale, scratch)


def axes_of(op, ndim):
    """The axes that an operator reduces, sorted."""
    args, kind = op.args, op.type.replace("Gradient", "")
    if kind.startswith(("ReduceFront", "ReduceBack")):
        if len(op.inputs) > (2 if op.type != kind else 1):
            raise RuntimeError("lengths are understood on the CPU alone")
        n = args.int("num_reduce_dim", 1)
        if not 0 <= n <= ndim:
            raise ValueError(f"num_reduce_dim is {n}, but there are {ndim} dimensions")
        return list(range(n)) if "Front" in kind else list(range(ndim - n, ndim))
    if kind in ("RowwiseMax", "ColwiseMax"):
        return [2 if kind == "RowwiseMax" else 1]
    if kind == "ReduceTailSum":
        return list(range(1, ndim))
    axes = args.ints("axes") or range(ndim)
    if not all(-ndim <= a < ndim for a in axes):
        raise ValueError(f"axes {list(axes)} are out of range for {ndim} dimensions")
    return sorted({a % ndim for a in axes})


class Reduce(Reducing):
    kernel, mean, root = "Sum", False, False

    def execute(self):
        x = self.source(0, NUMBERS)
        axes = axes_of(self, x.ndim)
        y = self.inferred()
        n = product(x.shape[a] for a in axes)
        if not x.size and self.kernel in ("Max", "Min") and y.size:
            raise ValueError("the extreme of no values is asked for")
        self.reduce(self.kernel, x, x.shape, axes, y, 1 / n if self.mean and n else 1.0)
        if self.root:
            self.launch("Root" + SUFFIX[y.dtype], y.size, y, y, y.size)


class ReduceGradient(Reducing):
    """Every value gets the gradient of what it went into; with several groups of axes, group by group."""

    kernel, mean = "SpreadSum", False

    def execute(self):
        if self.type.startswith(("Rowwise", "Colwise")):
            dy = self.source(2, FLOATS)
            x, y = (self.source(i, (dy.dtype,)) for i in range(2))
        else:
            dy = self.source(0, FLOATS)
            x = self.source(1, None if self.kernel == "SpreadSum" else (dy.dtype,))
            y = self.source(2, (dy.dtype,)) if len(self.inputs) > 2 else None
        shape = x.shape
        if x.dtype == INT64 and x.ndim == 1 and self.type.startswith(("ReduceFront", "ReduceBack")):
            shape = tuple(self.values(1).tolist())      # models of old have the shape of X here
            self.repeats = False
        axes = axes_of(self, len(shape))
        dx = self.target(0, shape, dy.dtype)
        n = product(shape[a] for a in axes)
        scale = 1 / n if self.mean and n else 1.0
        if axes and axes != list(range(axes[0], axes[-1] + 1)):
            self.gather(dy, x, y, dx, shape, axes, scale)
            return
        first, last = (axes[0], axes[-1] + 1) if axes else (0, 0)
        self.launch(self.kernel + SUFFIX[dy.dtype], dx.size, dy, x, y, dx, dx.size, product(shape[first:last]),
                    product(shape[last:]), scale, unit=1)

    def gather(self, dy, x, y, dx, shape, axes, scale):
        """dy, and y where it is read, are first spread to the shape of x, a group of axes at a time."""
        def spread(value, room):
            dims = [1 if i in axes else d for i, d in enumerate(shape)]
            for a in axes:
                dims[a] = shape[a]
                size = product(dims)
                to = self.room(room, size, value.dtype)
                self.launch("SpreadSum" + SUFFIX[value.dtype], size, value, None, None, to, size, shape[a],
                            product(dims[a + 1:]), 1.0, unit=1)
                value, room = to, room + 1
            return value
        dy = spread(dy, 0)
        if y is not None and self.kernel != "SpreadSum":
            y = spread(y, len(axes))
        self.launch(self.kernel + SUFFIX[dy.dtype], dx.size, dy, x, y, dx, dx.size, 1, 1, scale, unit=1)


def reductions(names, kernel, gradient_kernel, mean=False, root=False):
    for name in names.split():
        common = {"mean": mean, "__module__": __name__}
        register_cuda(name, type(name, (Reduce,), {"kernel": kernel, "root": root, **common}))
        if OpSchema.get(name + "Gradient") is not None:
            register_cuda(name + "Gradient", type(name + "Gradient", (ReduceGradient,), {
                "kernel": gradient_kernel, **common}))


reductions("ReduceSum ReduceFrontSum ReduceBackSum ReduceTailSum", "Sum", "SpreadSum")
reductions("ReduceMean ReduceFrontMean ReduceBackMean", "Sum", "SpreadSum", mean=True)
reductions("ReduceMax RowwiseMax ColwiseMax", "Max", "SpreadExtreme")
reductions("ReduceMin", "Min", "SpreadExtreme")
reductions("ReduceL1", "SumAbs", "SpreadL1")
reductions("ReduceL2", "SumSqr", "SpreadL2", root=True)

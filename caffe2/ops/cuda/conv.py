"""Convolutions, and transposed ones, through cuDNN's graphs. What one finds out for some shapes, others use."""
from caffe2.ops import windows
from caffe2.ops.cuda.elementwise import Broadcast
from caffe2.ops.cuda.libraries import allows_tensor_cores, cudnn, dnn_handle
from caffe2.ops.cuda.pointwise import FLOAT, FLOATS, SUFFIX, clear, register_cuda

_plans = {}


class Plan:
    """A convolution of some shapes, or one of its gradients, as cuDNN computes it.

    Parameters
    ----------
    kind : str
        ``fprop``, ``dgrad`` or ``wgrad``.
    shapes : (tuple, tuple, tuple)
        Dimensions of images, filters and answers, channels second; `nhwc` says how they lie in memory.
    """

    def __init__(self, kind, shapes, windows, nhwc, dtype, tensor_cores, handle):
        binding = cudnn()
        float32 = binding.data_type.FLOAT
        dtype = float32 if dtype == FLOAT else binding.data_type.HALF
        self.graph = g = binding.pygraph(
            handle=handle, io_data_type=dtype, intermediate_data_type=float32, compute_data_type=float32)
        image, weight, answer = (
            g.tensor(name=name, dim=list(s), stride=strides(s, nhwc), data_type=dtype)
            for name, s in zip(("X", "W", "Y"), shapes))
        head, tail, stride, dilation = windows
        how = dict(pre_padding=list(head), post_padding=list(tail), stride=list(stride), dilation=list(dilation))
        self.image, self.weight, self.answer = image, weight, answer
        if kind == "fprop":
            made, shape = g.conv_fprop(image=image, weight=weight, **how), shapes[2]
            self.answer = made
        elif kind == "dgrad":
            made, shape = g.conv_dgrad(loss=answer, filter=weight, **how), shapes[0]
            self.image = made
        else:
            made, shape = g.conv_wgrad(image=image, loss=answer, **how), shapes[1]
            self.weight = made
        made.set_output(True).set_dim(list(shape)).set_stride(strides(shape, nhwc)).set_data_type(dtype)
        g.validate()
        g.build_operation_graph()
        g.create_execution_plans([binding.heur_mode.A, binding.heur_mode.FALLBACK])
        if not tensor_cores:
            notes = binding.numerical_note
            g.deselect_numeric_notes([notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS])
        g.check_support()
        g.build_plans()
        self.workspace = g.get_workspace_size()

    def run(self, image, weight, answer, workspace, handle):
        """Queue it on the handle's stream; the tensors are given by their addresses."""
        self.graph.execute({self.image: image, self.weight: weight, self.answer: answer}, workspace, handle=handle)


def strides(shape, nhwc):
    """Steps of a tensor whose channels come second, or lie innermost."""
    order = [0, *range(2, len(shape)), 1] if nhwc else range(len(shape))
    steps, step = [0] * len(shape), 1
    for i in reversed(list(order)):
        steps[i], step = step, step * shape[i]
    return steps


class Correlation(Broadcast):
    """Base of convolutions: images X (N, C, ...), filters (M, C / group, ...), answers (N, M, ...)."""

    def given(self, n):
        """The first inputs, all of one dtype."""
        x = self.source(0, FLOATS)
        return x, *(self.source(i, (x.dtype,)) for i in range(1, n))

    def correlate(self, kind, g, image, weight, answer):
        """Compute one of the three from the others: kind fprop the answers, dgrad the images, wgrad the filters."""
        if image.size and weight.size and answer.size:
            m = weight.shape[0]
            self.call(self.plan_for(kind, g, m, image.dtype), image.pointer, weight.pointer, answer.pointer)
        else:
            made = {"fprop": answer, "dgrad": image, "wgrad": weight}[kind]
            clear(self, made)

    def plan_for(self, kind, g, filters, dtype):
        """What queues a product of a geometry, given three addresses."""
        n = max(g["ndim"], 2)           # cuDNN has images of two axes or three
        axes = slice(3 - n, 3)
        shapes = ((g["batch"], g["channels"], *g["size"][axes]),
                  (filters, g["channels"] // g["group"], *g["kernel"][axes]),
                  (g["batch"], filters, *g["out"][axes]))
        how = tuple(tuple(g[k][axes]) for k in ("pad", "tail", "stride", "dilation"))
        key = (self.device.index, kind, shapes, how, g["nhwc"], dtype,
               dtype != FLOAT or allows_tensor_cores(self))

        def run(image, weight, answer):
            handle = dnn_handle(self.device.current_stream())
            plan = _plans.get(key)
            if plan is None:
                plan = _plans[key] = Plan(kind, shapes, how, *key[4:], handle)
            workspace = self.room(7, plan.workspace, 6).pointer if plan.workspace else 0
            plan.run(image, weight, answer, workspace, handle)
        return run

    def bias(self, i, channels, dtype):
        b = self.source(i, (dtype,))
        if b.shape != (channels,):
            raise ValueError(f"input {i} must be a vector of {channels} elements, but has shape {b.shape}")
        return b

    def add_bias(self, y, b, nhwc):
        shape = [1] * y.ndim
        shape[-1 if nhwc else 1] = y.shape[-1 if nhwc else 1]
        self.binary("Add" + SUFFIX[y.dtype], y, b, y, y.shape, y.shape, tuple(shape))

    def sum_bias(self, dy, db, nhwc):
        channel = dy.ndim - 1 if nhwc else 1
        self.reduce("Sum", dy, dy.shape, [i for i in range(dy.ndim) if i != channel], db)

    def fit(self, x, w, transposed=False):
        """The geometry, once filters are found to fit it."""
        nhwc = self.args.str("order", "NCHW") == "NHWC"
        if w.ndim != x.ndim:
            raise ValueError(f"filters must have {x.ndim} dimensions, but have {w.ndim}")
        channel = -1 if nhwc else 1
        if transposed:
            g = windows.geometry(self.args, x.shape, w.shape[channel] * self.args.int("group", 1))
            if w.shape[0] != x.shape[channel]:
                raise ValueError(f"there must be a filter for each of {x.shape[channel]} channels, not {w.shape[0]}")
        else:
            g = windows.geometry(self.args, x.shape)
        spatial = tuple(g["kernel"][3 - g["ndim"]:])
        wanted = (*spatial, g["channels"] // g["group"]) if nhwc else (g["channels"] // g["group"], *spatial)
        if w.shape[1:] != wanted or w.shape[0] % g["group"]:
            raise ValueError(f"filters must have shape (M, {', '.join(map(str, wanted))}), with M a multiple of "
                             f"{g['group']}, but have {w.shape}")
        return g, nhwc

    def answers_shape(self, g, m):
        shape = list(g["shape"])
        shape[-1 if g["nhwc"] else 1] = m
        return shape


class Conv(Correlation):
    def execute(self):
        x, w = self.given(2)
        g, nhwc = self.fit(x, w)
        m = w.shape[0]
        b = self.bias(2, m, x.dtype) if len(self.inputs) > 2 else None
        y = self.target(0, self.answers_shape(g, m), x.dtype)
        self.correlate("fprop", g, x, w, y)
        if b is not None:
            self.add_bias(y, b, nhwc)


class ConvGradient(Correlation):
    def execute(self):
        x, w, dy = self.given(3)
        g, nhwc = self.fit(x, w)
        m = w.shape[0]
        if dy.shape != tuple(self.answers_shape(g, m)):
            raise ValueError(f"dY must have shape {tuple(self.answers_shape(g, m))}, but has {dy.shape}")
        with_bias = not self.args.bool("no_bias") and len(self.outputs) > 1
        self.correlate("wgrad", g, x, self.like(0, w), dy)
        if with_bias:
            self.sum_bias(dy, self.target(1, (m,), x.dtype), nhwc)
        if len(self.outputs) > 1 + with_bias:
            self.correlate("dgrad", g, self.like(1 + with_bias, x), w, dy)


class ConvTranspose(Correlation):
    """What the gradient of a convolution is to its answers, this is to X."""

    def execute(self):
        x, w = self.given(2)
        g, nhwc = self.fit(x, w, True)
        b = self.bias(2, g["channels"], x.dtype) if len(self.inputs) > 2 and not self.args.bool("no_bias") else None
        y = self.target(0, g["shape"], x.dtype)
        self.correlate("dgrad", g, y, w, x)
        if b is not None:
            self.add_bias(y, b, nhwc)


class ConvTransposeGradient(Correlation):
    def execute(self):
        x, w, dy = self.given(3)
        g, nhwc = self.fit(x, w, True)
        if dy.shape != tuple(g["shape"]):
            raise ValueError(f"dY must have shape {tuple(g['shape'])}, but has {dy.shape}")
        with_bias = not self.args.bool("no_bias") and len(self.outputs) > 1
        self.correlate("wgrad", g, dy, self.like(0, w), x)
        if with_bias:
            self.sum_bias(dy, self.target(1, (g["channels"],), x.dtype), nhwc)
        if len(self.outputs) > 1 + with_bias:
            self.correlate("fprop", g, dy, w, self.like(1 + with_bias, x))


for _axes in ("", "1D", "2D", "3D"):
    register_cuda("Conv" + _axes, Conv)
    register_cuda(f"Conv{_axes}Gradient", ConvGradient)
register_cuda("ConvTranspose", ConvTranspose)
register_cuda("ConvTransposeGradient", ConvTransposeGradient)

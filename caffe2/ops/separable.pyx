"""Depthwise separable convolution: a depthwise one, and the one after it, as one operator."""
from libc.stdint cimport int64_t

from caffe2._core.blob cimport Blob
from caffe2._core.operator cimport Operator, bind
from caffe2._core.tensor cimport BLOCKED, FLOAT, clear, tensor_t
from caffe2.ops.conv cimport Conv, ConvFused
from caffe2.ops.kernels.dispatch cimport CONV16_DEPTHWISE, CONV16_NONE, conv16_t, depthwise16_t

from caffe2._core.inference import infer_operator
from caffe2._core.registry import register
from caffe2._core.schema import OpSchema
from caffe2.ops.windows import is_pixelwise
from caffe2.proto import caffe2_pb2

PREFIX = "depthwise_"
DEPTHWISE_INPUTS = 3        # images, filter, bias; those of the other convolution follow


def both(definition):
    """The two convolutions of a SeparableConv, each an OperatorDef of type ConvFused."""
    between = f"{definition.output[0]}, depthwise"
    depthwise = caffe2_pb2.OperatorDef(type="ConvFused", input=definition.input[:DEPTHWISE_INPUTS], output=[between])
    after = caffe2_pb2.OperatorDef(
        type="ConvFused", input=[between, *definition.input[DEPTHWISE_INPUTS:]], output=definition.output)
    for a in definition.arg:
        to = depthwise if a.name.startswith(PREFIX) else after
        to.arg.add().CopyFrom(a)
        to.arg[-1].name = a.name.removeprefix(PREFIX)
    return depthwise, after


def join(depthwise, after):
    """An OperatorDef of type SeparableConv from those of two convolutions with biases: what `both` takes apart."""
    op = caffe2_pb2.OperatorDef(type="SeparableConv", name=after.name, output=after.output)
    op.input.extend([*depthwise.input, *after.input[1:]])
    for source, prefix in ((depthwise, PREFIX), (after, "")):
        for a in source.arg:
            op.arg.add().CopyFrom(a)
            op.arg[-1].name = prefix + a.name
    if after.HasField("device_option"):
        op.device_option.CopyFrom(after.device_option)
    return op


cdef class SeparableConv(Operator):
    """Two convolutions. Where images are blocked, the first one is depthwise and the second one sees single pixels,
    what the first one answers is made where the second one reads it, and never written as a whole. Else it is written
    to a blob of this operator's own."""

    cdef Conv depthwise, after
    cdef bint may_merge
    cdef Blob between
    cdef depthwise16_t link

    def setup(self):
        first, second = both(self.definition)
        self.between = Blob(first.output[0])
        self.depthwise, self.after = ConvFused(), ConvFused()
        bind(self.depthwise, first, self.workspace, self.inputs[:DEPTHWISE_INPUTS], [self.between])
        bind(self.after, second, self.workspace, [self.between, *self.inputs[DEPTHWISE_INPUTS:]], self.outputs)
        self.may_merge = is_pixelwise(self.after.args) and not self.depthwise.whole
        self.blocked = self.depthwise.blocked and self.after.blocked
        self.joins = self.after.joins
        self.depthwise.emits = self.blocked

    def touched(self):
        return [self, *self.depthwise.touched(), *self.after.touched()]

    @property
    def merged(self):
        """Whether the first one's answers were not written, in the last run."""
        return self.after.before != NULL

    cdef int run(self) except -1 nogil:
        cdef int64_t[5] shape
        cdef conv16_t c
        cdef int way = self.depthwise.fit(&self.link.c, shape)
        self.after.emits = self.emits
        if self.may_merge and way == CONV16_DEPTHWISE and self.x[0].layout == BLOCKED and (
                self.depthwise.pack(&self.link.c, way, 1)):
            self.link.x = <const float*>self.x[0].data
            self.link.packed = <const float*>self.depthwise.packed
            self.link.e = self.depthwise.epilogue()
            self.after.before = &self.link
            describe(&self.between.t, shape)
            way = self.after.fit(&c, shape)
            if way != CONV16_NONE:
                return self.after.answer(&c, way, shape)
        if self.after.before != NULL:
            clear(&self.between.t)      # it was but described
            self.after.before = NULL
        self.depthwise.run()
        return self.after.run()


cdef void describe(tensor_t* t, const int64_t* shape) noexcept nogil:
    """Make it a blocked tensor of that shape, with whatever memory it has."""
    cdef int i
    t.dtype = FLOAT
    t.layout = BLOCKED
    t.ndim = 4
    t.size = 1
    for i in range(4):
        t.shape[i] = shape[i]
        t.size *= shape[i]


# ------------------------------------------------------------ registration

_FUSED = OpSchema.get("ConvFused")


def _infer(args, inputs):
    first, second = both(args.definition)
    between = infer_operator(first, inputs[:DEPTHWISE_INPUTS])
    return infer_operator(second, [*between, *inputs[DEPTHWISE_INPUTS:]])


def _cost(args, inputs, outputs):
    first, second = both(args.definition)
    between = infer_operator(first, inputs[:DEPTHWISE_INPUTS])
    parts = (_FUSED.cost(first, inputs[:DEPTHWISE_INPUTS]),
             _FUSED.cost(second, [*between, *inputs[DEPTHWISE_INPUTS:]]))
    return {name: sum(part[name] for part in parts) for name in parts[0]}


register(
    "SeparableConv", SeparableConv, (5, 6), 1,
    ins={
        "X": "images, [N, C, H, W]", "depthwise_filter": "[C, 1, kernel...]", "depthwise_bias": "[C]",
        "filter": "[M, C, kernel...]", "bias": "[M]", "residual": "added to the answers; of the shape of Y",
    },
    outs={"Y": "[N, M, H, W]"},
    args={**{a.name: a.description for a in _FUSED.args},
          **{PREFIX + a.name: f"{a.name} of the depthwise convolution" for a in _FUSED.args}},
    inplace=[(5, 0)], infer=_infer, cost=_cost,
    doc="Two ConvFused, of which the second reads what the first answers: a depthwise convolution and, as a rule, one "
        "of 1 x 1 pixels (MobileNet: Howard et al., 2017, arXiv:1704.04861), as the optimizer of nets for inference "
        "makes it. It has no gradient.",
)

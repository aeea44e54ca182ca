"""Operators that change the gradient on its way back and nothing on the way forth."""
from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport UNDEFINED, copy

from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import same_as_input


cdef class NegateGradient(Operator):
    cdef int run(self) except -1 nogil:
        if self.x[0].dtype == UNDEFINED:
            return self.bad_dtype(0)
        return copy(self.y[0], self.x[0])


register(
    "NegateGradient", NegateGradient, 1, 1, ins={"input": "tensor of any type"},
    outs={"output": "a copy of it"}, inplace=((0, 0),), infer=same_as_input(),
    gradient=simple("Negative", "GO0", "GI0"), doc="Copies a tensor; its gradient is negated.",
)


cdef class ZeroGradient(Operator):
    cdef int run(self) except -1 nogil:
        return 0


register(
    "ZeroGradient", ZeroGradient, 1, 0, ins={"input": "tensor of any type"},
    gradient=simple("ConstantFill", "I0", "GI0", value=0.0),
    doc="Does nothing; its gradient is a tensor of zeros. Give it an output that nobody reads, "
        "where the gradient of the operator that writes it needs gradients of all outputs.",
)

"""Activations: Relu, Sigmoid, Tanh and relatives."""
from libc.stdint cimport int64_t

from caffe2.ops.kernels.dispatch cimport K
from caffe2.ops.pointwise cimport Pointwise

from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import flops_per_element, like, one_to_one, same_as_input


def activation(name, forward, backward, formula, flops=1, args=None, needs="O0 GO0", inplace_grad=((1, 0),)):
    """Register an activation Y = f(X) and its gradient operator, which reads `needs`."""
    register(
        name, forward, 1, 1,
        ins={"X": "float tensor of any shape"}, outs={"Y": "float tensor of that shape"},
        args=args, inplace=one_to_one, infer=same_as_input(), cost=flops_per_element(flops),
        gradient=simple(name + "Gradient", needs, "GI0"),
        doc=f"{formula}, place by place. May run in place.",
    )
    names = {"I0": "X", "O0": "Y", "GO0": "dY"}
    register(
        name + "Gradient", backward, len(needs.split()), 1,
        ins={names[w]: "float tensor, all of one shape" for w in needs.split()}, outs={"dX": "gradient of X"},
        args=args, inplace=inplace_grad, infer=like(0), cost=flops_per_element(flops + 1),
        doc=f"Gradient of {name}.",
    )


cdef class Relu(Pointwise):
    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        K.vrelu(n, x[0], y)


cdef class ReluGradient(Pointwise):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        K.vrelu_grad(n, x[0], x[1], dx)


activation("Relu", Relu, ReluGradient, "Y = max(X, 0)")


cdef class Sigmoid(Pointwise):
    def setup(self):
        self.work = 10

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        K.vsigmoid(n, x[0], y)


cdef class SigmoidGradient(Pointwise):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        K.vsigmoid_grad(n, x[0], x[1], dx)


activation("Sigmoid", Sigmoid, SigmoidGradient, "Y = 1 / (1 + exp(-X))", 10)


cdef class Tanh(Pointwise):
    def setup(self):
        self.work = 10

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil:
        K.vtanh(n, x[0], y)


cdef class TanhGradient(Pointwise):
    cdef void apply(self, const float** x, float* dx, int64_t n) noexcept nogil:
        K.vtanh_grad(n, x[0], x[1], dx)


activation("Tanh", Tanh, TanhGradient, "Y = tanh(X)", 10)

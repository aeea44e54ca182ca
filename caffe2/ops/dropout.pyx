"""Dropout."""
from cython.parallel cimport prange

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from caffe2._core.operator cimport Operator
from caffe2._core.random cimport Random
from caffe2._core.tensor cimport BOOL, FLOAT, copy, resize_like
from caffe2._core.threads cimport num_threads
from caffe2.ops.blocked cimport resize_as, stored_size

from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, like, one_to_one


cdef class Dropout(Operator):
    cdef float ratio
    cdef bint is_test
    cdef Random random

    def setup(self):
        self.ratio = self.args.float("ratio", 0.5)
        self.is_test = self.args.bool("is_test")
        if not 0 <= self.ratio < 1:
            raise ValueError("argument ratio must be at least 0 and below 1")
        if not self.is_test and self.num_outputs < 2:
            raise ValueError("gives the mask as its second output when training (is_test=0)")
        self.random = Random(self.definition.device_option)
        self.blocked = self.is_test

    cdef int run(self) except -1 nogil:
        cdef int64_t i, n = self.x[0].size
        cdef const float* x
        cdef float* y
        cdef float* draws
        cdef uint8_t* mask
        cdef float scale = 1 / (1 - self.ratio)
        cdef int threads = num_threads(n)
        self.expect(0, FLOAT)
        if self.is_test:
            resize_as(self.y[0], self.x[0])
            if self.y[0] != self.x[0]:
                memcpy(self.y[0].data, self.x[0].data, stored_size(self.x[0]) * sizeof(float))
            return 0
        resize_like(self.y[0], self.x[0], FLOAT)
        resize_like(self.y[1], self.x[0], BOOL)
        x = <const float*>self.x[0].data
        y = <float*>self.y[0].data
        mask = <uint8_t*>self.y[1].data
        draws = <float*>self.scratch(n * sizeof(float))
        self.random.fill_uniform(draws, n, 0, 1)
        for i in prange(n, num_threads=threads, schedule="static", use_threads_if=threads > 1):
            mask[i] = draws[i] >= self.ratio
            y[i] = x[i] * scale * mask[i]
        return 0


cdef class DropoutGrad(Operator):
    cdef float ratio
    cdef bint is_test

    def setup(self):
        self.ratio = self.args.float("ratio", 0.5)
        self.is_test = self.args.bool("is_test")
        if not 0 <= self.ratio < 1:
            raise ValueError("argument ratio must be at least 0 and below 1")
        if not self.is_test and self.num_inputs < 2:
            raise ValueError("takes the mask as its second input when training (is_test=0)")

    cdef int run(self) except -1 nogil:
        cdef int64_t i
        cdef const float* dy
        cdef float* dx
        cdef const uint8_t* mask
        cdef float scale = 1 / (1 - self.ratio)
        self.expect(0, FLOAT)
        if self.is_test:
            return copy(self.y[0], self.x[0])
        self.expect(1, BOOL)
        self.expect_size(1, self.x[0].size)
        resize_like(self.y[0], self.x[0], FLOAT)
        dy = <const float*>self.x[0].data
        dx = <float*>self.y[0].data
        mask = <const uint8_t*>self.x[1].data
        for i in range(self.x[0].size):
            dx[i] = dy[i] * mask[i] * scale
        return 0


def dropout_gradient(g):
    # when testing, the mask is not computed
    mask = [] if g.args.bool("is_test") else [g.O(1)]
    return g.op("DropoutGrad", [g.GO(0), *mask], [g.GI(0)])


_ARGS = {"ratio": "share of the values that are dropped (default 0.5)", "is_test": "Y = X (default 0)"}
register(
    "Dropout", Dropout, 1, (1, 2), ins={"X": "float tensor"}, args=_ARGS,
    outs={"Y": "float tensor of that shape", "mask": "bool tensor of that shape: what was kept; only when training"},
    inplace=[(0, 0)],
    infer=lambda args, inputs: [inputs[0], TensorInfo(inputs[0].shape, BOOL)], cost=flops_per_element(2),
    gradient=dropout_gradient,
    doc="Sets each value to 0 with probability ratio and multiplies the others by 1 / (1 - ratio), so that nothing is "
        "left to do when testing. Random values differ from the original's.",
)
register(
    "DropoutGrad", DropoutGrad, (1, 2), 1, ins={"dY": "gradient of Y", "mask": "second output of Dropout"}, args=_ARGS,
    outs={"dX": "gradient of X"}, inplace=one_to_one, infer=like(0), doc="Gradient of Dropout.",
)

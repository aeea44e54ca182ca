"""Weighted sums of tensors, and of some rows of them: the steps of plain SGD."""
from cython.parallel cimport prange

from libc.stdint cimport int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport FLOAT, resize1, resize_like, tensor_t
from caffe2._core.threads cimport num_threads
from caffe2.ops.kernels.dispatch cimport K
from caffe2.ops.sgd cimport check_indices, dot, index_at

from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, same_as_input


cdef inline float weight(Operator op, int i) noexcept nogil:
    return (<float*>op.x[i].data)[0]


cdef inline float* floats(tensor_t* t) noexcept nogil:
    return <float*>t.data


cdef class WeightedSum(Operator):
    def setup(self):
        if self.num_inputs % 2 or not self.num_inputs:
            raise ValueError(f"takes pairs of a tensor and its weight, but was given "
                             f"{self.num_inputs} inputs")

    cdef void stretch(self, int64_t start, int64_t n) noexcept nogil:
        cdef int i
        cdef float* y = floats(self.y[0]) + start
        cdef float* x = floats(self.x[0]) + start
        if self.num_inputs == 2:
            K.vscale(n, weight(self, 1), x, y)
            return
        K.vaxpby(n, weight(self, 1), x, weight(self, 3), floats(self.x[2]) + start, y)
        for i in range(4, self.num_inputs, 2):
            K.vaxpy(n, weight(self, i + 1), floats(self.x[i]) + start, y)

    cdef int run(self) except -1 nogil:
        cdef int64_t n = self.x[0].size, chunk
        cdef int i, threads
        for i in range(0, self.num_inputs, 2):
            self.expect(i, FLOAT)
            self.expect_size(i, n)
            self.expect(i + 1, FLOAT)
            self.expect_size(i + 1, 1)
        resize_like(self.y[0], self.x[0], FLOAT)
        threads = num_threads(n * self.num_inputs)
        if threads == 1:
            self.stretch(0, n)
            return 0
        chunk = ((n + threads - 1) // threads + 15) & ~<int64_t>15
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            if i * chunk < n:
                self.stretch(i * chunk, min(n, (i + 1) * chunk) - i * chunk)
        return 0


def weighted_sum_gradient(g):
    tensors = range(0, g.num_inputs, 2)
    outputs = [g.GI(i) for i in tensors]
    if g.args.bool("grad_on_w"):
        outputs += [g.GI(i + 1) for i in tensors]
    return g.op("WeightedSumGradient", [g.GO(0), *g.definition.input], outputs)


_GRAD_ON_W = {"grad_on_w": "whether the weights have gradients (default false)"}

register(
    "WeightedSum", WeightedSum, (0, None), 1,
    ins={"data_0": "float tensor", "weight_0": "its weight, one float"},
    outs={"output": "the sum, shaped like data_0"}, args=_GRAD_ON_W, inplace=[(0, 0)],
    infer=same_as_input(), cost=flops_per_element(2), gradient=weighted_sum_gradient,
    doc="""data_0 * weight_0 + data_1 * weight_1 + ...; all data are as large as the first,
weights are single floats. May run in place with data_0.""",
)


cdef class WeightedSumGradient(Operator):
    cdef bint grad_on_w

    def setup(self):
        self.grad_on_w = self.args.bool("grad_on_w")
        wanted = self.num_inputs - 1 if self.grad_on_w else self.num_inputs // 2
        if self.num_inputs % 2 == 0 or self.num_outputs != wanted:
            raise ValueError(f"takes a gradient and pairs of a tensor and its weight, gives "
                             f"{wanted} outputs for "
                             f"{self.num_inputs} inputs, but was asked for {self.num_outputs}")

    cdef int run(self) except -1 nogil:
        cdef int64_t n = self.x[0].size, start, chunk
        cdef int i, k, threads, pairs = self.num_inputs // 2
        cdef float total
        self.expect(0, FLOAT)
        for k in range(pairs):
            self.expect(2 * k + 1, FLOAT)
            self.expect_size(2 * k + 1, n)
            self.expect(2 * k + 2, FLOAT)
            self.expect_size(2 * k + 2, 1)
        threads = num_threads(n)
        chunk = ((n + threads - 1) // threads + 15) & ~<int64_t>15
        for k in range(pairs):
            resize_like(self.y[k], self.x[0], FLOAT)
            if threads == 1:
                K.vscale(n, weight(self, 2 * k + 2), floats(self.x[0]), floats(self.y[k]))
            else:
                for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    start = i * chunk
                    if start < n:
                        K.vscale(min(n, start + chunk) - start, weight(self, 2 * k + 2),
                                 floats(self.x[0]) + start, floats(self.y[k]) + start)
            if self.grad_on_w:
                total = <float>dot(floats(self.x[0]), floats(self.x[2 * k + 1]), n)
                resize1(self.y[pairs + k], 1, FLOAT)
                floats(self.y[pairs + k])[0] = total
        return 0


def _infer_gradient(args, inputs):
    pairs = len(inputs) // 2
    weights = pairs if args.bool("grad_on_w") else 0
    return [inputs[0]] * pairs + [TensorInfo((1,), FLOAT)] * weights


register(
    "WeightedSumGradient", WeightedSumGradient, (0, None), (1, None),
    ins={"output_grad": "gradient of the sum", "data_0": "float tensor",
         "weight_0": "its weight, one float"},
    outs={"data_0_grad": "gradient of data_0; those of the others, then of the weights, follow"},
    args=_GRAD_ON_W,
    infer=_infer_gradient, cost=flops_per_element(1),
    doc="Gradient of WeightedSum.",
)


cdef class ScatterWeightedSum(Operator):
    def setup(self):
        if self.num_inputs < 3 or self.num_inputs % 2 == 0:
            raise ValueError("takes a tensor, its weight, indices, and pairs of rows and their "
                             "weight, "
                             f"but was given {self.num_inputs} inputs")

    cdef void rows_of(self, int thread, int threads, int64_t block) noexcept nogil:
        # A row belongs to one thread, so that rows which occur twice add up.
        cdef tensor_t* ids = self.x[2]
        cdef float* y = floats(self.y[0])
        cdef float first = weight(self, 1), w
        cdef float* rows
        cdef int64_t i, j
        cdef int k
        if first != 1:
            for i in range(ids.size):
                j = index_at(ids, i)
                if threads == 1 or j % threads == thread:
                    K.vscale(block, first, y + j * block, y + j * block)
        for k in range(3, self.num_inputs, 2):
            rows, w = floats(self.x[k]), weight(self, k + 1)
            for i in range(ids.size):
                j = index_at(ids, i)
                if threads == 1 or j % threads == thread:
                    K.vaxpy(block, w, rows + i * block, y + j * block)

    cdef int run(self) except -1 nogil:
        cdef int64_t n, block
        cdef int i, threads
        self.expect(0, FLOAT)
        if self.x[0].ndim == 0:
            return self.fail("X_0 must have at least one dimension")
        self.expect(1, FLOAT)
        self.expect_size(1, 1)
        check_indices(self, 2, self.x[0].shape[0])
        block = self.x[0].size // self.x[0].shape[0] if self.x[0].shape[0] else 0
        n = self.x[2].size * block
        for i in range(3, self.num_inputs, 2):
            self.expect(i, FLOAT)
            self.expect_size(i, n)
            self.expect(i + 1, FLOAT)
            self.expect_size(i + 1, 1)
        self.y[0].version += 1
        threads = num_threads(n * self.num_inputs)
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            self.rows_of(i, threads, block)
        return 0


register(
    "ScatterWeightedSum", ScatterWeightedSum, (0, None), 1,
    ins={"X_0": "float tensor, updated in place", "Weight_0": "weight of its rows, one float",
         "INDICES": "rows to update, int32 or int64", "X_1": "rows to add, one for each index",
         "Weight_1": "their weight, one float"},
    outs={"X_0": "the same tensor"}, enforce_inplace=[(0, 0)], infer=same_as_input(),
    cost=flops_per_element(2),
    doc="""X_0[INDICES] = X_0[INDICES] * Weight_0 + X_1 * Weight_1 + X_2 * Weight_2 + ..., in
place. Rows that occur twice are multiplied twice by Weight_0, then get both additions. An index
out of range raises before anything changes.""",
)

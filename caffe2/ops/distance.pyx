"""Distances and products of the rows of two tensors."""
from cython.parallel cimport prange

from libc.math cimport fabsf, sqrtf
from libc.stdint cimport int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport FLOAT, resize1, resize_like, tensor_t
from caffe2._core.threads cimport num_threads
from caffe2.ops.kernels.dispatch cimport K

from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, like

cdef float TINY = 1e-12


cdef class RowPairs(Operator):
    """Base: rows, split after the first dimension, of X and Y, which have one shape unless `ragged`."""

    cdef int64_t n, dx, dy
    cdef bint ragged            # rows of X and Y may differ in length
    cdef bint empty_is_none     # rows without elements give no output at all

    cdef int sizes(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y = self.x[1]
        self.expect(0, FLOAT)
        self.expect(1, FLOAT)
        if not self.ragged:
            self.expect_same_shape(1, 0)
        elif x.ndim != y.ndim or (x.ndim and x.shape[0] != y.shape[0]):
            return self.fail("X and Y must have equally many dimensions and the same first one")
        self.n = x.shape[0] if x.ndim else 1
        if self.empty_is_none and x.size == 0:
            self.n = 0
        self.dx = x.size // self.n if self.n else 0
        self.dy = y.size // self.n if self.n else 0
        return 0


cdef class RowFunction(RowPairs):
    """Z[i] = f(X[i], Y[i])."""

    cdef float f(self, const float* x, const float* y) noexcept nogil:
        return 0

    cdef void set(self, int64_t i) noexcept nogil:
        (<float*>self.y[0].data)[i] = self.f(<const float*>self.x[0].data + i * self.dx,
                                             <const float*>self.x[1].data + i * self.dy)

    cdef int run(self) except -1 nogil:
        cdef int64_t i
        self.sizes()
        resize1(self.y[0], self.n, FLOAT)
        cdef int threads = num_threads(self.n * max(self.dx, self.dy))
        if threads == 1:
            for i in range(self.n):
                self.set(i)
        else:
            for i in prange(self.n, num_threads=threads, schedule="static"):
                self.set(i)
        return 0


cdef class RowGradient(RowPairs):
    """(dX[i], dY[i]) from X[i], Y[i] and dZ[i]."""

    cdef void df(self, const float* x, const float* y, float g, float* dx,
                 float* dy) noexcept nogil:
        pass

    cdef void set(self, int64_t i) noexcept nogil:
        self.df(<const float*>self.x[0].data + i * self.dx, <const float*>self.x[1].data + i * self.dy,
                (<const float*>self.x[2].data)[i],
                <float*>self.y[0].data + i * self.dx, <float*>self.y[1].data + i * self.dy)

    cdef int run(self) except -1 nogil:
        cdef int64_t i
        self.sizes()
        self.expect(2, FLOAT)
        self.expect_ndim(2, 1)
        self.expect_size(2, self.n)
        resize_like(self.y[0], self.x[0], FLOAT)
        resize_like(self.y[1], self.x[1], FLOAT)
        cdef int threads = num_threads(self.n * max(self.dx, self.dy))
        if threads == 1:
            for i in range(self.n):
                self.set(i)
        else:
            for i in prange(self.n, num_threads=threads, schedule="static"):
                self.set(i)
        return 0


def _one_a_row(args, inputs):
    x, _ = inputs
    return [TensorInfo(x.shape[:1] if x.shape else (1,), x.dtype)] if x.shape is not None else []


def distance(name, forward, backward, formula, gradient, args=None, same="same shape as X"):
    register(
        name, forward, 2, 1, ins={"X": "float tensor", "Y": f"float tensor, {same}"},
        outs={"Z": "one value for each row"}, args=args, gradient=gradient, cost=flops_per_element(3),
        infer=_one_a_row,
        doc=f"{formula} for each pair of rows x, y of X and Y; a row is everything after the first "
            "dimension.",
    )
    register(name + "Gradient", backward, 3, 2, infer=like(0, 1), cost=flops_per_element(4),
             ins={"X": "float tensor", "Y": f"float tensor, {same}", "dZ": "gradient of Z"},
             outs={"dX": "gradient of X", "dY": "gradient of Y"},
             doc=f"Gradient of {name}: from X, Y and dZ to dX and dY.")


cdef class SquaredL2Distance(RowFunction):
    cdef float f(self, const float* x, const float* y) noexcept nogil:
        cdef double total = 0
        cdef int64_t j
        for j in range(self.dx):
            total += (x[j] - y[j]) * (x[j] - y[j])
        return <float>(total / 2)


cdef class SquaredL2DistanceGradient(RowGradient):
    cdef void df(self, const float* x, const float* y, float g, float* dx,
                 float* dy) noexcept nogil:
        cdef int64_t j
        for j in range(self.dx):
            dx[j] = g * (x[j] - y[j])
            dy[j] = -dx[j]


cdef class L1Distance(RowFunction):
    cdef float f(self, const float* x, const float* y) noexcept nogil:
        cdef double total = 0
        cdef int64_t j
        for j in range(self.dx):
            total += fabsf(x[j] - y[j])
        return <float>total


cdef class L1DistanceGradient(RowGradient):
    cdef void df(self, const float* x, const float* y, float g, float* dx,
                 float* dy) noexcept nogil:
        cdef int64_t j
        cdef float d
        for j in range(self.dx):
            d = x[j] - y[j]
            dx[j] = g if d > TINY else -g if d < -TINY else 0
            dy[j] = -dx[j]


cdef class DotProduct(RowFunction):
    def setup(self):
        self.empty_is_none = True

    cdef float f(self, const float* x, const float* y) noexcept nogil:
        return <float>K.vdot(self.dx, x, y)


cdef class DotProductGradient(RowGradient):
    def setup(self):
        self.empty_is_none = True

    cdef void df(self, const float* x, const float* y, float g, float* dx,
                 float* dy) noexcept nogil:
        K.vscale(self.dx, g, y, dx)
        K.vscale(self.dx, g, x, dy)


cdef class CosineSimilarity(RowFunction):
    cdef float f(self, const float* x, const float* y) noexcept nogil:
        cdef float xx = max(<float>K.vsumsq(self.dx, x), TINY)
        cdef float yy = max(<float>K.vsumsq(self.dx, y), TINY)
        return <float>K.vdot(self.dx, x, y) / sqrtf(xx * yy)


cdef class CosineSimilarityGradient(RowGradient):
    cdef void df(self, const float* x, const float* y, float g, float* dx,
                 float* dy) noexcept nogil:
        cdef float xx = max(<float>K.vsumsq(self.dx, x), TINY)
        cdef float yy = max(<float>K.vsumsq(self.dx, y), TINY)
        cdef float scale = g / (sqrtf(xx) * sqrtf(yy)), xy = <float>K.vdot(self.dx, x, y)
        K.vaxpby(self.dx, scale, y, -scale * xy / xx, x, dx)
        K.vaxpby(self.dx, scale, x, -scale * xy / yy, y, dy)


cdef class DotProductWithPadding(RowFunction):
    cdef float pad_value
    cdef bint replicate

    def setup(self):
        self.ragged = self.empty_is_none = True
        self.pad_value = self.args.float("pad_value", 0)
        self.replicate = self.args.bool("replicate")

    cdef float f(self, const float* x, const float* y) noexcept nogil:
        cdef int64_t shorter = min(self.dx, self.dy), longer = max(self.dx, self.dy), j
        cdef const float* rest = x if self.dx > self.dy else y
        cdef const float* small = y if self.dx > self.dy else x
        cdef double total = 0
        if self.replicate:
            if shorter:
                for j in range(longer // shorter):
                    total += K.vdot(shorter, rest + j * shorter, small)
            return <float>total
        total = K.vdot(shorter, x, y)
        if longer > shorter:
            total += K.vsum(longer - shorter, rest + shorter) * self.pad_value
        return <float>total


cdef class DotProductWithPaddingGradient(RowGradient):
    cdef float pad_value
    cdef bint replicate

    def setup(self):
        self.ragged = self.empty_is_none = True
        self.pad_value = self.args.float("pad_value", 0)
        self.replicate = self.args.bool("replicate")

    cdef int sizes(self) except -1 nogil:
        RowGradient.sizes(self)
        cdef int64_t shorter = min(self.dx, self.dy)
        if self.replicate and shorter and max(self.dx, self.dy) % shorter:
            return self.fail("with replicate=1 the longer row must be a multiple of the shorter")
        return 0

    cdef void df(self, const float* x, const float* y, float g, float* dx,
                 float* dy) noexcept nogil:
        cdef int64_t shorter = min(self.dx, self.dy), longer = max(self.dx, self.dy), j
        cdef bint x_longer = self.dx > self.dy
        cdef const float* rest = x if x_longer else y
        cdef const float* small = y if x_longer else x
        cdef float* drest = dx if x_longer else dy
        cdef float* dsmall = dy if x_longer else dx
        K.vscale(shorter, g, small, drest)
        K.vscale(shorter, g, rest, dsmall)
        if self.replicate:
            if shorter:
                for j in range(1, longer // shorter):
                    K.vscale(shorter, g, small, drest + j * shorter)
                    K.vaxpy(shorter, g, rest + j * shorter, dsmall)
        else:
            for j in range(shorter, longer):
                drest[j] = g * self.pad_value


def _gradient_with_padding(g):
    op = g.op("DotProductWithPaddingGradient", [g.I(0), g.I(1), g.GO(0)], [g.GI(0), g.GI(1)])
    op.arg.add(name="pad_value", f=g.args.float("pad_value", 0))
    op.arg.add(name="replicate", i=int(g.args.bool("replicate")))
    return op


def _simple(name):
    return simple(name + "Gradient", "I0 I1 GO0", "GI0 GI1")


distance("SquaredL2Distance", SquaredL2Distance, SquaredL2DistanceGradient, "||x - y||^2 / 2",
         _simple("SquaredL2Distance"))
distance("L1Distance", L1Distance, L1DistanceGradient, "Sum of |x - y|", _simple("L1Distance"))
distance("DotProduct", DotProduct, DotProductGradient, "Dot product", _simple("DotProduct"))
distance("CosineSimilarity", CosineSimilarity, CosineSimilarityGradient, "x y / (||x|| ||y||)",
         _simple("CosineSimilarity"))
distance("DotProductWithPadding", DotProductWithPadding, DotProductWithPaddingGradient,
         "Dot product, the shorter row filled up with `pad_value` or repeated,",
         _gradient_with_padding,
         args={"pad_value": "what the shorter row is filled up with (default 0)",
               "replicate": "1: the shorter row is repeated instead (default 0)"},
         same="rows may differ in length from those of X")

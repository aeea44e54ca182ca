"""Matrix products: fully connected layers, MatMul and BatchMatMul."""
from libc.stdint cimport int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    FLOAT, MAX_DIMS, canonical_axis, resize, resize1, resize2, resize_like, size_from, size_to,
    tensor_t,
)
from caffe2._core.threads cimport num_threads
from caffe2.ops.kernels.dispatch cimport K, epilogue_t

from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo


cdef inline const float* floats(const tensor_t* t) noexcept nogil:
    return <const float*>t.data


cdef inline int axis_of(int axis, const tensor_t* t) except -1 nogil:
    return canonical_axis(axis, t.ndim)


cdef inline int64_t work(int64_t m, int64_t n, int64_t k) noexcept nogil:
    """m * n * k, the largest number where that does not fit."""
    cdef double product = <double>m * n * k
    return <int64_t>product if product < 9e18 else <int64_t>9e18


def _product(shape):
    """Product of dimensions; -1 where one is unknown."""
    n = 1
    for d in shape:
        if d < 0:
            return -1
        n *= d
    return n


def _bytes(infos):
    return sum(4 * t.size for t in infos if t.shape is not None)


def _flops(m, n, k, infos):
    return dict(flops=2 * m * n * k, bytes_read=_bytes(infos), bytes_written=4 * m * n,
                params_bytes=0)


# ---------------------------------------------------------------- fully connected

cdef class Linear(Operator):
    """Base: X as a matrix (m, k), split before `axis`; W as (n, k), or (k, n) if `transposed`."""

    cdef int axis, axis_w
    cdef bint transposed
    cdef int64_t m, n, k

    def setup(self):
        self.axis = self.args.int("axis", 1)
        self.axis_w = self.args.int("axis_w", 1)

    cdef int sizes(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* w = self.x[1]
        cdef int i, axis, axis_w
        for i in range(3):
            self.expect(i, FLOAT)
        axis = axis_of(self.axis, x)
        axis_w = axis_of(self.axis_w, w)
        self.m = size_to(x, axis)
        self.k = size_from(x, axis)
        self.n = size_from(w, axis_w) if self.transposed else size_to(w, axis_w)
        if (size_to(w, axis_w) if self.transposed else size_from(w, axis_w)) != self.k:
            if self.transposed:
                return self.fail("the rows of X must be as long as the columns of W")
            return self.fail("the rows of X and of W must have the same length")
        return axis


cdef class FC(Linear):
    cdef bint relu

    def absorb(self, Operator following):
        if following.type != "Relu":
            return False
        self.relu = True
        return True

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* residual = self.x[3] if self.num_inputs == 4 else NULL
        cdef int axis = self.sizes()
        cdef int64_t n = self.n, k = self.k
        cdef int64_t[MAX_DIMS] shape
        cdef epilogue_t add
        cdef int i
        cdef bint fits, beta = False
        self.expect_ndim(2, 1)
        self.expect_size(2, n)
        for i in range(axis):
            shape[i] = x.shape[i]
        shape[axis] = n
        if residual != NULL:
            self.expect(3, FLOAT)
            fits = residual.ndim == axis + 1
            for i in range(axis + 1 if fits else 0):
                fits &= residual.shape[i] == shape[i]
            if not fits:
                return self.fail("the residual must have the shape of Y")
            beta = residual == self.y[0]
        resize(self.y[0], axis + 1, shape, FLOAT)
        add.bias_row = NULL
        add.residual = NULL if residual == NULL or beta else residual.data
        add.ld_residual = n
        add.relu = self.relu
        add.bias_col = self.x[2].data
        if K.sgemm(0, not self.transposed, self.m, n, k, 1, floats(x), k, floats(self.x[1]),
                   n if self.transposed else k, beta, <float*>self.y[0].data, n, &add,
                   num_threads(work(self.m, n, k))):
            return self.fail("not enough memory")
        return 0


cdef class FCFused(FC):
    """FC with what follows it."""

    def setup(self):
        super().setup()
        self.relu = self.args.bool("relu")


cdef class FCGradient(Linear):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* w = self.x[1]
        cdef tensor_t* dy = self.x[2]
        self.sizes()
        cdef int64_t m = self.m, n = self.n, k = self.k
        cdef int threads = num_threads(work(m, n, k)), failed
        self.expect_size(2, m * n)
        resize_like(self.y[0], w, FLOAT)
        resize1(self.y[1], n, FLOAT)
        cdef float* dw = <float*>self.y[0].data
        if self.transposed:
            failed = K.sgemm(1, 0, k, n, m, 1, floats(x), k, floats(dy), n, 0, dw, n, NULL, threads)
        else:
            failed = K.sgemm(1, 0, n, k, m, 1, floats(dy), n, floats(x), k, 0, dw, k, NULL, threads)
        K.column_sums(m, n, floats(dy), n, <float*>self.y[1].data)
        if self.num_outputs == 3:
            resize_like(self.y[2], x, FLOAT)
            failed |= K.sgemm(0, self.transposed, m, k, n, 1, floats(dy), n, floats(w),
                              n if self.transposed else k, 0, <float*>self.y[2].data, k, NULL,
                              threads)
        return self.fail("not enough memory") if failed else 0


cdef class FCTransposed(FC):
    def setup(self):
        super().setup()
        self.transposed = True


cdef class FCTransposedGradient(FCGradient):
    def setup(self):
        super().setup()
        self.transposed = True


def _matrices(args, inputs, transposed):
    """(X, W, axis of X, n) or None: n is -1 where it is not known."""
    x, w, *_ = inputs
    if x.shape is None or w.shape is None:
        return None
    axis, axis_w = args.int("axis", 1) % x.ndim, args.int("axis_w", 1) % w.ndim
    return x, w, axis, _product(w.shape[axis_w:] if transposed else w.shape[:axis_w])


def _linear(name, forward, backward, transposed):
    def infer(args, inputs):
        known = _matrices(args, inputs, transposed)
        if known is None:
            return []
        x, _, axis, n = known
        return [TensorInfo((*x.shape[:axis], n), x.dtype)]

    def infer_gradient(args, inputs):
        known = _matrices(args, inputs, transposed)
        if known is None:
            return []
        x, w, _, n = known
        return [w, TensorInfo((n,), w.dtype), x]

    def cost(factor):
        def cost_of(args, inputs, outputs):
            known = _matrices(args, inputs, transposed)
            if known is None:
                return None
            x, _, axis, n = known
            m, k = _product(x.shape[:axis]), _product(x.shape[axis:])
            return dict(
                flops=factor(m * n * k, m * n), bytes_read=_bytes(inputs),
                bytes_written=_bytes(outputs), params_bytes=4 * (n * k + n),
            )
        return cost_of

    def gradient(g):
        return g.op(name + "Gradient", [g.I(0), g.I(1), g.GO(0)], [g.GI(1), g.GI(2), g.GI(0)])

    args = {
        "axis": "dimensions of X before it make up the rows (default 1)",
        "axis_w": "dimensions of W before it make up the rows (default 1)",
        "float16_compute": "accepted; changes nothing here",
    }
    shape = "(k, n)" if transposed else "(n, k)"
    ins = {"X": "seen as a matrix (m, k)", "W": f"seen as a matrix {shape}", "b": "vector of n"}
    register(
        name, forward, 3, 1, ins=ins, outs={"Y": "dimensions of X before `axis`, and n"},
        args=args, infer=infer,
        cost=cost(lambda mnk, mn: 2 * mnk + mn), gradient=gradient,
        doc=f"Fully connected layer: Y = X {'W' if transposed else 'W^T'} + b, with X of shape "
            f"(m, k) and W of shape {shape}.",
    )
    if not transposed:
        register(
            name + "Fused", FCFused, (3, 4), 1, ins={**ins, "residual": "added to Y; of the shape of Y"},
            outs={"Y": "as of FC"}, args={**args, "relu": "Y = max(Y, 0) (default 0)"}, inplace=[(3, 0)],
            infer=infer, cost=cost(lambda mnk, mn: 2 * mnk + mn),
            doc="FC with what follows it, Sum and then Relu, as the optimizer of nets for inference makes it. It has "
                "no gradient.",
        )
    register(
        name + "Gradient", backward, 3, (2, 3), infer=infer_gradient,
        ins={"X": ins["X"], "W": ins["W"], "dY": "gradient of Y"},
        outs={"dW": "gradient of W", "db": "gradient of b", "dX": "gradient of X (optional)"},
        cost=cost(lambda mnk, mn: 4 * mnk + 2 * mn),
        doc=f"Gradient of {name}: from X, W and dY to dW, db and, where it is wanted, dX.",
    )


_linear("FC", FC, FCGradient, False)
_linear("FCTransposed", FCTransposed, FCTransposedGradient, True)


# ---------------------------------------------------------------- MatMul

cdef class MatMul(Operator):
    cdef int axis_a, axis_b
    cdef bint trans_a, trans_b

    def setup(self):
        self.axis_a = self.args.int("axis_a", 1)
        self.axis_b = self.args.int("axis_b", 1)
        self.trans_a = self.args.bool("trans_a")
        self.trans_b = self.args.bool("trans_b")

    cdef int run(self) except -1 nogil:
        cdef tensor_t* a = self.x[0]
        cdef tensor_t* b = self.x[1]
        cdef tensor_t* y = self.y[0]
        cdef int axis
        cdef int64_t m, n, k, lda, ldb
        self.expect(0, FLOAT)
        self.expect(1, FLOAT)
        axis = axis_of(self.axis_a, a)
        m = size_to(a, axis)
        k = lda = size_from(a, axis)
        if self.trans_a:
            m, k = k, m
        axis = axis_of(self.axis_b, b)
        n = ldb = size_from(b, axis)
        if (n if self.trans_b else size_to(b, axis)) != k:
            return self.fail("the columns of A must be as many as the rows of B")
        if self.trans_b:
            n = size_to(b, axis)
        if self.num_inputs == 3:
            self.expect_size(2, m * n)
            resize_like(y, self.x[2], FLOAT)
        else:
            resize2(y, m, n, FLOAT)
        if K.sgemm(self.trans_a, self.trans_b, m, n, k, 1, floats(a), lda, floats(b), ldb, 0,
                   <float*>y.data, n, NULL, num_threads(work(m, n, k))):
            return self.fail("not enough memory")
        return 0


def _sides(args, inputs):
    """(m, n, k) of a MatMul, or None."""
    a, b = (t.shape for t in inputs[:2])
    if a is None or b is None:
        return None
    axis_a, axis_b = args.int("axis_a", 1) % len(a), args.int("axis_b", 1) % len(b)
    m, k = _product(a[:axis_a]), _product(a[axis_a:])
    if args.bool("trans_a"):
        m, k = k, m
    return m, _product(b[:axis_b] if args.bool("trans_b") else b[axis_b:]), k


def _infer_matmul(args, inputs):
    a, _, *like = inputs
    sides = _sides(args, inputs)
    if like:
        return [TensorInfo(t.shape, a.dtype) for t in like]
    return [] if sides is None else [TensorInfo(sides[:2], a.dtype)]


def _cost_matmul(args, inputs, outputs):
    sides = _sides(args, inputs)
    return None if sides is None else _flops(*sides, inputs[:2])


def _factors(trans_a, trans_b):
    """Which factors, transposed or not, make dA and dB of C = op(A) op(B): G is dC."""
    a, b = ("A", trans_a), ("B", trans_b)

    def turned(x):
        return x[0], not x[1]
    da = (turned(("G", True)), turned(b)) if not trans_a else (b, ("G", True))
    db = (turned(a), ("G", False)) if not trans_b else (("G", True), a)
    return da, db


def _gradient_matmul(g):
    args = g.args
    axes = {"A": args.int("axis_a", 1), "B": args.int("axis_b", 1)}
    if g.num_inputs != 2:
        raise ValueError("MatMul with three inputs has no gradient")
    blobs = {"A": g.I(0), "B": g.I(1), "G": g.GO(0)}
    ops = []
    for i, factors in enumerate(_factors(args.bool("trans_a"), args.bool("trans_b"))):
        given = {}
        for side, (which, trans) in zip("ab", factors):
            if trans:
                given["trans_" + side] = 1
            if which in axes:
                given["axis_" + side] = axes[which]
        inputs = [blobs[which] for which, _ in factors] + [g.I(i)]
        ops.append(g.op("MatMul", inputs, [g.GI(i)], copy_args=False, **given))
    return ops


register(
    "MatMul", MatMul, (2, 3), 1,
    ins={"A": "seen as a matrix, split before `axis_a`", "B": "seen as a matrix, split before `axis_b`"},
    outs={"Y": "matrix (m, n); of the shape of the third input where there is one"},
    args={
        "axis_a": "dimensions of A before it make up the rows (default 1)",
        "axis_b": "dimensions of B before it make up the rows (default 1)",
        "trans_a": "1: use the transpose of A (default 0)",
        "trans_b": "1: use the transpose of B (default 0)",
    },
    infer=_infer_matmul, cost=_cost_matmul, gradient=_gradient_matmul,
    doc="Matrix product Y = A B, with A of shape (m, k) and B of shape (k, n).",
)


# ---------------------------------------------------------------- BatchMatMul

cdef class BatchMatMul(Operator):
    cdef bint trans_a, trans_b, broadcast

    def setup(self):
        self.trans_a = self.args.bool("trans_a")
        self.trans_b = self.args.bool("trans_b")
        self.broadcast = self.args.bool("broadcast")

    cdef int run(self) except -1 nogil:
        cdef tensor_t* a = self.x[0]
        cdef tensor_t* b = self.x[1]
        cdef int na = a.ndim, nb = b.ndim, ndim, i
        cdef int64_t m, n, k, kb, lda, ldb, count, outer, da, db, at, rest, ia, ib, inner
        cdef int64_t[MAX_DIMS + 2] shape
        cdef int64_t[MAX_DIMS] step_a, step_b
        self.expect(0, FLOAT)
        self.expect(1, FLOAT)
        if not self.broadcast and (na != nb or na < 2):
            return self.fail("A and B must have the same number of dimensions, at least 2, "
                             "unless broadcast=1")
        if na == 0 or nb == 0:
            return self.fail("A and B must have at least one dimension")
        # Vectors: A is a row, B a column, and their 1 does not appear in the output.
        m = a.shape[na - 2] if na > 1 else 1
        k = lda = a.shape[na - 1]
        if na > 1 and self.trans_a:
            m, k = k, m
        kb = b.shape[nb - 2] if nb > 1 else b.shape[0]
        n = ldb = b.shape[nb - 1] if nb > 1 else 1
        if nb > 1 and self.trans_b:
            kb, n = n, kb
        if kb != k:
            return self.fail("the columns of A must be as many as the rows of B")
        ndim = max(max(na, nb) - 2, 0)
        # Batch dimensions of Y, and the steps of A and B along them, 0 where one of them is repeated.
        ia = lda * a.shape[na - 2] if na > 1 else k
        ib = ldb * b.shape[nb - 2] if nb > 1 else k
        count = 1
        for i in range(ndim - 1, -1, -1):
            da = a.shape[i - ndim + na - 2] if i - ndim + na - 2 >= 0 else 1
            db = b.shape[i - ndim + nb - 2] if i - ndim + nb - 2 >= 0 else 1
            if da != db and not (self.broadcast and (da == 1 or db == 1)):
                return self.fail("the batch dimensions of A and B do not fit")
            shape[i] = db if da == 1 else da
            step_a[i] = ia if da > 1 else 0
            step_b[i] = ib if db > 1 else 0
            ia *= da
            ib *= db
            count *= shape[i]
        cdef int total = ndim
        if na > 1:
            shape[total] = m
            total += 1
        if nb > 1:
            shape[total] = n
            total += 1
        if total == 0:
            shape[0] = 1
            total = 1
        if total > MAX_DIMS:
            return self.fail("too many dimensions")
        resize(self.y[0], total, shape, FLOAT)
        if count == 0 or m == 0 or n == 0:
            return 0
        # One call for each run of the last batch dimension: along it both factors move evenly.
        inner = shape[ndim - 1] if ndim else 1
        cdef int threads = num_threads(work(m * count, n, k))
        for outer in range(count // inner):
            rest = outer
            ia = ib = 0
            for i in range(ndim - 2, -1, -1):
                at = rest % shape[i]
                rest = rest // shape[i]
                ia += at * step_a[i]
                ib += at * step_b[i]
            if K.sgemm_batch(inner, na > 1 and self.trans_a, nb > 1 and self.trans_b, m, n, k, 1,
                             floats(a) + ia, lda, step_a[ndim - 1] if ndim else 0,
                             floats(b) + ib, ldb, step_b[ndim - 1] if ndim else 0, 0,
                             <float*>self.y[0].data + outer * inner * m * n, n, m * n, threads):
                return self.fail("not enough memory")
        return 0


def _split(shape, trans, vector):
    """(batch dimensions, rows, columns) of one factor; `vector` tells what one dimension is."""
    if len(shape) == 1:
        return (), *vector(*shape)
    *batch, rows, columns = shape
    return tuple(batch), *((columns, rows) if trans else (rows, columns))


def _infer_batch(args, inputs):
    a, b = inputs
    if not a.shape or not b.shape:
        return []
    batch_a, m, _ = _split(a.shape, args.bool("trans_a"), lambda k: (None, k))
    batch_b, _, n = _split(b.shape, args.bool("trans_b"), lambda k: (k, None))
    ndim = max(len(batch_a), len(batch_b))
    padded = ((1,) * (ndim - len(batch)) + batch for batch in (batch_a, batch_b))
    shape = [q if p == 1 else p for p, q in zip(*padded)]
    shape += [d for d in (m, n) if d is not None]
    return [TensorInfo(shape or (1,), a.dtype)]


def _cost_batch(args, inputs, outputs):
    a, _ = inputs
    (y,) = outputs
    if not a.shape or y.shape is None:
        return None
    _, _, k = _split(a.shape, args.bool("trans_a"), lambda k: (None, k))
    return _flops(1, y.size, k, inputs)


def _gradient_batch(g):
    if g.args.bool("broadcast"):
        raise ValueError("BatchMatMul has no gradient with broadcast=1")
    blobs = {"A": g.I(0), "B": g.I(1), "G": g.GO(0)}
    ops = []
    for i, factors in enumerate(_factors(g.args.bool("trans_a"), g.args.bool("trans_b"))):
        given = {"trans_" + side: 1 for side, (_, trans) in zip("ab", factors) if trans}
        if "use_scratch" in g.args:
            given["use_scratch"] = 1
        inputs = [blobs[which] for which, _ in factors]
        ops.append(g.op("BatchMatMul", inputs, [g.GI(i)], copy_args=False, **given))
    return ops


register(
    "BatchMatMul", BatchMatMul, 2, 1,
    ins={"A": "(..., m, k)", "B": "(..., k, n)"}, outs={"Y": "(..., m, n)"},
    args={
        "trans_a": "1: use the transposes of the matrices of A (default 0)",
        "trans_b": "1: use the transposes of the matrices of B (default 0)",
        "broadcast": "1: dimensions of one are repeated for the other and vectors are allowed, "
                     "as in numpy.matmul (default 0)",
    },
    infer=_infer_batch, cost=_cost_batch, gradient=_gradient_batch,
    doc="Matrix products Y[i] = A[i] B[i] over all leading dimensions, which A and B share; two "
        "vectors give a tensor of one element.",
)

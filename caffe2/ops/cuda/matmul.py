"""Matrix products: fully connected layers, MatMul and BatchMatMul, through cuBLAS."""
from caffe2.ops.cuda.elementwise import Broadcast
from caffe2.ops.cuda.libraries import gemm
from caffe2.ops.cuda.pointwise import FLOATS, SUFFIX, product, register_cuda
from caffe2.ops.cuda.shape import width
from caffe2.ops.cuda.softmax import matrix


class Linear(Broadcast):
    """Base: X as a matrix (m, k), split before `axis`; W as (n, k), or (k, n) where transposed."""

    def sizes(self):
        x = self.source(0, FLOATS)
        w = self.source(1, (x.dtype,))
        self.transposed = self.type.startswith("FCTransposed")
        m, k = matrix(x.shape, self.args.int("axis", 1))
        n, k_w = matrix(w.shape, self.args.int("axis_w", 1))
        if self.transposed:
            n, k_w = k_w, n
        if k != k_w:
            raise ValueError("the rows of X and of W must have the same length")
        return x, w, m, n, k


@register_cuda("FC")
@register_cuda("FCTransposed")
class FC(Linear):
    def execute(self):
        x, w, m, n, k = self.sizes()
        b = self.source(2, (x.dtype,))
        if b.shape != (n,):
            raise ValueError(f"input 2 must be a vector of {n} elements, but has shape {b.shape}")
        axis = self.args.int("axis", 1) % x.ndim
        y = self.target(0, (*x.shape[:axis], n), x.dtype)
        if not k:
            raise ValueError("rows of no elements")
        # the bias goes first, and the product is added
        self.binary("Second" + SUFFIX[x.dtype], y, b, y, (m, n), (m, n), (1, n))
        gemm(self, False, not self.transposed, m, n, k, x.pointer, k, w.pointer, n if self.transposed else k, y.pointer,
             beta=1.0, dtype=x.dtype)


@register_cuda("FCGradient")
@register_cuda("FCTransposedGradient")
class FCGradient(Linear):
    def execute(self):
        x, w, m, n, k = self.sizes()
        dy, dtype = self.source(2, (x.dtype,)), x.dtype
        if dy.size != m * n:
            raise ValueError(f"input 2 must have {m * n} elements, but has {dy.size}")
        dw, db = self.like(0, w), self.target(1, (n,), dtype)
        if self.transposed:
            gemm(self, True, False, k, n, m, x.pointer, k, dy.pointer, n, dw.pointer, dtype=dtype)
        else:
            gemm(self, True, False, n, k, m, dy.pointer, n, x.pointer, k, dw.pointer, dtype=dtype)
        self.reduce("Sum", dy, (m, n), [0], db)
        if len(self.outputs) == 3:
            dx = self.like(2, x)
            gemm(self, False, self.transposed, m, k, n, dy.pointer, n, w.pointer, n if self.transposed else k,
                 dx.pointer, dtype=dtype)


@register_cuda("MatMul")
class MatMul(Linear):
    def execute(self):
        a, args = self.source(0, FLOATS), self.args
        b = self.source(1, (a.dtype,))
        trans_a, trans_b = args.bool("trans_a"), args.bool("trans_b")
        m, lda = matrix(a.shape, args.int("axis_a", 1))
        k_b, ldb = matrix(b.shape, args.int("axis_b", 1))
        k, n = lda, ldb
        if trans_a:
            m, k = k, m
        if trans_b:
            k_b, n = n, k_b
        if k != k_b:
            raise ValueError("the columns of A must be as many as the rows of B")
        shape = (m, n)
        if len(self.inputs) == 3:
            shape = self.source(2).shape
            if product(shape) != m * n:
                raise ValueError(f"input 2 must have {m * n} elements")
        y = self.target(0, shape, a.dtype)
        gemm(self, trans_a, trans_b, m, n, k, a.pointer, lda, b.pointer, ldb, y.pointer, dtype=a.dtype)


@register_cuda("BatchMatMul")
class BatchMatMul(Linear):
    def execute(self):
        a, args = self.source(0, FLOATS), self.args
        b = self.source(1, (a.dtype,))
        if not args.bool("broadcast") and (a.ndim != b.ndim or a.ndim < 2):
            raise ValueError("A and B must have the same number of dimensions, at least 2, unless broadcast=1")
        if not a.ndim or not b.ndim:
            raise ValueError("A and B must have at least one dimension")
        trans_a, trans_b = a.ndim > 1 and args.bool("trans_a"), b.ndim > 1 and args.bool("trans_b")
        rows_a, lda = a.shape[-2:] if a.ndim > 1 else (1, a.size)
        rows_b, ldb = b.shape[-2:] if b.ndim > 1 else (b.size, 1)
        m, k = (lda, rows_a) if trans_a else (rows_a, lda)
        k_b, n = (ldb, rows_b) if trans_b else (rows_b, ldb)
        if k != k_b:
            raise ValueError("the columns of A must be as many as the rows of B")
        count = max(a.ndim, b.ndim) - 2
        batch_a, batch_b = ((1,) * (count - len(s)) + s for s in (a.shape[:-2], b.shape[:-2]))
        batch = []
        for p, q in zip(batch_a, batch_b):
            if p != q and not (args.bool("broadcast") and 1 in (p, q)):
                raise ValueError("the batch dimensions of A and B do not fit")
            batch.append(q if p == 1 else p)
        y = self.target(0, self.infer()[0].shape, a.dtype)
        inner = batch[-1] if batch else 1
        if not y.size or not inner:
            return
        step_a, step_b = self.steps(batch_a, rows_a * lda), self.steps(batch_b, rows_b * ldb)
        for outer in range(product(batch[:-1])):
            at_a = at_b = 0
            rest = outer
            for i in range(len(batch) - 2, -1, -1):
                rest, at = divmod(rest, batch[i])
                at_a += at * step_a[i]
                at_b += at * step_b[i]
            gemm(self, trans_a, trans_b, m, n, k, a.pointer + width(a) * at_a, lda, b.pointer + width(b) * at_b, ldb,
                 y.pointer + width(y) * outer * inner * m * n, dtype=a.dtype, batch=inner,
                 stride_a=step_a[-1] if batch else 0, stride_b=step_b[-1] if batch else 0, stride_c=m * n)

    def steps(self, batch, size):
        """Distance of matrices along each batch dimension; 0 where one is repeated."""
        steps = []
        for d in reversed(batch):
            steps.insert(0, size if d > 1 else 0)
            size *= d
        return steps

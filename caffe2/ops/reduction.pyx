"""Reductions: sums, means, norms and extremes over axes, the front or the back; moments."""
from libc.math cimport INFINITY, sqrt
from libc.stdint cimport INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, int32_t, int64_t
from libc.string cimport memset

from caffe2._core.tensor cimport (
    DOUBLE, FLOAT, INT32, INT64, MAX_DIMS, itemsize, resize, resize_like, tensor_t,
)
from caffe2.ops.kernels.dispatch cimport K
from caffe2.ops.pointwise cimport DTYPES, Nested, nest_t, number

from caffe2._core import gradient
from caffe2._core.gradient import simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, flops_per_element, like

# ---------------------------------------------------------------- the loops

# A loop is a specialization for one of these tags and one dtype.
ctypedef struct sum_t:
    char _
ctypedef struct minus_t:
    char _
ctypedef struct abs_t:
    char _
ctypedef struct square_t:
    char _
ctypedef struct deviation_t:
    char _
ctypedef struct times_t:
    char _
ctypedef struct over_t:
    char _
ctypedef struct ratio_t:
    char _
ctypedef struct maximum_t:
    char _
ctypedef struct minimum_t:
    char _

ctypedef fused fold_tag:
    sum_t
    minus_t
    abs_t
    square_t
    deviation_t
    times_t
    over_t
    ratio_t
    maximum_t
    minimum_t

cdef enum:
    CHUNK = 256     # terms, or columns, that are gathered before they are added
    LANES = 8


cdef inline number divide(number a, number b) noexcept nogil:
    # Integers: the caller has excluded 0, and the least number over -1 overflows.
    if number is int32_t or number is int64_t:
        return -a if b == -1 else a // b
    else:
        return a / b


cdef inline number term(const fold_tag* tag, number x, number c, number q) noexcept nogil:
    if fold_tag is minus_t:
        return -x
    elif fold_tag is abs_t:
        return -x if x < 0 else x
    elif fold_tag is square_t:
        return x * x
    elif fold_tag is deviation_t:
        return (x - q) * (x - q)
    elif fold_tag is times_t:
        return x * q
    elif fold_tag is over_t:
        return divide(x, q)
    elif fold_tag is ratio_t:
        return divide(-x * c, q)
    else:
        return x


cdef inline number joined(const fold_tag* tag, number a, number x) noexcept nogil:
    if fold_tag is maximum_t:       # NaN wins
        return x if x > a or x != x else a
    elif fold_tag is minimum_t:
        return x if x < a or x != x else a
    else:
        return a + x


cdef void row(const fold_tag* tag, const number* x, const number* c, const number* q, int64_t sq,
              number* out, int64_t n) noexcept nogil:
    """Fold n terms into one value."""
    cdef number value
    cdef int64_t i, k, size
    cdef number[CHUNK] terms
    cdef number[LANES] lanes
    if number is float and (fold_tag is sum_t or fold_tag is minus_t):
        out[0] += term(tag, <float>K.vsum(n, x), 0, 0)
    elif number is float and fold_tag is square_t:
        out[0] += <float>K.vsumsq(n, x)
    elif number is float and fold_tag is maximum_t:
        out[0] = joined(tag, out[0], K.vmax(n, x))
    elif number is float and fold_tag is minimum_t:
        i = 0
        while i < n:
            size = min(n - i, CHUNK)
            for k in range(size):
                terms[k] = -x[i + k]
            out[0] = joined(tag, out[0], -K.vmax(size, terms))
            i += size
    elif number is float:
        i = 0
        while i < n:
            size = min(n - i, CHUNK)
            for k in range(size):
                terms[k] = term(tag, x[i + k], c[i + k], q[(i + k) * sq])
            out[0] += <float>K.vsum(size, terms)
            i += size
    else:
        size = n - n % LANES    # lanes of their own, which the compiler makes a vector
        for k in range(LANES):
            lanes[k] = out[0] if fold_tag is maximum_t or fold_tag is minimum_t else 0
        i = 0
        while i < size:
            for k in range(LANES):
                lanes[k] = joined(tag, lanes[k],
                                  term(tag, x[i + k], c[i + k], q[(i + k) * sq]))
            i += LANES
        value = out[0]
        for k in range(LANES):
            value = joined(tag, value, lanes[k])
        for i in range(size, n):
            value = joined(tag, value, term(tag, x[i], c[i], q[i * sq]))
        out[0] = value


cdef void fold(const fold_tag* tag, const number* x, const number* c, int64_t sx, const number* q,
               const int64_t* sq, number* out, const int64_t* so, bint assign,
               int64_t n, int64_t m) noexcept nogil:
    cdef int64_t i, j, size
    cdef number v
    cdef number[CHUNK] sums
    if number is float and (fold_tag is sum_t or fold_tag is minus_t):
        if so[0] and not so[1] and m > 1:
            i = 0
            while i < n:
                size = min(n - i, CHUNK)
                K.column_sums(m, size, x + i, sx, sums)
                for j in range(size):
                    out[i + j] += term(tag, sums[j], 0, 0)
                i += size
            return
    for _ in range(m):
        if not so[0]:
            row(tag, x, c, q, sq[0], out, n)
        elif assign:
            if sq[0]:
                for i in range(n):
                    out[i] = term(tag, x[i], c[i], q[i])
            else:
                v = q[0]
                for i in range(n):
                    out[i] = term(tag, x[i], c[i], v)
        elif sq[0]:
            for i in range(n):
                out[i] = joined(tag, out[i], term(tag, x[i], c[i], q[i]))
        else:
            v = q[0]
            for i in range(n):
                out[i] = joined(tag, out[i], term(tag, x[i], c[i], v))
        x += sx
        c += sx
        q += sq[1]
        out += so[1]


cdef void fill(const fold_tag* tag, fold_t* loops) noexcept:
    loops[<int>FLOAT] = <fold_t>fold[fold_tag, float]
    loops[<int>DOUBLE] = <fold_t>fold[fold_tag, double]
    loops[<int>INT32] = <fold_t>fold[fold_tag, int32_t]
    loops[<int>INT64] = <fold_t>fold[fold_tag, int64_t]


cdef fold_t[FOLDS][DTYPES] FOLD_LOOPS
memset(FOLD_LOOPS, 0, sizeof(FOLD_LOOPS))
fill(<sum_t*>NULL, FOLD_LOOPS[<int>SUM])
fill(<minus_t*>NULL, FOLD_LOOPS[<int>MINUS])
fill(<abs_t*>NULL, FOLD_LOOPS[<int>ABS])
fill(<square_t*>NULL, FOLD_LOOPS[<int>SQUARE])
fill(<deviation_t*>NULL, FOLD_LOOPS[<int>DEVIATION])
fill(<times_t*>NULL, FOLD_LOOPS[<int>TIMES])
fill(<over_t*>NULL, FOLD_LOOPS[<int>OVER])
fill(<ratio_t*>NULL, FOLD_LOOPS[<int>RATIO])
fill(<maximum_t*>NULL, FOLD_LOOPS[<int>MAXIMUM])
fill(<minimum_t*>NULL, FOLD_LOOPS[<int>MINIMUM])


cdef fold_t fold_loop(int fold, int dtype) noexcept nogil:
    return FOLD_LOOPS[fold][dtype]


cdef void fill_value(number* out, int64_t n, number value) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        out[i] = value


cdef void start(int fold, int dtype, void* out, int64_t n) noexcept nogil:
    cdef bint low = fold == MAXIMUM
    if fold < MAXIMUM:
        memset(out, 0, n * itemsize(dtype))
    elif dtype == FLOAT:
        fill_value(<float*>out, n, <float>(-INFINITY if low else INFINITY))
    elif dtype == DOUBLE:
        fill_value(<double*>out, n, -INFINITY if low else INFINITY)
    elif dtype == INT32:
        fill_value(<int32_t*>out, n, INT32_MIN if low else INT32_MAX)
    else:
        fill_value(<int64_t*>out, n, INT64_MIN if low else INT64_MAX)


cdef bint is_full(const nest_t* t, int k) noexcept nogil:
    cdef int d
    for d in range(t.ndim):
        if not t.stride[k][d] and t.shape[d] > 1:
            return False
    return True


# ---------------------------------------------------------------- over axes, the front, the back

cdef enum Kind:
    AXES = 0        # argument axes, perhaps kept as 1
    FRONT = 1       # the first num_reduce_dim
    BACK = 2        # the last num_reduce_dim
    MATRIX = 3      # rows or columns of a batch of matrices
    TAIL = 4        # all but the first


_FOLDS = {"Sum": SUM, "Mean": SUM, "Max": MAXIMUM, "Min": MINIMUM, "L1": ABS, "L2": SQUARE}


cdef class Reducer(Nested):
    """Base of reductions and their gradients: what is reduced, and how."""

    cdef int kind
    cdef int op             # Fold
    cdef bint mean
    cdef bint root          # of the sum
    cdef bint keepdims
    cdef int num            # of dimensions that FRONT and BACK reduce
    cdef int[MAX_DIMS] axes
    cdef int num_axes
    cdef int first_axis     # of MATRIX
    cdef bint[MAX_DIMS] reduced
    cdef int64_t kept       # elements of the result
    cdef int64_t count      # elements that each is folded from

    def setup(self):
        name = self.type.removesuffix("Gradient")
        if name in ("RowwiseMax", "ColwiseMax"):
            self.kind, self.op, self.first_axis = MATRIX, MAXIMUM, 2 if name[0] == "R" else 1
            return
        name = name.removeprefix("Reduce")
        for prefix, kind in ("Front", FRONT), ("Back", BACK), ("Tail", TAIL):
            if name.startswith(prefix):
                self.kind, name = kind, name.removeprefix(prefix)
        if name == "Moments":
            name = "Mean"
        self.op, self.mean, self.root = _FOLDS[name], name == "Mean", name == "L2"
        self.num = self.args.int("num_reduce_dim", 1)
        if self.kind == AXES:
            self.keepdims = self.args.bool("keepdims", True)
            axes = self.args.ints("axes")
            if len(axes) > MAX_DIMS:
                raise ValueError("axes are too many")
            self.num_axes = <int>len(axes)
            for i, axis in enumerate(axes):
                self.axes[i] = axis

    cdef int select(self, const tensor_t* x) except -1 nogil:
        """Set `reduced`, `kept` and `count` for an input."""
        cdef int d, axis
        cdef int low = 0, high = x.ndim
        for d in range(x.ndim):
            self.reduced[d] = False
        if self.kind == AXES and self.num_axes:
            high = 0
            for d in range(self.num_axes):
                axis = self.axes[d] + (x.ndim if self.axes[d] < 0 else 0)
                if not 0 <= axis < x.ndim:
                    return self.fail("axes are out of range")
                self.reduced[axis] = True
        elif self.kind == FRONT or self.kind == BACK:
            if not 0 <= self.num <= x.ndim:
                return self.fail("num_reduce_dim is negative, or larger than there are dimensions")
            if self.kind == FRONT:
                high = self.num
            else:
                low = x.ndim - self.num
        elif self.kind == MATRIX:
            if x.ndim != 3:
                return self.fail("X must have 3 dimensions: a batch of matrices")
            low, high = self.first_axis, self.first_axis + 1
        elif self.kind == TAIL:
            low = 1
            if x.ndim == 0:
                return self.fail("the input must have at least one dimension")
        for d in range(low, high):
            self.reduced[d] = True
        self.kept = self.count = 1
        for d in range(x.ndim):
            if self.reduced[d]:
                self.count *= x.shape[d]
            else:
                self.kept *= x.shape[d]
        return 0

    cdef int nest_for(self, const tensor_t* x) noexcept nogil:
        """Nest the loops over x: operand 2 is like x, operands 0 and 1 are like the result."""
        cdef nest_t* t = &self.nest
        cdef int d
        cdef int64_t step = 1
        t.full_ndim = x.ndim
        for d in range(x.ndim - 1, -1, -1):
            t.full_shape[d] = x.shape[d]
            t.full_stride[0][d] = t.full_stride[1][d] = 0 if self.reduced[d] else step
            if not self.reduced[d]:
                step *= x.shape[d]
        self.join()
        return 0

    cdef int make(self, const tensor_t* x, tensor_t* y, int dtype) except -1 nogil:
        """Give y the shape of the result."""
        cdef int64_t[MAX_DIMS] shape
        cdef int d, n = 0
        for d in range(x.ndim):
            if not self.reduced[d]:
                shape[n] = x.shape[d]
                n += 1
            elif self.keepdims:
                shape[n] = 1
                n += 1
        return resize(y, n, shape, dtype)

    cdef int check_lengths(self, int i) except -1 nogil:
        """Input i says how many of the values along the reduced dimension count."""
        cdef int64_t k
        self.expect(i, INT32)
        if self.num != 1:
            return self.fail("lengths need num_reduce_dim=1")
        self.expect_size(i, self.kept)
        for k in range(self.kept):
            if not 0 <= (<const int32_t*>self.x[i].data)[k] <= self.count:
                return self.fail("a length is negative, or larger than the reduced dimension")
        return 0


cdef void finish(number* y, int64_t n, int64_t count, bint mean, bint root) noexcept nogil:
    cdef int64_t i
    if mean and count:
        for i in range(n):
            y[i] = divide(y[i], <number>count)
    if root:
        for i in range(n):
            y[i] = <number>sqrt(<double>y[i])


cdef void fold_lengths(const number* x, const int32_t* lengths, int64_t n, int64_t along,
                       int64_t across, bint mean, bint largest, number* y) noexcept nogil:
    """Fold the first lengths[k] of the values x[k * across + i * along]; at least the first."""
    cdef int64_t i, k
    cdef number v, value
    for k in range(n):
        value = x[k * across]
        for i in range(1, lengths[k]):
            v = x[k * across + i * along]
            if largest:
                value = v if v > value or v != v else value
            else:
                value += v
        if mean:
            if number is float or number is double:
                value /= <number>lengths[k]
            elif lengths[k]:
                value //= <number>lengths[k]
        y[k] = value


cdef class Reduce(Reducer):
    """Reduction of X, perhaps with lengths."""

    cdef fold_t loop
    cdef size_t size
    cdef bint assign

    cdef void block(self, const int64_t* at, int64_t n, int64_t m) noexcept nogil:
        cdef nest_t* t = &self.nest
        cdef const char* x = <const char*>self.x[0].data + at[2] * self.size
        self.loop(NULL, x, x, t.stride[2][1], x, &t.stride[2][0],
                  <char*>self.y[0].data + at[0] * self.size, &t.stride[0][0], self.assign, n, m)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y = self.y[0]
        cdef const int32_t* lengths
        cdef int64_t along, across
        cdef bint largest = self.op == MAXIMUM
        self.loop = fold_loop(self.op, x.dtype)
        if self.loop == NULL:
            return self.bad_dtype(0)
        self.select(x)
        if self.num_inputs > 1:
            self.check_lengths(1)
        self.make(x, y, x.dtype)
        if self.num_inputs > 1 and x.size:
            lengths = <const int32_t*>self.x[1].data
            along = self.kept if self.kind == FRONT else 1
            across = 1 if self.kind == FRONT else self.count
            if x.dtype == FLOAT:
                fold_lengths(<const float*>x.data, lengths, self.kept, along, across, self.mean,
                             largest, <float*>y.data)
            elif x.dtype == DOUBLE:
                fold_lengths(<const double*>x.data, lengths, self.kept, along, across, self.mean,
                             largest, <double*>y.data)
            elif x.dtype == INT32:
                fold_lengths(<const int32_t*>x.data, lengths, self.kept, along, across, self.mean,
                             largest, <int32_t*>y.data)
            else:
                fold_lengths(<const int64_t*>x.data, lengths, self.kept, along, across, self.mean,
                             largest, <int64_t*>y.data)
            return 0
        self.nest_for(x)
        self.size = itemsize(x.dtype)
        self.assign = self.count == 1
        start(self.op, x.dtype, y.data, y.size)
        self.sweep(0)
        if not (self.mean or self.root):
            return 0
        if x.dtype == FLOAT:
            finish(<float*>y.data, y.size, self.count, self.mean, self.root)
        elif x.dtype == DOUBLE:
            finish(<double*>y.data, y.size, self.count, self.mean, self.root)
        elif x.dtype == INT32:
            finish(<int32_t*>y.data, y.size, self.count, self.mean, self.root)
        else:
            finish(<int64_t*>y.data, y.size, self.count, self.mean, self.root)
        return 0


cdef inline number share(int op, number dy, number y, number x, number count) noexcept nogil:
    """What of a result's gradient goes to one value x."""
    if op == SUM:
        return divide(dy, count)
    if op == ABS:
        return dy if x > 0 else -dy if x < 0 else 0
    if op == SQUARE:            # a norm of 0 has no slope
        return 0 if y == 0 else divide(dy * x, y)
    return dy if x == y else 0


cdef void spread(int op, const number* dy, const number* y, const int64_t* sy, const number* x,
                 number* dx, int64_t sx, int64_t count, int64_t n, int64_t m) noexcept nogil:
    cdef int64_t i
    cdef number v
    for _ in range(m):
        if op == SUM and not sy[0]:
            v = share(op, dy[0], 0, 0, <number>count)
            for i in range(n):
                dx[i] = v
        else:
            for i in range(n):
                dx[i] = share(op, dy[i * sy[0]], y[i * sy[0]], x[i], <number>count)
        dy += sy[1]
        y += sy[1]
        x += sx
        dx += sx


cdef class ReduceGradient(Reducer):
    """Gradient of a reduction from (dY, X, Y, lengths), in this or another order."""

    cdef int dy
    cdef int source         # X, or only its shape
    cdef int y_at
    cdef int lengths        # input, or 0

    def setup(self):
        Reducer.setup(self)
        self.source = 1
        self.y_at = 2
        if self.kind == MATRIX:
            self.source, self.y_at, self.dy = 0, 1, 2
            if self.num_inputs != 3 or self.num_outputs != 1:
                raise ValueError("takes X, Y and the gradient of Y, gives the gradient of X")
        elif self.kind != AXES:
            inputs = 2 if self.op == SUM else 3
            if self.num_inputs > inputs:
                self.lengths = inputs
            self.y_at = min(self.y_at, inputs - 1)

    cdef void block(self, const int64_t* at, int64_t n, int64_t m) noexcept nogil:
        cdef nest_t* t = &self.nest
        cdef const void* dy = self.x[self.dy].data
        cdef const void* y = dy if self.op == SUM else self.x[self.y_at].data
        cdef void* dx = self.y[0].data
        cdef const void* x = dx if self.op == SUM else self.x[self.source].data
        cdef const int64_t* sy = &t.stride[0][0]
        cdef int64_t sx = t.stride[2][1], count = self.count if self.mean else 1
        cdef int dtype = self.y[0].dtype
        if dtype == FLOAT:
            spread(self.op, <const float*>dy + at[0], <const float*>y + at[0], sy,
                   <const float*>x + at[2], <float*>dx + at[2], sx, count, n, m)
        elif dtype == DOUBLE:
            spread(self.op, <const double*>dy + at[0], <const double*>y + at[0], sy,
                   <const double*>x + at[2], <double*>dx + at[2], sx, count, n, m)
        elif dtype == INT32:
            spread(self.op, <const int32_t*>dy + at[0], <const int32_t*>y + at[0], sy,
                   <const int32_t*>x + at[2], <int32_t*>dx + at[2], sx, count, n, m)
        else:
            spread(self.op, <const int64_t*>dy + at[0], <const int64_t*>y + at[0], sy,
                   <const int64_t*>x + at[2], <int64_t*>dx + at[2], sx, count, n, m)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[self.source]
        cdef tensor_t* dy = self.x[self.dy]
        cdef tensor_t* dx = self.y[0]
        cdef int dtype = dy.dtype
        if fold_loop(SUM, dtype) == NULL:
            return self.bad_dtype(self.dy)
        if (self.op == SUM and (self.kind == FRONT or self.kind == BACK) and x.ndim == 1
                and x.dtype == INT64 and dtype != INT64):
            if x.size > MAX_DIMS:       # models of old have the shape of X here
                return self.fail("the shape has too many dimensions")
            resize(dx, <int>x.size, <const int64_t*>x.data, dtype)
            x = dx
            self.select(x)
        else:
            if x.dtype == 0:
                return self.bad_dtype(self.source)
            self.select(x)
            if self.op != SUM:
                self.expect(self.source, dtype)
                self.expect(self.y_at, dtype)
                self.expect_size(self.y_at, self.kept)
            resize_like(dx, x, dtype)
        self.expect_size(self.dy, self.kept)
        if self.lengths:
            self.check_lengths(self.lengths)
        self.nest_for(x)
        if not self.lengths:
            return self.sweep(2)
        if dtype == FLOAT:
            self.with_lengths(<const float*>NULL)
        elif dtype == DOUBLE:
            self.with_lengths(<const double*>NULL)
        elif dtype == INT32:
            self.with_lengths(<const int32_t*>NULL)
        else:
            self.with_lengths(<const int64_t*>NULL)
        return 0

    cdef void with_lengths(self, const number* dtype) noexcept nogil:
        cdef const number* dy = <const number*>self.x[self.dy].data
        cdef const number* y = dy if self.op == SUM else <const number*>self.x[self.y_at].data
        cdef number* dx = <number*>self.y[0].data
        cdef const number* x = dx if self.op == SUM else <const number*>self.x[self.source].data
        cdef const int32_t* lengths = <const int32_t*>self.x[self.lengths].data
        cdef int64_t along = self.kept if self.kind == FRONT else 1
        cdef int64_t across = 1 if self.kind == FRONT else self.count
        cdef int64_t i, k, at
        for k in range(self.kept):
            for i in range(self.count):
                at = k * across + i * along
                dx[at] = 0 if i >= lengths[k] else share(
                    self.op, dy[k], y[k], x[at], <number>(lengths[k] if self.mean else 1))


# ---------------------------------------------------------------- moments

cdef class Moments(Reducer):
    """Mean and variance over axes."""

    cdef fold_t loop
    cdef int phase          # output that is computed
    cdef size_t size

    cdef void block(self, const int64_t* at, int64_t n, int64_t m) noexcept nogil:
        cdef nest_t* t = &self.nest
        cdef const char* x = <const char*>self.x[0].data + at[2] * self.size
        self.loop(NULL, x, x, t.stride[2][1],
                  <char*>self.y[0].data + at[1] * self.size, &t.stride[1][0],
                  <char*>self.y[self.phase].data + at[0] * self.size, &t.stride[0][0], False, n, m)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y
        if x.dtype != FLOAT and x.dtype != DOUBLE:
            return self.bad_dtype(0)
        self.select(x)
        self.size = itemsize(x.dtype)
        self.nest_for(x)
        for self.phase in range(2):
            y = self.y[self.phase]
            self.make(x, y, x.dtype)
            self.loop = fold_loop(DEVIATION if self.phase else SUM, x.dtype)
            start(SUM, x.dtype, y.data, y.size)
            self.sweep(0)
            if x.dtype == FLOAT:
                finish(<float*>y.data, y.size, self.count, True, False)
            else:
                finish(<double*>y.data, y.size, self.count, True, False)
        return 0


ctypedef fused real:
    float
    double


cdef class MomentsGradient(Reducer):
    """dX from (dmean, dvariance, X, mean)."""

    cdef void places(self, const real* dtype, const int64_t* at, int64_t n,
                     int64_t m) noexcept nogil:
        cdef nest_t* t = &self.nest
        cdef const real* dmean = <const real*>self.x[0].data
        cdef const real* dvariance = <const real*>self.x[1].data
        cdef const real* x = <const real*>self.x[2].data
        cdef const real* mean = <const real*>self.x[3].data
        cdef real* dx = <real*>self.y[0].data
        cdef real scale = <real>1 / <real>self.count
        cdef int64_t i, j, k, place
        for j in range(m):
            for i in range(n):
                k = at[0] + j * t.stride[0][1] + i * t.stride[0][0]
                place = at[2] + j * t.stride[2][1] + i
                dx[place] = (dmean[k] + 2 * (x[place] - mean[k]) * dvariance[k]) * scale

    cdef void block(self, const int64_t* at, int64_t n, int64_t m) noexcept nogil:
        if self.y[0].dtype == FLOAT:
            self.places(<const float*>NULL, at, n, m)
        else:
            self.places(<const double*>NULL, at, n, m)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[2]
        cdef int i
        if x.dtype != FLOAT and x.dtype != DOUBLE:
            return self.bad_dtype(2)
        self.select(x)
        for i in range(4):
            self.expect(i, x.dtype)
            if i != 2:
                self.expect_size(i, self.kept)
        resize_like(self.y[0], x, x.dtype)
        self.nest_for(x)
        return self.sweep(2)


# ---------------------------------------------------------------- registration

def _infer(reduced, keepdims=lambda args: False):
    """Inference of a reduction over the dimensions that `reduced(args, ndim)` says."""
    def infer(args, inputs):
        x = inputs[0]
        if x.shape is None:
            return [TensorInfo(None, x.dtype)] * 2
        gone = reduced(args, x.ndim)
        keep = keepdims(args)
        shape = [1 if i in gone else n for i, n in enumerate(x.shape) if keep or i not in gone]
        return [TensorInfo(shape, x.dtype)] * 2
    return infer


def _axes(args, ndim):
    axes = args.ints("axes")
    if not all(-ndim <= a < ndim for a in axes):
        raise ValueError(f"axes {axes} are out of range for {ndim} dimensions")
    return {a % ndim for a in axes} if axes else set(range(ndim))


def _reduced(args, ndim):
    n = args.int("num_reduce_dim", 1)
    if not 0 <= n <= ndim:
        raise ValueError(f"num_reduce_dim is {n}, but there are {ndim} dimensions")
    return n


def _front(args, ndim):
    return set(range(_reduced(args, ndim)))


def _back(args, ndim):
    return set(range(ndim - _reduced(args, ndim), ndim))


def _infer_gradient(args, inputs):
    dy, x = inputs[:2]
    if x.dtype == INT64 != dy.dtype and (x.shape is None or x.ndim == 1):
        return [TensorInfo(None, dy.dtype)]     # x may be the shape of X
    return [TensorInfo(x.shape, dy.dtype)]


def _flops(i):
    """One operation for each element of input i."""
    one = flops_per_element(1)

    def cost(args, inputs, outputs):
        size = inputs[i].size if inputs[i].shape is not None else 0
        return {**one(args, inputs, outputs), "flops": size}
    return cost


_AXES_ARGS = {"axes": "dimensions to reduce; negative ones count from the end (default: all)",
              "keepdims": "keep reduced dimensions, as 1 (default 1)"}
_ANY = "tensor of float, double, int32 or int64"

for _name, _doc in {
    "Sum": "Sum of X over some dimensions.",
    "Mean": "Mean of X over some dimensions.",
    "Max": "Largest element of X over some dimensions.",
    "Min": "Smallest element of X over some dimensions.",
    "L1": "Sum of absolute values of X over some dimensions.",
    "L2": "Square root of the sum of squares of X over some dimensions.",
}.items():
    register(
        "Reduce" + _name, Reduce, 1, 1, ins={"X": _ANY}, outs={"Y": "the reduced tensor"},
        args=_AXES_ARGS, infer=_infer(_axes, lambda args: args.bool("keepdims", True)),
        cost=_flops(0), gradient=simple(f"Reduce{_name}Gradient", "GO0 I0 O0", "GI0"), doc=_doc,
    )
    register(
        f"Reduce{_name}Gradient", ReduceGradient, 3, 1, args=_AXES_ARGS,
        ins={"dY": "gradient of Y", "X": _ANY, "Y": "the reduced tensor"},
        outs={"dX": "gradient of X"}, cost=flops_per_element(1),
        infer=lambda args, inputs: [TensorInfo(inputs[1].shape, inputs[0].dtype)],
        doc=f"Gradient of Reduce{_name}." + (
            " Where several elements are the extreme one, each gets the whole of it."
            if _name in ("Max", "Min") else ""),
    )


def _front_back_gradient(type, with_output):
    def maker(g):
        output = [g.O(0)] if with_output else []
        inputs = [g.GO(0), g.I(0), *output, *list(g.definition.input)[1:]]
        return g.op(type, inputs, [g.GI(0)])
    return maker


_NUM_ARGS = {"num_reduce_dim": "number of dimensions to reduce (default 1)",
             "num_reduce_dims": "has no effect; num_reduce_dim is what counts"}
_LENGTHS = "int32 tensor: how many values count for each element of Y; needs num_reduce_dim=1"

for _side, _dims, _where in ("Front", _front, "first"), ("Back", _back, "last"):
    for _name, _what in {"Sum": "Sum", "Mean": "Mean", "Max": "Largest element"}.items():
        _type = f"Reduce{_side}{_name}"
        _ins = {"X": _ANY} | ({"Y": "the reduced tensor"} if _name == "Max" else {})
        register(
            _type, Reduce, (1, 2), 1, ins={"X": _ANY, "lengths": _LENGTHS},
            outs={"Y": "the reduced tensor"}, args=_NUM_ARGS, infer=_infer(_dims), cost=_flops(0),
            gradient=_front_back_gradient(_type + "Gradient", _name == "Max"),
            doc=f"""{_what} of X over its {_where} dimensions. With lengths, the {_where} dimension
is cut to so many values; one counts at least.""",
        )
        register(
            _type + "Gradient", ReduceGradient, (len(_ins) + 1, len(_ins) + 2), 1, args=_NUM_ARGS,
            ins={"dY": "gradient of Y", **_ins, "lengths": _LENGTHS}, infer=_infer_gradient,
            outs={"dX": "gradient of X"}, cost=flops_per_element(1), doc=f"Gradient of {_type}.",
        )

for _type, _axis, _what in ("RowwiseMax", 2, "row"), ("ColwiseMax", 1, "column"):
    register(
        _type, Reduce, 1, 1, ins={"X": "tensor (batch, M, N)"}, cost=_flops(0),
        outs={"Y": f"the largest element of each {_what}, for each matrix of the batch"},
        infer=_infer(lambda args, ndim, axis=_axis: {axis}),
        gradient=simple(_type + "Gradient", "I0 O0 GO0", "GI0"),
        doc=f"Largest element of each {_what} of matrices.",
    )
    register(
        _type + "Gradient", ReduceGradient, 3 if _axis == 2 else (0, None),
        1 if _axis == 2 else (0, None), outs={"dX": "gradient of X"},
        ins={"X": "tensor (batch, M, N)", "Y": "the largest elements", "dY": "gradient of Y"},
        infer=lambda args, inputs: inputs[:1], cost=flops_per_element(1),
        doc=f"Gradient of {_type}; equal elements get the same.",
    )

register(
    "ReduceTailSum", Reduce, 1, 1, ins={"mat": _ANY}, outs={"output": "tensor (N,)"},
    infer=_infer(lambda args, ndim: set(range(1, ndim))), cost=_flops(0), gradient=gradient.none,
    doc="Sum of mat over all dimensions but the first.",
)

register(
    "Moments", Moments, 1, 2, ins={"data": "float or double tensor"}, args=_AXES_ARGS,
    outs={"mean": "means", "variance": "variances: means of the squares of the distances to them"},
    infer=_infer(_axes, lambda args: args.bool("keepdims", True)), cost=_flops(0),
    gradient=simple("MomentsGradient", "GO0 GO1 I0 O0", "GI0"),
    doc="Mean and variance over some dimensions.",
)
register(
    "MomentsGradient", MomentsGradient, 4, 1, args=_AXES_ARGS,
    ins={"dmean": "gradient of mean", "dvariance": "gradient of variance",
         "data": "float or double tensor", "mean": "its mean"},
    outs={"ddata": "gradient of data"}, infer=like(2), cost=flops_per_element(4),
    doc="Gradient of Moments.",
)

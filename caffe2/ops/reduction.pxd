from libc.stdint cimport int64_t

from caffe2.ops.pointwise cimport nest_t

# What a loop folds into its output: a sum of terms of x (and of c and q), or the extreme of x.
cdef enum Fold:
    SUM = 0         # x
    MINUS = 1       # -x
    ABS = 2         # |x|
    SQUARE = 3      # x x
    DEVIATION = 4   # (x - q)^2
    TIMES = 5       # x q
    OVER = 6        # x / q
    RATIO = 7       # -x c / q
    MAXIMUM = 8
    MINIMUM = 9
    FOLDS = 10

# Fold n times m terms into out. Strides are of both loops; x and c are contiguous in the inner one
# and share the outer stride, out's of 0 says that the loop reduces. With `assign` (nothing is
# reduced) terms are written, else out holds what came before.
ctypedef void (*fold_t)(const void* tag, const void* x, const void* c, int64_t sx, const void* q,
                        const int64_t* sq, void* out, const int64_t* so, bint assign,
                        int64_t n, int64_t m) noexcept nogil

# The loop for a fold and a dtype; NULL where there is none.
cdef fold_t fold_loop(int fold, int dtype) noexcept nogil
# What such a fold starts from, written to n places.
cdef void start(int fold, int dtype, void* out, int64_t n) noexcept nogil
# Whether operand k of a nest has a place of its own for each of the full shape.
cdef bint is_full(const nest_t* t, int k) noexcept nogil

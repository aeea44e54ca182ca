from libc.stdint cimport int32_t, int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport MAX_DIMS, tensor_t

ctypedef fused number:
    float
    double
    int32_t
    int64_t

cdef extern from *:
    """
    static inline float pick(int yes, float a, float b) {
        union { float f; int32_t i; } x = {a}, y = {b};
        x.i = (x.i & -yes) | (y.i & (yes - 1));
        return x.f;
    }
    """
    # a if yes else b. Both are computed, there is no branch, and a loop of it becomes vectors.
    float pick(bint yes, float a, float b) noexcept nogil

cdef class Pointwise(Operator):
    # Values at a place depend on the inputs' values at that place. A subclass says how, for one
    # stretch of n places; x[i] points into input i, y into output 0.
    cdef int work       # elementary operations a place, for the choice of threads

    cdef void apply(self, const float** x, float* y, int64_t n) noexcept nogil
    cdef void stretch(self, int64_t start, int64_t stop) noexcept nogil

cdef enum:
    OPERANDS = 3        # of a nest; the last one is contiguous and has the full shape
    DTYPES = 14         # tables of loops have an entry for each dtype

# Nested loops over operands that are broadcast against each other. Loop 0 is the innermost; loops
# that can be one are one, those that run once are gone. A stride (in elements) of 0 repeats.
cdef struct nest_t:
    int ndim
    int64_t[MAX_DIMS] shape
    int64_t[OPERANDS][MAX_DIMS] stride
    int full_ndim               # before loops were joined, outermost first
    int64_t[MAX_DIMS] full_shape
    int64_t[OPERANDS][MAX_DIMS] full_stride     # the last one's is derived
    int64_t size

cdef class Nested(Operator):
    # Runs loops nested as in `nest`. A subclass does the two innermost ones: n times m places, from
    # offsets at[k] of operand k on.
    cdef nest_t nest
    cdef int work

    cdef void block(self, const int64_t* at, int64_t n, int64_t m) noexcept nogil
    # Run all loops. Threads share no place of operand `out`.
    cdef int sweep(self, int out) except -1 nogil
    cdef void walk(self, int split, int64_t low, int64_t high) noexcept nogil
    # Set up the nest: one loop over n places, or full_shape and full_stride joined.
    cdef void flat(self, int64_t n) noexcept nogil
    cdef void join(self) noexcept nogil

cdef class Broadcast(Nested):
    # Two inputs broadcast against each other: operands 0 and 1. Operand 2 has the common shape.
    cdef bint legacy            # the second is broadcast onto the first, from dimension `axis` on
    cdef int axis
    cdef bint expects_flag      # axis means something only with broadcast=1

    cdef int align(self, const tensor_t* a, const tensor_t* b) except -1 nogil
    cdef int align_legacy(self, const tensor_t* a, const tensor_t* b) except -1 nogil

# One row or two of loops: c = f(a, b); s* are strides of both loops.
ctypedef void (*binary_t)(const void* tag, const void* a, const int64_t* sa, const void* b,
                          const int64_t* sb, void* c, const int64_t* sc,
                          int64_t n, int64_t m) noexcept nogil

cdef class Binary(Broadcast):
    # C = f(A, B). A subclass fills `loops`, by dtype of the inputs.
    cdef binary_t[DTYPES] loops
    cdef binary_t loop
    cdef int result             # dtype of C; UNDEFINED: that of the inputs
    cdef size_t in_size
    cdef size_t out_size

    cdef int check(self) except -1 nogil

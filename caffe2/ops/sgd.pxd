from libc.stdint cimport int64_t
from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport tensor_t

# sum(a * b)
cdef double dot(const float* a, const float* b, int64_t n) noexcept nogil
# Element i of an int32 or int64 tensor.
cdef int64_t index_at(const tensor_t* t, int64_t i) noexcept nogil
# Raise unless an input holds indices, int32 or int64, all in [0, rows).
cdef int check_indices(Operator op, int input, int64_t rows) except -1 nogil

"""Integers that an input holds, as int32 or int64: shapes, indices, lengths."""
from libc.stdint cimport int32_t, int64_t
from caffe2._core.tensor cimport INT32, INT64, tensor_t

cdef inline bint is_index(int dtype) noexcept nogil:
    return dtype == INT32 or dtype == INT64

cdef inline int64_t index_at(const tensor_t* t, int64_t i) noexcept nogil:
    return (<int64_t*>t.data)[i] if t.dtype == INT64 else (<int32_t*>t.data)[i]

cdef inline int index_error(int64_t index, int64_t n) except -1 nogil:
    with gil:
        raise IndexError(f"index {index} is out of range for {n} elements")

# All of an index tensor in [low, n).
cdef inline int check_indices(const tensor_t* t, int64_t low, int64_t n) except -1 nogil:
    cdef int64_t i, k
    for i in range(t.size):
        k = index_at(t, i)
        if k < low or k >= n:
            return index_error(k, n)
    return 0

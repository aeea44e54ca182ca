from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport tensor_t

cdef class Movement(Operator):
    # Outputs are items of the inputs, moved; any dtype.
    cdef size_t width       # bytes of an item

    # Check the inputs, resize the outputs.
    cdef int prepare(self) except -1 nogil
    # Move width bytes an item, strings as the pointers that they are.
    cdef void move(self) noexcept nogil
    cdef int check_dtype(self, int i, int dtype) except -1 nogil

cdef inline void copy_bytes(void* to, const void* source, size_t n) noexcept nogil:
    if n == 4:
        memcpy(to, source, 4)
    elif n == 8:
        memcpy(to, source, 8)
    else:
        memcpy(to, source, n)

# n rows of that many bytes; the starts of rows lie that far apart.
cdef void copy_rows(char* to, size_t to_step, const char* source, size_t source_step, int64_t n,
                    size_t nbytes) noexcept nogil
# Contiguous `to` of this shape; its item (i, j, ...) is item i * step[0] + j * step[1] + ... of `source`.
cdef void copy_strided(char* to, const char* source, int ndim, const int64_t* shape, const int64_t* step,
                       size_t width) noexcept nogil

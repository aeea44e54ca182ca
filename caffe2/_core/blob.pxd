from caffe2._core.tensor cimport tensor_t

cdef class Blob:
    # Operators keep pointers to t, so a blob never moves its tensor. A tensor (t.dtype set) wins over value.
    cdef tensor_t t
    cdef object value
    cdef readonly str name

    cdef int feed_tensor(self, value, device_option) except -1
    cdef object get(self)
    cdef int set(self, object value) except -1

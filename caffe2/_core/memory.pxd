cdef extern from "caffe2/_core/memory.h":
    void* aligned_new(size_t n) noexcept nogil

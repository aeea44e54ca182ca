from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef class Random:
    # Seeded: the Mersenne Twister that older releases used, so that the numbers are the same as ever.
    # Else draw number i is a hash of the key and i: any thread can compute any stretch of the stream.
    cdef readonly bint seeded
    cdef uint32_t[624] state
    cdef int at
    cdef float spare
    cdef bint has_spare
    cdef uint64_t key
    cdef uint64_t drawn

    cdef uint32_t bits32(self) noexcept nogil
    cdef uint64_t bits64(self) noexcept nogil
    # in [0, 1)
    cdef double uniform(self) noexcept nogil            # 53 random bits
    cdef float uniform_float(self) noexcept nogil       # 24 random bits
    cdef double normal(self) noexcept nogil
    # one of 0, ..., n - 1; n = 0 stands for 2^64
    cdef uint64_t below(self, uint64_t n) noexcept nogil

    # Many at once; the fast way.
    cdef void fill_uniform(self, float* y, int64_t n, float low, float high) noexcept nogil
    cdef void fill_normal(self, float* y, int64_t n, float mean, float std) noexcept nogil

    cdef void twist(self) noexcept nogil

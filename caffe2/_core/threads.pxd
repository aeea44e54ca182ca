from libc.stdint cimport int64_t

# How many threads a loop of that much work (in elementary operations) may use; 1 below the threshold.
# The cores are shared out evenly among the nets, or branches of nets, that run at this moment.
cdef int num_threads(int64_t work) noexcept nogil
# Around everything that computes: one more, one fewer runner. Nested calls of one thread count once.
cdef void enter() noexcept nogil
cdef void leave() noexcept nogil

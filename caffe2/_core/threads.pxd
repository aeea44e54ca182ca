from libc.stdint cimport int64_t

# How many threads a loop of that much work (in elementary operations) may use; 1 below the threshold.
# The cores are shared out evenly among the nets, or branches of nets, that run at this moment.
cdef int num_threads(int64_t work) noexcept nogil
# Around everything that computes: one more, one fewer runner. Nested calls of one thread count once.
cdef void enter() noexcept nogil
cdef void leave() noexcept nogil

# Memory that this thread will read after the next parallel loop; see team.h. The array must stay until the next call.
cdef extern from *:
    """
    #ifdef CAFFE2_POOL
    #include "caffe2/_core/team.h"
    #else
    typedef struct { const void* at; int bytes; } caffe2_piece_t;
    #define caffe2_team_ahead(pieces, n) ((void)(pieces), (void)(n))
    #endif
    """
    ctypedef struct piece_t "caffe2_piece_t":
        const void* at
        int bytes
    void fetch_ahead "caffe2_team_ahead"(const piece_t* pieces, int n) noexcept nogil

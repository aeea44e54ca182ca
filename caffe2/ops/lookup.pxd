"""A hash table from integers to places, without Python and without allocation."""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from caffe2._core.operator cimport Operator

cdef struct table_t:
    int64_t* slots              # pairs of a key and a value; values are not negative, -1 marks a free slot
    uint64_t mask

# An empty table for n keys, in the operator's scratch room.
cdef inline int open_table(Operator op, table_t* t, int64_t n) except -1 nogil:
    cdef uint64_t size = 4
    while size < <uint64_t>(2 * n):
        size *= 2
    t.slots = <int64_t*>op.scratch(size * 2 * sizeof(int64_t))
    t.mask = size - 1
    memset(t.slots, 255, size * 2 * sizeof(int64_t))
    return 0

# The slot of a key, or the free one where it belongs.
cdef inline int64_t* slot_of(const table_t* t, int64_t key) noexcept nogil:
    cdef uint64_t at = (<uint64_t>key * <uint64_t>0x9E3779B97F4A7C15) >> 20 & t.mask
    while t.slots[2 * at + 1] >= 0 and t.slots[2 * at] != key:
        at = (at + 1) & t.mask
    return t.slots + 2 * at

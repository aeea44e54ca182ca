"""What operators that take blocked tensors share."""
from libc.stdint cimport int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    BLOCKED, FLOAT, PLAIN, blocked_size, make_plain, resize_blocked, resize_like, same_shape, tensor_t,
)

cdef enum:
    BLOCK = 16          # channels that lie together
    FEW = 64            # pixels that are summed up as floats, so that small values count


cdef inline int64_t stored_size(const tensor_t* t) noexcept nogil:
    """Elements in memory, padding included."""
    return blocked_size(t.shape) if t.layout == BLOCKED else t.size


cdef inline int resize_as(tensor_t* y, const tensor_t* x) except -1 nogil:
    """Give y the shape of x, floats, in the layout of x."""
    return resize_blocked(y, x.shape) if x.layout == BLOCKED else resize_like(y, x, FLOAT)


cdef inline bint all_blocked(Operator op) except -1 nogil:
    """Whether all inputs are blocked and of one shape; if they are not, all become plain."""
    cdef int i
    cdef bint same = op.num_inputs > 0
    for i in range(op.num_inputs):
        same &= op.x[i].layout == BLOCKED and same_shape(op.x[i], op.x[0])
    for i in range(0 if same else op.num_inputs):
        make_plain(op.x[i])
    return same


cdef inline void add_lanes(const float* x, const float* center, const float* y, const float* y_center, int64_t n,
                           double* total) noexcept nogil:
    """total[k] += sum of (x - center[k]) (y - y_center[k]) over n pixels of one block; of x alone without y."""
    cdef float[BLOCK] part
    cdef int64_t p, first, i
    cdef int k
    for i in range((n + FEW - 1) // FEW):
        first = i * FEW
        for k in range(BLOCK):
            part[k] = 0
        if y == NULL:
            for p in range(first, min(first + FEW, n)):
                for k in range(BLOCK):
                    part[k] += x[p * BLOCK + k]
        else:
            for p in range(first, min(first + FEW, n)):
                for k in range(BLOCK):
                    part[k] += (x[p * BLOCK + k] - center[k]) * (y[p * BLOCK + k] - y_center[k])
        for k in range(BLOCK):
            total[k] += part[k]

"""What operators that take blocked tensors share."""
from libc.stdint cimport int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    BLOCKED, FLOAT, PLAIN, blocked_size, make_plain, resize_blocked, resize_like, same_shape, tensor_t,
)


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

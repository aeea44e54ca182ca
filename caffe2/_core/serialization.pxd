from libc.stdint cimport int64_t

from caffe2._core.tensor cimport MAX_DIMS, tensor_t

ctypedef const unsigned char* bytes_t

# A TensorProto on the wire, read and checked by parse_tensor. It points into what was parsed.
cdef struct proto_t:
    bytes_t start
    bytes_t end
    int dtype                   # of the tensor to be: BYTE has become UINT8
    int field                   # which holds the values
    int ndim
    int64_t shape[MAX_DIMS]
    int64_t size                # elements of the whole tensor
    int64_t begin               # the elements that this message holds
    int64_t stop
    bint bfloat16

# A message on the wire: the next field of it, see next_field.
cdef struct field_t:
    int number
    int wire_type               # 0: value; 1, 2, 5: bytes
    unsigned long long value
    bytes_t data
    bytes_t end

# Read the field at p[0] and advance p; 0 at the end, RuntimeError where the wire is corrupt.
cdef int next_field(bytes_t* p, bytes_t end, field_t* field) except -1 nogil
# Check everything: wire, dimensions, number of values. After it write_values cannot fail.
cdef int parse_tensor(proto_t* proto, bytes_t data, bytes_t end) except -1 nogil
# Write the message's values to elements `at` and following of t, which has the dtype and the room.
cdef int write_values(const proto_t* proto, tensor_t* t, int64_t at) except -1 nogil

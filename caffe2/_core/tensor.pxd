from libc.stdint cimport int64_t, uint64_t

cdef enum:
    MAX_DIMS = 16

# The numbers of TensorProto.DataType.
cdef enum DType:
    UNDEFINED = 0
    FLOAT = 1
    INT32 = 2
    BYTE = 3
    STRING = 4
    BOOL = 5
    UINT8 = 6
    INT8 = 7
    UINT16 = 8
    INT16 = 9
    INT64 = 10
    FLOAT16 = 12
    DOUBLE = 13

cdef enum Layout:
    PLAIN = 0
    # (N, C, H, W) floats as [N][C / 16, rounded up][H][W][16]; channels that are only padding hold zeros.
    BLOCKED = 1
    # In the memory of a GPU, plain: data is no address of this processor's. Only operators of that device meet these.
    DEVICE = 2

cdef struct storage_t:
    void* data
    size_t capacity             # bytes
    int64_t strings             # string slots owned (bytes objects or NULL), 0 for numbers
    int refs
    void* owner                 # PyObject that lent the memory, or NULL
    void* stream                # of device memory: the stream (PyObject, borrowed) that used it last

cdef struct tensor_t:
    void* data
    int64_t size                # elements
    uint64_t version            # grows whenever somebody is about to write
    int dtype                   # UNDEFINED: no tensor here
    int ndim
    int layout                  # of data; shape and size are those of the plain tensor
    int device_type
    int device_id
    int64_t shape[MAX_DIMS]
    storage_t* storage

# Everything below may be called without the GIL. Sizes are checked before memory is touched.

# Give t this shape and dtype; its storage is kept where it is large enough, its contents are then undefined.
# Whoever writes a tensor calls it first, in-place writers too: it is what advances the version.
cdef int resize(tensor_t* t, int ndim, const int64_t* shape, int dtype) except -1 nogil
cdef int resize_like(tensor_t* t, const tensor_t* like, int dtype) except -1 nogil
cdef int resize0(tensor_t* t, int dtype) except -1 nogil
cdef int resize1(tensor_t* t, int64_t n, int dtype) except -1 nogil
cdef int resize2(tensor_t* t, int64_t n, int64_t d, int dtype) except -1 nogil
# The same for a blocked tensor of floats: shape is (N, C, H, W). Only operators that set `blocked` meet these.
cdef int resize_blocked(tensor_t* t, const int64_t* shape) except -1 nogil
cdef int64_t blocked_size(const int64_t* shape) noexcept nogil         # elements, padding included
# Make a blocked tensor plain, where it stands.
cdef int make_plain(tensor_t* t) except -1 nogil
# Become a tensor of that shape in memory that `owner` lends, of a device where device_id is not -1.
cdef int lend(tensor_t* t, int ndim, const int64_t* shape, int dtype, void* data, size_t capacity, object owner,
              int device_id) except -1
# Whether t has room on that device for a tensor of this shape; where it has, it becomes one.
cdef bint resize_on_device(tensor_t* t, int ndim, const int64_t* shape, int dtype, int device_id) except -1
# Change the shape alone; the number of elements must stay.
cdef int reshape(tensor_t* t, int ndim, const int64_t* shape) except -1 nogil
cdef int copy(tensor_t* to, const tensor_t* source) except -1 nogil
# Elements [at, at + n) of `to` become those of `source` from `source_at` on. Strings are handled.
cdef int copy_items(tensor_t* to, int64_t at, const tensor_t* source, int64_t source_at, int64_t n) except -1 nogil
# `to` gets so many rows like those of `source`, in its layout; those from `at` on become source's. The others stay from
# call to call, if these begin with `at` 0.
cdef int put_rows(tensor_t* to, int64_t rows, int64_t at, tensor_t* source) except -1 nogil
# Exchange shapes and memory.
cdef void swap(tensor_t* a, tensor_t* b) noexcept nogil
# Both see the same memory from now on; what was derived from the values of either is out of date.
cdef void share(tensor_t* to, const tensor_t* source) noexcept nogil
cdef void clear(tensor_t* t) noexcept nogil

cdef size_t itemsize(int dtype) noexcept nogil
cdef int64_t size_from(const tensor_t* t, int axis) noexcept nogil     # product of shape[axis:]
cdef int64_t size_to(const tensor_t* t, int axis) noexcept nogil       # product of shape[:axis]
cdef bint same_shape(const tensor_t* a, const tensor_t* b) noexcept nogil
# axis in [-ndim, ndim) made non-negative, else -1 and an IndexError
cdef int canonical_axis(int axis, int ndim) except -1 nogil

# With the GIL.
cdef object to_numpy(const tensor_t* t, bint view)
cdef int from_numpy(tensor_t* t, object array) except -1
cdef bytes get_string(const tensor_t* t, int64_t i)
cdef int set_string(tensor_t* t, int64_t i, bytes value) except -1
cdef str dtype_name(int dtype)
cdef tuple shape_of(const tensor_t* t)
cdef int dimensions(object dims, int64_t* shape) except -1              # how many there are
cdef int64_t count(int ndim, const int64_t* shape, int dtype) except -1 nogil      # elements; raises where impossible
cdef int dtype_of(object dtype) except -1                               # of a numpy dtype

cdef class Tensor:
    cdef tensor_t* t            # its own, or that of the blob it stands for
    cdef tensor_t own
    cdef object blob
    cdef Py_ssize_t _shape[MAX_DIMS]
    cdef Py_ssize_t _strides[MAX_DIMS]

"""Tensors: a shape, a dtype, a device and contiguous, 64-byte aligned, shareable storage."""
cimport numpy as cnp
from cpython.bytes cimport PyBytes_Check
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset

from caffe2._core.memory cimport aligned_new
from caffe2._core.threads cimport num_threads

import numpy as np

cnp.import_array()

cdef extern from *:
    """
    #define atomic_inc(p) __atomic_add_fetch(p, 1, __ATOMIC_RELAXED)
    #define atomic_dec(p) __atomic_sub_fetch(p, 1, __ATOMIC_ACQ_REL)
    #define mul_overflow(a, b, r) __builtin_mul_overflow((int64_t)(a), (int64_t)(b), r)
    /* Held while a tensor changes its storage or another takes a share in it: a fetch meets either the old or the new
       one, also while a net runs in another thread. */
    static char caffe2_storage_lock;
    static void lock_storage(void) { while (__atomic_test_and_set(&caffe2_storage_lock, __ATOMIC_ACQUIRE)) {} }
    static void unlock_storage(void) { __atomic_clear(&caffe2_storage_lock, __ATOMIC_RELEASE); }
    """
    void lock_storage() noexcept nogil
    void unlock_storage() noexcept nogil
    int atomic_inc(int* p) noexcept nogil
    int atomic_dec(int* p) noexcept nogil
    bint mul_overflow(int64_t a, int64_t b, int64_t* r) noexcept nogil

cdef int ITEMSIZE[14]
cdef int NUMPY_TYPE[14]
ITEMSIZE[:] = [0, 4, 4, 1, sizeof(void*), 1, 1, 1, 2, 2, 8, 0, 2, 8]
NUMPY_TYPE[:] = [
    -1, cnp.NPY_FLOAT32, cnp.NPY_INT32, cnp.NPY_UINT8, cnp.NPY_OBJECT, cnp.NPY_BOOL, cnp.NPY_UINT8, cnp.NPY_INT8,
    cnp.NPY_UINT16, cnp.NPY_INT16, cnp.NPY_INT64, -1, cnp.NPY_FLOAT16, cnp.NPY_FLOAT64,
]
_NAMES = ["undefined", "float", "int32", "byte", "string", "bool", "uint8", "int8", "uint16", "int16", "int64",
          "undefined", "float16", "double"]
_FORMATS = [b"", b"f", b"i", b"B", b"", b"?", b"B", b"b", b"H", b"h", b"q", b"", b"e", b"d"]
cdef dict _DTYPES = {
    np.dtype(np.float32): FLOAT, np.dtype(np.int32): INT32, np.dtype(np.bool_): BOOL, np.dtype(np.uint8): UINT8,
    np.dtype(np.int8): INT8, np.dtype(np.uint16): UINT16, np.dtype(np.int16): INT16, np.dtype(np.int64): INT64,
    np.dtype(np.float16): FLOAT16, np.dtype(np.float64): DOUBLE, np.dtype(object): STRING,
}


cdef size_t itemsize(int dtype) noexcept nogil:
    return ITEMSIZE[dtype] if 0 <= dtype < 14 else 0


cdef str dtype_name(int dtype):
    return _NAMES[dtype] if 0 <= dtype < 14 else f"dtype {dtype}"


cdef tuple shape_of(const tensor_t* t):
    return tuple([t.shape[i] for i in range(t.ndim)])


# Of CUDA tensors, which exist once caffe2._core.cuda is imported.
_cuda = None


def set_cuda(module):
    """Say who knows how to read device memory."""
    global _cuda
    _cuda = module


# ---------------------------------------------------------------- storage

cdef void release(storage_t* s) noexcept nogil:
    if s == NULL or atomic_dec(&s.refs) > 0:
        return
    cdef int64_t i
    if s.strings or s.owner != NULL:
        with gil:
            for i in range(s.strings):
                Py_XDECREF((<PyObject**>s.data)[i])
            if s.owner != NULL:
                Py_DECREF(<object>s.owner)
    if s.owner == NULL:
        free(s.data)
    free(s)


cdef storage_t* allocate(size_t nbytes, bint strings) except NULL nogil:
    cdef size_t capacity = (max(nbytes, 1) + 63) & ~<size_t>63
    cdef storage_t* s = <storage_t*>calloc(1, sizeof(storage_t))
    if s != NULL:
        s.data = aligned_new(capacity)
    if s == NULL or s.data == NULL:
        free(s)
        with gil:
            raise MemoryError(f"cannot allocate {nbytes} bytes for a tensor")
    s.capacity = capacity
    s.refs = 1
    if strings:
        memset(s.data, 0, capacity)
        s.strings = capacity // sizeof(void*)
    return s


# ---------------------------------------------------------------- shapes

cdef int64_t count(int ndim, const int64_t* shape, int dtype) except -1 nogil:
    """Number of elements of such a tensor; raises where no such tensor can exist."""
    cdef int64_t n = 1, positive = 1, nbytes
    cdef int i
    cdef bint overflow = False
    if ndim < 0 or ndim > MAX_DIMS:
        with gil:
            raise ValueError(f"a tensor has at most {MAX_DIMS} dimensions, not {ndim}")
    for i in range(ndim):
        if shape[i] < 0:
            with gil:
                raise ValueError(f"negative dimension in shape {tuple([shape[j] for j in range(ndim)])}")
        n *= shape[i] != 0
        if shape[i] > 0:
            overflow |= mul_overflow(positive, shape[i], &positive)
    overflow |= mul_overflow(positive, itemsize(dtype) + 1, &nbytes)
    if overflow:
        with gil:
            raise OverflowError(
                f"a tensor of {dtype_name(dtype)} {tuple([shape[j] for j in range(ndim)])} exceeds the address space")
    return positive if n else 0


cdef int resize(tensor_t* t, int ndim, const int64_t* shape, int dtype) except -1 nogil:
    cdef int i
    cdef int64_t n
    cdef size_t nbytes
    cdef storage_t* s = t.storage
    cdef storage_t* old = NULL
    if s != NULL and t.dtype == dtype and t.ndim == ndim and t.layout == PLAIN:
        for i in range(ndim):
            if t.shape[i] != shape[i]:
                break
        else:
            t.version += 1
            return 0
    if itemsize(dtype) == 0:
        with gil:
            raise ValueError(f"no tensor can hold {dtype_name(dtype)}")
    n = count(ndim, shape, dtype)
    nbytes = n * itemsize(dtype)
    # data of plain tensors differs from the storage's start only in a view into somebody else's memory
    if s == NULL or t.layout == DEVICE or (s.strings != 0) != (dtype == STRING) or (
            s.data != t.data and t.layout != BLOCKED) or s.capacity < nbytes:
        s = allocate(nbytes, dtype == STRING)
        old = t.storage
    lock_storage()
    t.storage = s
    t.data = s.data
    t.ndim = ndim
    for i in range(ndim):
        t.shape[i] = shape[i]
    t.size = n
    t.dtype = dtype
    t.layout = PLAIN
    t.device_type = t.device_id = 0
    t.version += 1
    unlock_storage()
    release(old)
    return 0


cdef int lend(tensor_t* t, int ndim, const int64_t* shape, int dtype, void* data, size_t capacity, object owner,
              int device_id) except -1:
    cdef int i
    cdef int64_t n = count(ndim, shape, dtype)
    cdef storage_t* old = t.storage
    cdef storage_t* s = <storage_t*>calloc(1, sizeof(storage_t))
    if s == NULL:
        raise MemoryError
    s.data = data
    s.capacity = capacity
    s.refs = 1
    Py_INCREF(owner)
    s.owner = <void*>owner
    lock_storage()
    t.storage = s
    t.data = data
    t.ndim = ndim
    for i in range(ndim):
        t.shape[i] = shape[i]
    t.size = n
    t.dtype = dtype
    t.layout = DEVICE if device_id >= 0 else PLAIN
    t.device_type = device_id >= 0
    t.device_id = max(device_id, 0)
    t.version += 1
    unlock_storage()
    release(old)
    return 0


cdef bint resize_on_device(tensor_t* t, int ndim, const int64_t* shape, int dtype, int device_id) except -1:
    cdef int i
    cdef int64_t n = count(ndim, shape, dtype)
    cdef storage_t* s = t.storage
    if t.layout != DEVICE or t.device_id != device_id or s.data != t.data or s.capacity < n * itemsize(dtype):
        return False
    t.ndim = ndim
    for i in range(ndim):
        t.shape[i] = shape[i]
    t.size = n
    t.dtype = dtype
    t.version += 1
    return True


cdef int64_t blocked_size(const int64_t* shape) noexcept nogil:
    return shape[0] * ((shape[1] + 15) // 16 * 16) * shape[2] * shape[3]


cdef int resize_blocked(tensor_t* t, const int64_t* shape) except -1 nogil:
    cdef int64_t[4] padded
    if t.layout == BLOCKED and t.ndim == 4 and t.shape[0] == shape[0] and t.shape[1] == shape[1] and (
            t.shape[2] == shape[2] and t.shape[3] == shape[3]):
        t.version += 1
        return 0
    padded[0] = shape[0]
    padded[1] = shape[1] + 15
    padded[2] = shape[2]
    padded[3] = shape[3]
    count(4, padded, FLOAT)
    padded[1] = (shape[1] + 15) // 16 * 16
    # whoever shares plain memory goes on seeing plain values; lent memory may lie anywhere
    if t.layout == PLAIN and t.storage != NULL and (t.storage.refs > 1 or t.storage.owner != NULL):
        clear(t)
    resize(t, 4, padded, FLOAT)
    lock_storage()
    # Operators divide these among threads by channels. Where blobs of several sizes share memory, two threads find in
    # their caches the halves that they wrote before, if all lie around the same place.
    if shape[1] > shape[2] * shape[3]:
        t.data = <char*>t.storage.data + (t.storage.capacity - t.size * sizeof(float)) // 128 * 64
    t.layout = BLOCKED
    t.shape[1] = shape[1]
    t.size = shape[0] * shape[1] * shape[2] * shape[3]
    unlock_storage()
    return 0


cdef int make_plain(tensor_t* t) except -1 nogil:
    cdef tensor_t blocked, plain
    cdef const float* x
    cdef float* y
    cdef int64_t n, c, p, q, lane, channels, blocks, pixels
    if t.layout == PLAIN:
        return 0
    if t.layout == DEVICE:
        with gil:
            raise RuntimeError(
                f"a tensor {shape_of(t)} is in the memory of CUDA device {t.device_id}, where the CPU cannot read it: "
                "run the operator there (device_option), or copy the tensor first (CopyGPUToCPU, EnsureCPUOutput)")
    memset(&blocked, 0, sizeof(tensor_t))
    memset(&plain, 0, sizeof(tensor_t))
    hold(&blocked, t)
    try:
        if blocked.layout == BLOCKED:
            resize(&plain, 4, blocked.shape, FLOAT)
            channels = plain.shape[1]
            blocks = (channels + 15) // 16
            pixels = plain.shape[2] * plain.shape[3]
            for n in range(plain.shape[0]):
                for c in range(0, channels, 16):
                    for p in range(0, pixels, 64):      # a few at a time, which stay in the cache
                        x = <const float*>blocked.data + ((n * blocks + c // 16) * pixels + p) * 16
                        y = <float*>plain.data + (n * channels + c) * pixels + p
                        for lane in range(min(16, channels - c)):
                            for q in range(min(64, pixels - p)):
                                y[lane * pixels + q] = x[q * 16 + lane]
            lock_storage()
            # several operators may find it blocked at the same time; the first one's copy stays
            if t.storage == blocked.storage and t.layout == BLOCKED:
                t.storage, plain.storage = plain.storage, t.storage
                t.data = plain.data
                t.layout = PLAIN
            unlock_storage()
    finally:
        release(blocked.storage)
        release(plain.storage)
    return 0


cdef int resize_like(tensor_t* t, const tensor_t* like, int dtype) except -1 nogil:
    return resize(t, like.ndim, like.shape, dtype)


cdef int resize0(tensor_t* t, int dtype) except -1 nogil:
    return resize(t, 0, NULL, dtype)


cdef int resize1(tensor_t* t, int64_t n, int dtype) except -1 nogil:
    return resize(t, 1, &n, dtype)


cdef int resize2(tensor_t* t, int64_t n, int64_t d, int dtype) except -1 nogil:
    cdef int64_t[2] shape
    shape[0] = n
    shape[1] = d
    return resize(t, 2, shape, dtype)


cdef int reshape(tensor_t* t, int ndim, const int64_t* shape) except -1 nogil:
    cdef int i
    if count(ndim, shape, t.dtype) != t.size:
        with gil:
            raise ValueError(f"{t.size} elements of shape {shape_of(t)} do not fit "
                             f"shape {tuple([shape[j] for j in range(ndim)])}")
    for i in range(ndim):
        t.shape[i] = shape[i]
    t.ndim = ndim
    t.version += 1
    return 0


cdef int copy(tensor_t* to, const tensor_t* source) except -1 nogil:
    if to == source:
        to.version += 1
        return 0
    make_plain(<tensor_t*>source)
    resize(to, source.ndim, source.shape, source.dtype)
    return copy_items(to, 0, source, 0, source.size)


cdef int copy_items(tensor_t* to, int64_t at, const tensor_t* source, int64_t source_at, int64_t n) except -1 nogil:
    cdef size_t width = itemsize(source.dtype)
    cdef PyObject** old
    cdef PyObject** new
    cdef PyObject* dropped
    cdef int64_t i
    if source.dtype != STRING:
        memmove(<char*>to.data + at * width, <char*>source.data + source_at * width, n * width)
        return 0
    with gil:
        old = <PyObject**>to.data + at
        new = <PyObject**>source.data + source_at
        for i in range(n):
            if new[i] != NULL:
                Py_INCREF(<object>new[i])
            dropped = old[i]
            old[i] = new[i]
            Py_XDECREF(dropped)
    return 0


cdef int put_rows(tensor_t* to, int64_t rows, int64_t at, tensor_t* source) except -1 nogil:
    cdef int64_t[MAX_DIMS] shape
    cdef int64_t size
    if at and to.layout != source.layout:
        make_plain(to)
        make_plain(source)
    memcpy(shape, source.shape, sizeof(shape))
    shape[0] = rows
    if source.layout == PLAIN:
        resize(to, source.ndim, shape, source.dtype)
        return copy_items(to, at * size_from(source, 1), source, 0, source.size)
    resize_blocked(to, shape)
    size = blocked_size(source.shape)
    memcpy(<float*>to.data + at * (size // source.shape[0]), source.data, size * sizeof(float))
    return 0


cdef void swap(tensor_t* a, tensor_t* b) noexcept nogil:
    cdef tensor_t t
    cdef uint64_t version = max(a.version, b.version) + 1
    lock_storage()
    t = a[0]
    a[0] = b[0]
    b[0] = t
    a.version = b.version = version
    unlock_storage()


cdef void hold(tensor_t* to, const tensor_t* source) noexcept nogil:
    """Become what source is now, to read it; whoever writes must share."""
    cdef storage_t* old = to.storage
    cdef uint64_t version = max(to.version, source.version) + 1
    lock_storage()
    if source.storage != NULL:
        atomic_inc(&source.storage.refs)
    to[0] = source[0]
    to.version = version
    unlock_storage()
    release(old)


cdef void share(tensor_t* to, const tensor_t* source) noexcept nogil:
    if to != source:
        hold(to, source)
        (<tensor_t*>source).version = to.version


cdef void clear(tensor_t* t) noexcept nogil:
    cdef storage_t* old = t.storage
    lock_storage()
    t.storage = NULL
    t.data = NULL
    t.dtype = UNDEFINED
    t.layout = PLAIN
    t.device_type = t.device_id = 0
    t.ndim = 0
    t.size = 0
    t.version += 1
    unlock_storage()
    release(old)


cdef int64_t size_from(const tensor_t* t, int axis) noexcept nogil:
    cdef int64_t n = 1
    cdef int i
    for i in range(axis, t.ndim):
        n *= t.shape[i]
    return n


cdef int64_t size_to(const tensor_t* t, int axis) noexcept nogil:
    cdef int64_t n = 1
    cdef int i
    for i in range(min(axis, t.ndim)):
        n *= t.shape[i]
    return n


cdef bint same_shape(const tensor_t* a, const tensor_t* b) noexcept nogil:
    cdef int i
    if a.ndim != b.ndim:
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i]:
            return False
    return True


cdef int canonical_axis(int axis, int ndim) except -1 nogil:
    if -ndim <= axis < ndim:
        return axis + ndim if axis < 0 else axis
    with gil:
        raise IndexError(f"axis {axis} is out of range for {ndim} dimensions")


# ---------------------------------------------------------------- strings and numpy

cdef bytes get_string(const tensor_t* t, int64_t i):
    cdef PyObject* p = (<PyObject**>t.data)[i]
    return b"" if p == NULL else <bytes>p


cdef int set_string(tensor_t* t, int64_t i, bytes value) except -1:
    cdef PyObject* old = (<PyObject**>t.data)[i]
    Py_INCREF(value)
    (<PyObject**>t.data)[i] = <PyObject*>value
    Py_XDECREF(old)
    return 0


cdef object to_numpy(const tensor_t* t, bint view):
    """A numpy array of t's values: a copy that owns its memory, or a view that keeps t's storage alive."""
    cdef cnp.npy_intp[MAX_DIMS] shape
    cdef int i
    cdef cnp.ndarray a
    cdef Tensor owner = Tensor.__new__(Tensor)
    cdef PyObject** to
    if view:
        make_plain(<tensor_t*>t)
        share(owner.t, t)
    else:
        hold(owner.t, t)    # stays as it is now, whatever else runs
        if owner.t.layout == DEVICE:
            return _cuda.fetch(owner)
        make_plain(owner.t)
    t = owner.t
    if t.dtype == UNDEFINED:
        raise RuntimeError("the tensor holds nothing yet")
    for i in range(t.ndim):
        shape[i] = t.shape[i]
    if t.dtype == STRING:
        a = cnp.PyArray_EMPTY(t.ndim, shape, cnp.NPY_OBJECT, 0)
        to = <PyObject**>cnp.PyArray_DATA(a)
        for j in range(t.size):
            s = get_string(t, j)
            Py_INCREF(s)
            Py_XDECREF(to[j])
            to[j] = <PyObject*>s
        return a
    if not view:
        a = cnp.PyArray_EMPTY(t.ndim, shape, NUMPY_TYPE[t.dtype], 0)
        memcpy(cnp.PyArray_DATA(a), t.data, t.size * itemsize(t.dtype))
        return a
    a = cnp.PyArray_SimpleNewFromData(t.ndim, shape, NUMPY_TYPE[t.dtype], t.data)
    cnp.set_array_base(a, owner)
    return a


cdef bytes to_bytes(object value):
    if PyBytes_Check(value):
        return value
    if isinstance(value, str):
        return value.encode()
    raise TypeError(f"a string tensor holds str or bytes, not {type(value).__name__}")


cdef int dtype_of(object dtype) except -1:
    result = _DTYPES.get(np.dtype(dtype), UNDEFINED)
    if result == UNDEFINED:
        raise TypeError(f"no tensor can hold numpy dtype {dtype}")
    return result


cdef int from_numpy(tensor_t* t, object array) except -1:
    """Copy a numpy array, of any layout, into t."""
    cdef cnp.ndarray a
    cdef int dtype, i
    cdef int64_t[MAX_DIMS] shape
    a = array
    dtype = FLOAT if cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT32 and cnp.PyArray_ISNOTSWAPPED(a) else UNDEFINED
    if dtype == UNDEFINED:
        if a.dtype.kind in "US":
            a = a.astype(object)
        dtype = _DTYPES.get(a.dtype, UNDEFINED)
    if dtype == UNDEFINED:
        native = a.dtype.newbyteorder("=")
        dtype = _DTYPES.get(native, UNDEFINED)
        if dtype == UNDEFINED:
            raise TypeError(f"no tensor can hold numpy dtype {a.dtype}")
        a = a.astype(native)
    if not cnp.PyArray_IS_C_CONTIGUOUS(a):
        a = np.ascontiguousarray(a).reshape(array.shape)
    if cnp.PyArray_NDIM(a) > MAX_DIMS:
        raise ValueError(f"a tensor has at most {MAX_DIMS} dimensions, not {a.ndim}")
    for i in range(cnp.PyArray_NDIM(a)):
        shape[i] = cnp.PyArray_DIM(a, i)
    if dtype == STRING:
        values = [to_bytes(v) for v in a.ravel()]
        resize(t, cnp.PyArray_NDIM(a), shape, STRING)
        for j, v in enumerate(values):
            set_string(t, j, v)
        return 0
    resize(t, cnp.PyArray_NDIM(a), shape, dtype)
    copy_in(<char*>t.data, <const char*>cnp.PyArray_DATA(a), t.size * itemsize(dtype), divided_planes(t))
    return 0


cdef int64_t divided_planes(const tensor_t* t) noexcept nogil:
    """How many planes there are of which operators give each thread some rows: those of a single image; else 1, all."""
    return t.shape[1] if t.ndim == 4 and t.shape[0] == 1 and t.shape[2] * t.shape[3] > 4096 else 1


cdef void copy_in(char* to, const char* source, int64_t n, int64_t planes) noexcept nogil:
    """Copy n bytes; of each plane, each thread those that it is likely to read first: it is awake when a net starts."""
    cdef int i, nth = num_threads(n // sizeof(float))
    cdef int64_t plane = n // planes
    if nth == 1 or to < source + n and source < to + n:
        memmove(to, source, n)
        return
    for i in prange(nth, num_threads=nth, schedule="static"):
        copy_rows(to, source, planes, plane, plane * i // nth, plane * (i + 1) // nth)


cdef void copy_rows(char* to, const char* source, int64_t planes, int64_t plane, int64_t first,
                    int64_t last) noexcept nogil:
    """Copy bytes first to last - 1 of each plane."""
    cdef int64_t i
    for i in range(planes):
        memcpy(to + i * plane + first, source + i * plane + first, last - first)


# ---------------------------------------------------------------- Tensor

cdef extern from *:
    """
    typedef struct { int32_t device_type; int32_t device_id; } DLDevice;
    typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } DLDataType;
    typedef struct { void* data; DLDevice device; int32_t ndim; DLDataType dtype; int64_t* shape; int64_t* strides;
                     uint64_t byte_offset; } DLTensor;
    typedef struct DLManagedTensor { DLTensor dl_tensor; void* manager_ctx; void (*deleter)(struct DLManagedTensor*); }
        DLManagedTensor;
    """
    ctypedef struct DLDevice:
        int device_type
        int device_id
    ctypedef struct DLDataType:
        unsigned char code
        unsigned char bits
        unsigned short lanes
    ctypedef struct DLTensor:
        void* data
        DLDevice device
        int ndim
        DLDataType dtype
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset
    ctypedef struct DLManagedTensor:
        DLTensor dl_tensor
        void* manager_ctx
        void (*deleter)(DLManagedTensor*) noexcept

cdef extern from "Python.h":
    object PyCapsule_New(void* pointer, const char* name, void (*destructor)(PyObject*) noexcept)
    void* PyCapsule_GetPointer(PyObject* capsule, const char* name) except NULL
    bint PyCapsule_IsValid(PyObject* capsule, const char* name)


cdef void _dl_delete(DLManagedTensor* m) noexcept with gil:
    Py_DECREF(<object>m.manager_ctx)
    free(m)


cdef void _dl_capsule_delete(PyObject* capsule) noexcept:
    cdef DLManagedTensor* m
    if PyCapsule_IsValid(capsule, b"dltensor"):
        m = <DLManagedTensor*>PyCapsule_GetPointer(capsule, b"dltensor")
        m.deleter(m)


cdef int dimensions(object dims, int64_t* shape) except -1:
    """Copy dimensions into an array of MAX_DIMS; returns how many there are."""
    cdef int i
    if len(dims) > MAX_DIMS:
        raise ValueError(f"a tensor has at most {MAX_DIMS} dimensions, not {len(dims)}")
    for i in range(len(dims)):
        shape[i] = dims[i]
    return <int>len(dims)


cdef class Tensor:
    """A tensor: contiguous values of one dtype, on one device.

    ``np.asarray(t)``, ``memoryview(t)`` and DLPack consumers see its memory without a copy; string tensors are
    converted. Anything that DLPack or numpy understands can be fed.

    Parameters
    ----------
    values : array_like, optional
        Initial values, copied.
    """

    def __init__(self, values=None):
        if values is not None:
            self.feed(values)

    def __cinit__(self):
        self.t = &self.own

    def __dealloc__(self):
        release(self.own.storage)

    @property
    def shape(self):
        """tuple of int: the dimensions."""
        return shape_of(self.t)

    @property
    def ndim(self):
        return self.t.ndim

    @property
    def size(self):
        return self.t.size

    @property
    def nbytes(self):
        return self.t.size * itemsize(self.t.dtype)

    @property
    def dtype(self):
        """numpy.dtype of the values (object for strings), or None for a tensor that holds nothing yet."""
        if self.t.dtype == UNDEFINED:
            return None
        return np.dtype(cnp.PyArray_DescrFromType(NUMPY_TYPE[self.t.dtype]))

    @property
    def data_type(self):
        """int: the number of the dtype in ``TensorProto.DataType``."""
        return self.t.dtype

    @property
    def device(self):
        """tuple of int: device type and id, as in DeviceOption."""
        return self.t.device_type, self.t.device_id

    @property
    def version(self):
        """int: grows whenever the tensor is written."""
        return self.t.version

    @property
    def data(self):
        """numpy.ndarray that shares the tensor's memory."""
        return to_numpy(self.t, True)

    def fetch(self):
        """Copy the values out: a numpy array that owns its memory."""
        return to_numpy(self.t, False)

    def feed(self, values, device_option=None):
        """Copy values in; shape and dtype become theirs."""
        if device_option is not None and device_option.device_type:
            from caffe2._core import cuda

            cuda.feed(self, values, device_option.device_id)
            return
        from_numpy(self.t, values if isinstance(values, np.ndarray) else np.asarray(values))

    def init(self, dims, int data_type):
        """Become a tensor of zeros of these dimensions and that ``TensorProto.DataType``, a number."""
        cdef int64_t[MAX_DIMS] shape
        cdef int ndim = dimensions(dims, shape)
        if data_type == STRING:
            raise RuntimeError("a tensor of strings is fed, not initialized")
        resize(self.t, ndim, shape, data_type)
        memset(self.t.data, 0, self.t.size * itemsize(data_type))

    def reshape(self, dims):
        """Become a tensor of these dimensions; values are kept where their number stays the same, else zeros."""
        cdef int64_t[MAX_DIMS] shape
        cdef int ndim = dimensions(dims, shape)
        if self.t.dtype != UNDEFINED and count(ndim, shape, self.t.dtype) == self.t.size:
            if self.t.layout != DEVICE:
                make_plain(self.t)
            reshape(self.t, ndim, shape)
        else:
            self.init(dims, self.t.dtype or FLOAT)

    _reshape = reshape

    def __array__(self, dtype=None, copy=None):
        a = to_numpy(self.t, not copy and self.t.layout != DEVICE)
        return a if dtype is None else a.astype(dtype, copy=False)

    def __len__(self):
        if self.t.ndim == 0:
            raise TypeError("a 0-dimensional tensor has no length")
        return self.t.shape[0]

    def __repr__(self):
        return f"Tensor(shape={self.shape}, dtype={dtype_name(self.t.dtype)})"

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        cdef int i
        cdef Py_ssize_t stride = itemsize(self.t.dtype)
        cdef Tensor owner = Tensor.__new__(Tensor)      # of the memory: the blob may be resized later
        if self.t.dtype in (UNDEFINED, STRING):
            raise BufferError(f"a tensor of {dtype_name(self.t.dtype)} has no buffer")
        if self.t.device_type != 0:
            raise BufferError("a tensor in device memory has no buffer")
        make_plain(self.t)
        share(owner.t, self.t)
        for i in reversed(range(owner.t.ndim)):
            owner._shape[i] = owner.t.shape[i]
            owner._strides[i] = stride
            stride *= owner.t.shape[i]
        buffer.buf = owner.t.data
        buffer.obj = owner
        buffer.len = owner.t.size * itemsize(owner.t.dtype)
        buffer.itemsize = itemsize(owner.t.dtype)
        buffer.readonly = 0
        buffer.ndim = owner.t.ndim
        buffer.format = <bytes>_FORMATS[owner.t.dtype]
        buffer.shape = owner._shape
        buffer.strides = owner._strides
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __releasebuffer__(self, Py_buffer* buffer):
        pass

    @property
    def __cuda_array_interface__(self):
        if self.t.layout != DEVICE:
            raise AttributeError("the tensor is not in device memory")
        source = Tensor.__new__(Tensor)     # whoever reads the memory keeps it
        share((<Tensor>source).t, self.t)
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (<size_t>self.t.data, False), "version": 3,
                "strides": None, "stream": _cuda.stream_of(self), "owner": source}

    def __dlpack_device__(self):
        return 2 if self.t.layout == DEVICE else 1, self.t.device_id

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        cdef DLManagedTensor* m
        cdef int code
        cdef Tensor source = self
        if self.t.dtype in (UNDEFINED, STRING):
            raise BufferError(f"DLPack has no type for {dtype_name(self.t.dtype)}")
        if copy or dl_device not in (None, self.__dlpack_device__()):
            if dl_device not in (None, (1, 0)) or self.t.layout == DEVICE and dl_device is None:
                raise BufferError(f"a tensor on {self.__dlpack_device__()} cannot be copied to {dl_device} here")
            source = Tensor(self.fetch())
        else:
            if self.t.layout == DEVICE:
                _cuda.hand_over(self, stream)
            else:
                make_plain(self.t)
            source = Tensor.__new__(Tensor)     # a header of its own: the blob may be resized later
            share(source.t, self.t)
        if self.t.dtype in (FLOAT, DOUBLE, FLOAT16):
            code = 2
        elif self.t.dtype == BOOL:
            code = 6
        else:
            code = 1 if self.t.dtype in (BYTE, UINT8, UINT16) else 0
        m = <DLManagedTensor*>malloc(sizeof(DLManagedTensor))
        if m == NULL:
            raise MemoryError
        m.dl_tensor.data = source.t.data
        m.dl_tensor.device.device_type = 2 if source.t.layout == DEVICE else 1
        m.dl_tensor.device.device_id = source.t.device_id
        m.dl_tensor.ndim = source.t.ndim
        m.dl_tensor.dtype.code = code
        m.dl_tensor.dtype.bits = <unsigned char>(8 * itemsize(source.t.dtype))
        m.dl_tensor.dtype.lanes = 1
        m.dl_tensor.shape = source.t.shape
        m.dl_tensor.strides = NULL
        m.dl_tensor.byte_offset = 0
        m.deleter = _dl_delete
        Py_INCREF(source)
        m.manager_ctx = <void*>source
        return PyCapsule_New(m, b"dltensor", _dl_capsule_delete)


def from_dlpack(capsule):
    """A tensor that shares the device memory of a DLPack capsule, which goes on owning it."""
    cdef DLTensor* d = &(<DLManagedTensor*>PyCapsule_GetPointer(<PyObject*>capsule, b"dltensor")).dl_tensor
    cdef Tensor result = Tensor.__new__(Tensor)
    cdef int64_t expected = 1
    cdef int i
    kinds = {0: "i", 1: "u", 2: "f", 6: "b"}
    if d.device.device_type != 2:
        raise ValueError("the array is not in device memory")
    if d.dtype.lanes != 1 or d.dtype.code not in kinds or d.ndim > MAX_DIMS:
        raise TypeError("no tensor can hold such an array")
    for i in reversed(range(d.ndim)):
        if d.strides != NULL and d.shape[i] != 1 and d.strides[i] != expected:
            raise ValueError("a tensor is contiguous in memory; copy the array into such memory first")
        expected *= d.shape[i]
    lend(result.t, d.ndim, d.shape, dtype_of(f"{kinds[d.dtype.code]}{d.dtype.bits // 8}"),
         <char*>d.data + d.byte_offset, 0, capsule, d.device.device_id)
    return result

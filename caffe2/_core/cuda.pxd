from libc.stdint cimport int64_t, uint64_t
from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport MAX_DIMS, tensor_t

cdef enum:
    MAX_DEVICES = 64
    MAX_ARGUMENTS = 32
    ARGUMENT_BYTES = 1024

cdef class Device

cdef class Stream:
    # Work for a device, in order. Its libraries' handles and its share of the memory pool go with it.
    cdef readonly Device device
    cdef readonly object queue          # pycuda.driver.Stream
    cdef readonly size_t handle         # CUstream
    cdef readonly object pool
    cdef readonly object pinned                  # pool of page-locked host memory
    cdef readonly object in_flight               # (event, host memory) of copies that may not have ended
    cdef readonly dict libraries

cdef class Device:
    cdef readonly int index
    cdef readonly object device, context
    cdef void* handle                   # CUcontext
    cdef readonly str arch
    cdef readonly int multiprocessors
    cdef readonly list streams
    cdef list idle
    cdef dict modules
    cdef readonly object lock
    cdef uint64_t* fault                # in host memory that kernels write to: an operator's number, a wrong label
    cdef size_t fault_address           # the same for kernels
    cdef object watched                 # number -> operator
    cdef int raise_fault(self) except -1

# A kernel with its arguments, as the driver takes them.
cdef struct launch_t:
    void* function
    unsigned blocks
    unsigned threads
    int counter                         # argument that says how many random draws went before, or -1
    int64_t draws                       # how many the launch makes
    int live                            # argument that follows a value on the CPU, or -1
    int count                           # of these the input that counts, or -1: what the operator on the CPU gives
    double p, q
    void* arguments[MAX_ARGUMENTS]
    char values[ARGUMENT_BYTES]

# What an operator saw of a tensor when it noted down its launches.
cdef struct seen_t:
    void* data
    int dtype
    int ndim
    int layout
    uint64_t version
    bint live                           # its value is read at each launch
    int64_t shape[MAX_DIMS]

cdef class View:
    # A tensor on the device, for Python.
    cdef tensor_t* t

cdef class CudaOperator(Operator):
    cdef readonly Device device
    cdef readonly Stream stream         # of the present run
    cdef bint noted
    cdef seen_t* seen
    cdef launch_t** launches            # NULL: the next of the calls
    cdef int num_launches
    cdef int room_for
    cdef list calls
    cdef public int64_t drawn
    cdef object _key
    cdef int64_t number                 # among those that the device watches, or 0
    cdef list scratches
    cdef Operator on_cpu                # whose result a kernel takes, see OnCPU
    cdef void* cpu_operator
    cdef bint same(self, void* stream) noexcept nogil
    cdef int note(self, launch_t* l) except -1
    cdef int follow(self, launch_t* l) except -1 nogil
    cdef int follows(self, int i) except -1

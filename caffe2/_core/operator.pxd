from libc.stdint cimport int64_t
from caffe2._core.blob cimport Blob
from caffe2._core.tensor cimport tensor_t
from caffe2._core.workspace cimport Workspace

cdef class Operator:
    cdef readonly object definition     # OperatorDef
    cdef readonly str type
    cdef readonly object args           # Args
    cdef readonly Workspace workspace
    cdef readonly list inputs           # of Blob
    cdef readonly list outputs
    cdef int num_inputs
    cdef int num_outputs
    cdef tensor_t** x                   # tensors of the inputs
    cdef tensor_t** y                   # tensors of the outputs
    # Set in setup() by operators that take blocked tensors as they are; the others meet plain ones only. The net sets
    # emits where all that read the operator's first output take blocked ones, so that it may be written so.
    cdef bint blocked
    cdef bint emits
    # Set in setup() by operators that add to the first output what others have begun.
    cdef bint joins
    # Set by operators of a GPU: layouts up to this one are taken as they are.
    cdef int takes
    cdef object __weakref__

    # Compute. Called without the GIL; the default takes it and calls execute().
    cdef int run(self) except -1 nogil

    # Raise; return -1, so that run() may say `return self.fail(...)`. The net adds operator, blobs and shapes.
    cdef int fail(self, const char* message) except -1 nogil
    cdef int bad_dtype(self, int i) except -1 nogil
    # Raise unless input i is a tensor of that dtype.
    cdef int expect(self, int i, int dtype) except -1 nogil
    # Raise unless input i has that many dimensions, or those of input j.
    cdef int expect_ndim(self, int i, int ndim) except -1 nogil
    cdef int expect_same_shape(self, int i, int j) except -1 nogil
    cdef int expect_size(self, int i, int64_t size) except -1 nogil
    # Room of n bytes that stays from run to run; NULL and MemoryError where there is none.
    cdef void* scratch(self, size_t n) except NULL nogil
    cdef void* _scratch
    cdef size_t _scratch_size

# Give an operator its definition and its blobs, and let it set itself up.
cdef bind(Operator op, definition, Workspace workspace, list inputs, list outputs)

# For executors: run an operator through a plain pointer, which needs no reference count.
ctypedef int (*run_t)(void* op) except -1 nogil
cdef run_t run_operator

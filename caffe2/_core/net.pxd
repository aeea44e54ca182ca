from caffe2._core.operator cimport Operator
from caffe2._core.threads cimport piece_t
from caffe2._core.workspace cimport Workspace

cdef class Net:
    cdef readonly str name
    cdef readonly object definition
    cdef readonly Workspace workspace
    cdef readonly list operators
    cdef public list observers
    cdef readonly object args
    cdef int count
    cdef void** ops                 # borrowed from operators
    cdef piece_t* touched           # that operators read, see Operator.touched
    cdef int* touched_at            # those of operator i are touched[touched_at[i]:touched_at[i + 1]]
    cdef int at                     # operator that is running, or that failed
    cdef object lock
    cdef unsigned long runner       # thread that runs the net, 0 for none
    cdef object __weakref__

    cdef plan_layouts(self)
    cdef list_touched(self)
    cdef int first, last            # operators to run
    cpdef run(self, int iterations=*, int first=*, int last=*)
    cdef int run_all(self, int iterations) except -1
    cdef int loop(self, int iterations) except -1 nogil

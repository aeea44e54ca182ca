from caffe2._core.blob cimport Blob

cdef class Workspace:
    cdef public str root_folder
    cdef dict _blobs            # name -> Blob, own ones and those forwarded from a parent
    cdef dict _nets             # name -> Net
    cdef set _forwarded
    cdef readonly Workspace parent
    cdef object __weakref__

    cpdef Blob get(self, str name)
    cpdef Blob create(self, str name)

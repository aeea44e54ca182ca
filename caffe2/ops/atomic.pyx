"""Mutexes and flags that nets running at the same time share."""
import threading

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport BOOL, INT32, INT64, resize0, resize1

from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo
from caffe2._core.serialization import register_type


class Mutex:
    """A lock. Whoever has it may let go of the GIL, so it is never taken for granted."""

    __slots__ = ("lock",)

    def __init__(self):
        self.lock = threading.Lock()

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *exc_info):
        self.lock.release()

    def __repr__(self):
        return f"<Mutex, {'' if self.lock.locked() else 'un'}locked>"


# A mutex has nothing to save; it is restored unlocked.
register_type("std::unique_ptr<std::mutex>", Mutex, lambda mutex, message: None,
              lambda message: Mutex())


class AtomicBool:
    """A flag, false at first."""

    __slots__ = ("value",)

    def __init__(self):
        self.value = False

    def __repr__(self):
        return f"AtomicBool({self.value})"


cdef class CreateMutex(Operator):
    def execute(self):
        self.set_object(0, Mutex())


cdef class AtomicFetchAdd(Operator):
    cdef int dtype

    def setup(self):
        self.dtype = INT64 if self.type == "AtomicFetchAdd64" else INT32

    cdef int add(self) except -1 nogil:
        # Unsigned sums wrap around without being undefined.
        cdef int64_t a, b
        cdef int i
        for i in range(1, 3):
            self.expect(i, self.dtype)
            self.expect_size(i, 1)
        if self.dtype == INT32:
            a, b = (<int32_t*>self.x[1].data)[0], (<int32_t*>self.x[2].data)[0]
        else:
            a, b = (<int64_t*>self.x[1].data)[0], (<int64_t*>self.x[2].data)[0]
        resize0(self.y[0], self.dtype)
        resize0(self.y[1], self.dtype)
        if self.dtype == INT32:
            (<uint32_t*>self.y[0].data)[0] = <uint32_t>a + <uint32_t>b
            (<int32_t*>self.y[1].data)[0] = <int32_t>a
        else:
            (<uint64_t*>self.y[0].data)[0] = <uint64_t>a + <uint64_t>b
            (<int64_t*>self.y[1].data)[0] = a
        return 0

    def execute(self):
        with self.object(0, Mutex):
            self.add()


cdef class CreateAtomicBool(Operator):
    def execute(self):
        self.set_object(0, AtomicBool())


cdef class ConditionalSetAtomicBool(Operator):
    def execute(self):
        flag = self.object(0, AtomicBool)
        self.expect(1, BOOL)
        self.expect_size(1, 1)
        if (<char*>self.x[1].data)[0]:
            flag.value = True


cdef class CheckAtomicBool(Operator):
    def execute(self):
        flag = self.object(0, AtomicBool)
        resize1(self.y[0], 1, BOOL)
        (<char*>self.y[0].data)[0] = flag.value


register("CreateMutex", CreateMutex, 0, 1, outs={"mutex_ptr": "a mutex, unlocked"},
         doc="Makes a mutex.")
for _name, _dtype, _word in (("AtomicFetchAdd", INT32, "int32"),
                             ("AtomicFetchAdd64", INT64, "int64")):
    register(
        _name, AtomicFetchAdd, 3, 2,
        ins={"mutex_ptr": "a mutex", "mut_value": f"a number, {_word}",
             "increment": f"what to add, {_word}"},
        outs={"mut_value": "the sum, a scalar", "fetched_value": "the number before, a scalar"},
        inplace=[(1, 0)],
        infer=lambda args, inputs, _dtype=_dtype: [TensorInfo((), _dtype)] * 2,
        doc="Adds to a number while holding a mutex, and tells what it was. May run in place.",
    )
register("CreateAtomicBool", CreateAtomicBool, 0, 1, outs={"atomic_bool": "a flag, false"},
         doc="Makes a flag that operators of several nets may set and read.")
register("ConditionalSetAtomicBool", ConditionalSetAtomicBool, 2, 0,
         ins={"atomic_bool": "a flag", "condition": "one bool"},
         doc="Sets a flag where the condition is true, for good.")
register("CheckAtomicBool", CheckAtomicBool, 1, 1, ins={"atomic_bool": "a flag"},
         outs={"value": "whether it is set, one bool"},
         infer=lambda args, inputs: [TensorInfo((1,), BOOL)], doc="Reads a flag.")

"""Counters: objects that nets and execution steps count with."""
from libc.stdint cimport int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport BOOL, INT64, resize0

from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo
from caffe2._core.serialization import register_type


cdef class Counter:
    """An int64 that several threads may count with."""
    cdef readonly int64_t count

    def __init__(self, count=0):
        self.count = count

    cdef int64_t add(self, int64_t n):
        # Counters are used with the GIL held: nothing comes between.
        cdef int64_t before = self.count
        self.count = before + n
        return before

    def __repr__(self):
        return f"Counter({self.count})"


def _fill(counter, message):
    message.tensor.dims.append(1)
    message.tensor.data_type = INT64
    message.tensor.int64_data.append(counter.count)


def _restore(message):
    if message.tensor.data_type != INT64 or len(message.tensor.int64_data) != 1:
        raise ValueError("a serialized counter holds one int64")
    return Counter(message.tensor.int64_data[0])


register_type("std::unique_ptr<Counter<int64_t>>", Counter, _fill, _restore)


def initial_count(operator):
    count = operator.args.int("init_count")
    if count < 0:
        raise ValueError(f"the argument init_count must not be negative, but is {count}")
    return count


cdef class CounterOperator(Operator):
    """Does something with the counter in input 0 and writes what comes of it."""
    cdef int64_t initial

    def setup(self):
        self.initial = initial_count(self)

    cdef int64_t act(self, Counter counter):
        return counter.count

    cdef int run(self) except -1 nogil:
        cdef int64_t result
        with gil:
            result = self.act(self.object(0, Counter))
        if self.num_outputs:
            resize0(self.y[0], INT64)
            (<int64_t*>self.y[0].data)[0] = result
        return 0


cdef class CreateCounter(Operator):
    def execute(self):
        self.set_object(0, Counter(initial_count(self)))


cdef class ResetCounter(CounterOperator):
    cdef int64_t act(self, Counter counter):
        return counter.add(self.initial - counter.count)


cdef class CountUp(CounterOperator):
    cdef int64_t act(self, Counter counter):
        return counter.add(1)


cdef class Asking(CounterOperator):
    """Writes a bool instead of a count."""
    cdef int run(self) except -1 nogil:
        cdef bint done
        with gil:
            done = self.act(self.object(0, Counter)) <= 0
        resize0(self.y[0], BOOL)
        (<char*>self.y[0].data)[0] = done
        return 0


cdef class CountDown(Asking):
    cdef int64_t act(self, Counter counter):
        return counter.add(-1)


_INIT = {"init_count": "the count to start from, not negative (default 0)"}
_COUNTER = {"counter": "a counter"}


def counter_operator(name, cls, output, meaning, doc, dtype=INT64, outputs=1, args=None):
    register(name, cls, 1, outputs, ins=_COUNTER, outs={output: meaning}, args=args,
             infer=lambda args, inputs: [TensorInfo((), dtype)], doc=doc)


register("CreateCounter", CreateCounter, 0, 1, outs=_COUNTER, args=_INIT,
         doc="Makes a counter that holds init_count.")
counter_operator("ResetCounter", ResetCounter, "previous_value",
                 "the count before, an int64 scalar",
                 "Sets a counter to init_count.", outputs=(0, 1), args=_INIT)
counter_operator("CountUp", CountUp, "previous_count", "the count before, an int64 scalar",
                 "Adds 1 to a counter.")
counter_operator("CountDown", CountDown, "done",
                 "a bool scalar: whether the count was 0 or less before",
                 "Takes 1 from a counter, and tells whether it had run out.", BOOL)
counter_operator("CheckCounterDone", Asking, "done",
                 "a bool scalar: whether the count is 0 or less",
                 "Tells whether a counter has run out.", BOOL)
counter_operator("RetrieveCount", CounterOperator, "count", "the count, an int64 scalar",
                 "Reads a counter.")

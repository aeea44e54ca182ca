"""Nets: a NetDef whose operators are bound once and run in order, without the GIL."""
from libc.limits cimport INT_MAX
from libc.stdlib cimport calloc, free

from caffe2._core cimport threads
from caffe2._core.operator cimport Operator, run_operator
from caffe2._core.workspace cimport Workspace

from threading import Lock
from time import perf_counter

from caffe2._core.args import Args
from caffe2._core.errors import OperatorError
from caffe2._core.operator import create_operator, explain

cdef extern from *:
    """
    #include <time.h>
    static double caffe2_clock(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
                                       return t.tv_sec + 1e-9 * t.tv_nsec; }
    """
    double caffe2_clock() noexcept nogil

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1
    unsigned long PyThread_get_thread_ident() noexcept

# Seconds between two looks at pending signals (Ctrl-C) while a net runs.
cdef double SIGNAL_INTERVAL = 0.05


def is_in_place(op, following):
    """Whether an operator changes the first output of the one before, and nothing else."""
    a, b = op.definition, following.definition
    return list(a.output[:1]) == list(b.input) == list(b.output)


cdef class Net:
    """A net bound to a workspace; this class runs its operators one after the other.

    An operator that computes in place what the one before can do in the same pass is left out (`Operator.absorb`);
    it still stands in `operators`, and runs, to no effect, where operators are run one by one.

    Parameters
    ----------
    definition : NetDef
    workspace : Workspace

    Raises
    ------
    OperatorError
        If an operator cannot be bound; the workspace is then as it was before.
    """

    def __cinit__(self, definition, Workspace workspace):
        cdef int i
        self.definition = definition
        self.name = definition.name
        self.workspace = workspace
        self.args = Args(definition)
        self.observers = []
        self.lock = Lock()
        self.operators = []
        created = []
        try:
            for d in definition.op:
                self.operators.append(create_operator(self.on_device(d), workspace, self.name, created))
        except BaseException as e:
            for name in created:
                workspace.remove(name)
            if isinstance(e, OperatorError):
                e.position = len(self.operators)
            raise
        self.count = <int>len(self.operators)
        self.ops = <void**>calloc(self.count + 1, sizeof(void*))
        if self.ops == NULL:
            raise MemoryError
        for i in range(self.count):
            self.ops[i] = <void*>self.operators[i]

    def __init__(self, definition, workspace):
        self.plan_layouts()         # here, where subclasses have their own
        self.list_touched()

    def __dealloc__(self):
        free(self.ops)
        free(self.touched)
        free(self.touched_at)

    cdef plan_layouts(self):
        """Let operators write blocked tensors where all later readers in the net take them, and work in each other's
        place."""
        cdef Operator op, writer
        cdef int i
        writers = {}                            # blob -> the operators that wrote it last, together
        refused = set()                         # those with a reader that takes plain tensors only
        for op in self.operators:
            for name in op.definition.input:
                for writer in writers.get(name, ()):
                    writer.emits = True
                    if not op.blocked:
                        refused.add(writer)
            for name in op.definition.output[op.joins:]:
                writers.pop(name, None)
            if op.blocked and op.num_outputs:
                writers.setdefault(op.definition.output[op.blocked_output()], []).append(op)
        for op in refused:
            op.emits = False
        op = None
        for i, following in enumerate(self.operators):
            if op is not None and is_in_place(op, following) and op.absorb(following):
                op.emits = op.emits and (<Operator>following).emits
                self.ops[i] = NULL
            else:
                op = following

    cdef list_touched(self):
        """The operators of a large net find their own memory no longer in the cache; see `Operator.touched`."""
        cdef Operator op
        cdef int i, n = 0
        found = [op.touched() for op in self.operators]
        self.touched = <piece_t*>calloc(2 * sum(map(len, found)) + 1, sizeof(piece_t))
        self.touched_at = <int*>calloc(self.count + 2, sizeof(int))
        if self.touched == NULL or self.touched_at == NULL:
            raise MemoryError
        for i in range(self.count):
            for o in found[i]:
                self.touched[n] = piece_t(<void*>o, type(o).__basicsize__)
                n += 1
                if isinstance(o, Operator):
                    op = o
                    self.touched[n] = piece_t(op.x, (op.num_inputs + op.num_outputs) * <int>sizeof(void*))
                    n += 1
            self.touched_at[i + 1] = n
        self.touched_at[self.count + 1] = n

    def on_device(self, op):
        """The operator with the net's device where it names none, and the net's engine."""
        d = self.definition
        if d.HasField("device_option") and not op.HasField("device_option"):
            with_device = type(op)()
            with_device.CopyFrom(op)
            with_device.device_option.CopyFrom(d.device_option)
            return with_device
        return op

    cdef int loop(self, int iterations) except -1 nogil:
        cdef int i, at, _iteration
        cdef double now, looked = caffe2_clock()
        for _iteration in range(iterations):
            for i in range(self.first, self.last):
                if self.ops[i] == NULL:
                    continue
                self.at = i
                at = self.touched_at[i + 1]
                threads.fetch_ahead(self.touched + at, self.touched_at[i + 2] - at)
                run_operator(self.ops[i])
                now = caffe2_clock() if (i & 7) == 7 else looked
                if now - looked > SIGNAL_INTERVAL:
                    looked = now
                    with gil:
                        PyErr_CheckSignals()
            now = caffe2_clock()
            if now - looked > SIGNAL_INTERVAL:
                looked = now
                with gil:
                    PyErr_CheckSignals()
        return 0

    cpdef run(self, int iterations=1, int first=0, int last=INT_MAX):
        """Run all operators, `iterations` times over. Runs of one net, asked for by several threads, take turns.

        Parameters
        ----------
        iterations : int
        first, last : int
            Run operators from the first on up to the last, which is left out. Task graphs always run as a whole.

        Raises
        ------
        OperatorError
            If an operator fails; the message names it, its blobs and their shapes.
        KeyboardInterrupt
            After Ctrl-C, between two operators.
        """
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.runner == me:
            raise RuntimeError(f"net {self.name!r} is running already, and one of its operators runs it again")
        with self.lock:
            self.runner = me
            self.first, self.last = first, min(last, self.count)
            try:
                if self.observers:
                    for _ in range(iterations):
                        self.run_observed()
                else:
                    self.run_all(iterations)
            finally:
                self.runner = 0
        return True

    cdef int run_all(self, int iterations) except -1:
        try:
            with nogil:
                threads.enter()
                try:
                    self.loop(iterations)
                finally:
                    threads.fetch_ahead(NULL, 0)
                    threads.leave()
        except Exception as e:
            raise explain(self.operators[self.at], self.name, e, self.at) from e
        return 0

    def run_observed(self):
        """Run once, one operator at a time, telling the observers before and after each."""
        for o in self.observers:
            o.start(self)
        for op in self.operators[self.first:self.last]:
            for o in self.observers:
                o.start_operator(self, op)
            run_bound(op, self.name)
            for o in self.observers:
                o.stop_operator(self, op)
        for o in self.observers:
            o.stop(self)

    def benchmark(self, int warmup, int iterations, bint individual):
        """Time the net.

        Parameters
        ----------
        warmup, iterations : int
            Runs before, and runs to time.
        individual : bool
            Time each operator too.

        Returns
        -------
        list of float
            Milliseconds of one run, then, where asked for, of each operator.
        """
        if warmup < 0 or iterations < 0:
            raise ValueError("the numbers of runs may not be negative")
        self.run(warmup)
        start = perf_counter()
        self.run(iterations)
        times = [1e3 * (perf_counter() - start) / max(iterations, 1)]
        if individual:
            spent = [0.0] * self.count
            for _ in range(iterations):
                for i, op in enumerate(self.operators):
                    start = perf_counter()
                    run_bound(op, self.name)
                    spent[i] += perf_counter() - start
            times += [1e3 * s / max(iterations, 1) for s in spent]
        return times

    def __repr__(self):
        return f"<net {self.name!r}, {self.count} operators>"


cpdef run_bound(Operator op, str net_name=""):
    """Run one bound operator."""
    cdef void* p = <void*>op
    try:
        with nogil:
            threads.enter()
            try:
                run_operator(p)
            finally:
                threads.leave()
    except Exception as e:
        raise explain(op, net_name, e) from e

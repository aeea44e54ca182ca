"""The task-graph executor: operators, in chains, run as soon as what they read is there."""
from concurrent.futures import ThreadPoolExecutor

from libc.stdlib cimport calloc, free

from caffe2._core cimport threads
from caffe2._core.net cimport Net
from caffe2._core.operator cimport Operator, run_operator

from caffe2._core.operator import explain
from caffe2._core.threads import get_num_threads

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, void*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)

cdef extern from *:
    """
    #include <pthread.h>
    #include <time.h>
    static void caffe2_wait_some(pthread_cond_t* c, pthread_mutex_t* m) {
        struct timespec t; clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 50000000; if (t.tv_nsec >= 1000000000) { t.tv_nsec -= 1000000000; t.tv_sec++; }
        pthread_cond_timedwait(c, m, &t);
    }
    static int caffe2_reraise(void) { return -1; }
    """
    void caffe2_wait_some(pthread_cond_t*, pthread_mutex_t*) noexcept nogil
    int caffe2_reraise() except -1

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

# An operator that fails returns -1 and leaves its exception with the thread; here it is collected later.
ctypedef int (*quiet_run_t)(void* op) noexcept nogil

# Threads start when they are first needed and then wait for more; a blocked operator holds one of them.
_pool = ThreadPoolExecutor(max_workers=1024, thread_name_prefix="caffe2")


def dependencies(definition):
    """For each operator of a NetDef, the set of earlier operators that must have run before it.

    It reads what they write, writes what they read or write, or names their outputs in ``control_input``.
    """
    parents = []
    writer, readers = {}, {}
    for i, op in enumerate(definition.op):
        before = set()
        for name in (*op.input, *op.control_input):
            if name in writer:
                before.add(writer[name])
            readers.setdefault(name, set()).add(i)
        for name in op.output:
            if name in writer:
                before.add(writer[name])
            before |= readers.pop(name, set())
            writer[name] = i
        before.discard(i)
        parents.append(before)
    return parents


def chains(parents):
    """Group operators into chains: each but the first has the one before as only parent, which has no other child."""
    children = [[] for _ in parents]
    for i, before in enumerate(parents):
        for p in before:
            children[p].append(i)
    result, where = [], {}
    for i, before in enumerate(parents):
        p = next(iter(before)) if len(before) == 1 else None
        if p is not None and len(children[p]) == 1:
            chain = where[p]
            chain.append(i)
        else:
            chain = [i]
            result.append(chain)
        where[i] = chain
    return result


cdef class GraphNet(Net):
    """A net whose operators run on several threads, each when what it depends on has run.

    ``num_workers`` of the NetDef says how many operators may run at once, by default as many as there are threads.
    """

    cdef int tasks
    cdef int* first             # task t runs operators order[first[t]:first[t + 1]]
    cdef int* order
    cdef int* child_first       # its children are child[child_first[t]:child_first[t + 1]]
    cdef int* child
    cdef int* parents
    cdef int* waiting           # parents that have not run yet
    cdef int* ready             # queue of tasks
    cdef int head, tail, done
    cdef int iteration, iterations
    cdef bint finished
    cdef int failed
    cdef object error
    cdef readonly int workers
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t changed

    def __init__(self, definition, workspace):
        cdef int i, t, n
        super().__init__(definition, workspace)
        pthread_mutex_init(&self.mutex, NULL)
        pthread_cond_init(&self.changed, NULL)
        parents = dependencies(definition)
        groups = chains(parents)
        task_of = {i: t for t, chain in enumerate(groups) for i in chain}
        before = [{task_of[p] for p in parents[chain[0]]} for chain in groups]
        after = [[] for _ in groups]
        for t, b in enumerate(before):
            for u in b:
                after[u].append(t)
        self.tasks = <int>len(groups)
        self.first = <int*>calloc(self.tasks + 1, sizeof(int))
        self.child_first = <int*>calloc(self.tasks + 1, sizeof(int))
        self.order = <int*>calloc(self.count + 1, sizeof(int))
        self.child = <int*>calloc(sum(map(len, after)) + 1, sizeof(int))
        self.parents = <int*>calloc(self.tasks + 1, sizeof(int))
        self.waiting = <int*>calloc(self.tasks + 1, sizeof(int))
        self.ready = <int*>calloc(self.tasks + 1, sizeof(int))
        if not (self.first and self.child_first and self.order and self.child and self.parents and self.waiting
                and self.ready):
            raise MemoryError
        n = 0
        for t, chain in enumerate(groups):
            for i in chain:
                self.order[n] = i
                n += 1
            self.first[t + 1] = n
        n = 0
        for t in range(self.tasks):
            for i in after[t]:
                self.child[n] = i
                n += 1
            self.child_first[t + 1] = n
            self.parents[t] = <int>len(before[t])
        wanted = definition.num_workers or get_num_threads()
        self.workers = max(1, min(<int>wanted, self.tasks))

    def __dealloc__(self):
        free(self.first)
        free(self.child_first)
        free(self.order)
        free(self.child)
        free(self.parents)
        free(self.waiting)
        free(self.ready)
        pthread_mutex_destroy(&self.mutex)
        pthread_cond_destroy(&self.changed)

    cdef plan_layouts(self):
        """All tensors stay plain: one that several operators read at once cannot change its layout."""
        cdef Operator op
        for op in self.operators:
            op.blocked = False

    cdef void start_iteration(self) noexcept nogil:
        cdef int t
        self.head = self.tail = self.done = 0
        for t in range(self.tasks):
            self.waiting[t] = self.parents[t]
            if self.parents[t] == 0:
                self.ready[self.tail] = t
                self.tail += 1

    cdef void work(self, bint caller) noexcept nogil:
        """Take tasks until the run is over. The thread that called run() also looks at signals."""
        cdef int t, i, k
        cdef bint ok
        pthread_mutex_lock(&self.mutex)
        while True:
            while self.head == self.tail and not self.finished:
                caffe2_wait_some(&self.changed, &self.mutex)
                if caller and not self.finished:
                    pthread_mutex_unlock(&self.mutex)
                    ok = self.look_at_signals()
                    pthread_mutex_lock(&self.mutex)
                    if not ok:
                        self.finished = True
                        pthread_cond_broadcast(&self.changed)
            if self.finished:
                break
            t = self.ready[self.head]
            self.head += 1
            pthread_mutex_unlock(&self.mutex)
            threads.enter()
            ok = True
            for i in range(self.first[t], self.first[t + 1]):
                if (<quiet_run_t>run_operator)(self.ops[self.order[i]]) < 0:
                    self.keep_error(self.order[i])
                    ok = False
                    break
            threads.leave()
            if caller and ok:
                ok = self.look_at_signals()
            pthread_mutex_lock(&self.mutex)
            if not ok:
                self.finished = True
                pthread_cond_broadcast(&self.changed)
                break
            self.done += 1
            for k in range(self.child_first[t], self.child_first[t + 1]):
                i = self.child[k]
                self.waiting[i] -= 1
                if self.waiting[i] == 0:
                    self.ready[self.tail] = i
                    self.tail += 1
                    pthread_cond_signal(&self.changed)
            if self.done == self.tasks:
                self.iteration += 1
                if self.iteration == self.iterations:
                    self.finished = True
                else:
                    self.start_iteration()
                pthread_cond_broadcast(&self.changed)
        pthread_mutex_unlock(&self.mutex)

    cdef void keep_error(self, int i) noexcept with gil:
        try:
            caffe2_reraise()
        except BaseException as e:
            if self.error is None:
                self.error = e
                self.failed = i

    cdef bint look_at_signals(self) noexcept with gil:
        try:
            PyErr_CheckSignals()
        except BaseException as e:
            if self.error is None:
                self.error = e
                self.failed = -1
            return False
        return True

    def _work(self):
        with nogil:
            self.work(False)

    cdef int run_all(self, int iterations) except -1:
        cdef list helpers
        if self.count == 0 or iterations < 1:
            return 0
        self.error = None
        self.failed = -1
        self.iteration = 0
        self.iterations = iterations
        self.finished = False
        self.start_iteration()
        helpers = [_pool.submit(self._work) for _ in range(self.workers - 1)]
        with nogil:
            self.work(True)
        for h in helpers:
            if not h.cancel():
                h.result()
        error, self.error = self.error, None
        if error is not None:
            if self.failed >= 0 and isinstance(error, Exception):
                raise explain(self.operators[self.failed], self.name, error, self.failed) from error
            raise error
        return 0


# The original's executors, by what they promise: an order of operators, or an order of dependencies.
_SERIAL = ("", "simple", "async_simple", "simple_refcount")
_GRAPH = ("dag", "prof_dag", "async_dag", "async_polling", "async_scheduling", "parallel", "rnn", "tbb")
NET_TYPES = {**dict.fromkeys(_SERIAL, Net), **dict.fromkeys(_GRAPH, GraphNet)}


def create_net(definition, workspace, overwrite=False):
    """Bind a net and register it in a workspace.

    Parameters
    ----------
    definition : NetDef
    workspace : Workspace
    overwrite : bool
        Whether it may replace a net of the same name.

    Raises
    ------
    RuntimeError
        If the net has no name, its name is taken, its type is unknown, or an operator
        cannot be bound. The workspace is then as it was before.
    """
    if not definition.HasField("name"):
        raise RuntimeError("a net must have a name to be created")
    if definition.name in workspace.nets and not overwrite:
        raise RuntimeError(f"a net named {definition.name!r} exists already; overwrite=True replaces it")
    net = bind_net(definition, workspace)
    workspace.nets[definition.name] = net
    return net


def check_blobs(definition):
    """Raise where a net that declares external blobs reads one that nobody writes, or never writes one it promises."""
    known = set(definition.external_input)
    if known:
        for op in definition.op:
            for name in op.input:
                if name not in known:
                    raise RuntimeError(f"net {definition.name!r}: input {name} of operator {op.type} is neither an "
                                       "external input nor written by an earlier operator")
            known.update(op.output)
        missing = [name for name in definition.external_output if name not in known]
        if missing:
            raise RuntimeError(f"net {definition.name!r} has external outputs that it never writes: "
                               f"{', '.join(missing)}")


def bind_net(definition, workspace):
    """Bind a net to a workspace without registering it there; see `create_net`."""
    check_blobs(definition)
    cls = NET_TYPES.get(definition.type)
    if cls is None:
        raise RuntimeError(f"net {definition.name!r} is of unknown type {definition.type!r}; known are "
                           f"{', '.join(sorted(t for t in NET_TYPES if t))}")
    return cls(definition, workspace)

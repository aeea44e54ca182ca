"""The one place that knows how many threads there are, for OpenMP loops and executors together."""
import os

from libc.stdint cimport int64_t

cdef extern from *:
    """
    static int caffe2_runners;
    static __thread int caffe2_depth;
    static void runners_add(void) { if (caffe2_depth++ == 0) __atomic_add_fetch(&caffe2_runners, 1, __ATOMIC_RELAXED); }
    static void runners_sub(void) { if (--caffe2_depth == 0) __atomic_sub_fetch(&caffe2_runners, 1, __ATOMIC_RELAXED); }
    static int runners_get(void) { return __atomic_load_n(&caffe2_runners, __ATOMIC_RELAXED); }
    static void runners_after_fork(void) { caffe2_runners = caffe2_depth > 0; }
    """
    void runners_add() noexcept nogil
    void runners_sub() noexcept nogil
    int runners_get() noexcept nogil
    void runners_after_fork() noexcept nogil

# Entering and leaving a parallel region costs about as much as this many elementary operations.
cdef enum:
    THRESHOLD = 32768

cdef int _total = 1


def _cgroup_cpus():
    """CPUs that the control group grants, or None where it sets no limit."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as f:
            quota, period = f.read().split()
        return None if quota == "max" else max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        return None


def default_num_threads():
    """Threads to use: ``OMP_NUM_THREADS``, else the CPUs that this process may run on."""
    value = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if value.isdigit() and int(value) > 0:
        return int(value)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, _cgroup_cpus() or cpus))


def get_num_threads():
    """Number of threads that computing operators share."""
    return _total


def set_num_threads(int n):
    """Set the number of threads that computing operators share.

    Raises
    ------
    ValueError
        If `n` is not positive.
    """
    global _total
    if n < 1:
        raise ValueError(f"the number of threads must be positive, not {n}")
    _total = n


cdef int num_threads(int64_t work) noexcept nogil:
    if work < THRESHOLD or _total == 1:
        return 1
    cdef int runners = runners_get()
    if runners > 1:
        return max(1, _total // runners)
    return _total


cdef void enter() noexcept nogil:
    runners_add()


cdef void leave() noexcept nogil:
    runners_sub()


def _after_fork_in_child():
    # Those that ran in other threads of the parent do not run here.
    runners_after_fork()


set_num_threads(default_num_threads())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

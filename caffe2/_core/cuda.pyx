"""CUDA devices: contexts, streams, memory and kernels, and the base class of the operators that run there.

PyCUDA provides all but the launch itself, which calls the driver from C, so that a net that has run once with the same
shapes is launched again without Python. It is imported, and the driver started, when a device is first asked for.
"""
import ctypes
import os
import sys
import threading
import weakref
from collections import deque

import numpy as np

from libc.math cimport pow, sqrt
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from caffe2._core.operator cimport Operator, run_operator
from caffe2._core.tensor cimport (
    DEVICE, INT64, MAX_DIMS, STRING, UNDEFINED, Tensor, count, dimensions, dtype_name, dtype_of, itemsize, lend,
    make_plain, reshape, resize_on_device, shape_of, share, storage_t, tensor_t, to_numpy,
)

from caffe2._core import tensor as _tensor
from caffe2._core.schema import OpSchema, TensorInfo

cdef extern from *:
    """
    typedef int (*caffe2_launch_t)(void* f, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                   void* stream, void** arguments, void** extra);
    static caffe2_launch_t caffe2_launch;
    static int (*caffe2_set_context)(void* context);
    static int caffe2_start(void* context, void* f, unsigned blocks, unsigned threads, void* stream, void** arguments) {
        int error = caffe2_set_context(context);
        return error ? error : caffe2_launch(f, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, 0);
    }
    /* Of this thread, on each device: the Stream, and its handle. */
    static __thread void* caffe2_streams[64];
    static __thread void* caffe2_handles[64];
    """
    void* caffe2_launch
    void* caffe2_set_context
    int caffe2_start(void*, void*, unsigned, unsigned, void*, void**) noexcept nogil
    void** caffe2_streams
    void** caffe2_handles

# The driver's own library; PyCUDA speaks to the same one.
LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"

_lock = threading.RLock()
_local = threading.local()
_devices = None
_unavailable = None
_driver = None                  # pycuda.driver
_library = None


def unavailable():
    """Why there is no CUDA device, in words, or None where there is one."""
    global _devices, _unavailable, _driver, _library
    if _devices is not None or _unavailable is not None:
        return _unavailable
    with _lock:
        if _devices is not None or _unavailable is not None:
            return _unavailable
        try:
            import pycuda.driver as driver
        except ImportError as e:
            # PyCUDA is linked against the driver
            _unavailable = (
                f"the NVIDIA driver is not installed: PyCUDA cannot be loaded ({e}); install the driver and see "
                "whether nvidia-smi runs" if "libcuda" in str(e) else
                f"PyCUDA cannot be imported ({e}): pip install 'caffe2[cuda]', which needs the CUDA toolkit")
            return _unavailable
        try:
            driver.init()
            found = driver.Device.count()
            if found:
                _library = ctypes.CDLL(LIBRARY)
        except Exception as e:
            _unavailable = f"the NVIDIA driver does not start ({e}): see whether nvidia-smi runs"
            return _unavailable
        if not found:
            _unavailable = "the driver finds no CUDA device: see nvidia-smi, and CUDA_VISIBLE_DEVICES"
            return _unavailable
        _bind(_library)
        _driver = driver
        _devices = [None] * min(found, MAX_DEVICES)
    return None


def _bind(library):
    global caffe2_launch, caffe2_set_context
    cdef size_t launch = ctypes.cast(library.cuLaunchKernel, ctypes.c_void_p).value
    cdef size_t set_context = ctypes.cast(library.cuCtxSetCurrent, ctypes.c_void_p).value
    caffe2_launch = <void*>launch
    caffe2_set_context = <void*>set_context


def device_count():
    """Number of CUDA devices; 0 where CUDA is unavailable."""
    return 0 if unavailable() else len(_devices)


def get_device(int index):
    """A CUDA device.

    Raises
    ------
    RuntimeError
        If there is none of that number; the message says why and what to do.
    """
    why = unavailable()
    if why:
        raise RuntimeError(f"there is no CUDA device {index}: {why}")
    if not 0 <= index < len(_devices):
        raise RuntimeError(f"there is no CUDA device {index}: {len(_devices)} are there, from 0 on")
    if _devices[index] is None:
        with _lock:
            if _devices[index] is None:
                _devices[index] = Device(index)
    return _devices[index]


def driver_version():
    """Version of CUDA that the driver supports, 0 where CUDA is unavailable."""
    return 0 if unavailable() else _driver.get_driver_version()


def properties(int index):
    """dict: what is known of a device, under CUDA's names."""
    device = get_device(index)
    major, minor = device.device.compute_capability()
    attribute, get = _driver.device_attribute, device.device.get_attribute
    return {
        "name": device.device.name(), "totalGlobalMem": device.device.total_memory(), "major": major, "minor": minor,
        "multiProcessorCount": device.multiprocessors, "pciBusId": device.device.pci_bus_id(),
        "sharedMemPerBlock": get(attribute.MAX_SHARED_MEMORY_PER_BLOCK), "warpSize": get(attribute.WARP_SIZE),
        "clockRate": get(attribute.CLOCK_RATE),
    }


def peer_access():
    """Matrix of bool: whether device i reaches the memory of device j."""
    devices = [get_device(i).device for i in range(device_count())]
    return [[a == b or bool(a.can_access_peer(b)) for b in devices] for a in devices]


def check(int error, str what):
    """Raise for an error code of the driver."""
    if error:
        text = ctypes.c_char_p()
        _library.cuGetErrorString(error, ctypes.byref(text))
        raise RuntimeError(f"CUDA: {what} failed: {(text.value or b'').decode() or error}")


class _Streams:
    """The streams of one thread; others may have them when it ends."""

    def __init__(self):
        self.by_device = {}

    def __del__(self):
        for device, stream in self.by_device.items():
            device.put_back(stream)


cdef class Stream:
    def __init__(self, Device device):
        from pycuda import tools

        self.device = device
        self.queue = _driver.Stream(1)          # non-blocking: it does not wait for the default stream
        self.handle = self.queue.handle
        self.pool = tools.DeviceMemoryPool()
        self.pinned = tools.PageLockedMemoryPool()
        self.in_flight = deque()
        self.libraries = {}

    def synchronize(self):
        """Wait until everything given to the stream is done."""
        with self.device:
            self.queue.synchronize()
        self.in_flight.clear()

    def wait_for(self, Stream other):
        """What comes from now on runs after what the other stream was given before."""
        with other.device:
            event = _driver.Event(2)            # no timing
            event.record(other.queue)
        with self.device:
            self.queue.wait_for_event(event)

    def staged(self, array):
        """A copy of a host array in page-locked memory, kept until copies from it, made next, must have ended."""
        while self.in_flight and self.in_flight[0][0].query():
            self.in_flight.popleft()
        copy = self.pinned.allocate(array.nbytes, np.uint8)
        copy[...] = array.reshape(-1).view(np.uint8)
        return copy

    def keep(self, memory):
        """Keep host memory until what the stream was given so far is done."""
        event = _driver.Event(2)
        event.record(self.queue)
        self.in_flight.append((event, memory))

    def library(self, name, make):
        """A library's handle for this stream, made when first asked for."""
        if name not in self.libraries:
            self.libraries[name] = make(self)
        return self.libraries[name]


cdef class Device:
    """A CUDA device with its primary context, which other libraries in the process share.

    ``with device:`` makes the context current. Attributes: ``arch`` (sm_90, ...), ``streams``.
    """

    def __init__(self, int index):
        cdef size_t handle
        self.index = index
        self.device = _driver.Device(index)
        self.context = self.device.retain_primary_context()
        self.lock = threading.RLock()
        self.arch = "sm_%d%d" % self.device.compute_capability()
        self.multiprocessors = self.device.get_attribute(_driver.device_attribute.MULTIPROCESSOR_COUNT)
        self.streams = []
        self.idle = []
        self.modules = {}
        self.watched = weakref.WeakValueDictionary()
        current, host, address = (ctypes.c_void_p() for _ in range(3))
        with self:
            check(_library.cuCtxGetCurrent(ctypes.byref(current)), "reading the current context")
            check(_library.cuMemHostAlloc(ctypes.byref(host), ctypes.c_size_t(8), 2), "allocating page-locked memory")
            check(_library.cuMemHostGetDevicePointer_v2(ctypes.byref(address), host, 0), "mapping page-locked memory")
        handle = current.value
        self.handle = <void*>handle
        handle = host.value
        self.fault = <uint64_t*>handle
        self.fault[0] = 0
        self.fault_address = address.value

    def __enter__(self):
        self.context.push()
        return self

    def __exit__(self, *_):
        self.context.pop()

    def current_stream(self):
        """The calling thread's stream."""
        mine = getattr(_local, "streams", None)
        if mine is None:
            mine = _local.streams = _Streams()
        stream = mine.by_device.get(self)
        if stream is None:
            with self.lock, self:
                if self.idle:
                    stream = self.idle.pop()
                else:
                    stream = Stream(self)
                    self.streams.append(stream)
            mine.by_device[self] = stream
            caffe2_handles[self.index] = <void*><size_t>(<Stream>stream).handle
            caffe2_streams[self.index] = <void*>stream
        return stream

    def put_back(self, stream):
        """Leave a stream to other threads."""
        self.idle.append(stream)

    def watch(self, operator):
        """A number for an operator whose kernels may find a wrong label."""
        with self.lock:
            number = max(self.watched, default=0) + 1
            self.watched[number] = operator
        return number

    cdef int raise_fault(self) except -1:
        """Raise for a wrong label that a kernel found."""
        cdef uint64_t found = self.fault[0]
        cdef int32_t label = <int32_t>found
        self.fault[0] = 0
        operator = self.watched.get(found >> 32)
        name = "an operator that is gone"
        if operator is not None:
            d = operator.definition
            name = f"operator {d.type}({', '.join(d.input)}) -> ({', '.join(d.output)})"
        raise RuntimeError(
            f"a label is not the number of a class: {label}, in {name}, which ran on CUDA "
            f"device {self.index} before; its result is NaN there")

    def synchronize(self):
        """Wait until all streams are done."""
        for stream in list(self.streams):
            stream.synchronize()

    def function(self, stem, name):
        """Address of a kernel of caffe2/ops/cuda/STEM.cu, which is compiled if need be."""
        functions = self.modules.get(stem)
        if functions is None:
            from caffe2._core.cuda_compiler import binary

            with self.lock:
                functions = self.modules.get(stem)
                if functions is None:
                    image = binary(stem, self.arch)
                    module = ctypes.c_void_p()
                    with self:
                        check(_library.cuModuleLoadData(ctypes.byref(module), image), f"loading the kernels of {stem}")
                    functions = {None: module}
                    self.modules[stem] = functions
        function = functions.get(name)
        if function is None:
            found = ctypes.c_void_p()
            with self:
                check(_library.cuModuleGetFunction(ctypes.byref(found), functions[None], name.encode()),
                      f"finding kernel {name} of {stem}")
            function = functions[name] = found.value
        return function

    def memory(self):
        """dict of int: bytes free and in all on the device, and bytes that our pools use and hold."""
        with self:
            free_bytes, total = _driver.mem_get_info()
        pools = [s.pool for s in self.streams]
        return {"free": free_bytes, "total": total, "used": sum(p.active_bytes for p in pools),
                "held": sum(p.managed_bytes for p in pools)}

    def release_memory(self):
        """Give memory that the pools hold, but no tensor uses, back to the device."""
        self.synchronize()
        with self:
            for stream in list(self.streams):
                stream.pool.free_held()
                stream.pinned.free_held()

    def allocate(self, Stream stream, size_t nbytes):
        """Memory from a stream's pool; what other streams' pools hold idle is given back first where it is short."""
        try:
            with self:
                return stream.pool.allocate(max(nbytes, 1))
        except _driver.MemoryError:
            pass
        self.release_memory()
        try:
            with self:
                return stream.pool.allocate(max(nbytes, 1))
        except _driver.MemoryError:
            m = self.memory()
        raise MemoryError(
            f"CUDA device {self.index} is out of memory: {nbytes} bytes are wanted, {m['free']} of {m['total']} are "
            f"free, tensors here use {m['used']}. Use smaller batches, reset blobs that are no longer needed, or see "
            "nvidia-smi for other processes")

    def __repr__(self):
        return f"<CUDA device {self.index}: {self.device.name()}, {self.arch}>"


cdef class Memory:
    """What a tensor's storage owns: memory of a stream's pool, back there when the last tensor is gone."""

    cdef object allocation
    cdef Stream home
    cdef storage_t* storage

    def __init__(self, allocation, Stream home):
        self.allocation = allocation
        self.home = home

    def __del__(self):
        cdef Stream last
        if self.storage != NULL and self.storage.stream != NULL and self.storage.stream != <void*>self.home:
            # the home stream gives it to somebody else next
            last = <Stream>self.storage.stream
            self.home.wait_for(last)


class Lent:
    """Memory of another library, kept until no tensor of ours uses it."""

    def __init__(self, owner):
        self.owner = owner


cdef int allocate(tensor_t* t, int ndim, const int64_t* shape, int dtype, Stream stream) except -1:
    """Make t a tensor on the stream's device, to be written there."""
    cdef Memory memory
    cdef size_t data, nbytes
    if dtype == STRING or itemsize(dtype) == 0:
        raise TypeError(f"no tensor on a GPU can hold {dtype_name(dtype)}")
    if not resize_on_device(t, ndim, shape, dtype, stream.device.index):
        nbytes = count(ndim, shape, dtype) * itemsize(dtype)
        allocation = stream.device.allocate(stream, nbytes)
        memory = Memory(allocation, stream)
        data = int(allocation)
        lend(t, ndim, shape, dtype, <void*>data, max(nbytes, 1), memory, stream.device.index)
        memory.storage = t.storage
        t.storage.stream = <void*>stream
    else:
        claim(t, stream)
    return 0


cdef int claim(const tensor_t* t, Stream stream) except -1:
    """Order the stream's next work after all work on t so far."""
    if t.storage.stream != <void*>stream:
        if t.storage.stream != NULL:
            stream.wait_for(<Stream>t.storage.stream)
        t.storage.stream = <void*>stream
    return 0


cdef int to_device(tensor_t* t, object array, Device device) except -1:
    """Copy a numpy array to the device; it may change as soon as this returns."""
    cdef int64_t[MAX_DIMS] shape
    cdef int ndim = dimensions(array.shape, shape)
    cdef Stream stream = device.current_stream()
    a = np.ascontiguousarray(array)
    if not a.dtype.isnative:
        a = a.astype(a.dtype.newbyteorder("="))
    allocate(t, ndim, shape, dtype_of(a.dtype), stream)
    if a.nbytes:
        with device:
            staged = stream.staged(a)
            _driver.memcpy_htod_async(<size_t>t.data, staged, stream.queue)
            stream.keep(staged)
    return 0


cdef object to_host(const tensor_t* t):
    """A numpy array of a device tensor's values, once all work on it is done."""
    cdef Device device = get_device(t.device_id)
    cdef Stream stream = device.current_stream()
    cdef Tensor typed = Tensor.__new__(Tensor)
    typed.own.dtype = t.dtype
    array = np.empty(shape_of(t), typed.dtype)
    claim(t, stream)
    with device:
        if array.nbytes:
            _driver.memcpy_dtoh_async(array, <size_t>t.data, stream.queue)
        stream.queue.synchronize()
    if device.fault[0]:
        device.raise_fault()
    return array


# ---------------------------------------------------------------- for tensors and blobs

def fetch(Tensor tensor):
    """A numpy array of a device tensor's values."""
    return to_host(tensor.t)


def feed(Tensor tensor, values, int index):
    """Copy an array, or what another library has on a device, into a tensor on a device."""
    cdef Device device = get_device(index)
    if not _feed_from_device(tensor, values, device):
        to_device(tensor.t, values if isinstance(values, np.ndarray) else np.asarray(values), device)


cdef bint _feed_from_device(Tensor tensor, values, Device device) except -1:
    cdef Tensor source
    cdef Stream stream
    if isinstance(values, Tensor):
        source = values
        if source.t.layout != DEVICE:
            return False
    else:
        source = borrow(values, device)
        if source is None:
            return False
    stream = device.current_stream()
    copy_on_device(tensor.t, source.t, stream)
    return True


def borrow(values, Device device=None):
    """A tensor that shares device memory of another library's array, or None where that is not in device memory.

    ``__cuda_array_interface__`` and, for PyTorch and the like, DLPack are understood; work on the memory is ordered
    after what its owner has queued.
    """
    cdef Tensor result
    cdef int64_t[MAX_DIMS] shape
    cdef size_t address
    interface = getattr(values, "__cuda_array_interface__", None)
    if interface is None:
        if getattr(values, "__dlpack_device__", None) is None or values.__dlpack_device__()[0] != 2:
            return None
        if device is None:
            device = get_device(values.__dlpack_device__()[1])
        return _tensor.from_dlpack(values.__dlpack__(stream=device.current_stream().handle))
    strides = interface.get("strides")
    dtype = np.dtype(interface["typestr"])
    dims = tuple(interface["shape"])
    expected, plain = dtype.itemsize, []
    for d in reversed(dims):
        plain.insert(0, expected)
        expected *= d
    if strides is not None and tuple(strides) != tuple(plain) and 0 not in dims:
        raise ValueError("a tensor is contiguous in memory; copy the array into such memory first")
    if device is None:
        device = get_device(0)
    result = Tensor.__new__(Tensor)
    address = interface["data"][0]
    lend(result.t, dimensions(dims, shape), shape, dtype_of(dtype), <void*>address, 0, Lent(values), device.index)
    stream = interface.get("stream")
    if stream is not None:
        _wait_for_handle(device, stream)
    return result


def _wait_for_handle(Device device, size_t handle):
    """Order this thread's stream after a stream of another library."""
    event = ctypes.c_void_p()
    with device:
        check(_library.cuEventCreate(ctypes.byref(event), 2), "making an event")
        check(_library.cuEventRecord(event, ctypes.c_void_p(handle)), "recording an event")
        check(_library.cuStreamWaitEvent(ctypes.c_void_p((<Stream>device.current_stream()).handle), event, 0),
              "waiting for an event")
        check(_library.cuEventDestroy_v2(event), "freeing an event")


def hand_over(Tensor tensor, stream):
    """Let a consumer's stream (DLPack's number: None for the legacy default one, -1 for none) wait for the tensor."""
    cdef Stream mine
    cdef size_t handle
    if stream == -1 or tensor.t.storage.stream == NULL:
        return
    mine = <Stream>tensor.t.storage.stream
    event = ctypes.c_void_p()
    handle = stream or 1
    with mine.device:
        check(_library.cuEventCreate(ctypes.byref(event), 2), "making an event")
        check(_library.cuEventRecord(event, ctypes.c_void_p(mine.handle)), "recording an event")
        check(_library.cuStreamWaitEvent(ctypes.c_void_p(handle), event, 0), "waiting for an event")
        check(_library.cuEventDestroy_v2(event), "freeing an event")


def stream_of(Tensor tensor):
    """Handle of the stream that used a tensor last, for ``__cuda_array_interface__``."""
    return (<Stream>tensor.t.storage.stream).handle if tensor.t.storage.stream != NULL else None


cdef int copy_on_device(tensor_t* to, const tensor_t* source, Stream stream) except -1:
    """Copy a device tensor to the stream's device."""
    cdef Device device = stream.device
    claim(source, stream)
    allocate(to, source.ndim, source.shape, source.dtype, stream)
    if source.size and to.data != source.data:
        with device:
            if source.device_id == device.index:
                _driver.memcpy_dtod_async(<size_t>to.data, <size_t>source.data, source.size * itemsize(source.dtype),
                                          stream.queue)
            else:
                _driver.memcpy_peer_async(
                    <size_t>to.data, <size_t>source.data, source.size * itemsize(source.dtype), stream.queue,
                    device.context, get_device(source.device_id).context)
    return 0


# ---------------------------------------------------------------- operators

cdef class View:
    """A tensor on the device: what an operator's `execute` sees of its inputs and outputs."""

    @property
    def shape(self):
        return shape_of(self.t)

    @property
    def ndim(self):
        return self.t.ndim

    @property
    def size(self):
        return self.t.size

    @property
    def dtype(self):
        """int: of TensorProto.DataType."""
        return self.t.dtype

    @property
    def nbytes(self):
        return self.t.size * itemsize(self.t.dtype)

    @property
    def pointer(self):
        """int: address in device memory."""
        return <size_t>self.t.data

    def __eq__(self, other):
        return isinstance(other, View) and self.t == (<View>other).t


class Draws:
    """Argument of a kernel that draws random numbers: it sees how many were drawn before, and draws `count`."""

    def __init__(self, draws):
        self.count = draws


class BiasCorrection:
    """Argument of a kernel: sqrt(1 - p^t) / (1 - q^t), where t is one more than the count in an input on the CPU."""

    def __init__(self, counter, q, p=0.0):
        self.counter, self.q, self.p = counter, q, p


class OnCPU:
    """Argument of a kernel: the float that an operator on the CPU gives, which is run before."""

    def __init__(self, operator):
        self.operator = operator


cdef View view(tensor_t* t):
    cdef View v = View.__new__(View)
    v.t = t
    return v


cdef class CudaOperator(Operator):
    """Base class of operators that run on a CUDA device.

    A subclass computes in `execute`: it looks at its inputs (`source`), makes its outputs (`target`) and launches
    kernels (`launch`, `launch_blocks`) or queues other work on `stream` (`call`). What it launched is noted down, and
    done again without calling `execute` while its tensors have the same shapes and stay where they are; so everything
    that `execute` decides may depend on arguments, shapes and dtypes alone. One that looks at values, or draws random
    numbers, sets `repeats` to False.

    Its kernels are in the .cu file beside its module.

    Attributes of the class
    -----------------------
    host_inputs, host_outputs : container of int
        Which are in host memory, on any device.
    """

    host_inputs = ()
    host_outputs = ()
    repeats = True

    def __cinit__(self):
        self.takes = DEVICE
        self.calls = []
        self.scratches = []

    def __dealloc__(self):
        cdef int i
        for i in range(self.num_launches):
            free(self.launches[i])
        free(self.launches)
        free(self.seen)

    def prepare(self):
        """Find the device; called before setup."""
        self.device = get_device(self.definition.device_option.device_id)
        self.seen = <seen_t*>calloc(self.num_inputs + self.num_outputs + 1, sizeof(seen_t))
        if self.seen == NULL:
            raise MemoryError

    cdef bint same(self, void* stream) noexcept nogil:
        """Whether all tensors are what they were when the launches were noted."""
        cdef int i, k
        cdef tensor_t* t
        cdef seen_t* s
        for i in range(self.num_inputs + self.num_outputs):
            t = self.x[i]                           # outputs follow
            s = &self.seen[i]
            if t.data != s.data or t.dtype != s.dtype or t.ndim != s.ndim or t.layout != s.layout:
                return False
            for k in range(t.ndim):
                if t.shape[k] != s.shape[k]:
                    return False
            if s.live:
                continue
            if t.layout != DEVICE:
                # in host memory: the same values, that nobody else can write
                if t.version != s.version or t.storage == NULL or t.storage.refs != 1:
                    return False
            elif t.storage.stream != stream:
                return False
        return True

    cdef int run(self) except -1 nogil:
        cdef void* stream = caffe2_streams[self.device.index]
        cdef int i, k = 0, error
        if not self.noted or stream == NULL or not self.same(stream):
            with gil:
                self.perform()
            return 0
        for i in range(self.num_launches):
            if self.launches[i] == NULL:
                with gil:
                    self.again(k)
                k += 1
                continue
            if self.launches[i].counter >= 0:
                (<int64_t*>self.launches[i].arguments[self.launches[i].counter])[0] = self.drawn
                self.drawn += self.launches[i].draws
            if self.launches[i].live >= 0:
                self.follow(self.launches[i])
            error = caffe2_start(self.device.handle, self.launches[i].function, self.launches[i].blocks,
                                 self.launches[i].threads, caffe2_handles[self.device.index],
                                 self.launches[i].arguments)
            if error:
                with gil:
                    check(error, "a launch")
        for i in range(self.num_outputs):
            if self.y[i].layout == DEVICE:
                self.y[i].version += 1
        return 0

    def again(self, k):
        function, arguments = self.calls[k]
        function(*arguments)

    def perform(self):
        """Compute, noting down what is launched."""
        cdef int i, k
        cdef tensor_t* t
        self.stream = self.device.current_stream()
        for i in range(self.num_inputs):
            self.check_input(i)
        self.noted = False
        for i in range(self.num_launches):
            free(self.launches[i])
        self.num_launches = 0
        self.calls.clear()
        for i in range(self.num_inputs):
            self.seen[i].live = False
        self.execute()
        self.noted = self.repeats
        for i in range(self.num_inputs + self.num_outputs):
            t = self.x[i]
            self.seen[i].data = t.data
            self.seen[i].dtype = t.dtype
            self.seen[i].ndim = t.ndim
            self.seen[i].layout = t.layout
            self.seen[i].version = t.version
            for k in range(t.ndim):
                self.seen[i].shape[k] = t.shape[k]

    def check_input(self, int i):
        cdef tensor_t* t = self.x[i]
        if t.dtype == UNDEFINED:
            self.bad_dtype(i)
        name = self.definition.input[i]
        if i in self.host_inputs:
            if t.layout == DEVICE:
                raise RuntimeError(f"input {i} ({name}) must be on the CPU, but is on CUDA device {t.device_id}: feed "
                                   "it without a device option, or use CopyGPUToCPU")
            make_plain(t)
        elif t.layout != DEVICE:
            raise RuntimeError(
                f"input {i} ({name}) is on the CPU, but must be on CUDA device {self.device.index}: feed it with that "
                "device option, or use CopyCPUToGPU")
        elif t.device_id != self.device.index:
            raise RuntimeError(f"input {i} ({name}) is on CUDA device {t.device_id}, but must be on device "
                               f"{self.device.index}: use Copy")
        else:
            claim(t, self.stream)

    # ------------------------------------------------------------ for execute()

    def source(self, int i, dtypes=None):
        """Input i; a TypeError unless its dtype is among those given."""
        if dtypes is not None and self.x[i].dtype not in dtypes:
            if len(dtypes) == 1:
                self.expect(i, dtypes[0])
            self.bad_dtype(i)
        return view(self.x[i])

    def target(self, int i, shape, int dtype):
        """Output i, with this shape and dtype from now on; what it held stays where both are the same."""
        cdef int64_t[MAX_DIMS] dims
        allocate(self.y[i], dimensions(shape, dims), dims, dtype, self.stream)
        return view(self.y[i])

    def like(self, int i, View other, dtype=None):
        """Output i, with the shape of another tensor."""
        allocate(self.y[i], other.t.ndim, other.t.shape, other.t.dtype if dtype is None else dtype, self.stream)
        return view(self.y[i])

    def infer(self):
        """Shapes and dtypes of the outputs, as the operator's schema has them: list of TensorInfo."""
        infos = [TensorInfo(shape_of(self.x[i]), self.x[i].dtype) for i in range(self.num_inputs)]
        return OpSchema.get(self.type).infer(self.definition, infos)

    def inferred(self, int o=0):
        """Output o, with the shape and dtype that the schema infers."""
        info = self.infer()[o]
        return self.target(o, info.shape, info.dtype)

    @property
    def key(self):
        """int: what the operator's random numbers depend on, beside how many were drawn before."""
        if self._key is None:
            option = self.definition.device_option
            key = option.random_seed if option.HasField("random_seed") else int.from_bytes(os.urandom(8), "little")
            self._key = key - (1 << 64) if key >= 1 << 63 else key
        return self._key

    @property
    def fault(self):
        """Arguments of a kernel that may find a label that is no class: the next fetch raises for it."""
        if self.number == 0:
            self.number = self.device.watch(self)
        return self.device.fault_address, self.number

    def room(self, int k, size, int dtype=1):
        """Room number k for intermediate values, which stays with the operator."""
        cdef Tensor t
        cdef int64_t n = size
        while k >= len(self.scratches):
            self.scratches.append(Tensor())
        t = self.scratches[k]
        allocate(t.t, 1, &n, dtype, self.stream)
        return view(t.t)

    def on_device(self, int i):
        """Whether input i is in device memory."""
        return self.x[i].layout == DEVICE

    def host(self, i):
        """Input i, which is in host memory, as a numpy array that shares it."""
        return to_numpy(self.x[i], True)

    def values(self, int i):
        """A copy of input i, on whichever device: waits for it."""
        return to_numpy(self.x[i], False)

    def set_from_host(self, int i, array):
        """Copy a numpy array to output i, on the device unless that is one of the host's."""
        if i in self.host_outputs:
            self.set_output(i, array)
        else:
            to_device(self.y[i], np.asarray(array), self.device)

    def device_id(self, int i):
        """int: the device that input i is on; -1 for host memory."""
        return self.x[i].device_id if self.x[i].layout == DEVICE else -1

    def copy_across(self, int i, int o):
        """Copy input i, from whichever device, to output o."""
        copy_on_device(self.y[o], self.x[i], self.stream)

    def copy(self, int i, int o):
        """Copy input i to output o."""
        if self.x[i] != self.y[o]:
            self.like(o, view(self.x[i]))
            self.copy_bytes(view(self.y[o]), view(self.x[i]))

    def copy_bytes(self, View to, View source, nbytes=None):
        """Copy device memory."""
        n = source.nbytes if nbytes is None else nbytes
        if n and to.t.data != source.t.data:
            self.call(self.copy_now, to.pointer, source.pointer, n)

    def copy_now(self, to, source, nbytes):
        with self.device:
            _driver.memcpy_dtod_async(to, source, nbytes, (<Stream>self.device.current_stream()).queue)

    def share(self, int i, int o):
        """Make output o share the memory of input i."""
        share(self.y[o], self.x[i])

    def reshape_output(self, int o, shape):
        """Change the shape of output o, not its values."""
        cdef int64_t[MAX_DIMS] dims
        reshape(self.y[o], dimensions(shape, dims), dims)

    def call(self, function, *arguments):
        """Call a function that queues work on the current stream, now and whenever the launches are repeated."""
        function(*arguments)
        self.note(NULL)
        self.calls.append((function, arguments))

    def launch(self, kernel, n, *arguments, unit=4, stem=None):
        """Run a kernel over n places, in any order; a thread does `unit` of them, and more where there are many."""
        if n > 0:
            blocks = min((n + 256 * unit - 1) // (256 * unit), 16 * self.device.multiprocessors)
            self.launch_blocks(kernel, blocks, *arguments, stem=stem)

    def launch_blocks(self, kernel, blocks, *arguments, threads=256, stem=None):
        """Run a kernel, of STEM.cu if that is not the operator's own, on that many blocks of threads.

        Arguments are tensors (pointers there), ints (long long there), floats (float), None (a null pointer), bytes (a
        struct, by value), Draws (long long: how many numbers the operator has drawn before), BiasCorrection or OnCPU
        (float: computed again for each launch).
        """
        cdef launch_t* l
        cdef int i = 0, at = 0
        cdef size_t function = self.device.function(stem or type(self).__module__.rsplit(".", 1)[1], kernel)
        cdef size_t pointer
        cdef int64_t integer
        cdef float number
        cdef bytes data
        cdef int error
        if blocks <= 0:
            return
        if len(arguments) > MAX_ARGUMENTS:
            raise ValueError(f"kernel {kernel} takes too many arguments")
        l = <launch_t*>malloc(sizeof(launch_t))
        if l == NULL:
            raise MemoryError
        try:
            l.function = <void*>function
            l.blocks = min(blocks, 2**31 - 1)
            l.threads = threads
            l.counter = l.live = -1
            for a in arguments:
                l.arguments[i] = &l.values[at]
                if isinstance(a, View) or a is None:
                    pointer = 0 if a is None else <size_t>(<View>a).t.data
                    memcpy(l.arguments[i], &pointer, 8)
                elif isinstance(a, bytes):
                    data = a
                    if at + len(data) > ARGUMENT_BYTES - 16:
                        raise ValueError(f"kernel {kernel} takes too many arguments")
                    memcpy(l.arguments[i], <char*>data, len(data))
                    at += (<int>len(data) - 1) // 8 * 8
                elif isinstance(a, (float, np.floating)):
                    number = a
                    memcpy(l.arguments[i], &number, 4)
                elif isinstance(a, Draws):
                    l.counter, l.draws = i, a.count
                    memcpy(l.arguments[i], &self.drawn, 8)
                    self.drawn += a.count
                elif isinstance(a, BiasCorrection):
                    l.live, l.count, l.p, l.q = i, a.counter, a.p, a.q
                    self.follows(a.counter)
                elif isinstance(a, OnCPU):
                    l.live, l.count = i, -1
                    self.on_cpu = a.operator
                    self.cpu_operator = <void*>self.on_cpu
                    for k in self.host_inputs:
                        self.follows(k)
                else:
                    integer = a
                    memcpy(l.arguments[i], &integer, 8)
                at += 8
                i += 1
            if l.live >= 0:
                self.follow(l)
            error = caffe2_start(self.device.handle, l.function, l.blocks, l.threads, <void*>self.stream.handle,
                                 l.arguments)
            check(error, f"launching kernel {kernel}")
        except BaseException:
            free(l)
            raise
        self.note(l)

    cdef int follows(self, int i) except -1:
        """Note that launches read input i, a count on the CPU, so that others of it make no difference."""
        if self.x[i].dtype != INT64 or self.x[i].size != 1:
            raise ValueError(f"input {i} must be one int64")
        self.seen[i].live = True
        return 0

    cdef int follow(self, launch_t* l) except -1 nogil:
        """Compute the argument of a launch that follows a value on the CPU."""
        cdef double t
        cdef float* argument = <float*>l.arguments[l.live]
        if l.count >= 0:
            t = <double>(<int64_t*>self.x[l.count].data)[0] + 1
            argument[0] = <float>(sqrt(1 - pow(l.p, t)) / (1 - pow(l.q, t)))
        else:
            run_operator(self.cpu_operator)
            argument[0] = (<float*>(<Operator>self.cpu_operator).y[0].data)[0]
        return 0

    cdef int note(self, launch_t* l) except -1:
        cdef launch_t** more
        if self.num_launches == self.room_for:
            more = <launch_t**>realloc(self.launches, (2 * self.room_for + 4) * sizeof(void*))
            if more == NULL:
                free(l)
                raise MemoryError
            self.launches = more
            self.room_for = 2 * self.room_for + 4
        self.launches[self.num_launches] = l
        self.num_launches += 1
        return 0


_tensor.set_cuda(sys.modules[__name__])

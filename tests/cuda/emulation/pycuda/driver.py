"""pycuda.driver on the emulated driver: two devices of little memory."""
import contextlib
import ctypes
import threading

import numpy as np
from cuda_emulation import DRIVER, MEMORY

_state = threading.local()


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


class CompileError(Error):
    def __init__(self, msg, command_line=(), stdout=None, stderr=None):
        super().__init__(f"{msg} {stderr}")


def _stack():
    if not hasattr(_state, "stack"):
        _state.stack = []
    return _state.stack


def current():
    if not _stack():
        raise LogicError("no currently active context?")
    return _stack()[-1]


def init():
    pass


def get_version():
    return 13, 0, 0


def get_driver_version():
    return 13000


class device_attribute:
    MULTIPROCESSOR_COUNT = 16
    MAX_SHARED_MEMORY_PER_BLOCK = 8
    CLOCK_RATE = 13
    WARP_SIZE = 10


class Device:
    def __init__(self, index):
        self.index = index

    @staticmethod
    def count():
        return 2

    def name(self):
        return "Emulated device"

    def pci_bus_id(self):
        return f"0000:0{self.index}:00.0"

    def compute_capability(self):
        return 9, 0

    def total_memory(self):
        return MEMORY.total

    def get_attribute(self, attribute):
        return {16: 2, 8: 49152, 13: 1000000, 10: 32}[attribute]

    def can_access_peer(self, other):
        return True

    def retain_primary_context(self):
        return Context(self)


class Context:
    def __init__(self, device):
        self.device = device
        self.handle = 0x1000 + device.index

    def push(self):
        _stack().append(self)
        DRIVER.cuCtxSetCurrent(ctypes.c_void_p(self.handle))

    @staticmethod
    def pop():
        if not _stack():
            raise LogicError("cannot pop context from empty stack")
        _stack().pop()
        DRIVER.cuCtxSetCurrent(ctypes.c_void_p(_stack()[-1].handle if _stack() else None))


class Stream:
    def __init__(self, flags=0):
        current()
        self.handle = DRIVER.emu_stream_new()

    def synchronize(self):
        current()
        DRIVER.emu_stream_wait(self.handle)

    def is_done(self):
        return bool(DRIVER.emu_stream_done(self.handle))

    def wait_for_event(self, event):
        current()
        DRIVER.cuStreamWaitEvent(self.handle, event.handle, 0)


class Event:
    def __init__(self, flags=0):
        current()
        handle = ctypes.c_void_p()
        DRIVER.cuEventCreate(ctypes.byref(handle), flags)
        self.handle = handle

    def record(self, stream=None):
        current()
        DRIVER.cuEventRecord(self.handle, stream.handle if stream else None)
        return self

    def synchronize(self):
        DRIVER.emu_event_wait(self.handle)
        return self

    def query(self):
        return bool(DRIVER.emu_event_done(self.handle))

    def __del__(self):
        DRIVER.cuEventDestroy_v2(self.handle)


def mem_get_info():
    current()
    return MEMORY.total - DRIVER.emu_live(), MEMORY.total


def memcpy_htod_async(to, source, stream=None):
    current()
    if not isinstance(_base(source), PinnedMemory):     # pageable memory is read before the call returns
        source = source.copy()
    else:
        MEMORY.alive.append(source.base)
    MEMORY.alive.append(source)
    DRIVER.emu_push_copy(stream.handle, int(to), source.ctypes.data, source.nbytes)


def _base(array):
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def memcpy_dtoh_async(to, source, stream=None):
    current()
    DRIVER.emu_push_copy(stream.handle, to.ctypes.data, int(source), to.nbytes)
    if not isinstance(_base(to), PinnedMemory):
        DRIVER.emu_stream_wait(stream.handle)


def memcpy_dtod_async(to, source, size, stream=None):
    current()
    DRIVER.emu_push_copy(stream.handle, int(to), int(source), size)


def memcpy_peer_async(to, source, size, stream, to_context=None, source_context=None):
    current()
    DRIVER.emu_push_copy(stream.handle, int(to), int(source), size)


class PinnedMemory:
    """Page-locked memory: overwritten when it is given back, so that copies from it that come too late show."""

    def __init__(self, shape, dtype):
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.buffer = (ctypes.c_char * max(n, 1))()
        self.__array_interface__ = {
            "shape": tuple(np.atleast_1d(shape).tolist()), "typestr": np.dtype(dtype).str, "version": 3,
            "data": (ctypes.addressof(self.buffer), False)}

    def __del__(self):
        with contextlib.suppress(TypeError, AttributeError):
            ctypes.memset(self.buffer, 0xff, len(self.buffer))
            MEMORY.graveyard.append(self.buffer)

"""pycuda.tools: memory pools."""
import numpy as np
from cuda_emulation import DRIVER, MEMORY

from pycuda import driver


class _Allocation:
    def __init__(self, pool, address, size):
        self.pool, self.address, self.size = pool, address, size

    def __int__(self):
        return self.address

    def __del__(self):
        self.pool.active_bytes -= self.size
        self.pool.held.setdefault(self.size, []).append(self.address)


class DeviceMemoryPool:
    def __init__(self):
        self.context = driver.current()
        self.held = {}
        self.active_bytes = self.managed_bytes = 0

    def allocate(self, size):
        assert driver.current() is self.context
        size = 1 << (size - 1).bit_length()
        held = self.held.get(size)
        if held:
            address = held.pop()
        else:
            if DRIVER.emu_live() + size > MEMORY.total:
                raise driver.MemoryError("cuMemAlloc failed: out of memory")
            address = DRIVER.emu_new(size)
            MEMORY.blocks[address] = size
            self.managed_bytes += size
        self.active_bytes += size
        return _Allocation(self, address, size)

    def free_held(self):
        driver.current()
        DRIVER.emu_wait_all()
        for size, addresses in self.held.items():
            for a in addresses:
                self.managed_bytes -= size
                MEMORY.check(a)
                del MEMORY.blocks[a]
                DRIVER.emu_delete(a, size)
        self.held.clear()


class PageLockedMemoryPool:
    def allocate(self, shape, dtype):
        driver.current()
        return np.asarray(driver.PinnedMemory(shape, dtype))

    def free_held(self):
        pass

"""The emulated CUDA driver, compiled where it is not yet, and its memory."""
import ctypes
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(tempfile.gettempdir(), f"caffe2-cuda-emulation-{os.getuid()}")


def _build():
    sources = [HERE / "driver.cpp", HERE / "shim.h"]
    key = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:32]
    path = CACHE / f"driver-{key}.so"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=CACHE)
        os.close(handle)
        subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", str(sources[0]), "-o",
                        temporary, "-ldl"], check=True)
        os.replace(temporary, path)
    return str(path)


LIBRARY = _build()
DRIVER = ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
_p, _n = ctypes.c_void_p, ctypes.c_size_t
for _name, _result, _arguments in (
    ("emu_stream_new", _p, []), ("emu_stream_wait", None, [_p]), ("emu_stream_done", ctypes.c_int, [_p]),
    ("emu_event_wait", None, [_p]), ("emu_event_done", ctypes.c_int, [_p]), ("emu_wait_all", None, []),
    ("emu_syncs", ctypes.c_long, []), ("emu_launches", ctypes.c_long, []), ("emu_live", ctypes.c_long, []),
    ("emu_push_copy", None, [_p, _p, _p, _n]), ("emu_new", _p, [_n]), ("emu_delete", None, [_p, _n]),
    ("emu_intact", ctypes.c_int, [_p, _n]), ("emu_push_call", None, [_p, _p, ctypes.c_long]),
    ("cuStreamWaitEvent", ctypes.c_int, [_p, _p, ctypes.c_uint]), ("cuEventRecord", ctypes.c_int, [_p, _p]),
    ("cuEventDestroy_v2", ctypes.c_int, [_p]),
):
    getattr(DRIVER, _name).restype = _result
    getattr(DRIVER, _name).argtypes = _arguments


class _Memory:
    total = 256 << 20

    def __init__(self):
        self.blocks = {}            # address -> size
        self.alive = []             # host memory that copies under way read
        self.graveyard = []         # page-locked memory given back: it stays mapped

    def check(self, address):
        assert DRIVER.emu_intact(address, self.blocks[address]), "a kernel wrote outside a tensor"

    def check_all(self):
        """Nothing wrote outside its memory, and all threads of a block came to each barrier."""
        DRIVER.emu_wait_all()
        for address in self.blocks:
            self.check(address)
        assert not DRIVER.emu_diverged(), "threads of a block met different barriers"
        self.alive.clear()
        self.graveyard.clear()


MEMORY = _Memory()
_calls = {}


@ctypes.CFUNCTYPE(None, ctypes.c_long)
def _call(number):
    _calls.pop(number)()


def push_call(stream, function):
    """Have a Python function run on a stream: what the stand-ins of libraries compute."""
    number = max(_calls, default=0) + 1
    _calls[number] = function
    DRIVER.emu_push_call(stream, ctypes.cast(_call, ctypes.c_void_p), number)

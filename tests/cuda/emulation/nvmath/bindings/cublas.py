"""nvmath.bindings.cublas: products by numpy, on the emulated streams."""
import ctypes
import itertools

import numpy as np
from cuda_emulation import push_call

_streams = {}
_numbers = itertools.count(1)
_TYPES = {0: np.float32, 2: np.float16}


def create():
    handle = next(_numbers)
    _streams[handle] = None
    return handle


def set_stream(handle, stream):
    _streams[handle] = stream


def get_version(handle):
    return 130000


def matrices(address, dtype, rows, columns, ld, stride, batch):
    """Matrices stored by columns."""
    assert ld >= max(rows, 1)
    item = np.dtype(_TYPES[dtype]).itemsize
    size = ((batch - 1) * stride + (columns - 1) * ld + rows) * item if rows and columns else 0
    memory = np.frombuffer((ctypes.c_char * size).from_address(address), _TYPES[dtype]) if size else np.empty(
        0, _TYPES[dtype])
    return np.lib.stride_tricks.as_strided(
        memory, (batch, rows, columns), (stride * item, item, ld * item))


def gemm_strided_batched_ex(handle, transa, transb, m, n, k, alpha, a, atype, lda, stride_a, b, btype, ldb, stride_b,
                            beta, c, ctype, ldc, stride_c, batch_count, compute_type, algo):
    assert _streams[handle] and compute_type in (68, 77) and algo == -1
    alpha, beta = (ctypes.c_float.from_address(v).value for v in (alpha, beta))

    def run():
        left = matrices(a, atype, *((k, m) if transa else (m, k)), lda, stride_a, batch_count)
        right = matrices(b, btype, *((n, k) if transb else (k, n)), ldb, stride_b, batch_count)
        result = matrices(c, ctype, m, n, ldc, stride_c, batch_count)
        left, right = (v.swapaxes(1, 2) if t else v for v, t in ((left, transa), (right, transb)))
        product = alpha * (left.astype(np.float32) @ right.astype(np.float32))
        result[...] = product if beta == 0 else product + beta * result
    push_call(_streams[handle], run)

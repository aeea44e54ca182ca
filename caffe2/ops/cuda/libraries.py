"""NVIDIA's libraries, through bindings that take addresses and streams: cuBLAS for products, cuDNN for convolutions."""
import importlib

import numpy as np

from caffe2.ops.cuda.pointwise import FLOAT, FLOAT16

# cudaDataType_t and cublasComputeType_t
_TYPES = {FLOAT: 0, FLOAT16: 2}
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32 = 68, 77
_DEFAULT_ALGORITHM = -1
_scalars = {v: np.array(v, np.float32) for v in (0.0, 1.0)}


def load(module, package):
    """Import a binding.

    Raises
    ------
    RuntimeError
        If it is not installed, or does not find the library that it binds.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as e:
        raise RuntimeError(f"{package} cannot be loaded ({e}): pip install 'caffe2[cuda]'") from e


def cublas():
    return load("nvmath.bindings.cublas", "nvmath-python, for cuBLAS,")


def cudnn():
    return load("cudnn", "nvidia-cudnn-frontend, for cuDNN,")


def cudnn_version():
    """Version of cuDNN, 0 where it is not installed."""
    try:
        return cudnn().backend_version()
    except RuntimeError:
        return 0


def _blas_handle(stream):
    binding = cublas()
    with stream.device:
        handle = binding.create()
        binding.set_stream(handle, stream.handle)
    return handle


def _dnn_handle(stream):
    binding = cudnn()
    with stream.device:
        handle = binding.create_handle()
        binding.set_stream(handle=handle, stream=stream.handle)
    return handle


def dnn_handle(stream):
    """The stream's cuDNN handle."""
    return stream.library("cudnn", _dnn_handle)


def allows_tensor_cores(op):
    """Whether the user allows float32 to be rounded to TF32: engine TENSORCORE, or argument math_mode."""
    return op.definition.engine == "TENSORCORE" or op.args.int("math_mode", 0) == 1


def gemm(op, trans_a, trans_b, m, n, k, a, lda, b, ldb, c, ldc=None, *, beta=0.0, batch=1, stride_a=0, stride_b=0,
         stride_c=0, dtype=FLOAT):
    """C = op(A) op(B) + beta C, of matrices by rows: op(A) is (m, k), op(B) (k, n).

    a, b and c are addresses. With `batch`, of matrices that lie the strides apart. Sums are float32, also of halves.
    """
    if not (m and n and batch):
        return
    compute = _COMPUTE_32F_FAST_TF32 if dtype == FLOAT and allows_tensor_cores(op) else _COMPUTE_32F
    dtype = _TYPES[dtype]
    binding, device = cublas(), op.device
    # cuBLAS stores by columns: it computes the transposed product of the transposed factors
    arguments = (int(trans_b), int(trans_a), n, m, k, _scalars[1.0].ctypes.data, b, dtype, ldb, stride_b, a, dtype, lda,
                 stride_a, _scalars[beta].ctypes.data, c, dtype, ldc or n, stride_c, batch, compute, _DEFAULT_ALGORITHM)

    def run():
        binding.gemm_strided_batched_ex(device.current_stream().library("cublas", _blas_handle), *arguments)

    op.call(run)

"""Sums, products and transposition."""
from typing import Any


def transpose(model: Any, blob_in: Any, blob_out: Any, use_cudnn: bool = False, **kwargs) -> Any:
    """Permute the axes of a tensor."""
    if use_cudnn:
        kwargs["engine"] = "CUDNN"
    return model.net.Transpose(blob_in, blob_out, **kwargs)


def sum(model: Any, blob_in: Any, blob_out: Any, **kwargs) -> Any:
    """Add tensors element by element."""
    return model.net.Sum(blob_in, blob_out, **kwargs)


def reduce_sum(model: Any, blob_in: Any, blob_out: Any, **kwargs) -> Any:
    """Sum over axes."""
    return model.net.ReduceSum(blob_in, blob_out, **kwargs)


def sub(model: Any, blob_in: Any, blob_out: Any, **kwargs) -> Any:
    """Subtract the second tensor from the first."""
    return model.net.Sub(blob_in, blob_out, **kwargs)


def mat_mul(model: Any, blob_in: Any, blob_out: Any, **kwargs) -> Any:
    """Multiply two matrices."""
    return model.net.MatMul(blob_in, blob_out, **kwargs)


def arg_min(model: Any, blob_in: Any, blob_out: Any, **kwargs) -> Any:
    """Find the index of the smallest value along an axis."""
    return model.net.ArgMin(blob_in, blob_out, **kwargs)


def batch_mat_mul(
        model: Any, blob_in: Any, blob_out: Any, enable_tensor_core: bool = False,
        **kwargs) -> Any:
    """Multiply the matrices of two batches."""
    if enable_tensor_core:
        kwargs["engine"] = "TENSORCORE"
    return model.net.BatchMatMul(blob_in, blob_out, **kwargs)


def sparse_lengths_sum_4bit_rowwise_sparse(
        model: Any, blob_in: Any, blob_out: Any, **kwargs) -> Any:
    """Sum rows of a pruned 4-bit table, segment by segment."""
    return model.net.SparseLengthsSum4BitRowwiseSparse(blob_in, blob_out, **kwargs)

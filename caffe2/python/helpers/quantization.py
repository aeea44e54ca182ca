"""Quantized tensors."""
from typing import Any


def fused_8bit_rowwise_quantized_to_float(model: Any, blob_in: Any, blob_out: Any) -> Any:
    """Restore the floats of rows stored in 8 bits with their scale and bias."""
    return model.net.Fused8BitRowwiseQuantizedToFloat(blob_in, blob_out)

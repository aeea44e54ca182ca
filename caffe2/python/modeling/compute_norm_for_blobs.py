"""Norms of blobs."""
from collections.abc import Iterable

from caffe2.python import core
from caffe2.python.modeling.net_modifier import BlobModifier, to_float


class ComputeNormForBlobs(BlobModifier):
    """Computes the sum of the absolute values (p=1) or of the squares (p=2) of each blob.

    Parameters
    ----------
    blobs : iterable of blob names
    logging_frequency : int
        Runs between two prints, none if it is below 1.
    p : 1 or 2
    compute_averaged_norm : bool
        Whether the sum is divided by the number of elements.
    row_index : int, optional
        The row to which the norm is restricted.
    """

    def __init__(
            self, blobs: Iterable, logging_frequency: int, p: int = 2,
            compute_averaged_norm: bool = False, row_index: int | None = None):
        if row_index is not None and row_index < 0:
            raise ValueError(f"{row_index} is not a valid row index, it should be >= 0")
        row = "" if row_index is None else f"_row_{row_index}"
        averaged = "_averaged" if compute_averaged_norm else ""
        super().__init__(blobs, logging_frequency, f"{row}{averaged}_l{p}_norm")
        self._p = p
        self._compute_averaged_norm = compute_averaged_norm
        self.row_index = row_index

    def compute(self, net: core.Net, blob: core.BlobReference) -> core.BlobReference:
        """Add cast and norm, through which no gradient flows."""
        row = self.row_index
        name = net.NextScopedBlob(prefix=blob + self._field_name_suffix)
        if row is not None:
            blob = net.Slice(
                [blob], net.NextScopedBlob(prefix=blob + f"_row_{row}"),
                starts=[row, 0], ends=[row + 1, -1])
        norm = net.LpNorm(
            to_float(net, blob), name, p=self._p, average=self._compute_averaged_norm)
        net.StopGradient(norm, net.NextScopedBlob(prefix=name + "_stop_gradient"))
        return norm

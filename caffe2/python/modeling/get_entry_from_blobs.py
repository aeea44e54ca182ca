"""Single values of blobs."""
from collections.abc import Iterable

from caffe2.python import core
from caffe2.python.modeling.net_modifier import BlobModifier


class GetEntryFromBlobs(BlobModifier):
    """Copies one entry, or one row, out of each two-dimensional blob.

    Parameters
    ----------
    blobs : iterable of blob names
    logging_frequency : int
        Runs between two prints, none if it is below 1.
    i1, i2 : int
        Row and column; column -1 stands for the whole row.
    """

    def __init__(self, blobs: Iterable, logging_frequency: int, i1: int = 0, i2: int = 0):
        if i1 < 0 or i2 < -1:
            raise ValueError(f"index [{i1}, {i2}] is out of range")
        super().__init__(blobs, logging_frequency, f"_{i1}_{'all' if i2 == -1 else i2}")
        self._i1 = i1
        self._i2 = i2

    def compute(self, net: core.Net, blob: core.BlobReference) -> core.BlobReference:
        """Add the slices."""
        i1, i2 = self._i1, self._i2
        name = net.NextScopedBlob(prefix=blob + self._field_name_suffix)
        row = net.Slice([blob], starts=[i1, 0], ends=[i1 + 1, -1])
        if i2 == -1:
            return net.Copy([row], [name])
        return net.Slice([row], name, starts=[0, i2], ends=[-1, i2 + 1])

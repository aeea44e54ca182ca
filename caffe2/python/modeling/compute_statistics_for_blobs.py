"""Summaries of blobs."""
from collections.abc import Iterable

import numpy as np

from caffe2.python import core
from caffe2.python.modeling.net_modifier import BlobModifier, to_float


class ComputeStatisticsForBlobs(BlobModifier):
    """Computes minimum, maximum, mean and standard deviation of each blob.

    Parameters
    ----------
    blobs : iterable of blob names
    logging_frequency : int
        Runs between two prints, none if it is below 1.
    """

    result_type = (np.float32, (4,))

    def __init__(self, blobs: Iterable, logging_frequency: int):
        super().__init__(blobs, logging_frequency, "_summary")

    def compute(self, net: core.Net, blob: core.BlobReference) -> core.BlobReference:
        """Add cast and summary."""
        return net.Summarize(
            to_float(net, blob), net.NextScopedBlob(prefix=blob + self._field_name_suffix),
            to_file=0)

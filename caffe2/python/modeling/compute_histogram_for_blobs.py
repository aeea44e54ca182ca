"""Histograms of blobs."""
from collections.abc import Iterable

import numpy as np

from caffe2.python import core
from caffe2.python.modeling.net_modifier import BlobModifier, to_float


class ComputeHistogramForBlobs(BlobModifier):
    """Computes the share of the values of each blob that falls into each of some buckets.

    Parameters
    ----------
    blobs : iterable of blob names
    logging_frequency : int
        Runs between two prints, none if it is below 1.
    num_buckets : int
        Number of buckets from `lower_bound` to `upper_bound`; two more hold what is outside.
    lower_bound, upper_bound : float
    accumulate : bool
        Whether all runs are counted, or the last one only.
    """

    def __init__(
            self, blobs: Iterable, logging_frequency: int, num_buckets: int = 30,
            lower_bound: float = 0.0, upper_bound: float = 1.0, accumulate: bool = False):
        super().__init__(
            blobs, logging_frequency,
            "_acc_normalized_hist" if accumulate else "_curr_normalized_hist")
        self._accumulate = accumulate
        self._num_buckets = int(num_buckets)
        assert self._num_buckets > 0, (
            f"num_buckets need to be greater than 0, got {num_buckets}")
        self._lower_bound = float(lower_bound)
        self._upper_bound = float(upper_bound)
        self.result_type = (np.float32, (self._num_buckets + 2,))

    def compute(self, net: core.Net, blob: core.BlobReference) -> core.BlobReference:
        """Add cast, histogram and normalization."""
        current, accumulated = net.AccumulateHistogram(
            [to_float(net, blob)],
            [net.NextScopedBlob(prefix=blob + "_curr_hist"),
             net.NextScopedBlob(prefix=blob + "_acc_hist")],
            num_buckets=self._num_buckets, lower_bound=self._lower_bound,
            upper_bound=self._upper_bound)
        histogram = net.Cast(
            accumulated if self._accumulate else current,
            net.NextScopedBlob(prefix=blob + "_cast_hist"), to=core.DataType.FLOAT)
        return net.NormalizeL1(
            histogram, net.NextScopedBlob(prefix=blob + self._field_name_suffix))

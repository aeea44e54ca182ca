"""Operators added to a finished net."""
import abc
from collections.abc import Iterable
from typing import Any

import numpy as np

from caffe2.proto import caffe2_pb2
from caffe2.python import core


class NetModifier(abc.ABC):
    """Adds operators to a net: ``modifier(net)``."""

    @abc.abstractmethod
    def modify_net(
            self, net: core.Net, init_net: core.Net | None = None,
            grad_map: dict | None = None, blob_to_device: dict | None = None) -> None:
        """Add the operators.

        Parameters
        ----------
        net, init_net : Net
        grad_map : dict of blob to gradient, optional
        blob_to_device : dict of blob to DeviceOption, optional
        modify_output_record : bool, optional
            Whether new blobs become fields of the net's output record.
        """

    def __call__(
            self, net: core.Net, init_net: core.Net | None = None,
            grad_map: dict | None = None, blob_to_device: dict | None = None,
            modify_output_record: bool = False) -> None:
        options = {"modify_output_record": True} if modify_output_record else {}
        self.modify_net(
            net, init_net=init_net, grad_map=grad_map, blob_to_device=blob_to_device,
            **options)


class BlobModifier(NetModifier):
    """Computes something of each of some blobs, prints it now and then, and records it.

    Parameters
    ----------
    blobs : iterable of blob names
    logging_frequency : int
        Runs between two prints, none if it is below 1.
    suffix : str
        Ends the names of the results and of their fields in the output record.
    """

    result_type: Any = (np.float32, (1,))

    def __init__(self, blobs: Iterable, logging_frequency: int, suffix: str):
        self._blobs = blobs
        self._logging_frequency = logging_frequency
        self._field_name_suffix = suffix

    @abc.abstractmethod
    def compute(self, net: core.Net, blob: core.BlobReference) -> core.BlobReference:
        """Add the operators for one blob and return the result."""

    def modify_net(
            self, net: core.Net, init_net: core.Net | None = None,
            grad_map: dict | None = None, blob_to_device: dict | None = None,
            modify_output_record: bool = False) -> None:
        """Add the operators for all blobs."""
        for name in self._blobs:
            blob = core.BlobReference(name)
            if not net.BlobIsDefined(blob):
                raise Exception(f"blob {blob} is not defined in net {net.Name()}")
            device = (blob_to_device or {}).get(blob, core.DeviceOption(caffe2_pb2.CPU))
            with core.DeviceScope(device):
                result = self.compute(net, blob)
                if self._logging_frequency >= 1:
                    net.Print(result, [], every_n=self._logging_frequency)
            if modify_output_record:
                self._record(net, str(blob) + self._field_name_suffix, result)

    def _record(self, net: core.Net, field: str, result: core.BlobReference) -> None:
        from caffe2.python import schema
        scalar = schema.Scalar(self.result_type, result)
        if net.output_record() is None:
            net.set_output_record(schema.Struct((field, scalar)))
        else:
            net.AppendOutputRecordField(field, scalar)

    def field_name_suffix(self) -> str:
        """Return what is added to a blob's name for its result."""
        return self._field_name_suffix


def to_float(net: core.Net, blob: core.BlobReference) -> core.BlobReference:
    """Cast a blob to float32."""
    return net.Cast(
        blob, net.NextScopedBlob(prefix=blob + "_float"), to=core.DataType.FLOAT)

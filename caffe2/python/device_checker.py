"""Checks that operators and nets give the same values on several devices."""
from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from caffe2.proto import caffe2_pb2
from caffe2.python import workspace

_WORKSPACE = "_device_check_"


class DeviceChecker:
    """Compares devices, by copying everything back and forth: for tests, not for speed.

    Parameters
    ----------
    threshold
        Absolute and relative difference that passes.
    device_options
        The devices; the first is the one the others are held against.
    """

    def __init__(self, threshold: float, device_options: Sequence[caffe2_pb2.DeviceOption]):
        self._threshold = threshold
        self._device_options = device_options

    def CheckSimple(self, op: caffe2_pb2.OperatorDef, inputs: Sequence[np.ndarray],
                    outputs_to_check: Sequence[int],
                    input_device_options: Mapping[str, caffe2_pb2.DeviceOption] | None = None
                    ) -> bool:
        """Run an operator on each device and compare its outputs.

        Parameters
        ----------
        inputs
            Values of the operator's inputs.
        outputs_to_check
            Positions of the outputs to compare.
        input_device_options
            Devices of inputs, by name, that do not go where the operator runs.

        Returns
        -------
        bool
            Whether all devices agree; differences are printed.
        """
        op = copy.deepcopy(op)
        own = input_device_options or {}
        names = [op.output[i] for i in outputs_to_check]

        def run(device):
            for name, value in zip(op.input, inputs):
                workspace.FeedBlob(name, np.array(value), own.get(name, device))
            op.device_option.CopyFrom(device)
            workspace.RunOperatorOnce(op)

        return self._check(run, names)

    def CheckNet(self, net: caffe2_pb2.NetDef, inputs: Mapping[str, np.ndarray] | None = None,
                 blobs_to_check: Sequence[str] | None = None,
                 ignore: Collection[str] | None = None) -> bool:
        """Run a net on each device and compare what it computes.

        Parameters
        ----------
        inputs
            Values of the net's inputs, by name.
        blobs_to_check
            Blobs to compare; None: every output of every operator.
        ignore
            Blobs not to compare.

        Returns
        -------
        bool
            Whether all devices agree; differences are printed.
        """
        if blobs_to_check is None:
            blobs_to_check = [name for op in net.op for name in op.output]
        names = [name for name in blobs_to_check if name not in (ignore or ())]

        def run(device):
            for name, value in (inputs or {}).items():
                workspace.FeedBlob(name, value, device)
            for op in net.op:
                op.device_option.CopyFrom(device)
            workspace.RunNetOnce(net)

        return self._check(run, names)

    def _check(self, run: Callable, names: Sequence[str]) -> bool:
        before = workspace.CurrentWorkspace()
        workspace.SwitchWorkspace(_WORKSPACE, True)
        results = []
        try:
            for device in self._device_options:
                run(device)
                results.append([workspace.FetchBlob(name) for name in names])
                workspace.ResetWorkspace()
        finally:
            workspace.ResetWorkspace()
            workspace.SwitchWorkspace(before)
        success = True
        for i, values in enumerate(results[1:], 1):
            for name, x, y in zip(names, values, results[0]):
                if not np.allclose(x, y, atol=self._threshold, rtol=self._threshold):
                    print(f"device {i} differs from device 0 in {name}, by up to "
                          f"{np.max(np.abs(x - y))}:\n{x.ravel()}\n{y.ravel()}")
                    success = False
        return success

"""Checks gradient operators against finite differences."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace


def getGradientForOp(op: caffe2_pb2.OperatorDef) -> tuple[list, list]:
    """The gradient operators of an operator, and the gradients of its inputs.

    The gradient of an output x is called x_grad.
    """
    return core.GradientRegistry.GetGradientForOp(op, [name + "_grad" for name in op.output])


def _dense_gradient(grad, like):
    """The value of a gradient; rows of a slice are added up into the shape of the blob `like`."""
    if not isinstance(grad, core.GradientSlice):
        return workspace.FetchBlob(grad)
    indices = workspace.FetchBlob(grad.indices)
    values = workspace.FetchBlob(grad.values)
    dense = np.zeros_like(workspace.FetchBlob(like), dtype=values.dtype)
    np.add.at(dense, indices, values.reshape(indices.shape + dense.shape[1:]))
    return dense


def _get_grad(net, outputs, outputs_with_grad, input_values, inputs_with_grads):
    grad_net = net.Clone(net.Name() + "_copy")
    grad_map = grad_net.AddGradientOperators(outputs_with_grad)
    for name, value in (input_values or {}).items():
        workspace.FeedBlob(name, value)
    for name in inputs_with_grads:
        if name not in grad_map:
            raise ValueError(f"{name} has no gradient to check")
        if not workspace.HasBlob(str(name)):
            raise ValueError(f"{name} has no value to check the gradient at")
    workspace.RunNetOnce(grad_net)
    results = [(name, workspace.FetchBlob(name)) for name in outputs]
    grads = {name: _dense_gradient(grad_map[name], name) for name in inputs_with_grads}
    return results, grads, grad_net


def _assert_close(value1, value2, threshold, err_msg=""):
    np.testing.assert_allclose(
        value1, value2, atol=threshold, rtol=threshold, err_msg=err_msg)
    delta = np.abs(value1 - value2).ravel()
    return np.mean(delta), np.max(delta, initial=0.0)


class NetGradientChecker:
    """Checks the gradients of whole nets."""

    @staticmethod
    def CompareNets(nets: Sequence[core.Net], outputs: Sequence[Sequence],
                    outputs_with_grad_ids: Sequence[int], inputs_with_grads: Sequence,
                    input_values: Mapping | None = None, threshold: float = 0.0000001,
                    print_net_images: bool = False) -> None:
        """Assert that nets which should compute the same do so, gradients included.

        Parameters
        ----------
        outputs
            For each net the blobs to compare.
        outputs_with_grad_ids
            Positions in these lists of the blobs to take gradients of.
        inputs_with_grads
            Blobs whose gradients are compared.
        input_values
            Values of input blobs, by name.
        threshold
            Absolute and relative difference that passes.
        print_net_images
            Whether each net is drawn into a PNG file, before and after its gradients are added.
        """
        results = [
            _get_grad(net, names, [names[i] for i in outputs_with_grad_ids], input_values,
                      inputs_with_grads)
            for net, names in zip(nets, outputs)
        ]
        if print_net_images:
            from caffe2.python import net_drawer

            for i, (net, (_, _, grad_net)) in enumerate(zip(nets, results)):
                for prefix, drawn in (("forward_", net), ("", grad_net)):
                    with open(f"caffe2_net_{prefix}{i}{drawn.Name()}.png", "wb") as f:
                        f.write(net_drawer.GetPydotGraph(drawn).create_png())

        (first_values, first_grads, _), *others = results
        for values, grads, _ in others:
            assert len(values) == len(first_values)
            for i, ((blob1, value1), (blob2, value2)) in enumerate(zip(first_values, values)):
                _assert_close(value1, value2, threshold,
                              f"forward results of output {i} differ: {blob1} and {blob2}")
            assert grads.keys() == first_grads.keys()
            for blob, grad in grads.items():
                _assert_close(first_grads[blob], grad, threshold,
                              f"gradients of input {blob} differ")

    @staticmethod
    def Check(net: core.Net, outputs_with_grad: Sequence, input_values: Mapping,
              input_to_check: str, step_size: float = 0.0001, threshold: float = 0.05,
              print_net: bool = True) -> tuple[float, float]:
        """Assert that a net's gradient agrees with central differences of the sum of its outputs.

        Parameters
        ----------
        outputs_with_grad
            Blobs whose sum is the loss.
        input_values
            Values of input blobs, by name.
        input_to_check
            The input that the gradient is taken by.
        print_net
            Whether a failure shows the net.

        Returns
        -------
        (float, float)
            Mean and greatest absolute difference.
        """
        _, grads, full_net = _get_grad(
            net, [], outputs_with_grad, input_values, [input_to_check])
        start = np.asarray(input_values[input_to_check])

        def loss(position, delta):
            value = start.copy()
            value.flat[position] += delta
            workspace.FeedBlob(input_to_check, value)
            workspace.RunNetOnce(full_net)
            return sum(np.sum(workspace.FetchBlob(o), dtype=np.float64)
                       for o in outputs_with_grad)

        estimate = np.zeros_like(start)
        for i in range(start.size):
            estimate.flat[i] = (loss(i, step_size) - loss(i, -step_size)) / step_size / 2
        err_msg = f"gradient of net {net.Name()} by {input_to_check}"
        if print_net:
            err_msg += f": {net.Proto()}"
        return _assert_close(grads[input_to_check], estimate, threshold, err_msg)


class GradientChecker:
    """Checks the gradient of single operators, by feeding and fetching a lot: for tests.

    Parameters
    ----------
    stepsize
        Step of the finite differences.
    threshold
        Absolute and relative difference that passes.
    device_option
        Where the operators run.
    workspace_name
        Workspace that the check runs in; it is emptied afterwards.
    input_device_options
        Devices of inputs, by name, that do not go where the operator runs.
    """

    def __init__(self, stepsize: float, threshold: float,
                 device_option: caffe2_pb2.DeviceOption | None = None,
                 workspace_name: str = "gradient_check",
                 input_device_options: Mapping[str, caffe2_pb2.DeviceOption] | None = None):
        self._stepsize = stepsize
        self._threshold = threshold
        self._device_option = device_option or caffe2_pb2.DeviceOption()
        self._workspace_name = workspace_name
        self._input_device_options = input_device_options or {}

    def GetLossAndGrad(self, op: caffe2_pb2.OperatorDef, grad_ops: Sequence,
                       inputs: Sequence[np.ndarray], input_names: Sequence[str],
                       input_to_check: int, grad_name: core.BlobReference | core.GradientSlice,
                       outputs_with_grads: Sequence[int]) -> tuple[float, np.ndarray]:
        """Run an operator and its gradient under the loss sum(output ** 2) / 2.

        Returns
        -------
        (float, array)
            The loss and the gradient named, dense.
        """
        for name, value in zip(input_names, inputs):
            workspace.FeedBlob(
                name, value, self._input_device_options.get(name, self._device_option))
        workspace.RunOperatorOnce(op)
        loss = 0.0
        for i in outputs_with_grads:
            value = workspace.FetchBlob(op.output[i])
            loss += np.sum(np.square(value, dtype=np.float64))
            workspace.FeedBlob(op.output[i] + "_grad", value, self._device_option)
        workspace.RunOperatorsOnce(grad_ops)
        return loss / 2, _dense_gradient(grad_name, input_names[input_to_check])

    def CheckSimple(self, op: caffe2_pb2.OperatorDef, inputs: Sequence[np.ndarray],
                    input_to_check: int, outputs_with_grads: Sequence[int],
                    grad_ops: Sequence | None = None,
                    input_device_options: Mapping[str, caffe2_pb2.DeviceOption] | None = None,
                    ensure_outputs_are_inferred: bool = False
                    ) -> tuple[bool, np.ndarray, np.ndarray]:
        """Compare an operator's gradient with central differences of sum(output ** 2) / 2.

        Parameters
        ----------
        inputs
            Values of the operator's inputs.
        input_to_check
            Position of the input that the gradient is taken by.
        outputs_with_grads
            Positions of the outputs that are part of the loss.
        grad_ops
            Gradient operators; None: those of the registry.
        input_device_options
            As in the constructor, for this call.
        ensure_outputs_are_inferred
            Also raise if the shape of an output, of the operator or of its gradient operators,
            is not inferred, or not as it turns out.

        Returns
        -------
        (bool, array, array)
            Whether they agree, the gradient, and its estimate; differences are printed.
        """
        op.device_option.CopyFrom(self._device_option)
        registered_ops, input_grads = getGradientForOp(op)
        if grad_ops is None:
            grad_ops = registered_ops
        grad_name = input_grads[input_to_check]
        if grad_name is None:
            raise ValueError(f"{op.type} has no gradient by input {input_to_check}")
        inputs = [np.array(x) for x in inputs]
        checked = inputs[input_to_check]

        outer_devices = self._input_device_options
        if input_device_options is not None:
            self._input_device_options = input_device_options
        outer = workspace.CurrentWorkspace()
        if outer != self._workspace_name:
            workspace.SwitchWorkspace(self._workspace_name, True)

        def run():
            return self.GetLossAndGrad(op, grad_ops, inputs, op.input, input_to_check, grad_name,
                                       outputs_with_grads)

        def loss_at(position, value):
            before = checked.flat[position]
            checked.flat[position] = value
            loss, _ = run()
            checked.flat[position] = before
            return loss

        try:
            _, grad = run()
            if grad.shape != checked.shape:
                raise RuntimeError(f"the gradient of {op.type} by {op.input[input_to_check]} has "
                                   f"shape {grad.shape}, its input {checked.shape}")
            if ensure_outputs_are_inferred:
                _check_inference(op, grad_ops)
            estimate = np.zeros_like(checked)
            for i in range(checked.size):
                x = checked.flat[i]
                estimate.flat[i] = (
                    loss_at(i, x + self._stepsize) - loss_at(i, x - self._stepsize)
                ) / self._stepsize / 2
        finally:
            self._input_device_options = outer_devices
            if outer != self._workspace_name:
                workspace.ResetWorkspace()
                workspace.SwitchWorkspace(outer)

        wrong = np.flatnonzero(
            ~np.isclose(grad, estimate, atol=self._threshold, rtol=self._threshold))
        if wrong.size:
            print(f"{op.type} by {op.input[input_to_check]}: [index, gradient, estimate]")
            print(np.vstack([wrong, grad.flat[wrong], estimate.flat[wrong]]).T)
        return wrong.size == 0, grad, estimate


def _check_inference(op, grad_ops):
    """Raise if outputs that the workspace holds were not inferred from the inputs it holds."""
    for one in [op, *grad_ops]:
        net = caffe2_pb2.NetDef(op=[one])
        shapes, _ = workspace.InferShapesAndTypes(
            [net], nets_proto=True,
            blob_dimensions={n: list(workspace.FetchBlob(n).shape) for n in one.input})
        for name in one.output:
            actual = workspace.FetchBlob(name)
            if not isinstance(actual, np.ndarray):
                continue
            if name not in shapes:
                raise RuntimeError(f"{one.type} infers no shape for its output {name}")
            if list(actual.shape) != list(shapes[name]):
                raise RuntimeError(f"{one.type} infers shape {shapes[name]} for its output {name}, "
                                   f"which has {list(actual.shape)}")

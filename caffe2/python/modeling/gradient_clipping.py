"""Bounds on gradients."""
from collections.abc import Iterable

from caffe2.proto import caffe2_pb2
from caffe2.python import core
from caffe2.python.modeling.net_modifier import NetModifier
from caffe2.python.optimizer import get_param_device


class GradientClipping(NetModifier):
    """Clips dense gradients in place; sparse ones stay as they are.

    Parameters
    ----------
    grad_clip_method : "by_norm" or "by_value"
    clip_norm_type : "l2_norm" or "l1_norm"
    clip_threshold : float
        Largest norm of a gradient.
    use_parameter_norm : bool
        Whether the threshold is multiplied by the norm of the parameter.
    compute_norm_ratio : bool
        Whether the ratio of both norms is computed too, with `use_parameter_norm`.
    clip_max, clip_min : float
        Bounds of the values, for "by_value".
    blobs_to_include, blobs_to_exclude : iterable of blob names, optional
        Parameters whose gradients are clipped (all by default) and are not.
    """

    L1_NORM = "l1_norm"
    L2_NORM = "l2_norm"

    BY_NORM = "by_norm"
    BY_VALUE = "by_value"

    GRAD_CLIP_METHODS = [BY_NORM, BY_VALUE]
    CLIP_GRADIENT_NORM_TYPES = [L2_NORM, L1_NORM]

    def __init__(
            self, grad_clip_method: str, clip_norm_type: str = "l2_norm",
            clip_threshold: float = 0.1, use_parameter_norm: bool = False,
            compute_norm_ratio: bool = False, clip_max: float = 1, clip_min: float = -1,
            blobs_to_include: Iterable | None = None, blobs_to_exclude: Iterable | None = None):
        assert grad_clip_method in self.GRAD_CLIP_METHODS, (
            f"This method of clipping, {grad_clip_method}, has not been implemented.")
        assert clip_norm_type in self.CLIP_GRADIENT_NORM_TYPES, (
            f"This norm for clipping, {clip_norm_type}, has not been implemented.")
        self.grad_clip_method = grad_clip_method
        self.clip_norm_type = clip_norm_type
        self.clip_threshold = float(clip_threshold)
        self.use_parameter_norm = use_parameter_norm
        self.compute_norm_ratio = compute_norm_ratio
        self.clip_max = float(clip_max)
        self.clip_min = float(clip_min)
        self.blobs_to_include = blobs_to_include
        self.blobs_to_exclude = blobs_to_exclude

    def _chosen(self, net: core.Net, grad_map: dict) -> dict:
        chosen = {str(param): grad for param, grad in grad_map.items()}
        if self.blobs_to_include is not None:
            chosen = {str(b): chosen[self._defined(net, b)] for b in self.blobs_to_include}
        for blob in self.blobs_to_exclude or ():
            chosen.pop(self._defined(net, blob), None)
        return chosen

    @staticmethod
    def _defined(net: core.Net, blob: object) -> str:
        if not net.BlobIsDefined(core.BlobReference(str(blob))):
            raise Exception(f"param {blob} is not defined in net {net.Name()}")
        return str(blob)

    def modify_net(
            self, net: core.Net, init_net: core.Net | None = None,
            grad_map: dict | None = None, blob_to_device: dict | None = None,
            modify_output_record: bool = False) -> None:
        """Add the clipping operators for the gradients in `grad_map`."""
        assert grad_map is not None
        for param, grad in self._chosen(net, grad_map).items():
            if isinstance(grad, core.GradientSlice):
                continue
            device = get_param_device(
                param, grad, param_to_device=blob_to_device,
                default_device=core.DeviceOption(caffe2_pb2.CPU))
            with core.DeviceScope(device):
                if self.grad_clip_method == self.BY_NORM:
                    self._clip_by_norm(net, param, grad)
                else:
                    net.Clip([grad], [grad], max=self.clip_max, min=self.clip_min)

    def _norm(self, net: core.Net, blob: object) -> core.BlobReference:
        p = 2 if self.clip_norm_type == self.L2_NORM else 1
        norm = net.LpNorm([blob], net.NextScopedBlob(prefix=f"{blob}_l{p}_norm"), p=p)
        return net.Pow([norm], exponent=0.5) if p == 2 else norm

    def _clip_by_norm(self, net: core.Net, param: str, grad: core.BlobReference) -> None:
        inputs = [grad, self._norm(net, grad)]
        if self.use_parameter_norm:
            inputs.append(self._norm(net, param))
            if self.compute_norm_ratio:
                net.Div(inputs[1:], [net.NextScopedBlob(prefix=f"{param}_norm_ratio")])
        net.ClipTensorByScaling(inputs, [grad], threshold=self.clip_threshold)

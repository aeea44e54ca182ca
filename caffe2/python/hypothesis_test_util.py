"""Property-based tests of operators with hypothesis.

`HypothesisTestCase` has assertions that hold an operator against a reference written in numpy
(`assertReferenceChecks`), its gradient against finite differences (`assertGradientChecks`) and one
device against another (`assertDeviceChecks`). The functions are strategies: arrays of all shapes,
with segments, lengths or indices that fit. `gcs` and its likes give a test its devices:

    @given(X=hu.tensor(), **hu.gcs)
    def test_relu(self, X, gc, dc):
        op = core.CreateOperator("Relu", ["X"], ["Y"])
        self.assertDeviceChecks(dc, op, [X], [0])
        self.assertReferenceChecks(gc, op, [X], lambda X: [np.maximum(X, 0)])

The profile "dev" (10 examples), or that in CAFFE2_HYPOTHESIS_PROFILE ("sandcastle", "debug"),
becomes the current one on import.
"""

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np

from caffe2.proto import caffe2_pb2
from caffe2.python import core, device_checker, gradient_checker, test_util, workspace

Strategy = st.SearchStrategy
DeviceOptions = Mapping[str, caffe2_pb2.DeviceOption]


def is_sandcastle() -> bool:
    """Whether the environment names a continuous build that wants the same examples each time."""
    return os.getenv("SANDCASTLE") == "1" or os.getenv("TW_JOB_USER") == "sandcastle"


def is_travis() -> bool:
    """Whether the environment is that of Travis."""
    return "TRAVIS" in os.environ


def settings(*args: Any, **kwargs: Any) -> Callable:
    """`hypothesis.settings`, without what it no longer knows."""
    for name in ("min_satisfying_examples", "timeout"):
        kwargs.pop(name, None)
    return hypothesis.settings(*args, **kwargs)


_profile = functools.partial(
    hypothesis.settings,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.register_profile("sandcastle", _profile(derandomize=True, max_examples=100))
hypothesis.settings.register_profile("dev", _profile(max_examples=10))
hypothesis.settings.register_profile("debug", _profile(max_examples=1000))
hypothesis.settings.load_profile(
    "sandcastle" if is_sandcastle() else os.getenv("CAFFE2_HYPOTHESIS_PROFILE", "dev")
)


# ---------------------------------------------------------------- strategies


def to_float32(x: float) -> float:
    """The nearest number that float32 has."""
    return float(np.float32(x))


def floats(min_value: float, max_value: float, **kwargs: Any) -> Strategy:
    """Floats that float32 has, within bounds that need not be."""
    low, high = np.float32(min_value), np.float32(max_value)
    if float(low) < min_value:
        low = np.nextafter(low, np.float32(np.inf))
    if float(high) > max_value:
        high = np.nextafter(high, np.float32(-np.inf))
    return st.floats(float(low), float(high), width=32, **kwargs)


def dims(min_value: int = 1, max_value: int = 5) -> Strategy:
    """Sizes of a dimension."""
    return st.integers(min_value=min_value, max_value=max_value)


def elements_of_type(
    dtype: type = np.float32, filter_: Callable[[Any], bool] | None = None
) -> Strategy:
    """Elements: floats in [-1, 1], integers from 0 on, booleans."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        elements = st.floats(-1.0, 1.0, width=dtype.itemsize * 8)
    elif dtype in (np.int32, np.int64):
        elements = st.integers(0, np.iinfo(dtype).max)
    elif dtype == np.bool_:
        elements = st.booleans()
    else:
        raise ValueError(f"Give elements for arrays of {dtype}")
    return elements if filter_ is None else elements.filter(filter_)


def _to_dtype(value, dtype):
    with np.errstate(all="ignore"):
        return np.asarray(value).astype(dtype)[()]


def arrays(
    dims: Sequence[int] | int, dtype: type = np.float32, elements: Strategy | None = None
) -> Strategy:
    """Arrays of one shape. Elements need not be exact in `dtype`."""
    if elements is None:
        elements = elements_of_type(dtype)
    elif np.dtype(dtype).kind in "fiub":
        elements = elements.map(functools.partial(_to_dtype, dtype=dtype))
    return hypothesis.extra.numpy.arrays(dtype, dims, elements=elements)


def _shapes(min_dim, max_dim, **kwargs):
    return st.lists(dims(**kwargs), min_size=min_dim, max_size=max_dim)


def tensor(
    min_dim: int = 1,
    max_dim: int = 4,
    dtype: type = np.float32,
    elements: Strategy | None = None,
    **kwargs: int,
) -> Strategy:
    """Arrays of `min_dim` to `max_dim` dimensions; `kwargs` go to `dims`."""
    return _shapes(min_dim, max_dim, **kwargs).flatmap(
        lambda shape: arrays(shape, dtype, elements)
    )


def tensor1d(
    min_len: int = 1,
    max_len: int = 64,
    dtype: type = np.float32,
    elements: Strategy | None = None,
) -> Strategy:
    """Vectors."""
    return tensor(1, 1, dtype, elements, min_value=min_len, max_value=max_len)


def tensors(
    n: int,
    min_dim: int = 1,
    max_dim: int = 4,
    dtype: type = np.float32,
    elements: Strategy | None = None,
    **kwargs: int,
) -> Strategy:
    """Lists of `n` arrays of the same shape."""
    return _shapes(min_dim, max_dim, **kwargs).flatmap(
        lambda shape: st.lists(arrays(shape, dtype, elements), min_size=n, max_size=n)
    )


def tensors1d(
    n: int,
    min_len: int = 1,
    max_len: int = 64,
    dtype: type = np.float32,
    elements: Strategy | None = None,
) -> Strategy:
    """Lists of `n` vectors of the same length."""
    return tensors(n, 1, 1, dtype, elements, min_value=min_len, max_value=max_len)


def segment_ids(size: int, is_sorted: bool) -> Strategy:
    """For each of `size` rows the segment it belongs to; sorted ones begin at 0 without gaps."""
    if size == 0:
        return st.just(np.empty(0, np.int32))
    if is_sorted:
        return arrays([size], np.int32, st.booleans()).map(
            lambda starts: np.cumsum(starts, dtype=np.int32) - starts[0]
        )
    return arrays([size], np.int32, st.integers(0, 2 * size))


def lengths(
    size: int, min_segments: int | None = None, max_segments: int | None = None, **kwargs: Any
) -> Strategy:
    """Lengths of consecutive segments that cover `size` rows; segments may be empty."""
    low = 0 if min_segments is None else min_segments
    high = size if max_segments is None else max_segments
    assert 0 <= low <= high
    if size == 0 and high == 0:
        return st.just(np.empty(0, np.int32))
    assert high > 0, "size is not 0, need at least one segment"
    return (
        st.integers(max(low - 1, 0), high - 1)
        .flatmap(lambda borders: arrays(borders, np.int32, st.integers(0, size)))
        .map(lambda borders: np.diff([0, *sorted(borders), size]).astype(np.int32))
    )


def _shapes_perhaps_empty(min_dim, max_dim, allow_empty, **kwargs):
    empty = st.booleans() if allow_empty else st.just(False)
    return st.tuples(empty, _shapes(min_dim, max_dim, **kwargs))


def segmented_tensor(
    min_dim: int = 1,
    max_dim: int = 4,
    dtype: type = np.float32,
    is_sorted: bool = True,
    elements: Strategy | None = None,
    segment_generator: Callable[..., Strategy] = segment_ids,
    allow_empty: bool = False,
    **kwargs: int,
) -> Strategy:
    """Pairs of an array and the segments of its rows."""

    def build(empty_and_shape):
        empty, shape = empty_and_shape
        shape = [0, *shape] if empty else shape
        return st.tuples(
            arrays(shape, dtype, elements), segment_generator(shape[0], is_sorted=is_sorted)
        )

    return _shapes_perhaps_empty(min_dim, max_dim, allow_empty, **kwargs).flatmap(build)


def lengths_tensor(
    min_segments: int | None = None, max_segments: int | None = None, *args: Any, **kwargs: Any
) -> Strategy:
    """Pairs of an array and the lengths of its segments."""
    generator = functools.partial(lengths, min_segments=min_segments, max_segments=max_segments)
    return segmented_tensor(*args, segment_generator=generator, **kwargs)


def sparse_segmented_tensor(
    min_dim: int = 1,
    max_dim: int = 4,
    dtype: type = np.float32,
    is_sorted: bool = True,
    elements: Strategy | None = None,
    allow_empty: bool = False,
    segment_generator: Callable[..., Strategy] = segment_ids,
    itype: type = np.int64,
    **kwargs: int,
) -> Strategy:
    """Triples of an array, indices into its rows, and the segments of the indices."""

    def build(shape_and_count):
        shape, count = shape_and_count
        return st.tuples(
            arrays(shape, dtype, elements),
            arrays([count], itype, st.integers(0, shape[0] - 1)),
            segment_generator(count, is_sorted=is_sorted),
        )

    return (
        _shapes_perhaps_empty(min_dim, max_dim, allow_empty, **kwargs)
        .flatmap(
            lambda pair: st.tuples(
                st.just(pair[1]), st.just(0) if pair[0] else st.integers(1, pair[1][0])
            )
        )
        .flatmap(build)
    )


def sparse_lengths_tensor(**kwargs: Any) -> Strategy:
    """Triples of an array, indices into its rows, and the lengths of their segments."""
    return sparse_segmented_tensor(segment_generator=lengths, **kwargs)


# ---------------------------------------------------------------- devices

cpu_do = caffe2_pb2.DeviceOption()
cuda_do = caffe2_pb2.DeviceOption(device_type=caffe2_pb2.CUDA)
hip_do = caffe2_pb2.DeviceOption(device_type=caffe2_pb2.HIP)
gpu_do = caffe2_pb2.DeviceOption(device_type=workspace.GpuDeviceType)

_gpus = [gpu_do] if workspace.has_gpu_support else []
device_options = [cpu_do, *_gpus]
expanded_device_options = [
    cpu_do,
    *(
        caffe2_pb2.DeviceOption(device_type=workspace.GpuDeviceType, device_id=i)
        for i in range(workspace.NumGpuDevices())
    ),
]


def device_checker_device_options() -> Strategy:
    """All devices, to be compared."""
    return st.just(device_options)


def gradient_checker_device_option() -> Strategy:
    """One of the devices."""
    return st.sampled_from(device_options)


def _gcs(devices):
    # Without one of the devices there is nothing to run.
    return {"gc": st.sampled_from(devices) if devices else st.nothing(), "dc": st.just(devices)}


gcs = {"gc": gradient_checker_device_option(), "dc": device_checker_device_options()}
gcs_cpu_only = _gcs([cpu_do])
gcs_gpu_only = _gcs([gpu_do])
gcs_cuda_only = _gcs([cuda_do])
gcs_no_hip = _gcs([cpu_do, *(d for d in _gpus if d != hip_do)])


@contextlib.contextmanager
def temp_workspace(name: str | bytes = "temp_ws") -> Iterator[None]:
    """Work in another workspace inside the block; it is emptied at the end."""
    old_name = workspace.CurrentWorkspace()
    workspace.SwitchWorkspace(name, True)
    try:
        yield
    finally:
        workspace.ResetWorkspace()
        workspace.SwitchWorkspace(old_name)


def _on_device(op, device_option):
    op = copy.deepcopy(op)
    op.device_option.CopyFrom(device_option)
    return op


def _feed(op, inputs, device_option, input_device_options):
    """Feed the inputs of an operator, each to its device."""
    devices = input_device_options or {}
    for name, value in zip(op.input, inputs):
        workspace.FeedBlob(name, value, device_option=devices.get(name, device_option))


def runOpBenchmark(
    device_option: caffe2_pb2.DeviceOption,
    op: caffe2_pb2.OperatorDef,
    inputs: Sequence[np.ndarray],
    input_device_options: DeviceOptions | None = None,
    iterations: int = 10,
) -> list[float]:
    """Milliseconds that an operator takes, as `workspace.BenchmarkNet` returns them."""
    op = _on_device(op, device_option)
    net = caffe2_pb2.NetDef(name=op.name or "test", op=[op])
    with temp_workspace():
        _feed(op, inputs, device_option, input_device_options)
        workspace.CreateNet(net)
        return workspace.BenchmarkNet(net.name, 1, iterations, True)


def runOpOnInput(
    device_option: caffe2_pb2.DeviceOption,
    op: caffe2_pb2.OperatorDef,
    inputs: Sequence[np.ndarray],
    input_device_options: DeviceOptions | None = None,
) -> list:
    """Outputs of an operator."""
    op = _on_device(op, device_option)
    with temp_workspace():
        _require_inputs(op, inputs)
        _feed(op, inputs, device_option, input_device_options)
        workspace.RunOperatorOnce(op)
        return [workspace.FetchBlob(name) for name in op.output]


def _require_inputs(op, inputs):
    if len(op.input) > len(inputs):
        raise ValueError(f"must supply an input for each input on the op: {op.input} vs {inputs}")


_DATA_TYPES = {
    np.dtype(np.float64): caffe2_pb2.TensorProto.DOUBLE,
    np.dtype(np.float32): caffe2_pb2.TensorProto.FLOAT,
    np.dtype(np.float16): caffe2_pb2.TensorProto.FLOAT16,
    np.dtype(np.int32): caffe2_pb2.TensorProto.INT32,
    np.dtype(np.int64): caffe2_pb2.TensorProto.INT64,
    np.dtype(np.uint8): caffe2_pb2.TensorProto.UINT8,
    np.dtype(np.bool_): caffe2_pb2.TensorProto.BOOL,
}


class HypothesisTestCase(test_util.TestCase):
    """Assertions about operators."""

    def assertDeviceChecks(
        self,
        device_options: Sequence[caffe2_pb2.DeviceOption],
        op: caffe2_pb2.OperatorDef,
        inputs: Sequence[np.ndarray],
        outputs_to_check: Sequence[int],
        input_device_options: DeviceOptions | None = None,
        threshold: float = 0.01,
    ) -> None:
        """Assert that an operator gives the same on each device; see `DeviceChecker`."""
        checker = device_checker.DeviceChecker(threshold, device_options=device_options)
        self.assertTrue(checker.CheckSimple(op, inputs, outputs_to_check, input_device_options))

    def assertGradientChecks(
        self,
        device_option: caffe2_pb2.DeviceOption,
        op: caffe2_pb2.OperatorDef,
        inputs: Sequence[np.ndarray],
        outputs_to_check: int,
        outputs_with_grads: Sequence[int],
        grad_ops: Sequence[caffe2_pb2.OperatorDef] | None = None,
        threshold: float = 0.005,
        stepsize: float = 0.05,
        input_device_options: DeviceOptions | None = None,
        ensure_outputs_are_inferred: bool = False,
    ) -> None:
        """Assert that a gradient agrees with finite differences; see `GradientChecker`.

        `outputs_to_check` is, in spite of its name, the index of the input to derive by.
        """
        checker = gradient_checker.GradientChecker(
            stepsize=stepsize,
            threshold=threshold,
            device_option=device_option,
            workspace_name=str(device_option),
            input_device_options=input_device_options,
        )
        result, grad, estimate = checker.CheckSimple(
            op,
            inputs,
            outputs_to_check,
            outputs_with_grads,
            grad_ops=grad_ops,
            input_device_options=input_device_options,
            ensure_outputs_are_inferred=ensure_outputs_are_inferred,
        )
        self.assertEqual(grad.shape, estimate.shape)
        self.assertTrue(result, f"Gradient check failed for input {op.input[outputs_to_check]}")

    def _assertGradReferenceChecks(
        self, op, inputs, ref_outputs, output_to_grad, grad_reference, threshold=1e-4
    ):
        grad_name = output_to_grad + "_grad"
        grad_ops, grad_map = core.GradientRegistry.GetBackwardPass(
            [op], {output_to_grad: grad_name}
        )
        # As the gradient of the output we take its value.
        output = workspace.FetchBlob(output_to_grad)
        references = grad_reference(output, ref_outputs, inputs)
        workspace.FeedBlob(grad_name, output)
        workspace.RunOperatorsOnce(grad_ops)

        self.assertEqual(len(references), len(inputs))
        for name, ref in zip(op.input, references):
            grad = grad_map.get(name)
            if grad is None:
                self.assertIsNone(ref)
                continue
            if isinstance(grad, core.GradientSlice):
                ref, ref_indices = ref
                np.testing.assert_allclose(
                    workspace.FetchBlob(grad.indices), ref_indices, atol=1e-4, rtol=1e-4
                )
                grad = grad.values
            np.testing.assert_allclose(
                workspace.FetchBlob(grad),
                ref,
                atol=threshold,
                rtol=threshold,
                err_msg=f"Gradient {grad} (x) is not matching the reference (y)",
            )

    def _assertInferTensorChecks(self, name, shapes, types, output, ensure_output_is_inferred):
        self.assertTrue(
            not ensure_output_is_inferred or name in shapes, f"Shape for {name} was not inferred"
        )
        if name not in shapes or not isinstance(output, np.ndarray):
            return
        # -1 stands for a size that depends on values.
        shape = [d if d >= 0 else n for d, n in zip(shapes[name], output.shape)]
        self.assertEqual(len(shapes[name]), output.ndim, f"Inferred shape of {name}")
        self.assertEqual(tuple(shape), output.shape, f"Inferred shape of {name}")
        if output.dtype in _DATA_TYPES:
            self.assertEqual(types[name], _DATA_TYPES[output.dtype], f"Inferred type of {name}")

    def assertReferenceChecks(
        self,
        device_option: caffe2_pb2.DeviceOption,
        op: caffe2_pb2.OperatorDef,
        inputs: Sequence[np.ndarray],
        reference: Callable[..., Sequence[np.ndarray]],
        input_device_options: DeviceOptions | None = None,
        threshold: float = 1e-4,
        output_to_grad: str | None = None,
        grad_reference: Callable[..., Sequence] | None = None,
        atol: float | None = None,
        outputs_to_check: Sequence[int] | None = None,
        ensure_outputs_are_inferred: bool = False,
    ) -> list:
        """Assert that an operator agrees with a function of its inputs.

        Parameters
        ----------
        device_option : DeviceOption
            Where to run.
        op : OperatorDef
            The operator.
        inputs : sequence of arrays
            Its inputs.
        reference : callable
            `reference(*inputs)` returns a list or tuple of outputs.
        input_device_options : dict, optional
            Devices of inputs, by name, that are elsewhere.
        threshold, atol : float
            Relative and absolute tolerance; without `atol` both are `threshold`.
        output_to_grad : str, optional
            The output to derive, with `grad_reference`.
        grad_reference : callable, optional
            `grad_reference(gradient, outputs, inputs)` returns for each input its gradient, None,
            or for a sparse one (values, indices).
        outputs_to_check : sequence of int, optional
            Indices of the outputs that `reference` returns; without it, all.
        ensure_outputs_are_inferred : bool
            Require that the schema infers the shapes. What it does infer must be right anyway.

        Returns
        -------
        list
            The outputs.
        """
        op = _on_device(op, device_option)
        with temp_workspace():
            _require_inputs(op, inputs)
            _feed(op, inputs, device_option, input_device_options)
            net = core.Net("opnet")
            net.Proto().op.append(op)
            shapes, types = workspace.InferShapesAndTypes([net])
            workspace.RunNetOnce(net)
            references = reference(*inputs)
            if not isinstance(references, (list, tuple)):
                raise RuntimeError(
                    "You are providing a wrong reference implementation. A proper one should "
                    "return a tuple/list of numpy arrays."
                )
            if not outputs_to_check:
                self.assertEqual(len(references), len(op.output))
                outputs_to_check = range(len(op.output))
            outputs = []
            for i, ref in zip(outputs_to_check, references):
                name = op.output[i]
                output = workspace.FetchBlob(name)
                if output.dtype.kind in "SO":
                    np.testing.assert_array_equal(output, ref)
                else:
                    np.testing.assert_allclose(
                        output,
                        ref,
                        atol=threshold if atol is None else atol,
                        rtol=threshold,
                        err_msg=f"Output {name} is not matching the reference",
                    )
                self._assertInferTensorChecks(
                    name, shapes, types, output, ensure_outputs_are_inferred
                )
                outputs.append(output)
            if grad_reference is not None:
                assert output_to_grad is not None, "grad_reference needs output_to_grad"
                with core.DeviceScope(device_option):
                    self._assertGradReferenceChecks(
                        op, inputs, references, output_to_grad, grad_reference, threshold
                    )
            return outputs

    def assertValidationChecks(
        self,
        device_option: caffe2_pb2.DeviceOption,
        op: caffe2_pb2.OperatorDef,
        inputs: Sequence[np.ndarray],
        validator: Callable[..., Any],
        input_device_options: DeviceOptions | None = None,
        as_kwargs: bool = True,
        init_net: core.Net | None = None,
    ) -> None:
        """Run an operator and hand its blobs to a function that asserts something about them.

        It is called with all blobs by name, or, if not `as_kwargs`, with the lists `inputs` and
        `outputs`.
        """
        names = [*op.input, *op.output]
        assert not as_kwargs or len(set(names)) == len(names), (
            "in-place ops are not supported in as_kwargs mode"
        )
        op = _on_device(op, device_option)
        with temp_workspace():
            _feed(op, inputs, device_option, input_device_options)
            if init_net:
                workspace.RunNetOnce(init_net)
            workspace.RunOperatorOnce(op)
            outputs = [workspace.FetchBlob(name) for name in op.output]
            if as_kwargs:
                validator(**dict(zip(names, [*inputs, *outputs])))
            else:
                validator(inputs=inputs, outputs=outputs)

    def assertRunOpRaises(
        self,
        device_option: caffe2_pb2.DeviceOption,
        op: caffe2_pb2.OperatorDef,
        inputs: Sequence[np.ndarray],
        input_device_options: DeviceOptions | None = None,
        exception: type | tuple[type, ...] = (Exception,),
        regexp: str | None = None,
    ) -> None:
        """Assert that an operator raises, with a message that matches `regexp` if given."""
        op = _on_device(op, device_option)
        with temp_workspace():
            _feed(op, inputs, device_option, input_device_options)
            with self.assertRaisesRegex(exception, regexp or ""):
                workspace.RunOperatorOnce(op)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe2.proto import caffe2_pb2
from caffe2.python import core, test_util, workspace
from caffe2.python import hypothesis_test_util as hu

few = settings(max_examples=50, deadline=None)


@pytest.fixture(autouse=True)
def empty_workspace():
    workspace.ResetWorkspace()
    yield
    workspace.ResetWorkspace()


def case():
    return hu.HypothesisTestCase()


def relu():
    return core.CreateOperator("Relu", ["X"], ["Y"])


def relu_reference(x):
    return [np.maximum(x, 0)]


# ---------------------------------------------------------------- strategies


@few
@given(hu.tensor(min_dim=2, max_dim=3, max_value=4))
def test_tensor(x):
    assert x.dtype == np.float32 and 2 <= x.ndim <= 3 and all(1 <= n <= 4 for n in x.shape)
    assert np.all(np.abs(x) <= 1)


@few
@given(hu.tensors(n=3, dtype=np.int64), hu.tensors1d(2, max_len=5))
def test_tensors(many, vectors):
    assert len(many) == 3 and len({x.shape for x in many}) == 1
    assert len(vectors) == 2 and all(v.ndim == 1 and v.size <= 5 for v in vectors)


@few
@given(hu.arrays([3], elements=st.floats(0, 0.1)))
def test_elements_are_rounded_to_the_type(x):
    assert x.dtype == np.float32 and np.all(x <= np.float32(0.1))


@few
@given(hu.floats(0.1, 0.3))
def test_floats_stay_within_their_bounds(x):
    assert 0.1 <= x <= 0.3 and hu.to_float32(x) == x


@few
@given(hu.segmented_tensor(allow_empty=True))
def test_sorted_segments(pair):
    x, segments = pair
    assert len(segments) == len(x)
    if len(segments):
        assert segments[0] == 0 and set(np.diff(segments)) <= {0, 1}


@few
@given(hu.lengths_tensor(min_segments=2, max_segments=4, min_value=2))
def test_lengths(pair):
    x, lengths = pair
    assert lengths.dtype == np.int32 and np.all(lengths >= 0)
    assert lengths.sum() == len(x) and 2 <= len(lengths) <= 4


@few
@given(hu.sparse_segmented_tensor(allow_empty=True), hu.sparse_lengths_tensor())
def test_sparse(triple, with_lengths):
    x, indices, segments = triple
    assert len(indices) == len(segments) and np.all((indices >= 0) & (indices < len(x)))
    _, indices, lengths = with_lengths
    assert indices.dtype == np.int64 and lengths.sum() == len(indices)


def test_no_elements_for_other_types():
    with pytest.raises(ValueError, match="Give elements"):
        hu.elements_of_type(np.complex64)


def test_settings_ignore_what_hypothesis_forgot():
    assert hu.settings(min_satisfying_examples=1, timeout=3, max_examples=7).max_examples == 7


# ---------------------------------------------------------------- assertions


def test_reference_checks():
    x = np.float32([[-1, 2], [3, -4]])
    (y,) = case().assertReferenceChecks(
        hu.cpu_do,
        relu(),
        [x],
        relu_reference,
        output_to_grad="Y",
        grad_reference=lambda g, outputs, inputs: [g * (inputs[0] > 0)],
        ensure_outputs_are_inferred=True,
    )
    np.testing.assert_array_equal(y, [[0, 2], [3, 0]])
    assert workspace.Blobs() == []


@pytest.mark.parametrize(
    "reference, error",
    [
        (lambda x: [x + 1], AssertionError),
        (lambda x: [x, x], AssertionError),
        (lambda x: x, RuntimeError),
    ],
)
def test_wrong_references(reference, error):
    before = workspace.CurrentWorkspace()
    with pytest.raises(error):
        case().assertReferenceChecks(hu.cpu_do, relu(), [np.float32([1, 2])], reference)
    assert workspace.CurrentWorkspace() == before


def test_wrong_gradient_reference():
    with pytest.raises(AssertionError, match="Gradient X_grad"):
        case().assertReferenceChecks(
            hu.cpu_do, relu(), [np.float32([1, 2])], relu_reference,
            output_to_grad="Y", grad_reference=lambda g, outputs, inputs: [g + 1],
        )  # fmt: skip


def test_missing_inputs():
    op = core.CreateOperator("FC", ["X", "W", "b"], ["Y"])
    with pytest.raises(ValueError, match="supply an input"):
        case().assertReferenceChecks(hu.cpu_do, op, [np.ones((1, 1), np.float32)], relu_reference)


def test_gradient_checks():
    x = np.float32([-1, 0.5, 2])
    case().assertGradientChecks(hu.cpu_do, relu(), [x], 0, [0])
    wrong = core.CreateOperator("Relu", ["Y_grad"], ["X_grad"])
    with pytest.raises(AssertionError, match="Gradient check failed for input X"):
        case().assertGradientChecks(hu.cpu_do, relu(), [-x], 0, [0], grad_ops=[wrong], stepsize=1)


def test_device_checks():
    case().assertDeviceChecks([hu.cpu_do, hu.cpu_do], relu(), [np.float32([-1, 1])], [0])


def test_validation_checks():
    seen = {}
    case().assertValidationChecks(
        hu.cpu_do, relu(), [np.float32([-1, 1])], lambda X, Y: seen.update(X=X, Y=Y)
    )
    np.testing.assert_array_equal(seen["Y"], [0, 1])
    in_place = core.CreateOperator("Relu", ["X"], ["X"])
    with pytest.raises(AssertionError, match="in-place"):
        case().assertValidationChecks(hu.cpu_do, in_place, [np.float32([1])], print)
    case().assertValidationChecks(
        hu.cpu_do, in_place, [np.float32([-1])],
        lambda inputs, outputs: seen.update(outputs=outputs), as_kwargs=False,
    )  # fmt: skip
    np.testing.assert_array_equal(seen["outputs"][0], [0])


def test_run_op_raises():
    op = core.CreateOperator("FC", ["X", "W", "b"], ["Y"])
    inputs = [np.ones((2, 3), np.float32), np.ones((4, 5), np.float32), np.ones(4, np.float32)]
    case().assertRunOpRaises(hu.cpu_do, op, inputs, exception=RuntimeError, regexp="FC")
    with pytest.raises(AssertionError, match="not raised"):
        case().assertRunOpRaises(hu.cpu_do, relu(), [np.float32([1])])


def test_running_and_timing_an_operator():
    (y,) = hu.runOpOnInput(hu.cpu_do, relu(), [np.float32([-1, 1])])
    np.testing.assert_array_equal(y, [0, 1])
    times = hu.runOpBenchmark(hu.cpu_do, relu(), [np.float32([-1, 1])], iterations=2)
    assert len(times) == 2 and min(times) >= 0


def test_devices():
    assert hu.device_options[0] == hu.cpu_do == caffe2_pb2.DeviceOption()
    assert len(hu.expanded_device_options) == 1 + workspace.NumGpuDevices()


# ---------------------------------------------------------------- test_util


def test_random_values():
    assert test_util.rand_array(2, 3).shape == (2, 3)
    assert test_util.rand_array().shape == () and test_util.rand_array().dtype == np.float32
    test_util.randBlobsFloat32(["a", "b"], 2, offset=5.0)
    for name in "ab":
        value = workspace.FetchBlob(name)
        assert value.dtype == np.float32 and value.shape == (2,) and np.all(value >= 5)


def test_small_helpers():
    net = core.Net("net")
    net.Relu("x", "y")
    assert test_util.numOps(net) == 1
    assert test_util.str_compare(b"a", "a") and not test_util.str_compare("a", b"b")


def test_test_case_begins_with_an_empty_workspace():
    class Case(test_util.TestCase):
        def runTest(self):
            self.blobs = workspace.Blobs()
            workspace.FeedBlob("inside", np.float32([1]))

    workspace.FeedBlob("before", np.float32([1]))
    test = Case()
    Case.setUpClass()
    assert test.run().wasSuccessful()
    assert test.blobs == [] and workspace.Blobs() == []

"""Helper functions that add layers to a model."""
import inspect

import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import brew, core, model_helper, scope, workspace
from caffe2.python.helpers import arg_scope as arg_scopes


@pytest.fixture
def model():
    return model_helper.ModelHelper(name="test")


@pytest.fixture
def registered():
    """Take helpers away again that a test registers."""
    names = set(brew._registry)
    yield
    for name in set(brew._registry) - names:
        del brew._registry[name]
        delattr(brew, name)


@pytest.fixture
def any_operator(monkeypatch):
    """For tests of nets that are made but not run."""
    monkeypatch.setattr(core, "IsOperator", lambda _: True)


def run(model, *blobs, **inputs):
    """Feed, run and fetch."""
    for name, value in inputs.items():
        workspace.FeedBlob(name, np.asarray(value))
    workspace.RunNetOnce(model.param_init_net)
    workspace.RunNetOnce(model.net)
    return [workspace.FetchBlob(b) for b in blobs]


def ops(net):
    return [(op.type, list(op.input), list(op.output)) for op in net.Proto().op]


def args(op):
    return {a.name: a.i or a.f or a.s or list(a.ints) for a in op.arg}


X = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)


# ---------------------------------------------------------------- scopes

def test_registry(model, registered):
    def double(model, x, factor=2):
        """Multiply."""
        return factor * x

    brew.Register(double)
    assert brew.has_helper(double) and brew.has_helper("double")
    assert brew.double(model, 3) == 6
    assert brew.double.__doc__ == "Multiply."
    assert list(inspect.signature(brew.double).parameters) == ["model", "x", "factor"]
    with brew.arg_scope(double, factor=3):
        assert brew.double(model, 3) == 9
    with pytest.raises(AttributeError, match="already exists"):
        brew.Register(double)
    assert not brew.has_helper("triple")
    with pytest.raises(AttributeError, match="triple not registered"):
        brew.triple(model)


def test_the_original_helpers_are_there():
    for name in """accuracy add_weight_decay arg_min arg_scope average_pool batch_mat_mul concat
            cond conv conv_nd conv_transpose db_input depth_concat dropout elementwise_linear fc
            fc_decomp fc_prune fc_sparse fused_8bit_rowwise_quantized_to_float group_conv
            group_conv_deprecated image_input instance_norm iter layer_norm loop lrn mat_mul
            max_pool max_pool_with_index moments_with_running_stats packed_fc prelu reduce_sum
            relu softmax sparse_lengths_sum_4bit_rowwise_sparse spatial_bn spatial_gn sub sum
            tanh transpose video_input""".split():
        assert brew.has_helper(name) and callable(getattr(brew, name))


def test_model_comes_first(model):
    with pytest.raises(RuntimeError, match="should be model"):
        brew.relu("x", "y")
    assert brew.relu(model=model, blob_in="x", blob_out="y") == "y"


def test_arguments_come_from_call_then_scope_then_model():
    model = model_helper.ModelHelper(name="m", arg_scope={"order": "NHWC"})

    def order():
        brew.max_pool(model, "x", "y", kernel=2, **given)
        return args(model.net.Proto().op[-1])["order"]

    given = {}
    assert order() == b"NHWC"
    with brew.arg_scope([brew.max_pool, brew.conv], order="NCHW"):
        assert order() == b"NCHW"
        with brew.arg_scope(brew.max_pool, order="NHWC", stride=2):
            assert order() == b"NHWC"
        given = {"order": "NHWC"}
        assert order() == b"NHWC"
    assert arg_scopes.get_current_scope() == {}


def test_arg_scope_ends_with_an_exception():
    with pytest.raises(ValueError), brew.arg_scope(brew.conv, stride=2):
        raise ValueError
    assert arg_scopes.get_current_scope() == {}
    with pytest.raises(TypeError), brew.arg_scope(["conv"], stride=2):
        pass


# ---------------------------------------------------------------- fully connected

def test_fc(model):
    assert brew.fc(model, "x", "y", 4, 3) == "y"
    assert ops(model.net) == [("FC", ["x", "y_w", "y_b"], ["y"])]
    assert ops(model.param_init_net) == [
        ("XavierFill", [], ["y_w"]), ("ConstantFill", [], ["y_b"])]
    assert (model.weights, model.biases) == (["y_w"], ["y_b"])
    x = X[0, 0, :, :4]
    y, w, b = run(model, "y", "y_w", "y_b", x=x)
    np.testing.assert_allclose(y, x @ w.T + b, rtol=1e-5, atol=1e-6)
    assert not b.any()


def test_fc_initializers(model):
    brew.fc(model, "x", "y", 4, 3, weight_init=("ConstantFill", {"value": 2.0}),
            bias_init=("ConstantFill", {"value": 1.0}))
    y, = run(model, "y", x=np.ones((1, 4), np.float32))
    assert y.tolist() == [[9, 9, 9]]


def test_fc_frozen_bias_and_options(model):
    brew.fc(model, "x", "y", 4, 3, freeze_bias=True, enable_tensor_core=True,
            float16_compute=True)
    assert model.GetParams() == ["y_w"]
    assert model.GetComputedParams() == ["y_b"]
    op = model.net.Proto().op[0]
    assert op.engine == "TENSORCORE" and args(op)["float16_compute"] == 1


def test_fc_without_initialization():
    model = model_helper.ModelHelper(name="test", init_params=False)
    brew.fc(model, "x", "y", 4, 3)
    assert len(model.param_init_net.Proto().op) == 0
    assert model.params == ["y_w", "y_b"]


def test_fc_without_a_name(model):
    y = brew.fc(model, "x", None, 4, 3)
    assert ops(model.net)[0][2] == [str(y)]


def test_name_scope(model):
    with scope.NameScope("block"):
        y = brew.fc(model, "x", "y", 4, 3)
        z = brew.fc(model, y, "z", 3, 2)
    assert ops(model.net) == [
        ("FC", ["block/x", "block/y_w", "block/y_b"], ["block/y"]),
        ("FC", ["block/y", "block/z_w", "block/z_b"], ["block/z"])]
    assert z == "block/z"


def test_elementwise_linear(model, any_operator):
    brew.elementwise_linear(model, "x", "y", 3, bias_init=("ConstantFill", {"value": 0.5}))
    assert ops(model.net) == [("ElementwiseLinear", ["x", "y_w", "y_b"], ["y"])]
    w, b = [args(op) for op in model.param_init_net.Proto().op]
    assert (w["value"], w["shape"], b["value"]) == (1.0, [3], 0.5)


# ---------------------------------------------------------------- convolution

@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kernel, weight", [(3, (3, 3)), ([2, 3], (2, 3)), ((2, 3), (2, 3))])
def test_conv(model, order, kernel, weight):
    brew.conv(model, "x", "y", 3, 4, kernel, order=order)
    x = X if order == "NCHW" else X.transpose(0, 2, 3, 1)
    y, w, b = run(model, "y", "y_w", "y_b", x=np.ascontiguousarray(x))
    assert w.shape == ((4, 3, *weight) if order == "NCHW" else (4, *weight, 3))
    assert b.shape == (4,)
    if order == "NHWC":
        y, w = y.transpose(0, 3, 1, 2), w.transpose(0, 3, 1, 2)
    windows = np.lib.stride_tricks.sliding_window_view(X, weight, axis=(2, 3))
    np.testing.assert_allclose(y, np.einsum("nchwij,ocij->nohw", windows, w), atol=1e-5)


def test_conv_groups_and_bias(model):
    brew.group_conv(model, "x", "y", 6, 4, kernel=1, group=2, no_bias=True)
    assert ops(model.net) == [("Conv", ["x", "y_w"], ["y"])]
    assert args(model.net.Proto().op[0])["group"] == 2
    assert args(model.param_init_net.Proto().op[0])["shape"] == [4, 3, 1, 1]


def test_conv_nd(model):
    brew.conv_nd(model, "x", "y", 2, 3, [3, 2, 1])
    op = model.net.Proto().op[0]
    assert args(op)["kernels"] == [3, 2, 1]
    assert args(model.param_init_net.Proto().op[0])["shape"] == [3, 2, 3, 2, 1]
    with pytest.raises(AssertionError):
        brew.conv_nd(model, "x", "z", 2, 3, [3], order="NHWC")


def test_conv_engine(model):
    brew.conv(model, "x", "y", 3, 4, 3, use_cudnn=True, cudnn_exhaustive_search=True,
              ws_nbytes_limit=1 << 20)
    op = model.net.Proto().op[0]
    assert op.engine == "CUDNN"
    assert args(op)["exhaustive_search"] == 1 and args(op)["ws_nbytes_limit"] == 1 << 20
    brew.conv(model, "x", "z", 3, 4, 3, use_cudnn=False, engine="NNPACK")
    assert model.net.Proto().op[-1].engine == "NNPACK"
    for use_cudnn, engine in ((True, "NNPACK"), (False, "CUDNN")):
        with pytest.raises(ValueError, match="engine"):
            brew.conv(model, "x", "v", 3, 4, 3, use_cudnn=use_cudnn, engine=engine)


def test_conv_transforms_its_inputs(model):
    def transform(model, blob_out, inputs):
        inputs[0] = model.net.Relu(inputs[0], blob_out + "_in")

    brew.conv(model, "x", "y", 3, 4, 3, transform_inputs=transform)
    assert ops(model.net)[-1] == ("Conv", ["y_in", "y_w", "y_b"], ["y"])


@pytest.mark.parametrize("order, shape", [("NCHW", (3, 4, 2, 2)), ("NHWC", (3, 2, 2, 4))])
def test_conv_transpose(model, order, shape):
    brew.conv_transpose(model, "x", "y", 3, 4, kernel=2, stride=2, order=order)
    x = X if order == "NCHW" else np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    y, w = run(model, "y", "y_w", x=x)
    assert w.shape == shape
    if order == "NHWC":
        y, w = y.transpose(0, 3, 1, 2), w.transpose(0, 3, 1, 2)
    want = np.einsum("nchw,coij->nohiwj", X, w).reshape(2, 4, 12, 12)
    np.testing.assert_allclose(y, want, atol=1e-5)


def test_group_conv_deprecated(model):
    brew.group_conv_deprecated(model, "x", "y", 4, 6, kernel=3, group=2)
    x = np.random.default_rng(1).standard_normal((1, 4, 5, 5)).astype(np.float32)
    y, w0, w1 = run(model, "y", "y_gconv_0_w", "y_gconv_1_w", x=x)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    want = np.concatenate([
        np.einsum("nchwij,ocij->nohw", windows[:, :2], w0),
        np.einsum("nchwij,ocij->nohw", windows[:, 2:], w1)], axis=1)
    np.testing.assert_allclose(y, want, atol=1e-5)
    assert model.params == ["y_gconv_0_w", "y_gconv_0_b", "y_gconv_1_w", "y_gconv_1_b"]
    with pytest.raises(ValueError, match="divisible"):
        brew.group_conv_deprecated(model, "x", "z", 4, 5, kernel=3, group=2)


# ---------------------------------------------------------------- the rest

@pytest.mark.parametrize("helper, reduce", [("max_pool", np.max), ("average_pool", np.mean)])
def test_pooling(model, helper, reduce):
    getattr(brew, helper)(model, "x", "y", kernel=2, stride=2)
    y, = run(model, "y", x=X)
    want = reduce(X.reshape(2, 3, 3, 2, 3, 2), axis=(3, 5))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("helper, function", [
    ("relu", lambda x: np.maximum(x, 0)),
    ("tanh", np.tanh),
])
def test_activations(model, helper, function):
    getattr(brew, helper)(model, "x", "y")
    y, = run(model, "y", x=X)
    np.testing.assert_allclose(y, function(X), rtol=1e-5, atol=1e-6)


def test_prelu(model, any_operator):
    brew.prelu(model, "x", "y", num_channels=3)
    assert ops(model.net) == [("PRelu", ["x", "y_slope"], ["y"])]
    slope = args(model.param_init_net.Proto().op[0])
    assert (slope["value"], slope["shape"]) == (0.25, [3])


def test_quantized(model, any_operator):
    brew.fused_8bit_rowwise_quantized_to_float(model, "x", "y")
    brew.sparse_lengths_sum_4bit_rowwise_sparse(model, ["a", "b", "c", "d"], "z")
    assert ops(model.net) == [
        ("Fused8BitRowwiseQuantizedToFloat", ["x"], ["y"]),
        ("SparseLengthsSum4BitRowwiseSparse", ["a", "b", "c", "d"], ["z"])]


def test_other_fully_connected(model, any_operator):
    brew.packed_fc(model, "x", "packed", 4, 3)
    brew.fc_decomp(model, "x", "decomp", 4, 3, rank_approx=2)
    brew.fc_prune(model, "x", "prune", 4, 3, need_compress_rate=True)
    blobs = [core.BlobReference(b) for b in ("csr", "iw", "jw", "bias")]
    brew.fc_sparse(model, "x", "sparse", *blobs)
    assert ops(model.net) == [
        ("PackedFC", ["x", "packed_w", "packed_b"], ["packed"]),
        ("FC_Decomp", ["x", "decomp_u", "decomp_v", "decomp_b"], ["decomp"]),
        ("FC_Prune", ["x", "prune_w", "prune_m", "prune_b", "prune_ag_dw", "prune_mask_seq",
                      "prune_thres", "prune_lb"], ["prune", "prune_compress_rate"]),
        ("FC_Sparse", ["x", "csr", "iw", "jw", "bias"], ["sparse"]),
    ]
    shapes = {op.output[0]: args(op)["shape"] for op in model.param_init_net.Proto().op}
    assert (shapes["decomp_u"], shapes["decomp_v"]) == ([3, 2], [4, 2])
    assert (shapes["prune_m"], shapes["prune_lb"]) == ([3, 4], [1])
    assert model.params[-6:] == ["prune_w", "prune_b", "csr", "iw", "jw", "bias"]


def test_softmax(model):
    x = X[0, 0]
    named, unnamed = brew.softmax(model, "x", "y"), brew.softmax(model, "x")
    y, z = run(model, named, unnamed, x=x)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(y, z)


def test_dropout(model):
    brew.dropout(model, "x", "y", ratio=0.5, is_test=True)
    y, = run(model, "y", x=X)
    np.testing.assert_array_equal(y, X)
    with pytest.raises(AssertionError, match="is_test"):
        brew.dropout(model, "x", "y")


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_spatial_bn(model, order):
    brew.spatial_bn(model, "x", "y", 3, init_scale=2.0, init_bias=1.0, epsilon=1e-5,
                    momentum=0.75, is_test=False, order=order)
    axes = (0, 2, 3) if order == "NCHW" else (0, 1, 2)
    x = X if order == "NCHW" else np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    y, rm, riv = run(model, "y", "y_rm", "y_riv", x=x)
    mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    np.testing.assert_allclose(y, 2 * (x - mean) / np.sqrt(var + 1e-5) + 1, atol=1e-4)
    np.testing.assert_allclose(rm, 0.25 * mean.ravel(), atol=1e-5)
    assert model.params == ["y_s", "y_b"]
    assert model.GetComputedParams() == ["y_rm", "y_riv"]


def test_spatial_bn_test(model):
    brew.spatial_bn(model, "x", "y", 3, epsilon=1e-6, is_test=True)
    y, = run(model, "y", x=X)
    np.testing.assert_allclose(y, X, rtol=1e-5)


def test_other_normalizations(model, any_operator):
    brew.instance_norm(model, "x", "in", 3)
    brew.instance_norm(model, "x", "in_test", 3, is_test=True)
    brew.spatial_gn(model, "x", "gn", 4, group=2)
    brew.lrn(model, "x", "lrn", size=5)
    mean, var = brew.moments_with_running_stats(model, "x", "mo", 3)
    out, m, s = brew.layer_norm(model, "x", "ln", 6, axis=1, initial_scale=2.0)
    assert ops(model.net) == [
        ("InstanceNorm", ["x", "in_s", "in_b"], ["in", "in_sm", "in_siv"]),
        ("InstanceNorm", ["x", "in_test_s", "in_test_b"], ["in_test"]),
        ("GroupNorm", ["x", "gn_s", "gn_b"], ["gn", "gn_mean", "gn_std"]),
        ("LRN", ["x"], ["lrn", "_lrn_scale"]),
        ("Moments", ["x"], ["mo_sm", "mo_sv"]),
        ("LayerNorm", ["x"], ["ln", "ln_mean", "ln_stdev"]),
        ("Mul", ["ln", "ln_scale"], ["ln_scaled"]),
        ("Add", ["ln_scaled", "ln_bias"], ["ln_biased"]),
    ]
    assert (mean, var, out, m, s) == ("mo_sm", "mo_sv", "ln_biased", "ln_mean", "ln_stdev")
    assert model.GetComputedParams() == ["mo_rm", "mo_riv"]
    by_output = {op.output[0]: args(op) for op in model.param_init_net.Proto().op}
    assert by_output["in_s"]["value"] == 1.0 and by_output["ln_scale"]["value"] == 2.0


def test_concat(model):
    x = X[:, :2]
    brew.concat(model, ["x", "z"], "channels")
    brew.concat(model, ["x", "x"], "axis_0", axis=0, order="NCHW")
    brew.depth_concat(model, ["x", "z"], "depth")
    channels, axis_0, depth = run(model, "channels", "axis_0", "depth", x=x, z=X)
    np.testing.assert_array_equal(channels, np.concatenate([x, X], axis=1))
    np.testing.assert_array_equal(axis_0, np.concatenate([x, x], axis=0))
    np.testing.assert_array_equal(depth, channels)


def test_algebra(model):
    a, b = X[0, 0], X[0, 1]
    for helper in (brew.sum, brew.sub, brew.mat_mul, brew.batch_mat_mul):
        helper(model, ["a", "b"], helper.__name__)
    brew.transpose(model, "a", "transpose")
    brew.reduce_sum(model, "a", "reduce_sum", axes=[1], keepdims=False)
    brew.arg_min(model, "a", "arg_min", axis=1)
    got = run(model, "sum", "sub", "mat_mul", "batch_mat_mul", "transpose", "reduce_sum",
              "arg_min", a=a, b=b)
    want = a + b, a - b, a @ b, a @ b, a.T, a.sum(axis=1), a.argmin(axis=1)[:, None]
    for x, y in zip(got, want):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_accuracy_and_iter(model):
    brew.accuracy(model, ["pred", "label"], "accuracy")
    brew.accuracy(model, ["pred", "label"], "top_2", top_k=2)
    brew.iter(model, "iter")
    pred = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]], np.float32)
    accuracy, top_2, count = run(
        model, "accuracy", "top_2", "iter", pred=pred, label=np.array([1, 1, 0], np.int32))
    np.testing.assert_allclose([accuracy, top_2], [1 / 3, 2 / 3], rtol=1e-6)
    assert count.dtype == np.int64 and count.tolist() == [1]
    assert model.param_init_net.Proto().op[0].device_option.device_type == caffe2_pb2.CPU


def test_on_a_gpu_top_k_is_counted_on_the_cpu(model):
    with core.DeviceScope(core.DeviceOption(caffe2_pb2.CUDA, 0)):
        brew.accuracy(model, ["pred", "label"], "top_2", top_k=2)
        brew.lrn(model, "x", "y", use_cudnn=True, size=5)
    types = [op.type for op in model.net.Proto().op]
    assert types == ["CopyGPUToCPU", "CopyGPUToCPU", "Accuracy", "LRN"]
    assert ops(model.net)[2][1:] == (["pred_host", "label_host"], ["top_2"])
    assert model.net.Proto().op[2].device_option.device_type == caffe2_pb2.CPU
    assert ops(model.net)[3][2] == ["y"] and model.net.Proto().op[3].engine == "CUDNN"


def test_weight_decay(model):
    brew.fc(model, "x", "y", 4, 3)
    brew.fc(model, "y", "z", 3, 1)
    loss = model.net.AveragedLoss("z", "loss")
    model.AddGradientOperators([loss])
    brew.add_weight_decay(model, 0.0)
    before = len(model.net.Proto().op)
    x = X[0, 0, :, :4]
    plain = run(model, "y_w_grad", "z_w_grad", "y_b_grad", x=x)
    brew.add_weight_decay(model, 0.5)
    assert ops(model.net)[before:] == [
        ("WeightedSum", ["y_w_grad", "ONE", "y_w", "wd"], ["y_w_grad"]),
        ("WeightedSum", ["z_w_grad", "ONE", "z_w", "wd"], ["z_w_grad"])]
    assert len(plain) == 3


def test_weight_decay_is_of_the_current_scope(model):
    with scope.NameScope("a"):
        brew.fc(model, "x", "y", 4, 3)
    with scope.NameScope("b"):
        z = brew.fc(model, core.BlobReference("a/y"), "z", 3, 1)
    model.AddGradientOperators([model.net.AveragedLoss(z, "loss")])
    with scope.NameScope("a"):
        brew.add_weight_decay(model, 0.5)
    assert ops(model.net)[-1] == ("WeightedSum", ["a/y_w_grad", "a/ONE", "a/y_w", "a/wd"],
                                  ["a/y_w_grad"])


def test_db_input(model):
    brew.db_input(model, ["data", "label"], batch_size=4, db="folder", db_type="minidb")
    assert ops(model.param_init_net) == [("CreateDB", [], ["dbreader_folder"])]
    assert ops(model.net) == [("TensorProtosDBInput", ["dbreader_folder"], ["data", "label"])]
    assert args(model.net.Proto().op[0])["batch_size"] == 4

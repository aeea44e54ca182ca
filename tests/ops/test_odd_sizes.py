"""Sizes that nobody means: empty, absurd, larger than what is left. Blocked tensors give the values and the errors of
plain ones."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe2.python import core, workspace

F = np.float32
MOST = 2**31 - 1


def run(net_type, ops, feeds, outputs):
    """Outputs, or the message of the error."""
    workspace.ResetWorkspace()
    for name, value in feeds.items():
        workspace.FeedBlob(name, value)
    net = core.Net("net")
    net.Proto().op.extend(ops)
    net.Proto().type = net_type
    try:
        workspace.RunNetOnce(net)
    except RuntimeError as e:
        return str(e).partition(" (in operator")[0].partition(" (when binding")[0]
    return [workspace.FetchBlob(o) for o in outputs]


def same(got, want):
    if isinstance(want, str):
        assert got == want
        return
    assert not isinstance(got, str), got
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-4 * np.abs(w).max(initial=1))


def arguments(draw, transposed=False):
    """Windows, some of them absurd, but with few answers."""
    def some(least, most, *absurd):
        return st.one_of(st.integers(least, most), st.integers(least, most), st.sampled_from([least, *absurd]))

    args = {
        "kernel_h": draw(some(1, 4, 70)), "kernel_w": draw(some(1, 4, 70)),
        "stride_h": draw(some(1, 9, 4096, MOST)), "stride_w": draw(some(1, 9, 4096, MOST)),
        "dilation_h": draw(some(1, 3, 4096, MOST)), "dilation_w": draw(some(1, 3, 4096, MOST)),
        **{"pad_" + side: draw(some(0, 5, 40, 4096, MOST)) for side in "tlbr"},
    }
    return args


def windows_fit(size, args):
    """Whether there are not too many answers for a test."""
    n = 1
    for i, axis in enumerate("hw"):
        all = size[i] + args["pad_" + "tl"[i]] + args["pad_" + "br"[i]]
        n *= max(1, (all - args["dilation_" + axis] * (args["kernel_" + axis] - 1) - 1) // args["stride_" + axis] + 1)
    return n < 40000 or n > 2**31


@st.composite
def cases(draw):
    group = draw(st.sampled_from([1, 1, 1, 2, 16]))
    shape = (draw(st.integers(0, 2)), group * draw(st.sampled_from([0, 1, 3, 16, 17])), draw(st.integers(0, 6)),
             draw(st.integers(0, 6)))
    return group, shape, group * draw(st.sampled_from([0, 1, 16, 17])), arguments(draw)


@settings(max_examples=200)
@given(cases(), st.integers(0, 99))
def test_convolution(case, seed):
    group, shape, filters, args = case
    if not windows_fit(shape[2:], args):
        return
    rng = np.random.default_rng(seed)
    feeds = {
        "x": rng.standard_normal(shape).astype(F), "b": rng.standard_normal(filters).astype(F),
        "w": rng.standard_normal((filters, shape[1] // group, args["kernel_h"], args["kernel_w"])).astype(F),
    }
    conv = core.CreateOperator("Conv", ["x", "w", "b"], ["y"], group=group, **args)
    fused = core.CreateOperator("ConvFused", ["x", "w", "b", "y"], ["z"], group=group, relu=1, **args)
    grad = core.CreateOperator("ConvGradient", ["x", "w", "z"], ["dw", "db", "dx"], group=group, **args)
    pool = core.CreateOperator("MaxPool", ["y"], ["p"], kernel=1)
    grad_pool = core.CreateOperator("MaxPool", ["dx"], ["q"], kernel=1)
    outputs = ["y", "z", "p", "dw", "db", "dx", "q"]
    ops = [conv, fused, pool, grad, grad_pool]
    same(run("simple", ops, feeds, outputs), run("dag", ops, feeds, outputs))


@settings(max_examples=200)
@given(cases(), st.sampled_from(["MaxPool", "AveragePool", "LpPool"]), st.booleans(), st.integers(0, 99))
def test_pooling(case, op, include, seed):
    _, shape, _, args = case
    args = {name: value for name, value in args.items() if not name.startswith("dilation")}
    if not windows_fit(shape[2:], args | {"dilation_h": 1, "dilation_w": 1}):
        return
    channels = shape[1]
    rng = np.random.default_rng(seed)
    feeds = {"x": rng.standard_normal(shape).astype(F), "w": np.eye(channels, dtype=F)[:, :, None, None]}
    args["count_include_pad"] = int(include)
    ops = [core.CreateOperator("Conv", ["x", "w"], ["a"], kernel=1),
           core.CreateOperator(op, ["a"], ["y"], **args),
           core.CreateOperator("Relu", ["y"], ["z"]),
           core.CreateOperator(op + "Gradient", ["a", "y", "z"], ["dx"], **args)]
    outputs = ["a", "y", "z", "dx"]
    same(run("simple", ops, feeds, outputs), run("dag", ops, feeds, outputs))


@settings(max_examples=200)
@given(cases(), st.integers(0, 99))
def test_transposed_convolution(case, seed):
    """NCHW and NHWC, whose ways differ, and the gradients."""
    group, shape, filters, args = case
    n = 1
    for i, axis in enumerate("hw"):
        n *= max(1, (shape[2 + i] - 1) * args["stride_" + axis] + args["kernel_" + axis])
        del args["dilation_" + axis]
    if 40000 < n < 2**40:
        return
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((shape[0], filters, *shape[2:])).astype(F)
    w = rng.standard_normal((filters, shape[1] // group, args["kernel_h"], args["kernel_w"])).astype(F)
    feeds = {"x": x, "w": w, "b": rng.standard_normal(shape[1]).astype(F)}
    results = []
    for order in "NCHW", "NHWC":
        if order == "NHWC":
            feeds |= {name: np.moveaxis(feeds[name], 1, -1) for name in "xw"}
        ops = [core.CreateOperator("ConvTranspose", ["x", "w", "b"], ["y"], group=group, order=order, **args),
               core.CreateOperator("Relu", ["y"], ["dy"]),
               core.CreateOperator("ConvTransposeGradient", ["x", "w", "dy"], ["dw", "db", "dx"], group=group,
                                   order=order, **args)]
        results.append(run("simple", ops, feeds, ["y", "dw", "db", "dx"]))
    if not isinstance(results[1], str):
        results[1] = [v if v.ndim == 1 else np.moveaxis(v, -1, 1) for v in results[1]]
    same(*results)

"""NaN and infinities in filters, and in what comes back through them, appear where the definition of convolution has
them: zeros around an image are multiplied with the filters and with dY, but dX has no such zeros."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from caffe2.ops.kernels import dispatch
from caffe2.python import core, workspace
from windows import last, windows

F = np.float32


def spoil(rng, x, many):
    """Put NaN and infinities at random places."""
    for _ in range(many if x.size else 0):
        x.ravel()[rng.integers(x.size)] = rng.choice([np.nan, np.inf, -np.inf])
    return x


def same(got, want, rtol=3e-5):
    """NaN and infinities at the same places, and the rest close."""
    assert got.shape == want.shape
    for kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(kind(got), kind(want))
    finite = np.isfinite(want)
    scale = np.abs(want[finite]).max(initial=1)
    np.testing.assert_allclose(got[finite], want[finite], rtol=0, atol=rtol * scale)


def convolve(x, w, group, stride, pad, dilation):
    v = windows(x, w.shape[2:], [stride] * 2, [pad] * 4, [dilation] * 2)
    v = v.reshape(v.shape[0], group, -1, *v.shape[2:])
    with np.errstate(all="ignore"):
        y = np.einsum("ngchwrs,gmcrs->ngmhw", v, w.reshape(group, -1, *w.shape[1:]).astype(float))
    return y.reshape(y.shape[0], -1, *y.shape[3:])


def run(net_type, ops, feeds, outputs):
    workspace.ResetWorkspace()
    for name, value in feeds.items():
        workspace.FeedBlob(name, value)
    net = core.Net("net")
    net.Proto().op.extend(ops)
    net.Proto().type = net_type
    workspace.RunNetOnce(net)
    return [workspace.FetchBlob(o) for o in outputs]


SIDES = st.integers(1, 13)


@st.composite
def convolutions(draw):
    group, each, filters = draw(st.sampled_from([
        (1, 3, 20), (1, 16, 16), (1, 17, 33), (1, 32, 40), (20, 1, 1), (16, 1, 1), (2, 16, 32), (2, 3, 4), (4, 1, 2)]))
    kernel = draw(st.sampled_from([1, 2, 3, 3, 3, 5]))
    stride, dilation = draw(st.sampled_from([(1, 1), (1, 1), (1, 2), (2, 1), (3, 1), (2, 2)]))
    pad = draw(st.integers(0, kernel))
    least = max(1, dilation * (kernel - 1) + 1 - 2 * pad)
    size = draw(st.integers(least, least + 13)), draw(st.integers(least, least + 13))
    return dict(batch=draw(st.integers(1, 2)), group=group, each=each, filters=group * filters, kernel=kernel,
                stride=stride, dilation=dilation, pad=pad, size=size, many=draw(st.integers(1, 4)),
                seed=draw(st.integers(0, 999)), bias=draw(st.booleans()))


def given_by(c):
    rng = np.random.default_rng(c["seed"])
    channels = c["group"] * c["each"]
    x = rng.standard_normal((c["batch"], channels, *c["size"])).astype(F)
    w = rng.standard_normal((c["filters"], c["each"], c["kernel"], c["kernel"])).astype(F)
    b = rng.standard_normal(c["filters"]).astype(F)
    args = {name: c[name] for name in ("group", "kernel", "stride", "dilation", "pad")}
    return rng, x, w, b, args


@settings(max_examples=150)
@given(convolutions())
def test_filters(c):
    rng, x, w, b, args = given_by(c)
    spoil(rng, w, c["many"])
    want = convolve(x, w, *(c[n] for n in ("group", "stride", "pad", "dilation")))
    want += b[:, None, None] if c["bias"] else 0
    inputs = ["x", "w", "b"] if c["bias"] else ["x", "w"]
    feeds = {"x": x, "w": w, "b": b}
    ops = [core.CreateOperator("Conv", inputs, ["y"], **args)]
    same(run("dag", ops, feeds, "y")[0], want)
    # from and to blocked tensors: what is before and behind takes those
    around = [
        core.CreateOperator("Conv", ["x", "unit"], ["z"], kernel=1, group=x.shape[1]),
        core.CreateOperator("Conv", ["z", *inputs[1:]], ["y"], **args),
        core.CreateOperator("MaxPool", ["y"], ["p"], kernel=1),
    ]
    feeds["unit"] = np.ones((x.shape[1], 1, 1, 1), F)
    same(run("simple", around, feeds, "y")[0], want)
    around[0] = core.CreateOperator("Copy", ["x"], ["z"])
    same(run("simple", around, feeds, "y")[0], want)
    residual = rng.standard_normal(want.shape).astype(F)
    fused = [core.CreateOperator("ConvFused", ["x", "w", "b", "y"], ["y"], relu=1, **args),
             core.CreateOperator("MaxPool", ["y"], ["p"], kernel=1)]
    feeds["y"] = residual
    with np.errstate(all="ignore"):
        total = want + residual + (0 if c["bias"] else b[:, None, None])
        same(run("simple", fused, feeds, "y")[0], np.where(total < 0, 0, total))
    feeds |= {"x": last(x), "w": last(w)}
    ops[0].arg.add(name="order", s=b"NHWC")
    same(run("simple", ops, feeds, "y")[0], last(want))


@settings(max_examples=150)
@given(convolutions(), st.sampled_from(["x", "w", "dy"]))
@example(dict(batch=1, group=1, each=3, filters=20, kernel=2, stride=1, dilation=1, pad=0, size=(2, 2), many=1, seed=0,
              bias=False), "w")
def test_gradients(c, spoiled):
    rng, x, w, _, args = given_by(c)
    dy = rng.standard_normal(convolve(x, w, *(c[n] for n in ("group", "stride", "pad", "dilation"))).shape).astype(F)
    feeds = {"x": x, "w": w, "dy": dy}
    spoil(rng, feeds[spoiled], c["many"])
    outputs = ["dw", "db", "dx"]
    winograd = spoiled == "w"           # it spreads what an image holds
    op = core.CreateOperator("ConvGradient", ["x", "w", "dy"], outputs, winograd=int(winograd), **args)
    names = ["z", "w", "dz"]
    around = [core.CreateOperator("Conv", [a, "one" + a], [b], kernel=1, group=v.shape[1])
              for a, b, v in (("x", "z", x), ("dy", "dz", dy))]
    feeds |= {"onex": np.ones((x.shape[1], 1, 1, 1), F), "onedy": np.ones((dy.shape[1], 1, 1, 1), F)}
    blocked = core.CreateOperator("ConvGradient", names, outputs, winograd=int(winograd), **args)
    want = run("dag", [op], feeds, outputs)
    for ops in ([op], [*around, blocked, core.CreateOperator("MaxPool", ["dx"], ["p"], kernel=1)]):
        for g, e in zip(run("simple", ops, feeds, outputs), want, strict=True):
            same(g, e, rtol=1e-4)
    # of NHWC, which knows neither blocks nor filters turned around
    op.arg.add(name="order", s=b"NHWC")
    feeds |= {name: last(feeds[name]) for name in ("x", "w", "dy")}
    for g, e in zip(run("simple", [op], feeds, outputs), want, strict=True):
        same(g, last(e) if e.ndim == 4 else e, rtol=1e-4)


@settings(max_examples=60)
@given(convolutions(), st.sampled_from(["w", "b", "x"]))
def test_transposed(c, spoiled):
    """Against the gradient of Conv, and NHWC."""
    rng, x, w, _, args = given_by(c)
    if c["pad"] > 0 and min(c["size"]) < 2 * c["pad"]:
        return
    y = rng.standard_normal((c["batch"], c["filters"], *c["size"])).astype(F)
    b = rng.standard_normal(x.shape[1]).astype(F)
    args["dilation"] = 1
    feeds = {"x": y, "w": w, "b": b}
    spoil(rng, feeds[spoiled], c["many"])
    op = core.CreateOperator("ConvTranspose", ["x", "w", "b"], ["y"], **args)
    sides = [(s - 1) * c["stride"] + c["kernel"] - 2 * c["pad"] for s in c["size"]]
    if min(sides) < 1:
        return
    got, = run("simple", [op], feeds, "y")
    op.arg.add(name="order", s=b"NHWC")
    feeds |= {"x": last(y), "w": last(w)}
    same(last(got), run("simple", [op], feeds, "y")[0])


@pytest.mark.parametrize("isa", [level for level in dispatch.available() if level != dispatch.isa()])
def test_other_instruction_sets(isa):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-k", "filters or gradients", __file__]
    done = subprocess.run(command, env={**os.environ, "CAFFE2_ISA": isa}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

"""Windows over images in float64 numpy: what tests of convolution and pooling compare with."""

import numpy as np
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from caffe2._core.schema import OpSchema, TensorInfo
from caffe2.python import core, workspace


def run(op, feeds, outputs, **args):
    """Feed blobs, run an operator on them, fetch its outputs; shape inference must have foretold their shapes."""
    for name, value in feeds.items():
        workspace.FeedBlob(name, value)
    definition = core.CreateOperator(op, list(feeds), outputs, **args)
    workspace.RunOperatorOnce(definition)
    results = [workspace.FetchBlob(o) for o in outputs]
    inferred = OpSchema.get(op).infer(definition, [TensorInfo(v.shape) for v in feeds.values()])
    assert [t.shape for t in inferred] == [r.shape for r in results]
    return results


def windows(x, kernels, strides, pads, dilations=None, value=0.0):
    """[N, C, places..., kernel...] of images [N, C, ...]."""
    n = len(kernels)
    dilations = dilations or [1] * n
    around = [(0, 0), (0, 0)] + [(pads[i], pads[n + i]) for i in range(n)]
    x = np.pad(np.asarray(x, np.float64), around, constant_values=value)
    wide = [d * (k - 1) + 1 for k, d in zip(kernels, dilations)]
    v = sliding_window_view(x, wide, axis=tuple(range(2, 2 + n)))
    places = tuple(slice(None, None, s) for s in strides)
    taps = tuple(slice(None, None, d) for d in dilations)
    return v[(slice(None), slice(None), *places, *taps)]


def last(x):
    """NCHW to NHWC."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def first(x):
    """NHWC to NCHW."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def slope(f, x, along, step=1.0):
    """Central difference of a scalar function along a direction; exact where f is linear or quadratic."""
    return (f(x + step * along) - f(x - step * along)) / (2 * step)


def close(got, want, scale=None, rtol=2e-5):
    """Compare float32 results with float64 ones, against the size of the summands."""
    want = np.asarray(want)
    assert got.shape == want.shape
    bound = rtol * max(1e-6, np.abs(want).max(initial=0) if scale is None else scale)
    assert np.abs(got - want).max(initial=0) <= bound, (np.abs(got - want).max(), bound)


@st.composite
def layouts(draw, dilation=True, pad_below_kernel=False):
    """Images and windows that fit them: N, C and spatial sizes, and arguments."""
    n = draw(st.integers(1, 3))
    lists = {"min_size": n, "max_size": n}
    kernels = draw(st.lists(st.integers(1, 4), **lists))
    strides = draw(st.lists(st.integers(1, 3), **lists))
    dilations = draw(st.lists(st.integers(1, 2), **lists)) if dilation else [1] * n
    pads = [draw(st.integers(0, k - 1 if pad_below_kernel else 3)) for k in kernels * 2]
    sizes = []
    for i in range(n):
        least = max(1, dilations[i] * (kernels[i] - 1) + 1 - pads[i] - pads[n + i])
        sizes.append(draw(st.integers(least, least + (20 if n == 1 else 8))))
    batch, channels = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    args = dict(kernels=kernels, strides=strides, pads=pads)
    if dilation:
        args["dilations"] = dilations
    return (batch, channels, *sizes), args

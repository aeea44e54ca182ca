"""Run one operator on arrays, and hold it against its schema and its gradient."""

import numpy as np

from caffe2._core.schema import OpSchema, TensorInfo
from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace

DTYPES = {
    np.dtype(np.float32): 1,
    np.dtype(np.int32): 2,
    np.dtype(object): 4,
    np.dtype(np.bool_): 5,
    np.dtype(np.uint8): 6,
    np.dtype(np.int8): 7,
    np.dtype(np.uint16): 8,
    np.dtype(np.int16): 9,
    np.dtype(np.int64): 10,
    np.dtype(np.float16): 12,
    np.dtype(np.float64): 13,
}
NUMBERS = [t for t in DTYPES if t.kind != "O"]


def strings(values):
    """An object array of bytes, as a string tensor is fetched."""
    a = np.empty(np.shape(values), object)
    a[...] = values
    return a


def operator(type, inputs, outputs=1, inplace=None, seed=None, **args):
    """OperatorDef with inputs x0, x1, ... and outputs y0, y1, ...; `inplace` maps an output to an input."""
    ins = [f"x{i}" for i in range(len(inputs))]
    outs = [f"y{i}" for i in range(outputs)]
    for o, i in (inplace or {}).items():
        outs[o] = ins[i]
    option = None if seed is None else caffe2_pb2.DeviceOption(random_seed=seed)
    return core.CreateOperator(type, ins, outs, device_option=option, **args)


def run(type, *inputs, outputs=1, **more):
    """Outputs of one run; the shapes and dtypes that the schema infers are checked on the way."""
    op = operator(type, inputs, outputs, **more)
    inputs = [np.asarray(x) for x in inputs]
    for name, x in zip(op.input, inputs, strict=True):
        workspace.FeedBlob(name, x)
    workspace.RunOperatorOnce(op)
    results = [workspace.FetchBlob(name) for name in op.output]
    infos = [TensorInfo(x.shape, DTYPES[x.dtype]) for x in inputs]
    for info, y in zip(OpSchema.get(type).infer(op, infos), results, strict=True):
        if info.shape is not None:
            assert len(info.shape) == y.ndim, (info, y.shape)
            assert all(d in (-1, n) for d, n in zip(info.shape, y.shape, strict=True)), (info, y.shape)
            assert info.dtype == DTYPES[y.dtype], (info, y.dtype)
    return results


def gradients(type, inputs, grads, **more):
    """Gradients of the inputs, given those of the outputs (None where there is none); run(...) comes first.

    A sparse one is a pair of indices and values; None stands for no gradient.
    """
    op = operator(type, inputs, len(grads), **more)
    names = [None if g is None else f"g{i}" for i, g in enumerate(grads)]
    for name, g in zip(names, grads, strict=True):
        if name:
            workspace.FeedBlob(name, g)
    ops, wanted = core.GradientRegistry.GetGradientForOp(op, names)
    for o in ops:
        workspace.RunOperatorOnce(o)
    result = []
    for g in wanted:
        if g is None:
            result.append(None)
        elif isinstance(g, core.GradientSlice):
            result.append((workspace.FetchBlob(g.indices), workspace.FetchBlob(g.values)))
        else:
            result.append(workspace.FetchBlob(g))
    return result


def check_linear_gradient(type, x, *others, which=0, outputs=1, rng=None, **more):
    """For an operator linear in input `which`: its gradient operator must be the transpose, <dy, f(x)> = <dx, x>."""
    rng = rng or np.random.default_rng(0)
    inputs = list(others)
    inputs.insert(which, x)
    y = run(type, *inputs, outputs=outputs, **more)[0]
    dy = rng.standard_normal(y.shape).astype(y.dtype)
    dx = gradients(type, inputs, [dy] + [None] * (outputs - 1), **more)[which]
    if isinstance(dx, tuple):
        dense = np.zeros(x.shape)
        np.add.at(dense, dx[0].ravel(), dx[1].reshape(-1, *x.shape[1:]))
        dx = dense
    assert dx.shape == x.shape
    np.testing.assert_allclose(np.vdot(dx.astype(float), x), np.vdot(dy.astype(float), y), rtol=1e-4, atol=1e-4)

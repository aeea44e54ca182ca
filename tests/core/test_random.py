"""Streams of random numbers: seeded ones against numpy's Mersenne Twister, others by their distribution."""

import numpy as np
import pytest
from scipy import stats

from opcheck import run

SEED = 13303900


def raw(n, seed=SEED):
    return np.random.RandomState(seed)._bit_generator.random_raw(n)


def units(n, seed=SEED):
    return (raw(n, seed) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


@pytest.mark.parametrize("seed", [0, 1, SEED, 2**32 - 1])
def test_seeded_uniform(seed):
    (y,) = run("UniformFill", shape=[3000], min=-2.0, max=3.0, seed=seed)
    np.testing.assert_allclose(y, units(3000, seed) * np.float32(5) - 2, rtol=0, atol=1e-6)


def test_seeded_normal():
    u = units(1000).reshape(-1, 2)
    r = np.sqrt(np.float32(-2) * np.log1p(-u[:, 1]))
    angle = np.float32(2 * np.pi) * u[:, 0]
    want = np.stack([r * np.cos(angle), r * np.sin(angle)], 1).ravel()
    (y,) = run("GaussianFill", shape=[999], mean=1.0, std=2.0, seed=SEED)
    np.testing.assert_allclose(y, 1 + 2 * want[:999], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("low, high", [(-7, 12), (0, 2**31 - 1), (-(2**31), 2**31 - 1)])
def test_seeded_integers(low, high):
    (y,) = run("UniformIntFill", shape=[2000], min=low, max=high, seed=SEED)
    if high - low + 1 < 2**32:
        want = low + (raw(2000) % (high - low + 1)).astype(np.int64)
    else:
        bits = raw(4000).astype(np.uint64).reshape(-1, 2)
        want = low + (((bits[:, 0] << np.uint64(32)) | bits[:, 1]) % np.uint64(high - low + 1)).astype(np.int64)
    np.testing.assert_array_equal(y, want)


def test_a_stream_goes_on():
    """The second run of an operator continues where the first one stopped; another operator has its own stream."""
    from caffe2.proto import caffe2_pb2
    from caffe2.python import core, workspace

    net = core.Net("fill")
    option = caffe2_pb2.DeviceOption(random_seed=SEED)
    for name in "ab":
        net.Proto().op.add().CopyFrom(core.CreateOperator("UniformFill", [], [name], shape=[10], device_option=option))
    workspace.CreateNet(net)
    for i in range(3):
        workspace.RunNet(net)
        for name in "ab":
            np.testing.assert_array_equal(workspace.FetchBlob(name), units(30)[10 * i : 10 * i + 10])


@pytest.mark.parametrize("n", [20001, 400000])
def test_distributions(n):
    (y,) = run("GaussianFill", shape=[n])
    assert stats.kstest(y, "norm").pvalue > 1e-6
    assert stats.kstest(np.abs(y[np.abs(y) > 3]) - 3, stats.truncnorm(3, np.inf, loc=-3).cdf).pvalue > 1e-6
    assert abs(np.corrcoef(y[1:], y[:-1])[0, 1]) < 6 / np.sqrt(n)
    (y,) = run("UniformFill", shape=[n], min=-1.0, max=1.0)
    assert stats.kstest(y, stats.uniform(-1, 2).cdf).pvalue > 1e-6
    assert y.min() >= -1 and y.max() <= 1
    (y,) = run("UniformIntFill", shape=[n], min=-1, max=1)
    assert stats.chisquare(np.bincount(y + 1, minlength=3)).pvalue > 1e-6


def test_unseeded_streams_differ():
    (a,) = run("UniformFill", shape=[100])
    (b,) = run("UniformFill", shape=[100])
    assert (a != b).mean() > 0.9

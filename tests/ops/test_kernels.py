"""The kernels at every instruction set that this processor runs, against numpy in float64."""

import ctypes
import mmap
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from math import erf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2.ops.kernels import dispatch

LEVELS = dispatch.available()
FLOATS = (np.float32, np.float64)
mprotect = ctypes.CDLL(None).mprotect
mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@pytest.fixture(params=LEVELS)
def level(request):
    return dispatch.level(request.param)


def each_level(test):
    return pytest.mark.parametrize("name", LEVELS)(test)


def tolerance(dtype, k):
    return (2e-6 if dtype == np.float32 else 4e-15) * (4 + k**0.5) * 2


# ---------------------------------------------------------------- dispatch


def test_baseline_is_always_there():
    assert LEVELS[0] == "v1"
    assert dispatch.isa() in LEVELS


def isa_of(value):
    code = "from caffe2.ops.kernels import dispatch; print(dispatch.isa())"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CAFFE2_ISA": value},
        capture_output=True,
        text=True,
    )


@each_level
def test_environment_forces_level(name):
    assert isa_of(name).stdout.strip() == name


def test_unknown_level():
    result = isa_of("v9")
    assert result.returncode != 0
    assert "unknown instruction set 'v9'; there are v1, v3, v4, amx" in result.stderr
    with pytest.raises(ValueError, match="unknown instruction set"):
        dispatch.level("sse")


# ---------------------------------------------------------------- GEMM


def matrix(rng, rows, columns, dtype, gap=0):
    """A random matrix whose rows lie `gap` elements apart in memory."""
    return rng.standard_normal((rows, columns + gap)).astype(dtype)[:, :columns]


def check_gemm(level, dtype, m, n, k, trans_a, trans_b, alpha, beta, gap, nth, seed, add, pack):
    rng = np.random.default_rng(seed)
    a = matrix(rng, k, m, dtype, gap) if trans_a else matrix(rng, m, k, dtype, gap)
    b = matrix(rng, n, k, dtype, gap) if trans_b else matrix(rng, k, n, dtype, gap)
    c = matrix(rng, m, n, dtype, gap)
    outside = c.base[:, n:].copy()
    expected = alpha * ((a.T if trans_a else a).astype(float) @ (b.T if trans_b else b))
    if beta:
        expected += beta * c.astype(float)
    else:
        c[...] = np.nan  # must not be read
    epilogue = {}
    if "r" in add:
        epilogue["bias_row"] = rng.standard_normal(m).astype(dtype)
        expected += epilogue["bias_row"][:, None]
    if "c" in add:
        epilogue["bias_col"] = rng.standard_normal(n).astype(dtype)
        expected += epilogue["bias_col"]
    if "+" in add:
        epilogue["residual"] = matrix(rng, m, n, dtype, 3)
        expected += epilogue["residual"]
    if "0" in add:
        epilogue["relu"] = True
        expected = np.maximum(expected, 0)
    level.gemm(a, b, c, trans_a, trans_b, alpha, beta, nth=nth,
               pack_a="a" in pack, pack_b="b" in pack, **epilogue)
    np.testing.assert_allclose(c, expected, rtol=0, atol=tolerance(dtype, k))
    np.testing.assert_array_equal(c.base[:, n:], outside)


sizes = st.one_of(st.integers(0, 20), st.integers(21, 70), st.integers(240, 300))


@each_level
@given(
    dtype=st.sampled_from(FLOATS), m=sizes, n=sizes, k=sizes,
    trans_a=st.booleans(), trans_b=st.booleans(),
    alpha=st.sampled_from([1, 0, -0.5]), beta=st.sampled_from([0, 1, 0.25]),
    gap=st.integers(0, 3), nth=st.integers(1, 3), seed=st.integers(0, 99),
    add=st.sampled_from(["", "r", "c", "+", "0", "rc+0"]),
    pack=st.sampled_from(["", "", "a", "b", "ab"]),
)
def test_gemm(name, **case):
    check_gemm(dispatch.level(name), **case)


# Sizes that take each way through the code: one row or column, few of them, tiny, packed with
# several blocks of K and of columns, more row panels than threads.
@pytest.mark.parametrize("m, n, k", [
    (1, 700, 300), (700, 1, 300), (3, 200, 530), (200, 3, 530), (16, 10, 100), (9, 33, 1000),
    (130, 130, 130), (150, 600, 530), (400, 49, 300),
])
@pytest.mark.parametrize("trans", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_gemm_ways(level, m, n, k, trans, dtype):
    check_gemm(level, dtype, m, n, k, trans[0] == "t", trans[1] == "t", alpha=1, beta=1, gap=5,
               nth=2, seed=m + n, add="rc+0", pack="")


# For the matrix unit: one factor stays in the cache, or none does, with several blocks of K; rows that lie a
# multiple of 2048 bytes apart.
LARGE = [(200, 1030, 330), (1030, 200, 330), (280, 330, 1100), (160, 512, 190), (512, 160, 512)]


@pytest.mark.parametrize("m, n, k", LARGE)
@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("trans", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("add, alpha, beta", [("", 1, 0), ("", -0.5, 1), ("rc+0", 1, 0.25)])
def test_large_gemm(level, m, n, k, gap, trans, add, alpha, beta):
    check_gemm(level, np.float32, m, n, k, trans[0] == "t", trans[1] == "t", alpha=alpha, beta=beta, gap=gap,
               nth=2, seed=k, add=add, pack="")


@pytest.mark.parametrize("m, n, k", LARGE)
def test_gemm_is_the_same_in_any_number_of_threads(level, m, n, k):
    rng = np.random.default_rng(k)
    a, b = matrix(rng, m, k, np.float32), matrix(rng, k, n, np.float32)
    one, *others = (level.gemm(a, b, np.empty((m, n), np.float32), nth=nth) for nth in (1, 2, 3, 7))
    for c in others:
        np.testing.assert_array_equal(c, one)


@pytest.mark.parametrize("m, n, k", LARGE)
def test_large_gemm_takes_the_matrix_unit(m, n, k):
    """Where there is one; it rounds differently."""
    rng = np.random.default_rng(0)
    a, b = matrix(rng, m, k, np.float32), matrix(rng, k, n, np.float32)
    levels = [name for name in LEVELS if name in ("v4", "amx")]
    results = {dispatch.level(name).gemm(a, b, np.empty((m, n), np.float32)).tobytes() for name in levels}
    assert len(results) == len(levels)


def test_very_large_gemm():
    """More panels than are split at a time, with the best instruction set."""
    check_gemm(dispatch.level(LEVELS[-1]), np.float32, 1400, 1400, 1000, False, True, alpha=1, beta=0, gap=0, nth=1,
               seed=0, add="c", pack="")


@pytest.mark.parametrize("trans", ["nn", "nt", "tn", "tt"])
def test_large_gemm_not_finite(level, trans):
    """What float32 arithmetic gives for NaN, infinities and sums beyond the largest number."""
    rng = np.random.default_rng(1)
    m, n, k = 300, 310, 320
    a, b = matrix(rng, m, k, np.float32), matrix(rng, k, n, np.float32)
    a[3, 7], a[40, 199], a[41, 0], a[149, 64] = np.nan, np.inf, -np.inf, 3e38
    b[64, 5], b[150, 17], b[20, 299], b[21, 299] = 3e38, np.inf, np.inf, -np.inf
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (a.astype(float) @ b).astype(np.float32)
    stored = [np.ascontiguousarray(x.T) if t == "t" else x for x, t in zip((a, b), trans)]
    c = level.gemm(*stored, np.empty((m, n), np.float32), trans[0] == "t", trans[1] == "t", nth=2)
    np.testing.assert_array_equal(np.isnan(c), np.isnan(expected))
    np.testing.assert_allclose(c, expected, rtol=1e-6, atol=tolerance(np.float32, k))
    assert np.isinf(expected).sum() > 600


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_panels_of_every_width(level, dtype, trans):
    """The last panel of an operand may be as wide as one of the other, and begin anywhere."""
    for m in range(1, 41):
        check_gemm(level, dtype, m, 2 * m, 21, trans, not trans, alpha=1, beta=0, gap=0, nth=1, seed=m, add="",
                   pack="ab")


def check_integer_gemm(level, m, n, k, trans_a, trans_b, beta, gap, nth, seed, add, pack, values=(-128, 128)):
    """Exact, modulo 2^32."""
    rng = np.random.default_rng(seed)

    def integers(rows, columns, dtype=np.int8, low=values[0], high=values[1]):
        return rng.integers(low, high, (rows, columns + gap)).astype(dtype)[:, :columns]

    def wide(*shape):
        return rng.integers(-2**31, 2**31, shape).astype(np.int32)

    a = integers(k, m) if trans_a else integers(m, k)
    b = integers(n, k) if trans_b else integers(k, n)
    c = integers(m, n, np.int32, -2**31, 2**31)
    outside = c.base[:, n:].copy()
    expected = (a.T if trans_a else a).astype(np.int64) @ (b.T if trans_b else b) + beta * c.astype(np.int64)
    epilogue = {}
    if "r" in add:
        epilogue["bias_row"] = wide(m)
        expected += epilogue["bias_row"][:, None]
    if "c" in add:
        epilogue["bias_col"] = wide(n)
        expected += epilogue["bias_col"]
    if "+" in add:
        epilogue["residual"] = wide(m, n)
        expected += epilogue["residual"]
    expected = expected.astype(np.int32)        # wraps
    if "0" in add:
        epilogue["relu"] = True
        expected = np.maximum(expected, 0)
    level.gemm(a, b, c, trans_a, trans_b, 1, beta, nth=nth, pack_a="a" in pack, pack_b="b" in pack, **epilogue)
    np.testing.assert_array_equal(c, expected)
    np.testing.assert_array_equal(c.base[:, n:], outside)


@each_level
@given(
    m=sizes, n=sizes, k=st.one_of(sizes, st.integers(1000, 2200)),
    trans_a=st.booleans(), trans_b=st.booleans(), beta=st.integers(0, 1), gap=st.integers(0, 5),
    nth=st.integers(1, 3), seed=st.integers(0, 99), add=st.sampled_from(["", "r", "c", "+", "0", "rc+0"]),
    pack=st.sampled_from(["", "", "a", "b", "ab"]),
    values=st.sampled_from([(-128, 128), (-128, -127), (127, 128), (0, 1)]),
)
def test_integer_gemm(name, **case):
    check_integer_gemm(dispatch.level(name), **case)


@pytest.mark.parametrize("m, n, k", [
    (1, 700, 301), (700, 1, 303), (3, 200, 530), (130, 130, 131), (150, 300, 2600), (40, 20, 70000),
    (2, 2, 140000),     # 140000 * 128 * 128 is more than 2^31
])
@pytest.mark.parametrize("trans", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("values", [(-128, 128), (-128, -127)])
def test_integer_gemm_ways(level, m, n, k, trans, values):
    for pack in ("", "b"):
        check_integer_gemm(level, m, n, k, trans[0] == "t", trans[1] == "t", beta=1, gap=5, nth=2, seed=m + n,
                           add="rc+0", pack=pack, values=values)


def test_integer_gemm_reads_no_more(level):
    """Factors that end with the memory they are in."""
    page = 4096
    for m, n, k in [(7, 9, 13), (1, 3, 5), (33, 17, 30)]:
        for trans_a, trans_b in [(0, 0), (0, 1), (1, 0), (1, 1)]:
            maps = [mmap.mmap(-1, 2 * page) for _ in range(2)]
            factors = []
            for space, size in zip(maps, (m * k, n * k)):
                memory = np.frombuffer(space, np.int8)
                memory[page - size:page] = np.arange(size)
                assert mprotect(memory.ctypes.data + page, page, 0) == 0
                factors.append(memory[page - size:page])
            a, b = factors[0].reshape((k, m) if trans_a else (m, k)), factors[1].reshape((n, k) if trans_b else (k, n))
            c = level.gemm(a, b, np.empty((m, n), np.int32), trans_a, trans_b)
            expected = (a.T if trans_a else a).astype(np.int32) @ (b.T if trans_b else b)
            np.testing.assert_array_equal(c, expected)


def test_gemm_not_a_number(level):
    """NaN in a factor reaches its row or column alone; a relu lets it through."""
    a, b = np.ones((20, 30), np.float32), np.ones((30, 40), np.float32)
    a[3, 7] = np.nan
    c = level.gemm(a, b, np.empty((20, 40), np.float32), relu=True)
    assert np.isnan(c[3]).all()
    assert (np.delete(c, 3, axis=0) == 30).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count, m, n, k", [(7, 3, 5, 4), (2, 40, 33, 300), (3, 0, 2, 2), (3, 290, 300, 300)])
@pytest.mark.parametrize("nth", [1, 2, 4])
def test_gemm_batch(level, dtype, count, m, n, k, nth):
    rng = np.random.default_rng(count)
    a = rng.standard_normal((count, k, m)).astype(dtype)
    b = rng.standard_normal((1, n, k)).astype(dtype)
    c = rng.standard_normal((count, m, n)).astype(dtype)
    expected = 2 * (a.transpose(0, 2, 1).astype(float) @ b.transpose(0, 2, 1)) + c
    level.gemm_batch(a, b, c, trans_a=True, trans_b=True, alpha=2, beta=1, nth=nth)
    np.testing.assert_allclose(c, expected, rtol=0, atol=2 * tolerance(dtype, k))


def test_gemm_in_many_threads(level):
    """Scratch memory belongs to the calling thread."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((8, 150, 270)).astype(np.float32)
    b = rng.standard_normal((8, 270, 300)).astype(np.float32)

    def product(i):
        c = np.empty((150, 300), np.float32)
        for _ in range(5):
            level.gemm(a[i], b[i], c, nth=1 + i % 2)
        return c

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(product, range(8)))
    np.testing.assert_allclose(results, a.astype(float) @ b, rtol=0, atol=tolerance(np.float32, 270))


# ---------------------------------------------------------------- windows of images


def windows(x, kernel, stride, pad, dilation, out, nhwc):
    """The matrix of image_t, one entry of the kernel and one output pixel at a time."""
    if nhwc:
        x = x.transpose(0, 4, 1, 2, 3)
    batch, channels, *size = x.shape
    w = np.zeros((channels, *kernel, batch, *out), x.dtype)
    for tap in np.ndindex(*kernel):
        for pixel in np.ndindex(*out):
            at = [p * s - d + t * g for p, s, d, t, g in zip(pixel, stride, pad, tap, dilation)]
            if all(0 <= a < n for a, n in zip(at, size)):
                w[(slice(None), *tap, slice(None), *pixel)] = x[(slice(None), slice(None), *at)].T
    if nhwc:
        return w.transpose(4, 5, 6, 7, 1, 2, 3, 0).reshape(batch * np.prod(out), -1)
    return w.reshape(channels * np.prod(kernel), -1)


def triple(low, high):
    return st.tuples(*[st.integers(low, high)] * 3)


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("kernel, stride", [((1, 3, 3), (1, 1, 1)), ((2, 2, 3), (1, 1, 2)), ((1, 1, 1), (1, 1, 1))])
def test_large_images(level, nhwc, kernel, stride):
    channels = 20 if max(kernel) > 1 else 130
    check_images(level, np.float32, nhwc, batch=2, channels=channels, others=1, size=(2, 16, 30), kernel=kernel,
                 stride=stride, pad=(0, 1, 1), dilation=(1, 1, 1), m=150, nth=2, seed=0)


@each_level
@given(
    dtype=st.sampled_from(FLOATS), nhwc=st.booleans(), flat=st.booleans(),
    batch=st.integers(1, 3), channels=st.integers(1, 5), others=st.integers(0, 3),
    size=triple(3, 11), kernel=triple(1, 3), stride=triple(1, 3), pad=triple(0, 2),
    dilation=triple(1, 2), m=st.integers(1, 30), nth=st.integers(1, 2), seed=st.integers(0, 9),
)
def test_images(name, flat, **case):
    if flat:  # 2-D
        case |= {axis: (1, *case[axis][1:]) for axis in ("size", "kernel", "stride", "dilation")}
        case["pad"] = (0, *case["pad"][1:])
    check_images(dispatch.level(name), **case)


def check_images(level, dtype, nhwc, batch, channels, others, size, kernel, stride, pad, dilation, m, nth, seed):
    out = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, k, s, p, d in zip(size, kernel, stride, pad, dilation))
    if min(out) < 1:
        return
    rng = np.random.default_rng(seed)
    # `others` more channels, as of other groups, lie between those of the image.
    full = channels + others
    x = rng.standard_normal((batch, *size, full) if nhwc else (batch, full, *size)).astype(dtype)
    x = x[..., :channels] if nhwc else x[:, :channels]
    image = dispatch.Image(x, kernel, stride, pad, dilation, out, nhwc)
    w = windows(x, kernel, stride, pad, dilation, out, nhwc)
    assert image.shape == w.shape

    np.testing.assert_array_equal(level.im2col(image, np.full(w.shape, np.nan, dtype), nth), w)

    def check(product, expected, k):
        np.testing.assert_allclose(product, expected, rtol=0, atol=tolerance(dtype, k))

    rows, columns = w.shape
    left, right = rng.standard_normal((m, rows)), rng.standard_normal((m, columns))
    left, right = left.astype(dtype), right.astype(dtype)
    pack = bool(seed % 2)
    check(level.gemm(left, image, np.empty((m, columns), dtype), nth=nth, pack_b=pack),
          left.astype(float) @ w, rows)
    check(level.gemm(right, image, np.empty((m, rows), dtype), trans_b=True, nth=nth, pack_b=pack),
          right.astype(float) @ w.T, columns)
    check(level.gemm(image, right, np.empty((rows, m), dtype), trans_b=True, nth=nth, pack_a=pack),
          w.astype(float) @ right.T, columns)
    check(level.gemm(image, left, np.empty((columns, m), dtype), trans_a=True, trans_b=True,
                     nth=nth, pack_a=pack),
          w.T.astype(float) @ left.T, rows)

    # col2im is the transpose of im2col: <im2col(x), y> = <x, col2im(y)>; nothing else is touched.
    y = rng.integers(-9, 10, w.shape).astype(dtype)
    onto = np.zeros_like(x.base)
    target = onto[..., :channels] if nhwc else onto[:, :channels]
    level.col2im(y, dispatch.Image(target, kernel, stride, pad, dilation, out, nhwc), nth)
    for _ in range(2):
        probe = rng.integers(-9, 10, x.shape).astype(dtype)
        cut = windows(probe, kernel, stride, pad, dilation, out, nhwc)
        assert np.vdot(cut.astype(float), y) == np.vdot(probe.astype(float), target)
    assert not (onto[..., channels:] if nhwc else onto[:, channels:]).any()


# ---------------------------------------------------------------- arrays


def call(level, name, *args, result=None):
    """Call a kernel: arrays become pointers, ints long, floats float."""
    def kind(x):
        if x is None or isinstance(x, np.ndarray):
            return ctypes.c_void_p, None if x is None else x.ctypes.data
        return (ctypes.c_float if isinstance(x, float) else ctypes.c_long), x
    kinds, values = zip(*map(kind, args))
    return ctypes.CFUNCTYPE(result, *kinds)(level.addresses()[name])(*values)


def unary(level, name, x):
    y = np.empty_like(x)
    call(level, name, x.size, x, y)
    return y


def ulps(y, exact):
    """Distance of float32 values from the exact ones, in units in the last place of these."""
    with np.errstate(over="ignore"):
        nearest = exact.astype(np.float32)
    finite = np.isfinite(nearest)
    np.testing.assert_array_equal(y[~finite], nearest[~finite])
    unit = np.maximum(np.spacing(np.abs(nearest[finite])), np.float32(1e-45)).astype(float)
    return np.abs(y[finite] - exact[finite]) / unit


FUNCTIONS = {
    "vexp": (np.exp, 1),
    "vlog": (np.log, 1),
    "vtanh": (np.tanh, 1.5),
    "vsigmoid": (lambda x: np.exp(-np.logaddexp(0, -x)), 2.5),
    "verf": (np.vectorize(erf, otypes=[float]), 1.5),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(level, name):
    """The error that kernels.h states holds over all floats: every 20011th bit pattern."""
    function, most = FUNCTIONS[name]
    bits = np.arange(0, 2**32, 20011, dtype=np.uint64).astype(np.uint32)
    near = np.linspace(-20, 20, 40001).astype(np.float32)
    x = np.concatenate([bits.view(np.float32), near])
    with np.errstate(all="ignore"):
        exact = function(x.astype(np.float64))
    assert ulps(unary(level, name, x), exact).max() <= most


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("n", [0, 1, 3, 15, 16, 17, 33])
def test_functions_special_values_and_tails(level, name, n):
    values = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1, -1])
    x = np.resize(values, n)
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[name][0](x.astype(np.float64))
    space = np.full(n + 20, 7, np.float32)
    call(level, name, n, x, space)
    assert (ulps(space[:n], exact) <= FUNCTIONS[name][1]).all()
    assert (space[n:] == 7).all()
    if name in ("vtanh", "verf"):
        np.testing.assert_array_equal(np.signbit(space[:n][x == 0]), np.signbit(x[x == 0]))


@each_level
@given(n=st.integers(0, 9), d=st.integers(1, 70), seed=st.integers(0, 99),
       spread=st.sampled_from([1, 30, 1000]))
def test_softmax(name, n, d, seed, spread):
    x = (spread * np.random.default_rng(seed).standard_normal((n, d))).astype(np.float32)
    y = np.empty_like(x)
    call(dispatch.level(name), "softmax_rows", n, d, x, y)
    shifted = x - x.max(1, keepdims=True, initial=-np.inf)  # in float32: exp magnifies its rounding
    e = np.exp(shifted.astype(float))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=2e-6, atol=1e-37)


def test_softmax_special_values(level):
    x = np.float32([[1, np.nan, 2], [-np.inf, 0, 0], [-np.inf] * 3, [np.inf, 0, 0]])
    y = np.empty_like(x)
    call(level, "softmax_rows", 4, 3, x, y)
    assert np.isnan(y[[0, 2, 3]]).any(1).all()
    np.testing.assert_array_equal(y[1], [0, 0.5, 0.5])


BINARY = {"vadd": np.add, "vsub": np.subtract, "vmul": np.multiply, "vdiv": np.divide}


@each_level
@given(n=st.integers(0, 100), seed=st.integers(0, 9), a=st.floats(-2, 2, width=32))
def test_elementwise(name, n, seed, a):
    level = dispatch.level(name)
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, n)).astype(np.float32)
    z = np.empty_like(x)
    for kernel, function in BINARY.items():
        call(level, kernel, n, x, y, z)
        np.testing.assert_array_equal(z, function(x, y))
    np.testing.assert_array_equal(unary(level, "vrelu", x), np.maximum(x, 0))
    call(level, "vrelu_grad", n, x, y, z)
    np.testing.assert_array_equal(z, np.where(x > 0, y, 0))
    call(level, "vsigmoid_grad", n, x, y, z)
    np.testing.assert_allclose(z, y.astype(float) * x * (1 - x), rtol=1e-5, atol=1e-6)
    call(level, "vtanh_grad", n, x, y, z)
    np.testing.assert_allclose(z, y * (1 - x.astype(float) ** 2), rtol=1e-5, atol=1e-6)
    call(level, "vscale", n, a, x, z)
    np.testing.assert_array_equal(z, np.float32(a) * x)
    call(level, "vaxpby", n, a, x, 0.75, y, z)
    np.testing.assert_allclose(z, a * x.astype(float) + 0.75 * y, rtol=1e-5, atol=1e-6)
    z = y.copy()
    call(level, "vaxpy", n, a, x, z)
    np.testing.assert_allclose(z, y + a * x.astype(float), rtol=1e-5, atol=1e-6)
    call(level, "vadd", n, z, z, z)  # in place
    np.testing.assert_allclose(z, 2 * (y + a * x.astype(float)), rtol=1e-5, atol=1e-6)


def test_relu_not_a_number(level):
    x = np.float32([np.nan, -np.inf, np.inf, -0.0] * 9)
    np.testing.assert_array_equal(unary(level, "vrelu", x), np.resize([np.nan, 0, np.inf, 0], 36))


@pytest.mark.parametrize("n", [0, 1, 7, 16, 100, 4095, 4096, 12345])
def test_reductions(level, n):
    x, y = np.random.default_rng(n).standard_normal((2, n)).astype(np.float32)
    exact = {"vsum": x.astype(float).sum(), "vsumsq": np.square(x, dtype=float).sum()}
    close = dict(rel=1e-6, abs=2e-7 * (n + 1))
    for name, value in exact.items():
        assert call(level, name, n, x, result=ctypes.c_double) == pytest.approx(value, **close)
    assert call(level, "vdot", n, x, y, result=ctypes.c_double) == pytest.approx(
        np.dot(x.astype(float), y), **close)
    top = call(level, "vmax", n, x, result=ctypes.c_float)
    assert top == x.max(initial=-np.inf)
    if n:
        x[n // 2] = np.nan
        assert np.isnan(call(level, "vmax", n, x, result=ctypes.c_float))


@each_level
@given(m=st.integers(0, 600), n=st.integers(0, 140), gap=st.integers(0, 5), seed=st.integers(0, 9))
def test_column_sums(name, m, n, gap, seed):
    x = np.random.default_rng(seed).standard_normal((m, n + gap)).astype(np.float32)
    y = np.full(n + 3, np.nan, np.float32)
    call(dispatch.level(name), "column_sums", m, n, x, n + gap, y)
    np.testing.assert_allclose(y[:n], x[:, :n].astype(float).sum(0), rtol=0, atol=3e-7 * (m + 1))
    assert np.isnan(y[n:]).all()


# ---------------------------------------------------------------- optimizer steps


@pytest.fixture(params=[0, 5, 50])
def state(request):
    """Five arrays of one length, as float32, and the same in float64; the last three positive."""
    x = np.random.default_rng(request.param).standard_normal((5, request.param))
    x[2:] = np.abs(x[2:])
    x = x.astype(np.float32)
    return x, x.astype(float)


def close(results, expected):
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("with_parameter", [False, True])
def test_momentum(level, state, nesterov, with_parameter):
    (g, m, w, *_), (g64, m64, w64, *_) = state
    call(level, "momentum", g.size, 0.1, 0.9, int(nesterov), g, m, g, m,
         w if with_parameter else None)
    now = 0.9 * m64 + 0.1 * g64
    step = 1.9 * now - 0.9 * m64 if nesterov else now
    close((g, m, w), (step, now, w64 - step if with_parameter else w64))


def test_adagrad(level, state):
    (w, g, h, *_), (w64, g64, h64, *_) = state
    call(level, "adagrad", g.size, -0.1, 0.95, 1e-3, w, g, h, w, h)
    now = 0.95 * h64 + g64**2
    close((w, h), (w64 - 0.1 * g64 / (np.sqrt(now) + 1e-3), now))


def test_adam(level, state):
    (w, g, m, v, _), (w64, g64, m64, v64, _) = state
    call(level, "adam", g.size, -0.1, 0.9, 0.99, 1e-3, w, g, m, v, w, m, v)
    m64, v64 = 0.9 * m64 + 0.1 * g64, 0.99 * v64 + 0.01 * g64**2
    close((w, m, v), (w64 - 0.1 * m64 / (np.sqrt(v64) + 1e-3), m64, v64))


def test_rmsprop(level, state):
    (g, mom, ms, *_), (g64, mom64, ms64, *_) = state
    call(level, "rmsprop", g.size, 0.1, 0.95, 0.9, 1e-3, g, ms, mom, g, ms, mom)
    ms64 = ms64 + 0.05 * (g64**2 - ms64)
    mom64 = 0.9 * mom64 + 0.1 * g64 / np.sqrt(1e-3 + ms64)
    close((g, ms, mom), (mom64, ms64, mom64))


# ---------------------------------------------------------------- float16


def test_every_half_to_float(level):
    half = np.arange(2**16, dtype=np.uint16)
    y = np.empty(half.size, np.float32)
    call(level, "half_to_float", half.size, half, y)
    np.testing.assert_array_equal(y, half.view(np.float16).astype(np.float32))


def test_float_to_half(level):
    """Every half, the floats halfway to its neighbour, and those next to that."""
    half = np.arange(0x7c00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (half[1:] + half[:-1]) / 2
    x = np.concatenate([half, middle, np.nextafter(middle, 0), np.nextafter(middle, 9e9),
                        np.float32([65519.99, 65520, 1e9, np.inf, np.nan, 1e-45])])
    x = np.float32(np.concatenate([x, -x]))
    y = np.empty(x.size, np.uint16)
    call(level, "float_to_half", x.size, x, y)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y.view(np.float16), x.astype(np.float16))
    np.testing.assert_array_equal(y >> 15, np.signbit(x))

"""nvidia-cudnn-frontend's graphs of one convolution, by numpy, on the emulated streams."""
import ctypes
import enum
import itertools

import numpy as np
from cuda_emulation import push_call


class data_type(enum.Enum):
    FLOAT = np.float32
    HALF = np.float16


class heur_mode(enum.Enum):
    A = 0
    FALLBACK = 1


class numerical_note(enum.Enum):
    TENSOR_CORE = 0
    DOWN_CONVERT_INPUTS = 1


def backend_version():
    return 92700


class _Handle:
    stream = None


def create_handle():
    return _Handle()


def set_stream(handle, stream):
    handle.stream = stream


class _Tensor:
    def __init__(self, dim=None, stride=None, data_type=None, name=""):
        self.dim, self.stride, self.dtype = dim, stride, data_type

    def set_output(self, value):
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def set_data_type(self, dtype):
        self.dtype = dtype
        return self

    def view(self, address):
        size = 1 + sum((d - 1) * s for d, s in zip(self.dim, self.stride))
        item = np.dtype(self.dtype.value).itemsize
        memory = np.frombuffer((ctypes.c_char * (item * size)).from_address(address), self.dtype.value)
        return np.lib.stride_tricks.as_strided(memory, self.dim, [item * s for s in self.stride])


class pygraph:
    def __init__(self, *, handle, io_data_type, intermediate_data_type, compute_data_type):
        assert isinstance(handle, _Handle) and intermediate_data_type == compute_data_type == data_type.FLOAT
        self.state, self.io = 0, io_data_type

    def tensor(self, **how):
        return _Tensor(**how)

    def _conv(self, kind, made, image, weight, answer, how):
        self.kind, self.image, self.weight, self.answer, self.how = kind, image, weight, answer, how
        return made

    def conv_fprop(self, image, weight, **how):
        y = _Tensor()
        return self._conv("fprop", y, image, weight, y, how)

    def conv_dgrad(self, loss, filter, **how):
        x = _Tensor()
        return self._conv("dgrad", x, x, filter, loss, how)

    def conv_wgrad(self, image, loss, **how):
        w = _Tensor()
        return self._conv("wgrad", w, image, w, loss, how)

    def _step(self, expected):
        assert self.state == expected
        self.state += 1

    def validate(self):
        self._step(0)

    def build_operation_graph(self):
        self._step(1)

    def create_execution_plans(self, modes):
        self._step(2)

    def deselect_numeric_notes(self, notes):
        assert self.state == 3

    def check_support(self):
        self._step(3)
        how, spatial = self.how, len(self.image.dim) - 2
        for i in range(spatial):
            size = self.image.dim[2 + i] + how["pre_padding"][i] + how["post_padding"][i]
            kernel = how["dilation"][i] * (self.weight.dim[2 + i] - 1) + 1
            assert (size - kernel) // how["stride"][i] + 1 == self.answer.dim[2 + i]
        assert self.image.dim[1] % self.weight.dim[1] == 0

    def build_plans(self):
        self._step(4)

    def get_workspace_size(self):
        return 1024

    def execute(self, tensors, workspace, handle):
        assert self.state == 5 and workspace and handle.stream

        def run():
            stored = [t.view(tensors[t]) for t in (self.image, self.weight, self.answer)]
            assert all(v.dtype == self.io.value for v in stored)
            x, w, y = (v.astype(np.float32) for v in stored)
            convolve(self.kind, x, w, y, self.how)
            made = ("dgrad", "wgrad", "fprop").index(self.kind)
            stored[made][...] = (x, w, y)[made]
        push_call(handle.stream, run)


def convolve(kind, x, w, y, how):
    """One product for each tap of the filters and each group."""
    group = x.shape[1] // w.shape[1]
    before, after = how["pre_padding"], how["post_padding"]
    border = [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in zip(before, after))]
    padded = np.pad(x, border) if kind != "dgrad" else np.zeros(
        [d + sum(b) for d, b in zip(x.shape, border)], np.float32)
    if kind == "fprop":
        y[...] = 0
    elif kind == "wgrad":
        w[...] = 0
    for taps in itertools.product(*map(range, w.shape[2:])):
        places = tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, s, n in zip(
            taps, how["dilation"], how["stride"], y.shape[2:]))
        for k in range(group):
            m, c = w.shape[0] // group, w.shape[1]
            rows, columns = slice(k * m, (k + 1) * m), slice(k * c, (k + 1) * c)
            at, tap = (slice(None), columns, *places), (rows, slice(None), *taps)
            if kind == "fprop":
                y[:, rows] += np.einsum("nc...,mc->nm...", padded[at], w[tap], optimize=True)
            elif kind == "dgrad":
                padded[at] += np.einsum("nm...,mc->nc...", y[:, rows], w[tap], optimize=True)
            else:
                w[tap] = np.einsum("ncp,nmp->mc", padded[at].reshape(*padded[at].shape[:2], -1),
                                   y[:, rows].reshape(y.shape[0], m, -1), optimize=True)
    if kind == "dgrad":
        x[...] = padded[(slice(None), slice(None), *(slice(b[0], b[0] + d) for b, d in zip(border[2:], x.shape[2:])))]

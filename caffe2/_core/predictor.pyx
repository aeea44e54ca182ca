"""Predictors: models that are called."""
cimport numpy as cnp
import numpy as np

from caffe2._core.blob cimport Blob
from caffe2._core.net cimport Net
from caffe2._core.tensor cimport UNDEFINED, Tensor, from_numpy, to_numpy
from caffe2._core.workspace cimport Workspace

from functools import partial
from threading import RLock

from caffe2._core import workspace as workspaces
from caffe2._core.executor import bind_net
from caffe2._core.serialization import parse
from caffe2.proto import caffe2_pb2

cnp.import_array()

# Bytes of the input and of intermediate blobs from which on a batch is divided.
BATCH_MEMORY = 24 << 20


def pieces(data):
    """Serialized nets of one operator each, with what else there is, of a serialized net: large ones in little memory.

    Where an operator's bytes are not found, the rest is returned as it is, for the parser to complain about.
    """
    operators, common, at = [], [], 0
    while at < len(data):
        start, (tag, at) = at, varint(data, at)
        if tag & 7 != 2:                    # a scalar field, or none of a NetDef's: left to the parser
            return [data]
        size, at = varint(data, at)
        at += size
        (operators if tag >> 3 == 2 else common).append((start, at))
    if at != len(data) or not operators:
        return [data]
    rest = b"".join(data[i:j] for i, j in common)
    return (data[i:j] + rest for i, j in operators)


def varint(data, at):
    """A number of variable length, and where it ends."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return value, at


cdef class Predictor:
    """A model: its init net is run once, its predict net for each call of `run`, in a workspace of its own.

    Calls from several threads take turns.

    Parameters
    ----------
    init_net, predict_net : NetDef or bytes
    optimize : bool
        Whether the predict net is rewritten for inference when it first runs. Its outputs then differ by rounding, and
        parameters that went into others can no longer be given to `run`. Large batches go through it in parts, where
        it treats images independently.
    """

    cdef readonly Workspace workspace
    cdef readonly object definition     # NetDef, as it runs
    cdef readonly Net net               # None before the first run
    cdef list inputs, outputs           # names
    cdef dict given                     # blobs of inputs that have been given, by name
    cdef list results                   # blobs of outputs
    cdef set folded                     # inputs that went into others
    cdef bint optimize, divides
    cdef Blob whole                     # the input whose last batch, of the blob's shape, was not divided
    cdef object divided                 # (input, shape) of the last run, its division, and (blob, joined) pairs
    cdef object lock
    cdef object __weakref__

    def __init__(self, init_net, predict_net, optimize=True):
        self.definition = parse(caffe2_pb2.NetDef, predict_net)
        self.workspace = Workspace(".", workspaces.current())
        nets = pieces(init_net) if isinstance(init_net, bytes) else [init_net]
        # A net's bytes are gone when it runs, and it is gone when the next one is parsed.
        for net in map(partial(parse, caffe2_pb2.NetDef), nets):
            bind_net(net, self.workspace).run()
            net = None
        self.inputs = list(self.definition.external_input)
        self.outputs = list(self.definition.external_output)
        self.given = {}
        self.folded = set()
        self.optimize = self.divides = bool(optimize)
        self.divided = None, None, []
        self.lock = RLock()

    def run(self, inputs):
        """Predict.

        Parameters
        ----------
        inputs : list of numpy.ndarray, or dict of str to numpy.ndarray
            The first of the net's external inputs, in their order, or any by name; the others are as they were.

        Returns
        -------
        list of numpy.ndarray
            The net's external outputs.

        Raises
        ------
        RuntimeError
            If there are more inputs than the net has, a name is not one of its inputs, or an operator fails.
        """
        cdef Blob blob
        cdef dict arrays = {}
        if not isinstance(inputs, dict):
            inputs = list(inputs)
            if len(inputs) > len(self.inputs):
                raise RuntimeError(f"net {self.definition.name!r} takes {len(self.inputs)} inputs, not {len(inputs)}")
            inputs = dict(zip(self.inputs, inputs, strict=False))
        for name, value in inputs.items():
            arrays[name] = value if isinstance(value, np.ndarray) else np.asarray(value)
        with self.lock:
            for name in arrays:
                if name not in self.given:
                    self.admit(name)
            if self.net is None:
                self.bind(arrays)
            if self.divides and len(arrays) == 1:
                (name, value), = arrays.items()
                blob = self.given[name]
                if blob is not self.whole or not has_shape(blob, value):
                    division, joined = self.divide(name, value.shape)
                    if division.parts > 1 or division.groups > 1:
                        self.whole = None
                        results = [self.run_part(blob, part, division, joined)
                                   for part in np.array_split(value, division.parts)]
                        return [np.concatenate(columns) for columns in zip(*results)]
                    self.whole = blob
            for name, value in arrays.items():
                blob = self.given[name]
                from_numpy(&blob.t, value)
                blob.value = None
            self.net.run()
            return self.fetch()

    cdef admit(self, name):
        """Take note of the blob of an input, if it may be given."""
        if name not in self.inputs:
            raise RuntimeError(f"{name!r} is not an input of net {self.definition.name!r}")
        if name in self.folded:
            raise RuntimeError(f"{name!r} went into other parameters of net {self.definition.name!r} when it first "
                               "ran; make the Predictor with optimize=False, or give it from the first run on")
        self.given[name] = self.workspace.create_local(name)

    cdef bind(self, dict arrays):
        """Bind the net, optimized for inputs of these shapes."""
        if self.optimize:
            self.rewrite(arrays)
        self.net = bind_net(self.definition, self.workspace)
        self.results = [self.workspace[name] for name in self.outputs]

    cdef list fetch(self):
        cdef Blob blob
        return [to_numpy(&blob.t, False) if blob.t.dtype != UNDEFINED else blob.fetch() for blob in self.results]

    cdef list run_part(self, Blob data, rows, division, joined):
        """Predict for a part of a batch; see `divide`."""
        done = 0
        for group in np.array_split(rows, division.groups):
            data.feed(group)
            if division.cut:
                self.net.run(1, 0, division.cut)
            for blob, whole in joined:
                blob.put_rows(whole, len(rows), done)
            done += len(group)
        for blob, whole in joined:
            blob.swap(whole)
        self.net.run(1, division.cut)
        result = self.fetch()
        for blob, whole in joined:      # each keeps its size of memory
            blob.swap(whole)
        return result

    def divide(self, data, shape):
        """How a batch of that shape is divided: a `Division`, and (blob, Tensor) pairs of what its parts write."""
        from caffe2.python.inference_optimizer import divide

        if self.divided[0] != (data, shape):
            shapes = {n: b.tensor().shape for n, b in self.workspace.blobs.items() if b.is_tensor}
            division = divide(self.definition, data, {**shapes, data: shape}, BATCH_MEMORY)
            joined = [(self.workspace[name], Tensor()) for name in division.joined]
            self.divided = (data, shape), division, joined
        return self.divided[1:]

    cdef rewrite(self, dict inputs):
        """Optimize the net for inputs of these shapes; what is given now is not taken for constant."""
        from caffe2.python.inference_optimizer import optimize

        self.optimize = False
        workspace = self.workspace
        constants = {n for n in workspace.local_names() if workspace[n].is_tensor}.difference(inputs)
        self.definition, parameters, self.folded = optimize(
            self.definition, constants, lambda n: workspace[n].view(), {n: v.shape for n, v in inputs.items()})
        for name, value, freed in parameters:
            workspace.create_local(name).feed(value)
            for old in freed:
                workspace.remove(old)


cdef bint has_shape(Blob blob, cnp.ndarray a) noexcept:
    cdef int i
    if blob.t.dtype == UNDEFINED or blob.t.ndim != cnp.PyArray_NDIM(a):
        return False
    for i in range(blob.t.ndim):
        if blob.t.shape[i] != cnp.PyArray_DIM(a, i):
            return False
    return True

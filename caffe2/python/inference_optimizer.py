"""Rewrites nets for inference: same external outputs, fewer operators, less memory.

In this order:

1. What only matters in training goes: Dropout with ``is_test``, StopGradient, copies.
2. SpatialBN with ``is_test``, AffineChannel, Scale, and Mul, Div, Add and Sub of constants, one for each channel, go
   into the filters and the bias of the convolution or FC before them. This is computed in float64 and rounded once.
3. Relu, Clip, and Sum or Add of two tensors of one shape go into the convolution before them (ConvFused); Relu, Sum
   and Add into the FC (FCFused).
4. Operators on whose outputs nothing depends go.
5. Convolutions write their parts of what Concat would join, where nobody else reads these (in simple nets).
6. A depthwise convolution goes into the one of 1x1 pixels that alone reads it (SeparableConv).
7. Intermediate blobs that are never needed at the same time become one blob.

Outputs differ from those of the original nets by rounding: by less than 1e-5 of the largest value in nets of usual
depth. Nothing is folded that is not finite, that some operator writes, or that is not on the CPU; operators with
nets inside, or with effects beyond their outputs, stay as they are, and so do their blobs.
"""
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from caffe2._core import gradient, inference
from caffe2._core.args import Args
from caffe2._core.schema import UNKNOWN, OpSchema, TensorInfo
from caffe2.ops.separable import join
from caffe2.ops.windows import is_pixelwise
from caffe2.proto import caffe2_pb2

_CONVOLUTIONS = {"Conv", "Conv1D", "Conv2D", "Conv3D"}
_FUSED = {**dict.fromkeys(_CONVOLUTIONS, "ConvFused"), "FC": "FCFused"}
_COPIES = {"StopGradient", "Copy", "Alias", "EnsureCPUOutput"}
_EFFECTS = {"Python", "PythonDLPack", "NanCheck", "Alias", "AliasWithName", "Free"}
_RESIDUAL = {"ConvFused": 3, "FCFused": 3, "SeparableConv": 5}      # which input of what is fused it is
_ONE_SHAPE = {"Sum", "SpatialBN", "AffineChannel", *_RESIDUAL}   # of several inputs, of one shape where in place
_ROW_BY_ROW = _CONVOLUTIONS | {
    *_RESIDUAL, "FC", "Relu", "Clip", "Sigmoid", "Tanh", "Elu", "LeakyRelu", "PRelu", "MaxPool",
    "AveragePool", "LRN",
    "SpatialBN", "AffineChannel", "Dropout", "Softmax", "Concat", "Sum", "Copy", "Flatten",
}
_FILLS = {"float32": "", "float64": "Double", "int32": "Int", "int64": "Int64", "int16": "Int16", "bool": "Bool"}
_FLOATS_FIELD = 5           # of Argument
_REPEATABLE = {"ConstantFill", "LengthsRangeFill", "RangeFill", "DiagonalFill", "Load"}


def is_pure(op_type: str) -> bool:
    """Whether an operator does nothing but compute its outputs: differentiable ones, with few exceptions."""
    maker = gradient._MAKERS.get(op_type)
    return op_type in _RESIDUAL or op_type == "AffineChannel" or (
        maker not in (None, gradient.none) and op_type not in _EFFECTS)


def _nested(op: Any) -> list[str]:
    """Names that an operator's nets mention."""
    names = []
    for a in op.arg:
        for net in ([a.n] if a.HasField("n") else []) + list(a.nets):
            names += [*net.external_input, *net.external_output]
            for inner in net.op:
                names += [*inner.input, *inner.output, *_nested(inner)]
    return names


class _Rewriter:
    """A predict net in which every blob that may be renamed has one writer."""

    shapes: Mapping[str, tuple] = {}            # as far as they are known

    def __init__(self, net: Any, constants: Collection[str], fetch: Callable[[str], Any]):
        self.net, self.fetch = net, fetch
        self.outputs = list(net.external_output)
        if not self.outputs:
            read = {name for op in net.op for name in op.input}
            self.outputs = [name for op in net.op for name in op.output if name not in read]
        self.written = {name for op in net.op for name in op.output}
        self.constants = set(constants) - self.written
        self.biases: dict[str, np.ndarray] = {}                     # new ones, float64
        self.weights: dict[str, tuple[str, np.ndarray]] = {}        # new ones: which, by what for each filter
        self.folded: set[str] = set()                               # parameters that went into them
        self.names = self.written | self.constants | set(net.external_input)
        for op in net.op:
            self.names.update(op.input)
        self.ops = self._single_assignment()
        self.uses = Counter(name for op in self.ops for name in op.input) + Counter(set(self.outputs))

    def new_name(self, name: str) -> str:
        base, i = name, 0
        while name in self.names:
            i += 1
            name = f"{base}_{i}"
        self.names.add(name)
        return name

    def _single_assignment(self) -> list:
        """Copies of the operators; a name that is written twice becomes two, where nobody else knows it."""
        kept, seen = set(self.net.external_input), set()
        for op in self.net.op:
            kept.update(_nested(op))
            kept.update(op.control_input)
            kept.update(name for name in op.input if name not in seen)      # read before it is written
            schema = OpSchema.get(op.type)
            if not is_pure(op.type) and (schema is None or schema.enforce_inplace or set(op.input) & set(op.output)):
                kept.update(op.input)
                kept.update(op.output)
            seen.update(op.output)
        last = {name: i for i, op in enumerate(self.net.op) for name in op.output}
        current: dict[str, str] = {}
        self.single: set[str] = set()
        ops = []
        for i, original in enumerate(self.net.op):
            op = caffe2_pb2.OperatorDef()
            op.CopyFrom(original)
            op.input[:] = [current.get(name, name) for name in op.input]
            for k, name in enumerate(original.output):
                if name in kept:
                    continue
                final = last[name] == i and name in self.outputs
                taken = name in current or name in self.outputs
                op.output[k] = current[name] = name if final or not taken else self.new_name(name)
                self.single.add(current[name])
            ops.append(op)
        return ops

    # ------------------------------------------------------------ passes

    def rewrite(self, only: str | None = None) -> None:
        """Passes 1 to 6, or what is done with operators of one type."""
        self.replaced: dict[str, str] = {}
        self.position: dict[str, int] = {}          # of the operator that writes a blob
        self.result: list = []
        steps = defaultdict(lambda: None, {
            "SpatialBN": self._affine, "AffineChannel": self._affine, "Scale": self._affine, "Mul": self._affine,
            "Div": self._affine, "Sub": self._affine, "Add": self._add, "Sum": self._residual,
            "Relu": self._activation, "Clip": self._activation, "Dropout": self._copy,
            **dict.fromkeys(_COPIES, self._copy)})
        for op in self.ops:
            op.input[:] = [self.replaced.get(name, name) for name in op.input]
            step = steps[op.type] if only in (None, op.type) else None
            if step is None or not self._on_cpu(op) or not step(op):
                self._append(op)
        self.ops = [op for op in self.result if op is not None]
        if only is None:
            self._drop_dead()
            if self.net.type in ("", "simple"):
                self._join()
            self._merge_depthwise()

    def _append(self, op: Any) -> None:
        self.position.update(dict.fromkeys(op.output, len(self.result)))
        self.result.append(op)

    def _on_cpu(self, op: Any) -> bool:
        return op.device_option.device_type == self.net.device_option.device_type == caffe2_pb2.CPU

    def _copy(self, op: Any) -> bool:
        """Let the readers of a copy read the original."""
        if op.type == "Dropout" and not Args(op).bool("is_test"):
            return False
        source, target = op.input[0], op.output[0]
        if target not in self.single or any(self.uses[name] for name in op.output[1:]):
            return False
        if target not in self.outputs:
            if source not in self.single and source in self.written:
                return False
            self.replaced[target] = source
            self.uses[source] += self.uses[target] - 1
            return True
        # an external output keeps its name: whoever writes the original writes it, and whoever reads it reads it
        if source not in self.single or source in self.outputs or source not in self.position:
            return False
        for other in filter(None, self.result):
            for names in (other.input, other.output):
                names[:] = [target if name == source else name for name in names]
        self.position[target] = self.position.pop(source)
        self.replaced[source] = target
        self.replaced.update({k: target for k, v in self.replaced.items() if v == source})
        self.uses[target] += self.uses[source] - 1
        return True

    def _source(self, name: str, types: Collection[str]) -> Any:
        """The operator that writes a blob which nobody but one operator reads, if it is of one of some types."""
        if name not in self.single or name not in self.position or self.uses[name] != 1:
            return None
        op = self.result[self.position[name]]
        return op if op.type in types and self._on_cpu(op) else None

    def _output(self, source: Any, op: Any) -> bool:
        """Let `source` write what `op` was to write."""
        at = self.position.pop(source.output[0])
        source.output[0] = op.output[0]
        self.position[op.output[0]] = at
        return True

    def _constant(self, name: str) -> np.ndarray | None:
        """A float parameter's value."""
        if name in self.biases:
            return self.biases[name]
        value = self.fetch(name) if name in self.constants else None
        return value if isinstance(value, np.ndarray) and value.dtype == np.float32 else None

    # ------------------------------------------------------------ folding

    def _affine(self, op: Any) -> bool:
        """Y = scale X + shift, channel by channel: into the filters and the bias."""
        for k in range(min(2, len(op.input))):
            source = self._source(op.input[k], {*_CONVOLUTIONS, "FC"})
            if source is not None and op.output[0] in self.single and len(op.output) == 1:
                break
        else:
            return False
        args = Args(source)
        original, before = self.weights.get(source.input[1], (source.input[1], 1.0))
        weight = self._constant(original)
        if weight is None or (source.type == "FC" and (args.int("axis", 1) != 1 or args.int("axis_w", 1) != 1)):
            return False
        ndim = 2 if source.type == "FC" else weight.ndim
        last = source.type != "FC" and args.str("order", "NCHW") == "NHWC"
        folded = self._scale_and_shift(op, k, len(weight), ndim, ndim - 1 if last else 1)
        bias = np.zeros(len(weight)) if len(source.input) < 3 else self._constant(source.input[2])
        if folded is None or bias is None or bias.shape != (len(weight),):
            return False
        scale, shift, used = folded
        largest = np.abs(weight).reshape(len(weight), -1).max(1, initial=0)
        with np.errstate(all="ignore"):
            bias = bias * scale + shift
            scale = scale * before
            if not np.isfinite([(largest * scale).astype(np.float32), bias.astype(np.float32)]).all():
                return False
        names = source.input[1], source.input[2] if len(source.input) > 2 else original + "_bias"
        if names[0] not in self.weights:
            self.folded.update(source.input[1:])
            names = [self.new_name(name + "_folded") for name in names]
        self.folded.update(used)
        self.weights[names[0]], self.biases[names[1]] = (original, scale), bias
        source.input[1:] = names
        return self._output(source, op)

    def _scale_and_shift(self, op: Any, k: int, channels: int, ndim: int, axis: int) -> tuple | None:
        """What an operator does to each channel of its input k, and the parameters that say so."""
        args = Args(op)
        ones, zeros = np.ones(channels), np.zeros(channels)
        if op.type == "Scale":
            return (ones * np.float32(args.float("scale", 1.0)), zeros, ()) if k == 0 else None
        if op.type in ("SpatialBN", "AffineChannel"):
            values = [self._constant(name) for name in op.input[1:]]
            values = [None if v is None else v.astype(np.float64) for v in values]
            nhwc = args.str("order", "NCHW") == "NHWC"
            if k or any(v is None or v.shape != (channels,) for v in values) or axis != (ndim - 1 if nhwc else 1):
                return None
            if op.type == "AffineChannel":
                return (*values, op.input[1:])
            if not args.bool("is_test") or len(values) != 4:
                return None
            scale, shift, mean, var = values
            with np.errstate(all="ignore"):
                scale = scale / np.sqrt(var + np.float32(args.float("epsilon", 1e-5)))
                return scale, shift - mean * scale, op.input[1:]
        # elementwise with a constant
        if len(op.input) != 2 or (k == 1 and (op.type in ("Div", "Sub") or "broadcast" in args)):
            return None
        value = self._constant(op.input[1 - k])
        if value is None or value.ndim > ndim:
            return None
        behind = 0
        if args.bool("broadcast") and args.int("axis", -1) >= 0 and value.size > 1:
            behind = ndim - args.int("axis") - value.ndim
            if behind < 0:
                return None
        shape = (1,) * (ndim - value.ndim - behind) + value.shape + (1,) * behind
        if any(n != 1 and not (i == axis and n == channels) for i, n in enumerate(shape)):
            return None
        value = value.astype(np.float64).ravel() * ones
        with np.errstate(all="ignore"):
            scale = {"Mul": value, "Div": 1 / value}.get(op.type, ones)
        return scale, {"Add": value, "Sub": -value}.get(op.type, zeros), [op.input[1 - k]]

    # ------------------------------------------------------------ fusing

    def _activation(self, op: Any) -> bool:
        """Relu and Clip: into the convolution; Relu: into the FC."""
        source = self._source(op.input[0], {*_CONVOLUTIONS, "ConvFused"} if op.type == "Clip"
                              else {*_FUSED, *_FUSED.values()})
        if (source is None or op.output[0] not in self.single or _has_activation(source)
                or not self._bias(source, make=False)):
            return False
        self._bias(source)
        source.type = _FUSED.get(source.type, source.type)
        if op.type == "Relu":
            source.arg.add(name="relu", i=1)
        else:
            args, limit = Args(op), float(np.finfo(np.float32).max)
            source.arg.add(name="low", f=args.float("min", -limit))
            source.arg.add(name="high", f=args.float("max", limit))
        return self._output(source, op)

    def _add(self, op: Any) -> bool:
        """Add, of a constant or of a tensor of the same shape."""
        if self._affine(op):
            return True
        a, b = (self.shapes.get(name) for name in op.input)
        return a is not None and a == b and -1 not in a and self._residual(op)

    def _residual(self, op: Any) -> bool:
        """Sum of two tensors: into the convolution or FC that gives one of them, the later one if both are such."""
        if len(op.input) != 2 or op.output[0] not in self.single:
            return False
        candidates = []
        for k, name in enumerate(op.input):
            source, other = self._source(name, _FUSED), op.input[1 - k]
            stable = other in self.single or other not in self.written
            if source is not None and stable and self._bias(source, make=False):
                candidates.append((self.position[name], source, other))
        if not candidates:
            return False
        at, source, other = max(candidates, key=lambda c: c[0])
        if self.position.get(other, -1) > at:       # it must wait for the other one
            if any(name in self.written and name not in self.single for name in source.input):
                return False
            self.result[at] = None
            del self.position[source.output[0]]
            self._append(source)
        source.type = _FUSED[source.type]
        self._bias(source)
        source.input.append(other)
        return self._output(source, op)

    def _bias(self, source: Any, make: bool = True) -> bool:
        """Give a convolution a bias where it has none; whether that is possible."""
        if len(source.input) > 2:
            return True
        weight = self._constant(source.input[1])        # not a folded one: it has a bias
        if make:
            name = self.new_name(source.input[1] + "_bias")
            self.biases[name] = np.zeros(len(weight))
            source.input.append(name)
        return weight is not None

    def parameters(self) -> Iterator[tuple[str, np.ndarray, set[str]]]:
        """New parameters, one at a time: name, value, and which of the old ones count no more from then on."""
        read = {name for op in self.ops for name in op.input}
        last = {original: name for name, (original, _) in self.weights.items() if name in read}
        for name in read.intersection(self.biases):
            yield name, self.biases[name].astype(np.float32), set()
        for name, (original, scale) in self.weights.items():
            if name in read:
                weight = self.fetch(original)
                value = np.empty_like(weight)
                for i, s in enumerate(scale):
                    np.multiply(weight[i], s, out=value[i], casting="same_kind", dtype=np.float64)
                yield name, value, {original} - read if last[original] == name else set()

    # ------------------------------------------------------------ what is not needed

    def _drop_dead(self) -> None:
        needed = set(self.outputs)
        kept = []
        for op in reversed(self.ops):
            if not is_pure(op.type) or not self.single.issuperset(op.output) or needed.intersection(op.output):
                if op.type == "LRN" and self.single.difference(needed).issuperset(op.output[1:]):
                    del op.output[1:]       # for its gradient
                kept.append(op)
                needed.update(op.input)
                needed.update(op.control_input)
                needed.update(_nested(op))
        self.ops = kept[::-1]

    # ------------------------------------------------------------ joining

    def _join(self) -> None:
        """Pass 5: Concat of what convolutions give."""
        self.uses = Counter(name for op in self.ops for name in op.input) + Counter(set(self.outputs))
        writers = {name: (i, op) for i, op in enumerate(self.ops) for name in op.output}
        kept = []
        for op in self.ops:
            sources = [writers.get(name, (0, None)) for name in op.input]
            parts = [self._channels(source, name) for name, (_, source) in zip(op.input, sources, strict=True)]
            if len(parts) < 2 or None in parts or any(n % 16 for n in parts[:-1]) or not self._joins_channels(op):
                kept.append(op)
                continue
            first = min(i for i, _ in sources)
            for k, (i, source) in enumerate(sources):
                self._bias(source)
                source.type = "ConvFused"
                source.arg.add(name="parts").ints.extend(parts)
                source.arg.add(name="part", i=k)
                source.arg.add(name="joins", i=int(i > first))
                source.output[0] = op.output[0]
        self.ops = kept

    def _joins_channels(self, op: Any) -> bool:
        """Whether it is a Concat of whose outputs the first alone counts, along axis 1."""
        if op.type not in ("Concat", "DepthConcat") or op.control_input or not self._on_cpu(op):
            return False
        args = Args(op)
        axis = args.int("axis", {"NHWC": 3}.get(args.str("order", "NCHW").upper(), 1))
        return (axis in (1, -3) and not args.bool("add_axis") and self.single.issuperset(op.output)
                and not any(self.uses[name] for name in op.output[1:]))

    def _channels(self, source: Any, name: str) -> int | None:
        """Of a blob, if it is written by a convolution that could write it into another, and read there alone."""
        if source is None or source.type not in ("Conv", "Conv2D", "ConvFused") or not self._on_cpu(source) or (
                name not in self.single or self.uses[name] != 1 or len(source.input) > 3 or source.control_input
                or Args(source).str("order", "NCHW").upper() != "NCHW" or not self._bias(source, make=False)):
            return None
        shape = self._filter_shape(source)
        return shape[0] or None if len(shape) == 4 else None

    # ------------------------------------------------------------ depthwise convolutions

    def _merge_depthwise(self) -> None:
        """Pass 6."""
        self.uses = Counter(name for op in self.ops for name in op.input) + Counter(set(self.outputs))
        writers = {name: op for op in self.ops for name in op.output}
        merged = []
        for i, op in enumerate(self.ops):
            source = writers.get(op.input[0]) if op.input else None
            if self._is_convolution(op) and is_pixelwise(Args(op)) and self._is_depthwise(source):
                self._bias(source)
                self._bias(op)
                self.ops[i] = join(source, op)
                merged.append(source)
        self.ops = [op for op in self.ops if not any(op is source for source in merged)]

    def _is_convolution(self, op: Any) -> bool:
        """Of images, by a constant filter."""
        return (op is not None and op.type in ("Conv", "Conv2D", "ConvFused") and self._on_cpu(op)
                and not op.control_input and self._bias(op, make=False) and len(self._filter_shape(op)) == 4)

    def _is_depthwise(self, op: Any) -> bool:
        """Whether it could go where its answers are read, which is in one place, and gains by it."""
        if not self._is_convolution(op) or len(op.input) > 3 or self.uses[op.output[0]] != 1 or (
                not self.single.issuperset(op.output)
                or any(name in self.written and name not in self.single for name in op.input)):
            return False
        args, shape = Args(op), self._filter_shape(op)
        return (args.int("group", 1) == shape[0] > 1 == shape[1] and args.str("order", "NCHW").upper() == "NCHW"
                and "parts" not in args and args.float("low", 0) <= 0 <= args.float("high", 0))

    def _filter_shape(self, op: Any) -> tuple:
        weight = self._constant(self.weights.get(op.input[1], (op.input[1],))[0])
        return () if weight is None else weight.shape

    # ------------------------------------------------------------ memory

    def share_memory(self, infos: Mapping[str, TensorInfo]) -> None:
        """Pass 7: largest blobs first, each takes the first storage that is free while it lives."""
        plain = set(self.single).difference(self.outputs)
        for op in self.ops:
            if not is_pure(op.type):
                plain.difference_update(op.input, op.output)
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for i, op in enumerate(self.ops):
            last.update({name: i for name in op.input if name in first})
            for name in plain.intersection(op.output):
                first.setdefault(name, i)
        sizes = {name: _nbytes(infos.get(name)) for name in last}
        storages: list[list[str]] = []
        for name in sorted(last, key=lambda n: (-sizes[n], first[n])):
            fits = [s for s in storages if all(self._apart(name, other, first, last, sizes) for other in s)]
            if fits:
                # the one used most recently before: it may still be in the cache
                max(fits, key=lambda s: max((last[o] for o in s if last[o] <= first[name]), default=-1)).append(name)
            else:
                storages.append([name])
        renamed = {}
        for i, names in enumerate(storages):
            if len(names) > 1:
                renamed.update(dict.fromkeys(names, self.new_name(f"__m{i}_shared")))
        for op in self.ops:
            for names in (op.input, op.output):
                names[:] = [renamed.get(name, name) for name in names]

    def _apart(self, a: str, b: str, first: Mapping, last: Mapping, sizes: Mapping) -> bool:
        """Whether two blobs are never needed at once, or one may take the other's place."""
        if first[a] > first[b]:
            a, b = b, a
        if last[a] != first[b]:
            return last[a] < first[b]
        op = self.ops[first[b]]
        schema = OpSchema.get(op.type)
        return (first[a] < first[b] and sizes[a] == sizes[b] and a in op.input and len(op.output) == 1
                and (len(op.input) == 1 or op.type in _ONE_SHAPE)
                and all(schema.inplace_allowed(i, 0) for i, name in enumerate(op.input) if name == a))


def _has_activation(op: Any) -> bool:
    return any(a.name in ("relu", "low", "high") for a in op.arg)


def _nbytes(info: TensorInfo | None) -> int:
    return 0 if info is None or info.shape is None or -1 in info.shape else 4 * info.size


def fold_batch_norm(net: Any, workspace: Any) -> None:
    """Fold SpatialBN into the convolutions before them, with the parameters that a workspace holds.

    Parameters
    ----------
    net : NetDef
        Changed in place; other operators stay as they are.
    workspace : Workspace
        Is fed the new parameters, under new names.
    """
    tensors = [name for name, blob in workspace.blobs.items() if blob.is_tensor]
    rewriter = _Rewriter(net, tensors, lambda n: workspace[n].view())
    rewriter.names.update(workspace.names())
    rewriter.rewrite("SpatialBN")
    del net.op[:]
    net.op.extend(rewriter.ops)
    for name, value, _ in rewriter.parameters():
        workspace.feed_blob(name, value)
        net.external_input.append(name)


def optimize(
        predict_net: Any, constants: Collection[str], fetch: Callable[[str], Any],
        shapes: Mapping[str, Iterable[int]] | None = None,
        share_memory: bool = True) -> tuple[Any, Iterator[tuple[str, np.ndarray, set[str]]], set[str]]:
    """Rewrite a predict net.

    Parameters
    ----------
    predict_net : NetDef
        Not changed.
    constants : collection of str
        Blobs that hold the same values in every run.
    fetch : callable
        From the name of a constant to its value.
    shapes : dict of str to shape, optional
        Of the other inputs; memory is planned better where they are known, and Add is fused.
    share_memory : bool
        Whether intermediate blobs share names.

    Returns
    -------
    net : NetDef
    parameters : iterator
        What it needs that the original did not: name, value, and which of the old parameters are needed no more once
        this one is there.
    folded : set of str
        Parameters that it does not read, as their values went into the new ones.
    """
    rewriter = _Rewriter(predict_net, constants, fetch)
    known = {name: TensorInfo(shape) for name, shape in (shapes or {}).items()}
    if known:
        for name in rewriter.constants:
            value = fetch(name)
            if isinstance(value, np.ndarray) and value.dtype == np.float32:
                known.setdefault(name, TensorInfo(value.shape))
        if len(shapes) == 1:        # else tensors of one shape today may have several, to broadcast, tomorrow
            rewriter.shapes = {name: info.shape for name, info in _infer(rewriter.ops, known).items()}
    rewriter.rewrite()
    for name, (original, _) in rewriter.weights.items():
        known[name] = TensorInfo(fetch(original).shape)
    known.update((name, TensorInfo(value.shape)) for name, value in rewriter.biases.items())
    if share_memory and predict_net.type in ("", "simple"):
        rewriter.share_memory(_infer(rewriter.ops, known))
    net = caffe2_pb2.NetDef()
    net.CopyFrom(predict_net)
    del net.op[:]
    net.op.extend(rewriter.ops)
    read = {name for op in net.op for name in (*op.input, *_nested(op))}
    new = [name for name in (*rewriter.weights, *rewriter.biases) if name in read]
    net.external_input[:] = [n for n in net.external_input if n in read or n not in rewriter.constants] + new
    return net, rewriter.parameters(), rewriter.folded - read


def _infer(ops: list, known: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """What can be known of the blobs; nothing where inputs do not fit, which a run will report."""
    try:
        return inference.infer_nets([caffe2_pb2.NetDef(op=ops)], known)
    except inference.InferenceError:
        return {}


class Division(NamedTuple):
    """How a net runs on a batch.

    The batch is divided into `parts`, one after the other. Of each, operators before `cut` run on so many `groups` of
    rows in turn, which are then put together in the blobs `joined`; the other operators run on all of them.
    """

    parts: int = 1
    cut: int = 0
    groups: int = 1
    joined: tuple[str, ...] = ()


def divide(net: Any, data: str, shapes: Mapping[str, tuple], limit: int) -> Division:
    """Divide a batch, so that what lies between input and output of a net takes little memory.

    What takes most memory usually comes first in a net, and most parameters, which every run reads once more, last.
    So the operators in front run on fewer rows at a time: as many as read the fewest parameters in all.

    Parameters
    ----------
    net : NetDef
    data : str
        The input.
    shapes : dict of str to shape
        Of all inputs and parameters.
    limit : int
        Bytes that the input and what the operators write should not exceed together, where rows of the input go
        through the net independently.
    """
    steps = _row_by_row(net, data, shapes)
    if steps is None:
        return Division()
    batch, count = shapes[data][0], len(steps)
    before = _running_totals([blobs for blobs, _ in steps])
    after = _running_totals([blobs for blobs, _ in reversed(steps)])[::-1]
    if before[count] <= limit:
        return Division()
    parameters = [0, *accumulate(nbytes for _, nbytes in steps)]
    choices = []
    for cut in range(count + 1 if net.type in ("", "simple") else 1):
        share = limit / 2 if cut else limit
        parts = max(1, min(batch, math.ceil(after[cut] / share)))
        groups = max(1, min(math.ceil(batch / parts), math.ceil(before[cut] / parts / share)))
        read = parts * (groups * parameters[cut] + parameters[count] - parameters[cut])
        choices.append((read, parts, cut, groups))
    _, parts, cut, groups = min(choices)
    if groups == 1:
        return Division(parts)
    live = set(net.external_output)
    for op, (blobs, _) in zip(net.op[cut:][::-1], steps[cut:][::-1], strict=True):
        live.difference_update(() if Args(op).bool("joins") else op.output)
        live.update(blobs.keys() & set(op.input))
    return Division(parts, cut, groups, tuple(sorted(live)))


def _row_by_row(net: Any, data: str, shapes: Mapping[str, tuple]) -> list[tuple[dict[str, int], int]] | None:
    """Bytes of each of the blobs with rows that an operator reads or writes, and of its parameters, for all operators.

    None where rows of the input do not go through the net independently.
    """
    batch = shapes[data][0] if shapes[data] else 0
    current = {name: TensorInfo(shape) for name, shape in shapes.items()}
    rows, parameters = {data}, set()
    steps = []
    for op in net.op:
        args, axis = Args(op), 1
        if op.type in ("Softmax", "Concat", "FC", "FCFused", "Flatten"):
            axis = args.int("axis", 1)
        independent = op.type in _ROW_BY_ROW and axis > 0 and (
            op.type not in ("SpatialBN", "Dropout") or args.bool("is_test"))
        every = op.type in ("Sum", "Concat")
        for i, name in enumerate(op.input):
            independent &= (name in rows) == (i == 0 or every or i == _RESIDUAL.get(op.type))
        if not independent or len(op.output) > (2 if op.type == "Concat" else 1):
            return None
        outputs = inference.infer_operator(op, [current.get(name, UNKNOWN) for name in op.input])
        current.update(zip(op.output, outputs, strict=False))
        info = current[op.output[0]]
        if not info.shape or info.shape[0] != batch or -1 in info.shape or op.output[0] in parameters:
            return None
        read = set(op.input) - rows
        parameters |= read
        rows.add(op.output[0])
        blobs = rows.intersection((*op.input, op.output[0]))
        steps.append(({name: _nbytes(current[name]) for name in blobs}, sum(_nbytes(current.get(n)) for n in read)))
    return steps if rows.issuperset(net.external_output) else None


def _running_totals(steps: Iterable[Mapping[str, int]]) -> list[int]:
    """Sum of the largest sizes of each blob in the first 0, 1, 2, ... steps."""
    largest: Counter[str] = Counter()
    totals = [0]
    for blobs in steps:
        totals.append(totals[-1])
        for name, nbytes in blobs.items():
            totals[-1] += max(0, nbytes - largest[name])
            largest[name] = max(nbytes, largest[name])
    return totals


def fill(name: str, value: np.ndarray) -> Any:
    """An operator that fills a blob with an array.

    Raises
    ------
    TypeError
        If no operator fills tensors of this type.
    """
    kind = _FILLS.get(value.dtype.name)
    if kind is None:
        raise TypeError(f"no operator fills {name} with values of type {value.dtype}")
    op = caffe2_pb2.OperatorDef(type=f"GivenTensor{kind}Fill", output=[name])
    op.arg.add(name="shape").ints.extend(value.shape)
    values = op.arg.add(name="values")
    if value.dtype == np.float32:
        # as a packed field, which a parser takes at once: no Python object a value
        data = np.ascontiguousarray(value, "<f4").tobytes()
        values.MergeFromString(bytes([_FLOATS_FIELD << 3 | 2]) + _varint(len(data)) + data)
    elif value.dtype == np.float64:
        values.floats.extend(value.ravel().tolist())
    else:
        values.ints.extend(value.astype(np.int64).ravel().tolist())
    return op


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def optimize_nets(
        init_net: Any, predict_net: Any, shapes: Mapping[str, Iterable[int]] | None = None,
        share_memory: bool = True) -> tuple[Any, Any]:
    """Rewrite a model, given as two nets, for inference; see `caffe2.python.transformations.optimizeForInference`."""
    from caffe2._core.executor import bind_net
    from caffe2._core.workspace import Workspace

    workspace = Workspace()
    bind_net(init_net, workspace).run()
    tensors = [name for name, blob in workspace.blobs.items() if blob.is_tensor]
    net, new, _ = optimize(predict_net, tensors, lambda n: workspace[n].view(), shapes, share_memory)
    parameters = {name: value for name, value, _ in new}
    read = {name for op in net.op for name in (*op.input, *_nested(op))} | set(net.external_input)
    # What random fills gave is given from now on, or the folded parameters would not fit the others.
    random: set[str] = set()
    for op in init_net.op:
        repeats = op.type in _REPEATABLE or op.type.startswith("GivenTensor") or (
            is_pure(op.type) and op.type != "Dropout" and random.isdisjoint(op.input))
        random.update(() if repeats else op.output)
    values = {n: workspace[n].view() for n in sorted(random & read) if n in tensors}
    values = {n: v for n, v in values.items() if v.dtype.name in _FILLS} | parameters
    needed, kept = read - set(values), []
    for op in reversed(init_net.op):
        if not op.output or needed.intersection(op.output):
            kept.append(op)
            needed.update(op.input)
    init = caffe2_pb2.NetDef(
        name=init_net.name, type=init_net.type, device_option=init_net.device_option,
        external_input=init_net.external_input, op=kept[::-1])
    init.op.extend(fill(n, v) for n, v in values.items())
    return init, net

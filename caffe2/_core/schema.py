"""Operator schemas: what an operator takes, gives and means."""
from caffe2._core.args import Args

INF = 2**31 - 1
_DATA_TYPES = {*range(11), *range(12, 16)}      # of TensorProto


class Arg:
    """An argument's name, description and whether it must be given."""

    __slots__ = ("name", "description", "required")

    def __init__(self, name, description, required):
        self.name, self.description, self.required = name, description, required

    def __repr__(self):
        return f"Arg({self.name!r}, {self.description!r}{', required' if self.required else ''})"


class TensorInfo:
    """What is known of a tensor before it is computed.

    Attributes
    ----------
    shape : tuple of int or None
        None where unknown; -1 for an unknown dimension.
    dtype : int
        A number of ``TensorProto.DataType``.
    """

    __slots__ = ("shape", "dtype")

    def __init__(self, shape=None, dtype=1):
        self.shape = None if shape is None else tuple(int(d) for d in shape)
        if dtype not in _DATA_TYPES:
            raise ValueError(f"there is no data type {dtype}")
        self.dtype = dtype

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def size(self):
        n = 1
        for d in self.shape:
            n *= d
        return n

    def __eq__(self, other):
        return (self.shape, self.dtype) == (other.shape, other.dtype)

    def __repr__(self):
        return f"TensorInfo({self.shape}, {self.dtype})"


UNKNOWN = TensorInfo()


class OpSchema:
    """An operator's interface.

    Attributes
    ----------
    min_input, max_input, min_output, max_output : int
        Numbers of inputs and outputs; `inf` stands for no limit.
    args : list of Arg
    input_desc, output_desc : list of (str, str)
        Names and meanings.
    doc : str
    """

    inf = INF
    _all = {}

    def __init__(self, type, inputs, outputs, *, inplace=(), enforce_inplace=(), args=None, required=(), doc="",
                 ins=None, outs=None, infer=None, devices=None, cost=None, check=None):
        self.type = type
        self.min_input, self.max_input = _range(inputs)
        self.min_output, self.max_output = _range(outputs)
        self.inplace = inplace
        self.enforce_inplace = tuple(enforce_inplace)
        self.args = [Arg(n, d, n in required) for n, d in (args or {}).items()]
        self.doc = doc
        self.input_desc = list((ins or {}).items())
        self.output_desc = list((outs or {}).items())
        self._infer, self._devices, self._cost, self._check = infer, devices, cost, check

    @classmethod
    def get(cls, type):
        """The schema of an operator type, or None."""
        return cls._all.get(type)

    def num_inputs_allowed(self, n):
        return self.min_input <= n <= self.max_input

    def num_outputs_allowed(self, n):
        return self.min_output <= n <= self.max_output

    def inplace_allowed(self, i, o):
        """Whether input i and output o may be the same blob."""
        if self.inplace_enforced(i, o):
            return True
        return self.inplace(i, o) if callable(self.inplace) else (i, o) in self.inplace

    def inplace_enforced(self, i, o):
        """Whether input i and output o must be the same blob."""
        return (i, o) in self.enforce_inplace

    def verify(self, op):
        """Raise ValueError where an OperatorDef does not fit this schema."""
        for what, n, low, high in (("inputs", len(op.input), self.min_input, self.max_input),
                                   ("outputs", len(op.output), self.min_output, self.max_output)):
            if not low <= n <= high:
                wanted = str(low) if low == high else f"at least {low}" if high == INF else f"{low} to {high}"
                raise ValueError(f"takes {wanted} {what}, but was given {n}")
        if self._check is not None:
            self._check(op)
        for i, name in enumerate(op.input):
            for o, out in enumerate(op.output):
                if name == out and not self.inplace_allowed(i, o):
                    raise ValueError(f"input {i} and output {o} may not be the same blob ({name})")
        for i, o in self.enforce_inplace:
            if i < len(op.input) and o < len(op.output) and op.input[i] != op.output[o]:
                raise ValueError(f"input {i} ({op.input[i]}) and output {o} ({op.output[o]}) must be the same blob")
        if any(a.required for a in self.args):
            given = {a.name for a in op.arg}
            missing = [a.name for a in self.args if a.required and a.name not in given]
            if missing:
                raise ValueError(f"requires the argument {', '.join(missing)}")

    def infer(self, op, inputs):
        """Shapes and dtypes of the outputs.

        Parameters
        ----------
        op : OperatorDef
        inputs : list of TensorInfo

        Returns
        -------
        list of TensorInfo
            One an output; unknown where the operator or its inputs do not tell.
        """
        unknown = [TensorInfo() for _ in op.output]
        if self._infer is None:
            return unknown
        result = self._infer(Args(op), inputs)
        return (list(result) + unknown[len(result):])[:len(op.output)]

    def infer_devices(self, op):
        """Devices of the inputs and of the outputs: two lists of DeviceOption."""
        if self._devices is not None:
            return self._devices(op)
        return [op.device_option] * len(op.input), [op.device_option] * len(op.output)

    def cost(self, op, inputs):
        """``flops``, ``bytes_read``, ``bytes_written`` and ``params_bytes`` of one run, or None if not described."""
        return None if self._cost is None else self._cost(Args(op), inputs, self.infer(op, inputs))

    def __repr__(self):
        return f"<OpSchema {self.type}>"


def _range(n):
    """(least, most) of ``2``, ``(1, 3)`` or ``(1, None)``."""
    low, high = (n, n) if isinstance(n, int) else n
    return low or 0, INF if high is None else high


# ---------------------------------------------------------------- inference and in-place rules that many share

def same_as_input(i=0, outputs=1):
    """Every output has the shape and dtype of input i."""
    return lambda args, inputs: [inputs[i]] * max(outputs, len(args.definition.output))


def like(*indices, dtype=None):
    """Output k has the shape (and, unless given, dtype) of input indices[k]."""
    def infer(args, inputs):
        return [inputs[i] if dtype is None else TensorInfo(inputs[i].shape, dtype) for i in indices]
    return infer


def scalar(dtype=None, outputs=1):
    """Every output is a 0-dimensional tensor."""
    return lambda args, inputs: [TensorInfo((), inputs[0].dtype if dtype is None else dtype)] * outputs


def one_to_one(i, o):
    """In-place rule: output k may be input k."""
    return i == o


def anything(i, o):
    """In-place rule: any output may be any input."""
    return True


def flops_per_element(n):
    """Cost of an operator that does n operations for each element of its first output."""
    def cost(args, inputs, outputs):
        def nbytes(infos):
            return sum(4 * t.size for t in infos if t.shape is not None)
        size = outputs[0].size if outputs and outputs[0].shape is not None else 0
        return dict(flops=n * size, bytes_read=nbytes(inputs), bytes_written=nbytes(outputs), params_bytes=0)
    return cost

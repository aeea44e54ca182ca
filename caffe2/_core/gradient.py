"""Gradient makers: from an operator to the operators that compute its gradient."""
from caffe2._core.args import Args
from caffe2._core.schema import OpSchema

_MAKERS = {}


class GradientWrapper:
    """The gradient of one blob: a dense blob, or the indices and values of a sparse one; empty where there is none."""

    __slots__ = ("dense", "indices", "values")

    def __init__(self, dense="", indices="", values=""):
        self.dense, self.indices, self.values = dense, indices, values

    def is_dense(self):
        return bool(self.dense)

    def is_sparse(self):
        return bool(self.indices or self.values)

    def is_empty(self):
        return not self.is_dense() and not self.is_sparse()

    def __repr__(self):
        return f"GradientWrapper(dense={self.dense!r}, indices={self.indices!r}, values={self.values!r})"


class Gradient:
    """What a gradient maker sees: an operator and the gradients of its outputs.

    A maker is a function of one `Gradient` that returns one OperatorDef or a list of them, in order, usually made by
    `op`. Names of blobs: ``I(i)``, ``O(i)`` are the operator's own; ``GO(i)`` is the gradient of output i; ``GI(i)``
    names, and thereby announces, the dense gradient of input i; ``GI_I(i)``, ``GI_V(i)`` the indices and values of a
    sparse one.
    """

    def __init__(self, definition, output_grads):
        self.definition = definition
        self.output_grads = [g if isinstance(g, GradientWrapper) else GradientWrapper(g or "") for g in output_grads]
        self.output_grads += [GradientWrapper() for _ in range(len(definition.output) - len(output_grads))]
        self.input_grads = [GradientWrapper() for _ in definition.input]
        self._args = None

    @property
    def args(self):
        if self._args is None:
            self._args = Args(self.definition)
        return self._args

    @property
    def num_inputs(self):
        return len(self.definition.input)

    @property
    def num_outputs(self):
        return len(self.definition.output)

    def I(self, i):  # noqa: E743
        return self.definition.input[i]

    def O(self, i):  # noqa: E743
        return self.definition.output[i]

    def GO(self, i):
        g = self.output_grads[i]
        if g.is_sparse():
            raise ValueError(f"{self.definition.type} needs a dense gradient of output {self.O(i)}, but it is sparse")
        if not g.dense:
            raise ValueError(f"{self.definition.type}: the gradient of output {self.O(i)} is needed, but there is none")
        return g.dense

    def GO_I(self, i):
        return self.output_grads[i].indices

    def GO_V(self, i):
        return self.output_grads[i].values

    def has_GO(self, i):
        return not self.output_grads[i].is_empty()

    def GI(self, i):
        name = self.I(i) + "_grad"
        self.set_dense(i, name)
        return name

    def GI_I(self, i):
        if self.input_grads[i].is_dense():
            raise ValueError(f"the gradient of input {self.I(i)} cannot be dense and sparse")
        self.input_grads[i].indices = name = self.I(i) + "_grad_indices"
        return name

    def GI_V(self, i):
        if self.input_grads[i].is_dense():
            raise ValueError(f"the gradient of input {self.I(i)} cannot be dense and sparse")
        self.input_grads[i].values = name = self.I(i) + "_grad_values"
        return name

    def set_dense(self, i, name):
        """Announce that blob `name` is the gradient of input i."""
        if self.input_grads[i].is_sparse():
            raise ValueError(f"the gradient of input {self.I(i)} cannot be dense and sparse")
        self.input_grads[i].dense = name

    def set_sparse(self, i, indices, values):
        """Announce that blobs `indices` and `values` are the gradient of input i."""
        if self.input_grads[i].is_dense():
            raise ValueError(f"the gradient of input {self.I(i)} cannot be dense and sparse")
        self.input_grads[i].indices, self.input_grads[i].values = indices, values

    def op(self, type, inputs, outputs, *, copy_args=True, **args):
        """An OperatorDef on the forward operator's device and engine, with its arguments unless told otherwise."""
        from caffe2.proto import caffe2_pb2

        d = caffe2_pb2.OperatorDef(type=type, name="")
        d.input.extend(inputs)
        d.output.extend(outputs)
        if copy_args:
            d.arg.extend(a for a in self.definition.arg if a.name not in args)
        for name, value in args.items():
            _set(d.arg.add(name=name), value)
        return d


def _set(argument, value):
    if isinstance(value, (bool, int)):
        argument.i = int(value)
    elif isinstance(value, float):
        argument.f = value
    elif isinstance(value, (str, bytes)):
        argument.s = value.encode() if isinstance(value, str) else value
    elif all(isinstance(v, int) for v in value):
        argument.ints.extend(value)
    elif all(isinstance(v, (int, float)) for v in value):
        argument.floats.extend(float(v) for v in value)
    else:
        argument.strings.extend(v.encode() if isinstance(v, str) else v for v in value)


def simple(type, inputs, outputs, **args):
    """A maker of one operator, its blobs written as ``"I0 O0 GO0"`` and ``"GI0"``.

    ``simple("ReluGradient", "O0 GO0", "GI0")`` makes ReluGradient(Y, dY) -> dX.
    """
    inputs, outputs = inputs.split(), outputs.split()

    def maker(g):
        def blob(word):
            kind, i = word.rstrip("0123456789"), int(word.lstrip("GIOV_"))
            return getattr(g, kind)(i)
        return g.op(type, [blob(w) for w in inputs], [blob(w) for w in outputs], **args)
    return maker


def none(g):
    """Maker of an operator that passes no gradient on (its inputs count as constants)."""
    return []


def set_maker(type, maker):
    _MAKERS[type] = maker


def has_maker(type):
    return type in _MAKERS


def gradient_ops(definition, output_grads):
    """Operators that compute the gradient of one operator.

    Parameters
    ----------
    definition : OperatorDef
    output_grads : list of GradientWrapper or str
        Gradients of its outputs, empty where there is none.

    Returns
    -------
    list of OperatorDef, list of GradientWrapper
        The operators, and the gradients of the inputs.

    Raises
    ------
    RuntimeError
        If no gradient is known for that operator type, or the operator does not fit its schema.
    """
    maker = _MAKERS.get(definition.type)
    if maker is None:
        raise RuntimeError(f"operator {definition.type} has no gradient")
    schema = OpSchema.get(definition.type)
    if schema is not None:
        try:
            schema.verify(definition)
        except ValueError as e:
            raise RuntimeError(f"operator {definition.type} does not fit its schema: {e}") from e
    g = Gradient(definition, output_grads)
    ops = maker(g)
    ops = list(ops) if isinstance(ops, (list, tuple)) else [ops]
    for op in ops:
        op.is_gradient_op = True
        if definition.HasField("device_option") and not op.HasField("device_option"):
            op.device_option.CopyFrom(definition.device_option)
        if definition.engine and not op.engine:
            op.engine = definition.engine
    return ops, g.input_grads

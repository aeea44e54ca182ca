"""Operators whose computation is a Python function."""
import itertools
import pickle

from caffe2._core.operator import Operator
from caffe2._core.registry import register
from caffe2._core.schema import anything

_functions = {}         # token -> (function, whether it takes the workspace)
_gradients = {}         # token -> function
_numbers = itertools.count()


def register_python_op(function, pass_workspace=False, name=""):
    """Keep a function for ``Python`` operators; returns the token by which they name it.

    Parameters
    ----------
    function : callable or tuple
        ``function(inputs, outputs)``, lists of `Tensor`; or (builder, args, kwargs), where ``builder(*args, **kwargs)``
        returns that function when the operator is bound.
    pass_workspace : bool
        Whether it takes the workspace as its third argument.
    """
    token = f"{name or getattr(function, '__name__', 'function')}:{next(_numbers)}"
    _functions[token] = function, pass_workspace
    return token


def register_python_gradient_op(token, function):
    """Keep the function of the gradient of a ``Python`` operator."""
    if token not in _functions:
        raise RuntimeError(f"no Python operator has the token {token!r}")
    _gradients[token] = function


def _built(function):
    if isinstance(function, tuple):
        builder, args, kwargs = function
        return builder(*args, **kwargs)
    return function


class Python(Operator):
    """Calls a registered function with lists of the input and output tensors."""

    gradient = False

    def setup(self):
        pickled = self.args.bytes("pickled_grad_builder" if self.gradient else "pickled_builder")
        if pickled:
            self.pass_workspace = self.args.bool("pass_workspace")
            try:
                builder, args, kwargs = pickle.loads(pickled)
            except Exception as e:
                raise ValueError(f"the builder is not a pickle of (builder, args, kwargs): {e}") from e
            self.function = builder(*args, **kwargs)
            return
        token = self.args.str("token")
        table = _gradients if self.gradient else _functions
        if not token:
            raise ValueError("requires the argument token or pickled_builder")
        if token not in table:
            raise RuntimeError(f"no Python {'gradient ' if self.gradient else ''}operator has the token {token!r}")
        self.pass_workspace = _functions[token][1]
        self.function = _built(table[token] if self.gradient else table[token][0])

    def execute(self):
        inputs = [b.tensor() for b in self.inputs]
        outputs = [b.writable() for b in self.outputs]
        extra = (self.workspace,) if self.pass_workspace else ()
        self.function(inputs, outputs, *extra)


class PythonGradient(Python):
    gradient = True


def python_gradient(g):
    """Inputs, outputs and output gradients in; gradients of the inputs out, all or those that the operator names."""
    gradient_outputs = g.args.ints("grad_input_indices") or range(g.num_inputs)
    gradient_inputs = g.args.ints("grad_output_indices") or range(g.num_outputs)
    inputs = [g.I(i) for i in range(g.num_inputs)] + [g.O(i) for i in range(g.num_outputs)]
    return g.op(f"{g.definition.type}Gradient", inputs + [g.GO(i) for i in gradient_inputs],
                [g.GI(i) for i in gradient_outputs])


_DOC = "Calls a Python function with the lists of its input and output tensors; the operator takes the GIL for itself."
for _type in ("Python", "PythonDLPack"):
    register(_type, Python, (0, None), (0, None), inplace=anything, gradient=python_gradient, doc=_DOC,
             args={"token": "names the function, as `register_python_op` returned it",
                   "pickled_builder": "instead of a token: the pickle of (builder, args, kwargs), where "
                                      "builder(*args, **kwargs) returns the function when the operator is bound",
                   "pickled_grad_builder": "the same for the gradient function",
                   "pass_workspace": "whether a function that was built takes the workspace as its third argument",
                   "grad_input_indices": "inputs that get a gradient, by default all",
                   "grad_output_indices": "outputs whose gradients the gradient function takes, by default all"})
    register(f"{_type}Gradient", PythonGradient, (0, None), (0, None), inplace=anything,
             args={"token": "of the forward function"}, doc=f"Calls the gradient function of a {_type} operator.")

"""Operators: bound inputs and outputs, parsed arguments, `run`."""
import numpy as np

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

from caffe2._core.blob cimport Blob
from caffe2._core.memory cimport aligned_new
from caffe2._core.tensor cimport UNDEFINED, dtype_name, from_numpy, make_plain, tensor_t, to_numpy
from caffe2._core.workspace cimport Workspace

from caffe2._core import registry
from caffe2._core.args import Args
from caffe2._core.errors import OperatorError
from caffe2._core.schema import OpSchema


cdef class Operator:
    """Base class of all operators.

    A subclass reads its arguments in `setup`, once, and computes in `run`, without the GIL and without touching a
    Python object; one that needs Python overrides `execute` instead. Attributes for both: `x` and `y`, the tensors of
    inputs and outputs; `args`; `inputs` and `outputs`, the blobs; `workspace`.
    """

    def __dealloc__(self):
        free(self.x)
        free(self._scratch)

    def prepare(self):
        """For base classes of a device's operators: called before `setup`."""

    def setup(self):
        """Parse arguments; called once, when inputs and outputs are bound."""

    def blocked_output(self):
        """Which output is written blocked where `emits` is set."""
        return 0

    def absorb(self, Operator following):
        """Take over what the next operator of a net does, in place, to this one's output.

        Called when the net is bound. Whoever returns True does so from then on, and the net leaves the other out; run
        on its own, as observed and timed operators are, the other one must then find nothing left to do.
        """
        return False

    def touched(self):
        """Objects that `run` reads itself, besides the values of tensors: executors fetch their memory ahead."""
        return [self, *self.inputs, *self.outputs]

    def execute(self):
        """Compute, with the GIL; override it in operators that need Python."""
        raise NotImplementedError(f"{type(self).__name__} neither overrides run nor execute")

    cdef int run(self) except -1 nogil:
        with gil:
            self.execute()
        return 0

    # ------------------------------------------------------------ for execute()

    def input(self, i):
        """Input i as a numpy array that shares its memory (a copy for strings)."""
        if self.x[i].dtype == UNDEFINED:
            raise RuntimeError(f"input {self.definition.input[i]} is not a tensor")
        return to_numpy(self.x[i], True)

    def set_output(self, i, value):
        """Copy an array into output i."""
        from_numpy(self.y[i], np.asarray(value))

    def object(self, i, cls=None):
        """The object that input i holds, checked to be a `cls`."""
        value = (<Blob>self.inputs[i]).get()
        if value is None or (cls is not None and not isinstance(value, cls)):
            wanted = "an object" if cls is None else f"a {cls.__name__}"
            raise TypeError(f"input {self.definition.input[i]} must hold {wanted}")
        return value

    def set_object(self, i, value):
        """Make output i hold an object."""
        (<Blob>self.outputs[i]).set(value)

    # ------------------------------------------------------------ checks

    cdef int fail(self, const char* message) except -1 nogil:
        with gil:
            raise RuntimeError(message.decode())

    cdef int bad_dtype(self, int i) except -1 nogil:
        with gil:
            name = self.definition.input[i]
            if self.x[i].dtype == UNDEFINED:
                value = (<Blob>self.inputs[i]).get()
                held = "is empty" if value is None else f"holds a {type(value).__name__}, not a tensor"
                raise RuntimeError(f"input {i} ({name}) {held}")
            raise TypeError(f"input {i} ({name}) may not be of type {dtype_name(self.x[i].dtype)}")

    cdef int expect(self, int i, int dtype) except -1 nogil:
        if self.x[i].dtype != dtype:
            with gil:
                if self.x[i].dtype == UNDEFINED:
                    self.bad_dtype(i)
                raise TypeError(f"input {i} ({self.definition.input[i]}) must be of type {dtype_name(dtype)}, "
                                f"but is {dtype_name(self.x[i].dtype)}")
        return 0

    cdef int expect_ndim(self, int i, int ndim) except -1 nogil:
        if self.x[i].dtype == UNDEFINED:
            return self.bad_dtype(i)
        if self.x[i].ndim != ndim:
            with gil:
                raise ValueError(f"input {i} ({self.definition.input[i]}) must have {ndim} dimensions, "
                                 f"but has {self.x[i].ndim}")
        return 0

    cdef int expect_same_shape(self, int i, int j) except -1 nogil:
        cdef int k
        cdef bint same = self.x[i].ndim == self.x[j].ndim
        for k in range(self.x[i].ndim if same else 0):
            same &= self.x[i].shape[k] == self.x[j].shape[k]
        if not same:
            with gil:
                raise ValueError(f"inputs {i} ({self.definition.input[i]}) and {j} ({self.definition.input[j]}) "
                                 "must have the same shape")
        return 0

    cdef int expect_size(self, int i, int64_t size) except -1 nogil:
        if self.x[i].dtype == UNDEFINED:
            return self.bad_dtype(i)
        if self.x[i].size != size:
            with gil:
                raise ValueError(f"input {i} ({self.definition.input[i]}) must have {size} elements, "
                                 f"but has {self.x[i].size}")
        return 0

    cdef void* scratch(self, size_t n) except NULL nogil:
        if n > self._scratch_size or self._scratch == NULL:
            free(self._scratch)
            self._scratch_size = 0
            self._scratch = aligned_new(n + 64)
            if self._scratch == NULL:
                with gil:
                    raise MemoryError(f"cannot allocate {n} bytes of scratch space")
            self._scratch_size = n
        return self._scratch

    # ------------------------------------------------------------ messages

    def describe(self):
        """The operator, its blobs and their shapes in one line, for messages."""
        def blobs(held):
            return ", ".join((<Blob>b).describe() for b in held)
        name = f" {self.definition.name}" if self.definition.name else ""
        return f"{self.type}{name}({blobs(self.inputs)}) -> ({blobs(self.outputs)})"

    def __repr__(self):
        return f"<operator {self.describe()}>"


cdef int _run(Operator op) except -1 nogil:
    cdef int i, takes = op.takes | op.blocked
    for i in range(op.num_inputs):
        if op.x[i].layout > takes:
            make_plain(op.x[i])
    return op.run()


run_operator = <run_t>_run


def explain(op, net_name, error, position=None):
    """The error to raise for an exception in an operator: one paragraph that says where and with what."""
    where = f" of net {net_name!r}" if net_name else ""
    message = f"{error} (in operator {op.describe()}{where})"
    if isinstance(error, OperatorError):
        message = str(error)
    elif type(error) is not RuntimeError:
        message = f"{type(error).__name__}: {message}"
    explained = OperatorError(message)
    explained.position = position
    return explained


cdef bind(Operator op, definition, Workspace workspace, list inputs, list outputs):
    cdef int i
    op.definition = definition
    op.type = definition.type
    op.workspace = workspace
    op.args = Args(definition)
    op.inputs, op.outputs = inputs, outputs
    op.num_inputs, op.num_outputs = <int>len(inputs), <int>len(outputs)
    op.x = <tensor_t**>calloc(op.num_inputs + op.num_outputs + 1, sizeof(void*))
    if op.x == NULL:
        raise MemoryError
    op.y = op.x + op.num_inputs
    for i in range(op.num_inputs):
        op.x[i] = &(<Blob>inputs[i]).t
    for i in range(op.num_outputs):
        op.y[i] = &(<Blob>outputs[i]).t
    op.prepare()
    op.setup()


def create_operator(definition, Workspace workspace, str net_name="", list created=None):
    """Bind one operator to a workspace.

    Parameters
    ----------
    definition : OperatorDef
        What to bind; the operator keeps it.
    workspace : Workspace
        Where its blobs live; outputs are created.
    net_name : str
        For messages.
    created : list, optional
        Takes the names of blobs that had to be created.

    Raises
    ------
    OperatorError
        If the operator is unknown, does not fit its schema, lacks an input, or refuses its arguments.
    """
    cdef Operator op
    made = [] if created is None else created
    start = len(made)
    try:
        cls = registry.find(definition.type, definition.device_option.device_type, definition.engine)
        schema = OpSchema.get(definition.type)
        schema.verify(definition)
        op = cls()
        inputs, outputs = [], []
        for i, name in enumerate(definition.input):
            blob = workspace.get(name)
            if blob is None:
                raise RuntimeError(f"input {i} ({name}) is not in the workspace: feed it, "
                                   "or run the net that makes it, first")
            inputs.append(blob)
        for name in definition.output:
            blob = workspace.get(name)
            if blob is None:
                made.append(name)
                blob = workspace.create(name)
            outputs.append(blob)
        bind(op, definition, workspace, inputs, outputs)
        return op
    except Exception as e:
        for name in made[start:]:
            workspace.remove(name)
        del made[start:]
        if isinstance(e, OperatorError):
            raise
        where = f" of net {net_name!r}" if net_name else ""
        kind = "" if type(e) is RuntimeError else f"{type(e).__name__}: "
        blobs = f"({', '.join(definition.input)}) -> ({', '.join(definition.output)})"
        raise OperatorError(f"{kind}{e} (when binding operator {definition.type}{blobs}{where})") from e


def run_once(definition, Workspace workspace):
    """Bind an operator and run it once."""
    cdef Operator op = create_operator(definition, workspace)
    from caffe2._core.net import run_bound
    run_bound(op)

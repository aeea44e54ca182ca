"""Operators that look at what goes on: Print, NanCheck, Summarize, Assert and relatives."""
import os
import sys
import time

import numpy as np

from caffe2._core.operator import Operator
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, one_to_one, same_as_input


class Log:
    """Lines for the console (standard error), or for a file in the workspace's root folder.

    Parameters
    ----------
    op : Operator
        Its argument ``to_file`` says which.
    suffix : str
        Of the file, behind the name of the first input, ``/`` replaced by ``#``.
    """

    def __init__(self, op, suffix):
        self.file = None
        if op.args.bool("to_file"):
            name = op.definition.input[0].replace("/", "#") + suffix
            self.file = open(os.path.join(op.workspace.root_folder, name), "w")

    def __call__(self, line):
        print(line, file=self.file or sys.stderr, flush=True)

    def __del__(self):
        if self.file:
            self.file.close()


class Print(Operator):
    """Prints the first values of a tensor, every so many runs."""

    def setup(self):
        self.limit = self.args.int("limit") or 1000
        self.every = self.args.int("every_n", 1)
        self.runs = 0
        if self.every < 1:
            raise ValueError("argument every_n must be positive")
        self.log = Log(self, ".log")

    def execute(self):
        self.runs += 1
        if (self.runs - 1) % self.every:
            return
        blob = self.inputs[0]
        if not blob.is_tensor:
            self.log(f"Blob {blob.describe()}")
            return
        x = blob.view()
        values = x.ravel()[:self.limit]
        if x.dtype == object:
            values = [v.decode(errors="backslashreplace") for v in values]
        kind = "string" if x.dtype == object else x.dtype.name
        dims = ",".join(map(str, x.shape))
        self.log(f"Tensor {self.definition.input[0]} of type {kind}. Dims: ({dims}): " + ",".join(map(str, values)))


register(
    "Print", Print, 1, 0, ins={"tensor": "any tensor"},
    args={"to_file": "write to <name>.log in the root folder instead of to standard error (default 0)",
          "limit": "how many values to print at most (default 1000)",
          "every_n": "print every n-th run only (default 1)"},
    doc="Prints a tensor's name, dtype, shape and first values.",
)


def _not_finite(x):
    """A few words on the first value of x that is not finite, or None."""
    if x.dtype == object:
        raise TypeError("takes numbers, not strings")
    finite = np.isfinite(x).ravel()
    if finite.all():
        return None
    i = int(np.argmin(finite))
    index = tuple(int(k) for k in np.unravel_index(i, x.shape)) if x.ndim else ()
    return f"has {(~finite).sum()} values that are not finite, the first one {x.ravel()[i]} at {list(index)}"


class NanCheck(Operator):
    def execute(self):
        x = self.input(0)
        if _not_finite(x):
            found = []
            for name, blob in zip(self.definition.input, self.inputs):
                values = blob.view() if blob.is_tensor else x[:0]
                if values.dtype.kind == "f" and (what := _not_finite(values)):
                    found.append(f"{name} {what}")
            raise RuntimeError("; ".join(found))
        if self.definition.output[0] != self.definition.input[0]:
            self.set_output(0, x)


register(
    "NanCheck", NanCheck, (1, None), 1, ins={"tensor": "float tensor; further inputs are looked at when it fails"},
    outs={"output": "copy of the first input"}, inplace=one_to_one, infer=same_as_input(),
    gradient=lambda g: g.op("NanCheck", [g.GO(0)], [g.GI(0)]),
    doc="Copies its first input; fails where that holds NaN or infinity, and says where.",
)


class EnforceFinite(Operator):
    def execute(self):
        found = _not_finite(self.input(0))
        if found:
            raise RuntimeError(f"{self.definition.input[0]} {found}")


register("EnforceFinite", EnforceFinite, 1, 0, ins={"input": "float tensor"},
         doc="Fails where its input holds NaN or infinity, and says where.")


class Assert(Operator):
    def setup(self):
        self.message = self.args.str("error_msg")

    def execute(self):
        x = self.input(0)
        if x.dtype.name not in ("bool", "int32", "int64"):
            raise TypeError(f"input 0 ({self.definition.input[0]}) must be bool, int32 or int64, but is {x.dtype}")
        if not x.all():
            i = int(np.argmin(x.ravel() != 0))
            raise RuntimeError(f"assertion failed for element {i} of {self.definition.input[0]}"
                               + (f": {self.message}" if self.message else ""))


register("Assert", Assert, 1, 0, ins={"X": "bool, int32 or int64 tensor"}, args={"error_msg": "said when it fails"},
         doc="Fails unless all values are true (not 0).")


class Summarize(Operator):
    def setup(self):
        self.log = Log(self, ".summary") if self.args.bool("to_file") else None

    def execute(self):
        x = self.input(0)
        if x.dtype != np.float32 or not x.size:
            raise TypeError(f"input 0 ({self.definition.input[0]}) must be a float tensor that is not empty")
        wide = x.astype(np.float64)
        with np.errstate(all="ignore"):
            std = wide.std(ddof=1) if x.size > 1 else 0.0
            summary = np.array([x.min(), x.max(), wide.mean(), std], dtype=np.float32)
        if self.log:
            self.log(" ".join(map(str, summary)))
        if self.outputs:
            self.set_output(0, summary)


register(
    "Summarize", Summarize, 1, (0, 1), ins={"data": "float tensor"},
    outs={"output": "float tensor of least, largest, mean value and standard deviation (n - 1)"},
    args={"to_file": "also write them to <name>.summary in the root folder (default 0)"},
    infer=lambda args, inputs: [TensorInfo((4,))], doc="Four statistics of a tensor.",
)


class Free(Operator):
    def execute(self):
        for blob in self.outputs:
            blob.reset()


register("Free", Free, (1, None), (1, None), enforce_inplace=[(0, 0)], inplace=one_to_one,
         ins={"X": "any blobs"}, outs={"X": "the same blobs, now empty"},
         doc="Empties blobs and gives their memory back.")


class WallClockTime(Operator):
    def execute(self):
        self.set_output(0, np.array(time.time_ns(), dtype=np.int64))


register("WallClockTime", WallClockTime, 0, 1, outs={"time": "int64 scalar: nanoseconds since 1970"},
         infer=lambda args, inputs: [TensorInfo((), 10)], doc="The time of day.")

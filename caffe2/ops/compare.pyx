"""Comparisons, logic and bits, with broadcasting."""
from libc.stdint cimport int32_t, int64_t

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport BOOL, DOUBLE, FLOAT, INT32, INT64, resize_like, tensor_t
from caffe2.ops.pointwise cimport Binary, binary_t

from caffe2._core import gradient
from caffe2._core.registry import register
from caffe2._core.schema import flops_per_element, same_as_input
from caffe2.ops.pointwise import BROADCAST_ARGS, infer_broadcast

ctypedef unsigned char bool_t       # 0 or 1

# ---------------------------------------------------------------- comparisons

ctypedef struct lt_t:
    char _
ctypedef struct le_t:
    char _
ctypedef struct eq_t:
    char _
ctypedef struct ne_t:
    char _

ctypedef fused comparison:
    lt_t
    le_t
    eq_t
    ne_t

ctypedef fused comparable:
    float
    double
    int32_t
    int64_t
    bool_t


cdef inline bool_t holds(const comparison* tag, comparable a, comparable b) noexcept nogil:
    if comparison is lt_t:
        return a < b
    elif comparison is le_t:
        return a <= b
    elif comparison is eq_t:
        return a == b
    else:
        return a != b


cdef void comparison_loop(const comparison* tag, const comparable* a, const int64_t* sa,
                          const comparable* b, const int64_t* sb, bool_t* c, const int64_t* sc,
                          int64_t n, int64_t m) noexcept nogil:
    cdef int64_t i
    cdef comparable v
    for _ in range(m):
        if sa[0] and sb[0]:
            for i in range(n):
                c[i] = holds(tag, a[i], b[i])
        elif sa[0]:
            v = b[0]
            for i in range(n):
                c[i] = holds(tag, a[i], v)
        else:
            v = a[0]
            for i in range(n):
                c[i] = holds(tag, v, b[i])
        a += sa[1]
        b += sb[1]
        c += sc[1]


cdef void swapped_loop(const comparison* tag, const comparable* a, const int64_t* sa,
                       const comparable* b, const int64_t* sb, bool_t* c, const int64_t* sc,
                       int64_t n, int64_t m) noexcept nogil:
    comparison_loop(tag, b, sb, a, sa, c, sc, n, m)


cdef void fill(const comparison* tag, bint swap, binary_t* loops) noexcept:
    if swap:
        loops[<int>FLOAT] = <binary_t>swapped_loop[comparison, float]
        loops[<int>DOUBLE] = <binary_t>swapped_loop[comparison, double]
        loops[<int>INT32] = <binary_t>swapped_loop[comparison, int32_t]
        loops[<int>INT64] = <binary_t>swapped_loop[comparison, int64_t]
        loops[<int>BOOL] = <binary_t>swapped_loop[comparison, bool_t]
    else:
        loops[<int>FLOAT] = <binary_t>comparison_loop[comparison, float]
        loops[<int>DOUBLE] = <binary_t>comparison_loop[comparison, double]
        loops[<int>INT32] = <binary_t>comparison_loop[comparison, int32_t]
        loops[<int>INT64] = <binary_t>comparison_loop[comparison, int64_t]
        loops[<int>BOOL] = <binary_t>comparison_loop[comparison, bool_t]


cdef class Compare(Binary):
    def setup(self):
        Binary.setup(self)
        self.result = BOOL
        swap = self.type in ("GT", "GE")    # a > b is b < a
        if self.type in ("LT", "GT"):
            fill(<lt_t*>NULL, swap, self.loops)
        elif self.type in ("LE", "GE"):
            fill(<le_t*>NULL, swap, self.loops)
        elif self.type == "EQ":
            fill(<eq_t*>NULL, False, self.loops)
        else:
            fill(<ne_t*>NULL, False, self.loops)


for _name, _sign in {"LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "EQ": "==", "NE": "!="}.items():
    register(
        _name, Compare, 2, 1, ins={"A": "tensor of float, double, int32, int64 or bool",
                                   "B": "tensor of that dtype"},
        outs={"C": "bool tensor"}, args=BROADCAST_ARGS, infer=infer_broadcast(BOOL),
        cost=flops_per_element(1), gradient=gradient.none,
        doc=f"C = A {_sign} B, with broadcasting.",
    )


# ---------------------------------------------------------------- logic, bits

ctypedef struct and_t:
    char _
ctypedef struct or_t:
    char _
ctypedef struct xor_t:
    char _

ctypedef fused junction:
    and_t
    or_t
    xor_t

ctypedef fused bits:
    int32_t
    int64_t
    bool_t


cdef inline bits joined(const junction* tag, bits a, bits b) noexcept nogil:
    if junction is and_t:
        return a & b
    elif junction is or_t:
        return a | b
    else:
        return a ^ b


cdef void bits_loop(const junction* tag, const bits* a, const int64_t* sa, const bits* b,
                    const int64_t* sb, bits* c, const int64_t* sc,
                    int64_t n, int64_t m) noexcept nogil:
    cdef int64_t i
    for _ in range(m):
        if sa[0] and sb[0]:
            for i in range(n):
                c[i] = joined(tag, a[i], b[i])
        else:
            for i in range(n):
                c[i] = joined(tag, a[i * sa[0]], b[i * sb[0]])
        a += sa[1]
        b += sb[1]
        c += sc[1]


cdef void fill_bits(const junction* tag, bint only_bool, binary_t* loops) noexcept:
    loops[<int>BOOL] = <binary_t>bits_loop[junction, bool_t]
    if not only_bool:
        loops[<int>INT32] = <binary_t>bits_loop[junction, int32_t]
        loops[<int>INT64] = <binary_t>bits_loop[junction, int64_t]


cdef class Logical(Binary):
    def setup(self):
        Binary.setup(self)
        only_bool = not self.type.startswith("Bitwise")
        name = self.type.removeprefix("Bitwise")
        if name == "And":
            fill_bits(<and_t*>NULL, only_bool, self.loops)
        elif name == "Or":
            fill_bits(<or_t*>NULL, only_bool, self.loops)
        else:
            fill_bits(<xor_t*>NULL, only_bool, self.loops)


for _name, _what, _inplace in (
    ("And", "bool tensor", [(0, 0)]),
    ("Or", "bool tensor", [(0, 0)]),
    ("Xor", "bool tensor", [(0, 0)]),
    ("BitwiseAnd", "tensor of int32, int64 or bool", [(0, 0), (1, 0)]),
    ("BitwiseOr", "tensor of int32, int64 or bool", [(0, 0), (1, 0)]),
    ("BitwiseXor", "tensor of int32, int64 or bool", [(0, 0), (1, 0)]),
):
    register(
        _name, Logical, 2, 1, ins={"A": _what, "B": "tensor of that dtype"},
        outs={"C": "tensor of that dtype"}, args=BROADCAST_ARGS, inplace=_inplace,
        infer=infer_broadcast(), cost=flops_per_element(1), gradient=gradient.none,
        doc=f"""C = A {_name.removeprefix("Bitwise").lower()} B{", bit by bit" if "wise" in _name
            else ""}, with broadcasting. May run in place of A.""",
    )


cdef class Not(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t i
        self.expect(0, BOOL)
        resize_like(self.y[0], x, BOOL)
        for i in range(x.size):
            (<bool_t*>self.y[0].data)[i] = not (<const bool_t*>x.data)[i]
        return 0


register(
    "Not", Not, 1, 1, ins={"X": "bool tensor"}, outs={"Y": "bool tensor"}, inplace=[(0, 0)],
    infer=same_as_input(), cost=flops_per_element(1), gradient=gradient.none, doc="Y = not X",
)

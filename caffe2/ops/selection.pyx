"""Selection and search: largest elements, unique ones, members and where they are."""
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport (
    BOOL, DOUBLE, FLOAT, INT32, INT64, MAX_DIMS, STRING, UNDEFINED, canonical_axis, get_string, itemsize, resize,
    resize1, resize_like, size_from, size_to, tensor_t,
)
from caffe2._core.threads cimport num_threads
from caffe2.ops.indices cimport index_at, index_error, is_index
from caffe2.ops.lookup cimport open_table, slot_of, table_t

from caffe2._core.gradient import none, simple
from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo, like

ctypedef fused number_t:
    int32_t
    int64_t
    float
    double


cdef inline bint is_number(int dtype) noexcept nogil:
    return dtype == FLOAT or dtype == DOUBLE or is_index(dtype)


# ---------------------------------------------------------------- TopK

cdef inline bint worse(number_t a, int64_t i, number_t b, int64_t j) noexcept nogil:
    # of equal elements, the one that comes first is better
    return a < b or (a == b and i > j)


cdef void sift(number_t* values, int64_t* indices, int64_t k, int64_t at) noexcept nogil:
    """Let entry `at` sink in a heap whose root is the worst."""
    cdef number_t value = values[at]
    cdef int64_t index = indices[at], child = 2 * at + 1
    while child < k:
        if child + 1 < k and worse(values[child + 1], indices[child + 1], values[child], indices[child]):
            child += 1
        if not worse(values[child], indices[child], value, index):
            break
        values[at] = values[child]
        indices[at] = indices[child]
        at = child
        child = 2 * at + 1
    values[at] = value
    indices[at] = index


cdef void best(const number_t* x, int64_t n, int64_t stride, number_t* values, int64_t* indices,
               int64_t k) noexcept nogil:
    """The k best of n elements, in order."""
    cdef int64_t i
    cdef number_t value
    for i in range(k):
        values[i] = x[i * stride]
        indices[i] = i
    for i in range(k // 2 - 1, -1, -1):
        sift(values, indices, k, i)
    for i in range(k, n):
        if x[i * stride] > values[0]:
            values[0] = x[i * stride]
            indices[0] = i
            sift(values, indices, k, 0)
    while k > 1:                        # the worst one goes to the end
        k -= 1
        value, i = values[k], indices[k]
        values[k], indices[k] = values[0], indices[0]
        values[0], indices[0] = value, i
        sift(values, indices, k, 0)


cdef class TopK(Operator):
    cdef int axis
    cdef int64_t k

    def setup(self):
        self.axis, self.k = self.args.int("axis", -1), self.args.int("k", -1)
        if self.num_inputs == 1 and self.k < 1:
            raise ValueError("requires a positive argument k")

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t[MAX_DIMS] dims
        cdef int axis = canonical_axis(self.axis, x.ndim)
        if self.num_inputs == 2:
            if not is_index(self.x[1].dtype):
                return self.bad_dtype(1)
            self.expect_size(1, 1)
            self.k = index_at(self.x[1], 0)
            if self.k < 1:
                return self.fail("k must be positive")
        if not is_number(x.dtype):
            return self.bad_dtype(0)
        memcpy(dims, x.shape, x.ndim * sizeof(int64_t))
        dims[axis] = self.k
        resize(self.y[0], x.ndim, dims, x.dtype)
        resize(self.y[1], x.ndim, dims, INT64)
        if self.num_outputs == 3:
            resize1(self.y[2], self.y[0].size, INT64)
        if x.dtype == FLOAT:
            top_k(self, <float*>x.data, <float*>self.y[0].data, axis)
        elif x.dtype == DOUBLE:
            top_k(self, <double*>x.data, <double*>self.y[0].data, axis)
        elif x.dtype == INT32:
            top_k(self, <int32_t*>x.data, <int32_t*>self.y[0].data, axis)
        else:
            top_k(self, <int64_t*>x.data, <int64_t*>self.y[0].data, axis)
        return 0


cdef int top_k(TopK op, const number_t* x, number_t* y, int axis) except -1 nogil:
    cdef int64_t n = op.x[0].shape[axis], inner = size_from(op.x[0], axis + 1), rows = size_to(op.x[0], axis) * inner
    cdef int64_t k = min(op.k, n), r
    cdef int64_t* indices = <int64_t*>op.y[1].data
    cdef int64_t* flat = <int64_t*>op.y[2].data if op.num_outputs == 3 else NULL
    cdef int threads = num_threads(rows * (n + 8 * k))
    cdef int64_t* heaps = <int64_t*>op.scratch(threads * (2 * k + 8) * sizeof(int64_t))
    if threads == 1:
        for r in range(rows):
            top_row(x, y, indices, flat, heaps, n, k, op.k, inner, r)
    else:
        for r in prange(rows, num_threads=threads, schedule="static"):
            top_row(x, y, indices, flat, heaps + threadid() * (2 * k + 8), n, k, op.k, inner, r)
    return 0


cdef void top_row(const number_t* x, number_t* y, int64_t* indices, int64_t* flat, int64_t* heap, int64_t n, int64_t k,
                  int64_t slots, int64_t inner, int64_t r) noexcept nogil:
    """Row r: places that are `inner` apart. What exceeds the row is 0, at index -1."""
    cdef int64_t source = r // inner * n * inner + r % inner, to = r // inner * slots * inner + r % inner, i
    cdef number_t* values = <number_t*>(heap + k)
    best(x + source, n, inner, values, heap, k)
    for i in range(slots):
        y[to + i * inner] = values[i] if i < k else 0
        indices[to + i * inner] = heap[i] if i < k else -1
        if flat != NULL:
            flat[to + i * inner] = source + heap[i] * inner if i < k else -1


cdef class TopKGradient(Operator):
    cdef int axis

    def setup(self):
        self.axis = self.args.int("axis", -1)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* dy = self.x[0]
        cdef tensor_t* indices = self.x[1]
        cdef tensor_t* dx = self.y[0]
        cdef int axis = canonical_axis(self.axis, dy.ndim)
        cdef int64_t inner, k, n, i, j, at
        if dy.dtype != FLOAT and dy.dtype != DOUBLE:
            return self.bad_dtype(0)
        self.expect(1, INT64)
        self.expect_same_shape(0, 1)
        self.expect_ndim(2, dy.ndim)
        inner, k, n = size_from(dy, axis + 1), dy.shape[axis], self.x[2].shape[axis]
        if size_to(dy, axis) != size_to(self.x[2], axis) or inner != size_from(self.x[2], axis + 1):
            return self.fail("the gradient does not fit the input")
        for i in range(indices.size):
            j = (<int64_t*>indices.data)[i]
            if j < -1 or j >= n:
                return index_error(j, n)
        resize_like(dx, self.x[2], dy.dtype)
        memset(dx.data, 0, dx.size * itemsize(dx.dtype))
        for i in range(dy.size):
            j = (<int64_t*>indices.data)[i]
            if j >= 0:
                at = (i // inner // k * n + j) * inner + i % inner
                if dy.dtype == FLOAT:
                    (<float*>dx.data)[at] = (<float*>dy.data)[i]
                else:
                    (<double*>dx.data)[at] = (<double*>dy.data)[i]
        return 0


def top_k_infer(args, inputs):
    shape, axis = list(inputs[0].shape), args.int("axis", -1)
    shape[axis] = args.int("k", -1) if len(inputs) == 1 else -1
    size = 1
    for d in shape:
        size *= d
    flat = (size if min(shape) >= 0 else -1,)
    return [TensorInfo(shape, inputs[0].dtype), TensorInfo(shape, INT64), TensorInfo(flat, INT64)]


_TOP_K = {"k": "how many elements", "axis": "dimension to select along, the last by default"}
register(
    "TopK", TopK, (1, 2), (2, 3),
    ins={"X": "float, double, int32 or int64 tensor", "k": "int32 or int64 scalar, instead of the argument"},
    outs={"Values": "the k largest elements, in descending order; 0 where there are fewer",
          "Indices": "int64: their places along axis; -1 where there are fewer",
          "Flattened_indices": "int64 vector: their places in X as a vector"},
    args=_TOP_K, infer=top_k_infer, gradient=simple("TopKGradient", "GO0 O1 I0", "GI0"),
    doc="The k largest elements along a dimension. Of equal ones, those with the smaller index come first.",
)
register(
    "TopKGradient", TopKGradient, 3, 1,
    ins={"dValues": "gradient of Values", "Indices": "output of TopK", "X": "input of TopK"},
    outs={"dX": "gradient of X"},
    args=_TOP_K, infer=lambda args, inputs: [TensorInfo(inputs[2].shape, inputs[0].dtype)],
    doc="Gradient of TopK: zero for elements that were not selected.",
)


cdef class FlexibleTopK(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* k = self.x[1]
        cdef int64_t n, rows, r, j, total = 0, most = 0
        cdef int64_t* heap
        self.expect(0, FLOAT)
        if not is_index(k.dtype):
            return self.bad_dtype(1)
        if x.ndim < 1:
            return self.fail("the input must have a dimension or more")
        n = x.shape[x.ndim - 1]
        rows = size_to(x, x.ndim - 1)
        self.expect_size(1, rows)
        for r in range(rows):
            j = index_at(k, r)
            if j < 1 or j > n:
                return self.fail("k must be positive, and not greater than the last dimension")
            total += j
            most = max(most, j)
        heap = <int64_t*>self.scratch((2 * most + 1) * sizeof(int64_t))
        resize1(self.y[0], total, FLOAT)
        resize1(self.y[1], total, INT64)
        total = 0
        for r in range(rows):
            j = index_at(k, r)
            top_row(<float*>x.data + r * n, <float*>self.y[0].data + total, <int64_t*>self.y[1].data + total, NULL,
                    heap, n, j, j, 1, 0)
            total += j
        return 0


cdef class FlexibleTopKGradient(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* k = self.x[1]
        cdef int64_t n, r, i, _, total = 0
        cdef int64_t* indices
        if not is_index(k.dtype):
            return self.bad_dtype(1)
        self.expect(2, FLOAT)
        self.expect(3, INT64)
        self.expect_same_shape(2, 3)
        if x.ndim < 1:
            return self.fail("the input must have a dimension or more")
        n = x.shape[x.ndim - 1]
        self.expect_size(1, size_to(x, x.ndim - 1))
        for r in range(k.size):
            if index_at(k, r) < 0:
                return self.fail("k must be positive")
            total += index_at(k, r)
        self.expect_size(3, total)
        indices = <int64_t*>self.x[3].data
        for i in range(total):
            if indices[i] < 0 or indices[i] >= n:
                return index_error(indices[i], n)
        resize_like(self.y[0], x, FLOAT)
        memset(self.y[0].data, 0, self.y[0].size * sizeof(float))
        i = 0
        for r in range(k.size):
            for _ in range(index_at(k, r)):
                (<float*>self.y[0].data)[r * n + indices[i]] = (<float*>self.x[2].data)[i]
                i += 1
        return 0


register(
    "FlexibleTopK", FlexibleTopK, 2, 2,
    ins={"X": "float tensor", "K": "int64 tensor: how many elements, a row along the last dimension"},
    outs={"Flatten values": "the largest elements, row after row", "Flatten indices": "int64: their places in the row"},
    infer=lambda args, inputs: [TensorInfo((-1,), FLOAT), TensorInfo((-1,), INT64)],
    gradient=simple("FlexibleTopKGradient", "I0 I1 GO0 O1", "GI0"), doc="TopK with a k for each row.",
)
register(
    "FlexibleTopKGradient", FlexibleTopKGradient, 4, 1,
    ins={"X": "input of FlexibleTopK", "K": "input of FlexibleTopK", "dValues": "gradient of its values",
         "Indices": "its indices"},
    outs={"dX": "gradient of X"}, infer=like(0),
    doc="Gradient of FlexibleTopK: zero for elements that were not selected.",
)


# ---------------------------------------------------------------- ArgMax, ArgMin

cdef void arg_extreme(const number_t* x, int64_t* y, int64_t n, int64_t inner, bint largest) noexcept nogil:
    """The first index of the largest, or smallest, of n elements, in `inner` columns."""
    cdef int64_t a, i, at = 0
    cdef number_t extreme = x[0]
    if inner == 1:
        for a in range(1, n):
            if (x[a] > extreme) if largest else (x[a] < extreme):
                extreme = x[a]
                at = a
        y[0] = at
        return
    memset(y, 0, inner * sizeof(int64_t))
    for a in range(1, n):
        for i in range(inner):
            extreme = x[y[i] * inner + i]
            if (x[a * inner + i] > extreme) if largest else (x[a * inner + i] < extreme):
                y[i] = a


cdef class ArgMax(Operator):
    cdef int axis
    cdef bint keepdims, largest

    def setup(self):
        self.axis, self.keepdims = self.args.int("axis", -1), self.args.bool("keepdims", True)
        self.largest = True

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t[MAX_DIMS] dims
        cdef int64_t outer, inner, n, o
        cdef int axis, i, threads
        if not is_number(x.dtype):
            return self.bad_dtype(0)
        axis = canonical_axis(self.axis, x.ndim)
        outer, inner, n = size_to(x, axis), size_from(x, axis + 1), x.shape[axis]
        if n == 0 and outer * inner:
            return self.fail("there is no element to choose from")
        for i in range(x.ndim):
            dims[i if self.keepdims or i < axis else max(axis, i - 1)] = 1 if i == axis else x.shape[i]
        resize(self.y[0], x.ndim if self.keepdims else x.ndim - 1, dims, INT64)
        if outer * inner == 0:
            return 0
        threads = num_threads(x.size)
        if threads == 1 or outer == 1:
            for o in range(outer):
                self.part(o, n, inner)
        else:
            for o in prange(outer, num_threads=threads, schedule="static"):
                self.part(o, n, inner)
        return 0

    cdef void part(self, int64_t o, int64_t n, int64_t inner) noexcept nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t* y = <int64_t*>self.y[0].data + o * inner
        cdef int64_t at = o * n * inner
        if x.dtype == FLOAT:
            arg_extreme(<float*>x.data + at, y, n, inner, self.largest)
        elif x.dtype == DOUBLE:
            arg_extreme(<double*>x.data + at, y, n, inner, self.largest)
        elif x.dtype == INT32:
            arg_extreme(<int32_t*>x.data + at, y, n, inner, self.largest)
        else:
            arg_extreme(<int64_t*>x.data + at, y, n, inner, self.largest)


cdef class ArgMin(ArgMax):
    def setup(self):
        ArgMax.setup(self)
        self.largest = False


def arg_infer(args, inputs):
    shape = list(inputs[0].shape)
    axis = args.int("axis", -1) % len(shape)
    shape[axis:axis + 1] = [1] if args.bool("keepdims", True) else []
    return [TensorInfo(shape, INT64)]


for _name, _cls, _what in (("ArgMax", ArgMax, "largest"), ("ArgMin", ArgMin, "smallest")):
    register(
        _name, _cls, 1, 1, ins={"X": "float, double, int32 or int64 tensor"}, outs={"Indices": "int64 tensor"},
        args={"axis": "dimension to search along, the last by default",
              "keepdims": "1: the dimension stays, as 1 (the default); 0: it vanishes"},
        infer=arg_infer, gradient=none,
        doc=f"The index of the {_what} element along a dimension, the first of equal ones.",
    )


# ---------------------------------------------------------------- Unique

cdef struct item_t:
    uint64_t key
    int64_t index


cdef item_t* sort_items(item_t* items, item_t* other, int64_t n, uint64_t greatest) noexcept nogil:
    """Stable sort by key, byte by byte; the result is in one of the two arrays."""
    cdef int64_t[256] place
    cdef int64_t i, at, count
    cdef int shift = 0
    cdef item_t* swap
    while shift < 64 and greatest >> shift:
        memset(place, 0, sizeof(place))
        for i in range(n):
            place[(items[i].key >> shift) & 255] += 1
        at = 0
        for i in range(256):
            count = place[i]
            place[i] = at
            at += count
        for i in range(n):
            at = (items[i].key >> shift) & 255
            other[place[at]] = items[i]
            place[at] += 1
        swap = items
        items = other
        other = swap
        shift += 8
    return items


cdef class Unique(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef int64_t n = x.size, i, count = 0, least = 0, greatest = 0
        cdef item_t* items
        if not is_index(x.dtype):
            return self.bad_dtype(0)
        self.expect_ndim(0, 1)
        items = <item_t*>self.scratch((2 * n + 1) * sizeof(item_t))
        for i in range(n):
            least = index_at(x, i) if i == 0 else min(least, index_at(x, i))
            greatest = index_at(x, i) if i == 0 else max(greatest, index_at(x, i))
        for i in range(n):
            items[i].key = <uint64_t>index_at(x, i) - <uint64_t>least
            items[i].index = i
        items = sort_items(items, items + n, n, <uint64_t>greatest - <uint64_t>least)
        for i in range(n):
            count += i == 0 or items[i].key != items[i - 1].key
        if self.num_outputs == 2:
            resize1(self.y[1], n, INT32)
        resize1(self.y[0], count, x.dtype)
        count = -1
        for i in range(n):
            if i == 0 or items[i].key != items[i - 1].key:
                count += 1
                if x.dtype == INT64:
                    (<int64_t*>self.y[0].data)[count] = <int64_t>(items[i].key + <uint64_t>least)
                else:
                    (<int32_t*>self.y[0].data)[count] = <int32_t>(items[i].key + <uint64_t>least)
            if self.num_outputs == 2:
                (<int32_t*>self.y[1].data)[items[i].index] = <int32_t>count
        return 0


register(
    "Unique", Unique, 1, (1, 2), ins={"indices": "int32 or int64 vector"},
    outs={"unique_indices": "its distinct elements, ascending",
          "remapping": "int32: for each element, its place among those"},
    infer=lambda args, inputs: [TensorInfo((-1,), inputs[0].dtype), TensorInfo(inputs[0].shape, INT32)],
    doc="The distinct elements of a vector.",
)


# ---------------------------------------------------------------- look-up

cdef class Find(Operator):
    cdef int64_t missing

    def setup(self):
        self.missing = self.args.int("missing_value", -1)

    cdef int run(self) except -1 nogil:
        cdef tensor_t* index = self.x[0]
        cdef tensor_t* query = self.x[1]
        cdef table_t table
        cdef int64_t* slot
        cdef int64_t i, found
        if not is_index(index.dtype):
            return self.bad_dtype(0)
        self.expect(1, index.dtype)
        open_table(self, &table, index.size)
        for i in range(index.size):
            slot = slot_of(&table, index_at(index, i))
            slot[0] = index_at(index, i)
            slot[1] = i
        resize_like(self.y[0], query, query.dtype)
        for i in range(query.size):
            found = slot_of(&table, index_at(query, i))[1]
            found = self.missing if found < 0 else found
            if query.dtype == INT64:
                (<int64_t*>self.y[0].data)[i] = found
            else:
                (<int32_t*>self.y[0].data)[i] = <int32_t>found
        return 0


register(
    "Find", Find, 2, 1, ins={"index": "int32 or int64 tensor", "query": "tensor of that type"},
    outs={"query_indices": "for each element of query, its place in index"},
    args={"missing_value": "what stands for elements that index lacks, -1 by default"}, infer=like(1),
    doc="Looks elements up. Of equal ones in index, the last is found.",
)


cdef inline int64_t key_at(const tensor_t* t, int64_t i) noexcept nogil:
    """An integer for element i that equals another's where the elements are equal."""
    cdef double value
    cdef int64_t key
    if is_index(t.dtype):
        return index_at(t, i)
    value = (<float*>t.data)[i] if t.dtype == FLOAT else (<double*>t.data)[i]
    value += 0.0        # -0 is 0
    memcpy(&key, &value, 8)
    return key


cdef class FindDuplicateElements(Operator):
    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef table_t table
        cdef int64_t* slot
        cdef int64_t i, pass_, count = 0, key
        if x.dtype == STRING:
            self.expect_ndim(0, 1)
            with gil:
                self.find_strings()
            return 0
        if not is_number(x.dtype):
            return self.bad_dtype(0)
        self.expect_ndim(0, 1)
        for pass_ in range(2):          # count, then write
            open_table(self, &table, x.size)
            if pass_:
                resize1(self.y[0], count, INT64)
            count = 0
            for i in range(x.size):
                key = key_at(x, i)
                slot = slot_of(&table, key)
                if slot[1] < 0 or is_nan(x, i):
                    slot[0] = key
                    slot[1] = i
                    continue
                if pass_:
                    (<int64_t*>self.y[0].data)[count] = i
                count += 1
        return 0

    def find_strings(self):
        cdef int64_t i
        seen, found = set(), []
        for i in range(self.x[0].size):
            value = get_string(self.x[0], i)
            if value in seen:
                found.append(i)
            seen.add(value)
        resize1(self.y[0], len(found), INT64)
        for i, at in enumerate(found):
            (<int64_t*>self.y[0].data)[i] = at


cdef inline bint is_nan(const tensor_t* t, int64_t i) noexcept nogil:
    if t.dtype == FLOAT:
        return (<float*>t.data)[i] != (<float*>t.data)[i]
    return t.dtype == DOUBLE and (<double*>t.data)[i] != (<double*>t.data)[i]


register(
    "FindDuplicateElements", FindDuplicateElements, 1, 1, ins={"data": "vector of numbers or strings"},
    outs={"indices": "int64 vector, ascending"}, infer=lambda args, inputs: [TensorInfo((-1,), INT64)],
    doc="The places of elements that occurred before.",
)


cdef class IsMemberOf(Operator):
    cdef object values          # set of int or of bytes

    def setup(self):
        dtype = self.args.int("dtype", UNDEFINED)
        if dtype not in (UNDEFINED, INT32, INT64, BOOL, STRING):
            raise ValueError("dtype must be INT32, INT64, BOOL or STRING")
        self.values = None
        if dtype:
            self.values = frozenset(self.args.strings("value") if dtype == STRING else self.args.ints("value"))

    cdef int run(self) except -1 nogil:
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* y = self.y[0]
        cdef int64_t i
        if not is_index(x.dtype) and x.dtype != BOOL and x.dtype != STRING:
            return self.bad_dtype(0)
        resize_like(y, x, BOOL)
        with gil:
            if self.values is None:
                self.values = frozenset(self.args.strings("value") if x.dtype == STRING else self.args.ints("value"))
            if x.dtype == STRING:
                for i in range(x.size):
                    (<uint8_t*>y.data)[i] = get_string(x, i) in self.values
            elif x.dtype == BOOL:
                for i in range(x.size):
                    (<uint8_t*>y.data)[i] = (<uint8_t*>x.data)[i] in self.values
            else:
                for i in range(x.size):
                    (<uint8_t*>y.data)[i] = index_at(x, i) in self.values
        return 0


register(
    "IsMemberOf", IsMemberOf, 1, 1, ins={"X": "int32, int64, bool or string tensor"}, outs={"Y": "bool tensor"},
    args={"value": "the values to look for", "dtype": "their type; that of X by default"}, infer=like(0, dtype=BOOL),
    doc="Whether each element is one of the given values.",
)

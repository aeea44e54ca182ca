"""Base of the operators whose outputs are their inputs' items, moved; and the loops that move them."""
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF, Py_XINCREF
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport MAX_DIMS, STRING, UNDEFINED, itemsize
from caffe2._core.threads cimport num_threads

cdef extern from "caffe2/ops/kernels/transpose.h":
    void transpose_4x4(uint32_t* to, int64_t to_step, const uint32_t* x, int64_t step) noexcept nogil

cdef enum:
    BYTES_A_STEP = 16       # a copy moves about that many in an elementary operation

ctypedef fused item_t:
    uint8_t
    uint16_t
    uint32_t
    uint64_t


cdef class Movement(Operator):
    """Moves items of the inputs into the outputs, whatever their dtype.

    A subclass says in `prepare` what the outputs look like and in `move` where the items go. `width` is the size of
    an item of input 0; a subclass may set it to another input's.
    """

    cdef int prepare(self) except -1 nogil:
        return 0

    cdef void move(self) noexcept nogil:
        pass

    cdef int check_dtype(self, int i, int dtype) except -1 nogil:
        return 0 if self.x[i].dtype == dtype else self.fail("all inputs must be of the same type")

    cdef int run(self) except -1 nogil:
        cdef int i
        cdef bint strings = False
        if self.num_inputs and self.x[0].dtype == UNDEFINED:
            return self.bad_dtype(0)
        self.width = itemsize(self.x[0].dtype) if self.num_inputs else 0
        self.prepare()
        for i in range(self.num_outputs):
            strings |= self.y[i].dtype == STRING
        if strings:
            with gil:
                move_strings(self)
        else:
            self.move()
        return 0


cdef int move_strings(Movement op) except -1:
    """The pointers move like numbers; then the references that came and went are counted."""
    cdef int64_t n = 0, at = 0, i
    cdef int o
    cdef PyObject** old
    cdef PyObject** new
    for o in range(op.num_outputs):
        if op.y[o].dtype == STRING:
            n += op.y[o].size
    old = <PyObject**>malloc((n + 1) * sizeof(void*))
    if old == NULL:
        raise MemoryError
    for o in range(op.num_outputs):
        if op.y[o].dtype == STRING:
            memcpy(old + at, op.y[o].data, op.y[o].size * sizeof(void*))
            at += op.y[o].size
    op.move()
    for o in range(op.num_outputs):
        if op.y[o].dtype == STRING:
            new = <PyObject**>op.y[o].data
            for i in range(op.y[o].size):
                Py_XINCREF(new[i])
    for i in range(n):
        Py_XDECREF(old[i])
    free(old)
    return 0


cdef void rows_stretch(char* to, size_t to_step, const char* source, size_t source_step, int64_t begin, int64_t end,
                       size_t nbytes) noexcept nogil:
    cdef int64_t i
    for i in range(begin, end):
        copy_bytes(to + i * to_step, source + i * source_step, nbytes)


cdef void copy_rows(char* to, size_t to_step, const char* source, size_t source_step, int64_t n,
                    size_t nbytes) noexcept nogil:
    cdef int threads, t
    cdef int64_t chunk
    if nbytes == 0:
        return
    if nbytes == to_step and nbytes == source_step:     # one piece; threads take a page or more each
        nbytes *= n
        n = 1
        threads = num_threads(nbytes // BYTES_A_STEP)
        if threads > 1:
            chunk = (nbytes // threads + 4096) & ~<int64_t>4095
            for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                if t * chunk < <int64_t>nbytes:
                    memcpy(to + t * chunk, source + t * chunk, min(chunk, <int64_t>nbytes - t * chunk))
            return
    threads = min(<int64_t>num_threads(n * (1 + nbytes // BYTES_A_STEP)), n)
    if threads <= 1:
        rows_stretch(to, to_step, source, source_step, 0, n, nbytes)
        return
    chunk = (n + threads - 1) // threads
    for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        rows_stretch(to, to_step, source, source_step, min(n, t * chunk), min(n, (t + 1) * chunk), nbytes)


# ---------------------------------------------------------------- strided

cdef struct strided_t:
    int ndim
    int64_t[MAX_DIMS] shape
    int64_t[MAX_DIMS] step      # of the source, in items
    int inner                   # leading dimensions are looped over; that many trailing ones are a plane


cdef void simplify(strided_t* s, int ndim, const int64_t* shape, const int64_t* step) noexcept nogil:
    """Drop dimensions of 1 and join those that are one in the source, too."""
    cdef int i
    s.ndim = 0
    for i in range(ndim):
        if shape[i] == 1:
            continue
        if s.ndim and s.step[s.ndim - 1] == step[i] * shape[i]:
            s.shape[s.ndim - 1] *= shape[i]
            s.step[s.ndim - 1] = step[i]
        else:
            s.shape[s.ndim] = shape[i]
            s.step[s.ndim] = step[i]
            s.ndim += 1
    if s.ndim == 0:
        s.ndim = 1
        s.shape[0] = 1
        s.step[0] = 1


cdef void plane(item_t* to, int64_t to_step, const item_t* source, int64_t rows, int64_t row_step, int64_t n,
                int64_t step) noexcept nogil:
    """to[r * to_step + i] = source[r * row_step + i * step]"""
    cdef int64_t r, i, r0, i0, r1, i1
    if step == 1:
        for r in range(rows):
            memcpy(to + r * to_step, source + r * row_step, n * sizeof(item_t))
    elif step == 0:
        for r in range(rows):
            for i in range(n):
                to[r * to_step + i] = source[r * row_step]
    elif row_step == 1 and rows > 1 and n > 1:      # a transpose: by tiles of 16, so that lines are used whole
        for i0 in range(0, n, 16):
            i1 = min(n, i0 + 16)
            for r0 in range(0, rows, 16):
                r1 = min(rows, r0 + 16)
                if item_t is uint32_t:
                    if i1 - i0 == 16 and r1 - r0 == 16:
                        for r in range(r0, r1, 4):
                            for i in range(i0, i1, 4):
                                transpose_4x4(to + r * to_step + i, to_step, source + r + i * step, step)
                        continue
                for r in range(r0, r1):
                    for i in range(i0, i1):
                        to[r * to_step + i] = source[r + i * step]
    else:
        for r in range(rows):
            for i in range(n):
                to[r * to_step + i] = source[r * row_step + i * step]


cdef void strided_stretch(item_t* to, const item_t* source, const strided_t* s, int64_t rows, int64_t begin,
                          int64_t end) noexcept nogil:
    """Planes begin to end; a plane is the last dimension and `rows` of the one that the loop calls s.inner."""
    cdef int64_t p, rest, at, source_at, k
    cdef int d
    cdef int64_t[MAX_DIMS] to_step
    to_step[s.ndim - 1] = 1
    for d in range(s.ndim - 2, -1, -1):
        to_step[d] = to_step[d + 1] * s.shape[d + 1]
    for p in range(begin, end):
        rest = p
        at = 0
        source_at = 0
        for d in range(s.ndim - 2, -1, -1):
            if d == s.inner:
                continue
            k = rest % s.shape[d]
            rest //= s.shape[d]
            at += k * to_step[d]
            source_at += k * s.step[d]
        # what is left over counts blocks of rows
        at += rest * rows * to_step[s.inner]
        source_at += rest * rows * s.step[s.inner]
        plane(to + at, to_step[s.inner], source + source_at, min(rows, s.shape[s.inner] - rest * rows), s.step[s.inner],
              s.shape[s.ndim - 1], s.step[s.ndim - 1])


cdef void strided(item_t* to, const item_t* source, strided_t* s, int64_t size) noexcept nogil:
    cdef int64_t planes = 1, rows, blocks, chunk
    cdef int d, t, threads
    if s.ndim == 1:
        plane(to, 0, source, 1, 0, s.shape[0], s.step[0])
        return
    s.inner = s.ndim - 2
    for d in range(s.ndim - 1):
        if s.step[d] == 1:
            s.inner = d
    for d in range(s.ndim - 1):
        if d != s.inner:
            planes *= s.shape[d]
    threads = num_threads(size)
    rows = s.shape[s.inner]
    if planes < threads:            # split the planes themselves
        blocks = (threads + planes - 1) // planes
        rows = (rows + blocks - 1) // blocks
        rows = (rows + 15) & ~<int64_t>15
        planes *= (s.shape[s.inner] + rows - 1) // rows
    if threads == 1:
        strided_stretch(to, source, s, rows, 0, planes)
        return
    chunk = (planes + threads - 1) // threads
    for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        strided_stretch(to, source, s, rows, min(planes, t * chunk), min(planes, (t + 1) * chunk))


cdef void copy_strided(char* to, const char* source, int ndim, const int64_t* shape, const int64_t* step,
                       size_t width) noexcept nogil:
    cdef strided_t s
    cdef int64_t size = 1
    cdef int d
    for d in range(ndim):
        size *= shape[d]
    if size == 0:
        return
    simplify(&s, ndim, shape, step)
    if s.ndim == 1 and s.step[0] == 1:
        copy_rows(to, size * width, source, size * width, 1, size * width)
    elif width == 1:
        strided(<uint8_t*>to, <const uint8_t*>source, &s, size)
    elif width == 2:
        strided(<uint16_t*>to, <const uint16_t*>source, &s, size)
    elif width == 4:
        strided(<uint32_t*>to, <const uint32_t*>source, &s, size)
    else:
        strided(<uint64_t*>to, <const uint64_t*>source, &s, size)

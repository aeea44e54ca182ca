"""LC: a convolution whose filters differ from place to place."""
from cython.parallel cimport prange

from libc.stdint cimport int64_t
from libc.string cimport memset

from caffe2._core.operator cimport Operator
from caffe2._core.tensor cimport FLOAT, resize, resize_like, tensor_t
from caffe2._core.threads cimport num_threads
from caffe2.ops.kernels.dispatch cimport K, SCRATCH_USER, epilogue_t, image_t, operand_t
from caffe2.ops.windows cimport Windows, check_shape, window_shape, windows_t

from caffe2._core.registry import register
from caffe2._core.schema import TensorInfo
from caffe2.ops.windows import ARGS, DILATION, GROUP, infer


cdef class LC(Operator):
    """Place by place: the windows of all images there make one matrix, [images, taps], to multiply with the filters."""
    cdef Windows windows
    cdef int64_t filters

    def setup(self):
        self.windows = Windows(self.args)

    cdef int fit(self) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* x = self.x[0]
        cdef tensor_t* w = self.x[1]
        cdef int64_t[8] shape
        cdef int i, n
        cdef bint same
        self.expect(0, FLOAT)
        self.expect(1, FLOAT)
        self.windows.fit(x.ndim, x.shape)
        n = g.ndim
        for i in range(n):
            shape[i] = g.image.out[i + 3 - n]
            shape[n + (1 if g.image.nhwc else 2) + i] = g.image.kernel[i + 3 - n]
        shape[n] = w.shape[n]
        shape[2 * n + 1 if g.image.nhwc else n + 1] = g.image.channels
        same = w.ndim == 2 * n + 2
        for i in range(2 * n + 2 if same else 0):
            same &= w.shape[i] == shape[i]
        if not same:
            with gil:
                wanted = [str(shape[i]) if i != n else "filters" for i in range(2 * n + 2)]
                raise ValueError(f"filter must have shape ({', '.join(wanted)}), "
                                 f"but has {tuple([w.shape[i] for i in range(w.ndim)])}")
        self.filters = w.shape[n]
        if self.filters % g.group:
            with gil:
                raise ValueError(f"{self.filters} filters cannot be divided into {g.group} groups")
        return 0

    cdef void place(self, int64_t at, int group, image_t* one) noexcept nogil:
        """The images' windows at one place, of one group."""
        cdef int axis
        one[0] = self.windows.c.image
        for axis in range(2, -1, -1):
            one.pad[axis] -= <int>(at % one.out[axis]) * one.stride[axis]
            at //= one.out[axis]
            one.out[axis] = 1

    cdef inline int64_t channel(self, int group) noexcept nogil:
        """Where the first channel of a group is in an image."""
        return group * self.windows.c.image.channels * (1 if self.windows.c.image.nhwc else self.windows.c.pixels)

    cdef void move(self, float* matrix, float* y, int64_t at, bint into) noexcept nogil:
        """Copy [images, filters] of one place out of y, or into it."""
        cdef windows_t* g = &self.windows.c
        cdef int64_t n, m, i
        for n in range(g.batch):
            for m in range(self.filters):
                i = (n * g.count + at) * self.filters + m if g.image.nhwc else (n * self.filters + m) * g.count + at
                if into:
                    y[i] = matrix[n * self.filters + m]
                else:
                    matrix[n * self.filters + m] = y[i]

    cdef int run(self) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef int64_t[5] shape
        cdef int64_t at
        cdef int nth, i, failed = 0
        self.fit()
        if self.num_inputs == 3:
            self.expect(2, FLOAT)
            self.expect_ndim(2, g.ndim + 1)
            for i in range(g.ndim + 1):
                if self.x[2].shape[i] != self.x[1].shape[i]:
                    return self.fail("bias must have a value for each place and filter")
        window_shape(g, self.filters, shape)
        resize(self.y[0], g.ndim + 2, shape, FLOAT)
        if self.y[0].size == 0:
            return 0
        nth = num_threads(<int64_t>(self.y[0].size * <double>g.image.channels * g.taps / 8))
        for at in prange(g.count, num_threads=nth, schedule="static"):
            failed |= self.answer(at)
        if failed:
            with gil:
                raise MemoryError
        return 0

    cdef int answer(self, int64_t at) noexcept nogil:
        cdef windows_t* g = &self.windows.c
        cdef int64_t taps = g.image.channels * g.taps, filters = self.filters // g.group
        cdef float* matrix = <float*>K.scratch(SCRATCH_USER, g.batch * self.filters * sizeof(float))
        cdef const float* w = <const float*>self.x[1].data + at * self.filters * taps
        cdef image_t one
        cdef operand_t a, b
        cdef epilogue_t e
        cdef int group, failed = 0
        if matrix == NULL:
            return 1
        memset(&a, 0, sizeof(a))
        memset(&b, 0, sizeof(b))
        memset(&e, 0, sizeof(e))
        a.image = &one
        a.trans = not g.image.nhwc
        b.ld = taps
        b.trans = 1
        for group in range(g.group):
            self.place(at, group, &one)
            a.data = <const float*>self.x[0].data + self.channel(group)
            b.data = w + group * filters * taps
            if self.num_inputs == 3:
                e.bias_col = <const float*>self.x[2].data + at * self.filters + group * filters
            failed |= K.sgemm_op(g.batch, filters, taps, 1, &a, &b, 0, matrix + group * filters, self.filters, &e, 1)
        self.move(matrix, <float*>self.y[0].data, at, True)
        return failed


cdef class LCGradient(LC):
    cdef bint no_bias

    def setup(self):
        LC.setup(self)
        self.no_bias = self.args.bool("no_bias")
        if self.num_inputs != 3:
            raise ValueError("takes X, filter and the gradient of Y")
        if self.no_bias and self.num_outputs == 3:
            raise ValueError("has no gradient of the bias to give: no_bias is set, but there are three outputs")

    cdef int run(self) except -1 nogil:
        cdef windows_t* g = &self.windows.c
        cdef tensor_t* dx = self.y[self.num_outputs - 1] if self.num_outputs == (2 if self.no_bias else 3) else NULL
        cdef tensor_t* db = self.y[1] if not self.no_bias and self.num_outputs > 1 else NULL
        cdef int64_t[5] shape
        cdef int64_t at
        cdef int nth, failed = 0
        self.fit()
        self.expect(2, FLOAT)
        window_shape(g, self.filters, shape)
        check_shape(self.x[2], "dY", g.ndim + 2, shape)
        resize_like(self.y[0], self.x[1], FLOAT)
        if db != NULL:
            resize(db, g.ndim + 1, self.x[1].shape, FLOAT)
        if dx != NULL:
            resize_like(dx, self.x[0], FLOAT)
            memset(dx.data, 0, dx.size * sizeof(float))
        if g.batch == 0:
            memset(self.y[0].data, 0, self.y[0].size * sizeof(float))
            if db != NULL:
                memset(db.data, 0, db.size * sizeof(float))
            return 0
        nth = num_threads(<int64_t>(self.x[2].size * <double>g.image.channels * g.taps / 8))
        for at in prange(g.count, num_threads=nth, schedule="static"):
            failed |= self.filter_gradient(at, <float*>db.data + at * self.filters if db != NULL else NULL)
        if dx != NULL:      # windows overlap: one place after the other
            for at in range(g.count):
                failed |= self.add_images(at, <float*>dx.data, nth)
        if failed:
            with gil:
                raise MemoryError
        return 0

    cdef int filter_gradient(self, int64_t at, float* db) noexcept nogil:
        cdef windows_t* g = &self.windows.c
        cdef int64_t taps = g.image.channels * g.taps, filters = self.filters // g.group, n, m
        cdef float* matrix = <float*>K.scratch(SCRATCH_USER, g.batch * self.filters * sizeof(float))
        cdef image_t one
        cdef operand_t a, b
        cdef int group, failed = 0
        if matrix == NULL:
            return 1
        memset(&a, 0, sizeof(a))
        memset(&b, 0, sizeof(b))
        self.move(matrix, <float*>self.x[2].data, at, False)
        if db != NULL:
            memset(db, 0, self.filters * sizeof(float))
            for n in range(g.batch):
                for m in range(self.filters):
                    db[m] += matrix[n * self.filters + m]
        a.ld = self.filters
        a.trans = 1
        b.image = &one
        b.trans = not g.image.nhwc
        for group in range(g.group):
            self.place(at, group, &one)
            a.data = matrix + group * filters
            b.data = <const float*>self.x[0].data + self.channel(group)
            failed |= K.sgemm_op(filters, taps, g.batch, 1, &a, &b, 0,
                                 <float*>self.y[0].data + (at * self.filters + group * filters) * taps, taps, NULL, 1)
        return failed

    cdef int add_images(self, int64_t at, float* dx, int nth) noexcept nogil:
        cdef windows_t* g = &self.windows.c
        cdef int64_t taps = g.image.channels * g.taps, filters = self.filters // g.group
        cdef float* matrix = <float*>K.scratch(SCRATCH_USER, g.batch * self.filters * sizeof(float))
        cdef float* columns = <float*>K.scratch(SCRATCH_USER + 1, g.batch * taps * sizeof(float))
        cdef const float* w
        cdef image_t one
        cdef int group, failed = 0
        if matrix == NULL or columns == NULL:
            return 1
        self.move(matrix, <float*>self.x[2].data, at, False)
        for group in range(g.group):
            self.place(at, group, &one)
            w = <const float*>self.x[1].data + (at * self.filters + group * filters) * taps
            if g.image.nhwc:
                failed |= K.sgemm(0, 0, g.batch, taps, filters, 1, matrix + group * filters, self.filters, w, taps, 0,
                                  columns, taps, NULL, nth)
            else:
                failed |= K.sgemm(1, 1, taps, g.batch, filters, 1, w, taps, matrix + group * filters, self.filters, 0,
                                  columns, g.batch, NULL, nth)
            K.scol2im(&one, columns, dx + self.channel(group), nth)
        return failed


def _infer(args, inputs):
    w = inputs[1]
    return [infer(args, inputs[0], w.shape[w.ndim // 2 - 1] if w.shape else -1)]


def _infer_gradient(args, inputs):
    """Gradients of filter, bias and X, as far as they are asked for."""
    x, w = inputs[:2]
    bias = [TensorInfo(None if w.shape is None else w.shape[:w.ndim // 2])]
    outputs = len(args.definition.output)
    return ([w] + ([] if args.bool("no_bias") or outputs == 1 else bias) + [x])[:outputs]


def _cost(args, inputs, outputs):
    x, w = inputs[:2]
    if None in (x.shape, w.shape):
        return dict(flops=0, bytes_read=0, bytes_written=0, params_bytes=0)
    return dict(
        flops=2 * x.shape[0] * w.size, bytes_read=4 * sum(t.size for t in inputs),
        bytes_written=4 * sum(t.size for t in outputs if t.shape is not None),
        params_bytes=4 * sum(t.size for t in inputs[1:]),
    )


def _gradient(g):
    outputs = [g.GI(i) for i in range(1, g.num_inputs)]
    if not g.args.bool("no_gradient_to_input"):
        outputs.append(g.GI(0))
    no_bias = {} if g.num_inputs == 3 else {"no_bias": 1}
    return g.op(g.definition.type + "Gradient", [g.I(0), g.I(1), g.GO(0)], outputs, **no_bias)


for _name in ("LC", "LC1D", "LC2D", "LC3D"):
    _args = {**ARGS, **DILATION, **GROUP, "no_gradient_to_input": "leave out the gradient of X"}
    register(
        _name, LC, (2, 3), 1,
        ins={
            "X": "images, [N, C, ...] or, with order NHWC, [N, ..., C]",
            "filter": "[places..., M, C / group, kernel...] or [places..., M, kernel..., C / group]",
            "bias": "[places..., M]; 0 where it is left out",
        },
        outs={"Y": "[N, M, places...] or [N, places..., M]"},
        args=_args, infer=_infer, cost=_cost, gradient=_gradient,
        doc="Locally connected layer: Conv, but every place of Y has filters and biases of its own.",
    )
    register(
        _name + "Gradient", LCGradient, (2, 3), (1, 3),
        ins={"X": "images", "filter": "the filters", "dY": "gradient of Y"},
        outs={
            "dfilter": "gradient of the filters",
            "dbias or dX": "gradient of the bias; with no_bias, of X",
            "dX": "gradient of X",
        },
        args={**_args, "no_bias": "there is no bias, hence no gradient of one"}, infer=_infer_gradient,
        doc=f"Gradient of {_name}. The gradient of X is computed only where there is an output for it.",
    )

/* Windows over blocked images, each channel by itself: depthwise convolution and pooling. */
#include <float.h>
#include <stddef.h>

#include "conv16.h"
#include "share.h"

#define BAND 8 /* rows of the output that a thread does at once */
#define WIDE 8 /* pixels computed at once where nothing is clipped */

enum { FILTER, MAXIMUM, MEAN };

typedef struct {
    const conv16_t* c;
    const float* w; /* of the lanes at hand */
    f32 bias;
    ptrdiff_t residual; /* from y */
    int has_residual, whole; /* whole: the mean counts the border */
    float low, high;
    i32 lanes; /* that are channels */
} window_t;

/* One result of a filter. */
INLINE void put(const window_t* g, f32 a, float* y) {
    if (g->has_residual) a += *(const f32*)(y + g->residual);
    *(f32*)y = (f32)((i32)clip(a, g->low, g->high) & g->lanes);
}

/* The results of `pixels` windows side by side, from the taps in rows r0..r1 and columns s0..s1. */
INLINE void windows(const int kind, const int pixels, const int stride, const window_t* g, int r0,
                    int r1, int s0, int s1, const float* x, float* y) {
    const conv16_t* c = g->c;
    const long line = 16l * c->dilation[0] * c->size[1], next = 16l * c->dilation[1];
    f32 sum[8];
UNROLL
    for (int p = 0; p < pixels; p++) sum[p] = (f32){0} + (kind == MAXIMUM ? -FLT_MAX : 0);
    for (int r = r0; r < r1; r++) {
        const float* q = x + r * line + s0 * next;
        const float* w = g->w + 16 * ((long)r * c->kernel[1] + s0);
#pragma GCC unroll 3
        for (int s = s0; s < s1; s++, q += next, w += 16) {
UNROLL
            for (int p = 0; p < pixels; p++) {
                const f32 a = *(const f32*)(q + 16 * p * stride);
                if (kind == FILTER) sum[p] += a * *(const f32*)w;
                else if (kind == MAXIMUM) sum[p] = f32_max(a, sum[p]);
                else sum[p] += a;
            }
        }
    }
    const long seen = MAX(1, (r1 - r0) * (long)(s1 - s0));
    const long count = g->whole ? (long)c->kernel[0] * c->kernel[1] : seen;
    const f32 bias = g->bias;
UNROLL
    for (int p = 0; p < pixels; p++, y += 16) {
        if (kind == FILTER) put(g, sum[p] + bias, y);
        else *(f32*)y = (f32)((i32)(kind == MEAN ? sum[p] / (float)count : sum[p]) & g->lanes);
    }
}

/* One row of windows: what is clipped, one by one, around what is not. kw and dw are constants
 * for the common sizes, so that pixels under several windows are loaded once. */
INLINE void row(const int kind, const int stride, const int kw, const int dw, const window_t* g,
                const float* x, int oy, float* y) {
    const conv16_t* c = g->c;
    int r0, r1, s0, s1;
    const long top = (long)oy * c->stride[0] - c->pad[0];
    taps_inside(top, c->kernel[0], c->dilation[0], c->size[0], &r0, &r1);
    const long span = (kw - 1l) * dw, end = c->size[1] - 1 - span + c->pad[1];
    const long first = MIN(c->out[1], DIVIDE_UP((long)c->pad[1], stride));
    const long last = MAX(first, MIN(c->out[1], end < 0 ? 0 : end / stride + 1));
    x += (top * c->size[1] - c->pad[1]) * 16;
    for (long o = 0; o < c->out[1];) {
        const float* at = x + o * stride * 16;
        float* to = y + o * 16;
        if (o >= first && o + WIDE <= last) {
            windows(kind, WIDE, stride, g, r0, r1, 0, kw, at, to);
            o += WIDE;
        } else if (VECTOR_BYTES < 64 && o >= first && o + 4 <= last) {
            windows(kind, 4, stride, g, r0, r1, 0, kw, at, to);
            o += 4;
        } else if (o >= first && o + 2 <= last) {
            windows(kind, 2, stride, g, r0, r1, 0, kw, at, to);
            o += 2;
        } else {
            taps_inside(o * stride - c->pad[1], kw, dw, c->size[1], &s0, &s1);
            windows(kind, 1, stride, g, r0, r1, s0, s1, at, to);
            o++;
        }
    }
}

/* Two rows of windows of 3x3 filters, stride 1, none of which reaches above or below the image: each
 * pixel is loaded once, a column of them adds to the sums of three windows side by side. */
INLINE void two_rows(const window_t* g, const float* x, int oy, float* y) {
    const conv16_t* c = g->c;
    const long line = 16l * c->size[1], to = 16l * c->out[1];
    const f32 bias = g->bias;
    f32 w[9], sum[2][3];
UNROLL
    for (int i = 0; i < 9; i++) w[i] = *(const f32*)(g->w + 16 * i);
UNROLL
    for (int i = 0; i < 6; i++) sum[i / 3][i % 3] = bias;
    x += (oy - c->pad[0]) * line;
    long o = c->pad[1] - 2l; /* the window that ends with the column at hand */
    for (long i = 0; i < c->size[1] && o < c->out[1]; i++, o++) {
UNROLL
        for (int q = 0; q < 4; q++) {
            const f32 a = *(const f32*)(x + q * line + i * 16);
UNROLL
            for (int r = MAX(0, q - 2); r <= MIN(1, q); r++)
UNROLL
                for (int s = 0; s < 3; s++) sum[r][2 - s] += a * w[(q - r) * 3 + s];
        }
UNROLL
        for (int r = 0; r < 2; r++) {
            if (o >= 0) put(g, sum[r][0], y + r * to + o * 16);
            sum[r][0] = sum[r][1];
            sum[r][1] = sum[r][2];
            sum[r][2] = bias;
        }
    }
    for (int i = 0; o < c->out[1]; i++, o++) /* windows that reach beyond the last column */
        for (int r = 0; r < 2 && o >= 0; r++)
            put(g, i == 0 ? sum[r][0] : i == 1 ? sum[r][1] : bias, y + r * to + o * 16);
}

/* Rows from..to - 1 of windows; y is row `from`. */
INLINE void rows(const int kind, const int stride, const int kw, const int dw, const window_t* g,
                 const float* x, int from, int to, float* y) {
    const conv16_t* c = g->c;
    const int pairs = VECTOR_BYTES == 64 && kind == FILTER && stride == 1 && kw == 3 && dw == 1 &&
                      c->kernel[0] == 3 && c->dilation[0] == 1 && c->stride[0] == 1 &&
                      c->pad[1] <= 2;
    for (int oy = from; oy < to; oy++) {
        float* at = y + 16l * c->out[1] * (oy - from);
        if (pairs && oy + 1 < to && oy >= c->pad[0] && oy + 4l - c->pad[0] <= c->size[0])
            two_rows(g, x, oy++, at);
        else row(kind, stride, kw, dw, g, x, oy, at);
    }
}

/* One block's windows in rows from..to - 1 of one image; residual and y are those of row `from`. */
INLINE void band(const int kind, const depthwise16_t* d, int whole, long image, long block,
                 int from, int to, const float* residual, float* y) {
    const conv16_t* c = &d->c;
    const long size = (long)c->size[0] * c->size[1];
    const long taps = (long)c->kernel[0] * c->kernel[1];
    for (int lane = 0; lane < 16; lane += LANES) {
        const long channel = 16 * block + lane;
        const float* x = d->x + (image * BLOCKS(c->channels) + block) * size * 16 + lane;
        window_t g = {.c = c, .lanes = lanes_at(c, channel), .whole = whole};
        if (kind == FILTER) {
            g.w = d->packed + block * taps * 16 + lane;
            g.bias = bias_at(c, d->e.bias, channel);
            g.has_residual = residual != 0;
            g.residual = residual ? residual - y : 0;
            g.low = d->e.low;
            g.high = d->e.high;
        }
        if (c->kernel[1] == 3 && c->dilation[1] == 1 && c->stride[1] == 1)
            rows(kind, 1, 3, 1, &g, x, from, to, y + lane);
        else if (c->kernel[1] == 3 && c->dilation[1] == 1 && c->stride[1] == 2)
            rows(kind, 2, 3, 1, &g, x, from, to, y + lane);
        else rows(kind, c->stride[1], c->kernel[1], c->dilation[1], &g, x, from, to, y + lane);
    }
}

void CAT(depthwise16_band, ISA)(const depthwise16_t* d, long image, long block, int from, int to,
                                const float* residual, float* y) {
    band(FILTER, d, 0, image, block, from, to, residual, y);
}

INLINE void each(const int kind, depthwise16_t d, int whole, float* y, int nth) {
    const long blocks = BLOCKS(d.c.channels), out = (long)d.c.out[0] * d.c.out[1];
    const long taps = (long)d.c.kernel[0] * d.c.kernel[1];
    const long size = (long)d.c.size[0] * d.c.size[1];
    const long y_step = y_image(&d.c, &d.e);
    nth = threads_for(4. * d.c.batch * d.c.channels * out * taps, nth);
    /* Convolutions divide large images by rows, others by channels: threads keep what they wrote. */
    const int by_rows = d.c.channels <= size;
    const long most = by_rows && d.c.batch == 1 ? DIVIDE_UP(d.c.out[0], nth) : d.c.out[0];
    const long bands = DIVIDE_UP(d.c.out[0], MAX(1, MIN(BAND, most)));
    const long count = d.c.batch * blocks * bands;
    stretch_t work[nth];
    share_out(count, nth, work);
#pragma omp parallel num_threads(nth) if (nth > 1) firstprivate(d)
    for (long k = -1; (k = take(k, count, nth, work)) >= 0;) {
        const long image = k / (blocks * bands), rest = k % (blocks * bands);
        const long block = by_rows ? rest % blocks : rest / bands;
        const long i = by_rows ? rest / blocks : rest % bands;
        const int from = (int)(i * d.c.out[0] / bands), to = (int)((i + 1) * d.c.out[0] / bands);
        const long at = image * y_step + (block * out + (long)from * d.c.out[1]) * 16;
        const float* residual = d.e.residual ? d.e.residual + at : 0;
        if (kind == FILTER)
            CAT(depthwise16_band, ISA)(&d, image, block, from, to, residual, y + at);
        else band(kind, &d, whole, image, block, from, to, 0, y + at);
    }
}

void CAT(depthwise16, ISA)(const depthwise16_t* d, float* y, int nth) {
    each(FILTER, *d, 0, y, nth);
}

const float* CAT(depthwise16_all, ISA)(const depthwise16_t* d, int nth) {
    float* y = kernels_scratch(4, d->c.batch * y_image(&d->c, &d->e) * sizeof(float));
    if (y) CAT(depthwise16, ISA)(d, y, nth);
    return y;
}

void CAT(pool16, ISA)(const conv16_t* c, int mode, const float* x, float* y, int nth) {
    const depthwise16_t d = {.c = *c, .x = x}; /* without filters */
    if (mode == POOL16_MAX) each(MAXIMUM, d, 0, y, nth);
    else each(MEAN, d, mode == POOL16_AVERAGE_PAD, y, nth);
}

void CAT(mean16, ISA)(long batch, int channels, long pixels, const float* x, float* y, int nth) {
    const long blocks = BLOCKS(channels);
    nth = threads_for(8. * batch * channels * pixels, nth);
#pragma omp parallel for num_threads(nth) if (nth > 1) schedule(static)
    for (long i = 0; i < batch * blocks; i++)
        for (int lane = 0; lane < 16; lane += LANES) {
            const float* from = x + i * pixels * 16 + lane;
            f32 sum[4] = {{0}};
            long p = 0;
            for (; p + 4 <= pixels; p += 4)
                for (int k = 0; k < 4; k++) sum[k] += *(const f32*)(from + (p + k) * 16);
            for (; p < pixels; p++) sum[0] += *(const f32*)(from + p * 16);
            const f32 mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)MAX(pixels, 1);
            const long channel = i % blocks * 16 + lane;
            for (int l = 0; l < MIN(LANES, channels - channel); l++)
                y[i / blocks * channels + channel + l] = mean[l];
        }
}

/* Convolution of one plane (one channel of one NCHW image) with one filter, and its gradients. */
#include <string.h>

#include "kernels.h"
#include "simd.h"

#define LANES F32_LANES
#define SIDE 16 /* widest filter that has vector loops */

/* Outputs first..last of an axis see pixel `tap` of their windows inside the image. */
INLINE void inside(const image_t* g, int axis, int tap, int* first, int* last) {
    const long left = (long)tap * g->dilation[axis] - g->pad[axis], s = g->stride[axis];
    *first = left < 0 ? (int)MIN(g->out[axis], (-left + s - 1) / s) : 0;
    *last = left < g->size[axis] ? (int)MIN(g->out[axis], (g->size[axis] - 1 - left) / s + 1) : 0;
    *last = MAX(*first, *last);
}

/* Image line under line (d, h) of the output at filter line (z, y); NULL outside. */
INLINE const float* line_of(const image_t* g, const float* x, int d, int h, int z, int y) {
    const int at = d * g->stride[0] - g->pad[0] + z * g->dilation[0];
    const int line = h * g->stride[1] - g->pad[1] + y * g->dilation[1];
    if ((unsigned)at >= (unsigned)g->size[0] || (unsigned)line >= (unsigned)g->size[1]) return 0;
    return x + ((long)at * g->size[1] + line) * g->size[2];
}

#if VECTOR_BYTES >= 32
#define EVEN(q, l) (2 * (l))

/* Loads of LANES pixels, one or two apart, under each tap of a filter line. */
typedef struct {
    long at[SIDE];
    f32_mask m[SIDE], behind[SIDE];
} loads_t;

static void loads_at(const image_t* g, int v, loads_t* l) {
    for (int t = 0; t < g->kernel[2]; t++) {
        int first, last;
        inside(g, 2, t, &first, &last);
        const long lo = MIN(MAX(first - v, 0), LANES), hi = MAX(MIN(last - v, LANES), lo);
        l->at[t] = (long)v * g->stride[2] + (long)t * g->dilation[2] - g->pad[2];
        if (g->stride[2] == 1) l->m[t] = f32_range(lo, hi);
        else {
            const long from = 2 * lo, to = hi > lo ? 2 * hi - 1 : from;
            l->m[t] = f32_range(MIN(from, LANES), MIN(to, LANES));
            l->behind[t] = f32_range(MAX(from - LANES, 0), MAX(to - LANES, 0));
        }
    }
}

INLINE f32 load(const loads_t* l, const float* x, long size, const float* line, int t, const int stride) {
    const long at = line - x + l->at[t];
    const f32 a = f32_load_of(x, size, at, l->m[t]);
    if (stride == 1) return a;
    const f32 b = f32_load_of(x, size, at + LANES, l->behind[t]);
    return SHUFFLE(i32, F32_LANES, a, b, EVEN, 1);
}

INLINE void forward(const image_t* g, const float* x, const float* w, float bias, float* y, const int side,
                    const int stride) {
    const long size = (long)g->size[0] * g->size[1] * g->size[2];
    loads_t l;
    for (int v = 0; v < g->out[2]; v += LANES) {
        const f32_mask lanes = f32_first(MIN(g->out[2] - v, LANES));
        float* to = y + v;
        loads_at(g, v, &l);
        for (int d = 0; d < g->out[0]; d++)
            for (int h = 0; h < g->out[1]; h++, to += g->out[2]) {
                f32 sum = (f32){0} + bias;
                const float* filter = w;
                for (int z = 0; z < g->kernel[0]; z++)
                    for (int i = 0; i < g->kernel[1]; i++, filter += side) {
                        const float* line = line_of(g, x, d, h, z, i);
                        if (!line) continue;
#pragma GCC unroll 8
                        for (int t = 0; t < side; t++) sum += filter[t] * load(&l, x, size, line, t, stride);
                    }
                f32_store(to, sum, lanes);
            }
    }
}

/* One line of the filter: dw[t] += sum of dy * pixels. */
INLINE void backward(const image_t* g, const float* x, const float* dy, int z, int i, float* dw, const int side,
                     const int stride) {
    const long size = (long)g->size[0] * g->size[1] * g->size[2];
    f32 sum[SIDE];
    loads_t l;
#pragma GCC unroll 8
    for (int t = 0; t < side; t++) sum[t] = (f32){0};
    for (int v = 0; v < g->out[2]; v += LANES) {
        const f32_mask lanes = f32_first(MIN(g->out[2] - v, LANES));
        const float* from = dy + v;
        loads_at(g, v, &l);
        for (int d = 0; d < g->out[0]; d++)
            for (int h = 0; h < g->out[1]; h++, from += g->out[2]) {
                const float* line = line_of(g, x, d, h, z, i);
                if (!line) continue;
                const f32 a = f32_load(from, lanes);
#pragma GCC unroll 8
                for (int t = 0; t < side; t++) sum[t] += a * load(&l, x, size, line, t, stride);
            }
    }
    for (int t = 0; t < side; t++)
        for (int lane = 0; lane < LANES; lane++) dw[t] += sum[t][lane];
}

/* Calls f with the filter's width and stride as constants where they are common. */
#define SPECIALIZED(f, ...)                                                          \
    do {                                                                             \
        const int k = g->kernel[2], s = g->stride[2];                                \
        if (k == 3 && s == 1) f(__VA_ARGS__, 3, 1);                                  \
        else if (k == 3 && s == 2) f(__VA_ARGS__, 3, 2);                             \
        else if (s == 1) f(__VA_ARGS__, k, 1);                                       \
        else f(__VA_ARGS__, k, 2);                                                   \
    } while (0)
#define HAS_VECTORS(g) ((g)->stride[2] <= 2 && (g)->kernel[2] <= SIDE)
#else
#define HAS_VECTORS(g) 0
#define SPECIALIZED(f, ...)
#endif

/* y = bias + filter over x. */
void CAT(depthwise, ISA)(const image_t* g, const float* x, const float* w, float bias, float* y) {
    if (HAS_VECTORS(g)) {
        SPECIALIZED(forward, g, x, w, bias, y);
        return;
    }
    for (int d = 0; d < g->out[0]; d++)
        for (int h = 0; h < g->out[1]; h++, y += g->out[2]) {
            const float* filter = w;
            for (int o = 0; o < g->out[2]; o++) y[o] = bias;
            for (int z = 0; z < g->kernel[0]; z++)
                for (int i = 0; i < g->kernel[1]; i++, filter += g->kernel[2]) {
                    const float* line = line_of(g, x, d, h, z, i);
                    if (!line) continue;
                    for (int t = 0; t < g->kernel[2]; t++) {
                        int first, last;
                        inside(g, 2, t, &first, &last);
                        const float* from = line + (long)t * g->dilation[2] - g->pad[2];
                        for (long o = first; o < last; o++) y[o] += filter[t] * from[o * g->stride[2]];
                    }
                }
        }
}

/* dw += what the windows of x and dy give. */
void CAT(depthwise_filter, ISA)(const image_t* g, const float* x, const float* dy, float* dw) {
    for (int z = 0; z < g->kernel[0]; z++)
        for (int i = 0; i < g->kernel[1]; i++, dw += g->kernel[2]) {
            if (HAS_VECTORS(g)) {
                SPECIALIZED(backward, g, x, dy, z, i, dw);
                continue;
            }
            for (int t = 0; t < g->kernel[2]; t++) {
                int first, last;
                float sum = 0;
                inside(g, 2, t, &first, &last);
                for (int d = 0; d < g->out[0]; d++)
                    for (int h = 0; h < g->out[1]; h++) {
                        const float* line = line_of(g, x, d, h, z, i);
                        if (!line) continue;
                        const float* from = line + (long)t * g->dilation[2] - g->pad[2];
                        const float* a = dy + ((long)d * g->out[1] + h) * g->out[2];
                        for (long o = first; o < last; o++) sum += a[o] * from[o * g->stride[2]];
                    }
                dw[t] += sum;
            }
        }
}

/* dx from dy, for any stride; with stride 1 `depthwise` with the filter turned around is faster. */
void CAT(depthwise_image, ISA)(const image_t* g, const float* dy, const float* w, float* dx) {
    memset(dx, 0, (size_t)g->size[0] * g->size[1] * g->size[2] * sizeof(float));
    for (int d = 0; d < g->out[0]; d++)
        for (int h = 0; h < g->out[1]; h++, dy += g->out[2]) {
            const float* filter = w;
            for (int z = 0; z < g->kernel[0]; z++)
                for (int i = 0; i < g->kernel[1]; i++, filter += g->kernel[2]) {
                    float* line = (float*)line_of(g, dx, d, h, z, i);
                    if (!line) continue;
                    for (int t = 0; t < g->kernel[2]; t++) {
                        int first, last;
                        inside(g, 2, t, &first, &last);
                        float* to = line + (long)t * g->dilation[2] - g->pad[2];
                        for (long o = first; o < last; o++) to[o * g->stride[2]] += filter[t] * dy[o];
                    }
                }
        }
}

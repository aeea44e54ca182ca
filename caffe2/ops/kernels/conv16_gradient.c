/* Gradients of convolution of blocked images.
 *
 * filters   dw[m][c][tap] is the sum over pixels of dy[m] times x[c] under that tap: a tile of
 *           `depth` channels times one or two vectors of output channels stays in registers while
 *           a band of pixels, small enough for the first-level cache, goes by.
 * image     dx is a convolution of dy with the filters turned around and their channels swapped;
 *           with strides, one for each remainder of a pixel's place, by the taps that meet it. */
#include <string.h>

#include "conv16.h"
#include "transpose.h"

/* ---- filters ---- */

#define BAND_PIXELS 160
#if VECTOR_BYTES == 64
#define DEPTH 8
#else
#define DEPTH 4
#endif

/* Pixels under one tap: images x rows x columns of them, and the steps between. */
typedef struct {
    long images, rows, columns;
    long x_image, x_row, x_column, dy_image, dy_row, dy_vector;
} pixels_t;

INLINE void tile(const int depth, const int vectors, const pixels_t* p, const float* x,
                 const float* dy, float* dw) {
    f32 sum[16][2];
UNROLL
    for (int i = 0; i < depth; i++)
UNROLL
        for (int v = 0; v < vectors; v++)
            sum[i][v] = *(const f32*)(dw + (i * vectors + v) * LANES);
    for (long n = 0; n < p->images; n++)
        for (long r = 0; r < p->rows; r++) {
            const float* q = x + n * p->x_image + r * p->x_row;
            const float* d = dy + n * p->dy_image + r * p->dy_row;
            for (long o = 0; o < p->columns; o++, q += p->x_column, d += 16) {
                const f32 d0 = *(const f32*)d;
                const f32 d1 = vectors > 1 ? *(const f32*)(d + p->dy_vector) : d0;
UNROLL
                for (int i = 0; i < depth; i++) {
                    sum[i][0] += q[i] * d0;
                    if (vectors > 1) sum[i][1] += q[i] * d1;
                }
            }
        }
UNROLL
    for (int i = 0; i < depth; i++)
UNROLL
        for (int v = 0; v < vectors; v++)
            *(f32*)(dw + (i * vectors + v) * LANES) = sum[i][v];
}

static void tile_any(int depth, int vectors, const pixels_t* p, const float* x, const float* dy,
                     float* dw) {
    if (vectors == 1) {
        for (int i = 0; i < depth; i += DEPTH)
            tile(DEPTH, 1, p, x + i, dy, dw + i * LANES);
        return;
    }
    for (int i = 0; i < depth; i += DEPTH)
        if (depth - i > 4) tile(DEPTH, 2, p, x + i, dy, dw + i * 2 * LANES);
        else tile(4, 2, p, x + i, dy, dw + i * 2 * LANES);
}

/* Windows first..last of an axis have pixel `tap` inside the image. */
static void windows_inside(const conv16_t* c, int axis, int tap, long* first, long* last) {
    const long left = (long)tap * c->dilation[axis] - c->pad[axis], s = c->stride[axis];
    *first = left < 0 ? MIN(c->out[axis], DIVIDE_UP(-left, s)) : 0;
    *last = left < c->size[axis] ? MIN(c->out[axis], (c->size[axis] - 1 - left) / s + 1) : 0;
}

/* Adds what a band of pixels gives to one block of channels times a panel; dw: [tap][16][panel]. */
static void add_band(const conv16_t* c, int depth, int vectors, long image_0, long image_1,
                     long row_0, long row_1, const float* x, const float* dy, float* dw) {
    const long size = (long)c->size[0] * c->size[1], out = (long)c->out[0] * c->out[1];
    pixels_t p = {.images = image_1 - image_0,
                  .x_image = BLOCKS(c->channels) * size * 16,
                  .dy_image = BLOCKS(c->out_channels) * out * 16,
                  .x_row = 16l * c->stride[0] * c->size[1],
                  .x_column = 16l * c->stride[1],
                  .dy_row = 16l * c->out[1],
                  .dy_vector = LANES == 16 ? out * 16 : LANES};
    x += image_0 * p.x_image;
    dy += image_0 * p.dy_image;
    for (int r = 0; r < c->kernel[0]; r++)
        for (int s = 0; s < c->kernel[1]; s++, dw += 16 * vectors * LANES) {
            long top, bottom, left, right;
            windows_inside(c, 0, r, &top, &bottom);
            windows_inside(c, 1, s, &left, &right);
            top = MAX(top, row_0);
            p.rows = MIN(bottom, row_1) - top;
            p.columns = right - left;
            if (p.rows <= 0 || p.columns <= 0) continue;
            const long y = top * c->stride[0] + (long)r * c->dilation[0] - c->pad[0];
            const long at = left * c->stride[1] + (long)s * c->dilation[1] - c->pad[1];
            tile_any(depth, vectors, &p, x + (y * c->size[1] + at) * 16,
                     dy + (top * c->out[1] + left) * 16, dw);
        }
}

/* [tap][16][wide] to `out` rows of (channel, tap). */
static void write_block(long out, long wide, long depth, long taps, const float* x, float* dw,
                        long step) {
    if (taps == 1) transpose_any(x, wide, depth, out, dw, step);
    else
        for (long o = 0; o < out; o++)
            for (long k = 0; k < depth; k++)
                for (long tap = 0; tap < taps; tap++)
                    dw[o * step + k * taps + tap] = x[(tap * 16 + k) * wide + o];
}

int CAT(conv16_filter_gradient, ISA)(const conv16_t* c, const float* x, const float* dy, float* dw,
                                     int nth) {
    const long depth = c->channels / c->group, width = c->out_channels / c->group;
    const long padded = 16 * BLOCKS(width), panels = DIVIDE_UP(padded, PANEL);
    const long blocks = BLOCKS(depth), taps = (long)c->kernel[0] * c->kernel[1];
    const long size = (long)c->size[0] * c->size[1], out = (long)c->out[0] * c->out[1];
    const long rows = MAX(1, BAND_PIXELS / MAX(1, c->out[1]));
    const long images = rows >= c->out[0] ? MAX(1, BAND_PIXELS / MAX(1, out)) : 1;
    const size_t bytes = (size_t)c->group * blocks * 16 * padded * taps * sizeof(float);
    float* sums = kernels_scratch(0, bytes);
    if (!sums) return -1;
    nth = threads_for((double)c->batch * out * c->out_channels * depth * taps, nth);
    /* pairs of a panel and a few blocks of channels; a thread keeps to the band of its panel */
    const long wanted = nth == 1 ? 1 : 4l * nth, per_group = c->group * panels;
    const long chunks = MAX(1, MIN(blocks, DIVIDE_UP(wanted, per_group)));
#pragma omp parallel for num_threads(nth) if (nth > 1) schedule(dynamic, 1)
    for (long i = 0; i < per_group * chunks; i++) {
        const long g = i / chunks / panels, first = i / chunks % panels * PANEL;
        const long block_0 = i % chunks * blocks / chunks;
        const long block_1 = (i % chunks + 1) * blocks / chunks;
        const int vectors = (int)MIN(2, (padded - first) / LANES);
        const long channel = g * width + first, wide = vectors * LANES;
        float* mine = sums + (g * padded + first) * blocks * 16 * taps;
        const long step = 16 * taps * wide;
        memset(mine + block_0 * step, 0, (block_1 - block_0) * step * sizeof(float));
        for (long n = 0; n < c->batch; n += images)
            for (long r = 0; r < c->out[0]; r += rows)
                for (long b = block_0; b < block_1; b++)
                    add_band(c, (int)MIN(16, depth - 16 * b), vectors, n,
                             MIN(n + images, c->batch), r, MIN(r + rows, c->out[0]),
                             x + (g * blocks + b) * size * 16,
                             dy + channel / 16 * out * 16 + channel % 16, mine + b * step);
        for (long k = 16 * block_0; k < MIN(16 * block_1, depth); k += 16)
            write_block(MIN(wide, width - first), wide, MIN(16, depth - k), taps,
                        mine + k / 16 * step, dw + (channel * depth + k) * taps, depth * taps);
    }
    return 0;
}

/* ---- image ---- */

/* part: [batch][block][out of d][16]; to every stride-th pixel of dx from `at` on. */
static void spread(const conv16_t* c, const conv16_t* d, const long* at, const float* part,
                   float* dx, int nth) {
    const long images = c->batch * BLOCKS(c->channels);
#pragma omp parallel for num_threads(nth) if (nth > 1) schedule(static)
    for (long n = 0; n < images; n++)
        for (long r = 0; r < d->out[0]; r++) {
            const float* from = part + (n * d->out[0] + r) * d->out[1] * 16;
            const long row = n * c->size[0] + at[0] + r * c->stride[0];
            float* to = dx + (row * c->size[1] + at[1]) * 16;
            for (long s = 0; s < d->out[1]; s++, from += 16, to += 16l * c->stride[1])
                memcpy(to, from, 16 * sizeof(float));
        }
}

/* One of the convolutions that give dx: of pixels with remainders `phase` by the stride. */
static int one_phase(const conv16_t* c, const int* phase, int winograd, const float* dy,
                     const float* w, float* dx, int nth) {
    conv16_t d = {.batch = c->batch, .channels = c->out_channels, .out_channels = c->channels,
                  .group = c->group};
    const int strided = c->stride[0] > 1 || c->stride[1] > 1;
    long at[2];
    for (int i = 0; i < 2; i++) {
        const long s = c->stride[i], left = phase[i] - (long)c->pad[i];
        const long first = left < 0 ? DIVIDE_UP(-left, s) : 0; /* window that starts at `at` */
        at[i] = first * s + left;
        if (at[i] >= c->size[i]) return 0;
        d.stride[i] = 1;
        d.size[i] = c->out[i];
        d.out[i] = (int)((c->size[i] - 1 - at[i]) / s + 1);
        d.kernel[i] = phase[i] < c->kernel[i] ? (int)DIVIDE_UP(c->kernel[i] - phase[i], s) : 0;
        d.dilation[i] = c->dilation[i];
        d.pad[i] = (int)((d.kernel[i] - 1l) * d.dilation[i] - first);
    }
    if (!d.kernel[0] || !d.kernel[1]) return 0; /* stays 0 */
    const long taps = (long)d.kernel[0] * d.kernel[1];
    int way = CAT(conv16_way, ISA)(&d, 0, winograd ? 2 : 0);
    if (way == CONV16_NONE) way = CONV16_DIRECT;
    const long packed = DIVIDE_UP((long)CAT(conv16_pack_bytes, ISA)(&d, way), 64) * 16;
    const long part = strided ? c->batch * BLOCKS(c->channels) * d.out[0] * d.out[1] * 16 : 0;
    float* memory = kernels_scratch(3, (packed + part) * sizeof(float) + taps * sizeof(long));
    if (!memory) return -1;
    const epilogue16_t none = {.low = -__builtin_inff(), .high = __builtin_inff()};
    float* y = strided ? memory + packed : dx;
    /* every stride-th tap, turned around; channels swapped */
    const long all = (long)c->kernel[0] * c->kernel[1], depth = c->channels / c->group;
    long* tap_at = (long*)(memory + packed + part);
    const filters_t f = {.w = w, .group_step = c->out_channels / c->group * depth * all,
                         .out_step = all, .in_step = depth * all, .at = tap_at};
    for (long r = d.kernel[0] - 1; r >= 0; r--)
        for (long s = d.kernel[1] - 1; s >= 0; s--)
            *tap_at++ = (phase[0] + r * c->stride[0]) * c->kernel[1] + phase[1] + s * c->stride[1];
    CAT(conv16_pack_from, ISA)(&d, way, &f, memory, nth);
    if (CAT(conv16, ISA)(&d, way, dy, memory, &none, y, nth)) return -1;
    if (strided) spread(c, &d, at, y, dx, nth);
    return 0;
}

int CAT(conv16_image_gradient, ISA)(const conv16_t* c, int winograd, const float* dy,
                                    const float* w, float* dx, int nth) {
    const long size = (long)c->size[0] * c->size[1];
    const size_t all = (size_t)c->batch * BLOCKS(c->channels) * size * 16 * sizeof(float);
    nth = threads_for((double)c->batch * size * c->channels * c->out_channels / c->group, nth);
    /* pixels that no tap meets */
    if (c->kernel[0] < c->stride[0] || c->kernel[1] < c->stride[1] || !c->out[0] || !c->out[1])
        memset(dx, 0, all);
    if (!c->out[0] || !c->out[1]) return 0;
    for (int a = 0; a < c->stride[0]; a++)
        for (int b = 0; b < c->stride[1]; b++)
            if (one_phase(c, (int[2]){a, b}, winograd, dy, w, dx, nth)) return -1;
    return 0;
}

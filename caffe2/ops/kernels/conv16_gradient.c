/* Gradients of convolution and pooling of blocked images.
 *
 * filters   dw[m][c][tap] is the sum over pixels of dy[m] times x[c] under that tap: a tile of
 *           `depth` channels times one or two vectors of output channels stays in registers while
 *           a band of pixels, small enough for the first-level cache, goes by.
 * image     dx is a convolution of dy with the filters turned around and their channels swapped;
 *           with strides, one for each remainder of a pixel's place, by the taps that meet it. */
#include <string.h>

#include "conv16.h"
#include "share.h"
#include "transpose.h"

/* ---- filters ---- */

#define BAND_PIXELS 98         /* with a panel and a block, they stay in the first-level cache */
#define SUM_BYTES (512l << 10) /* of the sums of a part */
#if VECTOR_BYTES == 64
#define DEPTH 8
#else
#define DEPTH 4
#endif

/* The pixels of a band that meet one tap. */
typedef struct {
    long images, rows, columns;
    long x, dy; /* where they start */
} area_t;

/* From one pixel to the next; to those of a later tile, fetched meanwhile. */
typedef struct {
    long x_image, x_row, x_column, x_next;
    long dy_image, dy_row, dy_vector, dy_next;
    long sum; /* from one channel's sums to the next one's */
} steps_t;

INLINE void tile(const int depth, const int vectors, const area_t* a, const steps_t* s,
                 const long next, const float* x, const float* dy, float* dw) {
    f32 sum[16][2];
UNROLL
    for (int i = 0; i < depth; i++)
UNROLL
        for (int v = 0; v < vectors; v++)
            sum[i][v] = *(const f32*)(dw + i * s->sum + v * LANES);
    for (long n = 0; n < a->images; n++)
        for (long r = 0; r < a->rows; r++) {
            const float* q = x + n * s->x_image + r * s->x_row;
            const float* d = dy + n * s->dy_image + r * s->dy_row;
            for (long o = 0; o < a->columns; o++, q += s->x_column, d += 16) {
                __builtin_prefetch(q + s->x_next);
                __builtin_prefetch(d + next);
                const f32 d0 = *(const f32*)d;
                const f32 d1 = vectors > 1 ? *(const f32*)(d + s->dy_vector) : d0;
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
            *(f32*)(dw + i * s->sum + v * LANES) = sum[i][v];
}

static void tile_any(long depth, long vectors, const area_t* a, const steps_t* s, const float* x,
                     const float* dy, float* dw) {
    x += a->x;
    dy += a->dy;
    for (long i = 0, next = s->dy_next; i < depth; i += DEPTH, next += next ? s->dy_vector : 0)
        if (vectors == 1) tile(DEPTH, 1, a, s, next, x + i, dy, dw + i * s->sum);
        else if (depth - i > 4) tile(DEPTH, 2, a, s, next, x + i, dy, dw + i * s->sum);
        else tile(4, 2, a, s, next, x + i, dy, dw + i * s->sum);
}

/* Windows first..last of an axis have pixel `tap` inside the image. */
static void windows_inside(const conv16_t* c, int axis, int tap, long* first, long* last) {
    const long left = (long)tap * c->dilation[axis] - c->pad[axis], s = c->stride[axis];
    *first = left < 0 ? MIN(c->out[axis], DIVIDE_UP(-left, s)) : 0;
    *last = left < c->size[axis] ? MIN(c->out[axis], (c->size[axis] - 1 - left) / s + 1) : 0;
}

/* Areas of the taps in a band of rows of some images. */
static void find_areas(const conv16_t* c, const steps_t* step, long image_0, long image_1,
                       long row_0, long row_1, area_t* a) {
    for (int r = 0; r < c->kernel[0]; r++)
        for (int s = 0; s < c->kernel[1]; s++, a++) {
            long top, bottom, left, right;
            windows_inside(c, 0, r, &top, &bottom);
            windows_inside(c, 1, s, &left, &right);
            top = MAX(top, row_0);
            bottom = MIN(bottom, row_1);
            const long y = top * c->stride[0] + (long)r * c->dilation[0] - c->pad[0];
            const long at = left * c->stride[1] + (long)s * c->dilation[1] - c->pad[1];
            *a = (area_t){image_1 - image_0, MAX(0, bottom - top), right - left,
                          image_0 * step->x_image + (y * c->size[1] + at) * 16,
                          image_0 * step->dy_image + (top * c->out[1] + left) * 16};
            if (step->x_row == a->columns * step->x_column && step->dy_row == a->columns * 16) {
                a->columns *= a->rows; /* one long row */
                a->rows = 1;
            }
        }
}

/* What one thread does at once, for all pixels: sums[panel][channel][tap][out channel]. */
typedef struct {
    long group, panel_0, panel_1, block_0, block_1;
} part_t;

static int filter_part(const conv16_t* c, const part_t* part, const float* x, const float* dy,
                       float* dw) {
    const long depth = c->channels / c->group, width = c->out_channels / c->group;
    const long blocks = BLOCKS(depth), padded = 16 * BLOCKS(width);
    const long taps = (long)c->kernel[0] * c->kernel[1];
    const long size = (long)c->size[0] * c->size[1], out = (long)c->out[0] * c->out[1];
    const long bands = MAX(1, DIVIDE_UP(out, BAND_PIXELS)), rows = DIVIDE_UP(c->out[0], bands);
    const long images = bands > 1 ? 1 : BAND_PIXELS / MAX(1, out);
    const long first = part->panel_0 * PANEL, last = MIN(part->panel_1 * PANEL, padded);
    const long rows_of_sums = (part->block_1 - part->block_0) * 16 * taps;
    float* sums = kernels_scratch(0, (last - first) * rows_of_sums * sizeof(float));
    area_t* areas = kernels_scratch(1, taps * sizeof(area_t));
    if (!sums || !areas) return -1;
    memset(sums, 0, (last - first) * rows_of_sums * sizeof(float));
    steps_t steps = {.x_image = BLOCKS(c->channels) * size * 16,
                     .x_row = 16l * c->stride[0] * c->size[1],
                     .x_column = 16l * c->stride[1],
                     .x_next = size * 16,
                     .dy_image = BLOCKS(c->out_channels) * out * 16,
                     .dy_row = 16l * c->out[1],
                     .dy_vector = LANES == 16 ? out * 16 : LANES};
    for (long n = 0; n < c->batch; n += images)
        for (long r = 0; r < c->out[0]; r += rows) {
            find_areas(c, &steps, n, MIN(n + images, c->batch), r, MIN(r + rows, c->out[0]), areas);
            for (long o = first; o < last; o += PANEL) {
                const long channel = part->group * width + o;
                const long vectors = MIN(PANEL, last - o) / LANES;
                const float* d = dy + channel / 16 * out * 16 + channel % 16;
                float* sum = sums + (o - first) * rows_of_sums;
                steps.sum = taps * vectors * LANES;
                for (long b = part->block_0; b < part->block_1; b++, sum += 16 * steps.sum) {
                    steps.dy_next = b + 1 < part->block_1 ? 0
                                    : o + PANEL < last    ? PANEL * out
                                                          : rows * steps.dy_row - (o - first) * out;
                    for (long t = 0; t < taps; t++)
                        tile_any(MIN(16, depth - 16 * b), vectors, areas + t, &steps,
                                 x + (part->group * blocks + b) * size * 16, d,
                                 sum + t * vectors * LANES);
                }
            }
        }
    const long channel = 16 * part->block_0, channels = MIN(16 * part->block_1, depth) - channel;
    for (long o = first; o < MIN(last, width); o += PANEL)
        transpose_any(sums + (o - first) * rows_of_sums, MIN(PANEL, last - o), channels * taps,
                      MIN(PANEL, MIN(last, width) - o),
                      dw + ((part->group * width + o) * depth + channel) * taps, depth * taps);
    return 0;
}

#ifdef __AMX_BF16__
/* Against what tiles take, which is measured too. */
static double filter_cycles(const conv16_t* c) {
    const double depth = DIVIDE_UP(c->channels / c->group, 4) * 4;
    const double pixels = (double)c->batch * c->out[0] * c->out[1];
    return pixels * depth * BLOCKS(c->out_channels) * 16 * c->kernel[0] * c->kernel[1] / 32;
}
#endif

int CAT(conv16_filter_gradient, ISA)(const conv16_t* c, const float* x, const float* dy, float* dw,
                                     int nth) {
    const long depth = c->channels / c->group, taps = (long)c->kernel[0] * c->kernel[1];
    const long blocks = BLOCKS(depth);
    const long panels = DIVIDE_UP(16 * BLOCKS(c->out_channels / c->group), PANEL);
    nth = threads_for((double)c->batch * c->out[0] * c->out[1] * c->out_channels * depth * taps,
                      nth);
#ifdef __AMX_BF16__
    const double cycles = filter_cycles(c);
    /* threads split some of the same channels again, and wait for each other's memory */
    if (cycles > 0 && 1.2 * conv16_filter_tiles_cycles(c) < cycles) {
        const int failed = conv16_filter_tiles(c, x, dy, dw, nth);
        if (failed <= 0) return failed;
    }
#endif
    /* the larger the parts, the less often images are read; their sums stay in the cache */
    long wide = panels, deep = blocks;
#define PARTS (c->group * DIVIDE_UP(panels, wide) * DIVIDE_UP(blocks, deep))
    while (wide * deep > 1 && (PARTS < nth || (PARTS % nth && PARTS < 4l * nth) ||
                               wide * deep * taps * PANEL * 16 * (long)sizeof(float) > SUM_BYTES))
        if (wide * PANEL >= deep * 16 && wide > 1) wide = DIVIDE_UP(wide, 2);
        else deep = DIVIDE_UP(deep, 2);
    const long across = DIVIDE_UP(panels, wide), down = DIVIDE_UP(blocks, deep);
    const long count = c->group * across * down;
    int failed = 0;
    stretch_t work[nth];
    share_out(count, nth, work);
#pragma omp parallel num_threads(nth) if (nth > 1)
    for (long i = -1; (i = take(i, count, nth, work)) >= 0;) {
        const long w = i / down % across, d = i % down;
        const part_t part = {.group = i / down / across,
                             .panel_0 = w * wide, .panel_1 = MIN((w + 1) * wide, panels),
                             .block_0 = d * deep, .block_1 = MIN((d + 1) * deep, blocks)};
        note(&failed, filter_part(c, &part, x, dy, dw));
    }
    return failed ? -1 : 0;
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
    int way = CAT(conv16_way, ISA)(&d, CONV16_BLOCKED, winograd ? 2 : 0);
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
    if (CAT(conv16_pack_from, ISA)(&d, way, &f, memory, nth) ||
        CAT(conv16, ISA)(&d, way, dy, memory, &none, y, nth))
        return -1;
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

/* ---- pooling ---- */

/* A window's share of the gradient goes to its pixels, or to those that are the maximum. */
INLINE void share(const int max, const conv16_t* c, int rows, int columns, f32 dy, f32 y,
                  const float* x, float* dx) {
    for (int r = 0; r < rows; r++, x += 16l * c->size[1], dx += 16l * c->size[1])
        for (int s = 0; s < columns; s++) {
            const i32 mine = max ? (i32)(*(const f32*)(x + 16 * s) == y) : (i32){0} - 1;
            *(f32*)(dx + 16 * s) += (f32)(mine & (i32)dy);
        }
}

INLINE void pool_gradient(const int max, const conv16_t* c, int whole, const float* x,
                          const float* y, const float* dy, float* dx) {
    const long line = 16l * c->size[1];
    long cleared = 0;
    int r0, r1, s0, s1;
    for (long oy = 0; oy < c->out[0]; oy++) {
        const long top = oy * c->stride[0] - c->pad[0];
        taps_inside(top, c->kernel[0], 1, c->size[0], &r0, &r1);
        for (; cleared < MIN(top + r1, c->size[0]); cleared++)
            memset(dx + cleared * line, 0, line * sizeof(float));
        for (long ox = 0; ox < c->out[1]; ox++, y += 16, dy += 16) {
            const long left = ox * c->stride[1] - c->pad[1];
            taps_inside(left, c->kernel[1], 1, c->size[1], &s0, &s1);
            const long at = (top + r0) * line + (left + s0) * 16;
            const int rows = r1 - r0, columns = s1 - s0;
            const int count = whole ? c->kernel[0] * c->kernel[1] : MAX(1, rows * columns);
            for (int lane = 0; lane < 16; lane += LANES) {
                const f32 d = *(const f32*)(dy + lane);
                if (max && c->kernel[1] == 3 && columns == 3)
                    share(1, c, rows, 3, d, *(const f32*)(y + lane), x + at + lane, dx + at + lane);
                else if (max)
                    share(1, c, rows, columns, d, *(const f32*)(y + lane), x + at + lane,
                          dx + at + lane);
                else share(0, c, rows, columns, d / (float)count, d, dx, dx + at + lane);
            }
        }
    }
    memset(dx + cleared * line, 0, (c->size[0] - cleared) * line * sizeof(float));
}

void CAT(pool16_gradient, ISA)(const conv16_t* c, int mode, const float* x, const float* y,
                               const float* dy, float* dx, int nth) {
    const long size = 16l * c->size[0] * c->size[1], out = 16l * c->out[0] * c->out[1];
    const long images = c->batch * BLOCKS(c->channels);
    nth = threads_for((double)images * (size + out * c->kernel[0] * c->kernel[1]), nth);
#pragma omp parallel for num_threads(nth) if (nth > 1) schedule(static)
    for (long i = 0; i < images; i++)
        if (mode == POOL16_MAX)
            pool_gradient(1, c, 0, x + i * size, y + i * out, dy + i * out, dx + i * size);
        else
            pool_gradient(0, c, mode == POOL16_AVERAGE_PAD, NULL, dy + i * out, dy + i * out,
                          dx + i * size);
}

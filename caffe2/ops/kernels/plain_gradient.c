/* Gradients of a convolution of plain images with blocked answers.
 *
 * filters   A row of dw is one channel under one tap. A thread copies what a band of pixels sees, with
 *           its border, so that each row is the same walk from another start; the sums of a few rows
 *           times one or two vectors of output channels stay in registers while the band goes by.
 *           Threads share the bands, and their sums are added up.
 * image     The lanes of a sum are output channels, added up at the end: a tile holds some pixels, a
 *           stride apart, of a few channels and runs over the taps that meet them. */
#include <string.h>

#include "conv16.h"
#include "transpose.h"

#define SUMS (1l << 17) /* at most, of a thread */
#define BAND_PIXELS 98 /* with what they see, they stay in the first-level cache */
#if VECTOR_BYTES == 64
#define ROWS 8
#define EACH_COUNT(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8)
#else
#define ROWS 6
#define EACH_COUNT(F) F(1) F(2) F(3) F(4) F(5) F(6)
#endif

/* ---- filters ---- */

typedef struct {
    const conv16_t* c;
    long rows, panels;     /* of dw */
    long high, bands;      /* rows of pixels in a band, bands of an image */
    long seen_rows, seen_columns;
    const long *at, *pixel; /* in what a band sees: of a row's first value, of pixels */
} plan_t;

INLINE void tile(const int rows, const int vectors, const long* at, long n, const long* pixel,
                 const float* x, const float* dy, long dy_vector, float* sums) {
    f32 sum[ROWS][2];
    const float* from[ROWS];
UNROLL
    for (int i = 0; i < rows; i++) {
        from[i] = x + at[i];
UNROLL
        for (int v = 0; v < vectors; v++) sum[i][v] = *(const f32*)(sums + i * PANEL + v * LANES);
    }
    for (long p = 0; p < n; p++, dy += 16) {
        const f32 d0 = *(const f32*)dy, d1 = vectors > 1 ? *(const f32*)(dy + dy_vector) : d0;
        const long place = pixel[p];
UNROLL
        for (int i = 0; i < rows; i++) {
            const float value = from[i][place];
            sum[i][0] += value * d0;
            if (vectors > 1) sum[i][1] += value * d1;
        }
    }
UNROLL
    for (int i = 0; i < rows; i++)
UNROLL
        for (int v = 0; v < vectors; v++) *(f32*)(sums + i * PANEL + v * LANES) = sum[i][v];
}

static void tile_any(int rows, int vectors, const long* at, long n, const long* pixel, const float* x,
                     const float* dy, long dy_vector, float* sums) {
    switch (rows) {
#define CASE(count)                                                                   \
    case count:                                                                       \
        if (vectors > 1) tile(count, 2, at, n, pixel, x, dy, dy_vector, sums);        \
        else tile(count, 1, at, n, pixel, x, dy, dy_vector, sums);                    \
        break;
        EACH_COUNT(CASE)
#undef CASE
    }
}

/* What pixels from row `first` on see of one image. */
static void copy_seen(const plan_t* p, const float* x, long first, float* to) {
    const conv16_t* c = p->c;
    const long width = c->size[1], top = first * c->stride[0] - c->pad[0], left = c->pad[1];
    const long end = MIN(p->seen_columns, left + width);
    for (long k = 0; k < c->channels; k++, x += c->size[0] * width)
        for (long r = 0; r < p->seen_rows; r++, to += p->seen_columns) {
            const long begin = top + r < 0 || top + r >= c->size[0] ? end : MIN(left, end);
            memset(to, 0, begin * sizeof(float));
            memcpy(to + begin, x + (top + r) * width + begin - left, (end - begin) * sizeof(float));
            memset(to + end, 0, (p->seen_columns - end) * sizeof(float));
        }
}

static void add_band(const plan_t* p, long image, long band, const float* dy, const float* seen,
                     float* sums) {
    const conv16_t* c = p->c;
    const long first = band * p->high, out = (long)c->out[0] * c->out[1];
    const long pixels = MIN(p->high, c->out[0] - first) * c->out[1];
    const long vector = LANES == 16 ? out * 16 : LANES, groups = DIVIDE_UP(p->rows, ROWS);
    dy += image * BLOCKS(c->out_channels) * out * 16 + first * c->out[1] * 16;
    for (long panel = 0; panel < p->panels; panel++, sums += p->rows * PANEL) {
        const long channel = panel * PANEL;
        const int vectors = c->out_channels - channel > LANES ? 2 : 1;
        for (long i = 0; i < groups; i++) {
            const long from = i * p->rows / groups, to = (i + 1) * p->rows / groups;
            tile_any((int)(to - from), vectors, p->at + from, pixels, p->pixel, seen,
                     dy + channel / 16 * out * 16 + channel % 16, vector, sums + from * PANEL);
        }
    }
}

static long sums_of(const conv16_t* c) {
    return DIVIDE_UP(c->out_channels, (long)PANEL) * PANEL * c->channels * c->kernel[0] * c->kernel[1];
}

int CAT(plain_filter_gradient_fits, ISA)(const conv16_t* c) {
    return CAT(conv16_way, ISA)(c, CONV16_NCHW, 0) != CONV16_NONE && sums_of(c) <= SUMS;
}

int CAT(plain_filter_gradient, ISA)(const conv16_t* c, const float* x, const float* dy, float* dw,
                                    int nth) {
    const long taps = (long)c->kernel[0] * c->kernel[1], sums = sums_of(c);
    plan_t p = {.c = c, .rows = c->channels * taps, .panels = DIVIDE_UP(c->out_channels, (long)PANEL)};
    p.high = MAX(1, MIN(c->out[0], BAND_PIXELS / c->out[1]));
    p.bands = DIVIDE_UP(c->out[0], p.high);
    p.seen_rows = (p.high - 1) * c->stride[0] + (c->kernel[0] - 1l) * c->dilation[0] + 1;
    p.seen_columns = (c->out[1] - 1l) * c->stride[1] + (c->kernel[1] - 1l) * c->dilation[1] + 1;
    const long count = c->batch * p.bands, pixels = p.high * c->out[1];
    nth = (int)MAX(1, MIN(count, threads_for((double)count * pixels * sums, nth)));
    float* all = kernels_scratch(0, nth * sums * sizeof(float));
    long* at = kernels_scratch(1, (p.rows + pixels) * sizeof(long));
    if (!all || !at) return -1;
    p.at = at;
    for (long k = 0; k < c->channels; k++)
        for (long r = 0; r < c->kernel[0]; r++)
            for (long s = 0; s < c->kernel[1]; s++)
                *at++ = (k * p.seen_rows + r * c->dilation[0]) * p.seen_columns + s * c->dilation[1];
    p.pixel = at;
    for (long r = 0; r < p.high; r++)
        for (long s = 0; s < c->out[1]; s++)
            *at++ = r * c->stride[0] * p.seen_columns + s * c->stride[1];
    int failed = 0;
#pragma omp parallel for num_threads(nth) if (nth > 1) schedule(static) reduction(| : failed)
    for (int t = 0; t < nth; t++) {
        float* mine = all + t * sums;
        float* seen = kernels_scratch(2, c->channels * p.seen_rows * p.seen_columns * sizeof(float));
        failed |= !seen;
        memset(mine, 0, sums * sizeof(float));
        for (long i = count * t / nth; seen && i < count * (t + 1) / nth; i++) {
            const long n = i / p.bands, band = i % p.bands;
            copy_seen(&p, x + n * c->channels * c->size[0] * c->size[1], band * p.high, seen);
            add_band(&p, n, band, dy, seen, mine);
        }
    }
    if (failed) return -1;
    for (int t = 1; t < nth; t++)
        for (long i = 0; i < sums; i += LANES) *(f32*)(all + i) += *(const f32*)(all + t * sums + i);
    for (long o = 0; o < c->out_channels; o += PANEL)
        transpose_any(all + o * p.rows, PANEL, p.rows, MIN(PANEL, c->out_channels - o), dw + o * p.rows,
                      p.rows);
    return 0;
}

/* ---- image ---- */

#define SUMS_AT_ONCE 12
#define MAX_CHANNELS 4 /* of a tile; it has SUMS_AT_ONCE / channels pixels */
#define SEEN_BYTES (256l << 10) /* of the answers that a band of rows sees, if it is not one row */

/* A tap that meets every stride-th pixel of a row from some place on: with which answers, and its filters. */
typedef struct {
    long at, w;
} tap_t;

typedef struct {
    const conv16_t* c;
    const float* w; /* [tap][vector][channel][LANES] */
    long vectors;
    long high, reach;         /* rows of a band; answers that a row sees beyond its own */
    long left, rows, columns; /* of the copied answers; left: of their border */
} image_plan_t;

#define FLIP(q, l) ((l) ^ (q))
INLINE float total(f32 x) {
#define ADD(q) x += SHUFFLE(i32, F32_LANES, x, x, FLIP, q);
#if F32_LANES > 8
    ADD(8)
#endif
#if F32_LANES > 4
    ADD(4)
#endif
    ADD(2) ADD(1)
#undef ADD
    return x[0];
}

/* The sums of some pixels, a stride apart, of some channels; answers: those under the first pixel. */
INLINE void image_tile(const int channels, const image_plan_t* p, const tap_t* taps, long count,
                       const float* answers, const float* w, float* sums) {
    const int pixels = SUMS_AT_ONCE / channels;
    const long step = p->c->channels * LANES, block = p->rows * p->columns * 16;
    f32 sum[SUMS_AT_ONCE];
UNROLL
    for (int i = 0; i < SUMS_AT_ONCE; i++) sum[i] = (f32){0};
    for (const tap_t* end = taps + count; taps < end; taps++) {
        const float *d = answers + taps->at, *f = w + taps->w;
        for (long v = 0; v < p->vectors; v++, f += step) {
UNROLL
            for (int i = 0; i < pixels; i++) {
                const f32 a = *(const f32*)(d + i * 16);
UNROLL
                for (int k = 0; k < channels; k++)
                    sum[i * channels + k] += a * *(const f32*)(f + k * LANES);
            }
            d += LANES == 16 || (v + 1) % (16 / LANES) == 0 ? block - (16 - LANES) : LANES;
        }
    }
UNROLL
    for (int i = 0; i < SUMS_AT_ONCE; i++) sums[i] = total(sum[i]);
}

/* Every stride-th pixel of a row of some channels. */
INLINE void image_row(const int channels, const image_plan_t* p, const tap_t* taps, long count,
                      const float* answers, long channel, long phase, float* dx) {
    const conv16_t* c = p->c;
    const long stride = c->stride[1], size = (long)c->size[0] * c->size[1];
    float sums[SUMS_AT_ONCE];
    for (long x = phase; x < c->size[1]; answers += SUMS_AT_ONCE / channels * 16) {
        image_tile(channels, p, taps, count, answers, p->w + channel * LANES, sums);
        for (int i = 0; i < SUMS_AT_ONCE / channels && x < c->size[1]; i++, x += stride)
            for (int k = 0; k < channels; k++) dx[(channel + k) * size + x] = sums[i * channels + k];
    }
}

/* Copies rows of answers from `first` on, with a border of zeros. */
static void copy_answers(const image_plan_t* p, const float* dy, long first, float* to) {
    const conv16_t* c = p->c;
    const long row = c->out[1] * 16l, left = p->left * 16, right = p->columns * 16 - left - row;
    for (long block = 0; block < BLOCKS(c->out_channels); block++)
        for (long r = first; r < first + p->rows; r++) {
            memset(to, 0, left * sizeof(float));
            to += left;
            if (r >= 0 && r < c->out[0]) memcpy(to, dy + (block * c->out[0] + r) * row, row * sizeof(float));
            to += row;
            memset(to, 0, right * sizeof(float));
            to += right;
        }
}

/* Rows y..end - 1 of one image. */
static void image_band(const image_plan_t* p, const float* dy, long y, long end, float* answers, tap_t* taps,
                       float* dx) {
    const conv16_t* c = p->c;
    const long lowest = (y + c->pad[0]) / c->stride[0] - p->reach; /* row of answers */
    copy_answers(p, dy, lowest, answers);
    for (; y < end; y++)
        for (long phase = 0; phase < MIN(c->stride[1], c->size[1]); phase++) {
            long count = 0;
            for (long r = 0; r < c->kernel[0]; r++) {
                const long row = y + c->pad[0] - r * c->dilation[0];
                if (row < 0 || row % c->stride[0] || row / c->stride[0] >= c->out[0]) continue;
                for (long s = 0; s < c->kernel[1]; s++) {
                    const long column = phase + c->pad[1] - s * c->dilation[1];
                    if (column % c->stride[1]) continue;
                    taps[count++] = (tap_t){
                        ((row / c->stride[0] - lowest) * p->columns + p->left + column / c->stride[1]) * 16,
                        (r * c->kernel[1] + s) * p->vectors * c->channels * LANES};
                }
            }
            for (long k = 0, some; k < c->channels; k += some) {
                float* row = dx + y * c->size[1];
                some = MIN(MAX_CHANNELS, c->channels - k);
                if (some == 1) image_row(1, p, taps, count, answers, k, phase, row);
                else if (some == 2) image_row(2, p, taps, count, answers, k, phase, row);
                else if (some == 3) image_row(3, p, taps, count, answers, k, phase, row);
                else image_row(4, p, taps, count, answers, k, phase, row);
            }
        }
}

int CAT(plain_image_gradient, ISA)(const conv16_t* c, const float* dy, const float* w, float* dx, int nth) {
    const long taps = (long)c->kernel[0] * c->kernel[1], out = (long)c->out[0] * c->out[1];
    const long blocks = BLOCKS(c->out_channels), vectors = DIVIDE_UP(c->out_channels, (long)LANES);
    const long step = c->channels * LANES;
    image_plan_t p = {.c = c, .vectors = vectors};
    p.left = MAX(0, DIVIDE_UP((c->kernel[1] - 1l) * c->dilation[1] - c->pad[1], c->stride[1]));
    p.columns = p.left + MAX(c->out[1], (c->size[1] - 1l + c->pad[1]) / c->stride[1] + 1 + SUMS_AT_ONCE);
    p.reach = (c->kernel[0] - 1l) * c->dilation[0] / c->stride[0] + 1;
    nth = threads_for((double)c->batch * out * taps * c->channels * c->out_channels, nth);
    p.high = (SEEN_BYTES / (blocks * p.columns * 16 * (long)sizeof(float)) - p.reach) * c->stride[0];
    p.high = MIN(MAX(p.high, 1), c->batch < nth ? DIVIDE_UP(c->size[0], nth) : c->size[0]);
    p.rows = (p.high - 1) / c->stride[0] + p.reach + 2;
    float* turned = kernels_scratch(0, taps * vectors * step * sizeof(float));
    if (!turned) return -1;
    memset(turned, 0, taps * vectors * step * sizeof(float));
    for (long o = 0; o < c->out_channels; o++)
        for (long k = 0; k < c->channels; k++)
            for (long tap = 0; tap < taps; tap++)
                turned[(tap * vectors + o / LANES) * step + k * LANES + o % LANES] = *w++;
    p.w = turned;
    const long bands = DIVIDE_UP(c->size[0], p.high);
    int failed = 0;
#pragma omp parallel for num_threads(nth) if (nth > 1) schedule(static) reduction(| : failed)
    for (long i = 0; i < c->batch * bands; i++) {
        const long n = i / bands, y = i % bands * p.high;
        float* answers = kernels_scratch(1, blocks * p.rows * p.columns * 16 * sizeof(float));
        tap_t* met = kernels_scratch(2, taps * sizeof(tap_t));
        failed |= !answers || !met;
        if (answers && met)
            image_band(&p, dy + n * blocks * out * 16, y, MIN(y + p.high, c->size[0]), answers, met,
                       dx + n * c->channels * c->size[0] * c->size[1]);
    }
    return failed ? -1 : 0;
}

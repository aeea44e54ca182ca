/* Direct convolution of blocked images by the matrix unit (amx.h).
 *
 * A thread splits a band of rows of some images into parts, with its border, and with places that
 * are a stride apart side by side: [32 channels][phase: row % stride, column % stride][image]
 * [row / stride][column / stride][part][32]. So any 16 pixels of the result that follow each other are a
 * left factor, whatever the tap; lines are longer than those of the result by what the taps reach
 * over, and sums of places beyond the end of a line are dropped. Filters are split once. */
#include "conv16.h"

#ifdef __AMX_BF16__
#include "amx.h"
#include "share.h"

#define X_BYTES (1280l << 10) /* of a band, split: most of the second-level cache */
#define PART (AMX_STEP * 2l)  /* bytes of a pixel's numbers */
#define PIXEL (AMX_PARTS * PART)

/* One axis: taps that are a multiple of the stride apart have a phase in common. */
typedef struct {
    long phases, reach; /* places beyond those of the result */
} axis_t;

static axis_t axis_of(const conv16_t* c, int i) {
    long a = c->stride[i], b = c->dilation[i];
    while (b) {
        const long rest = a % b;
        a = b;
        b = rest;
    }
    return (axis_t){MIN(c->kernel[i], c->stride[i] / a),
                    (c->kernel[i] - 1l) * c->dilation[i] / c->stride[i]};
}

typedef struct {
    const conv16_t* c;
    const float *x, *bias;
    const char* packed;
    const int32_t* keep;
    float* y;
    epilogue16_t e;
    axis_t down, across;
    int flat; /* lines follow each other without a gap, as do images */
    long depth, pairs, taps, panels, padded; /* of a group */
    long y_image;
    long images, rows; /* of a part, at most */
} plan_t;

/* The split band of a part: rows and columns of the result, lines as they lie. */
typedef struct {
    long images, rows, columns;
    long line, image; /* pixels */
    long phase, pair;  /* bytes */
} band_t;

static band_t band_of(const plan_t* p, long images, long rows) {
    band_t b = {.images = images, .rows = rows, .columns = p->c->out[1]};
    b.line = b.columns + p->across.reach;
    b.image = (rows + p->down.reach) * b.line;
    b.phase = images * b.image * PIXEL;
    b.pair = b.phase * p->down.phases * p->across.phases;
    return b;
}

/* A tile may read beyond the last pixel. */
static long band_bytes(const plan_t* p, const band_t* b) {
    return b->pair * p->pairs + AMX_ROWS * PIXEL;
}

/* One line of a band: `line` places, the first of them at column `left` of the image. */
static void split_line(const float* low, const float* high, long left, long stride, long size,
                       long line, char* to) {
    long first = !low ? line : left < 0 ? DIVIDE_UP(-left, stride) : 0;
    long last = left < size ? (size - 1 - left) / stride + 1 : 0;
    first = MIN(first, line);
    last = MAX(first, MIN(last, line));
    memset(to, 0, first * PIXEL);
    memset(to + last * PIXEL, 0, (line - last) * PIXEL);
    if (first == last) return;
    low += (left + first * stride) * 16;
    high += (left + first * stride) * 16;
    to += first * PIXEL;
    if (high == low)
        for (long i = first; i < last; i++, low += stride * 16, to += PIXEL)
            amx_split(*(const f32*)low, (f32){0}, to, PART);
    else
        for (long i = first; i < last; i++, low += stride * 16, high += stride * 16, to += PIXEL)
            amx_split(*(const f32*)low, *(const f32*)high, to, PART);
}

static void split_band(const plan_t* p, const part16_t* part, const band_t* b, char* to) {
    const conv16_t* c = p->c;
    const long plane = 16l * c->size[0] * c->size[1], blocks = BLOCKS(p->depth);
    for (long pair = 0; pair < p->pairs; pair++)
        for (long v = 0; v < p->down.phases; v++)
            for (long u = 0; u < p->across.phases; u++) {
                const long phase = v * p->across.phases + u;
                const long top = v * c->dilation[0] % c->stride[0] - c->pad[0];
                const long left = u * c->dilation[1] % c->stride[1] - c->pad[1];
                char* line = to + pair * b->pair + phase * b->phase;
                for (long n = 0; n < b->images; n++)
                    for (long r = 0; r < b->rows + p->down.reach; r++, line += b->line * PIXEL) {
                        const long at = (part->down_0 + r) * c->stride[0] + top;
                        const float* low = 0;
                        const float* high = 0;
                        if (at >= 0 && at < c->size[0]) {
                            low = p->x + (part->image_0 + n) * BLOCKS(c->channels) * plane +
                                  (part->group * blocks + 2 * pair) * plane + at * c->size[1] * 16;
                            high = 2 * pair + 1 < blocks ? low + plane : low;
                        }
                        split_line(low, high, left, c->stride[1], c->size[1], b->line, line);
                    }
            }
}

/* What is done to some sums of pixels that follow each other, before they are written. */
INLINE void finish(const plan_t* p, const int n, long channel, const float* sums, long pixels,
                   float* y) {
    const long plane = 16l * p->c->out[0] * p->c->out[1];
    const long residual = p->e.residual ? p->e.residual - p->y : 0;
    const int keep = channel + n * 16 > p->c->out_channels;
    for (int j = 0; j < n; j++, sums += 256, y += plane) {
        const f32 bias = *(const f32*)(p->bias + channel + j * 16);
        const i32 lanes = *(const i32*)(p->keep + channel + j * 16);
        for (long i = 0; i < pixels; i++) {
            f32 s = *(const f32*)(sums + i * 16) + bias;
            if (p->e.residual) s += *(const f32*)(y + residual + i * 16);
            s = clip(s, p->e.low, p->e.high);
            *(f32*)(y + i * 16) = keep ? (f32)((i32)s & lanes) : s;
        }
    }
}

/* m tiles of pixels, from `at` on, of a band; pixels end before `end`. */
INLINE void tiles(const plan_t* p, const int m, const int n, const part16_t* part, const band_t* b,
                  const amx_left_t* left, const char* x, const char* w, long channel, long at,
                  long end, amx_later_t* later) {
    float sums[AMX_SUMS] __attribute__((aligned(64)));
    const char* a = x + at * PIXEL;
    const long plane = 16l * p->c->out[0] * p->c->out[1];
    float* y = p->y + part->image_0 * p->y_image + channel / 16 * plane +
               part->down_0 * p->c->out[1] * 16;
    const long place = at % b->image; /* about where sums will go */
    const float* to = y + at / b->image * p->y_image +
                      (place / b->line * p->c->out[1] + place % b->line) * 16;
    for (int j = 0; j < n; j++)
        for (long i = 0; i < m * AMX_ROWS; i++) {
            __builtin_prefetch(to + j * plane + i * 16, 1);
            if (p->e.residual) __builtin_prefetch(p->e.residual + (to - p->y) + j * plane + i * 16);
        }
    amx_product(m, n, left, a, w, later, (amx_later_t){0}, sums);
    for (int t = 0; t < m; t++, a += left->second, at += AMX_ROWS)
        for (long i = 0, run; i < AMX_ROWS && at + i < end; i += run) {
            const long image = (at + i) / b->image, place = (at + i) % b->image;
            const long row = place / b->line, column = place % b->line;
            run = MIN(AMX_ROWS - i, end - at - i);
            if (row >= b->rows) run = MIN(run, b->image - place);
            else if (column >= b->columns) run = MIN(run, b->line - column);
            else {
                run = MIN(run, b->columns - column);
                float* s = sums + t * n * 256;
                if (amx_not_finite(n, s + i * 16, run)) amx_plain(n, left, a, w, i, i + run, s);
                finish(p, n, channel, s + i * 16, run,
                       y + image * p->y_image + (row * p->c->out[1] + column) * 16);
            }
        }
}

static void all_tiles(const plan_t* p, const int n, const part16_t* part, const band_t* b,
                      const amx_left_t* left, const char* x, const char* w, long channel) {
    /* Pixels go on from one image to the next where that makes fewer tiles. */
    const long image = (b->rows - 1) * b->line + b->columns;
    const long all = (b->images - 1) * b->image + image;
    const int on = DIVIDE_UP(all, AMX_ROWS) <= b->images * DIVIDE_UP(image, AMX_ROWS);
    const long passes = on ? DIVIDE_UP(all, 2 * AMX_ROWS)
                           : b->images * DIVIDE_UP(image, 2 * AMX_ROWS);
    const long lines = AMX_PARTS * n * AMX_TILE / 64;
    /* The next panel; few passes would be slowed by it. */
    amx_later_t later = {w + left->steps * lines * 64, passes < 4 ? 0 : DIVIDE_UP(lines, passes)};
    for (long k = 0; k < (on ? 1 : b->images); k++) {
        const long end = on ? all : k * b->image + image;
        for (long at = k * b->image; at < end; at += 2 * AMX_ROWS)
            if (end - at > AMX_ROWS) tiles(p, 2, n, part, b, left, x, w, channel, at, end, &later);
            else tiles(p, 1, n, part, b, left, x, w, channel, at, end, &later);
    }
}

/* split: which band of which images this thread has split; this part's is `number`. */
static int run_part(const plan_t* p, const part16_t* part, long number, long* split) {
    const conv16_t* c = p->c;
    const band_t full = band_of(p, p->images, p->rows);
    const band_t band = band_of(p, part->image_1 - part->image_0, part->down_1 - part->down_0);
    band_t b = band;
    char* x = kernels_scratch(1, band_bytes(p, &full));
    long* at = kernels_scratch(2, (p->pairs * p->taps + 1) * sizeof(long));
    if (!x || !at) return -1;
    if (p->flat) { /* one line */
        b.columns = b.line = b.image = b.rows * b.line;
        b.rows = 1;
    }
    const amx_left_t left = {p->pairs * p->taps, at, PIXEL, PART, AMX_ROWS * PIXEL};
    for (long pair = 0; pair < p->pairs; pair++)
        for (long r = 0; r < c->kernel[0]; r++)
            for (long s = 0; s < c->kernel[1]; s++) {
                const long phase = r % p->down.phases * p->across.phases + s % p->across.phases;
                *at++ = pair * b.pair + phase * b.phase +
                        (r * c->dilation[0] / c->stride[0] * b.line +
                         s * c->dilation[1] / c->stride[1]) * PIXEL;
            }
    *at = 2 * left.second; /* the next tiles */
    if (*split != number) split_band(p, part, &band, x);
    *split = number;
    for (long panel = part->panel_0; panel < part->panel_1; panel++) {
        const long first = panel * PANEL;
        const int n = p->padded - first > 16 ? 2 : 1;
        const long channel = part->group * (c->out_channels / c->group) + first;
        const char* w =
            p->packed + (part->group * p->padded + first) * p->taps * p->pairs * PIXEL;
        if (n == 2) all_tiles(p, 2, part, &b, &left, x, w, channel);
        else all_tiles(p, 1, part, &b, &left, x, w, channel);
    }
    return 0;
}

size_t conv16_tiles_bytes(const conv16_t* c) {
    const size_t pairs = DIVIDE_UP(c->channels / c->group, AMX_STEP);
    return 16 * BLOCKS(c->out_channels / c->group) * c->group * pairs * c->kernel[0] *
           c->kernel[1] * PIXEL;
}

/* [group][panel][32 channels][tap][part][tile of 16 output channels] */
int conv16_tiles_pack(const conv16_t* c, const filters_t* f, char* packed, int nth) {
    const long out = c->out_channels / c->group, depth = c->channels / c->group;
    const long padded = 16 * BLOCKS(out), panels = DIVIDE_UP(padded, PANEL);
    const long taps = (long)c->kernel[0] * c->kernel[1], pairs = DIVIDE_UP(depth, AMX_STEP);
    int failed = 0;
#pragma omp parallel for num_threads(nth) if (nth > 1) collapse(2) schedule(static) \
    reduction(| : failed)
    for (long g = 0; g < c->group; g++)
        for (long panel = 0; panel < panels; panel++) {
            const long first = panel * PANEL, width = MIN(PANEL, padded - first), n = width / 16;
            float* some = kernels_scratch(1, taps * AMX_STEP * width * sizeof(float));
            char* to = packed + (g * padded + first) * taps * pairs * PIXEL;
            failed |= !some;
            for (long k = 0; k < (some ? depth : 0); k += AMX_STEP) {
                const long count = MIN(AMX_STEP, depth - k);
                conv16_gather_amx(c, f, g, first, width, k, count, some);
                for (long tap = 0; tap < taps; tap++, to += AMX_PARTS * n * AMX_TILE)
                    for (long i = 0; i < 16; i++)
                        for (int j = 0; j < n; j++) {
                            const float* w = some + (tap * count + i) * width + j * 16;
                            amx_split(i < count ? *(const f32*)w : (f32){0},
                                      i + 16 < count ? *(const f32*)(w + 16 * width) : (f32){0},
                                      to + j * AMX_TILE + i * 64, n * AMX_TILE);
                        }
            }
        }
    return failed ? -1 : 0;
}

int conv16_tiles(const conv16_t* c, const float* x, const void* packed, const epilogue16_t* e,
               float* y, int nth) {
    const long out = c->out_channels / c->group, pixels = (long)c->out[0] * c->out[1];
    plan_t p = {.c = c, .x = x, .packed = packed, .y = y, .e = *e, .y_image = y_image(c, e)};
    p.depth = c->channels / c->group;
    p.pairs = DIVIDE_UP(p.depth, AMX_STEP);
    p.taps = (long)c->kernel[0] * c->kernel[1];
    p.padded = 16 * BLOCKS(out);
    p.panels = DIVIDE_UP(p.padded, PANEL);
    p.down = axis_of(c, 0);
    p.across = axis_of(c, 1);
    p.flat = p.down.reach == 0 && p.across.reach == 0;

    const band_t row = band_of(&p, 1, 1), image = band_of(&p, 1, c->out[0]);
    const double x_size = (double)image.pair * p.pairs;
    const double w_size = (double)PIXEL * p.padded * p.pairs * p.taps;
    nth = threads_for((double)c->batch * pixels * c->out_channels * p.depth * p.taps, nth);
    const long down = MAX(1, X_BYTES / (row.pair * p.pairs + 1));
    const long images = MAX(1, (long)(X_BYTES / (x_size + 1)));
    parts_t n = {1, DIVIDE_UP(c->out[0], down), c->batch};
    if (n.bands == 1) n.batches = DIVIDE_UP(c->batch, images);
    if (nth > 1) {
        if (w_size > x_size) more_parts(&n.chunks, p.panels, c->group * COUNT(n), nth);
        more_parts(&n.batches, c->batch, c->group * COUNT(n), nth);
        more_parts(&n.bands, c->out[0], c->group * COUNT(n), nth);
        more_parts(&n.chunks, p.panels, c->group * COUNT(n), nth);
    }
    p.images = DIVIDE_UP(c->batch, n.batches);
    p.rows = DIVIDE_UP(c->out[0], n.bands);

    const long padded = 16 * BLOCKS(c->out_channels);
    float* bias = kernels_scratch(0, padded * (sizeof(float) + sizeof(int32_t)));
    if (!bias) return -1;
    int32_t* keep = (int32_t*)(bias + padded);
    for (long i = 0; i < padded; i++) {
        bias[i] = e->bias && i < c->out_channels ? e->bias[i] : 0;
        keep[i] = -(i < c->out_channels);
    }
    p.bias = bias;
    p.keep = keep;
    int failed = 0;
    stretch_t work[nth];
    share_out(c->group * COUNT(n), nth, work);
#pragma omp parallel num_threads(nth) if (nth > 1) reduction(| : failed)
    {
        amx_begin();
        for (long i, split = -1; (i = take(nth, work)) >= 0;) {
            const long chunk = i % n.chunks, band = i / n.chunks % n.bands;
            const long batch = i / n.chunks / n.bands % n.batches;
            const part16_t part = {
                .group = i / COUNT(n),
                .image_0 = batch * c->batch / n.batches,
                .image_1 = (batch + 1) * c->batch / n.batches,
                .down_0 = band * c->out[0] / n.bands, .down_1 = (band + 1) * c->out[0] / n.bands,
                .panel_0 = chunk * p.panels / n.chunks,
                .panel_1 = (chunk + 1) * p.panels / n.chunks,
            };
            failed |= run_part(&p, &part, i / n.chunks, &split) != 0;
        }
        amx_end();
    }
    return failed ? -1 : 0;
}

/* Measured: six products of a tile take 100 cycles, a pair of vectors 12 to be split; meanwhile
 * filters are read from memory, each in 1.9 cycles. */
double conv16_tiles_cycles(const conv16_t* c) {
    const axis_t down = axis_of(c, 0), across = axis_of(c, 1);
    const long pairs = DIVIDE_UP(c->channels / c->group, AMX_STEP);
    const double line = c->out[1] + across.reach;
    const double steps = (double)pairs * c->kernel[0] * c->kernel[1] * c->group;
    const double places = down.phases * across.phases * (c->out[0] + down.reach) * line;
    const double tiles = c->batch * (((c->out[0] - 1) * line + c->out[1]) / AMX_ROWS + .5);
    const double outs = BLOCKS(c->out_channels / c->group);
    const double filters = steps * AMX_STEP * outs * 16;
    return MAX(steps * outs * tiles * 100, filters * 1.9) + c->batch * places * pairs * c->group * 12;
}
#endif

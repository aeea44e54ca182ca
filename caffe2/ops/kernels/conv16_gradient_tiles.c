/* Gradients of filters by the matrix unit (amx.h): products over pixels.
 *
 * Of a band of pixels (some rows of some images), a thread first splits its channels of one side,
 * the right factor, which is to stay in the second-level cache. Then, 32 channels at a time, the
 * other side is split, turned around (a row of the left factor is pixels of one channel), and
 * multiplied with all of the right. Of 1x1 filters the right is the side with fewer channels; of
 * others it is dy, and the left has a copy of x for each column of the filters, so that lines
 * follow each other without gaps. The order of pixels is [row][image][column]: a tap's row is some
 * places further on, the same in all images. Sums of bands are added in memory. */
#include <math.h>

#include "conv16.h"

#ifdef __AMX_BF16__
#include "amx.h"
#include "share.h"

#define SIDE 32l                  /* channels that are multiplied at once */
#define WIDE 512l                 /* channels of the right, at most */
#define SPLIT_BYTES (1400l << 10) /* of a band: most of the second-level cache */
#define SUM_BYTES (2l << 20)      /* of a part */
#define TILE 256l                 /* floats */

/* x, or dy. */
typedef struct {
    const float* data;
    long channels, blocks; /* of a group */
    long block, image;     /* floats from one to the next */
    long size[2], stride[2], pad[2];
    long kernel; /* columns */
    axis_t down;
} side_t;

typedef struct {
    const conv16_t* c;
    side_t left, right;
    int turned; /* the left is dy */
    long taps;
    long images, rows; /* of a band */
    float* dw;
} plan_t;

typedef struct {
    long image, images, top, rows, steps;
} band_t;

typedef struct {
    long group, pair_0, pair_1, panel_0, panel_1;
} part_t;

static int is_whole(const plan_t* p) { return p->images == p->c->batch && p->rows == p->c->out[0]; }

static const float zeros[16] __attribute__((aligned(64)));

/* to[j][i] = from[i][q + j], j < 4: a quarter of each row, then within the quarters. */
INLINE void transpose(const float* const* from, const int q, f32* to) {
    __m512 x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_castps128_ps512(_mm_load_ps(from[i] + q));
        x[i] = _mm512_mask_broadcast_f32x4(x[i], 0x00f0, _mm_load_ps(from[i + 4] + q));
        x[i] = _mm512_mask_broadcast_f32x4(x[i], 0x0f00, _mm_load_ps(from[i + 8] + q));
        x[i] = _mm512_mask_broadcast_f32x4(x[i], 0xf000, _mm_load_ps(from[i + 12] + q));
    }
    const __m512d a = (__m512d)_mm512_unpacklo_ps(x[0], x[1]);
    const __m512d b = (__m512d)_mm512_unpackhi_ps(x[0], x[1]);
    const __m512d c = (__m512d)_mm512_unpacklo_ps(x[2], x[3]);
    const __m512d d = (__m512d)_mm512_unpackhi_ps(x[2], x[3]);
    to[0] = (f32)_mm512_unpacklo_pd(a, c);
    to[1] = (f32)_mm512_unpackhi_pd(a, c);
    to[2] = (f32)_mm512_unpacklo_pd(b, d);
    to[3] = (f32)_mm512_unpackhi_pd(b, d);
}

/* Where `count` places are in a side, -1 where outside of its images: lines of a band, from `top`
 * below its first row and `left` beside it, then none. */
static void find_places(const side_t* s, const band_t* b, long lines, long columns, long top,
                        long left, long count, long* at) {
    long* const end = at + count;
    long first = left < 0 ? DIVIDE_UP(-left, s->stride[1]) : 0;
    long last = left < s->size[1] ? (s->size[1] - 1 - left) / s->stride[1] + 1 : 0;
    first = MIN(first, columns);
    last = MAX(first, MIN(last, columns));
    for (long r = b->top; r < b->top + lines; r++) {
        const long y = r * s->stride[0] + top;
        for (long n = b->image; n < b->image + b->images; n++, at += columns) {
            const long from = n * s->image + (y * s->size[1] + left) * 16;
            const int inside = y >= 0 && y < s->size[0];
            for (long i = 0; i < columns; i++)
                at[i] = inside && i >= first && i < last ? from + i * s->stride[1] * 16 : -1;
        }
    }
    while (at < end) *at++ = -1;
}

#define PLACE(x, at) ((at) < 0 ? zeros : (x) + (at))

/* A panel of the right factor: [step][part][n][pair][16 channels]. */
static void split_right(const float* x, long block, int n, const long* at, long steps, char* to) {
    for (long step = 0; step < steps; step++, to += AMX_PARTS * n * AMX_TILE)
        for (long i = 0; i < 16; i++, at += 2)
            for (int j = 0; j < n; j++)
                amx_split(*(const f32*)(PLACE(x, at[0]) + (at[0] < 0 ? 0 : j * block)),
                          *(const f32*)(PLACE(x, at[1]) + (at[1] < 0 ? 0 : j * block)),
                          to + j * AMX_TILE + i * 64, n * AMX_TILE);
}

/* 16 channels of the left factor: parts and channels so many bytes apart. */
static void split_left(const float* x, const long* at, long steps, char* to, long part, long row) {
    for (long step = 0; step < steps; step++, at += AMX_STEP, to += AMX_STEP * 2) {
        const float *even[16], *odd[16];
        for (int i = 0; i < 16; i++) {
            even[i] = PLACE(x, at[2 * i]);
            odd[i] = PLACE(x, at[2 * i + 1]);
        }
        for (int q = 0; q < 16; q += 4) {
            f32 a[4], b[4];
            transpose(even, q, a);
            transpose(odd, q, b);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) amx_split(a[i], b[i], to + (q + i) * row, part);
        }
    }
}

/* sums[m][n][16][16], of all taps, become a part of dw. Returns whether they are finite. */
static int write(const plan_t* p, int m, int n, long group, long pair, long panel,
                 const float* sums) {
    const side_t *l = &p->left, *r = &p->right;
    const long first = pair * SIDE, rows = MIN(l->channels - first, m * 16l);
    __mmask16 found = 0;
    for (long j = 0; j < n; j++, sums += TILE) {
        const long column = panel * SIDE + j * 16, columns = MIN(r->channels - column, 16);
        if (p->turned) {
            float* to = p->dw + (group * l->channels + first) * r->channels + column;
            for (long i = 0; i < rows; i++, to += r->channels) {
                const f32 v = *(const f32*)(sums + i / 16 * n * TILE + i % 16 * 16);
                found |= _mm512_fpclass_ps_mask((__m512)v, 0x99);
                f32_store(to, v, f32_first(columns));
            }
            continue;
        }
        const long ld = l->channels * p->taps, count = rows * p->taps;
        float* to = p->dw + (group * r->channels + column) * ld + first * p->taps;
        for (long i = 0, row = 0, tap = 0; i < count; i += 16, to += 16) {
            const float* from[16];
            f32 v[16];
            for (long k = 0; k < 16; k++) {
                from[k] = row == rows ? zeros
                                      : sums + (tap * m + row / 16) * n * TILE + row % 16 * 16;
                if (row < rows && ++tap == p->taps) tap = 0, row++;
            }
            for (int q = 0; q < 16; q += 4) transpose(from, q, v + q);
            for (long k = 0; k < columns; k++) {
                found |= _mm512_fpclass_ps_mask((__m512)v[k], 0x99);
                f32_store(to + k * ld, v[k], f32_first(MIN(16, count - i)));
            }
        }
    }
    return !found;
}

/* The products of all taps. */
INLINE void multiply(const plan_t* p, const int m, const int n, int add, const amx_left_t* l,
                     amx_later_t* later, long* next, const char* a, long copy, long line,
                     const char* b, float* sums) {
    const conv16_t* c = p->c;
    float some[AMX_SUMS] __attribute__((aligned(64)));
    long at = 0;
    for (long tap = 0; tap < p->taps; tap++, sums += m * n * TILE) {
        const long t = tap + 1 < p->taps ? tap + 1 : 0;
        const long r = t / c->kernel[1], s = t % c->kernel[1];
        const long phases = p->left.down.phases;
        const long then = p->taps > 1 ? (r % phases * c->kernel[1] + s) * copy +
                                            r * c->dilation[0] / c->stride[0] * line : 0;
        *next = then - at;
        amx_multiply(m, n, l->row, l, a + at, b, later, (amx_later_t){0});
        amx_store(m, n, add ? some : sums);
        for (long i = 0; i < m * n * TILE && add; i += 16) *(f32*)(sums + i) += *(f32*)(some + i);
        at = then;
    }
}

static const float* block_at(const side_t* s, long group, long block) {
    return s->data + (group * s->blocks + block) * s->block;
}

/* While a panel is multiplied, its share of the next channels is fetched: they lie in pieces, one
 * of each block and image. */
static amx_later_t next_channels(const plan_t* p, const part_t* part, const band_t* band, long pair,
                                 long panel) {
    const side_t* s = &p->left;
    const long piece = band->rows * s->stride[0] * s->size[1], next = pair * 2 + 2;
    const long blocks = pair + 1 < part->pair_1 ? MIN(2, s->blocks - next) : 0;
    const long share = DIVIDE_UP(blocks * band->images * piece, part->panel_1 - part->panel_0);
    const long from = (panel - part->panel_0) * share, i = from / piece;
    const float* at = block_at(s, part->group, next + i / band->images) +
                      (band->image + i % band->images) * s->image +
                      (band->top * s->stride[0] * s->size[1] + from % piece) * 16;
    return (amx_later_t){(const char*)at, DIVIDE_UP(share, band->steps * p->taps)};
}

enum { NO_MEMORY = 1, NOT_FINITE = 2 };

static int run_part(const plan_t* p, const part_t* part) {
    const conv16_t* c = p->c;
    const side_t *left = &p->left, *right = &p->right;
    const long reach = left->down.reach, copies = left->down.phases * left->kernel;
    const long line = p->images * c->out[1]; /* of the largest band, as what follows */
    const long steps = DIVIDE_UP(p->rows * line, AMX_STEP);
    const long length = DIVIDE_UP(steps * AMX_STEP + reach * line, AMX_STEP); /* in steps */
    const long row = (length | 1) * AMX_STEP * 2; /* no power of 2, for the cache */
    const long wide = MIN(part->panel_1 * 2, right->blocks) - part->panel_0 * 2;
    const long deep = MIN(part->pair_1 * 2, left->blocks) - part->pair_0 * 2;
    const long all_sums = (is_whole(p) ? 4 : wide * deep) * p->taps * TILE;
    char* b = kernels_scratch(0, wide * steps * AMX_PARTS * AMX_TILE);
    char* a = kernels_scratch(1, copies * AMX_PARTS * SIDE * row);
    long* right_at =
        kernels_scratch(2, ((steps + copies * length) * AMX_STEP + steps + 1) * sizeof(long));
    float* sums = kernels_scratch(3, all_sums * sizeof(float));
    if (!a || !b || !right_at || !sums) return NO_MEMORY;
    long* const left_at = right_at + steps * AMX_STEP;
    long* const step_at = left_at + copies * length * AMX_STEP;
    int failed = 0;

    for (long image = 0; image < c->batch; image += p->images)
        for (long top = 0; top < c->out[0]; top += p->rows) {
            band_t band = {.image = image, .images = MIN(p->images, c->batch - image),
                           .top = top, .rows = MIN(p->rows, c->out[0] - top)};
            const long line = band.images * c->out[1];
            const long steps = band.steps = DIVIDE_UP(band.rows * line, AMX_STEP);
            const long length = DIVIDE_UP(steps * AMX_STEP + reach * line, AMX_STEP);
            const int first = image == 0 && top == 0;
            const int last = image + band.images == c->batch && top + band.rows == c->out[0];
            const long panel_bytes = 2 * steps * AMX_PARTS * AMX_TILE;
            find_places(right, &band, band.rows, c->out[1], -right->pad[0], -right->pad[1],
                        steps * AMX_STEP, right_at);
            for (long v = 0; v < left->down.phases; v++)
                for (long s = 0; s < left->kernel; s++)
                    find_places(left, &band, band.rows + reach, c->out[1],
                                v * c->dilation[0] % c->stride[0] - left->pad[0],
                                s * c->dilation[1] - left->pad[1], length * AMX_STEP,
                                left_at + (v * left->kernel + s) * length * AMX_STEP);
            for (long i = 0; i < steps; i++) step_at[i] = i * AMX_STEP * 2;
            for (long panel = part->panel_0; panel < part->panel_1; panel++)
                split_right(block_at(right, part->group, panel * 2), right->block,
                            (int)MIN(2, right->blocks - panel * 2), right_at, steps,
                            b + (panel - part->panel_0) * panel_bytes);

            float* sum = sums;
            for (long pair = part->pair_0; pair < part->pair_1; pair++) {
                const int m = (int)MIN(2, left->blocks - pair * 2);
                const long tile = 16 * row, copy = AMX_PARTS * m * tile;
                for (long i = 0; i < copies; i++)
                    for (int k = 0; k < m; k++)
                        split_left(block_at(left, part->group, pair * 2 + k),
                                   left_at + i * length * AMX_STEP, length, a + i * copy + k * tile,
                                   m * tile, row);
                const amx_left_t l = {.steps = steps, .at = step_at, .row = row, .part = m * tile,
                                      .second = tile};
                for (long panel = part->panel_0; panel < part->panel_1; panel++) {
                    const int n = (int)MIN(2, right->blocks - panel * 2);
                    const char* w = b + (panel - part->panel_0) * panel_bytes;
                    amx_later_t later = next_channels(p, part, &band, pair, panel);
#define MULTIPLY(m, n) \
    multiply(p, m, n, !first, &l, &later, step_at + steps, a, copy, line * 2, w, sum)
                    if (m == 2 && n == 2) MULTIPLY(2, 2);
                    else if (m == 2) MULTIPLY(2, 1);
                    else if (n == 2) MULTIPLY(1, 2);
                    else MULTIPLY(1, 1);
#undef MULTIPLY
                    if (last && !write(p, m, n, part->group, pair, panel, sum)) failed = NOT_FINITE;
                    if (!is_whole(p)) sum += m * n * p->taps * TILE;
                }
            }
        }
    return failed;
}

static plan_t plan_of(const conv16_t* c) {
    plan_t p = {.c = c, .taps = (long)c->kernel[0] * c->kernel[1]};
    side_t x = {.channels = c->channels / c->group, .kernel = c->kernel[1], .down = axis_of(c, 0)};
    side_t dy = {.channels = c->out_channels / c->group, .kernel = 1, .down = {1, 0}};
    for (int i = 0; i < 2; i++) {
        x.size[i] = c->size[i];
        x.stride[i] = c->stride[i];
        x.pad[i] = c->pad[i];
        dy.size[i] = c->out[i];
        dy.stride[i] = 1;
    }
    x.image = BLOCKS(c->channels);
    dy.image = BLOCKS(c->out_channels);
    p.turned = p.taps == 1 && x.channels < dy.channels;
    p.left = p.turned ? dy : x;
    p.right = p.turned ? x : dy;
    for (int i = 0; i < 2; i++) {
        side_t* s = i ? &p.right : &p.left;
        s->blocks = BLOCKS(s->channels);
        s->block = s->size[0] * s->size[1] * 16;
        s->image *= s->block;
    }
    /* A band of the same size for any number of threads: so are results. */
    const long pixels = (long)c->out[0] * c->out[1];
    const long most = SPLIT_BYTES / (AMX_PARTS * 2 * (MIN(WIDE, p.right.blocks * 16) +
                                                     SIDE * p.left.kernel * p.left.down.phases));
    const long images = MIN(c->batch, MAX(1, most / pixels));
    p.images = DIVIDE_UP(c->batch, DIVIDE_UP(c->batch, images));
    const long rows = pixels > most ? MAX(1, most / c->out[1]) : c->out[0];
    p.rows = DIVIDE_UP(c->out[0], DIVIDE_UP(c->out[0], rows));
    return p;
}

/* Measured, as conv16_tiles_cycles. */
double conv16_filter_tiles_cycles(const conv16_t* c) {
    const plan_t p = plan_of(c);
    const side_t *l = &p.left, *r = &p.right;
    const double bands = (double)DIVIDE_UP(c->batch, p.images) * DIVIDE_UP(c->out[0], p.rows);
    const double steps = bands * DIVIDE_UP(p.images * p.rows * c->out[1], AMX_STEP);
    const double lines = l->down.phases * l->kernel * (1 + (double)l->down.reach / p.rows);
    const double pairs = (double)l->blocks * r->blocks * p.taps;
    if (c->group * l->blocks * r->blocks < 8) return INFINITY; /* too few for threads to share */
    return c->group * (pairs * (steps * 100 + bands * 50 + 150) +
                       steps * (l->blocks * lines * 500 + r->blocks * 300));
}

/* As conv16_filter_gradient; 1: the sums are not all finite, so that they are not right. */
int conv16_filter_tiles(const conv16_t* c, const float* x, const float* dy, float* dw, int nth) {
    plan_t p = plan_of(c);
    p.dw = dw;
    p.left.data = p.turned ? dy : x;
    p.right.data = p.turned ? x : dy;
    const long pairs = DIVIDE_UP(p.left.blocks, 2), panels = DIVIDE_UP(p.right.blocks, 2);
    long deep = pairs, wide = MIN(panels, WIDE / SIDE);
#define PARTS (c->group * DIVIDE_UP(panels, wide) * DIVIDE_UP(pairs, deep))
    while (wide * deep > 1 &&
           (PARTS < nth || (PARTS % nth && PARTS < 4l * nth) ||
            (!is_whole(&p) && deep * wide * p.taps * 4 * TILE * (long)sizeof(float) > SUM_BYTES)))
        if (deep > 1 && wide <= 4 * deep) deep = DIVIDE_UP(deep, 2);
        else wide = DIVIDE_UP(wide, 2);
    const long across = DIVIDE_UP(panels, wide), down = DIVIDE_UP(pairs, deep);
    const long count = c->group * across * down;
    int failed = 0;
    stretch_t work[nth];
    share_out(count, nth, work);
#pragma omp parallel num_threads(nth) if (nth > 1) reduction(| : failed)
    {
        amx_begin();
        for (long i = -1; (i = take(i, count, nth, work)) >= 0;) {
            const long w = i / down % across, d = i % down;
            const part_t part = {.group = i / down / across,
                                 .panel_0 = w * wide, .panel_1 = MIN((w + 1) * wide, panels),
                                 .pair_0 = d * deep, .pair_1 = MIN((d + 1) * deep, pairs)};
            failed |= run_part(&p, &part);
        }
        amx_end();
    }
    return failed & NO_MEMORY ? -1 : failed != 0;
}
#endif

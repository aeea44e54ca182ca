/* Direct convolution of blocked images.
 *
 * A tile holds the sums of up to PIXELS pixels times a panel of PANEL output channels in registers
 * and runs over all taps and input channels: for each, one line of the packed filter times each
 * pixel's value. Pixels of a tile lie side by side in the input (step floats apart); if padding or
 * stride forbid that, a band of the input is copied first, into memory of the thread, with its
 * border, and with columns that are `stride` apart side by side: [block][row][column % stride]
 * [column / stride][step]. A band, and the panel in use, stay in the second-level cache. */
#include <math.h>
#include <string.h>

#include "conv16.h"
#include "share.h"

#define AHEAD 8  /* input channels whose filters are fetched before they are used */
#define SOON 512 /* floats of filters from the ones in use to those to be fetched from L2 */
#define SOON_ROWS 2 /* from the row that is copied to the one that is fetched */
#define ROW_FILTERS 4. /* images' bytes of filters, from which on threads divide output channels first, */
#define ROW_TILES 4    /* as they do where each has fewer tiles' pixels and filters exceed the image */
#define RESIDENT (64l << 10) /* bytes of filters that may be passed over many times */

/* ---- tiles ---- */

/* One channel of one tap: adds what it contributes to the sums. */
INLINE void add(const int step, const int vectors, const int pixels, const int columns,
                const float* q, long x_row, const float* w, f32 sum[][2]) {
    const f32 w0 = *(const f32*)w, w1 = vectors > 1 ? *(const f32*)(w + LANES) : w0;
UNROLL
    for (int p = 0; p < pixels; p++) {
        const float s = q[p < columns ? p * step : x_row + (p - columns) * step];
        sum[p][0] += s * w0;
        if (vectors > 1) sum[p][1] += s * w1;
    }
}

/* Floats from the first pixel of a tile to pixel p, in the result. */
INLINE long pixel_at(long row, const int columns, const int p) {
    return p < columns ? p * 16 : row + (p - columns) * 16;
}

INLINE void tile(const int kind, const int vectors, const int rows, const int columns,
                 const reduction_t* r, const float* x, long x_row, const float* w, float* y,
                 const finish_t* f) {
    f32 sum[PIXELS][2];
    const int pixels = rows * columns, step = kind == TILE_NCHW ? 1 : 16;
    const long width = vectors * LANES;
UNROLL
    for (int p = 0; p < pixels; p++) sum[p][0] = sum[p][1] = (f32){0};
    if (kind != TILE_PLAIN && f->has_residual) /* comes while the sums are made */
UNROLL
        for (int v = 0; v < (LANES == 16 ? vectors : 1); v++)
UNROLL
            for (int p = 0; p < pixels; p++)
                __builtin_prefetch(y + f->residual + v * f->vector + pixel_at(f->row, columns, p));
    const float* later = r->later;
    const long full = kind == TILE_NCHW ? 0 : r->full;
    for (long t = 0; t < full; t++) {
        const float* q = x + r->at[t];
        const float* next = x + r->at[MIN(t + 1, r->taps - 1)];
        for (int k = 0; k < 16; k += FEW, q += FEW, w += FEW * width, later += r->later_step) {
            const float* soon = next + (rows > 1 ? k / 8 * x_row + k % 8 * 16 : k * 16);
            __builtin_prefetch(later, 0, 2);
            if (r->later_step > 16)
UNROLL
                for (int i = 1; i < FEW; i++) __builtin_prefetch(later + i * 16, 0, 2);
UNROLL
            for (int i = 0; i < FEW; i++) {
                __builtin_prefetch(w + SOON + i * width, 0, 3);
                if (vectors > 1) __builtin_prefetch(w + SOON + i * width + LANES, 0, 3);
                if (kind == TILE_BLOCKED) __builtin_prefetch(soon + i * 16, 0, 3);
                add(step, vectors, pixels, columns, q + i, x_row, w + i * width, sum);
            }
        }
    }
    const int tail = kind == TILE_NCHW ? 1 : r->tail;
#pragma GCC unroll 4
    for (long t = full; t < r->taps; t++) {
        const float* q = x + r->at[t];
        for (int k = 0; k < tail; k++, q++, w += width)
            add(step, vectors, pixels, columns, q, x_row, w, sum);
    }
    /* Nothing is stored before all else is done, or the compiler would have to read `f` again. */
#define EACH                                     \
    UNROLL for (int v = 0; v < vectors; v++)     \
    UNROLL for (int p = 0; p < pixels; p++)
    if (kind != TILE_PLAIN) {
        const float low = f->low, high = f->high;
        EACH sum[p][v] += f->bias[v];
        if (f->has_residual)
            EACH sum[p][v] += *(const f32*)(y + f->residual + v * f->vector + pixel_at(f->row, columns, p));
        EACH sum[p][v] = clip(sum[p][v], low, high);
        if (!f->whole) EACH sum[p][v] = (f32)((i32)sum[p][v] & f->lanes[v]);
    }
    const long row = f->row, vector = f->vector;
    EACH *(f32*)(y + v * vector + pixel_at(row, columns, p)) = sum[p][v];
#undef EACH
}

#define TILE(kind, vectors, rows, columns)                                                       \
    static void kind##_##vectors##_##rows##_##columns(                                           \
        const reduction_t* r, const float* x, long x_row, const float* w, float* y,              \
        const finish_t* f) {                                                                     \
        tile(kind, vectors, rows, columns, r, x, x_row, w, y, f);                                \
    }
#define NAME(kind, vectors, rows, columns) kind##_##vectors##_##rows##_##columns,
#if VECTOR_BYTES == 64
#define UP_TO_HALF(F, k, v, r)                                                                   \
    F(k, v, r, 1) F(k, v, r, 2) F(k, v, r, 3) F(k, v, r, 4) F(k, v, r, 5) F(k, v, r, 6)          \
    F(k, v, r, 7)
#define UP_TO_ALL(F, k, v)                                                                       \
    UP_TO_HALF(F, k, v, 1)                                                                       \
    F(k, v, 1, 8) F(k, v, 1, 9) F(k, v, 1, 10) F(k, v, 1, 11) F(k, v, 1, 12) F(k, v, 1, 13)      \
    F(k, v, 1, 14)
#define ONE_OR_TWO(F, k) F(k, 1) F(k, 2)
#define MIN_VECTORS 1
#else
#define UP_TO_HALF(F, k, v, r) F(k, v, r, 1) F(k, v, r, 2) F(k, v, r, 3)
#define UP_TO_ALL(F, k, v) UP_TO_HALF(F, k, v, 1) F(k, v, 1, 4) F(k, v, 1, 5) F(k, v, 1, 6)
#define ONE_OR_TWO(F, k) F(k, 2)
#define MIN_VECTORS 2 /* a panel divides 16 */
#endif
#define TILES(k, v) UP_TO_ALL(TILE, k, v)
#define TILES_2(k, v) UP_TO_HALF(TILE, k, v, 2)
ONE_OR_TWO(TILES, TILE_NCHW) ONE_OR_TWO(TILES, TILE_BLOCKED) ONE_OR_TWO(TILES, TILE_PLAIN)
ONE_OR_TWO(TILES_2, TILE_BLOCKED)

/* By kind, vectors, columns - 1. */
#define NAMES(k, v) {UP_TO_ALL(NAME, k, v)},
#define NAMES_2(k, v) {UP_TO_HALF(NAME, k, v, 2)},
static const tile_t one_row[][3 - MIN_VECTORS][PIXELS] = {
    {ONE_OR_TWO(NAMES, TILE_NCHW)}, {ONE_OR_TWO(NAMES, TILE_BLOCKED)},
    {ONE_OR_TWO(NAMES, TILE_PLAIN)}};
static const tile_t two_rows[][PIXELS / 2] = {ONE_OR_TWO(NAMES_2, TILE_BLOCKED)};

tile_t CAT(conv16_tile, ISA)(int kind, int vectors, int rows, int columns) {
    const int v = vectors - MIN_VECTORS;
    return rows == 2 ? two_rows[v][columns - 1] : one_row[kind][v][columns - 1];
}

/* ---- filters ---- */

static size_t direct_bytes(const conv16_t* c) {
    const size_t out = 16 * BLOCKS(c->out_channels / c->group);
    return out * c->group * (c->channels / c->group) * c->kernel[0] * c->kernel[1] * sizeof(float);
}

/* The filters of a panel for some input channels: to[tap][channel][width]; PANEL or half of it
 * wide, 0 beyond out_channels. Goes through memory in its order. */
void CAT(conv16_gather, ISA)(const conv16_t* c, const filters_t* f, long group, long first,
                             long width, long channel, long channels, float* to) {
    const long taps = (long)c->kernel[0] * c->kernel[1];
    const long exist = MAX(0, MIN(width, c->out_channels / c->group - first));
    const float* w = f->w + group * f->group_step + first * f->out_step + channel * f->in_step;
    if (exist < width) memset(to, 0, taps * channels * width * sizeof(float));
#define ITEM(tap)                              \
    to[(tap * channels + k) * width + o] =     \
        w[o * f->out_step + k * f->in_step + f->at[tap]]
    if (f->out_step > f->in_step)
        for (long o = 0; o < exist; o++)
            for (long k = 0; k < channels; k++)
                for (long tap = 0; tap < taps; tap++) ITEM(tap);
    else
        for (long k = 0; k < channels; k++) {
            fetch(w + (k + AHEAD) * f->in_step, exist * f->out_step); /* rows lie far apart */
            for (long tap = 0; tap < taps; tap++)
                if (f->out_step == 1)
                    memcpy(to + (tap * channels + k) * width, w + k * f->in_step + f->at[tap],
                           exist * sizeof(float));
                else
                    for (long o = 0; o < exist; o++) ITEM(tap);
        }
#undef ITEM
}

/* step channels lie together, as in the input. */
static void direct_pack(const conv16_t* c, int step, const filters_t* f, float* packed, int nth) {
    const long out = c->out_channels / c->group, depth = c->channels / c->group;
    const long padded = 16 * BLOCKS(out), panels = DIVIDE_UP(padded, PANEL);
    const long taps = (long)c->kernel[0] * c->kernel[1];
#pragma omp parallel for num_threads(nth) if (nth > 1) collapse(2) schedule(static)
    for (long g = 0; g < c->group; g++)
        for (long panel = 0; panel < panels; panel++) {
            const long first = panel * PANEL, width = MIN(PANEL, padded - first);
            float* to = packed + (g * padded + first) * depth * taps;
            for (long k = 0; k < depth; k += step)
                CAT(conv16_gather, ISA)(c, f, g, first, width, k, MIN(step, depth - k),
                                        to + k * taps * width);
        }
}

static void depthwise_pack(const conv16_t* c, const filters_t* f, float* packed) {
    const long taps = (long)c->kernel[0] * c->kernel[1];
    for (long block = 0; block < BLOCKS(c->channels); block++)
        for (long tap = 0; tap < taps; tap++)
            for (long k = 16 * block; k < 16 * block + 16; k++)
                *packed++ = k < c->channels ? f->w[k * f->group_step + f->at[tap]] : 0;
}

static int winograd_tile(int way) { return way == CONV16_WINOGRAD_4 ? 4 : 2; }

size_t CAT(conv16_pack_bytes, ISA)(const conv16_t* c, int way) {
    const size_t pairs = 16 * (size_t)BLOCKS(c->out_channels) * c->channels * sizeof(float);
    switch (way) {
        case CONV16_DEPTHWISE:
            return 16 * (size_t)BLOCKS(c->channels) * c->kernel[0] * c->kernel[1] * sizeof(float);
        case CONV16_WINOGRAD_4: return 36 * pairs;
        case CONV16_WINOGRAD_2: return 16 * pairs;
#ifdef __AMX_BF16__
        case CONV16_TILES: return conv16_tiles_bytes(c);
#endif
        default: return direct_bytes(c);
    }
}

int CAT(conv16_pack_from, ISA)(const conv16_t* c, int way, const filters_t* f, float* packed,
                               int nth) {
    const double pairs = (double)c->out_channels * c->channels / c->group;
    nth = threads_for(4 * pairs * c->kernel[0] * c->kernel[1], nth);
    switch (way) {
        case CONV16_DIRECT: direct_pack(c, 16, f, packed, nth); break;
        case CONV16_FIRST: direct_pack(c, 1, f, packed, nth); break;
        case CONV16_DEPTHWISE: depthwise_pack(c, f, packed); break;
#ifdef __AMX_BF16__
        case CONV16_TILES: return conv16_tiles_pack(c, f, (char*)packed, nth);
#endif
        default: CAT(winograd_pack, ISA)(c, winograd_tile(way), f, packed, nth);
    }
    return 0;
}

int CAT(conv16_pack, ISA)(const conv16_t* c, int way, const float* w, float* packed, int nth) {
    const long taps = (long)c->kernel[0] * c->kernel[1], depth = c->channels / c->group;
    long* at = kernels_scratch(2, taps * sizeof(long));
    if (!at) return -1;
    for (long i = 0; i < taps; i++) at[i] = i;
    const filters_t f = {.w = w, .group_step = c->out_channels / c->group * depth * taps,
                         .out_step = depth * taps, .in_step = taps, .at = at};
    return CAT(conv16_pack_from, ISA)(c, way, &f, packed, nth);
}

/* ---- the whole convolution ---- */

typedef struct {
    conv16_t c;
    depthwise16_t before;
    const float *x, *packed; /* x NULL: what `before` answers */
    float* y;
    int step;
    int flat;   /* 1x1: the image is one row, divided among tiles_down tiles */
    int copied;
    long depth, blocks, panels; /* of a group */
    long tile_rows, tiles_down, tiles_across;
    long row, block; /* of the input as tiles see it: floats from row to row, block to block */
    long columns;    /* of a copied row, for each remainder of the stride */
    long y_image;
    reduction_t sum;
    finish_t finish;
    const float* bias;
} plan_t;

static long first_row(const plan_t* p, long down) {
    return p->flat ? 0 : MIN(down * p->tile_rows, p->c.out[0]);
}

static long copied_rows(const plan_t* p, long out_rows) {
    return (out_rows - 1) * p->c.stride[0] + (p->c.kernel[0] - 1l) * p->c.dilation[0] + 1;
}

/* Whether place `at` of one axis, counted from the first window, is under a tap of some window. */
static int is_used(const conv16_t* c, int axis, long at) {
    if (c->stride[axis] == 1 && c->dilation[axis] == 1) return 1;
    for (long tap = 0; tap < c->kernel[axis]; tap++) {
        const long from = at - tap * c->dilation[axis];
        if (from >= 0 && from % c->stride[axis] == 0) return 1;
    }
    return 0;
}

/* Copies rows of one image from the one at `top` on, with their border. */
static void copy_rows(const plan_t* p, const float* x, long top, long rows, float* to) {
    const conv16_t* c = &p->c;
    const long step = p->step, line = p->columns * step, stride = c->stride[1];
    const long width = c->size[1] * step;
    for (long block = 0; block < p->blocks; block++)
        for (long r = 0; r < rows; r++, to += stride * line) {
            if (!is_used(c, 0, r)) continue;
            if (top + r < 0 || top + r >= c->size[0]) {
                memset(to, 0, stride * line * sizeof(float));
                continue;
            }
            const float* from = x + (block * c->size[0] + top + r) * c->size[1] * step;
            /* a row to be copied soon; after the last ones, those of the next block */
            fetch(from + (r + SOON_ROWS < rows ? SOON_ROWS : SOON_ROWS + c->size[0] - rows) * width, width);
            for (long phase = 0; phase < stride; phase++) {
                if (stride > 1 && !is_used(c, 1, phase + stride * c->kernel[1] * c->dilation[1]))
                    continue;
                const long left = phase - c->pad[1]; /* column i is left + i * stride */
                long first = left < 0 ? DIVIDE_UP(-left, stride) : 0;
                long last = left < c->size[1] ? (c->size[1] - 1 - left) / stride + 1 : 0;
                first = MIN(first, p->columns);
                last = MAX(first, MIN(last, p->columns));
                float* q = to + phase * line;
                memset(q, 0, first * step * sizeof(float));
                if (stride == 1)
                    memcpy(q + first * step, from + (left + first) * step,
                           (last - first) * step * sizeof(float));
                else if (step == 1 && stride == 2) /* which the compiler knows to vectorize */
                    for (long i = first; i < last; i++) q[i] = from[left + i * 2];
                else if (step == 1)
                    for (long i = first; i < last; i++) q[i] = from[left + i * stride];
                else
                    for (long i = first; i < last; i++)
                        memcpy(q + i * 16, from + (left + i * stride) * 16, 16 * sizeof(float));
                memset(q + last * step, 0, (p->columns - last) * step * sizeof(float));
            }
        }
}

/* Floats between the images of a copied band of tiles. */
static long copied_image(const plan_t* p, long down) {
    return p->blocks * copied_rows(p, MIN(down * p->tile_rows, p->c.out[0])) * p->row /
           p->c.stride[0];
}

/* copied: which band of which images this thread has copied; this part's is band. */
static int run_part(const plan_t* p, const part16_t* part, long down, long band, long* copied) {
    const conv16_t* c = &p->c;
    const long pixels = (long)c->out[0] * c->out[1];
    const long x_group = part->group * p->blocks;
    const long x_image = p->step == 1 ? (long)c->channels * c->size[0] * c->size[1]
                                      : 16 * BLOCKS(c->channels) * c->size[0] * c->size[1];
    const long row_0 = first_row(p, part->down_0);
    const long top = row_0 * c->stride[0] - c->pad[0];
    const long y_channel = part->group * (c->out_channels / c->group);
    const long padded = 16 * BLOCKS(c->out_channels / c->group);
    const long taps = (long)c->kernel[0] * c->kernel[1];
    const int kind = p->step == 1 ? TILE_NCHW : TILE_BLOCKED;
    float* copies = NULL;
    reduction_t sum = p->sum;
    long image_step = 0;
    if (p->copied) {
        const long rows = copied_rows(p, first_row(p, part->down_1) - row_0);
        image_step = copied_image(p, down);
        copies = kernels_scratch(1, (part->image_1 - part->image_0) * image_step * sizeof(float));
        if (!copies) return -1;
        for (long n = part->image_0; n < part->image_1 && *copied != band; n++)
            copy_rows(p, p->x + n * x_image + x_group * c->size[0] * c->size[1] * 16, top, rows,
                      copies + (n - part->image_0) * image_step);
        *copied = band;
        /* the taps were laid out for a full band; the last one may be lower */
        const long shift = p->block - rows * (p->row / c->stride[0]);
        if (shift) {
            long* at = kernels_scratch(2, sum.taps * sizeof(long));
            if (!at) return -1;
            for (long i = 0; i < sum.taps; i++) at[i] = sum.at[i] - i / taps * shift;
            sum.at = at;
        }
    }
    long origin = 0; /* of an image in `copies` */
    if (!p->x) {
        const long first = part->down_0 * pixels / p->tiles_down / c->size[1];
        const long last = DIVIDE_UP(part->down_1 * pixels / p->tiles_down, c->size[1]);
        const long block = (last - first) * c->size[1] * 16;
        image_step = p->blocks * block;
        origin = first * c->size[1] * 16;
        copies = kernels_scratch(1, (part->image_1 - part->image_0) * image_step * sizeof(float));
        long* at = kernels_scratch(2, sum.taps * sizeof(long));
        if (!copies || !at) return -1;
        for (long i = 0; i < sum.taps; i++) at[i] = i * block;
        sum.at = at;
        for (long n = part->image_0; n < part->image_1 && *copied != band; n++)
            for (long k = 0; k < p->blocks; k++)
                CAT(depthwise16_band, ISA)(&p->before, n, k, (int)first, (int)last, 0,
                                           copies + (n - part->image_0) * image_step + k * block);
        *copied = band;
    }
    const cuts_t tiles = p->flat ? cuts_of(pixels, p->tiles_down, part->down_0)
                                 : cuts_of(c->out[1], p->tiles_across, 0);
    const long passes = (part->image_1 - part->image_0) * (part->down_1 - part->down_0) *
                        (p->flat ? 1 : p->tiles_across);
    for (long panel = part->panel_0; panel < part->panel_1; panel++) {
        const long first = panel * PANEL, channel = y_channel + first;
        const int vectors = (int)MIN(2, (padded - first) / LANES);
        const float* w = p->packed + (part->group * padded + first) * p->depth * taps;
        finish_t finish = p->finish;
        finish.whole = channel + PANEL <= c->out_channels || c->out_channels % 16 == 0;
        for (int v = 0; v < 2; v++) {
            finish.bias[v] = bias_at(c, p->bias, channel + v * LANES);
            finish.lanes[v] = lanes_at(c, channel + v * LANES);
        }
        const long steps = p->depth * taps, width = vectors * LANES, share = MAX(1, width / passes);
        long pass = 0;
        for (long n = part->image_0; n < part->image_1; n++) {
            const float* x = copies ? copies + (n - part->image_0) * image_step
                                    : p->x + n * x_image +
                                          (x_group * c->size[0] * c->size[1] * 16);
            if (!copies) x += row_0 * p->row;
            float* y = p->y + n * p->y_image + channel / 16 * pixels * 16 + channel % 16;
            cuts_t cut = tiles;
            for (long i = part->down_0; i < part->down_1; i++) {
                if (p->flat) {
                    const long from = cut.at, to = next_cut(&cut);
                    fetch_later(&sum, w + width * steps, width, steps, pass++, share);
                    CAT(conv16_tile, ISA)(TILE_BLOCKED, vectors, 1, (int)(to - from))(
                        &sum, x + (from * 16 - origin), 0, w, y + from * 16, &finish);
                    continue;
                }
                const long oy = i * p->tile_rows, rows = MIN(p->tile_rows, c->out[0] - oy);
                cut = tiles;
                for (long j = 0; j < p->tiles_across; j++) {
                    const long from = cut.at, to = next_cut(&cut);
                    fetch_later(&sum, w + width * steps, width, steps, pass++, share);
                    CAT(conv16_tile, ISA)(kind, vectors, (int)rows, (int)(to - from))(
                        &sum, x + (oy - row_0) * p->row + from * p->step, p->row, w,
                        y + (oy * c->out[1] + from) * 16, &finish);
                }
            }
        }
    }
    return 0;
}

/* About what a convolution takes, in cycles: multiplications, and reading the filters from memory. */
#ifdef __AMX_BF16__ /* against what tiles take, which is measured in cycles too */
#define MULTIPLY (1. / 32)
#define READ_FILTER .3
#define WRITE_ANSWER 5. /* of 16 channels: and read it again, where tiles split it at once */
#define READ_ALONE .55 /* at least, where there are few pixels to multiply meanwhile */
#define TRANSFORM(t) ((t) == 4 ? 8.5 : 5.3)
#else
#define MULTIPLY (1.1 / (2 * LANES))
#define READ_FILTER .4
#define READ_ALONE 1.
#define WRITE_ANSWER 0. /* there is no other way */
#define TRANSFORM(t) ((t) == 4 ? 7. : 4.)
#endif

static double direct_cycles(const conv16_t* c, int writes_answers) {
    const double pairs =
        (double)c->channels * c->out_channels / c->group * c->kernel[0] * c->kernel[1];
    const double pixels = (double)c->batch * c->out[0] * c->out[1];
    return pairs * (pixels * MULTIPLY + READ_FILTER) +
           (writes_answers ? pixels * BLOCKS(c->channels) * WRITE_ANSWER : 0);
}

static int direct(const conv16_t* c, int step, const depthwise16_t* before, const float* x,
                  const float* packed, const epilogue16_t* e, float* y, int nth) {
    const long pixels = (long)c->out[0] * c->out[1], out = c->out_channels / c->group;
    const long kh = c->kernel[0], kw = c->kernel[1], taps = kh * kw;
    plan_t p = {.c = *c, .x = x, .packed = packed, .y = y, .step = step, .bias = e->bias,
                .y_image = y_image(c, e)};
    p.depth = c->channels / c->group;
    p.blocks = DIVIDE_UP(p.depth, step);
    p.panels = DIVIDE_UP(16 * BLOCKS(out), PANEL);
    int inside = step == 16 && c->stride[1] == 1;
    for (int i = 0; i < 2; i++)
        inside &= !c->pad[i] && (c->out[i] - 1l) * c->stride[i] +
                                        (c->kernel[i] - 1l) * c->dilation[i] < c->size[i];
    p.flat = inside && taps == 1 && c->stride[0] == 1 && c->out[0] == c->size[0] &&
             c->out[1] == c->size[1];
    p.copied = !inside;
    p.tile_rows = step == 16 && !p.flat && 2 * c->out[1] <= PIXELS && c->out[0] > 1 ? 2 : 1;
    p.tiles_down = p.flat ? DIVIDE_UP(pixels, PIXELS) : DIVIDE_UP(c->out[0], p.tile_rows);
    p.tiles_across = DIVIDE_UP(c->out[1], PIXELS);
    p.columns = ((c->out[1] - 1l) * c->stride[1] + (kw - 1) * c->dilation[1]) / c->stride[1] + 1;

    /* bands of tiles (or of images) and chunks of panels */
    const long line = p.copied ? p.columns * c->stride[1] * step : (long)c->size[1] * 16;
    const double image_bytes = 4. * p.blocks * c->size[0] * c->size[1] * step;
    const double weight_bytes = 4. * out * p.depth * taps;
    const double down_bytes =
        4. * p.blocks * (p.flat ? PIXELS * 16 : p.tile_rows * c->stride[0] * line);
    nth = threads_for((double)c->batch * pixels * c->out_channels * p.depth * taps, nth);
    if (p.flat) p.tiles_down = MIN(pixels, DIVIDE_UP(p.tiles_down, nth) * nth);
    const long down = MAX(1, (long)(BAND_BYTES / (down_bytes + 1)));
    const long images = MAX(1, (long)(BAND_BYTES / (image_bytes + 1)));
    parts_t n = {1, DIVIDE_UP(p.tiles_down, down), c->batch};
    if (n.bands == 1) n.batches = DIVIDE_UP(c->batch, images);
    /* By rows, threads fetch little from each other, but each reads all filters, and needs pixels to
     * multiply meanwhile. It passes over large filters no more often than bands must be small. */
    const int enough = c->batch * pixels >= (long)ROW_TILES * PIXELS * nth;
    const int by_rows = weight_bytes <= image_bytes * (enough ? ROW_FILTERS : 1);
    const int once = by_rows && weight_bytes > RESIDENT;
    const long bands = once ? MIN(p.tiles_down, DIVIDE_UP(n.bands, nth) * nth) : p.tiles_down;
    divide(c, &n, !by_rows, bands, once && before ? 1 : p.panels, 4, nth);
    const long most = DIVIDE_UP(p.tiles_down, n.bands); /* tiles down in a band */
    if (before && n.chunks == 1) p.before = *before;
    else if (before && !(p.x = CAT(depthwise16_all, ISA)(before, nth))) return -1;

    if (p.copied) {
        p.row = c->stride[0] * line;
        p.block = copied_image(&p, most) / p.blocks;
    } else {
        p.row = c->stride[0] * line;
        p.block = c->size[0] * line;
    }
    long* at = kernels_scratch(0, p.blocks * taps * sizeof(long) + 64);
    if (!at) return -1;
    p.sum = (reduction_t){.taps = p.blocks * taps, .full = p.depth / 16 * taps,
                          .tail = (int)(p.depth % 16), .at = at};
    for (long block = 0; block < p.blocks; block++)
        for (long r = 0; r < kh; r++)
            for (long s = 0; s < kw; s++) {
                const long column = s * c->dilation[1];
                *at++ = block * p.block + r * c->dilation[0] * line +
                        (p.copied ? column % c->stride[1] * p.columns + column / c->stride[1]
                                  : column) * step;
            }
    p.finish = (finish_t){.residual = e->residual ? e->residual - y : 0,
                          .has_residual = e->residual != NULL,
                          .row = c->out[1] * 16l,
                          .vector = LANES == 16 ? pixels * 16 : LANES,
                          .low = e->low, .high = e->high};
    int failed = 0;
    const long count = c->group * COUNT(n);
    stretch_t work[nth];
    share_out(count, nth, work);
#pragma omp parallel num_threads(nth) if (nth > 1) firstprivate(p, n)
    { /* copies of the plan come at once, what lies behind pointers line by line */
        for (long i = -1, copied = -1; (i = take(i, count, nth, work)) >= 0;) {
            const part16_t part = part_of(&p.c, &n, i, p.tiles_down, p.panels);
            note(&failed, run_part(&p, &part, most, i / n.chunks, &copied));
        }
    }
    return failed ? -1 : 0;
}

static double winograd_cycles(const conv16_t* c, int t) {
    const double products = (double)c->batch * winograd_line(c, 0, t) * winograd_line(c, 1, t);
    const double pairs = (double)c->channels * c->out_channels, filters = (t + 2) * (t + 2);
    const double vectors = (BLOCKS(c->channels) + BLOCKS(c->out_channels)) * 16 / LANES;
    return pairs * MAX(products * MULTIPLY + filters * READ_FILTER, filters * READ_ALONE) +
           vectors * products * TRANSFORM(t);
}

int CAT(conv16_way, ISA)(const conv16_t* c, int images, int winograd) {
    const int out = c->out_channels / c->group;
    double reach = 1, pixels = 1;
    for (int i = 0; i < 2; i++) {
        reach *= 1. * c->out[i] * c->stride[i] + (c->kernel[i] - 1.) * c->dilation[i];
        pixels *= (double)c->size[i] + c->out[i];
    }
    const int absurd = reach > 65536 + 16 * pixels; /* a border not worth copying */
    if (images == CONV16_NCHW) return c->group > 1 || absurd ? CONV16_NONE : CONV16_FIRST;
    if (c->group > 1 && c->group == c->channels && out == 1) return CONV16_DEPTHWISE;
    if (absurd || (c->group > 1 && (c->channels / c->group % 16 || out % 16))) return CONV16_NONE;
    for (int i = 0; i < 2 && winograd; i++)
        if (c->kernel[i] != 3 || c->stride[i] > 2 || c->stride[i] != c->stride[0] ||
            c->dilation[i] != 1 || c->out[i] < 4)
            winograd = 0;
    if (winograd == 2) winograd = (double)c->batch * c->out[0] * c->out[1] > REPACK_PIXELS;
    int direct = CONV16_DIRECT;
    double cycles = direct_cycles(c, images == CONV16_ANSWERS);
#ifdef __AMX_BF16__
    const double tiles_cycles = conv16_tiles_cycles(c);
    if (tiles_cycles < cycles) {
        direct = CONV16_TILES;
        cycles = tiles_cycles;
    }
#endif
    if (!winograd || c->group > 1 || c->channels < 16 || out < 16) return direct;
    const double with_4 = winograd_cycles(c, 4);
    const double with_2 = c->stride[0] == 2 ? INFINITY : winograd_cycles(c, 2);
    if (cycles < MIN(with_4, with_2)) return direct;
    return with_2 < with_4 ? CONV16_WINOGRAD_2 : CONV16_WINOGRAD_4;
}

int CAT(conv16, ISA)(const conv16_t* c, int way, const float* x, const float* packed,
                     const epilogue16_t* e, float* y, int nth) {
    if (c->batch <= 0 || c->out_channels <= 0 || c->out[0] <= 0 || c->out[1] <= 0) return 0;
    switch (way) {
        case CONV16_DIRECT: return direct(c, 16, NULL, x, packed, e, y, nth);
        case CONV16_FIRST: return direct(c, 1, NULL, x, packed, e, y, nth);
#ifdef __AMX_BF16__
        case CONV16_TILES: return conv16_tiles(c, NULL, x, packed, e, y, nth);
#endif
        case CONV16_DEPTHWISE:
            CAT(depthwise16, ISA)(&(depthwise16_t){*c, x, packed, *e}, y, nth);
            return 0;
        default: return CAT(winograd, ISA)(c, winograd_tile(way), x, packed, e, y, nth);
    }
}

int CAT(separable16, ISA)(const depthwise16_t* before, const conv16_t* c, int way,
                          const float* packed, const epilogue16_t* e, float* y, int nth) {
    if (c->batch <= 0 || c->out_channels <= 0 || c->out[0] <= 0 || c->out[1] <= 0) return 0;
#ifdef __AMX_BF16__
    if (way == CONV16_TILES) return conv16_tiles(c, before, NULL, packed, e, y, nth);
#endif
    (void)way;
    return direct(c, 16, before, NULL, packed, e, y, nth);
}

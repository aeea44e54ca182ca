/* Direct convolution of blocked images by the matrix unit (amx.h).
 *
 * A thread splits a band of rows of some images into parts, with its border, and with places that
 * are a stride apart side by side: [32 channels][phase: row % stride, column % stride][image]
 * [row / stride][column / stride][part][32]. So any 16 pixels of the result that follow each other are a
 * left factor, whatever the tap; lines are longer than those of the result by what the taps reach
 * over, and sums of places beyond the end of a line are dropped. Filters are split once.
 *
 * Where many channels become few, the sums over each half of them are computed for themselves, and
 * added at last: threads that wrote a half each need not read the other's. */
#include "conv16.h"

#ifdef __AMX_BF16__
#include "amx.h"
#include "share.h"

#define X_BYTES (1280l << 10) /* of a band, split: most of the second-level cache */
#define FIRST_LINES 512       /* of filters, at most, that come while a band is split */
#define PART_WORK 4e6         /* multiplications, and pixels, that make a part worth while */
#define PART_PIXELS 128
#define PART (AMX_STEP * 2l) /* bytes of a pixel's numbers */
#define PIXEL (AMX_PARTS * PART)

typedef struct {
    conv16_t c;
    depthwise16_t before;
    const float* x; /* NULL: what `before` answers */
    const char* packed;
    float* y;
    epilogue16_t e;
    axis_t down, across;
    int flat; /* lines follow each other without a gap, as do images */
    long depth, pairs, taps, panels, padded; /* of a group */
    long y_image;
    long images, rows; /* of a part, at most */
    int halves;        /* of the input channels, 1 or 2 */
    float* sums[2];    /* over each, laid out as y, where parts have a half only; else NULL */
} plan_t;

/* The split band of a part: rows and columns of the result, lines as they lie. */
typedef struct {
    long images, rows, columns;
    long line, image; /* pixels */
    long phase, pair;  /* bytes */
} band_t;

static band_t band_of(const plan_t* p, long images, long rows) {
    band_t b = {.images = images, .rows = rows, .columns = p->c.out[1]};
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

/* The same of a pair of blocks of some images, with a depthwise convolution: two rows at a time, which
 * stay in the first-level cache. 1x1: there is no border. */
static int split_answers(const plan_t* p, const part16_t* part, const band_t* b, long pair,
                         char* to, amx_later_t* later) {
    const depthwise16_t* d = &p->before;
    const long line = 16l * b->line;
    float* low = kernels_scratch(4, 4 * line * sizeof(float));
    float* high = 2 * pair + 1 < BLOCKS(p->depth) ? low + 2 * line : low;
    for (long n = part->image_0; low && n < part->image_1; n++)
        for (long r = part->down_0, some; r < part->down_1; r += some, to += some * b->line * PIXEL) {
            some = MIN(2, part->down_1 - r);
            for (long k = 0; k < (high == low ? 1 : 2); k++)
                CAT(depthwise16_band, ISA)(d, n, 2 * pair + k, (int)r, (int)(r + some), 0,
                                           k ? high : low);
            split_line(low, high, 0, 1, some * b->line, some * b->line, to);
            amx_fetch(later, 0);
        }
    return low ? 0 : -1;
}

/* Each thread begins with another pair of blocks: one that it may have written itself, so that what
 * others wrote is on its way when it gets there. */
static int split_band(const plan_t* p, const part16_t* part, const band_t* b, long pair_0,
                      long pair_1, char* to, amx_later_t later) {
    const conv16_t* c = &p->c;
    const long plane = 16l * c->size[0] * c->size[1], blocks = BLOCKS(p->depth);
    const long pairs = pair_1 - pair_0;
    const long start = pairs * omp_get_thread_num() / omp_get_num_threads();
    for (long i = 0; i < pairs; i++) {
        const long pair = pair_0 + (start + i) % pairs;
        if (!p->x) {
            if (split_answers(p, part, b, pair, to + (pair - pair_0) * b->pair, &later)) return -1;
            continue;
        }
        for (long v = 0; v < p->down.phases; v++)
            for (long u = 0; u < p->across.phases; u++) {
                const long phase = v * p->across.phases + u;
                const long top = v * c->dilation[0] % c->stride[0] - c->pad[0];
                const long left = u * c->dilation[1] % c->stride[1] - c->pad[1];
                char* line = to + (pair - pair_0) * b->pair + phase * b->phase;
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
                        amx_fetch(&later, 0);
                    }
            }
    }
    return 0;
}

/* The filters that a thread read first after it had run this convolution, when it did so last: in a net
 * it will read them again, so they are fetched during its last panel. They may be gone by then, which
 * prefetching ignores. */
typedef struct {
    const void* packed; /* which convolution */
    const char* next;
    long lines;
} follower_t;

#define FOLLOWERS 256
#define FOLLOWER_LINES 16 /* at a step, at most */

static _Thread_local follower_t followers[FOLLOWERS];
static _Thread_local follower_t* latest;

static follower_t* follower_of(const void* packed) {
    follower_t* f = followers + ((uintptr_t)packed >> 6 ^ (uintptr_t)packed >> 14) % FOLLOWERS;
    if (f->packed != packed) *f = (follower_t){packed, 0, 0};
    return f;
}

/* This thread begins with these filters. */
static void follow(follower_t* f, const char* w, long lines) {
    if (latest) {
        latest->next = w;
        latest->lines = lines;
    }
    latest = f;
}

/* What one thread works on, and the sums that are not yet written: that is done while the matrix
 * unit computes the next ones. */
typedef struct {
    const plan_t* p;
    band_t b;
    int halves; /* of this part */
    amx_left_t left[2];
    amx_later_t later;
    const follower_t* follower; /* of the thread's last panel, else NULL */
    const char* x;
    float* y; /* of the band's first pixel */
    struct {
        int m, n;
        const char* w;
        long channel, at, end; /* pixels from `at` on, those before `end` */
    } last;
    float sums[2][AMX_SUMS] __attribute__((aligned(64)));
} work_t;

/* What is done to some sums of pixels that follow each other, of each half if there is another,
 * before they are written. */
INLINE void finish_run(const plan_t* p, int n, long channel, const float* sums, const float* other,
                       long pixels, float* y) {
    const long plane = 16l * p->c.out[0] * p->c.out[1];
    const long residual = p->e.residual ? p->e.residual - p->y : 0;
    const int add = p->e.residual != NULL, keep = channel + n * 16 > p->c.out_channels;
    const float low = p->e.low, high = p->e.high;
    for (int j = 0; j < n; j++, y += plane) {
        const f32 bias = bias_at(&p->c, p->e.bias, channel + j * 16);
        const i32 lanes = lanes_at(&p->c, channel + j * 16);
#pragma GCC unroll 4
        for (long i = 0; i < pixels; i++) {
            f32 s = *(const f32*)(sums + j * 256 + i * 16);
            if (other) s += *(const f32*)(other + j * 256 + i * 16);
            s += bias;
            if (add) s += *(const f32*)(y + residual + i * 16);
            s = clip(s, low, high);
            *(f32*)(y + i * 16) = keep ? (f32)((i32)s & lanes) : s;
        }
    }
}

/* Bytes of a half's filters, of n tiles of output channels. */
static long half_bytes(const work_t* t, int n) {
    return t->left[0].steps * AMX_PARTS * n * AMX_TILE;
}

/* Pixel by pixel, so that bits do not depend on which pixels share a tile. */
__attribute__((noinline)) static void mend(const work_t* t, int half, const char* a, long first, long last,
                                           float* sums) {
    const int n = t->last.n;
    for (long i = first; i < last; i++)
        if (amx_not_finite(n, sums + i * 16, 1))
            amx_plain(n, &t->left[half], a, t->last.w + half * half_bytes(t, n), i, i + 1, sums);
}

static void finish(work_t* t) {
    const plan_t* p = t->p;
    const band_t* b = &t->b;
    const int n = t->last.n;
    const long plane = 16l * p->c.out[0] * p->c.out[1];
    const char* a = t->x + t->last.at * PIXEL;
    float* y = t->y + t->last.channel / 16 * plane;
    for (long first = t->last.at, tile = 0; tile < t->last.m;
         tile++, a += t->left[0].second, first += AMX_ROWS)
        for (long i = 0, run; i < AMX_ROWS && first + i < t->last.end; i += run) {
            const long image = (first + i) / b->image, place = (first + i) % b->image;
            const long row = place / b->line, column = place % b->line;
            run = MIN(AMX_ROWS - i, t->last.end - first - i);
            if (row >= b->rows) run = MIN(run, b->image - place);
            else if (column >= b->columns) run = MIN(run, b->line - column);
            else {
                run = MIN(run, b->columns - column);
                for (int h = 0; h < t->halves; h++) {
                    float* sums = t->sums[h] + tile * n * 256;
                    if (amx_not_finite(n, sums + i * 16, run)) mend(t, h, a, i, i + run, sums);
                }
                const float* sums = t->sums[0] + tile * n * 256 + i * 16;
                float* to = y + image * p->y_image + (row * p->c.out[1] + column) * 16;
                if (p->sums[0])
                    for (int j = 0; j < n; j++)
                        memcpy(to + j * plane, sums + j * 256, run * 16 * sizeof(float));
                else
                    finish_run(p, n, t->last.channel, sums, t->halves > 1 ? sums + AMX_SUMS : NULL,
                               run, to);
            }
        }
    t->last.m = 0;
}

INLINE void tiles(work_t* t, const int m, const int n, const char* w, long channel, long at,
                  long end) {
    const char* half = w;
    for (int h = 0; h < t->halves; h++, half += half_bytes(t, n)) {
        amx_multiply(m, n, 64, &t->left[h], t->x + at * PIXEL, half, &t->later, (amx_later_t){0});
        finish(t);
        amx_store(m, n, t->sums[h]);
    }
    t->last.m = m;
    t->last.n = n;
    t->last.w = w;
    t->last.channel = channel;
    t->last.at = at;
    t->last.end = end;
}

static void all_tiles(work_t* t, const int n, const char* w, long channel) {
    /* Pixels go on from one image to the next where that makes fewer tiles. */
    const band_t* b = &t->b;
    const long image = (b->rows - 1) * b->line + b->columns;
    const long all = (b->images - 1) * b->image + image;
    const int on = DIVIDE_UP(all, AMX_ROWS) <= b->images * DIVIDE_UP(image, AMX_ROWS);
    const long passes = on ? DIVIDE_UP(all, 2 * AMX_ROWS)
                           : b->images * DIVIDE_UP(image, 2 * AMX_ROWS);
    const long lines = AMX_PARTS * n * AMX_TILE / 64;
    /* What comes next; few passes would be slowed by it. */
    const char* next = w + t->p->pairs * t->p->taps * lines * 64;
    long share = DIVIDE_UP(lines, passes);
    if (t->follower) {
        next = t->follower->next;
        share = MIN(FOLLOWER_LINES,
                    DIVIDE_UP(t->follower->lines, MAX(1, passes * t->left[0].steps * t->halves)));
    }
    t->later = (amx_later_t){next, passes < 4 ? 0 : share};
    if (t->p->e.bias)
        for (int j = 0; j < n; j++) __builtin_prefetch(t->p->e.bias + channel + j * 16);
    for (long k = 0; k < (on ? 1 : b->images); k++) {
        const long end = on ? all : k * b->image + image;
        for (long at = k * b->image; at < end; at += 2 * AMX_ROWS)
            if (end - at > AMX_ROWS) tiles(t, 2, n, w, channel, at, end);
            else tiles(t, 1, n, w, channel, at, end);
    }
}

/* Where the steps of a product find their pixels: of each tap, in each pair of blocks. */
static void find_steps(const plan_t* p, const band_t* b, long pairs, long* at) {
    const conv16_t* c = &p->c;
    long* next = at;
    for (long r = 0; r < c->kernel[0]; r++)
        for (long s = 0; s < c->kernel[1]; s++) {
            const long phase = r % p->down.phases * p->across.phases + s % p->across.phases;
            *next++ = phase * b->phase + (r * c->dilation[0] / c->stride[0] * b->line +
                                          s * c->dilation[1] / c->stride[1]) * PIXEL;
        }
    for (const long* end = at + pairs * p->taps; next < end; next++) *next = next[-p->taps] + b->pair;
    *next = 2 * AMX_ROWS * PIXEL; /* the next tiles */
}

/* split: which band of which images, and which half of it, this thread has split; this part's is
 * `number`. half: which one the part has; -1: all. last: of the thread's parts. */
static int run_part(const plan_t* p, const part16_t* part, int half, long number, long* split,
                    follower_t* follower, int last) {
    const conv16_t* c = &p->c;
    const band_t full = band_of(p, p->images, p->rows);
    const band_t band = band_of(p, part->image_1 - part->image_0, part->down_1 - part->down_0);
    const long pair_0 = half == 1 ? p->pairs / 2 : 0, pair_1 = half ? p->pairs : p->pairs / 2;
    char* x = kernels_scratch(1, band_bytes(p, &full));
    long* at = kernels_scratch(2, (p->pairs * p->taps + 1) * sizeof(long));
    if (!x || !at) return -1;
    work_t t;
    t.p = p;
    t.b = band;
    if (p->flat) { /* one line */
        t.b.columns = t.b.line = t.b.image = band.rows * band.line;
        t.b.rows = 1;
    }
    t.x = x;
    t.y = p->sums[0] ? p->sums[half] : p->y;
    t.y += part->image_0 * p->y_image + part->down_0 * c->out[1] * 16;
    t.halves = half < 0 ? p->halves : 1;
    for (long h = 0, from = 0; h < t.halves; h++) {
        const long to = h + 1 < t.halves ? p->pairs / 2 : pair_1 - pair_0;
        t.left[h] = (amx_left_t){(to - from) * p->taps, at + from * p->taps, PIXEL, PART,
                                 AMX_ROWS * PIXEL};
        from = to;
    }
    t.last.m = 0;
    if (*split != number) find_steps(p, &band, pair_1 - pair_0, at);
    for (long panel = part->panel_0; panel < part->panel_1; panel++) {
        const long first = panel * PANEL;
        const int n = p->padded - first > 16 ? 2 : 1;
        const long channel = part->group * (c->out_channels / c->group) + first;
        const char* w =
            p->packed + (part->group * p->padded + first) * p->taps * p->pairs * PIXEL +
            pair_0 * p->taps * AMX_PARTS * n * AMX_TILE;
        if (*split != number) {
            /* meanwhile filters of the first panel come, at each line a share of them */
            const long lines = (pair_1 - pair_0) * p->taps * AMX_PARTS * n * AMX_TILE / 64;
            const long rows = band.images * p->down.phases * p->across.phases *
                              (p->x ? band.rows + p->down.reach : DIVIDE_UP(band.rows, 2));
            const long share = DIVIDE_UP(MIN(lines, FIRST_LINES), (pair_1 - pair_0) * rows);
            if (split_band(p, part, &band, pair_0, pair_1, x, (amx_later_t){w, share})) return -1;
            if (*split < 0) follow(follower, w, lines);
            *split = number;
        }
        t.follower = last && panel + 1 == part->panel_1 ? follower : NULL;
        if (n == 2) all_tiles(&t, 2, w, channel);
        else all_tiles(&t, 1, w, channel);
    }
    finish(&t);
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
                CAT(conv16_gather, ISA)(c, f, g, first, width, k, count, some);
                for (long tap = 0; tap < taps; tap++, to += AMX_PARTS * n * AMX_TILE)
                    amx_split_right(some + tap * count * width, count, n, to);
            }
        }
    return failed ? -1 : 0;
}

/* Whether sums over halves of the channels are worth while: the layer before is then divided among
 * threads by channels (window16.c), and there are far less sums than numbers that go into them. */
static int in_halves(const conv16_t* c) {
    return c->batch == 1 && c->group == 1 && c->channels > (long)c->size[0] * c->size[1] &&
           c->channels >= 3 * c->out_channels && c->channels >= 2 * AMX_STEP;
}

int conv16_tiles(const conv16_t* c, const depthwise16_t* before, const float* x,
                 const void* packed, const epilogue16_t* e, float* y, int nth) {
    const long out = c->out_channels / c->group, pixels = (long)c->out[0] * c->out[1];
    plan_t p = {.c = *c, .x = x, .packed = packed, .y = y, .e = *e, .y_image = y_image(c, e)};
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
    const double products = (double)c->batch * pixels * c->out_channels * p.depth * p.taps;
    nth = threads_for(products, nth);
    const long each = (long)MAX(1, MIN(4, products / nth / PART_WORK));
    const long down = MAX(1, X_BYTES / (row.pair * p.pairs + 1));
    const long images = MAX(1, (long)(X_BYTES / (x_size + 1)));
    parts_t n = {1, DIVIDE_UP(c->out[0], down), c->batch};
    if (n.bands == 1) n.batches = DIVIDE_UP(c->batch, images);
    /* each thread splits all pixels, or reads all filters */
    p.halves = 1 + in_halves(c);
    const int apart = p.halves == 2 && nth % 2 == 0;
    divide(c, &n, w_size > 1.8 * x_size, MIN(c->out[0], MAX(nth, pixels / PART_PIXELS)), p.panels,
           each, apart ? nth / 2 : nth);
    if (before && n.chunks == 1) p.before = *before;
    else if (before && !(p.x = CAT(depthwise16_all, ISA)(before, nth))) return -1;
    p.images = DIVIDE_UP(c->batch, n.batches);
    p.rows = DIVIDE_UP(c->out[0], n.bands);

    const long padded = 16 * BLOCKS(c->out_channels);
    for (int half = 0; half < 2 && apart; half++) {
        p.sums[half] = kernels_scratch(half ? 3 : 0, padded * pixels * sizeof(float));
        if (!p.sums[half]) return -1;
    }
    int failed = 0;
    const long count = c->group * COUNT(n) * (apart ? 2 : 1);
    stretch_t work[nth];
    share_out(count, nth, work);
#pragma omp parallel num_threads(nth) if (nth > 1) firstprivate(p, n)
    { /* copies of the plan come at once, what lies behind pointers line by line */
        amx_begin();
        follower_t* follower = follower_of(packed);
        const long end = count * (omp_get_thread_num() + 1) / nth;
        for (long i = -1, split = -1; (i = take(i, count, nth, work)) >= 0;) {
            const int half = apart ? (int)(i / COUNT(n)) : -1;
            const part16_t part = part_of(&p.c, &n, apart ? i % COUNT(n) : i, p.c.out[0], p.panels);
            note(&failed, run_part(&p, &part, half, i / n.chunks, &split, follower, i + 1 == end));
        }
        amx_end();
        if (apart) {
#pragma omp barrier
#pragma omp for schedule(static) nowait
            for (long block = 0; block < padded / 16; block++) {
                const long at = block * pixels * 16;
                finish_run(&p, 1, block * 16, p.sums[0] + at, p.sums[1] + at, pixels, y + at);
            }
        }
    }
    return failed ? -1 : 0;
}

/* Measured: six products of a tile take 100 cycles, its sums 120, a pair of vectors 22 to be split.
 * Meanwhile filters are read, each in 1.9 cycles if many, which lie in memory, else in .6. */
double conv16_tiles_cycles(const conv16_t* c) {
    const axis_t down = axis_of(c, 0), across = axis_of(c, 1);
    const long pairs = DIVIDE_UP(c->channels / c->group, AMX_STEP);
    const double line = c->out[1] + across.reach;
    const double steps = (double)pairs * c->kernel[0] * c->kernel[1] * c->group;
    const double places = down.phases * across.phases * (c->out[0] + down.reach) * line;
    const double tiles = c->batch * (((c->out[0] - 1) * line + c->out[1]) / AMX_ROWS + .5);
    const double outs = BLOCKS(c->out_channels / c->group);
    const double filters = steps * AMX_STEP * outs * 16;
    const double read = filters * (filters > 500e3 ? 1.9 : .6);
    const double products = outs * tiles * (steps * 100 + c->group * 120);
    return MAX(products + read / 4, read) + c->batch * places * pairs * c->group * 22;
}
#endif

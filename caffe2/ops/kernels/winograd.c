/* Winograd convolution of blocked images: 3x3, stride 1 or 2.
 *
 * F(t x t, 3 x 3), t = 4 or 2, turns a patch of side t + 2 = s into s * s products for t * t
 * pixels, a quarter (4 / 9) of what they take directly. With stride 2 the even places of a line see
 * the outer two taps, F(4, 2), and the odd ones the middle tap, as they are: 9 products for 4
 * pixels, 9 / 16 of what they take directly. A block of tiles goes through three steps:
 *   transform   patches of the image to   v[s * s][block of 16 channels][tile][16]
 *   multiply    for each of the s * s, by the transformed filters, to m[s * s][block][tile][16]
 *   finish      m to pixels, with bias, residual and bounds
 * A thread does a block from start to end, so that v and m stay in its cache. Where there are fewer
 * blocks than threads, since filters are large, each does it for some of the output channels: it is
 * cheaper to transform the image twice than to wait for, and to fetch, what another processor
 * transformed. */
#include "conv16.h"
#include "share.h"

#define V_BYTES (1l << 20)        /* of a block of tiles, unless it had too few to pay */
#define M_BYTES (384l << 10)      /* of the output channels that are computed together */
#define MIN_TILES 48              /* reads of the filters: each is used that often */
#define FILTER_BYTES (768l << 10) /* of filters that are as good read half as often */
#define THREAD_TILES 24           /* of one block for each thread, at least */

typedef struct {
    const conv16_t* c;
    const float *x, *packed, *bias, *residual;
    float *y, low, high;
    long down, across, tiles; /* of one image; of all */
    long block;               /* tiles that are processed at once */
    long v_step, m_step;      /* floats between products */
    long y_image;
    const long* at;
} plan_t;

/* F(4x4) interpolates at 0, P, -P, Q, -Q and infinity; 1 and 2 would have four times the error. */
#define P .625f
#define Q 1.5f
#define P2 (P * P)
#define Q2 (Q * Q)

/* The even places of stride 2: 0, A, -A, B and infinity. */
#define A .75f
#define B 1.5f

/* Of a patch: pixels, and products, along each axis. */
#define SIDE(t, stride) ((stride) == 2 ? 2 * (t) + 1 : (t) + 2)
#define MAX_SIDE SIDE(4, 2)

/* One patch line: B^T d. */
INLINE void transform_line(const int t, const int stride, const f32* d, const int step, f32* o,
                           const int to) {
    if (t == 2) {
        o[0] = d[0] - d[2 * step];
        o[to] = d[step] + d[2 * step];
        o[2 * to] = d[2 * step] - d[step];
        o[3 * to] = d[step] - d[3 * step];
        return;
    }
    if (stride == 2) {
        const f32 a = d[6 * step] - B * d[4 * step], b = d[4 * step] - B * d[2 * step];
        o[0] = a - A * A * (d[2 * step] - B * d[0]);
        o[to] = a + A * b;
        o[2 * to] = a - A * b;
        o[3 * to] = d[6 * step] - A * A * d[2 * step];
        o[4 * to] = d[8 * step] - B * d[6 * step] - A * A * b;
UNROLL
        for (int i = 0; i < 4; i++) o[(5 + i) * to] = d[(2 * i + 1) * step];
        return;
    }
    const f32 a = d[4 * step] - Q2 * d[2 * step], b = P * (d[3 * step] - Q2 * d[step]);
    const f32 e = d[4 * step] - P2 * d[2 * step], f = Q * (d[3 * step] - P2 * d[step]);
    o[0] = P2 * Q2 * d[0] - (P2 + Q2) * d[2 * step] + d[4 * step];
    o[to] = a + b;
    o[2 * to] = a - b;
    o[3 * to] = e + f;
    o[4 * to] = e - f;
    o[5 * to] = P2 * Q2 * d[step] - (P2 + Q2) * d[3 * step] + d[5 * step];
}

/* One line of products: A^T m. */
INLINE void finish_line(const int t, const int stride, const f32* m, const long step, f32* o,
                        const int to) {
    const f32 p = m[step] + m[2 * step], q = m[step] - m[2 * step];
    if (t == 2) {
        o[0] = m[0] + p;
        o[to] = q - m[3 * step];
        return;
    }
    if (stride == 2) {
        const f32 r = m[3 * step];
        o[0] = m[0] + p + r + m[5 * step];
        o[to] = A * q + B * r + m[6 * step];
        o[2 * to] = A * A * p + B * B * r + m[7 * step];
        o[3 * to] = A * A * A * q + B * B * B * r + m[4 * step] + m[8 * step];
        return;
    }
    const f32 r = m[3 * step] + m[4 * step], u = m[3 * step] - m[4 * step];
    o[0] = m[0] + p + r;
    o[to] = P * q + Q * u;
    o[2 * to] = P2 * p + Q2 * r;
    o[3 * to] = P2 * P * q + Q2 * Q * u + m[5 * step];
}

typedef struct {
    long image;
    int y, x; /* of the first pixel */
} place_t;

INLINE place_t place_of(const plan_t* p, int t, long tile) {
    const long in_image = tile % (p->down * p->across);
    return (place_t){tile / (p->down * p->across), (int)(in_image / p->across) * t,
                     (int)(in_image % p->across) * t};
}

INLINE void go_on(const plan_t* p, int t, place_t* at) {
    at->x += t;
    if (at->x < p->across * t) return;
    at->x = 0;
    at->y += t;
    if (at->y < p->down * t) return;
    at->y = 0;
    at->image++;
}

/* One block of channels of one tile. */
INLINE void transform(const int t, const int stride, const plan_t* p, long block, place_t at, float* v) {
    const conv16_t* c = p->c;
    const int s = SIDE(t, stride), height = c->size[0], width = c->size[1];
    const int y = at.y * stride - c->pad[0], x = at.x * stride - c->pad[1];
    const float* from =
        p->x + (((at.image * BLOCKS(c->channels) + block) * height + y) * width + x) * 16;
    const int inside = x >= 0 && x + s <= width;
    static const float border[16] __attribute__((aligned(64)));
    for (int lane = 0; lane < 16; lane += LANES) {
        f32 d[MAX_SIDE * MAX_SIDE], e[MAX_SIDE * MAX_SIDE];
        for (int i = 0; i < s; i++) {
            const float* q = from + i * (16l * width) + lane;
            f32* line = d + i * s;
            if (y + i < 0 || y + i >= height)
UNROLL
                for (int j = 0; j < s; j++) line[j] = (f32){0};
            else if (inside) {
                transform_line(t, stride, (const f32*)q, 16 / LANES, line, 1);
            } else {
UNROLL
                for (int j = 0; j < s; j++)
                    e[j] = *(const f32*)(x + j >= 0 && x + j < width ? q + j * 16 : border);
                transform_line(t, stride, e, 1, line, 1);
            }
        }
UNROLL
        for (int j = 0; j < s; j++) transform_line(t, stride, d + j, s, e + j, s);
UNROLL
        for (int i = 0; i < s * s; i++) *(f32*)(v + i * p->v_step + lane) = e[i];
    }
}

/* Blocks of 16 output channels that are computed together: whole panels. */
typedef struct {
    long first, last;
} part_t;

/* One of the s * s products of a block of tiles with the filters of a part; all odd places of
 * stride 2 meet the same filters, along each axis. */
static void multiply(const plan_t* p, int t, long product, const part_t* part, long tiles,
                     const float* v, float* m) {
    const conv16_t* c = p->c;
    const long padded = 16 * BLOCKS(c->out_channels), first = part->first * 16;
    const long last = MIN(part->last * 16, padded), passes = DIVIDE_UP(tiles, PIXELS);
    reduction_t sum = {.taps = BLOCKS(c->channels), .full = c->channels / 16,
                       .tail = c->channels % 16, .at = p->at};
    const finish_t finish = {.vector = LANES == 16 ? p->block * 16 : LANES};
    const long side = SIDE(t, c->stride[0]), last_kind = t + 1;
    const long kind = MIN(product / side, last_kind) * (t + 2) + MIN(product % side, last_kind);
    v += product * p->v_step;
    m += product * p->m_step;
    for (long channel = first; channel < last; channel += PANEL) {
        const int vectors = (int)MIN(2, (last - channel) / LANES);
        const float* w = p->packed + (kind * padded + channel) * c->channels;
        const long skip = channel + PANEL < last ? 0 : padded - last + first;
        const float* next = w + (vectors * LANES + skip) * c->channels;
        float* y = m + (channel - first) / 16 * p->block * 16 + channel % 16;
        for (long i = 0; i < passes; i++) {
            const long from = i * tiles / passes, to = (i + 1) * tiles / passes;
            fetch_later(&sum, next, vectors * LANES, c->channels, i, passes);
            CAT(conv16_tile, ISA)(TILE_PLAIN, vectors, 1, (int)(to - from))(
                &sum, v + from * 16, 0, w, y + from * 16, &finish);
        }
    }
}

/* One block of output channels of one tile. */
INLINE void finish(const int t, const int stride, const plan_t* p, long block, place_t at,
                   const float* m) {
    const conv16_t* c = p->c;
    const int s = SIDE(t, stride);
    const int rows = MIN(t, c->out[0] - at.y), columns = MIN(t, c->out[1] - at.x);
    const long row = 16l * c->out[1];
    const long to = at.image * p->y_image + (block * c->out[0] + at.y) * row + at.x * 16;
    for (int lane = 0; lane < 16; lane += LANES) {
        f32 e[4 * MAX_SIDE], o[16];
        const f32 bias = bias_at(c, p->bias, block * 16 + lane);
        const i32 lanes = lanes_at(c, block * 16 + lane);
        const long step = p->m_step / LANES;
        const f32* q = (const f32*)(m + lane);
UNROLL
        for (int j = 0; j < s; j++) finish_line(t, stride, q + j * step, s * step, e + j, s);
UNROLL
        for (int i = 0; i < t; i++) finish_line(t, stride, e + i * s, 1, o + i * t, 1);
#define PUT(i, j)                                                                    \
    do {                                                                             \
        const long offset = to + i * row + j * 16 + lane;                            \
        f32 a = o[i * t + j] + bias;                                                 \
        if (p->residual) a += *(const f32*)(p->residual + offset);                   \
        a = clip(a, p->low, p->high);                                                \
        *(f32*)(p->y + offset) = (f32)((i32)a & lanes);                              \
    } while (0)
        if (rows == t && columns == t)
UNROLL
            for (int i = 0; i < t; i++)
UNROLL
                for (int j = 0; j < t; j++) PUT(i, j);
        else
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < columns; j++) PUT(i, j);
#undef PUT
    }
}

static void transform_any(const plan_t* p, int t, long blocks, long first, long tiles, float* v) {
    for (long b = 0; b < blocks; b++) {
        place_t at = place_of(p, t, first);
        for (long i = 0; i < tiles; i++, go_on(p, t, &at)) {
            float* to = v + (b * p->block + i) * 16;
            if (t == 2) transform(2, 1, p, b, at, to);
            else if (p->c->stride[0] == 2) transform(4, 2, p, b, at, to);
            else transform(4, 1, p, b, at, to);
        }
    }
}

static void finish_any(const plan_t* p, int t, const part_t* part, long first, long tiles,
                       const float* m) {
    for (long b = part->first; b < part->last; b++) {
        place_t at = place_of(p, t, first);
        for (long i = 0; i < tiles; i++, go_on(p, t, &at)) {
            const float* from = m + ((b - part->first) * p->block + i) * 16;
            if (t == 2) finish(2, 1, p, b, at, from);
            else if (p->c->stride[0] == 2) finish(4, 2, p, b, at, from);
            else finish(4, 1, p, b, at, from);
        }
    }
}

int CAT(winograd, ISA)(const conv16_t* c, int t, const float* x, const float* packed,
                       const epilogue16_t* e, float* y, int nth) {
    const long in = BLOCKS(c->channels), out = BLOCKS(c->out_channels);
    const long side = SIDE(t, c->stride[0]), s2 = side * side, kinds = (t + 2l) * (t + 2);
    plan_t p = {.c = c, .x = x, .packed = packed, .bias = e->bias, .residual = e->residual, .y = y,
                .low = e->low, .high = e->high, .y_image = y_image(c, e)};
    p.down = DIVIDE_UP(c->out[0], t);
    p.across = DIVIDE_UP(c->out[1], t);
    p.tiles = c->batch * p.down * p.across;
    nth = threads_for((double)p.tiles * s2 * c->channels * c->out_channels, nth);
    const long tile_bytes = s2 * 16 * sizeof(float); /* of a block of channels */
    const long filter_bytes = kinds * c->channels * c->out_channels * sizeof(float);
    const long pays = MIN_TILES * kinds / s2 / (filter_bytes <= FILTER_BYTES ? 2 : 1);
    const long fit = MAX(pays, V_BYTES / (tile_bytes * in));
    long blocks = MAX((p.tiles + fit / 2) / fit, MIN(nth, p.tiles / pays));
    blocks = MAX(1, blocks);
    const long wide = MAX(1, PANEL / 16), wides = DIVIDE_UP(out, wide); /* blocks of whole panels */
    /* All threads read all filters of few tiles where that costs less than to transform tiles for all
     * of them, or where panels cannot be shared out evenly. */
    if (p.tiles >= THREAD_TILES * (long)nth &&
        (c->out_channels <= 4 * p.tiles || (wides % nth && wides < 8 * nth)))
        blocks = MAX(blocks, nth);
    if (blocks > 1) blocks = DIVIDE_UP(blocks, nth) * nth;
    p.block = DIVIDE_UP(p.tiles, blocks);
    blocks = DIVIDE_UP(p.tiles, p.block);
    const long wanted = blocks < nth ? DIVIDE_UP(2l * nth, blocks) : 1;
    const long m_bytes = MAX(M_BYTES, in * p.block * tile_bytes / 2);
    const long chunks = MIN(wides, MAX(wanted, out * p.block * tile_bytes / m_bytes));
    p.v_step = in * p.block * 16 + 16; /* 16 more: products lie in different sets of the cache */
    p.m_step = DIVIDE_UP(wides, chunks) * wide * p.block * 16 + 16;
    const size_t bytes = s2 * (p.v_step + p.m_step) * sizeof(float);

    long* at = kernels_scratch(0, in * sizeof(long));
    if (!at) return -1;
    for (long i = 0; i < in; i++) at[i] = i * p.block * 16;
    p.at = at;

    int failed = 0;
    const long count = blocks * chunks;
    stretch_t work[nth];
    share_out(count, nth, work);
#pragma omp parallel num_threads(nth) if (nth > 1)
    {
        float* v = kernels_scratch(1, bytes);
        float* m = v + s2 * p.v_step;
        long transformed = -1;
        for (long i = -1; (i = take(i, count, nth, work)) >= 0;) {
            const long b = i / chunks, chunk = i % chunks;
            const long first = b * p.block, tiles = MIN(p.block, p.tiles - first);
            const part_t part = {chunk * wides / chunks * wide,
                                 MIN(out, (chunk + 1) * wides / chunks * wide)};
            note(&failed, !v);
            if (!v) continue;
            if (b != transformed) transform_any(&p, t, in, first, tiles, v);
            transformed = b;
            for (long k = 0; k < s2; k++) multiply(&p, t, k, &part, tiles, v, m);
            finish_any(&p, t, &part, first, tiles, m);
        }
    }
    return failed ? -1 : 0;
}

/* The rows of G: a filter line g to s values. */
#define AT(a, n) {1 / (n), (a) / (n), (double)(a) * (a) / (n)}
#define N(a, b) (2. * (a) * (a) * ((a) * (a) - (b) * (b)))
static const double G4[6][3] = {{1. / P2 / Q2, 0, 0}, AT(P, N(P, Q)), AT(-P, N(P, Q)),
                                AT(Q, N(Q, P)), AT(-Q, N(Q, P)), {0, 0, 1}};
#define M(a, b, c) {1 / (((a) - (b)) * ((a) - (c)) * (a)), 0, 1 / (((a) - (b)) * ((a) - (c)))}
static const double G4_2[6][3] = {{1. / (A * A * B), 0, 0}, M(A, -A, B), M(-A, A, B), M(B, A, -A),
                                  {0, 0, 1}, {0, 1, 0}};
static const double G2[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};

void CAT(winograd_pack, ISA)(const conv16_t* c, int t, const filters_t* f, float* packed, int nth) {
    const int s = t + 2;
    const double(*G)[3] = t == 2 ? G2 : c->stride[0] == 2 ? G4_2 : G4;
    const long padded = 16 * BLOCKS(c->out_channels), depth = c->channels;
#pragma omp parallel for num_threads(nth) if (nth > 1) schedule(static)
    for (long first = 0; first < padded; first += PANEL) {
        const long width = MIN(PANEL, padded - first);
        float taps[9 * 16 * PANEL];
        for (long k = 0; k < depth; k++) {
            const long among = k % 16, channels = MIN(16, depth - k + among);
            if (!among) CAT(conv16_gather, ISA)(c, f, 0, first, width, k, channels, taps);
            const float* g = taps + among * width;
            const long row = 3 * channels * width, column = channels * width;
            double lines[6][3][PANEL];
            for (int i = 0; i < s; i++)
                for (int j = 0; j < 3; j++)
                    for (long o = 0; o < width; o++) {
                        const float* q = g + j * column + o;
                        lines[i][j][o] = G[i][0] * q[0] + G[i][1] * q[row] + G[i][2] * q[2 * row];
                    }
            float* to = packed + first * depth + k * width;
            for (int i = 0; i < s; i++)
                for (int j = 0; j < s; j++, to += padded * depth)
                    for (long o = 0; o < width; o++)
                        to[o] = (float)(lines[i][0][o] * G[j][0] + lines[i][1][o] * G[j][1] +
                                        lines[i][2][o] * G[j][2]);
        }
    }
}

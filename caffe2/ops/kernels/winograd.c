/* Winograd convolution of blocked images: 3x3, stride 1.
 *
 * F(t x t, 3 x 3), t = 4 or 2, turns a patch of side t + 2 = s into s * s products for t * t
 * pixels, a quarter (4 / 9) of what they take directly. A block of tiles goes through three steps:
 *   transform   patches of the image to   v[s * s][block of 16 channels][tile][16]
 *   multiply    for each of the s * s, by the transformed filters, to m[s * s][block][tile][16]
 *   finish      m to pixels, with bias, residual and bounds
 * A thread does a block from start to end, so that v and m stay in its cache. Where there are fewer
 * blocks than threads, each does it for some of the output channels: it is cheaper to transform the
 * image twice than to wait for, and to fetch, what another processor transformed. */
#include "conv16.h"
#include "share.h"

#define V_BYTES (1l << 20)        /* of a block of tiles, unless it had too few to pay */
#define M_BYTES (384l << 10)      /* of the output channels that are computed together */
#define MIN_TILES 48              /* reads of the filters: each is used that often */
#define FILTER_BYTES (768l << 10)

typedef struct {
    const conv16_t* c;
    const float *x, *packed, *bias, *residual;
    const int32_t* keep;
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

/* One patch line: B^T d. */
INLINE void transform_line(const int t, const f32* d, const int step, f32* o, const int to) {
    if (t == 2) {
        o[0] = d[0] - d[2 * step];
        o[to] = d[step] + d[2 * step];
        o[2 * to] = d[2 * step] - d[step];
        o[3 * to] = d[step] - d[3 * step];
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
INLINE void finish_line(const int t, const f32* m, const int step, f32* o, const int to) {
    const f32 p = m[step] + m[2 * step], q = m[step] - m[2 * step];
    if (t == 2) {
        o[0] = m[0] + p;
        o[to] = q - m[3 * step];
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

/* One block of channels of one tile. */
INLINE void transform(const int t, const plan_t* p, long block, long tile, float* v) {
    const conv16_t* c = p->c;
    const int s = t + 2, height = c->size[0], width = c->size[1];
    const place_t at = place_of(p, t, tile);
    const long y = at.y - c->pad[0], x = at.x - c->pad[1];
    const float* from =
        p->x + ((at.image * BLOCKS(c->channels) + block) * height + y) * width * 16 + x * 16;
    const int inside = y >= 0 && x >= 0 && y + s <= height && x + s <= width;
    for (int lane = 0; lane < 16; lane += LANES) {
        f32 d[36], e[36];
        if (inside) {
UNROLL
            for (int i = 0; i < s; i++)
UNROLL
                for (int j = 0; j < s; j++)
                    d[i * s + j] = *(const f32*)(from + (i * (long)width + j) * 16 + lane);
        } else
            for (int i = 0; i < s; i++)
                for (int j = 0; j < s; j++) {
                    const int here = y + i >= 0 && y + i < height && x + j >= 0 && x + j < width;
                    d[i * s + j] = here ? *(const f32*)(from + (i * (long)width + j) * 16 + lane)
                                        : (f32){0};
                }
UNROLL
        for (int j = 0; j < s; j++) transform_line(t, d + j, s, e + j, s);
UNROLL
        for (int i = 0; i < s; i++) transform_line(t, e + i * s, 1, d + i * s, 1);
UNROLL
        for (int i = 0; i < s * s; i++) *(f32*)(v + i * p->v_step + lane) = d[i];
    }
}

/* Blocks of 16 output channels that are computed together: whole panels. */
typedef struct {
    long first, last;
} part_t;

/* One of the s * s products of a block of tiles with the filters of a part. */
static void multiply(const plan_t* p, long product, const part_t* part, long tiles, const float* v,
                     float* m) {
    const conv16_t* c = p->c;
    const long padded = 16 * BLOCKS(c->out_channels), first = part->first * 16;
    const long last = MIN(part->last * 16, padded), passes = DIVIDE_UP(tiles, PIXELS);
    reduction_t sum = {.taps = BLOCKS(c->channels), .full = c->channels / 16,
                       .tail = c->channels % 16, .at = p->at};
    const finish_t finish = {.vector = LANES == 16 ? p->block * 16 : LANES};
    v += product * p->v_step;
    m += product * p->m_step;
    for (long channel = first; channel < last; channel += PANEL) {
        const int vectors = (int)MIN(2, (last - channel) / LANES);
        const float* w = p->packed + (product * padded + channel) * c->channels;
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
INLINE void finish(const int t, const plan_t* p, long block, long tile, const float* m) {
    const conv16_t* c = p->c;
    const int s = t + 2;
    const place_t at = place_of(p, t, tile);
    const int rows = MIN(t, c->out[0] - at.y), columns = MIN(t, c->out[1] - at.x);
    const long to = at.image * p->y_image +
                    ((block * c->out[0] + at.y) * c->out[1] + at.x) * 16;
    for (int lane = 0; lane < 16; lane += LANES) {
        f32 d[36], e[24], o[16];
        const f32 bias = *(const f32*)(p->bias + block * 16 + lane);
        const i32 keep = *(const i32*)(p->keep + block * 16 + lane);
UNROLL
        for (int i = 0; i < s * s; i++) d[i] = *(const f32*)(m + i * p->m_step + lane);
UNROLL
        for (int j = 0; j < s; j++) finish_line(t, d + j, s, e + j, s);
UNROLL
        for (int i = 0; i < t; i++) finish_line(t, e + i * s, 1, o + i * t, 1);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < columns; j++) {
                const long offset = to + (i * (long)c->out[1] + j) * 16 + lane;
                f32 a = o[i * t + j] + bias;
                if (p->residual) a += *(const f32*)(p->residual + offset);
                a = clip(a, p->low, p->high);
                *(f32*)(p->y + offset) = (f32)((i32)a & keep);
            }
    }
}

static void transform_any(const plan_t* p, int t, long blocks, long first, long tiles, float* v) {
    for (long b = 0; b < blocks; b++)
        for (long i = 0; i < tiles; i++) {
            float* to = v + (b * p->block + i) * 16;
            if (t == 4) transform(4, p, b, first + i, to);
            else transform(2, p, b, first + i, to);
        }
}

static void finish_any(const plan_t* p, int t, const part_t* part, long first, long tiles,
                       const float* m) {
    for (long b = part->first; b < part->last; b++)
        for (long i = 0; i < tiles; i++) {
            const float* at = m + ((b - part->first) * p->block + i) * 16;
            if (t == 4) finish(4, p, b, first + i, at);
            else finish(2, p, b, first + i, at);
        }
}

int CAT(winograd, ISA)(const conv16_t* c, int t, const float* x, const float* packed,
                       const epilogue16_t* e, float* y, int nth) {
    const long in = BLOCKS(c->channels), out = BLOCKS(c->out_channels), s2 = (t + 2l) * (t + 2);
    plan_t p = {.c = c, .x = x, .packed = packed, .residual = e->residual, .y = y, .low = e->low,
                .high = e->high, .y_image = y_image(c, e)};
    p.down = DIVIDE_UP(c->out[0], t);
    p.across = DIVIDE_UP(c->out[1], t);
    p.tiles = c->batch * p.down * p.across;
    nth = threads_for((double)p.tiles * s2 * c->channels * c->out_channels, nth);
    const long tile_bytes = s2 * 16 * sizeof(float); /* of a block of channels */
    const long fit = MAX(MIN_TILES, V_BYTES / (tile_bytes * in));
    const long pays = 4 * s2 * c->channels * c->out_channels <= FILTER_BYTES ? MIN_TILES / 2 : MIN_TILES;
    long blocks = MAX((p.tiles + fit / 2) / fit, MIN(nth, p.tiles / pays));
    blocks = MAX(1, blocks);
    if (blocks > 1) blocks = DIVIDE_UP(blocks, nth) * nth;
    p.block = DIVIDE_UP(p.tiles, blocks);
    blocks = DIVIDE_UP(p.tiles, p.block);
    const long wide = MAX(1, PANEL / 16), wides = DIVIDE_UP(out, wide); /* blocks of whole panels */
    const long wanted = blocks < nth ? DIVIDE_UP(2l * nth, blocks) : 1;
    const long m_bytes = MAX(M_BYTES, in * p.block * tile_bytes / 2);
    const long chunks = MIN(wides, MAX(wanted, out * p.block * tile_bytes / m_bytes));
    p.v_step = in * p.block * 16 + 16; /* 16 more: products lie in different sets of the cache */
    p.m_step = DIVIDE_UP(wides, chunks) * wide * p.block * 16 + 16;
    const size_t bytes = s2 * (p.v_step + p.m_step) * sizeof(float);

    float* bias = kernels_scratch(0, out * 16 * 8 + in * sizeof(long));
    if (!bias) return -1;
    int32_t* keep = (int32_t*)(bias + out * 16);
    long* at = (long*)(keep + out * 16);
    for (long i = 0; i < 16 * out; i++) {
        bias[i] = e->bias && i < c->out_channels ? e->bias[i] : 0;
        keep[i] = -(i < c->out_channels);
    }
    for (long i = 0; i < in; i++) at[i] = i * p.block * 16;
    p.bias = bias;
    p.keep = keep;
    p.at = at;

    int failed = 0;
    stretch_t work[nth];
    share_out(blocks * chunks, nth, work);
#pragma omp parallel num_threads(nth) if (nth > 1) reduction(| : failed)
    {
        float* v = kernels_scratch(1, bytes);
        float* m = v + s2 * p.v_step;
        long transformed = -1;
        for (long i; (i = take(nth, work)) >= 0;) {
            const long b = i / chunks, chunk = i % chunks;
            const long first = b * p.block, tiles = MIN(p.block, p.tiles - first);
            const part_t part = {chunk * wides / chunks * wide,
                                 MIN(out, (chunk + 1) * wides / chunks * wide)};
            if (!v) {
                failed = 1;
                continue;
            }
            if (b != transformed) transform_any(&p, t, in, first, tiles, v);
            transformed = b;
            for (long k = 0; k < s2; k++) multiply(&p, k, &part, tiles, v, m);
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
static const double G2[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};

void CAT(winograd_pack, ISA)(const conv16_t* c, int t, const filters_t* f, float* packed, int nth) {
    const int s = t + 2;
    const double(*G)[3] = t == 4 ? G4 : G2;
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

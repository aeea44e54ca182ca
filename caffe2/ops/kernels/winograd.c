/* Winograd convolution of blocked images: 3x3, stride 1 or 2.
 *
 * F(t x t, 3 x 3), t = 4 or 2, turns a patch of side t + 2 = s into s * s products for t * t
 * pixels, a quarter (4 / 9) of what they take directly. With stride 2 the even places of a line see
 * the outer two taps, F(4, 2), and the odd ones the middle tap, as they are: 9 products for 4
 * pixels, 9 / 16 of what they take directly. At the border of an image that t does not divide, tiles
 * of fewer pixels m take F(m, 3), which interpolates at some of the same points, so that they meet
 * the same filters but not all of them. A block of tiles goes through three steps:
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
    int low_rows, narrow_columns; /* of the last tiles along each axis */
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

#define MAX_SIDE WINOGRAD_SIDE(4, 2)

/* Whether tiles of m pixels along an axis, at most t, make its product i. */
INLINE int makes(int t, int stride, int m, long i) {
    if (stride == 1) return i == t + 1 || i <= m;
    return i == t || i % (t + 1) < m;
}

/* One patch line: B^T d, of m pixels. Product i is the polynomial with zeros at the other points that m
 * pixels need, times what makes up for the filter, which was divided by the distances to all points.
 * E: the even places of stride 2. */
INLINE void transform_line(const int t, const int stride, const int m, const f32* d, const int step,
                           f32* o, const int to) {
#define D(i) d[(i) * step]
#define E(i) d[2 * (i) * step]
#define O(i) o[(i) * to]
    if (stride == 2) {
UNROLL
        for (int i = 0; i < 4; i++)
            if (i < m) O(5 + i) = D(2 * i + 1);
    }
    if (t == 2) {
        O(1) = D(1) + (m == 2 ? D(2) : D(1));
        O(0) = D(0) - D(m);
        if (m == 2) O(2) = D(2) - D(1);
        O(3) = D(1) - D(m + 1);
    } else if (stride == 2 && m == 4) {
        const f32 a = E(3) - B * E(2), b = E(2) - B * E(1);
        O(0) = a - A * A * (E(1) - B * E(0));
        O(1) = a + A * b;
        O(2) = a - A * b;
        O(3) = E(3) - A * A * E(1);
        O(4) = E(4) - B * E(3) - A * A * b;
    } else if (stride == 2 && m == 3) {
        O(0) = B * (A * A * E(0) - E(2));
        O(1) = (A - B) * (E(2) + A * E(1));
        O(2) = (A + B) * (A * E(1) - E(2));
        O(4) = E(3) - A * A * E(1);
    } else if (stride == 2 && m == 2) {
        O(0) = A * B * (A * E(0) - E(1));
        O(1) = 2 * A * (A - B) * E(1);
        O(4) = E(2) - A * E(1);
    } else if (stride == 2) {
        O(0) = A * A * B * E(0);
        O(4) = E(1);
    } else if (m == 4) {
        const f32 a = D(4) - Q2 * D(2), b = P * (D(3) - Q2 * D(1));
        const f32 e = D(4) - P2 * D(2), f = Q * (D(3) - P2 * D(1));
        O(0) = P2 * Q2 * D(0) - (P2 + Q2) * D(2) + D(4);
        O(1) = a + b;
        O(2) = a - b;
        O(3) = e + f;
        O(4) = e - f;
        O(5) = P2 * Q2 * D(1) - (P2 + Q2) * D(3) + D(5);
    } else if (m == 3) {
        const f32 a = D(3) - P2 * D(1), b = D(2) - Q * D(1), e = D(3) - Q * D(2);
        O(0) = Q * (a - Q * (D(2) - P2 * D(0)));
        O(1) = (Q + P) * (e + P * b);
        O(2) = (Q - P) * (e - P * b);
        O(3) = 2 * Q * a;
        O(5) = D(4) - Q * D(3) - P2 * b;
    } else if (m == 2) {
        O(0) = Q2 * (P2 * D(0) - D(2));
        O(1) = (P2 - Q2) * (D(2) + P * D(1));
        O(2) = (P2 - Q2) * (D(2) - P * D(1));
        O(5) = D(3) - P2 * D(1);
    } else {
        O(0) = P * Q2 * (P * D(0) - D(1));
        O(1) = 2 * P * (P2 - Q2) * D(1);
        O(5) = D(2) - P * D(1);
    }
#undef D
#undef E
#undef O
}

/* One line of products: A^T m, m pixels. */
INLINE void finish_line(const int t, const int stride, const int m, const f32* d, const long step,
                        f32* o, const int to) {
#define D(i) d[(i) * step]
#define O(i) o[(i) * to]
    if (t == 2) {
        O(0) = D(0) + D(1) + (m == 2 ? D(2) : -D(3));
        if (m == 2) O(1) = D(1) - D(2) - D(3);
        return;
    }
    const int points = m - (stride == 2); /* other than 0 and infinity */
    const float x = stride == 2 ? A : P, y = stride == 2 ? B : Q;
    const f32 zero = {0}, first = points > 0 ? D(1) : zero, third = points > 2 ? D(3) : zero;
    const f32 p = points > 1 ? D(1) + D(2) : first, q = points > 1 ? D(1) - D(2) : first;
    const f32 r = points > 3 ? D(3) + D(4) : third, u = points > 3 ? D(3) - D(4) : third;
    O(0) = D(0) + p + r;
    if (m > 1) O(1) = x * q + y * u;
    if (m > 2) O(2) = x * x * p + y * y * r;
    if (m > 3) O(3) = x * x * x * q + y * y * y * u;
    O(m - 1) += stride == 2 ? D(4) : D(5);
    if (stride == 2)
UNROLL
        for (int i = 0; i < 4; i++)
            if (i < m) O(i) += D(5 + i);
#undef D
#undef O
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

/* Sorts the tiles of a block: low ones (the last row of pixels may be lower), whole ones, narrow ones,
 * and those that are both. Each kind begins at starts[kind], so that each product is of tiles that
 * follow each other. */
static void sort(const plan_t* p, int t, long first, long tiles, place_t* places, long* starts) {
    long count[4] = {0};
    place_t at = place_of(p, t, first);
#define KIND                                                                          \
    (at.y + t > p->c->out[0] ? (at.x + t > p->c->out[1] ? 3 : 0) : at.x + t > p->c->out[1] ? 2 : 1)
    for (long i = 0; i < tiles; i++, go_on(p, t, &at)) count[KIND]++;
    starts[0] = 0;
    for (int k = 0; k < 4; k++) {
        starts[k + 1] = starts[k] + count[k];
        count[k] = starts[k];
    }
    at = place_of(p, t, first);
    for (long i = 0; i < tiles; i++, go_on(p, t, &at)) places[count[KIND]++] = at;
#undef KIND
}

/* One block of channels of one tile, of rows x columns pixels. */
INLINE void transform(const int t, const int stride, const int rows, const int columns,
                      const plan_t* p, long block, place_t at, float* v) {
    const conv16_t* c = p->c;
    const int s = WINOGRAD_SIDE(t, stride), height = c->size[0], width = c->size[1];
    const int high = WINOGRAD_SIDE(rows, stride), wide = WINOGRAD_SIDE(columns, stride);
    const int y = at.y * stride - c->pad[0], x = at.x * stride - c->pad[1];
    const float* from =
        p->x + (((at.image * BLOCKS(c->channels) + block) * height + y) * width + x) * 16;
    const int inside = x >= 0 && x + wide <= width;
    static const float border[16] __attribute__((aligned(64)));
    for (int lane = 0; lane < 16; lane += LANES) {
        f32 d[MAX_SIDE * MAX_SIDE], e[MAX_SIDE * MAX_SIDE];
        for (int i = 0; i < high; i++) {
            const float* q = from + i * (16l * width) + lane;
            f32* line = d + i * s;
            if (y + i < 0 || y + i >= height)
UNROLL
                for (int j = 0; j < s; j++) line[j] = (f32){0};
            else if (inside) {
                transform_line(t, stride, columns, (const f32*)q, 16 / LANES, line, 1);
            } else {
UNROLL
                for (int j = 0; j < s; j++)
                    if (j < wide) e[j] = *(const f32*)(x + j >= 0 && x + j < width ? q + j * 16 : border);
                transform_line(t, stride, columns, e, 1, line, 1);
            }
        }
UNROLL
        for (int j = 0; j < s; j++)
            if (makes(t, stride, columns, j)) transform_line(t, stride, rows, d + j, s, e + j, s);
UNROLL
        for (int i = 0; i < s * s; i++)
            if (makes(t, stride, rows, i / s) && makes(t, stride, columns, i % s))
                *(f32*)(v + i * p->v_step + lane) = e[i];
    }
}

/* Blocks of 16 output channels that are computed together: whole panels. */
typedef struct {
    long first, last;
} part_t;

/* One of the s * s products of a block of tiles with the filters of a part; all odd places of
 * stride 2 meet the same filters, along each axis. */
static void multiply(const plan_t* p, int t, long product, const part_t* part, const long* starts,
                     const float* v, float* m) {
    const conv16_t* c = p->c;
    const long side = WINOGRAD_SIDE(t, c->stride[0]), last_kind = t + 1;
    const int low = makes(t, c->stride[0], p->low_rows, product / side);
    const int narrow = makes(t, c->stride[0], p->narrow_columns, product % side);
    const long tile_0 = low ? 0 : starts[1];
    const long tiles = (narrow ? starts[low ? 4 : 3] : starts[2]) - tile_0;
    const long padded = 16 * BLOCKS(c->out_channels), first = part->first * 16;
    const long last = MIN(part->last * 16, padded), passes = DIVIDE_UP(tiles, PIXELS);
    if (!passes) return;
    const cuts_t pixels = cuts_of(tiles, passes, 0);
    reduction_t sum = {.taps = BLOCKS(c->channels), .full = c->channels / 16,
                       .tail = c->channels % 16, .at = p->at};
    const finish_t finish = {.vector = LANES == 16 ? p->block * 16 : LANES};
    const long kind = MIN(product / side, last_kind) * (t + 2) + MIN(product % side, last_kind);
    v += product * p->v_step + tile_0 * 16;
    m += product * p->m_step + tile_0 * 16;
    for (long channel = first; channel < last; channel += PANEL) {
        const int vectors = (int)MIN(2, (last - channel) / LANES);
        const float* w = p->packed + (kind * padded + channel) * c->channels;
        const long skip = channel + PANEL < last ? 0 : padded - last + first;
        const float* next = w + (vectors * LANES + skip) * c->channels;
        float* y = m + (channel - first) / 16 * p->block * 16 + channel % 16;
        const long share = MAX(1, vectors * LANES / passes);
        cuts_t cut = pixels;
        for (long i = 0; i < passes; i++) {
            const long from = cut.at, to = next_cut(&cut);
            fetch_later(&sum, next, vectors * LANES, c->channels, i, share);
            CAT(conv16_tile, ISA)(TILE_PLAIN, vectors, 1, (int)(to - from))(
                &sum, v + from * 16, 0, w, y + from * 16, &finish);
        }
    }
}

/* One block of output channels of one tile. */
INLINE void finish(const int t, const int stride, const int rows, const int columns, const plan_t* p,
                   long block, place_t at, const float* m) {
    const conv16_t* c = p->c;
    const int s = WINOGRAD_SIDE(t, stride);
    const long row = 16l * c->out[1];
    const long to = at.image * p->y_image + (block * c->out[0] + at.y) * row + at.x * 16;
    for (int lane = 0; lane < 16; lane += LANES) {
        f32 e[4 * MAX_SIDE], o[16];
        const f32 bias = bias_at(c, p->bias, block * 16 + lane);
        const i32 lanes = lanes_at(c, block * 16 + lane);
        const long step = p->m_step / LANES;
        const f32* q = (const f32*)(m + lane);
UNROLL
        for (int j = 0; j < s; j++)
            if (makes(t, stride, columns, j))
                finish_line(t, stride, rows, q + j * step, s * step, e + j, s);
UNROLL
        for (int i = 0; i < t; i++)
            if (i < rows) finish_line(t, stride, columns, e + i * s, 1, o + i * t, 1);
UNROLL
        for (int i = 0; i < t; i++)
UNROLL
            for (int j = 0; j < t; j++)
                if (i < rows && j < columns) {
                    const long offset = to + i * row + j * 16 + lane;
                    f32 a = o[i * t + j] + bias;
                    if (p->residual) a += *(const f32*)(p->residual + offset);
                    a = clip(a, p->low, p->high);
                    *(f32*)(p->y + offset) = (f32)((i32)a & lanes);
                }
    }
}

/* f(t, stride, rows, columns, ...) of a tile; whole tiles have code of their own. */
#define EACH_SIZE(f, t, stride, rows, columns, ...)                           \
    do {                                                                      \
        if ((rows) == (t) && (columns) == (t)) f(t, stride, t, t, __VA_ARGS__); \
        else f(t, stride, rows, columns, __VA_ARGS__);                        \
    } while (0)
#define EACH_WAY(f, p, t, at, ...)                                                    \
    do {                                                                              \
        const int rows = MIN(t, (p)->c->out[0] - (at).y);                             \
        const int columns = MIN(t, (p)->c->out[1] - (at).x);                          \
        if ((t) == 2) EACH_SIZE(f, 2, 1, rows, columns, p, __VA_ARGS__);              \
        else if ((p)->c->stride[0] == 2) EACH_SIZE(f, 4, 2, rows, columns, p, __VA_ARGS__); \
        else EACH_SIZE(f, 4, 1, rows, columns, p, __VA_ARGS__);                       \
    } while (0)

static void transform_any(const plan_t* p, int t, long blocks, const place_t* places, long tiles,
                          float* v) {
    for (long b = 0; b < blocks; b++)
        for (long i = 0; i < tiles; i++)
            EACH_WAY(transform, p, t, places[i], b, places[i], v + (b * p->block + i) * 16);
}

static void finish_any(const plan_t* p, int t, const part_t* part, const place_t* places, long tiles,
                       const float* m) {
    for (long b = part->first; b < part->last; b++)
        for (long i = 0; i < tiles; i++)
            EACH_WAY(finish, p, t, places[i], b, places[i],
                     m + ((b - part->first) * p->block + i) * 16);
}

int CAT(winograd, ISA)(const conv16_t* c, int t, const float* x, const float* packed,
                       const epilogue16_t* e, float* y, int nth) {
    const long in = BLOCKS(c->channels), out = BLOCKS(c->out_channels);
    const long side = WINOGRAD_SIDE(t, c->stride[0]), s2 = side * side, kinds = (t + 2l) * (t + 2);
    plan_t p = {.c = c, .x = x, .packed = packed, .bias = e->bias, .residual = e->residual, .y = y,
                .low = e->low, .high = e->high, .y_image = y_image(c, e)};
    p.down = DIVIDE_UP(c->out[0], t);
    p.across = DIVIDE_UP(c->out[1], t);
    p.tiles = c->batch * p.down * p.across;
    p.low_rows = (int)(c->out[0] - (p.down - 1) * t);
    p.narrow_columns = (int)(c->out[1] - (p.across - 1) * t);
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
    const size_t bytes = s2 * (p.v_step + p.m_step) * sizeof(float) + p.block * sizeof(place_t);

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
        place_t* places = (place_t*)(m + s2 * p.m_step);
        long transformed = -1, starts[5];
        for (long i = -1; (i = take(i, count, nth, work)) >= 0;) {
            const long b = i / chunks, chunk = i % chunks;
            const long first = b * p.block, tiles = MIN(p.block, p.tiles - first);
            const part_t part = {chunk * wides / chunks * wide,
                                 MIN(out, (chunk + 1) * wides / chunks * wide)};
            note(&failed, !v);
            if (!v) continue;
            if (b != transformed) {
                sort(&p, t, first, tiles, places, starts);
                transform_any(&p, t, in, places, tiles, v);
            }
            transformed = b;
            for (long k = 0; k < s2; k++) multiply(&p, t, k, &part, starts, v, m);
            finish_any(&p, t, &part, places, tiles, m);
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

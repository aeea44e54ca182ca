/* Windows of images, for one element type; gemm_template.h includes it. In NCHW the columns of the
 * matrix are pixels, and pixels that follow each other are cut into pieces of one image line each:
 * a piece lies `stride` apart in memory for every row of the matrix. */
#ifndef CAFFE2_PIECES
#define CAFFE2_PIECES

typedef struct {
    long at;      /* of its first pixel under the first tap, from the start of the channel */
    int z, y, x;  /* position of that pixel; may lie outside */
    int column, n;
    int inside;   /* under every tap all of its pixels lie inside the image */
} piece_t;

/* Pieces of n columns from the cursor on, which moves behind them; none crosses a multiple of `cut`
 * columns. */
static long pieces_of(const image_t* g, cursor_t* at, long n, long cut, piece_t* p) {
    cursor_t c = *at;
    int reach[3];
    long count = 0;
    for (int i = 0; i < 3; i++) reach[i] = (g->kernel[i] - 1) * g->dilation[i];
    for (long column = 0; column < n; count++, p++) {
        const long left = MIN(n - column, cut - column % cut);
        p->column = (int)column;
        p->n = (int)MIN(left, g->out[2] - c.at[2]);
        p->z = c.at[0] * g->stride[0] - g->pad[0];
        p->y = c.at[1] * g->stride[1] - g->pad[1];
        p->x = c.at[2] * g->stride[2] - g->pad[2];
        p->at = c.image * g->batch_stride + ((long)p->z * g->size[1] + p->y) * g->size[2] + p->x;
        p->inside = p->z >= 0 && p->y >= 0 && p->x >= 0 && p->z + reach[0] < g->size[0] &&
                    p->y + reach[1] < g->size[1] &&
                    (long)p->x + (long)(p->n - 1) * g->stride[2] + reach[2] < g->size[2];
        column += p->n;
        if ((c.at[2] += p->n) == g->out[2]) {
            c.at[2] = 0;
            if (++c.at[1] == g->out[1]) {
                c.at[1] = 0;
                if (++c.at[0] == g->out[0]) {
                    c.at[0] = 0;
                    c.image++;
                }
            }
        }
    }
    *at = c;
    return count;
}

/* Whether all windows lie inside the image. */
static int is_inside(const image_t* g) {
    for (int i = 0; i < 3; i++)
        if (g->pad[i] > 0 || (g->out[i] - 1l) * g->stride[i] - g->pad[i] +
                                     (g->kernel[i] - 1l) * g->dilation[i] >= g->size[i])
            return 0;
    return 1;
}

/* Where a tap is, from the first one. */
INLINE long tap_offset(const image_t* g, const int* tap) {
    return ((long)tap[0] * g->dilation[0] * g->size[1] + (long)tap[1] * g->dilation[1]) * g->size[2] +
           (long)tap[2] * g->dilation[2];
}

/* Of a piece's pixels, *lo..*hi lie inside the image under a tap. */
INLINE void piece_inside(const image_t* g, const piece_t* p, const int* tap, long* lo, long* hi) {
    *lo = 0;
    *hi = p->n;
    if (p->inside) return;
    const int z = p->z + tap[0] * g->dilation[0], y = p->y + tap[1] * g->dilation[1];
    const long x = p->x + (long)tap[2] * g->dilation[2], s = g->stride[2];
    if ((unsigned)z >= (unsigned)g->size[0] || (unsigned)y >= (unsigned)g->size[1] || x >= g->size[2])
        *hi = 0;
    else if (x + (p->n - 1) * s >= g->size[2]) *hi = (g->size[2] - 1 - x) / s + 1;
    if (x < 0) *lo = MIN((-x + s - 1) / s, *hi);
}

/* The window, of an axis, that has a pixel so far behind its first one under the first tap; -1: none. */
INLINE int window_at(int pixel, int stride, int windows) {
    if (pixel < 0 || (stride > 1 && pixel % stride)) return -1; /* divisions take long */
    if (stride > 1) pixel /= stride;
    return pixel < windows ? pixel : -1;
}

/* Entries of a table of pieces under taps: more pieces than this are copied one by one. */
#define PIECES 256
#define GATHERED 32 /* widest kernel whose entries are gathered */
#define EVEN(q, l) (2 * (l)) /* lanes of two vectors, every second one */
#endif

/* Every second value. */
INLINE void FN(copy_even)(const REAL* x, long n, REAL* d) {
    for (; n > 0; n -= LANES, x += 2 * LANES, d += LANES) {
        const long m = MIN(n, LANES), last = 2 * m - 1;
        const V a = V_LOAD(x, V_FIRST(MIN(last, LANES))), b = V_LOAD(x + LANES, V_FIRST(MAX(last - LANES, 0)));
        V_STORE(d, SHUFFLE(V_INDEX, V_LANES, a, b, EVEN, 1), V_FIRST(m));
    }
}

/* Columns of one row, NCHW, piece by piece. */
static void FN(line)(const image_t* g, const REAL* x, const cursor_t* row, const piece_t* p, long count,
                     REAL* d) {
    const long s = g->stride[2];
    const REAL* from = x + row->channel * g->step + tap_offset(g, row->at);
    for (const piece_t* end = p + count; p < end; p++) {
        const REAL* q = from + p->at;
        REAL* to = d + p->column;
        long lo, hi;
        piece_inside(g, p, row->at, &lo, &hi);
        if (lo) FN(zero)(lo, to);
        if (s == 1) FN(copy)(q + lo, hi - lo, to + lo);
        else if (s == 2) FN(copy_even)(q + 2 * lo, hi - lo, to + lo);
        else
            for (long i = lo; i < hi; i++) to[i] = q[i * s];
        if (hi < p->n) FN(zero)(p->n - hi, to + hi);
    }
}

/* n columns of one row, NHWC: kd, kh, kw, channel of one window. */
static void FN(window)(const image_t* g, const REAL* x, const cursor_t* row, const cursor_t* first, long n,
                       REAL* d) {
    cursor_t tap = *first;
    const REAL* base = x + row->image * g->batch_stride;
    while (n > 0) {
        const long len = MIN(n, g->channels - tap.channel);
        long at = 0;
        int inside = 1;
        for (int i = 0; i < 3; i++) {
            const int p = row->at[i] * g->stride[i] - g->pad[i] + tap.at[i] * g->dilation[i];
            inside &= (unsigned)p < (unsigned)g->size[i];
            at = at * g->size[i] + p;
        }
        if (inside) FN(copy)(base + at * g->step + tap.channel, len, d);
        else FN(zero)(len, d);
        n -= len;
        d += len;
        tap.channel = 0;
        advance(tap.at, g->kernel);
    }
}

/* Rows from `first` on, `rows` of them, of columns from `column` on, at most KC, d[row * ld]. */
static void FN(lines)(const image_t* g, const REAL* x, long first, long rows, long column, long n, REAL* d,
                      long ld) {
    cursor_t row = row_of(g, first), c = column_of(g, column);
    piece_t pieces[KC];
    const long count = g->nhwc ? 0 : pieces_of(g, &c, n, KC, pieces);
    for (long i = 0; i < rows; i++, d += ld, next_row(g, &row)) {
        if (g->nhwc) FN(window)(g, x, &row, &c, n, d);
        else FN(line)(g, x, &row, pieces, count, d);
    }
}

#ifdef V_RANGE
typedef struct {
    long at;
    V_MASK m, behind; /* behind: the second of two vectors, for every second pixel */
} FN(load_t);

/* Up to NR columns, NCHW, as vectors: each is put together from a few masked loads, which are the
 * same in every channel and, where all windows lie inside the image, under every tap. */
typedef struct {
    FN(load_t) loads[PIECES]; /* [tap][vector][load] */
    long each, tap;           /* loads of a vector; from tap to tap */
    long size;                /* of all images */
} FN(pixels_t);

/* Whether there is room for the loads of any columns. */
static int FN(are_few)(const image_t* g) {
    const long line = MAX(1, g->out[2]), each = MIN(LANES, (LANES + line - 2) / line + 1);
    return !g->nhwc && g->stride[2] <= 2 && 2 * each * (is_inside(g) ? 1 : image_taps(g)) <= PIECES;
}

static void FN(find_pixels)(const image_t* g, cursor_t* first, long n, FN(pixels_t) * p) {
    piece_t pieces[NR];
    const long count = pieces_of(g, first, n, LANES, pieces);
    const long s = g->stride[2];
    FN(load_t)* l = p->loads;
    long each[2] = {0, 0};
    int inside = 1, tap[3] = {0, 0, 0};
    for (long i = 0; i < count; i++) {
        each[pieces[i].column / LANES]++;
        inside &= pieces[i].inside;
    }
    p->each = MAX(each[0], each[1]);
    p->size = (g->batch - 1) * g->batch_stride + g->channels * g->step;
    p->tap = inside ? 0 : p->each * (n > LANES ? 2 : 1);
    for (long t = inside ? 1 : image_taps(g); t > 0; t--, advance(tap, g->kernel)) {
        const piece_t* q = pieces;
        for (int v = 0; v * LANES < n; v++)
            for (long i = 0; i < p->each; i++, l++) {
                if (i >= each[v]) {
                    *l = (FN(load_t)){l[-1].at, V_RANGE(0, 0), V_RANGE(0, 0)};
                    continue;
                }
                long lo, hi;
                piece_inside(g, q, tap, &lo, &hi);
                const long lane = q->column % LANES, from = s * (lo + lane), some = hi - lo;
                const long to = some > 0 ? from + (some - 1) * s + 1 : from;
                l->at = q++->at - lane * s;
                l->m = V_RANGE(MIN(from, LANES), MIN(to, LANES));
                l->behind = V_RANGE(MAX(from - LANES, 0), MAX(to - LANES, 0));
            }
    }
}

INLINE V FN(gather)(const long each, const int every_second, const FN(pixels_t) * p, int v, const REAL* x,
                    long row, long tap) {
    const FN(load_t)* l = p->loads + tap * p->tap + v * each;
    V_INDEX all = {0};
    for (long i = 0; i < each; i++, l++) {
        const long at = row + l->at;
        const V a = V_LOAD_OF(x, p->size, at, l->m);
        if (every_second) {
            const V b = V_LOAD_OF(x, p->size, at + LANES, l->behind);
            all |= (V_INDEX)SHUFFLE(V_INDEX, V_LANES, a, b, EVEN, 1);
        } else all |= (V_INDEX)a;
    }
    return (V)all;
}

/* Where a row's pixels are under its tap: from the first tap of the first channel, and which tap it is. */
typedef struct {
    long at, tap;
} FN(row_t);

static void FN(find_rows)(const image_t* g, long first, long n, FN(row_t) * rows) {
    cursor_t c = row_of(g, first);
    const long taps = image_taps(g);
    for (long i = 0, tap = first % taps; i < MIN(n, taps); i++, next_row(g, &c)) {
        rows[i] = (FN(row_t)){c.channel * g->step + tap_offset(g, c.at), tap};
        tap = tap + 1 == taps ? 0 : tap + 1;
    }
    for (long i = taps; i < n; i++) rows[i] = (FN(row_t)){rows[i - taps].at + g->step, rows[i - taps].tap};
}

/* f is compiled for each small number of loads. */
#define BY_LOADS(g, p, f, ...)                                  \
    if ((g)->stride[2] == 2) f((p)->each, 1, __VA_ARGS__);      \
    else if ((p)->each == 1) f(1, 0, __VA_ARGS__);              \
    else if ((p)->each == 2) f(2, 0, __VA_ARGS__);              \
    else f((p)->each, 0, __VA_ARGS__)

INLINE void FN(gather_along)(const long each, const int every_second, const FN(pixels_t) * p, const REAL* x,
                             const FN(row_t) * rows, long n, int vectors, REAL* d) {
    for (const FN(row_t)* end = rows + n; rows < end; rows++, d += NR)
        for (int v = 0; v < vectors; v++)
            *(V*)(d + v * LANES) = FN(gather)(each, every_second, p, v, x, rows->at, rows->tap);
}

/* A panel of B. */
static void FN(pack_pixels)(const image_t* g, const REAL* x, long j0, long n, long k0, long kc, REAL* d) {
    cursor_t first = column_of(g, j0);
    FN(pixels_t) p;
    FN(row_t) rows[KC];
    FN(find_pixels)(g, &first, n, &p);
    FN(find_rows)(g, k0, kc, rows);
    BY_LOADS(g, &p, FN(gather_along), &p, x, rows, kc, n > LANES ? 2 : 1, d);
}

/* Vector v of LANES rows, of which n are there. */
INLINE void FN(gather_square)(const long each, const int every_second, const FN(pixels_t) * p, int v,
                              const REAL* x, const FN(row_t) * rows, long n, V* square) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        const FN(row_t)* r = rows + i;
        square[i] = i < n ? FN(gather)(each, every_second, p, v, x, r->at, r->tap) : (V){0};
    }
}

/* The same of the transposed matrix, or a panel of A. */
static void FN(pack_windows)(const image_t* g, const REAL* x, long j0, long n, long width, long k0,
                             long kc, REAL* d) {
    cursor_t column = column_of(g, k0);
    FN(pixels_t) p;
    FN(row_t) rows[NR];
    FN(find_rows)(g, j0, n, rows);
    for (long k = 0; k < kc; k += LANES) {
        const int v = k / LANES % 2;
        if (!v) FN(find_pixels)(g, &column, MIN(NR, kc - k), &p);
        for (long j = 0; j < n; j += LANES) {
            V square[LANES];
            BY_LOADS(g, &p, FN(gather_square), &p, v, x, rows + j, n - j, square);
            FN(store_turned)(square, MIN(kc - k, LANES), width, V_FIRST(MIN(width - j, LANES)),
                             d + k * width + j);
        }
    }
}
#endif

/* ---- the matrix itself --------------------------------------------------------------------- */

void FN(im2col)(const image_t* g, const REAL* x, REAL* columns, int nth) {
    const long rows = image_rows(g), n = image_columns(g), blocks = (n + KC - 1) / KC;
    /* rows of one channel (pixels of one image line) together */
    const long step = g->nhwc ? g->out[2] : image_taps(g), groups = step ? (rows + step - 1) / step : 0;
    nth = (int)MAX(1, MIN(nth, rows * n >> 15));
#pragma omp parallel for num_threads(nth) if (nth > 1) schedule(static)
    for (long t = 0; t < groups; t++)
        for (long b = 0; b < blocks; b++)
            FN(lines)(g, x, t * step, MIN(step, rows - t * step), b * KC, MIN(KC, n - b * KC),
                      columns + t * step * n + b * KC, n);
}

INLINE void FN(add)(const REAL* x, long n, REAL* d) {
    for (; n >= LANES; n -= LANES, x += LANES, d += LANES) *(V_ANY*)d += *(const V_ANY*)x;
    if (n > 0) {
        const V_MASK m = V_FIRST(n);
        V_STORE(d, V_LOAD(d, m) + V_LOAD(x, m), m);
    }
}

/* Entries of one channel, NCHW: the taps' lines are added one after the other. */
static void FN(add_channel)(const image_t* g, const REAL* columns, REAL* x) {
    const long s = g->stride[2], pixels = image_pixels(g), all = pixels * g->batch;
    int tap[3] = {0, 0, 0};
    for (long taps = image_taps(g); taps > 0; taps--, columns += all, advance(tap, g->kernel)) {
        const long left = (long)tap[2] * g->dilation[2] - g->pad[2];
        const long lo = left < 0 ? MIN(g->out[2], (-left + s - 1) / s) : 0;
        const long hi = left < g->size[2] ? MIN(g->out[2], (g->size[2] - 1 - left) / s + 1) : 0;
        if (lo >= hi) continue;
        const REAL* from = columns + lo;
        for (long i = 0; i < g->batch; i++)
            for (int d = 0; d < g->out[0]; d++)
                for (int h = 0; h < g->out[1]; h++, from += g->out[2]) {
                    const int z = d * g->stride[0] - g->pad[0] + tap[0] * g->dilation[0];
                    const int y = h * g->stride[1] - g->pad[1] + tap[1] * g->dilation[1];
                    if ((unsigned)z >= (unsigned)g->size[0] || (unsigned)y >= (unsigned)g->size[1]) continue;
                    REAL* to = x + i * g->batch_stride + ((long)z * g->size[1] + y) * g->size[2] + left + lo * s;
                    if (s == 1) FN(add)(from, hi - lo, to);
                    else
                        for (long w = 0; w < hi - lo; w++) to[w * s] += from[w];
                }
    }
}

#ifdef V_RANGE
/* The same where windows of a line are one pixel apart: every pixel gathers its entries, so that
 * nothing is added to memory that was written just before. */
static void FN(gather_channel)(const image_t* g, const REAL* columns, REAL* x) {
    const long all = image_pixels(g) * g->batch, size = image_taps(g) * all;
    const int width = g->size[2], side = g->kernel[2];
    V_MASK m[GATHERED];
    for (int v = 0; v < width; v += LANES) {
        for (int t = 0; t < side; t++) {
            const long left = (long)t * g->dilation[2] - g->pad[2] - v, end = MIN(width - v, LANES);
            const long lo = MIN(MAX(left, 0), end), hi = MIN(MAX(left + g->out[2], lo), end);
            m[t] = V_RANGE(lo, hi);
        }
        const V_MASK lanes = V_FIRST(MIN(width - v, LANES));
        for (long i = 0; i < g->batch; i++) {
            int at[3] = {0, 0, 0};
            const int lines[3] = {1, g->size[0], g->size[1]};
            REAL* to = x + i * g->batch_stride + v;
            for (long n = (long)lines[1] * lines[2]; n > 0; n--, to += width, advance(at, lines)) {
                V sum = V_LOAD(to, lanes);
                for (int d = 0; d < g->kernel[0]; d++) {
                    const int z = window_at(at[1] + g->pad[0] - d * g->dilation[0], g->stride[0], g->out[0]);
                    if (z < 0) continue;
                    for (int h = 0; h < g->kernel[1]; h++) {
                        const int y = window_at(at[2] + g->pad[1] - h * g->dilation[1], g->stride[1], g->out[1]);
                        if (y < 0) continue;
                        long from = (long)(d * g->kernel[1] + h) * side * all + i * image_pixels(g) +
                                    ((long)z * g->out[1] + y) * g->out[2] + v + g->pad[2];
                        for (int t = 0; t < side; t++, from += all - g->dilation[2])
                            sum += V_LOAD_OF(columns, size, from, m[t]);
                    }
                }
                V_STORE(to, sum, lanes);
            }
        }
    }
}
#endif

/* Entries of one image, NHWC. */
static void FN(add_image)(const image_t* g, const REAL* columns, REAL* x) {
    int at[3] = {0, 0, 0};
    for (long q = image_pixels(g); q > 0; q--, advance(at, g->out)) {
        int tap[3] = {0, 0, 0};
        for (long t = image_taps(g); t > 0; t--, columns += g->channels, advance(tap, g->kernel)) {
            long to = 0;
            int inside = 1;
            for (int i = 0; i < 3; i++) {
                const int p = at[i] * g->stride[i] - g->pad[i] + tap[i] * g->dilation[i];
                inside &= (unsigned)p < (unsigned)g->size[i];
                to = to * g->size[i] + p;
            }
            if (inside) FN(add)(columns, g->channels, x + to * g->step);
        }
    }
}

/* Threads share out what no two of them touch: the channels, or in NHWC the images. */
void FN(col2im)(const image_t* g, const REAL* columns, REAL* x, int nth) {
    const long outer = g->nhwc ? g->batch : g->channels;
    const long size = outer ? image_rows(g) * image_columns(g) / outer : 0;
    nth = (int)MAX(1, MIN(nth, outer * size >> 15));
#pragma omp parallel for num_threads(nth) if (nth > 1) schedule(static)
    for (long o = 0; o < outer; o++)
        if (g->nhwc) FN(add_image)(g, columns + o * size, x + o * g->batch_stride);
#ifdef V_RANGE
        else if (g->stride[2] == 1 && g->kernel[2] <= GATHERED)
            FN(gather_channel)(g, columns + o * size, x + o * g->step);
#endif
        else FN(add_channel)(g, columns + o * size, x + o * g->step);
}

/* Products of float matrices by the matrix unit (amx.h); gemm_template.h includes it.
 *
 * Each thread computes a rectangle of C by itself: what another has split comes more slowly from its cache
 * than it is split again. Factors are split into panels of 32 rows of A or columns of B, [step of
 * K][part][tile], a block of K at a time: all panels of one factor, and of the other one, if the first
 * stay in the second-level cache, one by one, while the numbers of the next are fetched; else as many as
 * stay there, and the first ones come past.
 *
 * The rows of a left tile are numbers that follow each other along K, those of a right tile lie across
 * it. Where a matrix in memory is the other way round, it is transposed as it is split. */
#include "amx.h"

/* A block of K; bytes of panels that are to stay in the second-level cache; bytes of any, at most. */
#define TILES_K 1024
#define TILES_BYTES (768l << 10)
#define TILES_MEMORY (8l << 20)
#define TILES_PANEL 32
#define TILES_STEP(tiles) ((tiles) * AMX_PARTS * AMX_TILE) /* bytes of a step of a panel */

/* Panels first..last of a factor. */
typedef struct {
    const FN(source_t) * s;
    int right;
    long n, first, last; /* n: rows or columns of the whole */
} factor_t;

/* Two squares of numbers as a tile: rows[h] rows of columns[h] numbers of them are there. */
INLINE void split_tile(const int turned, const int full, const float* x, long ld, long half,
                       const long* rows, const long* columns, char* to, long part) {
    f32 v[2][16];
    for (int h = 0; h < 2; h++, x += half) {
        const f32_mask some = full ? 0 : f32_first(columns[h]);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            v[h][i] = full ? (f32)*(const f32_u*)(x + i * ld) : f32_load(x + i * ld, i < rows[h] ? some : 0);
        if (turned) FN(transpose)(v[h]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) amx_split(v[0][i], v[1][i], to + i * 64, part);
}

/* n rows or columns of a matrix in memory, from j on, and kc numbers of K from k on. */
static void split_stored(const FN(source_t) * s, int right, long j, long n, long k, long kc, char* to) {
    const int tiles = n > 16 ? 2 : 1, turned = s->along == right;
    const long across = s->along ? s->ld : 1, down = s->along ? 1 : s->ld, part = tiles * AMX_TILE;
    for (; kc > 0; kc -= AMX_STEP, k += AMX_STEP, to += TILES_STEP(tiles))
        for (int t = 0; t < tiles; t++) {
            const float* x = s->x + (j + t * 16) * across + k * down;
            const long others = MIN(n - t * 16, 16);
            const long size[2] = {MIN(kc, 16), MAX(0, MIN(kc - 16, 16))}, same[2] = {others, others};
            const long *rows = s->along ? same : size, *columns = s->along ? size : same;
            char* tile = to + t * AMX_TILE;
            const int full = others == 16 && kc >= AMX_STEP;
            if (full && turned) split_tile(1, 1, x, s->ld, 16 * down, 0, 0, tile, part);
            else if (full) split_tile(0, 1, x, s->ld, 16 * down, 0, 0, tile, part);
            else if (turned) split_tile(1, 0, x, s->ld, 16 * down, rows, columns, tile, part);
            else split_tile(0, 0, x, s->ld, 16 * down, rows, columns, tile, part);
        }
}

static void split_panel(const factor_t* f, long panel, long k, long kc, char* to) {
    const FN(source_t)* s = f->s;
    const long j = panel * TILES_PANEL, n = MIN(TILES_PANEL, f->n - j);
    if (!s->image) split_stored(s, f->right, j, n, k, kc, to);
    for (long some; s->image && kc > 0; k += some, kc -= some) {
        float windows[TILES_PANEL * KC] __attribute__((aligned(64)));
        const FN(source_t) w = {windows, s->along ? KC : NR, s->along, 0, 0, 0};
        some = MIN(KC, kc);
        if (s->along) FN(lines)(s->image, s->x, j, n, k, some, windows, KC);
        else FN(pack_panel)(s, j, n, NR, k, some, windows);
        split_stored(&w, f->right, 0, n, 0, some, to);
        to += some / AMX_STEP * TILES_STEP(n > 16 ? 2 : 1);
    }
}

/* Rows that lie a multiple of 2048 bytes apart would meet in few places of the caches, had they to stay
 * there until all of them are read. */
static int rows_meet(const FN(source_t) * s) { return !s->along && !s->image && s->ld % 512 == 0; }

static void split_panels(const factor_t* f, long first, long last, long k, long kc, char* to) {
    const long panel = (kc + AMX_STEP - 1) / AMX_STEP * TILES_STEP(2);
    const long some = rows_meet(f->s) ? AMX_STEP : kc;
    for (long done = 0; done < kc; done += some)
        for (long j = first; j < last; j++) {
            const int n = f->n - j * TILES_PANEL > 16 ? 2 : 1;
            split_panel(f, j, k + done, MIN(some, kc - done),
                        to + (j - first) * panel + done / AMX_STEP * TILES_STEP(n));
        }
}

/* Of a panel that will be split: so that `steps` steps fetch it. */
static amx_later_t later_split(const factor_t* f, long panel, long k, long kc, long steps) {
    const FN(source_t)* s = f->s;
    const long j = panel * TILES_PANEL, rows = s->along ? MIN(TILES_PANEL, f->n - j) : kc;
    const float* x = s->x + (s->along ? j * s->ld + k : k * s->ld + j);
    const long before = (uintptr_t)x % 64, row = (s->along ? kc : MIN(TILES_PANEL, f->n - j)) * 4;
    amx_later_t l = {(const char*)x - before, 0, (before + row + 63) / 64, s->ld * 4};
    if (!s->image) l.some = (rows * l.lines + steps - 1) / steps;
    return l;
}

/* A tile of sums becomes one of C. */
static void finish_tile(const FN(finish_t) * f, const float* sums, int rows, long n, long row, long col) {
    float* c = f->c + row * f->ldc + col;
    if (rows < 16 || n < 16 || !f->plain || f->bias_row || f->bias_col || f->relu)
        FN(finish_some)(f, sums, LANES, rows, n, row, col);
    else if (f->beta)
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) *(f32_u*)(c + i * f->ldc) += f->alpha * *(const f32*)(sums + i * 16);
    else
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) *(f32_u*)(c + i * f->ldc) = f->alpha * *(const f32*)(sums + i * 16);
}

/* m x n tiles of C, from row and col on. */
INLINE void multiply_tiles(const int m, const int n, const FN(product_t) * p, const amx_left_t* l,
                           const char* a, const char* b, long row, long col, amx_later_t* later,
                           const FN(finish_t) * f) {
    float sums[AMX_SUMS] __attribute__((aligned(64)));
    const char* c = (const char*)(f->c + row * f->ldc + col);
    const long before = (uintptr_t)c % 64, lines = n + (before > 0);
    const amx_later_t result = {c - before, (m * 16 * lines + l->steps - 1) / l->steps, lines, f->ldc * 4};
    amx_multiply(m, n, 64, l, a, b, later, result);
    amx_store(m, n, sums);
    for (int i = 0; i < m; i++, a += l->second, row += 16) {
        float* s = sums + i * n * 256;
        const long rows = MIN(16, p->rows.n - row);
        if (amx_not_finite(n, s, rows)) amx_plain(n, l, a, b, 0, rows, s);
        for (int j = 0; j < n; j++, s += 256)
            finish_tile(f, s, rows, MIN(16, p->columns.n - col - j * 16), row, col + j * 16);
    }
}

/* The panels of C where those of a and b meet. */
static int multiply_some(const FN(product_t) * p, factor_t a, factor_t b) {
    const long blocks = (p->k + TILES_K - 1) / TILES_K;
    const long step = ((p->k + blocks - 1) / blocks + AMX_STEP - 1) / AMX_STEP * AMX_STEP;
    const long block = step / AMX_STEP * TILES_STEP(2), most = TILES_BYTES / block;
    const long na = a.last - a.first, nb = b.last - b.first;
    const int b_first = nb <= most || nb < na; /* x, of nx panels, is split first, then y */
    const long nx = b_first ? nb : na;
    if (nx > 1 && nx * block > TILES_MEMORY) {
        factor_t* half = b_first ? &b : &a;
        const long end = half->last;
        half->last -= nx / 2;
        const int failed = multiply_some(p, a, b);
        half->first = half->last;
        half->last = end;
        return failed | multiply_some(p, a, b);
    }
    const factor_t x = b_first ? b : a, y = b_first ? a : b;
    const int stays = nx <= most, one_by_one = stays && !rows_meet(y.s);
    const long together = one_by_one ? 1 : MIN(MAX(1, most), y.last - y.first);
    char* split_x = kernels_scratch(SLOT_A, nx * block);
    char* split_y = kernels_scratch(SLOT_B, together * block);
    if (!split_x || !split_y) return -1;
    for (long k = 0, kc; k < p->k; k += kc) {
        kc = MIN(step, p->k - k);
        const long steps = (kc + AMX_STEP - 1) / AMX_STEP, panel = steps * TILES_STEP(2);
        const FN(finish_t) f = FN(finish_of)(p, k == 0, k + kc == p->k);
        long at[2][TILES_K / AMX_STEP + 1];
        for (long q = 0; q <= steps; q++)
            for (int i = 0; i < 2; i++) at[i][q] = q * TILES_STEP(i + 1);
        split_panels(&x, x.first, x.last, k, kc, split_x);
        for (long first = y.first, count; first < y.last; first += count) {
            count = MIN(together, y.last - first);
            split_panels(&y, first, first + count, k, kc, split_y);
            amx_later_t later = {0};
            if (!stays) later = (amx_later_t){split_x + panel, (TILES_STEP(2) / 64 + count - 1) / count};
            else if (one_by_one && first + 1 < y.last) later = later_split(&y, first + 1, k, kc, nx * steps);
            /* Along the rows of C, unless x comes past. */
            const int y_outside = stays && b_first;
            for (long q = 0; q < nx * count; q++) {
                const long i = y_outside ? q % nx : q / count, j = y_outside ? q / nx : q % count;
                const long row = (b_first ? first + j : x.first + i) * TILES_PANEL;
                const long col = (b_first ? x.first + i : first + j) * TILES_PANEL;
                const char *one = split_x + i * panel, *other = split_y + j * panel;
                const char *left = b_first ? other : one, *right = b_first ? one : other;
                const int m = p->rows.n - row > 16 ? 2 : 1, n = p->columns.n - col > 16 ? 2 : 1;
                const amx_left_t l = {steps, at[m - 1], 64, m * AMX_TILE, AMX_TILE};
                if (m == 2 && n == 2) multiply_tiles(2, 2, p, &l, left, right, row, col, &later, &f);
                else if (m == 2) multiply_tiles(2, 1, p, &l, left, right, row, col, &later, &f);
                else if (n == 2) multiply_tiles(1, 2, p, &l, left, right, row, col, &later, &f);
                else multiply_tiles(1, 1, p, &l, left, right, row, col, &later, &f);
            }
        }
    }
    return 0;
}

#define TILES_OF(n) (((n) + 15) / 16)

/* Measured: six products of a tile take 100 cycles, a tile is split in 400, or 600 where rows meet, and sums
 * become C in 200, or 350 where they lie across lines of the cache; a core multiplies 28 pairs of numbers a
 * cycle without the unit. Products that take less than some 20 us are better shared among threads so. */
static int tiles_pay(const FN(product_t) * p) {
    const double m = TILES_OF(p->rows.n), n = TILES_OF(p->columns.n);
    const double steps = (p->k + AMX_STEP - 1) / AMX_STEP, blocks = (p->k + TILES_K - 1) / TILES_K;
    const double split = m * (rows_meet(&p->a) ? 600 : 400) + n * (rows_meet(&p->b) ? 600 : 400);
    const double sums = blocks * m * n * (p->ldc % 16 ? 350 : 200);
    const double cycles = 15000 + steps * (m * n * 100 + split) + sums;
    return cycles * 1.15 < (double)p->rows.n * p->columns.n * p->k / 28;
}

static int tiles(const FN(product_t) * p, int nth) {
    const long mr = (TILES_OF(p->rows.n) + 1) / 2, nr = (TILES_OF(p->columns.n) + 1) / 2;
    /* The rectangles that take least time: a panel is split in that of two products of two. */
    long ni = 1, nj = 1, least = 0;
    for (long i = 1; i <= MIN(nth, mr); i++) {
        const long j = MIN(nr, nth / i), high = (mr + i - 1) / i, wide = (nr + j - 1) / j;
        const long time = high * wide + 2 * (high + wide);
        if (i == 1 || time < least) {
            least = time;
            ni = i;
            nj = j;
        }
    }
    int failed = 0;
#pragma omp parallel for num_threads(ni * nj) if (ni * nj > 1) schedule(static) reduction(| : failed)
    for (long t = 0; t < ni * nj; t++) {
        const long i = t / nj, j = t % nj;
        const factor_t a = {&p->a, 0, p->rows.n, mr * i / ni, mr * (i + 1) / ni};
        const factor_t b = {&p->b, 1, p->columns.n, nr * j / nj, nr * (j + 1) / nj};
        amx_begin();
        failed |= multiply_some(p, a, b) != 0;
        amx_end();
    }
    return failed ? -1 : 0;
}

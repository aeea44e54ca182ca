/* GEMM for one element type; gemm.c includes this for float, double and int8 (to int32).
 *
 * Factors are of ELEMENT, C is of REAL. GROUP elements that follow each other along K make one REAL
 * of a packed factor, and MULTIPLY_ADD adds the product of two such groups to a sum. Where EXTRA is
 * 1, sums start from a first row of each panel of B.
 *
 * Three ways to the same result:
 *   dots     few rows or few columns, both factors contiguous along K: one dot product an entry
 *   direct   few rows, few columns or small sizes: A is read where it is, B too if its rows are
 *            contiguous, else it is copied panel by panel
 *   packed   the rest: A is copied into panels of MR rows, B panel by panel (KC x NR, so that it
 *            stays in the first-level cache), each of which meets all rows at once
 * Large products of float go to the matrix unit instead, where there is one (gemm_tiles.h). Images
 * become windows only when a panel is copied. Tiles of C are computed in registers. int8 knows
 * no images, and not the direct way: its groups must be put together first. */

#define V FN_T(v)
typedef REAL V __attribute__((vector_size(VECTOR_BYTES)));
#define V_ANY FN_T(v_any)
typedef REAL V_ANY
    __attribute__((vector_size(VECTOR_BYTES), aligned(__alignof__(REAL)), may_alias));
#define LANES V_LANES
#define NR (2 * LANES)

/* What the tiles of one K block do with their sums. */
typedef struct {
    REAL alpha, beta;
    REAL* c;
    long ldc;
    int plain; /* no residual, beta 0 or 1: full tiles are finished in registers */
    int relu;
    const REAL *bias_row, *bias_col, *residual;
    long ld_residual;
} FN(finish_t);

/* rows x n sums, whose rows lie `apart`. */
INLINE void FN(finish_some)(const FN(finish_t) * f, const REAL* sums, const long apart, int rows, long n,
                            long row, long col) {
    for (int i = 0; i < rows; i++, sums += apart) {
        REAL* c = f->c + (row + i) * f->ldc + col;
        const REAL bias = f->bias_row ? f->bias_row[row + i] : 0;
        const REAL* residual = f->residual ? f->residual + (row + i) * f->ld_residual + col : 0;
        for (long j = 0; j < n; j += LANES) {
            const V_MASK m = V_FIRST(MIN(n - j, LANES));
            V x = SCALE(f->alpha, *(const V*)(sums + j));
            if (f->beta) x += f->beta * V_LOAD(c + j, m);
            if (f->bias_row) x += bias;
            if (f->bias_col) x += V_LOAD(f->bias_col + col + j, m);
            if (residual) x += V_LOAD(residual + j, m);
            if (f->relu) x = (V)((V_INDEX)x & ~(V_INDEX)NEGATIVE(x));
            V_STORE(c + j, x, m);
        }
    }
}

__attribute__((noinline)) static void FN(finish)(const FN(finish_t) * f, const REAL* sums, int rows,
                                                 long n, long row, long col) {
    FN(finish_some)(f, sums, NR, rows, n, row, col);
}

/* rows x (vectors * LANES) entries of C, of which n columns exist. packed: A lies with aks
 * between columns and 1 between rows, B in full panels; otherwise ars, aks and bks are free and
 * the last vector of B is read up to n. */
INLINE void FN(tile)(const int rows, const int vectors, const int packed, long k, const REAL* a,
                     long ars, long aks, const REAL* b, long bks, long row, long col, long n,
                     const FN(finish_t) * f) {
    V sum[12][4];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            sum[i][j] = EXTRA ? *(const V*)(b + j * LANES) : (V){0};
    if (EXTRA) b += NR;
    const V_MASK last = V_FIRST(n - (vectors - 1) * LANES);
    for (long p = 0; p < k; p++) {
        V bv[4];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            bv[j] = packed                ? *(const V*)(b + j * LANES)
                    : (j == vectors - 1) ? V_LOAD(b + j * LANES, last)
                                         : (V)*(const V_ANY*)(b + j * LANES);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++)
                sum[i][j] = MULTIPLY_ADD(sum[i][j], a[packed ? i : i * ars], bv[j]);
        if (packed) __builtin_prefetch(a + rows * 32);
        a += packed ? rows : aks;
        b += packed ? NR : bks;
    }
    if (f->plain && n == vectors * LANES) {
        REAL* c = f->c + row * f->ldc + col;
        /* All of C is read before any of it is written: where rows lie a multiple of 4096 bytes
         * apart, a load would wait for the stores before it. */
#define EACH                                                \
    _Pragma("GCC unroll 12") for (int i = 0; i < rows; i++) \
        _Pragma("GCC unroll 4") for (int j = 0; j < vectors; j++)
#define AT(x) *(V_ANY*)(x + j * LANES)
        EACH sum[i][j] = SCALE(f->alpha, sum[i][j]);
        if (f->beta) EACH sum[i][j] += AT(c + i * f->ldc);
        if (f->bias_row) EACH sum[i][j] += f->bias_row[row + i];
        if (f->bias_col) EACH sum[i][j] += AT(f->bias_col + col);
        if (f->relu) EACH sum[i][j] = (V)((V_INDEX)sum[i][j] & ~(V_INDEX)NEGATIVE(sum[i][j]));
        EACH AT(c + i * f->ldc) = sum[i][j];
#undef EACH
#undef AT
    } else {
#pragma GCC unroll 2
        for (int first = 0; first < vectors; first += 2) {
            REAL sums[12 * NR] __attribute__((aligned(64)));
            const int two = MIN(2, vectors - first);
#pragma GCC unroll 12
            for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
                for (int j = 0; j < two; j++) *(V*)(sums + i * NR + j * LANES) = sum[i][first + j];
            FN(finish)(f, sums, rows, MIN(n - first * LANES, NR), row, col + first * LANES);
        }
    }
}

typedef void (*FN(packed_t))(long, const REAL*, const REAL*, long, long, long,
                             const FN(finish_t) *);
typedef void (*FN(direct_t))(long, const REAL*, long, long, const REAL*, long, long, long, long,
                             const FN(finish_t) *);
#define PACKED(r, v)                                                                             \
    static void FN(packed_##r##_##v)(long k, const REAL* a, const REAL* b, long row, long col,   \
                                     long n, const FN(finish_t) * f) {                           \
        FN(tile)(r, v, 1, k, a, 1, r, b, NR, row, col, n, f);                                    \
    }
#define DIRECT(r, v)                                                                             \
    static void FN(direct_##r##_##v)(long k, const REAL* a, long ars, long aks, const REAL* b,   \
                                     long bks, long row, long col, long n,                       \
                                     const FN(finish_t) * f) {                                   \
        FN(tile)(r, v, 0, k, a, ars, aks, b, bks, row, col, n, f);                               \
    }
#define PACKED_2(r) PACKED(r, 1) PACKED(r, 2)
#define DIRECT_2(r) DIRECT(r, 1) DIRECT(r, 2)
PACKED_2(1) PACKED_2(2) PACKED_2(3) PACKED_2(4) PACKED_2(5) PACKED_2(6)
#if VECTOR_BYTES == 64
#define MR 12
#define DIRECT_MR 8
PACKED_2(7) PACKED_2(8) PACKED_2(9) PACKED_2(10) PACKED_2(11) PACKED_2(12)
#else
#define MR 6
#define DIRECT_MR 6
#endif
#define ROW(kind, r) {FN(kind##_##r##_1), FN(kind##_##r##_2)}
static const FN(packed_t) FN(packed_tiles)[MR][2] = {
    ROW(packed, 1), ROW(packed, 2), ROW(packed, 3),
    ROW(packed, 4), ROW(packed, 5), ROW(packed, 6),
#if MR > 6
    ROW(packed, 7), ROW(packed, 8), ROW(packed, 9),
    ROW(packed, 10), ROW(packed, 11), ROW(packed, 12),
#endif
};
#if GROUP == 1
DIRECT_2(1) DIRECT_2(2) DIRECT_2(3) DIRECT_2(4) DIRECT_2(5) DIRECT_2(6) DIRECT(1, 4) DIRECT(2, 4)
#if DIRECT_MR > 6
DIRECT_2(7) DIRECT_2(8)
#endif
static const FN(direct_t) FN(direct_tiles)[DIRECT_MR][2] = {
    ROW(direct, 1), ROW(direct, 2), ROW(direct, 3), ROW(direct, 4), ROW(direct, 5), ROW(direct, 6),
#if DIRECT_MR > 6
    ROW(direct, 7), ROW(direct, 8),
#endif
};
static const FN(direct_t) FN(direct_wide)[2] = {FN(direct_1_4), FN(direct_2_4)};
#endif
#undef ROW
#undef PACKED
#undef PACKED_2
#undef DIRECT
#undef DIRECT_2

#if GROUP == 1
INLINE void FN(copy)(const REAL* x, long n, REAL* d) {
    for (; n >= LANES; n -= LANES, x += LANES, d += LANES) *(V_ANY*)d = *(const V_ANY*)x;
    if (n > 0) {
        const V_MASK m = V_FIRST(n);
        V_STORE(d, V_LOAD(x, m), m);
    }
}

INLINE void FN(zero)(long n, REAL* d) {
    for (; n >= LANES; n -= LANES, d += LANES) *(V_ANY*)d = (V){0};
    if (n > 0) V_STORE(d, (V){0}, V_FIRST(n));
}
#endif

/* ---- operands ------------------------------------------------------------------------------ */

/* A matrix stored (or thought of) row by row. Panels are filled along K: where K runs along the
 * rows (`along`), pieces of rows are transposed into the panel, else pieces are copied. */
typedef struct {
    const ELEMENT* x;
    long ld;
    int along;
    int packed;
    const image_t* image;
    long k; /* K, in elements */
} FN(source_t);

static FN(source_t) FN(source)(const operand_t* o, int which, long k) {
    FN(source_t)
    s = {o->data, o->ld, (which == OPERAND_A) != (o->trans != 0), o->packed, o->image, k};
    if (!s.packed && s.image && windows_are_pixels(s.image)) {
        s.ld = s.image->step;
        s.image = 0;
    }
    return s;
}

/* Turns LANES vectors around: lane j of vector i becomes lane i of vector j. */
INLINE void FN(transpose)(V* v) {
#define LOW(q, l) ((l) & (q) ? LANES + (l) - (q) : (l))
#define HIGH(q, l) ((l) & (q) ? LANES + (l) : (l) + (q))
#define STAGE(q)                                                       \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) if (!(i & (q))) { \
        const V a = v[i], b = v[i + (q)];                              \
        v[i] = SHUFFLE(V_INDEX, V_LANES, a, b, LOW, q);                \
        v[i + (q)] = SHUFFLE(V_INDEX, V_LANES, a, b, HIGH, q);         \
    }
#if V_LANES > 8
    STAGE(8)
#endif
#if V_LANES > 4
    STAGE(4)
#endif
#if V_LANES > 2
    STAGE(2)
#endif
    STAGE(1)
#undef STAGE
#undef LOW
#undef HIGH
}

/* Lane i of the result is the sum of vector i. */
INLINE V FN(sums)(V* v) {
#define FROM(q, l) (((l) / (q) & 1) * LANES + (l) / (2 * (q)) * 2 * (q) + (l) % (q))
#define TO(q, l) (FROM(q, l) + (q))
#define STAGE(q)                                                       \
    _Pragma("GCC unroll 16") for (int i = 0; i < (q); i++)             \
        v[i] = SHUFFLE(V_INDEX, V_LANES, v[i], v[i + (q)], FROM, q) +  \
               SHUFFLE(V_INDEX, V_LANES, v[i], v[i + (q)], TO, q);
#if V_LANES > 8
    STAGE(8)
#endif
#if V_LANES > 4
    STAGE(4)
#endif
#if V_LANES > 2
    STAGE(2)
#endif
    STAGE(1)
#undef STAGE
#undef FROM
#undef TO
    return v[0];
}

/* LANES pieces of rows, as rows of a panel. */
INLINE void FN(store_turned)(V* v, long columns, long width, V_MASK store, REAL* d) {
    FN(transpose)(v);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (i < columns) V_STORE(d + i * width, v[i], store);
}

#if GROUP == 1
#include "image_template.h"

/* Panel of n <= width rows of A or columns of B, from j0 on: d[k * width + j]. Up to the next
 * multiple of LANES, the rest of the width is filled with zeros. */
static void FN(pack_panel)(const FN(source_t) * s, long j0, long n, long width, long k0, long kc,
                           REAL* d) {
    const image_t* g = s->image;
    if (!s->along) {
        const long padded = MIN((n + LANES - 1) / LANES * LANES, width);
#ifdef V_RANGE
        if (g && width == NR && FN(are_few)(g)) {
            FN(pack_pixels)(g, s->x, j0, n, k0, kc, d);
            return;
        }
#endif
        if (g) FN(lines)(g, s->x, k0, kc, j0, n, d, width);
        const REAL* x = s->x + k0 * s->ld + j0;
        for (long k = 0; k < kc; k++, d += width, x += s->ld) {
            if (!g && n == NR) {
                *(V_ANY*)d = *(const V_ANY*)x;
                *(V_ANY*)(d + LANES) = *(const V_ANY*)(x + LANES);
            } else if (!g) FN(copy)(x, n, d);
            if (n < padded) FN(zero)(padded - n, d + n);
        }
        return;
    }
#ifdef V_RANGE
    if (g && FN(are_few)(g)) {
        FN(pack_windows)(g, s->x, j0, n, width, k0, kc, d);
        return;
    }
#endif
    REAL windows[LANES * KC] __attribute__((aligned(64)));
    for (long j = 0; j < n; j += LANES) {
        const long rows = MIN(n - j, LANES), ld = g ? KC : s->ld;
        const REAL* x = g ? windows : s->x + (j0 + j) * ld + k0;
        if (g) FN(lines)(g, s->x, j0 + j, rows, k0, kc, windows, KC);
        const V_MASK store = V_FIRST(MIN(width - j, LANES));
        for (long k = 0; k < kc; k += LANES) {
            const long columns = MIN(kc - k, LANES);
            const V_MASK load = V_FIRST(columns);
            V v[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) v[i] = i < rows ? V_LOAD(x + i * ld + k, load) : (V){0};
            FN(store_turned)(v, columns, width, store, d + k * width + j);
        }
    }
}
#else
/* The same from elements; k0 and kc count groups. Groups of A are offset, as MULTIPLY_ADD wants
 * them, and what that adds to the products of a column of B is what its sum starts from. */
static void FN(pack_panel)(const FN(source_t) * s, long j0, long n, long width, long k0, long kc,
                           V offset, REAL* d) {
    const long left = s->k - k0 * GROUP;
    for (long k = 0; !s->along && k < kc; k++) {
        const ELEMENT* x = s->x + (k0 + k) * GROUP * s->ld + j0;
        for (long j = 0; j < n; j += LANES)
            V_STORE(d + k * width + j,
                    V_ACROSS(x + j, s->ld, n - j, left - k * GROUP) ^ offset,
                    V_FIRST(MIN(width - j, LANES)));
    }
    for (long j = 0; s->along && j < n; j += LANES) {
        const ELEMENT* x = s->x + (j0 + j) * s->ld + k0 * GROUP;
        for (long k = 0; k < kc; k += LANES) {
            V v[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                v[i] = i < n - j ? V_ALONG(x + i * s->ld + k * GROUP, left - k * GROUP) ^ offset
                                 : (V){0};
            FN(store_turned)(v, MIN(kc - k, LANES), width, V_FIRST(MIN(width - j, LANES)),
                             d + k * width + j);
        }
    }
}
#endif

/* ---- the packed way ------------------------------------------------------------------------ */

/* Packed operands lie K block by K block, in each one panel by panel. */
typedef struct {
    long n, width, panels, padded; /* padded: entries of a row of K, all panels */
    long step, extra;              /* rows of a K block, and rows before those */
} FN(layout_t);

static FN(layout_t) FN(layout)(int which, long n, long k) {
    FN(layout_t) l = {n, NR, 0, 0, k_block(k), which == OPERAND_B ? EXTRA : 0};
    if (which == OPERAND_A) { /* as few panels as possible, as even as possible */
        l.panels = (n + MR - 1) / MR;
        l.width = l.panels ? (n + l.panels - 1) / l.panels : 1;
        if (MR == 12 && n % 8 == 0 && n <= 128) l.width = 8;
    }
    l.panels = (n + l.width - 1) / l.width;
    l.padded = which == OPERAND_A ? n : l.panels * NR;
    return l;
}

INLINE long FN(panel_at)(const FN(layout_t) * l, long panel, long k0, long kc) {
    if (EXTRA) k0 += k0 / l->step * l->extra, kc += l->extra;
    return l->padded * k0 + panel * l->width * kc;
}

static void FN(pack_one)(int which, const FN(source_t) * s, const FN(layout_t) * l, long panel,
                         long k0, long kc, REAL* d) {
    const long j = panel * l->width, n = MIN(l->width, l->n - j);
    const long width = which == OPERAND_A ? n : NR;
#if GROUP == 1
    FN(pack_panel)(s, j, n, width, k0, kc, d);
#else
    const V offset = (V){0} + OFFSET;
    FN(pack_panel)(s, j, n, width, k0, kc, which == OPERAND_A ? offset : (V){0}, d + l->extra * width);
    for (long i = 0; i < (l->extra ? n : 0); i += LANES) {
        V sum = {0};
        for (long p = 1; p <= kc; p++) sum = MULTIPLY_ADD(sum, OFFSET, *(const V*)(d + p * width + i));
        *(V*)(d + i) = -sum;
    }
#endif
}

size_t FN(gemm_pack_bytes)(int which, long n, long k) {
    k = GROUPS(k);
    const FN(layout_t) l = FN(layout)(which, n, k);
    return (size_t)l.padded * (k + (k + l.step - 1) / l.step * l.extra) * sizeof(REAL);
}

int FN(gemm_pack)(int which, const operand_t* x, long n, long k, void* dst) {
    const FN(source_t) s = FN(source)(x, which, k);
    k = GROUPS(k);
    const FN(layout_t) l = FN(layout)(which, n, k);
    const long step = l.step;
    for (long k0 = 0; k0 < k; k0 += step) {
        const long kc = MIN(step, k - k0);
        for (long p = 0; p < l.panels; p++)
            FN(pack_one)(which, &s, &l, p, k0, kc, (REAL*)dst + FN(panel_at)(&l, p, k0, kc));
    }
    return 0;
}

typedef struct {
    long k; /* in groups */
    REAL alpha, beta;
    FN(source_t) a, b;
    FN(layout_t) rows, columns;
    REAL* c;
    long ldc;
    const epilogue_t* epilogue;
} FN(product_t);

static FN(finish_t) FN(finish_of)(const FN(product_t) * p, int first, int last) {
    const REAL beta = first ? p->beta : 1;
    FN(finish_t) f = {p->alpha, beta, p->c, p->ldc, beta == 0 || beta == 1, 0, 0, 0, 0, 0};
    const epilogue_t* e = p->epilogue;
    if (last && e) {
        f.plain &= !e->residual;
        f.relu = e->relu;
        f.bias_row = e->bias_row;
        f.bias_col = e->bias_col;
        f.residual = e->residual;
        f.ld_residual = e->ld_residual;
    }
    return f;
}

/* Row panels i0..i1 and column panels j0..j1 of C. packed_a holds A from K index a_from on. */
static int FN(task)(const FN(product_t) * p, const REAL* packed_a, long a_from, long k_end, long i0,
                    long i1, long j0, long j1) {
    const long step = p->rows.step;
    REAL* panel = 0;
    if (!p->b.packed) {
        panel = kernels_scratch(SLOT_B, (size_t)NR * (step + EXTRA) * sizeof(REAL));
        if (!panel) return -1;
    }
    for (long k0 = a_from; k0 < k_end; k0 += step) {
        const long kc = MIN(step, p->k - k0);
        const FN(finish_t) f = FN(finish_of)(p, k0 == 0, k0 + kc == p->k);
        for (long j = j0; j < j1; j++) {
            const long col = j * NR, n = MIN(NR, p->columns.n - col);
            const REAL* b;
            if (p->b.packed) b = (const REAL*)p->b.x + FN(panel_at)(&p->columns, j, k0, kc);
            else {
                FN(pack_one)(OPERAND_B, &p->b, &p->columns, j, k0, kc, panel);
                b = panel;
            }
            for (long i = i0; i < i1; i++) {
                const long row = i * p->rows.width, m = MIN(p->rows.width, p->rows.n - row);
                const REAL* a = packed_a + FN(panel_at)(&p->rows, i, k0 - a_from, kc);
                FN(packed_tiles)[m - 1][n > LANES](kc, a, b, row, col, n, &f);
            }
        }
    }
    return 0;
}

static int FN(packed)(FN(product_t) * p, int nth) {
    const long m = p->rows.n, step = p->rows.step;
    /* A is packed whole, or, where that would be too much, for a range of K at a time. */
    const long most = A_BYTES / (long)sizeof(REAL) / m / step * step;
    const long range = p->a.packed ? p->k : MAX(step, most);
    REAL* packed_a = (REAL*)p->a.x;
    if (!p->a.packed) {
        packed_a = kernels_scratch(SLOT_A, (size_t)m * MIN(range, p->k) * sizeof(REAL));
        if (!packed_a) return -1;
    }
    /* Tasks: blocks of column panels; of row panels too where there are too few columns. */
    const long nr = p->columns.panels, mr = p->rows.panels;
    long nj = MAX((nr + NC / NR - 1) / (NC / NR), nth > 1 ? MIN(nr / 4, 4 * nth) : 1), ni = 1;
    if (nj < nth) {
        nj = MIN(nr, MAX(nj, 1));
        ni = MIN(mr, (nth + nj - 1) / nj);
    } else if (nth > 1) nj = MIN(nr, (nj + nth - 1) / nth * nth);
    const long count = ni * nj;
    stretch_t work[nth];
    int failed = 0;
    for (long k0 = 0; k0 < p->k; k0 += range) {
        const long k1 = MIN(p->k, k0 + range), blocks = (k1 - k0 + step - 1) / step;
        share_out(count, nth, work);
#pragma omp parallel num_threads(nth) if (nth > 1)
        {
            if (!p->a.packed) {
#pragma omp for schedule(static)
                for (long t = 0; t < blocks * mr; t++) {
                    const long at = k0 + t / mr * step, kc = MIN(step, k1 - at);
                    FN(pack_one)(OPERAND_A, &p->a, &p->rows, t % mr, at, kc,
                                 packed_a + FN(panel_at)(&p->rows, t % mr, at - k0, kc));
                }
            }
            for (long t = -1; (t = take(t, count, nth, work)) >= 0;) {
                const long i = t / nj, j = t % nj;
                note(&failed, FN(task)(p, packed_a, k0, k1, mr * i / ni, mr * (i + 1) / ni,
                                       nr * j / nj, nr * (j + 1) / nj));
            }
        }
    }
    return failed ? -1 : 0;
}

/* ---- without packing ----------------------------------------------------------------------- */

#if GROUP == 1
/* Rows i0..i1, columns j0..j1 of C from A of any strides; B is read where it is if its rows are
 * contiguous, else copied, one panel at a time. */
static void FN(direct)(const FN(product_t) * p, long i0, long i1, long j0, long j1) {
    const long k = p->k, m = i1 - i0, blocks = (m + DIRECT_MR - 1) / DIRECT_MR;
    const long ars = p->a.along ? p->a.ld : 1, aks = p->a.along ? 1 : p->a.ld;
    const int copied = p->b.along || p->b.image;
    /* A block of K at a time: one panel of B serves many rows; rows of B that lie far apart are
     * read along. */
    const long step = copied || m > DIRECT_MR                ? KC
                      : p->b.ld * (long)sizeof(REAL) > 4096 ? 64
                                                            : MAX(k, 1);
    const long bks = copied ? NR : p->b.ld;
    REAL panel[KC * NR] __attribute__((aligned(64)));
    long k0 = 0;
    do {
        const long kc = MIN(step, k - k0);
        const FN(finish_t) f = FN(finish_of)(p, k0 == 0, k0 + kc == k);
        for (long j = j0; j < j1;) {
            const int wide = m <= 2 && !copied && j1 - j > 3 * LANES;
            const long n = MIN(j1 - j, (wide ? 4 : 2) * LANES);
            const REAL* b = copied ? panel : p->b.x + k0 * p->b.ld + j;
            if (copied) FN(pack_panel)(&p->b, j, n, NR, k0, kc, panel);
            for (long i = 0; i < blocks; i++) {
                const long row = i0 + m * i / blocks, r = i0 + m * (i + 1) / blocks - row;
                const FN(direct_t) tile =
                    wide ? FN(direct_wide)[r - 1] : FN(direct_tiles)[r - 1][n > LANES];
                tile(kc, p->a.x + row * ars + k0 * aks, ars, aks, b, bks, row, j, n, &f);
            }
            j += n;
        }
        k0 += kc;
    } while (k0 < k);
}

#endif

#define DOT_ROWS MAX(1, LANES / 4)
#define DOT_STEP (LANES * GROUP)
#define DOT_AHEAD (DOT_BYTES / (long)sizeof(ELEMENT))

/* Entries of up to DOT_ROWS rows and 4 columns; columns from `next` on come after these. */
INLINE void FN(dot_tile)(const int rows, long k, const ELEMENT* a, long lda, long m,
                         const ELEMENT* b, long ldb, long n, const ELEMENT* next, REAL* sums) {
    const V offset = (V){0} + OFFSET;
    V extra[4] = {{0}};
    V v[DOT_ROWS * 4 < LANES ? LANES : DOT_ROWS * 4];
    const ELEMENT *rows_of_a[DOT_ROWS], *columns_of_b[4];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) rows_of_a[i] = a + MIN(i, m - 1) * lda;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) columns_of_b[j] = b + MIN(j, n - 1) * ldb;
#pragma GCC unroll 16
    for (int i = 0; i < (int)(sizeof v / sizeof *v); i++) v[i] = (V){0};
#define STEP(LOAD)                                                                  \
    do {                                                                            \
        V bv[4];                                                                    \
        _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {                       \
            bv[j] = LOAD(columns_of_b[j] + p, k - p);                               \
            if (EXTRA) extra[j] = MULTIPLY_ADD(extra[j], OFFSET, bv[j]);            \
        }                                                                           \
        _Pragma("GCC unroll 4") for (int i = 0; i < rows; i++) {                    \
            V av = LOAD(rows_of_a[i] + p, k - p);                                   \
            if (EXTRA) av = (V)((V_INDEX)av ^ (V_INDEX)offset);                     \
            _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++)                     \
                v[i * 4 + j] = MULTIPLY_ADD_V(v[i * 4 + j], av, bv[j]);             \
        }                                                                           \
    } while (0)
#define WHOLE(x, n) (GROUP == 1 ? (V)*(const V_ANY*)(x) : V_ALONG(x, DOT_STEP))
    long p = 0;
    for (; p + DOT_STEP <= k; p += DOT_STEP) {
        const ELEMENT* soon = p + DOT_AHEAD < k ? b + p + DOT_AHEAD : next + p + DOT_AHEAD - k;
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) __builtin_prefetch(soon + j * ldb);
        STEP(WHOLE);
    }
    if (p < k) STEP(V_ALONG);
#undef WHOLE
#undef STEP
#pragma GCC unroll 16
    for (int i = 0; i < (EXTRA ? rows * 4 : 0); i++) v[i] -= extra[i % 4];
    REAL flat[MAX(LANES, DOT_ROWS * 4)] __attribute__((aligned(64)));
#pragma GCC unroll 4
    for (int i = 0; i < rows * 4; i += LANES) *(V*)(flat + i) = FN(sums)(v + i);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < 4; j++) sums[i * NR + j] = flat[i * 4 + j];
}

/* The same where the rows of A and the columns of B are contiguous, and few of one of them. */
static void FN(dots)(const FN(product_t) * p, long i0, long i1, long j0, long j1) {
    const FN(finish_t) f = FN(finish_of)(p, 1, 1);
    const long k = p->k ? p->a.k : 0;
    REAL sums[DOT_ROWS * (NR + 4)] __attribute__((aligned(64)));
    for (long col = j0; col < j1; col += NR) {
        const long n = MIN(NR, j1 - col);
        for (long row = i0; row < i1; row += DOT_ROWS) {
            const long r = MIN(DOT_ROWS, i1 - row);
            const ELEMENT* a = p->a.x + row * p->a.ld;
            for (long j = 0; j < n; j += 4) {
                const ELEMENT *b = p->b.x + (col + j) * p->b.ld, *next = b + 4 * p->b.ld;
                if (r == 1) FN(dot_tile)(1, k, a, p->a.ld, 1, b, p->b.ld, n - j, next, sums + j);
                else FN(dot_tile)(DOT_ROWS, k, a, p->a.ld, r, b, p->b.ld, n - j, next, sums + j);
            }
            FN(finish)(&f, sums, r, n, row, col);
        }
    }
}

/* Shares out the columns of C among threads, or the rows where there are more of them. */
static void FN(share)(const FN(product_t) * p, int nth,
                      void (*f)(const FN(product_t) *, long, long, long, long)) {
    const long m = p->rows.n, n = p->columns.n;
    const long row_blocks = (m + DIRECT_MR - 1) / DIRECT_MR, column_blocks = (n + NR - 1) / NR;
    const int by_rows = column_blocks < 4 * nth && row_blocks > column_blocks;
    const long blocks = by_rows ? row_blocks : column_blocks, width = by_rows ? DIRECT_MR : NR;
    nth = (int)MIN(nth, blocks);
    if (nth <= 1) f(p, 0, m, 0, n);
    else {
#pragma omp parallel for num_threads(nth) schedule(static)
        for (int t = 0; t < nth; t++) {
            const long from = blocks * t / nth * width, to = blocks * (t + 1) / nth * width;
            if (by_rows) f(p, from, MIN(m, to), 0, n);
            else f(p, 0, m, from, MIN(n, to));
        }
    }
}

#ifdef WITH_TILES
#include "gemm_tiles.h"
#endif

/* ---- entry points -------------------------------------------------------------------------- */

static int FN(multiply)(long m, long n, long k, REAL alpha, FN(source_t) a, FN(source_t) b,
                        REAL beta, REAL* c, long ldc, const epilogue_t* e, int nth) {
    if (m <= 0 || n <= 0) return 0;
    if (k < 0 || alpha == 0) k = 0;
    const int stored = !a.image && !a.packed && !b.image && !b.packed;
    epilogue_t turned;
    if (n == 1 && m > 1 && ldc == 1 && stored && !(e && e->residual && e->ld_residual != 1)) {
        /* A column is a row: C^T = B^T A^T. */
        const FN(source_t) t = a;
        a = b;
        b = t;
        n = m;
        m = 1;
        ldc = n;
        if (e) {
            turned = *e;
            turned.bias_row = e->bias_col;
            turned.bias_col = e->bias_row;
            e = &turned;
        }
    }
    if (m == 1 && stored && a.ld == 1) a.along = 1;
    if (n == 1 && stored && b.ld == 1) b.along = 1;
    FN(product_t) p = {GROUPS(k), alpha, beta, a, b, {m}, {n}, c, ldc, e};
    const double work = (double)m * n * p.k;
    nth = work < nth * THREAD_WORK ? MAX(1, (int)(work / THREAD_WORK)) : nth;
    if ((GROUP > 1 && !k) || (k && stored && a.along && b.along && (m <= 4 || n <= 4)))
        FN(share)(&p, nth, FN(dots));
#ifdef WITH_TILES
    else if (k && !a.packed && !b.packed && tiles_pay(&p)) return tiles(&p, nth);
#endif
#if GROUP == 1
    else if (!k || (!a.image && !a.packed && !b.packed &&
                    (m <= DIRECT_MR || n <= 4 * NR || work <= SMALL_WORK)))
        FN(share)(&p, nth, FN(direct));
#endif
    else {
        p.rows = FN(layout)(OPERAND_A, m, p.k);
        p.columns = FN(layout)(OPERAND_B, n, p.k);
        return FN(packed)(&p, nth);
    }
    return 0;
}

#if GROUP == 1
int FN(gemm_op)(long m, long n, long k, REAL alpha, const operand_t* a, const operand_t* b,
                REAL beta, REAL* c, long ldc, const epilogue_t* e, int nth) {
    return FN(multiply)(m, n, k, alpha, FN(source)(a, OPERAND_A, k), FN(source)(b, OPERAND_B, k),
                        beta, c, ldc, e, nth);
}

int FN(gemm)(int trans_a, int trans_b, long m, long n, long k, REAL alpha, const REAL* a, long lda,
             const REAL* b, long ldb, REAL beta, REAL* c, long ldc, const epilogue_t* e, int nth) {
    const FN(source_t) sa = {a, lda, !trans_a, 0, 0, k}, sb = {b, ldb, !!trans_b, 0, 0, k};
    return FN(multiply)(m, n, k, alpha, sa, sb, beta, c, ldc, e, nth);
}

int FN(gemm_batch)(long count, int trans_a, int trans_b, long m, long n, long k, REAL alpha,
                   const REAL* a, long lda, long stride_a, const REAL* b, long ldb, long stride_b,
                   REAL beta, REAL* c, long ldc, long stride_c, int nth) {
    const double work = (double)m * n * k;
    int failed = 0;
    const int together = count < nth; /* too few products to give each thread one */
    const int threads = together ? 1 : work * count < nth * THREAD_WORK ? 1 : nth;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static) \
    reduction(| : failed)
    for (long i = 0; i < count; i++)
        failed |= FN(gemm)(trans_a, trans_b, m, n, k, alpha, a + i * stride_a, lda,
                           b + i * stride_b, ldb, beta, c + i * stride_c, ldc, 0,
                           together ? nth : 1) != 0;
    return failed ? -1 : 0;
}
#endif

#undef V
#undef V_ANY
#undef LANES
#undef NR
#undef MR
#undef DIRECT_MR
#undef DOT_ROWS
#undef DOT_STEP
#undef DOT_AHEAD

/* Products of float32 by the matrix unit (AMX), at the precision of float32.
 *
 * The unit multiplies bfloat16 numbers, of 8 significant bits, and adds in float32. A float32 has 24
 * bits: it is the exact sum of three bfloat16, its parts. Of the nine products of two numbers' parts
 * the six largest are added; the others are less than 2^-21 of the whole, 2^-24 on average, as much
 * as one rounding. (Henry, Tang, Heinecke: Leveraging the bfloat16 Artificial Intelligence Datatype
 * For Higher-Precision Computations, ARITH 2019.)
 *
 * NaN and infinities have no parts. Where a sum is not finite, amx_plain computes it again from
 * numbers that are put together again. Parts below 2^-126 count as 0.
 *
 * A tile is 16 rows of 64 bytes. One step of a product takes 32 numbers of K from each factor:
 *   left factor    16 rows (of C), each with 32 numbers of K, in pairs
 *   right factor   16 rows, each with one pair of K for 16 columns (of C)
 * Any order of K will do that is the same in both. C stays in tiles until all steps are done. */
#ifndef CAFFE2_AMX_H
#define CAFFE2_AMX_H
#ifdef __AMX_BF16__
#include <string.h>

#include "simd.h"

#define AMX_ROWS 16
#define AMX_STEP 32    /* numbers of K */
#define AMX_PARTS 3
#define AMX_TILE 1024l /* bytes */

/* Each thread asks for tiles before a product, and gives them back before it leaves: while it has
 * them, changing from one thread to another costs more. */
INLINE void amx_begin(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.rows[i] = AMX_ROWS;
        config.row_bytes[i] = 64;
    }
    __asm__ volatile("" ::"r"(&config) : "memory"); /* GCC thinks that 8 bytes are read of it */
    _tile_loadconfig(&config);
}

INLINE void amx_end(void) { _tile_release(); }

/* Pairs (a[i], b[i]) as parts: 16 pairs of bfloat16 at `to`, and so on, `part` bytes further. */
INLINE void amx_split(f32 a, f32 b, char* to, long part) {
    const u32 high = (u32){0} + 0xffff0000u;
#pragma GCC unroll 3
    for (int i = 0; i < AMX_PARTS; i++, to += part) {
        const u32 a_high = (u32)a & high, b_high = (u32)b & high;
        *(u32*)to = (u32)a >> 16 | b_high;
        a -= (f32)a_high;
        b -= (f32)b_high;
    }
}

/* A step of a right factor, [part][n][tile], from `rows` rows, 32 at most, of n * 16 numbers. */
INLINE void amx_split_right(const float* x, long rows, long n, char* to) {
    for (long i = 0; i < 16; i++)
        for (long j = 0; j < n; j++) {
            const float* low = x + (i * n + j) * 16;
            amx_split(i < rows ? *(const f32*)low : (f32){0},
                      i + 16 < rows ? *(const f32*)(low + 16 * n * 16) : (f32){0},
                      to + j * AMX_TILE + i * 64, n * AMX_TILE);
        }
}

/* What will be needed later, in rows: each step of a product fetches `some` lines of 64 bytes. */
typedef struct {
    const char* at;
    long some, lines, row; /* lines of a row, 0: one row goes on; bytes from row to row */
    long line;             /* of this row */
} amx_later_t;

INLINE void amx_fetch(amx_later_t* l, const int to_write) {
    for (long i = 0; i < l->some; i++) {
        if (to_write) __builtin_prefetch(l->at + l->line * 64, 1);
        else __builtin_prefetch(l->at + l->line * 64, 0, 2);
        if (++l->line == l->lines) {
            l->line = 0;
            l->at += l->row;
        }
    }
}

/* Where the steps of a product find the left factor, in bytes. */
typedef struct {
    long steps;
    const long* at; /* of each step, and of what will be used after the last */
    long row, part; /* from row to row, part to part */
    long second;    /* to the second tile of rows */
} amx_left_t;

#define AMX_SUMS (2 * 2 * 256) /* floats */

/* C = the product of m tiles of rows by n tiles of columns, 1 or 2 of each. The right factor is
 * [step][part][n][tile]. What a step takes from the left lies in lines so many bytes apart; rows
 * that are not aligned reach into a second line, which is the one to fetch.
 * Measured: sums are stored in 900 cycles, but in 100 if some tile, of whatever content, was stored
 * within the last five steps.
 * `later` goes to the second-level cache, and on from product to product; result is where the sums
 * will be written. */
INLINE void amx_multiply(const int m, const int n, const long line, const amx_left_t* l,
                         const char* a, const char* b, amx_later_t* later, amx_later_t result) {
    char spare[AMX_TILE] __attribute__((aligned(64)));
    __asm__ volatile("" ::: "memory"); /* GCC does not know that loading a tile reads memory */
    _tile_zero(0);
    if (n > 1) _tile_zero(1);
    if (m > 1) _tile_zero(2);
    if (m > 1 && n > 1) _tile_zero(3);
#define LEFT(i)                                                     \
    _tile_loadd(4, q + (i) * l->part, l->row);                      \
    if (m > 1) _tile_loadd(5, q + (i) * l->part + l->second, l->row)
#define RIGHT(i)                                                    \
    _tile_loadd(6, b + (i) * n * AMX_TILE, 64);                     \
    if (n > 1) _tile_loadd(7, b + ((i) * n + 1) * AMX_TILE, 64)
/* and fetches a sixth of the next step's factors */
#define MULTIPLY                                                    \
    _tile_dpbf16ps(0, 4, 6);                                        \
    if (n > 1) _tile_dpbf16ps(1, 4, 7);                             \
    if (m > 1) _tile_dpbf16ps(2, 5, 6);                             \
    if (m > 1 && n > 1) _tile_dpbf16ps(3, 5, 7);                    \
    _Pragma("GCC unroll 16")                                        \
    for (int i = 0; i < 8 * m; i++, next += line) __builtin_prefetch(next); \
    _Pragma("GCC unroll 16")                                        \
    for (int i = 0; i < 8 * n; i++, soon += 64) __builtin_prefetch(soon)
    const char* soon = b + AMX_PARTS * n * AMX_TILE;
    amx_later_t f = *later;
    for (long step = 0; step < l->steps; step++, b += AMX_PARTS * n * AMX_TILE) {
        const char* q = a + l->at[step];
        const char* next = a + l->at[step + 1] + 63;
        amx_fetch(&f, 0);
        amx_fetch(&result, 1);
        if (step % 4 == 3) _tile_stored(4, spare, 64);
        LEFT(2);
        RIGHT(0);
        MULTIPLY;
        LEFT(1);
        MULTIPLY;
        RIGHT(1);
        MULTIPLY;
        LEFT(0);
        MULTIPLY;
        RIGHT(2);
        MULTIPLY;
        RIGHT(0);
        MULTIPLY;
    }
#undef LEFT
#undef RIGHT
#undef MULTIPLY
    *later = f;
}

/* sums[m][n][16][16] = C. Between multiplying and this there is time for other work. */
INLINE void amx_store(const int m, const int n, float* sums) {
    _tile_stored(0, sums, 64);
    if (n > 1) _tile_stored(1, sums + 256, 64);
    if (m > 1) _tile_stored(2, sums + n * 256, 64);
    if (m > 1 && n > 1) _tile_stored(3, sums + 3 * 256, 64);
}

/* The number whose parts are the upper (upper = 1) or lower bfloat16 of each pair. What is left of
 * an infinity or NaN without its first part is NaN. */
INLINE f32 amx_whole(const char* parts, long part, int upper) {
    f32 x[AMX_PARTS];
    for (int i = 0; i < AMX_PARTS; i++) {
        const u32 pair = *(const u32_u*)(parts + i * part);
        x[i] = (f32)(upper ? pair & 0xffff0000u : pair << 16);
    }
    const i32 rest = x[1] == x[1];
    return x[0] + (f32)(rest & (i32)(x[1] + x[2]));
}

/* Rows first..last - 1 of a tile of C, with the values that float32 arithmetic gives. */
__attribute__((noinline, unused)) static void amx_plain(int n, const amx_left_t* l, const char* a,
                                                        const char* b, int first, int last,
                                                        float* sums) {
    f32 sum[2][AMX_ROWS] = {{{0}}};
    for (long step = 0; step < l->steps; step++, b += AMX_PARTS * n * AMX_TILE) {
        float left[2][AMX_ROWS][16] __attribute__((aligned(64)));
        for (int r = first; r < last; r++)
            for (int upper = 0; upper < 2; upper++)
                *(f32*)left[upper][r] = amx_whole(a + l->at[step] + r * l->row, l->part, upper);
        for (int j = 0; j < n; j++)
            for (int upper = 0; upper < 2; upper++)
                for (int k = 0; k < 16; k++) {
                    const f32 right =
                        amx_whole(b + j * AMX_TILE + k * 64, n * AMX_TILE, upper);
                    for (int r = first; r < last; r++) sum[j][r] += left[upper][r][k] * right;
                }
    }
    for (int j = 0; j < n; j++)
        for (int r = first; r < last; r++) *(f32*)(sums + j * 256 + r * 16) = sum[j][r];
}

/* Whether `rows` rows from `sums` on, of n tiles, may hold NaN or infinities: their sum would. */
INLINE int amx_not_finite(int n, const float* sums, long rows) {
    f32 all = {0}, more = {0};
    for (int j = 0; j < n; j++, sums += 256) {
        long i = 0;
        for (; i + 1 < rows; i += 2) {
            all += *(const f32*)(sums + i * 16);
            more += *(const f32*)(sums + i * 16 + 16);
        }
        if (i < rows) all += *(const f32*)(sums + i * 16);
    }
    return _mm512_fpclass_ps_mask((__m512)(all + more), 0x99) != 0;
}
#endif
#endif

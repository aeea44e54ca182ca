#include "kernels.h"
#include "share.h"
#include "simd.h"

#include <string.h>

enum { SLOT_A, SLOT_B };

/* Blocks: KC columns of A and rows of B, NC columns of B, bytes of A. */
#define KC 256
#define A_BYTES (32l << 20)
#define NC (1024 / (int)sizeof(REAL))
#define SMALL_WORK 2000000.0   /* multiplications below which packing does not pay */
#define THREAD_WORK 150000.0 /* multiplications that pay for one more thread */
#define DOT_BYTES 1024 /* of each row, fetched before dot products read them */

/* The K block for a K: at most KC, blocks as even as possible. */
static long k_block(long k) {
    const long blocks = (k + KC - 1) / KC;
    return blocks ? MIN(KC, ((k + blocks - 1) / blocks + 7) / 8 * 8) : KC;
}

/* A row or column of the matrix of an image's windows. */
typedef struct {
    long image;
    int channel;
    int at[3]; /* pixel or tap: depth, height, width */
} cursor_t;

INLINE int advance(int* at, const int* limit) {
    for (int i = 2; i >= 0; i--) {
        if (++at[i] < limit[i]) return 0;
        at[i] = 0;
    }
    return 1;
}

static long image_taps(const image_t* g) {
    return (long)g->kernel[0] * g->kernel[1] * g->kernel[2];
}
static long image_pixels(const image_t* g) { return (long)g->out[0] * g->out[1] * g->out[2]; }
static long image_rows(const image_t* g) {
    return g->nhwc ? g->batch * image_pixels(g) : g->channels * image_taps(g);
}
static long image_columns(const image_t* g) {
    return g->nhwc ? g->channels * image_taps(g) : g->batch * image_pixels(g);
}

static void split(long i, const int* limit, int* at) {
    at[2] = (int)(i % limit[2]);
    i /= limit[2];
    at[1] = (int)(i % limit[1]);
    at[0] = (int)(i / limit[1]);
}

static cursor_t pixel_of(const image_t* g, long i) {
    const long pixels = image_pixels(g);
    cursor_t c = {i / pixels, 0, {0}};
    split(i % pixels, g->out, c.at);
    return c;
}

static cursor_t tap_of(const image_t* g, long i) {
    const long taps = image_taps(g);
    cursor_t c = {0, (int)(g->nhwc ? i % g->channels : i / taps), {0}};
    split(g->nhwc ? i / g->channels : i % taps, g->kernel, c.at);
    return c;
}

static cursor_t row_of(const image_t* g, long i) { return g->nhwc ? pixel_of(g, i) : tap_of(g, i); }
static cursor_t column_of(const image_t* g, long i) {
    return g->nhwc ? tap_of(g, i) : pixel_of(g, i);
}

INLINE void next_row(const image_t* g, cursor_t* row) {
    if (advance(row->at, g->nhwc ? g->out : g->kernel)) {
        row->image += g->nhwc;
        row->channel += !g->nhwc;
    }
}

/* Whether the windows are the pixels themselves, one matrix in memory. */
static int windows_are_pixels(const image_t* g) {
    for (int i = 0; i < 3; i++)
        if (g->kernel[i] != 1 || g->stride[i] != 1 || g->pad[i] ||
            g->out[i] != g->size[i])
            return 0;
    return g->batch == 1 || (g->nhwc && g->batch_stride == image_pixels(g) * g->step);
}

#define ELEMENT REAL
#define GROUP 1
#define GROUPS(k) (k)
#define EXTRA 0
#define OFFSET 0
#define MULTIPLY_ADD(sum, a, b) ((sum) + (a) * (b))
#define MULTIPLY_ADD_V MULTIPLY_ADD
#define SCALE(alpha, x) ((alpha) * (x))
#define NEGATIVE(x) ((x) < 0)
#define V_ALONG(x, n) V_LOAD(x, V_FIRST(MIN(n, LANES)))

#define REAL float
#define FN_T(x) CAT(x, _f32)
#define FN(x) CAT(CAT(s, x), ISA)
#define V_MASK f32_mask
#define V_FIRST f32_first
#if VECTOR_BYTES >= 32
#define V_RANGE f32_range
#define V_LOAD_OF f32_load_of
#endif
#define V_LOAD f32_load
#define V_STORE f32_store
#define V_INDEX i32
#define V_LANES F32_LANES
#ifdef __AMX_BF16__
#define WITH_TILES
#endif
#include "gemm_template.h"
#undef WITH_TILES
#undef REAL
#undef FN_T
#undef FN
#undef V_MASK
#undef V_FIRST
#undef V_RANGE
#undef V_LOAD_OF
#undef V_LOAD
#undef V_STORE
#undef V_INDEX
#undef V_LANES

#define REAL double
#define FN_T(x) CAT(x, _f64)
#define FN(x) CAT(CAT(d, x), ISA)
#define V_MASK f64_mask
#define V_FIRST f64_first
#if VECTOR_BYTES >= 32
#define V_RANGE f64_range
#define V_LOAD_OF f64_load_of
#endif
#define V_LOAD f64_load
#define V_STORE f64_store
#define V_INDEX i64
#define V_LANES F64_LANES
#include "gemm_template.h"
#undef ELEMENT
#undef GROUP
#undef GROUPS
#undef EXTRA
#undef OFFSET
#undef MULTIPLY_ADD
#undef MULTIPLY_ADD_V
#undef SCALE
#undef NEGATIVE
#undef V_ALONG
#undef REAL
#undef FN_T
#undef FN
#undef V_MASK
#undef V_FIRST
#undef V_RANGE
#undef V_LOAD_OF
#undef V_LOAD
#undef V_STORE
#undef V_INDEX
#undef V_LANES

/* int8 to int32, modulo 2^32. With VNNI, groups are four bytes, those of A unsigned: 128 more than
 * they were. Else they are two values of 16 bits. The table has this level's functions only where
 * the processor has VNNI too. */
#if VECTOR_BYTES == 64
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx512vnni")
#endif
#define GROUP 4
#define EXTRA 1
#define OFFSET 0x80808080
INLINE u32 dot_groups(u32 sum, u32 a, u32 b) {
    return (u32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
INLINE u32 groups_along(const int8_t* x, long n) {
    return (u32)_mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, MIN(n, 64)), x);
}
#else
#define GROUP 2
#define EXTRA 0
#define OFFSET 0
typedef int16_t i16 __attribute__((vector_size(VECTOR_BYTES)));
typedef int8_t i8_half __attribute__((vector_size(VECTOR_BYTES / 2)));
INLINE u32 dot_groups(u32 sum, u32 a, u32 b) {
#if VECTOR_BYTES == 32
    return sum + (u32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return sum + (u32)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    const i32 low = ((i32)(a << 16) >> 16) * ((i32)(b << 16) >> 16);
    return sum + (u32)low + (u32)(((i32)a >> 16) * ((i32)b >> 16));
#endif
}
INLINE u32 groups_along(const int8_t* x, long n) {
    i8_half v = {0};
    if (n >= (long)sizeof v) memcpy(&v, x, sizeof v);
    else memcpy(&v, x, n);
    return (u32)__builtin_convertvector(v, i16);
}
#endif

/* A group of each of n columns, of which `rows` rows exist. */
INLINE u32 groups_across(const int8_t* x, long ld, long n, long rows) {
    int8_t some[GROUP][F32_LANES];
    if (n < F32_LANES || rows < GROUP) {
        memset(some, 0, sizeof some);
        for (long i = 0; i < MIN(rows, GROUP); i++) memcpy(some[i], x + i * ld, MIN(n, F32_LANES));
        x = some[0];
        ld = F32_LANES;
    }
#if GROUP == 4
    const i32 dwords = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)x));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i*)(x + ld)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i*)(x + 2 * ld)), 2);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i*)(x + 3 * ld)), 3);
    return (u32)_mm512_shuffle_epi8(
        _mm512_permutexvar_epi32((__m512i)dwords, v),
        _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
#elif defined(__SSE2__)
    uint64_t low = 0, high = 0;
    memcpy(&low, x, F32_LANES);
    memcpy(&high, x + ld, F32_LANES);
    const __m128i pairs = _mm_unpacklo_epi8(_mm_cvtsi64_si128(low), _mm_cvtsi64_si128(high));
#if VECTOR_BYTES == 32
    return (u32)_mm256_cvtepi8_epi16(pairs);
#else
    return (u32)_mm_srai_epi16(_mm_unpacklo_epi8(pairs, pairs), 8);
#endif
#else
    u32 v;
    for (int i = 0; i < F32_LANES; i++) v[i] = (uint16_t)x[i] | (uint32_t)x[ld + i] << 16;
    return v;
#endif
}

#define REAL uint32_t
#define ELEMENT int8_t
#define GROUPS(k) (((k) + GROUP - 1) / GROUP)
#define MULTIPLY_ADD(sum, a, b) dot_groups(sum, (u32){0} + (a), b)
#define MULTIPLY_ADD_V dot_groups
#define SCALE(alpha, x) (x)
#define NEGATIVE(x) ((i32)(x) < 0)
#define FN_T(x) CAT(x, _u32)
#define FN(x) CAT(CAT(i, x), ISA)
#define V_MASK f32_mask
#define V_FIRST f32_first
#define V_LOAD u32_load
#define V_STORE u32_store
#define V_ALONG groups_along
#define V_ACROSS groups_across
#define V_INDEX i32
#define V_LANES F32_LANES
#include "gemm_template.h"

int FN(gemm_op)(long m, long n, long k, const operand_t* a, const operand_t* b, int beta,
                int32_t* c, long ldc, const epilogue_t* e, int nth) {
    return FN(multiply)(m, n, k, 1, FN(source)(a, OPERAND_A, k), FN(source)(b, OPERAND_B, k),
                        beta != 0, (uint32_t*)c, ldc, e, nth);
}

int FN(gemm)(int trans_a, int trans_b, long m, long n, long k, const int8_t* a, long lda,
             const int8_t* b, long ldb, int beta, int32_t* c, long ldc, const epilogue_t* e,
             int nth) {
    const FN(source_t) sa = {a, lda, !trans_a, 0, 0, k}, sb = {b, ldb, !!trans_b, 0, 0, k};
    return FN(multiply)(m, n, k, 1, sa, sb, beta != 0, (uint32_t*)c, ldc, e, nth);
}

#if defined(__clang__) && VECTOR_BYTES == 64
#pragma clang attribute pop
#endif

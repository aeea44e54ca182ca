/* Vectors of the widest registers of this level: f32 and f64, with masked loads and stores for
 * the first n lanes. Everything else is GCC's and Clang's vector arithmetic. */
#ifndef CAFFE2_SIMD_H
#define CAFFE2_SIMD_H
#include <stdint.h>

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#if defined(__AVX512F__)
#include <immintrin.h>
#define VECTOR_BYTES 64
#define F32_LANES 16
#define F64_LANES 8
#elif defined(__AVX2__)
#include <immintrin.h>
#define VECTOR_BYTES 32
#define F32_LANES 8
#define F64_LANES 4
#else
#ifdef __SSE2__
#include <emmintrin.h>
#endif
#define VECTOR_BYTES 16
#define F32_LANES 4
#define F64_LANES 2
#endif

typedef float f32 __attribute__((vector_size(VECTOR_BYTES)));
typedef float f32_u __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t i32 __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t i32_u __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t u32 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t u32_u __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef double f64 __attribute__((vector_size(VECTOR_BYTES)));
typedef double f64_u __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
typedef int64_t i64 __attribute__((vector_size(VECTOR_BYTES)));

/* Lanes in initializer lists: LANES_n(m, q) is {m(q, 0), ..., m(q, n - 1)}. */
#define LANES_2_(m, q, i) m(q, i), m(q, i + 1)
#define LANES_4_(m, q, i) LANES_2_(m, q, i), LANES_2_(m, q, i + 2)
#define LANES_8_(m, q, i) LANES_4_(m, q, i), LANES_4_(m, q, i + 4)
#define LANES_2(m, q) {LANES_2_(m, q, 0)}
#define LANES_4(m, q) {LANES_4_(m, q, 0)}
#define LANES_8(m, q) {LANES_8_(m, q, 0)}
#define LANES_16(m, q) {LANES_8_(m, q, 0), LANES_8_(m, q, 8)}

#ifdef __clang__
#define SHUFFLE_2(a, b, m, q) __builtin_shufflevector(a, b, LANES_2_(m, q, 0))
#define SHUFFLE_4(a, b, m, q) __builtin_shufflevector(a, b, LANES_4_(m, q, 0))
#define SHUFFLE_8(a, b, m, q) __builtin_shufflevector(a, b, LANES_8_(m, q, 0))
#define SHUFFLE_16(a, b, m, q) __builtin_shufflevector(a, b, LANES_8_(m, q, 0), LANES_8_(m, q, 8))
#define SHUFFLE(index, n, a, b, m, q) CAT(SHUFFLE_, n)(a, b, m, q)
#else
#define SHUFFLE(index, n, a, b, m, q) __builtin_shuffle(a, b, (index)CAT(LANES_, n)(m, q))
#endif

/* Ones in the first n lanes. */
INLINE i32 i32_first(long n) {
#if VECTOR_BYTES == 64
    return (i32)_mm512_movm_epi32((__mmask16)((1u << n) - 1));
#elif VECTOR_BYTES == 32
    return (i32){0, 1, 2, 3, 4, 5, 6, 7} < (int32_t)n;
#else
    return (i32){0, 1, 2, 3} < (int32_t)n;
#endif
}

/* The larger of two; b where one of them is NaN. */
INLINE f32 f32_max(f32 a, f32 b) {
#if VECTOR_BYTES == 64
    return (f32)_mm512_max_ps((__m512)a, (__m512)b);
#elif VECTOR_BYTES == 32
    return (f32)_mm256_max_ps((__m256)a, (__m256)b);
#else
    const i32 greater = a > b;
    return (f32)((greater & (i32)a) | (~greater & (i32)b));
#endif
}

#if VECTOR_BYTES == 64

typedef __mmask16 f32_mask;
typedef __mmask8 f64_mask;
INLINE f32_mask f32_first(long n) { return (f32_mask)((1u << n) - 1); }
INLINE f64_mask f64_first(long n) { return (f64_mask)((1u << n) - 1); }
INLINE f32_mask f32_range(long from, long to) { return (f32_mask)((1u << to) - (1u << from)); }
INLINE f64_mask f64_range(long from, long to) { return (f64_mask)((1u << to) - (1u << from)); }
INLINE f32 f32_load(const float* p, f32_mask m) { return (f32)_mm512_maskz_loadu_ps(m, p); }
INLINE f64 f64_load(const double* p, f64_mask m) { return (f64)_mm512_maskz_loadu_pd(m, p); }
INLINE u32 u32_load(const uint32_t* p, f32_mask m) { return (u32)_mm512_maskz_loadu_epi32(m, p); }
INLINE f32 f32_load_of(const float* x, long size, long at, f32_mask m) { return f32_load(x + at, m); }
INLINE f64 f64_load_of(const double* x, long size, long at, f64_mask m) { return f64_load(x + at, m); }
INLINE void f32_store(float* p, f32 x, f32_mask m) { _mm512_mask_storeu_ps(p, m, (__m512)x); }
INLINE void f64_store(double* p, f64 x, f64_mask m) { _mm512_mask_storeu_pd(p, m, (__m512d)x); }
INLINE void u32_store(uint32_t* p, u32 x, f32_mask m) {
    _mm512_mask_storeu_epi32(p, m, (__m512i)x);
}

#elif VECTOR_BYTES == 32

typedef __m256i f32_mask;
typedef __m256i f64_mask;
INLINE f32_mask f32_first(long n) {
    i32 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return (__m256i)(lane < (int32_t)n);
}
INLINE f64_mask f64_first(long n) {
    i64 lane = {0, 1, 2, 3};
    return (__m256i)(lane < (int64_t)n);
}
INLINE f32_mask f32_range(long from, long to) {
    i32 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return (__m256i)((lane >= (int32_t)from) & (lane < (int32_t)to));
}
INLINE f64_mask f64_range(long from, long to) {
    i64 lane = {0, 1, 2, 3};
    return (__m256i)((lane >= (int64_t)from) & (lane < (int64_t)to));
}
/* Masked loads and stores take some processors 12 cycles each, so whole vectors go without. */
INLINE int f32_whole(f32_mask m) { return _mm256_movemask_ps((__m256)m) == 0xff; }
INLINE int f64_whole(f64_mask m) { return _mm256_movemask_pd((__m256d)m) == 0xf; }
INLINE f32 f32_load(const float* p, f32_mask m) {
    return f32_whole(m) ? (f32)*(const f32_u*)p : (f32)_mm256_maskload_ps(p, m);
}
INLINE f64 f64_load(const double* p, f64_mask m) {
    return f64_whole(m) ? (f64)*(const f64_u*)p : (f64)_mm256_maskload_pd(p, m);
}
/* The vector at a place of an array, which is read as a whole where it does not reach beyond. */
INLINE f32 f32_load_of(const float* x, long size, long at, f32_mask m) {
    if (at < 0 || at > size - F32_LANES) return f32_load(x + at, m);
    return (f32)((i32)*(const f32_u*)(x + at) & (i32)m);
}
INLINE f64 f64_load_of(const double* x, long size, long at, f64_mask m) {
    if (at < 0 || at > size - F64_LANES) return f64_load(x + at, m);
    return (f64)((i64)*(const f64_u*)(x + at) & (i64)m);
}
INLINE u32 u32_load(const uint32_t* p, f32_mask m) {
    return f32_whole(m) ? (u32)*(const u32_u*)p : (u32)_mm256_maskload_epi32((const int*)p, m);
}
INLINE void f32_store(float* p, f32 x, f32_mask m) {
    if (f32_whole(m)) *(f32_u*)p = x;
    else _mm256_maskstore_ps(p, m, (__m256)x);
}
INLINE void f64_store(double* p, f64 x, f64_mask m) {
    if (f64_whole(m)) *(f64_u*)p = x;
    else _mm256_maskstore_pd(p, m, (__m256d)x);
}
INLINE void u32_store(uint32_t* p, u32 x, f32_mask m) {
    if (f32_whole(m)) *(u32_u*)p = x;
    else _mm256_maskstore_epi32((int*)p, m, (__m256i)x);
}

#else

typedef long f32_mask;
typedef long f64_mask;
typedef f32_mask u32_mask;
INLINE f32_mask f32_first(long n) { return n; }
INLINE f64_mask f64_first(long n) { return n; }
#define PARTIAL(T, S)                                                     \
    INLINE T T##_load(const S* p, T##_mask n) {                           \
        T x = {0};                                                        \
        if (n == sizeof(T) / sizeof(S)) return *(const T##_u*)p;          \
        for (long i = 0; i < (long)(sizeof(T) / sizeof(S)); i++)          \
            if (i < n) x[i] = p[i];                                       \
        return x;                                                         \
    }                                                                     \
    INLINE void T##_store(S* p, T x, T##_mask n) {                        \
        if (n == sizeof(T) / sizeof(S)) *(T##_u*)p = x;                   \
        else                                                              \
            for (long i = 0; i < (long)(sizeof(T) / sizeof(S)); i++)      \
                if (i < n) p[i] = x[i];                                   \
    }
PARTIAL(f32, float)
PARTIAL(f64, double)
PARTIAL(u32, uint32_t)
#undef PARTIAL

#endif
#endif

/* Loops over contiguous float arrays. Polynomials are minimax fits made for these intervals. */
#include "kernels.h"
#include "simd.h"

#define FN(x) CAT(x, ISA)
#define LANES F32_LANES
#define SIMD _Pragma("omp simd")

INLINE f32 all(float x) { return x - (f32){0}; }
INLINE f32 where(i32 mask, f32 yes, f32 no) { return (f32)((mask & (i32)yes) | (~mask & (i32)no)); }
INLINE f32 absolute(f32 x) { return (f32)((i32)x & 0x7fffffff); }
INLINE f32 sign_of(f32 x) { return (f32)((i32)x & (int32_t)0x80000000); }
INLINE f32 with_sign(f32 x, f32 sign) { return (f32)((i32)x | (i32)sign); }

#define LANE(q, l) (l)
/* The first n lanes of x, then those of rest. */
INLINE f32 first(f32 x, long n, f32 rest) {
    const i32 lane = CAT(LANES_, F32_LANES)(LANE, 0);
    return where(lane < (int32_t)n, x, rest);
}
INLINE f32 load_fill(const float* x, long n, float fill) {
    return first(f32_load(x, f32_first(n)), n, all(fill));
}

#define LOWER(q, l) ((l) ^ (q))
#define FOLD(x, op, q)                                                       \
    {                                                                        \
        const f32 other = SHUFFLE(i32, F32_LANES, x, x, LOWER, q);           \
        x = op(x, other);                                                    \
    }
#if F32_LANES == 16
#define FOLD_ALL(x, op) FOLD(x, op, 8) FOLD(x, op, 4) FOLD(x, op, 2) FOLD(x, op, 1)
#elif F32_LANES == 8
#define FOLD_ALL(x, op) FOLD(x, op, 4) FOLD(x, op, 2) FOLD(x, op, 1)
#else
#define FOLD_ALL(x, op) FOLD(x, op, 2) FOLD(x, op, 1)
#endif

INLINE f32 add(f32 a, f32 b) { return a + b; }
INLINE f32 larger(f32 a, f32 b) { return where((a > b) | (a != a), a, b); } /* NaN wins */
INLINE float sum_lanes(f32 x) {
    FOLD_ALL(x, add)
    return x[0];
}
INLINE float max_lanes(f32 x) {
    FOLD_ALL(x, f32_max)
    return x[0];
}

/* ---- functions of one vector --------------------------------------------------------------- */

#define MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, in the low bits */

INLINE f32 exp_(f32 x) {
    const i32 zero = x < -104.0f; /* set apart: arithmetic that underflows is very slow */
    x = (f32)((i32)x & ~zero);
    x = -f32_max(all(-90.0f), -x);
    const f32 shifted = x * 1.44269504f + MAGIC;
    const f32 whole = shifted - MAGIC;
    const f32 r = (x - whole * 0.693145752f) - whole * 1.42860677e-6f;
    f32 p = r * 1.381446689e-3f + 8.368780415e-3f;
    p = p * r + 4.166839421e-2f;
    p = p * r + 1.666652011e-1f;
    p = p * r + 4.999999341e-1f;
    p = p * (r * r) + r + 1.0f;
    /* 2^whole in two factors: one alone would leave the exponent's range near the ends. */
    const i32 n = (i32)shifted - (i32)all(MAGIC), half = n >> 1;
    p = p * (f32)((half + 127) << 23) * (f32)((n - half + 127) << 23);
    return (f32)((i32)p & ~zero);
}

INLINE f32 log_(f32 x) {
    const i32 tiny = x < 1.17549435e-38f;
    const f32 scaled = where(tiny, x * 8388608.0f, x);
    const i32 bits = (i32)scaled - 0x3f3504f3; /* sqrt(1/2) */
    const f32 m = (f32)((bits & 0x007fffff) + 0x3f3504f3);
    const f32 e = __builtin_convertvector((bits >> 23) - (tiny & 23), f32);
    const f32 f = m - 1.0f;
    f32 p = f * 6.746641054e-2f + -1.167565197e-1f;
    p = p * f + 1.188816210e-1f;
    p = p * f + -1.240558888e-1f;
    p = p * f + 1.421955238e-1f;
    p = p * f + -1.666799586e-1f;
    p = p * f + 2.000211866e-1f;
    p = p * f + -2.500000960e-1f;
    p = p * f + 3.333331260e-1f;
    const f32 square = f * f;
    f32 y = p * (square * f) + e * 1.42860677e-6f;
    y = y - 0.5f * square + f + e * 0.693145752f;
    y = where((i32)x == 0x7f800000, x, y);
    y = where(x == 0.0f, all(-__builtin_inff()), y);
    return where((x < 0.0f) | (x != x), all(__builtin_nanf("")), y);
}

INLINE f32 tanh_(f32 x) {
    const f32 a = absolute(x), u = x * x;
    f32 p = u * -5.515163888e-3f + 2.046941990e-2f;
    p = p * u + -5.368802311e-2f;
    p = p * u + 1.333083035e-1f;
    p = p * u + -3.333325985e-1f;
    const f32 near = x + x * (u * p), far = 1.0f - 2.0f / (exp_(a + a) + 1.0f);
    return with_sign(where(a < 0.625f, near, far), sign_of(x)); /* keeps the sign of 0 */
}

INLINE f32 sigmoid_(f32 x) {
    const f32 e = exp_((f32)((i32)x | (int32_t)0x80000000)); /* exp(-|x|) */
    return where(x < 0.0f, e, all(1.0f)) / (1.0f + e);
}

INLINE f32 erf_(f32 x) {
    const f32 a = absolute(x), u = x * x;
    f32 p = u * 7.853861218e-5f + -8.010193584e-4f;
    p = p * u + 5.188327681e-3f;
    p = p * u + -2.685381193e-2f;
    p = p * u + 1.128358515e-1f;
    p = p * u + -3.761262582e-1f;
    p = p * u + 0.128379166f;
    const f32 b = where(a > 4.0f, all(4.0f), a);
    f32 q = b * -1.855740092e-4f + 2.939607296e-3f;
    q = q * b + -2.180531829e-2f;
    q = q * b + 1.030373687e-1f;
    q = q * b + 6.382256773e-1f;
    q = q * b + 1.127040036f;
    q = q * b + 3.537195005e-4f;
    const f32 far = with_sign(1.0f - exp_(-q), sign_of(x));
    return where(a > 1.0f, far, x + x * p); /* NaN goes through the polynomial */
}

#define UNARY(f)                                                                   \
    void FN(v##f)(long n, const float* x, float* y) {                              \
        for (; n >= LANES; n -= LANES, x += LANES, y += LANES)                     \
            *(f32_u*)y = f##_(*(const f32_u*)x);                                   \
        if (n > 0) f32_store(y, f##_(f32_load(x, f32_first(n))), f32_first(n));    \
    }
UNARY(exp)
UNARY(log)
UNARY(tanh)
UNARY(sigmoid)
UNARY(erf)

void FN(softmax_rows)(long n, long d, const float* x, float* y) {
    for (long row = 0; row < n; row++, x += d, y += d) {
        const long rest = d % LANES, whole = d - rest;
        f32 top = all(-__builtin_inff()), total = {0};
        for (long i = 0; i < whole; i += LANES) top = f32_max(*(const f32_u*)(x + i), top);
        if (rest) top = f32_max(load_fill(x + whole, rest, -__builtin_inff()), top);
        const f32 shift = all(max_lanes(top));
        if (!whole) { /* one vector holds the row */
            const f32 e = exp_(load_fill(x, rest, -__builtin_inff()) - shift);
            f32_store(y, e / all(sum_lanes(e)), f32_first(rest));
            continue;
        }
        for (long i = 0; i < whole; i += LANES) {
            const f32 e = exp_(*(const f32_u*)(x + i) - shift);
            *(f32_u*)(y + i) = e;
            total += e;
        }
        if (rest) {
            const f32 e = exp_(load_fill(x + whole, rest, -__builtin_inff()) - shift);
            f32_store(y + whole, e, f32_first(rest));
            total += e;
        }
        const float scale = 1.0f / sum_lanes(total);
        SIMD for (long i = 0; i < d; i++) y[i] *= scale;
    }
}

/* ---- elementwise --------------------------------------------------------------------------- */

void FN(vrelu)(long n, const float* x, float* y) {
    SIMD for (long i = 0; i < n; i++) y[i] = x[i] < 0 ? 0 : x[i];
}
void FN(vrelu_grad)(long n, const float* y, const float* dy, float* dx) {
    SIMD for (long i = 0; i < n; i++) dx[i] = y[i] > 0 ? dy[i] : 0;
}
void FN(vsigmoid_grad)(long n, const float* y, const float* dy, float* dx) {
    SIMD for (long i = 0; i < n; i++) dx[i] = dy[i] * y[i] * (1 - y[i]);
}
void FN(vtanh_grad)(long n, const float* y, const float* dy, float* dx) {
    SIMD for (long i = 0; i < n; i++) dx[i] = dy[i] * (1 - y[i] * y[i]);
}
void FN(vaxpy)(long n, float a, const float* x, float* y) {
    SIMD for (long i = 0; i < n; i++) y[i] += a * x[i];
}
void FN(vaxpby)(long n, float a, const float* x, float b, const float* y, float* z) {
    SIMD for (long i = 0; i < n; i++) z[i] = a * x[i] + b * y[i];
}
void FN(vscale)(long n, float a, const float* x, float* y) {
    SIMD for (long i = 0; i < n; i++) y[i] = a * x[i];
}
#define BINARY(name, op)                                                   \
    void FN(name)(long n, const float* x, const float* y, float* z) {      \
        SIMD for (long i = 0; i < n; i++) z[i] = x[i] op y[i];             \
    }
BINARY(vadd, +)
BINARY(vsub, -)
BINARY(vmul, *)
BINARY(vdiv, /)

/* ---- reductions: lanes in float, blocks in double ------------------------------------------ */

#define REDUCE(name, parameters, term)                                     \
    double FN(name) parameters {                                           \
        double total = 0;                                                  \
        for (long from = 0; from < n; from += 4096) {                      \
            const long to = MIN(n, from + 4096);                           \
            float s = 0;                                                   \
            _Pragma("omp simd reduction(+ : s)") for (long i = from; i < to; i++) s += term; \
            total += s;                                                    \
        }                                                                  \
        return total;                                                      \
    }
REDUCE(vsum, (long n, const float* x), x[i])
REDUCE(vsumsq, (long n, const float* x), x[i] * x[i])
REDUCE(vdot, (long n, const float* x, const float* y), x[i] * y[i])

float FN(vmax)(long n, const float* x) {
    f32 top = all(-__builtin_inff());
    for (; n >= LANES; n -= LANES, x += LANES) top = larger(*(const f32_u*)x, top);
    if (n > 0) top = larger(load_fill(x, n, -__builtin_inff()), top);
    FOLD_ALL(top, larger)
    return top[0];
}

void FN(column_sums)(long m, long n, const float* x, long ldx, float* y) {
    enum { WIDTH = 4 * LANES, ROWS = 256 };
    for (long j = 0; j < n; j += WIDTH) {
        const long w = MIN(WIDTH, n - j);
        for (long i = 0; i < m; i += ROWS) { /* blocks keep the rounding small */
            const long rows = MIN(ROWS, m - i);
            const float* p = x + i * ldx + j;
            f32 s[4] = {{0}};
            f32_mask mask[4];
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) mask[q] = f32_first(MAX(0, MIN(w - q * LANES, LANES)));
            if (w == WIDTH)
                for (long r = 0; r < rows; r++, p += ldx)
#pragma GCC unroll 4
                    for (int q = 0; q < 4; q++) s[q] += *(const f32_u*)(p + q * LANES);
            else
                for (long r = 0; r < rows; r++, p += ldx)
#pragma GCC unroll 4
                    for (int q = 0; q < 4; q++)
                        if (q * LANES < w) s[q] += f32_load(p + q * LANES, mask[q]);
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++)
                if (q * LANES < w) {
                    if (i) s[q] += f32_load(y + j + q * LANES, mask[q]);
                    f32_store(y + j + q * LANES, s[q], mask[q]);
                }
        }
        if (m <= 0)
            for (long q = 0; q < w; q++) y[j + q] = 0;
    }
}

/* ---- optimizer updates --------------------------------------------------------------------- */

void FN(momentum)(long n, float lr, float mu, int nesterov, const float* g, const float* m,
                  float* ng, float* nm, float* w) {
    if (nesterov)
        SIMD for (long i = 0; i < n; i++) {
            const float old = m[i], now = mu * old + lr * g[i];
            nm[i] = now;
            ng[i] = (1 + mu) * now - mu * old;
        }
    else
        SIMD for (long i = 0; i < n; i++) nm[i] = ng[i] = mu * m[i] + lr * g[i];
    if (w) SIMD for (long i = 0; i < n; i++) w[i] -= ng[i];
}

void FN(adagrad)(long n, float lr, float decay, float epsilon, const float* w, const float* g,
                 const float* h, float* nw, float* nh) {
    SIMD for (long i = 0; i < n; i++) {
        const float gi = g[i], hi = decay * h[i] + gi * gi;
        nh[i] = hi;
        nw[i] = w[i] + lr * gi / (__builtin_sqrtf(hi) + epsilon);
    }
}

void FN(adam)(long n, float lr, float beta1, float beta2, float epsilon, const float* w,
              const float* g, const float* m, const float* v, float* nw, float* nm, float* nv) {
    SIMD for (long i = 0; i < n; i++) {
        const float gi = g[i];
        const float mi = m[i] * beta1 + gi * (1 - beta1), vi = v[i] * beta2 + gi * gi * (1 - beta2);
        nm[i] = mi;
        nv[i] = vi;
        nw[i] = w[i] + lr * mi / (__builtin_sqrtf(vi) + epsilon);
    }
}

void FN(rmsprop)(long n, float lr, float decay, float mu, float epsilon, const float* g,
                 const float* ms, const float* mom, float* ng, float* nms, float* nmom) {
    SIMD for (long i = 0; i < n; i++) {
        const float gi = g[i], square = ms[i] + (1 - decay) * (gi * gi - ms[i]);
        const float now = mom[i] * mu + lr * gi / __builtin_sqrtf(epsilon + square);
        nms[i] = square;
        nmom[i] = now;
        ng[i] = now;
    }
}

/* ---- float16 ------------------------------------------------------------------------------- */

static inline float from_half(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } x = {(uint32_t)(h & 0x7fff) << 13}, scale = {0x77800000u}; /* 2^112 */
    if ((h & 0x7c00) == 0x7c00) x.u |= 0x7f800000u;
    else x.f *= scale.f;
    x.u |= (uint32_t)(h & 0x8000) << 16;
    return x.f;
}

static inline uint16_t to_half(float value) {
    union {
        float f;
        uint32_t u;
    } x = {value};
    const uint32_t sign = x.u >> 16 & 0x8000;
    x.u &= 0x7fffffff;
    if (x.u > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (x.u >> 13 & 0x3ff));
    if (x.u >= 0x47800000) return (uint16_t)(sign | 0x7c00);
    if (x.u < 0x38800000) { /* subnormal: adding 0.5 rounds at the last place of a half */
        x.f += 0.5f;
        return (uint16_t)(sign | (x.u - 0x3f000000));
    }
    return (uint16_t)(sign | ((x.u - 0x38000000 + 0xfff + (x.u >> 13 & 1)) >> 13));
}

void FN(half_to_float)(long n, const uint16_t* x, float* y) {
    long i = 0;
#if VECTOR_BYTES == 64
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(y + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(x + i))));
#elif VECTOR_BYTES == 32
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(x + i))));
#endif
    for (; i < n; i++) y[i] = from_half(x[i]);
}

void FN(float_to_half)(long n, const float* x, uint16_t* y) {
    long i = 0;
#if VECTOR_BYTES == 64
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((__m256i*)(y + i), _mm512_cvtps_ph(_mm512_loadu_ps(x + i), 0));
#elif VECTOR_BYTES == 32
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i*)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
#endif
    for (; i < n; i++) y[i] = to_half(x[i]);
}

#include "kernels.h"
#include "simd.h"

enum { SLOT_A, SLOT_B };

/* Blocks: KC columns of A and rows of B, NC columns of B, bytes of A. */
#define KC 256
#define A_BYTES (32l << 20)
#define NC (1024 / (int)sizeof(REAL))
#define SMALL_WORK 2000000.0   /* multiplications below which packing does not pay */
#define THREAD_WORK 150000.0 /* multiplications that pay for one more thread */

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

#define REAL float
#define FN_T(x) CAT(x, _f32)
#define FN(x) CAT(CAT(s, x), ISA)
#define V_MASK f32_mask
#define V_FIRST f32_first
#if VECTOR_BYTES >= 32
#define V_RANGE f32_range
#endif
#define V_LOAD f32_load
#define V_STORE f32_store
#define V_INDEX i32
#define V_LANES F32_LANES
#include "gemm_template.h"
#undef REAL
#undef FN_T
#undef FN
#undef V_MASK
#undef V_FIRST
#undef V_RANGE
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
#endif
#define V_LOAD f64_load
#define V_STORE f64_store
#define V_INDEX i64
#define V_LANES F64_LANES
#include "gemm_template.h"

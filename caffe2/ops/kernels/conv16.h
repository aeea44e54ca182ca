/* What the sources of blocked convolution share. */
#ifndef CAFFE2_CONV16_H
#define CAFFE2_CONV16_H
#include <string.h>

#include "kernels.h"
#include "simd.h"

#define LANES F32_LANES
#define PANEL (2 * LANES) /* output channels that a tile computes at once */
#define UNROLL _Pragma("GCC unroll 32")
#define BLOCKS(channels) (((channels) + 15l) / 16)
#define DIVIDE_UP(a, b) (((a) + (b) - 1) / (b))
#define THREAD_WORK 150000.0 /* multiplications that pay for one more thread */
#define REPACK_PIXELS (LANES == 16 ? 512. : 256.) /* from there on, transforming filters for one use pays */
#define BAND_BYTES (512l << 10) /* of the input: what stays in the second-level cache */

/* At most this many pixels are computed at once, times one or two vectors of output channels. */
#if VECTOR_BYTES == 64
#define PIXELS 14
#else
#define PIXELS 6
#endif

#define FEW 4 /* channels whose sums are one piece of code: less of it for counting */

/* Starts to bring n floats here, from memory or from the caches of another processor. */
INLINE void fetch(const float* x, long n) {
    for (long i = 0; i < n; i += 16) __builtin_prefetch(x + i);
}

/* What the sums of a tile run over: places in the input, `depth` channels at each. */
typedef struct {
    long taps, full; /* the first `full` have depth 16, the others `tail`; of NCHW it is 1 */
    int tail;
    const long* at;
    const float* later; /* filters for the second-level cache: a line or FEW, then later_step on */
    long later_step;
} reduction_t;

/* n pixels in parts as even as can be; a division for each would take as long as some pixels. */
typedef struct {
    long at, rest, parts, size, more;
} cuts_t;

INLINE cuts_t cuts_of(long n, long parts, long part) {
    return (cuts_t){part * n / parts, part * n % parts, parts, n / parts, n % parts};
}

/* Where the next part begins. */
INLINE long next_cut(cuts_t* c) {
    const int over = (c->rest += c->more) >= c->parts;
    c->rest -= over ? c->parts : 0;
    return c->at += c->size + over;
}

/* Makes a pass over a panel's filters (steps times width) fetch its share of what lies at next. */
static inline void fetch_later(reduction_t* r, const float* next, long width, long steps, long pass,
                               long share) {
    const long all = pass * share >= width;
    r->later = all ? (const float*)r : next + pass * share * steps;
    r->later_step = all ? 0 : FEW * share;
}

/* Where the sums of a panel go. */
typedef struct {
    f32 bias[2];   /* of the panel's vectors */
    i32 lanes[2];  /* that are channels */
    int whole;     /* all of them are */
    long residual; /* from y; has_residual tells if there is one */
    int has_residual;
    long row, vector; /* floats between tile rows, between vectors */
    float low, high;
} finish_t;

typedef void (*tile_t)(const reduction_t* r, const float* x, long x_row, const float* w, float* y,
                       const finish_t* f);

/* The tile of rows x columns pixels, `vectors` (1 or 2) of output channels. PLAIN tiles only store
 * their sums; two rows are only for BLOCKED ones. */
enum { TILE_NCHW, TILE_BLOCKED, TILE_PLAIN };
tile_t CAT(conv16_tile, ISA)(int kind, int vectors, int rows, int columns);

int CAT(conv16_way, ISA)(const conv16_t* c, int images, int winograd);
size_t CAT(conv16_pack_bytes, ISA)(const conv16_t* c, int way);

/* Where filters lie: floats between groups, output and input channels, and each tap's place. */
typedef struct {
    const float* w;
    long group_step, out_step, in_step;
    const long* at;
} filters_t;
void CAT(conv16_gather, ISA)(const conv16_t* c, const filters_t* f, long group, long first,
                             long width, long channel, long channels, float* to);
int CAT(conv16_pack_from, ISA)(const conv16_t* c, int way, const filters_t* f, float* packed,
                               int nth);
int CAT(conv16, ISA)(const conv16_t* c, int way, const float* x, const float* packed,
                     const epilogue16_t* e, float* y, int nth);
/* Winograd's products for t pixels of a line, and for all of a line of so many pixels, whose last tile
 * may be smaller. */
#define WINOGRAD_SIDE(t, stride) ((stride) == 2 ? 2 * (t) + 1 : (t) + 2)
static inline long winograd_line(const conv16_t* c, int axis, int t) {
    const int stride = c->stride[axis], rest = c->out[axis] % t;
    return (long)(c->out[axis] / t) * WINOGRAD_SIDE(t, stride) +
           (rest ? WINOGRAD_SIDE(rest, stride) : 0);
}
void CAT(winograd_pack, ISA)(const conv16_t* c, int t, const filters_t* f, float* packed, int nth);
int CAT(winograd, ISA)(const conv16_t* c, int tile, const float* x, const float* packed,
                       const epilogue16_t* e, float* y, int nth);
void CAT(depthwise16, ISA)(const depthwise16_t* d, float* y, int nth);
/* One block of channels in rows from..to - 1 of one image; residual and y are those of row `from`. */
void CAT(depthwise16_band, ISA)(const depthwise16_t* d, long image, long block, int from, int to,
                                const float* residual, float* y);
/* All that it answers, in scratch memory of the calling thread; NULL where there is none. */
const float* CAT(depthwise16_all, ISA)(const depthwise16_t* d, int nth);

#ifdef __AMX_BF16__
/* One axis: taps that are a multiple of the stride apart have a phase in common. */
typedef struct {
    long phases, reach; /* places beyond those of the result */
} axis_t;

static inline axis_t axis_of(const conv16_t* c, int i) {
    long a = c->stride[i], b = c->dilation[i];
    while (b) {
        const long rest = a % b;
        a = b;
        b = rest;
    }
    return (axis_t){MIN(c->kernel[i], c->stride[i] / a),
                    (c->kernel[i] - 1l) * c->dilation[i] / c->stride[i]};
}

double conv16_tiles_cycles(const conv16_t* c);
size_t conv16_tiles_bytes(const conv16_t* c);
int conv16_tiles_pack(const conv16_t* c, const filters_t* f, char* packed, int nth);
int conv16_tiles(const conv16_t* c, const depthwise16_t* before, const float* x,
                 const void* packed, const epilogue16_t* e, float* y, int nth);
double conv16_filter_tiles_cycles(const conv16_t* c);
int conv16_filter_tiles(const conv16_t* c, const float* x, const float* dy, float* dw, int nth);
#endif

/* A part of the work that one thread does at once. */
typedef struct {
    long group, image_0, image_1, down_0, down_1, panel_0, panel_1;
} part16_t;

/* How many parts there are of the output channels, of the rows, of the batch. */
typedef struct {
    long chunks, bands, batches;
} parts_t;
#define COUNT(n) ((n).chunks * (n).bands * (n).batches)

/* Divides one axis until there are `each` parts for each thread, and as many for each. */
static inline void more_parts(long* axis, long most, long count, long each, int nth) {
    if (count >= each * nth && count % nth == 0) return;
    const long others = count / *axis;
    long wanted = MAX(*axis, DIVIDE_UP(each * nth, others));
    while (wanted * others % nth) wanted++;
    *axis = MIN(most, wanted);
}

/* Divides a convolution among threads: at most into so many bands and chunks, chunks first or last. */
static inline void divide(const conv16_t* c, parts_t* n, int chunks_first, long bands, long chunks,
                          long each, int nth) {
    if (nth <= 1) return;
    if (chunks_first) more_parts(&n->chunks, chunks, c->group * COUNT(*n), each, nth);
    if (chunks % n->chunks && chunks < 8 * n->chunks) n->chunks = chunks; /* few, so not of two sizes */
    more_parts(&n->batches, c->batch, c->group * COUNT(*n), each, nth);
    more_parts(&n->bands, bands, c->group * COUNT(*n), each, nth);
    more_parts(&n->chunks, chunks, c->group * COUNT(*n), each, nth);
}

/* Part i, of an image that is `down` high and of so many panels. */
static inline part16_t part_of(const conv16_t* c, const parts_t* n, long i, long down, long panels) {
    const long chunk = i % n->chunks, band = i / n->chunks % n->bands;
    const long batch = i / n->chunks / n->bands % n->batches;
    return (part16_t){
        .group = i / COUNT(*n),
        .image_0 = batch * c->batch / n->batches, .image_1 = (batch + 1) * c->batch / n->batches,
        .down_0 = band * down / n->bands, .down_1 = (band + 1) * down / n->bands,
        .panel_0 = chunk * panels / n->chunks, .panel_1 = (chunk + 1) * panels / n->chunks,
    };
}

/* Which lanes of the vector of output channels from `channel` on are channels, and their bias. Read
 * by the thread that needs it: what another one has just written takes longer to come. */
INLINE i32 lanes_at(const conv16_t* c, long channel) {
    return i32_first(MAX(0, MIN(LANES, c->out_channels - channel)));
}

INLINE f32 bias_at(const conv16_t* c, const float* bias, long channel) {
    if (!bias) return (f32){0};
    return f32_load(bias + channel, f32_first(MAX(0, MIN(LANES, c->out_channels - channel))));
}

/* Floats from one image of y to the next. */
static inline long y_image(const conv16_t* c, const epilogue16_t* e) {
    return e->y_image ? e->y_image : 16 * BLOCKS(c->out_channels) * c->out[0] * c->out[1];
}

static inline int threads_for(double work, int nth) {
    return (int)MAX(1, MIN(nth, work / THREAD_WORK));
}

INLINE f32 clip(f32 x, float low, float high) {
    const f32 lo = (f32){0} + low, hi = (f32){0} + high;
#if VECTOR_BYTES == 64
    return (f32)_mm512_min_ps((__m512)hi, _mm512_max_ps((__m512)lo, (__m512)x));
#elif VECTOR_BYTES == 32
    return (f32)_mm256_min_ps((__m256)hi, _mm256_max_ps((__m256)lo, (__m256)x));
#else
    const i32 below = lo > x;
    x = (f32)((below & (i32)lo) | (~below & (i32)x));
    const i32 above = hi < x;
    return (f32)((above & (i32)hi) | (~above & (i32)x));
#endif
}

/* Image rows first..last of the taps are inside for an output at `at`: at + tap * dilation. */
INLINE void taps_inside(long at, int kernel, int dilation, int size, int* first, int* last) {
    *first = at < 0 ? (int)MIN(kernel, (-at + dilation - 1) / dilation) : 0;
    *last = at < size ? (int)MIN(kernel, (size - 1 - at) / dilation + 1) : 0;
    *last = MAX(*first, *last);
}
#endif

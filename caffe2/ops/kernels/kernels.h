/* Inner loops that need an instruction set, behind one table of function pointers.
 *
 * gemm.c and the like are compiled once for each level (-DISA=_v1, _v3, _v4, _amx); dispatch.c
 * is compiled once, for the baseline, and knows which levels this build holds and this processor
 * runs. Matrices are row-major; sizes are in elements unless they say bytes. Functions are safe
 * for concurrent callers. `nth` is the number of OpenMP threads to use at most; 1 opens no
 * parallel region. Functions that return int return 0, or -1 when memory ran out. */
#ifndef CAFFE2_KERNELS_H
#define CAFFE2_KERNELS_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What GEMM does to C after the product; NULL pointers are left out. T is the type of C:
 *   C = relu(alpha * op(A) * op(B) + beta * C + bias_row[i] + bias_col[j] + residual[i, j]) */
typedef struct {
    const void* bias_row; /* T[M]: one value for each row of C */
    const void* bias_col; /* T[N]: one value for each column of C */
    const void* residual; /* T, M rows of N, ld_residual apart */
    long ld_residual;
    int relu;
} epilogue_t;

/* An image seen as the matrix of its convolution windows, without building that matrix.
 * Axes are depth, height, width; 2-D images have depth 1, 1-D ones depth and height 1.
 *   nhwc = 0: rows are (channel, kd, kh, kw), columns are (image, od, oh, ow)
 *   nhwc = 1: rows are (image, od, oh, ow), columns are (kd, kh, kw, channel)
 * Positions outside the image read as 0. A group of a grouped convolution is a `data` pointer
 * at its first channel and `channels` of the group. */
typedef struct {
    int nhwc;
    int channels;
    long batch;        /* images, one after the other along the pixels */
    long batch_stride; /* between images */
    long step;         /* between channels (nhwc = 0) or between pixels (nhwc = 1) */
    int size[3], kernel[3], stride[3], pad[3], dilation[3], out[3];
} image_t;

/* One factor of a product: the matrix stored at data, or its transpose when trans is set.
 *   image != NULL: the matrix is the one image_t describes
 *   packed != 0:   data is what `pack` wrote, the other fields are ignored */
typedef struct {
    const void* data;
    long ld;
    int trans;
    int packed;
    const image_t* image;
} operand_t;

enum { OPERAND_A = 0, OPERAND_B = 1 };

/* Blocked images ("16c"): [batch][ceil(channels / 16)][height][width][16], 64-byte aligned. Lanes
 * beyond the last channel are 0, in what the kernels read and in what they write. */

/* A convolution or pooling of blocked images. pad is what lies above and left of the image; what
 * lies below and right follows from out. Positions outside the image are 0; pooling skips them. */
typedef struct {
    long batch;
    int channels, size[2]; /* of the input; size, like the rest, is height, width */
    int out_channels, out[2];
    int group, kernel[2], stride[2], pad[2], dilation[2];
} conv16_t;

/* What a convolution does to its sums before it writes them; NULL pointers are left out:
 *   y = min(max(sum + bias[channel] + residual, low), high), with low <= 0 <= high
 * No bounds are -INFINITY and INFINITY, relu is 0 and INFINITY. NaN stays NaN. residual is blocked,
 * of y's shape, lies as y does, and may be y. */
typedef struct {
    const float* bias; /* out_channels values */
    const float* residual;
    float low, high;
    long y_image; /* floats from one image of y to the next; 0: they follow each other */
} epilogue16_t;

/* A depthwise convolution: out_channels = channels = group, filters packed. */
typedef struct {
    conv16_t c;
    const float *x, *packed;
    epilogue16_t e;
} depthwise16_t;

/* The ways to convolve. Each has packed filters of its own; filters come as OIHW.
 *   direct     [group][panel of P output channels][block of 16 channels][kh][kw][channel][P];
 *              one group, or channels and out_channels of a group are multiples of 16
 *   first      [panel of P output channels][channel][kh][kw][P]; x is NCHW, one group
 *   depthwise  [block of 16 channels][kh][kw][16]; group = channels = out_channels
 *   winograd   [tap of the transform][panel of P output channels][channel][P]; 3x3, stride 1 (of
 *              winograd_4: or 2, along both axes, which are other taps), dilation 1, one group;
 *              tiles of 4x4 (2x2) pixels; largest error against float64, relative to the largest
 *              |y|: 5e-6 (1e-6) on normally distributed data with 512 channels, where direct has
 *              2.5e-6
 *   tiles      [group][panel of 32 output channels][32 channels][kh][kw][part][tile], see amx.h; of
 *              level amx only; groups as direct
 * P is 32, 16 or 8 by level (two vectors); out channels are padded to a multiple of 16, and what
 * that leaves of the last panel is narrower. Packed filters of one level do not fit another. */
enum {
    CONV16_NONE = -1, /* not for blocked images: use the product of matrices */
    CONV16_DIRECT,
    CONV16_FIRST,
    CONV16_DEPTHWISE,
    CONV16_WINOGRAD_4,
    CONV16_WINOGRAD_2,
    CONV16_TILES
};

/* What images a convolution meets; the last are what a depthwise one answers (separable16). */
enum { CONV16_BLOCKED, CONV16_NCHW, CONV16_ANSWERS };

enum { POOL16_MAX, POOL16_AVERAGE, POOL16_AVERAGE_PAD /* counts the border's zeros */ };

typedef struct kernels_t {
    const char* name; /* "v1", "v3", "v4", "amx" */
    int vector_bytes;

    /* ---- GEMM -------------------------------------------------------------------------- */

    /* C[M, N] = epilogue(alpha * op(A)[M, K] * op(B)[K, N] + beta * C); op is a transpose where
     * trans_a (trans_b) is set. beta = 0 does not read C. epilogue may be NULL. */
    int (*sgemm)(int trans_a, int trans_b, long m, long n, long k, float alpha, const float* a,
                 long lda, const float* b, long ldb, float beta, float* c, long ldc,
                 const epilogue_t* epilogue, int nth);
    int (*dgemm)(int trans_a, int trans_b, long m, long n, long k, double alpha, const double* a,
                 long lda, const double* b, long ldb, double beta, double* c, long ldc,
                 const epilogue_t* epilogue, int nth);

    /* The same with factors that may be images or packed. Convolution, NCHW, one image:
     *   forward          Y[M, pixels]  = W[M, taps] * image
     *   weight gradient  dW[M, taps]  += dY[M, pixels] * image^T (a batch at once: dY is itself
     *                    an image with a 1x1 kernel)
     *   data gradient    columns[taps, pixels] = W^T * dY, then col2im; or, for stride 1, a
     *                    forward convolution of dY with the flipped, transposed filter
     * and NHWC: Y[pixels, M] = image * W[M, taps]^T; dW = dY[pixels, M]^T * image. */
    int (*sgemm_op)(long m, long n, long k, float alpha, const operand_t* a, const operand_t* b,
                    float beta, float* c, long ldc, const epilogue_t* epilogue, int nth);
    int (*dgemm_op)(long m, long n, long k, double alpha, const operand_t* a, const operand_t* b,
                    double beta, double* c, long ldc, const epilogue_t* epilogue, int nth);

    /* Constant factors are packed once. which is OPERAND_A (n = M) or OPERAND_B (n = N); dst is
     * 64-byte aligned with pack_bytes bytes; use it as operand_t{.data = dst, .packed = 1}. */
    size_t (*sgemm_pack_bytes)(int which, long n, long k);
    int (*sgemm_pack)(int which, const operand_t* x, long n, long k, void* dst);
    size_t (*dgemm_pack_bytes)(int which, long n, long k);
    int (*dgemm_pack)(int which, const operand_t* x, long n, long k, void* dst);

    /* count products whose factors lie stride_a, stride_b, stride_c apart (0 repeats one). */
    int (*sgemm_batch)(long count, int trans_a, int trans_b, long m, long n, long k, float alpha,
                       const float* a, long lda, long stride_a, const float* b, long ldb,
                       long stride_b, float beta, float* c, long ldc, long stride_c, int nth);
    int (*dgemm_batch)(long count, int trans_a, int trans_b, long m, long n, long k, double alpha,
                       const double* a, long lda, long stride_a, const double* b, long ldb,
                       long stride_b, double beta, double* c, long ldc, long stride_c, int nth);

    /* int8 times int8, all four as above but for alpha, which is 1, and images, which there are not.
     * C is exact, modulo 2^32; beta is 0 or 1. Operands are packed differently, again. */
    int (*igemm)(int trans_a, int trans_b, long m, long n, long k, const int8_t* a, long lda,
                 const int8_t* b, long ldb, int beta, int32_t* c, long ldc,
                 const epilogue_t* epilogue, int nth);
    int (*igemm_op)(long m, long n, long k, const operand_t* a, const operand_t* b, int beta,
                    int32_t* c, long ldc, const epilogue_t* epilogue, int nth);
    size_t (*igemm_pack_bytes)(int which, long n, long k);
    int (*igemm_pack)(int which, const operand_t* x, long n, long k, void* dst);

    /* columns is the matrix of image windows (image_t.batch images at once): im2col writes it,
     * col2im adds its entries onto the image x, which the caller has filled (with zeros). */
    void (*sim2col)(const image_t* image, const float* x, float* columns, int nth);
    void (*dim2col)(const image_t* image, const double* x, double* columns, int nth);
    void (*scol2im)(const image_t* image, const float* columns, float* x, int nth);
    void (*dcol2im)(const image_t* image, const double* columns, double* x, int nth);

    /* One channel of one NCHW image (channels, batch and the steps between them do not count) and
     * one filter of its own: y = bias + filter over x; dw += its gradient; dx = the image's. */
    void (*depthwise)(const image_t* image, const float* x, const float* w, float bias, float* y);
    void (*depthwise_filter)(const image_t* image, const float* x, const float* dy, float* dw);
    void (*depthwise_image)(const image_t* image, const float* dy, const float* w, float* dx);

    /* ---- arrays of float --------------------------------------------------------------- */

    /* Largest error in units in the last place of the exact result (measured over all exponents);
     * NaN, infinities, zeros and subnormals as in libm. Outputs may be the inputs. */
    void (*vexp)(long n, const float* x, float* y);     /* 1 */
    void (*vlog)(long n, const float* x, float* y);     /* 1 */
    void (*vtanh)(long n, const float* x, float* y);    /* 1.5 */
    void (*vsigmoid)(long n, const float* x, float* y); /* 2.5 */
    void (*verf)(long n, const float* x, float* y);     /* 1.5 */
    /* Softmax of each of n rows of d, d > 0. */
    void (*softmax_rows)(long n, long d, const float* x, float* y);

    void (*vrelu)(long n, const float* x, float* y); /* NaN stays NaN */
    /* Gradients from the output: relu, sigmoid, tanh. */
    void (*vrelu_grad)(long n, const float* y, const float* dy, float* dx);
    void (*vsigmoid_grad)(long n, const float* y, const float* dy, float* dx);
    void (*vtanh_grad)(long n, const float* y, const float* dy, float* dx);
    /* y += a x; z = a x + b y; y = a x */
    void (*vaxpy)(long n, float a, const float* x, float* y);
    void (*vaxpby)(long n, float a, const float* x, float b, const float* y, float* z);
    void (*vscale)(long n, float a, const float* x, float* y);
    void (*vadd)(long n, const float* x, const float* y, float* z);
    void (*vsub)(long n, const float* x, const float* y, float* z);
    void (*vmul)(long n, const float* x, const float* y, float* z);
    void (*vdiv)(long n, const float* x, const float* y, float* z);

    double (*vsum)(long n, const float* x);
    double (*vsumsq)(long n, const float* x);
    double (*vdot)(long n, const float* x, const float* y);
    float (*vmax)(long n, const float* x); /* NaN where there is one; -inf for n = 0 */
    /* y[j] = sum over i of x[i * ldx + j], i < m, j < n */
    void (*column_sums)(long m, long n, const float* x, long ldx, float* y);

    /* Optimizer steps; new values may replace old ones in place.
     * momentum: nm = mu m + lr g; ng = nm, or (1 + mu) nm - mu m; w -= ng unless w is NULL
     * adagrad:  nh = decay h + g^2; nw = w + lr g / (sqrt(nh) + epsilon)
     * adam:     nm = beta1 m + (1 - beta1) g; nv = beta2 v + (1 - beta2) g^2;
     *           nw = w + lr nm / (sqrt(nv) + epsilon); lr includes the bias correction
     * rmsprop:  nms = ms + (1 - decay)(g^2 - ms);
     *           ng = nmom = mu mom + lr g / sqrt(epsilon + nms) */
    void (*momentum)(long n, float lr, float mu, int nesterov, const float* g, const float* m,
                     float* ng, float* nm, float* w);
    void (*adagrad)(long n, float lr, float decay, float epsilon, const float* w, const float* g,
                    const float* h, float* nw, float* nh);
    void (*adam)(long n, float lr, float beta1, float beta2, float epsilon, const float* w,
                 const float* g, const float* m, const float* v, float* nw, float* nm, float* nv);
    void (*rmsprop)(long n, float lr, float decay, float mu, float epsilon, const float* g,
                    const float* ms, const float* mom, float* ng, float* nms, float* nmom);

    /* float16 as its bits; rounds to nearest even. */
    void (*half_to_float)(long n, const uint16_t* x, float* y);
    void (*float_to_half)(long n, const float* x, uint16_t* y);

    /* The calling thread's scratch memory, 64-byte aligned, kept until the thread ends; NULL when
     * memory ran out. Slots 0..4 are the kernels'; SCRATCH_USER and two more are the caller's. */
    void* (*scratch)(int slot, size_t bytes);

    /* ---- blocked images ---------------------------------------------------------------- */

    /* x[batch][channels][pixels] to blocked and back. */
    void (*to16)(long batch, int channels, long pixels, const float* x, float* y, int nth);
    void (*from16)(long batch, int channels, long pixels, const float* x, float* y, int nth);
    /* The fastest way for a convolution of such images, by its batch and out too; CONV16_NONE if
     * there is none. winograd = 0 rules those ways out, 1 says that packed filters are kept, 2 that
     * they serve once. */
    int (*conv16_way)(const conv16_t* c, int images, int winograd);
    /* Filters are packed once; packed is 64-byte aligned with conv16_pack_bytes bytes. batch, size,
     * out and pad do not count, nor does stride but for winograd_4. */
    size_t (*conv16_pack_bytes)(const conv16_t* c, int way);
    int (*conv16_pack)(const conv16_t* c, int way, const float* w, float* packed, int nth);
    /* y = epilogue(x * filters). */
    int (*conv16)(const conv16_t* c, int way, const float* x, const float* packed,
                  const epilogue16_t* epilogue, float* y, int nth);
    /* The same of what a depthwise convolution, without a residual, answers, made where it is read.
     * c is of 1x1 pixels, stride 1, without border or groups. */
    int (*separable16)(const depthwise16_t* before, const conv16_t* c, int way,
                       const float* packed, const epilogue16_t* epilogue, float* y, int nth);
    /* Gradients, wherever conv16_way(c, CONV16_BLOCKED, 0) is not CONV16_NONE; that of filters not
     * for depthwise ones, that of images not for strides with dilation. w and dw are OIHW, the rest
     * blocked. */
    int (*conv16_filter_gradient)(const conv16_t* c, const float* x, const float* dy, float* dw,
                                  int nth);
    int (*conv16_image_gradient)(const conv16_t* c, int winograd, const float* dy, const float* w,
                                 float* dx, int nth);
    /* That of filters, of plain images x (NCHW) and blocked dy, where it fits: without groups or an
     * absurd border, and with few enough filters for each thread to have sums of its own. */
    int (*plain_filter_gradient_fits)(const conv16_t* c);
    int (*plain_filter_gradient)(const conv16_t* c, const float* x, const float* dy, float* dw, int nth);
    /* That of plain images, fast where they have few channels; under the same conditions, and w is finite. */
    int (*plain_image_gradient)(const conv16_t* c, const float* dy, const float* w, float* dx, int nth);
    /* channels = out_channels. The window may reach beyond the image; of one that lies outside
     * altogether the maximum is -FLT_MAX and the average 0. NaN is not greater than any value. */
    void (*pool16)(const conv16_t* c, int mode, const float* x, float* y, int nth);
    /* dx from dy; of the maximum, also from x and y: each pixel that equals it takes all of dy. */
    void (*pool16_gradient)(const conv16_t* c, int mode, const float* x, const float* y,
                            const float* dy, float* dx, int nth);
    /* y[batch][channels], plain: the average of each channel. */
    void (*mean16)(long batch, int channels, long pixels, const float* x, float* y, int nth);
} kernels_t;

enum { SCRATCH_USER = 5, SCRATCH_SLOTS = 8 };

/* The table of a level ("v1", "v3", "v4", "amx"), or of the best one when level is NULL or empty;
 * NULL when this build or this processor does not have it. */
const kernels_t* kernels_level(const char* level);
void* kernels_scratch(int slot, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif

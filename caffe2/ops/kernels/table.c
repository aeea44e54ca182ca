#include "kernels.h"
#include "simd.h"

#define NAME_(x) #x
#define NAME(x) NAME_(x)
/* Every function of the table, by the names they have in the other sources. */
#define GEMM(F) \
    F(sgemm) F(dgemm) F(sgemm_op) F(dgemm_op) F(sgemm_pack_bytes) F(sgemm_pack) \
    F(dgemm_pack_bytes) F(dgemm_pack) F(sgemm_batch) F(dgemm_batch) F(sim2col) F(dim2col) \
    F(igemm) F(igemm_op) F(igemm_pack_bytes) F(igemm_pack) F(scol2im) F(dcol2im) F(depthwise) F(depthwise_filter) F(depthwise_image)
#define VECTOR(F) \
    F(vexp) F(vlog) F(vtanh) F(vsigmoid) F(verf) F(softmax_rows) F(vrelu) F(vrelu_grad) \
    F(vsigmoid_grad) F(vtanh_grad) F(vaxpy) F(vaxpby) F(vscale) F(vadd) F(vsub) F(vmul) F(vdiv) \
    F(vsum) F(vsumsq) F(vdot) F(vmax) F(column_sums) F(momentum) F(adagrad) F(adam) F(rmsprop) \
    F(half_to_float) F(float_to_half)

#define BLOCKED(F) \
    F(to16) F(from16) F(conv16_way) F(conv16_pack_bytes) F(conv16_pack) F(conv16) \
    F(separable16) F(plain_filter_gradient_fits) F(plain_filter_gradient) F(plain_image_gradient) \
    F(conv16_filter_gradient) F(conv16_image_gradient) F(pool16) F(pool16_gradient) F(mean16)

#define DECLARE(f) extern __typeof__(*((kernels_t*)0)->f) CAT(f, ISA);
#define ENTRY(f) .f = CAT(f, ISA),
GEMM(DECLARE)
VECTOR(DECLARE)
BLOCKED(DECLARE)

const kernels_t CAT(kernels, ISA) = {
    .name = NAME(ISA) + 1, .vector_bytes = VECTOR_BYTES, .scratch = kernels_scratch,
    GEMM(ENTRY) VECTOR(ENTRY) BLOCKED(ENTRY)
};

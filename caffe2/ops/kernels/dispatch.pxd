"""The kernels of this processor: `from caffe2.ops.kernels.dispatch cimport K`; `K.sgemm(...)`.

kernels.h describes every function.
"""

from libc.stdint cimport int8_t, int32_t, uint16_t

cdef extern from "caffe2/ops/kernels/kernels.h":
    ctypedef struct epilogue_t:
        const void* bias_row
        const void* bias_col
        const void* residual
        long ld_residual
        int relu

    ctypedef struct image_t:
        int nhwc
        int channels
        long batch
        long batch_stride
        long step
        int size[3]
        int kernel[3]
        int stride[3]
        int pad[3]
        int dilation[3]
        int out[3]

    ctypedef struct operand_t:
        const void* data
        long ld
        int trans
        int packed
        const image_t* image

    ctypedef struct conv16_t:
        long batch
        int channels
        int size[2]
        int out_channels
        int out[2]
        int group
        int kernel[2]
        int stride[2]
        int pad[2]
        int dilation[2]

    ctypedef struct epilogue16_t:
        const float* bias
        const float* residual
        float low
        float high
        long y_image

    ctypedef struct depthwise16_t:
        conv16_t c
        const float* x
        const float* packed
        epilogue16_t e

    enum:
        CONV16_NONE
        CONV16_DIRECT
        CONV16_FIRST
        CONV16_DEPTHWISE
        CONV16_WINOGRAD_4
        CONV16_WINOGRAD_2
        CONV16_TILES
        CONV16_BLOCKED
        CONV16_NCHW
        CONV16_ANSWERS
        POOL16_MAX
        POOL16_AVERAGE
        POOL16_AVERAGE_PAD

    enum:
        OPERAND_A
        OPERAND_B
        SCRATCH_USER

    ctypedef struct kernels_t:
        const char* name
        int vector_bytes
        int (*sgemm)(int trans_a, int trans_b, long m, long n, long k, float alpha,
                     const float* a, long lda, const float* b, long ldb, float beta, float* c,
                     long ldc, const epilogue_t* epilogue, int nth) noexcept nogil
        int (*dgemm)(int trans_a, int trans_b, long m, long n, long k, double alpha,
                     const double* a, long lda, const double* b, long ldb, double beta, double* c,
                     long ldc, const epilogue_t* epilogue, int nth) noexcept nogil
        int (*sgemm_op)(long m, long n, long k, float alpha, const operand_t* a,
                        const operand_t* b, float beta, float* c, long ldc,
                        const epilogue_t* epilogue, int nth) noexcept nogil
        int (*dgemm_op)(long m, long n, long k, double alpha, const operand_t* a,
                        const operand_t* b, double beta, double* c, long ldc,
                        const epilogue_t* epilogue, int nth) noexcept nogil
        size_t (*sgemm_pack_bytes)(int which, long n, long k) noexcept nogil
        int (*sgemm_pack)(int which, const operand_t* x, long n, long k, void* dst) noexcept nogil
        size_t (*dgemm_pack_bytes)(int which, long n, long k) noexcept nogil
        int (*dgemm_pack)(int which, const operand_t* x, long n, long k, void* dst) noexcept nogil
        int (*sgemm_batch)(long count, int trans_a, int trans_b, long m, long n, long k,
                           float alpha, const float* a, long lda, long stride_a, const float* b,
                           long ldb, long stride_b, float beta, float* c, long ldc, long stride_c,
                           int nth) noexcept nogil
        int (*dgemm_batch)(long count, int trans_a, int trans_b, long m, long n, long k,
                           double alpha, const double* a, long lda, long stride_a,
                           const double* b, long ldb, long stride_b, double beta, double* c,
                           long ldc, long stride_c, int nth) noexcept nogil
        int (*igemm)(int trans_a, int trans_b, long m, long n, long k, const int8_t* a, long lda,
                     const int8_t* b, long ldb, int beta, int32_t* c, long ldc,
                     const epilogue_t* epilogue, int nth) noexcept nogil
        int (*igemm_op)(long m, long n, long k, const operand_t* a, const operand_t* b, int beta,
                        int32_t* c, long ldc, const epilogue_t* epilogue, int nth) noexcept nogil
        size_t (*igemm_pack_bytes)(int which, long n, long k) noexcept nogil
        int (*igemm_pack)(int which, const operand_t* x, long n, long k, void* dst) noexcept nogil
        void (*sim2col)(const image_t* image, const float* x, float* columns,
                        int nth) noexcept nogil
        void (*dim2col)(const image_t* image, const double* x, double* columns,
                        int nth) noexcept nogil
        void (*scol2im)(const image_t* image, const float* columns, float* x,
                        int nth) noexcept nogil
        void (*dcol2im)(const image_t* image, const double* columns, double* x,
                        int nth) noexcept nogil
        void (*depthwise)(const image_t* image, const float* x, const float* w, float bias,
                          float* y) noexcept nogil
        void (*depthwise_filter)(const image_t* image, const float* x, const float* dy,
                                 float* dw) noexcept nogil
        void (*depthwise_image)(const image_t* image, const float* dy, const float* w,
                                float* dx) noexcept nogil
        void (*vexp)(long n, const float* x, float* y) noexcept nogil
        void (*vlog)(long n, const float* x, float* y) noexcept nogil
        void (*vtanh)(long n, const float* x, float* y) noexcept nogil
        void (*vsigmoid)(long n, const float* x, float* y) noexcept nogil
        void (*verf)(long n, const float* x, float* y) noexcept nogil
        void (*softmax_rows)(long n, long d, const float* x, float* y) noexcept nogil
        void (*vrelu)(long n, const float* x, float* y) noexcept nogil
        void (*vrelu_grad)(long n, const float* y, const float* dy, float* dx) noexcept nogil
        void (*vsigmoid_grad)(long n, const float* y, const float* dy, float* dx) noexcept nogil
        void (*vtanh_grad)(long n, const float* y, const float* dy, float* dx) noexcept nogil
        void (*vaxpy)(long n, float a, const float* x, float* y) noexcept nogil
        void (*vaxpby)(long n, float a, const float* x, float b, const float* y,
                       float* z) noexcept nogil
        void (*vscale)(long n, float a, const float* x, float* y) noexcept nogil
        void (*vadd)(long n, const float* x, const float* y, float* z) noexcept nogil
        void (*vsub)(long n, const float* x, const float* y, float* z) noexcept nogil
        void (*vmul)(long n, const float* x, const float* y, float* z) noexcept nogil
        void (*vdiv)(long n, const float* x, const float* y, float* z) noexcept nogil
        double (*vsum)(long n, const float* x) noexcept nogil
        double (*vsumsq)(long n, const float* x) noexcept nogil
        double (*vdot)(long n, const float* x, const float* y) noexcept nogil
        float (*vmax)(long n, const float* x) noexcept nogil
        void (*column_sums)(long m, long n, const float* x, long ldx, float* y) noexcept nogil
        void (*momentum)(long n, float lr, float mu, int nesterov, const float* g, const float* m,
                         float* ng, float* nm, float* w) noexcept nogil
        void (*adagrad)(long n, float lr, float decay, float epsilon, const float* w,
                        const float* g, const float* h, float* nw, float* nh) noexcept nogil
        void (*adam)(long n, float lr, float beta1, float beta2, float epsilon, const float* w,
                     const float* g, const float* m, const float* v, float* nw, float* nm,
                     float* nv) noexcept nogil
        void (*rmsprop)(long n, float lr, float decay, float mu, float epsilon, const float* g,
                        const float* ms, const float* mom, float* ng, float* nms,
                        float* nmom) noexcept nogil
        void (*half_to_float)(long n, const uint16_t* x, float* y) noexcept nogil
        void (*float_to_half)(long n, const float* x, uint16_t* y) noexcept nogil
        void* (*scratch)(int slot, size_t bytes) noexcept nogil
        void (*to16)(long batch, int channels, long pixels, const float* x, float* y,
                     int nth) noexcept nogil
        void (*from16)(long batch, int channels, long pixels, const float* x, float* y,
                       int nth) noexcept nogil
        int (*conv16_way)(const conv16_t* c, int images, int winograd) noexcept nogil
        size_t (*conv16_pack_bytes)(const conv16_t* c, int way) noexcept nogil
        int (*conv16_pack)(const conv16_t* c, int way, const float* w, float* packed,
                           int nth) noexcept nogil
        int (*conv16)(const conv16_t* c, int way, const float* x, const float* packed,
                      const epilogue16_t* epilogue, float* y, int nth) noexcept nogil
        int (*separable16)(const depthwise16_t* before, const conv16_t* c, int way,
                           const float* packed, const epilogue16_t* epilogue, float* y,
                           int nth) noexcept nogil
        int (*plain_filter_gradient_fits)(const conv16_t* c) noexcept nogil
        int (*plain_filter_gradient)(const conv16_t* c, const float* x, const float* dy, float* dw,
                                     int nth) noexcept nogil
        int (*plain_image_gradient)(const conv16_t* c, const float* dy, const float* w, float* dx,
                                    int nth) noexcept nogil
        int (*conv16_filter_gradient)(const conv16_t* c, const float* x, const float* dy, float* dw,
                                      int nth) noexcept nogil
        int (*conv16_image_gradient)(const conv16_t* c, int winograd, const float* dy,
                                     const float* w, float* dx, int nth) noexcept nogil
        void (*pool16)(const conv16_t* c, int mode, const float* x, float* y,
                       int nth) noexcept nogil
        void (*pool16_gradient)(const conv16_t* c, int mode, const float* x, const float* y,
                                const float* dy, float* dx, int nth) noexcept nogil
        void (*mean16)(long batch, int channels, long pixels, const float* x, float* y,
                       int nth) noexcept nogil

    const kernels_t* kernels_level(const char* level) nogil

cdef const kernels_t* K

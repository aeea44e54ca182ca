"""The kernels of this processor: `from caffe2.ops.kernels.dispatch cimport K`; `K.sgemm(...)`.

kernels.h describes every function.
"""

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
        void (*sim2col)(const image_t* image, const float* x, float* columns, int nth) noexcept nogil
        void (*dim2col)(const image_t* image, const double* x, double* columns, int nth) noexcept nogil
        void (*scol2im)(const image_t* image, const float* columns, float* x, int nth) noexcept nogil
        void (*dcol2im)(const image_t* image, const double* columns, double* x, int nth) noexcept nogil
        void* (*scratch)(int slot, size_t bytes) noexcept nogil

    const kernels_t* kernels_level(const char* level) nogil

cdef const kernels_t* K

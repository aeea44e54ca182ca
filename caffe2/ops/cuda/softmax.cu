#include "caffe2.cuh"

#define TINY 1e-20f

// Rows of d values, a block each.
template <class T> __device__ void softmax(const T* x, T* y, int64 n, int64 d) {
  for (int64 r = blockIdx.x; r < n; r += gridDim.x) {
    const T* p = x + r * d;
    T* q = y + r * d;
    float most = -INFINITY, total = 0;
    for (int64 i = threadIdx.x; i < d; i += blockDim.x) most = fmaxf(most, p[i]);
    most = block_reduce(most, Greater());
    for (int64 i = threadIdx.x; i < d; i += blockDim.x) total += expf(p[i] - most);
    total = block_sum(total);
    for (int64 i = threadIdx.x; i < d; i += blockDim.x) q[i] = expf(p[i] - most) / total;
  }
}
template <class T> __device__ void softmax_gradient(const T* y, const T* dy, T* dx, int64 n, int64 d) {
  for (int64 r = blockIdx.x; r < n; r += gridDim.x) {
    const T *p = y + r * d, *g = dy + r * d;
    T* q = dx + r * d;
    float total = 0;
    for (int64 i = threadIdx.x; i < d; i += blockDim.x) total += p[i] * g[i];
    total = block_sum(total);
    for (int64 i = threadIdx.x; i < d; i += blockDim.x) q[i] = p[i] * (g[i] - total);
  }
}
#define SOFTMAX(S, T) \
  KERNEL(Softmax##S, const T* x, T* y, int64 n, int64 d) { softmax(x, y, n, d); } \
  KERNEL(SoftmaxGradient##S, const T* y, const T* dy, T* dx, int64 n, int64 d) { softmax_gradient(y, dy, dx, n, d); }
FLOATS(SOFTMAX)

// Losses of rows: labels are classes, or probabilities where `probable`. A label that is none makes the loss NaN,
// and has no gradient.
KERNEL(RowLosses, const float* x, const float* p, const void* labels, const float* weight, float* loss, int64 n,
       int64 d, int64 probable, uint64* fault, int64 number) {
  for (int64 r = blockIdx.x; r < n; r += gridDim.x) {
    float v = 0;
    if (probable) {
      for (int64 i = threadIdx.x; i < d; i += blockDim.x)
        v -= logf(fmaxf(p[r * d + i], TINY)) * ((const float*)labels)[r * d + i];
      v = block_sum(v);
    } else {
      int label = ((const int*)labels)[r];
      if (!is_class(label, d, fault, number)) {
        v = NAN;
      } else if (p[r * d + label] > TINY) {
        v = -logf(p[r * d + label]);
      } else {                          // the probability underflows: its logarithm from the logits
        float most = -INFINITY;
        for (int64 i = threadIdx.x; i < d; i += blockDim.x) most = fmaxf(most, x[r * d + i]);
        v = block_reduce(most, Greater()) - x[r * d + label];
      }
    }
    if (threadIdx.x == 0) loss[r] = weight ? v * weight[r] : v;
  }
}

// total = scale * sum(losses) / (sum(weights), or n); one block
KERNEL(AverageLoss, const float* loss, const float* weight, float* total, int64 n, float scale) {
  float s = 0, w = 0;
  for (int64 i = threadIdx.x; i < n; i += blockDim.x) {
    s += loss[i];
    w += weight ? weight[i] : 1;
  }
  s = block_sum(s);
  w = block_sum(w);
  if (threadIdx.x == 0) *total = w != 0 ? s * scale / w : 0;
}

KERNEL(SoftmaxWithLossGradient, const float* p, const void* labels, const float* weight, const float* dloss,
       const float* total_weight, float* dx, int64 n, int64 d, int64 probable, float scale) {
  float by = total_weight ? *total_weight : n, factor = *dloss;
  if (by > 0) factor *= scale / by;
  for (int64 i = FIRST; i < n * d; i += STEP) {
    int64 r = i / d;
    float target = probable ? ((const float*)labels)[i] : ((const int*)labels)[r] == i % d;
    bool valid = probable || (((const int*)labels)[r] >= 0 && ((const int*)labels)[r] < d);
    dx[i] = valid ? factor * (weight ? weight[r] : 1) * (p[i] - target) : 0;
  }
}

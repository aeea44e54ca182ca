#include "caffe2.cuh"

#define TINY 1e-20f

KERNEL(LabelCrossEntropy, const float* x, const int* label, float* y, int64 n, int64 d, uint64* fault, int64 number) {
  for (int64 r = FIRST; r < n; r += STEP)
    y[r] = is_class(label[r], d, fault, number) ? -logf(fmaxf(x[r * d + label[r]], TINY)) : NAN;
}
KERNEL(LabelCrossEntropyGradient, const float* x, const int* label, const float* dy, float* dx, int64 n, int64 d) {
  for (int64 i = FIRST; i < n * d; i += STEP) {
    int64 r = i / d;
    dx[i] = label[r] == i % d ? -dy[r] / fmaxf(x[i], TINY) : 0;
  }
}
KERNEL(CrossEntropy, const float* x, const float* label, float* y, int64 n, int64 d) {
  for (int64 r = blockIdx.x; r < n; r += gridDim.x) {
    float v = 0;
    for (int64 i = threadIdx.x; i < d; i += blockDim.x) v -= label[r * d + i] * logf(fmaxf(x[r * d + i], TINY));
    v = block_sum(v);
    if (threadIdx.x == 0) y[r] = v;
  }
}
KERNEL(CrossEntropyGradient, const float* x, const float* label, const float* dy, float* dx, int64 n, int64 d) {
  for (int64 i = FIRST; i < n * d; i += STEP) dx[i] = -dy[i / d] * label[i] / fmaxf(x[i], TINY);
}

// Of a logit x and a target t; mode 0: joined, 1: log_D_trick, 2: unjoined_lr_loss.
__device__ inline float likelihood(float x, float t, int64 mode) {
  float low = x < 0 ? x : 0, soft = log1pf(expf(-fabsf(x)));      // log sigmoid(x) = low - soft
  if (mode == 1) return (2 * t - 1) * (low - soft);
  if (mode == 2) return t * x + (1 - t) * (low - x - soft) ;
  return x * (t - (x >= 0)) - soft;
}
__device__ inline float likelihood_gradient(float x, float t, int64 mode) {
  if (mode == 1) return (2 * t - 1) / (1 + expf(x));
  if (mode == 2) return t - (1 - t) / (1 + expf(-x));
  return t - 1 / (1 + expf(-x));
}
KERNEL(SigmoidLoss, const float* x, const float* t, const float* w, float* y, int64 n, int64 d, int64 mode) {
  for (int64 r = blockIdx.x; r < n; r += gridDim.x) {
    float v = 0;
    for (int64 i = r * d + threadIdx.x; i < (r + 1) * d; i += blockDim.x)
      v += likelihood(x[i], t[i], mode) * (w ? w[i] : 1);
    v = block_sum(v);
    if (threadIdx.x == 0) y[r] = -v / d;
  }
}
KERNEL(SigmoidLossGradient, const float* dy, const float* x, const float* t, const float* w, float* dx, int64 n, int64 d,
       int64 mode) {
  for (int64 i = FIRST; i < n * d; i += STEP)
    dx[i] = -dy[i / d] / d * likelihood_gradient(x[i], t[i], mode) * (w ? w[i] : 1);
}
// dx = a * dy, of one value
#define FILL(S, T) \
  KERNEL(Fill##S, const T* dy, T* dx, int64 n, float a) { \
    float v = a * *dy; \
    each(n, [=](T& dx) { dx = v; }, dx); }
FLOATS(FILL)
KERNEL(SquaredL2Distance, const float* x, const float* z, float* y, int64 n, int64 d) {
  for (int64 r = blockIdx.x; r < n; r += gridDim.x) {
    float v = 0;
    for (int64 i = r * d + threadIdx.x; i < (r + 1) * d; i += blockDim.x) v += (x[i] - z[i]) * (x[i] - z[i]);
    v = block_sum(v);
    if (threadIdx.x == 0) y[r] = v / 2;
  }
}
KERNEL(SquaredL2DistanceGradient, const float* x, const float* z, const float* dy, float* dx, float* dz, int64 n,
       int64 d) {
  for (int64 i = FIRST; i < n * d; i += STEP) {
    float v = (x[i] - z[i]) * dy[i / d];
    dx[i] = v;
    dz[i] = -v;
  }
}
// 1 for each row whose label is among the k greatest scores, else 0
KERNEL(Hits, const float* x, const int* label, float* hit, int64 n, int64 d, int64 k, uint64* fault,
       int64 number) {
  for (int64 r = blockIdx.x; r < n; r += gridDim.x) {
    int l = label[r];
    float better = 0;
    if (!is_class(l, d, fault, number)) {
      better = NAN;
    } else {
      float mine = x[r * d + l];
      for (int64 i = threadIdx.x; i < d; i += blockDim.x)
        better += x[r * d + i] > mine || (x[r * d + i] == mine && i < l);
    }
    better = block_sum(better);
    if (threadIdx.x == 0) hit[r] = better != better ? NAN : better < k;
  }
}

#include "caffe2.cuh"

// Four places draw from one counter.
template <class T>
__device__ void dropout(const T* x, T* y, bool* mask, int64 n, int64 key, int64 drawn, float ratio) {
  float scale = 1 / (1 - ratio);
  for (int64 i = FIRST; 4 * i < n; i += STEP) {
    Words w = philox(key, drawn + i);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int64 at = 4 * i + j;
      if (at < n) {
        bool keep = unit(w.v[j]) >= ratio;
        mask[at] = keep;
        y[at] = keep ? x[at] * scale : 0;
      }
    }
  }
}
#define DROPOUT(S, T) \
  KERNEL(Dropout##S, const T* x, T* y, bool* mask, int64 n, int64 key, int64 drawn, float ratio) { \
    dropout(x, y, mask, n, key, drawn, ratio); } \
  KERNEL(DropoutGrad##S, const T* dy, const bool* mask, T* dx, int64 n, float ratio) { \
    float scale = 1 / (1 - ratio); \
    each(n, [=](float dy, bool keep, T& dx) { dx = keep ? dy * scale : 0; }, dy, mask, dx); }
FLOATS(DROPOUT)

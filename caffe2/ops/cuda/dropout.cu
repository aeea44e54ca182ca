#include "caffe2.cuh"

// Four places draw from one counter.
KERNEL(Dropout, const float* x, float* y, bool* mask, int64 n, int64 key, int64 drawn, float ratio) {
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
KERNEL(DropoutGrad, const float* dy, const bool* mask, float* dx, int64 n, float ratio) {
  float scale = 1 / (1 - ratio);
  each(n, [=](float dy, bool keep, float& dx) { dx = keep ? dy * scale : 0; }, dy, mask, dx);
}

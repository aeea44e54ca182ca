#include "caffe2.cuh"

#define CONSTANT(NAME, T) \
  KERNEL(NAME, T* y, int64 n, const T* given, T value) { \
    if (given) value = *given; \
    each(n, [=](T& y) { y = value; }, y); }
CONSTANT(Constant1, uint8)
CONSTANT(Constant2, unsigned short)
CONSTANT(Constant4, unsigned)
CONSTANT(Constant8, uint64)

#define UNIFORM(S, T) \
  KERNEL(Uniform##S, T* y, int64 n, int64 key, int64 drawn, float low, float high) { \
    for (int64 i = FIRST; 4 * i < n; i += STEP) { \
      Words w = philox(key, drawn + i); \
      for (int j = 0; j < 4 && 4 * i + j < n; j++) y[4 * i + j] = low + (high - low) * unit(w.v[j]); \
    } }
FLOATS(UNIFORM)
KERNEL(UniformInt, int* y, int64 n, int64 key, int64 drawn, int64 low, int64 count) {
  for (int64 i = FIRST; 2 * i < n; i += STEP) {
    Words w = philox(key, drawn + i);
    for (int j = 0; j < 2 && 2 * i + j < n; j++)
      y[2 * i + j] = (int)(low + (int64)(((uint64)w.v[2 * j] << 32 | w.v[2 * j + 1]) % (uint64)count));
  }
}
// Two uniform numbers make two normal ones (Box and Muller).
KERNEL(Gaussian, float* y, int64 n, int64 key, int64 drawn, float mean, float std) {
  for (int64 i = FIRST; 4 * i < n; i += STEP) {
    Words w = philox(key, drawn + i);
    for (int j = 0; j < 4; j += 2) {
      float r = sqrtf(-2 * logf(1 - unit(w.v[j]))), angle = 6.283185307f * unit(w.v[j + 1]);
      if (4 * i + j < n) y[4 * i + j] = mean + std * r * cosf(angle);
      if (4 * i + j + 1 < n) y[4 * i + j + 1] = mean + std * r * sinf(angle);
    }
  }
}
KERNEL(Range, float* y, int64 n) {
  for (int64 i = FIRST; i < n; i += STEP) y[i] = (float)i;
}

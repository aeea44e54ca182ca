#include "caffe2.cuh"

// Reductions of the middle axis of x (outer, n, inner), of which part p covers [p * chunk, (p + 1) * chunk):
// y (outer, parts, inner). Few and long ones are reduced in parts, then the parts.

struct Value { template <class T> __device__ T operator()(T x) const { return x; } };
struct Square { template <class T> __device__ T operator()(T x) const { return x * x; } };
struct Magnitude { template <class T> __device__ T operator()(T x) const { return x < 0 ? -x : x; } };
struct Less { template <class T> __device__ T operator()(T a, T b) const { return a < b ? a : b; } };

template <class T, class Map, class Fold>
__device__ void reduce(const T* x, T* y, int64 outer, int64 n, int64 inner, int64 parts, int64 chunk, T first, float scale,
                       Map map, Fold fold) {
  if (inner == 1) {                     // a block reduces a stretch of a row
    for (int64 block = blockIdx.x; block < outer * parts; block += gridDim.x) {
      int64 row = block / parts, begin = block % parts * chunk, end = begin + chunk < n ? begin + chunk : n;
      const T* p = x + row * n;
      T v = first;
      int64 at = begin + threadIdx.x;
      for (; at + 3 * blockDim.x < end; at += 4 * blockDim.x) {     // four loads on their way at a time
        T a = p[at], b = p[at + blockDim.x], c = p[at + 2 * blockDim.x], d = p[at + 3 * blockDim.x];
        v = fold(fold(v, fold(map(a), map(b))), fold(map(c), map(d)));
      }
      for (; at < end; at += blockDim.x) v = fold(v, map(p[at]));
      v = block_reduce(v, fold);
      if (threadIdx.x == 0) y[block] = scale == 1 ? v : (T)(v * scale);
    }
    return;
  }
  __shared__ T part[8][33];             // 32 columns a block, 8 rows at a time
  int column = threadIdx.x % 32, row = threadIdx.x / 32;
  int64 tiles = (inner + 31) / 32;
  for (int64 block = blockIdx.x; block < outer * parts * tiles; block += gridDim.x) {
    int64 c = block % tiles * 32 + column, rest = block / tiles;
    int64 begin = rest % parts * chunk, end = begin + chunk < n ? begin + chunk : n;
    T v = first;
    if (c < inner) {
      const T* p = x + rest / parts * n * inner + c;
      for (int64 i = begin + row; i < end; i += 8) v = fold(v, map(p[i * inner]));
    }
    __syncthreads();
    part[row][column] = v;
    __syncthreads();
    if (row == 0 && c < inner) {
      for (int k = 1; k < 8; k++) v = fold(v, part[k][column]);
      y[rest * inner + c] = scale == 1 ? v : (T)(v * scale);
    }
  }
}

#define REDUCE(NAME, T, MAP, FOLD, FIRST_VALUE) \
  KERNEL(NAME, const T* x, T* y, int64 outer, int64 n, int64 inner, int64 parts, int64 chunk, float scale) { \
    reduce(x, y, outer, n, inner, parts, chunk, (T)(FIRST_VALUE), scale, MAP(), FOLD()); }
#define REDUCE_ALL(NAME, MAP, FOLD, F, D, I, L) \
  REDUCE(NAME##_f, float, MAP, FOLD, F) REDUCE(NAME##_d, double, MAP, FOLD, D) \
  REDUCE(NAME##_i, int, MAP, FOLD, I) REDUCE(NAME##_l, int64, MAP, FOLD, L)

REDUCE_ALL(Sum, Value, Plus, 0, 0, 0, 0)
REDUCE_ALL(SumSqr, Square, Plus, 0, 0, 0, 0)
REDUCE_ALL(SumAbs, Magnitude, Plus, 0, 0, 0, 0)
REDUCE_ALL(Max, Value, Greater, -INFINITY, -INFINITY, -2147483647 - 1, -9223372036854775807ll - 1)
REDUCE_ALL(Min, Value, Less, INFINITY, INFINITY, 2147483647, 9223372036854775807ll)

KERNEL(Root_f, const float* x, float* y, int64 n) { each(n, [](float x, float& y) { y = sqrtf(x); }, x, y); }

// dx (outer, n, inner) from dy (outer, inner), and what else a reduction's gradient depends on.
#define SPREAD(NAME, EXPRESSION) \
  KERNEL(NAME, const float* dy, const float* x, const float* y, float* dx, int64 size, int64 n, int64 inner, float a) { \
    for (int64 i = FIRST; i < size; i += STEP) { \
      int64 k = i / (n * inner) * inner + i % inner; \
      dx[i] = EXPRESSION; \
    } }
SPREAD(SpreadSum, a * dy[k])
SPREAD(SpreadExtreme, x[i] == y[k] ? dy[k] : 0)
SPREAD(SpreadL1, x[i] > 0 ? dy[k] : x[i] < 0 ? -dy[k] : 0)
SPREAD(SpreadL2, y[k] == 0 ? 0 : dy[k] * x[i] / y[k])

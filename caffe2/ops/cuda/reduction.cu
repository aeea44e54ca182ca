#include "caffe2.cuh"

// Reductions of the middle axis of x (outer, n, inner), of which part p covers [p * chunk, (p + 1) * chunk):
// y (outer, parts, inner). Few and long ones are reduced in parts, then the parts. A is what sums are kept in.

struct Value { template <class T> __device__ T operator()(T x) const { return x; } };
struct Square { template <class T> __device__ T operator()(T x) const { return x * x; } };
struct Magnitude { template <class T> __device__ T operator()(T x) const { return x < 0 ? -x : x; } };
struct Less { template <class T> __device__ T operator()(T a, T b) const { return a < b ? a : b; } };

template <class A, class T, class R, class Map, class Fold>
__device__ void reduce(const T* x, R* y, int64 outer, int64 n, int64 inner, int64 parts, int64 chunk, A first, float scale,
                       Map map, Fold fold) {
  if (inner == 1) {                     // a block reduces a stretch of a row
    for (int64 block = blockIdx.x; block < outer * parts; block += gridDim.x) {
      int64 row = block / parts, begin = block % parts * chunk, end = begin + chunk < n ? begin + chunk : n;
      const T* p = x + row * n;
      A v = first;
      int64 at = begin + threadIdx.x;
      for (; at + 3 * blockDim.x < end; at += 4 * blockDim.x) {     // four loads on their way at a time
        A a = p[at], b = p[at + blockDim.x], c = p[at + 2 * blockDim.x], d = p[at + 3 * blockDim.x];
        v = fold(fold(v, fold(map(a), map(b))), fold(map(c), map(d)));
      }
      for (; at < end; at += blockDim.x) v = fold(v, map((A)p[at]));
      v = block_reduce(v, fold);
      if (threadIdx.x == 0) y[block] = scale == 1 ? v : (A)(v * scale);
    }
    return;
  }
  __shared__ A part[8][33];             // 32 columns a block, 8 rows at a time
  int column = threadIdx.x % 32, row = threadIdx.x / 32;
  int64 tiles = (inner + 31) / 32;
  for (int64 block = blockIdx.x; block < outer * parts * tiles; block += gridDim.x) {
    int64 c = block % tiles * 32 + column, rest = block / tiles;
    int64 begin = rest % parts * chunk, end = begin + chunk < n ? begin + chunk : n;
    A v = first;
    if (c < inner) {
      const T* p = x + rest / parts * n * inner + c;
      for (int64 i = begin + row; i < end; i += 8) v = fold(v, map((A)p[i * inner]));
    }
    __syncthreads();
    part[row][column] = v;
    __syncthreads();
    if (row == 0 && c < inner) {
      for (int k = 1; k < 8; k++) v = fold(v, part[k][column]);
      y[rest * inner + c] = scale == 1 ? v : (A)(v * scale);
    }
  }
}

#define REDUCE(NAME, T, R, MAP, FOLD, FIRST_VALUE) \
  KERNEL(NAME, const T* x, R* y, int64 outer, int64 n, int64 inner, int64 parts, int64 chunk, float scale) { \
    reduce<Wide<T>::type>(x, y, outer, n, inner, parts, chunk, FIRST_VALUE, scale, MAP(), FOLD()); }
#define REDUCE_ALL(NAME, MAP, FOLD, F, D, I, L) \
  REDUCE(NAME##_f, float, float, MAP, FOLD, F) REDUCE(NAME##_d, double, double, MAP, FOLD, D) \
  REDUCE(NAME##_i, int, int, MAP, FOLD, I) REDUCE(NAME##_l, int64, int64, MAP, FOLD, L) \
  REDUCE(NAME##_h, Half, Half, MAP, FOLD, F) REDUCE(NAME##_h_f, Half, float, MAP, FOLD, F) \
  REDUCE(NAME##_f_h, float, Half, MAP, FOLD, F)

REDUCE_ALL(Sum, Value, Plus, 0, 0, 0, 0)
REDUCE_ALL(SumSqr, Square, Plus, 0, 0, 0, 0)
REDUCE_ALL(SumAbs, Magnitude, Plus, 0, 0, 0, 0)
REDUCE_ALL(Max, Value, Greater, -INFINITY, -INFINITY, -2147483647 - 1, -9223372036854775807ll - 1)
REDUCE_ALL(Min, Value, Less, INFINITY, INFINITY, 2147483647, 9223372036854775807ll)

#define ROOT(S, T) \
  KERNEL(Root##S, const T* x, T* y, int64 n) { each(n, [](float x, T& y) { y = sqrtf(x); }, x, y); }
FLOATS(ROOT)

// dx (outer, n, inner) from dy (outer, inner), and what else a reduction's gradient depends on.
#define SPREAD_OF(NAME, T, EXPRESSION) \
  KERNEL(NAME, const T* dy, const T* x, const T* y, T* dx, int64 size, int64 n, int64 inner, float a) { \
    for (int64 i = FIRST; i < size; i += STEP) { \
      int64 k = i / (n * inner) * inner + i % inner; \
      float g = dy[k]; \
      dx[i] = EXPRESSION; \
    } }
#define SPREAD(NAME, EXPRESSION) SPREAD_OF(NAME##_f, float, EXPRESSION) SPREAD_OF(NAME##_h, Half, EXPRESSION)
SPREAD(SpreadSum, a * g)
SPREAD(SpreadExtreme, x[i] == y[k] ? g : 0)
SPREAD(SpreadL1, x[i] > 0 ? g : x[i] < 0 ? -g : 0)
SPREAD(SpreadL2, y[k] == 0 ? 0 : g * x[i] / y[k])

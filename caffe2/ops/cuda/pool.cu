#include "caffe2.cuh"

// Images of three axes; fewer have ones in front.
struct Windows {
  int64 channels, nhwc, in[3], out[3], kernel[3], stride[3], pad[3], include_pad;
};
struct Span { int64 begin, end; };

enum { MAX, AVERAGE, NORM };

// The pixels of window o along an axis.
__device__ inline Span pixels_of(const Windows& w, int axis, int64 o) {
  int64 begin = o * w.stride[axis] - w.pad[axis], end = begin + w.kernel[axis];
  return {begin > 0 ? begin : 0, end < w.in[axis] ? end : w.in[axis]};
}
// The windows that see pixel i along an axis.
__device__ inline Span windows_of(const Windows& w, int axis, int64 i) {
  int64 at = i + w.pad[axis], begin = at - w.kernel[axis] + 1;
  begin = begin > 0 ? (begin + w.stride[axis] - 1) / w.stride[axis] : 0;
  int64 end = at / w.stride[axis] + 1;
  return {begin, end < w.out[axis] ? end : w.out[axis]};
}
// Place of a value among those of an image's plane (n, c), and how far apart pixels are.
struct Plane { int64 n, c, a, b, d; };
template <class Index> __device__ Plane plane_of(const Windows& w, const int64* size, int64 at) {
  Index i = (Index)at, channels = (Index)w.channels;
  Plane p;
  if (w.nhwc) { p.c = i % channels; i /= channels; }
  p.d = i % (Index)size[2]; i /= (Index)size[2];
  p.b = i % (Index)size[1]; i /= (Index)size[1];
  p.a = i % (Index)size[0]; i /= (Index)size[0];
  if (!w.nhwc) { p.c = i % channels; i /= channels; }
  p.n = i;
  return p;
}
__device__ inline Plane plane_of(const Windows& w, const int64* size, int64 at, bool small) {
  return small ? plane_of<unsigned>(w, size, at) : plane_of<uint64>(w, size, at);
}
__device__ inline int64 place(const Windows& w, const int64* size, const Plane& p, int64 a, int64 b, int64 d) {
  int64 pixel = (a * size[1] + b) * size[2] + d, pixels = size[0] * size[1] * size[2];
  return w.nhwc ? (p.n * pixels + pixel) * w.channels + p.c : (p.n * w.channels + p.c) * pixels + pixel;
}
__device__ inline float divisor(const Windows& w, Span a, Span b, Span d) {
  int64 n = w.include_pad ? w.kernel[0] * w.kernel[1] * w.kernel[2]
                          : (a.end - a.begin) * (b.end - b.begin) * (d.end - d.begin);
  return n > 1 ? n : 1;
}

template <class T> __device__ void pool(const T* x, T* y, int64 size, const Windows& w, int64 mode, float p) {
  bool small = size < (1ll << 31);
  for (int64 o = FIRST; o < size; o += STEP) {
    Plane at = plane_of(w, w.out, o, small);
    Span a = pixels_of(w, 0, at.a), b = pixels_of(w, 1, at.b), d = pixels_of(w, 2, at.d);
    float v = mode == MAX ? -3.402823466e38f : 0;
    for (int64 i = a.begin; i < a.end; i++)
      for (int64 j = b.begin; j < b.end; j++)
        for (int64 k = d.begin; k < d.end; k++) {
          float t = x[place(w, w.in, at, i, j, k)];
          if (mode == MAX) v = t > v ? t : v;
          else if (mode == AVERAGE) v += t;
          else v += p == 2 ? t * t : p == 1 ? fabsf(t) : powf(fabsf(t), p);
        }
    if (mode == AVERAGE) v /= divisor(w, a, b, d);
    if (mode == NORM && p != 1) v = powf(v, 1 / p);
    y[o] = v;
  }
}

// Each pixel gathers from the windows that see it: no two threads write the same place, and the order is fixed.
template <class T> __device__ void pool_gradient(const T* x, const T* y, const T* dy, T* dx, int64 size,
                                                 const Windows& w, int64 mode, float p) {
  bool small = size < (1ll << 31);
  for (int64 at = FIRST; at < size; at += STEP) {
    Plane me = plane_of(w, w.in, at, small);
    Span a = windows_of(w, 0, me.a), b = windows_of(w, 1, me.b), d = windows_of(w, 2, me.d);
    float v = 0, mine = x[at];
    for (int64 i = a.begin; i < a.end; i++)
      for (int64 j = b.begin; j < b.end; j++)
        for (int64 k = d.begin; k < d.end; k++) {
          int64 o = place(w, w.out, me, i, j, k);
          float g = dy[o], answer = y[o];
          if (mode == MAX) v += mine == answer ? g : 0;
          else if (mode == AVERAGE) v += g / divisor(w, pixels_of(w, 0, i), pixels_of(w, 1, j), pixels_of(w, 2, k));
          else v += answer != 0 ? g / powf(answer, p - 1) : 0;
        }
    if (mode == NORM) v *= p == 2 ? mine : mine == 0 ? 0 : mine * powf(fabsf(mine), p - 2);
    dx[at] = v;
  }
}

#define POOL(S, T) \
  KERNEL(Pool##S, const T* x, T* y, int64 size, Windows w, int64 mode, float p) { pool(x, y, size, w, mode, p); } \
  KERNEL(PoolGradient##S, const T* x, const T* y, const T* dy, T* dx, int64 size, Windows w, int64 mode, float p) { \
    pool_gradient(x, y, dy, dx, size, w, mode, p); }
FLOATS(POOL)

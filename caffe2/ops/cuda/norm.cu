#include "caffe2.cuh"

// Values of channel c: images runs of `run` values, `channels` runs apart (NCHW), or, with a run of 1, NHWC.
// A block takes part p of a channel's values: [p * chunk, (p + 1) * chunk).

struct Moments { float a, b; };
__device__ inline Moments from_lane(Moments m, int distance) {
  return {__shfl_xor_sync(~0u, m.a, distance), __shfl_xor_sync(~0u, m.b, distance)};
}
struct Join { __device__ Moments operator()(Moments x, Moments y) const { return {x.a + y.a, x.b + y.b}; } };

template <class F>
__device__ void channel_sums(Moments* sums, int64 channels, int64 images, int64 run, int64 parts, int64 chunk, F f) {
  int64 n = images * run;
  for (int64 block = blockIdx.x; block < channels * parts; block += gridDim.x) {
    int64 c = block / parts, begin = block % parts * chunk, end = begin + chunk < n ? begin + chunk : n;
    Moments v = {0, 0};
    for (int64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
      int64 at = run == 1 ? i * channels + c : (i / run * channels + c) * run + i % run;
      v = Join()(v, f(at, c));
    }
    v = block_reduce(v, Join());
    if (threadIdx.x == 0) sums[block] = v;
  }
}

// Sums of x - x0 and its square, where x0 is a value of the channel: no digits are lost where the mean is large.
#define CHANNEL_MOMENTS(S, T) \
  KERNEL(ChannelMoments##S, const T* x, float* first, Moments* sums, int64 channels, int64 images, int64 run, \
         int64 parts, int64 chunk) { \
    for (int64 c = FIRST; c < channels; c += STEP) first[c] = x[c * run]; \
    channel_sums(sums, channels, images, run, parts, chunk, [=](int64 at, int64 c) { \
      float d = x[at] - x[c * run]; \
      return Moments{d, d * d}; \
    }); }
FLOATS(CHANNEL_MOMENTS)
KERNEL(ChannelStatistics, const float* first, const Moments* sums, const float* total, const float* total2, const float* scale,
       const float* bias, const float* mean, const float* var, float* new_mean, float* new_var, float* saved_mean,
       float* saved_inv_std, float* a, float* b, int64 channels, int64 parts, float n, float momentum,
       float unbiased, float epsilon) {
  for (int64 c = FIRST; c < channels; c += STEP) {
    float m, v;
    if (total) {
      m = total[c] / n;
      v = total2[c] / n - m * m;
    } else {
      Moments s = {0, 0};
      for (int64 p = 0; p < parts; p++) s = Join()(s, sums[c * parts + p]);
      float d = s.a / n;
      m = first[c] + d;
      v = fmaxf(s.b / n - d * d, 0);
    }
    new_mean[c] = momentum * (mean ? mean[c] : 0) + (1 - momentum) * m;
    new_var[c] = momentum * (var ? var[c] : 0) + (momentum == 1 ? 0 : (1 - momentum) * unbiased * v);
    float inv = 1 / sqrtf(v + epsilon);
    saved_mean[c] = m;
    saved_inv_std[c] = inv;
    a[c] = scale[c] * inv;
    b[c] = bias[c] - m * a[c];
  }
}
KERNEL(ChannelFactors, const float* scale, const float* bias, const float* mean, const float* var, float* a, float* b,
       int64 channels, float epsilon) {
  for (int64 c = FIRST; c < channels; c += STEP) {
    a[c] = scale[c] / sqrtf(var[c] + epsilon);
    b[c] = bias[c] - mean[c] * a[c];
  }
}

// f(i, channel) for all values; four of a run at a time where a run is a multiple of four.
template <class F4, class F> __device__ void by_channel(int64 size, int64 channels, int64 run, bool packed, F4 f4, F f) {
  if (packed && run % 4 == 0) {
    for (int64 i = 4 * FIRST; i < size; i += 4 * STEP)
      f4(i, size < (1ll << 32) ? (unsigned)i / (unsigned)run % (unsigned)channels : i / run % channels);
  } else {
    for (int64 i = FIRST; i < size; i += STEP) f(i, i / run % channels);
  }
}
template <class T>
__device__ void affine(const T* x, const float* a, const float* b, T* y, int64 size, int64 channels, int64 run) {
  by_channel(size, channels, run, true, [=](int64 i, int64 c) {
    Pack<T> v = *(const Pack<T>*)(x + i);
    float p = a[c], q = b[c];
#pragma unroll
    for (int j = 0; j < 4; j++) v.v[j] = v.v[j] * p + q;
    *(Pack<T>*)(y + i) = v;
  }, [=](int64 i, int64 c) { y[i] = x[i] * a[c] + b[c]; });
}
#define CHANNEL_AFFINE(S, T) \
  KERNEL(ChannelAffine##S, const T* x, const float* a, const float* b, T* y, int64 size, int64 channels, int64 run) { \
    affine(x, a, b, y, size, channels, run); }
FLOATS(CHANNEL_AFFINE)

#define CHANNEL_GRADIENT_SUMS(S, T) \
  KERNEL(ChannelGradientSums##S, const T* x, const T* dy, const float* mean, Moments* sums, int64 channels, \
         int64 images, int64 run, int64 parts, int64 chunk) { \
    channel_sums(sums, channels, images, run, parts, chunk, [=](int64 at, int64 c) { \
      return Moments{(x[at] - mean[c]) * dy[at], dy[at]}; \
    }); }
FLOATS(CHANNEL_GRADIENT_SUMS)
KERNEL(ChannelGradients, const Moments* sums, const float* given_dscale, const float* given_dbias, const float* scale,
       const float* mean, const float* inv_std, float* dscale, float* dbias, float* p, float* q, float* r, int64 channels,
       int64 parts, float n, float batches) {
  for (int64 c = FIRST; c < channels; c += STEP) {
    float ds, db;
    if (given_dscale) {
      ds = given_dscale[c] / batches;
      db = given_dbias[c] / batches;
    } else {
      Moments s = {0, 0};
      for (int64 k = 0; k < parts; k++) s = Join()(s, sums[c * parts + k]);
      ds = s.a * inv_std[c];
      db = s.b;
    }
    dscale[c] = ds;
    dbias[c] = db;
    p[c] = scale[c] * inv_std[c];
    q[c] = -p[c] * ds * inv_std[c] / n;
    r[c] = -p[c] * db / n - q[c] * mean[c];
  }
}
template <class T>
__device__ void backward(const T* x, const T* dy, const float* p, const float* q, const float* r, T* dx, int64 size,
                         int64 channels, int64 run) {
  by_channel(size, channels, run, true, [=](int64 i, int64 c) {
    Pack<T> v = *(const Pack<T>*)(x + i), g = *(const Pack<T>*)(dy + i);
    float s = p[c], t = q[c], u = r[c];
#pragma unroll
    for (int j = 0; j < 4; j++) v.v[j] = s * g.v[j] + t * v.v[j] + u;
    *(Pack<T>*)(dx + i) = v;
  }, [=](int64 i, int64 c) { dx[i] = p[c] * dy[i] + q[c] * x[i] + r[c]; });
}
#define CHANNEL_BACKWARD(S, T) \
  KERNEL(ChannelBackward##S, const T* x, const T* dy, const float* p, const float* q, const float* r, T* dx, \
         int64 size, int64 channels, int64 run) { \
    backward(x, dy, p, q, r, dx, size, channels, run); }
FLOATS(CHANNEL_BACKWARD)

// LRN: s[c] = bias + alpha / size * sum of x[k]^2 over the `size` channels around c; y = x s^-beta.
KERNEL(LRN, const float* x, float* y, float* scale, int64 n, int64 channels, int64 run, int64 size, float alpha,
       float beta, float bias) {
  for (int64 i = FIRST; i < n; i += STEP) {
    int64 c = i / run % channels, low = c - size / 2 > 0 ? c - size / 2 : 0,
          high = c + size / 2 < channels ? c + size / 2 : channels - 1;
    float s = 0;
    for (int64 k = low; k <= high; k++) {
      float v = x[i + (k - c) * run];
      s += v * v;
    }
    s = bias + alpha / size * s;
    if (scale) scale[i] = s;
    y[i] = x[i] * powf(s, -beta);
  }
}
KERNEL(LRNGradient, const float* x, const float* y, const float* scale, const float* dy, float* dx, int64 n,
       int64 channels, int64 run, int64 size, float alpha, float beta) {
  for (int64 i = FIRST; i < n; i += STEP) {
    int64 c = i / run % channels, low = c - size / 2 > 0 ? c - size / 2 : 0,
          high = c + size / 2 < channels ? c + size / 2 : channels - 1;
    float s = 0;
    for (int64 k = low; k <= high; k++) {
      int64 at = i + (k - c) * run;
      s += dy[at] * y[at] / scale[at];
    }
    dx[i] = dy[i] * powf(scale[i], -beta) - 2 * alpha * beta / size * x[i] * s;
  }
}

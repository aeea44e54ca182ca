// What all kernels share. Arguments are pointers, int64 and float, or structs by value; see CudaOperator.launch.
#pragma once
#include <cuda_fp16.h>

#ifndef KERNEL
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#endif

typedef long long int64;
typedef unsigned char uint8;
typedef unsigned long long uint64;

#define FIRST (blockIdx.x * (int64)blockDim.x + threadIdx.x)
#define STEP ((int64)gridDim.x * blockDim.x)

// A number that is stored in half precision: computed with as a float, rounded where it is stored. In an expression
// with ?: one branch at least must be a float, not both a Half and an int.
struct Half {
  __half v;
  __device__ operator float() const { return __half2float(v); }
  __device__ Half& operator=(float x) { v = __float2half_rn(x); return *this; }
};
// What sums of T are kept in.
template <class T> struct Wide { typedef T type; };
template <> struct Wide<Half> { typedef float type; };

// A kernel for each of the two, with its suffix.
#define FLOATS(KERNEL_OF) KERNEL_OF(_f, float) KERNEL_OF(_h, Half)

// ---------------------------------------------------------------- place by place

// Four values of a tensor, loaded and stored at once.
template <class T> struct alignas(4 * sizeof(T)) Pack { T v[4]; };

template <class T> struct Place {
  T* p;
  Pack<T> pack;
  __device__ void load(int64) {}
  __device__ void store(int64 i) { *(Pack<T>*)(p + i) = pack; }
};
template <class T> struct Place<const T> {
  const T* p;
  Pack<T> pack;
  __device__ void load(int64 i) { pack = *(const Pack<T>*)(p + i); }
  __device__ void store(int64) {}
};

template <class F, class... P> __device__ void four(int64 i, F f, P... place) {
  (place.load(i), ...);
#pragma unroll
  for (int j = 0; j < 4; j++) f(place.pack.v[j]...);
  (place.store(i), ...);
}

// Call f with references to the values of each of n places. What comes as `const T*` is read, what comes as `T*` is
// written and never read; a tensor may be given as both.
template <class F, class... T> __device__ void each(int64 n, F f, T*... p) {
  int64 packed = 0;
  if (((((uint64)p % sizeof(Pack<T>)) == 0) && ...)) {
    packed = n / 4 * 4;
    for (int64 i = 4 * FIRST; i < packed; i += 4 * STEP) four(i, f, Place<T>{p}...);
  }
  for (int64 i = packed + FIRST; i < n; i += STEP) f(p[i]...);
}

// ---------------------------------------------------------------- reductions

struct Plus { template <class T> __device__ T operator()(T a, T b) const { return a + b; } };
struct Greater { template <class T> __device__ T operator()(T a, T b) const { return a > b ? a : b; } };

template <class T> __device__ T from_lane(T v, int distance) { return __shfl_xor_sync(~0u, v, distance); }

// Combine a value of each thread of the block, whose threads are a multiple of 32; all get the result.
template <class T, class F> __device__ T block_reduce(T v, F f) {
  __shared__ T part[32];
  int lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
  for (int d = 16; d; d /= 2) v = f(v, from_lane(v, d));
  __syncthreads();                      // part may still be read for the value before
  if (lane == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  v = part[lane < warps ? lane : 0];
  T result = part[0];
  for (int w = 1; w < warps; w++) result = f(result, part[w]);
  return result;
}
template <class T> __device__ T block_sum(T v) { return block_reduce(v, Plus()); }

// ---------------------------------------------------------------- labels

// Whether a label is a class. One that is not is told to the host, in one store; see CudaOperator.fault.
__device__ inline bool is_class(int label, int64 classes, volatile uint64* fault, int64 number) {
  if (label >= 0 && label < classes) return true;
  *fault = (uint64)number << 32 | (unsigned)label;
  return false;
}

// ---------------------------------------------------------------- random numbers

// Philox 4x32-10: four random words that depend on the key and the counter alone.
struct Words { unsigned v[4]; };
__device__ inline Words philox(uint64 key, uint64 counter) {
  unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
  unsigned c0 = (unsigned)counter, c1 = (unsigned)(counter >> 32), c2 = 0, c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    unsigned h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
    unsigned h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
    c0 = h1 ^ c1 ^ k0;
    c1 = l1;
    c2 = h0 ^ c3 ^ k1;
    c3 = l0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}
__device__ inline float unit(unsigned word) { return (word >> 8) * (1.0f / 16777216.0f); }     // in [0, 1)

// CUDA C++ for g++: what the kernels of caffe2/ops/cuda need of it, on one processor. Threads of a block are fibers,
// which take turns at __syncthreads and at warp shuffles; blocks run one after the other.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

struct dim3 { unsigned x = 1, y = 1, z = 1; };
extern "C" dim3 threadIdx, blockIdx, blockDim, gridDim;
extern "C" void emu_wait_block();
extern "C" void emu_wait_warp();
extern "C" char emu_lanes[32][16];                 // values on their way between the threads of the running warp

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __constant__ static
#define __launch_bounds__(...)

inline void __syncthreads() { emu_wait_block(); }
inline void __syncwarp(unsigned = ~0u) { emu_wait_warp(); }

template <class T> T emu_exchange(T value, unsigned from) {
  static_assert(sizeof(T) <= 16, "");
  memcpy(emu_lanes[threadIdx.x % 32], &value, sizeof(T));
  emu_wait_warp();
  memcpy(&value, emu_lanes[from % 32], sizeof(T));
  emu_wait_warp();
  return value;
}
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
  return emu_exchange(value, (threadIdx.x % 32) ^ mask);
}
template <class T> T __shfl_sync(unsigned, T value, int from) { return emu_exchange(value, from); }
template <class T> T __shfl_down_sync(unsigned, T value, int by) {
  unsigned lane = threadIdx.x % 32;
  return emu_exchange(value, lane + by < 32 ? lane + by : lane);
}

template <class T> T atomicAdd(T* p, T v) { T old = *p; *p += v; return old; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
using std::isnan;
using std::max;
using std::min;

namespace emu {
template <class... A, size_t... I>
std::function<void()>* keep_arguments(void (*f)(A...), void** p, std::index_sequence<I...>) {
  std::tuple<A...> arguments(*(A*)p[I]...);
  return new std::function<void()>([=] { std::apply(f, arguments); });
}
template <class... A> std::function<void()>* keep_arguments(void (*f)(A...), void** p) {
  return keep_arguments(f, p, std::index_sequence_for<A...>());
}
}

// A kernel, and a function that keeps a launch's arguments until it is run.
#define KERNEL(name, ...) \
  extern "C" void name(__VA_ARGS__); \
  extern "C" std::function<void()>* name##_bind(void** p) { return emu::keep_arguments(name, p); } \
  extern "C" void name(__VA_ARGS__)

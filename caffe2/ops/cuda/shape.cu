#include "caffe2.cuh"

// Values of an array by steps along the axes of the result, the innermost first, moved as they are.
struct Steps { int64 ndim, shape[8], step[8]; };
template <class Index, class T> __device__ void gather(const T* x, T* y, int64 n, const Steps& s) {
  for (int64 i = FIRST; i < n; i += STEP) {
    Index rest = (Index)i;
    int64 at = 0;
    for (int d = 0; d < s.ndim; d++) {
      Index size = (Index)s.shape[d], q = rest / size;
      at += (rest - q * size) * s.step[d];
      rest = q;
    }
    y[i] = x[at];
  }
}
// Matrices (rows, columns) to (columns, rows), by tiles that are read and written in order.
template <class T> __device__ void transpose(const T* x, T* y, int64 batch, int64 rows, int64 columns) {
  __shared__ T tile[32][33];
  int64 across = (columns + 31) / 32, down = (rows + 31) / 32;
  int tx = threadIdx.x % 32, ty = threadIdx.x / 32;
  for (int64 block = blockIdx.x; block < batch * across * down; block += gridDim.x) {
    int64 c = block % across * 32, r = block / across % down * 32, b = block / (across * down);
    __syncthreads();
    for (int k = ty; k < 32; k += 8)
      if (r + k < rows && c + tx < columns) tile[k][tx] = x[(b * rows + r + k) * columns + c + tx];
    __syncthreads();
    for (int k = ty; k < 32; k += 8)
      if (c + k < columns && r + tx < rows) y[(b * columns + c + k) * rows + r + tx] = tile[tx][k];
  }
}
// Blocks of `width` bytes-wide items between rows of different length, as concatenation has them.
template <class T> __device__ void move(const T* x, T* y, int64 n, int64 width, int64 from, int64 from_at, int64 to,
                                        int64 to_at) {
  for (int64 i = FIRST; i < n; i += STEP) {
    int64 r = i / width, c = i % width;
    y[r * to + to_at + c] = x[r * from + from_at + c];
  }
}
#define WIDTH(T, SIZE) \
  KERNEL(Gather##SIZE, const T* x, T* y, int64 n, Steps s) { \
    if (n < (1ll << 31)) gather<unsigned>(x, y, n, s); else gather<uint64>(x, y, n, s); } \
  KERNEL(Transpose##SIZE, const T* x, T* y, int64 batch, int64 rows, int64 columns) { \
    transpose(x, y, batch, rows, columns); } \
  KERNEL(Move##SIZE, const T* x, T* y, int64 n, int64 width, int64 from, int64 from_at, int64 to, int64 to_at) { \
    move(x, y, n, width, from, from_at, to, to_at); }
struct alignas(16) Sixteen { int64 a, b; };
WIDTH(uint8, 1)
WIDTH(unsigned short, 2)
WIDTH(unsigned, 4)
WIDTH(uint64, 8)
WIDTH(Sixteen, 16)

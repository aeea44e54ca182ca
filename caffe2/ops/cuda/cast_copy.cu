#include "caffe2.cuh"
#include <cuda_fp16.h>

#define CAST(NAME, FROM, TO, EXPRESSION) \
  KERNEL(NAME, const FROM* x, TO* y, int64 n) { each(n, [](FROM x, TO& y) { y = EXPRESSION; }, x, y); }
#define FROM(SUFFIX, T, VALUE) \
  CAST(Cast##SUFFIX##_f, T, float, (float)VALUE) CAST(Cast##SUFFIX##_d, T, double, (double)VALUE) \
  CAST(Cast##SUFFIX##_i, T, int, (int)VALUE) CAST(Cast##SUFFIX##_l, T, int64, (int64)VALUE) \
  CAST(Cast##SUFFIX##_b, T, bool, VALUE != 0) CAST(Cast##SUFFIX##_u, T, uint8, (uint8)(int)VALUE) \
  CAST(Cast##SUFFIX##_c, T, signed char, (signed char)(int)VALUE) CAST(Cast##SUFFIX##_s, T, short, (short)(int)VALUE) \
  CAST(Cast##SUFFIX##_w, T, unsigned short, (unsigned short)(int)VALUE) \
  CAST(Cast##SUFFIX##_h, T, __half, __float2half_rn((float)VALUE))
FROM(_f, float, x)
FROM(_d, double, x)
FROM(_i, int, x)
FROM(_l, int64, x)
FROM(_b, bool, x)
FROM(_u, uint8, x)
FROM(_c, signed char, x)
FROM(_s, short, x)
FROM(_w, unsigned short, x)
FROM(_h, __half, __half2float(x))

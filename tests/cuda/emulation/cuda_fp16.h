// Half precision numbers for g++: their conversions.
#pragma once
#include <immintrin.h>
struct __half { unsigned short bits; };
__attribute__((target("f16c"))) inline float __half2float(__half x) { return _cvtsh_ss(x.bits); }
__attribute__((target("f16c"))) inline __half __float2half_rn(float x) { return {(unsigned short)_cvtss_sh(x, 0)}; }

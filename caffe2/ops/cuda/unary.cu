#include "caffe2.cuh"

#define UNARY_OF(NAME, T, EXPRESSION) \
  KERNEL(NAME, const T* x, T* y, int64 n, float a, float b) { \
    each(n, [=](Wide<T>::type x, T& y) { y = EXPRESSION; }, x, y); }
#define UNARY(NAME, EXPRESSION) UNARY_OF(NAME##_f, float, EXPRESSION) UNARY_OF(NAME##_h, Half, EXPRESSION)
// with integers and doubles too
#define UNARIES(NAME, EXPRESSION) UNARY(NAME, EXPRESSION) UNARY_OF(NAME##_d, double, EXPRESSION) \
  UNARY_OF(NAME##_i, int, EXPRESSION) UNARY_OF(NAME##_l, int64, EXPRESSION)
#define GRADIENT_OF(NAME, T, EXPRESSION) \
  KERNEL(NAME, const T* z, const T* dy, T* dx, int64 n, float a, float b) { \
    each(n, [=](float z, float dy, T& dx) { dx = EXPRESSION; }, z, dy, dx); }
#define GRADIENT(NAME, EXPRESSION) GRADIENT_OF(NAME##_f, float, EXPRESSION) GRADIENT_OF(NAME##_h, Half, EXPRESSION)

UNARIES(Negative, -x)
UNARIES(Sign, (x > 0) - (x < 0))
UNARIES(Sqr, x * x)
UNARIES(Abs, x < 0 ? -x : x)
UNARY(Sqrt, sqrtf(x))
UNARY_OF(Sqrt_d, double, sqrt(x))
UNARY(Exp, expf(x))
UNARY(Log, logf(x))
UNARY(Sin, sinf(x))
UNARY(Cos, cosf(x))
UNARY(Tan, tanf(x))
UNARY(Asin, asinf(x))
UNARY(Acos, acosf(x))
UNARY(Atan, atanf(x))
UNARY(Sinh, sinhf(x))
UNARY(Cosh, coshf(x))
UNARY(Erf, erff(x))
UNARY(Rsqrt, rsqrtf(x))
UNARY(Reciprocal, 1 / x)
UNARY(Cube, x * x * x)
UNARY(Cbrt, cbrtf(x))
UNARY(Ceil, ceilf(x))
UNARY(Floor, floorf(x))
UNARY(Clip, fminf(fmaxf(x, a), b))
UNARY(Scale, a * x)
UNARY(Log1p, log1pf(x))
__device__ inline float logit(float p) { return logf(p / (1 - p)); }
UNARY(Logit, logit(x < a ? a : x > 1 - a ? 1 - a : x))
GRADIENT(AbsGradient, z == 0 ? 0 : z < 0 ? -dy : dy)
GRADIENT(SinGradient, dy * cosf(z))
GRADIENT(CosGradient, -dy * sinf(z))
GRADIENT(TanGradient, dy / (cosf(z) * cosf(z)))
GRADIENT(AsinGradient, dy * rsqrtf(1 - z * z))
GRADIENT(AcosGradient, -dy * rsqrtf(1 - z * z))
GRADIENT(AtanGradient, dy / (1 + z * z))
GRADIENT(SinhGradient, dy * coshf(z))
GRADIENT(CoshGradient, dy * sinhf(z))
GRADIENT(ErfGradient, 1.1283791671f * dy * expf(-z * z))
GRADIENT(CubeGradient, 3 * dy * z * z)
GRADIENT(ReciprocalGradient, -dy * z * z)
GRADIENT(RsqrtGradient, -0.5f * dy * z * z * z)
GRADIENT(CbrtGradient, dy / (3 * z * z))
GRADIENT(Log1pGradient, dy / (1 + z))
GRADIENT(LogitGradient, z < a || z > 1 - a ? 0 : dy / (z * (1 - z)))
GRADIENT(ClipGradient, z > a && z < b ? dy : 0)

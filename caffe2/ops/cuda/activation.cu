#include "caffe2.cuh"

// y = f(x), with arguments a and b of the operator.
#define UNARY_OF(NAME, T, EXPRESSION) \
  KERNEL(NAME, const T* x, T* y, int64 n, float a, float b) { \
    each(n, [=](float x, T& y) { y = EXPRESSION; }, x, y); }
#define UNARY(NAME, EXPRESSION) UNARY_OF(NAME##_f, float, EXPRESSION) UNARY_OF(NAME##_h, Half, EXPRESSION)
// dx = f(z, dy), where z is x or y
#define GRADIENT_OF(NAME, T, EXPRESSION) \
  KERNEL(NAME, const T* z, const T* dy, T* dx, int64 n, float a, float b) { \
    each(n, [=](float z, float dy, T& dx) { dx = EXPRESSION; }, z, dy, dx); }
#define GRADIENT(NAME, EXPRESSION) GRADIENT_OF(NAME##_f, float, EXPRESSION) GRADIENT_OF(NAME##_h, Half, EXPRESSION)

__device__ inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }

UNARY(Relu, x > 0 ? x : 0)
GRADIENT(ReluGradient, z > 0 ? dy : 0)
UNARY(Sigmoid, sigmoid(x))
GRADIENT(SigmoidGradient, dy * z * (1 - z))
UNARY(Tanh, tanhf(x))
GRADIENT(TanhGradient, dy * (1 - z * z))
UNARY(LeakyRelu, x >= 0 ? x : a * x)
GRADIENT(LeakyReluGradient, z >= 0 ? dy : a * dy)
UNARY(ReluN, x < 0 ? 0 : x > a ? a : x)
GRADIENT(ReluNGradient, z > 0 && z < a ? dy : 0)
UNARY(Elu, x > 0 ? x : a * expm1f(x))
GRADIENT(EluGradient, z > 0 ? dy : dy * (z + a))
UNARY(Selu, b * (x > 0 ? x : a * expm1f(x)))
GRADIENT(SeluGradient, z > 0 ? b * dy : dy * (z + a * b))
UNARY(HardSigmoid, fminf(fmaxf(a * x + b, 0), 1))
GRADIENT(HardSigmoidGradient, z > 0 && z < 1 ? a * dy : 0)
UNARY(Softplus, fmaxf(x, 0) + log1pf(expf(-fabsf(x))))
GRADIENT(SoftplusGradient, dy * -expm1f(-z))
UNARY(Softsign, x / (1 + fabsf(x)))
GRADIENT(SoftsignGradient, dy / ((1 + fabsf(z)) * (1 + fabsf(z))))
UNARY(Swish, x * sigmoid(x))
UNARY(ThresholdedRelu, x > a ? x : 0)
GRADIENT(ThresholdedReluGradient, z > 0 ? dy : z < 0 ? -dy : 0)

// The normal distribution function, or where `fast` what comes near it; and its slope there.
__device__ inline float normal(float x, bool fast) {
  return 0.5f + 0.5f * (fast ? tanhf(0.7978845608f * x * (1 + 0.044715f * x * x)) : erff(0.70710678118f * x));
}
__device__ inline float density(float x, bool fast) {
  float p = normal(x, true);
  return fast ? 2 * p * (1 - p) * 0.7978845608f * (1 + 3 * 0.044715f * x * x) : 0.3989422804f * expf(-0.5f * x * x);
}
UNARY(Gelu, x * normal(x, a != 0))
#define GELU_GRADIENT(S, T) \
  KERNEL(GeluGradient##S, const T* dy, const T* x, T* dx, int64 n, float a, float) { \
    each(n, [=](float dy, float x, T& dx) { dx = dy * (normal(x, a != 0) + x * density(x, a != 0)); }, dy, x, dx); }
FLOATS(GELU_GRADIENT)
#define SWISH_GRADIENT(S, T) \
  KERNEL(SwishGradient##S, const T* x, const T* y, const T* dy, T* dx, int64 n, float, float) { \
    each(n, [](float x, float y, float dy, T& dx) { dx = dy * (y + sigmoid(x) * (1 - y)); }, x, y, dy, dx); }
FLOATS(SWISH_GRADIENT)

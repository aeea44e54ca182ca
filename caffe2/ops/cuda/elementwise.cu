#include "caffe2.cuh"

// Where the values of two tensors lie that are broadcast against each other: the innermost axis first.
struct Nest {
  int64 ndim, shape[8], a[8], b[8];
};

template <class Index, class A, class C, class F>
__device__ void broadcast(const A* a, const A* b, C* c, int64 n, const Nest& nest, F f) {
  for (int64 i = FIRST; i < n; i += STEP) {
    Index rest = (Index)i;
    int64 at_a = 0, at_b = 0;
    for (int d = 0; d < nest.ndim; d++) {
      Index size = (Index)nest.shape[d], q = rest / size, r = rest - q * size;
      at_a += r * nest.a[d];
      at_b += r * nest.b[d];
      rest = q;
    }
    f(a[at_a], b[at_b], c[i]);
  }
}

// c = f(a, b); NAME_same for tensors of one shape
#define BINARY(NAME, T, R, EXPRESSION) \
  KERNEL(NAME##_same, const T* a, const T* b, R* c, int64 n) { \
    each(n, [](T a, T b, R& c) { c = EXPRESSION; }, a, b, c); } \
  KERNEL(NAME, const T* a, const T* b, R* c, int64 n, Nest nest) { \
    auto f = [](T a, T b, R& c) { c = EXPRESSION; }; \
    if (n < (1ll << 31)) broadcast<unsigned>(a, b, c, n, nest, f); \
    else broadcast<uint64>(a, b, c, n, nest, f); }
#define PREDICATE(NAME, EXPRESSION) \
  BINARY(NAME##_f, float, bool, EXPRESSION) BINARY(NAME##_d, double, bool, EXPRESSION) \
  BINARY(NAME##_i, int, bool, EXPRESSION) BINARY(NAME##_l, int64, bool, EXPRESSION) \
  BINARY(NAME##_h, Half, bool, EXPRESSION)
#define NUMBERS(NAME, EXPRESSION) \
  BINARY(NAME##_f, float, float, EXPRESSION) BINARY(NAME##_d, double, double, EXPRESSION) \
  BINARY(NAME##_i, int, int, EXPRESSION) BINARY(NAME##_l, int64, int64, EXPRESSION) \
  BINARY(NAME##_h, Half, Half, EXPRESSION)

NUMBERS(Add, a + b)
NUMBERS(Sub, a - b)
NUMBERS(Mul, a * b)
BINARY(Div_f, float, float, a / b)
BINARY(Div_h, Half, Half, a / b)
BINARY(Div_d, double, double, a / b)
BINARY(Div_i, int, int, b == 0 ? 0 : b == -1 ? -a : a / b)              // as C does it; by 0, as good as any
BINARY(Div_l, int64, int64, b == 0 ? 0 : b == -1 ? -a : a / b)
NUMBERS(Max, a != a || a > b ? a : b)
NUMBERS(Min, a != a || a < b ? a : b)
BINARY(Pow_f, float, float, powf(a, b))
BINARY(Pow_h, Half, Half, powf(a, b))
PREDICATE(EQ, a == b)
PREDICATE(NE, a != b)
PREDICATE(LT, a < b)
PREDICATE(LE, a <= b)
PREDICATE(GT, a > b)
PREDICATE(GE, a >= b)
BINARY(EQ_b, bool, bool, a == b)
BINARY(NE_b, bool, bool, a != b)
BINARY(And_b, bool, bool, a && b)
BINARY(Or_b, bool, bool, a || b)
BINARY(Xor_b, bool, bool, a != b)
KERNEL(Not_b, const bool* x, bool* y, int64 n) { each(n, [](bool x, bool& y) { y = !x; }, x, y); }

#define MORE(S, T) \
  /* dx = dy where x is the extreme */ \
  KERNEL(Chosen##S, const T* x, const T* y, const T* dy, T* dx, int64 n) { \
    each(n, [](float x, float y, float dy, T& dx) { dx = x == y ? dy : 0; }, x, y, dy, dx); } \
  KERNEL(Scaled##S, const T* x, T* y, int64 n, float a) { \
    each(n, [=](float x, T& y) { y = a * x; }, x, y); } \
  KERNEL(Relu##S, const T* x, T* y, int64 n) { \
    each(n, [](float x, T& y) { y = x > 0 ? x : 0; }, x, y); } \
  /* y = a x, or y += a x, with a in device memory */ \
  KERNEL(Weighted##S, const T* x, const float* a, T* y, int64 n) { \
    float w = *a; \
    each(n, [=](float x, T& y) { y = w * x; }, x, y); } \
  KERNEL(AddWeighted##S, const T* before, const T* x, const float* a, T* y, int64 n) { \
    float w = *a; \
    each(n, [=](float before, float x, T& y) { y = before + w * x; }, before, x, y); } \
  /* x^p for one exponent */ \
  KERNEL(PowConstant##S, const T* x, T* y, int64 n, float p) { \
    each(n, [=](float x, T& y) { y = p == 2 ? x * x : powf(x, p); }, x, y); } \
  /* b, broadcast */ \
  BINARY(Second##S, T, T, b)
FLOATS(MORE)

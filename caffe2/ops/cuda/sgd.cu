#include "caffe2.cuh"

// Optimizers' steps, place by place. Learning rates are read from device memory.

template <class T>
__device__ void momentum_step(const T* g, const T* m, float rate, const T* w, T* step, T* new_m, T* new_w, int64 n,
                              float momentum, float nesterov, float decay) {
  auto f = [=](float g, float m, float w, T& step, T& new_m) {
    float v = momentum * m + rate * (g + decay * w), s = nesterov ? (1 + momentum) * v - momentum * m : v;
    new_m = v;
    step = s;
    return s;
  };
  if (w)
    each(n, [=](float g, float m, float w, T& step, T& new_m, T& new_w) {
      new_w = w - f(g, m, w, step, new_m);
    }, g, m, w, step, new_m, new_w);
  else
    each(n, [=](float g, float m, T& step, T& new_m) { f(g, m, 0, step, new_m); }, g, m, step, new_m);
}
#define MOMENTUM(S, T) \
  KERNEL(Momentum##S, const T* g, const T* m, const float* lr, const T* w, T* step, T* new_m, T* new_w, int64 n, \
         float momentum, float nesterov, float decay) { \
    momentum_step(g, m, *lr, w, step, new_m, new_w, n, momentum, nesterov, decay); }
FLOATS(MOMENTUM)

KERNEL(Adagrad, const float* w, const float* h, const float* g, const float* lr, float* new_w, float* new_h, float* rates,
       float* steps, int64 n, float epsilon, float decay, float wd) {
  float a = *lr;
  auto f = [=](float w, float h, float g, float& new_w, float& new_h, float& rate, float& step) {
    g += wd * w;
    new_h = decay * h + g * g;
    rate = a / (sqrtf(new_h) + epsilon);
    step = rate * g;
    new_w = w + step;
  };
  if (steps) {
    each(n, f, w, h, g, new_w, new_h, rates, steps);
  } else if (rates) {
    each(n, [=](float w, float h, float g, float& new_w, float& new_h, float& rate) {
      float step;
      f(w, h, g, new_w, new_h, rate, step);
    }, w, h, g, new_w, new_h, rates);
  } else {
    each(n, [=](float w, float h, float g, float& new_w, float& new_h) {
      float rate, step;
      f(w, h, g, new_w, new_h, rate, step);
    }, w, h, g, new_w, new_h);
  }
}

KERNEL(DecayAdagrad, const float* w, const float* m, const float* h, const float* g, const float* lr, float* new_w,
       float* new_m, float* new_h, int64 n, float b, float epsilon, float wd, float c) {
  float a = *lr;
  each(n, [=](float w, float m, float h, float g, float& new_w, float& new_m, float& new_h) {
    new_m = m * b + g * (1 - b);
    new_h = h + g * g;
    new_w = w + a * (c * new_m / (sqrtf(new_h) + epsilon) + wd * w);
  }, w, m, h, g, new_w, new_m, new_h);
}

KERNEL(Adadelta, const float* w, const float* h, const float* d, const float* g, const float* lr, float* new_w,
       float* new_h, float* new_d, int64 n, float epsilon, float decay) {
  float a = *lr;
  each(n, [=](float w, float h, float d, float g, float& new_w, float& new_h, float& new_d) {
    new_h = decay * h + (1 - decay) * g * g;
    float step = sqrtf(d + epsilon) / sqrtf(new_h + epsilon) * g;
    new_d = decay * d + (1 - decay) * step * step;
    new_w = w + a * step;
  }, w, h, d, g, new_w, new_h, new_d);
}

KERNEL(Adam, const float* w, const float* m, const float* v, const float* g, const float* lr, float* new_w, float* new_m,
       float* new_v, float* steps, int64 n, float b1, float b2, float epsilon, float c) {
  float a = *lr;
  auto f = [=](float w, float m, float v, float g, float& new_w, float& new_m, float& new_v) {
    new_m = m * b1 + g * (1 - b1);
    new_v = v * b2 + g * g * (1 - b2);
    float step = c * new_m / (sqrtf(new_v) + epsilon);
    new_w = w + a * step;
    return step;
  };
  if (steps)
    each(n, [=](float w, float m, float v, float g, float& new_w, float& new_m, float& new_v, float& step) {
      step = f(w, m, v, g, new_w, new_m, new_v);
    }, w, m, v, g, new_w, new_m, new_v, steps);
  else
    each(n, f, w, m, v, g, new_w, new_m, new_v);
}

KERNEL(RmsProp, const float* g, const float* h, const float* m, const float* lr, float* step, float* new_h, float* new_m,
       int64 n, float decay, float momentum, float epsilon) {
  float a = *lr;
  each(n, [=](float g, float h, float m, float& step, float& new_h, float& new_m) {
    new_h = h + (1 - decay) * (g * g - h);
    new_m = momentum * m + a * g / sqrtf(epsilon + new_h);
    step = new_m;
  }, g, h, m, step, new_h, new_m);
}

struct Pair { float n, z; };
KERNEL(Ftrl, const float* w, const Pair* nz, const float* g, const float* given_alpha, float* new_w, Pair* new_nz,
       int64 n, float alpha, float beta, float l1, float l2) {
  float rate = 1 / (given_alpha ? *given_alpha : alpha);
  each(n, [=](float w, Pair nz, float g, float& new_w, Pair& new_nz) {
    float root = sqrtf(nz.n + g * g), z = nz.z + g - (root - sqrtf(nz.n)) * rate * w;
    new_nz.n = nz.n + g * g;
    new_nz.z = z;
    new_w = fabsf(z) > l1 ? ((z > 0 ? l1 : -l1) - z) / ((beta + root) * rate + l2) : 0;
  }, w, nz, g, new_w, new_nz);
}

// A column of `rows` values, a thread each, stays or vanishes as a whole.
KERNEL(GFtrl, const float* w, const Pair* nz, const float* g, const float* given_alpha, float* new_w, Pair* new_nz,
       int64 rows, int64 columns, float alpha, float beta, float l1, float l2) {
  float rate = 1 / (given_alpha ? *given_alpha : alpha);
  for (int64 c = FIRST; c < columns; c += STEP) {
    double norm = 0, least = l1 * sqrt((double)rows);
    for (int64 i = c; i < rows * columns; i += columns) {
      Pair p = nz[i];
      float root = sqrtf(p.n + g[i] * g[i]);
      p.z += g[i] - (root - sqrtf(p.n)) * rate * w[i];
      p.n += g[i] * g[i];
      new_nz[i] = p;
      norm += (double)p.z * p.z;
    }
    norm = sqrt(norm);
    for (int64 i = c; i < rows * columns; i += columns)
      new_w[i] = norm > least
        ? (float)(new_nz[i].z * (least / norm - 1) / ((beta + sqrtf(new_nz[i].n)) * rate + l2)) : 0;
  }
}

// Rules with one value for all: it is computed first, by one thread, from a sum of squares.
KERNEL(WngradRate, const float* b, const float* lr, const float* sum, float* new_b, float* rate, float epsilon) {
  if (FIRST == 0) {
    float divisor = *b + epsilon;
    *rate = *lr / divisor;
    *new_b = *b + *sum / divisor;
  }
}
KERNEL(Step, const float* w, const float* g, const float* rate, float* new_w, float* steps, int64 n) {
  float a = *rate;
  if (steps)
    each(n, [=](float w, float g, float& new_w, float& step) { step = a * g; new_w = w + step; }, w, g, new_w, steps);
  else
    each(n, [=](float w, float g, float& new_w) { new_w = w + a * g; }, w, g, new_w);
}
KERNEL(StormRate, const float* total, const float* lr, const float* sum, float* new_total, float* rate, float beta) {
  if (FIRST == 0) {
    *new_total = *total + *sum;
    *rate = *lr * powf(beta + *new_total, -1.0f / 3);
  }
}
KERNEL(Storm, const float* w, const float* m, const float* g, const float* rate, float* new_w, float* new_m, int64 n,
       float momentum) {
  float a = *rate, share = 1 - momentum * a * a;
  each(n, [=](float w, float m, float g, float& new_w, float& new_m) {
    new_m = g + share * (m - g);
    new_w = w + a * new_m;
  }, w, m, g, new_w, new_m);
}
KERNEL(Lars, const float* x2, const float* g2, const float* wd, const float* trust, const float* lr_max, float* y,
       float offset, float lr_min) {
  if (FIRST == 0) {
    float norm = sqrtf(*x2), rate = 1;
    if (norm > 0) rate = *trust / (sqrtf(*g2) / norm + *wd + offset);
    *y = fmaxf(fminf(rate, *lr_max), lr_min);
  }
}
KERNEL(ScaleBy, const float* x, float* y, int64 n, float a) {
  each(n, [=](float x, float& y) { y = a * x; }, x, y);
}

// YellowFin: the step, the means, and what is tuned by one thread from sums of squares.
KERNEL(YellowFinStep, const float* w, const float* m, const float* lr, const float* mu, const float* ga, const float* g2a,
       const float* g, float* new_w, float* new_m, float* new_ga, float* new_g2a, int64 n, float beta, float nesterov) {
  float a = *lr, u = *mu;
  each(n, [=](float w, float m, float ga, float g2a, float g, float& new_w, float& new_m, float& new_ga, float& new_g2a) {
    float before = u * m;
    new_m = before + a * g;
    new_w = w - (nesterov ? (1 + u) * new_m - before : new_m);
    new_ga = beta * ga + (1 - beta) * g;
    new_g2a = beta * g2a + (1 - beta) * g * g;
  }, w, m, ga, g2a, g, new_w, new_m, new_ga, new_g2a);
}
__device__ inline double follow(float* mean, double value, double beta) {
  *mean = (float)(beta * *mean + (1 - beta) * value);
  return *mean;
}
KERNEL(YellowFinTune, const float* norm2_of, const float* average2_of, float* window, float* means, float* lr, float* mu,
       int64 width, int64 t, float epsilon_of, float beta_of, float correction) {
  enum { NORM, NORM2, LEAST, MOST, DISTANCE };
  if (FIRST == 0) {
    double epsilon = epsilon_of, beta = beta_of, c = correction;
    double norm2 = fmax(epsilon, (double)*norm2_of), norm2_mean = follow(means + NORM2, norm2, beta) * c;
    follow(means + NORM, sqrt(norm2), beta);
    window[(t - 1) % width] = (float)log(norm2);
    double least = window[0], most = window[0];
    for (int64 i = 0; i < width && i < t; i++) {
      least = fmin(least, (double)window[i]);
      most = fmax(most, (double)window[i]);
    }
    least = fmax(epsilon, exp(follow(means + LEAST, least, beta) * c));
    most = fmax(epsilon, exp(follow(means + MOST, most, beta) * c));
    double variance = fmax(epsilon, norm2_mean - c * c * *average2_of);
    double distance = follow(means + DISTANCE, (double)means[NORM] / means[NORM2], beta) * c;
    if (t > 1) {
      double ratio = sqrt(most / least), limit = (ratio - 1) / (ratio + 1);
      double p = distance * least * distance * least / (2 * variance);
      double w = cbrt((-sqrt(p * p + 4.0 / 27 * p * p * p) - p) / 2), root = w - p / 3 / w + 1;
      double u = fmax(root * root, limit * limit);
      follow(mu, u, beta);
      follow(lr, (1 - sqrt(u)) * (1 - sqrt(u)) / least, beta);
    }
  }
}

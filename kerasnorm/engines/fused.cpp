// Normalization together with the activation before or after it, dropout and the residual add after
// them: one pass over an image for each of its sums, while the image is in the cache.
//
// Images are (N, P, C): N images of P pixels of C channels. Statistics are float32, sums over many
// values float64. Means are subtracted before anything is squared.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using Half = std::uint16_t;  // bfloat16: the upper half of a float
enum Activation { LINEAR, RELU, RELU6, SILU };

constexpr std::int64_t ROW = 64;    // values that a row has at least, so that it fills vectors
constexpr std::int64_t BLOCK = 64;  // rows that are summed in float32

inline float load(const float* p) { return *p; }
inline float load(const Half* p) {
  const std::uint32_t bits = static_cast<std::uint32_t>(*p) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline void store(float* p, float value) { *p = value; }
inline void store(Half* p, float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  *p = static_cast<Half>(value == value ? rounded : 0x7FC0u);  // to the nearest even; NaN stays
}

// 1 / (1 + exp(-x)), by the polynomial of Cephes for exp, whose relative error is below 2e-7.
inline float sigmoid(float x) {
  const float y = -x < -87.f ? -87.f : (-x > 87.f ? 87.f : -x);
  const float shifted = y * 1.44269504f + 12582912.f;  // 1.5 * 2^23: rounds to a whole number
  const float n = shifted - 12582912.f;
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  std::int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  const float result = 1.f / (1.f + p * power);
  return x == x ? result : x;
}

template <Activation A> inline float act(float x) {
  if (A == RELU) return x < 0.f ? 0.f : x;  // NaN stays NaN
  if (A == RELU6) return x < 0.f ? 0.f : (x > 6.f ? 6.f : x);
  if (A == SILU) return x * sigmoid(x);
  return x;
}
template <Activation A> inline float slope(float x) {
  if (A == RELU) return x > 0.f ? 1.f : 0.f;
  if (A == RELU6) return x > 0.f && x < 6.f ? 1.f : 0.f;
  if (A == SILU) {
    const float s = sigmoid(x);
    return s * (1.f + x * (1.f - s));
  }
  return 1.f;
}

// An image as rows of `width` values: `repeats` pixels each, so that any number of channels fills
// the processor's vectors.
struct Shape {
  std::int64_t pixels, channels, repeats, width, total;
  Shape(std::int64_t pixels, std::int64_t channels)
      : pixels(pixels), channels(channels),
        repeats(std::max<std::int64_t>(1, std::min(pixels, (ROW + channels - 1) / channels))),
        width(0), total(pixels * channels) {
    if (channels % 8 && repeats > 8) repeats = repeats / 8 * 8;
    width = repeats * channels;
  }
};

struct Row {
  std::vector<float> values;
  Row(const Shape& shape) : values(shape.width) {}
  void fill(const Shape& shape, const float* per_channel) {
    for (std::int64_t i = 0; i < shape.width; ++i) values[i] = per_channel[i % shape.channels];
  }
  const float* data() const { return values.data(); }
};

// Calls f(offset, width) for the rows of an image, and adds what it summed to totals (C).
template <int K, class F>
void for_rows(const Shape& shape, float* const (&partial)[K], double* const (&totals)[K], F f) {
  for (int k = 0; k < K; ++k) {
    std::fill_n(partial[k], shape.width, 0.f);
    std::fill_n(totals[k], shape.channels, 0.);
  }
  for (std::int64_t at = 0, rows = 0; at < shape.total; at += shape.width) {
    const std::int64_t left = shape.total - at;
    f(at, std::min(left, shape.width));
    if (++rows == BLOCK || left <= shape.width) {
      for (int k = 0; k < K; ++k) {
        for (std::int64_t i = 0; i < shape.width; ++i) {
          totals[k][i % shape.channels] += partial[k][i];
          partial[k][i] = 0.f;
        }
      }
      rows = 0;
    }
  }
}

struct Work {  // of one thread
  Shape shape;
  Row mean, inverse, rest, gamma, beta, first, second;
  std::vector<float> partial[2];
  std::vector<double> totals[2];
  std::vector<float> channel[5];
  explicit Work(const Shape& shape)
      : shape(shape), mean(shape), inverse(shape), rest(shape), gamma(shape), beta(shape),
        first(shape), second(shape) {
    for (auto& p : partial) p.resize(shape.width);
    for (auto& t : totals) t.resize(shape.channels);
    for (auto& c : channel) c.resize(shape.channels);
  }
};

// Mean and sum of squared deviations of each channel of an image.
template <class T, Activation BEFORE>
void moments(Work& w, const T* x, double* mean, double* squares) {
  const Shape& s = w.shape;
  float *p = w.partial[0].data(), *q = w.partial[1].data();
  for_rows<1>(s, {p}, {mean}, [&](std::int64_t at, std::int64_t width) {
    const T* row = x + at;
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) p[i] += act<BEFORE>(load(row + i));
  });
  const double pixels = static_cast<double>(s.pixels);
  for (std::int64_t c = 0; c < s.channels; ++c)
    w.channel[0][c] = static_cast<float>(mean[c] / pixels);
  w.mean.fill(s, w.channel[0].data());
  const float* m = w.mean.data();
  for_rows<2>(s, {p, q}, {mean, squares}, [&](std::int64_t at, std::int64_t width) {
    const T* row = x + at;
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) {
      const float d = act<BEFORE>(load(row + i)) - m[i];
      p[i] += d;
      q[i] += d * d;
    }
  });
  for (std::int64_t c = 0; c < s.channels; ++c) {  // what the first mean lost to rounding
    const double rest = mean[c] / pixels;
    mean[c] = w.channel[0][c] + rest;
    squares[c] = std::max(0., squares[c] - pixels * rest * rest);
  }
}

template <class T, Activation BEFORE, Activation AFTER>
void apply(Work& w, const T* x, const T* residual, T* y, float scale) {
  const Shape& s = w.shape;
  const float *m = w.mean.data(), *a = w.inverse.data(), *b = w.rest.data();
  for (std::int64_t at = 0; at < s.total; at += s.width) {
    const std::int64_t width = std::min(s.width, s.total - at);
    const T *from = x + at, *add = residual ? residual + at : nullptr;
    T* to = y + at;
    if (add) {
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i)
        store(to + i, load(add + i) +
                          scale * act<AFTER>((act<BEFORE>(load(from + i)) - m[i]) * a[i] + b[i]));
    } else {
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i)
        store(to + i, scale * act<AFTER>((act<BEFORE>(load(from + i)) - m[i]) * a[i] + b[i]));
    }
  }
}

struct Call {
  std::int64_t images, pixels, channels, groups, threads;  // groups 0: over the batch
  double epsilon;
  const void *x, *residual;
  const float *gamma, *beta;
  void* y;
  // Of each group, (N, groups), or over the batch, (C): mean, 1 / sqrt(variance + epsilon), what the
  // mean lost to rounding, in standard deviations, and the variance, which may be left out.
  float *mean, *inverse, *rest, *variance;
  // Dropout after norm and activation: positions in x of what it drops, ascending, and the factor of
  // what it keeps.
  const std::int64_t* dropped;
  std::int64_t drops;
  double scale;
};

// Calls f(position in the image) for what dropout drops of an image.
template <class F> void for_dropped(const Call& c, std::int64_t image, F f) {
  const std::int64_t size = c.pixels * c.channels, start = image * size;
  const std::int64_t* end = c.dropped + c.drops;
  for (const std::int64_t* at = std::lower_bound(c.dropped, end, start);
       at != end && *at < start + size; ++at)
    f(*at - start);
}

// Chan's rule: moments of the union of parts of equal size.
void merge(const double* mean, const double* squares, std::int64_t parts, std::int64_t stride,
           const Call& c, std::int64_t place) {
  const double size = static_cast<double>(c.pixels);
  double sum = 0, total = 0;
  for (std::int64_t i = 0; i < parts; ++i) sum += mean[i * stride];
  const double middle = sum / static_cast<double>(parts);
  for (std::int64_t i = 0; i < parts; ++i) {
    const double d = mean[i * stride] - middle;
    total += squares[i * stride] + size * d * d;
  }
  const double variance = total / (size * static_cast<double>(parts));
  const double inverse = 1. / std::sqrt(variance + c.epsilon);
  c.mean[place] = static_cast<float>(middle);
  c.inverse[place] = static_cast<float>(inverse);
  c.rest[place] = static_cast<float>((middle - c.mean[place]) * inverse);
  if (c.variance) c.variance[place] = static_cast<float>(variance);
}

// Spreads the statistics of an image over the rows; with `gamma` and beta taken in, if asked for.
void spread(Work& w, const Call& c, std::int64_t image, bool is_affine) {
  const std::int64_t each = c.groups ? c.channels / c.groups : 1;
  const std::int64_t start = c.groups ? image * c.groups : 0;
  for (std::int64_t k = 0; k < c.channels; ++k) {
    w.channel[0][k] = c.mean[start + k / each];
    const float inverse = c.inverse[start + k / each], rest = c.rest[start + k / each];
    w.channel[1][k] = is_affine ? inverse * c.gamma[k] : inverse;
    w.channel[4][k] = is_affine ? c.beta[k] - rest * c.gamma[k] : -rest;
  }
  w.mean.fill(w.shape, w.channel[0].data());
  w.inverse.fill(w.shape, w.channel[1].data());
  w.rest.fill(w.shape, w.channel[4].data());
}

template <class T, Activation BEFORE, Activation AFTER> void forward(const Call& c) {
  const Shape shape(c.pixels, c.channels);
  const std::int64_t size = c.pixels * c.channels;
  const T *x = static_cast<const T*>(c.x), *add = static_cast<const T*>(c.residual);
  T* y = static_cast<T*>(c.y);
  const std::int64_t kept = c.groups ? 0 : c.images * c.channels;
  std::vector<double> means(kept), squares(kept);
  const auto write = [&](Work& w, std::int64_t n) {
    const T* residual = add ? add + n * size : nullptr;
    T* to = y + n * size;
    apply<T, BEFORE, AFTER>(w, x + n * size, residual, to, static_cast<float>(c.scale));
    for_dropped(c, n, [&](std::int64_t at) { to[at] = residual ? residual[at] : T(0); });
  };
#pragma omp parallel num_threads(c.threads)
  {
    Work w(shape);
#pragma omp for schedule(static)
    for (std::int64_t n = 0; n < c.images; ++n) {
      if (!c.groups) {
        moments<T, BEFORE>(w, x + n * size, &means[n * c.channels], &squares[n * c.channels]);
        continue;
      }
      double *mean = w.totals[0].data(), *square = w.totals[1].data();
      moments<T, BEFORE>(w, x + n * size, mean, square);
      const std::int64_t each = c.channels / c.groups;
      for (std::int64_t g = 0; g < c.groups; ++g)
        merge(mean + g * each, square + g * each, each, 1, c, n * c.groups + g);
      spread(w, c, n, true);
      write(w, n);
    }
    if (!c.groups) {
#pragma omp for schedule(static)
      for (std::int64_t k = 0; k < c.channels; ++k)
        merge(&means[k], &squares[k], c.images, c.channels, c, k);
      spread(w, c, 0, true);
#pragma omp for schedule(static)
      for (std::int64_t n = 0; n < c.images; ++n) write(w, n);
    }
  }
}

struct Back {
  Call c;  // y is not read; `variance` is not read
  const void* gradient;
  void* dx;
  float *dgamma, *dbeta;  // (C)
};

// With u = before(x), d = (u - mean) * r, z = gamma * d + beta, y = scale * after(z), 0 where it is
// dropped, and g = dL/dy * scale * after'(z), 0 where it is dropped:
// dL/du = r * (gamma * g - mean(gamma * g) - d * mean(gamma * g * d)), means over what shares
// statistics; g lies in dx between the two passes where it is exact (float32), and dL/dy does where
// something is dropped.
template <class T, Activation BEFORE, Activation AFTER> void backward(const Back& b) {
  const Call& c = b.c;
  const Shape shape(c.pixels, c.channels);
  const std::int64_t size = c.pixels * c.channels;
  const T *x = static_cast<const T*>(c.x), *gradient = static_cast<const T*>(b.gradient);
  T* dx = static_cast<T*>(b.dx);
  std::vector<double> sums(c.images * c.channels), dots(c.images * c.channels);
  constexpr bool KEEPS = sizeof(T) == sizeof(float) && AFTER != LINEAR;
  const float scale = static_cast<float>(c.scale);
#pragma omp parallel num_threads(c.threads)
  {
    Work w(shape);
    w.beta.fill(shape, c.beta);
    w.gamma.fill(shape, c.gamma);
    const float *ga = w.gamma.data(), *be = w.beta.data();
    const auto measure = [&](std::int64_t n) {
      spread(w, c, n, false);
      const float *m = w.mean.data(), *r = w.inverse.data(), *e = w.rest.data();
      float *p = w.partial[0].data(), *q = w.partial[1].data();
      const T *from = x + n * size, *grad = gradient + n * size;
      T* to = dx + n * size;
      if (c.drops) {
        std::memcpy(to, grad, size * sizeof(T));
        for_dropped(c, n, [&](std::int64_t at) { to[at] = T(0); });
        grad = to;
      }
      for_rows<2>(shape, {p, q}, {&sums[n * c.channels], &dots[n * c.channels]},
                  [&](std::int64_t at, std::int64_t width) {
                    const T *xs = from + at, *gs = grad + at;
                    T* out = to + at;
#pragma omp simd
                    for (std::int64_t i = 0; i < width; ++i) {
                      const float d = (act<BEFORE>(load(xs + i)) - m[i]) * r[i] + e[i];
                      const float g = load(gs + i) * (scale * slope<AFTER>(ga[i] * d + be[i]));
                      if (KEEPS) store(out + i, g);
                      p[i] += g;
                      q[i] += g * d;
                    }
                  });
    };
    // dL/du = a * g - first - d * second, per channel.
    const auto write = [&](std::int64_t n) {
      const float *m = w.mean.data(), *r = w.inverse.data(), *e = w.rest.data();
      const float *f = w.first.data(), *s = w.second.data();
      const T *from = x + n * size, *grad = c.drops ? dx + n * size : gradient + n * size;
      T* to = dx + n * size;
      for (std::int64_t at = 0; at < shape.total; at += shape.width) {
        const std::int64_t width = std::min(shape.width, shape.total - at);
        const T *xs = from + at, *gs = KEEPS ? to + at : grad + at;
        T* out = to + at;
#pragma omp simd
        for (std::int64_t i = 0; i < width; ++i) {
          const float v = load(xs + i);
          const float d = (act<BEFORE>(v) - m[i]) * r[i] + e[i];
          const float g =
              KEEPS ? load(gs + i) : load(gs + i) * (scale * slope<AFTER>(ga[i] * d + be[i]));
          store(out + i, slope<BEFORE>(v) * (r[i] * (ga[i] * g - f[i] - d * s[i])));
        }
      }
    };
#pragma omp for schedule(static)
    for (std::int64_t n = 0; n < c.images; ++n) {
      measure(n);
      if (!c.groups) continue;
      const std::int64_t each = c.channels / c.groups;
      for (std::int64_t k = 0; k < c.groups; ++k) {
        double first = 0, second = 0;
        for (std::int64_t j = k * each; j < (k + 1) * each; ++j) {
          first += c.gamma[j] * sums[n * c.channels + j];
          second += c.gamma[j] * dots[n * c.channels + j];
        }
        const double count = static_cast<double>(c.pixels * each);
        std::fill_n(&w.channel[2][k * each], each, static_cast<float>(first / count));
        std::fill_n(&w.channel[3][k * each], each, static_cast<float>(second / count));
      }
      w.first.fill(shape, w.channel[2].data());
      w.second.fill(shape, w.channel[3].data());
      write(n);
    }
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < c.channels; ++k) {
      double sum = 0, dot = 0;
      for (std::int64_t n = 0; n < c.images; ++n) {
        sum += sums[n * c.channels + k];
        dot += dots[n * c.channels + k];
      }
      b.dbeta[k] = static_cast<float>(sum);
      b.dgamma[k] = static_cast<float>(dot);
    }
    if (!c.groups) {
      const double count = static_cast<double>(c.images * c.pixels);
      spread(w, c, 0, false);
      for (std::int64_t k = 0; k < c.channels; ++k) {
        w.channel[2][k] = static_cast<float>(c.gamma[k] * (b.dbeta[k] / count));
        w.channel[3][k] = static_cast<float>(c.gamma[k] * (b.dgamma[k] / count));
      }
      w.first.fill(shape, w.channel[2].data());
      w.second.fill(shape, w.channel[3].data());
#pragma omp for schedule(static)
      for (std::int64_t n = 0; n < c.images; ++n) write(n);
    }
  }
}

template <class T> int run(const Call* c, const Back* b, int before, int after) {
#define CASE(BEFORE, AFTER)                             \
  if (before == BEFORE && after == AFTER) {             \
    if (b) backward<T, BEFORE, AFTER>(*b);              \
    else forward<T, BEFORE, AFTER>(*c);                 \
    return 0;                                           \
  }
  CASE(LINEAR, LINEAR)
  CASE(LINEAR, RELU)
  CASE(LINEAR, RELU6)
  CASE(LINEAR, SILU)
  CASE(RELU, LINEAR)
  CASE(RELU6, LINEAR)
  CASE(SILU, LINEAR)
#undef CASE
  return 1;
}

}  // namespace

extern "C" {
int kerasnorm_normalize(const Call* c, int is_half, int before, int after) {
  return is_half ? run<Half>(c, nullptr, before, after) : run<float>(c, nullptr, before, after);
}
int kerasnorm_differentiate(const Back* b, int is_half, int before, int after) {
  return is_half ? run<Half>(nullptr, b, before, after) : run<float>(nullptr, b, before, after);
}
}

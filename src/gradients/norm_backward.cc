#include <algorithm>
#include <cmath>

#include "gradients/backward.h"
#include "gradients/lanes.h"
#include "models/layers.h"

namespace nibble {
namespace {

constexpr int64_t kRowsPerTask = 16;

// y = x r w with r = (mean(x^2) + epsilon)^(-1/2), hence dx = r (w dy) - x r^3 mean(x w dy).
struct RmsFactors {
  float direct, along;  // of w dy and of x
};

RmsFactors rms_factors(const float* x, const float* weight, const float* dy, int64_t size, double epsilon) {
  const auto n = static_cast<double>(size);
  const double squares = lane_sum(size, [&](int64_t i) { return x[i] * x[i]; });
  const double product = lane_sum(size, [&](int64_t i) { return x[i] * weight[i] * dy[i]; });
  const double r = 1.0 / std::sqrt(squares / n + epsilon);
  return {static_cast<float>(r), static_cast<float>(-r * r * r * product / n)};
}

// y = xhat w + b with xhat = (x - mean) r: dx = r (g - mean(g) - xhat mean(g xhat)), g = w dy.
void add_layer_norm_row(const float* x, const float* weight, const float* dy, int64_t size, double epsilon,
                        float* gradient) {
  const auto n = static_cast<double>(size);
  const auto mean = static_cast<float>(lane_sum(size, [&](int64_t i) { return x[i]; }) / n);
  const double variance =
      lane_sum(size, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / static_cast<float>(n);
  const auto r = static_cast<float>(1.0 / std::sqrt(variance + epsilon));
  const auto g_mean = static_cast<float>(lane_sum(size, [&](int64_t i) { return weight[i] * dy[i]; }) / n);
  const auto along = static_cast<float>(
      lane_sum(size, [&](int64_t i) { return weight[i] * dy[i] * (x[i] - mean) * r; }) / n);
  lane_loop(size,
            [&](int64_t i) { gradient[i] += r * (weight[i] * dy[i] - g_mean - (x[i] - mean) * r * along); });
}

}  // namespace

void rms_norm_backward(const float* x, const float* weight, const float* dy, int64_t size, double epsilon,
                       float* dx) {
  const RmsFactors f = rms_factors(x, weight, dy, size, epsilon);
  lane_loop(size, [&](int64_t i) { dx[i] = f.direct * weight[i] * dy[i] + f.along * x[i]; });
}

void add_norm_backward(const ModelSpec& spec, const NormWeights& norm, const float* x, const float* dy,
                       int64_t tokens, int64_t size, float* gradient, ThreadPool& pool) {
  const float* weight = norm.weight.data<float>();
  pool.parallel_for((tokens + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t last = std::min(tokens, (task + 1) * kRowsPerTask);
    for (int64_t t = task * kRowsPerTask; t < last; ++t) {
      const float* in = x + t * size;
      const float* out_gradient = dy + t * size;
      float* sum = gradient + t * size;
      if (spec.norm == NormKind::kLayer) {
        add_layer_norm_row(in, weight, out_gradient, size, spec.norm_epsilon, sum);
        continue;
      }
      const RmsFactors f = rms_factors(in, weight, out_gradient, size, spec.norm_epsilon);
      lane_loop(size, [&](int64_t i) { sum[i] += f.direct * weight[i] * out_gradient[i] + f.along * in[i]; });
    }
  });
}

}  // namespace nibble

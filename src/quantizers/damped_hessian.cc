#include "quantizers/damped_hessian.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "quantizers/inverse_factor.h"

namespace nibble {
namespace {

constexpr int64_t kRowsPerTask = 16;

// One attempt in the precision of T; false when the damped matrix is not positive definite in it.
template <typename T>
bool try_factor(const QuantizerInput& input, const std::vector<int32_t>& order,
                const HessianDiagonal& diagonal, double damping, std::vector<T>& factor, ThreadPool& pool) {
  const float* hessian = input.statistics->hessian.data<float>();
  const int64_t k = input.in_features;
  factor.resize(static_cast<size_t>(k * k));
  pool.parallel_for((k + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(k, (task + 1) * kRowsPerTask);
    for (int64_t i = task * kRowsPerTask; i < end; ++i) {
      const float* row = hessian + order[i] * k;
      T* out = factor.data() + i * k;
      for (int64_t j = 0; j <= i; ++j) out[j] = static_cast<T>(row[order[j]]);
      if (diagonal.dead[order[i]]) out[i] = static_cast<T>(diagonal.mean);
      out[i] += static_cast<T>(damping * diagonal.mean);
    }
  });
  return inverse_cholesky_factor<T>(factor.data(), k, pool);
}

}  // namespace

HessianDiagonal examine_diagonal(const QuantizerInput& input) {
  const float* hessian = input.statistics->hessian.data<float>();
  const int64_t k = input.in_features;
  HessianDiagonal diagonal;
  diagonal.dead.resize(static_cast<size_t>(k));
  double sum = 0;
  int64_t alive = 0;
  for (int64_t i = 0; i < k; ++i) {
    const float value = hessian[i * k + i];
    if (!std::isfinite(value) || value < 0) {
      fail("{}: the Hessian's diagonal is {} at column {}; expected finite numbers of at least 0", input.name,
           value, i);
    }
    diagonal.dead[i] = value == 0;
    sum += value;
    alive += value != 0;
  }
  diagonal.mean = alive > 0 ? sum / static_cast<double>(alive) : 1.0;
  return diagonal;
}

std::vector<float> damped_inverse_factor(const QuantizerInput& input, const std::vector<int32_t>& order,
                                         const HessianDiagonal& diagonal, ThreadPool& pool) {
  const double asked = input.settings->damping;
  const double dampings[] = {asked, std::max(10 * asked, 1e-3), std::max(100 * asked, 1e-2)};
  std::vector<float> factor;
  for (const double damping : dampings) {
    if (try_factor(input, order, diagonal, damping, factor, pool)) {
      if (damping != asked) {
        log_warning("{}: the Hessian with damping {} is not positive definite; damping {} was used",
                    input.name, asked, damping);
      }
      return factor;
    }
  }
  std::vector<double> precise;
  for (const double damping : dampings) {
    if (try_factor(input, order, diagonal, damping, precise, pool)) {
      log_warning("{}: the Hessian is not positive definite in 32 bits; 64 bits with damping {} were used",
                  input.name, damping);
      std::copy(precise.begin(), precise.end(), factor.begin());
      return factor;
    }
  }
  fail(
      "{}: the Hessian is not positive definite even with damping {}; expected sums of x x^T over "
      "calibration tokens",
      input.name, dampings[2]);
}

}  // namespace nibble

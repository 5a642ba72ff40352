#include "quantizers/hessian_factor.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "calibration/blas.h"
#include "quantizers/inverse_factor.h"

namespace nibble {
namespace {

constexpr int64_t kRowsPerTask = 16;

std::vector<int32_t> storage_order(const QuantizerInput& input, std::span<const int32_t> columns) {
  std::vector<int32_t> order(columns.begin(), columns.end());
  const std::string& rule = input.settings->column_order;
  if (rule == "ascending") {
    const std::vector<float>& key = input.statistics->max_abs;
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key[a] < key[b]; });
  } else if (rule == "descending") {
    const float* hessian = input.statistics->hessian.data<float>();
    const auto key = [&](int32_t column) { return hessian[column * input.in_features + column]; };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) > key(b); });
  } else {
    NIBBLE_CHECK(rule == "natural");
  }
  std::reverse(order.begin(), order.end());
  order.insert(order.begin(), input.outlier_columns.begin(), input.outlier_columns.end());
  return order;
}

struct Diagonal {
  std::vector<bool> dead;
  double mean = 0;  // over the columns that are not dead; 1 when there are none
};

Diagonal examine_diagonal(const QuantizerInput& input) {
  const float* hessian = input.statistics->hessian.data<float>();
  const int64_t k = input.in_features;
  Diagonal diagonal;
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

// One attempt in the precision of T; false when the damped matrix is not positive definite in it.
template <typename T>
bool try_factor(const QuantizerInput& input, const std::vector<int32_t>& order, const Diagonal& diagonal,
                double damping, std::vector<T>& factor, ThreadPool& pool) {
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

// L^-1 in the lower triangle, of the Hessian in storage order; above it whatever was left there.
std::vector<float> inverse_factor(const QuantizerInput& input, const std::vector<int32_t>& order,
                                  const Diagonal& diagonal, ThreadPool& pool) {
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

// D H^-1 in column order, from H^-1 = L^-T L^-1 in storage order.
std::vector<float> asymmetry(const QuantizerInput& input, const HessianFactor& factor, ThreadPool& pool) {
  const int64_t k = input.in_features;
  const float* cross = input.statistics->cross.data<float>();
  const float* inverse = factor.inverse.data();
  std::vector<float> result(static_cast<size_t>(k * k));
  constexpr int64_t kTile = 128;
  pool.parallel_for((k + kTile - 1) / kTile, [&](int64_t task, int) {
    const int64_t first = task * kTile, rows = std::min(kTile, k - first);
    std::vector<float> left(static_cast<size_t>(rows * k)), right(left.size());
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < k; ++j) left[i * k + j] = cross[(first + i) * k + factor.order[j]];
    }
    gemm<float>(false, true, rows, k, k, 1.0f, left.data(), k, inverse, k, 0.0f, right.data(), k);
    gemm<float>(false, false, rows, k, k, 1.0f, right.data(), k, inverse, k, 0.0f, left.data(), k);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < k; ++j) result[(first + i) * k + factor.order[j]] = left[i * k + j];
    }
  });
  return result;
}

}  // namespace

std::shared_ptr<const HessianFactor> FactorCache::find(const QuantizerInput& input,
                                                       std::span<const int32_t> columns, ThreadPool& pool) {
  const InputStatistics& statistics = *input.statistics;
  const LinearSettings& settings = *input.settings;
  const float* hessian = statistics.hessian.data<float>();
  const float* cross = settings.asymmetric_calibration ? statistics.cross.data<float>() : nullptr;
  std::vector<int32_t> order = storage_order(input, columns);
  if (factor_ && hessian == hessian_ && cross == cross_ && settings.damping == damping_ &&
      order == factor_->order) {
    return factor_;
  }
  factor_.reset();  // its memory is needed now
  const auto factor = std::make_shared<HessianFactor>();
  Diagonal diagonal = examine_diagonal(input);
  factor->inverse = inverse_factor(input, order, diagonal, pool);
  factor->order = std::move(order);
  factor->dead = std::move(diagonal.dead);
  const int64_t k = input.in_features;
  for (int64_t i = 0; i < k; ++i) {
    std::fill(factor->inverse.begin() + i * k + i + 1, factor->inverse.begin() + (i + 1) * k, 0.0f);
  }
  if (cross != nullptr) factor->asymmetry = asymmetry(input, *factor, pool);
  hessian_ = hessian;
  cross_ = cross;
  damping_ = settings.damping;
  factor_ = factor;
  ++computed_;
  return factor_;
}

std::vector<float> asymmetric_target(const QuantizerInput& input, const HessianFactor& factor,
                                     ThreadPool& pool) {
  const int64_t n = input.out_features, k = input.in_features;
  std::vector<float> target(input.weight, input.weight + n * k);
  constexpr int64_t kTile = 64;
  pool.parallel_for((n + kTile - 1) / kTile, [&](int64_t task, int) {
    const int64_t first = task * kTile, rows = std::min(kTile, n - first);
    gemm<float>(false, false, rows, k, k, 1.0f, input.weight + first * k, k, factor.asymmetry.data(), k, 1.0f,
                target.data() + first * k, k);
  });
  return target;
}

}  // namespace nibble

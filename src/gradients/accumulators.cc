#include "gradients/accumulators.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "calibration/blas.h"
#include "gradients/lanes.h"
#include "kernels/float_kernels.h"

namespace nibble {
namespace {

// A tile of the gradient is computed, squared and added while it is in the second-level cache.
constexpr int64_t kTileRows = 128, kTileColumns = 256;

void require_finite(const Tensor& tensor, const std::string& name, const char* what) {
  if (float_kernels().all_finite(WeightType::kF32, tensor.raw(), tensor.elements())) return;
  fail("{}: {} has a value that is not finite: the gradients of the calibration loss overflow", name, what);
}

}  // namespace

SquaredGradients::SquaredGradients(int64_t out_features, int64_t in_features)
    : n_(out_features), k_(in_features), sum_(Tensor::zeros(DType::kF32, {out_features, in_features})) {}

void SquaredGradients::add(const OutputGradients& dy, const float* x, const SequenceBatch& batch,
                           ThreadPool& pool) {
  const int64_t row_tiles = (n_ + kTileRows - 1) / kTileRows;
  const int64_t column_tiles = (k_ + kTileColumns - 1) / kTileColumns;
  if (static_cast<int>(tiles_.size()) < pool.size()) tiles_.resize(static_cast<size_t>(pool.size()));
  float* sum = sum_.mutable_data<float>();
  pool.parallel_for(row_tiles * column_tiles, [&](int64_t task, int thread) {
    const int64_t row = task / column_tiles * kTileRows, column = task % column_tiles * kTileColumns;
    const int64_t rows = std::min(kTileRows, n_ - row), columns = std::min(kTileColumns, k_ - column);
    std::vector<float>& tile = tiles_[static_cast<size_t>(thread)];
    tile.resize(static_cast<size_t>(kTileRows * kTileColumns));
    for (int64_t sequence = 0; sequence < batch.sequences; ++sequence) {
      const int64_t first = sequence * batch.length;
      gemm<float>(true, false, rows, columns, batch.length, 1.0f, dy.data + first * dy.stride + row,
                  dy.stride, x + first * k_ + column, k_, 0.0f, tile.data(), columns);
      for (int64_t r = 0; r < rows; ++r) {
        const float* gradient = tile.data() + r * columns;
        float* out = sum + (row + r) * k_ + column;
        lane_loop(columns, [&](int64_t i) { out[i] += gradient[i] * gradient[i]; });
      }
    }
  });
  sequences_ += batch.sequences;
}

Tensor SquaredGradients::finish(const std::string& name) {
  NIBBLE_CHECK(sequences_ > 0);
  const auto factor = static_cast<float>(1.0 / static_cast<double>(sequences_));
  float* values = sum_.mutable_data<float>();
  lane_loop(sum_.elements(), [&](int64_t i) { values[i] *= factor; });
  require_finite(sum_, name, "the squared gradient");
  return std::move(sum_);
}

GuidedHessians::GuidedHessians(int64_t out_features, int64_t in_features, int64_t groups)
    : n_(out_features),
      k_(in_features),
      groups_(std::min(groups, out_features)),
      weights_(static_cast<size_t>(groups_)) {
  for (int64_t group = 0; group < groups_; ++group) collectors_.emplace_back(in_features, true);
}

void GuidedHessians::add(const OutputGradients& dy, const float* x, int64_t tokens, ThreadPool& pool,
                         const std::string& name) {
  std::vector<float> weighted(static_cast<size_t>(tokens * k_)), salience(static_cast<size_t>(tokens));
  for (int64_t group = 0; group < groups_; ++group) {
    const int64_t first = first_row(n_, groups_, group), count = first_row(n_, groups_, group + 1) - first;
    pool.parallel_for(tokens, [&](int64_t t, int) {
      // Scaled by its largest, so that squares of tiny gradients do not underflow.
      const float* row = dy.data + t * dy.stride + first;
      float largest = 0;
      for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(row[i]));
      float root = 0;
      if (largest > 0) {
        const float inverse = 1.0f / largest;
        const float squares = lane_sum(count, [&](int64_t i) { return row[i] * inverse * row[i] * inverse; });
        root = largest * std::sqrt(squares / static_cast<float>(count));
      }
      salience[static_cast<size_t>(t)] = root;
    });
    // Scaled by a power of two to keep the sums of s x x^T away from the ends of the range.
    for (float& value : salience) value *= 0x1p+10f;
    pool.parallel_for(tokens, [&](int64_t t, int) {
      const float root = salience[static_cast<size_t>(t)];
      const float* in = x + t * k_;
      float* out = weighted.data() + t * k_;
      lane_loop(k_, [&](int64_t i) { out[i] = root * in[i]; });
    });
    for (const float root : salience) {
      weights_[static_cast<size_t>(group)] += static_cast<double>(root) * root;
    }
    collectors_[static_cast<size_t>(group)].add(weighted.data(), tokens, pool,
                                                name + " (weighted by gradients)");
  }
  tokens_ += tokens;
}

Tensor GuidedHessians::finish(const std::string& name) {
  NIBBLE_CHECK(tokens_ > 0);
  Tensor result = Tensor::zeros(DType::kF32, {groups_, k_, k_});
  for (int64_t group = 0; group < groups_; ++group) {
    const InputStatistics statistics = collectors_[static_cast<size_t>(group)].finish();
    float* out = result.mutable_data<float>() + group * k_ * k_;
    const double weight = weights_[static_cast<size_t>(group)];
    if (!(weight > 0)) {
      log_warning("{}: the loss does not depend on outputs {} to {}; they are quantized without a Hessian",
                  name, first_row(n_, groups_, group), first_row(n_, groups_, group + 1) - 1);
      for (int64_t i = 0; i < k_; ++i) out[i * k_ + i] = 1;
      continue;
    }
    const auto factor = static_cast<float>(static_cast<double>(tokens_) / weight);
    const float* hessian = statistics.hessian.data<float>();
    lane_loop(k_ * k_, [&](int64_t i) { out[i] = factor * hessian[i]; });
  }
  require_finite(result, name, "the weighted Hessian");
  return result;
}

}  // namespace nibble

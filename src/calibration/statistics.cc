#include "calibration/statistics.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/error.h"
#include "calibration/blas.h"

namespace nibble {
namespace {

// Columns per task of the pass over magnitudes: one cache line of every token, times four.
constexpr int64_t kColumnsPerTask = 64;
constexpr int64_t kLanes = 16;
// Largest edge of a square of the Hessian that one task computes. 256 x 256 sums over 512 tokens are 67
// MFLOP: long enough to hide the hand-out, short enough to balance.
constexpr int64_t kTile = 256;

// Raises largest[0..columns) to the magnitudes of x; returns whether every value was finite.
bool raise_to_magnitudes(const float* x, int64_t tokens, int64_t stride, int64_t columns, float* largest) {
  bool finite = true;
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes) {
    float high[kLanes], poison[kLanes] = {};  // x * 0 is 0 for finite x and NaN otherwise
    for (int64_t i = 0; i < kLanes; ++i) high[i] = largest[column + i];
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = x + t * stride + column;
      for (int64_t i = 0; i < kLanes; ++i) {
        const float magnitude = std::fabs(row[i]);
        high[i] = magnitude > high[i] ? magnitude : high[i];
        poison[i] += row[i] * 0.0f;
      }
    }
    for (int64_t i = 0; i < kLanes; ++i) {
      largest[column + i] = high[i];
      finite &= poison[i] == 0.0f;
    }
  }
  for (; column < columns; ++column) {
    for (int64_t t = 0; t < tokens; ++t) {
      const float value = x[t * stride + column];
      finite &= std::isfinite(value);
      largest[column] = std::max(largest[column], std::fabs(value));
    }
  }
  return finite;
}

}  // namespace

StatisticsCollector::StatisticsCollector(int64_t in_features, bool with_hessian, bool with_cross)
    : with_hessian_(with_hessian), with_cross_(with_cross) {
  NIBBLE_CHECK(in_features > 0);
  statistics_.in_features = in_features;
  statistics_.max_abs.assign(static_cast<size_t>(in_features), 0.0f);
  if (with_hessian) statistics_.hessian = Tensor::zeros(DType::kF32, {in_features, in_features});
  if (with_cross) statistics_.cross = Tensor::zeros(DType::kF32, {in_features, in_features});
}

void StatisticsCollector::check_finite(const float* x, int64_t tokens, const std::string& where) const {
  const int64_t k = statistics_.in_features;
  for (int64_t i = 0; i < tokens * k; ++i) {
    if (!std::isfinite(x[i])) {
      fail(
          "{}: the calibration activation of token {}, channel {} is {}; expected finite numbers (are the "
          "weights of the "
          "layers before it sound?)",
          where, statistics_.tokens + i / k, i % k, x[i]);
    }
  }
}

void StatisticsCollector::add(const float* x, int64_t tokens, ThreadPool& pool, const std::string& where) {
  NIBBLE_CHECK(!finished_ && tokens >= 0);
  if (tokens == 0) return;
  const int64_t k = statistics_.in_features;

  std::vector<float> largest = statistics_.max_abs;
  std::atomic<bool> finite{true};
  pool.parallel_for((k + kColumnsPerTask - 1) / kColumnsPerTask, [&](int64_t task, int) {
    const int64_t first = task * kColumnsPerTask;
    const int64_t columns = std::min(kColumnsPerTask, k - first);
    if (!raise_to_magnitudes(x + first, tokens, k, columns, largest.data() + first)) finite = false;
  });
  if (!finite) check_finite(x, tokens, where);
  statistics_.max_abs = std::move(largest);
  statistics_.tokens += tokens;
  if (!with_hessian_) return;

  // The lower triangle in squares, each computed by one thread in one call, whatever the number of threads.
  const int64_t tiles = (k + kTile - 1) / kTile;
  const int64_t edge = ((k + tiles - 1) / tiles + kLanes - 1) / kLanes * kLanes;
  float* hessian = statistics_.hessian.mutable_data<float>();
  pool.parallel_for(tiles * (tiles + 1) / 2, [&](int64_t task, int) {
    int64_t row_tile = 0;
    while ((row_tile + 1) * (row_tile + 2) / 2 <= task) ++row_tile;
    const int64_t column_tile = task - row_tile * (row_tile + 1) / 2;
    const int64_t row = row_tile * edge, column = column_tile * edge;
    const int64_t rows = std::min(edge, k - row), columns = std::min(edge, k - column);
    if (rows <= 0) return;
    float* out = hessian + row * k + column;
    if (row_tile == column_tile) {
      syrk_lower<float>(rows, tokens, 1.0f, x + row, k, 1.0f, out, k);
    } else {
      gemm<float>(true, false, rows, columns, tokens, 1.0f, x + row, k, x + column, k, 1.0f, out, k);
    }
  });
}

void StatisticsCollector::add_cross(const float* x_float, const float* x, int64_t tokens, ThreadPool& pool,
                                    const std::string& where) {
  NIBBLE_CHECK(!finished_ && with_cross_ && tokens >= 0);
  const int64_t k = statistics_.in_features;
  check_finite(x_float, tokens, where + " (float model)");
  difference_.resize(static_cast<size_t>(tokens * k));
  for (int64_t i = 0; i < tokens * k; ++i) difference_[i] = x_float[i] - x[i];
  const int64_t tiles = (k + kTile - 1) / kTile;
  const int64_t edge = ((k + tiles - 1) / tiles + kLanes - 1) / kLanes * kLanes;
  float* cross = statistics_.cross.mutable_data<float>();
  pool.parallel_for(tiles * tiles, [&](int64_t task, int) {
    const int64_t row = task / tiles * edge, column = task % tiles * edge;
    const int64_t rows = std::min(edge, k - row), columns = std::min(edge, k - column);
    if (rows <= 0 || columns <= 0) return;
    gemm<float>(true, false, rows, columns, tokens, 1.0f, difference_.data() + row, k, x + column, k, 1.0f,
                cross + row * k + column, k);
  });
  cross_tokens_ += tokens;
}

InputStatistics StatisticsCollector::finish() {
  NIBBLE_CHECK(!finished_);
  finished_ = true;
  if (statistics_.tokens == 0) fail("calibration saw no tokens");
  if (with_cross_) {
    NIBBLE_CHECK(cross_tokens_ == statistics_.tokens);
    const float scale = static_cast<float>(2.0 / static_cast<double>(cross_tokens_));
    float* cross = statistics_.cross.mutable_data<float>();
    for (int64_t i = 0; i < statistics_.cross.elements(); ++i) cross[i] *= scale;
  }
  if (with_hessian_) {
    const int64_t k = statistics_.in_features;
    float* hessian = statistics_.hessian.mutable_data<float>();
    const float scale = static_cast<float>(2.0 / static_cast<double>(statistics_.tokens));
    // In squares, so that the mirrored writes stay within a few pages.
    constexpr int64_t kSquare = 64;
    for (int64_t row0 = 0; row0 < k; row0 += kSquare) {
      const int64_t row1 = std::min(k, row0 + kSquare);
      for (int64_t column0 = 0; column0 <= row0; column0 += kSquare) {
        for (int64_t row = row0; row < row1; ++row) {
          const int64_t column1 = std::min(row + 1, column0 + kSquare);
          for (int64_t column = column0; column < column1; ++column) {
            const float value = hessian[row * k + column] * scale;
            hessian[row * k + column] = value;
            hessian[column * k + row] = value;
          }
        }
      }
    }
  }
  return std::move(statistics_);
}

}  // namespace nibble

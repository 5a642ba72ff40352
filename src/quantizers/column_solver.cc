#include "quantizers/column_solver.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/interrupt.h"
#include "calibration/blas.h"
#include "quantizers/clip_search.h"
#include "quantizers/uniform_grid.h"

namespace nibble {
namespace {

// Rows of the weight are independent. A task takes a strip of them, transposed, so that the columns of a
// strip are contiguous vectors and no product needs another thread's results. A multiple of kLanes.
constexpr int64_t kMaximumStrip = 256;
constexpr int64_t kLanes = 16;
// Within a lazy block the error of this many columns is gathered before a small product spreads it over the
// block. A multiple of kSparseGroup.
constexpr int64_t kInnerBlock = 32;

int64_t strip_rows(int64_t out_features) {
  // At least 8 strips where there are rows for them; a function of the shape alone.
  const int64_t wanted = (out_features / 8 + kLanes - 1) / kLanes * kLanes;
  return std::clamp(wanted, 2 * kLanes, kMaximumStrip);
}

// Everything that the strips share.
struct Solve {
  const QuantizerInput& input;
  const HessianFactor& factor;
  const UniformGrid& grid;                 // without scales where groups get theirs when their turn comes
  std::span<const int32_t> integer_index;  // by column: its place among the integer columns
  int64_t outliers;
  int64_t rows_per_strip;
  int64_t block;  // columns per lazy update
  bool sparse;

  bool late_scales() const { return grid.scales.empty(); }
};

// One strip of rows. `columns` [k, R] holds the weights in storage order, and, from a column's turn on, its
// scaled errors.
class Strip {
 public:
  Strip(const Solve& solve, int64_t first_row)
      : solve_(solve),
        first_row_(first_row),
        rows_(std::min(solve.rows_per_strip, solve.input.out_features - first_row)),
        stride_(solve.rows_per_strip),
        columns_(static_cast<size_t>(solve.input.in_features * stride_)),
        scales_(static_cast<size_t>(solve.grid.groups * stride_), 1.0f),
        zeros_(static_cast<size_t>(solve.grid.groups * stride_)),
        keep_(static_cast<size_t>(kSparseGroup * stride_), 1.0f),
        codes_(static_cast<size_t>(solve.input.in_features * stride_)) {}

  void run(QuantizedWeight& result) {
    load();
    const int64_t k = solve_.input.in_features, outliers = solve_.outliers;
    if (solve_.late_scales()) {
      // In natural order a group's columns follow each other.
      for (int64_t end = k, group = 0; end > outliers; ++group) {
        const int64_t begin = std::max(outliers, end - solve_.grid.group_size);
        take_up(begin, end, end, k);
        choose_scales(group, begin, end);
        round_columns(begin, end, end);
        end = begin;
      }
    } else {
      round_columns(outliers, k, k);
    }
    if (outliers > 0) take_up(0, outliers, outliers, k);
    check_finite(0, outliers);
    store(result);
  }

 private:
  float* column(int64_t position) { return columns_.data() + position * stride_; }

  void load() {
    const QuantizerInput& input = solve_.input;
    const int64_t k = input.in_features, groups = solve_.grid.groups;
    for (int64_t row0 = 0; row0 < rows_; row0 += kLanes) {
      const int64_t row1 = std::min(rows_, row0 + kLanes);
      for (int64_t position = 0; position < k; ++position) {
        const int32_t source = solve_.factor.order[position];
        for (int64_t row = row0; row < row1; ++row) {
          column(position)[row] = input.weight[(first_row_ + row) * k + source];
        }
      }
    }
    // Dead integer columns carry no information for the others and are set to zero, as in the paper's code.
    for (int64_t position = solve_.outliers; position < k; ++position) {
      if (solve_.factor.dead[solve_.factor.order[position]]) {
        std::fill(column(position), column(position) + stride_, 0.0f);
      }
    }
    if (solve_.late_scales()) return;
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t row = 0; row < rows_; ++row) {
        const int64_t index = (first_row_ + row) * groups + group;
        scales_[group * stride_ + row] = solve_.grid.scales[index];
        zeros_[group * stride_ + row] = solve_.grid.zero(index);
      }
    }
  }

  // The grid of the group in columns [begin, end), from what they have become by now.
  void choose_scales(int64_t group, int64_t begin, int64_t end) {
    std::vector<float> weights(static_cast<size_t>(end - begin));
    std::vector<float> padded(weights.size() + kClipLanes);
    for (int64_t row = 0; row < rows_; ++row) {
      for (int64_t i = 0; i < end - begin; ++i) weights[i] = column(end - 1 - i)[row];
      const GridStep step = choose_grid_step(weights.data(), end - begin, *solve_.input.settings,
                                             solve_.input.f16_scales, padded.data());
      scales_[group * stride_ + row] = step.scale;
      zeros_[group * stride_ + row] = step.zero;
    }
  }

  // Columns [begin, end) take up the errors of the columns [from, to).
  void take_up(int64_t begin, int64_t end, int64_t from, int64_t to) {
    if (from >= to) return;
    const int64_t k = solve_.input.in_features;
    gemm<float>(true, false, end - begin, stride_, to - from, -1.0f,
                solve_.factor.inverse.data() + from * k + begin, k, column(from), stride_, 1.0f,
                column(begin), stride_);
  }

  // Rounds [begin, end); its columns have yet to take up the errors of [end, to).
  void round_columns(int64_t begin, int64_t end, int64_t to) {
    while (end > begin) {
      const int64_t first = std::max(begin, end - solve_.block);
      take_up(first, end, end, to);
      round_block(first, end);
      check_finite(first, end);
      end = first;
    }
  }

  void round_block(int64_t begin, int64_t end) {
    const int64_t k = solve_.input.in_features;
    for (int64_t inner_end = end; inner_end > begin;) {
      const int64_t inner_begin = std::max(begin, inner_end - kInnerBlock);
      take_up(inner_begin, inner_end, inner_end, end);
      for (int64_t position = inner_end - 1; position >= inner_begin; --position) {
        const float* factor = solve_.factor.inverse.data() + position * k;
        const int64_t in_group = (k - 1 - position) % kSparseGroup;
        if (solve_.sparse && in_group == 0) choose_survivors(position);
        round_column(position, 1.0f / factor[position], keep_.data() + in_group * stride_);
        for (int64_t later = inner_begin; later < position; ++later) {
          subtract_scaled(column(later), column(position), factor[later]);
        }
      }
      inner_end = inner_begin;
    }
  }

  // Fills keep_ for the group that starts at `position`: 1 for the two columns (of equal ones the first) that
  // would cost most to prune, 0 for the others. They have taken up all errors so far: groups never straddle
  // an inner block.
  void choose_survivors(int64_t position) {
    const int64_t k = solve_.input.in_features;
    const int64_t count = std::min(kSparseGroup, position - solve_.outliers + 1);
    for (int64_t row = 0; row < stride_; ++row) {
      float cost[kSparseGroup];
      for (int64_t i = 0; i < count; ++i) {
        const float error = column(position - i)[row] / solve_.factor.inverse[(position - i) * (k + 1)];
        cost[i] = error * error;
      }
      for (int64_t i = 0; i < count; ++i) {
        int64_t dearer = 0;
        for (int64_t other = 0; other < count; ++other) {
          dearer += cost[other] > cost[i] || (cost[other] == cost[i] && other < i);
        }
        keep_[i * stride_ + row] = dearer < 2 ? 1.0f : 0.0f;
      }
    }
  }

  void round_column(int64_t position, float inverse_diagonal, const float* keep) {
    const float lowest = solve_.grid.lowest, highest = solve_.grid.highest;
    const int64_t group = solve_.integer_index[solve_.factor.order[position]] / solve_.grid.group_size;
    const float* scales = scales_.data() + group * stride_;
    const float* zeros = zeros_.data() + group * stride_;
    float* weights = column(position);
    int8_t* codes = codes_.data() + position * stride_;
    for (int64_t row0 = 0; row0 < stride_; row0 += kLanes) {
      for (int64_t row = row0; row < row0 + kLanes; ++row) {
        const float zero = zeros[row];
        const float level =
            keep[row] * nearest_level(weights[row], scales[row], lowest - zero, highest - zero);
        codes[row] = static_cast<int8_t>(static_cast<int>(level + zero));
        weights[row] = (weights[row] - level * scales[row]) * inverse_diagonal;
      }
    }
  }

  void subtract_scaled(float* __restrict out, const float* __restrict in, float factor) const {
    for (int64_t row0 = 0; row0 < stride_; row0 += kLanes) {
      for (int64_t row = row0; row < row0 + kLanes; ++row) out[row] -= in[row] * factor;
    }
  }

  void check_finite(int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      float poison = 0;  // x * 0 is 0 for finite x and NaN otherwise
      for (int64_t row = 0; row < rows_; ++row) poison += column(position)[row] * 0.0f;
      if (poison == 0.0f) continue;
      int64_t row = 0;
      while (std::isfinite(column(position)[row])) ++row;
      fail("{}: GPTQ reached {} in row {}, column {}; a larger damping than {} may help (--set damping=...)",
           solve_.input.name, column(position)[row], first_row_ + row, solve_.factor.order[position],
           solve_.input.settings->damping);
    }
  }

  void store(QuantizedWeight& result) {
    const int64_t k = solve_.input.in_features, integers = k - solve_.outliers;
    for (int64_t row0 = 0; row0 < rows_; row0 += kLanes) {
      const int64_t row1 = std::min(rows_, row0 + kLanes);
      for (int64_t position = solve_.outliers; position < k; ++position) {
        const int64_t index = solve_.integer_index[solve_.factor.order[position]];
        for (int64_t row = row0; row < row1; ++row) {
          result.codes[(first_row_ + row) * integers + index] = codes_[position * stride_ + row];
        }
      }
    }
    for (int64_t outlier = 0; outlier < solve_.outliers; ++outlier) {
      for (int64_t row = 0; row < rows_; ++row) {
        result.outlier_weights[(first_row_ + row) * solve_.outliers + outlier] = column(outlier)[row];
      }
    }
    if (!solve_.late_scales()) return;
    const int64_t groups = solve_.grid.groups;
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t row = 0; row < rows_; ++row) {
        const int64_t index = (first_row_ + row) * groups + group;
        result.scales[index] = scales_[group * stride_ + row];
        if (!result.zeros.empty()) result.zeros[index] = zeros_[group * stride_ + row];
      }
    }
  }

  const Solve& solve_;
  const int64_t first_row_, rows_, stride_;
  std::vector<float> columns_;         // [k, stride]; rows beyond the weight are zeros
  std::vector<float> scales_, zeros_;  // [groups, stride]
  std::vector<float> keep_;            // [kSparseGroup, stride], of the group at work: 1 or 0
  std::vector<int8_t> codes_;          // [k, stride]
};

}  // namespace

QuantizedWeight solve_columns(const QuantizerInput& original, bool sparse, ThreadPool& pool) {
  check_quantizer_input(original, pool);
  QuantizerInput input = original;
  const LinearSettings& settings = *input.settings;
  const Shape square = {input.in_features, input.in_features};
  NIBBLE_CHECK(input.statistics != nullptr && input.statistics->hessian.defined());
  NIBBLE_CHECK(input.statistics->hessian.shape() == square);
  NIBBLE_CHECK(static_cast<int64_t>(input.statistics->max_abs.size()) == input.in_features);
  NIBBLE_CHECK(!settings.asymmetric_calibration ||
               (input.statistics->cross.defined() && input.statistics->cross.shape() == square));
  const std::vector<int32_t> columns = integer_columns(input);
  const auto count = static_cast<int64_t>(columns.size());
  const bool late_scales = settings.group_size > 0 && !settings.static_groups;
  NIBBLE_CHECK(!late_scales || settings.column_order == "natural");
  // Pruned weights must be zero whatever the zero point, and groups of columns are not cut.
  NIBBLE_CHECK(!sparse || (settings.symmetric && !late_scales));
  FactorCache own;
  const std::shared_ptr<const HessianFactor> factor =
      (input.factors != nullptr ? *input.factors : own).find(input, columns, pool);
  std::vector<float> target;
  if (settings.asymmetric_calibration) {
    target = asymmetric_target(input, *factor, pool);
    input.weight = target.data();
  }
  const UniformGrid grid = late_scales ? grid_shape(settings, count) : choose_grid(input, columns, pool);
  std::vector<int32_t> integer_index(static_cast<size_t>(input.in_features), -1);
  for (size_t i = 0; i < columns.size(); ++i) integer_index[columns[i]] = static_cast<int32_t>(i);

  QuantizedWeight result = begin_result(input, grid, count);
  if (late_scales) {
    result.scales.resize(static_cast<size_t>(input.out_features * grid.groups));
    if (!settings.symmetric) result.zeros.resize(result.scales.size());
  }
  if (sparse) {
    result.mask_order.assign(factor->order.rbegin(),
                             factor->order.rend() - static_cast<int64_t>(input.outlier_columns.size()));
  }
  const Solve solve{.input = input,
                    .factor = *factor,
                    .grid = grid,
                    .integer_index = integer_index,
                    .outliers = static_cast<int64_t>(input.outlier_columns.size()),
                    .rows_per_strip = strip_rows(input.out_features),
                    .block = sparse ? (settings.block_size + kSparseGroup - 1) / kSparseGroup * kSparseGroup
                                    : settings.block_size,
                    .sparse = sparse};
  const int64_t strips = (input.out_features + solve.rows_per_strip - 1) / solve.rows_per_strip;
  pool.parallel_for(strips, [&](int64_t strip, int) {
    throw_if_interrupted();
    Strip(solve, strip * solve.rows_per_strip).run(result);
  });
  return result;
}

}  // namespace nibble

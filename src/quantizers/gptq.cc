// GPTQ (Frantar et al., 2023) that knows outlier columns (QUIK, section "Outlier-aware quantization"):
// columns are rounded one after another, and each one's rounding error is taken up by the columns that are
// not rounded yet, weighted by the inverse Hessian of the layer's squared output error. Outlier columns come
// last and are never rounded, so that they take up what is left.
//
// With H^-1 = U^T U, U upper triangular, in the order of processing, rounding column i moves every later
// column j by
// -(w_i - q_i) / U_ii * U_ij. Columns are stored here in the reverse of that order, because then U, read
// backwards, is the inverse of the plain Cholesky factor H = L L^T: one factorization and one triangular
// inverse, instead of two factorizations and a full inverse.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "calibration/blas.h"
#include "quantizers/inverse_factor.h"
#include "quantizers/uniform_grid.h"

namespace nibble {
namespace {

// Rows of the weight are independent. A task takes a strip of them, transposed, so that the columns of a
// strip are contiguous vectors and no product needs another thread's results. A multiple of kLanes.
constexpr int64_t kMaximumStrip = 256;
constexpr int64_t kLanes = 16;
// Within a lazy block the error of this many columns is gathered before a small product spreads it over the
// block.
constexpr int64_t kInnerBlock = 32;

int64_t strip_rows(int64_t out_features) {
  // At least 8 strips where there are rows for them; a function of the shape alone.
  const int64_t wanted = (out_features / 8 + kLanes - 1) / kLanes * kLanes;
  return std::clamp(wanted, 2 * kLanes, kMaximumStrip);
}

// Columns in storage order: outlier columns first, then the integer columns, last processed to first
// processed.
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
  std::vector<bool> dead;  // by column: no calibration token had anything there
  double mean = 0;         // over the others; 1 when there are none
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
  constexpr int64_t kRowsPerTask = 16;
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

// L^-1 in the lower triangle, of the Hessian in storage order.
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

// Everything that the strips share.
struct Solve {
  const QuantizerInput& input;
  const UniformGrid& grid;
  std::span<const int32_t> order;          // storage order
  std::span<const int32_t> integer_index;  // by column: its place among the integer columns
  const Diagonal& diagonal;
  const float* factor;  // [k, k]
  int64_t outliers;
  int64_t rows_per_strip;
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
        codes_(static_cast<size_t>(solve.input.in_features * stride_)) {}

  void run(QuantizedWeight& result) {
    load();
    const int64_t k = solve_.input.in_features, outliers = solve_.outliers;
    const int64_t block = solve_.input.settings->block_size;
    for (int64_t end = k; end > outliers;) {
      const int64_t begin = std::max(outliers, end - block);
      take_up(begin, end, end, k);
      round_block(begin, end);
      check_finite(begin, end);
      end = begin;
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
        const int32_t source = solve_.order[position];
        // Dead integer columns carry no information for the others and are set to zero, as in the paper's
        // code.
        if (solve_.diagonal.dead[source] && position >= solve_.outliers) continue;
        for (int64_t row = row0; row < row1; ++row) {
          column(position)[row] = input.weight[(first_row_ + row) * k + source];
        }
      }
    }
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t row = 0; row < rows_; ++row) {
        scales_[group * stride_ + row] = solve_.grid.scales[(first_row_ + row) * groups + group];
      }
    }
  }

  // Columns [begin, end) take up the errors of the columns [from, to).
  void take_up(int64_t begin, int64_t end, int64_t from, int64_t to) {
    if (from >= to) return;
    const int64_t k = solve_.input.in_features;
    gemm<float>(true, false, end - begin, stride_, to - from, -1.0f, solve_.factor + from * k + begin, k,
                column(from), stride_, 1.0f, column(begin), stride_);
  }

  void round_block(int64_t begin, int64_t end) {
    const int64_t k = solve_.input.in_features;
    for (int64_t inner_end = end; inner_end > begin;) {
      const int64_t inner_begin = std::max(begin, inner_end - kInnerBlock);
      take_up(inner_begin, inner_end, inner_end, end);
      for (int64_t position = inner_end - 1; position >= inner_begin; --position) {
        const float* factor = solve_.factor + position * k;
        round_column(position, 1.0f / factor[position]);
        for (int64_t later = inner_begin; later < position; ++later) {
          subtract_scaled(column(later), column(position), factor[later]);
        }
      }
      inner_end = inner_begin;
    }
  }

  void round_column(int64_t position, float inverse_diagonal) {
    const float lowest = solve_.grid.lowest, highest = solve_.grid.highest;
    const int64_t group = solve_.integer_index[solve_.order[position]] / solve_.grid.group_size;
    const float* scales = scales_.data() + group * stride_;
    float* weights = column(position);
    int8_t* codes = codes_.data() + position * stride_;
    for (int64_t row0 = 0; row0 < stride_; row0 += kLanes) {
      for (int64_t row = row0; row < row0 + kLanes; ++row) {
        const float code = nearest_code(weights[row], scales[row], lowest, highest);
        codes[row] = static_cast<int8_t>(static_cast<int>(code));
        weights[row] = (weights[row] - code * scales[row]) * inverse_diagonal;
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
           solve_.input.name, column(position)[row], first_row_ + row, solve_.order[position],
           solve_.input.settings->damping);
    }
  }

  void store(QuantizedWeight& result) {
    const int64_t k = solve_.input.in_features, integers = k - solve_.outliers;
    for (int64_t row0 = 0; row0 < rows_; row0 += kLanes) {
      const int64_t row1 = std::min(rows_, row0 + kLanes);
      for (int64_t position = solve_.outliers; position < k; ++position) {
        const int64_t index = solve_.integer_index[solve_.order[position]];
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
  }

  const Solve& solve_;
  const int64_t first_row_, rows_, stride_;
  std::vector<float> columns_;  // [k, stride]; rows beyond the weight are zeros
  std::vector<float> scales_;   // [groups, stride]
  std::vector<int8_t> codes_;   // [k, stride]
};

QuantizedWeight quantize_gptq(const QuantizerInput& input, ThreadPool& pool) {
  check_quantizer_input(input, pool);
  NIBBLE_CHECK(input.statistics != nullptr && input.statistics->hessian.defined());
  NIBBLE_CHECK(input.statistics->hessian.shape() == (Shape{input.in_features, input.in_features}));
  NIBBLE_CHECK(static_cast<int64_t>(input.statistics->max_abs.size()) == input.in_features);
  const std::vector<int32_t> columns = integer_columns(input);
  const UniformGrid grid = choose_grid(input, columns, pool);
  const Diagonal diagonal = examine_diagonal(input);
  const std::vector<int32_t> order = storage_order(input, columns);
  const std::vector<float> factor = inverse_factor(input, order, diagonal, pool);
  std::vector<int32_t> integer_index(static_cast<size_t>(input.in_features), -1);
  for (size_t i = 0; i < columns.size(); ++i) integer_index[columns[i]] = static_cast<int32_t>(i);

  QuantizedWeight result = begin_result(input, grid, static_cast<int64_t>(columns.size()));
  const Solve solve{.input = input,
                    .grid = grid,
                    .order = order,
                    .integer_index = integer_index,
                    .diagonal = diagonal,
                    .factor = factor.data(),
                    .outliers = static_cast<int64_t>(input.outlier_columns.size()),
                    .rows_per_strip = strip_rows(input.out_features)};
  const int64_t strips = (input.out_features + solve.rows_per_strip - 1) / solve.rows_per_strip;
  pool.parallel_for(strips, [&](int64_t strip, int) {
    throw_if_interrupted();
    Strip(solve, strip * solve.rows_per_strip).run(result);
  });
  return result;
}

}  // namespace

extern const Quantizer kGptqQuantizer;
const Quantizer kGptqQuantizer = {
    .name = "gptq",
    .needs = [](const LinearSettings&) { return CalibrationNeeds{.hessian = true}; },
    .quantize = quantize_gptq};

}  // namespace nibble

// 2, 4 and 16 bits in one weight matrix (Fast and Efficient 2-bit LLM Inference on GPU, ICCAD 2024, with the
// scheme's open details as documented in formats/mixed_2_4_16/README.md): a quarter of the 16-column groups
// gets 4 bits, the rest 2 bits with two orders of scales, the largest errors there stay in 16 bits, and
// columns are rounded one after another, each one's error taken up by those that follow (GPTQ).
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/half.h"
#include "base/interrupt.h"
#include "calibration/blas.h"
#include "quantizers/damped_hessian.h"
#include "quantizers/mixed_grid.h"
#include "quantizers/mixed_selection.h"
#include "quantizers/uniform_grid.h"

namespace nibble {
namespace {

// 4-bit groups that share a scale, and groups per lazy update.
constexpr int64_t kShare = 8;
constexpr int64_t kMaximumStrip = 256;

// A group when its turn comes. Columns are stored in the reverse of the order of rounding, as in GPTQ: see
// damped_inverse_factor().
struct Turn {
  int64_t place;       // 4 * unit + slot
  int32_t group;       // its columns are 16 * group on
  int64_t begin, end;  // in storage
  bool wide() const { return place % 4 == 3; }
};

struct Solve {
  const QuantizerInput& input;
  const HessianDiagonal& diagonal;
  std::vector<int32_t> order;             // of columns in storage
  std::vector<std::vector<Turn>> blocks;  // of groups, in the order of rounding
  std::vector<float> factor;              // [k, k]
  std::vector<uint8_t> sparse;            // [n, k], or empty
  int64_t groups;                         // ceil(k / 16)
  int64_t rows_per_strip;                 // a multiple of kTileRows
};

// The groups in the order of rounding, cut into blocks; all 4-bit groups that share a scale are one block.
std::vector<std::vector<Turn>> plan_turns(const QuantizerInput& input, const std::vector<int32_t>& places) {
  const int64_t groups = (input.in_features + kGroupColumns - 1) / kGroupColumns;
  const int64_t units = static_cast<int64_t>(places.size()) / 4;
  std::vector<Turn> narrow;
  std::vector<std::vector<Turn>> wide(static_cast<size_t>((units + kShare - 1) / kShare));
  for (int64_t place = 0; place < 4 * units; ++place) {
    if (places[place] >= groups) continue;
    const Turn turn = {.place = place, .group = places[place], .begin = 0, .end = 0};
    if (turn.wide()) {
      wide[place / 4 / kShare].push_back(turn);
    } else {
      narrow.push_back(turn);
    }
  }
  const float* hessian = input.statistics->hessian.data<float>();
  const auto weight_of = [&](const Turn& turn) {
    double sum = 0;
    const int64_t first = turn.group * kGroupColumns;
    for (int64_t j = first; j < std::min(input.in_features, first + kGroupColumns); ++j) {
      sum += hessian[j * input.in_features + j];
    }
    return sum;
  };
  const std::string& rule = input.settings->column_order;
  if (rule != "natural") {
    std::stable_sort(narrow.begin(), narrow.end(), [&](const Turn& a, const Turn& b) {
      return rule == "descending" ? weight_of(a) > weight_of(b) : weight_of(a) < weight_of(b);
    });
  }
  std::vector<std::vector<Turn>> blocks;
  for (size_t i = 0; i < narrow.size(); i += kShare) {
    blocks.emplace_back(narrow.begin() + static_cast<int64_t>(i),
                        narrow.begin() + static_cast<int64_t>(std::min(narrow.size(), i + kShare)));
  }
  // 4-bit groups last: what the coarse ones leave is taken up by columns that hold it well.
  blocks.insert(blocks.end(), wide.begin(), wide.end());
  std::erase_if(blocks, [](const auto& block) { return block.empty(); });
  int64_t end = input.in_features;
  for (std::vector<Turn>& block : blocks) {
    for (Turn& turn : block) {
      turn.end = end;
      turn.begin = end -= std::min<int64_t>(kGroupColumns, input.in_features - turn.group * kGroupColumns);
    }
  }
  return blocks;
}

// Within a group the columns are rounded from the largest diagonal of H on.
std::vector<int32_t> storage_order(const QuantizerInput& input,
                                   const std::vector<std::vector<Turn>>& blocks) {
  const float* hessian = input.statistics->hessian.data<float>();
  std::vector<int32_t> order(static_cast<size_t>(input.in_features));
  for (const std::vector<Turn>& block : blocks) {
    for (const Turn& turn : block) {
      for (int64_t i = turn.begin; i < turn.end; ++i) {
        order[i] = static_cast<int32_t>(turn.group * kGroupColumns + (turn.end - 1 - i));
      }
      const auto key = [&](int32_t column) { return hessian[column * input.in_features + column]; };
      std::stable_sort(order.begin() + turn.begin, order.begin() + turn.end,
                       [&](int32_t a, int32_t b) { return key(a) < key(b); });
    }
  }
  return order;
}

// One strip of rows, transposed: `columns` [k, stride] holds the weights in storage order, and, from a
// column's turn on, its scaled errors. Strips are independent.
class Strip {
 public:
  Strip(const Solve& solve, int64_t first_row)
      : solve_(solve),
        first_row_(first_row),
        rows_(std::min(solve.rows_per_strip, solve.input.out_features - first_row)),
        stride_((rows_ + kTileRows - 1) / kTileRows * kTileRows),
        columns_(static_cast<size_t>(solve.input.in_features * stride_)),
        scales_(static_cast<size_t>(stride_)),
        zeros_(static_cast<size_t>(stride_)) {}

  // `values` [n, k] receives the sparse part where one is wanted.
  void run(QuantizedWeight& result, float* values) {
    load();
    const int64_t k = solve_.input.in_features;
    for (const std::vector<Turn>& block : solve_.blocks) {
      const int64_t begin = block.back().begin, end = block.front().end;
      take_up(begin, end, end, k);
      if (block.front().wide()) choose_wide(begin, end);
      for (const Turn& turn : block) {
        take_up(turn.begin, turn.end, turn.end, end);
        if (!turn.wide()) choose_narrow(turn, result);
        store_grid(turn, result);
        for (int64_t position = turn.end - 1; position >= turn.begin; --position) {
          round_column(turn, position, result, values);
          const float* factor = solve_.factor.data() + position * k;
          for (int64_t later = turn.begin; later < position; ++later) {
            subtract_scaled(column(later), column(position), factor[later]);
          }
        }
      }
      check_finite(begin, end);
    }
  }

 private:
  float* column(int64_t position) { return columns_.data() + position * stride_; }

  bool is_sparse(int64_t row, int64_t position) const {
    if (solve_.sparse.empty() || row >= rows_) return false;
    return solve_.sparse[(first_row_ + row) * solve_.input.in_features + solve_.order[position]] != 0;
  }

  void load() {
    const QuantizerInput& input = solve_.input;
    const int64_t k = input.in_features;
    for (int64_t row0 = 0; row0 < rows_; row0 += kTileRows) {
      const int64_t row1 = std::min(rows_, row0 + kTileRows);
      for (int64_t position = 0; position < k; ++position) {
        const int32_t source = solve_.order[position];
        if (solve_.diagonal.dead[source]) continue;  // without activations: zero, as GPTQ has it
        for (int64_t row = row0; row < row1; ++row) {
          column(position)[row] = input.weight[(first_row_ + row) * k + source];
        }
      }
    }
  }

  // Columns [begin, end) take up the errors of the columns [from, to).
  void take_up(int64_t begin, int64_t end, int64_t from, int64_t to) {
    if (from >= to) return;
    const int64_t k = solve_.input.in_features;
    gemm<float>(true, false, end - begin, stride_, to - from, -1.0f, solve_.factor.data() + from * k + begin,
                k, column(from), stride_, 1.0f, column(begin), stride_);
  }

  // What an error in a column costs once the later columns have taken up what they can: 1 / U_jj^2.
  float importance(int64_t position) const {
    const float diagonal = solve_.factor[position * solve_.input.in_features + position];
    return 1.0f / (diagonal * diagonal);
  }

  void choose_wide(int64_t begin, int64_t end) {
    std::vector<float> weights(static_cast<size_t>(end - begin));
    for (int64_t position = begin; position < end; ++position)
      weights[position - begin] = importance(position);
    for (int64_t row = 0; row < stride_; row += kTileRows) {
      const WideGrid grid = choose_wide_grid(column(begin) + row, stride_, weights.data(), end - begin,
                                             solve_.input.settings->clip);
      std::copy(grid.scale.begin(), grid.scale.end(), scales_.begin() + row);
      std::copy(grid.zero.begin(), grid.zero.end(), zeros_.begin() + row);
    }
  }

  void choose_narrow(const Turn& turn, QuantizedWeight& result) {
    const int limit = turn.place % 4 == 2 ? 15 : 7;
    for (int64_t row = 0; row < stride_; row += kTileRows) {
      GroupTile tile;
      for (int64_t position = turn.begin; position < turn.end; ++position) {
        const int64_t j = position - turn.begin;
        for (int64_t r = 0; r < kTileRows; ++r) {
          if (row + r >= rows_ || is_sparse(row + r, position)) continue;
          tile.weight[j][r] = column(position)[row + r];
          tile.importance[j][r] = importance(position);
        }
      }
      const NarrowGrid grid = choose_narrow_grid(tile, limit, solve_.input.settings->clip);
      std::copy(grid.scale.begin(), grid.scale.end(), scales_.begin() + row);
      std::copy(grid.zero.begin(), grid.zero.end(), zeros_.begin() + row);
      const int64_t second = (first_row_ + row) / kTileRows * solve_.groups + turn.group;
      result.mixed.second_scales[second] = grid.second_scale;
      result.mixed.second_zeros[second] = static_cast<uint8_t>(grid.second_zero);
      for (int64_t r = 0; r < std::min<int64_t>(kTileRows, rows_ - row); ++r) {
        result.mixed.scale_codes[(first_row_ + row + r) * solve_.groups + turn.group] = grid.scale_codes[r];
      }
    }
  }

  void store_grid(const Turn& turn, QuantizedWeight& result) const {
    for (int64_t row = 0; row < rows_; ++row) {
      result.scales[(first_row_ + row) * solve_.groups + turn.group] = scales_[row];
      result.zeros[(first_row_ + row) * solve_.groups + turn.group] = zeros_[row];
    }
  }

  void round_column(const Turn& turn, int64_t position, QuantizedWeight& result, float* values) {
    const int64_t k = solve_.input.in_features, source = solve_.order[position];
    const float limit = turn.wide() ? 15.0f : 3.0f;
    const float inverse_diagonal = 1.0f / solve_.factor[position * k + position];
    float* weights = column(position);
    for (int64_t row = 0; row < stride_; ++row) {
      const float code = grid_code(weights[row], 1.0f / scales_[row], zeros_[row], limit);
      float error = weights[row] - (code - zeros_[row]) * scales_[row];
      if (row < rows_) {
        const int64_t at = (first_row_ + row) * k + source;
        result.codes[at] = static_cast<int8_t>(code);
        if (values != nullptr && solve_.sparse[at] != 0) {
          values[at] = f16_to_float(float_to_f16(error));
          error -= values[at];
        }
      }
      weights[row] = error * inverse_diagonal;
    }
  }

  void subtract_scaled(float* __restrict out, const float* __restrict in, float factor) const {
    for (int64_t row0 = 0; row0 < stride_; row0 += kTileRows) {
      for (int64_t row = row0; row < row0 + kTileRows; ++row) out[row] -= in[row] * factor;
    }
  }

  void check_finite(int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      for (int64_t row = 0; row < rows_; ++row) {
        if (std::isfinite(column(position)[row])) continue;
        fail(
            "{}: rounding reached {} in row {}, column {}; a larger damping than {} may help (--set "
            "damping=...)",
            solve_.input.name, column(position)[row], first_row_ + row, solve_.order[position],
            solve_.input.settings->damping);
      }
    }
  }

  const Solve& solve_;
  const int64_t first_row_, rows_, stride_;
  std::vector<float> columns_;         // [k, stride]; rows beyond the weight are zeros
  std::vector<float> scales_, zeros_;  // [stride] of the group whose turn it is
};

QuantizedWeight empty_result(const LinearSettings& settings, int64_t n, int64_t k) {
  const auto groups = static_cast<size_t>((k + kGroupColumns - 1) / kGroupColumns);
  const auto tiles = static_cast<size_t>((n + kTileRows - 1) / kTileRows), rows = static_cast<size_t>(n);
  QuantizedWeight result = {.out_features = n,
                            .in_features = k,
                            .weight_bits = static_cast<int>(settings.weight_bits),
                            .activation_bits = static_cast<int>(settings.activation_bits),
                            .group_size = kGroupColumns};
  result.codes.resize(rows * static_cast<size_t>(k));
  result.scales.resize(rows * groups);
  result.zeros.resize(rows * groups);
  result.mixed.scale_codes.resize(rows * groups);
  result.mixed.second_scales.resize(tiles * groups);
  result.mixed.second_zeros.resize(tiles * groups);
  return result;
}

SparsePart gather_sparse(const std::vector<uint8_t>& marks, const std::vector<float>& values, int64_t n,
                         int64_t k) {
  SparsePart sparse;
  sparse.row_offsets.push_back(0);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t column = 0; column < k; ++column) {
      if (marks[row * k + column] == 0) continue;
      sparse.columns.push_back(static_cast<int32_t>(column));
      sparse.values.push_back(values[row * k + column]);
    }
    sparse.row_offsets.push_back(static_cast<int64_t>(sparse.columns.size()));
  }
  return sparse;
}

// F16 scales end at 65504.
void check_magnitudes(const QuantizerInput& input) {
  const int64_t n = input.out_features, k = input.in_features;
  for (int64_t i = 0; i < n * k; ++i) {
    if (std::fabs(input.weight[i]) <= 65504.0f) continue;
    fail("{}: the weight in row {}, column {} is {}; 16-bit scales hold at most 65504", input.name, i / k,
         i % k, input.weight[i]);
  }
}

QuantizedWeight quantize_mixed(const QuantizerInput& input, ThreadPool& pool) {
  check_quantizer_input(input, pool);
  check_magnitudes(input);
  const int64_t n = input.out_features, k = input.in_features;
  NIBBLE_CHECK(input.statistics != nullptr && input.statistics->hessian.defined());
  NIBBLE_CHECK(input.statistics->hessian.shape() == (Shape{k, k}));
  if (!input.outlier_columns.empty()) {
    fail("{}: quantizer mixed_precision keeps single weights, not {} whole columns (outlier_columns)",
         input.name, input.outlier_columns.size());
  }
  const HessianDiagonal diagonal = examine_diagonal(input);
  QuantizedWeight result = empty_result(*input.settings, n, k);
  result.mixed.order = order_groups(input, diagonal, pool);

  Solve solve = {.input = input, .diagonal = diagonal};
  solve.groups = (k + kGroupColumns - 1) / kGroupColumns;
  // At least 8 strips where there are rows for them; a function of the shape alone.
  solve.rows_per_strip =
      std::clamp<int64_t>((n / 8 + kTileRows - 1) / kTileRows * kTileRows, 2 * kTileRows, kMaximumStrip);
  if (input.settings->sparse_percent > 0) solve.sparse = choose_sparse(input, result.mixed.order, pool);
  solve.blocks = plan_turns(input, result.mixed.order);
  solve.order = storage_order(input, solve.blocks);
  solve.factor = damped_inverse_factor(input, solve.order, diagonal, pool);

  std::vector<float> values(solve.sparse.size());
  pool.parallel_for((n + solve.rows_per_strip - 1) / solve.rows_per_strip, [&](int64_t strip, int) {
    throw_if_interrupted();
    Strip(solve, strip * solve.rows_per_strip).run(result, values.empty() ? nullptr : values.data());
  });
  if (!solve.sparse.empty()) result.sparse = gather_sparse(solve.sparse, values, n, k);
  return result;
}

QuantizedWeight sample_mixed(const LinearSettings& settings, int64_t n, int64_t k,
                             std::vector<int32_t> outlier_columns) {
  QuantizedWeight sample = empty_result(settings, n, k);
  sample.outlier_columns = std::move(outlier_columns);  // the format refuses them
  for (int32_t group = 0; group < 4 * ((k + 63) / 64); ++group) sample.mixed.order.push_back(group);
  const auto total = static_cast<int64_t>(settings.sparse_percent / 100 * static_cast<double>(n * k));
  if (total == 0) return sample;
  // Spread evenly.
  std::vector<uint8_t> marks(static_cast<size_t>(n * k));
  for (int64_t i = 0; i < total; ++i) marks[i * (n * k) / total] = 1;
  sample.sparse = gather_sparse(marks, std::vector<float>(marks.size()), n, k);
  return sample;
}

}  // namespace

extern const Quantizer kMixedPrecisionQuantizer;
const Quantizer kMixedPrecisionQuantizer = {
    .name = "mixed_precision",
    .needs = [](const LinearSettings&) { return CalibrationNeeds{.hessian = true}; },
    .quantize = quantize_mixed,
    .sample = sample_mixed};

}  // namespace nibble

// Round to nearest: every weight to the closest point of its row's or group's grid, without looking at the
// inputs.
#include <algorithm>

#include "quantizers/uniform_grid.h"

namespace nibble {
namespace {

QuantizedWeight quantize_rtn(const QuantizerInput& input, ThreadPool& pool) {
  check_quantizer_input(input, pool);
  const std::vector<int32_t> columns = integer_columns(input);
  const int64_t count = static_cast<int64_t>(columns.size());
  const int64_t outliers = static_cast<int64_t>(input.outlier_columns.size());
  const UniformGrid grid = choose_grid(input, columns, pool);
  QuantizedWeight result = begin_result(input, grid, count);

  constexpr int64_t kRowsPerTask = 16;
  pool.parallel_for((input.out_features + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(input.out_features, (task + 1) * kRowsPerTask);
    for (int64_t n = task * kRowsPerTask; n < end; ++n) {
      const float* weights = input.weight + n * input.in_features;
      int8_t* codes = result.codes.data() + n * count;
      for (int64_t group = 0; group < grid.groups; ++group) {
        const float scale = grid.scales[n * grid.groups + group];
        const float zero = grid.zero(n * grid.groups + group);
        const float lowest = grid.lowest - zero, highest = grid.highest - zero;
        const int64_t last = std::min(count, (group + 1) * grid.group_size);
        for (int64_t i = group * grid.group_size; i < last; ++i) {
          codes[i] = static_cast<int8_t>(nearest_level(weights[columns[i]], scale, lowest, highest) + zero);
        }
      }
      for (int64_t i = 0; i < outliers; ++i)
        result.outlier_weights[n * outliers + i] = weights[input.outlier_columns[i]];
    }
  });
  return result;
}

}  // namespace

extern const Quantizer kRtnQuantizer;
const Quantizer kRtnQuantizer = {.name = "rtn",
                                 .needs = [](const LinearSettings&) { return CalibrationNeeds{}; },
                                 .quantize = quantize_rtn};

}  // namespace nibble

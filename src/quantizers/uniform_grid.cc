#include "quantizers/uniform_grid.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/half.h"
#include "quantizers/clip_search.h"
#include "quantizers/integer_scales.h"

namespace nibble {
namespace {

constexpr int64_t kRowsPerTask = 16;

// The factor of the clip search for weights whose largest magnitude is `largest`, and which have `levels`
// steps of the unclipped scale in it.
float search_clip_factor(const float* weights, int64_t count, const LinearSettings& settings, float largest,
                         float levels, float lowest, float highest, float* padded) {
  const ClipStretch stretch{.values = padded,
                            .padded_count = (count + kClipLanes - 1) / kClipLanes * kClipLanes,
                            .lowest_code = lowest,
                            .highest_code = highest,
                            .levels = levels,
                            .norm = static_cast<float>(settings.clip_norm),
                            .steps = static_cast<int>(settings.clip_steps)};
  for (int64_t i = 0; i < count; ++i) padded[i] = weights[i] / largest;
  std::fill(padded + count, padded + stretch.padded_count, 0.0f);
  return clip_factor(find_clip_step(stretch));
}

}  // namespace

GridStep choose_grid_step(const float* weights, int64_t count, const LinearSettings& settings,
                          bool f16_scales, float* padded) {
  constexpr float kLeast = std::numeric_limits<float>::min();
  const float highest = static_cast<float>((1 << (settings.weight_bits - 1)) - 1), lowest = -highest - 1;
  float low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, weights[i]);
    high = std::max(high, weights[i]);
  }
  float largest = std::max(-low, high);
  // Halves, because high - low may overflow.
  const float steps = highest - lowest, half_range = high / 2 - low / 2;
  GridStep step;
  float scale = 0;
  if (settings.symmetric) {
    if (!(largest / highest >= kLeast)) largest = 1.0f;
    scale = largest;
    if (settings.clip) {
      scale *= search_clip_factor(weights, count, settings, largest, highest, lowest, highest, padded);
    }
    scale /= highest;
  } else {
    const bool degenerate = !(half_range / steps >= kLeast);
    scale = (degenerate ? 1.0f : half_range) / steps * 2;
    if (degenerate) largest = 1.0f;
    step.zero = std::nearbyint((degenerate ? 1.0f : -low) / scale) + lowest;
    if (settings.clip) {
      scale *= search_clip_factor(weights, count, settings, largest, largest / scale, lowest - step.zero,
                                  highest - step.zero, padded);
    }
  }
  if (f16_scales) {
    constexpr float kSmallest = 0x1p-24f, kLargest = 65504.0f;
    step.scale = std::clamp(f16_to_float(float_to_f16(scale)), kSmallest, kLargest);
  } else {
    step.scale = std::clamp(scale, kLeast, std::numeric_limits<float>::max());
  }
  return step;
}

void check_quantizer_input(const QuantizerInput& input, ThreadPool& pool) {
  NIBBLE_CHECK(input.weight != nullptr && input.settings != nullptr);
  NIBBLE_CHECK(input.out_features > 0 && input.in_features > 0);
  NIBBLE_CHECK(static_cast<int64_t>(input.outlier_columns.size()) < input.in_features);
  for (size_t i = 0; i < input.outlier_columns.size(); ++i) {
    NIBBLE_CHECK(input.outlier_columns[i] >= 0 && input.outlier_columns[i] < input.in_features);
    NIBBLE_CHECK(i == 0 || input.outlier_columns[i - 1] < input.outlier_columns[i]);
  }
  NIBBLE_CHECK(input.statistics == nullptr || input.statistics->in_features == input.in_features);

  const int64_t n = input.out_features, k = input.in_features;
  std::atomic<int64_t> first_bad{n * k};
  pool.parallel_for((n + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t begin = task * kRowsPerTask * k, end = std::min(n, (task + 1) * kRowsPerTask) * k;
    for (int64_t i = begin; i < end; ++i) {
      if (std::isfinite(input.weight[i])) continue;
      int64_t known = first_bad.load();
      while (i < known && !first_bad.compare_exchange_weak(known, i)) {
      }
      break;
    }
  });
  if (first_bad < n * k) {
    fail("{}: the weight in row {}, column {} is {}; expected finite numbers", input.name, first_bad / k,
         first_bad % k, input.weight[first_bad]);
  }
}

std::vector<int32_t> integer_columns(const QuantizerInput& input) {
  std::vector<int32_t> columns;
  columns.reserve(static_cast<size_t>(input.in_features) - input.outlier_columns.size());
  auto outlier = input.outlier_columns.begin();
  for (int32_t column = 0; column < input.in_features; ++column) {
    if (outlier != input.outlier_columns.end() && *outlier == column) {
      ++outlier;
    } else {
      columns.push_back(column);
    }
  }
  return columns;
}

UniformGrid grid_shape(const LinearSettings& settings, int64_t count) {
  UniformGrid grid;
  NIBBLE_CHECK(settings.weight_bits >= 2 && settings.weight_bits <= 8);
  grid.highest = static_cast<float>((1 << (settings.weight_bits - 1)) - 1);
  grid.lowest = -grid.highest - 1;
  const int64_t group_size = settings.group_size_for(count);
  grid.group_size = group_size > 0 ? std::min(group_size, count) : count;
  grid.groups = (count + grid.group_size - 1) / grid.group_size;
  return grid;
}

UniformGrid choose_grid(const QuantizerInput& input, std::span<const int32_t> columns, ThreadPool& pool) {
  const LinearSettings& settings = *input.settings;
  const int64_t count = static_cast<int64_t>(columns.size());
  UniformGrid grid = grid_shape(settings, count);
  grid.scales.resize(static_cast<size_t>(input.out_features * grid.groups));
  if (!settings.symmetric) grid.zeros.resize(grid.scales.size());

  pool.parallel_for((input.out_features + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    std::vector<float> row(columns.size());
    std::vector<float> padded(static_cast<size_t>(grid.group_size + kClipLanes));
    const int64_t end = std::min(input.out_features, (task + 1) * kRowsPerTask);
    for (int64_t n = task * kRowsPerTask; n < end; ++n) {
      const float* weights = input.weight + n * input.in_features;
      for (int64_t i = 0; i < count; ++i) row[i] = weights[columns[i]];
      for (int64_t group = 0; group < grid.groups; ++group) {
        const int64_t first = group * grid.group_size;
        const GridStep step =
            choose_grid_step(row.data() + first, std::min(grid.group_size, count - first), settings,
                             input.f16_scales && !settings.integer_scales(), padded.data());
        grid.scales[n * grid.groups + group] = step.scale;
        if (!settings.symmetric) grid.zeros[n * grid.groups + group] = step.zero;
      }
    }
  });
  make_integer_scales(input, count, &grid);
  return grid;
}

QuantizedWeight uniform_sample(const LinearSettings& settings, int64_t out_features, int64_t in_features,
                               std::vector<int32_t> outlier_columns) {
  QuantizedWeight sample = {.out_features = out_features,
                            .in_features = in_features,
                            .weight_bits = static_cast<int>(settings.weight_bits),
                            .activation_bits = static_cast<int>(settings.activation_bits),
                            .outlier_columns = std::move(outlier_columns)};
  const int64_t columns = sample.integer_columns();
  sample.group_size = settings.group_size_for(columns);
  const int64_t groups = sample.group_size > 0 ? (columns + sample.group_size - 1) / sample.group_size : 1;
  sample.codes.assign(static_cast<size_t>(out_features * columns), 0);
  sample.scales.assign(static_cast<size_t>(out_features * groups), 1.0f);
  if (!settings.symmetric) sample.zeros.assign(sample.scales.size(), 0.0f);
  if (settings.integer_scales()) {
    sample.scale_multipliers.assign(sample.scales.size(), 1);
    sample.row_scales.assign(static_cast<size_t>(out_features), 1.0f);
    if (settings.scale_kind == "integer") sample.scale_amplifier = 1;
  }
  sample.outlier_weights.assign(static_cast<size_t>(out_features) * sample.outlier_columns.size(), 0.0f);
  return sample;
}

QuantizedWeight begin_result(const QuantizerInput& input, const UniformGrid& grid, int64_t integer_columns) {
  QuantizedWeight result;
  result.out_features = input.out_features;
  result.in_features = input.in_features;
  result.weight_bits = static_cast<int>(input.settings->weight_bits);
  result.activation_bits = static_cast<int>(input.settings->activation_bits);
  result.group_size = input.settings->group_size_for(integer_columns);
  result.scales = grid.scales;
  result.zeros = grid.zeros;
  result.scale_multipliers = grid.multipliers;
  result.row_scales = grid.row_scales;
  result.scale_amplifier = grid.amplifier;
  result.outlier_columns = input.outlier_columns;
  result.codes.resize(static_cast<size_t>(input.out_features * integer_columns));
  result.outlier_weights.resize(static_cast<size_t>(input.out_features) * input.outlier_columns.size());
  return result;
}

}  // namespace nibble

#include "quantizers/integer_scales.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace nibble {
namespace {

constexpr int64_t kMaxSum = (int64_t{1} << 31) - 1;
constexpr int64_t kTopActivation = 127;
constexpr int64_t kTopAmplifier = int64_t{1} << 24;
constexpr int32_t kTopInteger = 65535, kTopTwoLevel = 255;

// What the INT32 sum of a row may have as sum of multiplier * columns over its groups.
int64_t row_budget(const UniformGrid& grid) {
  return kMaxSum / (kTopActivation * static_cast<int64_t>(-grid.lowest));
}

int64_t weighted_columns(const int32_t* multipliers, const UniformGrid& grid, int64_t columns) {
  int64_t sum = 0;
  for (int64_t group = 0; group < grid.groups; ++group) {
    sum += multipliers[group] * std::min(grid.group_size, columns - group * grid.group_size);
  }
  return sum;
}

// multipliers[g] = rne(scales[g] / unit), from 1 to `highest`.
void round_scales(const float* scales, int64_t groups, double unit, int32_t highest, int32_t* multipliers) {
  for (int64_t group = 0; group < groups; ++group) {
    const double quotient = std::nearbyint(static_cast<double>(scales[group]) / unit);
    multipliers[group] = static_cast<int32_t>(std::clamp(quotient, 1.0, static_cast<double>(highest)));
  }
}

// Returns whether every row keeps within its budget and no multiplier had to be cut.
bool try_amplifier(int64_t rows, int64_t columns, int64_t amplifier, UniformGrid* grid) {
  const int64_t budget = row_budget(*grid);
  bool fits = true;
  for (int64_t row = 0; row < rows; ++row) {
    const float* scales = grid->scales.data() + row * grid->groups;
    int32_t* multipliers = grid->multipliers.data() + row * grid->groups;
    round_scales(scales, grid->groups, 1.0 / static_cast<double>(amplifier), kTopInteger, multipliers);
    fits = fits && weighted_columns(multipliers, *grid, columns) <= budget;
    for (int64_t group = 0; group < grid->groups; ++group) {
      fits = fits && static_cast<double>(scales[group]) * static_cast<double>(amplifier) < kTopInteger + 0.5;
    }
  }
  return fits;
}

void make_amplified(const QuantizerInput& input, int64_t columns, UniformGrid* grid) {
  const int64_t rows = input.out_features, asked = input.settings->scale_amplifier;
  int64_t amplifier = asked > 0 ? asked : kTopAmplifier;
  while (!try_amplifier(rows, columns, amplifier, grid) && asked == 0 && amplifier > 1) amplifier /= 2;
  grid->amplifier = amplifier;
  grid->row_scales.assign(static_cast<size_t>(rows), 1.0f / static_cast<float>(amplifier));
}

void make_two_level(const QuantizerInput& input, int64_t columns, UniformGrid* grid) {
  const int64_t budget = row_budget(*grid);
  grid->row_scales.resize(static_cast<size_t>(input.out_features));
  for (int64_t row = 0; row < input.out_features; ++row) {
    const float* scales = grid->scales.data() + row * grid->groups;
    int32_t* multipliers = grid->multipliers.data() + row * grid->groups;
    const float largest = *std::max_element(scales, scales + grid->groups);
    for (int32_t highest = kTopTwoLevel;; --highest) {
      grid->row_scales[row] = largest / static_cast<float>(highest);
      round_scales(scales, grid->groups, static_cast<double>(grid->row_scales[row]), highest, multipliers);
      const int64_t used = weighted_columns(multipliers, *grid, columns);
      if (used <= budget || highest == 1) break;
      highest = std::max<int32_t>(2, static_cast<int32_t>(int64_t{highest} * budget / used + 1));
    }
  }
}

}  // namespace

void make_integer_scales(const QuantizerInput& input, int64_t columns, UniformGrid* grid) {
  const std::string& kind = input.settings->scale_kind;
  if (kind == "float") return;
  grid->multipliers.resize(grid->scales.size());
  if (kind == "integer") {
    make_amplified(input, columns, grid);
  } else {
    NIBBLE_CHECK(kind == "two_level");
    make_two_level(input, columns, grid);
  }
  for (size_t i = 0; i < grid->scales.size(); ++i) {
    grid->scales[i] =
        grid->row_scales[i / static_cast<size_t>(grid->groups)] * static_cast<float>(grid->multipliers[i]);
  }
}

}  // namespace nibble

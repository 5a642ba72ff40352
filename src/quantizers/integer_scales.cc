#include "quantizers/integer_scales.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"

namespace nibble {
namespace {

constexpr int64_t kMaxSum = (int64_t{1} << 31) - 1;
constexpr int64_t kTopActivation = 127;
constexpr int64_t kTopAmplifier = int64_t{1} << 24;
constexpr int32_t kTopInteger = 65535;
// How many candidates for the multiplier of a row's largest scale are compared: with up to 32 steps all from
// half of them on. With 255 the choice gains nothing (bench/results/two_level_scales.txt).
constexpr int32_t kTopsTried = 16;

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

// What candidates for a row's unit are compared by: squared relative errors of the scales it makes, summed
// over the groups. A scale that is too small clips and one that is too large is coarse; where the clip search
// has chosen scales neither is worse, and where it has not, weights gain from any clipping, rounded or not.
double squared_error(const float* scales, const int32_t* multipliers, int64_t groups, double unit) {
  double sum = 0;
  for (int64_t group = 0; group < groups; ++group) {
    const double error = multipliers[group] * unit / static_cast<double>(scales[group]) - 1;
    sum += error * error;
  }
  return sum;
}

void make_two_level(const QuantizerInput& input, int64_t columns, UniformGrid* grid) {
  const int64_t budget = row_budget(*grid);
  const auto steps = static_cast<int32_t>(input.settings->two_level_steps());
  std::vector<int32_t> tried(static_cast<size_t>(grid->groups));
  grid->row_scales.resize(static_cast<size_t>(input.out_features));
  for (int64_t row = 0; row < input.out_features; ++row) {
    const float* scales = grid->scales.data() + row * grid->groups;
    int32_t* multipliers = grid->multipliers.data() + row * grid->groups;
    const float largest = *std::max_element(scales, scales + grid->groups);
    // The largest scale's multiplier fixes the unit: the most that the budget allows, or one from there down
    // to half, if that comes closer to the scales. Within the budget it stays: no multiplier grows as the
    // unit does.
    int32_t highest = steps;
    for (;; --highest) {
      grid->row_scales[row] = largest / static_cast<float>(highest);
      round_scales(scales, grid->groups, static_cast<double>(grid->row_scales[row]), highest, multipliers);
      const int64_t used = weighted_columns(multipliers, *grid, columns);
      if (used <= budget || highest == 1) break;
      highest = std::max<int32_t>(2, static_cast<int32_t>(int64_t{highest} * budget / used + 1));
    }
    double least =
        squared_error(scales, multipliers, grid->groups, static_cast<double>(grid->row_scales[row]));
    for (int32_t top = highest - 1; top > highest / 2 && top > highest - kTopsTried; --top) {
      const float unit = largest / static_cast<float>(top);
      round_scales(scales, grid->groups, static_cast<double>(unit), top, tried.data());
      const double error = squared_error(scales, tried.data(), grid->groups, static_cast<double>(unit));
      if (error >= least) continue;
      least = error;
      grid->row_scales[row] = unit;
      std::copy(tried.begin(), tried.end(), multipliers);
    }
  }
}

}  // namespace

void make_integer_scales(const QuantizerInput& input, int64_t columns, UniformGrid* grid) {
  if (!input.settings->integer_scales()) return;
  const std::string& kind = input.settings->scale_kind;
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

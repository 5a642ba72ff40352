#include "quantizers/mixed_grid.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/half.h"

namespace nibble {
namespace {

constexpr float kLargestF16 = 65504.0f;
constexpr float kSmallestF16 = 0x1p-24f;

// The nearest positive F16 number.
float positive_f16(float value) {
  return std::clamp(f16_to_float(float_to_f16(std::min(value, kLargestF16))), kSmallestF16, kLargestF16);
}

struct Range {
  TileFloats low{}, high{};  // 0 is always between them
};

Range range_of(const GroupTile& group) {
  Range range;
  for (const TileFloats& column : group.weight) {
    for (int r = 0; r < kTileRows; ++r) {
      range.low[r] = std::min(range.low[r], column[r]);
      range.high[r] = std::max(range.high[r], column[r]);
    }
  }
  return range;
}

// The weighted squared error of each row with its scale and zero point.
TileFloats errors(const GroupTile& group, const TileFloats& scale, const TileFloats& zero) {
  TileFloats sum{}, inverse;
  for (int r = 0; r < kTileRows; ++r) inverse[r] = 1.0f / scale[r];
  for (int j = 0; j < kGroupColumns; ++j) {
    const TileFloats &weight = group.weight[j], &importance = group.importance[j];
    for (int r = 0; r < kTileRows; ++r) {
      const float code = grid_code(weight[r], inverse[r], zero[r], 3.0f);
      const float error = weight[r] - (code - zero[r]) * scale[r];
      sum[r] += importance[r] * error * error;
    }
  }
  return sum;
}

// Scale codes and second-order parts for wanted scales (0: none in particular) whose squared errors count
// `pull`.
NarrowGrid fit_second_order(const TileFloats& wanted, const TileFloats& pull, int limit) {
  // Shrunken scales clip the largest a little and hold the others better.
  constexpr float kShrink[] = {1.0f, 0.97f, 0.94f, 0.91f, 0.88f};
  const float largest = *std::max_element(wanted.begin(), wanted.end());
  NarrowGrid best;
  if (largest <= 0) {  // all weights are zero, which any scale holds
    best.second_scale = 0x1p-14f;
    best.second_zero = 1;
    best.scale.fill(best.second_scale);
    return best;
  }
  float least = std::numeric_limits<float>::infinity();
  for (int zero = 0; zero <= limit; ++zero) {
    for (const float shrink : kShrink) {
      NarrowGrid grid;
      grid.second_zero = zero;
      grid.second_scale = positive_f16(shrink * largest / static_cast<float>(limit + zero));
      float error = 0;
      for (int r = 0; r < kTileRows; ++r) {
        const float level = std::nearbyint(wanted[r] / grid.second_scale) - static_cast<float>(zero);
        const float code = std::clamp(level, zero == 0 ? 1.0f : 0.0f, static_cast<float>(limit));
        grid.scale_codes[r] = static_cast<uint8_t>(code);
        grid.scale[r] = (code + static_cast<float>(zero)) * grid.second_scale;
        if (wanted[r] > 0) error += pull[r] * (wanted[r] - grid.scale[r]) * (wanted[r] - grid.scale[r]);
      }
      if (error < least) {
        least = error;
        best = grid;
      }
    }
  }
  return best;
}

// The scale and zero point of each row with the least error, and the error, over `count` scales per row.
template <typename ScaleOf>
void search_rows(const GroupTile& group, int count, ScaleOf&& scale_of, TileFloats* scale, TileFloats* zero,
                 std::array<int, kTileRows>* which, TileFloats* least) {
  least->fill(std::numeric_limits<float>::infinity());
  for (int i = 0; i < count; ++i) {
    TileFloats tried;
    for (int r = 0; r < kTileRows; ++r) tried[r] = scale_of(i, r);
    for (int z = 0; z <= 3; ++z) {
      TileFloats zeros;
      zeros.fill(static_cast<float>(z));
      const TileFloats error = errors(group, tried, zeros);
      for (int r = 0; r < kTileRows; ++r) {
        if (!(error[r] < (*least)[r])) continue;
        (*least)[r] = error[r];
        (*scale)[r] = tried[r];
        (*zero)[r] = static_cast<float>(z);
        (*which)[r] = i;
      }
    }
  }
}

NarrowGrid search_narrow_grid(const GroupTile& group, const Range& range, int limit) {
  // Each row's best scale, from 0.35 to 1.55 of (high - low) / 3: with a zero point at one end of the codes
  // the larger side alone may want more than the whole range's share.
  constexpr int kSteps = 25;
  TileFloats wanted{}, zero{}, least{}, pull{};
  std::array<int, kTileRows> which{};
  search_rows(
      group, kSteps,
      [&](int i, int r) {
        const float span = (range.high[r] - range.low[r]) / 3.0f;
        return std::max(span * (0.35f + 0.05f * static_cast<float>(i)), std::numeric_limits<float>::min());
      },
      &wanted, &zero, &which, &least);
  for (int r = 0; r < kTileRows; ++r) {
    if (range.high[r] == range.low[r]) wanted[r] = 0;
    // An error d of the scale moves a weight of code c by (c - z) d: about one code's worth on average.
    for (int j = 0; j < kGroupColumns; ++j) pull[r] += group.importance[j][r];
  }
  NarrowGrid grid = fit_second_order(wanted, pull, limit);
  // What the second order offers, exactly.
  const int first = grid.second_zero == 0 ? 1 : 0;
  search_rows(
      group, limit + 1 - first,
      [&](int i, int) { return static_cast<float>(first + i + grid.second_zero) * grid.second_scale; },
      &grid.scale, &grid.zero, &which, &least);
  for (int r = 0; r < kTileRows; ++r) grid.scale_codes[r] = static_cast<uint8_t>(first + which[r]);
  return grid;
}

float zero_for(float low, float scale, float limit) {
  return std::clamp(std::nearbyint(-low / scale), 0.0f, limit);
}

}  // namespace

NarrowGrid choose_narrow_grid(const GroupTile& group, int limit, bool search) {
  const Range range = range_of(group);
  if (search) return search_narrow_grid(group, range, limit);
  TileFloats wanted, pull;
  pull.fill(1.0f);
  for (int r = 0; r < kTileRows; ++r) wanted[r] = (range.high[r] - range.low[r]) / 3.0f;
  NarrowGrid grid = fit_second_order(wanted, pull, limit);
  for (int r = 0; r < kTileRows; ++r) grid.zero[r] = zero_for(range.low[r], grid.scale[r], 3.0f);
  return grid;
}

WideGrid choose_wide_grid(const float* weights, int64_t stride, const float* importance, int64_t columns,
                          bool search) {
  constexpr float kLimit = 15.0f;
  Range range;
  for (int64_t j = 0; j < columns; ++j) {
    for (int r = 0; r < kTileRows; ++r) {
      range.low[r] = std::min(range.low[r], weights[j * stride + r]);
      range.high[r] = std::max(range.high[r], weights[j * stride + r]);
    }
  }
  WideGrid best;
  TileFloats least;
  least.fill(std::numeric_limits<float>::infinity());
  const int steps = search ? 16 : 1;  // 1.00, 0.97, ...
  for (int step = 0; step < steps; ++step) {
    TileFloats scale, zero, error{}, inverse;
    for (int r = 0; r < kTileRows; ++r) {
      const float factor = 1.0f - 0.03f * static_cast<float>(step);
      const float span = (range.high[r] - range.low[r]) / kLimit;
      scale[r] = positive_f16(span > 0 ? span * factor : 0x1p-14f);
      zero[r] = zero_for(range.low[r] * factor, scale[r], kLimit);
      inverse[r] = 1.0f / scale[r];
    }
    for (int64_t j = 0; j < columns; ++j) {
      for (int r = 0; r < kTileRows; ++r) {
        const float weight = weights[j * stride + r];
        const float difference =
            weight - (grid_code(weight, inverse[r], zero[r], kLimit) - zero[r]) * scale[r];
        error[r] += importance[j] * difference * difference;
      }
    }
    for (int r = 0; r < kTileRows; ++r) {
      if (!(error[r] < least[r])) continue;
      least[r] = error[r];
      best.scale[r] = scale[r];
      best.zero[r] = zero[r];
    }
  }
  // Errors that are no numbers (weights or importances that overflow) leave the whole range.
  for (int r = 0; r < kTileRows; ++r) {
    if (best.scale[r] > 0) continue;
    best.scale[r] = positive_f16((range.high[r] - range.low[r]) / kLimit);
    best.zero[r] = zero_for(range.low[r], best.scale[r], kLimit);
  }
  return best;
}

}  // namespace nibble

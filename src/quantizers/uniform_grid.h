// What the quantizers of uniform grids share: integer columns, the scales of their rows or groups, rounding
// to a code.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "quantizers/quantizer.h"

namespace nibble {

// W[n, j] is approximated by scales[n, group(j)] * (code - zeros[n, group(j)]), codes in [lowest, highest].
// code - zero is called the level of a weight.
struct UniformGrid {
  float lowest = 0, highest = 0;  // -2^(b-1) and 2^(b-1) - 1
  int64_t group_size = 0;     // integer columns per scale, at least 1: the whole row when the settings say 0
  int64_t groups = 1;         // the last one may be shorter
  std::vector<float> scales;  // [n, groups], every one positive and normal
  std::vector<float> zeros;   // [n, groups], integers in [lowest, highest]; empty when symmetric
  // Where the settings ask for integer scales; see QuantizedWeight.
  std::vector<int32_t> multipliers;
  std::vector<float> row_scales;
  int64_t amplifier = 0;

  float zero(int64_t index) const { return zeros.empty() ? 0.0f : zeros[index]; }
};

// The scale and zero of one row or group.
struct GridStep {
  float scale = 1, zero = 0;
};

// The level of a weight, as a float: clamp(rne(weight / scale)) with the bounds lowest - zero and highest -
// zero. NaN gives the highest one: callers look for NaN themselves.
inline float nearest_level(float weight, float scale, float lowest, float highest) {
  // Adding 1.5 * 2^23 leaves no bits for a fraction; exact for levels of up to 16 bits, ties to even.
  constexpr float kMagic = 12582912.0f;
  float level = weight / scale;
  level = level > lowest ? level : lowest;
  level = level < highest ? level : highest;
  return (level + kMagic) - kMagic;
}

// Checks sizes, settings and outlier columns (programmer's faults) and that every weight is finite: Error
// naming linear, row, column and value otherwise.
void check_quantizer_input(const QuantizerInput& input, ThreadPool& pool);

// The columns that are no outliers, ascending.
std::vector<int32_t> integer_columns(const QuantizerInput& input);

// The grid of `count` weights that share it:
//  - symmetric: S = p * max|w| / (2^(b-1) - 1), no zero;
//  - else with lo = min(w, 0) and hi = max(w, 0): S = p * (hi - lo) / (2^b - 1), and the zero is the integer
//    code of 0, rne(-lo / S) - 2^(b-1) at p = 1;
// p = 1 or the result of the clip search, which shrinks both ends of the range alike. Weights that are all
// zero, or so small that S would be no normal float, have max|w| = 1 (lo = -1, hi = 1). `padded` is scratch
// of count + kClipLanes floats.
GridStep choose_grid_step(const float* weights, int64_t count, const LinearSettings& settings,
                          bool f16_scales, float* padded);

// Lowest and highest code, group size and number of groups for `count` integer columns; nothing else.
UniformGrid grid_shape(const LinearSettings& settings, int64_t count);

// choose_grid_step() for every row, or for every group of settings.group_size_for() consecutive integer
// columns of it. Scales are then made integers where settings.scale_kind says so; codes are to be chosen for
// the scales as they are here.
UniformGrid choose_grid(const QuantizerInput& input, std::span<const int32_t> columns, ThreadPool& pool);

// A result with everything but codes and outlier weights, which have their final size.
QuantizedWeight begin_result(const QuantizerInput& input, const UniformGrid& grid, int64_t integer_columns);

}  // namespace nibble

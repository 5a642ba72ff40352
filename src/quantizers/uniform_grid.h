// What the quantizers of uniform grids share: integer columns, the scales of their rows or groups, rounding
// to a code.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "quantizers/quantizer.h"

namespace nibble {

// W[n, j] is approximated by scales[n, group(j)] * code. Symmetric; codes in [lowest, highest].
struct UniformGrid {
  float lowest = 0, highest = 0;  // -2^(b-1) and 2^(b-1) - 1
  int64_t group_size = 0;     // integer columns per scale, at least 1: the whole row when the settings say 0
  int64_t groups = 1;         // the last one may be shorter
  std::vector<float> scales;  // [n, groups], every one positive and normal
};

// The code of a weight, as a float: clamp(rne(weight / scale)). NaN gives the highest code: callers look for
// NaN themselves.
inline float nearest_code(float weight, float scale, float lowest, float highest) {
  // Adding 1.5 * 2^23 leaves no bits for a fraction; exact for codes of up to 16 bits, ties to even.
  constexpr float kMagic = 12582912.0f;
  float code = weight / scale;
  code = code > lowest ? code : lowest;
  code = code < highest ? code : highest;
  return (code + kMagic) - kMagic;
}

// Checks sizes, settings and outlier columns (programmer's faults) and that every weight is finite: Error
// naming linear, row, column and value otherwise.
void check_quantizer_input(const QuantizerInput& input, ThreadPool& pool);

// The columns that are no outliers, ascending.
std::vector<int32_t> integer_columns(const QuantizerInput& input);

// Scales from the given weights: S = p * max|w| / (2^(b-1) - 1) over the integer columns of a row (or of a
// group of settings.group_size consecutive integer columns), p = 1 or the result of the clip search. A row or
// group of zeros (or of weights so small that S would be no normal float) has max|w| = 1.
UniformGrid choose_grid(const QuantizerInput& input, std::span<const int32_t> columns, ThreadPool& pool);

// A result with everything but codes and outlier weights, which have their final size.
QuantizedWeight begin_result(const QuantizerInput& input, const UniformGrid& grid, int64_t integer_columns);

}  // namespace nibble

// The canonical tensors of one group_int_a8 linear (README.md), read through one type by everything that
// needs them.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/format.h"

namespace nibble::group_int_a8 {

enum class ScaleKind : int64_t { kFloat = 0, kInteger = 1, kTwoLevel = 2 };

// 127 * 128 * 131072 < 2^31: no INT32 sum over one group can overflow.
inline constexpr int64_t kMaxGroupColumns = 131072;
// Groups are whole numbers of these columns, the unit of the kernels.
inline constexpr int64_t kStepColumns = 32;

struct Layout {
  int64_t n = 0, k = 0;
  int weight_bits = 0;
  int64_t group_size = 0;  // columns that share a scale; k where a row is one group
  int64_t groups = 0;
  ScaleKind scale_kind = ScaleKind::kFloat;
  const uint8_t* codes = nullptr;  // [n, code_row_bytes], packed as in the file
  int64_t code_row_bytes = 0;
  std::vector<float> scales;          // [n, groups], effective whatever the kind
  bool f16_scales = false;            // kFloat: every scale is an F16 number
  std::vector<uint16_t> multipliers;  // [n, groups] of the integer kinds
  std::vector<float> row_scales;      // [n] of the integer kinds
  float activation_scale = 0;         // 0: per token
  std::vector<float> bias;            // [n], zeros when the linear has none

  // Codes of one row, [k].
  void unpack_row(int64_t row, int8_t* out) const;
};

int64_t group_count(int64_t columns, int64_t group_size);
// Reads a linear that validate() accepted.
Layout read_layout(const PackedLinear& linear);

}  // namespace nibble::group_int_a8

// The sizes of few_tokens_layout.h, for host and device code.
#pragma once

#include <cstdint>

namespace nibble::group_int_a8_cuda {

inline constexpr int kTileRows = 16, kSlotCodeBytes = 2048, kOutlierSlotColumns = 64;
// 255 * 128 * 65536 < 2^31: no INT32 sum of unsigned activation codes times codes of 16 q can overflow.
inline constexpr int64_t kMaximumColumns = 65536;

// What becomes of a group's INT32 sums.
enum class FewTokensForm {
  kRows,           // one sum per row; zero points of the activations, scale per row, outlier columns
  kFloatGroups,    // a float scale per group
  kIntegerGroups,  // an integer multiplier per group and a float scale per row
};

struct FewTokensShape {
  int64_t n = 0;
  int64_t columns = 0;   // integer ones
  int64_t outliers = 0;  // FP16 ones
  int weight_bits = 4;
  int group = 0;        // columns that share a scale in the slots: 0 (none there), 32, 64 or 128
  int scale_bytes = 2;  // of one scale: F16 and multipliers 2, F32 4

  int64_t slot_columns() const { return 1024 / weight_bits; }
  int64_t tiles() const { return (n + kTileRows - 1) / kTileRows; }
  int64_t integer_slots() const { return (columns + slot_columns() - 1) / slot_columns(); }
  int64_t outlier_slots() const { return (outliers + kOutlierSlotColumns - 1) / kOutlierSlotColumns; }
  int64_t slot_groups() const { return group == 0 ? 0 : slot_columns() / group; }
  int64_t slot_bytes() const { return kSlotCodeBytes + slot_groups() * kTileRows * scale_bytes; }
  int64_t tile_bytes() const { return integer_slots() * slot_bytes() + outlier_slots() * kSlotCodeBytes; }
  int64_t bytes() const { return tiles() * tile_bytes(); }
};

}  // namespace nibble::group_int_a8_cuda

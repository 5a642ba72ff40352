// The canonical layout of mixed_2_4_16 (README.md) as plain pointers and numbers: what the kernels, the
// reference and the unpacking code read. Nothing inline, so that sources compiled per instruction set may
// include it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble {

struct PackedLinear;

inline constexpr int64_t kMixedGroup = 16;       // input columns of a group
inline constexpr int64_t kMixedSlots = 4;        // groups of a unit: three of 2 bits, one of 4
inline constexpr int64_t kMixedWideSlot = 3;     // the one of 4 bits
inline constexpr int64_t kMixedUnit = 64;        // columns of a unit
inline constexpr int64_t kMixedTile = 16;        // rows that share second-order scales
inline constexpr int64_t kMixedWideShare = 8;    // consecutive 4-bit groups that share one scale per row
inline constexpr int64_t kMixedMaxIn = 1 << 16;  // columns and group numbers are 16-bit

struct MixedLayout {
  int64_t out_features = 0;  // n
  int64_t in_features = 0;   // k
  int64_t units = 0;         // ceil(k / 64)
  int64_t tiles = 0;         // ceil(n / 16)
  int64_t shares = 0;        // ceil(units / 8)

  const uint16_t* order = nullptr;   // [units, 4] group of each place
  const uint32_t* main = nullptr;    // [tiles, units, 16, 4]
  const uint32_t* split = nullptr;   // [tiles, units, 16]
  const uint16_t* first = nullptr;   // [tiles, units, 16]
  const uint16_t* second = nullptr;  // [tiles, units, 4]: three F16 scales and their zeros
  const uint16_t* scales = nullptr;  // F16 [tiles, shares, 16], of the 4-bit groups
  const uint8_t* zeros = nullptr;    // [tiles, shares, 8]: two rows per byte

  const uint16_t* sparse_counts = nullptr;  // [n], or nullptr when there is no sparse part
  const uint16_t* sparse_columns = nullptr;
  const uint16_t* sparse_values = nullptr;  // F16
  const float* bias = nullptr;              // [n] or nullptr
};

int64_t mixed_units(int64_t in_features);
int64_t mixed_tiles(int64_t out_features);
int64_t mixed_shares(int64_t in_features);

// Of a linear that validate() accepted.
MixedLayout mixed_layout(const PackedLinear& linear);

// Where code `i` (0 to 15) of a slot lies: bit `shift` of dword `word` of the main word (0 to 3), or of the
// split dword (word = 4).
struct MixedCodePlace {
  int word, shift;
};
MixedCodePlace mixed_code_place(int64_t slot, int64_t i);

// Fields of a first-order word and of a second-order zeros word.
int mixed_first_zero(uint16_t first, int64_t slot);
int mixed_first_code(uint16_t first, int64_t slot);
int mixed_second_zero(uint16_t zeros, int64_t slot);
inline constexpr int kMixedFirstCodeShift[3] = {6, 9, 12};
inline constexpr int kMixedFirstCodeLimit[3] = {7, 7, 15};
inline constexpr int kMixedSecondZeroShift[3] = {0, 4, 8};
inline constexpr int kMixedSecondZeroLimit[3] = {7, 7, 15};

// Scale and zero point of one row's group at `place` = 4 * unit + slot.
float mixed_scale(const MixedLayout& layout, int64_t row, int64_t place);
int mixed_zero(const MixedLayout& layout, int64_t row, int64_t place);
int mixed_code(const MixedLayout& layout, int64_t row, int64_t place, int64_t i);

// Rows [first, first + count) of the dense part of W, row-major [count, k]. Each weight is (code - zero) *
// scale, exact in FP32; kernels compute the same weights.
void mixed_dequantize_dense(const MixedLayout& layout, int64_t first, int64_t count, float* weight);
// The first entry of row `row` in the sparse part.
int64_t mixed_sparse_start(const MixedLayout& layout, int64_t row);

}  // namespace nibble

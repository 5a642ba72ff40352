#include "formats/mixed_2_4_16/layout.h"

#include <algorithm>

#include "base/half.h"
#include "formats/format.h"

namespace nibble {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Index of (row, unit) in arrays [tiles, units, 16].
int64_t row_unit(const MixedLayout& layout, int64_t row, int64_t unit) {
  return (row / kMixedTile * layout.units + unit) * kMixedTile + row % kMixedTile;
}

}  // namespace

int64_t mixed_units(int64_t in_features) { return ceil_div(in_features, kMixedUnit); }
int64_t mixed_tiles(int64_t out_features) { return ceil_div(out_features, kMixedTile); }
int64_t mixed_shares(int64_t in_features) { return ceil_div(mixed_units(in_features), kMixedWideShare); }

MixedLayout mixed_layout(const PackedLinear& linear) {
  MixedLayout layout;
  layout.out_features = linear.out_features;
  layout.in_features = linear.in_features;
  layout.units = mixed_units(linear.in_features);
  layout.tiles = mixed_tiles(linear.out_features);
  layout.shares = mixed_shares(linear.in_features);
  layout.order = linear.find("groups")->data<uint16_t>();
  layout.main = linear.find("main")->data<uint32_t>();
  layout.split = linear.find("split")->data<uint32_t>();
  layout.first = linear.find("first_order")->data<uint16_t>();
  layout.second = linear.find("second_order")->data<uint16_t>();
  layout.scales = linear.find("scales")->data<uint16_t>();
  layout.zeros = linear.find("zeros")->data<uint8_t>();
  if (const Tensor* counts = linear.find("sparse_counts")) {
    layout.sparse_counts = counts->data<uint16_t>();
    layout.sparse_columns = linear.find("sparse_columns")->data<uint16_t>();
    layout.sparse_values = linear.find("sparse_values")->data<uint16_t>();
  }
  if (const Tensor* bias = linear.find("bias")) layout.bias = bias->data<float>();
  return layout;
}

MixedCodePlace mixed_code_place(int64_t slot, int64_t i) {
  if (slot != kMixedWideSlot) return {static_cast<int>(slot), static_cast<int>(2 * i)};
  // Columns i, i + 4, i + 8 and i + 12 are a byte apart, as in the 2-bit slots: i / 4 is the byte, i & 1 the
  // nibble, i & 2 the dword.
  return {(i & 2) == 0 ? 3 : 4, static_cast<int>(8 * (i >> 2) + 4 * (i & 1))};
}

int mixed_first_zero(uint16_t first, int64_t slot) { return first >> (2 * slot) & 3; }

int mixed_first_code(uint16_t first, int64_t slot) {
  return first >> kMixedFirstCodeShift[slot] & kMixedFirstCodeLimit[slot];
}

int mixed_second_zero(uint16_t zeros, int64_t slot) {
  return zeros >> kMixedSecondZeroShift[slot] & kMixedSecondZeroLimit[slot];
}

float mixed_scale(const MixedLayout& layout, int64_t row, int64_t place) {
  const int64_t unit = place / kMixedSlots, slot = place % kMixedSlots, tile = row / kMixedTile;
  if (slot == kMixedWideSlot) {
    const int64_t share = tile * layout.shares + unit / kMixedWideShare;
    return f16_to_float(layout.scales[share * kMixedTile + row % kMixedTile]);
  }
  const uint16_t* second = layout.second + (tile * layout.units + unit) * 4;
  const int level =
      mixed_first_code(layout.first[row_unit(layout, row, unit)], slot) + mixed_second_zero(second[3], slot);
  return static_cast<float>(level) * f16_to_float(second[slot]);
}

int mixed_zero(const MixedLayout& layout, int64_t row, int64_t place) {
  const int64_t unit = place / kMixedSlots, slot = place % kMixedSlots;
  if (slot == kMixedWideSlot) {
    const int64_t share = row / kMixedTile * layout.shares + unit / kMixedWideShare;
    return layout.zeros[share * 8 + row % kMixedTile / 2] >> (4 * (row & 1)) & 15;
  }
  return mixed_first_zero(layout.first[row_unit(layout, row, unit)], slot);
}

int mixed_code(const MixedLayout& layout, int64_t row, int64_t place, int64_t i) {
  const int64_t unit = place / kMixedSlots, slot = place % kMixedSlots, at = row_unit(layout, row, unit);
  const MixedCodePlace code = mixed_code_place(slot, i);
  const uint32_t word = code.word == 4 ? layout.split[at] : layout.main[at * 4 + code.word];
  return static_cast<int>(word >> code.shift & (slot == kMixedWideSlot ? 15u : 3u));
}

void mixed_dequantize_dense(const MixedLayout& layout, int64_t first, int64_t count, float* weight) {
  for (int64_t r = 0; r < count; ++r) {
    const int64_t row = first + r;
    for (int64_t place = 0; place < layout.units * kMixedSlots; ++place) {
      const int64_t column = layout.order[place] * kMixedGroup, slot = place % kMixedSlots;
      const int64_t columns = std::min(kMixedGroup, layout.in_features - column);
      if (columns <= 0) continue;
      const int64_t at = row_unit(layout, row, place / kMixedSlots);
      const uint32_t words[5] = {layout.main[at * 4], layout.main[at * 4 + 1], layout.main[at * 4 + 2],
                                 layout.main[at * 4 + 3], layout.split[at]};
      const float scale = mixed_scale(layout, row, place);
      const int zero = mixed_zero(layout, row, place), mask = slot == kMixedWideSlot ? 15 : 3;
      float* out = weight + r * layout.in_features + column;
      for (int64_t i = 0; i < columns; ++i) {
        const MixedCodePlace code = mixed_code_place(slot, i);
        out[i] = static_cast<float>((static_cast<int>(words[code.word] >> code.shift) & mask) - zero) * scale;
      }
    }
  }
}

int64_t mixed_sparse_start(const MixedLayout& layout, int64_t row) {
  int64_t start = 0;
  for (int64_t r = 0; r < row; ++r) start += layout.sparse_counts[r];
  return start;
}

}  // namespace nibble

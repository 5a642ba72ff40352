#include "formats/group_int/layout.h"

#include <algorithm>

#include "base/half.h"
#include "formats/format.h"

namespace nibble {

int64_t group_int_row_bytes(int64_t columns, int bits) { return (columns * bits + 7) / 8; }

GroupIntLayout group_int_layout(const PackedLinear& linear) {
  GroupIntLayout layout;
  layout.out_features = linear.out_features;
  layout.in_features = linear.in_features;
  layout.bits = static_cast<int>(linear.parameter("weight_bits", 0));
  layout.symmetric_zero = static_cast<float>(1 << (layout.bits - 1));
  const int64_t group_size = linear.parameter("group_size", 0);
  layout.group_size = group_size == 0 ? linear.in_features : std::min(group_size, linear.in_features);
  layout.groups = (linear.in_features + layout.group_size - 1) / layout.group_size;
  layout.row_bytes = group_int_row_bytes(linear.in_features, layout.bits);

  layout.codes = linear.find("codes")->data<uint8_t>();
  const Tensor& scales = *linear.find("scales");
  if (scales.dtype() == DType::kF16) {
    layout.scales_f16 = scales.data<uint16_t>();
  } else {
    layout.scales_f32 = scales.data<float>();
  }
  if (const Tensor* zeros = linear.find("zeros")) {
    if (zeros->dtype() == DType::kU8) {
      layout.zeros_u8 = zeros->data<uint8_t>();
    } else {
      layout.zeros_f32 = zeros->data<float>();
    }
  }
  if (const Tensor* bias = linear.find("bias")) layout.bias = bias->data<float>();
  return layout;
}

void code_stream_pack(const uint8_t* codes, int64_t count, int bits, uint8_t* packed) {
  unsigned pending = 0;
  int pending_bits = 0;
  for (int64_t j = 0; j < count; ++j) {
    pending |= static_cast<unsigned>(codes[j]) << pending_bits;
    pending_bits += bits;
    while (pending_bits >= 8) {
      *packed++ = static_cast<uint8_t>(pending);
      pending >>= 8;
      pending_bits -= 8;
    }
  }
  if (pending_bits > 0) *packed = static_cast<uint8_t>(pending);
}

void code_stream_unpack(const uint8_t* packed, int64_t k, int bits, uint8_t* codes) {
  switch (bits) {
    case 8:
      std::copy(packed, packed + k, codes);
      return;
    case 4:
      for (int64_t j = 0; j < k; ++j) codes[j] = static_cast<uint8_t>(packed[j / 2] >> (4 * (j & 1)) & 15);
      return;
    case 2:
      for (int64_t j = 0; j < k; ++j) codes[j] = static_cast<uint8_t>(packed[j / 4] >> (2 * (j & 3)) & 3);
      return;
    case 3:
      for (int64_t j = 0; j < k; ++j) {
        const int64_t bit = 3 * j;
        unsigned pair = packed[bit / 8];
        // A code may straddle two bytes; the second exists then, since the row holds all bits of column j.
        if (bit % 8 > 5) pair |= static_cast<unsigned>(packed[bit / 8 + 1]) << 8;
        codes[j] = static_cast<uint8_t>(pair >> (bit % 8) & 7);
      }
      return;
    default:
      NIBBLE_CHECK(!"validated bits");
  }
}

void code_stream_check_padding(const PackedLinear& linear, const Tensor& codes, int64_t columns, int bits) {
  const int used = static_cast<int>(columns * bits % 8);
  if (used == 0) return;
  const int64_t row_bytes = group_int_row_bytes(columns, bits);
  for (int64_t row = 0; row < linear.out_features; ++row) {
    const uint8_t last = codes.data<uint8_t>()[(row + 1) * row_bytes - 1];
    if (last >> used != 0)
      fail("tensor {}.codes has nonzero padding bits at the end of row {}", linear.name, row);
  }
}

void group_int_unpack_row(const GroupIntLayout& layout, int64_t row, uint8_t* codes) {
  code_stream_unpack(layout.codes + row * layout.row_bytes, layout.in_features, layout.bits, codes);
}

float group_int_scale(const GroupIntLayout& layout, int64_t row, int64_t group) {
  const int64_t at = row * layout.groups + group;
  return layout.scales_f16 != nullptr ? f16_to_float(layout.scales_f16[at]) : layout.scales_f32[at];
}

float group_int_zero(const GroupIntLayout& layout, int64_t row, int64_t group) {
  const int64_t at = row * layout.groups + group;
  if (layout.zeros_u8 != nullptr) return static_cast<float>(layout.zeros_u8[at]);
  return layout.zeros_f32 != nullptr ? layout.zeros_f32[at] : layout.symmetric_zero;
}

void group_int_dequantize_row(const GroupIntLayout& layout, int64_t row, float* weight) {
  uint8_t codes[1024];
  // Unpacks a slice at a time through a small buffer: rows of any length need no allocation. The slice is a
  // multiple of 8 columns, so it starts at a byte boundary for every width.
  for (int64_t first = 0; first < layout.in_features; first += 1024) {
    GroupIntLayout slice = layout;
    slice.in_features = std::min<int64_t>(1024, layout.in_features - first);
    slice.codes = layout.codes + first * layout.bits / 8;
    group_int_unpack_row(slice, row, codes);
    int64_t j = 0;
    while (j < slice.in_features) {
      const int64_t group = (first + j) / layout.group_size;
      const int64_t end = std::min(slice.in_features, (group + 1) * layout.group_size - first);
      const float scale = group_int_scale(layout, row, group), zero = group_int_zero(layout, row, group);
      for (; j < end; ++j) weight[first + j] = (static_cast<float>(codes[j]) - zero) * scale;
    }
  }
}

}  // namespace nibble

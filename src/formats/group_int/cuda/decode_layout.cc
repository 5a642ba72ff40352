#include "formats/group_int/cuda/decode_layout.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "formats/group_int/layout.h"

namespace nibble::group_int_cuda {
namespace {

// Nibble of a word by [column % 4][row >= 8]; see the header.
constexpr int kNibble[4][2] = {{0, 1}, {4, 5}, {2, 3}, {6, 7}};

struct Chunk {
  int64_t first_byte, groups;
};

Chunk chunk_of(const DecodeShape& shape, int64_t row, int64_t group) {
  const int64_t chunk = group / kChunkGroups;
  return {row / kRows * shape.tile_bytes() + chunk * kChunkGroups * (kCodeBytes + kScaleBytes),
          std::min(kChunkGroups, shape.groups() - chunk * kChunkGroups)};
}

}  // namespace

CodePlace code_place(const DecodeShape& shape, int64_t row, int64_t column) {
  const int64_t group = column / kGroup, j = column % kGroup;
  const int64_t g = row % 8, upper = row % kRows / 8;
  // column = 32 (m / 2) + 8 q + 4 (m % 2) + e
  const int64_t q = j % 32 / 8, m = j / 32 * 2 + j % 8 / 4, e = j % 4;
  const int64_t lane = 4 * g + q, vector = m / 4, word = m % 4;
  const int nibble = kNibble[e][upper];
  return {chunk_of(shape, row, group).first_byte + group % kChunkGroups * kCodeBytes + vector * 512 +
              lane * 16 + word * 4 + nibble / 2,
          nibble % 2 * 4};
}

int64_t scale_place(const DecodeShape& shape, int64_t row, int64_t group) {
  const Chunk chunk = chunk_of(shape, row, group);
  return chunk.first_byte + chunk.groups * kCodeBytes + group % kChunkGroups * kScaleBytes + row % kRows * 2;
}

std::string decode_refusal(const PackedLinear& linear) {
  const GroupIntLayout layout = group_int_layout(linear);
  if (layout.bits != 4) return format_text("weights of {} bits, not 4", layout.bits);
  if (layout.zeros_u8 != nullptr || layout.zeros_f32 != nullptr) return "zero points";
  if (layout.groups > 1 && layout.group_size != kGroup) {
    return format_text("groups of {} columns, neither {} nor whole rows", layout.group_size, kGroup);
  }
  if (layout.scales_f16 == nullptr) return "scales beyond F16";
  return "";
}

std::vector<uint8_t> pack_for_decode(const PackedLinear& linear) {
  NIBBLE_CHECK(decode_refusal(linear).empty());
  const GroupIntLayout layout = group_int_layout(linear);
  const DecodeShape shape = {.n = layout.out_features, .k = layout.in_features};
  // A code of 8 stands for 0: what lies beyond the weight adds nothing.
  std::vector<uint8_t> packed(static_cast<size_t>(shape.bytes()), 0x88);
  std::vector<uint8_t> codes(static_cast<size_t>(shape.k));
  const int64_t rows = shape.tiles() * kRows;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t group = 0; group < shape.groups(); ++group) {
      uint16_t scale = 0;
      if (row < shape.n) scale = layout.scales_f16[row * layout.groups + (layout.groups == 1 ? 0 : group)];
      std::memcpy(packed.data() + scale_place(shape, row, group), &scale, sizeof scale);
    }
    if (row >= shape.n) continue;
    group_int_unpack_row(layout, row, codes.data());
    for (int64_t column = 0; column < shape.k; ++column) {
      const CodePlace place = code_place(shape, row, column);
      uint8_t& byte = packed[static_cast<size_t>(place.byte)];
      byte = static_cast<uint8_t>((byte & (0xF0 >> place.shift)) | (codes[column] << place.shift));
    }
  }
  return packed;
}

}  // namespace nibble::group_int_cuda

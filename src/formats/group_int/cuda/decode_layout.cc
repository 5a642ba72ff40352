#include "formats/group_int/cuda/decode_layout.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "formats/group_int/layout.h"

namespace nibble::group_int_cuda {
namespace {

int64_t block_place(const DecodeShape& shape, int64_t row, int64_t column) {
  return row / kBlockRows * shape.tile_bytes() + column / kBlockColumns * shape.block_bytes();
}

// Word m of lane 4 g + q, from the codes [16, 128] of a block.
uint32_t operand_word(const uint8_t (&codes)[kBlockRows][kBlockColumns], int64_t g, int64_t q, int64_t m) {
  const int64_t c = 16 * m + 2 * q;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {    // operand register
    for (int h = 0; h < 2; ++h) {  // its lower and upper half
      const uint32_t code = codes[g + 8 * (i % 2)][c + 8 * (i / 2) + h];
      word |= code << (4 * (i + 4 * h));
    }
  }
  return word;
}

}  // namespace

CodePlace code_place(const DecodeShape& shape, int64_t row, int64_t column) {
  const int64_t g = row % 8, upper = row % kBlockRows / 8;
  const int64_t m = column % kBlockColumns / 16, right = column % 16 / 8, q = column % 8 / 2, h = column % 2;
  const int64_t lane = 4 * g + q, nibble = upper + 2 * right + 4 * h;
  return {block_place(shape, row, column) + m / 4 * 512 + lane * 16 + m % 4 * 4 + nibble / 2,
          static_cast<int>(nibble % 2 * 4)};
}

int64_t scale_place(const DecodeShape& shape, int64_t row, int64_t column) {
  const int64_t set = column % kBlockColumns * shape.scales_per_block / kBlockColumns;
  return block_place(shape, row, column) + kCodeBytes + set * kScaleBytes + row % kBlockRows * 2;
}

std::string decode_refusal(const PackedLinear& linear) {
  const GroupIntLayout layout = group_int_layout(linear);
  if (layout.bits != 4) return format_text("weights of {} bits, not 4", layout.bits);
  if (layout.zeros_u8 != nullptr || layout.zeros_f32 != nullptr) return "zero points";
  if (layout.groups > 1 && layout.group_size != 64 && layout.group_size != 128) {
    return format_text("groups of {} columns, neither 64 nor 128 nor whole rows", layout.group_size);
  }
  if (layout.scales_f16 == nullptr) return "scales beyond F16";
  return "";
}

DecodeShape decode_shape(const PackedLinear& linear) {
  const GroupIntLayout layout = group_int_layout(linear);
  return {.n = layout.out_features,
          .k = layout.in_features,
          .scales_per_block = layout.groups > 1 && layout.group_size == 64 ? 2 : 1};
}

void pack_for_decode(const PackedLinear& linear, uint8_t* packed) {
  NIBBLE_CHECK(decode_refusal(linear).empty());
  const GroupIntLayout layout = group_int_layout(linear);
  const DecodeShape shape = decode_shape(linear);
  const int64_t columns_per_scale = kBlockColumns / shape.scales_per_block;
  std::vector<uint8_t> rows(static_cast<size_t>(kBlockRows * shape.k));
  uint8_t codes[kBlockRows][kBlockColumns];
  uint16_t scales[2][kBlockRows];
  for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
    const int64_t height = std::min(kBlockRows, shape.n - tile * kBlockRows);
    for (int64_t row = 0; row < height; ++row) {
      group_int_unpack_row(layout, tile * kBlockRows + row, rows.data() + row * shape.k);
    }
    for (int64_t block = 0; block < shape.blocks(); ++block, packed += shape.block_bytes()) {
      const int64_t first = block * kBlockColumns, width = std::min(kBlockColumns, shape.k - first);
      // A code of 8 stands for 0: what lies beyond the weight adds nothing.
      std::memset(codes, 8, sizeof codes);
      std::memset(scales, 0, sizeof scales);
      for (int64_t row = 0; row < height; ++row) {
        std::memcpy(codes[row], rows.data() + row * shape.k + first, static_cast<size_t>(width));
        for (int64_t set = 0; set < shape.scales_per_block; ++set) {
          const int64_t column = first + set * columns_per_scale;
          if (column >= shape.k) continue;
          const int64_t group = layout.groups == 1 ? 0 : column / layout.group_size;
          scales[set][row] = layout.scales_f16[(tile * kBlockRows + row) * layout.groups + group];
        }
      }
      for (int64_t lane = 0; lane < 32; ++lane) {
        for (int64_t m = 0; m < 8; ++m) {
          const uint32_t word = operand_word(codes, lane / 4, lane % 4, m);
          std::memcpy(packed + m / 4 * 512 + lane * 16 + m % 4 * 4, &word, sizeof word);
        }
      }
      std::memcpy(packed + kCodeBytes, scales, static_cast<size_t>(shape.scales_per_block * kScaleBytes));
    }
  }
}

std::vector<uint8_t> pack_for_decode(const PackedLinear& linear) {
  NIBBLE_CHECK(decode_refusal(linear).empty());
  std::vector<uint8_t> packed(static_cast<size_t>(decode_shape(linear).bytes()));
  pack_for_decode(linear, packed.data());
  return packed;
}

}  // namespace nibble::group_int_cuda

#include "formats/squeezellm/layout.h"

#include <algorithm>

#include "base/half.h"
#include "formats/format.h"
#include "formats/group_int/layout.h"

namespace nibble {
namespace {

// A block of 3-bit codes.
constexpr int64_t kBlockColumns = 256, kBlockWords = 24;

// Calls bits(column, shift of the code's bits, word, shift of the word's bits, width) for the two or three
// runs of bits that make up a block.
template <typename Visit>
void for_block_bits(Visit&& visit) {
  for (int word = 0; word < kBlockWords; ++word) {
    for (int i = 0; i < 8; ++i) visit(8 * word + i, 0, word, 3 * i, 3);
    visit(192 + word, 0, word, 24, 3);
    visit(216 + word, 0, word, 27, 3);
    if (word < 16) {
      visit(240 + word, 0, word, 30, 2);
    } else {
      visit(240 + word - 16, 2, word, 30, 1);
      visit(248 + word - 16, 2, word, 31, 1);
    }
  }
}

// Whole blocks of a row; the columns after them are a plain stream.
int64_t block_count(int64_t count, int bits) { return bits == 3 ? count / kBlockColumns : 0; }

}  // namespace

void squeezellm_pack_codes(const uint8_t* codes, int64_t count, int bits, uint8_t* packed) {
  const int64_t blocks = block_count(count, bits);
  for (int64_t block = 0; block < blocks; ++block, codes += kBlockColumns, packed += 4 * kBlockWords) {
    uint32_t words[kBlockWords] = {};
    for_block_bits([&](int column, int from, int word, int to, int width) {
      words[word] |= (static_cast<uint32_t>(codes[column]) >> from & ((1u << width) - 1)) << to;
    });
    for (int i = 0; i < 4 * kBlockWords; ++i) packed[i] = static_cast<uint8_t>(words[i / 4] >> (8 * (i % 4)));
  }
  code_stream_pack(codes, count - blocks * kBlockColumns, bits, packed);
}

void squeezellm_unpack_codes(const uint8_t* packed, int64_t count, int bits, uint8_t* codes) {
  const int64_t blocks = block_count(count, bits);
  for (int64_t block = 0; block < blocks; ++block, codes += kBlockColumns, packed += 4 * kBlockWords) {
    uint32_t words[kBlockWords] = {};
    for (int i = 0; i < 4 * kBlockWords; ++i)
      words[i / 4] |= static_cast<uint32_t>(packed[i]) << (8 * (i % 4));
    std::fill_n(codes, kBlockColumns, uint8_t{0});
    for_block_bits([&](int column, int from, int word, int to, int width) {
      codes[column] |= static_cast<uint8_t>((words[word] >> to & ((1u << width) - 1)) << from);
    });
  }
  code_stream_unpack(packed, count - blocks * kBlockColumns, bits, codes);
}

SqueezellmLayout squeezellm_layout(const PackedLinear& linear) {
  SqueezellmLayout layout;
  layout.out_features = linear.out_features;
  layout.in_features = linear.in_features;
  layout.bits = static_cast<int>(linear.parameter("weight_bits", 0));
  layout.row_bytes = group_int_row_bytes(linear.in_features, layout.bits);
  layout.codes = linear.find("codes")->data<uint8_t>();
  const Tensor& codebooks = *linear.find("codebooks");
  const bool f16 = codebooks.dtype() == DType::kF16;
  if (f16) {
    layout.codebooks_f16 = codebooks.data<uint16_t>();
  } else {
    layout.codebooks_f32 = codebooks.data<float>();
  }
  if (const Tensor* offsets = linear.find("sparse_offsets")) {
    layout.sparse_offsets = offsets->data<uint32_t>();
    layout.sparse_columns = linear.find("sparse_columns")->data<uint16_t>();
    const Tensor& values = *linear.find("sparse_values");
    if (f16) {
      layout.sparse_values_f16 = values.data<uint16_t>();
    } else {
      layout.sparse_values_f32 = values.data<float>();
    }
  }
  if (const Tensor* bias = linear.find("bias")) layout.bias = bias->data<float>();
  return layout;
}

void squeezellm_dequantize_row(const SqueezellmLayout& layout, int64_t row, float* weight) {
  const int levels = 1 << layout.bits;
  float table[16];
  for (int i = 0; i < levels; ++i) {
    table[i] = layout.codebooks_f16 != nullptr ? f16_to_float(layout.codebooks_f16[row * levels + i])
                                               : layout.codebooks_f32[row * levels + i];
  }
  // A slice at a time through a small buffer, each of whole blocks.
  uint8_t codes[1024];
  const uint8_t* packed = layout.codes + row * layout.row_bytes;
  for (int64_t first = 0; first < layout.in_features; first += 1024) {
    const int64_t count = std::min<int64_t>(1024, layout.in_features - first);
    squeezellm_unpack_codes(packed + first * layout.bits / 8, count, layout.bits, codes);
    for (int64_t j = 0; j < count; ++j) weight[first + j] = table[codes[j]];
  }
  if (layout.sparse_offsets == nullptr) return;
  for (uint32_t i = layout.sparse_offsets[row]; i < layout.sparse_offsets[row + 1]; ++i) {
    weight[layout.sparse_columns[i]] += layout.sparse_values_f16 != nullptr
                                            ? f16_to_float(layout.sparse_values_f16[i])
                                            : layout.sparse_values_f32[i];
  }
}

}  // namespace nibble

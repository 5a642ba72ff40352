// The canonical layout of squeezellm (README.md) as plain pointers and numbers: what the kernels, the
// reference and the unpacking code read. Nothing inline, so that sources compiled per instruction set may
// include it.
#pragma once

#include <cstdint>

namespace nibble {

struct PackedLinear;

struct SqueezellmLayout {
  int64_t out_features = 0;  // n
  int64_t in_features = 0;   // k
  int bits = 0;              // 2, 3, 4
  int64_t row_bytes = 0;     // of codes: ceil(k * bits / 8)

  const uint8_t* codes = nullptr;           // [n, row_bytes]
  const uint16_t* codebooks_f16 = nullptr;  // [n, 2^bits]; exactly one of the two is set
  const float* codebooks_f32 = nullptr;

  const uint32_t* sparse_offsets = nullptr;  // [n + 1]; nullptr without a sparse part, and so are the others
  const uint16_t* sparse_columns = nullptr;  // [offsets[n]]
  const uint16_t* sparse_values_f16 = nullptr;  // the one whose type is that of the codebooks
  const float* sparse_values_f32 = nullptr;

  const float* bias = nullptr;  // [n] or nullptr
};

// Codes of one row, one byte each, and their bytes of README.md, ceil(count * bits / 8) of them.
void squeezellm_pack_codes(const uint8_t* codes, int64_t count, int bits, uint8_t* packed);
void squeezellm_unpack_codes(const uint8_t* packed, int64_t count, int bits, uint8_t* codes);

// Of a linear that validate() accepted.
SqueezellmLayout squeezellm_layout(const PackedLinear& linear);

// One row of W [k]: level plus sparse value, one addition; kernels for prompts compute the same weights.
void squeezellm_dequantize_row(const SqueezellmLayout& layout, int64_t row, float* weight);

}  // namespace nibble

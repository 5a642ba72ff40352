// The canonical layout of group_int (README.md) as plain pointers and numbers: what the kernels, the
// reference and the unpacking code read. Nothing inline, so that sources compiled per instruction set may
// include it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble {

struct PackedLinear;
class Tensor;

// One linear: W[r, j] = scale(r, g) * (u[r, j] - zero(r, g)) with g = j / group_size, u the stored code.
struct GroupIntLayout {
  int64_t out_features = 0;  // n
  int64_t in_features = 0;   // k
  int bits = 0;              // 2, 3, 4, 8
  int64_t group_size = 0;    // columns that share a scale, at most k here: a whole row is one group of k
  int64_t groups = 0;        // per row
  int64_t row_bytes = 0;     // of codes: ceil(k * bits / 8)

  const uint8_t* codes = nullptr;        // [n, row_bytes]
  const uint16_t* scales_f16 = nullptr;  // [n, groups]; exactly one of the two is set
  const float* scales_f32 = nullptr;
  const uint8_t* zeros_u8 = nullptr;  // [n, groups]; at most one of the two is set, none when symmetric
  const float* zeros_f32 = nullptr;
  float symmetric_zero = 0;     // 2^(bits - 1), the zero of a linear without zeros
  const float* bias = nullptr;  // [n] or nullptr
};

int64_t group_int_row_bytes(int64_t columns, int bits);

// One row of codes as the dense bit stream of README.md, which other formats store too. `codes` one byte
// each, below 2^bits; packing writes group_int_row_bytes(count, bits) bytes, unpacking reads no others.
void code_stream_pack(const uint8_t* codes, int64_t count, int bits, uint8_t* packed);
void code_stream_unpack(const uint8_t* packed, int64_t count, int bits, uint8_t* codes);
// Padding must be zero: then equal weights are equal bytes, and bits are never read that mean nothing. Throws
// Error naming the row of the tensor <linear>.codes [n, row_bytes] that has other bits after its `columns`.
void code_stream_check_padding(const PackedLinear& linear, const Tensor& codes, int64_t columns, int bits);

// Of a linear that validate() accepted.
GroupIntLayout group_int_layout(const PackedLinear& linear);

// Stored codes of columns [0, k) of one row, one byte each.
void group_int_unpack_row(const GroupIntLayout& layout, int64_t row, uint8_t* codes);
float group_int_scale(const GroupIntLayout& layout, int64_t row, int64_t group);
float group_int_zero(const GroupIntLayout& layout, int64_t row, int64_t group);
// One row of W. Each weight is float(u - zero) * scale, two roundings at most; kernels compute the same
// weights.
void group_int_dequantize_row(const GroupIntLayout& layout, int64_t row, float* weight);

}  // namespace nibble

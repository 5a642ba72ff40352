// The canonical tensors of one quik linear (README.md), read through one type by everything that needs them.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "formats/format.h"

namespace nibble::quik {

// No INT32 sum of code products can overflow up to here: 255 * 128 * 65536 < 2^31.
inline constexpr int64_t kMaxIntegerColumns = 65536;

struct Layout {
  int64_t n = 0, k = 0, k_int = 0;
  int weight_bits = 0, activation_bits = 0;
  const uint8_t* codes = nullptr;  // [n, code_row_bytes], packed as in the file
  int64_t code_row_bytes = 0;
  std::vector<float> scales;              // [n]
  std::vector<int32_t> outlier_columns;   // [n_o]
  std::vector<int32_t> integer_columns;   // [k_int]
  std::vector<uint16_t> outlier_weights;  // F16 bits [n, n_o]
  std::vector<float> bias;                // [n], zeros when the linear has none

  int64_t outliers() const { return static_cast<int64_t>(outlier_columns.size()); }
  // Codes of one row, [k_int].
  void unpack_row(int64_t row, int8_t* out) const;
};

// Activation codes of one token (README.md, "Activation codes"), the definition that kernels are held to.
struct TokenRange {
  float scale = 0;
  int32_t zero = 0;
};
// Of the columns `columns` of x; codes [columns.size()].
TokenRange quantize_token(const float* x, std::span<const int32_t> columns, int activation_bits,
                          uint8_t* codes);

// What format rows say of a linear with the parameters and outlier columns of this folder's README;
// quik_sparse has them too. Linears fuse when they share their input's outlier columns, whatever the order of
// the others.
std::string arithmetic(const PackedLinear& linear);
std::map<int, double> multiply_adds(const PackedLinear& linear);
bool can_fuse(const PackedLinear& a, const PackedLinear& b);

// Reads a linear that validate() accepted.
Layout read_layout(const PackedLinear& linear);

}  // namespace nibble::quik

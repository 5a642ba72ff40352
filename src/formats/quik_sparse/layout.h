// The canonical tensors of one quik_sparse linear (README.md), read through one type by everything that needs
// them.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/format.h"

namespace nibble::quik_sparse {

inline constexpr int64_t kGroup = 4;  // columns of which two are kept

struct Layout {
  int64_t n = 0, k = 0, k_int = 0;
  int64_t groups = 0;  // of a row
  int weight_bits = 0, activation_bits = 0;
  const uint8_t* codes = nullptr;          // [n, code_row_bytes], packed as in the file
  const uint8_t* positions = nullptr;      // [n, position_row_bytes]
  std::vector<float> scales;               // [n]
  std::vector<int32_t> integer_columns;    // [k_int] in the order of the file
  std::vector<int32_t> ascending_columns;  // [k_int] the same, ascending
  std::vector<int32_t> places;             // [k_int] where integer_columns[j] stands among the ascending ones
  std::vector<int32_t> outlier_columns;    // [n_o]
  std::vector<uint16_t> outlier_weights;   // F16 bits [n, n_o]
  std::vector<float> bias;                 // [n], zeros when the linear has none

  int64_t outliers() const { return static_cast<int64_t>(outlier_columns.size()); }
  // The two kept codes of group i of a row and their indices in integer_columns; the second index may be
  // k_int or more where the last group is shorter, with code 0.
  struct Pair {
    int32_t codes[2];
    int64_t indices[2];
  };
  Pair pair(int64_t row, int64_t group) const;
  // All codes of one row, in ascending column order: [k_int].
  void unpack_row(int64_t row, int8_t* out) const;
};

int64_t group_count(int64_t k_int);
int64_t code_row_bytes(int64_t k_int, int weight_bits);
int64_t position_row_bytes(int64_t k_int);

// Compresses one row of codes in the order of integer_columns, [k_int]. Returns the first group with more
// than two codes that are not 0, or -1.
int64_t pack_row(const int8_t* codes, int64_t k_int, int weight_bits, uint8_t* packed, uint8_t* positions);

// Reads a linear that validate() accepted.
Layout read_layout(const PackedLinear& linear);

}  // namespace nibble::quik_sparse

// What quantizers hand to formats: one linear's weight as unpacked integer codes and everything needed to
// read them. Method, grid and packing stay apart: any quantizer of uniform grids can feed any format of
// uniform codes.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

// W[n, k] = scale[n, group(j)] * (code[n, j] - zero[n, group(j)]) for integer columns j; outlier columns are
// kept as floats.
struct QuantizedWeight {
  int64_t out_features = 0;  // n
  int64_t in_features = 0;   // k, all columns

  int weight_bits = 0;       // integer width of the codes: 2, 3, 4, 8
  int activation_bits = 16;  // 4 or 8: the activations are quantized too; 16: they stay floats
  int64_t group_size = 0;    // integer columns that share a scale; 0: the whole row

  // Integer part, over the columns that are no outliers, in ascending column order.
  std::vector<int8_t> codes;  // [n, k - outliers], symmetric codes in [-2^(b-1), 2^(b-1) - 1]
  std::vector<float> scales;  // [n, groups]
  std::vector<float> zeros;   // [n, groups] in code units, or empty when symmetric

  // 16-bit part: columns kept in floating point (QUIK's outlier columns).
  std::vector<int32_t> outlier_columns;  // ascending, unique, < k
  std::vector<float> outlier_weights;    // [n, outliers]

  std::vector<float> bias;  // [n] or empty

  int64_t integer_columns() const { return in_features - static_cast<int64_t>(outlier_columns.size()); }
};

}  // namespace nibble

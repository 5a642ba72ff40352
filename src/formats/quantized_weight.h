// What quantizers hand to formats: one linear's weight as unpacked integer codes and everything needed to
// read them. Method, grid and packing stay apart: any quantizer of uniform grids can feed any format of
// uniform codes.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

// Compressed sparse rows: the entries of row r are [row_offsets[r], row_offsets[r + 1]), their columns
// strictly ascending within the row.
struct SparsePart {
  std::vector<int64_t> row_offsets;  // [n + 1], or empty when there is no sparse part
  std::vector<int32_t> columns;      // [entries]
  std::vector<float> values;         // [entries], added to the dense value at their place

  bool empty() const { return columns.empty(); }
};

// Groups of 16 input columns of 2 or 4 bits whose scales have two orders (format mixed_2_4_16). With them the
// weight's group_size is 16, codes are unsigned (0 to 3 or 0 to 15), and scales and zeros are those of each
// row's group, [n, ceil(k / 16)], as they are when read back:
//   a 2-bit group: scale = (scale_code + second_zero) * second_scale, second_scale an F16 number, zero in [0,
//   3] a 4-bit group: an F16 number, zero in [0, 15]; both shared by 8 consecutive 4-bit groups of `order`
struct MixedGroups {
  // [4 * ceil(k / 64)] group at each place: three 2-bit groups, then one of 4 bits, and so on. Numbers from
  // ceil(k / 16) on stand for groups of padding. Every number occurs once.
  std::vector<int32_t> order;
  std::vector<uint8_t> scale_codes;   // [n, ceil(k / 16)], at most 7, in every third 2-bit group 15; 4-bit: 0
  std::vector<float> second_scales;   // [ceil(n / 16), ceil(k / 16)], one for 16 rows; 4-bit: 0
  std::vector<uint8_t> second_zeros;  // the same shape, at most 7 or 15 as the codes

  bool empty() const { return order.empty(); }
};

// W[n, k] = scale[n, group(j)] * (code[n, j] - zero[n, group(j)]) for integer columns j; outlier columns are
// kept as floats. With codebooks W[n, j] = codebooks[n, code[n, j]] instead. The sparse part is added to
// either.
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

  // 2:4 sparsity: the integer columns in the order in which each four that follow each other hold at most two
  // codes that are not 0 (the last group may be shorter); empty when dense. Codes stay in ascending column
  // order.
  std::vector<int32_t> mask_order;  // [k - outliers] column numbers

  // Integer group scales: scales[n, g] = row_scales[n] * scale_multipliers[n, g]. Both empty where scales are
  // free floats. With an amplifier (Integer Scale) every row scale is 1 / scale_amplifier.
  std::vector<int32_t> scale_multipliers;  // [n, groups]
  std::vector<float> row_scales;           // [n]
  int64_t scale_amplifier = 0;

  // Codebook part (SqueezeLLM): one table per output row; codes are then unsigned, in [0, 2^b), and there are
  // neither scales nor zeros.
  std::vector<float> codebooks;  // [n, 2^b] or empty

  SparsePart sparse;
  MixedGroups mixed;

  // 16-bit part: columns kept in floating point (QUIK's outlier columns).
  std::vector<int32_t> outlier_columns;  // ascending, unique, < k
  std::vector<float> outlier_weights;    // [n, outliers]

  // 8-bit activations: the step of a static per-tensor grid, or 0 where every token gets its own while
  // running.
  float activation_scale = 0;

  std::vector<float> bias;  // [n] or empty

  int64_t integer_columns() const { return in_features - static_cast<int64_t>(outlier_columns.size()); }
};

}  // namespace nibble

// What quik and quik_sparse pack, check and read alike: everything but the codes of the integer columns.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "formats/format.h"
#include "formats/quik/layout.h"

namespace nibble::quik {

// Throws Error naming the linear where the condition does not hold.
void require(bool condition, const std::string& name, const std::string& what);

// Refuses what neither format can hold. `format` is the name of the one that packs.
void check_packable(const QuantizedWeight& weight, const std::string& name, const char* format);
// The linear without its integer codes: sizes, parameters, scales, outlier columns and bias.
PackedLinear pack_all_but_codes(const LinearFormat& format, const QuantizedWeight& weight,
                                const std::string& name);

// The sizes and parameters of a linear that was read from a file.
struct Settings {
  int64_t outliers, k_int;
  int weight_bits;
};
Settings check_settings(const PackedLinear& linear);
// That column `column`, the i-th outlier, follows `previous` and is below the linear's in-features.
void check_outlier_column(const PackedLinear& linear, int64_t i, int64_t column, int64_t previous);

// Rows [first, first + count) of the weight, from the layout of either format, whose unpack_row() gives the
// codes of `integer_columns`.
template <typename Layout>
void dequantize_layout_rows(const Layout& layout, std::span<const int32_t> integer_columns, int64_t first,
                            int64_t count, float* weight) {
  NIBBLE_CHECK(first >= 0 && count >= 0 && first + count <= layout.n);
  std::vector<int8_t> row_codes(static_cast<size_t>(layout.k_int));
  for (int64_t row = first; row < first + count; ++row) {
    layout.unpack_row(row, row_codes.data());
    float* out = weight + (row - first) * layout.k;
    for (int64_t j = 0; j < layout.k_int; ++j)
      out[integer_columns[j]] = static_cast<float>(row_codes[j]) * layout.scales[row];
    for (int64_t o = 0; o < layout.outliers(); ++o)
      out[layout.outlier_columns[o]] = f16_to_float(layout.outlier_weights[row * layout.outliers() + o]);
  }
}

}  // namespace nibble::quik

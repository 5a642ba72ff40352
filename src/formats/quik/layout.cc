#include "formats/quik/layout.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "formats/signed_codes.h"

namespace nibble::quik {
void Layout::unpack_row(int64_t row, int8_t* out) const {
  nibble::unpack_row(codes + row * code_row_bytes, k_int, weight_bits, out);
}

TokenRange quantize_token(const float* x, std::span<const int32_t> columns, int activation_bits,
                          uint8_t* codes) {
  float lo = 0, hi = 0;
  bool finite = true;
  for (const int32_t column : columns) {
    const float value = x[column];
    finite = finite && std::isfinite(value);
    if (value < lo) lo = value;
    if (value > hi) hi = value;
  }
  const int top = (1 << activation_bits) - 1;
  const float levels = static_cast<float>(top);
  float scale = (hi - lo) / levels;
  if (!finite || !std::isfinite(scale)) {
    std::memset(codes, 0, columns.size());
    return {std::numeric_limits<float>::quiet_NaN(), 0};
  }
  if (scale == 0) {
    lo = -1;
    hi = 1;
    scale = (hi - lo) / levels;
  }
  const int32_t zero = static_cast<int32_t>(std::nearbyint(-lo / scale));
  for (size_t j = 0; j < columns.size(); ++j) {
    const int32_t code = static_cast<int32_t>(std::nearbyint(x[columns[j]] / scale)) + zero;
    codes[j] = static_cast<uint8_t>(code < 0 ? 0 : code > top ? top : code);
  }
  return {scale, zero};
}

Layout read_layout(const PackedLinear& linear) {
  Layout layout;
  layout.n = linear.out_features;
  layout.k = linear.in_features;
  layout.weight_bits = static_cast<int>(linear.parameter("weight_bits", 0));
  layout.activation_bits = static_cast<int>(linear.parameter("activation_bits", 0));
  layout.outlier_columns = values_of<int32_t>(*linear.find("outlier_columns"));
  layout.k_int = layout.k - layout.outliers();
  layout.codes = reinterpret_cast<const uint8_t*>(linear.find("codes")->raw());
  layout.code_row_bytes = packed_row_bytes(layout.k_int, layout.weight_bits);
  layout.scales = values_of<float>(*linear.find("scales"));
  layout.outlier_weights = values_of<uint16_t>(*linear.find("outlier_weights"));
  if (const Tensor* bias = linear.find("bias")) {
    layout.bias = values_of<float>(*bias);
  } else {
    layout.bias.assign(static_cast<size_t>(layout.n), 0.0f);
  }
  layout.integer_columns.reserve(static_cast<size_t>(layout.k_int));
  size_t next = 0;
  for (int32_t column = 0; column < layout.k; ++column) {
    if (next < layout.outlier_columns.size() && layout.outlier_columns[next] == column) {
      ++next;
    } else {
      layout.integer_columns.push_back(column);
    }
  }
  return layout;
}

}  // namespace nibble::quik

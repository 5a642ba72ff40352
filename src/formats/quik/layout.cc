#include "formats/quik/layout.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace nibble::quik {
namespace {

// Tensors of a mapped file may stand at any address, hence the copy.
template <typename T>
std::vector<T> values_of(const Tensor& tensor) {
  std::vector<T> values(static_cast<size_t>(tensor.elements()));
  if (!values.empty()) std::memcpy(values.data(), tensor.raw(), values.size() * sizeof(T));
  return values;
}

int8_t signed_nibble(uint8_t bits) { return static_cast<int8_t>(static_cast<int8_t>(bits << 4) >> 4); }

}  // namespace

int64_t packed_row_bytes(int64_t k_int, int weight_bits) {
  return weight_bits == 4 ? (k_int + 1) / 2 : k_int;
}

void pack_row(const int8_t* codes, int64_t k_int, int weight_bits, uint8_t* packed) {
  if (weight_bits == 8) {
    std::memcpy(packed, codes, static_cast<size_t>(k_int));
    return;
  }
  for (int64_t j = 0; j < k_int; j += 2) {
    const int low = codes[j] & 0xf;
    const int high = j + 1 < k_int ? codes[j + 1] & 0xf : 0;
    packed[j / 2] = static_cast<uint8_t>(low | (high << 4));
  }
}

void Layout::unpack_row(int64_t row, int8_t* out) const {
  const uint8_t* packed = codes + row * code_row_bytes;
  if (weight_bits == 8) {
    std::memcpy(out, packed, static_cast<size_t>(k_int));
    return;
  }
  for (int64_t j = 0; j < k_int; ++j) {
    out[j] = signed_nibble(static_cast<uint8_t>(packed[j / 2] >> (j % 2 * 4)));
  }
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

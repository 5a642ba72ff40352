#include "formats/quik/cuda/device_weights.h"

#include "base/error.h"

namespace nibble::quik_cuda {

DeviceWeights::DeviceWeights(std::span<const PackedLinear* const> linears)
    : DeviceWeights(quik::read_layout(*linears.front()), pack_for_few_tokens(linears)) {}

DeviceWeights::DeviceWeights(const quik::Layout& first, const FewTokensPacked& packed)
    : k_(static_cast<int>(first.k)),
      activation_bits_(first.activation_bits),
      weights_(packed.weights),
      operand_(weights_.operand()),
      words_(group_int_a8_cuda::uploaded(column_words(k_, first.outlier_columns))),
      outlier_columns_(group_int_a8_cuda::uploaded(first.outlier_columns)),
      places_(group_int_a8_cuda::uploaded(packed.column_places)) {}

DeviceWeights::DeviceWeights(const DeviceWeights& other)
    : k_(other.k_),
      activation_bits_(other.activation_bits_),
      weights_(other.weights_),
      operand_(weights_.operand()),
      words_(other.words_.clone()),
      outlier_columns_(other.outlier_columns_.clone()),
      places_(other.places_.clone()) {}

Columns DeviceWeights::columns() const {
  return {.k = k_,
          .outliers = outliers(),
          .words = words_.as<uint32_t>(),
          .outlier_columns = outlier_columns_.as<int32_t>()};
}

size_t DeviceWeights::bytes() const {
  return weights_.bytes() + words_.bytes() + outlier_columns_.bytes() + places_.bytes();
}

size_t device_weight_bytes(const PackedLinear& linear) {
  const int64_t outliers = linear.parameter("outlier_columns", 0);
  const group_int_a8_cuda::FewTokensShape shape = {
      .n = linear.out_features,
      .columns = linear.in_features - outliers,
      .outliers = outliers,
      .weight_bits = static_cast<int>(linear.parameter("weight_bits", 0))};
  return static_cast<size_t>(shape.bytes() + 8 * linear.out_features + 8 * linear.in_features);
}

std::string device_weight_refusal(const PackedLinear& linear) {
  if (linear.in_features <= group_int_a8_cuda::kMaximumColumns) return "";
  return format_text("{} columns are more than {}", linear.in_features, group_int_a8_cuda::kMaximumColumns);
}

}  // namespace nibble::quik_cuda

#include "formats/quik/cuda/device_weights.h"

#include "base/error.h"
#include "formats/quik/cuda/few_tokens_layout.h"
#include "formats/quik/layout.h"

namespace nibble::quik_cuda {
namespace {

template <typename T>
cuda::Buffer uploaded(const std::vector<T>& values) {
  if (values.empty()) return {};
  cuda::Buffer buffer(sizeof(T) * values.size());
  buffer.upload(values.data(), sizeof(T) * values.size());
  return buffer;
}

}  // namespace

DeviceWeights::DeviceWeights(std::span<const PackedLinear* const> linears) {
  const quik::Layout first = quik::read_layout(*linears.front());
  k_ = static_cast<int>(first.k);
  activation_bits_ = first.activation_bits;
  const FewTokensPacked all = pack_for_few_tokens(linears);
  const group_int_a8_cuda::FewTokensWeights& packed = all.weights;
  operand_.form = packed.form;
  operand_.shape = packed.shape;
  slots_ = uploaded(packed.slots);
  row_scales_ = uploaded(packed.row_scales);
  code_sums_ = uploaded(packed.code_sums);
  bias_ = uploaded(packed.bias);
  words_ = uploaded(column_words(k_, first.outlier_columns));
  outlier_columns_ = uploaded(first.outlier_columns);
  places_ = uploaded(all.column_places);
  point();
}

DeviceWeights::DeviceWeights(const DeviceWeights& other)
    : k_(other.k_),
      activation_bits_(other.activation_bits_),
      operand_(other.operand_),
      slots_(other.slots_.clone()),
      row_scales_(other.row_scales_.clone()),
      code_sums_(other.code_sums_.clone()),
      bias_(other.bias_.clone()),
      words_(other.words_.clone()),
      outlier_columns_(other.outlier_columns_.clone()),
      places_(other.places_.clone()) {
  point();
}

void DeviceWeights::point() {
  operand_.slots = slots_.as<uint8_t>();
  operand_.row_scales = row_scales_.as<float>();
  operand_.code_sums = code_sums_.as<int32_t>();
  operand_.bias = bias_.bytes() > 0 ? bias_.as<float>() : nullptr;
}

Columns DeviceWeights::columns() const {
  return {.k = k_,
          .outliers = outliers(),
          .words = words_.as<uint32_t>(),
          .outlier_columns = outlier_columns_.as<int32_t>()};
}

size_t DeviceWeights::bytes() const {
  size_t total = 0;
  for (const cuda::Buffer* buffer :
       {&slots_, &row_scales_, &code_sums_, &bias_, &words_, &outlier_columns_, &places_}) {
    total += buffer->bytes();
  }
  return total;
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

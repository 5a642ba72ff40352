#include "formats/group_int_a8/layout.h"

#include <algorithm>
#include <cstring>

#include "base/half.h"

namespace nibble::group_int_a8 {
namespace {

// Tensors of a mapped file may stand at any address, hence the copy.
template <typename T>
std::vector<T> values_of(const Tensor& tensor) {
  std::vector<T> values(static_cast<size_t>(tensor.elements()));
  if (!values.empty()) std::memcpy(values.data(), tensor.raw(), values.size() * sizeof(T));
  return values;
}

int8_t signed_nibble(uint8_t bits) { return static_cast<int8_t>(static_cast<int8_t>(bits << 4) >> 4); }

void read_scales(const PackedLinear& linear, Layout* layout) {
  if (layout->scale_kind == ScaleKind::kFloat) {
    const Tensor& scales = *linear.find("scales");
    layout->f16_scales = scales.dtype() == DType::kF16;
    if (!layout->f16_scales) {
      layout->scales = values_of<float>(scales);
      return;
    }
    for (const uint16_t half : values_of<uint16_t>(scales)) layout->scales.push_back(f16_to_float(half));
    return;
  }
  const Tensor& multipliers = *linear.find("multipliers");
  if (layout->scale_kind == ScaleKind::kInteger) {
    layout->multipliers = values_of<uint16_t>(multipliers);
    const auto amplifier = static_cast<float>(linear.parameter("amplifier", 1));
    layout->row_scales.assign(static_cast<size_t>(layout->n), 1.0f / amplifier);
  } else {
    const std::vector<uint8_t> bytes = values_of<uint8_t>(multipliers);
    layout->multipliers.assign(bytes.begin(), bytes.end());
    layout->row_scales = values_of<float>(*linear.find("row_scales"));
  }
  for (int64_t i = 0; i < layout->n * layout->groups; ++i) {
    layout->scales.push_back(layout->row_scales[i / layout->groups] *
                             static_cast<float>(layout->multipliers[i]));
  }
}

}  // namespace

int64_t group_count(int64_t columns, int64_t group_size) {
  return group_size == 0 ? 1 : columns / group_size + (columns % group_size != 0);
}

int64_t packed_row_bytes(int64_t k, int weight_bits) { return weight_bits == 4 ? (k + 1) / 2 : k; }

void pack_row(const int8_t* codes, int64_t k, int weight_bits, uint8_t* packed) {
  if (weight_bits == 8) {
    std::memcpy(packed, codes, static_cast<size_t>(k));
    return;
  }
  for (int64_t j = 0; j < k; j += 2) {
    const int low = codes[j] & 0xf;
    const int high = j + 1 < k ? codes[j + 1] & 0xf : 0;
    packed[j / 2] = static_cast<uint8_t>(low | (high << 4));
  }
}

void Layout::unpack_row(int64_t row, int8_t* out) const {
  const uint8_t* packed = codes + row * code_row_bytes;
  if (weight_bits == 8) {
    std::memcpy(out, packed, static_cast<size_t>(k));
    return;
  }
  for (int64_t j = 0; j < k; ++j) {
    out[j] = signed_nibble(static_cast<uint8_t>(packed[j / 2] >> (j % 2 * 4)));
  }
}

Layout read_layout(const PackedLinear& linear) {
  Layout layout;
  layout.n = linear.out_features;
  layout.k = linear.in_features;
  layout.weight_bits = static_cast<int>(linear.parameter("weight_bits", 0));
  const int64_t group_size = linear.parameter("group_size", 0);
  layout.group_size = group_size == 0 ? layout.k : std::min(group_size, layout.k);
  layout.groups = group_count(layout.k, layout.group_size);
  layout.scale_kind = static_cast<ScaleKind>(linear.parameter("scale_kind", 0));
  layout.codes = reinterpret_cast<const uint8_t*>(linear.find("codes")->raw());
  layout.code_row_bytes = packed_row_bytes(layout.k, layout.weight_bits);
  read_scales(linear, &layout);
  if (const Tensor* scale = linear.find("activation_scale")) {
    layout.activation_scale = values_of<float>(*scale).front();
  }
  if (const Tensor* bias = linear.find("bias")) {
    layout.bias = values_of<float>(*bias);
  } else {
    layout.bias.assign(static_cast<size_t>(layout.n), 0.0f);
  }
  return layout;
}

}  // namespace nibble::group_int_a8

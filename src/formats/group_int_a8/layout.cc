#include "formats/group_int_a8/layout.h"

#include <algorithm>
#include <cstring>

#include "base/half.h"
#include "formats/signed_codes.h"

namespace nibble::group_int_a8 {
namespace {

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

void Layout::unpack_row(int64_t row, int8_t* out) const {
  nibble::unpack_row(codes + row * code_row_bytes, k, weight_bits, out);
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

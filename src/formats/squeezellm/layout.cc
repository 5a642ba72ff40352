#include "formats/squeezellm/layout.h"

#include <algorithm>

#include "base/half.h"
#include "formats/format.h"
#include "formats/group_int/layout.h"

namespace nibble {

SqueezellmLayout squeezellm_layout(const PackedLinear& linear) {
  SqueezellmLayout layout;
  layout.out_features = linear.out_features;
  layout.in_features = linear.in_features;
  layout.bits = static_cast<int>(linear.parameter("weight_bits", 0));
  layout.row_bytes = group_int_row_bytes(linear.in_features, layout.bits);
  layout.codes = linear.find("codes")->data<uint8_t>();
  const Tensor& codebooks = *linear.find("codebooks");
  const bool f16 = codebooks.dtype() == DType::kF16;
  if (f16) {
    layout.codebooks_f16 = codebooks.data<uint16_t>();
  } else {
    layout.codebooks_f32 = codebooks.data<float>();
  }
  if (const Tensor* offsets = linear.find("sparse_offsets")) {
    layout.sparse_offsets = offsets->data<uint32_t>();
    layout.sparse_columns = linear.find("sparse_columns")->data<uint16_t>();
    const Tensor& values = *linear.find("sparse_values");
    if (f16) {
      layout.sparse_values_f16 = values.data<uint16_t>();
    } else {
      layout.sparse_values_f32 = values.data<float>();
    }
  }
  if (const Tensor* bias = linear.find("bias")) layout.bias = bias->data<float>();
  return layout;
}

void squeezellm_dequantize_row(const SqueezellmLayout& layout, int64_t row, float* weight) {
  const int levels = 1 << layout.bits;
  float table[16];
  for (int i = 0; i < levels; ++i) {
    table[i] = layout.codebooks_f16 != nullptr ? f16_to_float(layout.codebooks_f16[row * levels + i])
                                               : layout.codebooks_f32[row * levels + i];
  }
  // A slice at a time through a small buffer, each starting at a whole byte.
  uint8_t codes[1024];
  const uint8_t* packed = layout.codes + row * layout.row_bytes;
  for (int64_t first = 0; first < layout.in_features; first += 1024) {
    const int64_t count = std::min<int64_t>(1024, layout.in_features - first);
    code_stream_unpack(packed + first * layout.bits / 8, count, layout.bits, codes);
    for (int64_t j = 0; j < count; ++j) weight[first + j] = table[codes[j]];
  }
  if (layout.sparse_offsets == nullptr) return;
  for (uint32_t i = layout.sparse_offsets[row]; i < layout.sparse_offsets[row + 1]; ++i) {
    weight[layout.sparse_columns[i]] += layout.sparse_values_f16 != nullptr
                                            ? f16_to_float(layout.sparse_values_f16[i])
                                            : layout.sparse_values_f32[i];
  }
}

}  // namespace nibble

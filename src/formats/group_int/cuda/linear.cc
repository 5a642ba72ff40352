#include "formats/group_int/cuda/linear.h"

#include "formats/group_int/layout.h"

namespace nibble::group_int_cuda {
namespace {

cuda::Buffer uploaded(const void* data, int64_t bytes) {
  cuda::Buffer buffer(static_cast<size_t>(bytes));
  buffer.upload(data, static_cast<size_t>(bytes));
  return buffer;
}

}  // namespace

DeviceCodes::DeviceCodes(const PackedLinear& linear) {
  const GroupIntLayout layout = group_int_layout(linear);
  const int64_t groups = layout.out_features * layout.groups;
  weights_.symmetric_zero = layout.symmetric_zero;
  weights_.k = static_cast<int>(layout.in_features);
  weights_.bits = layout.bits;
  weights_.group_size = static_cast<int>(layout.group_size);
  weights_.groups = static_cast<int>(layout.groups);
  weights_.row_bytes = layout.row_bytes;
  codes_ = uploaded(layout.codes, layout.out_features * layout.row_bytes);
  weights_.codes = codes_.as<uint8_t>();
  if (layout.scales_f16 != nullptr) {
    scales_ = uploaded(layout.scales_f16, 2 * groups);
    weights_.scales_f16 = scales_.as<__half>();
  } else {
    scales_ = uploaded(layout.scales_f32, 4 * groups);
    weights_.scales_f32 = scales_.as<float>();
  }
  if (layout.zeros_u8 != nullptr) {
    zeros_ = uploaded(layout.zeros_u8, groups);
    weights_.zeros_u8 = zeros_.as<uint8_t>();
  }
  if (layout.zeros_f32 != nullptr) {
    zeros_ = uploaded(layout.zeros_f32, 4 * groups);
    weights_.zeros_f32 = zeros_.as<float>();
  }
}

}  // namespace nibble::group_int_cuda

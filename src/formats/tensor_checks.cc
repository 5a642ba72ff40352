#include "formats/tensor_checks.h"

#include <algorithm>
#include <cmath>

namespace nibble {

const Tensor* check_tensor(const PackedLinear& linear, const char* suffix, bool required,
                           std::initializer_list<DType> types, const Shape& shape) {
  const Tensor* tensor = linear.find(suffix);
  if (tensor == nullptr) {
    if (required) fail("tensor {}.{} is missing (format {})", linear.name, suffix, linear.format->name);
    return nullptr;
  }
  if (std::find(types.begin(), types.end(), tensor->dtype()) == types.end()) {
    std::string expected;
    for (const DType type : types)
      expected += (expected.empty() ? "" : " or ") + std::string(dtype_name(type));
    fail("tensor {}.{} has type {}, expected {}", linear.name, suffix, dtype_name(tensor->dtype()), expected);
  }
  if (tensor->shape() != shape) {
    fail("tensor {}.{} has shape {}, expected {}", linear.name, suffix, to_string(tensor->shape()),
         to_string(shape));
  }
  return tensor;
}

void check_finite(const PackedLinear& linear, const char* suffix, const Tensor& tensor) {
  const bool f16 = tensor.dtype() == DType::kF16;
  if (!f16 && tensor.dtype() != DType::kF32) return;
  for (int64_t i = 0; i < tensor.elements(); ++i) {
    const bool finite =
        f16 ? (tensor.data<uint16_t>()[i] & 0x7c00u) != 0x7c00u : std::isfinite(tensor.data<float>()[i]);
    if (finite) continue;
    fail("tensor {}.{} is not finite at element {}", linear.name, suffix, i);
  }
}

void check_no_other_tensors(const PackedLinear& linear, std::initializer_list<std::string_view> suffixes) {
  for (const auto& [suffix, tensor] : linear.tensors) {
    if (std::find(suffixes.begin(), suffixes.end(), suffix) != suffixes.end()) continue;
    fail("tensor {}.{} of shape {} is not part of format {}", linear.name, suffix, to_string(tensor.shape()),
         linear.format->name);
  }
}

}  // namespace nibble

#include "formats/tensor_checks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/half.h"

namespace nibble {
namespace {

std::string names_of(std::initializer_list<DType> types) {
  std::string names;
  for (const DType type : types) names += (names.empty() ? "" : " or ") + std::string(dtype_name(type));
  return names;
}

bool is_one_of(DType type, std::initializer_list<DType> types) {
  return std::find(types.begin(), types.end(), type) != types.end();
}

}  // namespace

void check_features(const PackedLinear& linear) {
  const int64_t n = linear.out_features, k = linear.in_features;
  if (n < 1 || k < 1 || n > kMaxFeatures || k > kMaxFeatures) {
    fail("{}: a linear of {} x {} is out of range (1 to {} each)", linear.name, n, k, kMaxFeatures);
  }
}

void check_no_other_parameters(const PackedLinear& linear, std::initializer_list<std::string_view> keys) {
  for (const auto& [key, value] : linear.parameters) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
    fail("{}: unknown parameter '{}' of format {} (value {})", linear.name, key, linear.format->name, value);
  }
}

const Tensor* check_tensor(const PackedLinear& linear, const char* suffix, bool required,
                           std::initializer_list<DType> types, const Shape& shape) {
  const Tensor* tensor = linear.find(suffix);
  if (tensor == nullptr) {
    if (required) fail("tensor {}.{} is missing (format {})", linear.name, suffix, linear.format->name);
    return nullptr;
  }
  if (!is_one_of(tensor->dtype(), types)) {
    fail("tensor {}.{} has type {}, expected {}", linear.name, suffix, dtype_name(tensor->dtype()),
         names_of(types));
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

void check_bias(const PackedLinear& linear) {
  if (const Tensor* bias = check_tensor(linear, "bias", false, {DType::kF32}, {linear.out_features}))
    check_finite(linear, "bias", *bias);
}

void check_no_other_tensors(const PackedLinear& linear, std::initializer_list<std::string_view> suffixes) {
  for (const auto& [suffix, tensor] : linear.tensors) {
    if (std::find(suffixes.begin(), suffixes.end(), suffix) != suffixes.end()) continue;
    fail("tensor {}.{} of shape {} is not part of format {}", linear.name, suffix, to_string(tensor.shape()),
         linear.format->name);
  }
}

const Tensor& require_tensor(const PackedLinear& linear, const char* suffix,
                             std::initializer_list<DType> types, const Shape& shape) {
  const Tensor* tensor = linear.find(suffix);
  if (tensor == nullptr)
    fail("{}.{}: missing (expected {} {})", linear.name, suffix, names_of(types), to_string(shape));
  if (!is_one_of(tensor->dtype(), types) || tensor->shape() != shape) {
    fail("{}.{}: is {} {}, expected {} {}", linear.name, suffix, dtype_name(tensor->dtype()),
         to_string(tensor->shape()), names_of(types), to_string(shape));
  }
  return *tensor;
}

void require_values(const PackedLinear& linear, const char* suffix, const Tensor& tensor, float lowest,
                    const char* expected) {
  for (int64_t i = 0; i < tensor.elements(); ++i) {
    const float value = tensor.dtype() == DType::kF16 ? f16_to_float(value_at<uint16_t>(tensor, i))
                                                      : value_at<float>(tensor, i);
    if (std::isfinite(value) && value >= lowest) continue;
    fail("{}.{}: value {} is {}, expected {}", linear.name, suffix, i, value, expected);
  }
}

void require_finite(const PackedLinear& linear, const char* suffix, const Tensor& tensor) {
  require_values(linear, suffix, tensor, std::numeric_limits<float>::lowest(), "a finite number");
}

void require_not_negative(const PackedLinear& linear, const char* suffix, const Tensor& tensor) {
  require_values(linear, suffix, tensor, 0, "a finite number that is not negative");
}

}  // namespace nibble

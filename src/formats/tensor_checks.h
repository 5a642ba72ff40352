// What pack() and validate() of the formats check alike: sizes, parameters, and that a tensor is there, with
// its type and shape, and holds numbers that make sense. All throw Error naming the linear or tensor, what it
// is, and what was expected.
#pragma once

#include <cstring>
#include <initializer_list>

#include "formats/format.h"

namespace nibble {

// Keeps every product of sizes far from overflow.
inline constexpr int64_t kMaxFeatures = int64_t{1} << 31;

// That both sizes of the linear are 1 to kMaxFeatures.
void check_features(const PackedLinear& linear);
// That the linear has no parameters but these.
void check_no_other_parameters(const PackedLinear& linear, std::initializer_list<std::string_view> keys);

// The tensor `suffix`, or nullptr where it is not `required` and not there.
const Tensor* check_tensor(const PackedLinear& linear, const char* suffix, bool required,
                           std::initializer_list<DType> types, const Shape& shape);
// F16 and F32 tensors; others pass.
void check_finite(const PackedLinear& linear, const char* suffix, const Tensor& tensor);
// The F32 bias, where there is one.
void check_bias(const PackedLinear& linear);
// That the linear has no tensors but these.
void check_no_other_tensors(const PackedLinear& linear, std::initializer_list<std::string_view> suffixes);

// The same as check_tensor and check_finite for formats whose files may lie at any address; the messages say
// everything that was expected.
const Tensor& require_tensor(const PackedLinear& linear, const char* suffix,
                             std::initializer_list<DType> types, const Shape& shape);
// That the values of an F16 or F32 tensor are finite and at least `lowest`; `expected` says so in words.
void require_values(const PackedLinear& linear, const char* suffix, const Tensor& tensor, float lowest,
                    const char* expected);
void require_finite(const PackedLinear& linear, const char* suffix, const Tensor& tensor);
void require_not_negative(const PackedLinear& linear, const char* suffix, const Tensor& tensor);

// An element of a tensor at any address.
template <typename T>
T value_at(const Tensor& tensor, int64_t index) {
  T value;
  std::memcpy(&value, tensor.raw() + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

}  // namespace nibble

// What validate() of the formats checks alike: that a tensor is there, with its type and shape, and that its
// numbers are finite. All throw Error naming the tensor, what it is, and what was expected.
#pragma once

#include <initializer_list>

#include "formats/format.h"

namespace nibble {

// The tensor `suffix`, or nullptr where it is not `required` and not there.
const Tensor* check_tensor(const PackedLinear& linear, const char* suffix, bool required,
                           std::initializer_list<DType> types, const Shape& shape);
// F16 and F32 tensors; others pass.
void check_finite(const PackedLinear& linear, const char* suffix, const Tensor& tensor);
// That the linear has no tensors but these.
void check_no_other_tensors(const PackedLinear& linear, std::initializer_list<std::string_view> suffixes);

}  // namespace nibble

// dense: layout, validation and unpacking; see README.md.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "formats/dense/dense.h"
#include "formats/dense/kernels.h"

namespace nibble {
namespace {

bool is_float_weight(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

const Tensor& weight_of(const PackedLinear& linear) { return linear.tensors.at("weight"); }

PackedLinear pack(const QuantizedWeight&, const std::string& name) {
  fail("{}: format 'dense' holds floats and cannot hold quantized codes", name);
}

void validate(const PackedLinear& linear) {
  const Tensor* weight = linear.find("weight");
  if (weight == nullptr) fail("{}: tensor '{}.weight' is missing", linear.name, linear.name);
  const Shape expected = {linear.out_features, linear.in_features};
  if (weight->shape() != expected) {
    fail("{}: tensor '{}.weight' has shape {}, expected {}", linear.name, linear.name,
         to_string(weight->shape()), to_string(expected));
  }
  if (!is_float_weight(weight->dtype())) {
    fail("{}: tensor '{}.weight' has type {}, expected F32, F16 or BF16", linear.name, linear.name,
         dtype_name(weight->dtype()));
  }
  for (const auto& [suffix, tensor] : linear.tensors) {
    if (suffix == "weight") continue;
    if (suffix != "bias")
      fail("{}: tensor '{}.{}' is not part of format 'dense'", linear.name, linear.name, suffix);
    if (tensor.dtype() != DType::kF32 || tensor.shape() != Shape{linear.out_features}) {
      fail("{}: tensor '{}.bias' is {} {}, expected F32 [{}]", linear.name, linear.name,
           dtype_name(tensor.dtype()), to_string(tensor.shape()), linear.out_features);
    }
  }
  for (const auto& [key, value] : linear.parameters) {
    fail("{}: format 'dense' has no parameter '{}'", linear.name, key);
  }
}

void dequantize_rows(const PackedLinear& linear, int64_t first, int64_t count, float* weight) {
  NIBBLE_CHECK(first >= 0 && count >= 0 && first + count <= linear.out_features);
  const Tensor& tensor = weight_of(linear);
  const int64_t offset = first * linear.in_features, elements = count * linear.in_features;
  const FloatKernels& kernels = float_kernels();
  switch (tensor.dtype()) {
    case DType::kF16:
      return kernels.f16_to_f32(tensor.data<uint16_t>() + offset, elements, weight);
    case DType::kBF16:
      return kernels.bf16_to_f32(tensor.data<uint16_t>() + offset, elements, weight);
    default:
      std::copy_n(tensor.data<float>() + offset, elements, weight);
  }
}

std::string arithmetic(const PackedLinear& linear) {
  switch (weight_of(linear).dtype()) {
    case DType::kF16:
      return "f16xf32";
    case DType::kBF16:
      return "bf16xf32";
    default:
      return "f32xf32";
  }
}

int code_bits(const PackedLinear& linear) {
  return static_cast<int>(8 * dtype_size(weight_of(linear).dtype()));
}

bool can_fuse(const PackedLinear& a, const PackedLinear& b) { return a.in_features == b.in_features; }

constexpr const LinearKernel* kKernels[] = {&kDenseAvx512, &kDenseAvx2, &kDenseReference};

}  // namespace

const LinearFormat kDenseFormat = {
    .name = "dense",
    .description = "floating point, F32, F16 or BF16",
    .pack = pack,
    .validate = validate,
    .dequantize_rows = dequantize_rows,
    .arithmetic = arithmetic,
    .code_bits = code_bits,
    .multiply_adds = one_multiply_add_per_weight,
    .can_fuse = can_fuse,
    .kernels = kKernels,
};

PackedLinear make_dense_linear(const std::string& name, Tensor weight, Tensor bias) {
  if (weight.rank() != 2)
    fail("{}: a linear's weight has 2 axes, not shape {}", name, to_string(weight.shape()));
  PackedLinear linear;
  linear.format = &kDenseFormat;
  linear.name = name;
  linear.out_features = weight.dim(0);
  linear.in_features = weight.dim(1);
  linear.tensors.emplace("weight", std::move(weight));
  if (bias.defined()) linear.tensors.emplace("bias", std::move(bias));
  validate(linear);
  return linear;
}

PackedLinear make_dense_linear(const std::string& name, const float* weight, int64_t out_features,
                               int64_t in_features, const float* bias) {
  Tensor tensor = Tensor::empty(DType::kF32, {out_features, in_features});
  std::copy_n(weight, tensor.elements(), tensor.mutable_data<float>());
  Tensor bias_tensor;
  if (bias != nullptr) {
    bias_tensor = Tensor::empty(DType::kF32, {out_features});
    std::copy_n(bias, out_features, bias_tensor.mutable_data<float>());
  }
  return make_dense_linear(name, std::move(tensor), std::move(bias_tensor));
}

PackedLinear make_dense_linear_16bit(const std::string& name, DType dtype, const float* weight,
                                     int64_t out_features, int64_t in_features, const float* bias) {
  NIBBLE_CHECK(dtype == DType::kF16 || dtype == DType::kBF16);
  Tensor tensor = Tensor::empty(dtype, {out_features, in_features});
  const FloatKernels& kernels = float_kernels();
  (dtype == DType::kF16 ? kernels.f32_to_f16 : kernels.f32_to_bf16)(weight, tensor.elements(),
                                                                    tensor.mutable_data<uint16_t>());
  Tensor bias_tensor;
  if (bias != nullptr) {
    bias_tensor = Tensor::empty(DType::kF32, {out_features});
    std::copy_n(bias, out_features, bias_tensor.mutable_data<float>());
  }
  return make_dense_linear(name, std::move(tensor), std::move(bias_tensor));
}

PackedLinear to_16_bit(const PackedLinear& source) {
  NIBBLE_CHECK(source.format == &kDenseFormat);
  const Tensor& weight = source.tensors.at("weight");
  if (weight.dtype() != DType::kF32) return source;
  constexpr float kLargestF16 = 65504.0f;
  const std::span<const float> values = weight.values<float>();
  const bool fits =
      std::all_of(values.begin(), values.end(), [](float value) { return std::fabs(value) <= kLargestF16; });
  const Tensor* bias = source.find("bias");
  return make_dense_linear_16bit(source.name, fits ? DType::kF16 : DType::kBF16, values.data(),
                                 source.out_features, source.in_features,
                                 bias != nullptr ? bias->data<float>() : nullptr);
}

}  // namespace nibble

// The quik format: packing, validation and reading of the canonical layout (README.md). Kernels are in their
// own files.
#include "formats/format.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "formats/quik/parts.h"
#include "formats/signed_codes.h"
#include "formats/tensor_checks.h"

namespace nibble {

extern const LinearFormat kQuikFormat;

namespace quik {

extern const LinearKernel kAmxKernel, kAvx512VnniKernel, kAvxVnniKernel, kAvx2Kernel, kReferenceKernel;

std::string arithmetic(const PackedLinear& linear) {
  return format_text("int{}xint{}->int32", linear.parameter("weight_bits", 0),
                     linear.parameter("activation_bits", 0));
}

std::map<int, double> multiply_adds(const PackedLinear& linear) {
  const int64_t outliers = linear.parameter("outlier_columns", 0);
  const double n = static_cast<double>(linear.out_features);
  std::map<int, double> counts = {
      {weight_bits_parameter(linear), n * static_cast<double>(linear.in_features - outliers)}};
  if (outliers > 0) counts.emplace(16, n * static_cast<double>(outliers));
  return counts;
}

bool can_fuse(const PackedLinear& a, const PackedLinear& b) {
  if (a.format != b.format || a.in_features != b.in_features || a.parameters != b.parameters) return false;
  const Tensor& left = *a.find("outlier_columns");
  const Tensor& right = *b.find("outlier_columns");
  return left.bytes() == right.bytes() &&
         (left.bytes() == 0 || std::memcmp(left.raw(), right.raw(), left.bytes()) == 0);
}

namespace {

PackedLinear pack(const QuantizedWeight& weight, const std::string& name) {
  check_packable(weight, name, kQuikFormat.name);
  PackedLinear packed = pack_all_but_codes(kQuikFormat, weight, name);
  const int64_t n = weight.out_features, k_int = weight.integer_columns();
  const int64_t row_bytes = packed_row_bytes(k_int, weight.weight_bits);
  Tensor codes = Tensor::empty(weight.weight_bits == 4 ? DType::kU8 : DType::kI8, {n, row_bytes});
  for (int64_t row = 0; row < n; ++row) {
    pack_row(weight.codes.data() + row * k_int, k_int, weight.weight_bits,
             reinterpret_cast<uint8_t*>(codes.mutable_raw()) + row * row_bytes);
  }
  packed.tensors.emplace("codes", std::move(codes));
  kQuikFormat.validate(packed);
  return packed;
}

void validate(const PackedLinear& linear) {
  const auto [outliers, k_int, bits] = check_settings(linear);
  const int64_t n = linear.out_features;
  const Tensor& codes = require_tensor(linear, "codes", {bits == 4 ? DType::kU8 : DType::kI8},
                                       {n, packed_row_bytes(k_int, bits)});
  const Tensor& scales = require_tensor(linear, "scales", {DType::kF32}, {n});
  const Tensor& columns = require_tensor(linear, "outlier_columns", {DType::kI32}, {outliers});
  const Tensor& outlier_weights = require_tensor(linear, "outlier_weights", {DType::kF16}, {n, outliers});
  const bool has_bias = linear.find("bias") != nullptr;
  if (has_bias) require_finite(linear, "bias", require_tensor(linear, "bias", {DType::kF32}, {n}));
  for (const auto& [suffix, tensor] : linear.tensors) {
    static constexpr std::array kKnown = {"codes", "scales", "outlier_columns", "outlier_weights", "bias"};
    if (std::find(kKnown.begin(), kKnown.end(), suffix) == kKnown.end()) {
      fail("{}.{}: a tensor that the quik format does not have", linear.name, suffix);
    }
  }
  check_unused_nibbles(codes, k_int, bits, linear.name);
  require_not_negative(linear, "scales", scales);
  int64_t previous = -1;
  for (int64_t i = 0; i < outliers; ++i) {
    const int32_t column = value_at<int32_t>(columns, i);
    check_outlier_column(linear, i, column, previous);
    previous = column;
  }
  require_finite(linear, "outlier_weights", outlier_weights);
}

void dequantize_rows(const PackedLinear& linear, int64_t first, int64_t count, float* weight) {
  const Layout layout = read_layout(linear);
  dequantize_layout_rows(layout, layout.integer_columns, first, count, weight);
}

// Fastest first.
constexpr std::array kKernels = {&kAmxKernel, &kAvx512VnniKernel, &kAvxVnniKernel, &kAvx2Kernel,
                                 &kReferenceKernel};

}  // namespace
}  // namespace quik

const LinearFormat kQuikFormat = {
    .name = "quik",
    .description = "integer products of 4 or 8 bit weights and activations, outlier columns in 16-bit floats",
    .pack = quik::pack,
    .validate = quik::validate,
    .dequantize_rows = quik::dequantize_rows,
    .arithmetic = quik::arithmetic,
    .code_bits = weight_bits_parameter,
    .multiply_adds = quik::multiply_adds,
    .can_fuse = quik::can_fuse,
    .kernels = quik::kKernels,
};

}  // namespace nibble

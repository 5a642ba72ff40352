// The group_int_a8 format: packing, validation and reading of the canonical layout (README.md). Kernels are
// in their own files.
#include "formats/format.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/half.h"
#include "formats/group_int_a8/layout.h"
#include "formats/signed_codes.h"
#include "formats/tensor_checks.h"

namespace nibble {

extern const LinearFormat kGroupIntA8Format;

namespace group_int_a8 {

extern const LinearKernel kAvx512VnniKernel, kAvxVnniKernel, kAvx2Kernel, kReferenceKernel;

namespace {

constexpr const char* kFormatName = "group_int_a8";
constexpr int64_t kMaxAmplifier = int64_t{1} << 24;
constexpr int64_t kMaxSum = (int64_t{1} << 31) - 1;
constexpr int64_t kTopActivation = 127;

template <typename... Args>
void require(bool condition, const std::string& name, fmt::format_string<Args...> text, Args&&... args) {
  if (condition) return;
  fail("{}: {}", name, format_arguments(text, fmt::make_format_args(args...)));
}

bool is_power_of_two(int64_t value) { return value > 0 && (value & (value - 1)) == 0; }

ScaleKind kind_of(const QuantizedWeight& weight) {
  if (weight.scale_multipliers.empty()) return ScaleKind::kFloat;
  return weight.scale_amplifier != 0 ? ScaleKind::kInteger : ScaleKind::kTwoLevel;
}

void check_sizes(const QuantizedWeight& weight, const std::string& name) {
  const int64_t n = weight.out_features, k = weight.in_features;
  require(n >= 1 && k >= 1 && n <= kMaxFeatures && k <= kMaxFeatures, name,
          "{} cannot hold a linear of {} x {}", kFormatName, n, k);
  require(weight.weight_bits == 4 || weight.weight_bits == 8, name, "{} holds weights of 4 or 8 bits, not {}",
          kFormatName, weight.weight_bits);
  require(weight.activation_bits == 8, name, "{} multiplies by 8-bit activations, not by {}-bit ones",
          kFormatName, weight.activation_bits);
  require(weight.group_size >= 0 && weight.group_size % kStepColumns == 0, name,
          "{} has groups of 0 (the whole row) or a multiple of {} columns, not of {}", kFormatName,
          kStepColumns, weight.group_size);
  require(weight.zeros.empty(), name, "{} weights are symmetric: they have no zero points", kFormatName);
  require(weight.codebooks.empty(), name, "{} has no codebooks", kFormatName);
  require(weight.sparse.empty(), name, "{} has no sparse part", kFormatName);
  require(weight.outlier_columns.empty(), name, "{} has no outlier columns, but the weight has {}",
          kFormatName, weight.outlier_columns.size());
  const int64_t groups = group_count(k, weight.group_size);
  require(static_cast<int64_t>(weight.codes.size()) == n * k, name,
          "{} codes given for {} rows of {} columns", weight.codes.size(), n, k);
  require(static_cast<int64_t>(weight.scales.size()) == n * groups, name,
          "{} scales given for {} rows of {} groups", weight.scales.size(), n, groups);
  require(weight.bias.empty() || static_cast<int64_t>(weight.bias.size()) == n, name,
          "a bias of {} values given for {} rows", weight.bias.size(), n);
  require(std::isfinite(weight.activation_scale) && weight.activation_scale >= 0, name,
          "the activation scale is {}, expected a finite number of at least 0", weight.activation_scale);
  if (weight.scale_multipliers.empty()) return;
  require(weight.scale_multipliers.size() == weight.scales.size(), name,
          "{} integer scales given for {} rows of {} groups", weight.scale_multipliers.size(), n, groups);
  require(static_cast<int64_t>(weight.row_scales.size()) == n, name, "{} row scales given for {} rows",
          weight.row_scales.size(), n);
}

Tensor pack_codes(const QuantizedWeight& weight, const std::string& name) {
  const int64_t n = weight.out_features, k = weight.in_features;
  const int limit = 1 << (weight.weight_bits - 1);
  for (size_t i = 0; i < weight.codes.size(); ++i) {
    const int code = weight.codes[i];
    require(code >= -limit && code < limit, name, "code {} at row {}, column {} does not fit into {} bits",
            code, static_cast<int64_t>(i) / k, static_cast<int64_t>(i) % k, weight.weight_bits);
  }
  const int64_t row_bytes = packed_row_bytes(k, weight.weight_bits);
  Tensor codes = Tensor::empty(weight.weight_bits == 4 ? DType::kU8 : DType::kI8, {n, row_bytes});
  for (int64_t row = 0; row < n; ++row) {
    pack_row(weight.codes.data() + row * k, k, weight.weight_bits,
             reinterpret_cast<uint8_t*>(codes.mutable_raw()) + row * row_bytes);
  }
  return codes;
}

// F16 where that changes no scale. Quantizers round to it before they choose codes.
Tensor pack_scales(const std::vector<float>& scales, const Shape& shape) {
  const bool exact = std::all_of(scales.begin(), scales.end(),
                                 [](float scale) { return f16_to_float(float_to_f16(scale)) == scale; });
  if (!exact) return Tensor::copy_of<float>(shape, scales);
  Tensor tensor = Tensor::empty(DType::kF16, shape);
  std::transform(scales.begin(), scales.end(), tensor.mutable_data<uint16_t>(), float_to_f16);
  return tensor;
}

template <typename T>
Tensor pack_multipliers(const QuantizedWeight& weight, const Shape& shape, const std::string& name) {
  Tensor tensor = Tensor::empty(DTypeOf<T>::value, shape);
  constexpr int32_t kHighest = std::numeric_limits<T>::max();
  for (size_t i = 0; i < weight.scale_multipliers.size(); ++i) {
    const int32_t value = weight.scale_multipliers[i];
    require(value >= 0 && value <= kHighest, name, "integer scale {} is {}, expected 0 to {}", i, value,
            kHighest);
    tensor.mutable_data<T>()[i] = static_cast<T>(value);
  }
  return tensor;
}

PackedLinear pack(const QuantizedWeight& weight, const std::string& name) {
  check_sizes(weight, name);
  const int64_t n = weight.out_features;
  const Shape per_group = {n, group_count(weight.in_features, weight.group_size)};
  const ScaleKind kind = kind_of(weight);
  PackedLinear packed;
  packed.format = &kGroupIntA8Format;
  packed.name = name;
  packed.out_features = n;
  packed.in_features = weight.in_features;
  packed.parameters = {{"weight_bits", weight.weight_bits},
                       {"activation_bits", 8},
                       {"group_size", weight.group_size},
                       {"scale_kind", static_cast<int64_t>(kind)}};
  packed.tensors.emplace("codes", pack_codes(weight, name));
  switch (kind) {
    case ScaleKind::kFloat:
      packed.tensors.emplace("scales", pack_scales(weight.scales, per_group));
      break;
    case ScaleKind::kInteger:
      packed.parameters["amplifier"] = weight.scale_amplifier;
      packed.tensors.emplace("multipliers", pack_multipliers<uint16_t>(weight, per_group, name));
      break;
    case ScaleKind::kTwoLevel:
      packed.tensors.emplace("multipliers", pack_multipliers<uint8_t>(weight, per_group, name));
      packed.tensors.emplace("row_scales", Tensor::copy_of<float>({n}, weight.row_scales));
      break;
  }
  if (weight.activation_scale > 0) {
    const float scale = weight.activation_scale;
    packed.tensors.emplace("activation_scale", Tensor::copy_of<float>({1}, {&scale, 1}));
  }
  if (!weight.bias.empty()) packed.tensors.emplace("bias", Tensor::copy_of<float>({n}, weight.bias));
  kGroupIntA8Format.validate(packed);
  return packed;
}

// --- validation

void check_parameters(const PackedLinear& linear) {
  const int64_t kind = linear.parameter("scale_kind", 0);
  const auto check = [&](const char* key, bool good, const char* expected) {
    if (good) return;
    const auto found = linear.parameters.find(key);
    fail("{}: parameter {} is {}, expected {} (format {})", linear.name, key,
         found == linear.parameters.end() ? "missing" : std::to_string(found->second), expected, kFormatName);
  };
  const int64_t bits = linear.parameter("weight_bits", 0), group_size = linear.parameter("group_size", -1);
  check("weight_bits", bits == 4 || bits == 8, "4 or 8");
  check("activation_bits", linear.parameter("activation_bits", 0) == 8, "8");
  check("group_size", group_size >= 0 && group_size % kStepColumns == 0, "0 or a multiple of 32");
  check("scale_kind", kind >= 0 && kind <= 2, "0, 1 or 2");
  const int64_t amplifier = linear.parameter("amplifier", 0);
  if (kind == static_cast<int64_t>(ScaleKind::kInteger)) {
    check("amplifier", is_power_of_two(amplifier) && amplifier <= kMaxAmplifier,
          "a power of two from 1 to 16777216");
  }
  for (const auto& [key, value] : linear.parameters) {
    static constexpr std::array<std::string_view, 4> kKnown = {"weight_bits", "activation_bits", "group_size",
                                                               "scale_kind"};
    if (std::find(kKnown.begin(), kKnown.end(), key) != kKnown.end()) continue;
    if (key == "amplifier" && kind == static_cast<int64_t>(ScaleKind::kInteger)) continue;
    fail("{}: unknown parameter '{}' = {} (format {}, scale_kind {})", linear.name, key, value, kFormatName,
         kind);
  }
}

// Refuses a row whose INT32 sum of integer scales times group sums could overflow. The bound from the widths
// alone settles most linears without a look at their codes.
void check_sums(const PackedLinear& linear) {
  const Layout layout = read_layout(linear);
  std::vector<int8_t> codes;
  for (int64_t row = 0; row < layout.n; ++row) {
    const uint16_t* multipliers = layout.multipliers.data() + row * layout.groups;
    const auto columns_of = [&](int64_t group) {
      return std::min(layout.group_size, layout.k - group * layout.group_size);
    };
    // Sums of at most 2^31 columns times 2^16 fit 64 bits with the factors below.
    int64_t bound = 0;
    for (int64_t group = 0; group < layout.groups; ++group) bound += multipliers[group] * columns_of(group);
    const int64_t per_code = kTopActivation * (int64_t{1} << (layout.weight_bits - 1));
    if (bound <= kMaxSum / per_code) continue;
    codes.resize(static_cast<size_t>(layout.k));
    layout.unpack_row(row, codes.data());
    int64_t largest = 0;
    for (int64_t group = 0; group < layout.groups; ++group) {
      int64_t magnitudes = 0;
      for (int64_t j = 0; j < columns_of(group); ++j) {
        magnitudes += std::abs(int{codes[static_cast<size_t>(group * layout.group_size + j)]});
      }
      largest += multipliers[group] * magnitudes;
    }
    if (largest <= kMaxSum / kTopActivation) continue;
    fail(
        "{}: row {} could reach a sum of {} times 127, but its integer scales and codes must keep 32-bit "
        "sums "
        "below 2^31; use a smaller amplifier",
        linear.name, row, largest);
  }
}

void validate(const PackedLinear& linear) {
  const int64_t n = linear.out_features, k = linear.in_features;
  check_features(linear);
  check_parameters(linear);
  const int bits = static_cast<int>(linear.parameter("weight_bits", 0));
  const int64_t group_size = linear.parameter("group_size", 0);
  const int64_t columns = group_size == 0 ? k : std::min(group_size, k);
  if (columns > kMaxGroupColumns) {
    fail("{}: a group of {} columns; {} sums at most {} products in 32 bits", linear.name, columns,
         kFormatName, kMaxGroupColumns);
  }
  const int64_t groups = group_count(k, group_size), row_bytes = packed_row_bytes(k, bits);
  const Tensor& codes =
      require_tensor(linear, "codes", {bits == 4 ? DType::kU8 : DType::kI8}, {n, row_bytes});

  std::vector<std::string_view> known = {"codes", "activation_scale", "bias"};
  const auto kind = static_cast<ScaleKind>(linear.parameter("scale_kind", 0));
  if (kind == ScaleKind::kFloat) {
    require_not_negative(linear, "scales",
                         require_tensor(linear, "scales", {DType::kF16, DType::kF32}, {n, groups}));
    known.push_back("scales");
  } else {
    const bool wide = kind == ScaleKind::kInteger;
    require_tensor(linear, "multipliers", {wide ? DType::kU16 : DType::kU8}, {n, groups});
    known.push_back("multipliers");
    if (!wide) {
      require_not_negative(linear, "row_scales", require_tensor(linear, "row_scales", {DType::kF32}, {n}));
      known.push_back("row_scales");
    }
  }
  if (linear.find("activation_scale") != nullptr) {
    const Tensor& scale = require_tensor(linear, "activation_scale", {DType::kF32}, {1});
    require_values(linear, "activation_scale", scale, std::numeric_limits<float>::min(),
                   "a positive normal number");
  }
  if (linear.find("bias") != nullptr) {
    require_finite(linear, "bias", require_tensor(linear, "bias", {DType::kF32}, {n}));
  }
  for (const auto& [suffix, tensor] : linear.tensors) {
    if (std::find(known.begin(), known.end(), suffix) == known.end()) {
      fail("{}.{}: a tensor that the {} format does not have with scale_kind {}", linear.name, suffix,
           kFormatName, linear.parameter("scale_kind", 0));
    }
  }
  check_unused_nibbles(codes, k, bits, linear.name);
  if (kind != ScaleKind::kFloat) check_sums(linear);
}

// --- reading

void dequantize_rows(const PackedLinear& linear, int64_t first, int64_t count, float* weight) {
  NIBBLE_CHECK(first >= 0 && count >= 0 && count <= linear.out_features - first);
  const Layout layout = read_layout(linear);
  std::vector<int8_t> codes(static_cast<size_t>(layout.k));
  for (int64_t row = first; row < first + count; ++row) {
    layout.unpack_row(row, codes.data());
    const float* scales = layout.scales.data() + row * layout.groups;
    float* out = weight + (row - first) * layout.k;
    for (int64_t j = 0; j < layout.k; ++j) {
      out[j] = static_cast<float>(codes[static_cast<size_t>(j)]) * scales[j / layout.group_size];
    }
  }
}

std::string arithmetic(const PackedLinear& linear) {
  return format_text("int{}xint8->int32", weight_bits_parameter(linear));
}

bool can_fuse(const PackedLinear& a, const PackedLinear& b) {
  if (a.format != b.format || a.in_features != b.in_features) return false;
  for (const char* key : {"weight_bits", "group_size", "scale_kind"}) {
    if (a.parameter(key, 0) != b.parameter(key, 0)) return false;
  }
  const Tensor *left = a.find("activation_scale"), *right = b.find("activation_scale");
  if ((left == nullptr) != (right == nullptr)) return false;
  if (left != nullptr && value_at<float>(*left, 0) != value_at<float>(*right, 0)) return false;
  const Tensor *one = a.find("scales"), *other = b.find("scales");
  return one == nullptr || one->dtype() == other->dtype();
}

// Fastest first.
constexpr std::array kKernels = {&kAvx512VnniKernel, &kAvxVnniKernel, &kAvx2Kernel, &kReferenceKernel};

}  // namespace
}  // namespace group_int_a8

const LinearFormat kGroupIntA8Format = {
    .name = group_int_a8::kFormatName,
    .description =
        "integer products of 4 or 8 bit weights in groups and 8-bit activations, static or per token",
    .pack = group_int_a8::pack,
    .validate = group_int_a8::validate,
    .dequantize_rows = group_int_a8::dequantize_rows,
    .arithmetic = group_int_a8::arithmetic,
    .code_bits = weight_bits_parameter,
    .multiply_adds = one_multiply_add_per_weight,
    .can_fuse = group_int_a8::can_fuse,
    .kernels = group_int_a8::kKernels,
    .f16_scales = true,
    .static_activations = true,
    .integer_scales = true,
};

}  // namespace nibble

// group_int: packing, validation and unpacking of the canonical layout; see README.md.
#include <algorithm>
#include <array>
#include <cmath>

#include "base/half.h"
#include "formats/group_int/kernels.h"
#include "formats/group_int/layout.h"
#include "formats/tensor_checks.h"

namespace nibble {

extern const LinearFormat kGroupIntFormat;

namespace {

bool holds_bits(int64_t bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

int64_t group_count(int64_t columns, int64_t group_size) {
  return group_size == 0 ? 1 : columns / group_size + (columns % group_size != 0);
}

// Whether F16 holds all scales without losing precision silently: exactly, or rounded within its normal
// range.
bool fits_f16(const std::vector<float>& scales) {
  return std::all_of(scales.begin(), scales.end(), [](float scale) {
    const float magnitude = std::fabs(scale);
    return (magnitude >= 0x1p-14f && magnitude <= 65504.0f) || f16_to_float(float_to_f16(scale)) == scale;
  });
}

// Stored codes are unsigned: q + 2^(bits - 1).
void pack_row(const int8_t* codes, int64_t columns, int bits, const std::string& name, int64_t row,
              std::vector<uint8_t>& stored, uint8_t* packed) {
  const int offset = 1 << (bits - 1);
  stored.resize(static_cast<size_t>(columns));
  for (int64_t j = 0; j < columns; ++j) {
    const int code = codes[j] + offset;
    if (code < 0 || code >= 2 * offset) {
      fail("{}: code {} at row {}, column {} does not fit {} bits (expected {} to {})", name, codes[j], row,
           j, bits, -offset, offset - 1);
    }
    stored[static_cast<size_t>(j)] = static_cast<uint8_t>(code);
  }
  code_stream_pack(stored.data(), columns, bits, packed);
}

Tensor pack_scales(const std::vector<float>& scales, const Shape& shape, const std::string& name) {
  for (const float scale : scales) {
    if (!std::isfinite(scale)) fail("{}: a scale is {}, expected a finite number", name, scale);
  }
  if (!fits_f16(scales)) return Tensor::copy_of<float>(shape, scales);
  Tensor tensor = Tensor::empty(DType::kF16, shape);
  std::transform(scales.begin(), scales.end(), tensor.mutable_data<uint16_t>(), float_to_f16);
  return tensor;
}

Tensor pack_zeros(const std::vector<float>& zeros, int bits, const Shape& shape, const std::string& name) {
  std::vector<float> stored(zeros.size());
  bool integers = true;
  for (size_t i = 0; i < zeros.size(); ++i) {
    stored[i] = zeros[i] + static_cast<float>(1 << (bits - 1));
    if (!std::isfinite(stored[i])) fail("{}: a zero point is {}, expected a finite number", name, zeros[i]);
    integers = integers && stored[i] >= 0.0f && stored[i] <= 255.0f && stored[i] == std::floor(stored[i]);
  }
  if (!integers) return Tensor::copy_of<float>(shape, stored);
  Tensor tensor = Tensor::empty(DType::kU8, shape);
  std::transform(stored.begin(), stored.end(), tensor.mutable_data<uint8_t>(),
                 [](float zero) { return static_cast<uint8_t>(zero); });
  return tensor;
}

PackedLinear pack(const QuantizedWeight& weight, const std::string& name) {
  const int64_t n = weight.out_features, k = weight.in_features;
  NIBBLE_CHECK(n > 0 && k > 0 && n <= kMaxFeatures && k <= kMaxFeatures);
  if (!holds_bits(weight.weight_bits)) {
    fail("{}: format group_int holds codes of 2, 3, 4 or 8 bits, not {}", name, weight.weight_bits);
  }
  if (weight.activation_bits != 16) {
    fail("{}: format group_int multiplies by float activations, not by {}-bit ones", name,
         weight.activation_bits);
  }
  if (!weight.outlier_columns.empty()) {
    fail("{}: format group_int has no outlier columns, but the weight has {}", name,
         weight.outlier_columns.size());
  }
  if (!weight.codebooks.empty() || !weight.sparse.empty()) {
    fail("{}: format group_int has neither codebooks nor sparse values", name);
  }
  if (weight.group_size < 0) fail("{}: group_size {} is negative", name, weight.group_size);
  const int64_t groups = group_count(k, weight.group_size);
  NIBBLE_CHECK(static_cast<int64_t>(weight.codes.size()) == n * k);
  NIBBLE_CHECK(static_cast<int64_t>(weight.scales.size()) == n * groups);
  NIBBLE_CHECK(weight.zeros.empty() || static_cast<int64_t>(weight.zeros.size()) == n * groups);
  NIBBLE_CHECK(weight.bias.empty() || static_cast<int64_t>(weight.bias.size()) == n);

  PackedLinear linear;
  linear.format = &kGroupIntFormat;
  linear.name = name;
  linear.out_features = n;
  linear.in_features = k;
  linear.parameters = {{"weight_bits", weight.weight_bits}, {"group_size", weight.group_size}};

  const int64_t row_bytes = group_int_row_bytes(k, weight.weight_bits);
  Tensor codes = Tensor::empty(DType::kU8, {n, row_bytes});
  std::vector<uint8_t> stored;
  for (int64_t row = 0; row < n; ++row) {
    pack_row(weight.codes.data() + row * k, k, weight.weight_bits, name, row, stored,
             codes.mutable_data<uint8_t>() + row * row_bytes);
  }
  linear.tensors["codes"] = std::move(codes);
  linear.tensors["scales"] = pack_scales(weight.scales, {n, groups}, name);
  if (!weight.zeros.empty()) {
    linear.tensors["zeros"] = pack_zeros(weight.zeros, weight.weight_bits, {n, groups}, name);
  }
  if (!weight.bias.empty()) linear.tensors["bias"] = Tensor::copy_of<float>({n}, weight.bias);
  return linear;
}

void validate(const PackedLinear& linear) {
  const int64_t n = linear.out_features, k = linear.in_features;
  check_features(linear);
  check_no_other_parameters(linear, {"weight_bits", "group_size"});
  const int64_t bits = linear.parameter("weight_bits", 0);
  if (!holds_bits(bits))
    fail("{}: weight_bits is {}, expected 2, 3, 4 or 8 (format group_int)", linear.name, bits);
  const int64_t group_size = linear.parameter("group_size", 0);
  if (group_size < 0)
    fail("{}: group_size is {}, expected 0 or more (format group_int)", linear.name, group_size);
  check_no_other_tensors(linear, {"codes", "scales", "zeros", "bias"});

  const int64_t groups = group_count(k, group_size);
  const int64_t row_bytes = group_int_row_bytes(k, static_cast<int>(bits));
  const Tensor& codes = *check_tensor(linear, "codes", true, {DType::kU8}, {n, row_bytes});
  check_finite(linear, "scales",
               *check_tensor(linear, "scales", true, {DType::kF16, DType::kF32}, {n, groups}));
  if (const Tensor* zeros = check_tensor(linear, "zeros", false, {DType::kU8, DType::kF32}, {n, groups})) {
    check_finite(linear, "zeros", *zeros);
  }
  check_bias(linear);

  code_stream_check_padding(linear, codes, k, static_cast<int>(bits));
}

void dequantize_rows(const PackedLinear& linear, int64_t first, int64_t count, float* weight) {
  NIBBLE_CHECK(first >= 0 && count >= 0 && count <= linear.out_features - first);
  const GroupIntLayout layout = group_int_layout(linear);
  for (int64_t row = 0; row < count; ++row) {
    group_int_dequantize_row(layout, first + row, weight + row * layout.in_features);
  }
}

std::string arithmetic(const PackedLinear& linear) {
  return format_text("int{}xf32->f32", weight_bits_parameter(linear));
}

bool can_fuse(const PackedLinear& a, const PackedLinear& b) {
  const auto type_of = [](const PackedLinear& linear, const char* suffix) {
    const Tensor* tensor = linear.find(suffix);
    return tensor == nullptr ? DType::kBool : tensor->dtype();
  };
  return a.format == b.format && a.in_features == b.in_features && a.parameters == b.parameters &&
         type_of(a, "scales") == type_of(b, "scales") && type_of(a, "zeros") == type_of(b, "zeros");
}

constexpr std::array kKernels = {&kGroupIntAmx, &kGroupIntAvx512Vbmi, &kGroupIntAvx512, &kGroupIntAvx2,
                                 &kGroupIntReference};

}  // namespace

const LinearFormat kGroupIntFormat = {
    .name = "group_int",
    .description = "integer weights of 2, 3, 4 or 8 bits with a scale per row or group, float activations",
    .pack = pack,
    .validate = validate,
    .dequantize_rows = dequantize_rows,
    .arithmetic = arithmetic,
    .code_bits = weight_bits_parameter,
    .multiply_adds = one_multiply_add_per_weight,
    .can_fuse = can_fuse,
    .kernels = kKernels,
    .f16_scales = true,
};

}  // namespace nibble

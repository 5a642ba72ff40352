// The quik format: packing, validation and reading of the canonical layout (README.md). Kernels are in their
// own files.
#include "formats/format.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>

#include "base/error.h"
#include "base/half.h"
#include "formats/quik/layout.h"
#include "formats/signed_codes.h"

namespace nibble {

extern const LinearFormat kQuikFormat;

namespace quik {

extern const LinearKernel kAmxKernel, kAvx512VnniKernel, kAvxVnniKernel, kAvx2Kernel, kReferenceKernel;

std::string arithmetic(const PackedLinear& linear) {
  return format_text("int{}xint{}->int32", linear.parameter("weight_bits", 0),
                     linear.parameter("activation_bits", 0));
}

int code_bits(const PackedLinear& linear) { return static_cast<int>(linear.parameter("weight_bits", 0)); }

std::map<int, double> multiply_adds(const PackedLinear& linear) {
  const int64_t outliers = linear.parameter("outlier_columns", 0);
  const double n = static_cast<double>(linear.out_features);
  std::map<int, double> counts = {
      {code_bits(linear), n * static_cast<double>(linear.in_features - outliers)}};
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

bool known_bits(int64_t bits) { return bits == 4 || bits == 8; }

void require(bool condition, const std::string& name, const std::string& what) {
  if (!condition) fail("{}: {}", name, what);
}

PackedLinear pack(const QuantizedWeight& weight, const std::string& name) {
  const int64_t n = weight.out_features, k = weight.in_features;
  const int64_t outliers = static_cast<int64_t>(weight.outlier_columns.size());
  const int64_t k_int = k - outliers;
  require(n >= 1 && k >= 1, name, format_text("quik cannot hold a linear of {} x {}", n, k));
  require(known_bits(weight.weight_bits), name,
          format_text("quik holds weights of 4 or 8 bits, not {}", weight.weight_bits));
  require(known_bits(weight.activation_bits), name,
          format_text("quik holds activations of 4 or 8 bits, not {}", weight.activation_bits));
  require(weight.group_size == 0, name,
          format_text("quik has one scale per row, not groups of {}", weight.group_size));
  require(weight.codebooks.empty() && weight.sparse.empty(), name,
          "quik has neither codebooks nor sparse values");
  require(weight.zeros.empty(), name, "quik weights are symmetric: they have no zero points");
  const size_t integers = static_cast<size_t>(n * std::max<int64_t>(k_int, 0));
  require(weight.codes.size() == integers, name,
          format_text("{} codes given for {} rows of {} integer columns", weight.codes.size(), n, k_int));
  require(weight.scales.size() == static_cast<size_t>(n), name,
          format_text("{} scales given for {} rows", weight.scales.size(), n));
  require(weight.outlier_weights.size() == static_cast<size_t>(n * outliers), name,
          format_text("{} outlier weights given for {} rows of {} columns", weight.outlier_weights.size(), n,
                      outliers));
  require(weight.bias.empty() || weight.bias.size() == static_cast<size_t>(n), name,
          format_text("a bias of {} values given for {} rows", weight.bias.size(), n));
  const int limit = 1 << (weight.weight_bits - 1);
  for (const int8_t code : weight.codes) {
    if (code < -limit || code >= limit) {
      fail("{}: code {} does not fit into {} bits", name, static_cast<int>(code), weight.weight_bits);
    }
  }

  PackedLinear packed;
  packed.format = &kQuikFormat;
  packed.name = name;
  packed.out_features = n;
  packed.in_features = k;
  packed.parameters = {{"weight_bits", weight.weight_bits},
                       {"activation_bits", weight.activation_bits},
                       {"outlier_columns", outliers}};
  const int64_t row_bytes = packed_row_bytes(k_int, weight.weight_bits);
  Tensor codes = Tensor::empty(weight.weight_bits == 4 ? DType::kU8 : DType::kI8, {n, row_bytes});
  for (int64_t row = 0; row < n; ++row) {
    pack_row(weight.codes.data() + row * k_int, k_int, weight.weight_bits,
             reinterpret_cast<uint8_t*>(codes.mutable_raw()) + row * row_bytes);
  }
  Tensor halves = Tensor::empty(DType::kF16, {n, outliers});
  for (int64_t i = 0; i < n * outliers; ++i) {
    const uint16_t half = float_to_f16(weight.outlier_weights[i]);
    if (!std::isfinite(f16_to_float(half))) {
      fail("{}: outlier weight {} is no finite 16-bit float", name, weight.outlier_weights[i]);
    }
    halves.mutable_data<uint16_t>()[i] = half;
  }
  packed.tensors.emplace("codes", std::move(codes));
  packed.tensors.emplace("scales", Tensor::copy_of<float>({n}, weight.scales));
  packed.tensors.emplace("outlier_columns", Tensor::copy_of<int32_t>({outliers}, weight.outlier_columns));
  packed.tensors.emplace("outlier_weights", std::move(halves));
  if (!weight.bias.empty()) packed.tensors.emplace("bias", Tensor::copy_of<float>({n}, weight.bias));
  kQuikFormat.validate(packed);
  return packed;
}

const Tensor& require_tensor(const PackedLinear& linear, const std::string& suffix, DType dtype,
                             const Shape& shape) {
  const Tensor* tensor = linear.find(suffix);
  if (tensor == nullptr) {
    fail("{}.{}: missing (expected {} {})", linear.name, suffix, dtype_name(dtype), to_string(shape));
  }
  if (tensor->dtype() != dtype || tensor->shape() != shape) {
    fail("{}.{}: is {} {}, expected {} {}", linear.name, suffix, dtype_name(tensor->dtype()),
         to_string(tensor->shape()), dtype_name(dtype), to_string(shape));
  }
  return *tensor;
}

template <typename T>
T value_at(const Tensor& tensor, int64_t index) {
  T value;
  std::memcpy(&value, tensor.raw() + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

void require_finite(const PackedLinear& linear, const std::string& suffix, const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.elements(); ++i) {
    const float value = tensor.dtype() == DType::kF16 ? f16_to_float(value_at<uint16_t>(tensor, i))
                                                      : value_at<float>(tensor, i);
    if (!std::isfinite(value))
      fail("{}.{}: value {} is {}, expected a finite number", linear.name, suffix, i, value);
  }
}

void validate(const PackedLinear& linear) {
  const int64_t n = linear.out_features, k = linear.in_features;
  if (n < 1 || k < 1) fail("{}: a linear of {} x {} is not possible", linear.name, n, k);
  for (const char* key : {"weight_bits", "activation_bits"}) {
    const int64_t bits = linear.parameter(key, -1);
    if (!known_bits(bits)) fail("{}: parameter {} is {}, expected 4 or 8", linear.name, key, bits);
  }
  const int64_t outliers = linear.parameter("outlier_columns", -1);
  if (outliers < 0 || outliers > k / 2) {
    fail(
        "{}: parameter outlier_columns is {}, expected 0 to {} (at least half of the {} columns stay "
        "integer)",
        linear.name, outliers, k / 2, k);
  }
  const int64_t k_int = k - outliers;
  if (k_int > kMaxIntegerColumns) {
    fail("{}: {} integer columns, but quik sums at most {} products in 32 bits", linear.name, k_int,
         kMaxIntegerColumns);
  }
  for (const auto& [key, value] : linear.parameters) {
    static constexpr std::array kKnown = {"weight_bits", "activation_bits", "outlier_columns"};
    if (std::find(kKnown.begin(), kKnown.end(), key) == kKnown.end()) {
      fail("{}: unknown quik parameter {} = {}", linear.name, key, value);
    }
  }

  const bool nibbles = linear.parameter("weight_bits", 0) == 4;
  const int64_t row_bytes = packed_row_bytes(k_int, nibbles ? 4 : 8);
  const Tensor& codes = require_tensor(linear, "codes", nibbles ? DType::kU8 : DType::kI8, {n, row_bytes});
  const Tensor& scales = require_tensor(linear, "scales", DType::kF32, {n});
  const Tensor& columns = require_tensor(linear, "outlier_columns", DType::kI32, {outliers});
  const Tensor& outlier_weights = require_tensor(linear, "outlier_weights", DType::kF16, {n, outliers});
  const bool has_bias = linear.find("bias") != nullptr;
  if (has_bias) require_finite(linear, "bias", require_tensor(linear, "bias", DType::kF32, {n}));
  for (const auto& [suffix, tensor] : linear.tensors) {
    static constexpr std::array kKnown = {"codes", "scales", "outlier_columns", "outlier_weights", "bias"};
    if (std::find(kKnown.begin(), kKnown.end(), suffix) == kKnown.end()) {
      fail("{}.{}: a tensor that the quik format does not have", linear.name, suffix);
    }
  }

  if (nibbles && k_int % 2 != 0) {
    for (int64_t row = 0; row < n; ++row) {
      if (value_at<uint8_t>(codes, row * row_bytes + row_bytes - 1) >> 4 != 0) {
        fail("{}.codes: the unused high nibble at the end of row {} is not 0", linear.name, row);
      }
    }
  }
  for (int64_t row = 0; row < n; ++row) {
    const float scale = value_at<float>(scales, row);
    if (!(std::isfinite(scale) && scale >= 0)) {
      fail("{}.scales: value {} is {}, expected a finite number that is not negative", linear.name, row,
           scale);
    }
  }
  int64_t previous = -1;
  for (int64_t i = 0; i < outliers; ++i) {
    const int32_t column = value_at<int32_t>(columns, i);
    if (column <= previous || column >= k) {
      fail("{}.outlier_columns: value {} is {}, expected ascending column numbers from 0 to {}", linear.name,
           i, column, k - 1);
    }
    previous = column;
  }
  require_finite(linear, "outlier_weights", outlier_weights);
}

void dequantize_rows(const PackedLinear& linear, int64_t first, int64_t count, float* weight) {
  NIBBLE_CHECK(first >= 0 && count >= 0 && first + count <= linear.out_features);
  const Layout layout = read_layout(linear);
  std::vector<int8_t> row_codes(static_cast<size_t>(layout.k_int));
  for (int64_t row = first; row < first + count; ++row) {
    layout.unpack_row(row, row_codes.data());
    float* out = weight + (row - first) * layout.k;
    for (int64_t j = 0; j < layout.k_int; ++j) {
      out[layout.integer_columns[j]] = static_cast<float>(row_codes[j]) * layout.scales[row];
    }
    for (int64_t o = 0; o < layout.outliers(); ++o) {
      out[layout.outlier_columns[o]] = f16_to_float(layout.outlier_weights[row * layout.outliers() + o]);
    }
  }
}

void dequantize(const PackedLinear& linear, float* weight) {
  dequantize_rows(linear, 0, linear.out_features, weight);
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
    .dequantize = quik::dequantize,
    .dequantize_rows = quik::dequantize_rows,
    .arithmetic = quik::arithmetic,
    .code_bits = quik::code_bits,
    .multiply_adds = quik::multiply_adds,
    .can_fuse = quik::can_fuse,
    .kernels = quik::kKernels,
};

}  // namespace nibble

#include "formats/quik/parts.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "base/half.h"
#include "formats/tensor_checks.h"

namespace nibble::quik {
namespace {

bool known_bits(int64_t bits) { return bits == 4 || bits == 8; }

Tensor pack_outlier_weights(const QuantizedWeight& weight, const std::string& name) {
  const auto outliers = static_cast<int64_t>(weight.outlier_columns.size());
  Tensor halves = Tensor::empty(DType::kF16, {weight.out_features, outliers});
  for (int64_t i = 0; i < weight.out_features * outliers; ++i) {
    const uint16_t half = float_to_f16(weight.outlier_weights[i]);
    if (!std::isfinite(f16_to_float(half))) {
      fail("{}: outlier weight {} is no finite 16-bit float", name, weight.outlier_weights[i]);
    }
    halves.mutable_data<uint16_t>()[i] = half;
  }
  return halves;
}

}  // namespace

void require(bool condition, const std::string& name, const std::string& what) {
  if (!condition) fail("{}: {}", name, what);
}

void check_packable(const QuantizedWeight& weight, const std::string& name, const char* format) {
  const int64_t n = weight.out_features, k = weight.in_features;
  const auto outliers = static_cast<int64_t>(weight.outlier_columns.size());
  const int64_t k_int = k - outliers;
  require(n >= 1 && k >= 1, name, format_text("{} cannot hold a linear of {} x {}", format, n, k));
  require(known_bits(weight.weight_bits), name,
          format_text("{} holds weights of 4 or 8 bits, not {}", format, weight.weight_bits));
  require(known_bits(weight.activation_bits), name,
          format_text("{} holds activations of 4 or 8 bits, not {}", format, weight.activation_bits));
  require(weight.group_size == 0, name,
          format_text("{} has one scale per row, not groups of {}", format, weight.group_size));
  require(weight.codebooks.empty() && weight.sparse.empty(), name,
          format_text("{} has neither codebooks nor sparse values", format));
  require(weight.zeros.empty(), name,
          format_text("{} weights are symmetric: they have no zero points", format));
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
}

PackedLinear pack_all_but_codes(const LinearFormat& format, const QuantizedWeight& weight,
                                const std::string& name) {
  const auto outliers = static_cast<int64_t>(weight.outlier_columns.size());
  PackedLinear packed;
  packed.format = &format;
  packed.name = name;
  packed.out_features = weight.out_features;
  packed.in_features = weight.in_features;
  packed.parameters = {{"weight_bits", weight.weight_bits},
                       {"activation_bits", weight.activation_bits},
                       {"outlier_columns", outliers}};
  packed.tensors.emplace("scales", Tensor::copy_of<float>({weight.out_features}, weight.scales));
  packed.tensors.emplace("outlier_columns", Tensor::copy_of<int32_t>({outliers}, weight.outlier_columns));
  packed.tensors.emplace("outlier_weights", pack_outlier_weights(weight, name));
  if (!weight.bias.empty())
    packed.tensors.emplace("bias", Tensor::copy_of<float>({weight.out_features}, weight.bias));
  return packed;
}

Settings check_settings(const PackedLinear& linear) {
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
    fail("{}: {} integer columns, but {} sums at most {} products in 32 bits", linear.name, k_int,
         linear.format->name, kMaxIntegerColumns);
  }
  for (const auto& [key, value] : linear.parameters) {
    static constexpr std::array kKnown = {"weight_bits", "activation_bits", "outlier_columns"};
    if (std::find(kKnown.begin(), kKnown.end(), key) == kKnown.end()) {
      fail("{}: unknown {} parameter {} = {}", linear.name, linear.format->name, key, value);
    }
  }
  return {outliers, k_int, static_cast<int>(linear.parameter("weight_bits", 0))};
}

void check_outlier_column(const PackedLinear& linear, int64_t i, int64_t column, int64_t previous) {
  if (column > previous && column < linear.in_features) return;
  fail("{}.outlier_columns: value {} is {}, expected ascending column numbers from 0 to {}", linear.name, i,
       column, linear.in_features - 1);
}

}  // namespace nibble::quik

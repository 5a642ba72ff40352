// The quik_sparse format: packing, validation and reading of the canonical layout (README.md). Kernels are in
// their own files.
#include "formats/format.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "formats/quik/layout.h"
#include "formats/quik_sparse/layout.h"
#include "formats/tensor_checks.h"

namespace nibble {

extern const LinearFormat kQuikSparseFormat;

namespace quik_sparse {

extern const LinearKernel kExpandedAmxKernel, kExpandedAvx512VnniKernel, kExpandedAvxVnniKernel,
    kExpandedAvx2Kernel, kReferenceKernel;

namespace {

bool known_bits(int64_t bits) { return bits == 4 || bits == 8; }

void require(bool condition, const std::string& name, const std::string& what) {
  if (!condition) fail("{}: {}", name, what);
}

// Sizes of what a quantizer handed over.
void check_parts(const QuantizedWeight& weight, const std::string& name) {
  const int64_t n = weight.out_features, k = weight.in_features;
  const auto outliers = static_cast<int64_t>(weight.outlier_columns.size());
  const int64_t k_int = k - outliers;
  require(n >= 1 && k >= 1 && k_int >= 0, name,
          format_text("quik_sparse cannot hold a linear of {} x {}", n, k));
  require(known_bits(weight.weight_bits), name,
          format_text("quik_sparse holds weights of 4 or 8 bits, not {}", weight.weight_bits));
  require(known_bits(weight.activation_bits), name,
          format_text("quik_sparse holds activations of 4 or 8 bits, not {}", weight.activation_bits));
  require(weight.group_size == 0, name,
          format_text("quik_sparse has one scale per row, not groups of {}", weight.group_size));
  require(weight.zeros.empty(), name, "quik_sparse weights are symmetric: they have no zero points");
  require(weight.codebooks.empty() && weight.sparse.empty(), name,
          "quik_sparse holds neither codebooks nor sparse values");
  require(static_cast<int64_t>(weight.mask_order.size()) == k_int, name,
          format_text("a mask order of {} columns given for {} integer columns (quik_sparse holds weights "
                      "that were pruned 2:4)",
                      weight.mask_order.size(), k_int));
  require(weight.codes.size() == static_cast<size_t>(n * k_int), name,
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

// Where the columns of mask_order stand among the integer columns. Checks that they are those.
std::vector<int64_t> code_places(const QuantizedWeight& weight, const std::string& name) {
  std::vector<int64_t> place_of(static_cast<size_t>(weight.in_features), -1);
  int64_t place = 0;
  size_t outlier = 0;
  for (int32_t column = 0; column < weight.in_features; ++column) {
    if (outlier < weight.outlier_columns.size() && weight.outlier_columns[outlier] == column) {
      ++outlier;
    } else {
      place_of[column] = place++;
    }
  }
  require(outlier == weight.outlier_columns.size(), name, "outlier_columns are not ascending column numbers");
  std::vector<int64_t> places;
  for (const int32_t column : weight.mask_order) {
    require(column >= 0 && column < weight.in_features && place_of[column] >= 0, name,
            format_text("the mask order names column {}, which is no integer column or there twice", column));
    places.push_back(place_of[column]);
    place_of[column] = -1;
  }
  return places;
}

PackedLinear pack(const QuantizedWeight& weight, const std::string& name) {
  check_parts(weight, name);
  const int64_t n = weight.out_features, k_int = weight.integer_columns();
  const auto outliers = static_cast<int64_t>(weight.outlier_columns.size());
  const std::vector<int64_t> places = code_places(weight, name);

  PackedLinear packed;
  packed.format = &kQuikSparseFormat;
  packed.name = name;
  packed.out_features = n;
  packed.in_features = weight.in_features;
  packed.parameters = {{"weight_bits", weight.weight_bits},
                       {"activation_bits", weight.activation_bits},
                       {"outlier_columns", outliers}};
  const int64_t row_bytes = code_row_bytes(k_int, weight.weight_bits);
  Tensor codes = Tensor::empty(weight.weight_bits == 4 ? DType::kU8 : DType::kI8, {n, row_bytes});
  Tensor positions = Tensor::empty(DType::kU8, {n, position_row_bytes(k_int)});
  std::vector<int8_t> ordered(static_cast<size_t>(k_int));
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t j = 0; j < k_int; ++j) ordered[j] = weight.codes[row * k_int + places[j]];
    const int64_t full = pack_row(ordered.data(), k_int, weight.weight_bits,
                                  reinterpret_cast<uint8_t*>(codes.mutable_raw()) + row * row_bytes,
                                  positions.mutable_data<uint8_t>() + row * position_row_bytes(k_int));
    if (full >= 0) {
      fail("{}: row {} has more than two codes that are not 0 in group {} of four columns", name, row, full);
    }
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
  packed.tensors.emplace("positions", std::move(positions));
  packed.tensors.emplace("integer_columns", Tensor::copy_of<int32_t>({k_int}, weight.mask_order));
  packed.tensors.emplace("scales", Tensor::copy_of<float>({n}, weight.scales));
  packed.tensors.emplace("outlier_columns", Tensor::copy_of<int32_t>({outliers}, weight.outlier_columns));
  packed.tensors.emplace("outlier_weights", std::move(halves));
  if (!weight.bias.empty()) packed.tensors.emplace("bias", Tensor::copy_of<float>({n}, weight.bias));
  kQuikSparseFormat.validate(packed);
  return packed;
}

template <typename T>
T value_at(const Tensor& tensor, int64_t index) {
  T value;
  std::memcpy(&value, tensor.raw() + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Outlier and integer columns together are every column, once.
void check_columns(const PackedLinear& linear, const Tensor& outliers, const Tensor& integers) {
  std::vector<bool> taken(static_cast<size_t>(linear.in_features));
  int64_t previous = -1;
  for (int64_t i = 0; i < outliers.elements(); ++i) {
    const int32_t column = value_at<int32_t>(outliers, i);
    if (column <= previous || column >= linear.in_features) {
      fail("{}.outlier_columns: value {} is {}, expected ascending column numbers from 0 to {}", linear.name,
           i, column, linear.in_features - 1);
    }
    taken[column] = true;
    previous = column;
  }
  for (int64_t i = 0; i < integers.elements(); ++i) {
    const int32_t column = value_at<int32_t>(integers, i);
    if (column < 0 || column >= linear.in_features || taken[column]) {
      fail(
          "{}.integer_columns: value {} is {}, expected each column from 0 to {} that is no outlier column "
          "once",
          linear.name, i, column, linear.in_features - 1);
    }
    taken[column] = true;
  }
}

void check_positions(const PackedLinear& linear, const Layout& layout) {
  const int64_t row_bytes = position_row_bytes(layout.k_int);
  for (int64_t row = 0; row < layout.n; ++row) {
    for (int64_t group = 0; group < layout.groups; ++group) {
      const Layout::Pair pair = layout.pair(row, group);
      if (pair.indices[0] >= pair.indices[1]) {
        fail("{}.positions: row {}, group {} keeps places {} and {}, expected two of 0 to 3 that ascend",
             linear.name, row, group, pair.indices[0] % kGroup, pair.indices[1] % kGroup);
      }
      for (int i = 0; i < 2; ++i) {
        if (pair.indices[i] >= layout.k_int && pair.codes[i] != 0) {
          fail("{}.codes: row {}, group {} has code {} for a column beyond the last, expected 0", linear.name,
               row, group, pair.codes[i]);
        }
      }
    }
    if (layout.groups % 2 != 0 && layout.positions[(row + 1) * row_bytes - 1] >> 4 != 0) {
      fail("{}.positions: row {} ends with a nonzero nibble beyond its last group", linear.name, row);
    }
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
  if (k_int > quik::kMaxIntegerColumns) {
    fail("{}: {} integer columns, but quik_sparse sums at most {} products in 32 bits", linear.name, k_int,
         quik::kMaxIntegerColumns);
  }
  for (const auto& [key, value] : linear.parameters) {
    static constexpr std::array kKnown = {"weight_bits", "activation_bits", "outlier_columns"};
    if (std::find(kKnown.begin(), kKnown.end(), key) == kKnown.end()) {
      fail("{}: unknown quik_sparse parameter {} = {}", linear.name, key, value);
    }
  }
  check_no_other_tensors(linear, {"codes", "positions", "integer_columns", "scales", "outlier_columns",
                                  "outlier_weights", "bias"});
  const bool nibbles = linear.parameter("weight_bits", 0) == 4;
  check_tensor(linear, "codes", true, {nibbles ? DType::kU8 : DType::kI8},
               {n, code_row_bytes(k_int, nibbles ? 4 : 8)});
  check_tensor(linear, "positions", true, {DType::kU8}, {n, position_row_bytes(k_int)});
  const Tensor& scales = *check_tensor(linear, "scales", true, {DType::kF32}, {n});
  const Tensor& integers = *check_tensor(linear, "integer_columns", true, {DType::kI32}, {k_int});
  const Tensor& columns = *check_tensor(linear, "outlier_columns", true, {DType::kI32}, {outliers});
  const Tensor& outlier_weights =
      *check_tensor(linear, "outlier_weights", true, {DType::kF16}, {n, outliers});
  check_finite(linear, "outlier_weights", outlier_weights);
  if (const Tensor* bias = check_tensor(linear, "bias", false, {DType::kF32}, {n})) {
    check_finite(linear, "bias", *bias);
  }
  for (int64_t row = 0; row < n; ++row) {
    const float scale = value_at<float>(scales, row);
    if (!std::isfinite(scale) || scale < 0) {
      fail("{}.scales: value {} is {}, expected a finite number that is not negative", linear.name, row,
           scale);
    }
  }
  check_columns(linear, columns, integers);
  check_positions(linear, read_layout(linear));
}

void dequantize_rows(const PackedLinear& linear, int64_t first, int64_t count, float* weight) {
  NIBBLE_CHECK(first >= 0 && count >= 0 && first + count <= linear.out_features);
  const Layout layout = read_layout(linear);
  std::vector<int8_t> row_codes(static_cast<size_t>(layout.k_int));
  for (int64_t row = first; row < first + count; ++row) {
    layout.unpack_row(row, row_codes.data());
    float* out = weight + (row - first) * layout.k;
    for (int64_t j = 0; j < layout.k_int; ++j) {
      out[layout.ascending_columns[j]] = static_cast<float>(row_codes[j]) * layout.scales[row];
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
constexpr std::array kKernels = {&kExpandedAmxKernel, &kExpandedAvx512VnniKernel, &kExpandedAvxVnniKernel,
                                 &kExpandedAvx2Kernel, &kReferenceKernel};

}  // namespace
}  // namespace quik_sparse

const LinearFormat kQuikSparseFormat = {
    .name = "quik_sparse",
    .description = "quik with two of every four integer columns pruned (2:4)",
    .pack = quik_sparse::pack,
    .validate = quik_sparse::validate,
    .dequantize = quik_sparse::dequantize,
    .dequantize_rows = quik_sparse::dequantize_rows,
    .arithmetic = quik::arithmetic,
    .code_bits = quik::code_bits,
    .multiply_adds = quik::multiply_adds,
    .can_fuse = quik::can_fuse,
    .kernels = quik_sparse::kKernels,
};

}  // namespace nibble

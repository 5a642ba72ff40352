// The quik_sparse format: packing, validation and reading of the canonical layout (README.md). Kernels are in
// their own files.
#include "formats/format.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "formats/quik/parts.h"
#include "formats/quik_sparse/layout.h"
#include "formats/tensor_checks.h"

namespace nibble {

extern const LinearFormat kQuikSparseFormat;

namespace quik_sparse {

extern const LinearKernel kExpandedAmxKernel, kExpandedAvx512VnniKernel, kExpandedAvxVnniKernel,
    kExpandedAvx2Kernel, kReferenceKernel;

namespace {

using quik::require;

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
  quik::check_packable(weight, name, kQuikSparseFormat.name);
  const int64_t n = weight.out_features, k_int = weight.integer_columns();
  require(k_int >= 0, name,
          format_text("quik_sparse cannot hold a linear of {} x {}", n, weight.in_features));
  require(static_cast<int64_t>(weight.mask_order.size()) == k_int, name,
          format_text("a mask order of {} columns given for {} integer columns (quik_sparse holds weights "
                      "that were pruned 2:4)",
                      weight.mask_order.size(), k_int));
  const std::vector<int64_t> places = code_places(weight, name);

  PackedLinear packed = quik::pack_all_but_codes(kQuikSparseFormat, weight, name);
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
  packed.tensors.emplace("codes", std::move(codes));
  packed.tensors.emplace("positions", std::move(positions));
  packed.tensors.emplace("integer_columns", Tensor::copy_of<int32_t>({k_int}, weight.mask_order));
  kQuikSparseFormat.validate(packed);
  return packed;
}

// Outlier and integer columns together are every column, once.
void check_columns(const PackedLinear& linear, const Tensor& outliers, const Tensor& integers) {
  std::vector<bool> taken(static_cast<size_t>(linear.in_features));
  int64_t previous = -1;
  for (int64_t i = 0; i < outliers.elements(); ++i) {
    const int32_t column = value_at<int32_t>(outliers, i);
    quik::check_outlier_column(linear, i, column, previous);
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
  const auto [outliers, k_int, bits] = quik::check_settings(linear);
  const int64_t n = linear.out_features;
  check_no_other_tensors(linear, {"codes", "positions", "integer_columns", "scales", "outlier_columns",
                                  "outlier_weights", "bias"});
  check_tensor(linear, "codes", true, {bits == 4 ? DType::kU8 : DType::kI8},
               {n, code_row_bytes(k_int, bits)});
  check_tensor(linear, "positions", true, {DType::kU8}, {n, position_row_bytes(k_int)});
  const Tensor& scales = *check_tensor(linear, "scales", true, {DType::kF32}, {n});
  const Tensor& integers = *check_tensor(linear, "integer_columns", true, {DType::kI32}, {k_int});
  const Tensor& columns = *check_tensor(linear, "outlier_columns", true, {DType::kI32}, {outliers});
  const Tensor& outlier_weights =
      *check_tensor(linear, "outlier_weights", true, {DType::kF16}, {n, outliers});
  check_finite(linear, "outlier_weights", outlier_weights);
  check_bias(linear);
  require_not_negative(linear, "scales", scales);
  check_columns(linear, columns, integers);
  check_positions(linear, read_layout(linear));
}

void dequantize_rows(const PackedLinear& linear, int64_t first, int64_t count, float* weight) {
  const Layout layout = read_layout(linear);
  quik::dequantize_layout_rows(layout, layout.ascending_columns, first, count, weight);
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
    .dequantize_rows = quik_sparse::dequantize_rows,
    .arithmetic = quik::arithmetic,
    .code_bits = weight_bits_parameter,
    .multiply_adds = quik::multiply_adds,
    .can_fuse = quik::can_fuse,
    .kernels = quik_sparse::kKernels,
};

}  // namespace nibble

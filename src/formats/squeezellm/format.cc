// squeezellm: packing, validation and unpacking of the canonical layout; see README.md.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/half.h"
#include "formats/group_int/layout.h"
#include "formats/squeezellm/kernels.h"
#include "formats/squeezellm/layout.h"
#include "formats/squeezellm/squeezellm.h"
#include "formats/tensor_checks.h"

namespace nibble {

extern const LinearFormat kSqueezellmFormat;

bool f16_holds_levels(const float* levels, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(levels[i]));
  return std::all_of(levels, levels + count, [&](float level) {
    const float rounded = f16_to_float(float_to_f16(level));
    return std::isfinite(rounded) && std::fabs(rounded - level) <= 0x1p-11f * largest;
  });
}

namespace {

constexpr int64_t kMaxSparseFeatures = int64_t{1} << 16;  // columns are U16

bool holds_bits(int64_t bits) { return bits >= 2 && bits <= 4; }

void require(bool condition, const std::string& name, const std::string& what) {
  if (!condition) fail("{}: {}", name, what);
}

void check_packable(const QuantizedWeight& weight, const std::string& name) {
  const int64_t n = weight.out_features, k = weight.in_features;
  NIBBLE_CHECK(n > 0 && k > 0 && n <= kMaxFeatures && k <= kMaxFeatures);
  require(holds_bits(weight.weight_bits), name,
          format_text("format squeezellm holds codes of 2, 3 or 4 bits, not {}", weight.weight_bits));
  require(weight.activation_bits == 16, name,
          format_text("format squeezellm multiplies by float activations, not by {}-bit ones",
                      weight.activation_bits));
  require(weight.outlier_columns.empty(), name,
          format_text("format squeezellm has no outlier columns, but the weight has {}",
                      weight.outlier_columns.size()));
  require(!weight.codebooks.empty(), name,
          "format squeezellm holds a table of levels per row; a quantizer of uniform grids does not make one "
          "(\"kmeans\" and \"lnq\" do)");
  require(weight.group_size == 0, name,
          format_text("format squeezellm has one table per row, not groups of {}", weight.group_size));
  NIBBLE_CHECK(weight.scales.empty() && weight.zeros.empty());
  NIBBLE_CHECK(static_cast<int64_t>(weight.codes.size()) == n * k);
  NIBBLE_CHECK(static_cast<int64_t>(weight.codebooks.size()) == n << weight.weight_bits);
  NIBBLE_CHECK(weight.bias.empty() || static_cast<int64_t>(weight.bias.size()) == n);
}

void check_sparse(const SparsePart& sparse, int64_t n, int64_t k, const std::string& name) {
  require(k <= kMaxSparseFeatures, name,
          format_text("format squeezellm holds sparse values of at most {} in-features, not {}",
                      kMaxSparseFeatures, k));
  require(
      sparse.columns.size() <= std::numeric_limits<uint32_t>::max(), name,
      format_text("format squeezellm holds fewer than 2^32 sparse values, not {}", sparse.columns.size()));
  NIBBLE_CHECK(static_cast<int64_t>(sparse.row_offsets.size()) == n + 1 && sparse.row_offsets.front() == 0);
  NIBBLE_CHECK(sparse.row_offsets.back() == static_cast<int64_t>(sparse.columns.size()));
  NIBBLE_CHECK(sparse.values.size() == sparse.columns.size());
  for (int64_t row = 0; row < n; ++row) {
    NIBBLE_CHECK(sparse.row_offsets[row] <= sparse.row_offsets[row + 1]);
    for (int64_t i = sparse.row_offsets[row]; i < sparse.row_offsets[row + 1]; ++i) {
      NIBBLE_CHECK(sparse.columns[i] >= 0 && sparse.columns[i] < k);
      NIBBLE_CHECK(i == sparse.row_offsets[row] || sparse.columns[i - 1] < sparse.columns[i]);
    }
  }
}

Tensor pack_codes(const QuantizedWeight& weight, const std::string& name) {
  const int64_t n = weight.out_features, k = weight.in_features;
  const int64_t row_bytes = group_int_row_bytes(k, weight.weight_bits);
  const int levels = 1 << weight.weight_bits;
  Tensor codes = Tensor::empty(DType::kU8, {n, row_bytes});
  std::vector<uint8_t> stored(static_cast<size_t>(k));
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t j = 0; j < k; ++j) {
      const int code = weight.codes[row * k + j];
      if (code < 0 || code >= levels) {
        fail("{}: code {} at row {}, column {} does not fit {} bits (expected 0 to {})", name, code, row, j,
             weight.weight_bits, levels - 1);
      }
      stored[j] = static_cast<uint8_t>(code);
    }
    squeezellm_pack_codes(stored.data(), k, weight.weight_bits,
                          codes.mutable_data<uint8_t>() + row * row_bytes);
  }
  return codes;
}

Tensor pack_floats(const std::vector<float>& values, bool f16, Shape shape) {
  if (!f16) return Tensor::copy_of<float>(std::move(shape), values);
  Tensor tensor = Tensor::empty(DType::kF16, std::move(shape));
  std::transform(values.begin(), values.end(), tensor.mutable_data<uint16_t>(), float_to_f16);
  return tensor;
}

bool fits_f16(const QuantizedWeight& weight) {
  const int64_t levels = int64_t{1} << weight.weight_bits;
  for (int64_t row = 0; row < weight.out_features; ++row) {
    if (!f16_holds_levels(weight.codebooks.data() + row * levels, levels)) return false;
  }
  return std::all_of(weight.sparse.values.begin(), weight.sparse.values.end(),
                     [](float value) { return std::isfinite(f16_to_float(float_to_f16(value))); });
}

void check_all_finite(const std::vector<float>& values, const char* what, const std::string& name) {
  for (const float value : values)
    if (!std::isfinite(value)) fail("{}: a {} is {}, expected a finite number", name, what, value);
}

PackedLinear pack(const QuantizedWeight& weight, const std::string& name) {
  check_packable(weight, name);
  const int64_t n = weight.out_features, k = weight.in_features;
  check_all_finite(weight.codebooks, "level", name);
  check_all_finite(weight.sparse.values, "sparse value", name);
  const auto entries = static_cast<int64_t>(weight.sparse.columns.size());

  PackedLinear linear;
  linear.format = &kSqueezellmFormat;
  linear.name = name;
  linear.out_features = n;
  linear.in_features = k;
  linear.parameters = {{"weight_bits", weight.weight_bits}, {"sparse_values", entries}};
  linear.tensors["codes"] = pack_codes(weight, name);
  const bool f16 = fits_f16(weight);
  linear.tensors["codebooks"] = pack_floats(weight.codebooks, f16, {n, int64_t{1} << weight.weight_bits});
  if (entries > 0) {
    check_sparse(weight.sparse, n, k, name);
    Tensor offsets = Tensor::empty(DType::kU32, {n + 1});
    std::transform(weight.sparse.row_offsets.begin(), weight.sparse.row_offsets.end(),
                   offsets.mutable_data<uint32_t>(), [](int64_t at) { return static_cast<uint32_t>(at); });
    Tensor columns = Tensor::empty(DType::kU16, {entries});
    std::transform(weight.sparse.columns.begin(), weight.sparse.columns.end(),
                   columns.mutable_data<uint16_t>(), [](int32_t at) { return static_cast<uint16_t>(at); });
    linear.tensors["sparse_offsets"] = std::move(offsets);
    linear.tensors["sparse_columns"] = std::move(columns);
    linear.tensors["sparse_values"] = pack_floats(weight.sparse.values, f16, {entries});
  }
  if (!weight.bias.empty()) linear.tensors["bias"] = Tensor::copy_of<float>({n}, weight.bias);
  return linear;
}

// Everything a kernel indexes with.
void validate_sparse(const PackedLinear& linear, int64_t entries, DType value_type) {
  const int64_t n = linear.out_features, k = linear.in_features;
  if (entries == 0) {
    for (const char* suffix : {"sparse_offsets", "sparse_columns", "sparse_values"}) {
      if (linear.find(suffix) != nullptr)
        fail("tensor {}.{} is there although sparse_values is 0", linear.name, suffix);
    }
    return;
  }
  if (k > kMaxSparseFeatures) {
    fail("{}: sparse_values is {}, but {} in-features have no sparse part (at most {} may)", linear.name,
         entries, k, kMaxSparseFeatures);
  }
  const auto offsets =
      check_tensor(linear, "sparse_offsets", true, {DType::kU32}, {n + 1})->values<uint32_t>();
  const auto columns =
      check_tensor(linear, "sparse_columns", true, {DType::kU16}, {entries})->values<uint16_t>();
  check_finite(linear, "sparse_values",
               *check_tensor(linear, "sparse_values", true, {value_type}, {entries}));
  if (offsets[0] != 0) fail("tensor {}.sparse_offsets starts with {}, expected 0", linear.name, offsets[0]);
  if (offsets[n] != entries)
    fail("tensor {}.sparse_offsets ends with {}, expected {}", linear.name, offsets[n], entries);
  // All offsets before any column: only then is it safe to look at the columns.
  for (int64_t row = 0; row < n; ++row) {
    if (offsets[row] > offsets[row + 1]) {
      fail("tensor {}.sparse_offsets falls from {} to {} at row {}; expected ascending numbers", linear.name,
           offsets[row], offsets[row + 1], row);
    }
  }
  for (int64_t row = 0; row < n; ++row) {
    for (uint32_t i = offsets[row]; i < offsets[row + 1]; ++i) {
      if (columns[i] >= k) {
        fail("tensor {}.sparse_columns is {} at element {}, expected less than {}", linear.name, columns[i],
             i, k);
      }
      if (i > offsets[row] && columns[i] <= columns[i - 1]) {
        fail("tensor {}.sparse_columns goes from {} to {} within row {}; expected ascending columns",
             linear.name, columns[i - 1], columns[i], row);
      }
    }
  }
}

void validate(const PackedLinear& linear) {
  const int64_t n = linear.out_features, k = linear.in_features;
  check_features(linear);
  check_no_other_parameters(linear, {"weight_bits", "sparse_values"});
  const int64_t bits = linear.parameter("weight_bits", 0);
  if (!holds_bits(bits))
    fail("{}: weight_bits is {}, expected 2, 3 or 4 (format squeezellm)", linear.name, bits);
  const int64_t entries = linear.parameter("sparse_values", 0);
  if (entries < 0 || entries > n * k || entries > std::numeric_limits<uint32_t>::max()) {
    fail("{}: sparse_values is {}, expected 0 to {} (format squeezellm)", linear.name, entries,
         std::min<int64_t>(n * k, std::numeric_limits<uint32_t>::max()));
  }
  check_no_other_tensors(linear,
                         {"codes", "codebooks", "sparse_offsets", "sparse_columns", "sparse_values", "bias"});

  const int64_t row_bytes = group_int_row_bytes(k, static_cast<int>(bits));
  const Tensor& codes = *check_tensor(linear, "codes", true, {DType::kU8}, {n, row_bytes});
  const Tensor& codebooks =
      *check_tensor(linear, "codebooks", true, {DType::kF16, DType::kF32}, {n, int64_t{1} << bits});
  check_finite(linear, "codebooks", codebooks);
  validate_sparse(linear, entries, codebooks.dtype());
  check_bias(linear);
  code_stream_check_padding(linear, codes, k, static_cast<int>(bits));
}

void dequantize_rows(const PackedLinear& linear, int64_t first, int64_t count, float* weight) {
  NIBBLE_CHECK(first >= 0 && count >= 0 && count <= linear.out_features - first);
  const SqueezellmLayout layout = squeezellm_layout(linear);
  for (int64_t row = 0; row < count; ++row) {
    squeezellm_dequantize_row(layout, first + row, weight + row * layout.in_features);
  }
}

std::string arithmetic(const PackedLinear& linear) {
  return format_text("lut{}xf32->f32", weight_bits_parameter(linear));
}

// A corrected weight counts as one of its own 16 bits, not as one more multiply-add.
std::map<int, double> multiply_adds(const PackedLinear& linear) {
  const auto all = static_cast<double>(linear.out_features) * static_cast<double>(linear.in_features);
  const auto sparse = static_cast<double>(linear.parameter("sparse_values", 0));
  std::map<int, double> adds = {{weight_bits_parameter(linear), all - sparse}};
  if (sparse > 0) adds[16] = sparse;
  return adds;
}

bool can_fuse(const PackedLinear& a, const PackedLinear& b) {
  return a.format == b.format && a.in_features == b.in_features &&
         weight_bits_parameter(a) == weight_bits_parameter(b);
}

constexpr std::array kKernels = {&kSqueezellmAvx512Vbmi, &kSqueezellmAvx512, &kSqueezellmAvx2,
                                 &kSqueezellmReference};

}  // namespace

const LinearFormat kSqueezellmFormat = {
    .name = "squeezellm",
    .description =
        "2-, 3- and 4-bit codes into a table of levels per row, single weights corrected, float activations",
    .pack = pack,
    .validate = validate,
    .dequantize_rows = dequantize_rows,
    .arithmetic = arithmetic,
    .code_bits = weight_bits_parameter,
    .multiply_adds = multiply_adds,
    .can_fuse = can_fuse,
    .kernels = kKernels,
    .f16_scales = true,
};

}  // namespace nibble

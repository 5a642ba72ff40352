#include "sample_linears.h"

#include "base/error.h"
#include "formats/dense/dense.h"
#include "runtime/sampler.h"

namespace nibble {

QuantizedWeight synthetic_weight(int64_t out_features, int64_t in_features, int weight_bits,
                                 int activation_bits, int64_t group_size, int64_t outliers) {
  NIBBLE_CHECK(outliers >= 0 && outliers < in_features);
  const int64_t integer_columns = in_features - outliers;
  const int64_t groups = group_size == 0 ? 1 : (integer_columns + group_size - 1) / group_size;
  QuantizedWeight weight = {.out_features = out_features,
                            .in_features = in_features,
                            .weight_bits = weight_bits,
                            .activation_bits = activation_bits,
                            .group_size = group_size};
  const CounterRandom random(42);
  const int64_t levels = int64_t{1} << weight_bits;
  weight.codes.resize(static_cast<size_t>(out_features * integer_columns));
  for (size_t i = 0; i < weight.codes.size(); ++i) {
    weight.codes[i] = static_cast<int8_t>(
        static_cast<int64_t>(random.bits(i) % static_cast<uint64_t>(levels)) - levels / 2);
  }
  weight.scales.assign(static_cast<size_t>(out_features * groups), 0x1p-7f);
  for (int64_t j = 0; j < outliers; ++j) weight.outlier_columns.push_back(static_cast<int32_t>(j));
  weight.outlier_weights.assign(static_cast<size_t>(out_features * outliers), 0x1p-4f);
  return weight;
}

namespace {

// A table of evenly spaced levels per row, and one corrected weight.
QuantizedWeight codebook_weight(int64_t out_features, int64_t in_features, int weight_bits) {
  QuantizedWeight weight = {
      .out_features = out_features, .in_features = in_features, .weight_bits = weight_bits};
  const int64_t levels = int64_t{1} << weight_bits;
  for (int64_t i = 0; i < out_features * in_features; ++i)
    weight.codes.push_back(static_cast<int8_t>(i % levels));
  for (int64_t i = 0; i < out_features * levels; ++i)
    weight.codebooks.push_back(static_cast<float>(i % levels) / static_cast<float>(levels) - 0.5f);
  weight.sparse.row_offsets.assign(static_cast<size_t>(out_features + 1), 1);
  weight.sparse.row_offsets[0] = 0;
  weight.sparse.columns = {0};
  weight.sparse.values = {1.0f};
  return weight;
}

// Every second code 0, as 2:4 formats want it.
QuantizedWeight pruned_2_4(QuantizedWeight weight) {
  size_t outlier = 0;
  for (int32_t column = 0; column < weight.in_features; ++column) {
    if (outlier < weight.outlier_columns.size() && weight.outlier_columns[outlier] == column) {
      ++outlier;
    } else {
      weight.mask_order.push_back(column);
    }
  }
  const int64_t columns = weight.integer_columns();
  for (int64_t row = 0; row < weight.out_features; ++row) {
    for (int64_t j = 0; j < columns; ++j) {
      if ((j + row) % 2 != 0) weight.codes[row * columns + j] = 0;
    }
  }
  return weight;
}

}  // namespace

std::vector<PackedLinear> sample_linears() {
  constexpr int64_t kOut = 64, kIn = 256;
  struct Settings {
    int weight_bits, activation_bits;
    int64_t group_size, outliers;
  };
  constexpr Settings kSettings[] = {{4, 4, 0, 32},   {8, 8, 0, 32}, {4, 8, 0, 32},
                                    {4, 8, 128, 0},  {8, 16, 0, 0}, {4, 16, 32, 0},
                                    {4, 16, 128, 0}, {3, 16, 0, 0}, {2, 16, 64, 0}};
  std::vector<PackedLinear> samples;
  const std::vector<float> floats(static_cast<size_t>(kOut * kIn), 0.5f);
  samples.push_back(make_dense_linear("32-bit weights", floats.data(), kOut, kIn));
  samples.push_back(make_dense_linear_16bit("bfloat16 weights", DType::kBF16, floats.data(), kOut, kIn));
  samples.push_back(make_dense_linear_16bit("float16 weights", DType::kF16, floats.data(), kOut, kIn));
  for (const LinearFormat* format : all_formats()) {
    if (format == &kDenseFormat) continue;
    for (const Settings& settings : kSettings) {
      std::string name = format_text("{}-bit weights", settings.weight_bits);
      if (settings.group_size > 0) name += format_text(", groups of {}", settings.group_size);
      if (settings.outliers > 0) name += ", outlier columns";
      try {
        QuantizedWeight weight = synthetic_weight(kOut, kIn, settings.weight_bits, settings.activation_bits,
                                                  settings.group_size, settings.outliers);
        if (std::string_view(format->name) == "quik_sparse") weight = pruned_2_4(std::move(weight));
        samples.push_back(format->pack(weight, name));
      } catch (const Error&) {
        // This format does not hold that combination; another one may.
      }
    }
    for (const int bits : {2, 3, 4}) {
      try {
        samples.push_back(format->pack(codebook_weight(kOut, kIn, bits),
                                       format_text("{}-bit weights, a table per row", bits)));
      } catch (const Error&) {
        // Codes of uniform grids only.
      }
    }
  }
  return samples;
}

}  // namespace nibble

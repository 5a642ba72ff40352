// The quantizers that round column after column: GPTQ, and SparseGPT with 2:4 masks.
#include "quantizers/column_solver.h"

namespace nibble {
namespace {

CalibrationNeeds needs(const LinearSettings& settings) {
  return {.hessian = true, .cross = settings.asymmetric_calibration};
}

QuantizedWeight sparse_sample(const LinearSettings& settings, int64_t out_features, int64_t in_features,
                              std::vector<int32_t> outlier_columns) {
  QuantizedWeight sample = uniform_sample(settings, out_features, in_features, std::move(outlier_columns));
  size_t outlier = 0;
  for (int32_t column = 0; column < in_features; ++column) {
    if (outlier < sample.outlier_columns.size() && sample.outlier_columns[outlier] == column) {
      ++outlier;
    } else {
      sample.mask_order.push_back(column);
    }
  }
  return sample;
}

}  // namespace

extern const Quantizer kGptqQuantizer, kSparseGptqQuantizer;
const Quantizer kGptqQuantizer = {
    .name = "gptq", .needs = needs, .quantize = [](const QuantizerInput& input, ThreadPool& pool) {
      return solve_columns(input, /*sparse=*/false, pool);
    }};
const Quantizer kSparseGptqQuantizer = {
    .name = "sparse_gptq",
    .needs = needs,
    .quantize = [](const QuantizerInput& input,
                   ThreadPool& pool) { return solve_columns(input, /*sparse=*/true, pool); },
    .sample = sparse_sample};

}  // namespace nibble

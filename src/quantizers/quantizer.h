// A quantizer chooses codes for one linear. Identity is a row in all.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calibration/statistics.h"
#include "formats/quantized_weight.h"
#include "quantizers/recipe.h"

namespace nibble {

struct QuantizerInput {
  std::string name;                   // of the linear, for messages
  const float* weight = nullptr;      // [n, k] row-major
  int64_t out_features = 0, in_features = 0;
  const InputStatistics* statistics = nullptr;  // nullptr for quantizers that need none
  const LinearSettings* settings = nullptr;
  std::vector<int32_t> outlier_columns;  // ascending; the same for all linears of a group
};

// How far the result is from the input, in the log and in config.json.
struct QuantizationError {
  double weight_relative = 0;  // |W - Q|_F^2 / |W|_F^2
  double output_relative = 0;  // tr((W-Q) H (W-Q)^T) / tr(W H W^T); 0 without statistics
};

struct Quantizer {
  const char* name;
  bool needs_hessian;
  // Throws Error naming the linear for NaN weights, a Hessian that stays indefinite after damping, ...
  QuantizedWeight (*quantize)(const QuantizerInput& input, ThreadPool& pool);
};

std::span<const Quantizer* const> all_quantizers();
const Quantizer& find_quantizer(std::string_view name);  // UsageError listing the names

// Outlier columns of a linear group by the rules of docs/format.md (QUIK, section "Outlier columns"). Ascending.
std::vector<int32_t> select_outlier_columns(const InputStatistics& statistics, const LinearSettings& settings,
                                            int64_t hidden_size, bool is_down_projection);

QuantizationError quantization_error(const QuantizerInput& input, const float* dequantized, ThreadPool& pool);

}  // namespace nibble

// A quantizer chooses codes for one linear. Identity is a row in all.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calibration/statistics.h"
#include "formats/quantized_weight.h"
#include "quantizers/recipe.h"

namespace nibble {

class FactorCache;

// A Hessian for a run of output rows, on the scale of InputStatistics::hessian: the input's second moments
// with each token weighted by the squared gradient of the loss by these outputs (GuidedQuant, arXiv
// 2505.07004).
struct GuidedHessian {
  int64_t first_row = 0, rows = 0;
  const float* hessian = nullptr;  // F32 [k, k], both triangles
};

struct QuantizerInput {
  std::string name;               // of the linear, for messages
  const float* weight = nullptr;  // [n, k] row-major
  int64_t out_features = 0, in_features = 0;
  const InputStatistics* statistics = nullptr;  // nullptr for quantizers that need none
  const LinearSettings* settings = nullptr;
  std::vector<int32_t>
      outlier_columns;  // ascending; the same for all linears of a group; fewer than in_features
  // The format stores scales as F16: they are rounded to it before codes are chosen, so that packing changes
  // nothing.
  bool f16_scales = false;
  // F32 [n, k], mean over calibration sequences of the squared gradient of the loss by each weight; only for
  // quantizers whose needs() ask for it.
  const float* sensitivity = nullptr;
  // All rows, in order, in at most settings.guided_groups runs; only for quantizers whose needs() ask for
  // them.
  std::vector<GuidedHessian> guided_hessians;
  // r of the quartile rule that makes settings.sparse_outlier_percent of the whole model's weights outliers
  // (OutlierRatio); without it a quantizer takes that share of the linear's own weights.
  std::optional<double> sparse_outlier_ratio;
  // What solvers computed from the statistics for other linears of the same group (hessian_factor.h); may be
  // null.
  FactorCache* factors = nullptr;
};

// What a quantizer wants to have been measured before it sees a linear.
struct CalibrationNeeds {
  bool hessian = false;  // InputStatistics with second moments
  bool cross = false;    // ... and with those of the distance from the float model's input
  bool sensitivity =
      false;  // squared gradients of the loss by the weights (one backward pass over the model)
  bool guided_hessian = false;  // GuidedHessians (of the same backward pass)

  bool gradients() const { return sensitivity || guided_hessian; }
  bool any() const { return hessian || cross || gradients(); }
};

// How far the result is from the input, for the log and config.json.
struct QuantizationError {
  double weight_relative = 0;  // |W - Q|_F^2 / |W|_F^2
  double output_relative = 0;  // tr((W-Q) H (W-Q)^T) / tr(W H W^T); 0 without statistics
};

struct Quantizer {
  const char* name;
  CalibrationNeeds (*needs)(const LinearSettings& settings);
  // The result has no bias; outlier weights are unrounded floats. The same bits for any number of threads.
  // Throws Error naming the linear for weights that are not finite and for a Hessian that is not or stays
  // indefinite after damping.
  QuantizedWeight (*quantize)(const QuantizerInput& input, ThreadPool& pool);
  // A weight of zeros with every part that quantize() fills and of the same sizes, for telling what the
  // result takes; null stands for uniform_sample().
  QuantizedWeight (*sample)(const LinearSettings& settings, int64_t out_features, int64_t in_features,
                            std::vector<int32_t> outlier_columns) = nullptr;
};

// Codes and scales of a uniform grid, and outlier columns, all zero.
QuantizedWeight uniform_sample(const LinearSettings& settings, int64_t out_features, int64_t in_features,
                               std::vector<int32_t> outlier_columns);

std::span<const Quantizer* const> all_quantizers();
const Quantizer& find_quantizer(std::string_view name);  // UsageError listing the names

// Outlier columns of a linear group, ascending: those with the largest max_abs, the lower index first where
// equal (QUIK, section "Outlier features"). How many:
//  - settings.outlier_columns, or for -1 min(256, 32 * ceil(hidden_size / 512)), whatever this linear's own
//  input size;
//  - times floor(in_features / hidden_size), at least 1, where settings.outlier_scaling is set;
//  - none where no |x| exceeded settings.outlier_threshold (doubled for down projections) and that is above
//  0;
//  - never more than half of the columns.
std::vector<int32_t> select_outlier_columns(const InputStatistics& statistics, const LinearSettings& settings,
                                            int64_t hidden_size, bool is_down_projection);

// `dequantized` [n, k] is the weight as the packed format reads it. Without statistics (or without their
// Hessian) only weight_relative is measured.
QuantizationError quantization_error(const QuantizerInput& input, const float* dequantized, ThreadPool& pool);

}  // namespace nibble

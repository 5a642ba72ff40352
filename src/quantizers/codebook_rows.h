// What the quantizers of per-row codebooks (kmeans, lnq) share: how much each weight counts, which weights
// are corrected one by one, the k-means levels, and the result.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "quantizers/quantizer.h"
#include "quantizers/sparse_selection.h"

namespace nibble {

// How much the squared error of each weight counts, by settings.sensitivity: "fisher" its squared gradient,
// "hessian_diagonal" the second moment of its input channel, "uniform" one.
class WeightImportance {
 public:
  // Throws Error naming the linear where sensitivities are missing, negative or not finite.
  WeightImportance(const QuantizerInput& input, ThreadPool& pool);
  const float* row(int64_t row) const { return data_ + row * stride_; }  // [k]
  const float* data() const { return data_; }
  int64_t stride() const { return stride_; }  // 0: the same for all rows

 private:
  std::vector<float> shared_;
  const float* data_ = nullptr;
  int64_t stride_ = 0;
};

CalibrationNeeds importance_needs(const LinearSettings& settings);

// The weights of settings.sparse_*_percent.
SparseSelection select_sparse(const QuantizerInput& input, const WeightImportance& importance,
                              ThreadPool& pool);

// Levels [n, 2^bits] by weighted k-means of each row's weights that are not taken, ascending, and rounded to
// F16 where F16 holds them.
std::vector<float> kmeans_levels(const QuantizerInput& input, const WeightImportance& importance,
                                 const SparseSelection& selection, ThreadPool& pool);
// The same rounding for one row, in place.
void round_levels(float* levels, int64_t count);
// Codes [n, k] of the nearest levels.
std::vector<int8_t> nearest_codes(const QuantizerInput& input, const std::vector<float>& levels,
                                  ThreadPool& pool);

// The result of codes and levels; a taken weight gets the code of its nearest level and the difference as its
// sparse value.
QuantizedWeight codebook_result(const QuantizerInput& input, std::vector<int8_t> codes,
                                std::vector<float> levels, const SparseSelection& selection);
// Quantizer::sample of both.
QuantizedWeight codebook_sample(const LinearSettings& settings, int64_t out_features, int64_t in_features,
                                std::vector<int32_t> outlier_columns);

}  // namespace nibble

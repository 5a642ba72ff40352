// Which weights SqueezeLLM takes out of the codebooks and corrects one by one: the sensitive ones, and
// outliers by magnitude.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/thread_pool.h"
#include "formats/quantized_weight.h"

namespace nibble {

// The quartiles of a matrix; between two order statistics they are interpolated, as numpy does.
struct Quartiles {
  float first = 0, third = 0;
};
// Of finite values. count >= 1.
Quartiles find_quartiles(const float* values, int64_t count, ThreadPool& pool);

// Outliers are |w| >= T with T = max(|q1 - r (q3 - q1)|, |q3 + r (q3 - q1)|), which for r >= 0 is
// max(-q1, q3) + r (q3 - q1). A matrix whose quartiles are equal has no outliers by this rule.
float outlier_threshold(const Quartiles& quartiles, double ratio);

// The one r of a whole model that makes a share of its weights outliers, from one look at every matrix.
class OutlierRatio {
 public:
  OutlierRatio();
  void add(const float* weight, int64_t count, ThreadPool& pool);
  int64_t weights() const { return weights_; }
  // The smallest r, to 2^-12 of it, for which at most `percent` of all weights added are outliers.
  double ratio(double percent) const;
  // What share of them are at that r, in percent.
  double percent_at(double ratio) const;

 private:
  static int64_t bin_of(double ratio);
  static double lower_edge(int64_t bin);
  std::vector<int64_t> bins_;
  int64_t weights_ = 0;
};

struct SparseRequest {
  const float* weight = nullptr;  // [n, k]
  int64_t out_features = 0, in_features = 0;
  // Sensitivities of row r at scores + r * score_stride: a stride of 0 gives all rows the same, and then each
  // counts times the square of its weight, since rows alone would all tie. nullptr: nothing is known.
  const float* scores = nullptr;
  int64_t score_stride = 0;
  double sensitive_percent = 0, outlier_percent = 0;
  std::optional<double>
      outlier_ratio;  // of the whole model; without it the matrix's own largest |w| are taken
};

struct SparseSelection {
  std::vector<uint8_t> taken;  // [n, k], 1 where a weight is corrected; empty where none is
  int64_t sensitive = 0, outliers = 0;

  bool empty() const { return taken.empty(); }
  bool is_taken(int64_t at) const { return !taken.empty() && taken[static_cast<size_t>(at)] != 0; }
};

// The floor(share) most sensitive weights, then the outliers among the others; of equals those that come
// first.
SparseSelection select_sparse(const SparseRequest& request, ThreadPool& pool);
// Rows and columns of the selection; values are zero.
SparsePart sparse_part(const SparseSelection& selection, int64_t out_features, int64_t in_features);

}  // namespace nibble

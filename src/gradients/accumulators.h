// What the backward pass leaves behind for each linear: squared gradients by its weights, and second moments
// of its input weighted by the gradients by its outputs. Results depend on how the tokens are cut into calls,
// never on the number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "base/thread_pool.h"
#include "calibration/statistics.h"
#include "gradients/backward.h"

namespace nibble {

// Gradients by the outputs of one linear within those of its group: row t at data + t * stride.
struct OutputGradients {
  const float* data = nullptr;
  int64_t stride = 0;
};

// The diagonal of the empirical Fisher matrix as SqueezeLLM (arXiv 2306.07629) takes it: the mean over
// sequences of the squared gradient of each sequence's loss.
class SquaredGradients {
 public:
  SquaredGradients(int64_t out_features, int64_t in_features);
  // Adds (sum over t of dy_t x_t^T)^2 of every sequence of the batch; x [tokens, in_features].
  void add(const OutputGradients& dy, const float* x, const SequenceBatch& batch, ThreadPool& pool);
  // F32 [n, k]. Throws Error naming `name` when a value is not finite.
  Tensor finish(const std::string& name);

 private:
  int64_t n_, k_, sequences_ = 0;
  Tensor sum_;
  std::vector<std::vector<float>> tiles_;  // per thread
};

// GuidedQuant's Hessians (arXiv 2505.07004): the outputs are cut into runs of neighbours, and the input's
// second moments are taken with each token weighted by the mean squared gradient by the run's outputs.
class GuidedHessians {
 public:
  // At most `groups` runs, one per output where there are fewer outputs.
  GuidedHessians(int64_t out_features, int64_t in_features, int64_t groups);
  void add(const OutputGradients& dy, const float* x, int64_t tokens, ThreadPool& pool,
           const std::string& name);
  // F32 [groups, k, k], each (2 / tokens) sum of s_t x_t x_t^T with s of mean 1: on the scale of
  // InputStatistics::hessian. A run whose outputs never matter gets the identity, with a warning.
  Tensor finish(const std::string& name);

  // Rows of the weight that Hessian `group` of `groups` is for: [first_row, first_row of the next).
  static int64_t first_row(int64_t out_features, int64_t groups, int64_t group) {
    return out_features * group / groups;
  }

 private:
  int64_t n_, k_, groups_, tokens_ = 0;
  std::vector<StatisticsCollector> collectors_;  // per group
  std::vector<double> weights_;                  // per group, sum of s
};

}  // namespace nibble

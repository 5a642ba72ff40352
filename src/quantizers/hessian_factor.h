// What the column-by-column solvers (GPTQ, SparseGPT) take from a linear's statistics alone: the order of the
// columns, the factor of the inverse Hessian in that order, and what asymmetric calibration adds to the
// weights. All linears of a group share it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "quantizers/quantizer.h"

namespace nibble {

// With H^-1 = U^T U, U upper triangular, in the order of processing, rounding column i moves every later
// column j by -(w_i - q_i) / U_ii * U_ij. Columns are kept here in the reverse of that order ("storage
// order"), because then U, read backwards, is the inverse of the plain Cholesky factor H = L L^T: one
// factorization and one triangular inverse, instead of two factorizations and a full inverse.
struct HessianFactor {
  std::vector<int32_t> order;  // storage order: outlier columns first, then the integer columns from the last
                               // processed to the first
  std::vector<bool> dead;      // by column: no calibration token had anything there
  std::vector<float> inverse;  // L^-1 [k, k], zeros above the diagonal
  // GPTAQ: P [k, k] in storage order, strictly lower; see asymmetry() in the source. Empty without.
  std::vector<float> asymmetry;
};

// Keeps the factor of the last Hessian and settings it was asked for. For the linears of one group:
// statistics must outlive it unchanged. Not for use from several threads at once.
class FactorCache {
 public:
  // The factor for `input`, of which `columns` are the integer columns. Throws Error naming the linear when
  // the Hessian is not finite, or not positive definite after the damping was raised.
  std::shared_ptr<const HessianFactor> find(const QuantizerInput& input, std::span<const int32_t> columns,
                                            ThreadPool& pool);
  int64_t computed() const { return computed_; }  // how often it was not at hand

 private:
  const float* hessian_ = nullptr;
  const float* cross_ = nullptr;
  double damping_ = 0;
  std::shared_ptr<const HessianFactor> factor_;
  int64_t computed_ = 0;
};

}  // namespace nibble

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
  // With asymmetric calibration: D H^-1 [k, k] by column, see asymmetric_target(). Empty without.
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

// Asymmetric calibration (GPTAQ, Li et al., ICML 2025): the layer's output is to match that of the float
// model, whose input x + d differs from the input x of the quantized one. With D = (2 / tokens) sum d x^T,
//     sum |w (x + d) - q x|^2 = (q - v) H (q - v)^T + what does not depend on q,   v = w + w D H^-1,
// so solving for v [n, k] instead of w takes the earlier layers' errors into account exactly, up to the
// damping of H. (GPTAQ compensates the error of each column by the columns after it only, which is the
// strictly triangular part of this; that gains less.)
std::vector<float> asymmetric_target(const QuantizerInput& input, const HessianFactor& factor,
                                     ThreadPool& pool);

}  // namespace nibble

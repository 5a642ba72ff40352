// The damped Hessian of a linear in an order of its columns, factored for the solvers that round columns one
// after another.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "quantizers/quantizer.h"

namespace nibble {

struct HessianDiagonal {
  std::vector<bool> dead;  // by column: no calibration token had anything there
  double mean = 0;         // over the others; 1 when there are none
};

// Throws Error naming the linear for a diagonal that is not finite or negative.
HessianDiagonal examine_diagonal(const QuantizerInput& input);

// L^-1 in the lower triangle of [k, k], of H = L L^T with rows and columns in `order` and settings.damping of
// the mean added to its diagonal; above it whatever was left there. With H^-1 = U^T U in the reverse of that
// order, U read backwards is L^-1. Where H is not positive definite the damping is raised, then the
// precision; both are logged. Throws Error naming the linear when that does not help.
std::vector<float> damped_inverse_factor(const QuantizerInput& input, const std::vector<int32_t>& order,
                                         const HessianDiagonal& diagonal, ThreadPool& pool);

}  // namespace nibble

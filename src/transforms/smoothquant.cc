// SmoothQuant (2211.10438): s_j = max|x_j|^alpha / max|w_j|^(1 - alpha) moves range from the activations into
// the weights. Scales stay per token.
#include <cmath>

#include "transforms/transform.h"

namespace nibble {
namespace {

TransformPlan plan(const TransformInput& input) {
  TransformPlan result;
  if (!input.foldable) return result;
  const double alpha = input.settings.smooth_alpha;
  for (size_t j = 0; j < input.max_abs.size(); ++j) {
    const double factor = std::pow(static_cast<double>(input.max_abs[j]), alpha) /
                          std::pow(static_cast<double>(input.weight_max[j]), 1.0 - alpha);
    // A channel without activations or without weights has nothing to trade.
    const bool usable =
        input.max_abs[j] > 0 && input.weight_max[j] > 0 && factor >= 0x1p-64 && factor <= 0x1p64;
    result.factors.push_back(usable ? static_cast<float>(factor) : 1.0f);
  }
  return result;
}

}  // namespace

extern const Transform kSmoothQuantTransform;
const Transform kSmoothQuantTransform = {.name = "smoothquant", .static_activations = false, .plan = plan};

}  // namespace nibble

// FPTQ (2308.15987): by the largest |x| of the calibrated input, v, a static scale for v <= 15, logarithmic
// activation equalization and then a static scale for 15 < v < 150, and scales per token beyond:
//   s_j = max|x_j| / log2(2 + max|x_j|),  so that channel j then reaches log2(2 + max|x_j|).
// Where nothing in front can take the factors up, the middle case is per token.
#include <algorithm>
#include <cmath>

#include "transforms/transform.h"

namespace nibble {
namespace {

constexpr float kTopCode = 127.0f;

float largest_of(std::span<const float> values) {
  return values.empty() ? 0.0f : *std::max_element(values.begin(), values.end());
}

// A step that is no normal number (an input of zeros) serves no grid: such inputs stay per token.
float static_scale(float largest) {
  const float scale = largest / kTopCode;
  return std::isnormal(scale) ? scale : 0.0f;
}

TransformPlan plan(const TransformInput& input) {
  TransformPlan result;
  const float largest = largest_of(input.max_abs);
  if (largest <= input.settings.static_limit) {
    result.activation_scale = static_scale(largest);
  } else if (largest < input.settings.per_token_limit && input.foldable) {
    float divided = 0;
    for (const float magnitude : input.max_abs) {
      const float factor = magnitude / std::log2(2.0f + magnitude);
      // A channel that calibration never saw moving stays as it is.
      result.factors.push_back(factor >= 0x1p-64f ? factor : 1.0f);
      divided = std::max(divided, magnitude / result.factors.back());
    }
    result.activation_scale = static_scale(divided);
  }
  return result;
}

}  // namespace

extern const Transform kLogEqualizationTransform;
const Transform kLogEqualizationTransform = {
    .name = "log_equalization", .static_activations = true, .plan = plan};

}  // namespace nibble

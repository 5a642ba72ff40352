// A transform decides what happens to the input of a linear group before anything is quantized: factors by
// which its channels are divided, moved into whatever stands in front and into the weights behind, so that
// the float model stays the same; and whether activations get a static scale. Identity is a row in all.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// The numbers of LinearSettings that transforms read.
struct TransformSettings {
  double static_limit = 15.0, per_token_limit = 150.0;
  double smooth_alpha = 0.5;
};

struct TransformInput {
  std::span<const float> max_abs;     // [k] largest calibrated |x_j|
  std::span<const float> weight_max;  // [k] largest |w_j| of the column over all linears of the group
  bool foldable = false;              // something in front can take factors up
  TransformSettings settings;
};

struct TransformPlan {
  std::vector<float> factors;  // [k], positive and normal: x_j becomes x_j / factors[j]; empty: as it is
  float activation_scale = 0;  // static step for the divided input; 0: per token
};

struct Transform {
  const char* name;
  bool static_activations;  // may plan a static scale, which the linear's format must hold
  TransformPlan (*plan)(const TransformInput& input);
};

std::span<const Transform* const> all_transforms();
// nullptr when there is none of that name.
const Transform* find_transform(std::string_view name);

// What a plan does with the activations, in words for results: "per_token", "static", "equalized_static",
// "equalized_per_token".
std::string activation_class(const TransformPlan& plan);

}  // namespace nibble

// The table of transforms. A transform is its file and one line here.
#include <array>

#include "transforms/transform.h"

namespace nibble {

extern const Transform kLogEqualizationTransform;
extern const Transform kSmoothQuantTransform;

std::span<const Transform* const> all_transforms() {
  static constexpr std::array kTransforms = {&kLogEqualizationTransform, &kSmoothQuantTransform};
  return kTransforms;
}

const Transform* find_transform(std::string_view name) {
  for (const Transform* transform : all_transforms()) {
    if (name == transform->name) return transform;
  }
  return nullptr;
}

std::string activation_class(const TransformPlan& plan) {
  const std::string how = plan.activation_scale > 0 ? "static" : "per_token";
  return plan.factors.empty() ? how : "equalized_" + how;
}

}  // namespace nibble

#include "formats/format.h"

#include "base/error.h"

namespace nibble {

size_t PackedLinear::weight_bytes() const {
  size_t bytes = 0;
  for (const auto& [suffix, tensor] : tensors) {
    if (suffix != "bias") bytes += tensor.bytes();
  }
  return bytes;
}

const LinearFormat* find_format(std::string_view name) {
  for (const LinearFormat* format : all_formats()) {
    if (name == format->name) return format;
  }
  return nullptr;
}

KernelChoice choose_kernel(const Problem& problem) {
  NIBBLE_CHECK(problem.linear != nullptr && problem.linear->format != nullptr);
  KernelChoice choice;
  for (const LinearKernel* kernel : problem.linear->format->kernels) {
    std::string refusal = kernel->refusal(problem);
    if (refusal.empty()) {
      choice.kernel = kernel;
      return choice;
    }
    choice.refused.emplace_back(kernel, std::move(refusal));
  }
  std::string reasons;
  for (const auto& [kernel, reason] : choice.refused)
    reasons += format_text("\n  {}: {}", kernel->name, reason);
  fail("{}: no kernel of format '{}' can run it here:{}", problem.linear->name, problem.linear->format->name,
       reasons);
}

}  // namespace nibble

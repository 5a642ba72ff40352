#include "formats/format.h"

#include <cstdlib>

#include "base/error.h"

namespace nibble {

size_t PackedLinear::weight_bytes() const {
  size_t bytes = 0;
  for (const auto& [suffix, tensor] : tensors) {
    if (suffix != "bias") bytes += tensor.bytes();
  }
  return bytes;
}

int weight_bits_parameter(const PackedLinear& linear) {
  return static_cast<int>(linear.parameter("weight_bits", 0));
}

std::map<int, double> one_multiply_add_per_weight(const PackedLinear& linear) {
  return {{linear.format->code_bits(linear),
           static_cast<double>(linear.out_features) * static_cast<double>(linear.in_features)}};
}

const LinearFormat* find_format(std::string_view name) {
  for (const LinearFormat* format : all_formats()) {
    if (name == format->name) return format;
  }
  return nullptr;
}

namespace {

// The kernel that NIBBLE_KERNEL forces for the format it belongs to, for measurements; nullptr without.
const LinearKernel* forced_kernel(const LinearFormat& format) {
  const char* name = std::getenv("NIBBLE_KERNEL");
  if (name == nullptr || *name == '\0') return nullptr;
  if (std::string_view(name).rfind("cuda-", 0) == 0)
    return nullptr;  // one of a GPU's (linear_table.cc there)
  bool known = false;
  for (const LinearFormat* each : all_formats()) {
    for (const LinearKernel* kernel : each->kernels) {
      if (std::string_view(name) != kernel->name) continue;
      if (each == &format) return kernel;
      known = true;
    }
  }
  if (!known) fail("NIBBLE_KERNEL={}: there is no kernel of that name", name);
  return nullptr;
}

}  // namespace

KernelChoice choose_kernel(const Problem& problem) {
  NIBBLE_CHECK(problem.linear != nullptr && problem.linear->format != nullptr);
  KernelChoice choice;
  if (const LinearKernel* forced = forced_kernel(*problem.linear->format)) {
    const std::string refusal = forced->refusal(problem);
    if (!refusal.empty()) fail("{}: NIBBLE_KERNEL={}: {}", problem.linear->name, forced->name, refusal);
    choice.kernel = forced;
    return choice;
  }
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

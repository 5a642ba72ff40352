// The table of the device's kernels: per format, fastest first.
#include <array>
#include <cstdlib>
#include <string_view>

#include "backend/cuda/dense_linear.h"
#include "backend/cuda/linear.h"
#include "base/error.h"

namespace nibble {
namespace group_int_cuda {
extern const cuda::DeviceKernel kDeviceKernel, kPlainDeviceKernel;
}
namespace group_int_a8_cuda {
extern const cuda::DeviceKernel kDeviceKernel;
}
namespace quik_cuda {
extern const cuda::DeviceKernel kDeviceKernel;
}
namespace quik_mma_cuda {
extern const cuda::DeviceKernel kDeviceKernel;
}

namespace cuda {
namespace {

constexpr std::array kDense = {&kDenseDeviceKernel};
constexpr std::array kGroupInt = {&group_int_cuda::kDeviceKernel, &group_int_cuda::kPlainDeviceKernel,
                                  &kExpandedDeviceKernel};
constexpr std::array kGroupIntA8 = {&group_int_a8_cuda::kDeviceKernel, &kExpandedDeviceKernel};
constexpr std::array kQuik = {&quik_cuda::kDeviceKernel, &quik_mma_cuda::kDeviceKernel,
                              &kExpandedDeviceKernel};
constexpr std::array kOthers = {&kExpandedDeviceKernel};

struct Row {
  std::string_view format;
  std::span<const DeviceKernel* const> kernels;
};
constexpr Row kRows[] = {
    {"dense", kDense}, {"group_int", kGroupInt}, {"group_int_a8", kGroupIntA8}, {"quik", kQuik}};

std::string refusal_of(const DeviceKernel& kernel, const Problem& problem, const Device& device) {
  if (kernel.portable || is_hopper(device)) return kernel.refusal(problem, device);
  return format_text("needs compute capability 9.0 (Hopper), this GPU has {}.{}", device.major, device.minor);
}

}  // namespace

void DeviceLinear::forward_from(const InputStep&, int, __half*, int64_t, void*, cudaStream_t) const {
  NIBBLE_CHECK(!"this linear takes no such step");
}

std::span<const DeviceKernel* const> device_kernels(const LinearFormat& format) {
  for (const Row& row : kRows) {
    if (row.format == format.name) return row.kernels;
  }
  return kOthers;
}

namespace {

// Names that start so are the device's; others force kernels on the CPU (formats/format.cc).
void require_known(std::string_view forced) {
  if (forced.rfind("cuda-", 0) != 0) return;
  for (const Row& row : kRows) {
    for (const DeviceKernel* kernel : row.kernels) {
      if (forced == kernel->name) return;
    }
  }
  fail("NIBBLE_KERNEL={}: there is no kernel of that name", forced);
}

}  // namespace

DeviceKernelChoice choose_device_kernel(const Problem& problem, const Device& device) {
  NIBBLE_CHECK(problem.linear != nullptr && problem.linear->format != nullptr);
  const auto kernels = device_kernels(*problem.linear->format);
  DeviceKernelChoice choice;
  const char* forced = std::getenv("NIBBLE_KERNEL");
  if (forced != nullptr) require_known(forced);
  for (const DeviceKernel* kernel : kernels) {
    const bool is_forced = forced != nullptr && std::string_view(forced) == kernel->name;
    std::string refusal = refusal_of(*kernel, problem, device);
    if (is_forced && !refusal.empty())
      fail("{}: NIBBLE_KERNEL={}: {}", problem.linear->name, forced, refusal);
    if (is_forced) return {.kernel = kernel, .refused = {}};
    if (refusal.empty() && choice.kernel == nullptr) choice.kernel = kernel;
    if (choice.kernel == nullptr) choice.refused.emplace_back(kernel, std::move(refusal));
  }
  if (choice.kernel == nullptr) {
    fail("{}: no kernel of format '{}' can run it on {}", problem.linear->name, problem.linear->format->name,
         device.name);
  }
  return choice;
}

}  // namespace cuda
}  // namespace nibble

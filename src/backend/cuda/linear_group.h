// The linears of one input on the device, as models/linear_group.h has them on the CPU: runs of neighbours
// that their kernel can fuse become one DeviceLinear.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/cuda/linear.h"

namespace nibble::cuda {

// How one run of linears came to its kernel: what `inspect --kernels`, announcements and --strict tell.
struct DeviceLinearChoice {
  std::vector<std::string> names;  // of the linears
  const LinearFormat* format = nullptr;
  DeviceKernelChoice choice;
};

// Without uploading anything.
std::vector<DeviceLinearChoice> choose_for_group(std::span<const PackedLinear* const> linears,
                                                 const Device& device);
size_t group_bytes(std::span<const PackedLinear* const> linears, const Device& device);

class DeviceLinearGroup {
 public:
  DeviceLinearGroup(std::span<const PackedLinear* const> linears, const Device& device, ThreadPool& pool);
  explicit DeviceLinearGroup(std::unique_ptr<DeviceLinear> only);

  int64_t in_features() const { return parts_.front().linear->in_features(); }
  int64_t out_features() const { return out_features_; }
  size_t workspace_bytes(int most_tokens) const;
  // y [tokens, out_features()]: outputs side by side in the order of the linears.
  void forward(const __half* x, int tokens, __half* y, void* workspace, cudaStream_t stream) const;
  // The same of what `step` yields, where its only linear takes it.
  bool takes(const InputStep& step, int tokens) const {
    return parts_.size() == 1 && parts_.front().linear->takes(step, tokens);
  }
  void forward_from(const InputStep& step, int tokens, __half* y, void* workspace, cudaStream_t stream) const;
  void prepare(int tokens, void* workspace, cudaStream_t stream) const;
  DeviceLinearGroup duplicate() const;
  size_t bytes() const;
  std::vector<LinearPath> paths(int tokens) const;

 private:
  struct Part {
    std::unique_ptr<DeviceLinear> linear;
    int64_t column = 0;
  };
  DeviceLinearGroup() = default;
  std::vector<Part> parts_;
  int64_t out_features_ = 0;
};

}  // namespace nibble::cuda

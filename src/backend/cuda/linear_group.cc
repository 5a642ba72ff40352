#include "backend/cuda/linear_group.h"

#include <algorithm>

#include "base/error.h"

namespace nibble::cuda {
namespace {

using Run = std::span<const PackedLinear* const>;

// Calls visit(run, choice) for the longest runs of neighbours that one kernel takes together.
template <typename Visit>
void for_each_run(Run linears, const Device& device, const Visit& visit) {
  for (size_t first = 0; first < linears.size();) {
    DeviceKernelChoice choice = choose_device_kernel(
        {.linear = linears[first], .out_features = linears[first]->out_features}, device);
    size_t last = first + 1;
    int64_t outputs = linears[first]->out_features;
    for (; last < linears.size(); ++last) {
      const PackedLinear &before = *linears[last - 1], &next = *linears[last];
      if (next.format != before.format || !next.format->can_fuse(before, next) ||
          !choice.kernel->fuses(before, next)) {
        break;
      }
      const DeviceKernelChoice alone =
          choose_device_kernel({.linear = &next, .out_features = next.out_features}, device);
      const Problem together = {.linear = linears[first], .out_features = outputs + next.out_features};
      if (alone.kernel != choice.kernel || !choice.kernel->refusal(together, device).empty()) break;
      outputs += next.out_features;
    }
    visit(linears.subspan(first, last - first), std::move(choice));
    first = last;
  }
}

}  // namespace

std::vector<DeviceLinearChoice> choose_for_group(Run linears, const Device& device) {
  std::vector<DeviceLinearChoice> choices;
  for_each_run(linears, device, [&](Run run, DeviceKernelChoice choice) {
    DeviceLinearChoice made = {.names = {}, .format = run.front()->format, .choice = std::move(choice)};
    for (const PackedLinear* linear : run) made.names.push_back(linear->name);
    choices.push_back(std::move(made));
  });
  return choices;
}

size_t group_bytes(Run linears, const Device& device) {
  size_t bytes = 0;
  for_each_run(linears, device, [&](Run run, const DeviceKernelChoice& choice) {
    for (const PackedLinear* linear : run) bytes += choice.kernel->bytes(*linear);
  });
  return bytes;
}

DeviceLinearGroup::DeviceLinearGroup(Run linears, const Device& device, ThreadPool& pool) {
  for_each_run(linears, device, [&](Run run, const DeviceKernelChoice& choice) {
    parts_.push_back({choice.kernel->load(run, device, pool), out_features_});
    out_features_ += parts_.back().linear->out_features();
  });
}

DeviceLinearGroup::DeviceLinearGroup(std::unique_ptr<DeviceLinear> only)
    : out_features_(only->out_features()) {
  parts_.push_back({std::move(only), 0});
}

DeviceLinearGroup DeviceLinearGroup::duplicate() const {
  DeviceLinearGroup copy;
  copy.out_features_ = out_features_;
  for (const Part& part : parts_) copy.parts_.push_back({part.linear->duplicate(), part.column});
  return copy;
}

size_t DeviceLinearGroup::workspace_bytes(int most_tokens) const {
  size_t bytes = 0;
  for (const Part& part : parts_) bytes = std::max(bytes, part.linear->workspace_bytes(most_tokens));
  return bytes;
}

void DeviceLinearGroup::forward(const __half* x, int tokens, __half* y, void* workspace,
                                cudaStream_t stream) const {
  for (const Part& part : parts_) {
    part.linear->forward(x, tokens, y + part.column, out_features_, workspace, stream);
  }
}

void DeviceLinearGroup::forward_from(const InputStep& step, int tokens, __half* y, void* workspace,
                                     cudaStream_t stream) const {
  NIBBLE_CHECK(takes(step, tokens));
  parts_.front().linear->forward_from(step, tokens, y, out_features_, workspace, stream);
}

void DeviceLinearGroup::prepare(int tokens, void* workspace, cudaStream_t stream) const {
  for (const Part& part : parts_) part.linear->prepare(tokens, workspace, stream);
}

size_t DeviceLinearGroup::bytes() const {
  size_t bytes = 0;
  for (const Part& part : parts_) bytes += part.linear->bytes();
  return bytes;
}

std::vector<LinearPath> DeviceLinearGroup::paths(int tokens) const {
  std::vector<LinearPath> paths;
  for (const Part& part : parts_) paths.push_back(part.linear->path(tokens));
  return paths;
}

}  // namespace nibble::cuda

#include "models/linear_group.h"

#include "base/error.h"

namespace nibble {

int64_t LinearGroup::out_features() const {
  int64_t total = 0;
  for (const LinearSlot& slot : slots_) total += slot.out_features;
  return total;
}

void LinearGroup::prepare(ThreadPool& pool) {
  parts_.clear();
  kernels_.clear();
  int64_t column = 0;
  for (size_t first = 0; first < slots_.size();) {
    // The longest run of neighbours that their format can run as one.
    std::vector<const PackedLinear*> run;
    int64_t outputs = 0;
    size_t last = first;
    for (; last < slots_.size(); ++last) {
      const PackedLinear* packed = slots_[last].packed.get();
      NIBBLE_CHECK(packed != nullptr && packed->in_features == in_features_ &&
                   packed->out_features == slots_[last].out_features);
      if (!run.empty() &&
          (packed->format != run.back()->format || !packed->format->can_fuse(*run.back(), *packed)))
        break;
      run.push_back(packed);
      outputs += packed->out_features;
    }
    const KernelChoice choice = choose_kernel({.linear = run[0], .out_features = outputs});
    parts_.push_back({choice.kernel->prepare(run, pool), column});
    kernels_.insert(kernels_.end(), run.size(), choice.kernel);
    column += outputs;
    first = last;
  }
}

void LinearGroup::forward(const float* x, int64_t tokens, float* y, Scratch& scratch,
                          ThreadPool& pool) const {
  NIBBLE_CHECK(!parts_.empty());
  const int64_t stride = out_features();
  for (const Part& part : parts_) part.op->forward(x, tokens, y + part.column, stride, scratch, pool);
}

size_t LinearGroup::prepared_bytes() const {
  size_t bytes = 0;
  for (const Part& part : parts_) bytes += part.op->prepared_bytes();
  return bytes;
}

}  // namespace nibble

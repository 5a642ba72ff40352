// A group_int linear in GPU memory.
#pragma once

#include "backend/cuda/device.h"
#include "formats/format.h"
#include "formats/group_int/cuda/expand.h"

namespace nibble::group_int_cuda {

// The canonical layout as it is.
class DeviceCodes {
 public:
  explicit DeviceCodes(const PackedLinear& linear);
  const CanonicalWeights& weights() const { return weights_; }

 private:
  cuda::Buffer codes_, scales_, zeros_;
  CanonicalWeights weights_;
};

}  // namespace nibble::group_int_cuda

// Where a product goes that writes whole vectors of 8 outputs: into y where its rows allow that, else into
// memory of its own, from which it is moved.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/device.h"

namespace nibble::cuda {

class AlignedOutput {
 public:
  static size_t bytes(int64_t outputs, int tokens) {
    return static_cast<size_t>(2 * rounded(outputs) * tokens + 255) / 256 * 256;
  }

  // y [tokens, y_stride] is 16-byte aligned, as is `memory` of bytes().
  AlignedOutput(__half* y, int64_t y_stride, int64_t outputs, int tokens, void* memory)
      : y_(y),
        y_stride_(y_stride),
        outputs_(outputs),
        tokens_(tokens),
        direct_(y_stride % 8 == 0 && outputs % 8 == 0),
        to_(direct_ ? y : static_cast<__half*>(memory)) {}

  __half* to() const { return to_; }
  int64_t stride() const { return direct_ ? y_stride_ : rounded(outputs_); }
  // After the product.
  void move(cudaStream_t stream) const {
    if (direct_) return;
    const auto half = sizeof(__half);
    check(cudaMemcpy2DAsync(y_, half * static_cast<size_t>(y_stride_), to_,
                            half * static_cast<size_t>(stride()), half * static_cast<size_t>(outputs_),
                            static_cast<size_t>(tokens_), cudaMemcpyDeviceToDevice, stream),
          "moving a product");
  }

 private:
  static int64_t rounded(int64_t outputs) { return (outputs + 7) / 8 * 8; }
  __half* y_;
  int64_t y_stride_, outputs_;
  int tokens_;
  bool direct_;
  __half* to_;
};

}  // namespace nibble::cuda

// The online rotations of rotated models on the GPU (kernels/hadamard.h): the step that makes a linear's
// input and the Hadamard transform of what it yields, in one kernel and in FP32.
#pragma once

#include <cuda_fp16.h>

#include <string>

#include "backend/cuda/device.h"
#include "backend/cuda/input_step.h"
#include "kernels/hadamard.h"

namespace nibble::cuda {

class DeviceHadamard {
 public:
  // Rows of the base matrix that a thread mixes; the matrix is padded to so many.
  static constexpr int kMixedRows = 8;

  // Why no kernel transforms vectors of this shape ("vectors of 40000 entries: more than 32768"), or nothing.
  static std::string refusal(const HadamardShape& shape);

  // Uploads the base matrix. `shape` is not refused.
  explicit DeviceHadamard(const HadamardShape& shape);

  const HadamardShape& shape() const { return shape_; }
  size_t bytes() const { return matrix_.bytes(); }
  // Enqueues out [tokens, size] = the transform of a norm's or a gate's values, and what else the step does.
  // Throws Error when the launch is refused.
  void launch(const InputStep& step, int tokens, float* out, cudaStream_t stream) const;
  void launch(const InputStep& step, int tokens, __half* out, cudaStream_t stream) const;

 private:
  template <typename Out>
  void launch_any(const InputStep& step, int tokens, Out* out, cudaStream_t stream) const;
  HadamardShape shape_;
  int padded_rows_ = 0;
  Buffer matrix_;  // FP32 [base, padded_rows_]: the transposed base matrix, zeros beyond it
};

}  // namespace nibble::cuda

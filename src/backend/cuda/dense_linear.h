// Linears whose weights lie on the GPU in FP16, multiplied by cuBLASLt: FP16, BF16 and F32 checkpoints, and
// the slower path of every format that has no kernel of its own here.
#pragma once

#include "backend/cuda/linear.h"

namespace nibble::cuda {

class DenseLinear : public DeviceLinear {
 public:
  // Uploads the weights of `linears`, one above the other, rounded to FP16. Throws Error when one is beyond
  // FP16's range.
  explicit DenseLinear(std::span<const PackedLinear* const> linears, ThreadPool& pool);
  // Uniform random weights of the variance 1 / k.
  DenseLinear(int64_t n, int64_t k, uint32_t seed);

  int64_t in_features() const override { return k_; }
  int64_t out_features() const override { return n_; }
  size_t workspace_bytes(int most_tokens) const override;
  void forward(const __half* x, int tokens, __half* y, int64_t y_stride, void* workspace,
               cudaStream_t stream) const override;
  // The same with y [tokens, n] in FP32; there must be no bias. For logits.
  void forward_float(const __half* x, int tokens, float* y, void* workspace, cudaStream_t stream) const;
  void prepare(int tokens, void* workspace, cudaStream_t stream) const override;
  void prepare_float(int tokens, void* workspace, cudaStream_t stream) const;
  std::unique_ptr<DeviceLinear> duplicate() const override;
  LinearPath path(int tokens) const override;
  size_t bytes() const override { return weights_.bytes() + bias_.bytes(); }

  const __half* weights() const { return weights_.as<__half>(); }  // [n, k]

 private:
  DenseLinear(const DenseLinear& other);
  int64_t n_ = 0, k_ = 0;
  Buffer weights_, bias_;  // FP16 [n, k]; FP32 [n] or empty
};

// Biases of `linears` one behind the other, zeros where one has none; empty when none has one.
std::vector<float> joined_biases(std::span<const PackedLinear* const> linears);

extern const DeviceKernel kDenseDeviceKernel;     // "cuda-f16"
extern const DeviceKernel kExpandedDeviceKernel;  // "cuda-expanded": any format, taken apart to FP16

}  // namespace nibble::cuda

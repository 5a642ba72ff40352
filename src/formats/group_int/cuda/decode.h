// Products of 4-bit group_int weights with 1 to 4 FP16 tokens on a Hopper GPU. Weights u - 8 are exact and
// scales are applied to FP32 sums.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/input_step.h"

namespace nibble::group_int_cuda {

inline constexpr int kMaximumDecodeTokens = 4;

struct DecodeProblem {
  const uint8_t* weights = nullptr;  // device, laid out as decode_layout.h says
  const __half* x = nullptr;         // device [tokens, k]; k a multiple of 8
  __half* y = nullptr;               // device [tokens, n], 4-byte aligned
  int64_t y_stride = 0;              // elements from one token's outputs to the next's, or 0 for n
  const float* bias = nullptr;       // device [n], or none
  int n = 0, k = 0, tokens = 0;
  int scales_per_block = 1;  // DecodeShape's
};

// How one launch uses the chip; all give the same bits.
struct DecodePlan {
  // Two blocks per multiprocessor with 8 chunks each on their way were the best of eleven plans on an H100
  // for every model of bench/cuda_decode_bench.cc at one token (bench/results/h100/w4a16.txt).
  int stages = 8;  // chunks of weights on their way per block, at least 2
  int blocks_per_multiprocessor = 2;
};

// Shared memory of a launch: the ring and the tokens. Beyond the device's limit the launch is refused.
size_t decode_shared_bytes(const DecodeProblem& problem, const DecodePlan& plan);

// Enqueues y = x W^T, FP32 sums over a row in a fixed order. May start before the stream's previous
// kernel has ended (it waits before it reads x). Returns the launch's error.
cudaError_t launch_decode(const DecodeProblem& problem, const DecodePlan& plan, int multiprocessors,
                          cudaStream_t stream);

// The same for one token, whose x is what `step` yields for k columns, rounded to F16; problem.x is not read.
// Every block computes the step for itself; a norm's sum must lie apart from its residual. decode_takes():
// whether the kernel can, for its columns.
bool decode_takes(const cuda::InputStep& step, int k);
cudaError_t launch_decode_from(const cuda::InputStep& step, const DecodeProblem& problem,
                               const DecodePlan& plan, int multiprocessors, cudaStream_t stream);

}  // namespace nibble::group_int_cuda

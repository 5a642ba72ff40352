// Products of 4-bit group_int weights with up to 16 FP16 tokens on a Hopper GPU. Weights u - 8 are exact and
// scales are applied to FP32 sums.
#pragma once

#include <cuda_runtime.h>

#include "formats/group_int/cuda/decode.h"

namespace nibble::group_int_cuda {

inline constexpr int kMaximumFewTokens = 16;

inline constexpr int kFewWarps = 12;  // of a block of threads

// The bits depend on it.
struct FewPlan {
  int split = 4;  // blocks of a cluster, which share the columns: 2, 4 or 8
};

// Whether a block's share of the tokens fits into its shared memory.
bool few_fits(const DecodeProblem& problem, const FewPlan& plan);
// How many clusters a launch has at most. Clusters of four and eight do not find place everywhere: 30 and 15
// run at once on an H100's 132 multiprocessors.
constexpr int few_clusters(int split, int multiprocessors) {
  return (split <= 2 ? multiprocessors : multiprocessors * 10 / 11) / split;
}

// Enqueues y = x W^T, FP32 sums over a row in a fixed order. x is 16-byte aligned. May start before the
// stream's previous kernel has ended (it waits before it reads x). Returns the launch's error; throws Error
// when the driver refuses to describe a matrix.
cudaError_t launch_few(const DecodeProblem& problem, const FewPlan& plan, int multiprocessors,
                       cudaStream_t stream);

}  // namespace nibble::group_int_cuda

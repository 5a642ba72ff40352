// Products of 4-bit group_int weights with any number of FP16 tokens on a Hopper GPU. Each weight is rounded
// to F16 once (scale times u - 8), sums are FP32 in a fixed order.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <span>

namespace nibble::group_int_cuda {

// What one block of threads computes at a time: `rows` rows of the weight times `tokens` tokens.
struct TileSize {
  int rows, tokens;
};
// All that are compiled.
std::span<const TileSize> tile_sizes();

struct TileProblem {
  const uint8_t* weights = nullptr;  // device, laid out as decode_layout.h says
  const __half* x = nullptr;         // device [tokens, k], 16-byte aligned; k a multiple of 8
  __half* y = nullptr;               // device [tokens, n], 4-byte aligned
  const float* bias = nullptr;       // device [n], or none
  int n = 0, k = 0, tokens = 0;
  int scales_per_block = 1;  // DecodeShape's
};

// `split` blocks of threads share the columns of a tile and add their sums up, in order, through each other's
// shared memory: 1 to 8, at most the blocks of 128 columns.
struct TilePlan {
  TileSize size = {};
  int split = 1;
};

// Enqueues y = x W^T. May start before the stream's previous kernel has ended (it waits before it reads x).
// Returns the launch's error; throws Error when the driver refuses to describe a matrix.
cudaError_t launch_tile(const TileProblem& problem, const TilePlan& plan, int multiprocessors,
                        cudaStream_t stream);

}  // namespace nibble::group_int_cuda

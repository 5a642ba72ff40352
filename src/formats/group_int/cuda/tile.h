// Products of 4-bit group_int weights with any number of FP16 tokens on a Hopper GPU. Sums are FP32 in a
// fixed order. In tiles of up to 16 tokens weights u - 8 are exact and scales are applied to a group's sums;
// in larger ones each weight is rounded to F16 once (scale times u - 8).
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
  bool operator==(const TileSize&) const = default;
};
inline constexpr int kMostScaledSums = 16;      // tokens
inline constexpr int kLeastSharedTokens = 128;  // of a tile that two blocks of threads fetch together
// All that are compiled; and whether two blocks of threads can share the tokens of such tiles.
std::span<const TileSize> tile_sizes();
bool can_share_tokens(const TileSize& size);

struct TileProblem {
  const uint8_t* weights = nullptr;  // device, laid out as decode_layout.h says
  const __half* x = nullptr;         // device [tokens, k], 16-byte aligned; k a multiple of 8
  __half* y = nullptr;               // device [tokens, n], 4-byte aligned
  int64_t y_stride = 0;              // elements from one token's outputs to the next's, or 0 for n
  const float* bias = nullptr;       // device [n], or none
  int n = 0, k = 0, tokens = 0;
  int scales_per_block = 1;  // DecodeShape's
  // For split 1. The workspace keeps nothing between launches, the flags are zeros before and after each.
  void* workspace = nullptr;  // device, tile_workspace_bytes()
  uint32_t* flags = nullptr;  // device [kTileFlags]
};
inline constexpr int kTileFlags = 1024;
size_t tile_workspace_bytes(int multiprocessors);

// With `split` 1, as many blocks of threads as run at once share all tiles out evenly, and where one takes up
// in the middle of a tile its sums are handed over through memory. With 2 to 8 (at most the blocks of 128
// columns), so many share the columns of each tile and add up through each other's shared memory. Always in
// the same order. With `share` 2 (split 1, and can_share_tokens) two blocks of threads take row tiles side by
// side and each fetches half of the tokens for both.
struct TilePlan {
  TileSize size = {};
  int split = 1, share = 1;
};

// Enqueues y = x W^T. May start before the stream's previous kernel has ended (it waits before it reads x).
// Returns the launch's error; throws Error when the driver refuses to describe a matrix.
cudaError_t launch_tile(const TileProblem& problem, const TilePlan& plan, int multiprocessors,
                        cudaStream_t stream);

}  // namespace nibble::group_int_cuda

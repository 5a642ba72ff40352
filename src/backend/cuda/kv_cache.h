// How keys and values lie in GPU memory: FP16 in pages of 64 positions.
//
//   keys    [pages, kv_heads, 64, head_dim]   a position's key in one piece
//   values  [pages, kv_heads, head_dim, 64]   transposed: 64 positions of one channel in one piece
//
// so that both products of attention find what they add up over in consecutive bytes: channels for queries
// times keys, positions for weights times values. A sequence finds its pages through a table.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace nibble::cuda {

inline constexpr int kPagePositions = 64;

// One layer's part of the cache of one sequence.
struct LayerCache {
  __half* keys = nullptr;
  __half* values = nullptr;
  const int32_t* pages = nullptr;  // device [capacity / 64]: the page of positions [64 i, 64 i + 64)
  int kv_heads = 0, head_dim = 0;

  // Halves from the start of `keys` (or `values`) to those of a page's head.
  __host__ __device__ int64_t offset(int page, int kv_head) const {
    return (int64_t{page} * kv_heads + kv_head) * kPagePositions * head_dim;
  }
};

}  // namespace nibble::cuda

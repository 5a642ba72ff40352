// How keys and values lie in GPU memory: in pages of 64 positions, as FP16
//
//   keys    [pages, kv_heads, 64, head_dim]   a position's key in one piece
//   values  [pages, kv_heads, head_dim, 64]   transposed: 64 positions of one channel in one piece
//
// so that both products of attention find what they add up over in consecutive bytes: channels for queries
// times keys, positions for weights times values; or as codes of 8 bits, value = scale * (u - 128), in the
// same order, with an F16 scale for each position and group of 32 channels (the last one may be shorter):
//
//   key_scales    [pages, kv_heads, 64, groups]
//   value_scales  [pages, kv_heads, groups, 64]
//
// Codes and scales are those of the CPU's cache (kernels/cache_row.h, kQ8). A sequence finds its pages
// through a table.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace nibble::cuda {

inline constexpr int kPagePositions = 64;
inline constexpr int kScaleChannels = 32;

// One layer's part of the cache of one sequence.
struct LayerCache {
  __half* keys = nullptr;
  __half* values = nullptr;
  const int32_t* pages = nullptr;  // device [capacity / 64]: the page of positions [64 i, 64 i + 64)
  int kv_heads = 0, head_dim = 0;
  // Of 8 bits, instead of keys and values:
  uint8_t* key_codes = nullptr;
  uint8_t* value_codes = nullptr;
  __half* key_scales = nullptr;
  __half* value_scales = nullptr;

  __host__ __device__ bool is_int8() const { return key_codes != nullptr; }
  __host__ __device__ int groups() const { return (head_dim + kScaleChannels - 1) / kScaleChannels; }
  // Elements from the start of the keys (or values, or codes) to those of a page's head, and scales likewise.
  __host__ __device__ int64_t offset(int page, int kv_head) const {
    return (int64_t{page} * kv_heads + kv_head) * kPagePositions * head_dim;
  }
  __host__ __device__ int64_t scale_offset(int page, int kv_head) const {
    return (int64_t{page} * kv_heads + kv_head) * kPagePositions * groups();
  }
};

}  // namespace nibble::cuda

// Causal attention over a cache of keys and values, in parallel over heads and blocks of queries or keys.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "base/scratch.h"
#include "base/thread_pool.h"
#include "kernels/float_kernels.h"

namespace nibble {

// Consecutive tokens of one sequence whose keys and values are in the cache already.
struct AttentionSpan {
  const float* query =
      nullptr;           // first token, head 0: token t at query + t * query_stride, heads side by side
  float* out = nullptr;  // the same with out_stride
  int64_t tokens = 0;
  int64_t first_position = 0;
  // Keys and values of KV head h at positions [i * kKeyTile, ...): key_tiles[h * tiles + i], kKeyTile cache
  // rows of the type.
  CacheType key_type = CacheType::kF16, value_type = CacheType::kF16;
  const void* const* key_tiles = nullptr;
  const void* const* value_tiles = nullptr;
  int64_t tiles = 0;
};

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t window = 0;  // positions a token sees, itself included; 0: all before it
  float scale = 1;
  int64_t query_stride = 0, out_stride = 0;
};

// out[t, h] = sum_j softmax_j(scale * q[t, h] . k[j]) v[j] over the positions j that token t sees. Each
// output depends on the position, the keys and values and (in rounding only) on whether its span has one
// token, never on threads.
void attention(const FloatKernels& kernels, const AttentionShape& shape, std::span<const AttentionSpan> spans,
               Scratch& scratch, ThreadPool& pool);

}  // namespace nibble

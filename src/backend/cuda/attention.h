// Causal attention on the GPU with grouped query heads over a paged cache (kv_cache.h): FP16 in and
// out, FP32 sums and softmax.
//
//   few     1 to 4 tokens, head size 32, 64, 96 or 128: the keys of a sequence are split over blocks, each of
//           which serves all query heads that share them; mma.sync straight from global memory
//   prompt  any number of tokens, head size 64 or 128, on Hopper: tiles of 128 queries by 64 keys on wgmma
//   plain   everything else: a warp per query
//
// Of an 8-bit cache the first reads codes (head sizes 64 and 128); for all else the layer's keys and values
// are expanded to FP16 first, in memory that all layers share.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/elementwise.h"
#include "backend/cuda/kv_cache.h"

namespace nibble::cuda {

struct AttentionProblem {
  HeadsShape shape;
  const __half* qkv = nullptr;  // [tokens, shape.stride()]: rotated queries in front
  __half* out = nullptr;        // [tokens, heads * head_dim]
  int tokens = 0;
  const int32_t* first_position = nullptr;  // on the device, of token 0
  int window = 0;                           // positions that a query sees, itself included; 0: all
  float scale = 0;
  LayerCache cache;  // holds the keys and values of all tokens already
  // Of an 8-bit cache: FP16 of the same shape and table, with so many pages in the table, all finite numbers.
  LayerCache expanded;
  int table_pages = 0;
};

// How the copy engine sees a layer's part of an FP16 cache (the expanded one of an 8-bit cache), for the
// prompt kernel; nothing where that does not run.
struct CacheMaps {
  CUtensorMap keys;    // [pages * kv_heads * 64, head_dim], boxes of 64 rows
  CUtensorMap values;  // [pages * kv_heads * head_dim, 64], boxes of head_dim rows
};
// Throws Error when the driver refuses.
CacheMaps make_cache_maps(const LayerCache& cache, int64_t pages);

enum class AttentionKind { kFew, kPrompt, kPlain };
AttentionKind attention_kind(int tokens, int head_dim, bool hopper);
const char* attention_kind_name(AttentionKind kind);  // "few", "prompt", "plain"

// Device memory that attention() needs, all zeros before the first call; it leaves it fit for the next.
size_t attention_workspace_bytes(const HeadsShape& shape, int multiprocessors);
// Enqueues the kernel that attention_kind() names. Position, table of pages, and keys and values of positions
// before the first token's must have been there before any kernel of this pass started: they are read early.
// Throws Error when the launch is refused.
void attention(const AttentionProblem& problem, const CacheMaps& maps, void* workspace, int multiprocessors,
               cudaStream_t stream);

// What attention() calls.
void launch_attention_few(const AttentionProblem& problem, void* workspace, int multiprocessors,
                          cudaStream_t stream);
void launch_attention_prompt(const AttentionProblem& problem, const CacheMaps& maps, cudaStream_t stream);
void launch_attention_plain(const AttentionProblem& problem, cudaStream_t stream);
// problem.expanded = the positions of problem.cache that the tokens see, in whole pages.
void launch_expand_cache(const AttentionProblem& problem, cudaStream_t stream);

}  // namespace nibble::cuda

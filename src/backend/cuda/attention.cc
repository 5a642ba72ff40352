#include "backend/cuda/attention.h"

#include "backend/cuda/device.h"
#include "backend/cuda/tensor_map.h"

namespace nibble::cuda {

CacheMaps make_cache_maps(const LayerCache& cache, int64_t pages) {
  CacheMaps maps = {};
  if (cache.head_dim % 64 != 0 || !on_hopper()) return maps;  // for the prompt kernel only
  const int64_t heads = pages * cache.kv_heads;
  maps.keys = make_tile_map(TileType::kHalf, cache.keys, heads * kPagePositions, cache.head_dim,
                            2 * int64_t{cache.head_dim}, kPagePositions);
  maps.values = make_tile_map(TileType::kHalf, cache.values, heads * cache.head_dim, kPagePositions,
                              2 * kPagePositions, cache.head_dim);
  return maps;
}

AttentionKind attention_kind(int tokens, int head_dim, bool hopper) {
  if (tokens <= 4 && head_dim % 32 == 0 && head_dim <= 128) return AttentionKind::kFew;
  return hopper && (head_dim == 64 || head_dim == 128) ? AttentionKind::kPrompt : AttentionKind::kPlain;
}

const char* attention_kind_name(AttentionKind kind) {
  constexpr const char* kNames[] = {"few", "prompt", "plain"};
  return kNames[static_cast<int>(kind)];
}

void attention(const AttentionProblem& problem, const CacheMaps& maps, void* workspace, int multiprocessors,
               cudaStream_t stream) {
  const AttentionKind kind = attention_kind(problem.tokens, problem.shape.head_dim, on_hopper());
  if (problem.cache.is_int8() && (kind != AttentionKind::kFew || problem.shape.head_dim % 64 != 0)) {
    launch_expand_cache(problem, stream);
    AttentionProblem expanded = problem;
    expanded.cache = problem.expanded;
    return attention(expanded, maps, workspace, multiprocessors, stream);
  }
  switch (kind) {
    case AttentionKind::kFew:
      return launch_attention_few(problem, workspace, multiprocessors, stream);
    case AttentionKind::kPrompt:
      return launch_attention_prompt(problem, maps, stream);
    case AttentionKind::kPlain:
      return launch_attention_plain(problem, stream);
  }
}

}  // namespace nibble::cuda

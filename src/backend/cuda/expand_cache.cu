// Keys and values of an 8-bit cache as FP16, for kernels that read nothing else.
#include "backend/cuda/attention.h"
#include "backend/cuda/cache_codes.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

// Grid (entries of the table, key heads): a page of a head, four elements at a time.
__global__ void __launch_bounds__(kThreads) expand_cache_kernel(const AttentionProblem problem) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const LayerCache& from = problem.cache;
  const int entry = blockIdx.x, head = blockIdx.y, first = *problem.first_position;
  const int begin = problem.window > 0 ? max(0, first - problem.window + 1) : 0;
  if (entry < begin / kPagePositions || entry > (first + problem.tokens - 1) / kPagePositions) return;
  const int page = from.pages[entry], groups = from.groups(), head_dim = from.head_dim;
  const int64_t at = from.offset(page, head), scales_at = from.scale_offset(page, head);
  const __half* const key_scales = from.key_scales + scales_at;
  const __half* const value_scales = from.value_scales + scales_at;
  const auto* const keys = reinterpret_cast<const uint32_t*>(from.key_codes + at);
  const auto* const values = reinterpret_cast<const uint32_t*>(from.value_codes + at);
  __half2* const keys_to = reinterpret_cast<__half2*>(problem.expanded.keys + at);
  __half2* const values_to = reinterpret_cast<__half2*>(problem.expanded.values + at);
  for (int i = threadIdx.x; i < kPagePositions * head_dim / 4; i += kThreads) {
    // Four channels of a position: groups are multiples of four channels, and head_dim is one.
    const int slot = 4 * i / head_dim, channel = 4 * i % head_dim;
    const __half2 key_scale = __half2half2(key_scales[slot * groups + channel / kScaleChannels]);
    const FourHalves key = four_codes(keys[i]);
    keys_to[2 * i] = __hmul2(key.low, key_scale);
    keys_to[2 * i + 1] = __hmul2(key.high, key_scale);
    // Four positions of a channel.
    const int group = 4 * i / kPagePositions / kScaleChannels;
    const auto* const scales =
        reinterpret_cast<const __half2*>(value_scales + group * kPagePositions + 4 * i % kPagePositions);
    const FourHalves value = four_codes(values[i]);
    values_to[2 * i] = __hmul2(value.low, scales[0]);
    values_to[2 * i + 1] = __hmul2(value.high, scales[1]);
  }
}

}  // namespace

void launch_expand_cache(const AttentionProblem& problem, cudaStream_t stream) {
  const char* const what = "expanding a cache";
  if (problem.expanded.keys == nullptr || problem.shape.head_dim % 4 != 0) check(cudaErrorInvalidValue, what);
  launch_dependent(expand_cache_kernel, dim3(problem.table_pages, problem.shape.kv_heads), kThreads, 0,
                   stream, what, problem);
}

}  // namespace nibble::cuda

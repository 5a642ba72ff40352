// Norms of heads, rotary embedding, and the cache's new positions.
#include <algorithm>

#include "backend/cuda/cache_codes.cuh"
#include "backend/cuda/elementwise.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/reduce.cuh"

namespace nibble::cuda {
namespace {

// A block of 8 warps per token, a head per warp. A lane holds elements 2 l, 2 l + 1 and half + 2 l, half + 2
// l + 1 for l = lane, lane + 32: both kinds of pairs lie within one lane.
constexpr int kRotateWarps = 8, kMaximumHeadDim = 256, kSteps = kMaximumHeadDim / 128;

// A position's value of one head, in 8 bits.
struct ValueCodes {
  uint8_t* codes;
  __half* scales;
  int head_dim;
  __device__ ValueCodes(const LayerCache& cache, int page, int head, int slot)
      : codes(cache.value_codes + cache.offset(page, head) + slot),
        scales(cache.value_scales + cache.scale_offset(page, head) + slot),
        head_dim(cache.head_dim) {}
  // Called by a warp: lanes have the channels d of `group`.
  __device__ void store(int group, int d, float value) const {
    const CacheCode made = cache_code(value);
    if (d < head_dim) codes[d * kPagePositions] = made.code;
    if (d % kScaleChannels == 0) scales[group * kPagePositions] = made.scale;
  }
};

// Grid (tokens, sets of heads). Position and table of pages were there before the pass began: the turns are
// computed while the previous kernel ends.
template <bool kStoreValues, bool kInt8>
__global__ void __launch_bounds__(32 * kRotateWarps) rotate_kernel(RotateProblem problem) {
  __shared__ float2 turns[kMaximumHeadDim / 2];  // cosine and sine
  __shared__ float staged[kInt8 ? kRotateWarps : 1][kMaximumHeadDim];
  const HeadsShape shape = problem.shape;
  const int token = blockIdx.x, position = *problem.first_position + token;
  const int half = shape.head_dim / 2, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (problem.frequencies != nullptr) {
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
      float sine, cosine;
      sincosf(static_cast<float>(position) * problem.frequencies[i], &sine, &cosine);
      turns[i] = {cosine, sine};
    }
  }
  __half* const row = problem.qkv + int64_t{token} * shape.stride();
  const int page = problem.cache.pages[position / kPagePositions], slot = position % kPagePositions;
  __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();

  const int heads = shape.heads + (kStoreValues ? 2 : 1) * shape.kv_heads;
  for (int head = blockIdx.y * kRotateWarps + warp; head < heads; head += gridDim.y * kRotateWarps) {
    if (kStoreValues && head >= shape.heads + shape.kv_heads) {
      const __half* const values = row + int64_t{head} * shape.head_dim;
      const int value_head = head - shape.heads - shape.kv_heads;
      if constexpr (kInt8) {
        const ValueCodes to(problem.cache, page, value_head, slot);
        for (int group = 0; group < problem.cache.groups(); ++group) {
          const int d = group * kScaleChannels + lane;
          to.store(group, d, d < shape.head_dim ? __half2float(values[d]) : 0.0f);
        }
      } else {
        __half* const to = problem.cache.values + problem.cache.offset(page, value_head) + slot;
        for (int d = lane; d < shape.head_dim; d += 32) to[d * kPagePositions] = values[d];
      }
      continue;
    }
    const bool query = head < shape.heads;
    __half* const from = row + int64_t{head} * shape.head_dim;
    const float* const norm = query ? problem.query_norm : problem.key_norm;
    float2 low[kSteps], high[kSteps];
    float squares = 0;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int i = 2 * (lane + 32 * s);
      low[s] = high[s] = {0, 0};
      if (i >= half) continue;
      low[s] = __half22float2(*reinterpret_cast<const __half2*>(from + i));
      high[s] = __half22float2(*reinterpret_cast<const __half2*>(from + half + i));
      squares += low[s].x * low[s].x + low[s].y * low[s].y + high[s].x * high[s].x + high[s].y * high[s].y;
    }
    const float scale =
        norm == nullptr ? 1.0f
                        : rsqrtf(warp_sum(squares) / static_cast<float>(shape.head_dim) + problem.epsilon);
    const bool to_codes = kInt8 && !query;
    __half* const to = query || kInt8 ? from
                                      : problem.cache.keys + problem.cache.offset(page, head - shape.heads) +
                                            slot * shape.head_dim;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int i = 2 * (lane + 32 * s);
      if (i >= half) continue;
      float2 a = low[s], b = high[s];
      if (norm != nullptr) {
        a = {a.x * scale * norm[i], a.y * scale * norm[i + 1]};
        b = {b.x * scale * norm[half + i], b.y * scale * norm[half + i + 1]};
      }
      if (problem.frequencies != nullptr && problem.interleaved) {
        const float2 first = turns[i / 2], second = turns[half / 2 + i / 2];
        a = {a.x * first.x - a.y * first.y, a.y * first.x + a.x * first.y};
        b = {b.x * second.x - b.y * second.y, b.y * second.x + b.x * second.y};
      } else if (problem.frequencies != nullptr) {
        const float2 first = turns[i], second = turns[i + 1];
        const float2 rotated = {a.x * first.x - b.x * first.y, a.y * second.x - b.y * second.y};
        b = {b.x * first.x + a.x * first.y, b.y * second.x + a.y * second.y};
        a = rotated;
      }
      if (to_codes) {
        *reinterpret_cast<float2*>(&staged[warp][i]) = a;
        *reinterpret_cast<float2*>(&staged[warp][half + i]) = b;
        continue;
      }
      *reinterpret_cast<__half2*>(to + i) = __floats2half2_rn(a.x, a.y);
      *reinterpret_cast<__half2*>(to + half + i) = __floats2half2_rn(b.x, b.y);
    }
    if (to_codes) {
      __syncwarp();
      const int key_head = head - shape.heads, groups = problem.cache.groups();
      uint8_t* const codes =
          problem.cache.key_codes + problem.cache.offset(page, key_head) + slot * shape.head_dim;
      __half* const scales =
          problem.cache.key_scales + problem.cache.scale_offset(page, key_head) + slot * groups;
      for (int group = 0; group < groups; ++group) {
        const int d = group * kScaleChannels + lane;
        const CacheCode made = cache_code(d < shape.head_dim ? staged[warp][d] : 0.0f);
        if (d < shape.head_dim) codes[d] = made.code;
        if (lane == 0) scales[group] = made.scale;
      }
      __syncwarp();
    }
  }
}

// Values of many tokens, transposed through shared memory: a block per page and head.
template <bool kInt8>
__global__ void store_values_kernel(RotateProblem problem) {
  extern __shared__ __half tile[];  // [64, head_dim + 2]
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const HeadsShape shape = problem.shape;
  const int first_position = *problem.first_position, head = blockIdx.y;
  const int entry = first_position / kPagePositions + static_cast<int>(blockIdx.x);
  const int begin = max(first_position, entry * kPagePositions);
  const int end = min(first_position + problem.tokens, (entry + 1) * kPagePositions);
  if (begin >= end) return;
  const int width = shape.head_dim + 2;
  const __half* const from = problem.qkv + int64_t{shape.heads + shape.kv_heads + head} * shape.head_dim;
  for (int i = threadIdx.x; i < (end - begin) * (shape.head_dim / 2); i += blockDim.x) {
    const int t = i / (shape.head_dim / 2), d = i % (shape.head_dim / 2) * 2;
    const int64_t token = begin - first_position + t;
    *reinterpret_cast<__half2*>(tile + t * width + d) =
        *reinterpret_cast<const __half2*>(from + token * shape.stride() + d);
  }
  __syncthreads();
  if constexpr (kInt8) {
    const int groups = problem.cache.groups(), lane = threadIdx.x % 32, page = problem.cache.pages[entry];
    for (int item = threadIdx.x / 32; item < (end - begin) * groups; item += blockDim.x / 32) {
      const int t = item / groups, group = item % groups, d = group * kScaleChannels + lane;
      const ValueCodes codes(problem.cache, page, head, begin % kPagePositions + t);
      codes.store(group, d, d < shape.head_dim ? __half2float(tile[t * width + d]) : 0.0f);
    }
    return;
  }
  __half* const to = problem.cache.values + problem.cache.offset(problem.cache.pages[entry], head);
  const int slot = begin % kPagePositions;
  for (int i = threadIdx.x; i < kPagePositions * shape.head_dim; i += blockDim.x) {
    const int d = i / kPagePositions, t = i % kPagePositions;
    if (t < end - begin) to[d * kPagePositions + slot + t] = tile[t * width + d];
  }
}

}  // namespace

void launch_rotate_and_store(const RotateProblem& problem, cudaStream_t stream) {
  const HeadsShape& shape = problem.shape;
  const char* const what = "storing keys and values";
  if (shape.head_dim % 4 != 0 || shape.head_dim > kMaximumHeadDim) check(cudaErrorInvalidValue, what);
  // A few tokens scatter their values themselves.
  const bool scatter = problem.tokens <= 4;
  const int sets = scatter ? (shape.heads + 2 * shape.kv_heads + kRotateWarps - 1) / kRotateWarps : 1;
  const bool int8 = problem.cache.is_int8();
  const auto rotate = scatter ? (int8 ? rotate_kernel<true, true> : rotate_kernel<true, false>)
                              : (int8 ? rotate_kernel<false, true> : rotate_kernel<false, false>);
  launch_dependent(rotate, dim3(problem.tokens, sets), 32 * kRotateWarps, 0, stream, what, problem);
  if (scatter) return;
  const size_t bytes = sizeof(__half) * kPagePositions * static_cast<size_t>(shape.head_dim + 2);
  const int pages = problem.tokens / kPagePositions + 2;  // wherever in a page they begin
  launch_dependent(int8 ? store_values_kernel<true> : store_values_kernel<false>, dim3(pages, shape.kv_heads),
                   256, bytes, stream, what, problem);
}

}  // namespace nibble::cuda

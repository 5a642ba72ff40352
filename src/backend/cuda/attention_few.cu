// Attention of a few tokens: bound by reading the cache once. A block takes some keys of one key head for the
// up to 8 query heads that share it, which stand in the upper rows of mma.m16n8k16. Nothing passes through
// shared memory on the way in: a product may add its terms in any order, so lanes load 16 consecutive bytes
// and call the channels (of keys) or positions (of values) in there whatever the operand map wants them to
// be.
//
// A warp's unit is 32 positions (attention_few_unit.cuh). With lane = 4 g + q:
//   scores  lane holds, of tile j, query head g at positions 8 q + 2 j and 8 q + 2 j + 1
//   values  as operand b of tile d (8 channels): column g is channel 8 d + g; the lane's bytes are positions
//           8 q to 8 q + 7: those whose scores it holds
#include <algorithm>

#include "backend/cuda/attention.h"
#include "backend/cuda/attention_few_unit.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps, kRows = 8, kUnit = kUnitPositions, kMaximumTokens = 4;
constexpr int kLeastUnits = 4;  // per block: one per warp
constexpr int kMaximumSplits = 64;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline uint32_t pack(float a, float b) {
  const __half2 pair = __floats2half2_rn(a, b);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Partial results of the blocks of one (token, head set): sums [split][kRows][head_dim], then largest score
// and total [split][kRows].
struct Partials {
  float* sums;
  float2* scales;
  int* arrived;
};

template <int kHeadDim, bool kInt8>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    few_kernel(AttentionProblem problem, int sets_per_head, float* all_sums, float2* all_scales,
               int* all_arrived) {
  constexpr int kParts = kHeadDim / 32, kTiles = kHeadDim / 8;
  __shared__ float sums[kWarps][kRows][kHeadDim];
  __shared__ float2 scales[kWarps][kRows];
  __shared__ uint4 queries[kParts][32];  // operand a as each lane needs it; registers are for keys and values
  __shared__ float factors[kMaximumSplits][kRows];
  __shared__ bool last;
  const HeadsShape shape = problem.shape;
  const int token = blockIdx.z, set = blockIdx.y, kv_head = set / sets_per_head;
  const int sharing = shape.heads / shape.kv_heads, first_row = set % sets_per_head * kRows;
  const int rows = min(kRows, sharing - first_row);
  const int head = kv_head * sharing + first_row;  // of row 0
  const int position = *problem.first_position + token;
  const int begin = problem.window > 0 ? max(0, position - problem.window + 1) : 0;
  const int first_unit = begin / kUnit, units = position / kUnit + 1 - first_unit;
  const int most_splits = min(static_cast<int>(gridDim.x), (units + kLeastUnits - 1) / kLeastUnits);
  const int share = (units + most_splits - 1) / most_splits, splits = (units + share - 1) / share;
  const int split = blockIdx.x;
  if (split >= splits) {
    ptx::wait_for_previous_kernel();
    return;
  }
  const int from_unit = first_unit + split * share, to_unit = min(first_unit + units, from_unit + share);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  FewUnit<kHeadDim, kInt8> loaded;
  const auto load = [&](int unit) {
    const int page = problem.cache.pages[unit * kUnit / kPagePositions], slot = unit * kUnit % kPagePositions;
    loaded.load_keys(problem.cache, page, kv_head, slot, g, q);
    loaded.load_values(problem.cache, page, kv_head, slot, g, q);
  };
  // The previous kernel rotates queries and stores this pass's positions; what is older can be read while it
  // runs.
  const int first = from_unit + warp, newest_unit = *problem.first_position / kUnit;
  const bool early = first < to_unit && first < newest_unit;
  if (early) load(first);
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  if (first < to_unit && !early) load(first);
  if (threadIdx.x < 32) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const __half* const from =
          problem.qkv + token * shape.stride() + int64_t{head + g} * kHeadDim + loaded.query_channel(part, q);
      queries[part][lane] = g < rows ? *reinterpret_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
    }
  }
  __syncthreads();
  float total[kTiles][4];
#pragma unroll
  for (int d = 0; d < kTiles; ++d) total[d][0] = total[d][1] = total[d][2] = total[d][3] = 0;
  float largest = -INFINITY, weight = 0;  // scores are in powers of two
  const float scale = problem.scale * 1.44269504f;

  for (int unit = first; unit < to_unit; unit += kWarps) {
    float score[4][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) score[j][0] = score[j][1] = score[j][2] = score[j][3] = 0;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint4 query = queries[part][lane];
      const uint32_t low[4] = {query.x, 0, query.y, 0}, high[4] = {query.z, 0, query.w, 0};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint4 key = loaded.key(j, part);
        ptx::mma_16x8x16(score[j], low, key.x, key.y);
        ptx::mma_16x8x16(score[j], high, key.z, key.w);
      }
    }
    float now = largest;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = unit * kUnit + 8 * q + 2 * j + e;
        score[j][e] = key <= position && key >= begin ? score[j][e] * scale : -INFINITY;
        now = fmaxf(now, score[j][e]);
      }
    }
    now = fmaxf(now, __shfl_xor_sync(kAllLanes, now, 1));
    now = fmaxf(now, __shfl_xor_sync(kAllLanes, now, 2));  // finite: a unit has a position that is seen
    const float keep = exp2f(largest - now);
    largest = now;
    weight *= keep;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        score[j][e] = exp2f(score[j][e] - now);
        weight += score[j][e];
      }
    }
    const uint32_t low[4] = {pack(score[0][0], score[0][1]), 0, pack(score[1][0], score[1][1]), 0};
    const uint32_t high[4] = {pack(score[2][0], score[2][1]), 0, pack(score[3][0], score[3][1]), 0};
#pragma unroll
    for (int d = 0; d < kTiles; ++d) {
      total[d][0] *= keep;
      total[d][1] *= keep;
      const uint4 value = loaded.value(d);
      ptx::mma_16x8x16(total[d], low, value.x, value.y);
      ptx::mma_16x8x16(total[d], high, value.z, value.w);
    }
    if (unit + kWarps < to_unit) load(unit + kWarps);
  }
  weight += __shfl_xor_sync(kAllLanes, weight, 1);
  weight += __shfl_xor_sync(kAllLanes, weight, 2);

  // Warps of this block, in order.
#pragma unroll
  for (int d = 0; d < kTiles; ++d)
    *reinterpret_cast<float2*>(&sums[warp][g][8 * d + 2 * q]) = {total[d][0], total[d][1]};
  if (q == 0) scales[warp][g] = {largest, weight};
  __syncthreads();
  const int64_t group = int64_t{token} * gridDim.y + set;
  const Partials partials = {all_sums + group * gridDim.x * kRows * kHeadDim,
                             all_scales + group * gridDim.x * kRows, all_arrived + group};
  __half* const out = problem.out + (int64_t{token} * shape.heads + head) * kHeadDim;
  for (int i = threadIdx.x; i < rows * kHeadDim; i += kThreads) {
    const int row = i / kHeadDim, d = i % kHeadDim;
    float top = scales[0][row].x;
#pragma unroll
    for (int w = 1; w < kWarps; ++w) top = fmaxf(top, scales[w][row].x);
    float sum = 0, part = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = exp2f(scales[w][row].x - top);
      sum += sums[w][row][d] * factor;
      part += scales[w][row].y * factor;
    }
    if (splits == 1) {
      out[i] = __float2half_rn(sum / part);
    } else {
      partials.sums[int64_t{split} * kRows * kHeadDim + i] = sum;
      if (d == 0) partials.scales[split * kRows + row] = {top, part};
    }
  }
  if (splits == 1) return;

  // The block that arrives last adds up all splits, in order.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(partials.arrived, 1) == splits - 1;
    if (last) *partials.arrived = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  // Each warp takes rows: lanes hold the splits' scales, then all threads add up with the factors found.
  for (int row = warp; row < rows; row += kWarps) {
    float top = -INFINITY, all = 0;
    for (int s = lane; s < splits; s += 32) top = fmaxf(top, __ldcg(&partials.scales[s * kRows + row]).x);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, step));
    for (int s = lane; s < splits; s += 32) {
      const float2 scale_of = __ldcg(&partials.scales[s * kRows + row]);
      const float factor = exp2f(scale_of.x - top);
      factors[s][row] = factor;
      all += scale_of.y * factor;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) all += __shfl_xor_sync(kAllLanes, all, step);
    __syncwarp();
    for (int s = lane; s < splits; s += 32) factors[s][row] /= all;
  }
  __syncthreads();
  for (int i = 4 * threadIdx.x; i < rows * kHeadDim; i += 4 * kThreads) {
    const int row = i / kHeadDim;
    float4 sum = {0, 0, 0, 0};
#pragma unroll 8
    for (int s = 0; s < splits; ++s) {
      const float4 part =
          __ldcg(reinterpret_cast<const float4*>(&partials.sums[int64_t{s} * kRows * kHeadDim + i]));
      const float factor = factors[s][row];
      sum = {sum.x + part.x * factor, sum.y + part.y * factor, sum.z + part.z * factor,
             sum.w + part.w * factor};
    }
    *reinterpret_cast<uint2*>(out + i) = {pack(sum.x, sum.y), pack(sum.z, sum.w)};
  }
}

struct Plan {
  int sets_per_head, sets, splits;  // splits of one token
  int64_t groups() const { return int64_t{sets} * kMaximumTokens; }
  size_t arrived_bytes() const { return (sizeof(int) * static_cast<size_t>(groups()) + 255) / 256 * 256; }
  size_t scale_bytes() const { return sizeof(float2) * static_cast<size_t>(groups() * splits * kRows); }
};

Plan plan(const HeadsShape& shape, int multiprocessors) {
  Plan made = {};
  made.sets_per_head = (shape.heads / shape.kv_heads + kRows - 1) / kRows;
  made.sets = shape.kv_heads * made.sets_per_head;
  made.splits = std::clamp(kBlocksPerMultiprocessor * multiprocessors / made.sets, 1, kMaximumSplits);
  return made;
}

}  // namespace

size_t attention_workspace_bytes(const HeadsShape& shape, int multiprocessors) {
  const Plan made = plan(shape, multiprocessors);
  return made.arrived_bytes() + made.scale_bytes() +
         sizeof(float) * static_cast<size_t>(made.groups() * made.splits * kRows * shape.head_dim);
}

void launch_attention_few(const AttentionProblem& problem, void* workspace, int multiprocessors,
                          cudaStream_t stream) {
  if (problem.tokens < 1 || problem.tokens > kMaximumTokens)
    check(cudaErrorInvalidValue, "attention of few tokens");
  const Plan made = plan(problem.shape, multiprocessors);
  int* const arrived = static_cast<int*>(workspace);
  float2* const scales = reinterpret_cast<float2*>(static_cast<uint8_t*>(workspace) + made.arrived_bytes());
  float* const sums =
      reinterpret_cast<float*>(static_cast<uint8_t*>(workspace) + made.arrived_bytes() + made.scale_bytes());
  const auto launch = [&](auto kernel) {
    launch_dependent(kernel, dim3(made.splits, made.sets, problem.tokens), kThreads, 0, stream, "attention",
                     problem, made.sets_per_head, sums, scales, arrived);
  };
  const bool int8 = problem.cache.is_int8();
  switch (int8 ? -problem.shape.head_dim : problem.shape.head_dim) {
    case -64:
      return launch(few_kernel<64, true>);
    case -128:
      return launch(few_kernel<128, true>);
    case 32:
      return launch(few_kernel<32, false>);
    case 64:
      return launch(few_kernel<64, false>);
    case 96:
      return launch(few_kernel<96, false>);
    case 128:
      return launch(few_kernel<128, false>);
    default:
      check(cudaErrorInvalidValue, "attention of few tokens");
  }
}

}  // namespace nibble::cuda

// Attention of many tokens, after FlashAttention-2 and -3 (Dao, arXiv 2307.08691; Shah et al., arXiv
// 2407.08608): a block owns 128 queries of one head, two warpgroups of 64 each. One thread keeps a ring of
// tiles filled through the copy engine: 64 keys, then 64 transposed values, and so on. Queries, scores,
// weights and results stay in registers; while the tensor cores multiply the weights of one tile by its
// values and the queries by the next tile's keys, the softmax of the latter waits only for the latter.
#include "backend/cuda/attention.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/wgmma.cuh"
#include "backend/cuda/wgmma_registers.cuh"

namespace nibble::cuda {
namespace {

constexpr int kGroupQueries = 64, kGroups = 2, kTileQueries = kGroups * kGroupQueries,
              kTileKeys = kPagePositions;
constexpr int kThreads = 128 * (kGroups + 1), kStages = 6;
// Registers per thread are given out by warpgroup: the one that copies leaves most of its own to the others.
constexpr int kCopyingRegisters = 24, kMultiplyingRegisters = 240;

template <int kHeadDim>
constexpr int kTileBytes = kTileKeys* kHeadDim * 2;
template <int kHeadDim>
constexpr int kSharedBytes = kStages* kTileBytes<kHeadDim> + 1024;

struct Ring {
  uint32_t bytes, full, empty, tile_bytes;
  int stage = 0;
  uint32_t parity;
  __device__ uint32_t tile() const { return bytes + stage * tile_bytes; }
  __device__ uint32_t filled() const { return full + 8 * stage; }
  __device__ uint32_t emptied() const { return empty + 8 * stage; }
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct Span {
  int first, last;  // tiles of keys, both included
};

template <int kHeadDim>
__device__ void produce(const CacheMaps& maps, const LayerCache& cache, int kv_head, Span span, Ring ring) {
  const auto fill = [&](bool keys, int tile) {
    const int row = cache.pages[tile] * cache.kv_heads + kv_head;
    ptx::barrier_wait(ring.emptied(), ring.parity);
    ptx::barrier_arrive_expecting(ring.filled(), kTileBytes<kHeadDim>);
    if (keys) {
#pragma unroll
      for (int part = 0; part < kHeadDim / 64; ++part) {
        ptx::tile_copy(ring.tile() + part * kTileKeys * 128, &maps.keys, 64 * part, row * kTileKeys,
                       ring.filled());
      }
    } else {
      ptx::tile_copy(ring.tile(), &maps.values, 0, row * kHeadDim, ring.filled());
    }
    ring.advance();
  };
  fill(true, span.first);
  for (int tile = span.first; tile <= span.last; ++tile) {
    if (tile < span.last) fill(true, tile + 1);
    fill(false, tile);
  }
}

// One warpgroup's queries: thread 32 w + 4 g + q has rows 16 w + g and 16 w + g + 8.
template <int kHeadDim>
struct Consumer {
  uint32_t query[kHeadDim / 16][4];
  float sums[kHeadDim / 2];  // [64, kHeadDim] as wgmma has it
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
  uint32_t weights[kTileKeys / 16][4];

  __device__ void multiply_keys(float (&scores)[kTileKeys / 2], uint32_t tile) {
    const uint64_t b = ptx::operand_128b(tile);
#pragma unroll
    for (int i = 0; i < kTileKeys / 2; ++i) scores[i] = 0;
    ptx::keep_registers(scores);
    ptx::warpgroup_arrive();
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const uint64_t at = b + (step / 4) * (kTileKeys * 128 >> 4) + 2 * (step % 4);
      ptx::wgmma_f16(scores, query[step][0], query[step][1], query[step][2], query[step][3], at);
    }
    ptx::warpgroup_commit();
  }

  __device__ void multiply_values(uint32_t tile) {
    const uint64_t b = ptx::operand_128b(tile);
    ptx::keep_registers(sums);
    ptx::warpgroup_arrive();
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; ++step) {
      ptx::wgmma_f16(sums, weights[step][0], weights[step][1], weights[step][2], weights[step][3],
                     b + 2 * step);
    }
    ptx::warpgroup_commit();
  }

  // Scores of keys from `key` on become weights relative to the largest score so far, in place; returns what
  // earlier sums are to be multiplied by. `begin` and `end` bound the keys that each of the rows sees.
  __device__ float2 softmax(float (&scores)[kTileKeys / 2], float scale, int key, bool masked,
                            const int (&begin)[2], const int (&end)[2], int q) {
    float now[2] = {largest[0], largest[1]};
#pragma unroll
    for (int i = 0; i < kTileKeys / 2; ++i) {
      const int row = i / 2 % 2, at = key + i / 4 * 8 + 2 * q + i % 2;
      if (masked && (at < begin[row] || at >= end[row])) scores[i] = -INFINITY;
      now[row] = fmaxf(now[row], scores[i]);
    }
    float keep[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      now[row] = fmaxf(now[row], __shfl_xor_sync(0xffffffffu, now[row], 1));
      now[row] = fmaxf(now[row], __shfl_xor_sync(0xffffffffu, now[row], 2));
      const float offset = now[row] == -INFINITY ? 0.0f : now[row] * scale;  // no key seen yet
      keep[row] = exp2f(largest[row] * scale - offset);
      largest[row] = now[row];
      now[row] = offset;
      total[row] *= keep[row];
    }
#pragma unroll
    for (int i = 0; i < kTileKeys / 2; ++i) {
      const int row = i / 2 % 2;
      scores[i] = exp2f(fmaf(scores[i], scale, -now[row]));
      total[row] += scores[i];
    }
    return {keep[0], keep[1]};
  }

  __device__ void pack_weights(const float (&scores)[kTileKeys / 2]) {
#pragma unroll
    for (int i = 0; i < kTileKeys / 4; ++i) {
      const __half2 pair = __floats2half2_rn(scores[2 * i], scores[2 * i + 1]);
      weights[i / 4][i % 4] = reinterpret_cast<const uint32_t&>(pair);
    }
  }

  __device__ void scale_sums(float2 keep) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) sums[i] *= i / 2 % 2 == 0 ? keep.x : keep.y;
  }
};

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    prompt_kernel(const __grid_constant__ CacheMaps maps, const AttentionProblem problem) {
  extern __shared__ uint8_t dynamic[];
  __shared__ uint64_t full[kStages], empty[kStages];
  const uint32_t bytes = (ptx::shared_address(dynamic) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      ptx::barrier_init(&full[i], 1);
      ptx::barrier_init(&empty[i], 4 * kGroups);  // warps
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();

  const HeadsShape shape = problem.shape;
  const int head = blockIdx.x, kv_head = head / (shape.heads / shape.kv_heads);
  // Late queries see the most keys: they start first.
  const int first_query = (static_cast<int>(gridDim.y) - 1 - static_cast<int>(blockIdx.y)) * kTileQueries;
  const int first_position = *problem.first_position;
  const int last_query = min(first_query + kTileQueries, problem.tokens) - 1;
  Span span = {0, (first_position + last_query) / kTileKeys};
  if (problem.window > 0) span.first = max(0, first_position + first_query - problem.window + 1) / kTileKeys;

  const int group = threadIdx.x / 128;
  if (group == kGroups) {
    ptx::give_registers<kCopyingRegisters>();
    if (threadIdx.x % 128 == 0) {
      produce<kHeadDim>(
          maps, problem.cache, kv_head, span,
          {bytes, ptx::shared_address(full), ptx::shared_address(empty), kTileBytes<kHeadDim>, 0, 1});
    }
    return;
  }

  ptx::take_registers<kMultiplyingRegisters>();
  Ring ring = {bytes, ptx::shared_address(full), ptx::shared_address(empty), kTileBytes<kHeadDim>, 0, 0};
  const int thread = threadIdx.x % 128, lane = thread % 32, g = lane / 4, q = lane % 4;
  const int row = first_query + group * kGroupQueries + thread / 32 * 16 + g;  // and row + 8
  Consumer<kHeadDim> mine;
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = row + i % 2 * 8, column = 16 * step + 2 * q + i / 2 * 8;
      mine.query[step][i] = 0;
      if (token < problem.tokens) {
        mine.query[step][i] = *reinterpret_cast<const uint32_t*>(
            problem.qkv + int64_t{token} * shape.stride() + int64_t{head} * kHeadDim + column);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kHeadDim / 2; ++i) mine.sums[i] = 0;
  const int end[2] = {first_position + row + 1, first_position + row + 9};
  int begin[2] = {0, 0};
  if (problem.window > 0) {
    begin[0] = end[0] - problem.window;
    begin[1] = end[1] - problem.window;
  }
  const float scale = problem.scale * 1.44269504f;
  // Tiles that some row of this warpgroup does not see whole.
  const int group_position = first_position + first_query + group * kGroupQueries;
  const auto is_masked = [&](int tile) {
    return (tile + 1) * kTileKeys > group_position + 1 ||
           (problem.window > 0 && tile * kTileKeys < group_position + kGroupQueries - problem.window);
  };
  const auto release = [&](uint32_t barrier) {
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(barrier);
  };

  float scores[kTileKeys / 2];
  ptx::barrier_wait(ring.filled(), ring.parity);
  mine.multiply_keys(scores, ring.tile());
  ptx::warpgroup_wait<0>();
  ptx::keep_registers(scores);
  release(ring.emptied());
  ring.advance();
  mine.softmax(scores, scale, span.first * kTileKeys, is_masked(span.first), begin, end, q);
  mine.pack_weights(scores);
  for (int tile = span.first; tile < span.last; ++tile) {
    ptx::barrier_wait(ring.filled(), ring.parity);
    const uint32_t keys_emptied = ring.emptied();
    mine.multiply_keys(scores, ring.tile());
    ring.advance();
    ptx::barrier_wait(ring.filled(), ring.parity);
    mine.multiply_values(ring.tile());
    ptx::warpgroup_wait<1>();
    ptx::keep_registers(scores);
    release(keys_emptied);
    const float2 keep =
        mine.softmax(scores, scale, (tile + 1) * kTileKeys, is_masked(tile + 1), begin, end, q);
    ptx::warpgroup_wait<0>();
    ptx::keep_registers(mine.sums);
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; ++step) ptx::keep_registers(mine.weights[step]);
    release(ring.emptied());
    ring.advance();
    mine.scale_sums(keep);
    mine.pack_weights(scores);
  }
  ptx::barrier_wait(ring.filled(), ring.parity);
  mine.multiply_values(ring.tile());
  ptx::warpgroup_wait<0>();
  ptx::keep_registers(mine.sums);

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = mine.total[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    const int token = row + 8 * half;
    if (token >= problem.tokens) continue;
    __half* const out = problem.out + (int64_t{token} * shape.heads + head) * kHeadDim + 2 * q;
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) {
      *reinterpret_cast<__half2*>(out + 8 * j) =
          __floats2half2_rn(mine.sums[4 * j + 2 * half] / total, mine.sums[4 * j + 2 * half + 1] / total);
    }
  }
}

}  // namespace

void launch_attention_prompt(const AttentionProblem& problem, const CacheMaps& maps, cudaStream_t stream) {
  const auto launch = [&](auto kernel, size_t bytes) {
    allow_shared_bytes(kernel, bytes, "attention");
    launch_dependent(kernel, dim3(problem.shape.heads, (problem.tokens + kTileQueries - 1) / kTileQueries),
                     kThreads, bytes, stream, "attention", maps, problem);
  };
  switch (problem.shape.head_dim) {
    case 64:
      return launch(prompt_kernel<64>, kSharedBytes<64>);
    case 128:
      return launch(prompt_kernel<128>, kSharedBytes<128>);
    default:
      check(cudaErrorInvalidValue, "attention of a prompt");
  }
}

}  // namespace nibble::cuda

// Kernels that need whole rows of an input step's FP32 values (input_step.h): one block per token, or a
// cluster of blocks where tokens are few and rows wide, holds the row in registers.
//
//   Team team(...);                            which row, and which of its columns this block has
//   load_row(step, team, exchange, x);         waits for the previous kernel
//   ... over_row(value, team, exchange, combine) ...
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/cluster.cuh"
#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/input_cut.h"
#include "backend/cuda/input_step.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/row_eights.cuh"

namespace nibble::cuda::rows {

// A launch of such a kernel.
inline DependentLaunch row_launch(const Cut& cut, int tokens, size_t shared_bytes, cudaStream_t stream) {
  return {{.grid = dim3(static_cast<unsigned>(tokens * cut.blocks)),
           .block = dim3(static_cast<unsigned>(cut.threads)),
           .shared_bytes = shared_bytes,
           .cluster = cut.blocks > 1 ? cut.blocks : 0},
          stream};
}

// The threads of one row. Eight `i` of a thread's vectors is columns 8 (first + i threads + thread) on, of
// which there are `count` eights in this block.
struct Team {
  int64_t token;
  int blocks, rank, first, count, columns;
  __device__ Team(int row_blocks, int row_columns)
      : token(blockIdx.x / row_blocks),
        blocks(row_blocks),
        rank(static_cast<int>(blockIdx.x % row_blocks)),
        columns(row_columns) {
    const int eights = columns / 8, share = (eights + blocks - 1) / blocks;
    first = min(rank * share, eights);
    count = min(share, eights - first);
    // No block may write into another's shared memory before that one runs.
    if (blocks > 1) ptx::cluster_barrier_relaxed();
  }
  __device__ int eight(int i) const { return static_cast<int>(i * blockDim.x + threadIdx.x); }
};

__device__ inline void store_remote_float2(uint32_t address, float2 v) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(v.x), "f"(v.y) : "memory");
}

// Shared memory of one reduction.
struct Exchange {
  float2 of_warps[kMaximumThreads / 32];
  float2 of_blocks[kMaximumBlocks];
};

// To all threads of the row: all their values combined, in an order that depends on the cut alone. {0, 0} is
// neutral.
template <typename Combine>
__device__ float2 over_row(float2 value, const Team& team, Exchange& exchange, const Combine& combine) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const auto over_lanes = [&](float2 v, int from) {
    for (int step = from; step > 0; step /= 2)
      v = combine(v,
                  float2{__shfl_xor_sync(0xffffffffu, v.x, step), __shfl_xor_sync(0xffffffffu, v.y, step)});
    return v;
  };
  value = over_lanes(value, 16);
  if (lane == 0) exchange.of_warps[warp] = value;
  __syncthreads();
  static_assert(kMaximumThreads / 32 == 16);
  const auto of_block = [&] {
    return over_lanes(lane % 16 < warps ? exchange.of_warps[lane % 16] : float2{0, 0}, 8);
  };
  if (team.blocks == 1) return of_block();
  if (warp == 0) {
    value = of_block();
    if (lane < team.blocks)
      store_remote_float2(ptx::remote_address(ptx::shared_address(&exchange.of_blocks[team.rank]), lane),
                          value);
  }
  ptx::cluster_barrier();
  value = exchange.of_blocks[0];
  for (int block = 1; block < team.blocks; ++block) value = combine(value, exchange.of_blocks[block]);
  return value;
}

__device__ inline float2 sum_of_pairs(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }

// This thread's values of its row; zeros beyond it. The previous kernel has ended afterwards.
template <int kVectors>
__device__ void load_row(const NormStep& step, const Team& team, Exchange& exchange,
                         float (&x)[kVectors][8]) {
  // Weights depend on no kernel: of few tokens they arrive while the previous one ends.
  float early[8];
  if (kVectors == 1 && team.eight(0) < team.count)
    load_floats(step.weight + 8 * (team.first + team.eight(0)), early);
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const int64_t row = team.token * team.columns;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int e = 0; e < 8; ++e) x[i][e] = 0;
    if (team.eight(i) >= team.count) continue;
    const int64_t at = row + 8 * (team.first + team.eight(i));
    load_floats(step.residual + at, x[i]);
    if (step.update != nullptr) {
      float more[8];
      load_halves(step.update + at, more);
#pragma unroll
      for (int e = 0; e < 8; ++e) x[i][e] += more[e];
    }
    if (step.update != nullptr || step.sum != step.residual) store_floats(x[i], step.sum + at);
#pragma unroll
    for (int e = 0; e < 8; ++e) squares += x[i][e] * x[i][e];
  }
  squares = over_row({squares, 0}, team, exchange, sum_of_pairs).x;
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(team.columns) + step.epsilon);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (team.eight(i) >= team.count) continue;
    float weight[8];
    if constexpr (kVectors > 1) load_floats(step.weight + 8 * (team.first + team.eight(i)), weight);
#pragma unroll
    for (int e = 0; e < 8; ++e) x[i][e] = x[i][e] * scale * (kVectors == 1 ? early[e] : weight[e]);
  }
}

template <int kVectors>
__device__ void load_row(const GateStep& step, const Team& team, Exchange&, float (&x)[kVectors][8]) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const __half* const row = step.gate_up + team.token * 2 * team.columns;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int e = 0; e < 8; ++e) x[i][e] = 0;
    if (team.eight(i) >= team.count) continue;
    const int column = 8 * (team.first + team.eight(i));
    load_gated(row + column, row + team.columns + column, x[i]);
  }
}

template <int kVectors>
__device__ void load_row(const FloatStep& step, const Team& team, Exchange&, float (&x)[kVectors][8]) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const float* const row = step.x + team.token * team.columns;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int e = 0; e < 8; ++e) x[i][e] = 0;
    if (team.eight(i) < team.count) load_floats(row + 8 * (team.first + team.eight(i)), x[i]);
  }
}

}  // namespace nibble::cuda::rows

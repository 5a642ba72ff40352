// What becomes of the tile kernel's sums: straight to memory, through the shared memory of a cluster, or
// handed over to another block of threads. T is the kernel's Tile.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/cluster.cuh"
#include "backend/cuda/ptx.cuh"
#include "formats/group_int/cuda/operands.cuh"
#include "formats/group_int/cuda/tile_walk.cuh"

namespace nibble::group_int_cuda {

constexpr int kMultiplierBarrier = 1;
constexpr int kPadding = 4;  // floats after a token's sums: no bank conflicts

// A thread's, as wgmma leaves them.
template <typename T>
using TileSums = float[T::kTokens / 2];

// Rows `row` and `row` + 1, even, of one token.
__device__ inline void store_pair(const TileArguments& a, int row, int token, __half2 values) {
  __half* const y = a.y + token * a.y_stride + row;
  if (a.y_stride % 2 == 0 && row + 1 < a.n) {
    *reinterpret_cast<__half2*>(y) = values;
  } else {
    if (row < a.n) y[0] = __low2half(values);
    if (row + 1 < a.n) y[1] = __high2half(values);
  }
}

// Sums as wgmma leaves them, of the 16 rows from `row` and the tokens from `token`.
template <typename T>
__device__ void store_sums(const TileSums<T>& d, const TileArguments& a, int row, int token, int lane) {
  const int g = lane / 4, q = lane % 4;
  float bias[2] = {0, 0};
  if (a.bias != nullptr) {
    if (row + g < a.n) bias[0] = a.bias[row + g];
    if (row + g + 8 < a.n) bias[1] = a.bias[row + g + 8];
  }
#pragma unroll
  for (int j = 0; j < T::kTokens / 8; ++j) {
    const int to = token + 8 * j + g;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const __half2 pair =
          __floats2half2_rn(d[4 * j + 2 * half] + bias[half], d[4 * j + 2 * half + 1] + bias[half]);
      // Now two rows of one token.
      const __half2 rows = as_half2(ptx::transpose_8x8(as_bits(pair)));
      if (to < a.tokens) store_pair(a, row + 8 * half + 2 * q, to, rows);
    }
  }
}

// Sums [T::kTokens][kRows + kPadding] of every block of the cluster, at `sums` in its shared memory: adds
// them in the order of the blocks. Each block takes a share of the tokens.
template <typename T>
__device__ void add_cluster(uint32_t sums, const TileArguments& a, int row, int token, uint32_t rank) {
  constexpr int kVectors = T::kRows / 4;
  const int valid = min(T::kTokens, a.tokens - token);
  const int first = valid * static_cast<int>(rank) / a.split,
            last = valid * (static_cast<int>(rank) + 1) / a.split;
  for (int i = threadIdx.x; i < (last - first) * kVectors; i += 32 * T::kWarps) {
    const int t = first + i / kVectors, r = i % kVectors * 4;
    const uint32_t at = sums + (t * (T::kRows + kPadding) + r) * 4;
    float4 total = {0, 0, 0, 0};
#pragma unroll 4
    for (int other = 0; other < a.split; ++other) {
      const float4 v = ptx::load_remote_float4(ptx::remote_address(at, other));
      total = {total.x + v.x, total.y + v.y, total.z + v.z, total.w + v.w};
    }
    if (a.bias != nullptr) {
      if (row + r < a.n) total.x += a.bias[row + r];
      if (row + r + 1 < a.n) total.y += a.bias[row + r + 1];
      if (row + r + 2 < a.n) total.z += a.bias[row + r + 2];
      if (row + r + 3 < a.n) total.w += a.bias[row + r + 3];
    }
    store_pair(a, row + r, token + t, __floats2half2_rn(total.x, total.y));
    store_pair(a, row + r + 2, token + t, __floats2half2_rn(total.z, total.w));
  }
}

// The sums of the tile whose columns a cluster shares, through the shared memory at `shared`, which has been
// read when all multiplying warps of the block are here.
template <typename T>
__device__ void store_cluster_sums(const TileSums<T>& d, const TileArguments& a, uint8_t* shared, int warp,
                                   int lane) {
  ptx::named_barrier(kMultiplierBarrier, 32 * T::kWarps);
  float* const sums = reinterpret_cast<float*>(shared) + warp * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < T::kTokens / 2; ++i) {
    const int t = i / 4 * 8 + lane % 4 * 2 + i % 2;
    sums[t * (T::kRows + kPadding) + i % 4 / 2 * 8] = d[i];
  }
  ptx::cluster_barrier();
  const TileWalk only(a);
  add_cluster<T>(ptx::shared_address(shared), a, only.row_tile() * T::kRows, only.token_tile() * T::kTokens,
                 ptx::cluster_rank());
  ptx::cluster_barrier_relaxed();  // nobody leaves while others read its memory
}

// Partial sums go through the L2; a flag says that they are there.
template <typename T>
__device__ void hand_over(const TileSums<T>& d, const TileArguments& a) {
  constexpr int kThreads = 32 * T::kWarps;
  float* const to = a.partials + int64_t{blockIdx.x} * (T::kTokens / 2) * kThreads + threadIdx.x;
#pragma unroll
  for (int i = 0; i < T::kTokens / 2; ++i) __stcg(to + i * kThreads, d[i]);
  __threadfence();
  ptx::named_barrier(kMultiplierBarrier, kThreads);
  if (threadIdx.x == 0) {
    asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(a.flags + blockIdx.x) : "memory");
  }
}

// Adds what the following blocks of threads have of the unit whose first `covered` blocks are in d, in their
// order. They did it first of all, so that it is there already unless ranges are shorter than a unit.
template <typename T>
__device__ void collect(TileSums<T>& d, const TileArguments& a, int covered) {
  constexpr int kThreads = 32 * T::kWarps;
  for (int worker = blockIdx.x / a.share + 1; covered < a.blocks; ++worker) {
    covered += range_begin(a, worker + 1) - range_begin(a, worker);
    const int other = worker * a.share + blockIdx.x % a.share;
    if (threadIdx.x == 0) {
      uint32_t there = 0;
      while (there == 0) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(a.flags + other) : "memory");
      }
    }
    ptx::named_barrier(kMultiplierBarrier, kThreads);
    const float* const from = a.partials + int64_t{other} * (T::kTokens / 2) * kThreads + threadIdx.x;
#pragma unroll
    for (int i = 0; i < T::kTokens / 2; ++i) d[i] += __ldcg(from + i * kThreads);
    ptx::named_barrier(kMultiplierBarrier, kThreads);
    if (threadIdx.x == 0) a.flags[other] = 0;  // for the next launch
  }
}

}  // namespace nibble::group_int_cuda

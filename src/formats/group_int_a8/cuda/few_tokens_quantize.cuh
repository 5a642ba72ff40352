// What the quantization of few tokens shares between group_int_a8 and quik. One block per token, which keeps
// the token in registers: at few tokens it is the latency of one that counts. Maxima are taken of the bits of
// FP16 magnitudes, which order like the magnitudes and put infinities and NaNs (0x7C00 and above) on top.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/device.h"
#include "backend/cuda/ptx.cuh"

namespace nibble::few_tokens {
namespace {

// Small enough to start beside the blocks of the previous product.
constexpr int kThreads = 512;
constexpr int kColumnsPerTurn = 8 * kThreads;  // a thread takes 8 consecutive columns, then the next turn's
constexpr uint32_t kInfinityBits = 0x7C00;

// Eight FP16 values from `column` of a row of k; zeros beyond it.
__device__ inline uint4 load_eight(const __half* row, int column, int k) {
  uint4 bits = {0, 0, 0, 0};
  if (k % 8 == 0) {
    if (column < k) bits = *reinterpret_cast<const uint4*>(row + column);
    return bits;
  }
  const auto half = [&](int i) -> uint32_t { return column + i < k ? __half_as_ushort(row[column + i]) : 0; };
  return {half(0) | half(1) << 16, half(2) | half(3) << 16, half(4) | half(5) << 16, half(6) | half(7) << 16};
}
__device__ inline uint32_t half_bits(const uint4& eight, int i) {
  const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
  return words[i / 2] >> (16 * (i % 2)) & 0xFFFF;
}
__device__ inline float half_value(const uint4& eight, int i) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(half_bits(eight, i))));
}
__device__ inline float magnitude(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// The largest of all threads' low and high halves of `pair`, to all threads.
__device__ inline uint32_t block_maximum(uint32_t pair, uint32_t (&of_warps)[2][kThreads / 32]) {
  const uint32_t low = __reduce_max_sync(0xffffffffu, pair & 0xFFFF),
                 high = __reduce_max_sync(0xffffffffu, pair >> 16);
  if (threadIdx.x % 32 == 0) {
    of_warps[0][threadIdx.x / 32] = low;
    of_warps[1][threadIdx.x / 32] = high;
  }
  __syncthreads();
  const int warp = threadIdx.x % (kThreads / 32);
  return __reduce_max_sync(0xffffffffu, of_warps[0][warp]) | __reduce_max_sync(0xffffffffu, of_warps[1][warp])
                                                                 << 16;
}

// A launch of one block per token.
inline cuda::DependentLaunch token_launch(int tokens, int threads, size_t shared_bytes, cudaStream_t stream) {
  return {{.grid = dim3(static_cast<unsigned>(tokens)),
           .block = dim3(static_cast<unsigned>(threads)),
           .shared_bytes = shared_bytes,
           .early = cuda::on_hopper()},
          stream};
}

// Calls `launch` with the number of turns that k columns take, as a constant: 1, 2, 4, 8 or 16.
template <typename Launch>
cudaError_t for_turns(int k, const Launch& launch) {
  if (k <= kColumnsPerTurn) return launch.template operator()<1>();
  if (k <= 2 * kColumnsPerTurn) return launch.template operator()<2>();
  if (k <= 4 * kColumnsPerTurn) return launch.template operator()<4>();
  if (k <= 8 * kColumnsPerTurn) return launch.template operator()<8>();
  if (k <= 16 * kColumnsPerTurn) return launch.template operator()<16>();
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace nibble::few_tokens

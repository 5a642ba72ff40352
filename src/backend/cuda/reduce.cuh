// Sums over a warp and over a block.
#pragma once

namespace nibble::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(kAllLanes, value, lane);
  return value;
}

// Every thread gets the sum over the block; blocks of up to 1024 threads.
__device__ inline float block_sum(float value) {
  __shared__ float sums[32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / 32;
  return warp_sum(static_cast<int>(threadIdx.x % 32) < warps ? sums[threadIdx.x % 32] : 0.0f);
}

}  // namespace nibble::cuda

// What the quantization of few tokens shares between group_int_a8 and quik. One block per token: its range,
// then its codes. At few tokens a token's latency is what counts, hence large blocks; the row is read twice,
// the second time from the cache.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/ptx.cuh"

namespace nibble::few_tokens {
namespace {

constexpr int kThreads = 1024;

// Eight consecutive values from `column` on; zeros beyond k.
struct Eight {
  float value[8];
};
__device__ inline Eight load_eight(const __half* row, int column, int k) {
  Eight eight;
  if (k % 8 == 0) {
    const uint4 bits = *reinterpret_cast<const uint4*>(row + column);
    const __half2* const pairs = reinterpret_cast<const __half2*>(&bits);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = __half22float2(pairs[i]);
      eight.value[2 * i] = pair.x;
      eight.value[2 * i + 1] = pair.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) eight.value[i] = column + i < k ? __half2float(row[column + i]) : 0.0f;
  }
  return eight;
}

// The largest of all threads' values (nothing is smaller than 0), to all threads.
__device__ inline float block_maximum(float value, float* shared) {
  for (int lane = 16; lane > 0; lane /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lane));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[threadIdx.x % 32];
  for (int lane = 16; lane > 0; lane /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lane));
  return value;
}

// A launch that may start before the previous kernel has ended.
struct TokenLaunch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};
  TokenLaunch(int tokens, size_t shared, cudaStream_t stream) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(tokens);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  TokenLaunch(const TokenLaunch&) = delete;
  TokenLaunch& operator=(const TokenLaunch&) = delete;
};

}  // namespace
}  // namespace nibble::few_tokens

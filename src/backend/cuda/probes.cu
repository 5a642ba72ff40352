#include "backend/cuda/probes.h"

namespace nibble::cuda {
namespace {

// Mixes an index into a random word (the finalizer of MurmurHash3).
__device__ inline uint32_t random_word(uint64_t index, uint32_t seed) {
  uint32_t h =
      static_cast<uint32_t>(index) * 0x9E3779B9u ^ static_cast<uint32_t>(index >> 32) * 0x85EBCA6Bu ^ seed;
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  return h ^ (h >> 16);
}

__global__ void random_words(uint32_t* data, size_t count, uint32_t seed) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step)
    data[i] = random_word(i, seed);
}

__global__ void random_halves(__half* data, size_t count, float scale, uint32_t seed) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const float unit = static_cast<float>(random_word(i, seed) >> 8) * (2.0f / 16777216.0f) - 1.0f;
    data[i] = __float2half_rn(unit * scale);
  }
}

__global__ void __launch_bounds__(512) sum_words(const uint4* data, size_t count, uint32_t* sum) {
  constexpr int kAhead = 8;
  uint32_t total = 0;
  const size_t step = size_t{gridDim.x} * blockDim.x;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + (kAhead - 1) * step < count; i += kAhead * step) {
    uint4 words[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) words[j] = __ldcs(data + i + j * step);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) total += words[j].x ^ words[j].y ^ words[j].z ^ words[j].w;
  }
  for (; i < count; i += step) total += data[i].x ^ data[i].y ^ data[i].z ^ data[i].w;
  for (int lane = 16; lane > 0; lane /= 2) total += __shfl_xor_sync(0xffffffffu, total, lane);
  if (threadIdx.x % 32 == 0) atomicAdd(sum, total);
}

}  // namespace

cudaError_t fill_random_bytes(void* data, size_t bytes, uint32_t seed, cudaStream_t stream) {
  random_words<<<1056, 256, 0, stream>>>(static_cast<uint32_t*>(data), bytes / 4, seed);
  return cudaGetLastError();
}

cudaError_t fill_random_half(__half* data, size_t count, float scale, uint32_t seed, cudaStream_t stream) {
  random_halves<<<1056, 256, 0, stream>>>(data, count, scale, seed);
  return cudaGetLastError();
}

cudaError_t read_all(const void* data, size_t bytes, uint32_t* sum, int multiprocessors,
                     cudaStream_t stream) {
  sum_words<<<4 * multiprocessors, 512, 0, stream>>>(static_cast<const uint4*>(data), bytes / 16, sum);
  return cudaGetLastError();
}

}  // namespace nibble::cuda

// Two warpgroups per multiprocessor, each adding products of 64 x 256 on the same sums again and again: the
// longest instruction there is, so that nothing but the tensor cores can be what takes the time.
#include "backend/cuda/peaks.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/wgmma_int8.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kRows = 64, kTokens = 256, kRowBytes = 128, kSteps = 4;
constexpr int kOperandBytes = kTokens * kRowBytes;
static_assert(kOperandBytes + 16 * kThreads * kSteps <= kPeakDataBytes);

template <bool kIntegers>
__device__ inline void multiply_again(const uint4* data, int rounds, int* sink) {
  extern __shared__ __align__(1024) uint4 operand[];
  for (int i = threadIdx.x; i < kOperandBytes / 16; i += kThreads) operand[i] = data[i];
  // The tensor cores read shared memory past the order of ordinary writes.
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  uint4 a[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    a[step] = data[kOperandBytes / 16 + step * kThreads + threadIdx.x];
  const uint64_t b = ptx::operand_128b(ptx::shared_address(operand));
  int32_t sums[kTokens / 2] = {};
  for (int round = 0; round < rounds; ++round) {
    ptx::fence_registers(sums);
    ptx::warpgroup_arrive();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint4& words = a[step];
      if constexpr (kIntegers) {
        ptx::WgmmaRegisters<kTokens>::s8u8(sums, words.x, words.y, words.z, words.w, b + 2 * step);
      } else {
        ptx::WgmmaRegisters<kTokens>::f16(sums, words.x, words.y, words.z, words.w, b + 2 * step);
      }
    }
    ptx::warpgroup_commit();
    ptx::warpgroup_wait<0>();
    ptx::fence_registers(sums);
  }
  int32_t all = 0;
#pragma unroll
  for (const int32_t sum : sums) all ^= sum;
  if (all == 0x5EED) *sink = all;
}

__global__ void __launch_bounds__(kThreads, 1) int8_peak_kernel(const uint4* data, int rounds, int* sink) {
  multiply_again<true>(data, rounds, sink);
}
__global__ void __launch_bounds__(kThreads, 1) half_peak_kernel(const uint4* data, int rounds, int* sink) {
  multiply_again<false>(data, rounds, sink);
}

}  // namespace

cudaError_t launch_peak(PeakNumbers numbers, const void* data, int rounds, int* sink, int multiprocessors,
                        cudaStream_t stream) {
  auto* const kernel = numbers == PeakNumbers::kInt8 ? int8_peak_kernel : half_peak_kernel;
  kernel<<<multiprocessors, kThreads, kOperandBytes, stream>>>(static_cast<const uint4*>(data), rounds, sink);
  return cudaGetLastError();
}

double peak_operations(PeakNumbers numbers, int rounds, int multiprocessors) {
  const double columns = numbers == PeakNumbers::kInt8 ? 32 : 16;  // of one instruction
  return 2.0 * kRows * kTokens * columns * (kThreads / 128) * kSteps * rounds * multiprocessors;
}

}  // namespace nibble::cuda

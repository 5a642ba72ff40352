// Signed activation codes of few tokens.
#include "formats/group_int_a8/cuda/few_tokens.h"
#include "formats/group_int_a8/cuda/few_tokens_quantize.cuh"

namespace nibble::group_int_a8_cuda {
namespace {

using namespace few_tokens;

__global__ void __launch_bounds__(kThreads)
    quantize_signed_kernel(const __half* x, int k, float activation_scale, uint8_t* codes, float* scales,
                           int32_t* zeros) {
  __shared__ float largest_of_warps[kThreads / 32];
  ptx::launch_dependents();
  ptx::wait_for_previous_kernel();
  const int token = blockIdx.x, stride = (k + 15) / 16 * 16;
  const __half* const row = x + int64_t{token} * k;
  float largest = 0;
  bool finite = true;
  for (int j = threadIdx.x * 8; j < k; j += kThreads * 8) {
    const Eight eight = load_eight(row, j, k);
#pragma unroll
    for (const float value : eight.value) {
      largest = fmaxf(largest, fabsf(value));
      finite = finite && isfinite(value);
    }
  }
  largest = block_maximum(largest, largest_of_warps);
  finite = __syncthreads_and(finite);
  const float scale = activation_scale > 0 ? activation_scale : __fdiv_rn(largest, 127.0f);
  const bool empty = !finite || scale == 0;
  const int zero = zeros == nullptr ? 0 : 128;
  for (int j = threadIdx.x * 8; j < stride; j += kThreads * 8) {
    const Eight eight = load_eight(row, min(j, (k - 1) / 8 * 8), k);
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int code = empty ? 0 : __float2int_rn(__fdiv_rn(eight.value[i], scale));
      words[i / 4] |= ((min(max(code, -127), 127) + zero) & 0xFFu) << (8 * (i % 4));
    }
    *reinterpret_cast<uint2*>(codes + int64_t{token} * stride + j) = make_uint2(words[0], words[1]);
  }
  if (threadIdx.x == 0) {
    scales[token] = finite ? scale : __int_as_float(0x7FC00000);
    if (zeros != nullptr) zeros[token] = zero;
  }
}

}  // namespace

cudaError_t launch_quantize_signed(const __half* x, int tokens, int k, float activation_scale, uint8_t* codes,
                                   float* scales, int32_t* zeros, cudaStream_t stream) {
  const TokenLaunch launch(tokens, 0, stream);
  return cudaLaunchKernelEx(&launch.config, quantize_signed_kernel, x, k, activation_scale, codes, scales,
                            zeros);
}

}  // namespace nibble::group_int_a8_cuda

// Unsigned activation codes of few tokens, and their outlier columns.
#include "formats/group_int_a8/cuda/few_tokens_quantize.cuh"
#include "formats/quik/cuda/few_tokens.h"

namespace nibble::quik_cuda {
namespace {

using namespace few_tokens;

// Bytes of codes in shared memory, because their places are no runs of columns.
__global__ void __launch_bounds__(kThreads)
    quantize_quik_kernel(const __half* x, int k, const FewTokensColumns columns, int bits,
                         const FewTokensCodes out) {
  extern __shared__ __align__(16) uint8_t row_codes[];
  __shared__ float low_of_warps[kThreads / 32], high_of_warps[kThreads / 32];
  ptx::launch_dependents();
  for (int j = threadIdx.x * 16; j < out.code_stride; j += kThreads * 16) {
    *reinterpret_cast<uint4*>(row_codes + j) = make_uint4(0, 0, 0, 0);
  }
  ptx::wait_for_previous_kernel();
  const int token = blockIdx.x;
  const __half* const row = x + int64_t{token} * k;
  float low = 0, high = 0;  // low is minus the smallest
  bool finite = true;
  for (int j = threadIdx.x * 8; j < k; j += kThreads * 8) {
    const Eight eight = load_eight(row, j, k);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (j + i >= k || __ldg(columns.places + j + i) < 0) continue;
      low = fmaxf(low, -eight.value[i]);
      high = fmaxf(high, eight.value[i]);
      finite = finite && isfinite(eight.value[i]);
    }
  }
  low = block_maximum(low, low_of_warps);
  high = block_maximum(high, high_of_warps);
  finite = __syncthreads_and(finite);
  const int top = (1 << bits) - 1;
  float scale = __fdiv_rn(high + low, static_cast<float>(top));
  if (scale == 0.0f) {
    low = 1.0f;
    scale = __fdiv_rn(2.0f, static_cast<float>(top));
  }
  const int zero = finite ? __float2int_rn(__fdiv_rn(low, scale)) : 0;
  for (int j = threadIdx.x * 8; j < k; j += kThreads * 8) {
    const Eight eight = load_eight(row, j, k);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (j + i >= k) break;
      const int place = __ldg(columns.places + j + i);
      if (place < 0) {
        out.outliers[int64_t{token} * out.outlier_stride + ~place] = __float2half_rn(eight.value[i]);
      } else if (finite) {
        const int code = __float2int_rn(__fdiv_rn(eight.value[i], scale)) + zero;
        row_codes[place] = static_cast<uint8_t>(min(max(code, 0), top));
      }
    }
  }
  __syncthreads();
  for (int j = threadIdx.x * 16; j < out.code_stride; j += kThreads * 16) {
    *reinterpret_cast<uint4*>(out.codes + int64_t{token} * out.code_stride + j) =
        *reinterpret_cast<const uint4*>(row_codes + j);
  }
  if (threadIdx.x == 0) {
    out.scales[token] = finite ? scale : __int_as_float(0x7FC00000);
    out.zeros[token] = zero;
  }
}

}  // namespace

cudaError_t launch_quantize_few(const __half* x, int tokens, int k, const FewTokensColumns& columns, int bits,
                                const FewTokensCodes& out, cudaStream_t stream) {
  if ((bits != 4 && bits != 8) || out.code_stride % 16 != 0) return cudaErrorInvalidValue;
  const auto bytes = static_cast<size_t>(out.code_stride);
  if (bytes > 48 << 10) {
    if (const cudaError_t error =
            cudaFuncSetAttribute(quantize_quik_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(bytes));
        error != cudaSuccess) {
      return error;
    }
  }
  const TokenLaunch launch(tokens, bytes, stream);
  return cudaLaunchKernelEx(&launch.config, quantize_quik_kernel, x, k, columns, bits, out);
}

}  // namespace nibble::quik_cuda

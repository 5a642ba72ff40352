// One block per token: the row in shared memory, its range over the integer columns, then codes and outliers.
#include "backend/cuda/ptx.cuh"
#include "formats/quik/cuda/product.h"

namespace nibble::quik_cuda {
namespace {

constexpr int kThreads = 256;

__device__ inline float warp_min(float v) {
  for (int lane = 16; lane > 0; lane /= 2) v = fminf(v, __shfl_xor_sync(0xffffffffu, v, lane));
  return v;
}
__device__ inline float warp_max(float v) {
  for (int lane = 16; lane > 0; lane /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, lane));
  return v;
}

__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const __half* x, const Weights weights, int bits, Activations out) {
  extern __shared__ __align__(16) __half row[];
  __shared__ float low[kThreads / 32], high[kThreads / 32];
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const int k = weights.k_int + weights.outliers, token = blockIdx.x;
  const __half* const from = x + int64_t{token} * k;
  if (k % 8 == 0) {
    for (int i = threadIdx.x * 8; i < k; i += kThreads * 8) {
      *reinterpret_cast<uint4*>(row + i) = *reinterpret_cast<const uint4*>(from + i);
    }
  } else {
    for (int i = threadIdx.x; i < k; i += kThreads) row[i] = from[i];
  }
  __syncthreads();

  float lo = 0, hi = 0;
  for (int j = threadIdx.x; j < weights.k_int; j += kThreads) {
    const float value = __half2float(row[__ldg(weights.integer_columns + j)]);
    lo = fminf(lo, value);
    hi = fmaxf(hi, value);
  }
  lo = warp_min(lo);
  hi = warp_max(hi);
  if (threadIdx.x % 32 == 0) {
    low[threadIdx.x / 32] = lo;
    high[threadIdx.x / 32] = hi;
  }
  __syncthreads();
  for (int i = 0; i < kThreads / 32; ++i) {
    lo = fminf(lo, low[i]);
    hi = fmaxf(hi, high[i]);
  }
  const int top = (1 << bits) - 1;
  float scale = __fdiv_rn(hi - lo, static_cast<float>(top));
  if (scale == 0.0f) {
    lo = -1.0f;
    scale = __fdiv_rn(2.0f, static_cast<float>(top));
  }
  const int zero = __float2int_rn(__fdiv_rn(-lo, scale));

  uint8_t* const codes = out.codes + int64_t{token} * out.code_stride;
  for (int j = threadIdx.x * 4; j < out.code_stride; j += kThreads * 4) {
    uint32_t word = 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (j + e >= weights.k_int) break;
      const float value = __half2float(row[__ldg(weights.integer_columns + j + e)]);
      const int code = __float2int_rn(__fdiv_rn(value, scale)) + zero;
      word |= static_cast<uint32_t>(min(max(code, 0), top)) << (8 * e);
    }
    *reinterpret_cast<uint32_t*>(codes + j) = word;
  }
  for (int o = threadIdx.x; o < weights.outliers; o += kThreads) {
    out.outliers[int64_t{token} * out.outlier_stride + o] = row[__ldg(weights.outlier_columns + o)];
  }
  if (threadIdx.x == 0) {
    out.scales[token] = scale;
    out.zeros[token] = zero;
  }
}

}  // namespace

cudaError_t launch_quantize(const __half* x, const Weights& weights, int bits, const Activations& out,
                            cudaStream_t stream) {
  if ((bits != 4 && bits != 8) || out.code_stride % 16 != 0 || out.code_stride < weights.k_int) {
    return cudaErrorInvalidValue;
  }
  const size_t bytes = sizeof(__half) * static_cast<size_t>(weights.k_int + weights.outliers + 8);
  if (bytes > 48 << 10) {
    if (const cudaError_t error = cudaFuncSetAttribute(
            quantize_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        error != cudaSuccess) {
      return error;
    }
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(out.tokens);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, quantize_kernel, x, weights, bits, out);
}

}  // namespace nibble::quik_cuda

// Codes and scales of the 8-bit cache, bit for bit as the CPU makes them (kernels/cache_row.h, kQ8).
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/kv_cache.h"

namespace nibble::cuda {

// What a code means before its scale.
inline constexpr int kCodeZero = 128;

// One value per lane of a warp, zeros where there is none: the group's scale and the lane's code.
struct CacheCode {
  __half scale;
  uint8_t code;
};
__device__ inline CacheCode cache_code(float value) {
  const bool finite = __all_sync(0xffffffffu, isfinite(value));
  float largest = fabsf(value);
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
  if (!finite) return {__ushort_as_half(0x7E00), kCodeZero};
  const __half scale = __float2half_rn(fminf(__fdiv_rn(largest, 127.0f), 65504.0f));
  const float step = __half2float(scale), inverse = step > 0 ? __frcp_rn(step) : 0.0f;
  const float code = fminf(fmaxf(__fmul_rn(value, inverse), -127.0f), 127.0f);
  return {scale, static_cast<uint8_t>(__float2int_rn(code) + kCodeZero)};
}

// The four bytes of `codes` as u - 128 in FP16, exactly: a byte under the exponent of 1024 is 1024 + u.
struct FourHalves {
  __half2 low, high;
};
__device__ inline FourHalves four_codes(uint32_t codes) {
  const __half2 bias = __float2half2_rn(1024.0f + kCodeZero);
  const uint32_t low = __byte_perm(codes, 0x64646464, 0x4140), high = __byte_perm(codes, 0x64646464, 0x4342);
  return {__hsub2(reinterpret_cast<const __half2&>(low), bias),
          __hsub2(reinterpret_cast<const __half2&>(high), bias)};
}

}  // namespace nibble::cuda

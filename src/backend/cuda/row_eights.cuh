// Eight consecutive values of a row, as one thread holds them: from memory and back, 16-byte aligned there.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace nibble::cuda::rows {

__device__ inline void load_floats(const float* from, float (&x)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ inline void store_floats(const float (&x)[8], float* to) {
  reinterpret_cast<float4*>(to)[0] = {x[0], x[1], x[2], x[3]};
  reinterpret_cast<float4*>(to)[1] = {x[4], x[5], x[6], x[7]};
}
__device__ inline void load_halves(const __half* from, float (&x)[8]) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(reinterpret_cast<const __half2&>(words[i]));
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}
__device__ inline void store_halves(const float (&x)[8], __half* to) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __half2 pair = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
    words[i] = reinterpret_cast<const uint32_t&>(pair);
  }
  *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
}

// x / (1 + e^-x)
__device__ inline float silu(float x) {
  // e^-x as __expf has it, but without the care for results below 2^-126: 1 is added to them.
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-x * 1.4426950408889634f));
  return x * __fdividef(1.0f, 1.0f + power);
}
// x = silu(gate) * up
__device__ inline void load_gated(const __half* gate, const __half* up, float (&x)[8]) {
  float factors[8];
  load_halves(gate, x);
  load_halves(up, factors);
#pragma unroll
  for (int e = 0; e < 8; ++e) x[e] = silu(x[e]) * factors[e];
}

}  // namespace nibble::cuda::rows

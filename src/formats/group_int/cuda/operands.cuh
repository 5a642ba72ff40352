// From packed codes to FP16 operands; see decode_layout.h for which nibble is which weight.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace nibble::group_int_cuda {

__device__ inline __half2 as_half2(uint32_t bits) { return reinterpret_cast<const __half2&>(bits); }
__device__ inline uint32_t as_bits(__half2 value) { return reinterpret_cast<const uint32_t&>(value); }

// The four registers of one product's operand, u - 8 each: exact.
__device__ inline void decode_word(uint32_t word, uint32_t (&a)[4]) {
  constexpr uint32_t kMagic = 0x64006400;  // F16 1024 + what is in its lowest bits
  const uint32_t upper = word >> 8;
  const __half2 minus_1032 = __float2half2_rn(-1032.0f), minus_72 = __float2half2_rn(-72.0f);
  const __half2 sixteenth = __float2half2_rn(0.0625f);
  const auto low = [&](uint32_t bits) {
    return as_bits(__hadd2(as_half2((bits & 0x000F000F) | kMagic), minus_1032));
  };
  const auto high = [&](uint32_t bits) {  // 1024 + 16 u
    return as_bits(__hfma2(as_half2((bits & 0x00F000F0) | kMagic), sixteenth, minus_72));
  };
  a[0] = low(word);
  a[1] = high(word);
  a[2] = low(upper);
  a[3] = high(upper);
}

// The same times the scales of rows g and g + 8, rounded to F16 once.
__device__ inline void decode_word(uint32_t word, __half2 scale, __half2 scale_8, uint32_t (&a)[4]) {
  decode_word(word, a);
  a[0] = as_bits(__hmul2(as_half2(a[0]), scale));
  a[1] = as_bits(__hmul2(as_half2(a[1]), scale_8));
  a[2] = as_bits(__hmul2(as_half2(a[2]), scale));
  a[3] = as_bits(__hmul2(as_half2(a[3]), scale_8));
}

}  // namespace nibble::group_int_cuda

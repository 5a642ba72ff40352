// From packed codes to FP16 operands; see decode_layout.h for which nibble is which weight.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace nibble::group_int_cuda {

__device__ inline __half2 as_half2(uint32_t bits) { return reinterpret_cast<const __half2&>(bits); }
__device__ inline uint32_t as_bits(__half2 value) { return reinterpret_cast<const uint32_t&>(value); }

// Of the ring in shared memory, by its address there.
__device__ inline uint4 load_shared_uint4(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}
__device__ inline __half load_shared_half(uint32_t address) {
  unsigned short v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
  return __ushort_as_half(v);
}

// (bits & mask) | magic as one instruction: the compiler makes two of it where both are constants.
template <uint32_t kMask>
__device__ inline uint32_t masked_or(uint32_t bits, uint32_t magic) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(result) : "r"(bits), "n"(kMask), "r"(magic));
  return result;
}

// 1024 in both halves, F16, whose lowest bits take a code. From a register that the compiler does not see
// into.
__device__ inline uint32_t decode_magic() {
  uint32_t magic;
  asm volatile("mov.b32 %0, 0x64006400;" : "=r"(magic));
  return magic;
}

// The four registers of one product's operand, u - 8 each: exact.
__device__ inline void decode_word(uint32_t word, uint32_t magic, uint32_t (&a)[4]) {
  const uint32_t upper = word >> 8;
  const __half2 minus_1032 = __float2half2_rn(-1032.0f), minus_72 = __float2half2_rn(-72.0f);
  const __half2 sixteenth = __float2half2_rn(0.0625f);
  const auto low = [&](uint32_t bits) {
    return as_bits(__hadd2(as_half2(masked_or<0x000F000F>(bits, magic)), minus_1032));
  };
  const auto high = [&](uint32_t bits) {  // 1024 + 16 u
    return as_bits(__hfma2(as_half2(masked_or<0x00F000F0>(bits, magic)), sixteenth, minus_72));
  };
  a[0] = low(word);
  a[1] = high(word);
  a[2] = low(upper);
  a[3] = high(upper);
}

// The same times the scales of rows g and g + 8, rounded to F16 once.
__device__ inline void decode_word(uint32_t word, uint32_t magic, __half2 scale, __half2 scale_8,
                                   uint32_t (&a)[4]) {
  decode_word(word, magic, a);
  a[0] = as_bits(__hmul2(as_half2(a[0]), scale));
  a[1] = as_bits(__hmul2(as_half2(a[1]), scale_8));
  a[2] = as_bits(__hmul2(as_half2(a[2]), scale));
  a[3] = as_bits(__hmul2(as_half2(a[3]), scale_8));
}

}  // namespace nibble::group_int_cuda

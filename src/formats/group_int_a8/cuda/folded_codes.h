// 4-bit codes times their group's integer scale, as bytes: with multipliers of up to 16 no product of a code
// leaves 8 bits, and the INT32 sum over a whole row needs no more work per group. Four codes take a
// multiplication and three logical operations. (LiquidGEMM, arXiv 2509.01229, has the idea; it adds a zero
// point in the same step.) For host and device.
#pragma once

#include <cstdint>

#include "formats/quik/cuda/prompt_layout.h"

namespace nibble::group_int_a8_cuda {

inline constexpr uint32_t kMostFoldedMultiplier = 16;

// A multiplier m, and 128 - 8 m in every byte.
struct FoldFactor {
  uint32_t multiplier, base;
};
NIBBLE_BOTH_SIDES inline FoldFactor fold_factor(uint32_t multiplier) {
  FoldFactor factor = {multiplier, 0x80808080u - multiplier * 0x08080808u};
#if defined(__CUDA_ARCH__)
  // The compiler must not see this: it would subtract from the codes before multiplying, once per word.
  asm volatile("" : "+r"(factor.base));
#endif
  return factor;
}

// (codes & 0x0F0F0F0F) ^ 0x08080808: the codes in the low nibbles, plus 8.
NIBBLE_BOTH_SIDES inline uint32_t low_codes_plus_8(uint32_t codes) {
#if defined(__CUDA_ARCH__)
  // One operation, where the compiler takes two.
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6A;" : "=r"(result) : "r"(codes), "r"(0x0F0F0F0Fu), "r"(0x08080808u));
  return result;
#else
  return (codes & 0x0F0F0F0Fu) ^ 0x08080808u;
#endif
}

// The bytes m q of the two's complement codes q in the low nibbles of `codes`. As (q + 8) m + 128 - 8 m is 0
// to 240 in each byte, nothing is carried into the next; taking 128 away again turns over a bit.
NIBBLE_BOTH_SIDES inline uint32_t fold_low_nibbles(uint32_t codes, FoldFactor factor) {
  return (low_codes_plus_8(codes) * factor.multiplier + factor.base) ^ 0x80808080u;
}
NIBBLE_BOTH_SIDES inline uint32_t fold_high_nibbles(uint32_t codes, FoldFactor factor) {
  return fold_low_nibbles(codes >> 4, factor);
}

}  // namespace nibble::group_int_a8_cuda

// A token's range and its codes (the format's README, "Activation codes"), bit for bit as the definition,
// with one division per token instead of one per value. For host and device: a test compares it with the
// definition for every value that could round differently.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "formats/quik/cuda/prompt_layout.h"

namespace nibble::quik_cuda {

struct CodeRange {
  float scale;
  int32_t zero;
};

// Of values whose least and greatest, zero included, are `lo` and `hi`; a NaN or infinity gives scale NaN,
// zero 0.
NIBBLE_BOTH_SIDES inline CodeRange code_range(float lo, float hi, int top) {
  float width = hi - lo;
  if (!(width <= 3.0e38f)) return {std::numeric_limits<float>::quiet_NaN(), 0};
  const float levels = static_cast<float>(top);
  if (width / levels == 0.0f) {
    lo = -1.0f;
    width = 2.0f;
  }
#if defined(__CUDA_ARCH__)
  const float scale = __fdiv_rn(width, levels);
  return {scale, __float2int_rn(__fdiv_rn(-lo, scale))};
#else
  const float scale = width / levels;
  return {scale, static_cast<int32_t>(std::nearbyint(-lo / scale))};
#endif
}

// What code_of needs of a range.
struct CodeRule {
  float scale, inverse;
  int32_t offset, top;
};

// Added to a float of moderate size it leaves the nearest integer in the low bits, ties to even.
inline constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
inline constexpr int32_t kRounderBits = 0x4B400000;

NIBBLE_BOTH_SIDES inline CodeRule code_rule(const CodeRange& range, int top) {
  if (range.scale != range.scale) return {0.0f, 0.0f, 0, 0};  // every code becomes 0
  return {range.scale, 1.0f / range.scale, range.zero - kRounderBits, top};
}

// clamp(rne(x / scale) + zero, 0, top) for a half x. The quotient is Markstein's: a product with the rounded
// inverse, corrected by its exact remainder.
NIBBLE_BOTH_SIDES inline int32_t code_of(float x, const CodeRule& rule) {
#if defined(__CUDA_ARCH__)
  const float guess = __fmul_rn(x, rule.inverse);
  const float quotient = __fmaf_rn(__fmaf_rn(-guess, rule.scale, x), rule.inverse, guess);
  return __viaddmin_s32_relu(__float_as_int(__fadd_rn(quotient, kRounder)), rule.offset, rule.top);
#else
  const float guess = x * rule.inverse;
  const float quotient = std::fma(std::fma(-guess, rule.scale, x), rule.inverse, guess);
  const float rounded = quotient + kRounder;
  int32_t bits;
  std::memcpy(&bits, &rounded, 4);
  const int32_t code = bits + rule.offset < rule.top ? bits + rule.offset : rule.top;
  return code > 0 ? code : 0;
#endif
}

// The same for any float x of the token, |x| <= scale * top + its rounding: x and the scale are multiplied by
// `factor` first, a power of two that keeps the remainders of tiny tokens from underflowing. The quotient is
// corrected twice: by then it is within an ulp, from where one more correction rounds it as IEEE division
// does (Markstein, IBM J. Res. Dev. 34(1), 1990).
struct FloatCodeRule {
  CodeRule rule;
  float factor;
};

NIBBLE_BOTH_SIDES inline FloatCodeRule float_code_rule(const CodeRange& range, int top) {
  const float factor = range.scale < 0x1p-60f ? 0x1p80f : 1.0f;
  return {code_rule({range.scale * factor, range.zero}, top), factor};
}

// `x` is multiplied by the rule's factor already.
NIBBLE_BOTH_SIDES inline int32_t code_of_float(float x, const CodeRule& rule) {
#if defined(__CUDA_ARCH__)
  float quotient = __fmul_rn(x, rule.inverse);
  quotient = __fmaf_rn(__fmaf_rn(-quotient, rule.scale, x), rule.inverse, quotient);
  quotient = __fmaf_rn(__fmaf_rn(-quotient, rule.scale, x), rule.inverse, quotient);
  return __viaddmin_s32_relu(__float_as_int(__fadd_rn(quotient, kRounder)), rule.offset, rule.top);
#else
  float quotient = x * rule.inverse;
  quotient = std::fma(std::fma(-quotient, rule.scale, x), rule.inverse, quotient);
  quotient = std::fma(std::fma(-quotient, rule.scale, x), rule.inverse, quotient);
  const float rounded = quotient + kRounder;
  int32_t bits;
  std::memcpy(&bits, &rounded, 4);
  const int32_t code = bits + rule.offset < rule.top ? bits + rule.offset : rule.top;
  return code > 0 ? code : 0;
#endif
}

}  // namespace nibble::quik_cuda

// A token's signed codes (README, "Activation codes") bit for bit as the definition, with one division per
// token: quik's rule (quik/cuda/token_codes.h) with a zero point of 127. For host and device.
#pragma once

#include "formats/quik/cuda/token_codes.h"

namespace nibble::group_int_a8_cuda {

inline constexpr int kTopActivation = 127;

// Of tokens whose step is `scale`: positive and normal, or 0, which makes every code 0.
NIBBLE_BOTH_SIDES inline quik_cuda::CodeRule signed_rule(float scale) {
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  return {scale, inverse, kTopActivation - quik_cuda::kRounderBits, 2 * kTopActivation};
}

// clamp(rne(x / scale), -127, 127) + 127 for a finite half x. Values far beyond a static step saturate before
// the quotient could leave the range in which it is exact.
NIBBLE_BOTH_SIDES inline int32_t signed_code_plus_127(float x, const quik_cuda::CodeRule& rule) {
  const float most = 128.0f * rule.scale;
  const float within = x > most ? most : x < -most ? -most : x;
  return quik_cuda::code_of(within, rule);
}

// The same of any finite float.
struct FloatSignedRule {
  quik_cuda::CodeRule rule;
  float most;    // values beyond it saturate
  float factor;  // that values are multiplied by first (quik/cuda/token_codes.h)
};
NIBBLE_BOTH_SIDES inline FloatSignedRule float_signed_rule(float scale) {
  const float factor = scale < 0x1p-60f ? 0x1p80f : scale > 0x1p100f ? 0x1p-80f : 1.0f;
  return {signed_rule(scale * factor), 128.0f * (scale * factor), factor};
}
NIBBLE_BOTH_SIDES inline int32_t float_signed_code_plus_127(float x, const FloatSignedRule& rule) {
  const float scaled = x * rule.factor;
  const float within = scaled > rule.most ? rule.most : scaled < -rule.most ? -rule.most : scaled;
  return quik_cuda::code_of_float(within, rule.rule);
}

}  // namespace nibble::group_int_a8_cuda

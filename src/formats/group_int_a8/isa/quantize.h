// Activation codes of one token (README.md), vectorised: the same bits as group_int_a8-reference on every
// instruction set.
#pragma once

#include "formats/group_int_a8/isa/sums.h"

namespace nibble::group_int_a8::NIBBLE_ISA {
namespace {

constexpr int kStepVectors = kStep / kLanes;

// What the offset of the stored weight codes is, as the product sees them: plain AVX2 multiplies bytes by
// their own signs.
inline int32_t weight_offset(int weight_bits) {
#if defined(__AVX512F__) || defined(__AVXVNNI__)
  return weight_bits == 4 ? 8 : 128;
#else
  return weight_bits == 4 ? 8 : 0;
#endif
}

// The values of step `step` of a token: x itself, or a copy filled up with zeros.
inline const float* step_values(const float* x, int64_t k, int64_t step, float* copy) {
  const int64_t first = step * kStep;
  if (k - first >= kStep) return x + first;
  for (int64_t j = 0; j < kStep; ++j) copy[j] = first + j < k ? x[first + j] : 0.0f;
  return copy;
}

struct TokenRange {
  float largest;
  bool finite;
};

TokenRange measure(const float* x, int64_t k, int64_t steps) {
  vfloat largest[kStepVectors],
      poison[kStepVectors];  // x * 0 is NaN for NaN and the infinities, and stays so
#pragma GCC unroll 4
  for (int v = 0; v < kStepVectors; ++v) largest[v] = poison[v] = zerof();
  float copy[kStep];
  for (int64_t step = 0; step < steps; ++step) {
    const float* values = step_values(x, k, step, copy);
#pragma GCC unroll 4
    for (int v = 0; v < kStepVectors; ++v) {
      const vfloat value = loadf(values + v * kLanes);
      largest[v] = max_magnitude(largest[v], value);
      poison[v] = fma(value, zerof(), poison[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 1; v < kStepVectors; ++v) {
    largest[0] = max(largest[0], largest[v]);
    poison[0] = add(poison[0], poison[v]);
  }
  return {reduce_max(largest[0]), !any_unordered(poison[0])};
}

// How one token is quantized.
struct TokenScale {
  float s, reciprocal;
  bool reciprocal_is_precise;
};

// Codes of 32 values: clamp(rne(x / s), -127, 127).
//
// The quotient is first estimated as x * (1/s). Clamped to +-128, the estimate has an error below 2^-15, as
// has the quotient rounded to FP32: both round to the same code unless the estimate comes within 2^-13 of
// halfway between two integers. Only then are the 32 values divided, as IEEE says.
inline void quantize_step(const float* x, const TokenScale& scale, int8_t* codes) {
  const vfloat low = set1(-128.0f), high = set1(128.0f);
  vint values[kStepVectors];
  vfloat off = zerof();  // the largest distance of an estimate from an integer
#pragma GCC unroll 4
  for (int v = 0; v < kStepVectors; ++v) {
    const vfloat estimate = max(min(mul(loadf(x + v * kLanes), set1(scale.reciprocal)), high), low);
    values[v] = round_to_int(estimate);
    off = max_magnitude(off, sub(estimate, to_float(values[v])));
  }
  if (__builtin_expect(!scale.reciprocal_is_precise || any_at_least(off, set1(0.5f - 0x1p-13f)), 0)) {
#pragma GCC unroll 4
    for (int v = 0; v < kStepVectors; ++v) {
      values[v] = round_to_int(max(min(div(loadf(x + v * kLanes), set1(scale.s)), high), low));
    }
  }
  // The packs saturate to -128..127.
#if defined(__AVX512F__)
  const __m512i words = _mm512_packs_epi32(values[0], values[1]);
  const __m256i packed =
      _mm256_packs_epi16(_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64(words, 1));
  const __m256i order = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
#else
  const __m256i packed =
      _mm256_packs_epi16(_mm256_packs_epi32(values[0], values[1]), _mm256_packs_epi32(values[2], values[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
#endif
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes),
                      _mm256_max_epi8(_mm256_permutevar8x32_epi32(packed, order), _mm256_set1_epi8(-127)));
}

// Sum of 32 codes, in lanes.
inline __m256i add_codes(__m256i total, const int8_t* codes) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  return _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

inline int32_t sum_lanes(__m256i lanes) {
  __m128i m = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}

void quantize_token(const Weights& w, const float* x, const Activations& a, int64_t token) {
  int8_t* codes = token_codes(a, w.steps, token);
  const int64_t stride = tile_rows(a.tokens, token) * kStep;
  int32_t* starts = a.starts + token * w.groups;
  const TokenRange range = measure(x, w.k, w.steps);
  const float s = w.activation_scale > 0 ? w.activation_scale : range.largest / 127.0f;
  if (!range.finite || s == 0.0f) {
    for (int64_t step = 0; step < w.steps; ++step) __builtin_memset(codes + step * stride, 0, kStep);
    for (int64_t group = 0; group < w.groups; ++group) starts[group] = 0;
    a.scales[token] = range.finite ? 0.0f : __builtin_nanf("");
    return;
  }
  const TokenScale scale = {s, 1.0f / s, s >= 0x1p-100f && s <= 0x1p121f};
  const int32_t offset = weight_offset(w.weight_bits);
  float copy[kStep];
  for (int64_t group = 0; group < w.groups; ++group) {
    const int64_t first = group * w.group_steps;
    const int64_t last = first + w.group_steps < w.steps ? first + w.group_steps : w.steps;
    __m256i total = _mm256_setzero_si256();
    for (int64_t step = first; step < last; ++step) {
      int8_t* out = codes + step * stride;
      quantize_step(step_values(x, w.k, step, copy), scale, out);
      total = add_codes(total, out);
    }
    starts[group] = -offset * sum_lanes(total);
  }
  a.scales[token] = s;
}

void quantize(const Weights& w, const float* x, const Activations& a, int64_t first, int64_t last) {
  for (int64_t token = first; token < last; ++token) quantize_token(w, x + token * w.k, a, token);
}

}  // namespace
}  // namespace nibble::group_int_a8::NIBBLE_ISA

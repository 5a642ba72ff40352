// One strip times a few tokens, in 256 bits: with AVX-VNNI, or with plain AVX2, where 16-bit intermediate
// sums are used as far as they cannot saturate.
#pragma once

#include "formats/group_int_a8/isa/sums.h"

namespace nibble::group_int_a8::NIBBLE_ISA {
namespace {

constexpr int kDotTokens = 4;  // most tokens of one call

enum class Codes { kNibbles, kUnpackedNibbles, kBytes };

#if defined(__AVXVNNI__)
// Adds product number `index` (a constant after unrolling) of 8 rows and one token to its sums. Odd products
// go to `other`, so that one addition does not wait for the other.
template <Codes kCodes>
inline void add_product(int index, __m256i weights, __m256i codes, __m256i& sum, __m256i& other) {
  __m256i& chain = index % 2 == 0 ? sum : other;
  chain = _mm256_dpbusd_avx_epi32(chain, weights, codes);
}

inline __m256i total(__m256i sum, __m256i other) { return _mm256_add_epi32(sum, other); }
#else
// Keeps a sum as it is in a register: g++ would rather regroup the additions of an unrolled loop, and then
// spill.
inline __m256i pinned(__m256i sum) {
  asm("" : "+x"(sum));
  return sum;
}

// Nibbles: pairs of products are at most 2 * 15 * 127 = 3810, so the eight pairs of a step add up to at most
// 30480 in the INT16 of `narrow` before they are widened. Bytes: with |q| <= 128 the one factor and a with
// q's sign the other, a pair is at most 2 * 128 * 127 = 32512, and is widened at once. The weights are q + 8,
// and q itself.
template <Codes kCodes>
inline void add_product(int index, __m256i weights, __m256i codes, __m256i& sum, __m256i& narrow) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (kCodes == Codes::kBytes) {
    const __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(codes, weights));
    sum = pinned(_mm256_add_epi32(sum, _mm256_madd_epi16(products, ones)));
  } else {
    const __m256i products = _mm256_maddubs_epi16(weights, codes);
    narrow = pinned(index == 0 ? products : _mm256_add_epi16(narrow, products));
    if (index == 7) sum = pinned(_mm256_add_epi32(sum, _mm256_madd_epi16(narrow, ones)));
  }
}

inline __m256i total(__m256i sum, __m256i) { return sum; }
#endif

// kQuarters groups of 8 rows run at a time.
template <int kTokens, int kQuarters, Codes kCodes>
void dot(const Product& p) {
  constexpr int kLines = kCodes == Codes::kNibbles ? 4 : 8;
  const __m256i low_nibbles = _mm256_set1_epi8(0x0f);
  const uint8_t* group_codes = p.codes;
  const int8_t* group_activations = p.activations;
  int64_t left = p.steps;
  for (int64_t group = 0; group < p.groups; ++group) {
    const int64_t steps = left < p.group_steps ? left : p.group_steps;
    left -= steps;
    for (int quarter = 0; quarter < 4; quarter += kQuarters) {
      const uint8_t* w = group_codes + quarter * 32;
      const int8_t* a = group_activations;
      __m256i sums[kTokens][kQuarters], other[kTokens][kQuarters];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
        for (int q = 0; q < kQuarters; ++q) {
          sums[t][q] = _mm256_set1_epi32(p.starts[t * p.groups + group]);
          other[t][q] = _mm256_setzero_si256();
        }
      }
      for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 8
        for (int i = 0; i < kLines; ++i) {
#pragma GCC unroll 4
          for (int q = 0; q < kQuarters; ++q) {
            const uint8_t* from = w + i * 128 + q * 32;
            if (q % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(from + kPrefetchBytes), _MM_HINT_T0);
            __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
#if !defined(__AVXVNNI__)
            if constexpr (kCodes == Codes::kBytes)
              raw = _mm256_xor_si256(raw, _mm256_set1_epi8(static_cast<char>(0x80)));
#endif
            if constexpr (kCodes == Codes::kNibbles) {
              const __m256i low = _mm256_and_si256(raw, low_nibbles);
              const __m256i high = _mm256_and_si256(_mm256_srli_epi16(raw, 4), low_nibbles);
#pragma GCC unroll 4
              for (int t = 0; t < kTokens; ++t) {
                const uint8_t* codes = reinterpret_cast<const uint8_t*>(a + t * kStep + i * 8);
                add_product<kCodes>(2 * i, low, _mm256_set1_epi32(load_word(codes)), sums[t][q], other[t][q]);
                add_product<kCodes>(2 * i + 1, high, _mm256_set1_epi32(load_word(codes + 4)), sums[t][q],
                                    other[t][q]);
              }
            } else {
#pragma GCC unroll 4
              for (int t = 0; t < kTokens; ++t) {
                const uint8_t* codes = reinterpret_cast<const uint8_t*>(a + t * kStep + i * 4);
                add_product<kCodes>(i, raw, _mm256_set1_epi32(load_word(codes)), sums[t][q], other[t][q]);
              }
            }
          }
        }
        w += kLines * 128;
        a += p.stride;
      }
      vint totals[kTokens][kQuarters];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
        for (int q = 0; q < kQuarters; ++q) totals[t][q] = total(sums[t][q], other[t][q]);
      }
      add_group<kTokens, kQuarters>(p, group, quarter * 8, totals);
    }
    group_codes += steps * kLines * 128;
    group_activations += steps * p.stride;
  }
}

// A strip of 4-bit lines as 8-bit lines, still q + 8.
void widen_strip(const uint8_t* w, int64_t steps, uint8_t* wide) {
  const __m256i low_nibbles = _mm256_set1_epi8(0x0f);
  for (int64_t line = 0; line < steps * 4; ++line) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + line * 128 + q * 32));
      __m256i* out = reinterpret_cast<__m256i*>(wide + line * 256 + q * 32);
      _mm256_storeu_si256(out, _mm256_and_si256(raw, low_nibbles));
      _mm256_storeu_si256(out + 4, _mm256_and_si256(_mm256_srli_epi16(raw, 4), low_nibbles));
    }
  }
}

using Dot = void (*)(const Product& p);

// As many rows at a time as there are registers for.
#if defined(__AVXVNNI__)
template <Codes kCodes>
constexpr Dot kDots[] = {dot<1, 4, kCodes>, dot<2, 2, kCodes>, dot<3, 1, kCodes>, dot<4, 1, kCodes>};
#else
template <Codes kCodes>
constexpr Dot kDots[] = {dot<1, 4, kCodes>, dot<2, 2, kCodes>, dot<3, 1, kCodes>, dot<4, 1, kCodes>};
#endif

inline Dot find_dot(int weight_bits, bool widened, int64_t tokens) {
  if (weight_bits == 8) return kDots<Codes::kBytes>[tokens - 1];
  return widened ? kDots<Codes::kUnpackedNibbles>[tokens - 1] : kDots<Codes::kNibbles>[tokens - 1];
}

}  // namespace
}  // namespace nibble::group_int_a8::NIBBLE_ISA

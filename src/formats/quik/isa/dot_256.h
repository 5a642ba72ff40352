// Sums of code products of one strip and a few tokens, in 256 bits: with AVX-VNNI, or with plain AVX2, where
// 16-bit intermediate sums are used as far as they cannot saturate.
#pragma once

#include "formats/quik/isa/vec.h"
#include "formats/quik/kernels.h"

namespace nibble::quik::NIBBLE_ISA {
namespace {

constexpr int kDotTokens = 4;         // most tokens of one call
constexpr int kPrefetchBytes = 8192;  // ahead in the strip

// Adds product number `index` (a constant after unrolling) of 8 rows and one token to its sums. `wide` are
// INT32.
#if defined(__AVXVNNI__)
// `other` are INT32 too: odd products go there, so that one addition does not wait for the other.
template <int kWiden>
inline void add_product(int index, __m256i codes, __m256i weights, __m256i& wide, __m256i& other) {
  __m256i& sum = index % 2 == 0 ? wide : other;
  sum = _mm256_dpbusd_avx_epi32(sum, codes, weights);
}

inline __m256i total(__m256i wide, __m256i other) { return _mm256_add_epi32(wide, other); }
#else
// Keeps a sum as it is in a register: g++ would rather regroup the additions of an unrolled loop, and then
// spill.
inline __m256i pinned(__m256i sum) {
  asm("" : "+x"(sum));
  return sum;
}

// `narrow` are INT16: they take kWiden products, which must not saturate, before they are added to `wide`.
// With kWiden = 0 not even one pair of products fits, and pairs are added in 32 bits.
template <int kWiden>
inline void add_product(int index, __m256i codes, __m256i weights, __m256i& wide, __m256i& narrow) {
  if constexpr (kWiden > 0) {
    const __m256i products = _mm256_maddubs_epi16(codes, weights);
    narrow = pinned(index % kWiden == 0 ? products : _mm256_add_epi16(narrow, products));
    if (index % kWiden == kWiden - 1) {
      wide = pinned(_mm256_add_epi32(wide, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1))));
    }
  } else {
    const __m256i low_bytes = _mm256_set1_epi16(0x00ff);
    const __m256i first = _mm256_madd_epi16(_mm256_and_si256(codes, low_bytes),
                                            _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8));
    const __m256i second = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(weights, 8));
    wide = pinned(_mm256_add_epi32(wide, _mm256_add_epi32(first, second)));
  }
}

inline __m256i total(__m256i wide, __m256i) { return wide; }
#endif

// c[t * 32 + r] = sum_j a[t, j] * w[r, j] over the columns of `blocks` blocks; with kNibbles, w stands for p
// + 8. `a` is the first token's codes in a tile, `stride` the tile's bytes per block. kQuarters groups of 8
// rows run at a time.
template <int kTokens, int kQuarters, bool kNibbles, int kWiden>
void dot(const uint8_t* strip, const uint8_t* activations, int64_t stride, int64_t blocks, int32_t* c) {
  constexpr int kLines = kNibbles ? 8 : 16;
  const __m256i low_nibbles = _mm256_set1_epi8(0x0f);
  for (int quarter = 0; quarter < 4; quarter += kQuarters) {
    const uint8_t* w = strip + quarter / 2 * kLines * 64 + quarter % 2 * 32;
    const uint8_t* a = activations;
    __m256i wide[kTokens][kQuarters], other[kTokens][kQuarters];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int q = 0; q < kQuarters; ++q) wide[t][q] = other[t][q] = _mm256_setzero_si256();
    }
    for (int64_t block = 0; block < blocks; ++block) {
      // Groups of eight lines, unrolled, so that every index below is a constant.
      for (int group = 0; group < kLines; group += 8) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
#pragma GCC unroll 4
          for (int q = 0; q < kQuarters; ++q) {
            const uint8_t* from = w + q / 2 * kLines * 64 + q % 2 * 32 + (group + i) * 64;
            if (q % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(from + kPrefetchBytes), _MM_HINT_T0);
            const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
            if constexpr (kNibbles) {
              const __m256i low = _mm256_and_si256(raw, low_nibbles);
              const __m256i high = _mm256_and_si256(_mm256_srli_epi16(raw, 4), low_nibbles);
#pragma GCC unroll 4
              for (int t = 0; t < kTokens; ++t) {
                const uint8_t* codes = a + t * kBlockColumns + (group + i) * 8;
                add_product<kWiden>(2 * i, _mm256_set1_epi32(load_word(codes)), low, wide[t][q], other[t][q]);
                add_product<kWiden>(2 * i + 1, _mm256_set1_epi32(load_word(codes + 4)), high, wide[t][q],
                                    other[t][q]);
              }
            } else {
#pragma GCC unroll 4
              for (int t = 0; t < kTokens; ++t) {
                add_product<kWiden>(i, _mm256_set1_epi32(load_word(a + t * kBlockColumns + (group + i) * 4)),
                                    raw, wide[t][q], other[t][q]);
              }
            }
          }
        }
      }
      w += 2 * kLines * 64;
      a += stride;
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int q = 0; q < kQuarters; ++q) {
        storei(c + t * kStripRows + (quarter + q) * 8, total(wide[t][q], other[t][q]));
      }
    }
  }
}

using Dot = void (*)(const uint8_t* w, const uint8_t* a, int64_t stride, int64_t blocks, int32_t* c);

// As many rows at a time as there are registers for.
#if defined(__AVXVNNI__)
template <bool kNibbles, int kWiden>
constexpr Dot kDots[] = {dot<1, 4, kNibbles, 0>, dot<2, 2, kNibbles, 0>, dot<3, 1, kNibbles, 0>,
                         dot<4, 1, kNibbles, 0>};
#else
template <bool kNibbles, int kWiden>
constexpr Dot kDots[] = {dot<1, 4, kNibbles, kWiden>, dot<2, 2, kNibbles, kWiden>,
                         dot<3, 1, kNibbles, kWiden>, dot<4, 1, kNibbles, kWiden>};
#endif

// kWiden from the largest pair of products, of which |sum| must stay below 2^15: 2 * 255 * 15 four times, 2 *
// 15 * 15 as often as there are lines, 2 * 15 * 128 eight times, 2 * 255 * 128 not even once.
inline Dot find_dot(int weight_bits, int activation_bits, int64_t tokens) {
  if (weight_bits == 4) {
    return activation_bits == 4 ? kDots<true, 16>[tokens - 1] : kDots<true, 4>[tokens - 1];
  }
  return activation_bits == 4 ? kDots<false, 8>[tokens - 1] : kDots<false, 0>[tokens - 1];
}

}  // namespace
}  // namespace nibble::quik::NIBBLE_ISA

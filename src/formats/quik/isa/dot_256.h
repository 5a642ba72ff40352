// Sums of code products of one strip and a few tokens, in 256 bits: with AVX-VNNI, or with plain AVX2, where
// 16-bit intermediate sums are used as far as they cannot saturate.
#pragma once

#include "formats/quik/isa/vec.h"
#include "formats/quik/kernels.h"

namespace nibble::quik::NIBBLE_ISA {
namespace {

constexpr int kDotTokens = 4;         // most tokens of one call
constexpr int kPrefetchBytes = 8192;  // ahead in the strip

// Sums of 8 rows for one token. kWiden is the number of products after which widen() must be called; 0:
// never.
#if defined(__AVXVNNI__)
template <int kWiden>
struct RowSums {
  __m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
  void add_even(__m256i codes, __m256i weights) { even = _mm256_dpbusd_avx_epi32(even, codes, weights); }
  void add_odd(__m256i codes, __m256i weights) { odd = _mm256_dpbusd_avx_epi32(odd, codes, weights); }
  void widen() {}
  __m256i total() const { return _mm256_add_epi32(even, odd); }
};
#else
template <int kWiden>
struct RowSums {
  __m256i wide = _mm256_setzero_si256(), narrow = _mm256_setzero_si256();
  void add_even(__m256i codes, __m256i weights) {
    if constexpr (kWiden > 0) {
      narrow = _mm256_add_epi16(narrow, _mm256_maddubs_epi16(codes, weights));
    } else {
      // 8 x 8 bits: two products of a pair can pass 2^15, so the pairs are added in 32 bits.
      const __m256i low_bytes = _mm256_set1_epi16(0x00ff);
      const __m256i first = _mm256_madd_epi16(_mm256_and_si256(codes, low_bytes),
                                              _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8));
      const __m256i second = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(weights, 8));
      wide = _mm256_add_epi32(wide, _mm256_add_epi32(first, second));
    }
  }
  void add_odd(__m256i codes, __m256i weights) { add_even(codes, weights); }
  void widen() {
    if constexpr (kWiden > 0) {
      wide = _mm256_add_epi32(wide, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
      narrow = _mm256_setzero_si256();
    }
  }
  __m256i total() const { return wide; }
};
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
    RowSums<kWiden> sums[kTokens][kQuarters];
    for (int64_t block = 0; block < blocks; ++block) {
#pragma GCC unroll 4
      for (int line = 0; line < kLines; ++line) {
#pragma GCC unroll 4
        for (int q = 0; q < kQuarters; ++q) {
          const uint8_t* from = w + q / 2 * kLines * 64 + q % 2 * 32 + line * 64;
          if (q % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(from + kPrefetchBytes), _MM_HINT_T0);
          const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
          if constexpr (kNibbles) {
            const __m256i low = _mm256_and_si256(raw, low_nibbles);
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(raw, 4), low_nibbles);
#pragma GCC unroll 4
            for (int t = 0; t < kTokens; ++t) {
              const uint8_t* codes = a + t * kBlockColumns + line * 8;
              sums[t][q].add_even(_mm256_set1_epi32(load_word(codes)), low);
              sums[t][q].add_odd(_mm256_set1_epi32(load_word(codes + 4)), high);
              if (kWiden > 0 && (2 * line + 2) % (kWiden > 0 ? kWiden : 1) == 0) sums[t][q].widen();
            }
          } else {
#pragma GCC unroll 4
            for (int t = 0; t < kTokens; ++t) {
              const __m256i codes = _mm256_set1_epi32(load_word(a + t * kBlockColumns + line * 4));
              if (line % 2 == 0) {
                sums[t][q].add_even(codes, raw);
              } else {
                sums[t][q].add_odd(codes, raw);
              }
              if (kWiden > 0 && (line + 1) % (kWiden > 0 ? kWiden : 1) == 0) sums[t][q].widen();
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
        storei(c + t * kStripRows + (quarter + q) * 8, sums[t][q].total());
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

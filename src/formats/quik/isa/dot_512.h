// Sums of code products of one strip and a few tokens, with 512-bit VNNI.
#pragma once

#include "formats/quik/isa/vec.h"
#include "formats/quik/kernels.h"

namespace nibble::quik::NIBBLE_ISA {
namespace {

constexpr int kDotTokens = 8;  // most tokens of one call
constexpr int kPrefetchBytes =
    8192;  // ahead in the strip: far enough to cover DRAM latency at full bandwidth

// c[t * 32 + r] = sum_j a[t, j] * w[r, j] over the columns of `blocks` blocks; with kNibbles, w stands for p
// + 8. `a` is the first token's codes in a tile, `stride` the tile's bytes per block.
template <int kTokens, bool kNibbles>
void dot(const uint8_t* w, const uint8_t* a, int64_t stride, int64_t blocks, int32_t* c) {
  // Few tokens leave few chains of dependent additions: split each sum to keep both multipliers busy.
  constexpr int kSplit = kTokens == 1 ? 4 : kTokens == 2 ? 2 : 1;
  constexpr int kLines = kNibbles ? 8 : 16;
  constexpr int kHalf = kLines * 64;
  __m512i sums[kTokens][2][kSplit];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int s = 0; s < kSplit; ++s) sums[t][0][s] = sums[t][1][s] = _mm512_setzero_si512();
  }
  const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
  for (int64_t block = 0; block < blocks; ++block) {
    // Groups of four lines, unrolled, so that every index below is a constant.
    for (int group = 0; group < kLines; group += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const uint8_t* first = w + (group + i) * 64;
        _mm_prefetch(reinterpret_cast<const char*>(first + kPrefetchBytes), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(first + kPrefetchBytes + kHalf), _MM_HINT_T1);
        const __m512i raw0 = _mm512_loadu_si512(first), raw1 = _mm512_loadu_si512(first + kHalf);
        if constexpr (kNibbles) {
          const __m512i low0 = _mm512_and_si512(raw0, low_nibbles),
                        low1 = _mm512_and_si512(raw1, low_nibbles);
          const __m512i high0 = _mm512_and_si512(_mm512_srli_epi16(raw0, 4), low_nibbles);
          const __m512i high1 = _mm512_and_si512(_mm512_srli_epi16(raw1, 4), low_nibbles);
          const int s = 2 * i % kSplit, u = (2 * i + 1) % kSplit;
#pragma GCC unroll 8
          for (int t = 0; t < kTokens; ++t) {
            const uint8_t* codes = a + t * kBlockColumns + (group + i) * 8;
            const __m512i a0 = _mm512_set1_epi32(load_word(codes)),
                          a1 = _mm512_set1_epi32(load_word(codes + 4));
            sums[t][0][s] = _mm512_dpbusd_epi32(sums[t][0][s], a0, low0);
            sums[t][1][s] = _mm512_dpbusd_epi32(sums[t][1][s], a0, low1);
            sums[t][0][u] = _mm512_dpbusd_epi32(sums[t][0][u], a1, high0);
            sums[t][1][u] = _mm512_dpbusd_epi32(sums[t][1][u], a1, high1);
          }
        } else {
          const int s = i % kSplit;
#pragma GCC unroll 8
          for (int t = 0; t < kTokens; ++t) {
            const __m512i codes = _mm512_set1_epi32(load_word(a + t * kBlockColumns + (group + i) * 4));
            sums[t][0][s] = _mm512_dpbusd_epi32(sums[t][0][s], codes, raw0);
            sums[t][1][s] = _mm512_dpbusd_epi32(sums[t][1][s], codes, raw1);
          }
        }
      }
    }
    w += 2 * kHalf;
    a += stride;
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i sum = sums[t][half][0];
#pragma GCC unroll 4
      for (int s = 1; s < kSplit; ++s) sum = _mm512_add_epi32(sum, sums[t][half][s]);
      _mm512_storeu_si512(c + t * kStripRows + half * 16, sum);
    }
  }
}

// A strip of 4-bit lines as 8-bit lines, still p + 8.
void widen_strip(const uint8_t* w, int64_t blocks, uint8_t* wide) {
  const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
  for (int64_t line = 0; line < blocks * 16; ++line) {
    const __m512i raw = _mm512_loadu_si512(w + line * 64);
    _mm512_storeu_si512(wide + line * 128, _mm512_and_si512(raw, low_nibbles));
    _mm512_storeu_si512(wide + line * 128 + 64, _mm512_and_si512(_mm512_srli_epi16(raw, 4), low_nibbles));
  }
}

using Dot = void (*)(const uint8_t* w, const uint8_t* a, int64_t stride, int64_t blocks, int32_t* c);

template <bool kNibbles>
constexpr Dot kDots[] = {dot<1, kNibbles>, dot<2, kNibbles>, dot<3, kNibbles>, dot<4, kNibbles>,
                         dot<5, kNibbles>, dot<6, kNibbles>, dot<7, kNibbles>, dot<8, kNibbles>};

inline Dot find_dot(int weight_bits, int, int64_t tokens) {
  return weight_bits == 4 ? kDots<true>[tokens - 1] : kDots<false>[tokens - 1];
}

}  // namespace
}  // namespace nibble::quik::NIBBLE_ISA

// One strip times a few tokens, with 512-bit VNNI.
#pragma once

#include "formats/group_int_a8/isa/sums.h"

namespace nibble::group_int_a8::NIBBLE_ISA {
namespace {

constexpr int kDotTokens = 8;  // most tokens of one call

// The codes of a strip: nibbles, or bytes (of 8-bit codes or of nibbles that were unpacked).
template <int kTokens, bool kNibbles>
void dot(const Product& p) {
  // Few tokens leave few chains of dependent additions: split each sum to keep both multipliers busy.
  constexpr int kSplit = kTokens == 1 ? 4 : kTokens == 2 ? 2 : 1;
  constexpr int kLines = kNibbles ? 4 : 8;
  const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
  const uint8_t* w = p.codes;
  const int8_t* a = p.activations;
  int64_t left = p.steps;
  for (int64_t group = 0; group < p.groups; ++group) {
    __m512i sums[kTokens][2][kSplit];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      sums[t][0][0] = sums[t][1][0] = _mm512_set1_epi32(p.starts[t * p.groups + group]);
#pragma GCC unroll 4
      for (int s = 1; s < kSplit; ++s) sums[t][0][s] = sums[t][1][s] = _mm512_setzero_si512();
    }
    const int64_t steps = left < p.group_steps ? left : p.group_steps;
    left -= steps;
    for (int64_t step = 0; step < steps; ++step) {
      // Unrolled, so that every index below is a constant.
#pragma GCC unroll 8
      for (int i = 0; i < kLines; ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(w + i * 128 + kPrefetchBytes), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(w + i * 128 + kPrefetchBytes + 64), _MM_HINT_T1);
        const __m512i raw0 = _mm512_loadu_si512(w + i * 128), raw1 = _mm512_loadu_si512(w + i * 128 + 64);
        if constexpr (kNibbles) {
          const __m512i low0 = _mm512_and_si512(raw0, low_nibbles),
                        low1 = _mm512_and_si512(raw1, low_nibbles);
          const __m512i high0 = _mm512_and_si512(_mm512_srli_epi16(raw0, 4), low_nibbles);
          const __m512i high1 = _mm512_and_si512(_mm512_srli_epi16(raw1, 4), low_nibbles);
          const int s = 2 * i % kSplit, u = (2 * i + 1) % kSplit;
#pragma GCC unroll 8
          for (int t = 0; t < kTokens; ++t) {
            const uint8_t* codes = reinterpret_cast<const uint8_t*>(a + t * kStep + i * 8);
            const __m512i a0 = _mm512_set1_epi32(load_word(codes)),
                          a1 = _mm512_set1_epi32(load_word(codes + 4));
            sums[t][0][s] = _mm512_dpbusd_epi32(sums[t][0][s], low0, a0);
            sums[t][1][s] = _mm512_dpbusd_epi32(sums[t][1][s], low1, a0);
            sums[t][0][u] = _mm512_dpbusd_epi32(sums[t][0][u], high0, a1);
            sums[t][1][u] = _mm512_dpbusd_epi32(sums[t][1][u], high1, a1);
          }
        } else {
          const int s = i % kSplit;
#pragma GCC unroll 8
          for (int t = 0; t < kTokens; ++t) {
            const __m512i codes =
                _mm512_set1_epi32(load_word(reinterpret_cast<const uint8_t*>(a + t * kStep + i * 4)));
            sums[t][0][s] = _mm512_dpbusd_epi32(sums[t][0][s], raw0, codes);
            sums[t][1][s] = _mm512_dpbusd_epi32(sums[t][1][s], raw1, codes);
          }
        }
      }
      w += kLines * 128;
      a += p.stride;
    }
    vint totals[kTokens][2];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        totals[t][half] = sums[t][half][0];
#pragma GCC unroll 4
        for (int s = 1; s < kSplit; ++s)
          totals[t][half] = _mm512_add_epi32(totals[t][half], sums[t][half][s]);
      }
    }
    add_group<kTokens, 2>(p, group, 0, totals);
  }
}

// A strip of 4-bit lines as 8-bit lines, still q + 8.
void widen_strip(const uint8_t* w, int64_t steps, uint8_t* wide) {
  const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
  for (int64_t line = 0; line < steps * 4; ++line) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i raw = _mm512_loadu_si512(w + line * 128 + half * 64);
      _mm512_storeu_si512(wide + line * 256 + half * 64, _mm512_and_si512(raw, low_nibbles));
      _mm512_storeu_si512(wide + line * 256 + 128 + half * 64,
                          _mm512_and_si512(_mm512_srli_epi16(raw, 4), low_nibbles));
    }
  }
}

using Dot = void (*)(const Product& p);

template <bool kNibbles>
constexpr Dot kDots[] = {dot<1, kNibbles>, dot<2, kNibbles>, dot<3, kNibbles>, dot<4, kNibbles>,
                         dot<5, kNibbles>, dot<6, kNibbles>, dot<7, kNibbles>, dot<8, kNibbles>};

inline Dot find_dot(int weight_bits, bool widened, int64_t tokens) {
  return weight_bits == 4 && !widened ? kDots<true>[tokens - 1] : kDots<false>[tokens - 1];
}

}  // namespace
}  // namespace nibble::group_int_a8::NIBBLE_ISA

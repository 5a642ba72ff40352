// The 16 rows of a tile in the lanes of vectors: one vector on AVX-512, two parts of 8 rows elsewhere.
// Included only by *.isa.cc sources; everything has internal linkage.
//
// A main word is 128 bits of one row. Sixteen of them, read as they lie, become four vectors of dwords (one
// per slot) by a transposition. Done inside 128-bit lanes it leaves the rows of AVX-512 in the order of
// kRowOrder, which whatever else is read per row follows; AVX2 loads its words so that they come out in their
// own order.
#pragma once

#include "formats/mixed_2_4_16/cpu_kernels.h"
#include "kernels/cpu/vec.h"

namespace nibble::NIBBLE_ISA {
namespace {

#if defined(__AVX512F__)

constexpr int kParts = 1;
using IntVec = __m512i;

// Lane l holds row l % 4 * 4 + l / 4; its own inverse.
inline IntVec row_order() { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }

struct Words {
  IntVec slot[4];
};

inline Words load_main(const uint32_t* p, int) {
  const IntVec a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 16), c = _mm512_loadu_si512(p + 32),
               d = _mm512_loadu_si512(p + 48);
  const IntVec ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
  const IntVec cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
  return {{_mm512_unpacklo_epi64(ab_low, cd_low), _mm512_unpackhi_epi64(ab_low, cd_low),
           _mm512_unpacklo_epi64(ab_high, cd_high), _mm512_unpackhi_epi64(ab_high, cd_high)}};
}
inline IntVec load_dwords(const uint32_t* p, int) {
  return _mm512_permutexvar_epi32(row_order(), _mm512_loadu_si512(p));
}
inline IntVec load_words16(const uint16_t* p, int) {
  // Words 2l of the index are rows; the odd ones are masked to zero.
  const IntVec order = row_order();
  return _mm512_maskz_permutexvar_epi16(
      0x55555555u, order, _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline Vec load_scales(const uint16_t* p, int) { return _mm512_permutexvar_ps(row_order(), load_f16(p)); }
// 8 bytes of two nibbles, one per row.
inline IntVec load_nibbles(const uint8_t* p, int) {
  uint64_t bits;
  __builtin_memcpy(&bits, p, 8);
  const __m128i even_odd = _mm_set_epi64x(static_cast<int64_t>(bits >> 4 & 0x0f0f0f0f0f0f0f0fu),
                                          static_cast<int64_t>(bits & 0x0f0f0f0f0f0f0f0fu));
  const __m128i bytes = _mm_unpacklo_epi8(even_odd, _mm_srli_si128(even_odd, 8));
  return _mm512_permutexvar_epi32(row_order(), _mm512_cvtepu8_epi32(bytes));
}
inline void store_rows(float* out, Vec v, int) { store(out, _mm512_permutexvar_ps(row_order(), v)); }
inline Vec in_row_order(Vec v) { return _mm512_permutexvar_ps(row_order(), v); }

inline IntVec int_zero() { return _mm512_setzero_si512(); }
inline IntVec int_set1(int32_t value) { return _mm512_set1_epi32(value); }
inline IntVec int_and(IntVec a, IntVec b) { return _mm512_and_si512(a, b); }
inline IntVec int_add(IntVec a, IntVec b) { return _mm512_add_epi32(a, b); }
inline IntVec shift_right(IntVec a, int count) { return count == 0 ? a : _mm512_srli_epi32(a, count); }
inline Vec to_float(IntVec a) { return _mm512_cvtepi32_ps(a); }
inline IntVec shift_left_8(IntVec a) { return _mm512_slli_epi32(a, 8); }
// Four unsigned bytes of each lane times the signed bytes at `bytes`, added up over many steps.
inline IntVec add_bytes(IntVec sums, IntVec codes, const int32_t* bytes) {
  // The compiler would load the bytes by an instruction of its own.
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(codes), "m"(*bytes));
  return sums;
}
inline IntVec in_dwords(IntVec sums) { return sums; }
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }

#else  // AVX2 and AVX-VNNI

constexpr int kParts = 2;
using IntVec = __m256i;

struct Words {
  IntVec slot[4];
};

inline IntVec two_rows(const uint32_t* low, const uint32_t* high) {
  return _mm256_inserti128_si256(
      _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low))),
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
}
inline Words load_main(const uint32_t* p, int part) {
  p += part * 32;
  const IntVec a = two_rows(p, p + 16), b = two_rows(p + 4, p + 20), c = two_rows(p + 8, p + 24),
               d = two_rows(p + 12, p + 28);
  const IntVec ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
  const IntVec cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
  return {{_mm256_unpacklo_epi64(ab_low, cd_low), _mm256_unpackhi_epi64(ab_low, cd_low),
           _mm256_unpacklo_epi64(ab_high, cd_high), _mm256_unpackhi_epi64(ab_high, cd_high)}};
}
inline IntVec load_dwords(const uint32_t* p, int part) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + part * 8));
}
inline IntVec load_words16(const uint16_t* p, int part) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + part * 8)));
}
inline Vec load_scales(const uint16_t* p, int part) { return load_f16(p + part * 8); }
inline IntVec load_nibbles(const uint8_t* p, int part) {
  int32_t bits;
  __builtin_memcpy(&bits, p + part * 4, 4);
  const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(bits), shifts), _mm256_set1_epi32(15));
}
inline void store_rows(float* out, Vec v, int part) { store(out + part * 8, v); }
inline Vec in_row_order(Vec v) { return v; }

inline IntVec int_zero() { return _mm256_setzero_si256(); }
inline IntVec int_set1(int32_t value) { return _mm256_set1_epi32(value); }
inline IntVec int_and(IntVec a, IntVec b) { return _mm256_and_si256(a, b); }
inline IntVec int_add(IntVec a, IntVec b) { return _mm256_add_epi32(a, b); }
inline IntVec shift_right(IntVec a, int count) { return count == 0 ? a : _mm256_srli_epi32(a, count); }
inline Vec to_float(IntVec a) { return _mm256_cvtepi32_ps(a); }
inline IntVec shift_left_8(IntVec a) { return _mm256_slli_epi32(a, 8); }
// Four unsigned bytes of each lane times the signed bytes at `bytes`, added up over at most four steps:
// without VNNI in two 16-bit halves, which 8 products of codes up to 15 cannot leave (15 * 128 * 8 < 2^15).
inline IntVec add_bytes(IntVec sums, IntVec codes, const int32_t* bytes) {
#if defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sums, codes, _mm256_set1_epi32(*bytes));
#else
  return _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, _mm256_set1_epi32(*bytes)));
#endif
}
inline IntVec in_dwords(IntVec sums) {
#if defined(__AVXVNNI__)
  return sums;
#else
  return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
#endif
}
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }

#endif

}  // namespace
}  // namespace nibble::NIBBLE_ISA

// The vector operations that quik's shared sources need, in 512 or 256 bits. Only for files compiled per
// instruction set.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace nibble::quik::NIBBLE_ISA {
namespace {

inline int32_t load_word(const uint8_t* p) {
  int32_t value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}

#if defined(__AVX512F__)

constexpr int kLanes = 16;
using vfloat = __m512;
using vint = __m512i;

inline vfloat loadf(const float* p) { return _mm512_loadu_ps(p); }
inline vint loadi(const int32_t* p) { return _mm512_loadu_si512(p); }
inline vfloat load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void storef(float* p, vfloat v) { _mm512_storeu_ps(p, v); }
inline void storei(int32_t* p, vint v) { _mm512_storeu_si512(p, v); }
// The first `count` lanes; none for count <= 0.
inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}
inline void store_first(float* p, vfloat v, int64_t count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), v);
}
inline void store_first(int32_t* p, vint v, int64_t count) {
  _mm512_mask_storeu_epi32(p, first_lanes(count), v);
}
inline vfloat set1(float x) { return _mm512_set1_ps(x); }
inline vint set1(int32_t x) { return _mm512_set1_epi32(x); }
inline vfloat zerof() { return _mm512_setzero_ps(); }
inline vint zeroi() { return _mm512_setzero_si512(); }
inline vfloat add(vfloat a, vfloat b) { return _mm512_add_ps(a, b); }
inline vfloat sub(vfloat a, vfloat b) { return _mm512_sub_ps(a, b); }
inline vfloat mul(vfloat a, vfloat b) { return _mm512_mul_ps(a, b); }
inline vfloat div(vfloat a, vfloat b) { return _mm512_div_ps(a, b); }
inline vfloat fma(vfloat a, vfloat b, vfloat c) { return _mm512_fmadd_ps(a, b, c); }
inline vfloat min(vfloat a, vfloat b) { return _mm512_min_ps(a, b); }
inline vfloat max(vfloat a, vfloat b) { return _mm512_max_ps(a, b); }
inline vint add(vint a, vint b) { return _mm512_add_epi32(a, b); }
inline vint sub(vint a, vint b) { return _mm512_sub_epi32(a, b); }
inline vint mul(vint a, vint b) { return _mm512_mullo_epi32(a, b); }
inline vint min(vint a, vint b) { return _mm512_min_epi32(a, b); }
inline vint max(vint a, vint b) { return _mm512_max_epi32(a, b); }
inline vfloat to_float(vint a) { return _mm512_cvtepi32_ps(a); }
inline vint round_to_int(vfloat a) {
  return _mm512_cvtps_epi32(a);
}  // to nearest even; out of range gives INT32_MIN
inline float reduce_min(vfloat a) { return _mm512_reduce_min_ps(a); }
inline float reduce_max(vfloat a) { return _mm512_reduce_max_ps(a); }
inline int32_t reduce_add(vint a) { return _mm512_reduce_add_epi32(a); }
// The greater of a and |b|, for a >= 0.
inline vfloat max_magnitude(vfloat a, vfloat b) { return _mm512_range_ps(a, b, 0x0b); }
inline bool any_at_least(vfloat a, vfloat bound) { return _mm512_cmp_ps_mask(a, bound, _CMP_GE_OQ) != 0; }
inline bool any_unordered(vfloat a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }

#else

constexpr int kLanes = 8;
using vfloat = __m256;
using vint = __m256i;

inline vfloat loadf(const float* p) { return _mm256_loadu_ps(p); }
inline vint loadi(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline vfloat load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void storef(float* p, vfloat v) { _mm256_storeu_ps(p, v); }
inline void storei(int32_t* p, vint v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
// All ones in the first `count` lanes; none for count <= 0.
inline __m256i first_lanes(int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count > 8 ? 8 : static_cast<int32_t>(count)), lane);
}
inline void store_first(float* p, vfloat v, int64_t count) { _mm256_maskstore_ps(p, first_lanes(count), v); }
inline void store_first(int32_t* p, vint v, int64_t count) {
  _mm256_maskstore_epi32(p, first_lanes(count), v);
}
inline vfloat set1(float x) { return _mm256_set1_ps(x); }
inline vint set1(int32_t x) { return _mm256_set1_epi32(x); }
inline vfloat zerof() { return _mm256_setzero_ps(); }
inline vint zeroi() { return _mm256_setzero_si256(); }
inline vfloat add(vfloat a, vfloat b) { return _mm256_add_ps(a, b); }
inline vfloat sub(vfloat a, vfloat b) { return _mm256_sub_ps(a, b); }
inline vfloat mul(vfloat a, vfloat b) { return _mm256_mul_ps(a, b); }
inline vfloat div(vfloat a, vfloat b) { return _mm256_div_ps(a, b); }
inline vfloat fma(vfloat a, vfloat b, vfloat c) { return _mm256_fmadd_ps(a, b, c); }
inline vfloat min(vfloat a, vfloat b) { return _mm256_min_ps(a, b); }
inline vfloat max(vfloat a, vfloat b) { return _mm256_max_ps(a, b); }
inline vint add(vint a, vint b) { return _mm256_add_epi32(a, b); }
inline vint sub(vint a, vint b) { return _mm256_sub_epi32(a, b); }
inline vint mul(vint a, vint b) { return _mm256_mullo_epi32(a, b); }
inline vint min(vint a, vint b) { return _mm256_min_epi32(a, b); }
inline vint max(vint a, vint b) { return _mm256_max_epi32(a, b); }
inline vfloat to_float(vint a) { return _mm256_cvtepi32_ps(a); }
inline vint round_to_int(vfloat a) {
  return _mm256_cvtps_epi32(a);
}  // to nearest even; out of range gives INT32_MIN
inline float reduce_min(vfloat a) {
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
}
inline float reduce_max(vfloat a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
inline int32_t reduce_add(vint a) {
  __m128i m = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
// The greater of a and |b|, for a >= 0.
inline vfloat max_magnitude(vfloat a, vfloat b) {
  return _mm256_max_ps(a, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), b));
}
inline bool any_at_least(vfloat a, vfloat bound) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, bound, _CMP_GE_OQ)) != 0;
}
inline bool any_unordered(vfloat a) { return _mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)) != 0; }

#endif

}  // namespace
}  // namespace nibble::quik::NIBBLE_ISA

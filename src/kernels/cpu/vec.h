// A vector of floats in the widest registers of the instruction set this file is compiled for. Included only
// by *.isa.cc sources; everything has internal linkage, so no copy compiled for one machine can be linked
// into code for another.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace nibble::NIBBLE_ISA {
namespace {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

#if defined(__AVX512F__)

constexpr int kLanes = 16;
using Vec = __m512;

inline __mmask16 lane_mask(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec set1(float value) { return _mm512_set1_ps(value); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
// The first `count` (< kLanes) elements; the others are 0.
inline Vec load_partial(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(lane_mask(count), p); }
inline void store_partial(float* p, Vec v, int64_t count) { _mm512_mask_storeu_ps(p, lane_mask(count), v); }
inline Vec load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load_f16_partial(const uint16_t* p, int64_t count) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lane_mask(count), p));
}
inline Vec widen_bf16(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Vec load_bf16(const uint16_t* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load_bf16_partial(const uint16_t* p, int64_t count) {
  return widen_bf16(_mm256_maskz_loadu_epi16(lane_mask(count), p));
}
inline void store_f16(uint16_t* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }
inline float reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }
// 2^n where `biased` holds n + 1.5 * 2^23 as a float, n in [-126, 127].
inline Vec power_of_two(Vec biased) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(biased), _mm512_set1_epi32(127)), 23));
}
inline Vec zero_where_less(Vec v, Vec x, Vec limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), v);
}
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_to_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

#elif defined(__AVX2__)

constexpr int kLanes = 8;
using Vec = __m256;

inline __m256i lane_mask(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec set1(float value) { return _mm256_set1_ps(value); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec load_partial(const float* p, int64_t count) { return _mm256_maskload_ps(p, lane_mask(count)); }
inline void store_partial(float* p, Vec v, int64_t count) { _mm256_maskstore_ps(p, lane_mask(count), v); }
inline __m128i load_16bit_partial(const uint16_t* p, int64_t count) {
  alignas(16) uint16_t copy[8] = {};
  for (int64_t i = 0; i < count; ++i) copy[i] = p[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(copy));
}
inline Vec load_f16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load_f16_partial(const uint16_t* p, int64_t count) {
  return _mm256_cvtph_ps(load_16bit_partial(p, count));
}
inline Vec widen_bf16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec load_bf16(const uint16_t* p) {
  return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load_bf16_partial(const uint16_t* p, int64_t count) {
  return widen_bf16(load_16bit_partial(p, count));
}
inline void store_f16(uint16_t* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline float reduce_add(Vec v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline float reduce_max(Vec v) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
inline Vec power_of_two(Vec biased) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(biased), _mm256_set1_epi32(127)), 23));
}
inline Vec zero_where_less(Vec v, Vec x, Vec limit) {
  return _mm256_and_ps(v, _mm256_cmp_ps(x, limit, _CMP_NLT_UQ));
}
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_to_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

#else

// Portable: four lanes in the compiler's own vector type, which every 64-bit machine has in some form.
constexpr int kLanes = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef uint32_t IntVec __attribute__((vector_size(16)));

inline Vec zero() { return Vec{0, 0, 0, 0}; }
inline Vec set1(float value) { return Vec{value, value, value, value}; }
inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, 16);
  return v;
}
inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, 16); }
inline Vec load_partial(const float* p, int64_t count) {
  Vec v = zero();
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
inline void store_partial(float* p, Vec v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}
inline float widen_f16_scalar(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude >= 0x0400u) return bits_float(sign | ((magnitude << 13) + 0x38000000u));
  return bits_float(float_bits(static_cast<float>(magnitude) * 0x1p-24f) | sign);
}
inline uint16_t narrow_f16_scalar(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}
inline Vec load_f16_partial(const uint16_t* p, int64_t count) {
  Vec v = zero();
  for (int64_t i = 0; i < count; ++i) v[i] = widen_f16_scalar(p[i]);
  return v;
}
inline Vec load_f16(const uint16_t* p) { return load_f16_partial(p, 4); }
inline Vec load_bf16_partial(const uint16_t* p, int64_t count) {
  Vec v = zero();
  for (int64_t i = 0; i < count; ++i) v[i] = bits_float(static_cast<uint32_t>(p[i]) << 16);
  return v;
}
inline Vec load_bf16(const uint16_t* p) { return load_bf16_partial(p, 4); }
inline void store_f16(uint16_t* p, Vec v) {
  for (int i = 0; i < 4; ++i) p[i] = narrow_f16_scalar(v[i]);
}
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec div(Vec a, Vec b) { return a / b; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline float reduce_add(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float reduce_max(Vec v) {
  const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}
inline Vec power_of_two(Vec biased) {
  IntVec bits;
  __builtin_memcpy(&bits, &biased, 16);
  bits = (bits + 127) << 23;
  Vec v;
  __builtin_memcpy(&v, &bits, 16);
  return v;
}
inline Vec zero_where_less(Vec v, Vec x, Vec limit) { return x < limit ? zero() : v; }
inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void prefetch_to_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

#endif

// exp(x) within 2 ulp; 0 below -86.98 (where the result nears the subnormals), infinity above 88.72, NaN for
// NaN. Range reduction by powers of two with ln 2 in two parts (Cody and Waite), then the Taylor polynomial
// of degree 7 on
// [-ln2/2, ln2/2], whose truncation error is below 2^-27.
inline Vec exp(Vec x) {
  const Vec magic =
      set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer held in the low mantissa bits
  const Vec clamped = min(set1(89.0f), max(set1(-88.0f), x));
  const Vec biased = fma(clamped, set1(1.44269504088896341f), magic);
  const Vec n = sub(biased, magic);
  Vec r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  Vec p = set1(1.0f / 5040.0f);
  p = fma(p, r, set1(1.0f / 720.0f));
  p = fma(p, r, set1(1.0f / 120.0f));
  p = fma(p, r, set1(1.0f / 24.0f));
  p = fma(p, r, set1(1.0f / 6.0f));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  // 2^n in two factors, since n reaches 128 (and -126 has no half as a normal float: hence the limit below).
  const Vec half_biased = sub(biased, set1(1.0f));
  const Vec result = mul(mul(p, set1(2.0f)), power_of_two(half_biased));
  return zero_where_less(result, x, set1(-86.98f));
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA

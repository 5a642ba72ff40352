// Reading and writing rows of a cache (kernels/cache_row.h). Included only by float_kernels.isa.cc.
#pragma once

#include "kernels/cache_row.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm_tile.h"

namespace nibble::NIBBLE_ISA {
namespace {

// kLanes codes as floats. Signed bytes; the low or the high halves of bytes; an F16 in every lane. The
// pointers need no alignment.
#if defined(__AVX512F__)
inline Vec load_codes(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Vec load_nibbles(const uint8_t* p, bool high) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i moved = high ? _mm_srli_epi16(bytes, 4) : bytes;
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(moved, _mm_set1_epi8(15))));
}
inline Vec set1_f16(uint16_t bits) { return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(bits))); }
#elif defined(__AVX2__)
inline Vec load_codes(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Vec load_nibbles(const uint8_t* p, bool high) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m128i moved = high ? _mm_srli_epi16(bytes, 4) : bytes;
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_and_si128(moved, _mm_set1_epi8(15))));
}
inline Vec set1_f16(uint16_t bits) { return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(bits))); }
#else
inline Vec load_codes(const int8_t* p) {
  return Vec{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
             static_cast<float>(p[3])};
}
inline Vec load_nibbles(const uint8_t* p, bool high) {
  const int shift = high ? 4 : 0;
  return Vec{static_cast<float>(p[0] >> shift & 15), static_cast<float>(p[1] >> shift & 15),
             static_cast<float>(p[2] >> shift & 15), static_cast<float>(p[3] >> shift & 15)};
}
inline Vec set1_f16(uint16_t bits) { return set1(widen_f16_scalar(bits)); }
#endif

inline uint16_t load_16(const void* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, 2);
  return bits;
}

// Row `index` of a tile, read a vector at a time: load(i) yields elements [i, i + kLanes), i a multiple of
// kLanes.
template <CacheType kType>
struct CacheRow;

template <>
struct CacheRow<CacheType::kF32> {
  CacheRow(const void* tile, int64_t index, int64_t head_dim)
      : values(static_cast<const float*>(tile) + index * head_dim) {}
  Vec load(int64_t i) const { return load_weight(values + i); }
  Vec load_partial(int64_t i, int64_t count) const { return load_weight_partial(values + i, count); }
  const float* values;
};

template <>
struct CacheRow<CacheType::kF16> {
  CacheRow(const void* tile, int64_t index, int64_t head_dim)
      : values(static_cast<const F16*>(tile) + index * head_dim) {}
  Vec load(int64_t i) const { return load_weight(values + i); }
  Vec load_partial(int64_t i, int64_t count) const { return load_weight_partial(values + i, count); }
  const F16* values;
};

template <>
struct CacheRow<CacheType::kQ8> {
  CacheRow(const void* tile, int64_t index, int64_t head_dim)
      : codes(static_cast<const int8_t*>(tile) + index * cache_row_bytes(CacheType::kQ8, head_dim)),
        scales(codes + head_dim) {}
  Vec scale(int64_t i) const { return set1_f16(load_16(scales + i / kCacheGroup * 2)); }
  Vec load(int64_t i) const { return mul(load_codes(codes + i), scale(i)); }
  Vec load_partial(int64_t i, int64_t count) const {
    int8_t copy[kLanes] = {};
    for (int64_t j = 0; j < count; ++j) copy[j] = codes[i + j];
    return mul(load_codes(copy), scale(i));
  }
  const int8_t *codes, *scales;
};

template <>
struct CacheRow<CacheType::kQ4> {
  static constexpr int64_t kHalf = kCacheGroup / 2;
  CacheRow(const void* tile, int64_t index, int64_t head_dim)
      : codes(static_cast<const uint8_t*>(tile) + index * cache_row_bytes(CacheType::kQ4, head_dim)),
        scales(codes + cache_row_groups(head_dim) * kHalf) {}
  Vec load(int64_t i) const {
    const uint8_t* scale = scales + i / kCacheGroup * 4;
    const Vec code = load_nibbles(codes + i / kCacheGroup * kHalf + i % kHalf, i / kHalf % 2 != 0);
    return fma(code, set1_f16(load_16(scale)), set1_f16(load_16(scale + 2)));
  }
  // The codes of a group are there in full.
  Vec load_partial(int64_t i, int64_t count) const {
    float all[kLanes];
    store(all, load(i));
    return nibble::NIBBLE_ISA::load_partial(all, count);
  }
  const uint8_t *codes, *scales;
};

inline uint16_t to_f16_bits(float value) {
  uint16_t bits[kLanes];
  store_f16(bits, set1(value));
  return bits[0];
}
inline float from_f16_bits(uint16_t bits) {
  float value[kLanes];
  store(value, set1_f16(bits));
  return value[0];
}

// Nearest F16 that is finite.
inline uint16_t to_finite_f16(float value) {
  constexpr float kLargest = 65504.0f;
  return to_f16_bits(value > kLargest ? kLargest : value < -kLargest ? -kLargest : value);
}

constexpr uint16_t kNanF16 = 0x7e00;

inline bool is_finite(float value) { return (float_bits(value) & 0x7f800000u) != 0x7f800000u; }

// Nearest integer of |value| < 2^21, ties to even.
inline int32_t nearest(float value) {
  return static_cast<int32_t>(float_bits(value + 12582912.0f) - 0x4b400000u);
}

void store_q8_row(const float* values, int64_t head_dim, int8_t* row) {
  int8_t* scales = row + head_dim;
  for (int64_t first = 0; first < head_dim; first += kCacheGroup, scales += 2) {
    const int64_t count = head_dim - first < kCacheGroup ? head_dim - first : kCacheGroup;
    float largest = 0;
    bool finite = true;
    for (int64_t i = first; i < first + count; ++i) {
      const float magnitude = __builtin_fabsf(values[i]);
      largest = magnitude > largest ? magnitude : largest;
      finite = finite && is_finite(values[i]);
    }
    const uint16_t bits = finite ? to_finite_f16(largest / 127.0f) : kNanF16;
    __builtin_memcpy(scales, &bits, 2);
    const float scale = from_f16_bits(bits);
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;  // NaN too
    for (int64_t i = first; i < first + count; ++i) {
      float code = finite ? values[i] * inverse : 0.0f;
      code = code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code;
      row[i] = static_cast<int8_t>(nearest(code));
    }
  }
}

void store_q4_row(const float* values, int64_t head_dim, uint8_t* row) {
  constexpr int64_t kHalf = kCacheGroup / 2;
  uint8_t* scales = row + cache_row_groups(head_dim) * kHalf;
  for (int64_t first = 0; first < head_dim; first += kCacheGroup, row += kHalf, scales += 4) {
    const int64_t count = head_dim - first < kCacheGroup ? head_dim - first : kCacheGroup;
    float low = values[first], high = values[first];
    bool finite = true;
    for (int64_t i = first; i < first + count; ++i) {
      low = values[i] < low ? values[i] : low;
      high = values[i] > high ? values[i] : high;
      finite = finite && is_finite(values[i]);
    }
    const uint16_t minimum_bits = finite ? to_finite_f16(low) : kNanF16;
    const float minimum = from_f16_bits(minimum_bits);
    const uint16_t scale_bits = finite ? to_finite_f16((high - minimum) / 15.0f) : kNanF16;
    const float scale = from_f16_bits(scale_bits);
    __builtin_memcpy(scales, &scale_bits, 2);
    __builtin_memcpy(scales + 2, &minimum_bits, 2);
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    uint8_t codes[kCacheGroup] = {};
    for (int64_t i = 0; i < count; ++i) {
      float code = finite ? (values[first + i] - minimum) * inverse : 0.0f;
      code = code > 15.0f ? 15.0f : code < 0.0f ? 0.0f : code;
      codes[i] = static_cast<uint8_t>(nearest(code));
    }
    for (int64_t i = 0; i < kHalf; ++i) row[i] = static_cast<uint8_t>(codes[i] | codes[i + kHalf] << 4);
  }
}

void store_cache_row(CacheType type, const float* values, int64_t head_dim, void* row) {
  switch (type) {
    case CacheType::kF32:
      __builtin_memcpy(row, values, static_cast<size_t>(head_dim) * sizeof(float));
      return;
    case CacheType::kF16:
      return f32_to_f16(values, head_dim, static_cast<uint16_t*>(row));
    case CacheType::kQ8:
      return store_q8_row(values, head_dim, static_cast<int8_t*>(row));
    case CacheType::kQ4:
      return store_q4_row(values, head_dim, static_cast<uint8_t*>(row));
  }
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA

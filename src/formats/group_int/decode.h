// Decoding of canonical codes in registers, for AVX2 and AVX-512. Included only by *.isa.cc sources;
// everything has internal linkage.
//
// A unit of 16 columns is 2 * bits bytes, which one or two broadcasts bring into every lane; a variable shift
// then moves each lane's code into its lowest bits, and a permute looks the weight up in a table that holds
// (u - zero) * scale for every code.
#pragma once

#include "formats/group_int/cpu_kernels.h"
#include "kernels/cpu/vec.h"

namespace nibble::NIBBLE_ISA {
namespace {

constexpr int kUnitVectors = kGroupIntUnit / kLanes;

struct Unit {
  Vec v[kUnitVectors];
};

inline int32_t load_32(const uint8_t* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return bits;
}
inline int64_t load_64(const uint8_t* p) {
  int64_t bits;
  __builtin_memcpy(&bits, p, 8);
  return bits;
}

// Decodes units of one row whose columns share a scale and a zero point. kScaled: to the weights themselves;
// else to u - zero, for integer zeros only.
template <int kBits, bool kScaled>
struct Decoder;

#if defined(__AVX512F__)

// The weights of all codes up to kLast. The table has 16 entries; narrower codes repeat in it, so that the
// bits of the next code need no masking.
template <int kLast>
struct WeightTable {
  Vec unscaled, table;
  void set_zero(float zero_point) {
    const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i codes = _mm512_and_si512(index, _mm512_set1_epi32(kLast));
    table = unscaled = sub(_mm512_cvtepi32_ps(codes), set1(zero_point));
  }
  void set_scale(float scale) { table = mul(unscaled, set1(scale)); }
};

template <bool kScaled>
struct Decoder<2, kScaled> : WeightTable<3> {
  Unit decode(const uint8_t* p) const {
    const __m512i shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return {{_mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi32(load_32(p)), shifts), this->table)}};
  }
};

template <bool kScaled>
struct Decoder<3, kScaled> : WeightTable<7> {
  Unit decode(const uint8_t* p) const {
    // Columns 0 to 7 are bits 0 to 23 of the dword at 0, columns 8 to 15 are bits 8 to 31 of the dword at 2.
    const __m512i shifts = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 8, 11, 14, 17, 20, 23, 26, 29);
    const __m512i bits = _mm512_mask_set1_epi32(_mm512_set1_epi32(load_32(p)), 0xff00, load_32(p + 2));
    return {{_mm512_permutexvar_ps(_mm512_srlv_epi32(bits, shifts), this->table)}};
  }
};

template <bool kScaled>
struct Decoder<4, kScaled> : WeightTable<15> {
  Unit decode(const uint8_t* p) const {
    // Even lanes hold the dword of columns 0 to 7, odd lanes that of columns 8 to 15.
    const __m512i shifts = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    return {{_mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi64(load_64(p)), shifts), this->table)}};
  }
};

template <>
struct Decoder<8, true> {
  Vec zeros, scales;
  void set_zero(float zero_point) { zeros = set1(zero_point); }
  void set_scale(float scale) { scales = set1(scale); }
  Unit decode(const uint8_t* p) const {
    const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {{mul(sub(_mm512_cvtepi32_ps(codes), zeros), scales)}};
  }
};

template <>
struct Decoder<8, false> {
  Vec zeros;
  // The zero point is an integer, so that its sum with 2^23 is exact.
  void set_zero(float zero_point) { zeros = set1(0x1p23f + zero_point); }
  Unit decode(const uint8_t* p) const {
    // A code in the lowest byte of the bits of 2^23 makes 2^23 + code: one shuffle widens and converts.
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i widened =
        _mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x4b000000), 0x1111111111111111u, bytes, index);
    return {{sub(_mm512_castsi512_ps(widened), zeros)}};
  }
};

// The order of a decoded 4-bit unit.
inline void interleave_halves(const float* in, float* out) {
  const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
  store(out, _mm512_permutexvar_ps(order, load(in)));
}

#else  // AVX2

// The weights of all codes up to kLast. The table has 8 entries; 2-bit codes repeat in it, so that the bits
// of the next code need no masking.
template <int kLast>
struct WeightTable {
  Vec unscaled, table;
  void set_zero(float zero_point) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i codes = _mm256_and_si256(index, _mm256_set1_epi32(kLast));
    table = unscaled = sub(_mm256_cvtepi32_ps(codes), set1(zero_point));
  }
  void set_scale(float scale) { table = mul(unscaled, set1(scale)); }
};

template <bool kScaled>
struct Decoder<2, kScaled> : WeightTable<3> {
  Unit decode(const uint8_t* p) const {
    const __m256i bits = _mm256_set1_epi32(load_32(p));
    const __m256i low = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i high = _mm256_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30);
    return {{_mm256_permutevar8x32_ps(this->table, _mm256_srlv_epi32(bits, low)),
             _mm256_permutevar8x32_ps(this->table, _mm256_srlv_epi32(bits, high))}};
  }
};

template <bool kScaled>
struct Decoder<3, kScaled> : WeightTable<7> {
  Unit decode(const uint8_t* p) const {
    // Columns 0 to 7 are bits 0 to 23 of the dword at 0, columns 8 to 15 are bits 8 to 31 of the dword at 2.
    const __m256i low = _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21);
    const __m256i high = _mm256_setr_epi32(8, 11, 14, 17, 20, 23, 26, 29);
    return {
        {_mm256_permutevar8x32_ps(this->table, _mm256_srlv_epi32(_mm256_set1_epi32(load_32(p)), low)),
         _mm256_permutevar8x32_ps(this->table, _mm256_srlv_epi32(_mm256_set1_epi32(load_32(p + 2)), high))}};
  }
};

// Sixteen weights do not fit an 8-entry table: codes are converted instead.
template <bool kScaled>
struct Converter;

template <>
struct Converter<true> {
  Vec zeros, scales;
  void set_zero(float zero_point) { zeros = set1(zero_point); }
  void set_scale(float scale) { scales = set1(scale); }
  Vec weights(__m256i codes) const { return mul(sub(_mm256_cvtepi32_ps(codes), zeros), scales); }
};

template <>
struct Converter<false> {
  __m256i zeros;
  // The zero point is an integer; integer subtraction leaves the ports of the multiplications free.
  void set_zero(float zero_point) { zeros = _mm256_set1_epi32(static_cast<int>(zero_point)); }
  Vec weights(__m256i codes) const { return _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, zeros)); }
};

template <bool kScaled>
struct Decoder<4, kScaled> : Converter<kScaled> {
  Unit decode(const uint8_t* p) const {
    // Even lanes hold the dword of columns 0 to 7, odd lanes that of columns 8 to 15.
    const __m256i bits = _mm256_set1_epi64x(load_64(p));
    const __m256i low = _mm256_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12);
    const __m256i high = _mm256_setr_epi32(16, 16, 20, 20, 24, 24, 28, 28);
    const __m256i mask = _mm256_set1_epi32(15);
    return {{this->weights(_mm256_and_si256(_mm256_srlv_epi32(bits, low), mask)),
             this->weights(_mm256_and_si256(_mm256_srlv_epi32(bits, high), mask))}};
  }
};

template <bool kScaled>
struct Decoder<8, kScaled> : Converter<kScaled> {
  Unit decode(const uint8_t* p) const {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8));
    return {{this->weights(_mm256_cvtepu8_epi32(low)), this->weights(_mm256_cvtepu8_epi32(high))}};
  }
};

// The order of a decoded 4-bit unit.
inline void interleave_halves(const float* in, float* out) {
  const Vec low = load(in), high = load(in + 8);
  const Vec even = _mm256_unpacklo_ps(low, high), odd = _mm256_unpackhi_ps(low, high);
  store(out, _mm256_permute2f128_ps(even, odd, 0x20));
  store(out + 8, _mm256_permute2f128_ps(even, odd, 0x31));
}

#endif

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline float scale_at(const GroupIntLayout& layout, int64_t row, int64_t group) {
  const int64_t at = row * layout.groups + group;
  return layout.scales_f16 != nullptr ? _cvtsh_ss(layout.scales_f16[at]) : layout.scales_f32[at];
}

inline float zero_at(const GroupIntLayout& layout, int64_t row, int64_t group) {
  const int64_t at = row * layout.groups + group;
  if (layout.zeros_u8 != nullptr) return static_cast<float>(layout.zeros_u8[at]);
  return layout.zeros_f32 != nullptr ? layout.zeros_f32[at] : layout.symmetric_zero;
}

inline bool is_symmetric(const GroupIntLayout& layout) {
  return layout.zeros_u8 == nullptr && layout.zeros_f32 == nullptr;
}

// Groups whose scales are converted at once.
constexpr int64_t kGroupChunk = 16;

// Scales of `count` <= kGroupChunk groups of one row from `group` on.
inline void load_scales(const GroupIntLayout& layout, int64_t row, int64_t group, int64_t count, float* out) {
  const int64_t at = row * layout.groups + group;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i;
    if (layout.scales_f16 != nullptr) {
      const uint16_t* p = layout.scales_f16 + at + i;
      store(out + i, left >= kLanes ? load_f16(p) : load_f16_partial(p, left));
    } else {
      const float* p = layout.scales_f32 + at + i;
      store(out + i, left >= kLanes ? load(p) : load_partial(p, left));
    }
  }
}

// A row's scales, segment after segment of its groups; zero points beside the codes' center, as products of
// integers take them (integer_products.h, word_products.h).
template <int kBits, bool kZeros>
struct GroupWalk {
  int64_t number, group, left;  // segments of the group that are still to come
  int64_t in_chunk;
  Vec zero, scale;
  alignas(64) float scales[kGroupChunk];

  void begin(int64_t row) { number = row, group = -1, left = 0, in_chunk = kGroupChunk - 1; }
  // The scale of the next segment, times 2^-21. Without divisions: segments are short.
  Vec next(const GroupIntLayout& layout, int64_t group_segments) {
    if (left-- > 0) return scale;
    left = group_segments - 1, ++group;
    if (++in_chunk == kGroupChunk) {
      in_chunk = 0;
      load_scales(layout, number, group, smaller(kGroupChunk, layout.groups - group), scales);
    }
    if constexpr (kZeros) zero = set1(zero_at(layout, number, group) - static_cast<float>(1 << (kBits - 1)));
    return scale = set1(scales[in_chunk] * 0x1p-21f);
  }
};

// The last unit of a row may be shorter than 16 columns; its bytes are copied so that nothing beyond the row
// is read. Columns beyond k decode to finite weights and meet activations of zero.
inline const uint8_t* tail_unit(const uint8_t* p, int64_t bytes, uint8_t* buffer) {
  for (int i = 0; i < 16; ++i) buffer[i] = i < bytes ? p[i] : 0;
  return buffer;
}

// One token in the order of decoded units; see GroupIntKernels.
inline void arrange(int bits, const float* x, int64_t k, float* out) {
  const int64_t whole = k / kGroupIntUnit * kGroupIntUnit;
  float last[kGroupIntUnit] = {};
  for (int64_t j = whole; j < k; ++j) last[j - whole] = x[j];
  for (int64_t j = 0; j < k; j += kGroupIntUnit) {
    const float* in = j < whole ? x + j : last;
    if (bits == 4) {
      interleave_halves(in, out + j);
    } else {
      for (int v = 0; v < kUnitVectors; ++v) store(out + j + v * kLanes, load(in + v * kLanes));
    }
  }
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA

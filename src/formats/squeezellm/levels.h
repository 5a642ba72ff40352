// A row's levels and its sparse part, for sources compiled per instruction set; everything has internal
// linkage.
#pragma once

#include "formats/group_int/decode.h"
#include "formats/squeezellm/layout.h"

namespace nibble::NIBBLE_ISA {
namespace {

#if defined(__AVX512F__)

// The levels of one row, which repeat in the 16 entries where there are fewer.
template <int kBits>
inline Vec row_levels(const SqueezellmLayout& layout, int64_t row) {
  const int64_t at = row << kBits;
  if (layout.codebooks_f16 != nullptr) {
    const uint16_t* p = layout.codebooks_f16 + at;
    if constexpr (kBits == 4) return load_f16(p);
    if constexpr (kBits == 3)
      return _mm512_cvtph_ps(
          _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    return _mm512_cvtph_ps(_mm256_set1_epi64x(load_64(reinterpret_cast<const uint8_t*>(p))));
  }
  const float* p = layout.codebooks_f32 + at;
  if constexpr (kBits == 4) return load(p);
  if constexpr (kBits == 3) return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
  return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
}

#endif

inline float sparse_value(const SqueezellmLayout& layout, uint32_t i) {
  return layout.sparse_values_f16 != nullptr ? _cvtsh_ss(layout.sparse_values_f16[i])
                                             : layout.sparse_values_f32[i];
}

// The row's sum of the dense part, to which its sparse values times x [k] and its bias are added.
inline float finish_row(const SqueezellmLayout& layout, int64_t row, float sum, const float* x) {
  if (layout.sparse_offsets != nullptr) {
    const uint32_t end = layout.sparse_offsets[row + 1];
    float odd = 0;  // two chains of additions
    uint32_t i = layout.sparse_offsets[row];
    for (; i + 1 < end; i += 2) {
      sum += sparse_value(layout, i) * x[layout.sparse_columns[i]];
      odd += sparse_value(layout, i + 1) * x[layout.sparse_columns[i + 1]];
    }
    if (i < end) sum += sparse_value(layout, i) * x[layout.sparse_columns[i]];
    sum += odd;
  }
  return layout.bias != nullptr ? sum + layout.bias[row] : sum;
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA

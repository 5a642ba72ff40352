// Activation codes of one token (README.md), vectorised: the same bits as quik-reference on every instruction
// set.
#pragma once

#include "formats/quik/isa/vec.h"
#include "formats/quik/kernels.h"

namespace nibble::quik::NIBBLE_ISA {
namespace {

// Moves the integer columns of x, in order, to row[0, k_int). Writes up to 16 floats beyond.
void gather_integer_columns(const Weights& w, const float* x, float* row) {
  if (w.outliers == 0) {
    __builtin_memcpy(row, x, static_cast<size_t>(w.k) * sizeof(float));
    return;
  }
#if defined(__AVX512F__)
  for (int64_t column = 0; column < w.k; column += 16) {
    uint16_t keep;
    __builtin_memcpy(&keep, w.keep + column / 8, sizeof(keep));
    const __m512 values = _mm512_maskz_loadu_ps(first_lanes(w.k - column), x + column);
    _mm512_storeu_ps(row, _mm512_maskz_compress_ps(keep, values));
    row += __builtin_popcount(keep);
  }
#else
  for (int64_t column = 0; column < w.k; column += 8) {
    const uint8_t keep = w.keep[column / 8];
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.compact + keep));
    const __m256 values = w.k - column >= 8 ? _mm256_loadu_ps(x + column)
                                            : _mm256_maskload_ps(x + column, first_lanes(w.k - column));
    _mm256_storeu_ps(row, _mm256_permutevar8x32_ps(values, _mm256_cvtepu8_epi32(bytes)));
    row += __builtin_popcount(keep);
  }
#endif
}

// Codes of kLanes values: clamp(rne(x / s) + z, 0, top). The quotient is first estimated as x * (1/s). That
// is within 3 * 2^-23 of the correctly rounded one, relatively, and |x/s| < 2^8 (where s is normal), so both
// round to the same integer unless the estimate comes within 2^-13 of halfway between two; only then is it
// divided, as IEEE says.
inline vint quantize_lanes(vfloat x, vfloat s, vfloat reciprocal, vint z, vint top) {
  const vfloat estimate = mul(x, reciprocal);
  vint rounded = round_to_int(estimate);
  if (__builtin_expect(any_at_least(sub(estimate, to_float(rounded)), set1(0.5f - 0x1p-13f)), 0)) {
    rounded = round_to_int(div(x, s));
  }
  return min(max(add(rounded, z), zeroi()), top);
}

// The same by division only, for steps so small that their reciprocal is imprecise or infinite.
inline vint quantize_lanes_exactly(vfloat x, vfloat s, vint z, vint top) {
  return min(max(add(round_to_int(div(x, s)), z), zeroi()), top);
}

inline void store_codes(uint8_t* codes, const vint* values) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(values[0]));
#else
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(values[0], values[1]), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes),
                   _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#endif
}

constexpr int kVectorsPer16 = 16 / kLanes;

void quantize_token(const Weights& w, const float* x, const Activations& a, int64_t token, float* row) {
  const int64_t padded = w.blocks * kBlockColumns;
  gather_integer_columns(w, x, row);
  const int64_t counted = (w.k_int + 15) / 16 * 16;
  for (int64_t j = w.k_int; j < counted; ++j) row[j] = 0.0f;

  vfloat low = zerof(), high = zerof();
  vint largest = zeroi();
  const vint magnitude = set1(0x7fffffff);
  for (int64_t j = 0; j < counted; j += kLanes) {
    const vfloat values = loadf(row + j);
    low = min(low, values);
    high = max(high, values);
    largest = max(largest, and_bits(bits(values), magnitude));
  }
  float lo = reduce_min(low), hi = reduce_max(high);
  const int32_t top = (1 << w.activation_bits) - 1;
  const float levels = static_cast<float>(top);
  float s = (hi - lo) / levels;

  uint8_t* codes = token_codes(a, w.blocks, token);
  const int64_t stride = tile_rows(a.tokens, token) * kBlockColumns;
  constexpr int32_t kInfinity = 0x7f800000;
  int32_t scale_bits;
  __builtin_memcpy(&scale_bits, &s, sizeof(s));
  if (reduce_max(largest) >= kInfinity || scale_bits >= kInfinity) {
    for (int64_t block = 0; block < w.blocks; ++block)
      __builtin_memset(codes + block * stride, 0, kBlockColumns);
    a.scales[token] = __builtin_nanf("");
    a.zeros[token] = 0;
    a.offsets[token] = 0;
    return;
  }
  if (s == 0.0f) {
    lo = -1.0f;
    hi = 1.0f;
    s = (hi - lo) / levels;
  }
  const int32_t zero = _mm_cvtss_si32(_mm_set_ss(-lo / s));
  // lo has code 0, exactly: rne(lo / s) = -z.
  for (int64_t j = w.k_int; j < padded; ++j) row[j] = lo;

  const vfloat step = set1(s), reciprocal = set1(1.0f / s);
  const vint zeros = set1(zero), tops = set1(top);
  vint total = zeroi();
  const bool precise = s >= 0x1p-100f;
  for (int64_t block = 0; block < w.blocks; ++block) {
    for (int64_t j = 0; j < kBlockColumns; j += 16) {
      vint values[kVectorsPer16];
#pragma GCC unroll 2
      for (int v = 0; v < kVectorsPer16; ++v) {
        const vfloat floats = loadf(row + block * kBlockColumns + j + v * kLanes);
        values[v] = __builtin_expect(precise, 1) ? quantize_lanes(floats, step, reciprocal, zeros, tops)
                                                 : quantize_lanes_exactly(floats, step, zeros, tops);
        total = add(total, values[v]);
      }
      store_codes(codes + block * stride + j, values);
    }
  }
  a.scales[token] = s;
  a.zeros[token] = zero;
  a.offsets[token] = w.weight_bits == 4 ? 8 * reduce_add(total) : 0;
}

#if defined(__AMX_INT8__)
// The bf16 nearest to x, ties to even; NaN stays NaN.
inline uint32_t to_bf16(float x) {
  uint32_t word;
  __builtin_memcpy(&word, &x, sizeof(x));
  if ((word & 0x7fffffffu) > 0x7f800000u) return (word >> 16) | 0x40u;
  return (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
}

inline float from_bf16(uint32_t half) {
  const uint32_t word = half << 16;
  float x;
  __builtin_memcpy(&x, &word, sizeof(x));
  return x;
}

// x = high + low up to 2^-17 of it.
void split_outliers(const Weights& w, const Activations& a, int64_t token) {
  const int64_t rows = tile_rows(a.tokens, token);
  const int64_t part = w.outlier_blocks * kOutlierBlock;
  uint16_t* tile =
      a.outlier_tiles + token / kTileTokens * kTileTokens * part * 2 + token % kTileTokens * kOutlierBlock;
  const float* x = a.outliers + token * w.outliers;
  for (int64_t o = 0; o < part; ++o) {
    const float value = o < w.outliers ? x[o] : 0.0f;
    const uint32_t high = to_bf16(value);
    uint16_t* to = tile + o / kOutlierBlock * rows * kOutlierBlock + o % kOutlierBlock;
    to[0] = static_cast<uint16_t>(high);
    to[part * rows] = static_cast<uint16_t>(to_bf16(value - from_bf16(high)));
  }
}
#endif

void quantize(const Weights& w, const float* x, const Activations& a, int64_t first, int64_t last,
              float* scratch) {
  for (int64_t token = first; token < last; ++token) {
    const float* row = x + token * w.k;
    quantize_token(w, row, a, token, scratch);
    float* outliers = a.outliers + token * w.outliers;
    for (int64_t o = 0; o < w.outliers; ++o) outliers[o] = row[w.outlier_columns[o]];
#if defined(__AMX_INT8__)
    if (a.outlier_tiles != nullptr) split_outliers(w, a, token);
#endif
  }
}

}  // namespace
}  // namespace nibble::quik::NIBBLE_ISA

// Activation codes of one token (README.md), vectorised: the same bits as quik-reference on every instruction
// set.
#pragma once

#include "formats/quik/isa/vec.h"
#include "formats/quik/kernels.h"

namespace nibble::quik::NIBBLE_ISA {
namespace {

// What is known of one token's integer columns after the first pass.
struct TokenRange {
  float lo, hi;  // with 0 among them
  bool finite;
};

// Moves the integer columns of x, in order, to row[0, k_int), and finds their range. Writes up to 16 floats
// beyond.
TokenRange gather_integer_columns(const Weights& w, const float* x, float* row) {
  // Two of each, so that one does not wait for the other. x * 0 is NaN for NaN and the infinities, and stays
  // in a sum.
  vfloat low[2] = {zerof(), zerof()}, high[2] = {zerof(), zerof()}, poison[2] = {zerof(), zerof()};
  for (int64_t column = 0; column < w.k; column += 2 * kLanes) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int64_t from = column + i * kLanes;
      if (from >= w.k) break;
#if defined(__AVX512F__)
      uint16_t keep;
      __builtin_memcpy(&keep, w.keep + from / 8, sizeof(keep));
      // Bits of columns beyond k are zero in `keep`, and lanes that are not loaded are zero, as are dropped
      // ones below.
      const vfloat values = _mm512_maskz_loadu_ps(keep, x + from);
      _mm512_storeu_ps(row, _mm512_maskz_compress_ps(keep, values));
#else
      const uint8_t keep = w.keep[from / 8];
      const __m256i index =
          _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.compact + keep)));
      const vfloat all =
          w.k - from >= kLanes ? loadf(x + from) : _mm256_maskload_ps(x + from, first_lanes(w.k - from));
      const int count = __builtin_popcount(keep);
      const vfloat values =
          _mm256_and_ps(_mm256_permutevar8x32_ps(all, index), _mm256_castsi256_ps(first_lanes(count)));
      storef(row, values);
#endif
      row += __builtin_popcount(keep);
      low[i] = min(low[i], values);
      high[i] = max(high[i], values);
      poison[i] = fma(values, zerof(), poison[i]);
    }
  }
  const bool poisoned = any_unordered(add(poison[0], poison[1]));
  return {reduce_min(min(low[0], low[1])), reduce_max(max(high[0], high[1])), !poisoned};
}

// How one token is quantized.
struct TokenScale {
  float s, reciprocal;
  int32_t z, top;
  bool reciprocal_is_precise;
};

// Codes of 64 values: clamp(rne(x / s) + z, 0, top); returns their sum, in lanes.
//
// rne(x / s) + z is first estimated as rne(x * (1/s) + z). Where s is far from subnormal, |x / s| and z are
// at most 2^8 and x * (1/s) + z has an error below 2^-14, as has the quotient rounded to FP32: all round to
// the same integer unless the estimate comes within 2^-13 of halfway between two. Only then are the 64 values
// divided, as IEEE says, and z is added to the rounded quotients.
inline vint quantize_block(const float* row, const TokenScale& scale, vint total, uint8_t* codes) {
  constexpr int kCount = kBlockColumns / kLanes;
  const vfloat reciprocal = set1(scale.reciprocal), zero = set1(static_cast<float>(scale.z));
  vint values[kCount];
  vfloat off = zerof();  // the largest distance of an estimate from an integer
#pragma GCC unroll 8
  for (int v = 0; v < kCount; ++v) {
    const vfloat estimate = fma(loadf(row + v * kLanes), reciprocal, zero);
    values[v] = round_to_int(estimate);
    off = max_magnitude(off, sub(estimate, to_float(values[v])));
  }
  if (__builtin_expect(!scale.reciprocal_is_precise || any_at_least(off, set1(0.5f - 0x1p-13f)), 0)) {
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v) {
      values[v] = add(round_to_int(div(loadf(row + v * kLanes), set1(scale.s))), set1(scale.z));
    }
  }
  // The packs saturate to 0..255.
#if defined(__AVX512F__)
  const __m512i words0 = _mm512_packs_epi32(values[0], values[1]),
                words1 = _mm512_packs_epi32(values[2], values[3]);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_min_epu8(_mm512_permutexvar_epi32(order, _mm512_packus_epi16(words0, words1)),
                                        _mm512_set1_epi8(static_cast<char>(scale.top)));
  _mm512_storeu_si512(codes, bytes);
  return _mm512_dpbusd_epi32(total, bytes, _mm512_set1_epi8(1));
#else
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m256i words0 = _mm256_packs_epi32(values[half * 4], values[half * 4 + 1]);
    const __m256i words1 = _mm256_packs_epi32(values[half * 4 + 2], values[half * 4 + 3]);
    const __m256i bytes =
        _mm256_min_epu8(_mm256_permutevar8x32_epi32(_mm256_packus_epi16(words0, words1), order),
                        _mm256_set1_epi8(static_cast<char>(scale.top)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + half * 32), bytes);
    // Four 64-bit sums, whose upper halves are zero.
    total = add(total, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
  }
  return total;
#endif
}

void quantize_token(const Weights& w, const float* x, const Activations& a, int64_t token, float* row) {
  const TokenRange range = gather_integer_columns(w, x, row);
  float lo = range.lo, hi = range.hi;
  const int32_t top = (1 << w.activation_bits) - 1;
  const float levels = static_cast<float>(top);
  float s = (hi - lo) / levels;

  uint8_t* codes = token_codes(a, w.blocks, token);
  const int64_t stride = tile_rows(a.tokens, token) * kBlockColumns;
  if (!range.finite || !(s < __builtin_inff())) {
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
  // Padding gets code 0, which lo has exactly: rne(lo / s) = -z.
  for (int64_t j = w.k_int; j < w.blocks * kBlockColumns; ++j) row[j] = lo;
  const TokenScale scale = {s, 1.0f / s, zero, top, s >= 0x1p-100f};
  vint total = zeroi();
  for (int64_t block = 0; block < w.blocks; ++block) {
    total = quantize_block(row + block * kBlockColumns, scale, total, codes + block * stride);
  }
  a.scales[token] = s;
  a.zeros[token] = zero;
  a.offsets[token] = w.weight_bits == 4 ? 8 * reduce_add(total) : 0;
}

#if defined(__AMX_INT8__)
// The bf16 numbers nearest to x, ties to even, in the upper halves of the lanes; NaN stays NaN.
inline __m512i round_to_bf16(__m512 x) {
  const __m512i word = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(word, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, word, _mm512_set1_epi32(0x400000));
}

// x = high + low up to 2^-17 of it.
void split_outliers(const Weights& w, const Activations& a, int64_t token) {
  const int64_t rows = tile_rows(a.tokens, token);
  const int64_t part = w.outlier_blocks * kOutlierBlock;
  uint16_t* tile =
      a.outlier_tiles + token / kTileTokens * kTileTokens * part * 2 + token % kTileTokens * kOutlierBlock;
  const float* x = a.outliers + token * w.outliers;
  for (int64_t o = 0; o < part; o += kLanes) {
    const vfloat values = _mm512_maskz_loadu_ps(first_lanes(w.outliers - o), x + o);
    const __m512i high = round_to_bf16(values);
    const __m512i upper = _mm512_and_si512(high, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u)));
    const __m512i low = round_to_bf16(sub(values, _mm512_castsi512_ps(upper)));
    uint16_t* to = tile + o / kOutlierBlock * rows * kOutlierBlock + o % kOutlierBlock;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + part * rows),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(low, 16)));
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

// What happens to the INT32 sums of a group, and to those of a row at its end, on every instruction set.
#pragma once

#include "formats/group_int_a8/kernels.h"
#include "formats/quik/isa/vec.h"

namespace nibble::group_int_a8::NIBBLE_ISA {
namespace {

using namespace quik::NIBBLE_ISA;  // vectors of 16 or 8 lanes and their operations

constexpr int kPrefetchBytes = 8192;  // ahead in the strip: covers DRAM latency at full bandwidth

// One strip and the tokens it is multiplied by.
struct Product {
  const uint8_t* codes;  // of the strip
  int64_t steps, groups, group_steps;
  const float* scales;  // of the strip [groups][32]; exactly one of these three is set
  const uint16_t* half_scales;
  const uint16_t* multipliers;
  const int8_t* activations;  // the first token's codes
  int64_t stride;             // bytes from one step to the next of the same token
  const int32_t* starts;      // of the first token [groups]; the next token's follow
  void* sums;                 // [tokens][32], FP32, or INT32 with multipliers
  int32_t* group_sums;        // [tokens][groups][32] or null
};

inline vint load_words(const uint16_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
}

// Adds the sums of one group, of kVectors vectors of rows from `row` on, to those of the groups before it.
template <int kTokens, int kVectors>
inline __attribute__((always_inline)) void add_group(const Product& p, int64_t group, int row,
                                                     const vint (&totals)[kTokens][kVectors]) {
  if (__builtin_expect(p.group_sums != nullptr, 0)) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        storei(p.group_sums + (t * p.groups + group) * kStripRows + row + v * kLanes, totals[t][v]);
      }
    }
  }
  if (p.multipliers != nullptr) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const vint multiplier = load_words(p.multipliers + group * kStripRows + row + v * kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        int32_t* sum = static_cast<int32_t*>(p.sums) + t * kStripRows + row + v * kLanes;
        const vint product = mul(totals[t][v], multiplier);
        storei(sum, group == 0 ? product : add(loadi(sum), product));
      }
    }
    return;
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = group * kStripRows + row + v * kLanes;
    const vfloat scale = p.half_scales != nullptr ? load_half(p.half_scales + at) : loadf(p.scales + at);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      float* sum = static_cast<float*>(p.sums) + t * kStripRows + row + v * kLanes;
      storef(sum, fma(to_float(totals[t][v]), scale, group == 0 ? zerof() : loadf(sum)));
    }
  }
}

// What finish() needs of one strip.
struct StripRows {
  const float* row_scales;  // null with float scales
  const float* bias;
  int64_t first;  // its first output column
  int64_t valid;  // how many of its rows exist
};

inline StripRows strip_rows(const Weights& w, int64_t strip) {
  const int64_t first = strip * kStripRows;
  return {w.row_scales == nullptr ? nullptr : w.row_scales + first, w.bias + first, first,
          w.n - first < kStripRows ? w.n - first : kStripRows};
}

// Writes the outputs of tokens [first, first + tokens).
inline void finish(const StripRows& rows, const Activations& a, int64_t first, int64_t tokens,
                   const void* sums, const Output& output) {
  float* y = output.y + first * output.y_stride + rows.first;
  for (int64_t t = 0; t < tokens; ++t) {
    const vfloat step = set1(a.scales[first + t]);
    for (int64_t row = 0; row < rows.valid; row += kLanes) {
      const int64_t at = t * kStripRows + row;
      const vfloat sum =
          rows.row_scales == nullptr
              ? loadf(static_cast<const float*>(sums) + at)
              : mul(to_float(loadi(static_cast<const int32_t*>(sums) + at)), loadf(rows.row_scales + row));
      const vfloat result = fma(sum, step, loadf(rows.bias + row));
      if (__builtin_expect(rows.valid - row >= kLanes, 1)) {
        storef(y + row, result);
      } else {
        store_first(y + row, result, rows.valid - row);
      }
    }
    y += output.y_stride;
  }
}

// The same for tests: the integers themselves.
inline void copy_sums(const StripRows& rows, const Product& p, int64_t n, int64_t first, int64_t tokens,
                      int32_t* accumulators) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t row = 0; row < rows.valid; ++row) {
      const int64_t at = (first + t) * n + rows.first + row;
      if (p.multipliers != nullptr) {
        accumulators[at] = static_cast<const int32_t*>(p.sums)[t * kStripRows + row];
        continue;
      }
      for (int64_t group = 0; group < p.groups; ++group) {
        accumulators[at * p.groups + group] = p.group_sums[(t * p.groups + group) * kStripRows + row];
      }
    }
  }
}

}  // namespace
}  // namespace nibble::group_int_a8::NIBBLE_ISA

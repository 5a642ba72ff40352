// From INT32 sums to outputs: the zero point's correction, scales, outlier columns and bias.
#pragma once

#include "formats/quik/isa/vec.h"
#include "formats/quik/kernels.h"

namespace nibble::quik::NIBBLE_ISA {
namespace {

constexpr int kVectors = kStripRows / kLanes;  // of one strip's rows

// f[t * 32 + r] = bias[r] + sum_o x[t, o] * w[r, o] in FP32, kRows vectors of rows at a time. w is F16
// [n_o][32].
template <int kTokens, int kRows>
void outlier_rows(const uint16_t* w, const float* bias, const float* x, int64_t outliers, float* f) {
  // Each sum of a single token is split so that additions need not wait for each other.
  constexpr int kSplit = kTokens > 2 ? 1 : kTokens == 1 && kLanes == 16 ? 4 : 2;
  vfloat sums[kTokens][kRows][kSplit];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int s = 0; s < kSplit; ++s) sums[t][r][s] = s == 0 ? loadf(bias + r * kLanes) : zerof();
    }
  }
  const auto column = [&](int64_t o, int s) __attribute__((always_inline)) {
    vfloat weights[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) weights[r] = load_half(w + o * kStripRows + r * kLanes);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const vfloat value = set1(x[t * outliers + o]);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[t][r][s] = fma(value, weights[r], sums[t][r][s]);
    }
  };
  int64_t o = 0;
  for (; o + kSplit <= outliers; o += kSplit) {
#pragma GCC unroll 4
    for (int s = 0; s < kSplit; ++s) column(o + s, s);
  }
  for (; o < outliers; ++o) column(o, 0);
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      vfloat sum = sums[t][r][0];
#pragma GCC unroll 4
      for (int s = 1; s < kSplit; ++s) sum = add(sum, sums[t][r][s]);
      storef(f + t * kStripRows + r * kLanes, sum);
    }
  }
}

// The same for a whole strip; x [kTokens, n_o] are the outlier columns of the first token and the following
// ones.
template <int kTokens>
void outlier_sums(const Weights& w, int64_t strip, const float* x, float* f) {
  constexpr int kRows = kLanes == 16 || kTokens > 1 ? 2 : 4;
  for (int row = 0; row < kStripRows; row += kRows * kLanes) {
    outlier_rows<kTokens, kRows>(w.outlier_weights + strip * w.outliers * kStripRows + row,
                                 w.bias + strip * kStripRows + row, x, w.outliers, f + row);
  }
}

using OutlierSums = void (*)(const Weights& w, int64_t strip, const float* x, float* f);
#if defined(__AVX512F__)
constexpr OutlierSums kOutlierSums[] = {outlier_sums<1>, outlier_sums<2>, outlier_sums<3>, outlier_sums<4>,
                                        outlier_sums<5>, outlier_sums<6>, outlier_sums<7>, outlier_sums<8>};
#else
constexpr OutlierSums kOutlierSums[] = {outlier_sums<1>, outlier_sums<2>, outlier_sums<3>, outlier_sums<4>};
#endif

// What finish() needs of one strip.
struct StripRows {
  const float* scales;
  const int32_t* sums;
  const float* bias;
  int64_t first;  // its first output column
  int64_t valid;  // how many of its rows exist
};

inline StripRows strip_rows(const Weights& w, int64_t strip) {
  const int64_t first = strip * kStripRows;
  return {w.scales + first, w.sums + first, w.bias + first, first,
          w.n - first < kStripRows ? w.n - first : kStripRows};
}

// Writes the outputs of tokens [first, first + tokens) from their sums c [tokens][32] and from f
// [tokens][32], bias and outlier columns (null where the linear has none of the latter).
inline void finish(const StripRows& rows, const Activations& a, int64_t first, int64_t tokens,
                   const int32_t* c, const float* f, const Output& output, int64_t n) {
  if (__builtin_expect(output.accumulators != nullptr, 0)) {
    for (int64_t t = 0; t < tokens; ++t) {
      const vint offset = set1(a.offsets[first + t]);
      for (int v = 0; v < kVectors; ++v) {
        store_first(output.accumulators + (first + t) * n + rows.first + v * kLanes,
                    sub(loadi(c + t * kStripRows + v * kLanes), offset), rows.valid - v * kLanes);
      }
    }
    return;
  }
  vfloat scales[kVectors], bias[kVectors];
  vint sums[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    scales[v] = loadf(rows.scales + v * kLanes);
    bias[v] = loadf(rows.bias + v * kLanes);
    sums[v] = loadi(rows.sums + v * kLanes);
  }
  float* y = output.y + first * output.y_stride + rows.first;
  const int64_t y_stride = output.y_stride;
  const float* steps = a.scales + first;
  const int32_t* zeros = a.zeros + first;
  const int32_t* offsets = a.offsets + first;
  const bool whole = rows.valid == kStripRows;
  for (int64_t t = 0; t < tokens; ++t) {
    const vint offset = set1(offsets[t]), zero = set1(zeros[t]);
    const vfloat step = set1(steps[t]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const vint corrected = sub(sub(loadi(c + t * kStripRows + v * kLanes), offset), mul(zero, sums[v]));
      const vfloat rest = f == nullptr ? bias[v] : loadf(f + t * kStripRows + v * kLanes);
      const vfloat result = fma(mul(to_float(corrected), step), scales[v], rest);
      if (__builtin_expect(whole, 1)) {
        storef(y + v * kLanes, result);
      } else {
        store_first(y + v * kLanes, result, rows.valid - v * kLanes);
      }
    }
    y += y_stride;
  }
}

}  // namespace
}  // namespace nibble::quik::NIBBLE_ISA

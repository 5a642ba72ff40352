// Products with Sylvester's matrix and with a small dense one. Included only by float_kernels.isa.cc.
#pragma once

#include "kernels/cpu/gemm_tile.h"

namespace nibble::NIBBLE_ISA {
namespace {

// Lane i of the result is lane i ^ kDistance of v.
template <int kDistance>
inline Vec swap_lanes(Vec v) {
#if defined(__AVX512F__)
  if constexpr (kDistance == 1) return _mm512_permute_ps(v, 0xb1);
  if constexpr (kDistance == 2) return _mm512_permute_ps(v, 0x4e);
  if constexpr (kDistance == 4) return _mm512_shuffle_f32x4(v, v, 0xb1);
  if constexpr (kDistance == 8) return _mm512_shuffle_f32x4(v, v, 0x4e);
#elif defined(__AVX2__)
  if constexpr (kDistance == 1) return _mm256_permute_ps(v, 0xb1);
  if constexpr (kDistance == 2) return _mm256_permute_ps(v, 0x4e);
  if constexpr (kDistance == 4) return _mm256_permute2f128_ps(v, v, 0x01);
#else
  if constexpr (kDistance == 1) return Vec{v[1], v[0], v[3], v[2]};
  if constexpr (kDistance == 2) return Vec{v[2], v[3], v[0], v[1]};
#endif
}

alignas(64) constexpr float kLaneSigns[4][16] = {
    {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
    {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
    {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
    {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1},
};

// Sums in the lower lane of each pair, differences in the upper one.
template <int kLevel>
inline Vec butterfly(Vec v) {
  return fma(v, load(kLaneSigns[kLevel]), swap_lanes<1 << kLevel>(v));
}

inline Vec sylvester_lanes(Vec v) {
  v = butterfly<1>(butterfly<0>(v));
#if defined(__AVX2__)
  v = butterfly<2>(v);
#endif
#if defined(__AVX512F__)
  v = butterfly<3>(v);
#endif
  return v;
}

void sylvester(float* x, int64_t size, float scale) {
  if (size < kLanes) {
    for (int64_t i = 0; i < size; ++i) x[i] *= scale;
    for (int64_t half = 1; half < size; half *= 2) {
      for (int64_t first = 0; first < size; first += 2 * half) {
        for (int64_t i = first; i < first + half; ++i) {
          const float a = x[i], b = x[i + half];
          x[i] = a + b;
          x[i + half] = a - b;
        }
      }
    }
    return;
  }
  const Vec factor = set1(scale);
  for (int64_t i = 0; i < size; i += kLanes) store(x + i, sylvester_lanes(mul(load(x + i), factor)));
  int64_t step = kLanes;
  for (; 4 * step <= size; step *= 4) {
    for (int64_t first = 0; first < size; first += 4 * step) {
      for (int64_t i = first; i < first + step; i += kLanes) {
        const Vec a = load(x + i), b = load(x + i + step);
        const Vec c = load(x + i + 2 * step), d = load(x + i + 3 * step);
        const Vec sum_low = add(a, b), difference_low = sub(a, b);
        const Vec sum_high = add(c, d), difference_high = sub(c, d);
        store(x + i, add(sum_low, sum_high));
        store(x + i + step, add(difference_low, difference_high));
        store(x + i + 2 * step, sub(sum_low, sum_high));
        store(x + i + 3 * step, sub(difference_low, difference_high));
      }
    }
  }
  if (2 * step <= size) {
    for (int64_t i = 0; i < step; i += kLanes) {
      const Vec a = load(x + i), b = load(x + i + step);
      store(x + i, add(a, b));
      store(x + i + step, sub(a, b));
    }
  }
}

// kRows rows of matrix * strip: a [rows, kTileColumns] strip of which `columns` are wanted.
template <int kRows>
inline void mix_tile(const float* matrix, const float* strip, int64_t rows, float* out, int64_t stride,
                     int64_t columns) {
  Vec low[kRows], high[kRows];
  for (int r = 0; r < kRows; ++r) low[r] = zero(), high[r] = zero();
  for (int64_t j = 0; j < rows; ++j) {
    const Vec a = load(strip + j * kTileColumns), b = load(strip + j * kTileColumns + kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vec factor = set1(matrix[r * rows + j]);
      low[r] = fma(factor, a, low[r]);
      high[r] = fma(factor, b, high[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) store_columns(out + r * stride, columns, low[r], high[r]);
}

void mix_rows(float* x, int64_t rows, int64_t columns, int64_t stride, const float* matrix, float* scratch) {
  static_assert(kTileColumns <= kMixColumns);
  for (int64_t first = 0; first < columns; first += kTileColumns) {
    const int64_t width = columns - first < kTileColumns ? columns - first : kTileColumns;
    for (int64_t j = 0; j < rows; ++j) {
      Vec low, high;
      load_columns(x + j * stride + first, width, &low, &high);
      store(scratch + j * kTileColumns, low);
      store(scratch + j * kTileColumns + kLanes, high);
    }
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      mix_tile<4>(matrix + r * rows, scratch, rows, x + r * stride + first, stride, width);
    }
    for (; r < rows; ++r) {
      mix_tile<1>(matrix + r * rows, scratch, rows, x + r * stride + first, stride, width);
    }
  }
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA

// The GEMM tile and its packing, and the matrix-vector product. Included only by float_kernels.isa.cc.
//
// A tile is kTileRows x kTileColumns accumulators held in registers; per step of k it loads one row of the panel (two
// vectors) and broadcasts one element of each packed row. 24 of 32 registers on AVX-512, 12 of 16 on AVX2 are accumulators,
// enough to hide the latency of the multiply-adds.
#pragma once

#include "kernels/cpu/vec.h"

namespace nibble::NIBBLE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileColumns = 2 * kLanes;
constexpr int kRowsPerGemv = 4;  // weight rows that gemv() reads side by side

inline Vec load_weight(const float* p) { return load(p); }
inline Vec load_weight_partial(const float* p, int64_t count) { return load_partial(p, count); }

// 16-bit element types as distinct types, so that one template serves all three.
struct F16 {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};
inline Vec load_weight(const F16* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }
inline Vec load_weight_partial(const F16* p, int64_t count) {
  return load_f16_partial(reinterpret_cast<const uint16_t*>(p), count);
}
inline Vec load_weight(const Bf16* p) { return load_bf16(reinterpret_cast<const uint16_t*>(p)); }
inline Vec load_weight_partial(const Bf16* p, int64_t count) {
  return load_bf16_partial(reinterpret_cast<const uint16_t*>(p), count);
}

// Transposes kLanes vectors in place.
#if defined(__AVX512F__)
inline void transpose(Vec* v) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
    const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
    v[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    v[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    v[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    v[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    v[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    v[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}
#elif defined(__AVX2__)
inline void transpose(Vec* v) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    v[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    v[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    v[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    v[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) v[i] = t[i];
}
#else
inline void transpose(Vec* v) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = i + 1; j < kLanes; ++j) {
      const float swapped = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = swapped;
    }
  }
}
#endif

// panel[i][j] = weight[j][i] for i < depth, j < columns; columns beyond are 0. Rows of the weight are `stride` apart.
template <typename W>
void pack_panel(const W* weight, int64_t stride, int64_t columns, int64_t depth, float* panel) {
  for (int64_t first = 0; first < kTileColumns; first += kLanes) {
    const int64_t rows = columns - first < kLanes ? columns - first : kLanes;
    for (int64_t i = 0; i < depth; i += kLanes) {
      const int64_t steps = depth - i < kLanes ? depth - i : kLanes;
      Vec v[kLanes];
      for (int64_t j = 0; j < kLanes; ++j) {
        if (j >= rows) {
          v[j] = zero();
        } else if (steps == kLanes) {
          v[j] = load_weight(weight + (first + j) * stride + i);
        } else {
          v[j] = load_weight_partial(weight + (first + j) * stride + i, steps);
        }
      }
      transpose(v);
      for (int64_t j = 0; j < steps; ++j) store(panel + (i + j) * kTileColumns + first, v[j]);
    }
  }
}

inline void load_columns(const float* p, int64_t columns, Vec* low, Vec* high) {
  if (columns == kTileColumns) {
    *low = load(p), *high = load(p + kLanes);
  } else if (columns > kLanes) {
    *low = load(p), *high = load_partial(p + kLanes, columns - kLanes);
  } else {
    *low = columns == kLanes ? load(p) : load_partial(p, columns), *high = zero();
  }
}

inline void store_columns(float* p, int64_t columns, Vec low, Vec high) {
  if (columns == kTileColumns) {
    store(p, low), store(p + kLanes, high);
  } else if (columns > kLanes) {
    store(p, low), store_partial(p + kLanes, high, columns - kLanes);
  } else if (columns == kLanes) {
    store(p, low);
  } else {
    store_partial(p, low, columns);
  }
}

enum class Start { kZero, kRow, kContinue };  // accumulators begin at 0, at one row for all (the bias), at c

// c[r][j] = start + sum over i of a[r * kStride + i] * panel[i][j], for r < rows <= kRows and j < columns. All kRows rows of
// a must be readable.
template <int kRows, int kStride>
void tile(const float* a, int64_t depth, const float* panel, Start start, const float* row, float* c, int64_t c_stride,
          int64_t rows, int64_t columns) {
  Vec low[kRows], high[kRows];
  if (start == Start::kContinue) {
    for (int r = 0; r < kRows; ++r) {
      if (r < rows) {
        load_columns(c + r * c_stride, columns, &low[r], &high[r]);
      } else {
        low[r] = zero(), high[r] = zero();
      }
    }
  } else {
    Vec first_low = zero(), first_high = zero();
    if (start == Start::kRow) load_columns(row, columns, &first_low, &first_high);
    for (int r = 0; r < kRows; ++r) low[r] = first_low, high[r] = first_high;
  }
  for (int64_t i = 0; i < depth; ++i) {
    const Vec b_low = load(panel + i * kTileColumns), b_high = load(panel + i * kTileColumns + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Vec x = set1(a[r * kStride + i]);
      low[r] = fma(x, b_low, low[r]);
      high[r] = fma(x, b_high, high[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    if (r < rows) store_columns(c + r * c_stride, columns, low[r], high[r]);
  }
}

// The smallest tile that holds `rows`.
template <int kStride>
void tile_rows(const float* a, int64_t depth, const float* panel, Start start, const float* row, float* c,
               int64_t c_stride, int64_t rows, int64_t columns) {
  if (rows > kTileRows * 2 / 3) {
    tile<kTileRows, kStride>(a, depth, panel, start, row, c, c_stride, rows, columns);
  } else if (rows > kTileRows / 3) {
    tile<kTileRows * 2 / 3, kStride>(a, depth, panel, start, row, c, c_stride, rows, columns);
  } else {
    tile<(kTileRows + 2) / 3, kStride>(a, depth, panel, start, row, c, c_stride, rows, columns);
  }
}

inline int64_t blocks_of(int64_t k) { return (k + kGemmDepth - 1) / kGemmDepth; }

void gemm_pack_rows(const float* x, int64_t rows, int64_t k, float* packed) {
  for (int64_t block = 0; block < blocks_of(k); ++block) {
    const int64_t first = block * kGemmDepth;
    const int64_t depth = k - first < kGemmDepth ? k - first : kGemmDepth;
    for (int64_t r = 0; r < kTileRows; ++r) {
      float* to = packed + (block * kTileRows + r) * kGemmRowStride;
      int64_t i = 0;
      if (r < rows) {
        const float* from = x + r * k + first;
        for (; i + kLanes <= depth; i += kLanes) store(to + i, load(from + i));
        for (; i < depth; ++i) to[i] = from[i];
      }
      for (; i < depth; ++i) to[i] = 0.0f;
    }
  }
}

template <typename W>
void gemm_panel_typed(const float* packed, int64_t rows, int64_t k, const W* weight, int64_t columns, const float* bias,
                      float* y, int64_t y_stride, float* panel) {
  const int64_t blocks = blocks_of(k);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * kGemmDepth;
    const int64_t depth = k - first < kGemmDepth ? k - first : kGemmDepth;
    pack_panel(weight + first, k, columns, depth, panel);
    const Start start = block > 0 ? Start::kContinue : bias != nullptr ? Start::kRow : Start::kZero;
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const float* a = packed + (r / kTileRows * blocks + block) * kTileRows * kGemmRowStride;
      tile_rows<kGemmRowStride>(a, depth, panel, start, bias, y + r * y_stride, y_stride,
                                rows - r < kTileRows ? rows - r : kTileRows, columns);
    }
  }
}

void gemm_panel(const float* packed, int64_t rows, int64_t k, WeightType type, const void* weight, int64_t columns,
                const float* bias, float* y, int64_t y_stride, float* panel) {
  switch (type) {
    case WeightType::kF32:
      return gemm_panel_typed(packed, rows, k, static_cast<const float*>(weight), columns, bias, y, y_stride, panel);
    case WeightType::kF16:
      return gemm_panel_typed(packed, rows, k, static_cast<const F16*>(weight), columns, bias, y, y_stride, panel);
    case WeightType::kBF16:
      return gemm_panel_typed(packed, rows, k, static_cast<const Bf16*>(weight), columns, bias, y, y_stride, panel);
  }
}

// kRows weight rows against kTokens tokens. Every output is summed in the same order whatever kRows and kTokens are.
template <int kRows, int kTokens, typename W>
void gemv_block(const float* x, int64_t k, const W* weight, const float* bias, float* y, int64_t y_stride,
                int64_t prefetch_distance) {
  Vec sums[kRows][kTokens];
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) sums[r][t] = zero();
  }
  constexpr int64_t kPerLine = 64 / static_cast<int64_t>(sizeof(W));
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    Vec tokens[kTokens];
    for (int t = 0; t < kTokens; ++t) tokens[t] = load(x + t * k + i);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const W* row = weight + r * k + i;
      if (i % kPerLine == 0) prefetch(reinterpret_cast<const char*>(row) + prefetch_distance);
      const Vec w = load_weight(row);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) sums[r][t] = fma(w, tokens[t], sums[r][t]);
    }
  }
  if (i < k) {
    for (int t = 0; t < kTokens; ++t) {
      const Vec token = load_partial(x + t * k + i, k - i);
      for (int r = 0; r < kRows; ++r) {
        sums[r][t] = fma(load_weight_partial(weight + r * k + i, k - i), token, sums[r][t]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) y[t * y_stride + r] = reduce_add(sums[r][t]) + (bias == nullptr ? 0.0f : bias[r]);
  }
}

template <int kTokens, typename W>
void gemv_typed(const float* x, int64_t k, const W* weight, int64_t columns, const float* bias, float* y,
                int64_t y_stride) {
  // The block of rows after this one lies right behind it: fetch the same offset there.
  const int64_t distance = kRowsPerGemv * k * static_cast<int64_t>(sizeof(W));
  int64_t j = 0;
  for (; j + kRowsPerGemv <= columns; j += kRowsPerGemv) {
    gemv_block<kRowsPerGemv, kTokens>(x, k, weight + j * k, bias == nullptr ? nullptr : bias + j, y + j, y_stride, distance);
  }
  for (; j < columns; ++j) {
    gemv_block<1, kTokens>(x, k, weight + j * k, bias == nullptr ? nullptr : bias + j, y + j, y_stride, 0);
  }
}

template <typename W>
void gemv_tokens(const float* x, int64_t tokens, int64_t k, const W* weight, int64_t columns, const float* bias, float* y,
                 int64_t y_stride) {
  switch (tokens) {
    case 1: return gemv_typed<1>(x, k, weight, columns, bias, y, y_stride);
    case 2: return gemv_typed<2>(x, k, weight, columns, bias, y, y_stride);
    case 3: return gemv_typed<3>(x, k, weight, columns, bias, y, y_stride);
    case 4: return gemv_typed<4>(x, k, weight, columns, bias, y, y_stride);
    default: return;
  }
}

void gemv(const float* x, int64_t tokens, int64_t k, WeightType type, const void* weight, int64_t columns,
          const float* bias, float* y, int64_t y_stride) {
  switch (type) {
    case WeightType::kF32:
      return gemv_tokens(x, tokens, k, static_cast<const float*>(weight), columns, bias, y, y_stride);
    case WeightType::kF16:
      return gemv_tokens(x, tokens, k, static_cast<const F16*>(weight), columns, bias, y, y_stride);
    case WeightType::kBF16:
      return gemv_tokens(x, tokens, k, static_cast<const Bf16*>(weight), columns, bias, y, y_stride);
  }
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA

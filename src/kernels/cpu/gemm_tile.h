// The GEMM tile and its packing, and the matrix-vector product. Included only by float_kernels.isa.cc.
#pragma once

#include "kernels/cpu/register_tile.h"

namespace nibble::NIBBLE_ISA {
namespace {

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

// panel[i][j] = weight[j][i] for i < depth, j < columns; columns beyond are 0. Rows of the weight are
// `stride` apart.
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

void gemm_pack_rows(const float* x, int64_t rows, int64_t stride, int64_t depth, float* packed) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    float* to = packed + r * kGemmRowStride;
    int64_t i = 0;
    if (r < rows) {
      const float* from = x + r * stride;
      for (; i + kLanes <= depth; i += kLanes) store(to + i, load(from + i));
      for (; i < depth; ++i) to[i] = from[i];
    }
    for (; i < depth; ++i) to[i] = 0.0f;
  }
}

template <typename W>
void gemm_panel_typed(const GemmPanel& in) {
  constexpr int64_t kSize = static_cast<int64_t>(sizeof(W));
  pack_panel(static_cast<const W*>(in.weight), in.weight_stride, in.columns, in.depth, in.panel);
  const int64_t steps = (in.rows + kTileRows - 1) / kTileRows * ((in.depth + kFetchStep - 1) / kFetchStep);
  const int64_t lines = in.columns * ((in.depth * kSize + 63) / 64);
  Fetch fetch = {.weight = static_cast<const char*>(in.next),
                 .row_bytes = in.depth * kSize,
                 .stride_bytes = in.weight_stride * kSize,
                 .offset = 0,
                 .rows = in.next == nullptr ? 0 : in.columns,
                 .lines = (lines + steps - 1) / steps,
                 .c = nullptr,
                 .c_stride = in.y_stride,
                 .c_rows = 0,
                 .c_columns = in.columns};
  TileShape shape = {.depth = in.depth,
                     .start = !in.first            ? Start::kContinue
                              : in.bias != nullptr ? Start::kRow
                                                   : Start::kZero,
                     .row = in.bias,
                     .c_stride = in.y_stride,
                     .rows = kTileRows,
                     .columns = in.columns};
  for (int64_t r = 0; r < in.rows; r += kTileRows) {
    const int64_t left = in.rows - r;
    shape.rows = left < kTileRows ? left : kTileRows;
    fetch.c = in.y + (r + kTileRows) * in.y_stride;
    fetch.c_rows = left <= kTileRows ? 0 : left < 2 * kTileRows ? left - kTileRows : kTileRows;
    tile_rows<kGemmRowStride>(in.packed + r * kGemmRowStride, in.panel, in.y + r * in.y_stride, shape,
                              &fetch);
  }
}

void gemm_panel(const GemmPanel& in) {
  switch (in.type) {
    case WeightType::kF32:
      return gemm_panel_typed<float>(in);
    case WeightType::kF16:
      return gemm_panel_typed<F16>(in);
    case WeightType::kBF16:
      return gemm_panel_typed<Bf16>(in);
  }
}

// kRows weight rows against kTokens tokens. Every output is summed in the same order whatever kRows and
// kTokens are.
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
    for (int t = 0; t < kTokens; ++t)
      y[t * y_stride + r] = reduce_add(sums[r][t]) + (bias == nullptr ? 0.0f : bias[r]);
  }
}

template <int kTokens, typename W>
void gemv_typed(const float* x, int64_t k, const W* weight, int64_t columns, const float* bias, float* y,
                int64_t y_stride) {
  // The block of rows after this one lies right behind it: fetch the same offset there.
  const int64_t distance = kRowsPerGemv * k * static_cast<int64_t>(sizeof(W));
  int64_t j = 0;
  for (; j + kRowsPerGemv <= columns; j += kRowsPerGemv) {
    gemv_block<kRowsPerGemv, kTokens>(x, k, weight + j * k, bias == nullptr ? nullptr : bias + j, y + j,
                                      y_stride, distance);
  }
  for (; j < columns; ++j) {
    gemv_block<1, kTokens>(x, k, weight + j * k, bias == nullptr ? nullptr : bias + j, y + j, y_stride, 0);
  }
}

template <typename W>
void gemv_tokens(const float* x, int64_t tokens, int64_t k, const W* weight, int64_t columns,
                 const float* bias, float* y, int64_t y_stride) {
  switch (tokens) {
    case 1:
      return gemv_typed<1>(x, k, weight, columns, bias, y, y_stride);
    case 2:
      return gemv_typed<2>(x, k, weight, columns, bias, y, y_stride);
    case 3:
      return gemv_typed<3>(x, k, weight, columns, bias, y, y_stride);
    case 4:
      return gemv_typed<4>(x, k, weight, columns, bias, y, y_stride);
    default:
      return;
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

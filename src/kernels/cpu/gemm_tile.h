// The GEMM tile and its packing, and the matrix-vector product. Included only by float_kernels.isa.cc.
//
// A tile is kTileRows x kTileColumns accumulators held in registers; per step of k it loads one row of the
// panel (two vectors) and broadcasts one element of each packed row. 24 of 32 registers on AVX-512, 12 of 16
// on AVX2 are accumulators, enough to hide the latency of the multiply-adds.
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

// Memory that a later tile will read, fetched a little at a time between the multiply-adds: all at once would
// fill the processor's miss buffers and stall it.
struct Fetch {
  const char* weight;    // rows of the next panel: the next line to fetch, nullptr when there is none left
  int64_t row_bytes;     // of one row of the panel
  int64_t stride_bytes;  // between rows
  int64_t offset;        // within the row
  int64_t rows;          // left
  int64_t lines;         // per step
  const float* c;        // the next tile's rows of the result
  int64_t c_stride, c_rows, c_columns;
};

constexpr int64_t kFetchStep = 16;  // depth between two fetches

inline void fetch_some(Fetch& fetch) {
  for (int64_t i = 0; i < fetch.lines && fetch.rows > 0; ++i) {
    prefetch_to_l2(fetch.weight + fetch.offset);
    fetch.offset += 64;
    if (fetch.offset >= fetch.row_bytes) {
      fetch.offset = 0;
      fetch.weight += fetch.stride_bytes;
      --fetch.rows;
    }
  }
  if (fetch.c_rows > 0) {
    prefetch(fetch.c);
    prefetch(fetch.c + fetch.c_columns - 1);
    fetch.c += fetch.c_stride;
    --fetch.c_rows;
  }
}

struct TileShape {
  int64_t depth;
  Start start;
  const float* row;  // for Start::kRow
  int64_t c_stride;
  int64_t rows, columns;
};

// c[r][j] = start + sum over i of a[r * kStride + i] * panel[i][j], for r < rows <= kRows and j < columns.
// All kRows rows of a must be readable.
template <int kRows, int kStride>
void tile(const float* a, const float* panel, float* c, const TileShape& shape, Fetch* fetch) {
  Vec low[kRows], high[kRows];
  if (shape.start == Start::kContinue) {
    for (int r = 0; r < kRows; ++r) {
      if (r < shape.rows) {
        load_columns(c + r * shape.c_stride, shape.columns, &low[r], &high[r]);
      } else {
        low[r] = zero(), high[r] = zero();
      }
    }
  } else {
    Vec first_low = zero(), first_high = zero();
    if (shape.start == Start::kRow) load_columns(shape.row, shape.columns, &first_low, &first_high);
    for (int r = 0; r < kRows; ++r) low[r] = first_low, high[r] = first_high;
  }
  for (int64_t step = 0; step < shape.depth; step += kFetchStep) {
    if (fetch != nullptr) fetch_some(*fetch);
    const int64_t end = step + kFetchStep < shape.depth ? step + kFetchStep : shape.depth;
    for (int64_t i = step; i < end; ++i) {
      const Vec b_low = load(panel + i * kTileColumns), b_high = load(panel + i * kTileColumns + kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const Vec x = set1(a[r * kStride + i]);
        low[r] = fma(x, b_low, low[r]);
        high[r] = fma(x, b_high, high[r]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    if (r < shape.rows) store_columns(c + r * shape.c_stride, shape.columns, low[r], high[r]);
  }
}

// The smallest tile that holds the rows.
template <int kStride>
void tile_rows(const float* a, const float* panel, float* c, const TileShape& shape, Fetch* fetch) {
  if (shape.rows > kTileRows * 2 / 3) {
    tile<kTileRows, kStride>(a, panel, c, shape, fetch);
  } else if (shape.rows > kTileRows / 3) {
    tile<kTileRows * 2 / 3, kStride>(a, panel, c, shape, fetch);
  } else {
    tile<(kTileRows + 2) / 3, kStride>(a, panel, c, shape, fetch);
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

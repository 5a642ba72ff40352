// Products with rows that decode unit by unit, shared by formats whose codes lie as in README.md: a GEMV that
// streams codes, and a GEMM that decodes a few rows at a time into a cached panel. All products are sums of
// dot products along k: lanes hold columns of one row, and are added up at the end. Included only by *.isa.cc
// sources; everything has internal linkage.
//
// A format says how to decode by a type `Rows`:
//   kBits, Decoder                          decoder.decode(bytes) -> Unit
//   layout                                  in_features, row_bytes, codes, bias
//   groups, group_size                      columns that share a decoder's state
//   State, start(row, decoder, state), enter_group(group, row, decoder, state)   for kGemvRows rows at once
//   finish(row, sum, x)                     the output, bias included, from the sum over decoded units; x is
//   the plain token kDepth, decode_row(row, begin, end, out)   weights of columns in arranged order, whole
//   units, from a multiple of kDepth on kBlocks                                 whether blocks of 256 columns
//   precede the units: decoder.pairs(), .tops(), .split()
#pragma once

#include "formats/group_int/decode.h"

namespace nibble::NIBBLE_ISA {
namespace {

#if defined(__AVX512F__)

// Sums of the lanes of four vectors. Each sum is a tree that does not depend on the position of the vector,
// so a row's result does not depend on the rows beside it.
inline __m128 reduce_4(Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  const Vec cd = add(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
  const Vec abcd = add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  const Vec pairs = add(abcd, _mm512_permute_ps(abcd, 0xb1));
  const Vec sums = add(pairs, _mm512_permute_ps(pairs, 0x4e));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
  return _mm512_castps512_ps128(_mm512_permutexvar_ps(order, sums));
}

constexpr int kPanelRows = 8;
constexpr int kGemvTokens = 4;  // per pass over the codes
constexpr int64_t kGemvLimit = 16;

inline void reduce_panel(const Vec* sums, float* out) {
  _mm_storeu_ps(out, reduce_4(sums[0], sums[1], sums[2], sums[3]));
  _mm_storeu_ps(out + 4, reduce_4(sums[4], sums[5], sums[6], sums[7]));
}

#else  // AVX2

// Sums of the lanes of four vectors. Each sum is a tree that does not depend on the position of the vector,
// so a row's result does not depend on the rows beside it.
inline __m128 reduce_4(Vec a, Vec b, Vec c, Vec d) {
  const Vec sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

constexpr int kPanelRows = 4;
constexpr int kGemvTokens = 2;  // per pass over the codes
constexpr int64_t kGemvLimit = 4;

inline void reduce_panel(const Vec* sums, float* out) {
  _mm_storeu_ps(out, reduce_4(sums[0], sums[1], sums[2], sums[3]));
}

#endif

static_assert(kPanelRows <= kGroupIntPanelRows);
constexpr int kGemvRows = 4;
constexpr int kTileTokens = 3;
// A block of columns whose codes are stored as formats/squeezellm/README.md says.
constexpr int64_t kBlockColumns = 256, kBlockBytes = 96, kBlockPairs = 12;
// Codes are prefetched one block of rows ahead, which is what the next block reads first, and at least this
// far.
constexpr int64_t kPrefetchBytes = 6144;

// A load that the compiler does not repeat as the memory operand of every use: the tile below would be bound
// by loads.
inline Vec load_once(const float* p) {
  Vec v = load(p);
  asm("" : "+v"(v));
  return v;
}

template <typename Rows, int kTokens>
void gemv_rows(const Rows& source, int64_t first, int64_t rows, const float* x, int64_t x_stride,
               const float* plain, float* y, int64_t y_stride) {
  constexpr int64_t kUnitBytes = 2 * Rows::kBits;
  const auto& layout = source.layout;
  int64_t row[kGemvRows];
  const uint8_t* codes[kGemvRows];
#pragma GCC unroll 4
  for (int r = 0; r < kGemvRows; ++r) {
    row[r] = first + smaller(r, rows - 1);  // rows that are missing repeat the last one
    codes[r] = layout.codes + row[r] * layout.row_bytes;
  }
  const int64_t block_bytes = kGemvRows * layout.row_bytes;
  const uint8_t* ahead = codes[0] + (block_bytes > kPrefetchBytes ? block_bytes : kPrefetchBytes);

  Vec sums[kTokens][kGemvRows];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kGemvRows; ++r) sums[t][r] = zero();
  }
  typename Rows::Decoder decoder[kGemvRows];
  typename Rows::State state;
  source.start(row, decoder, state);
  // Adds the unit that decode(row) gives, and goes on to the next one's activations.
  const auto add_unit = [&](auto&& decode) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int r = 0; r < kGemvRows; ++r) {
      const Unit weights = decode(r);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
        for (int v = 0; v < kUnitVectors; ++v) {
          sums[t][r] = fma(weights.v[v], load(x + t * x_stride + v * kLanes), sums[t][r]);
        }
      }
    }
    x += kGroupIntUnit;
  };

  int64_t at = 0;  // bytes of each row that are done; groups start at whole units
  for (int64_t group = 0; group < source.groups; ++group) {
    source.enter_group(group, row, decoder, state);
    int64_t columns = smaller(source.group_size, layout.in_features - group * source.group_size);
    if constexpr (Rows::kBlocks) {
      for (; columns >= kBlockColumns; columns -= kBlockColumns) {
        const uint8_t* p[kGemvRows] = {codes[0] + at, codes[1] + at, codes[2] + at, codes[3] + at};
        for (int64_t pair = 0; pair < kBlockPairs; ++pair) {
          prefetch_to_l2(ahead);
          ahead += kGemvRows * kBlockBytes / kBlockPairs;
          add_unit([&](int r) __attribute__((always_inline)) { return decoder[r].pairs(p[r] + 8 * pair); });
        }
        for (int64_t eight = 0; eight < 3; ++eight) {
          add_unit([&](int r) __attribute__((always_inline)) { return decoder[r].tops(p[r] + 32 * eight); });
        }
        add_unit([&](int r) __attribute__((always_inline)) { return decoder[r].split(p[r]); });
        at += kBlockBytes;
      }
    }
    for (int64_t unit = columns / kGroupIntUnit; unit > 0; --unit) {
      prefetch_to_l2(ahead);
      ahead += kGemvRows * kUnitBytes;
      const uint8_t* const p[kGemvRows] = {codes[0] + at, codes[1] + at, codes[2] + at, codes[3] + at};
      add_unit([&](int r) __attribute__((always_inline)) { return decoder[r].decode(p[r]); });
      at += kUnitBytes;
    }
    if (columns % kGroupIntUnit != 0) {
      alignas(16) uint8_t buffers[kGemvRows][16];
      const uint8_t* p[kGemvRows];
      for (int r = 0; r < kGemvRows; ++r) p[r] = tail_unit(codes[r] + at, layout.row_bytes - at, buffers[r]);
      add_unit([&](int r) __attribute__((always_inline)) { return decoder[r].decode(p[r]); });
    }
  }

#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    alignas(16) float result[kGemvRows];
    _mm_store_ps(result, reduce_4(sums[t][0], sums[t][1], sums[t][2], sums[t][3]));
    for (int64_t r = 0; r < rows; ++r) {
      y[t * y_stride + first + r] = source.finish(first + r, result[r], plain + t * layout.in_features);
    }
  }
}

// RowKernels::gemv for one kind of rows.
template <typename Rows>
void multiply_few(const Rows& source, int64_t first, int64_t rows, const float* x, const float* plain,
                  int64_t tokens, float* y, int64_t y_stride) {
  const int64_t x_stride = (source.layout.in_features + kGroupIntUnit - 1) / kGroupIntUnit * kGroupIntUnit;
  for (int64_t r = 0; r < rows; r += kGemvRows) {
    const int64_t here = smaller(kGemvRows, rows - r);
    for (int64_t t = 0; t < tokens; t += kGemvTokens) {
      const float* xt = x + t * x_stride;
      const float* pt = plain + t * source.layout.in_features;
      float* yt = y + t * y_stride;
      switch (smaller(kGemvTokens, tokens - t)) {
        case 1:
          gemv_rows<Rows, 1>(source, first + r, here, xt, x_stride, pt, yt, y_stride);
          break;
        case 2:
          gemv_rows<Rows, 2>(source, first + r, here, xt, x_stride, pt, yt, y_stride);
          break;
#if defined(__AVX512F__)
        case 3:
          gemv_rows<Rows, 3>(source, first + r, here, xt, x_stride, pt, yt, y_stride);
          break;
        default:
          gemv_rows<Rows, 4>(source, first + r, here, xt, x_stride, pt, yt, y_stride);
          break;
#endif
      }
    }
  }
}

// kPanelRows rows of the panel times kTokens tokens.
template <int kTokens>
void multiply_tile(const float* panel, int64_t depth, const float* x, int64_t x_stride, float* out) {
  Vec sums[kTokens][kPanelRows];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (int r = 0; r < kPanelRows; ++r) sums[t][r] = zero();
  }
  for (int64_t j = 0; j < depth; j += kLanes) {
    Vec token[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) token[t] = load(x + t * x_stride + j);
#pragma GCC unroll 8
    for (int r = 0; r < kPanelRows; ++r) {
      const Vec weight = load_once(panel + r * kGroupIntDepth + j);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) sums[t][r] = fma(weight, token[t], sums[t][r]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) reduce_panel(sums[t], out + t * kPanelRows);
}

// RowKernels::gemm for one kind of rows.
template <typename Rows>
void multiply_many(const Rows& source, int64_t first, int64_t rows, const float* x, int64_t tokens,
                   float* panel, float* y, int64_t y_stride) {
  static_assert(Rows::kDepth <= kGroupIntDepth && Rows::kDepth % kGroupIntUnit == 0);
  const auto& layout = source.layout;
  const int64_t x_stride = (layout.in_features + kGroupIntUnit - 1) / kGroupIntUnit * kGroupIntUnit;
  for (int64_t begin = 0; begin < layout.in_features; begin += Rows::kDepth) {
    const int64_t end = smaller(layout.in_features, begin + Rows::kDepth);
    const int64_t depth = smaller(x_stride - begin, Rows::kDepth);
    for (int64_t row = 0; row < rows; row += kPanelRows) {
      const int64_t here = smaller(kPanelRows, rows - row);
      for (int64_t r = 0; r < kPanelRows; ++r) {
        // Rows that are missing repeat the last one, so that the tile meets only defined numbers.
        source.decode_row(first + row + smaller(r, here - 1), begin, end, panel + r * kGroupIntDepth);
      }
      for (int64_t t = 0; t < tokens; t += kTileTokens) {
        const int64_t now = smaller(kTileTokens, tokens - t);
        const float* xt = x + t * x_stride + begin;
        float tile[kTileTokens * kPanelRows];
        switch (now) {
          case 1:
            multiply_tile<1>(panel, depth, xt, x_stride, tile);
            break;
          case 2:
            multiply_tile<2>(panel, depth, xt, x_stride, tile);
            break;
          default:
            multiply_tile<3>(panel, depth, xt, x_stride, tile);
            break;
        }
        for (int64_t i = 0; i < now; ++i) {
          float* out = y + (t + i) * y_stride + first + row;
          for (int64_t r = 0; r < here; ++r) {
            const float before = begin > 0                ? out[r]
                                 : layout.bias != nullptr ? layout.bias[first + row + r]
                                                          : 0.0f;
            out[r] = before + tile[i * kPanelRows + r];
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA

// Strips times tiles of tokens with AMX: 32 rows by 32 tokens at a time, in four accumulator tiles.
#pragma once

#include "formats/quik/isa/dot_512.h"
#include "formats/quik/isa/finish.h"
#include "formats/quik/isa/quantize.h"
#include "formats/quik/isa/vec.h"
#include "formats/quik/kernels.h"

namespace nibble::quik::NIBBLE_ISA {
namespace {

constexpr int64_t kResultBytes = kStripRows * kStripRows * 4;  // of 32 tokens, as INT32 or as float
constexpr int64_t kTileBytes = 1024;

// g++ 12's tile intrinsics do not tell the compiler that they read memory.
inline void memory_is_visible() { asm volatile("" ::: "memory"); }

// Tiles 0..3 accumulate: token tile 0 x rows 0..15 and 16..31, then token tile 1. 4 and 5 hold tokens, 6 and
// 7 rows.
inline void configure_tiles(int64_t rows0, int64_t rows1) {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    const bool of_second = tile == 2 || tile == 3 || tile == 5;
    const int64_t rows = tile >= 6 ? 16 : of_second ? rows1 : rows0;
    config.bytes[tile] = rows > 0 ? 64 : 0;
    config.rows[tile] = static_cast<uint8_t>(rows);
  }
  asm volatile("" ::"r"(&config) : "memory");  // as above: all 64 bytes are read
  _tile_loadconfig(&config);
}

// F16 outlier weights [n_o][32] as bf16 operands, w = high + low exactly: [high, low][outlier
// block][half][pair of columns][row][2].
void split_weights(const Weights& w, const uint16_t* weights, uint8_t* panel) {
  const int64_t part = w.outlier_blocks * 2 * kTileBytes;
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  for (int64_t o = 0; o < w.outlier_blocks * kOutlierBlock; o += 2) {
    for (int half = 0; half < 2; ++half) {
      __m512i high[2], low[2];
      for (int i = 0; i < 2; ++i) {
        const __m512 values =
            o + i < w.outliers ? load_half(weights + (o + i) * kStripRows + half * 16) : zerof();
        high[i] = _mm512_and_si512(round_to_bf16(values), upper);
        low[i] = _mm512_castps_si512(_mm512_sub_ps(values, _mm512_castsi512_ps(high[i])));
      }
      uint8_t* to = panel + (o / kOutlierBlock * 2 + half) * kTileBytes + o % kOutlierBlock / 2 * 64;
      _mm512_storeu_si512(to, _mm512_or_si512(_mm512_srli_epi32(high[0], 16), high[1]));
      _mm512_storeu_si512(to + part,
                          _mm512_or_si512(_mm512_srli_epi32(low[0], 16), _mm512_and_si512(low[1], upper)));
    }
  }
}

// Stores tiles 0..3 as [rows0 + rows1][32].
template <bool kTwo>
inline void store_tiles(void* results, int64_t rows0) {
  constexpr int64_t kStride = kStripRows * 4;
  uint8_t* to = static_cast<uint8_t*>(results);
  _tile_stored(0, to, kStride);
  _tile_stored(1, to + 64, kStride);
  if (kTwo) {
    _tile_stored(2, to + rows0 * kStride, kStride);
    _tile_stored(3, to + rows0 * kStride + 64, kStride);
  }
}

// c [rows0 + rows1][32] = sums of code products of 1 or 2 token tiles with one strip.
template <bool kTwo>
inline void multiply_codes(const Weights& w, const Activations& a, const uint8_t* panel, int64_t token,
                           int64_t rows0, int64_t rows1, int32_t* c) {
  _tile_zero(0);
  _tile_zero(1);
  if (kTwo) {
    _tile_zero(2);
    _tile_zero(3);
  }
  const uint8_t* codes0 = token_codes(a, w.blocks, token);
  const uint8_t* codes1 = kTwo ? token_codes(a, w.blocks, token + kTileTokens) : nullptr;
  for (int64_t block = 0; block < w.blocks; ++block) {
    _tile_loadd(6, panel + block * 2 * kTileBytes, 64);
    _tile_loadd(4, codes0 + block * rows0 * 64, 64);
    _tile_loadd(7, panel + block * 2 * kTileBytes + kTileBytes, 64);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    if (kTwo) {
      _tile_loadd(5, codes1 + block * rows1 * 64, 64);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  store_tiles<kTwo>(c, rows0);
}

// f [rows0 + rows1][32] = bias + products of the outlier columns, as bf16 numbers in FP32 accumulators:
// high x high + low x high + high x low. What low x low would add is below the precision of the split.
template <bool kTwo>
inline void multiply_outliers(const Weights& w, const Activations& a, const uint8_t* panel, const float* bias,
                              int64_t token, int64_t rows0, int64_t rows1, float* f) {
  // A stride of 0 repeats one row of 16 values.
  _tile_loadd(0, bias, 0);
  _tile_loadd(1, bias + 16, 0);
  if (kTwo) {
    _tile_loadd(2, bias, 0);
    _tile_loadd(3, bias + 16, 0);
  }
  const int64_t part = w.outlier_blocks * kOutlierBlock;  // numbers of one token, high or low
  const uint16_t* x0 = a.outlier_tiles + token * part * 2;
  const uint16_t* x1 = kTwo ? a.outlier_tiles + (token + kTileTokens) * part * 2 : nullptr;
  const int64_t low_weights = w.outlier_blocks * 2 * kTileBytes;
  for (int64_t block = 0; block < w.outlier_blocks; ++block) {
    for (int product = 0; product < 3; ++product) {
      const uint8_t* weights = panel + (product == 2 ? low_weights : 0) + block * 2 * kTileBytes;
      const int64_t column = (product == 1 ? part : 0) + block * kOutlierBlock;
      _tile_loadd(6, weights, 64);
      _tile_loadd(4, x0 + column * rows0, 64);
      _tile_loadd(7, weights + kTileBytes, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (kTwo) {
        _tile_loadd(5, x1 + column * rows1, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  store_tiles<kTwo>(f, rows0);
}

// bias + FP32 sums of the outlier columns, for linears too narrow for the precision of the bf16 tiles.
inline void add_outliers(const Weights& w, const Activations& a, int64_t strip, int64_t token, int64_t tokens,
                         float* f) {
  for (int64_t t = 0; t < tokens; t += kDotTokens) {
    const int64_t count = tokens - t < kDotTokens ? tokens - t : kDotTokens;
    kOutlierSums[count - 1](w, strip, a.outliers + (token + t) * w.outliers, f + t * kStripRows);
  }
}

void multiply_strips(const Weights& w, const Activations& a, int64_t first_strip, int64_t last_strip,
                     int64_t first, int64_t last, const Output& output, uint8_t* scratch) {
  int32_t* c = reinterpret_cast<int32_t*>(scratch);
  float* f = reinterpret_cast<float*>(scratch + kResultBytes);
  uint8_t* wide = scratch + 2 * kResultBytes;
  uint8_t* outlier_panel = wide + w.blocks * 2 * kTileBytes;
  const int64_t whole = first + (last - first) / (2 * kTileTokens) * (2 * kTileTokens);
  const int64_t rows0 = last - whole < kTileTokens ? last - whole : kTileTokens, rows1 = last - whole - rows0;
  for (int64_t strip = first_strip; strip < last_strip; ++strip) {
    const uint8_t* panel = w.codes + strip * strip_bytes(w);
    if (w.weight_bits == 4) {
      widen_strip(panel, w.blocks, wide);
      panel = wide;
    }
    if (a.outlier_tiles != nullptr) {
      split_weights(w, w.outlier_weights + strip * w.outliers * kStripRows, outlier_panel);
    }
    memory_is_visible();
    const StripRows rows = strip_rows(w, strip);
    // Finishing while the tiles of the next tokens are multiplied was measured: it is slower than one after
    // the other.
    const auto tiles = [&](int64_t token, int64_t count0, int64_t count1) __attribute__((always_inline)) {
      if (count1 > 0) {
        multiply_codes<true>(w, a, panel, token, count0, count1, c);
        if (a.outlier_tiles != nullptr) {
          multiply_outliers<true>(w, a, outlier_panel, rows.bias, token, count0, count1, f);
        }
      } else {
        multiply_codes<false>(w, a, panel, token, count0, 0, c);
        if (a.outlier_tiles != nullptr) {
          multiply_outliers<false>(w, a, outlier_panel, rows.bias, token, count0, 0, f);
        }
      }
      memory_is_visible();
      if (w.outliers > 0 && a.outlier_tiles == nullptr) add_outliers(w, a, strip, token, count0 + count1, f);
      finish(rows, a, token, count0 + count1, c, w.outliers > 0 ? f : nullptr, output, w.n);
    };
    if (whole > first) {
      configure_tiles(kTileTokens, kTileTokens);
      for (int64_t token = first; token < whole; token += 2 * kTileTokens)
        tiles(token, kTileTokens, kTileTokens);
    }
    if (last > whole) {
      configure_tiles(rows0, rows1);
      tiles(whole, rows0, rows1);
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace nibble::quik::NIBBLE_ISA

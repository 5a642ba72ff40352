// Strips times tiles of tokens with AMX: 32 rows by 32 tokens at a time, in four accumulator tiles.
#pragma once

#include "formats/quik/isa/dot_512.h"
#include "formats/quik/isa/finish.h"
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
  const __m512i bias = _mm512_set1_epi32(0x7fff), one = _mm512_set1_epi32(1);
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  for (int64_t o = 0; o < w.outlier_blocks * kOutlierBlock; o += 2) {
    for (int half = 0; half < 2; ++half) {
      __m512i high[2], low[2];
      for (int i = 0; i < 2; ++i) {
        const __m512 values =
            o + i < w.outliers ? load_half(weights + (o + i) * kStripRows + half * 16) : zerof();
        const __m512i word = _mm512_castps_si512(values);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), one);
        high[i] = _mm512_and_si512(_mm512_add_epi32(_mm512_add_epi32(word, bias), odd), upper);
        low[i] = _mm512_castps_si512(_mm512_sub_ps(values, _mm512_castsi512_ps(high[i])));
      }
      uint8_t* to = panel + (o / kOutlierBlock * 2 + half) * kTileBytes + o % kOutlierBlock / 2 * 64;
      _mm512_storeu_si512(to, _mm512_or_si512(_mm512_srli_epi32(high[0], 16), high[1]));
      _mm512_storeu_si512(to + part,
                          _mm512_or_si512(_mm512_srli_epi32(low[0], 16), _mm512_and_si512(low[1], upper)));
    }
  }
}

// The results of up to 32 tokens on their way to y. They are finished a few tokens at a time between the tile
// instructions of the next 32 tokens: those occupy one port for 16 cycles each and leave the others free.
struct Pending {
  const StripRows* rows;
  const Activations* a;
  const Output* output;
  int64_t n;
  int64_t token, left;  // the next token and how many there are
  const int32_t* c;
  const float* f;

  void step(int64_t count) {
    if (count > left) count = left;
    if (count <= 0) return;
    finish(*rows, *a, token, count, c, f, *output, n);
    token += count;
    left -= count;
    c += count * kStripRows;
    if (f != nullptr) f += count * kStripRows;
  }
};

// The sums of 1 or 2 token tiles with one strip: c [rows0 + rows1][32], and f for the outlier columns.
template <bool kTwo>
void multiply_tiles(const Weights& w, const Activations& a, const uint8_t* panel,
                    const uint8_t* outlier_panel, int64_t token, int64_t rows0, int64_t rows1, int32_t* c,
                    float* f, Pending& pending) {
  const bool outliers = a.outlier_tiles != nullptr;
  const int64_t steps = w.blocks + (outliers ? w.outlier_blocks * 3 : 0);
  const int64_t tokens_per_step = (kStripRows + steps - 1) / steps;
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
    pending.step(tokens_per_step);
  }
  constexpr int64_t kStride = kStripRows * 4;
  _tile_stored(0, c, kStride);
  _tile_stored(1, c + 16, kStride);
  if (kTwo) {
    _tile_stored(2, c + rows0 * kStripRows, kStride);
    _tile_stored(3, c + rows0 * kStripRows + 16, kStride);
  }
  if (!outliers) return;

  _tile_zero(0);
  _tile_zero(1);
  if (kTwo) {
    _tile_zero(2);
    _tile_zero(3);
  }
  const int64_t part = w.outlier_blocks * kOutlierBlock;  // of one token's high or low values
  const uint16_t* x0 = a.outlier_tiles + token * part * 2;
  const uint16_t* x1 = kTwo ? a.outlier_tiles + (token + kTileTokens) * part * 2 : nullptr;
  const int64_t low_weights = w.outlier_blocks * 2 * kTileBytes;
  for (int64_t block = 0; block < w.outlier_blocks; ++block) {
    // high x high, low x high, high x low; what low x low would add is below the precision of the sum.
    for (int product = 0; product < 3; ++product) {
      const uint8_t* weights = outlier_panel + (product == 2 ? low_weights : 0) + block * 2 * kTileBytes;
      _tile_loadd(6, weights, 64);
      _tile_loadd(7, weights + kTileBytes, 64);
      _tile_loadd(4, x0 + ((product == 1 ? part : 0) + block * kOutlierBlock) * rows0, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (kTwo) {
        _tile_loadd(5, x1 + ((product == 1 ? part : 0) + block * kOutlierBlock) * rows1, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      pending.step(tokens_per_step);
    }
  }
  _tile_stored(0, f, kStride);
  _tile_stored(1, f + 16, kStride);
  if (kTwo) {
    _tile_stored(2, f + rows0 * kStripRows, kStride);
    _tile_stored(3, f + rows0 * kStripRows + 16, kStride);
  }
}

// FP32 sums of the outlier columns, for linears too narrow for the bf16 tiles.
void outlier_sums_of(const Weights& w, const Activations& a, int64_t strip, int64_t token, int64_t tokens,
                     float* f) {
  for (int64_t t = 0; t < tokens; t += kDotTokens) {
    const int64_t count = tokens - t < kDotTokens ? tokens - t : kDotTokens;
    kOutlierSums[count - 1](w.outlier_weights + strip * w.outliers * kStripRows,
                            a.outliers + (token + t) * w.outliers, w.outliers, f + t * kStripRows);
  }
}

void multiply_strips(const Weights& w, const Activations& a, int64_t first_strip, int64_t last_strip,
                     int64_t first, int64_t last, const Output& output, uint8_t* scratch) {
  uint8_t* wide = scratch + 4 * kResultBytes;
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
    Pending pending{&rows, &a, &output, w.n, 0, 0, nullptr, nullptr};
    int64_t turn = 0;
    const auto tiles = [&](int64_t token, int64_t count0, int64_t count1) {
      int32_t* c = reinterpret_cast<int32_t*>(scratch + turn * 2 * kResultBytes);
      float* f = reinterpret_cast<float*>(scratch + turn * 2 * kResultBytes + kResultBytes);
      turn ^= 1;
      if (count1 > 0) {
        multiply_tiles<true>(w, a, panel, outlier_panel, token, count0, count1, c, f, pending);
      } else {
        multiply_tiles<false>(w, a, panel, outlier_panel, token, count0, 0, c, f, pending);
      }
      memory_is_visible();
      pending.step(pending.left);
      if (w.outliers > 0 && a.outlier_tiles == nullptr)
        outlier_sums_of(w, a, strip, token, count0 + count1, f);
      pending.token = token;
      pending.left = count0 + count1;
      pending.c = c;
      pending.f = w.outliers > 0 ? f : nullptr;
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
    pending.step(pending.left);
  }
  _tile_release();
}

}  // namespace
}  // namespace nibble::quik::NIBBLE_ISA

// What the vector kernels of quik share: the layout they multiply from, their scratch, and the functions that
// each instruction set provides. Plain structs and pointers only: sources compiled per instruction set
// include this.
//
// Strips. The output rows of all fused linears, one after the other, are cut into strips of 32 (the last one
// padded with zero rows), the k_int integer columns into blocks of 64 (padded with zero columns). A strip is
//     codes [block][half][line][64 bytes], half h holding rows 16h .. 16h+15,
// where byte 4r + j of a line belongs to row r of the half. With 8-bit weights, line l (of 16) holds columns
// 4l + j as signed bytes. With 4-bit weights, line l (of 8) holds columns 8l + j in the low nibbles and 8l +
// 4 + j in the high ones, as unsigned p + 8, so that a mask or a shift makes an operand of them; the sums are
// corrected by 8 * sum(u), exactly. A line of 8-bit codes is one VNNI operand, half of one is an AVX2
// operand, and 16 lines are one AMX tile.
//
// Activation tiles. Codes of 16 tokens (the last tile: of the remaining ones, `rows`) are codes
// [block][rows][64 bytes], so that a tile is an AMX operand and, for one token, its codes are contiguous.
// Padding columns have code 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/token_tiles.h"

namespace nibble::quik {

using token_tiles::kStripRows;
using token_tiles::kTileTokens;
using token_tiles::Output;
using token_tiles::tile_rows;

constexpr int kBlockColumns = 64;
constexpr int kOutlierBlock = 32;  // outlier columns of one bf16 AMX tile

struct Weights {
  int64_t n, k, k_int;
  int64_t strips;          // ceil(n / 32)
  int64_t blocks;          // ceil(k_int / 64)
  int64_t outliers;        // n_o
  int64_t outlier_blocks;  // ceil(n_o / 32)
  int weight_bits, activation_bits;
  const uint8_t* codes;             // [strips][blocks][2][8 or 16][64]
  const float* scales;              // S [strips * 32]
  const int32_t* sums;              // sum of the codes of a row [strips * 32]
  const float* bias;                // [strips * 32], 0 where there is none
  const uint16_t* outlier_weights;  // F16 [strips][n_o][32]
  const int32_t* outlier_columns;   // [n_o]
  const uint8_t* keep;      // bit j of byte i: column 8i + j is an integer column; padded to whole 16 columns
  const uint64_t* compact;  // [256]: byte i of entry m is the index of the i-th set bit of m
};

struct Activations {
  int64_t tokens;
  uint8_t* codes;  // tiles, tokens * blocks * 64 bytes
  float* scales;   // s [tokens]
  int32_t* zeros;  // z [tokens]
  int32_t*
      offsets;      // what p + 8 instead of p added to each sum: 8 * sum(u), or 0 with 8-bit weights [tokens]
  float* outliers;  // x of the outlier columns [tokens, n_o]
  uint16_t*
      outlier_tiles;  // the same as bf16, x = high + low: [tile][high, low][outlier block][rows][32]; or null
};

// Output::accumulators are [tokens, n].

// The first codes of token t; block b of it stands b * tile_rows * 64 bytes further on.
static inline uint8_t* token_codes(const Activations& a, int64_t blocks, int64_t t) {
  return a.codes + token_tiles::token_place(blocks, t, kBlockColumns);
}

static constexpr int64_t strip_bytes(const Weights& w) {
  return w.blocks * kBlockColumns * kStripRows * w.weight_bits / 8;
}

// Scratch of one thread in multiply(), in bytes: a strip as 8-bit lines, its outlier weights as two bf16
// panels, and the results of 32 tokens twice, as INT32 and as float.
static constexpr int64_t multiply_scratch_bytes(const Weights& w) {
  return w.blocks * kBlockColumns * kStripRows + w.outlier_blocks * kOutlierBlock * kStripRows * 4 +
         2 * kStripRows * kStripRows * 4;
}
// Scratch of one thread in quantize(), in floats.
static constexpr int64_t quantize_scratch_floats(const Weights& w) { return w.blocks * kBlockColumns + 32; }

struct IsaKernels {
  // Fewest tokens for which multiply() uses the tiles of Activations::outlier_tiles; 0 when it never does.
  int64_t tiles_from_tokens;
  // Quantizes tokens [first, last) of x [tokens, k].
  void (*quantize)(const Weights& w, const float* x, const Activations& a, int64_t first, int64_t last,
                   float* scratch);
  // Outputs of strips [first_strip, last_strip) for tokens [first, last); `first` is a multiple of 32.
  void (*multiply)(const Weights& w, const Activations& a, int64_t first_strip, int64_t last_strip,
                   int64_t first, int64_t last, const Output& output, uint8_t* scratch);
};

namespace avx2 {
extern const IsaKernels kKernels;
}
namespace avxvnni {
extern const IsaKernels kKernels;
}
namespace avx512vnni {
extern const IsaKernels kKernels;
}
namespace amx {
extern const IsaKernels kKernels;
}

}  // namespace nibble::quik

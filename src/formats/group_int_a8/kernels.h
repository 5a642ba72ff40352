// What the vector kernels of group_int_a8 share: the layout they multiply from, their scratch, and the
// functions that each instruction set provides. Plain structs and pointers only: sources compiled per
// instruction set include this.
//
// Strips. The output rows of all fused linears, one after the other, are cut into strips of 32 (the last one
// padded with zero rows), the columns into steps of 32 (padded with zero columns); groups are whole numbers
// of steps. A strip is
//     codes [step][line][half][64 bytes], half h holding rows 16h .. 16h+15,
// where byte 4r + j of a line belongs to row r of the half. With 4-bit weights, line l (of 4) holds columns
// 8l + j in the low nibbles and 8l + 4 + j in the high ones, as unsigned q + 8; with 8-bit weights, line l
// (of 8) holds columns 4l + j, as unsigned q + 128. A line of 8-bit codes is one VNNI operand, half of one is
// an AVX2 operand. Unsigned weights are what VPDPBUSD and VPMADDUBSW want; sums start from minus what the
// offset adds.
//
// Activation tiles. Codes of 16 tokens (the last tile: of the remaining ones, `rows`) are codes
// [step][rows][32 bytes], signed. Padding columns have code 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/token_tiles.h"

namespace nibble::group_int_a8 {

using token_tiles::kStripRows;
using token_tiles::kTileTokens;
using token_tiles::Output;
using token_tiles::tile_rows;

constexpr int kStep = 32;         // columns
constexpr int kMaxDotTokens = 8;  // most tokens that one call of a product handles

struct Weights {
  int64_t n, k;
  int64_t strips;       // ceil(n / 32)
  int64_t steps;        // ceil(k / 32)
  int64_t groups;       // per row
  int64_t group_steps;  // of one group; the last one has the remaining steps
  int weight_bits;
  float activation_scale;       // 0: per token
  const uint8_t* codes;         // [strips][steps][4 or 8][2][64]
  const float* scales;          // [strips][groups][32]; exactly one of these three is set
  const uint16_t* half_scales;  // F16, the same
  const uint16_t* multipliers;  // integer scales, the same
  const float* row_scales;      // of the multipliers [strips * 32]
  const float* bias;            // [strips * 32], 0 where there is none
};

struct Activations {
  int64_t tokens;
  int8_t* codes;    // tiles, tokens * steps * 32 bytes
  float* scales;    // s [tokens]
  int32_t* starts;  // minus the offset of the weight codes times the sum of a group's codes [tokens, groups]
};

// Output::accumulators are [tokens, n, groups] with float scales and [tokens, n] with integer ones.

// The first codes of token t; step s of it stands s * tile_rows * 32 bytes further on.
static inline int8_t* token_codes(const Activations& a, int64_t steps, int64_t t) {
  return a.codes + token_tiles::token_place(steps, t, kStep);
}

static constexpr int64_t strip_bytes(const Weights& w) {
  return w.steps * kStep * kStripRows * w.weight_bits / 8;
}

// Scratch of one thread in multiply(), in bytes: sums of a few tokens, group sums where they are asked for,
// and a strip as 8-bit lines.
static constexpr int64_t kSumBytes = kMaxDotTokens * kStripRows * 4;
static constexpr int64_t multiply_scratch_bytes(const Weights& w, bool accumulators) {
  return kSumBytes + (accumulators ? w.groups * kSumBytes : 0) +
         (w.weight_bits == 4 ? w.steps * kStep * kStripRows : 0);
}

struct IsaKernels {
  // Quantizes tokens [first, last) of x [tokens, k].
  void (*quantize)(const Weights& w, const float* x, const Activations& a, int64_t first, int64_t last);
  // Outputs of strips [first_strip, last_strip) for tokens [first, last); `first` is a multiple of 16.
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

}  // namespace nibble::group_int_a8

// The shape of what vector kernels of quik and group_int_a8 multiply: strips of 32 rows of weights by tiles
// of 16 tokens of activation codes. Plain structs and pointers only: sources compiled per instruction set
// include this.
#pragma once

#include <cstdint>

namespace nibble::token_tiles {

constexpr int kStripRows = 32;
constexpr int kTileTokens = 16;

// Tokens of the tile that holds token t.
static constexpr int64_t tile_rows(int64_t tokens, int64_t t) {
  const int64_t first = t / kTileTokens * kTileTokens;
  return tokens - first < kTileTokens ? tokens - first : kTileTokens;
}

// Where the first `piece_bytes` codes of token t lie, of `pieces` that stand tile_rows * piece_bytes apart.
static constexpr int64_t token_place(int64_t pieces, int64_t t, int64_t piece_bytes) {
  return (t / kTileTokens * kTileTokens * pieces + t % kTileTokens) * piece_bytes;
}

// Where products go: floats, or (for tests) the INT32 sums of code products, of which each format says how
// many there are per token.
struct Output {
  float* y;
  int64_t y_stride;
  int32_t* accumulators;
};

}  // namespace nibble::token_tiles

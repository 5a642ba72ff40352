// What few_tokens.cc launches.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "formats/group_int_a8/cuda/few_tokens_shape.h"

namespace nibble::group_int_a8_cuda {

// Words between two tokens' sums of 16 rows: makes the lanes' stores hit different banks.
inline constexpr int kSumStride = 20;
// Tiles whose sums are under way between the blocks of a cluster.
inline constexpr int kTurns = 4;

// Byte offsets into a block's shared memory.
struct FewTokensShared {
  int barriers;   // one per stage of every warp's ring, which lies at 0
  int sums;       // words [turns][warp][8 token tiles][kSumStride]; two turns without a cluster, else one
  int exchanged;  // between blocks: words [kTurns][to block][...], then [kTurns][from block][...]
  int exchange_barriers;  // received [kTurns], freed [kTurns]
  int terms;              // words [kTurns][3][16 rows]
  int tokens;             // scales, zeros
  int bytes;
};
constexpr FewTokensShared few_tokens_shared(bool rows, int token_tiles, int warps, int stages, int slot_bytes,
                                            int cluster) {
  FewTokensShared at = {};
  at.barriers = warps * stages * slot_bytes;
  at.sums = (at.barriers + 8 * warps * stages + 15) / 16 * 16;
  at.exchanged = at.sums + (cluster == 1 ? 2 : 1) * warps * 8 * token_tiles * kSumStride * 4;
  // [kinds of sums][tokens of a block at most][16 rows]
  const int exchange_words = (rows ? 2 : 1) * ((8 * token_tiles + cluster - 1) / cluster) * kTileRows;
  at.exchange_barriers = at.exchanged + (cluster == 1 ? 0 : 2 * kTurns * cluster * exchange_words * 4);
  at.terms = at.exchange_barriers + 8 * 2 * kTurns;
  at.tokens = at.terms + 4 * kTurns * 3 * kTileRows;
  at.bytes = at.tokens + 8 * 8 * token_tiles;
  return at;
}

// One pass over the weights, for up to 8 times the instance's token tiles.
struct FewTokensProblem {
  const uint8_t* slots;
  const float* row_scales;
  const int32_t* code_sums;
  const float* bias;
  const uint8_t* codes;
  const float* scales;
  const int32_t* zeros;
  const __half* outliers;
  __half* y;
  int32_t* accumulators;
  int64_t code_stride, outlier_stride, y_stride, tile_bytes;
  int n, tokens, outlier_count;
  int integer_slots, outlier_slots, slot_bytes;
  int group_shift;  // a group is 2^group_shift steps of 32 columns
  int scale_bytes, groups;
  int slots_per_warp, stages;
  int tiles, cluster, clusters;
  int integer_warps, busy_warps;  // of a cluster
  // Between a cluster's blocks: tokens that each finishes at most, blocks that have some, and words of one
  // kind of sums, of all kinds, and of all blocks.
  int most_tokens, owners, kind_words, block_words, turn_words;
  bool aligned_rows;  // four outputs can be stored as one
  FewTokensShared shared;
};

// 32-bit registers per lane that hold 8 tokens' activations of one slot.
constexpr int operand_words(int weight_bits) { return weight_bits == 4 ? 16 : 8; }
// Registers for operands decide how many warps a block can have, and how many of the largest blocks share a
// multiprocessor.
constexpr bool few_operands(int weight_bits, int token_tiles, int slots) {
  return operand_words(weight_bits) * token_tiles * slots <= 32;
}
constexpr int maximum_few_tokens_warps(FewTokensForm form, int weight_bits, int token_tiles, int slots) {
  if (few_operands(weight_bits, token_tiles, slots)) return 12;
  if (operand_words(weight_bits) * token_tiles * slots > 64) return 8;
  // Outlier columns take a few registers more.
  if (form != FewTokensForm::kRows) return 16;
  return token_tiles > 1 ? 12 : weight_bits == 4 ? 15 : 14;
}
constexpr int few_tokens_blocks(int weight_bits, int token_tiles, int slots) {
  return few_operands(weight_bits, token_tiles, slots) ? 2 : 1;
}

// The instances of a kernel: token tiles, and slots per warp at most.
struct FewTokensInstance {
  int token_tiles, slots;
};
// Of 4 bits; with 8, slots hold half as many columns and are twice as many.
inline constexpr FewTokensInstance kFewTokensInstances[] = {{1, 2}, {1, 4}, {2, 2}, {4, 1}, {8, 1}};

// The kernels, which take a FewTokensProblem; null where there is no such instance.
const void* rows_kernel(int weight_bits, int token_tiles, int slots);
const void* float_groups_kernel(int token_tiles, int slots, bool write_group_sums);
const void* integer_groups_kernel(int token_tiles, int slots);

}  // namespace nibble::group_int_a8_cuda

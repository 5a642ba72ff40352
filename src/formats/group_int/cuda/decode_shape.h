// The sizes of decode_layout.h, for host and device code.
#pragma once

#include <cstdint>

namespace nibble::group_int_cuda {

// A block is 16 rows by 128 columns of codes, and its scales.
inline constexpr int64_t kBlockRows = 16, kBlockColumns = 128, kCodeBytes = 1024, kScaleBytes = 32;
// Blocks that the decode kernel copies at once, one per warp.
inline constexpr int64_t kChunkBlocks = 8;

struct DecodeShape {
  int64_t n = 0, k = 0;
  int64_t scales_per_block = 1;  // sets of 16 scales: 2 for groups of 64 columns, 1 for 128 and whole rows
  int64_t tiles() const { return (n + kBlockRows - 1) / kBlockRows; }
  int64_t blocks() const { return (k + kBlockColumns - 1) / kBlockColumns; }  // of a tile
  int64_t block_bytes() const { return kCodeBytes + scales_per_block * kScaleBytes; }
  int64_t tile_bytes() const { return blocks() * block_bytes(); }
  int64_t bytes() const { return tiles() * tile_bytes(); }
};

}  // namespace nibble::group_int_cuda

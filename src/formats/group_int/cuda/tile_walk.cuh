// Who of the tile kernel's blocks of threads computes what.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace nibble::group_int_cuda {

struct TileArguments {
  __half* y;
  int64_t y_stride;
  const float* bias;
  int n, tokens;
  int blocks;                  // of 128 columns
  int row_tiles, token_tiles;  // row tiles of a whole cluster where blocks share tokens
  int split, share;
  int shared_units;  // units whose blocks are shared out evenly (split 1)
  float* partials;   // [grid][kTokens / 2][threads], sums of pieces that begin inside of a unit
  uint32_t* flags;   // [grid], 1 when a partial is there
};

// Shared units are cut into as many ranges of blocks as there are workers: blocks of threads, or pairs that
// share tokens.
__device__ inline int worker_count(const TileArguments& a) { return gridDim.x / a.share; }
__device__ inline int range_begin(const TileArguments& a, int index) {
  return static_cast<int>(int64_t{a.shared_units} * a.blocks * index / worker_count(a));
}

// The pieces of work of one block of threads. A unit is a tile of the result. With split 1 the first
// `shared_units` units are shared out by blocks of columns, so that all end at the same time, and whole units
// follow; else every unit belongs to a cluster.
struct TileWalk {
  int unit, begin, end;  // the piece: blocks [begin, end) of a unit
  int left, next;        // blocks of shared units after it; the next whole unit
  int units, blocks, token_tiles, workers;

  __device__ explicit TileWalk(const TileArguments& a)
      : units(a.row_tiles * a.token_tiles),
        blocks(a.blocks),
        token_tiles(a.token_tiles),
        workers(worker_count(a)) {
    const int index = blockIdx.x / a.share;
    if (a.split > 1) {
      const int rank = index % a.split;
      unit = index / a.split;
      begin = a.blocks * rank / a.split;
      end = a.blocks * (rank + 1) / a.split;
      left = 0;
      next = units;
      return;
    }
    const int first = range_begin(a, index);
    left = range_begin(a, index + 1) - first;
    next = a.shared_units + index;
    unit = first / a.blocks;
    begin = first % a.blocks;
    take();
  }
  __device__ bool valid() const { return unit < units; }
  __device__ void advance() {
    ++unit;
    begin = 0;
    take();
  }
  // Tiles of the same rows follow each other: their weights come from the L2.
  __device__ int row_tile() const { return unit / token_tiles; }
  __device__ int token_tile() const { return unit % token_tiles; }

 private:
  __device__ void take() {
    if (left > 0) {
      end = min(blocks, begin + left);
      left -= end - begin;
    } else {
      unit = next;
      begin = 0;
      end = blocks;
      next = min(next + workers, units);
    }
  }
};

}  // namespace nibble::group_int_cuda

// A block of a prompt's product (quik/cuda/product_kernel.cuh, group_int_a8/cuda/group_product_kernel.cuh): a
// warpgroup of which one thread keeps a ring of tiles filled through the copy engine, and kConsumers that
// multiply. Here are its barriers, its way through the tiles, what the copying thread does, and how the roles
// are given out; what a stage holds and what is done with it is each product's own.
//
// Blocks work in clusters: kShare that share their tokens' codes, each fetching a part for all, or kSplit
// that share the columns of a tile and finish a part of its tokens each.
#pragma once

#include <cstdint>

#include "backend/cuda/cluster.cuh"
#include "backend/cuda/product_launch.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tile_exchange.cuh"
#include "backend/cuda/wgmma.cuh"

namespace nibble::products {

// --- barriers

// Addresses of Barriers in shared memory. Each member is the first of an array; the next one is 8 bytes on.
struct BarrierAddresses {
  uint32_t full, empty;                  // of the ring's stages
  uint32_t numbers_full, numbers_empty;  // of what belongs to a tile's tokens: two tiles' in turn
  uint32_t slices;                       // of sums that another block sends, one per multiplying warpgroup
};

template <int kStages>
struct Barriers {
  uint64_t full[kStages], empty[kStages], numbers_full[2], numbers_empty[2], slices[kConsumers];

  __device__ BarrierAddresses addresses() const {
    return {ptx::shared_address(full), ptx::shared_address(empty), ptx::shared_address(numbers_full),
            ptx::shared_address(numbers_empty), ptx::shared_address(slices)};
  }
  // By one thread. A stage is empty when all warpgroups of `share` blocks are done with it, a tile's numbers
  // after `readers` arrivals.
  __device__ void initialize(int share, int readers) {
    for (int i = 0; i < kStages; ++i) {
      ptx::barrier_init(&full[i], 1);
      ptx::barrier_init(&empty[i], kConsumers * share);
    }
    for (int i = 0; i < 2; ++i) {
      ptx::barrier_init(&numbers_full[i], 1);
      ptx::barrier_init(&numbers_empty[i], readers);
      ptx::barrier_init(&slices[i], 1);
    }
    ptx::fence_barrier_init();
  }
};

template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// --- tiles

struct TileIndex {
  int token, output;  // of its first element
};

// A block's tiles in an order whose neighbours in time share operands in the L2. `outputs` counts groups of
// tiles that the blocks of a cluster take side by side.
__device__ inline TileIndex tile_at(int index, int token_tiles, int outputs, int raster, int tile_tokens) {
  const int group = index / (raster * outputs), first = group * raster;
  const int height = min(raster, token_tiles - first), place = index - first * outputs;
  return {(first + place % height) * tile_tokens, place / height};
}

// This block's place in its cluster, and its part of a tile's columns, in blocks of kBlockColumns.
struct Part {
  int rank, first_block, blocks;

  template <int kShare, int kSplit>
  __device__ static Part mine(int all_blocks) {
    static_assert(kShare == 1 || kSplit == 1);
    const int rank = kShare * kSplit > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
    const int first = kSplit > 1 ? rank * all_blocks / kSplit : 0;
    const int last = kSplit > 1 ? (rank + 1) * all_blocks / kSplit : all_blocks;
    return {rank, first, last - first};
  }
};

// The tiles that a block computes: first(), first() + step() ... below tiles(). The kernel's arguments have
// `tokens` and `n`, the sizes of the result, and `raster`.
template <typename Arguments, int kTokens, int kShare, int kSplit>
struct Walk {
  static constexpr int kCluster = kShare * kSplit, kOwn = kTokens / kSplit;
  const Arguments& arguments;
  int rank;  // of this block in its cluster
  int token_tiles, output_groups;

  __device__ static Walk mine(const Arguments& a, int rank) {
    return {a, rank, (a.tokens + kTokens - 1) / kTokens,
            (a.n + kShare * kTileOutputs - 1) / (kShare * kTileOutputs)};
  }
  __device__ static int first() { return blockIdx.x / kCluster; }
  __device__ static int step() { return gridDim.x / kCluster; }
  __device__ int tiles() const { return token_tiles * output_groups; }
  __device__ TileIndex tile(int index) const {
    TileIndex tile = tile_at(index, token_tiles, output_groups, arguments.raster, kTokens);
    tile.output = (tile.output * kShare + (kShare > 1 ? rank : 0)) * kTileOutputs;
    return tile;
  }
  // The first of the kOwn tokens that this block finishes.
  __device__ int own_token(const TileIndex& tile) const {
    return tile.token + (kSplit > 1 ? rank * kOwn : 0);
  }
};

// --- the copying thread

// Keeps the ring filled with `blocks` stages of every tile: copy_weights(tile, block, stage) tells the
// stage's barrier what bytes to expect and starts the weights' copy, copy_tokens(tile, block, stage) the
// tokens'. The kArrays `arrays` hold a number of 4 bytes per token; those of a tile's own tokens go to
// `numbers`, one array behind the other, for two tiles in turn.
template <int kStages, typename Walk, int kArrays, typename CopyWeights, typename CopyTokens>
__device__ inline void produce(const Walk& walk, const BarrierAddresses& barriers, int blocks,
                               uint32_t numbers, const void* const (&arrays)[kArrays],
                               const CopyWeights& copy_weights, const CopyTokens& copy_tokens) {
  constexpr int kOwn = Walk::kOwn;
  const int first = Walk::first(), step = Walk::step();
  // Weights depend on no other kernel: the first ones are on their way before the previous kernel ends.
  const int early = min(blocks, kStages);
  if (first < walk.tiles()) {
    for (int block = 0; block < early; ++block) copy_weights(walk.tile(first), block, block);
  }
  ptx::wait_for_previous_kernel();
  RingPlace<kStages> place = {0, 1};
  int turn = 0;
  uint32_t turn_parity = 1;
  for (int index = first; index < walk.tiles(); index += step) {
    const TileIndex tile = walk.tile(index);
    const int token = walk.own_token(tile), count = min(kOwn, walk.arguments.tokens - token);
    const uint32_t barrier = barriers.numbers_full + 8 * turn;
    const uint32_t bytes = count > 0 ? (count + 3) / 4 * 16 : 0;
    ptx::barrier_wait(barriers.numbers_empty + 8 * turn, turn_parity);
    ptx::barrier_arrive_expecting(barrier, kArrays * bytes);
    if (bytes > 0) {
#pragma unroll
      for (int i = 0; i < kArrays; ++i) {
        ptx::bulk_copy(numbers + (turn * kArrays + i) * 4 * kOwn,
                       static_cast<const uint32_t*>(arrays[i]) + token, bytes, barrier);
      }
    }
    turn ^= 1;
    if (turn == 0) turn_parity ^= 1;
    for (int block = 0; block < blocks; ++block) {
      ptx::barrier_wait(barriers.empty + 8 * place.stage, place.parity);
      if (index != first || block >= early) copy_weights(tile, block, place.stage);
      copy_tokens(tile, block, place.stage);
      place.advance();
    }
  }
}

// --- roles

template <int kCluster>
__device__ inline void wait_for_cluster() {
  if constexpr (kCluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }
}

// One thread calls produce(), the multiplying warpgroups consume(). `readers` as in Barriers::initialize.
template <int kShare, int kSplit, int kStages, typename Produce, typename Consume>
__device__ inline void run_block(Barriers<kStages>& barriers, int readers, const Produce& produce,
                                 const Consume& consume) {
  constexpr int kCluster = kShare * kSplit;
  if (threadIdx.x == 0) barriers.initialize(kShare, readers);
  wait_for_cluster<kCluster>();
  ptx::launch_dependents();
  if (threadIdx.x / 128 == kConsumers) {
    ptx::give_registers<40>();
    if (threadIdx.x % 128 == 0) produce();
  } else {
    ptx::take_registers<232>();
    consume();
  }
  // A block's shared memory must outlive what others of its cluster send there.
  if constexpr (kCluster > 1) wait_for_cluster<kCluster>();
}

}  // namespace nibble::products

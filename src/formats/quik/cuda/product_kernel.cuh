// The product of a prompt. Weights are the products' first operand: 128 outputs times up to 256 tokens per
// block. A block is a warpgroup of which one thread keeps a ring of tiles filled through the copy engine, and
// two that multiply 64 outputs each: weight codes go from the ring to registers, 4-bit ones there to bytes 16
// q; then s8 x u8 in INT32 over all integer columns; then, with the sums turned into floats where they lie,
// the outlier columns in FP16 on top. Nothing but the FP16 result goes back to memory.
//
// Blocks work in clusters: two that share their tokens' codes, each fetching half for both (persistent: more
// tiles than blocks), or 2 or 4 that share the columns of a tile, then exchange INT32 sums and finish a part
// of the tokens each (few tiles).
//
// The two multiplying warpgroups never wait for each other: the second starts `lag` blocks later and stays
// behind, so that one's conversion and stores happen while the other multiplies.
#pragma once

#include "backend/cuda/product_parts.cuh"
#include "backend/cuda/wgmma_int8.cuh"
#include "formats/quik/cuda/kernels.h"

namespace nibble::quik_cuda {

using products::kLagBarrier;
using products::Lane;
using products::RingPlace;
using products::TileIndex;

template <int kTokens, int kShare, int kSplit, int kBits>
struct ProductKernel {
  static constexpr ProductSizes kSizes = {kTokens, kShare, kSplit, kBits};
  static constexpr int kStages = kSizes.stages(), kOwn = kSizes.own_tokens(), kCluster = kShare * kSplit;
  static_assert(kShare == 1 || kSplit == 1);
  static_assert(kStages >= 4 && kSizes.chunk() * 3 % 1024 == 0 && kOwn % kSizes.chunk_tokens() == 0);

  // Mbarriers, and addresses in shared memory.
  struct Barriers {
    uint64_t full[kStages], empty[kStages], ranges_full[2], ranges_empty[2], slices[kConsumers];
  };
  struct Block {
    const ProductArguments& arguments;
    uint32_t ring, staging, slices, ranges, full, empty, ranges_full, ranges_empty, slices_full;
    int rank, token_tiles, output_groups, first_block, integer_blocks;

    __device__ uint32_t weights(int stage) const { return ring + stage * kSizes.stage(); }
    __device__ uint32_t tokens(int stage) const { return weights(stage) + kSizes.weights(); }
    __device__ int tiles() const { return token_tiles * output_groups; }
    __device__ TileIndex tile(int index) const {
      TileIndex tile = products::tile_at(index, token_tiles, output_groups, arguments.raster, kTokens);
      tile.output = (tile.output * kShare + (kShare > 1 ? rank : 0)) * kTileOutputs;
      return tile;
    }
    __device__ int own_token(const TileIndex& tile) const {
      return tile.token + (kSplit > 1 ? rank * kOwn : 0);
    }
  };

  // --- the producing thread

  __device__ static void expect_and_copy_weights(const Block& b, const TileIndex& tile, int block,
                                                 int stage) {
    const ProductArguments& a = b.arguments;
    const bool integers = block < b.integer_blocks;
    const int start = integers ? 0 : a.outlier_offset;
    const int place = integers ? b.first_block + block : block - b.integer_blocks;
    const uint32_t barrier = b.full + 8 * stage;
    ptx::barrier_arrive_expecting(
        barrier, kSizes.weights() + (integers ? kTokens * kBlockColumns : kOwn * kSizes.outlier_row()));
    ptx::tile_copy(b.weights(stage), &a.weights, start + place * (kSizes.weight_box() / 8), tile.output / 16,
                   barrier);
  }
  __device__ static void copy_tokens(const Block& b, const TileIndex& tile, int block, int stage) {
    const ProductArguments& a = b.arguments;
    const uint32_t barrier = b.full + 8 * stage;
    const bool integers = block < b.integer_blocks;
    const CUtensorMap* const map = integers ? &a.codes : &a.outliers;
    const int column =
        integers ? (b.first_block + block) * kBlockColumns : (block - b.integer_blocks) * kSizes.outliers();
    if constexpr (kShare > 1) {
      constexpr int kPart = kTokens / kShare;
      const int row = integers ? kBlockColumns : kSizes.outlier_row();
      ptx::tile_copy_to_blocks(b.tokens(stage) + b.rank * kPart * row, map, column,
                               tile.token + b.rank * kPart, barrier, (1 << kShare) - 1);
    } else {
      ptx::tile_copy(b.tokens(stage), map, column, integers ? tile.token : b.own_token(tile), barrier);
    }
  }

  __device__ static void produce(const Block& b) {
    const ProductArguments& a = b.arguments;
    const int blocks = b.integer_blocks + a.outlier_blocks;
    const int first = blockIdx.x / kCluster, step = gridDim.x / kCluster;
    // Weights depend on no other kernel: the first ones are on their way before the previous kernel ends.
    const int early = min(blocks, kStages);
    if (first < b.tiles()) {
      for (int block = 0; block < early; ++block) expect_and_copy_weights(b, b.tile(first), block, block);
    }
    ptx::wait_for_previous_kernel();
    RingPlace<kStages> place = {0, 1};
    int turn = 0;
    uint32_t ranges_parity = 1;
    for (int index = first; index < b.tiles(); index += step) {
      const TileIndex tile = b.tile(index);
      {
        const int token = b.own_token(tile), count = min(kOwn, a.tokens - token);
        const uint32_t barrier = b.ranges_full + 8 * turn, bytes = count > 0 ? (count + 3) / 4 * 16 : 0;
        const uint32_t to = b.ranges + turn * kSizes.ranges();
        ptx::barrier_wait(b.ranges_empty + 8 * turn, ranges_parity);
        ptx::barrier_arrive_expecting(barrier, 2 * bytes);
        if (bytes > 0) {
          ptx::bulk_copy(to, a.token_scales + token, bytes, barrier);
          ptx::bulk_copy(to + 4 * kOwn, a.token_zeros + token, bytes, barrier);
        }
        turn ^= 1;
        if (turn == 0) ranges_parity ^= 1;
      }
      for (int block = 0; block < blocks; ++block) {
        ptx::barrier_wait(b.empty + 8 * place.stage, place.parity);
        if (index != first || block >= early) expect_and_copy_weights(b, tile, block, place.stage);
        copy_tokens(b, tile, block, place.stage);
        place.advance();
      }
    }
  }

  // --- the multiplying warpgroups

  // A block of weights in registers: four words per step of 32 columns or 16 outliers.
  struct Operand {
    uint32_t a[16];
  };
  struct OutlierOperand {
    uint32_t a[kSizes.outliers() / 4];
  };
  __device__ static void load_integers(Operand& operand, uint32_t from) {
    if constexpr (kBits == 8) {
      products::load_words(operand.a, from);
    } else {
      products::load_nibbles(operand.a, from);
    }
  }

  __device__ static void release(const Block& b, const Lane& lane, int stage) {
    products::release_stage<kShare>(b.empty + 8 * stage, lane);
  }

  // The INT32 sums of a tile's part of the columns. Products of one block are in flight while the next
  // block's weights are being loaded into the other set of registers.
  __device__ static void multiply(const Block& b, const Lane& lane, RingPlace<kStages>& place,
                                  int32_t (&d)[kTokens / 2], int lead) {
    Operand even, odd;
    int previous = -1;
    const auto step = [&](Operand& now, Operand& before, int block) {
      ptx::barrier_wait(b.full + 8 * place.stage, place.parity);
      load_integers(now, b.weights(place.stage) + (4 * lane.group + lane.warp) * kSizes.weight_box() +
                             16 * (lane.thread % 32));
      const uint64_t tokens = ptx::operand_128b(b.tokens(place.stage));
      ptx::fence_registers(now.a);
      ptx::warpgroup_arrive();
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        ptx::WgmmaRegisters<kTokens>::s8u8(d, now.a[4 * s], now.a[4 * s + 1], now.a[4 * s + 2],
                                           now.a[4 * s + 3], tokens + 2 * s);
      }
      ptx::warpgroup_commit();
      ptx::warpgroup_wait<1>();
      ptx::fence_registers(before.a);
      if (previous >= 0) release(b, lane, previous);
      if (block == lead)
        asm volatile("bar.arrive %0, %1;" ::"n"(kLagBarrier), "n"(128 * kConsumers) : "memory");
      previous = place.stage;
      place.advance();
    };
#pragma unroll
    for (int i = 0; i < 16; ++i) even.a[i] = odd.a[i] = 0;
    // No branch between two steps: ptxas would serialize the products (C7513).
    int block = 0;
    for (; block + 1 < b.integer_blocks; block += 2) {
      step(even, odd, block);
      step(odd, even, block + 1);
    }
    if (block < b.integer_blocks) step(even, odd, block);
    ptx::warpgroup_wait<0>();
    ptx::fence_registers(even.a);
    ptx::fence_registers(odd.a);
    ptx::fence_registers(d);
    if (previous >= 0) release(b, lane, previous);
  }

  // Adds up the cluster's sums of this block's part of the tokens.
  __device__ static void exchange(const Block& b, const Lane& lane, const int32_t (&d)[kTokens / 2],
                                  int32_t (&own)[kOwn / 2]) {
    const uint32_t mine = b.slices + lane.group * (kSplit - 1) * kSizes.slice() + 16 * lane.thread;
    products::exchange_sums<kSplit, kOwn>(d, own, b.rank, mine, kSizes.slice(),
                                          b.slices_full + 8 * lane.group, lane);
#pragma unroll
    for (int slot = 0; slot < kSplit - 1; ++slot) {
#pragma unroll
      for (int j = 0; j < kOwn / 8; ++j) {
        const uint4 words = ptx::load_shared(mine + slot * kSizes.slice() + 2048 * j);
        own[4 * j] += static_cast<int32_t>(words.x);
        own[4 * j + 1] += static_cast<int32_t>(words.y);
        own[4 * j + 2] += static_cast<int32_t>(words.z);
        own[4 * j + 3] += static_cast<int32_t>(words.w);
      }
    }
  }

  // What belongs to the two outputs of a lane.
  struct Rows {
    float scale[2], bias[2];
    int32_t sum[2];
  };
  __device__ static Rows load_rows(const ProductArguments& a, int output) {
    Rows rows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = output + 8 * i < a.n;
      // Volatile: ptxas would else load them where they are used, after the products, and wait there.
      rows.scale[i] = inside ? *static_cast<const volatile float*>(a.scales + output + 8 * i) : 0.0f;
      rows.sum[i] = inside ? *static_cast<const volatile int32_t*>(a.code_sums + output + 8 * i) : 0;
      rows.bias[i] =
          inside && a.bias != nullptr ? *static_cast<const volatile float*>(a.bias + output + 8 * i) : 0.0f;
      if (kBits == 4) {  // the products are of 16 q
        rows.scale[i] *= 0.0625f;
        rows.sum[i] *= 16;
      }
    }
    return rows;
  }

  __device__ static void write_accumulators(const ProductArguments& a, const int32_t (&d)[kOwn / 2],
                                            int token, int output) {
#pragma unroll
    for (int i = 0; i < kOwn / 2; ++i) {
      const int t = token + i / 4 * 8 + i % 2, r = output + (i % 4 >= 2 ? 8 : 0);
      if (t < a.tokens && r < a.n) a.accumulators[int64_t{t} * a.n + r] = kBits == 4 ? d[i] >> 4 : d[i];
    }
  }

  // Sums become floats: scale_t scale_r (sum - zero_t sum_r) + bias_r. From here on d holds bits of floats.
  // ptxas loads as far ahead as it can, and then spills: so all zero points come before all scales, and the
  // address of scales depends on the floats before (`nought` is 0, which it cannot know).
  __device__ static void convert(int32_t (&d)[kOwn / 2], const Rows& rows, uint32_t ranges) {
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
      const uint2 zeros = ptx::load_shared_pair(ranges + 4 * kOwn + 32 * j);
      d[4 * j] -= static_cast<int32_t>(zeros.x) * rows.sum[0];
      d[4 * j + 1] -= static_cast<int32_t>(zeros.y) * rows.sum[0];
      d[4 * j + 2] -= static_cast<int32_t>(zeros.x) * rows.sum[1];
      d[4 * j + 3] -= static_cast<int32_t>(zeros.y) * rows.sum[1];
    }
    ptx::fence_registers(d);
    const auto nought = static_cast<int32_t>(gridDim.y - 1);
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
      if (j > 0 && j % 8 == 0) {
#pragma unroll
        for (int i = 4 * j - 32; i < 4 * j; ++i) ranges |= static_cast<uint32_t>(d[i] & nought);
      }
      const uint2 two = ptx::load_shared_pair(ranges + 32 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float scale = __uint_as_float(i % 2 == 0 ? two.x : two.y) * rows.scale[i / 2];
        d[4 * j + i] = __float_as_int(fmaf(scale, static_cast<float>(d[4 * j + i]), rows.bias[i / 2]));
      }
    }
  }

  __device__ static void add_outliers(const Block& b, const Lane& lane, RingPlace<kStages>& place,
                                      int32_t (&d)[kOwn / 2]) {
    ptx::fence_registers(d);
    for (int block = 0; block < b.arguments.outlier_blocks; ++block) {
      OutlierOperand operand;
      ptx::barrier_wait(b.full + 8 * place.stage, place.parity);
      products::load_words(operand.a, b.weights(place.stage) +
                                          (4 * lane.group + lane.warp) * kSizes.weight_box() +
                                          16 * (lane.thread % 32));
      const uint64_t tokens = kSizes.outlier_row() == 128 ? ptx::operand_128b(b.tokens(place.stage))
                                                          : ptx::operand_64b(b.tokens(place.stage));
      ptx::fence_registers(operand.a);
      ptx::warpgroup_arrive();
#pragma unroll
      for (int s = 0; s < kSizes.outliers() / 16; ++s) {
        ptx::WgmmaRegisters<kOwn>::f16(d, operand.a[4 * s], operand.a[4 * s + 1], operand.a[4 * s + 2],
                                       operand.a[4 * s + 3], tokens + 2 * s);
      }
      ptx::warpgroup_commit();
      ptx::warpgroup_wait<0>();
      ptx::fence_registers(operand.a);
      release(b, lane, place.stage);
      place.advance();
    }
    ptx::fence_registers(d);
  }

  __device__ static void consume(const Block& b) {
    const ProductArguments& a = b.arguments;
    const Lane lane = Lane::mine();
    RingPlace<kStages> place;
    int count = 0;  // of tiles before
    const int first = blockIdx.x / kCluster, step = gridDim.x / kCluster;
    const int lag = min(a.lag, b.integer_blocks);
    if (lane.group == 1 && lag > 0) ptx::named_barrier(kLagBarrier, 128 * kConsumers);
    for (int index = first; index < b.tiles(); index += step, ++count) {
      const TileIndex tile = b.tile(index);
      const int token = b.own_token(tile), output = tile.output + 64 * lane.group;
      const Rows rows = load_rows(a, output + 16 * lane.warp + lane.g);
      int32_t d[kTokens / 2];
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) d[i] = 0;
      ptx::fence_registers(d);
      multiply(b, lane, place, d, lane.group == 0 && index == first ? lag - 1 : -1);
      const auto finish = [&](int32_t(&own)[kOwn / 2]) {
        if (a.accumulators != nullptr) {
          write_accumulators(a, own, token + 2 * lane.q, output + 16 * lane.warp + lane.g);
        }
        const int turn = count % 2;
        ptx::barrier_wait(b.ranges_full + 8 * turn, count / 2 % 2);
        convert(own, rows, b.ranges + turn * kSizes.ranges() + 8 * lane.q);
        // Each thread for itself: nothing says how far the others have read.
        ptx::barrier_arrive(b.ranges_empty + 8 * turn);
        add_outliers(b, lane, place, own);
        products::store_tile<kOwn, kSizes.chunk_tokens()>(&a.y, b.staging + 3 * lane.group * kSizes.chunk(),
                                                          lane, own, token, output, count);
      };
      if constexpr (kSplit > 1) {
        int32_t own[kOwn / 2];
        exchange(b, lane, d, own);
        finish(own);
      } else {
        finish(d);
      }
    }
    if (lane.thread == 0) ptx::wait_stores_read<0>();
  }

  __device__ static void run(const ProductArguments& a, uint8_t* dynamic, Barriers& barriers) {
    const uint32_t base = (ptx::shared_address(dynamic) + 1023) / 1024 * 1024;
    const uint32_t staging = base + kStages * kSizes.stage();
    const uint32_t slices = staging + kConsumers * 3 * kSizes.chunk();
    const uint32_t ranges = slices + kConsumers * (kSplit - 1) * kSizes.slice();
    const int rank = kCluster > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
    const int first_block = kSplit > 1 ? rank * a.integer_blocks / kSplit : 0;
    const int last_block = kSplit > 1 ? (rank + 1) * a.integer_blocks / kSplit : a.integer_blocks;
    const Block b = {a,
                     base,
                     staging,
                     slices,
                     ranges,
                     ptx::shared_address(barriers.full),
                     ptx::shared_address(barriers.empty),
                     ptx::shared_address(barriers.ranges_full),
                     ptx::shared_address(barriers.ranges_empty),
                     ptx::shared_address(barriers.slices),
                     rank,
                     (a.tokens + kTokens - 1) / kTokens,
                     (a.n + kShare * kTileOutputs - 1) / (kShare * kTileOutputs),
                     first_block,
                     last_block - first_block};
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        ptx::barrier_init(&barriers.full[i], 1);
        ptx::barrier_init(&barriers.empty[i], kConsumers * kShare);
      }
      for (int i = 0; i < 2; ++i) {
        ptx::barrier_init(&barriers.ranges_full[i], 1);
        ptx::barrier_init(&barriers.ranges_empty[i], 128 * kConsumers);
        ptx::barrier_init(&barriers.slices[i], 1);
      }
      ptx::fence_barrier_init();
    }
    if constexpr (kCluster > 1) {
      ptx::cluster_arrive();
      ptx::cluster_wait();
    } else {
      __syncthreads();
    }
    ptx::launch_dependents();
    if (threadIdx.x / 128 == kConsumers) {
      ptx::give_registers<40>();
      if (threadIdx.x % 128 == 0) produce(b);
    } else {
      ptx::take_registers<232>();
      consume(b);
    }
    // A block's shared memory must outlive what others of its cluster send there.
    if constexpr (kCluster > 1) {
      ptx::cluster_arrive();
      ptx::cluster_wait();
    }
  }
};

template <int kTokens, int kShare, int kSplit, int kBits>
__global__ void __launch_bounds__(kProductThreads, 1)
    product_kernel(const __grid_constant__ ProductArguments arguments) {
  using Kernel = ProductKernel<kTokens, kShare, kSplit, kBits>;
  extern __shared__ uint8_t dynamic[];
  __shared__ typename Kernel::Barriers barriers;
  Kernel::run(arguments, dynamic, barriers);
}

template <int kBits>
const void* find_product_kernel(const Configuration& c) {
  const auto is = [&](int tokens, int share, int split) {
    return c.tile_tokens == tokens && c.share == share && c.split == split;
  };
  if (is(256, 2, 1)) return reinterpret_cast<const void*>(product_kernel<256, 2, 1, kBits>);
  if (is(160, 2, 1)) return reinterpret_cast<const void*>(product_kernel<160, 2, 1, kBits>);
  if (is(128, 2, 1)) return reinterpret_cast<const void*>(product_kernel<128, 2, 1, kBits>);
  if (is(128, 1, 1)) return reinterpret_cast<const void*>(product_kernel<128, 1, 1, kBits>);
  if (is(128, 1, 2)) return reinterpret_cast<const void*>(product_kernel<128, 1, 2, kBits>);
  return nullptr;
}

}  // namespace nibble::quik_cuda

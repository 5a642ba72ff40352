// The product of a prompt. Weights are the products' first operand: 128 outputs times up to 256 tokens per
// block. A block is a warpgroup of which one thread keeps a ring of tiles filled through the copy engine, and
// two that multiply 64 outputs each: weight codes go from the ring to registers, 4-bit ones there to bytes 16
// q, folded ones to bytes m q with their group's multiplier m; then s8 x u8 in INT32 over all integer
// columns; then, with the sums turned into floats where they lie, the outlier columns in FP16 on top. Nothing
// but the FP16 result goes back to memory.
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
#include "formats/group_int_a8/cuda/folded_codes.h"
#include "formats/quik/cuda/kernels.h"

namespace nibble::quik_cuda {

using products::kConsumers;
using products::kLagBarrier;
using products::Lane;
using products::RingPlace;
using products::TileIndex;

// Folded codes of 128 columns, as load_nibbles() takes them. `multipliers`: those of the lane's first output,
// two bytes each, 32 bytes from one group to the next; those of the second output are 16 bytes behind.
__device__ inline void load_folded(uint32_t (&a)[16], uint32_t from, uint32_t multipliers, int shift) {
  using namespace group_int_a8_cuda;
  const auto factor = [](uint32_t address) {
    uint16_t multiplier;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(multiplier) : "r"(address) : "memory");
    return fold_factor(multiplier);
  };
  uint32_t pairs[8];
  products::load_words(pairs, from);
#pragma unroll
  for (int s = 0; s < 4; ++s) {  // steps of 32 columns
    const uint32_t at = multipliers + (s >> shift) * 32;
    const FoldFactor low = factor(at), high = factor(at + 16);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[4 * s + 2 * i] = fold_low_nibbles(pairs[2 * s + i], low);
      a[4 * s + 2 * i + 1] = fold_high_nibbles(pairs[2 * s + i], high);
    }
  }
}

template <int kTokens, int kShare, int kSplit, int kBits, bool kFolded>
struct ProductKernel {
  static constexpr ProductSizes kSizes = {kTokens, kShare, kSplit, kBits, kFolded};
  static constexpr bool kShifted = kBits == 4 && !kFolded;  // products are of 16 q
  static constexpr int kStages = kSizes.stages(), kOwn = kSizes.own_tokens();
  static_assert(kStages >= 4 && kSizes.chunk() * 3 % 1024 == 0 && kOwn % kSizes.chunk_tokens() == 0);

  using Walk = products::Walk<ProductArguments, kTokens, kShare, kSplit>;
  using Barriers = products::Barriers<kStages>;
  // Addresses in shared memory, and this block's place.
  struct Block {
    const ProductArguments& arguments;
    products::BarrierAddresses barriers;
    products::Part part;  // of the integer columns
    Walk walk;
    uint32_t ring, staging, slices;
    uint32_t ranges;  // of tokens: scales, then zero points

    __device__ uint32_t weights(int stage) const { return ring + stage * kSizes.stage(); }
    __device__ uint32_t tokens(int stage) const { return weights(stage) + kSizes.weights(); }
  };

  // --- the producing thread

  __device__ static void expect_and_copy_weights(const Block& b, const TileIndex& tile, int block,
                                                 int stage) {
    const ProductArguments& a = b.arguments;
    const bool integers = block < b.part.blocks;
    const int start = integers ? 0 : a.outlier_offset;
    const int place = integers ? b.part.first_block + block : block - b.part.blocks;
    const uint32_t barrier = b.barriers.full + 8 * stage;
    if constexpr (kFolded) {  // two blocks in a slot, their multipliers behind both
      const int slot = place / 2 * a.slot_units, second = place % 2, row = tile.output / 16;
      ptx::barrier_arrive_expecting(
          barrier, kSizes.integers() + kTileOutputs / 16 * a.multiplier_box + kTokens * kBlockColumns);
      ptx::tile_copy(b.weights(stage), &a.weights, slot + second * (kSizes.weight_box() / 8), row, barrier);
      ptx::tile_copy(b.weights(stage) + kSizes.integers(), &a.multipliers,
                     slot + 2 * (kSizes.weight_box() / 8) + second * (a.multiplier_box / 8), row, barrier);
    } else {
      ptx::barrier_arrive_expecting(
          barrier, kSizes.weights() + (integers ? kTokens * kBlockColumns : kOwn * kSizes.outlier_row()));
      ptx::tile_copy(b.weights(stage), &a.weights, start + place * (kSizes.weight_box() / 8),
                     tile.output / 16, barrier);
    }
  }
  __device__ static void copy_tokens(const Block& b, const TileIndex& tile, int block, int stage) {
    const ProductArguments& a = b.arguments;
    const uint32_t barrier = b.barriers.full + 8 * stage;
    const bool integers = block < b.part.blocks;
    const CUtensorMap* const map = integers ? &a.codes : &a.outliers;
    const int column =
        integers ? (b.part.first_block + block) * kBlockColumns : (block - b.part.blocks) * kSizes.outliers();
    const int row = integers ? kBlockColumns : kSizes.outlier_row();
    ptx::copy_shared_rows<kTokens, kShare>(b.tokens(stage), map, column,
                                           integers ? tile.token : b.walk.own_token(tile), b.part.rank, row,
                                           barrier);
  }
  __device__ static void produce(const Block& b) {
    const ProductArguments& a = b.arguments;
    products::produce<kStages>(
        b.walk, b.barriers, b.part.blocks + a.outlier_blocks, b.ranges, {a.token_scales, a.token_zeros},
        [&](const TileIndex& tile, int block, int stage) { expect_and_copy_weights(b, tile, block, stage); },
        [&](const TileIndex& tile, int block, int stage) { copy_tokens(b, tile, block, stage); });
  }

  // --- the multiplying warpgroups

  // A block of weights in registers: four words per step of 32 columns or 16 outliers.
  struct Operand {
    uint32_t a[16];
  };
  struct OutlierOperand {
    uint32_t a[kSizes.outliers() / 4];
  };
  __device__ static void load_integers(Operand& operand, const Block& b, const Lane& lane, int stage) {
    const int tile = 4 * lane.group + lane.warp;  // of 16 outputs
    const uint32_t from = b.weights(stage) + tile * kSizes.weight_box() + 16 * (lane.thread % 32);
    if constexpr (kBits == 8) {
      products::load_words(operand.a, from);
    } else if constexpr (kFolded) {
      load_folded(operand.a, from,
                  b.weights(stage) + kSizes.integers() + tile * b.arguments.multiplier_box + 2 * lane.g,
                  b.arguments.multiplier_shift);
    } else {
      products::load_nibbles(operand.a, from);
    }
  }

  __device__ static void release(const Block& b, const Lane& lane, int stage) {
    ptx::release_shared_rows<kShare>(b.barriers.empty + 8 * stage, lane.thread);
  }

  // The INT32 sums of a tile's part of the columns. Products of one block are in flight while the next
  // block's weights are being loaded into the other set of registers.
  __device__ static void multiply(const Block& b, const Lane& lane, RingPlace<kStages>& place,
                                  int32_t (&d)[kTokens / 2], int lead) {
    Operand even, odd;
    int previous = -1;
    const auto step = [&](Operand& now, Operand& before, int block) {
      ptx::barrier_wait(b.barriers.full + 8 * place.stage, place.parity);
      load_integers(now, b, lane, place.stage);
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
      if (block == lead) products::named_barrier_arrive(kLagBarrier, 128 * kConsumers);
      previous = place.stage;
      place.advance();
    };
#pragma unroll
    for (int i = 0; i < 16; ++i) even.a[i] = odd.a[i] = 0;
    // No branch between two steps: ptxas would serialize the products (C7513).
    int block = 0;
    for (; block + 1 < b.part.blocks; block += 2) {
      step(even, odd, block);
      step(odd, even, block + 1);
    }
    if (block < b.part.blocks) step(even, odd, block);
    ptx::warpgroup_wait<0>();
    ptx::fence_registers(even.a);
    ptx::fence_registers(odd.a);
    ptx::fence_registers(d);
    if (previous >= 0) release(b, lane, previous);
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
      if (kShifted) {
        rows.scale[i] *= 0.0625f;
        rows.sum[i] *= 16;
      }
    }
    return rows;
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
      ptx::barrier_wait(b.barriers.full + 8 * place.stage, place.parity);
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
    const int first = b.walk.first(), step = b.walk.step();
    const int lag = min(a.lag, b.part.blocks);
    if (lane.group == 1 && lag > 0) ptx::named_barrier(kLagBarrier, 128 * kConsumers);
    for (int index = first; index < b.walk.tiles(); index += step, ++count) {
      const TileIndex tile = b.walk.tile(index);
      const int token = b.walk.own_token(tile), output = tile.output + 64 * lane.group;
      const Rows rows = load_rows(a, output + 16 * lane.warp + lane.g);
      int32_t d[kTokens / 2];
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) d[i] = 0;
      ptx::fence_registers(d);
      multiply(b, lane, place, d, lane.group == 0 && index == first ? lag - 1 : -1);
      const auto finish = [&](int32_t(&own)[kOwn / 2]) {
        if (a.accumulators != nullptr) {
          products::write_sums<kShifted ? 4 : 0>(a, own, token + 2 * lane.q,
                                                 output + 16 * lane.warp + lane.g);
        }
        const int turn = count % 2;
        ptx::barrier_wait(b.barriers.numbers_full + 8 * turn, count / 2 % 2);
        convert(own, rows, b.ranges + turn * 8 * kOwn + 8 * lane.q);
        // Each thread for itself: nothing says how far the others have read.
        ptx::barrier_arrive(b.barriers.numbers_empty + 8 * turn);
        add_outliers(b, lane, place, own);
        products::store_tile<kOwn, kSizes.chunk_tokens()>(&a.y, b.staging + 3 * lane.group * kSizes.chunk(),
                                                          lane, own, token, output, count);
      };
      if constexpr (kSplit > 1) {
        int32_t own[kOwn / 2];
        products::exchange_sums<kSplit, kOwn>(d, own, b.part.rank, b.slices, kSizes.slice(),
                                              b.barriers.slices, lane,
                                              [](int32_t mine, int32_t other) { return mine + other; });
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
    const auto part = products::Part::mine<kShare, kSplit>(a.integer_blocks);
    const Block b = {a, barriers.addresses(), part, Walk::mine(a, part.rank), base, staging, slices, ranges};
    products::run_block<kShare, kSplit>(
        barriers, 128 * kConsumers, [&] { produce(b); }, [&] { consume(b); });
  }
};

template <int kTokens, int kShare, int kSplit, int kBits, bool kFolded>
__global__ void __launch_bounds__(products::kThreads, 1)
    product_kernel(const __grid_constant__ ProductArguments arguments) {
  using Kernel = ProductKernel<kTokens, kShare, kSplit, kBits, kFolded>;
  extern __shared__ uint8_t dynamic[];
  __shared__ typename Kernel::Barriers barriers;
  Kernel::run(arguments, dynamic, barriers);
}

template <int kBits, bool kFolded = false>
const void* find_product_kernel(const Configuration& c) {
  const auto is = [&](int tokens, int share, int split) {
    return c.tile_tokens == tokens && c.share == share && c.split == split;
  };
  if (is(256, 2, 1)) return reinterpret_cast<const void*>(product_kernel<256, 2, 1, kBits, kFolded>);
  if (is(160, 2, 1)) return reinterpret_cast<const void*>(product_kernel<160, 2, 1, kBits, kFolded>);
  if (is(128, 2, 1)) return reinterpret_cast<const void*>(product_kernel<128, 2, 1, kBits, kFolded>);
  if (is(128, 1, 1)) return reinterpret_cast<const void*>(product_kernel<128, 1, 1, kBits, kFolded>);
  if (is(128, 1, 2)) return reinterpret_cast<const void*>(product_kernel<128, 1, 2, kBits, kFolded>);
  return nullptr;
}

}  // namespace nibble::quik_cuda

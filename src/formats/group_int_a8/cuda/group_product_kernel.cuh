// The product of a prompt with group scales; one .cu per kind of scale instantiates it. Weights are the
// products' first operand: 128 outputs times up to 128 tokens per block. A block is a warpgroup of which one
// thread keeps a ring of tiles filled through the copy engine, and two that multiply 64 outputs each: 4-bit
// codes go from the ring to registers and become bytes 16 q there, then s8 x s8 in INT32 over the columns of
// one group.
//
// A group's sums must be scaled and added up before the next group's can take their registers. So a warpgroup
// halves its tokens: while the tensor cores multiply one half, it scales the other half's last group.
//
//      tensor cores   | group 0, A | group 0, B | group 1, A | group 1, B | ...
//      other units                 | scale 0, A | scale 0, B | scale 1, A | ...
//
// Blocks work in clusters: two that share their tokens' codes, each fetching half for both (persistent: more
// tiles than blocks), or two that share the columns of a tile, then exchange their sums and finish half of
// the tokens each (few tiles).
#pragma once

#include <utility>

#include "backend/cuda/product_parts.cuh"
#include "backend/cuda/wgmma_int8.cuh"
#include "formats/group_int_a8/cuda/group_product_kernels.h"

namespace nibble::group_int_a8_cuda {

using products::kConsumers;
using products::Lane;
using products::RingPlace;
using products::TileIndex;

// Named barriers, one per warpgroup, behind those of product_parts.cuh.
constexpr int kTurnBarrier = 4;

template <GroupScale kScale, int kTokens, int kShare, int kSplit, int kGroupSteps>
struct GroupProductKernel {
  static constexpr bool kIntegers = kScale == GroupScale::kMultiplier;
  static constexpr GroupProductSizes kSizes = {kTokens, kShare, kSplit, kGroupSteps,
                                               kScale == GroupScale::kFloat ? 4 : 2};
  static constexpr int kStages = kSizes.stages(), kOwn = kSizes.own_tokens();
  static constexpr int kHalf = kTokens / 2, kUnits = 4 / kGroupSteps;  // groups in a block of columns
  // With smaller groups scaling takes longer than the products, and waiting for a turn only holds it up.
  static constexpr bool kTurns = kUnits == 1;
  static_assert(kStages >= 4 && kSizes.chunk() * 3 % 1024 == 0 && kOwn % kSizes.chunk_tokens() == 0);

  using Walk = products::Walk<GroupProductArguments, kTokens, kShare, kSplit>;
  using Barriers = products::Barriers<kStages>;
  // Addresses in shared memory, and this block's place.
  struct Block {
    const GroupProductArguments& arguments;
    products::BarrierAddresses barriers;
    products::Part part;
    Walk walk;
    uint32_t ring, group_scales, staging, slices, token_scales;

    __device__ uint32_t weights(int stage) const {
      return ring + stage * (kSizes.weights() + kSizes.codes());
    }
    __device__ uint32_t codes(int stage) const { return weights(stage) + kSizes.weights(); }
    __device__ uint32_t scales(int stage) const { return group_scales + stage * kSizes.scales(); }
  };

  // --- the producing thread

  __device__ static void expect_and_copy_weights(const Block& b, const TileIndex& tile, int block,
                                                 int stage) {
    const GroupProductArguments& a = b.arguments;
    const uint32_t barrier = b.barriers.full + 8 * stage;
    const int place = b.part.first_block + block, slot = place / 2 * a.slot_units, second = place % 2;
    ptx::barrier_arrive_expecting(barrier, kSizes.stage());
    ptx::tile_copy(b.weights(stage), &a.weights, slot + second * (kSizes.weight_box() / 8), tile.output / 16,
                   barrier);
    ptx::tile_copy(b.scales(stage), &a.scales, slot + kSlotCodeBytes / 8 + second * (kSizes.scale_box() / 8),
                   tile.output / 16, barrier);
  }
  __device__ static void copy_codes(const Block& b, const TileIndex& tile, int block, int stage) {
    const uint32_t barrier = b.barriers.full + 8 * stage;
    const int column = (b.part.first_block + block) * kBlockColumns;
    ptx::copy_shared_rows<kTokens, kShare>(b.codes(stage), &b.arguments.codes, column, tile.token,
                                           b.part.rank, kBlockColumns, barrier);
  }
  __device__ static void produce(const Block& b) {
    products::produce<kStages>(
        b.walk, b.barriers, b.part.blocks, b.token_scales, {b.arguments.token_scales},
        [&](const TileIndex& tile, int block, int stage) { expect_and_copy_weights(b, tile, block, stage); },
        [&](const TileIndex& tile, int block, int stage) { copy_codes(b, tile, block, stage); });
  }

  // --- the multiplying warpgroups

  // A block of weights in registers: four words per step of 32 columns.
  struct Operand {
    uint32_t a[16];
  };
  // A group's, of a lane's two outputs: bits of floats, or multipliers.
  struct Scales {
    int32_t of[2];
  };
  __device__ static Scales load_scales(uint32_t from) {
    Scales scales;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kScale == GroupScale::kFloat) {
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(scales.of[i]) : "r"(from + 32 * i) : "memory");
      } else {
        uint16_t bits;
        asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(from + 16 * i) : "memory");
        scales.of[i] = kIntegers ? bits : __float_as_int(__half2float(__ushort_as_half(bits)));
      }
    }
    return scales;
  }

  // Adds a group's sums, of 16 q, times its scales to half of the totals. While products run this gets about
  // 0.6 of its own rate, and slows the products by 6 % (of 128 tokens) or 21 % (of 64); docs/kernels.md.
  template <int kFirst>
  __device__ static void accumulate(int32_t (&total)[kTokens / 2], const int32_t (&sums)[kHalf / 2],
                                    const Scales& scales) {
#pragma unroll
    for (int i = 0; i < kHalf / 2; ++i) {
      int32_t& to = total[kFirst + i];
      const int32_t scale = scales.of[i % 4 / 2];
      if constexpr (kIntegers) {
        to += scale * (sums[i] >> 4);
      } else {
        to = __float_as_int(fmaf(__int_as_float(scale), static_cast<float>(sums[i]), __int_as_float(to)));
      }
    }
  }

  // The products of group kUnit of a block with half of the tokens.
  template <int kUnit>
  __device__ static void issue(int32_t (&sums)[kHalf / 2], const Operand& weights, uint64_t codes) {
    ptx::fence_registers(sums);
    ptx::warpgroup_arrive();
#pragma unroll
    for (int i = 0; i < kGroupSteps; ++i) {
      const int s = kUnit * kGroupSteps + i;
      const uint32_t* const a = weights.a + 4 * s;
      if (i == 0) {
        ptx::WgmmaRegisters<kHalf>::template s8s8<true>(sums, a[0], a[1], a[2], a[3], codes + 2 * s);
      } else {
        ptx::WgmmaRegisters<kHalf>::template s8s8<false>(sums, a[0], a[1], a[2], a[3], codes + 2 * s);
      }
    }
    ptx::warpgroup_commit();
  }

  // What a lane holds of a block of columns.
  struct Loaded {
    Operand weights;
    Scales scales[kUnits];
    uint64_t codes_low, codes_high;  // describe both halves of the tokens
  };
  __device__ static void load(const Block& b, const Lane& lane, int stage, Loaded& to) {
    const int tile = 4 * lane.group + lane.warp;
    products::load_nibbles(to.weights.a,
                           b.weights(stage) + tile * kSizes.weight_box() + 16 * (lane.thread % 32));
    const uint32_t scales = b.scales(stage) + tile * kSizes.scale_box() + kSizes.scale_bytes * lane.g;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) to.scales[u] = load_scales(scales + u * 16 * kSizes.scale_bytes);
    to.codes_low = ptx::operand_128b(b.codes(stage));
    to.codes_high = ptx::operand_128b(b.codes(stage) + kHalf * kBlockColumns);
    ptx::fence_registers(to.weights.a);
  }

  // The warpgroups start their products in turns, so that one's are under way while the other has none. Left
  // alone they keep in step, and the tensor cores wait for both at the same time.
  __device__ static void await_turn(const Lane& lane) {
    if constexpr (kTurns) ptx::named_barrier(kTurnBarrier + lane.group, 128 * kConsumers);
  }
  __device__ static void give_turn(const Lane& lane) {
    if constexpr (kTurns) products::named_barrier_arrive(kTurnBarrier + 1 - lane.group, 128 * kConsumers);
  }

  // Adds the next one or two blocks to the totals. Nothing stays in flight behind it, and both blocks are
  // waited for before: where a loop or a branch comes between a product and the use of its sums, ptxas
  // serializes all products (C7514). The other warpgroup fills the gap.
  template <int kBlocks>
  __device__ static void add_blocks(const Block& b, const Lane& lane, RingPlace<kStages>& place,
                                    int32_t (&total)[kTokens / 2]) {
    int32_t low[kHalf / 2], high[kHalf / 2];  // a group's sums of either half of the tokens
    Loaded blocks[kBlocks];
    int stages[kBlocks];
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      stages[i] = place.stage;
      ptx::barrier_wait(b.barriers.full + 8 * place.stage, place.parity);
      place.advance();
    }
    load(b, lane, stages[0], blocks[0]);
#pragma unroll
    for (int i = 0; i < kHalf / 2; ++i) low[i] = high[i] = 0;
    await_turn(lane);
    issue<0>(low, blocks[0].weights, blocks[0].codes_low);
    issue<0>(high, blocks[0].weights, blocks[0].codes_high);
    if constexpr (kBlocks * kUnits == 1) give_turn(lane);
    if constexpr (kBlocks > 1) load(b, lane, stages[1], blocks[1]);
    // Scales group kUnit of the blocks, and starts the one behind it.
    const auto unit = [&]<int kUnit>() {
      constexpr int kNext = kUnit + 1, kBlock = kUnit / kUnits;
      constexpr bool kEndsBlock = kNext % kUnits == 0, kLast = kNext == kBlocks * kUnits;
      const Scales scales = blocks[kBlock].scales[kUnit % kUnits];
      const Loaded& next = blocks[kLast ? 0 : kNext / kUnits];
      ptx::warpgroup_wait<1>();
      ptx::fence_registers(low);
      accumulate<0>(total, low, scales);
      if constexpr (!kLast) issue<kNext % kUnits>(low, next.weights, next.codes_low);
      ptx::warpgroup_wait<kLast ? 0 : 1>();
      ptx::fence_registers(high);
      if constexpr (kEndsBlock) {
        ptx::fence_registers(blocks[kBlock].weights.a);
        ptx::release_shared_rows<kShare>(b.barriers.empty + 8 * stages[kBlock], lane.thread);
      }
      accumulate<kHalf / 2>(total, high, scales);
      if constexpr (!kLast) issue<kNext % kUnits>(high, next.weights, next.codes_high);
      if constexpr (kNext + 1 == kBlocks * kUnits) give_turn(lane);
    };
    const auto all = [&]<int... kUnit>(std::integer_sequence<int, kUnit...>) {
      (unit.template operator()<kUnit>(), ...);
    };
    all(std::make_integer_sequence<int, kBlocks * kUnits>());
  }

  // The totals of a tile's part of the columns, into zeros.
  __device__ static void multiply(const Block& b, const Lane& lane, RingPlace<kStages>& place,
                                  int32_t (&total)[kTokens / 2]) {
    int block = 0;
    for (; block + 1 < b.part.blocks; block += 2) add_blocks<2>(b, lane, place, total);
    if (block < b.part.blocks) add_blocks<1>(b, lane, place, total);
  }

  __device__ static int32_t add(int32_t a, int32_t b) {
    return kIntegers ? a + b : __float_as_int(__int_as_float(a) + __int_as_float(b));
  }
  // What belongs to the two outputs of a lane.
  struct Rows {
    float scale[2], bias[2];
  };
  __device__ static Rows load_rows(const GroupProductArguments& a, int output) {
    Rows rows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = output + 8 * i < a.n;
      // Volatile: ptxas would else load them where they are used, after the products, and wait there.
      rows.scale[i] = 0.0625f;  // the sums are of 16 q
      if (kIntegers) {
        rows.scale[i] = inside ? *static_cast<const volatile float*>(a.row_scales + output + 8 * i) : 0.0f;
      }
      rows.bias[i] =
          inside && a.bias != nullptr ? *static_cast<const volatile float*>(a.bias + output + 8 * i) : 0.0f;
    }
    return rows;
  }

  // Totals become the bits of outputs: scale_t scale_r total + bias_r.
  __device__ static void convert(int32_t (&d)[kOwn / 2], const Rows& rows, uint32_t token_scales) {
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
      const uint2 two = ptx::load_shared_pair(token_scales + 32 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float scale = __uint_as_float(i % 2 == 0 ? two.x : two.y) * rows.scale[i / 2];
        const int32_t total = d[4 * j + i];
        const float value = kIntegers ? static_cast<float>(total) : __int_as_float(total);
        d[4 * j + i] = __float_as_int(fmaf(scale, value, rows.bias[i / 2]));
      }
    }
  }

  __device__ static void consume(const Block& b) {
    const GroupProductArguments& a = b.arguments;
    const Lane lane = Lane::mine();
    RingPlace<kStages> place;
    int count = 0;  // of tiles before
    const int first = b.walk.first(), step = b.walk.step();
    if (lane.group == 1) give_turn(lane);
    for (int index = first; index < b.walk.tiles(); index += step, ++count) {
      const TileIndex tile = b.walk.tile(index);
      const int token = b.walk.own_token(tile), output = tile.output + 64 * lane.group;
      const Rows rows = load_rows(a, output + 16 * lane.warp + lane.g);
      int32_t total[kTokens / 2];
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) total[i] = 0;
      multiply(b, lane, place, total);
      const auto finish = [&](int32_t(&own)[kOwn / 2]) {
        if (a.accumulators != nullptr) {
          products::write_sums<0>(a, own, token + 2 * lane.q, output + 16 * lane.warp + lane.g);
        }
        const int turn = count % 2;
        ptx::barrier_wait(b.barriers.numbers_full + 8 * turn, count / 2 % 2);
        convert(own, rows, b.token_scales + turn * 4 * kOwn + 8 * lane.q);
        products::store_tile<kOwn, kSizes.chunk_tokens()>(&a.y, b.staging + 3 * lane.group * kSizes.chunk(),
                                                          lane, own, token, output, count);
        // Behind the store's barriers: the other warps have read the scales too.
        if (lane.thread == 0) ptx::barrier_arrive(b.barriers.numbers_empty + 8 * turn);
      };
      if constexpr (kSplit > 1) {
        int32_t own[kOwn / 2];
        products::exchange_sums<kSplit, kOwn>(total, own, b.part.rank, b.slices, kSizes.slice(),
                                              b.barriers.slices, lane, add);
        finish(own);
      } else {
        finish(total);
      }
    }
    if (lane.group == 0) await_turn(lane);  // the last one that was given
    if (lane.thread == 0) ptx::wait_stores_read<0>();
  }

  // Held in registers: ptxas would else find a barrier's address anew, from the block's place in its cluster,
  // each time that a warpgroup waits at it. (Those that exchange sums have no registers left.)
  __device__ static uint32_t hold(uint32_t address) {
    if constexpr (kSplit == 1) asm volatile("" : "+r"(address));
    return address;
  }
  __device__ static void run(const GroupProductArguments& a, uint8_t* dynamic, Barriers& barriers) {
    const uint32_t base = (hold(ptx::shared_address(dynamic)) + 1023) / 1024 * 1024;
    const uint32_t staging = base + kStages * (kSizes.weights() + kSizes.codes());
    const uint32_t slices = staging + kConsumers * 3 * kSizes.chunk();
    const uint32_t group_scales = slices + kConsumers * (kSplit - 1) * kSizes.slice();
    const uint32_t token_scales = group_scales + kStages * kSizes.scales();
    const auto part = products::Part::mine<kShare, kSplit>(a.blocks);
    const products::BarrierAddresses at = barriers.addresses();
    const Block b = {
        a,
        {hold(at.full), hold(at.empty), hold(at.numbers_full), hold(at.numbers_empty), hold(at.slices)},
        part,
        Walk::mine(a, part.rank),
        base,
        group_scales,
        staging,
        slices,
        token_scales};
    products::run_block<kShare, kSplit>(
        barriers, kConsumers, [&] { produce(b); }, [&] { consume(b); });
  }
};

template <GroupScale kScale, int kTokens, int kShare, int kSplit, int kGroupSteps>
__global__ void __launch_bounds__(products::kThreads, 1)
    group_product_kernel(const __grid_constant__ GroupProductArguments arguments) {
  using Kernel = GroupProductKernel<kScale, kTokens, kShare, kSplit, kGroupSteps>;
  extern __shared__ uint8_t dynamic[];
  __shared__ typename Kernel::Barriers barriers;
  Kernel::run(arguments, dynamic, barriers);
}

// The common groups of 128 columns with F16 scales or multipliers have every configuration, the others one
// for few tiles and one for many.
template <GroupScale kScale>
const void* find_group_kernel(const GroupConfiguration& c, int group_steps) {
  const void* found = nullptr;
  const auto offer = [&]<int kTokens, int kShare, int kSplit, int kGroupSteps>() {
    if (c.tile_tokens == kTokens && c.share == kShare && c.split == kSplit && group_steps == kGroupSteps) {
      found =
          reinterpret_cast<const void*>(group_product_kernel<kScale, kTokens, kShare, kSplit, kGroupSteps>);
    }
  };
  offer.template operator()<128, 1, 1, 4>();
  offer.template operator()<128, 1, 1, 2>();
  offer.template operator()<128, 1, 1, 1>();
  offer.template operator()<64, 1, 2, 4>();
  offer.template operator()<64, 1, 2, 2>();
  offer.template operator()<64, 1, 2, 1>();
  if constexpr (kScale != GroupScale::kFloat) {
    offer.template operator()<128, 2, 1, 4>();
    offer.template operator()<128, 1, 2, 4>();
    offer.template operator()<64, 1, 1, 4>();
    offer.template operator()<32, 1, 2, 4>();
  }
  return found;
}

}  // namespace nibble::group_int_a8_cuda

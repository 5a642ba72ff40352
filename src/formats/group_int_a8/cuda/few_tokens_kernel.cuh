// The kernel behind few_tokens.h; one .cu per form instantiates it.
//
// A cluster of blocks computes tiles of 16 rows, one after the other. The columns are divided among its warps
// once and for all, so that a warp keeps the activations of its columns in registers as operands and only
// weights move: each warp streams its own slots through a small ring in shared memory, which it fills itself
// by bulk copies. The stream begins before the previous kernel has ended, because weights depend on nothing.
// At the end of a tile the warps' sums meet in shared memory, then those of the cluster's blocks, each of
// which adds up, in a fixed order, what all have for its tokens. They arrive by copies that barriers in
// shared memory count, so that no block waits: a tile is finished while the next is computed.
//
//      columns ->   warp 0     warp 1    ...   | warp 0 of the cluster's next block ...
//      16 rows     slot slot  slot slot        |  slot slot                               + outlier slots
//                      \          \_ INT32 or float sums [16 rows, tokens] _ added up _ y
#pragma once

#include <iterator>

#include "backend/cuda/cluster.cuh"
#include "backend/cuda/mma_int8.cuh"
#include "backend/cuda/ptx.cuh"
#include "formats/group_int_a8/cuda/few_tokens_launch.h"

namespace nibble::group_int_a8_cuda {
namespace {

// What a tile's sums are multiplied by and added to, of 16 rows each.
enum Term { kScale, kBias, kCodeSum, kTerms };

// Copies a word, or writes a zero, in the background.
__device__ inline void copy_word(uint32_t shared, const void* global, bool wanted) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(wanted ? 4 : 0)
               : "memory");
}
__device__ inline void wait_for_copied_words() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Consecutive words, aligned so that they are loaded and stored at once.
template <int kCount>
struct alignas(4 * kCount) Words {
  int32_t of[kCount];
};
template <int kCount>
__device__ inline Words<kCount> load_words(const void* from) {
  return *static_cast<const Words<kCount>*>(from);
}
template <int kCount>
__device__ inline void store_words(int32_t* to, const Words<kCount>& words) {
  *reinterpret_cast<Words<kCount>*>(to) = words;
}

// Sums of consecutive rows: INT32 ones, and the bits of those of floats.
template <int kCount>
struct Totals {
  Words<kCount> integers = {}, reals = {};
  __device__ void add_integers(const Words<kCount>& words) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) integers.of[i] += words.of[i];
  }
  __device__ void add_reals(const Words<kCount>& words) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      reals.of[i] = __float_as_int(__int_as_float(reals.of[i]) + __int_as_float(words.of[i]));
    }
  }
};

template <FewTokensForm kForm, int kBits, int kTokenTiles, int kSlots, bool kWriteGroupSums>
__global__ void __launch_bounds__(maximum_few_tokens_warps(kForm, kBits, kTokenTiles, kSlots) * 32,
                                  few_tokens_blocks(kBits, kTokenTiles, kSlots))
    few_tokens_kernel(const __grid_constant__ FewTokensProblem p) {
  constexpr bool kRows = kForm == FewTokensForm::kRows, kFloat = kForm == FewTokensForm::kFloatGroups;
  constexpr int kWords = operand_words(kBits), kSlotColumns = 1024 / kBits, kTokens = 8 * kTokenTiles;
  constexpr int kBlockSums = kTokens * kSumStride;

  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int warps = blockDim.x / 32, blocks = p.cluster;
  const int rank = blocks == 1 ? 0 : static_cast<int>(ptx::cluster_rank());
  const int cluster = blockIdx.x / blocks;
  // Each block of a cluster finishes `most_tokens` consecutive tokens, the last ones fewer.
  const int first_token = rank * p.most_tokens;
  const int own_tokens = max(0, min(p.most_tokens, p.tokens - first_token));

  const FewTokensShared& at = p.shared;
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared + at.barriers);
  int32_t* const sums = reinterpret_cast<int32_t*>(shared + at.sums);
  // Between blocks: [block][kind][most tokens][16 rows], INT32 sums before those of floats.
  constexpr int kKinds = kRows ? 2 : 1;
  int32_t* const sent = reinterpret_cast<int32_t*>(shared + at.exchanged);
  int32_t* const received = sent + kTurns * p.turn_words;
  const uint32_t arrived = ptx::shared_address(shared + at.exchange_barriers), freed = arrived + 8 * kTurns;
  const uint32_t terms = ptx::shared_address(shared + at.terms);
  const uint32_t exchange_bytes = 4 * (p.turn_words - p.block_words);  // from the other blocks, per tile
  float* const token_scales = reinterpret_cast<float*>(shared + at.tokens);
  int32_t* const token_zeros = reinterpret_cast<int32_t*>(token_scales + kTokens);

  // This warp's slots: integer ones, or outlier ones.
  const int global_warp = rank * warps + warp;
  const bool integers = !kRows || global_warp < p.integer_warps;
  const int first_slot = (integers ? global_warp : global_warp - p.integer_warps) * p.slots_per_warp;
  const int count =
      max(0, min(p.slots_per_warp, (integers ? p.integer_slots : p.outlier_slots) - first_slot));
  const int integer_here = max(0, min(warps, p.integer_warps - rank * warps));
  const int busy_here = max(0, min(warps, p.busy_warps - rank * warps));

  const uint32_t ring = ptx::shared_address(shared + warp * p.stages * p.slot_bytes);
  const uint32_t filled = ptx::shared_address(barriers + warp * p.stages);
  const uint32_t copy_bytes = integers ? p.slot_bytes : kSlotCodeBytes;
  const uint8_t* const from =
      p.slots +
      (integers ? first_slot * p.slot_bytes : p.integer_slots * p.slot_bytes + first_slot * kSlotCodeBytes);
  const uint64_t policy = ptx::evict_first_policy();
  int fetch_tile = count > 0 ? cluster : p.tiles, fetch_slot = 0;
  // Lane 0: the next slot of the stream into `stage`, which all lanes have read.
  const auto fetch = [&](int stage) {
    if (fetch_tile >= p.tiles) return;
    ptx::barrier_arrive_expecting(filled + 8 * stage, copy_bytes);
    ptx::bulk_copy(ring + stage * p.slot_bytes, from + fetch_tile * p.tile_bytes + fetch_slot * copy_bytes,
                   copy_bytes, filled + 8 * stage, policy);
    if (++fetch_slot == count) {
      fetch_slot = 0;
      fetch_tile += p.clusters;
    }
  };
  if (lane == 0) {
    for (int i = 0; i < p.stages; ++i) ptx::barrier_init(barriers + warp * p.stages + i, 1);
    ptx::fence_barrier_init();
    for (int i = 0; i < p.stages; ++i) fetch(i);
  }
  __syncwarp();
  ptx::launch_dependents();
  // No block may write into another's shared memory before that one runs and has its barriers.
  if (blocks > 1) {
    if (threadIdx.x == 0) {
      uint64_t* const exchange = reinterpret_cast<uint64_t*>(shared + at.exchange_barriers);
      for (int i = 0; i < kTurns; ++i) {
        ptx::barrier_init(exchange + i, 1);
        ptx::barrier_init(exchange + kTurns + i, p.owners);
      }
      ptx::fence_barrier_init();
      for (int i = 0; i < kTurns; ++i) ptx::barrier_arrive_expecting(arrived + 8 * i, exchange_bytes);
    }
    ptx::cluster_arrive();
  }

  ptx::wait_for_previous_kernel();
  for (int i = threadIdx.x; i < p.tokens; i += blockDim.x) {
    token_scales[i] = p.scales[i];
    if constexpr (kRows) token_zeros[i] = p.zeros[i];
  }
  // Slot j's operands for 8 tokens: words 2 s, 2 s + 1 of step s.
  uint32_t b[kSlots][kTokenTiles][kWords];
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      const int token = 8 * t + g;
      const bool wanted = token < p.tokens && j < count;
#pragma unroll
      for (int v = 0; v < kWords / 4; ++v) {
        uint4 words = {0, 0, 0, 0};
        if (integers) {
          const int column = (first_slot + j) * kSlotColumns + 64 * v;
          const uint8_t* const codes = p.codes + token * p.code_stride + column;
          if (kRows || p.group_shift > 0) {
            if (wanted && column + 16 * q < p.code_stride) {
              words = *reinterpret_cast<const uint4*>(codes + 16 * q);
            }
          } else {  // groups of 32 columns
            uint2 half[2] = {{0, 0}, {0, 0}};
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int more = 32 * i + 8 * q;
              if (wanted && column + more < p.code_stride)
                half[i] = *reinterpret_cast<const uint2*>(codes + more);
            }
            words = {half[0].x, half[0].y, half[1].x, half[1].y};
          }
        } else if (v < 2) {
          const int column = (first_slot + j) * kOutlierSlotColumns + 32 * v + 8 * q;
          const __half* const x = p.outliers + token * p.outlier_stride + column;
          if (wanted && column + 8 <= p.outlier_count) {
            words = *reinterpret_cast<const uint4*>(x);
          } else if (wanted) {
            // Whatever lies beyond the last outlier column may be no number.
            const auto half = [&](int e) -> uint32_t {
              return column + e < p.outlier_count ? __half_as_ushort(x[e]) : 0;
            };
            words = {half(0) | half(1) << 16, half(2) | half(3) << 16, half(4) | half(5) << 16,
                     half(6) | half(7) << 16};
          }
        }
        b[j][t][4 * v] = words.x;
        b[j][t][4 * v + 1] = words.y;
        b[j][t][4 * v + 2] = words.z;
        b[j][t][4 * v + 3] = words.w;
      }
    }
  }
  if (blocks > 1) ptx::cluster_wait();

  // The threads that finish a tile take some rows of a token each: with many tokens four, which costs fewest
  // instructions, else one, which is soonest done. (token, first row) = (i / kPerToken, kCount (i %
  // kPerToken)) for i = threadIdx.x, + blockDim.x ...
  constexpr int kCount = kTokenTiles == 8 ? 4 : 1, kPerToken = kTileRows / kCount;
  const int first_row = kCount * (threadIdx.x % kPerToken);
  // The terms of tile `index` come while it is computed.
  const auto fetch_terms = [&](int tile, int index) {
    for (int i = threadIdx.x; i < kTerms * kTileRows; i += blockDim.x) {
      const int term = i / kTileRows, row = tile * kTileRows + i % kTileRows;
      const void* from = p.bias;
      if (term == kScale) from = kFloat ? nullptr : p.row_scales;
      if (term == kCodeSum) from = kRows ? p.code_sums : nullptr;
      const bool wanted = from != nullptr && row < p.n;
      const int64_t offset = wanted ? 4 * int64_t{row} : 0;
      copy_word(terms + 4 * (index % kTurns * kTerms * kTileRows + i),
                static_cast<const uint8_t*>(from != nullptr ? from : p.slots) + offset, wanted);
    }
  };
  const auto finish = [&](int index, int token, const Totals<kCount>& totals) {
    const int row = (cluster + index * p.clusters) * kTileRows + first_row;
    const uint8_t* const own_terms =
        shared + at.terms + 4 * (index % kTurns * kTerms * kTileRows + first_row);
    const auto term = [&](Term which) { return load_words<kCount>(own_terms + 4 * which * kTileRows); };
    const Words<kCount> scales = term(kScale), biases = term(kBias), code_sums = term(kCodeSum);
    __half* const y = p.y + token * p.y_stride + row;
    uint32_t halves[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float scale = __int_as_float(scales.of[i]);
      float value = __int_as_float(totals.reals.of[i]);
      if constexpr (!kFloat) {
        const int32_t sum = kRows && kBits == 4 ? totals.integers.of[i] >> 4 : totals.integers.of[i];
        if (p.accumulators != nullptr && row + i < p.n) {
          p.accumulators[int64_t{token} * p.n + row + i] = sum;
        }
        if constexpr (kRows) {
          const int32_t corrected = sum - token_zeros[token] * code_sums.of[i];
          value += token_scales[token] * scale * static_cast<float>(corrected);
        } else {
          value = static_cast<float>(sum) * scale;
        }
      }
      if constexpr (!kRows) value *= token_scales[token];
      halves[i] = __half_as_ushort(__float2half_rn(value + __int_as_float(biases.of[i])));
    }
    if constexpr (kCount == 4) {
      if (p.aligned_rows && row + 4 <= p.n) {
        *reinterpret_cast<uint2*>(y) = {halves[0] | halves[1] << 16, halves[2] | halves[3] << 16};
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (row + i < p.n) y[i] = __ushort_as_half(static_cast<unsigned short>(halves[i]));
    }
  };
  const auto block_totals = [&](int turn, int token) {
    const int32_t* words = sums + turn * warps * kBlockSums + token * kSumStride + first_row;
    Totals<kCount> totals;
    int w = 0;
    if constexpr (!kFloat) {
#pragma unroll 4
      for (; w < integer_here; ++w, words += kBlockSums) totals.add_integers(load_words<kCount>(words));
    }
    if constexpr (kRows || kFloat) {
#pragma unroll 4
      for (; w < busy_here; ++w, words += kBlockSums) totals.add_reals(load_words<kCount>(words));
    }
    return totals;
  };
  // `index` counts this cluster's tiles; it and those around it use different turns.
  const auto finish_received = [&](int index) {
    const int turn = index % kTurns;
    ptx::barrier_wait(arrived + 8 * turn, index / kTurns % 2);
    for (int i = threadIdx.x; i < own_tokens * kPerToken; i += blockDim.x) {
      const int32_t* words = received + turn * p.turn_words + i / kPerToken * kTileRows + first_row;
      Totals<kCount> totals;
      for (int sender = 0; sender < blocks; ++sender, words += p.block_words) {
        if constexpr (!kFloat) totals.add_integers(load_words<kCount>(words));
        if constexpr (kRows || kFloat) {
          totals.add_reals(load_words<kCount>(words + (kKinds - 1) * p.kind_words));
        }
      }
      finish(index, first_token + i / kPerToken, totals);
    }
  };
  // After all threads have read what arrived for tile `index`.
  const auto free_received = [&](int index) {
    if (own_tokens == 0 || static_cast<int>(threadIdx.x) >= blocks) return;
    const int turn = index % kTurns;
    if (threadIdx.x == 0) ptx::barrier_arrive_expecting(arrived + 8 * turn, exchange_bytes);
    if (static_cast<int>(threadIdx.x) == rank) {
      ptx::barrier_arrive(freed + 8 * turn);
    } else {
      ptx::remote_arrive(ptx::remote_address(freed + 8 * turn, threadIdx.x));
    }
  };

  int stage = 0, index = 0;
  uint32_t parity = 0;
  for (int tile = cluster; tile < p.tiles; tile += p.clusters, ++index) {
    fetch_terms(tile, index);
    // INT32 sums, or the bits of floats.
    int32_t d[kTokenTiles][4] = {};
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
      if (j >= count) continue;
      ptx::barrier_wait(filled + 8 * stage, parity);
      const uint8_t* const slot = shared + (warp * p.stages + stage) * p.slot_bytes;
      if (kRows && !integers) {
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const uint4 w = *reinterpret_cast<const uint4*>(slot + 512 * v + 16 * lane);
          const uint32_t a[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
          for (int t = 0; t < kTokenTiles; ++t) {
            float f[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) f[i] = __int_as_float(d[t][i]);
            ptx::mma_16x8x16(f, a, b[j][t][2 * v], b[j][t][2 * v + 1]);
#pragma unroll
            for (int i = 0; i < 4; ++i) d[t][i] = __float_as_int(f[i]);
          }
        }
      } else {
        int32_t group_sums[kTokenTiles][4] = {};
        int32_t(&into)[kTokenTiles][4] = kRows ? d : group_sums;
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const uint4 w = *reinterpret_cast<const uint4*>(slot + 512 * v + 16 * lane);
          if constexpr (kBits == 8) {
            const uint32_t a[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int t = 0; t < kTokenTiles; ++t) {
              ptx::mma_16x8x32<kRows>(into[t], a, b[j][t][2 * v], b[j][t][2 * v + 1]);
            }
          } else {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const uint32_t first = half == 0 ? w.x : w.z, second = half == 0 ? w.y : w.w;
              const uint32_t a[4] = {ptx::low_nibbles_times_16(first), ptx::high_nibbles_times_16(first),
                                     ptx::low_nibbles_times_16(second), ptx::high_nibbles_times_16(second)};
              const int step = 2 * v + half;
#pragma unroll
              for (int t = 0; t < kTokenTiles; ++t) {
                ptx::mma_16x8x32<kRows>(into[t], a, b[j][t][2 * step], b[j][t][2 * step + 1]);
              }
              if constexpr (!kRows) {
                // The end of a group: 1, 2 or 4 steps.
                if (((step + 1) & ((1 << p.group_shift) - 1)) != 0) continue;
                const int group = step >> p.group_shift;
                const uint8_t* const scales = slot + kSlotCodeBytes + group * kTileRows * p.scale_bytes;
                if constexpr (kWriteGroupSums) {
                  // Opaque, lest the addresses of all these stores be kept in registers.
                  int lane_token = 2 * q;
                  asm volatile("" : "+r"(lane_token));
#pragma unroll
                  for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                      const int token = 8 * t + lane_token + i % 2, row = tile * kTileRows + g + i / 2 * 8;
                      const int all = ((first_slot + j) << (3 - p.group_shift)) + group;
                      if (token < p.tokens && row < p.n && all < p.groups) {
                        p.accumulators[(token * p.n + row) * p.groups + all] = group_sums[t][i] >> 4;
                      }
                    }
                  }
                }
                if constexpr (kFloat) {
                  float low, high;
                  if (p.scale_bytes == 2) {
                    low = __half2float(reinterpret_cast<const __half*>(scales)[g]);
                    high = __half2float(reinterpret_cast<const __half*>(scales)[g + 8]);
                  } else {
                    low = reinterpret_cast<const float*>(scales)[g];
                    high = reinterpret_cast<const float*>(scales)[g + 8];
                  }
                  low *= 0.0625f;  // the sums are of 16 q
                  high *= 0.0625f;
#pragma unroll
                  for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                      d[t][i] = __float_as_int(fmaf(i < 2 ? low : high, static_cast<float>(group_sums[t][i]),
                                                    __int_as_float(d[t][i])));
                      group_sums[t][i] = 0;
                    }
                  }
                } else {
                  const int32_t low = reinterpret_cast<const uint16_t*>(scales)[g];
                  const int32_t high = reinterpret_cast<const uint16_t*>(scales)[g + 8];
#pragma unroll
                  for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                      d[t][i] += (i < 2 ? low : high) * (group_sums[t][i] >> 4);
                      group_sums[t][i] = 0;
                    }
                  }
                }
              }
            }
          }
        }
      }
      __syncwarp();
      if (lane == 0) fetch(stage);
      if (++stage == p.stages) {
        stage = 0;
        parity ^= 1;
      }
    }

    // Without a cluster two buffers in turn: a warp can be at most one tile ahead of the slowest reader.
    const int turn = blocks == 1 ? index % 2 : 0;
    if (count > 0) {
      int32_t* const mine = sums + (turn * warps + warp) * kBlockSums;
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = 8 * t + 2 * q + i % 2;
          if (token < p.tokens) mine[token * kSumStride + g + i / 2 * 8] = d[t][i];
        }
      }
    }
    wait_for_copied_words();
    __syncthreads();
    if (blocks == 1) {
      for (int i = threadIdx.x; i < p.tokens * kPerToken; i += blockDim.x) {
        finish(index, i / kPerToken, block_totals(turn, i / kPerToken));
      }
      continue;
    }
    if (index >= 2) free_received(index - 2);
    const int exchange = index % kTurns;
    if (index >= kTurns) ptx::barrier_wait(freed + 8 * exchange, (index / kTurns - 1) % 2);
    int32_t* const sent_now = sent + exchange * p.turn_words;
    int32_t* const received_now = received + exchange * p.turn_words;
    for (int i = threadIdx.x; i < p.tokens * kPerToken; i += blockDim.x) {
      const int token = i / kPerToken;
      const Totals<kCount> totals = block_totals(turn, token);
      // Blocks' shares follow each other, in each one kind after the other.
      const int to = kKinds == 1 ? 0 : token / p.most_tokens;
      // Its own share a block puts where those of the others will arrive.
      const bool own = token >= first_token && token < first_token + own_tokens;
      int32_t* const words = (own ? received_now : sent_now) + to * (p.block_words - p.kind_words) +
                             token * kTileRows + first_row;
      if constexpr (!kFloat) store_words<kCount>(words, totals.integers);
      if constexpr (kRows || kFloat) {
        store_words<kCount>(words + (kKinds - 1) * p.kind_words, totals.reals);
      }
    }
    ptx::fence_for_copies();
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < p.owners && static_cast<int>(threadIdx.x) != rank) {
      const int to = threadIdx.x;
      ptx::remote_copy(ptx::remote_address(ptx::shared_address(received_now + rank * p.block_words), to),
                       ptx::shared_address(sent_now + to * p.block_words), 4 * p.block_words,
                       ptx::remote_address(arrived + 8 * exchange, to));
    }
    if (index >= 1 && own_tokens > 0) finish_received(index - 1);
  }
  if (blocks > 1) {
    if (index >= 1 && own_tokens > 0) finish_received(index - 1);
    // Arrivals at another block's barriers may still be under way.
    ptx::cluster_arrive_after_writes();
    ptx::cluster_wait();
  }
}

// The instances of one form and width by tokens and slots; null where there is none.
template <FewTokensForm kForm, int kBits, bool kWriteGroupSums = false>
const void* few_tokens_instance(int token_tiles, int slots) {
  constexpr int kPerUnit = 8 / kBits;  // 4-bit slots hold twice the columns, and operands, of 8-bit ones
  const int units = kPerUnit == 2 ? slots : slots / 2;
  const void* found = nullptr;
  const auto offer = [&]<int kInstance>() {
    constexpr FewTokensInstance kOffered = kFewTokensInstances[kInstance];
    if (token_tiles != kOffered.token_tiles || units != kOffered.slots) return;
    found = reinterpret_cast<const void*>(&few_tokens_kernel<kForm, kBits, kOffered.token_tiles,
                                                             kOffered.slots * 2 / kPerUnit, kWriteGroupSums>);
  };
  offer.template operator()<0>();
  offer.template operator()<1>();
  offer.template operator()<2>();
  offer.template operator()<3>();
  offer.template operator()<4>();
  static_assert(std::size(kFewTokensInstances) == 5);
  return found;
}

}  // namespace
}  // namespace nibble::group_int_a8_cuda

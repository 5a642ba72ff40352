// One thread streams packed weights and tokens through a ring in shared memory; warpgroups, each with 64 rows
// of the tile, decode their weights in registers, where wgmma takes its first operand from, and multiply them
// by the tokens' tile in shared memory. Decoding the next 64 columns overlaps the products of the last 64.
#include <array>

#include "backend/cuda/cluster.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tensor_map.h"
#include "backend/cuda/tile_exchange.cuh"
#include "backend/cuda/wgmma.cuh"
#include "backend/cuda/wgmma_registers.cuh"
#include "formats/group_int/cuda/decode_shape.h"
#include "formats/group_int/cuda/operands.cuh"
#include "formats/group_int/cuda/tile.h"
#include "formats/group_int/cuda/tile_sums.cuh"
#include "formats/group_int/cuda/tile_walk.cuh"

namespace nibble::group_int_cuda {
namespace {

constexpr int kMaximumStages = 10;
constexpr int kColumns = kBlockColumns;  // of a stage
constexpr int kSwizzledColumns = 64;     // of a tensor map's box: 128 bytes
constexpr int kSharedPerBlock = 232448;  // the most a block may have
constexpr int kSharedPerMultiprocessor = 233472, kSharedReserve = 1024;
// Where one block of threads fills a multiprocessor, handing sums over costs as much as this many blocks of
// columns, by the difference between plans with and without on an H100: it is not worth it for shorter waits
// in the last round.
constexpr int kIdleBlocks = 11;
constexpr int kLeastBlocks = 3;  // of columns that are worth a block of threads of their own

template <int kWarpgroups, int kTokens, int kScales>
struct Tile {
  static constexpr int kRows = 64 * kWarpgroups, kWarps = 4 * kWarpgroups;
  // Large tiles need more registers than an even share: a whole warpgroup produces and gives its own away.
  static constexpr bool kTakes = kWarpgroups * kTokens >= 512;
  static constexpr int kThreads = 32 * kWarps + (kTakes ? 128 : 32);
  static constexpr int kBlockBytes = kCodeBytes + kScales * kScaleBytes;
  static constexpr int kTokenBytes = kTokens * kColumns * 2, kWeightBytes = kWarps * kBlockBytes;
  // Products that are issued together, with registers for as many again: of 16 columns each.
  static constexpr int kBatch =
      (kWarpgroups == 4 && kTokens == 128) || (kWarpgroups == 2 && kTokens <= 32) ? 2 : 4;
  static constexpr int kStageBytes = kTokenBytes + kWeightBytes;
  // With few tokens it is cheaper to multiply a group's sums by its scale than all of its weights.
  static constexpr bool kScalesSums = kTokens <= kMostScaledSums;
  // Where several blocks fit on a multiprocessor, one streams while others, or those of the next kernel,
  // start or end.
  static constexpr int kPerMultiprocessor = kWarpgroups * kTokens <= 64    ? 3
                                            : kWarpgroups * kTokens <= 128 ? 2
                                                                           : 1;
  static constexpr int kBudget =
      (kPerMultiprocessor == 1 ? kSharedPerBlock
                               : kSharedPerMultiprocessor / kPerMultiprocessor - kSharedReserve) -
      1024 - 256;  // for alignment and barriers
  static constexpr int kStages =
      kBudget / kStageBytes < kMaximumStages ? kBudget / kStageBytes : kMaximumStages;
  static constexpr int kSharedBytes = kStages * kStageBytes + 1024;  // the ring starts at a multiple of 1024
  static_assert(kStages >= 3);
  static_assert(kTokens * (kRows + kPadding) * 4 <= kStages * kStageBytes);
};

template <typename T, int kShare>
struct Producer {
  const CUtensorMap &weights, &x;
  uint32_t ring, full, empty;

  __device__ void run(const TileArguments& a) const {
    const int rank = kShare > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
    const uint64_t policy = ptx::evict_first_policy();
    // Read once, they leave the L2 first; large tiles have no registers for this.
    const bool once = !T::kTakes && a.token_tiles == 1;
    const auto want_weights = [&](const TileWalk& piece, int block, int stage) {
      const uint32_t to = ring + T::kStages * T::kTokenBytes + stage * T::kWeightBytes,
                     barrier = full + 8 * stage;
      const int column = block * (T::kBlockBytes / 8), row = (piece.row_tile() * kShare + rank) * T::kWarps;
      ptx::barrier_arrive_expecting(barrier, T::kStageBytes);
      if (once) {
        ptx::tile_copy(to, &weights, column, row, barrier, policy);
      } else {
        ptx::tile_copy(to, &weights, column, row, barrier);
      }
    };
    // Weights depend on nothing: the first are on their way before the previous kernel has ended.
    int ahead = 0;
    for (TileWalk early(a); early.valid() && ahead < T::kStages; early.advance()) {
      for (int block = early.begin; block < early.end && ahead < T::kStages; ++block) {
        want_weights(early, block, ahead++);
      }
    }
    ptx::wait_for_previous_kernel();
    if constexpr (kShare > 1) ptx::cluster_wait();  // the other block's barriers are there
    int stage = 0, count = 0;
    uint32_t parity = 1;  // the first round finds every stage empty
    for (TileWalk piece(a); piece.valid(); piece.advance()) {
      constexpr int kTokens = T::kTokenBytes / (2 * kColumns), kPart = kTokens / kShare;
      const int row = piece.token_tile() * kTokens + rank * kPart;
      for (int block = piece.begin; block < piece.end; ++block) {
        if (count++ >= ahead) {
          ptx::barrier_wait(empty + 8 * stage, parity);
          want_weights(piece, block, stage);
        }
        const uint32_t to = ring + stage * T::kTokenBytes + rank * (kPart * kSwizzledColumns * 2);
        const int column = block * kColumns;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t there = to + half * (T::kTokenBytes / 2);
          if constexpr (kShare > 1) {
            ptx::tile_copy_to_blocks(there, &x, column + half * kSwizzledColumns, row, full + 8 * stage,
                                     (1 << kShare) - 1);
          } else {
            ptx::tile_copy(there, &x, column + half * kSwizzledColumns, row, full + 8 * stage);
          }
        }
        if (++stage == T::kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
  }
};

template <int kWarpgroups, int kTokens, int kScales, int kShare>
__global__ void __launch_bounds__(Tile<kWarpgroups, kTokens, kScales>::kThreads,
                                  (Tile<kWarpgroups, kTokens, kScales>::kPerMultiprocessor))
    tile_kernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x,
                const TileArguments a) {
  using T = Tile<kWarpgroups, kTokens, kScales>;
  extern __shared__ uint8_t dynamic[];
  __shared__ uint64_t barriers[2 * T::kStages];  // full, empty
  const uint32_t ring = (ptx::shared_address(dynamic) + 1023) / 1024 * 1024;
  uint8_t* const ring_pointer = dynamic + (ring - ptx::shared_address(dynamic));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      ptx::barrier_init(&barriers[i], 1);
      ptx::barrier_init(&barriers[T::kStages + i], T::kWarps * kShare);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  ptx::launch_dependents();
  if constexpr (kShare > 1) ptx::cluster_arrive();

  if (warp >= T::kWarps) {
    if constexpr (T::kTakes) ptx::give_registers<kWarpgroups == 4 ? 32 : 40>();
    if (threadIdx.x == 32 * T::kWarps) {
      const Producer<T, kShare> producer = {weights, x, ring, ptx::shared_address(barriers),
                                            ptx::shared_address(barriers + T::kStages)};
      producer.run(a);
    } else if constexpr (kShare > 1) {
      ptx::cluster_wait();
    }
    __syncwarp();
    if constexpr (kShare > 1) {
      ptx::cluster_barrier_relaxed();
    } else if (a.split > 1) {
      ptx::cluster_barrier();
      ptx::cluster_barrier_relaxed();
    }
  } else {
    if constexpr (T::kTakes) ptx::take_registers<kWarpgroups == 4 ? 112 : 232>();
    if constexpr (kShare > 1) ptx::cluster_wait();
    const int g = lane / 4;
    TileWalk walk(a);
    const uint32_t magic = decode_magic();
    // Addresses in registers, not computed again and again.
    uint32_t codes_at = ring + T::kStages * T::kTokenBytes + warp * T::kBlockBytes + lane * 16,
             scales_at = codes_at - lane * 16 + kCodeBytes + 2 * g, operands_at = ring >> 4,
             full_at = ptx::shared_address(barriers);
    asm volatile("" : "+r"(codes_at), "+r"(scales_at), "+r"(operands_at), "+r"(full_at));
    int stage = 0;
    uint32_t parity = 0;
    const auto release_previous = [&](bool any) {
      const int previous = (stage == 0 ? T::kStages : stage) - 1;
      __syncwarp();
      const uint32_t empty = full_at + 8 * (T::kStages + previous);
      if constexpr (kShare > 1) {
        if (any && lane < kShare) ptx::barrier_arrive_remote(ptx::remote_address(empty, lane));
      } else {
        if (any && lane == 0) ptx::barrier_arrive(empty);
      }
    };
    float d[kTokens / 2];
    constexpr int kBatch = T::kBatch, kBatches = 8 / kBatch;
    uint32_t even[4 * kBatch], odd[4 * kBatch];  // operands of even and of odd batches
#pragma unroll
    for (int i = 0; i < 4 * kBatch; ++i) even[i] = odd[i] = 0;
    for (; walk.valid(); walk.advance()) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) d[i] = 0;
      ptx::keep_registers(d);
      if constexpr (T::kScalesSums) {
        float e[kTokens / 2], scale = 0, scale_8 = 0;  // sums of a group
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) e[i] = 0;
        ptx::keep_registers(e);
        for (int block = walk.begin; block < walk.end; ++block) {
          ptx::barrier_wait(full_at + 8 * stage, parity);
          const uint32_t codes_in = codes_at + stage * T::kWeightBytes,
                         scales_in = scales_at + stage * T::kWeightBytes;
          const uint64_t b = ptx::operand_128b(0) + (operands_at + stage * (T::kTokenBytes / 16));
          uint4 codes = {};
#pragma unroll
          for (int m = 0; m < 8; m += 2) {
            uint32_t(&operands)[8] = m % 4 == 0 ? even : odd;
            if (m % 4 == 0) codes = load_shared_uint4(codes_in + 128 * m);
            const bool first = m % (8 / kScales) == 0;  // of a group
            float next = 0, next_8 = 0;
            if (first) {
              next = __half2float(load_shared_half(scales_in + kScaleBytes / 4 * m));
              next_8 = __half2float(load_shared_half(scales_in + kScaleBytes / 4 * m + 16));
            }
            const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              uint32_t decoded[4];
              decode_word(words[m % 4 + i], magic, decoded);
#pragma unroll
              for (int r = 0; r < 4; ++r) operands[4 * i + r] = decoded[r];
            }
            if (first) {
              // The last group's products have ended.
              ptx::warpgroup_wait<0>();
              ptx::keep_registers(odd);
              ptx::keep_registers(e);
              if (m == 0) release_previous(block > walk.begin);
#pragma unroll
              for (int i = 0; i < kTokens / 2; ++i) d[i] += e[i] * (i % 4 < 2 ? scale : scale_8);
              scale = next;
              scale_8 = next_8;
            }
            ptx::warpgroup_arrive();
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const uint64_t from = b + m / 4 * (T::kTokenBytes / 2 / 16) + (m % 4 + i) * 2;
              if (first && i == 0) {
                ptx::wgmma_f16_first(e, operands[0], operands[1], operands[2], operands[3], from);
              } else {
                ptx::wgmma_f16(e, operands[4 * i], operands[4 * i + 1], operands[4 * i + 2],
                               operands[4 * i + 3], from);
              }
            }
            ptx::warpgroup_commit();
            // All products but these have ended: the other registers are free.
            ptx::warpgroup_wait<1>();
            ptx::keep_registers(m % 4 == 0 ? odd : even);
          }
          if (++stage == T::kStages) {
            stage = 0;
            parity ^= 1;
          }
        }
        ptx::warpgroup_wait<0>();
        ptx::keep_registers(odd);
        ptx::keep_registers(e);
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) d[i] += e[i] * (i % 4 < 2 ? scale : scale_8);
      } else {
        for (int block = walk.begin; block < walk.end; ++block) {
          ptx::barrier_wait(full_at + 8 * stage, parity);
          const uint32_t codes_in = codes_at + stage * T::kWeightBytes,
                         scales_in = scales_at + stage * T::kWeightBytes;
          const uint64_t b = ptx::operand_128b(0) + (operands_at + stage * (T::kTokenBytes / 16));
          uint4 codes = {};
#pragma unroll
          for (int batch = 0; batch < kBatches; ++batch) {
            uint32_t(&operands)[4 * kBatch] = batch % 2 == 0 ? even : odd;
            const int half = batch * kBatch / 4;  // of the columns
            if (batch * kBatch % 4 == 0) codes = load_shared_uint4(codes_in + 512 * half);
            const uint32_t set = scales_in + (kScales == 2 ? kScaleBytes * half : 0);
            const __half2 scale = __half2half2(load_shared_half(set)),
                          scale_8 = __half2half2(load_shared_half(set + 16));
            const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
              uint32_t decoded[4];
              decode_word(words[(batch * kBatch + i) % 4], magic, scale, scale_8, decoded);
#pragma unroll
              for (int r = 0; r < 4; ++r) operands[4 * i + r] = decoded[r];
            }
            ptx::warpgroup_arrive();
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
              const int m = batch * kBatch + i;
              ptx::wgmma_f16(d, operands[4 * i], operands[4 * i + 1], operands[4 * i + 2],
                             operands[4 * i + 3], b + m / 4 * (T::kTokenBytes / 2 / 16) + m % 4 * 2);
            }
            ptx::warpgroup_commit();
            // All products but these have ended: the other registers are free, and so is the last stage.
            ptx::warpgroup_wait<1>();
            ptx::keep_registers(batch % 2 == 0 ? odd : even);
            if (batch == 0) release_previous(block > walk.begin);
          }
          if (++stage == T::kStages) {
            stage = 0;
            parity ^= 1;
          }
        }
        ptx::warpgroup_wait<0>();
        ptx::keep_registers(odd);
        ptx::keep_registers(d);
      }
      release_previous(true);
      if (a.split > 1) continue;
      if (walk.begin > 0) {
        hand_over<T, kTokens>(d, a);
        continue;
      }
      if (walk.end < a.blocks) collect<T, kTokens>(d, a, walk.end);
      const int row_tile =
          walk.row_tile() * kShare + (kShare > 1 ? static_cast<int>(ptx::cluster_rank()) : 0);
      store_sums<kTokens>(d, a, row_tile * T::kRows + warp * 16, walk.token_tile() * kTokens, lane);
    }
    if constexpr (kShare > 1) {
      __syncwarp();
      ptx::cluster_barrier_relaxed();  // nobody leaves while the other fills its memory
    } else if (a.split > 1) {
      // One tile only: the ring has been read, and its memory takes the sums.
      ptx::named_barrier(kMultiplierBarrier, 32 * T::kWarps);
      float* const sums = reinterpret_cast<float*>(ring_pointer) + warp * 16 + g;
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) {
        const int t = i / 4 * 8 + lane % 4 * 2 + i % 2;
        sums[t * (T::kRows + kPadding) + i % 4 / 2 * 8] = d[i];
      }
      ptx::cluster_barrier();
      const TileWalk only(a);
      add_cluster<T, kTokens>(ring, a, only.row_tile() * T::kRows, only.token_tile() * kTokens,
                              ptx::cluster_rank());
      ptx::cluster_barrier_relaxed();  // nobody leaves while others read its memory
    }
  }
}

template <int kWarpgroups, int kTokens, int kScales, int kShare>
cudaError_t launch(const TileProblem& problem, int split, int multiprocessors, cudaStream_t stream) {
  using T = Tile<kWarpgroups, kTokens, kScales>;
  const auto kernel = tile_kernel<kWarpgroups, kTokens, kScales, kShare>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
      error != cudaSuccess) {
    return error;
  }
  const DecodeShape shape = {problem.n, problem.k, kScales};
  const int row_tiles = (problem.n + T::kRows * kShare - 1) / (T::kRows * kShare),
            token_tiles = (problem.tokens + kTokens - 1) / kTokens, units = row_tiles * token_tiles;
  const int blocks = static_cast<int>(shape.blocks());
  int grid = units * split, shared_units = 0;
  if (split == 1) {
    const int64_t most = int64_t{multiprocessors} * T::kPerMultiprocessor / kShare,
                  rounds = (units + most - 1) / most;
    if (T::kPerMultiprocessor > 1 || (rounds * most - units) * blocks > kIdleBlocks * most) {
      // One round that all take part in, and what does not fill a round, are shared out; the rest in rounds.
      grid = static_cast<int>(min(most, max(int64_t{units} * blocks / kLeastBlocks, int64_t{1})));
      shared_units = units % grid == 0 ? 0 : units % grid + (units > grid ? grid : 0);
    } else {
      grid = static_cast<int>((units + rounds - 1) / rounds);
    }
    if (problem.workspace == nullptr || problem.flags == nullptr) return cudaErrorInvalidValue;
  }
  const TileArguments arguments = {.y = problem.y,
                                   .y_stride = problem.y_stride > 0 ? problem.y_stride : problem.n,
                                   .bias = problem.bias,
                                   .n = problem.n,
                                   .tokens = problem.tokens,
                                   .blocks = blocks,
                                   .row_tiles = row_tiles,
                                   .token_tiles = token_tiles,
                                   .split = split,
                                   .share = kShare,
                                   .shared_units = shared_units,
                                   .partials = static_cast<float*>(problem.workspace),
                                   .flags = problem.flags};
  const CUtensorMap weights =
      cuda::make_byte_map(problem.weights, shape.tiles(), shape.tile_bytes(), T::kWarps, T::kBlockBytes);
  const CUtensorMap x = cuda::make_tile_map(cuda::TileType::kHalf, problem.x, problem.tokens, problem.k,
                                            2 * problem.k, kTokens / kShare);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(split * kShare), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid * kShare));
  config.blockDim = dim3(T::kThreads);
  config.dynamicSmemBytes = T::kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = split * kShare > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, weights, x, arguments);
}

using Launch = cudaError_t (*)(const TileProblem&, int split, int multiprocessors, cudaStream_t);

struct Kernel {
  TileSize size;
  int share, scales;
  Launch launch;
};
template <int kWarpgroups, int kTokens, int kScales, int kShare = 1>
constexpr Kernel make_kernel() {
  return {{64 * kWarpgroups, kTokens}, kShare, kScales, launch<kWarpgroups, kTokens, kScales, kShare>};
}
constexpr std::array kKernels = {
    make_kernel<2, 16, 1>(),     make_kernel<2, 16, 2>(),     make_kernel<2, 32, 1>(),
    make_kernel<2, 32, 2>(),     make_kernel<2, 64, 1>(),     make_kernel<2, 64, 2>(),
    make_kernel<4, 64, 1>(),     make_kernel<4, 64, 2>(),     make_kernel<2, 128, 1>(),
    make_kernel<2, 128, 2>(),    make_kernel<4, 128, 1>(),    make_kernel<4, 128, 2>(),
    make_kernel<2, 256, 1>(),    make_kernel<2, 256, 2>(),    make_kernel<2, 128, 1, 2>(),
    make_kernel<2, 128, 2, 2>(), make_kernel<2, 256, 1, 2>(), make_kernel<2, 256, 2, 2>()};

const Kernel* find_kernel(const TileSize& size, int share, int scales) {
  for (const Kernel& kernel : kKernels) {
    if (kernel.size == size && kernel.share == share && kernel.scales == scales) return &kernel;
  }
  return nullptr;
}

constexpr std::array kSizes = {TileSize{128, 16},  TileSize{128, 32},  TileSize{128, 64}, TileSize{256, 64},
                               TileSize{128, 128}, TileSize{256, 128}, TileSize{128, 256}};

}  // namespace

size_t tile_workspace_bytes(int multiprocessors) {
  // One tile in FP32 for every block of threads; the largest tiles have one block per multiprocessor, and
  // smaller ones no more sums for all of theirs.
  return sizeof(float) * 256 * 128 * static_cast<size_t>(multiprocessors);
}

std::span<const TileSize> tile_sizes() { return kSizes; }
bool can_share_tokens(const TileSize& size) { return find_kernel(size, 2, 1) != nullptr; }

cudaError_t launch_tile(const TileProblem& problem, const TilePlan& plan, int multiprocessors,
                        cudaStream_t stream) {
  const int64_t blocks = (problem.k + kBlockColumns - 1) / kBlockColumns;
  if (problem.k % 8 != 0 || problem.tokens < 1 || plan.split < 1 || plan.split > 8 || plan.split > blocks ||
      (plan.split > 1 && plan.share > 1)) {
    return cudaErrorInvalidValue;
  }
  const Kernel* const kernel = find_kernel(plan.size, plan.share, problem.scales_per_block);
  if (kernel == nullptr) return cudaErrorInvalidValue;
  return kernel->launch(problem, plan.split, multiprocessors, stream);
}

}  // namespace nibble::group_int_cuda

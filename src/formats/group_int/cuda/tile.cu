// One thread streams packed weights and tokens through a ring in shared memory; warpgroups, each with 64 rows
// of the tile, multiply them (tile_products.cuh) and store what the sums have become (tile_sums.cuh).
#include <algorithm>
#include <array>

#include "backend/cuda/cluster.cuh"
#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tensor_map.h"
#include "backend/cuda/tile_exchange.cuh"
#include "backend/cuda/wgmma.cuh"
#include "formats/group_int/cuda/decode_shape.h"
#include "formats/group_int/cuda/tile.h"
#include "formats/group_int/cuda/tile_products.cuh"
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
constexpr int kWorkspaceSums = 256 * 128;  // that the blocks of threads of a multiprocessor hand over
constexpr int kLeastBlocks = 3;            // of columns that are worth a block of threads of their own

template <int kTileWarpgroups, int kTileTokens, int kTileScales, int kTileShare = 1>
struct Tile {
  static constexpr int kWarpgroups = kTileWarpgroups, kTokens = kTileTokens, kScales = kTileScales,
                       kShare = kTileShare;  // blocks of threads that share tokens
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
  static_assert(kRows * kTokens * kPerMultiprocessor <= kWorkspaceSums);
  static_assert(kTokens * (kRows + kPadding) * 4 <= kStages * kStageBytes);
};

template <typename T>
__device__ inline int share_rank() {
  if constexpr (T::kShare == 1) return 0;
  return static_cast<int>(ptx::cluster_rank());
}

template <typename T>
struct Producer {
  const CUtensorMap &weights, &x;
  uint32_t ring, full, empty;

  __device__ void run(const TileArguments& a) const {
    const int rank = share_rank<T>();
    const uint64_t policy = ptx::evict_first_policy();
    // Read once, they leave the L2 first; large tiles have no registers for this.
    const bool once = !T::kTakes && a.token_tiles == 1;
    const auto want_weights = [&](const TileWalk& piece, int block, int stage) {
      const uint32_t to = ring + T::kStages * T::kTokenBytes + stage * T::kWeightBytes,
                     barrier = full + 8 * stage;
      const int column = block * (T::kBlockBytes / 8),
                row = (piece.row_tile() * T::kShare + rank) * T::kWarps;
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
    if constexpr (T::kShare > 1) ptx::cluster_wait();  // the other block's barriers are there
    int stage = 0, count = 0;
    uint32_t parity = 1;  // the first round finds every stage empty
    for (TileWalk piece(a); piece.valid(); piece.advance()) {
      const int row = piece.token_tile() * T::kTokens;
      for (int block = piece.begin; block < piece.end; ++block) {
        if (count++ >= ahead) {
          ptx::barrier_wait(empty + 8 * stage, parity);
          want_weights(piece, block, stage);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          ptx::copy_shared_rows<T::kTokens, T::kShare>(
              ring + stage * T::kTokenBytes + half * (T::kTokenBytes / 2), &x,
              block * kColumns + half * kSwizzledColumns, row, rank, kSwizzledColumns * 2, full + 8 * stage);
        }
        if (++stage == T::kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(T::kThreads, T::kPerMultiprocessor)
    tile_kernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x,
                const TileArguments a) {
  extern __shared__ uint8_t dynamic[];
  __shared__ uint64_t barriers[2 * T::kStages];  // full, empty
  const uint32_t ring = (ptx::shared_address(dynamic) + 1023) / 1024 * 1024;
  uint8_t* const ring_pointer = dynamic + (ring - ptx::shared_address(dynamic));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      ptx::barrier_init(&barriers[i], 1);
      ptx::barrier_init(&barriers[T::kStages + i], T::kWarps * T::kShare);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  ptx::launch_dependents();
  if constexpr (T::kShare > 1) ptx::cluster_arrive();

  if (warp >= T::kWarps) {
    if constexpr (T::kTakes) ptx::give_registers<T::kWarpgroups == 4 ? 32 : 40>();
    if (threadIdx.x == 32 * T::kWarps) {
      const Producer<T> producer = {weights, x, ring, ptx::shared_address(barriers),
                                    ptx::shared_address(barriers + T::kStages)};
      producer.run(a);
    } else if constexpr (T::kShare > 1) {
      ptx::cluster_wait();
    }
    __syncwarp();
    if (a.split > 1) {  // those of store_cluster_sums()
      ptx::cluster_barrier();
      ptx::cluster_barrier_relaxed();
    }
  } else {
    if constexpr (T::kTakes) ptx::take_registers<T::kWarpgroups == 4 ? 112 : 232>();
    if constexpr (T::kShare > 1) ptx::cluster_wait();
    TileWalk walk(a);
    RingReader<T> reader(ring, ptx::shared_address(barriers), warp, lane);
    BatchOperands<T> even, odd;
    TileSums<T> d;
    for (; walk.valid(); walk.advance()) {
      multiply<T>(walk.begin, walk.end, reader, even, odd, d);
      if (a.split > 1) continue;
      if (walk.begin > 0) {
        hand_over<T>(d, a);
        continue;
      }
      if (walk.end < a.blocks) collect<T>(d, a, walk.end);
      const int row = (walk.row_tile() * T::kShare + share_rank<T>()) * T::kRows;
      store_sums<T>(d, a, row + warp * 16, walk.token_tile() * T::kTokens, lane);
    }
    // Where a cluster splits the columns it has one tile only, and the ring is free after it.
    if (a.split > 1) store_cluster_sums<T>(d, a, ring_pointer, warp, lane);
  }
  if constexpr (T::kShare > 1) {
    __syncwarp();
    ptx::cluster_barrier_relaxed();  // nobody leaves while the other fills its memory
  }
}

template <typename T>
cudaError_t launch(const TileProblem& problem, int split, int multiprocessors, cudaStream_t stream) {
  const auto kernel = tile_kernel<T>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
      error != cudaSuccess) {
    return error;
  }
  const DecodeShape shape = {problem.n, problem.k, T::kScales};
  constexpr int kUnitRows = T::kRows * T::kShare;
  const int row_tiles = (problem.n + kUnitRows - 1) / kUnitRows,
            token_tiles = (problem.tokens + T::kTokens - 1) / T::kTokens, units = row_tiles * token_tiles;
  const int blocks = static_cast<int>(shape.blocks());
  int grid = units * split, shared_units = 0;
  if (split == 1) {
    const int64_t most = int64_t{multiprocessors} * T::kPerMultiprocessor / T::kShare,
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
                                   .share = T::kShare,
                                   .shared_units = shared_units,
                                   .partials = static_cast<float*>(problem.workspace),
                                   .flags = problem.flags};
  const CUtensorMap weights =
      cuda::make_byte_map(problem.weights, shape.tiles(), shape.tile_bytes(), T::kWarps, T::kBlockBytes);
  const CUtensorMap x = cuda::make_tile_map(cuda::TileType::kHalf, problem.x, problem.tokens, problem.k,
                                            2 * problem.k, T::kTokens / T::kShare);
  const int cluster = split * T::kShare;
  return cuda::DependentLaunch({.grid = dim3(static_cast<unsigned>(grid * T::kShare)),
                                .block = dim3(T::kThreads),
                                .shared_bytes = T::kSharedBytes,
                                .cluster = cluster > 1 ? cluster : 0},
                               stream)
      .run(kernel, weights, x, arguments);
}

using Launch = cudaError_t (*)(const TileProblem&, int split, int multiprocessors, cudaStream_t);

struct Kernel {
  TileSize size;
  int share, scales;
  Launch launch;
};
template <typename T>
constexpr Kernel kKernel = {{T::kRows, T::kTokens}, T::kShare, T::kScales, launch<T>};
constexpr std::array kKernels = {
    kKernel<Tile<2, 16, 1>>,     kKernel<Tile<2, 16, 2>>,     kKernel<Tile<2, 32, 1>>,
    kKernel<Tile<2, 32, 2>>,     kKernel<Tile<2, 64, 1>>,     kKernel<Tile<2, 64, 2>>,
    kKernel<Tile<4, 64, 1>>,     kKernel<Tile<4, 64, 2>>,     kKernel<Tile<2, 128, 1>>,
    kKernel<Tile<2, 128, 2>>,    kKernel<Tile<4, 128, 1>>,    kKernel<Tile<4, 128, 2>>,
    kKernel<Tile<2, 256, 1>>,    kKernel<Tile<2, 256, 2>>,    kKernel<Tile<2, 128, 1, 2>>,
    kKernel<Tile<2, 128, 2, 2>>, kKernel<Tile<2, 256, 1, 2>>, kKernel<Tile<2, 256, 2, 2>>};
// Every size has a kernel for one scale and no sharing.
constexpr bool stands_for_size(const Kernel& kernel) { return kernel.share == 1 && kernel.scales == 1; }
constexpr auto kSizes = [] {
  std::array<TileSize, std::count_if(kKernels.begin(), kKernels.end(), stands_for_size)> sizes = {};
  size_t count = 0;
  for (const Kernel& kernel : kKernels) {
    if (stands_for_size(kernel)) sizes[count++] = kernel.size;
  }
  return sizes;
}();

const Kernel* find_kernel(const TileSize& size, int share, int scales) {
  for (const Kernel& kernel : kKernels) {
    if (kernel.size == size && kernel.share == share && kernel.scales == scales) return &kernel;
  }
  return nullptr;
}

}  // namespace

size_t tile_workspace_bytes(int multiprocessors) {
  // One tile in FP32 for every block of threads.
  return sizeof(float) * kWorkspaceSums * static_cast<size_t>(multiprocessors);
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

// A cluster's blocks share the columns and keep theirs of all tokens in shared memory: only weights move.
// Tiles of 16 rows go round the warps; a warp streams its part of a tile through a ring of its own, which it
// fills itself. At the end of a tile its sums go to the same warp of the cluster's blocks, each of which adds
// up, in the order of the blocks, some of the rows and tokens: those of one tile in the middle of the next.
#include <algorithm>

#include "backend/cuda/cluster.cuh"
#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tensor_map.h"
#include "formats/group_int/cuda/decode_shape.h"
#include "formats/group_int/cuda/few.h"
#include "formats/group_int/cuda/operands.cuh"

namespace nibble::group_int_cuda {
namespace {

constexpr int kWarps = kFewWarps, kThreads = 32 * kWarps;
constexpr int kColumns = kBlockColumns;
constexpr int kSwizzledColumns = 64;                           // of a tensor map's box: 128 bytes
constexpr int kMaximumStageBlocks = 4, kLeastStageBlocks = 3;  // copied at once: memory is read in long runs
constexpr int kMaximumStages = 4, kLeastStages = 2;
constexpr int kMaximumBlocks = 40;       // of columns, of one block of threads
constexpr int kPairBytes = 32 * 8;       // a warp's sums of 8 rows and 8 tokens: two per lane
constexpr int kSharedPerBlock = 232448;  // the most a block may have
constexpr int kStaticShared = 2048;      // barriers, with room to spare

struct FewArguments {
  const uint8_t* weights;
  __half* y;
  int64_t y_stride;
  const float* bias;
  int n, tokens;
  int blocks;  // of 128 columns
  int tiles;   // of 16 rows
  int split, clusters, stages;
  int stage_blocks;    // copied at once
  int received, ring;  // where they start in shared memory; the tokens are first
};

struct Barriers {
  uint64_t full[kWarps][kMaximumStages];
  uint64_t tokens[kMaximumBlocks];
  uint64_t arrived[kWarps], freed[kWarps];
};

__device__ inline float2 load_shared_float2(uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}
__device__ inline void store_shared_float2(uint32_t address, float first, float second) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(first), "f"(second) : "memory");
}
// Four matrices of 8 tokens by 8 columns, as mma_16x8x16 takes its second operand.
__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

__host__ __device__ constexpr int sum_pairs(int tokens) { return tokens / 4; }  // per lane
// How many of them a block of the cluster adds up; with more blocks than pairs some have none.
__host__ __device__ constexpr int pairs_per_owner(int tokens, int split) {
  return split < sum_pairs(tokens) ? sum_pairs(tokens) / split : 1;
}

// A block of 16 rows by 128 columns times the tokens, added to d. `codes` and `scales` are the lane's
// addresses; `tokens` and `others` those of its row of the matrices of columns 0 to 31 and 32 to 63.
template <int kTokens, int kScales>
__device__ inline void multiply(float (&d)[kTokens / 8][4], uint32_t codes, uint32_t scales, uint32_t tokens,
                                uint32_t others, uint32_t magic) {
  constexpr int kTokenTiles = kTokens / 8, kHalf = kTokens * kSwizzledColumns * 2;
  const uint4 half[2] = {load_shared_uint4(codes), load_shared_uint4(codes + 512)};
  float scale[2 * kScales];
#pragma unroll
  for (int i = 0; i < 2 * kScales; ++i) scale[i] = __half2float(load_shared_half(scales + 16 * i));
  // Chains of products, of 64 columns each where there are two: one alone would wait for itself.
  constexpr int kChains = kScales == 2 || kTokenTiles == 1 ? 2 : 1;
  float sums[kChains][kTokenTiles][4] = {};
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    uint32_t b[2][kTokenTiles][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        load_matrices(b[h][t], (part == 0 ? tokens : others) + h * kHalf + t * 1024);
      }
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t words[4] = {half[h].x, half[h].y, half[h].z, half[h].w};
        uint32_t operand[4];
        decode_word(words[2 * part + s], magic, operand);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          ptx::mma_16x8x16(sums[h % kChains][t], operand, b[h][t][2 * s], b[h][t][2 * s + 1]);
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (kScales == 2) {
        d[t][j] += sums[0][t][j] * scale[j / 2] + sums[1][t][j] * scale[2 + j / 2];
      } else if constexpr (kChains == 2) {
        d[t][j] += (sums[0][t][j] + sums[1][t][j]) * scale[j / 2];
      } else {
        d[t][j] += sums[0][t][j] * scale[j / 2];
      }
    }
  }
}

template <int kTokens, int kScales>
__global__ void __launch_bounds__(kThreads, 1)
    few_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ FewArguments a) {
  constexpr int kBlockBytes = kCodeBytes + kScales * kScaleBytes;
  constexpr int kTokenBytes = kTokens * kColumns * 2;  // of a block of columns
  constexpr int kTokenTiles = kTokens / 8;
  extern __shared__ uint8_t dynamic[];
  __shared__ Barriers barriers;
  const uint32_t tokens_at = (ptx::shared_address(dynamic) + 1023) / 1024 * 1024;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int rank = static_cast<int>(ptx::cluster_rank());
  const int cluster = blockIdx.x / a.split;
  const int first = a.blocks * rank / a.split, count = a.blocks * (rank + 1) / a.split - first;
  const int owned = pairs_per_owner(kTokens, a.split), owners = sum_pairs(kTokens) / owned;
  const int stage_bytes = a.stage_blocks * kBlockBytes;
  const uint32_t arriving = (a.split - 1) * owned * kPairBytes;  // a block's own sums stay in `sent`
  constexpr int kSentBytes = sum_pairs(kTokens) * kPairBytes;
  const uint32_t sent = tokens_at + a.received + warp * (kSentBytes + a.split * owned * kPairBytes),
                 received = sent + kSentBytes, ring = tokens_at + a.ring + warp * a.stages * stage_bytes;
  const uint32_t full = ptx::shared_address(barriers.full[warp]),
                 arrived = ptx::shared_address(&barriers.arrived[warp]),
                 freed = ptx::shared_address(&barriers.freed[warp]),
                 tokens_full = ptx::shared_address(barriers.tokens);

  // This warp's stream of blocks.
  const int step = kWarps * a.clusters;
  int fetch_tile = cluster + warp * a.clusters, fetch_block = 0;
  const uint64_t policy = ptx::evict_first_policy();
  const auto fetch = [&](int stage) {
    if (fetch_tile >= a.tiles) return;
    if (lane == 0) {
      const int bytes = min(a.stage_blocks, count - fetch_block) * kBlockBytes;
      ptx::barrier_arrive_expecting(full + 8 * stage, bytes);
      ptx::bulk_copy(ring + stage * stage_bytes,
                     a.weights + (int64_t{fetch_tile} * a.blocks + first + fetch_block) * kBlockBytes, bytes,
                     full + 8 * stage, policy);
    }
    fetch_block += a.stage_blocks;
    if (fetch_block >= count) {
      fetch_block = 0;
      fetch_tile += step;
    }
  };
  if (lane == 0) {
    for (int i = 0; i < a.stages; ++i) ptx::barrier_init(&barriers.full[warp][i], 1);
    ptx::barrier_init(&barriers.arrived[warp], 1);
    ptx::barrier_init(&barriers.freed[warp], owners);
    if (warp == 0) {
      for (int i = 0; i < count; ++i) ptx::barrier_init(&barriers.tokens[i], 1);
    }
    ptx::fence_barrier_init();
    ptx::barrier_arrive_expecting(arrived, arriving);
  }
  __syncwarp();
  // Weights depend on nothing: the first are on their way before the previous kernel has ended.
  for (int i = 0; i < a.stages; ++i) fetch(i);
  __syncthreads();
  ptx::launch_dependents();
  ptx::cluster_arrive();
  if (threadIdx.x == 0) {
    ptx::wait_for_previous_kernel();
    for (int i = 0; i < count; ++i) {
      const uint32_t to = tokens_at + i * kTokenBytes, barrier = tokens_full + 8 * i;
      const int column = (first + i) * kColumns;
      ptx::barrier_arrive_expecting(barrier, kTokenBytes);
      ptx::tile_copy(to, &x, column, 0, barrier);
      ptx::tile_copy(to + kTokenBytes / 2, &x, column + kSwizzledColumns, 0, barrier);
    }
  }
  __syncwarp();

  // Adds up what the cluster's blocks have of tile `tile`, the warp's `turn`th.
  const auto finish = [&](int tile, int turn) {
    ptx::barrier_wait(arrived, turn % 2);
    for (int own = 0; own < owned; ++own) {
      const int pair = rank * owned + own, token = pair / 2 * 8 + g, row = tile * 16 + pair % 2 * 8;
      const float bias = a.bias != nullptr && row + g < a.n ? a.bias[row + g] : 0.0f;
      float2 total = {bias, bias};
#pragma unroll 4
      for (int from = 0; from < a.split; ++from) {
        const uint32_t parts =
            from == rank ? sent + rank * owned * kPairBytes : received + from * owned * kPairBytes;
        const float2 part = load_shared_float2(parts + own * kPairBytes + lane * 8);
        total.x += part.x;
        total.y += part.y;
      }
      // Now two rows of one token.
      const __half2 rows = as_half2(ptx::transpose_8x8(as_bits(__floats2half2_rn(total.x, total.y))));
      __half* const y = a.y + token * a.y_stride + row + 2 * q;
      if (token < a.tokens && a.y_stride % 2 == 0 && row + 2 * q + 1 < a.n) {
        *reinterpret_cast<__half2*>(y) = rows;
      } else if (token < a.tokens) {
        if (row + 2 * q < a.n) y[0] = __low2half(rows);
        if (row + 2 * q + 1 < a.n) y[1] = __high2half(rows);
      }
    }
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive_expecting(arrived, arriving);
    __syncwarp();
    if (lane < a.split) ptx::remote_arrive(ptx::remote_address(freed, lane));
  };

  const uint32_t magic = decode_magic();
  const uint32_t lane_codes = ring + lane * 16, lane_scales = ring + kCodeBytes + 2 * g;
  const int middle = count / 2 / a.stage_blocks * a.stage_blocks;
  const uint32_t matrices = tokens_at + lane % 8 * 128 + ((lane / 8 ^ lane % 8) << 4);
  int stage = 0, turn = 0;
  uint32_t parity = 0;
  for (int tile = cluster + warp * a.clusters; tile < a.tiles; tile += step, ++turn) {
    float d[kTokenTiles][4] = {};
    for (int i = 0; i < count; i += a.stage_blocks) {
      const int here = min(a.stage_blocks, count - i);
      ptx::barrier_wait(full + 8 * stage, parity);
      const uint32_t codes_at = lane_codes + stage * stage_bytes,
                     scales_at = lane_scales + stage * stage_bytes, tokens_from = matrices + i * kTokenBytes,
                     tokens_from_other = tokens_from ^ 64;
#pragma unroll
      for (int within = 0; within < kMaximumStageBlocks; ++within) {
        if (within >= here) break;
        if (turn == 0) ptx::barrier_wait(tokens_full + 8 * (i + within), 0);
        multiply<kTokens, kScales>(d, codes_at + within * kBlockBytes, scales_at + within * kBlockBytes,
                                   tokens_from + within * kTokenBytes,
                                   tokens_from_other + within * kTokenBytes, magic);
      }
      __syncwarp();
      fetch(stage);
      if (++stage == a.stages) {
        stage = 0;
        parity ^= 1;
      }
      if (i == middle && turn > 0 && rank < owners) finish(tile - step, turn - 1);
    }
    // Nobody writes to another block before that one runs, nor over what has not been added up yet.
    if (turn == 0) ptx::cluster_wait();
    ptx::barrier_wait(freed, (turn + 1) % 2);
#pragma unroll
    for (int pair = 0; pair < sum_pairs(kTokens); ++pair) {
      store_shared_float2(sent + pair * kPairBytes + lane * 8, d[pair / 2][pair % 2 * 2],
                          d[pair / 2][pair % 2 * 2 + 1]);
    }
    ptx::fence_for_copies();
    __syncwarp();
    if (lane < owners && lane != rank) {
      ptx::remote_copy(ptx::remote_address(received + rank * owned * kPairBytes, lane),
                       sent + lane * owned * kPairBytes, owned * kPairBytes,
                       ptx::remote_address(arrived, lane));
    }
  }
  if (turn == 0) {
    ptx::cluster_wait();
  } else if (rank < owners) {
    finish(cluster + (warp + (turn - 1) * kWarps) * a.clusters, turn - 1);
  }
  // Nobody leaves while others write to it.
  ptx::cluster_arrive_after_writes();
  ptx::cluster_wait();
}

struct Layout {
  int received, ring, stages, stage_blocks, bytes;
};
// Shared memory beside the barriers: tokens, sums sent and received, rings; no stages where they do not fit.
// `tokens` is 8 or 16.
Layout layout_of(const DecodeShape& shape, int tokens, int split) {
  const int held = (static_cast<int>(shape.blocks()) + split - 1) / split;
  Layout layout = {};
  layout.received = held * tokens * kColumns * 2;
  layout.ring =
      layout.received + kWarps * (sum_pairs(tokens) + split * pairs_per_owner(tokens, split)) * kPairBytes;
  if (held > kMaximumBlocks) return layout;
  const int left =
      kSharedPerBlock - kStaticShared - 1024 - layout.ring;  // the tokens start at a multiple of 1024
  for (int blocks = kMaximumStageBlocks; blocks >= kLeastStageBlocks; --blocks) {
    const int stage = kWarps * blocks * static_cast<int>(shape.block_bytes());
    if (left < kLeastStages * stage) continue;
    layout.stages = std::min(left / stage, kMaximumStages);
    layout.stage_blocks = blocks;
    layout.bytes = layout.ring + layout.stages * stage + 1024;
    break;
  }
  return layout;
}

int tile_tokens(const DecodeProblem& problem) { return problem.tokens <= 8 ? 8 : 16; }

template <int kTokens, int kScales>
cudaError_t launch(const DecodeProblem& problem, const FewPlan& plan, int multiprocessors,
                   cudaStream_t stream) {
  const auto kernel = few_kernel<kTokens, kScales>;
  if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     kSharedPerBlock - kStaticShared);
      error != cudaSuccess) {
    return error;
  }
  const DecodeShape shape = {problem.n, problem.k, kScales};
  const Layout layout = layout_of(shape, kTokens, plan.split);
  const int tiles = static_cast<int>(shape.tiles());
  const FewArguments arguments = {.weights = problem.weights,
                                  .y = problem.y,
                                  .y_stride = problem.y_stride > 0 ? problem.y_stride : problem.n,
                                  .bias = problem.bias,
                                  .n = problem.n,
                                  .tokens = problem.tokens,
                                  .blocks = static_cast<int>(shape.blocks()),
                                  .tiles = tiles,
                                  .split = plan.split,
                                  .clusters = std::min(tiles, few_clusters(plan.split, multiprocessors)),
                                  .stages = layout.stages,
                                  .stage_blocks = layout.stage_blocks,
                                  .received = layout.received,
                                  .ring = layout.ring};
  const CUtensorMap x = cuda::make_tile_map(cuda::TileType::kHalf, problem.x, problem.tokens, problem.k,
                                            2 * problem.k, kTokens);
  return cuda::DependentLaunch({.grid = dim3(static_cast<unsigned>(arguments.clusters * plan.split)),
                                .block = dim3(kThreads),
                                .shared_bytes = static_cast<size_t>(layout.bytes),
                                .cluster = plan.split},
                               stream)
      .run(kernel, x, arguments);
}

}  // namespace

bool few_fits(const DecodeProblem& problem, const FewPlan& plan) {
  const DecodeShape shape = {problem.n, problem.k, problem.scales_per_block};
  return plan.split <= shape.blocks() && layout_of(shape, tile_tokens(problem), plan.split).stages > 0;
}

cudaError_t launch_few(const DecodeProblem& problem, const FewPlan& plan, int multiprocessors,
                       cudaStream_t stream) {
  const bool known = plan.split == 2 || plan.split == 4 || plan.split == 8;
  if (!known || problem.k % 8 != 0 || problem.tokens < 1 || problem.tokens > kMaximumFewTokens ||
      !few_fits(problem, plan)) {
    return cudaErrorInvalidValue;
  }
  if (tile_tokens(problem) == 8) {
    return problem.scales_per_block == 1 ? launch<8, 1>(problem, plan, multiprocessors, stream)
                                         : launch<8, 2>(problem, plan, multiprocessors, stream);
  }
  return problem.scales_per_block == 1 ? launch<16, 1>(problem, plan, multiprocessors, stream)
                                       : launch<16, 2>(problem, plan, multiprocessors, stream);
}

}  // namespace nibble::group_int_cuda

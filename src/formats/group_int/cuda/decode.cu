// A persistent kernel per product. A producer warp streams the block's weights, chunk after chunk, into a
// ring in shared memory; eight warps multiply, each its own 128 columns of a chunk, and add up at the end of
// a tile of 16 rows. Tokens lie in shared memory. The stream begins before the previous kernel has ended,
// because weights depend on nothing.
#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/ptx.cuh"
#include "formats/group_int/cuda/decode.h"
#include "formats/group_int/cuda/decode_input.cuh"
#include "formats/group_int/cuda/decode_shape.h"
#include "formats/group_int/cuda/operands.cuh"

namespace nibble::group_int_cuda {
namespace {

constexpr int kWarps = kChunkBlocks;
constexpr int kThreads = 32 * (kWarps + 1);
constexpr int kMinimumStages = 2, kMaximumStages = 24;
constexpr int kMultiplierBarrier = 1;

struct Shared {
  uint64_t full[kMaximumStages], empty[kMaximumStages];
  float sums[2][kWarps][kBlockRows * kMaximumDecodeTokens];
};

template <int kTokens, int kScales, typename Step>
__global__ void __launch_bounds__(kThreads, 2) decode_kernel(DecodeProblem problem, Step step, int stages) {
  extern __shared__ __align__(128) uint8_t dynamic[];
  constexpr int kBlockBytes = kCodeBytes + kScales * kScaleBytes, kChunkBytes = kWarps * kBlockBytes;
  constexpr int kColumns = kBlockColumns;
  uint8_t* const ring = dynamic;
  const int blocks = (problem.k + kColumns - 1) / kColumns, padded_k = blocks * kColumns;
  __half* const x = reinterpret_cast<__half*>(ring + stages * kChunkBytes);  // [kTokens, padded_k]
  __shared__ Shared shared;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tiles = (problem.n + kBlockRows - 1) / kBlockRows;
  const int chunks = (blocks + kWarps - 1) / kWarps;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      ptx::barrier_init(&shared.full[i], 1);
      ptx::barrier_init(&shared.empty[i], 32 * kWarps);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  ptx::launch_dependents();

  if (warp == kWarps) {
    if (lane != 0) return;
    const uint64_t policy = ptx::evict_first_policy();
    const int64_t tile_bytes = int64_t{blocks} * kBlockBytes;
    int stage = 0;
    uint32_t parity = 1;  // the first round finds every stage empty
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const uint8_t* from = problem.weights + tile * tile_bytes;
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const uint32_t bytes = min(kWarps, blocks - chunk * kWarps) * kBlockBytes;
        ptx::barrier_wait(ptx::shared_address(&shared.empty[stage]), parity);
        ptx::barrier_arrive_expecting(ptx::shared_address(&shared.full[stage]), bytes);
        ptx::bulk_copy(ptx::shared_address(ring) + stage * kChunkBytes, from, bytes,
                       ptx::shared_address(&shared.full[stage]), policy);
        from += bytes;
        if (++stage == stages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
    return;
  }

  const auto sync = [] { ptx::named_barrier(kMultiplierBarrier, 32 * kWarps); };
  place_tokens<kTokens>(step,
                        TokenPlace{.x = x,
                                   .k = problem.k,
                                   .padded_k = padded_k,
                                   .thread = static_cast<int>(threadIdx.x),
                                   .threads = 32 * kWarps},
                        shared.sums[0][0], sync);
  sync();

  const int g = lane / 4, q = lane % 4;
  const uint32_t magic = decode_magic();
  const int64_t y_stride = problem.y_stride > 0 ? problem.y_stride : problem.n;
  int stage = 0, turn = 0;
  uint32_t parity = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sums[4] = {0, 0, 0, 0};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      ptx::barrier_wait(ptx::shared_address(&shared.full[stage]), parity);
      const int block = chunk * kWarps + warp;
      if (block < blocks) {
        const uint8_t* const at = ring + stage * kChunkBytes + warp * kBlockBytes;
        const uint4 low = *reinterpret_cast<const uint4*>(at + lane * 16);
        const uint4 high = *reinterpret_cast<const uint4*>(at + 512 + lane * 16);
        const __half* const scales = reinterpret_cast<const __half*>(at + kCodeBytes);
        float scale[2 * kScales];  // of rows g and g + 8
#pragma unroll
        for (int i = 0; i < 2 * kScales; ++i) scale[i] = __half2float(scales[g + 8 * i]);
        ptx::barrier_arrive(ptx::shared_address(&shared.empty[stage]));
        const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        uint4 b[4];
#pragma unroll
        for (int v = 0; v < 4; ++v) b[v] = {0, 0, 0, 0};
        if (g < kTokens) {
          const __half* const from = x + g * padded_k + block * kColumns + 8 * q;
#pragma unroll
          for (int v = 0; v < 4; ++v) b[v] = *reinterpret_cast<const uint4*>(from + 32 * v);
        }
        // Two chains of products, of 64 columns each: one alone would wait for itself.
        float left[4] = {0, 0, 0, 0}, right[4] = {0, 0, 0, 0};
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          uint32_t a[4];
          decode_word(words[2 * v], magic, a);
          ptx::mma_16x8x16(left, a, b[v].x, b[v].y);
          decode_word(words[2 * v + 4], magic, a);
          ptx::mma_16x8x16(right, a, b[v + 2].x, b[v + 2].y);
          decode_word(words[2 * v + 1], magic, a);
          ptx::mma_16x8x16(left, a, b[v].z, b[v].w);
          decode_word(words[2 * v + 5], magic, a);
          ptx::mma_16x8x16(right, a, b[v + 2].z, b[v + 2].w);
        }
        if constexpr (kScales == 1) {
          sums[0] += (left[0] + right[0]) * scale[0];
          sums[1] += (left[1] + right[1]) * scale[0];
          sums[2] += (left[2] + right[2]) * scale[1];
          sums[3] += (left[3] + right[3]) * scale[1];
        } else {
          sums[0] += left[0] * scale[0] + right[0] * scale[2];
          sums[1] += left[1] * scale[0] + right[1] * scale[2];
          sums[2] += left[2] * scale[1] + right[2] * scale[3];
          sums[3] += left[3] * scale[1] + right[3] * scale[3];
        }
      } else {
        ptx::barrier_arrive(ptx::shared_address(&shared.empty[stage]));
      }
      if (++stage == stages) {
        stage = 0;
        parity ^= 1;
      }
    }

    // Two buffers in turn: a warp can be at most one tile ahead of the slowest reader.
    float* const mine = shared.sums[turn][warp];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 2 * q + i % 2, row = g + 8 * (i / 2);
      if (token < kTokens) mine[token * kBlockRows + row] = sums[i];
    }
    ptx::named_barrier(kMultiplierBarrier, 32 * kWarps);
    if (threadIdx.x < kTokens * kBlockRows) {
      const int token = threadIdx.x / kBlockRows,
                row = tile * static_cast<int>(kBlockRows) + threadIdx.x % kBlockRows;
      float total = problem.bias != nullptr && row < problem.n ? problem.bias[row] : 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += shared.sums[turn][w][threadIdx.x];
      if (row < problem.n) problem.y[token * y_stride + row] = __float2half_rn(total);
    }
    turn ^= 1;
  }
}

template <int kTokens, int kScales, typename Step>
cudaError_t launch(const DecodeProblem& problem, const Step& step, const DecodePlan& plan,
                   int multiprocessors, cudaStream_t stream) {
  const size_t bytes = decode_shared_bytes(problem, plan);
  const auto kernel = decode_kernel<kTokens, kScales, Step>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
      error != cudaSuccess) {
    return error;
  }
  const int tiles = (problem.n + kBlockRows - 1) / kBlockRows;
  return cuda::DependentLaunch({.grid = dim3(min(tiles, multiprocessors * plan.blocks_per_multiprocessor)),
                                .block = dim3(kThreads),
                                .shared_bytes = bytes},
                               stream)
      .run(kernel, problem, step, plan.stages);
}

template <int kScales>
cudaError_t launch_for_tokens(const DecodeProblem& problem, const DecodePlan& plan, int multiprocessors,
                              cudaStream_t stream) {
  const HalvesStep step = {problem.x};
  switch (problem.tokens) {
    case 1:
      return launch<1, kScales>(problem, step, plan, multiprocessors, stream);
    case 2:
      return launch<2, kScales>(problem, step, plan, multiprocessors, stream);
    case 3:
      return launch<3, kScales>(problem, step, plan, multiprocessors, stream);
    case 4:
      return launch<4, kScales>(problem, step, plan, multiprocessors, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

bool valid(const DecodeProblem& problem, const DecodePlan& plan) {
  return plan.stages >= kMinimumStages && plan.stages <= kMaximumStages && problem.k % 8 == 0;
}

}  // namespace

size_t decode_shared_bytes(const DecodeProblem& problem, const DecodePlan& plan) {
  const DecodeShape shape = {problem.n, problem.k, problem.scales_per_block};
  return static_cast<size_t>(plan.stages * kChunkBlocks * shape.block_bytes() +
                             problem.tokens * shape.blocks() * kBlockColumns *
                                 static_cast<int64_t>(sizeof(__half)));
}

cudaError_t launch_decode(const DecodeProblem& problem, const DecodePlan& plan, int multiprocessors,
                          cudaStream_t stream) {
  if (!valid(problem, plan)) return cudaErrorInvalidValue;
  return problem.scales_per_block == 1 ? launch_for_tokens<1>(problem, plan, multiprocessors, stream)
                                       : launch_for_tokens<2>(problem, plan, multiprocessors, stream);
}

bool decode_takes(const cuda::InputStep& step, int k) {
  return !std::holds_alternative<cuda::NormStep>(step) || k <= kMaximumNormColumns;
}

cudaError_t launch_decode_from(const cuda::InputStep& step, const DecodeProblem& problem,
                               const DecodePlan& plan, int multiprocessors, cudaStream_t stream) {
  if (!valid(problem, plan) || problem.tokens != 1 || !decode_takes(step, problem.k))
    return cudaErrorInvalidValue;
  return std::visit(
      [&](const auto& one) {
        return problem.scales_per_block == 1 ? launch<1, 1>(problem, one, plan, multiprocessors, stream)
                                             : launch<1, 2>(problem, one, plan, multiprocessors, stream);
      },
      step);
}

}  // namespace nibble::group_int_cuda

// A persistent kernel per product. A producer warp streams the block's weights, chunk after chunk, into a
// ring in shared memory; eight warps multiply, each its own group of 128 columns of a chunk, and add up at
// the end of a tile of 16 rows. The stream begins before the previous kernel has ended, because weights
// depend on nothing.
#include "backend/cuda/ptx.cuh"
#include "formats/group_int/cuda/decode.h"
#include "formats/group_int/cuda/decode_shape.h"

namespace nibble::group_int_cuda {
namespace {

constexpr int kWarps = kChunkGroups;
constexpr int kThreads = 32 * (kWarps + 1);
constexpr int kChunkBytes = kChunkGroups * (kCodeBytes + kScaleBytes);
constexpr int kMaximumStages = 24;
constexpr int kMultiplierBarrier = 1;

struct Shared {
  uint64_t full[kMaximumStages], empty[kMaximumStages];
  float sums[2][kWarps][kRows * kMaximumDecodeTokens];
};

// Four times two weights u - 8 from eight codes; see decode_layout.h for which.
__device__ inline void decode_word(uint32_t word, uint32_t (&a)[4]) {
  constexpr uint32_t kMagic = 0x64006400;  // F16 1024 + what is in its lowest bits
  const uint32_t upper = word >> 8;
  const __half2 minus_1032 = __float2half2_rn(-1032.0f), minus_72 = __float2half2_rn(-72.0f);
  const __half2 sixteenth = __float2half2_rn(0.0625f);
  const auto low = [&](uint32_t bits) {
    const uint32_t h = (bits & 0x000F000F) | kMagic;
    const __half2 value = __hadd2(reinterpret_cast<const __half2&>(h), minus_1032);
    return reinterpret_cast<const uint32_t&>(value);
  };
  const auto high = [&](uint32_t bits) {  // 1024 + 16 u
    const uint32_t h = (bits & 0x00F000F0) | kMagic;
    const __half2 value = __hfma2(reinterpret_cast<const __half2&>(h), sixteenth, minus_72);
    return reinterpret_cast<const uint32_t&>(value);
  };
  a[0] = low(word);
  a[1] = high(word);
  a[2] = low(upper);
  a[3] = high(upper);
}

template <int kTokens>
__global__ void __launch_bounds__(kThreads) decode_kernel(DecodeProblem problem, int stages) {
  extern __shared__ __align__(128) uint8_t dynamic[];
  uint8_t* const ring = dynamic;
  const int groups = (problem.k + kGroup - 1) / kGroup, padded_k = groups * kGroup;
  __half* const x = reinterpret_cast<__half*>(ring + stages * kChunkBytes);  // [kTokens, padded_k]
  __shared__ Shared shared;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tiles = (problem.n + kRows - 1) / kRows;
  const int chunks = (groups + kChunkGroups - 1) / kChunkGroups;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      ptx::barrier_init(&shared.full[i], 1);
      ptx::barrier_init(&shared.empty[i], kWarps);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  ptx::launch_dependents();

  if (warp == kWarps) {
    if (lane != 0) return;
    const uint64_t policy = ptx::evict_first_policy();
    const int64_t tile_bytes = int64_t{groups} * (kCodeBytes + kScaleBytes);
    int stage = 0;
    uint32_t parity = 1;  // the first round finds every stage empty
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const uint8_t* from = problem.weights + tile * tile_bytes;
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const int count =
            min(static_cast<int>(kChunkGroups), groups - chunk * static_cast<int>(kChunkGroups));
        const uint32_t bytes = count * (kCodeBytes + kScaleBytes);
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

  ptx::wait_for_previous_kernel();
  for (int token = 0; token < kTokens; ++token) {
    for (int i = threadIdx.x * 8; i < padded_k; i += 32 * kWarps * 8) {
      const uint4 zero = {0, 0, 0, 0};
      const bool inside = i < problem.k;
      *reinterpret_cast<uint4*>(x + token * padded_k + i) =
          inside ? *reinterpret_cast<const uint4*>(problem.x + int64_t{token} * problem.k + i) : zero;
    }
  }
  ptx::named_barrier(kMultiplierBarrier, 32 * kWarps);

  const int g = lane / 4, q = lane % 4;
  int stage = 0, turn = 0;
  uint32_t parity = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sums[4] = {0, 0, 0, 0};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int count = min(static_cast<int>(kChunkGroups), groups - chunk * static_cast<int>(kChunkGroups));
      ptx::barrier_wait(ptx::shared_address(&shared.full[stage]), parity);
      if (warp < count) {
        const uint8_t* const codes = ring + stage * kChunkBytes + warp * kCodeBytes + lane * 16;
        const uint4 low = *reinterpret_cast<const uint4*>(codes);
        const uint4 high = *reinterpret_cast<const uint4*>(codes + 512);
        const __half* const scales = reinterpret_cast<const __half*>(ring + stage * kChunkBytes +
                                                                     count * kCodeBytes + warp * kScaleBytes);
        const float scale = __half2float(scales[g]), scale_8 = __half2float(scales[g + 8]);
        const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        uint4 b[4];
#pragma unroll
        for (int v = 0; v < 4; ++v) b[v] = {0, 0, 0, 0};
        if (g < kTokens) {
          const __half* from =
              x + g * padded_k + (chunk * static_cast<int>(kChunkGroups) + warp) * kGroup + 8 * q;
#pragma unroll
          for (int v = 0; v < 4; ++v) b[v] = *reinterpret_cast<const uint4*>(from + 32 * v);
        }
        // Two chains of products: one alone would wait for itself.
        float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          uint32_t a[4];
          decode_word(words[2 * v], a);
          ptx::mma_16x8x16(even, a, b[v].x, b[v].y);
          decode_word(words[2 * v + 1], a);
          ptx::mma_16x8x16(odd, a, b[v].z, b[v].w);
        }
        sums[0] += (even[0] + odd[0]) * scale;
        sums[1] += (even[1] + odd[1]) * scale;
        sums[2] += (even[2] + odd[2]) * scale_8;
        sums[3] += (even[3] + odd[3]) * scale_8;
      }
      __syncwarp();
      if (lane == 0) ptx::barrier_arrive(ptx::shared_address(&shared.empty[stage]));
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
      if (token < kTokens) mine[token * kRows + row] = sums[i];
    }
    ptx::named_barrier(kMultiplierBarrier, 32 * kWarps);
    if (threadIdx.x < kTokens * kRows) {
      const int token = threadIdx.x / kRows, row = tile * static_cast<int>(kRows) + threadIdx.x % kRows;
      float total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += shared.sums[turn][w][threadIdx.x];
      if (row < problem.n) problem.y[int64_t{token} * problem.n + row] = __float2half_rn(total);
    }
    turn ^= 1;
  }
}

template <int kTokens>
cudaError_t launch(const DecodeProblem& problem, const DecodePlan& plan, int multiprocessors,
                   cudaStream_t stream) {
  const int groups = (problem.k + kGroup - 1) / kGroup;
  const size_t bytes =
      static_cast<size_t>(plan.stages) * kChunkBytes + sizeof(__half) * kTokens * groups * kGroup;
  const auto kernel = decode_kernel<kTokens>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
      error != cudaSuccess) {
    return error;
  }
  const int tiles = (problem.n + kRows - 1) / kRows;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(min(tiles, multiprocessors * plan.blocks_per_multiprocessor));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, problem, plan.stages);
}

}  // namespace

cudaError_t launch_decode(const DecodeProblem& problem, const DecodePlan& plan, int multiprocessors,
                          cudaStream_t stream) {
  if (plan.stages < 1 || plan.stages > kMaximumStages || problem.k % 8 != 0) return cudaErrorInvalidValue;
  switch (problem.tokens) {
    case 1:
      return launch<1>(problem, plan, multiprocessors, stream);
    case 2:
      return launch<2>(problem, plan, multiprocessors, stream);
    case 3:
      return launch<3>(problem, plan, multiprocessors, stream);
    case 4:
      return launch<4>(problem, plan, multiprocessors, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace nibble::group_int_cuda

// A persistent kernel. One thread keeps a ring of tiles filled through the copy engine; two warpgroups
// multiply 64 tokens each by 256 outputs: all integer columns as u8 x s8 in INT32, then, with the sums turned
// into floats where they lie, the outlier columns in FP16 on top. Nothing but the FP16 result goes back to
// memory.
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/wgmma.cuh"
#include "formats/quik/cuda/kernels.h"

namespace nibble::quik_cuda {
namespace {

constexpr int kStages = 4, kMultipliers = 2;
constexpr int kThreads = 128 * kMultipliers + 32;  // nine warps
constexpr int kTokenBytes = kTileTokens * kTileBytes, kOutputBytes = kTileOutputs * kTileBytes;
constexpr int kStageBytes = kTokenBytes + kOutputBytes;
constexpr int kSharedBytes = kStages * kStageBytes + 1024;  // the ring starts at a multiple of 1024
constexpr int kColumnsBarrier = 1;
static_assert(kTileOutputs == 128 * kMultipliers);
constexpr int kRasterTokens = 8;  // tiles of tokens that neighbours in time share weights for

struct Tile {
  int token, output;  // of its first element
};

// Tiles in an order whose neighbours share operands in the L2.
__device__ inline Tile tile_at(int index, int token_tiles, int output_tiles) {
  const int group = index / (kRasterTokens * output_tiles), first = group * kRasterTokens;
  const int height = min(kRasterTokens, token_tiles - first), place = index - first * output_tiles;
  return {(first + place % height) * kTileTokens, place / height * kTileOutputs};
}

// Addresses in shared memory.
struct Ring {
  uint32_t bytes, full, empty;
  int stage = 0;
  uint32_t parity;
  __device__ uint32_t tokens() const { return bytes + stage * kStageBytes; }
  __device__ uint32_t outputs() const { return tokens() + kTokenBytes; }
  __device__ uint32_t filled() const { return full + 8 * stage; }
  __device__ uint32_t emptied(int which) const { return empty + 8 * which; }
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ void produce(const TileMaps& maps, Ring ring, int integer_blocks, int half_blocks, int token_tiles,
                        int output_tiles) {
  for (int index = blockIdx.x; index < token_tiles * output_tiles; index += gridDim.x) {
    const Tile tile = tile_at(index, token_tiles, output_tiles);
    for (int block = 0; block < integer_blocks + half_blocks; ++block) {
      ptx::barrier_wait(ring.emptied(ring.stage), ring.parity);
      ptx::barrier_arrive_expecting(ring.filled(), kStageBytes);
      const bool integers = block < integer_blocks;
      const int column = integers ? block * kTileBytes : (block - integer_blocks) * (kTileBytes / 2);
      ptx::tile_copy(ring.tokens(), integers ? &maps.codes : &maps.outliers, column, tile.token,
                     ring.filled());
      ptx::tile_copy(ring.outputs(), integers ? &maps.weights : &maps.outlier_weights, column, tile.output,
                     ring.filled());
      ring.advance();
    }
  }
}

// A lane q of four holds column pairs 2q, 2q + 1 of four groups of 8 columns; afterwards it holds all 8
// columns of the q-th group.
__device__ inline void gather_columns(uint32_t (&v)[4], int q) {
  const bool odd = q & 1, upper = q & 2;
  const uint32_t first = __shfl_xor_sync(0xffffffffu, odd ? v[0] : v[1], 1);
  const uint32_t second = __shfl_xor_sync(0xffffffffu, odd ? v[2] : v[3], 1);
  (odd ? v[0] : v[1]) = first;
  (odd ? v[2] : v[3]) = second;
  const uint32_t third = __shfl_xor_sync(0xffffffffu, upper ? v[0] : v[2], 2);
  const uint32_t fourth = __shfl_xor_sync(0xffffffffu, upper ? v[1] : v[3], 2);
  if (upper) {
    v[0] = third;
    v[1] = fourth;
  } else {
    v[2] = third;
    v[3] = fourth;
  }
}

__device__ inline void store_rows(const int32_t (&d)[128], __half* y, int n, int tokens, int row, int column,
                                  int q) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = row + 8 * half;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint32_t v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const __half2 pair = __floats2half2_rn(__int_as_float(d[4 * (4 * i + j) + 2 * half]),
                                               __int_as_float(d[4 * (4 * i + j) + 2 * half + 1]));
        v[j] = reinterpret_cast<const uint32_t&>(pair);
      }
      gather_columns(v, q);
      const int first = column + 8 * (4 * i + q);
      if (token >= tokens || first >= n) continue;
      __half* const to = y + int64_t{token} * n + first;
      if (n % 8 == 0) {
        *reinterpret_cast<uint4*>(to) = make_uint4(v[0], v[1], v[2], v[3]);
      } else {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const auto bits = static_cast<unsigned short>(v[e / 2] >> (16 * (e % 2)));
          if (first + e < n) to[e] = __ushort_as_half(bits);
        }
      }
    }
  }
}

template <bool kWriteAccumulators>
__global__ void __launch_bounds__(kThreads, 1)
    product_kernel(const __grid_constant__ TileMaps maps, const Weights weights,
                   const Activations activations, __half* y, int32_t* accumulators) {
  extern __shared__ uint8_t dynamic[];
  __shared__ uint64_t full[kStages], empty[kStages];
  __shared__ __align__(16) float2 columns[2][kTileOutputs];  // scale, and the bits of the sum of codes
  const uint32_t bytes = (ptx::shared_address(dynamic) + 1023) / 1024 * 1024;
  const int integer_blocks = (weights.k_int + kTileBytes - 1) / kTileBytes;
  const int half_blocks = (weights.outliers + kTileBytes / 2 - 1) / (kTileBytes / 2);
  const int token_tiles = (activations.tokens + kTileTokens - 1) / kTileTokens;
  const int output_tiles = (weights.n + kTileOutputs - 1) / kTileOutputs;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      ptx::barrier_init(&full[i], 1);
      ptx::barrier_init(&empty[i], kMultipliers);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();

  const int group = threadIdx.x / 128;
  if (group == kMultipliers) {
    if (threadIdx.x % 128 == 0) {
      produce(maps, {bytes, ptx::shared_address(full), ptx::shared_address(empty), 0, 1}, integer_blocks,
              half_blocks, token_tiles, output_tiles);
    }
  } else {
    Ring ring = {bytes, ptx::shared_address(full), ptx::shared_address(empty), 0, 0};
    int turn = 0;
    const int thread = threadIdx.x % 128, lane = thread % 32, g = lane / 4, q = lane % 4;
    const auto release = [&](int stage) {
      if (thread == 0) ptx::barrier_arrive(ring.emptied(stage));
    };
    for (int index = blockIdx.x; index < token_tiles * output_tiles; index += gridDim.x) {
      const Tile tile = tile_at(index, token_tiles, output_tiles);
      {
        // Two buffers in turn: the other warpgroup may still be reading the previous tile's.
        const int output = tile.output + static_cast<int>(threadIdx.x);
        const bool inside = output < weights.n;
        columns[turn][threadIdx.x] = {inside ? weights.scales[output] : 0.0f,
                                      __int_as_float(inside ? weights.code_sums[output] : 0)};
      }
      int32_t d[128];
#pragma unroll
      for (int i = 0; i < 128; ++i) d[i] = 0;
      ptx::fence_sums(d);
      int previous = -1;
      for (int block = 0; block < integer_blocks; ++block) {
        ptx::barrier_wait(ring.filled(), ring.parity);
        const uint64_t a = ptx::operand_128b(ring.tokens() + group * 64 * kTileBytes);
        const uint64_t b = ptx::operand_128b(ring.outputs());
        ptx::warpgroup_arrive();
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          ptx::wgmma_64x256x32_u8s8(d, a + 2 * step, b + 2 * step);
        }
        ptx::warpgroup_commit();
        // The products before these have left their tiles.
        ptx::warpgroup_wait<1>();
        if (previous >= 0) release(previous);
        previous = ring.stage;
        ring.advance();
      }
      ptx::warpgroup_wait<0>();
      ptx::fence_sums(d);
      if (previous >= 0) release(previous);

      const int row = tile.token + group * 64 + thread / 32 * 16 + g;
      if constexpr (kWriteAccumulators) {
#pragma unroll
        for (int i = 0; i < 128; ++i) {
          const int token = row + (i % 4 >= 2 ? 8 : 0), output = tile.output + i / 4 * 8 + 2 * q + i % 2;
          if (token < activations.tokens && output < weights.n) {
            accumulators[int64_t{token} * weights.n + output] = d[i];
          }
        }
      }

      ptx::named_barrier(kColumnsBarrier, 128 * kMultipliers);
      // From here on d holds the bits of floats.
      {
        const bool first_in = row < activations.tokens, second_in = row + 8 < activations.tokens;
        const float s0 = first_in ? activations.scales[row] : 0.0f,
                    s1 = second_in ? activations.scales[row + 8] : 0.0f;
        const int z0 = first_in ? activations.zeros[row] : 0, z1 = second_in ? activations.zeros[row + 8] : 0;
#pragma unroll
        for (int j = 0; j < 32; ++j) {
          const float4 two = *reinterpret_cast<const float4*>(&columns[turn][8 * j + 2 * q]);
          const int sum0 = __float_as_int(two.y), sum1 = __float_as_int(two.w);
          d[4 * j] = __float_as_int(s0 * two.x * static_cast<float>(d[4 * j] - z0 * sum0));
          d[4 * j + 1] = __float_as_int(s0 * two.z * static_cast<float>(d[4 * j + 1] - z0 * sum1));
          d[4 * j + 2] = __float_as_int(s1 * two.x * static_cast<float>(d[4 * j + 2] - z1 * sum0));
          d[4 * j + 3] = __float_as_int(s1 * two.z * static_cast<float>(d[4 * j + 3] - z1 * sum1));
        }
      }
      turn ^= 1;
      ptx::fence_sums(d);
      for (int block = 0; block < half_blocks; ++block) {
        ptx::barrier_wait(ring.filled(), ring.parity);
        const uint64_t a = ptx::operand_128b(ring.tokens() + group * 64 * kTileBytes);
        const uint64_t b = ptx::operand_128b(ring.outputs());
        ptx::warpgroup_arrive();
#pragma unroll
        for (int step = 0; step < 4; ++step) ptx::wgmma_64x256x16_f16(d, a + 2 * step, b + 2 * step);
        ptx::warpgroup_commit();
        ptx::warpgroup_wait<0>();
        release(ring.stage);
        ring.advance();
      }
      ptx::fence_sums(d);
      if (weights.bias != nullptr) {
#pragma unroll
        for (int i = 0; i < 128; ++i) {
          const int output = tile.output + i / 4 * 8 + 2 * q + i % 2;
          if (output < weights.n) d[i] = __float_as_int(__int_as_float(d[i]) + __ldg(weights.bias + output));
        }
      }
      store_rows(d, y, weights.n, activations.tokens, row, tile.output, q);
    }
  }
}

}  // namespace

cudaError_t launch_product(const TileMaps& maps, const Weights& weights, const Activations& activations,
                           __half* y, int32_t* accumulators, int multiprocessors, cudaStream_t stream) {
  const auto kernel = accumulators != nullptr ? product_kernel<true> : product_kernel<false>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
      error != cudaSuccess) {
    return error;
  }
  const int tiles =
      (activations.tokens + kTileTokens - 1) / kTileTokens * ((weights.n + kTileOutputs - 1) / kTileOutputs);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(min(tiles, multiprocessors));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, maps, weights, activations, y, accumulators);
}

}  // namespace nibble::quik_cuda

// Bound by the weights' bytes: each warp multiplies 16 rows by up to 64 tokens on mma.m16n8k16 and reads its
// rows straight from global memory, 16 bytes a lane, the first of them before the previous kernel has ended.
// A product may add its terms in any order, so the 16 columns that a lane loads are the ones it multiplies:
//
//   lane 4 g + q, columns 64 b + 16 q + {0..15} of rows g and g + 8, in four products s of columns 4 s +
//   {0..3}: operand a has bytes 4 s, 4 s + 1 and 4 s + 2, 4 s + 3 of both rows as halves 1024 + u minus 1152;
//   operand b the same columns of token g.
#include <algorithm>

#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/device.h"
#include "backend/cuda/ptx.cuh"
#include "formats/group_int/cuda/rows8.h"

namespace nibble::group_int_cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps, kWarpRows = 16, kStepColumns = 64, kTileTokens = 8;

// A lane's 16 columns of both rows.
struct Codes {
  uint4 low, high;
};

__device__ inline uint4 load_once(const uint8_t* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// Two of the bytes of `word`, as u - 128 in FP16. kSelector picks them and the constant's bytes.
template <uint32_t kSelector>
__device__ inline uint32_t to_halves(uint32_t word) {
  const uint32_t biased = __byte_perm(word, 0x64646464, kSelector);
  const __half2 value = __hsub2(reinterpret_cast<const __half2&>(biased), __float2half2_rn(1152.0f));
  return reinterpret_cast<const uint32_t&>(value);
}

__device__ inline uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// kAhead steps of weights on their way per warp.
template <int kTiles, int kAhead>
__global__ void __launch_bounds__(kThreads)
    rows8_kernel(const Rows8 weights, const __half* x, int tokens, float* y) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int first_row = (blockIdx.x * kWarps + threadIdx.x / 32) * kWarpRows;
  const int k = weights.k, steps = (k + kStepColumns - 1) / kStepColumns;
  const auto row_codes = [&](int row) {
    return weights.codes + int64_t{min(row, weights.n - 1)} * k + 16 * q;
  };
  const uint8_t* const low = row_codes(first_row + g);
  const uint8_t* const high = row_codes(first_row + g + 8);
  const auto load = [&](int step) {
    const int column = step * kStepColumns;
    if (column + 16 * q >= k) return Codes{};
    return Codes{load_once(low + column), load_once(high + column)};
  };
  Codes ring[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) ring[i] = load(i);
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();

  float sums[kTiles][4] = {};
  for (int first = 0; first < steps; first += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int column = (first + i) * kStepColumns + 16 * q;
      const Codes now = ring[i];
      ring[i] = load(first + i + kAhead);
      uint32_t a[4][4];
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const uint32_t low_word = word_of(now.low, s), high_word = word_of(now.high, s);
        a[s][0] = to_halves<0x4140>(low_word);
        a[s][1] = to_halves<0x4140>(high_word);
        a[s][2] = to_halves<0x4342>(low_word);
        a[s][3] = to_halves<0x4342>(high_word);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        // Zeros beyond the row's end, where the codes are no numbers of it either.
        uint4 b[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        const int token = t * kTileTokens + g;
        if (column < k && token < tokens) {
          const auto* const from = reinterpret_cast<const uint4*>(x + int64_t{token} * k + column);
          b[0] = from[0];
          b[1] = from[1];
        }
#pragma unroll
        for (int s = 0; s < 4; ++s)
          ptx::mma_16x8x16(sums[t], a[s], word_of(b[s / 2], s % 2 * 2), word_of(b[s / 2], s % 2 * 2 + 1));
      }
    }
  }

  float scales[2] = {0, 0};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + g + 8 * half;
    if (row < weights.n) scales[half] = __ldg(weights.scales + row);
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = t * kTileTokens + 2 * q + i % 2, row = first_row + g + i / 2 * 8;
      if (token < tokens && row < weights.n) y[int64_t{token} * weights.n + row] = sums[t][i] * scales[i / 2];
    }
  }
}

__global__ void embed_rows8_kernel(const Rows8 weights, const int32_t* ids, float* out) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const int64_t row = ids[blockIdx.x];
  const float scale = weights.scales[row];
  const auto* const from = reinterpret_cast<const uint32_t*>(weights.codes + row * weights.k);
  auto* const to = reinterpret_cast<float4*>(out + int64_t{blockIdx.x} * weights.k);
  for (int i = threadIdx.x; i < weights.k / 4; i += blockDim.x) {
    const uint32_t word = from[i];
    const auto value = [&](int e) {
      return static_cast<float>(static_cast<int>(word >> (8 * e) & 0xFF) - 128) * scale;
    };
    to[i] = {value(0), value(1), value(2), value(3)};
  }
}

cuda::DependentLaunch launch_of(int blocks, int threads, cudaStream_t stream) {
  return {{.grid = dim3(static_cast<unsigned>(blocks)),
           .block = dim3(static_cast<unsigned>(threads)),
           .early = cuda::on_hopper()},
          stream};
}

}  // namespace

cudaError_t launch_rows8(const Rows8& weights, const __half* x, int tokens, float* y, cudaStream_t stream) {
  if (weights.k % 16 != 0 || weights.n < 1 || tokens < 1) return cudaErrorInvalidValue;
  const int rows = kWarps * kWarpRows, blocks = (weights.n + rows - 1) / rows;
  constexpr int kMostTiles = 8, kMostTokens = kMostTiles * kTileTokens;
  for (int first = 0; first < tokens; first += kMostTokens) {
    const int now = std::min(kMostTokens, tokens - first);
    const __half* const from = x + int64_t{first} * weights.k;
    float* const to = y + int64_t{first} * weights.n;
    const auto kernel = now <= kTileTokens ? rows8_kernel<1, 4> : rows8_kernel<kMostTiles, 2>;
    if (const cudaError_t error = launch_of(blocks, kThreads, stream).run(kernel, weights, from, now, to);
        error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

cudaError_t launch_embed_rows8(const Rows8& weights, const int32_t* ids, int count, float* out,
                               cudaStream_t stream) {
  if (weights.k % 16 != 0 || count < 1) return cudaErrorInvalidValue;
  const int threads = std::min(256, (weights.k / 4 + 31) / 32 * 32);
  return launch_of(count, threads, stream).run(embed_rows8_kernel, weights, ids, out);
}

}  // namespace nibble::group_int_cuda

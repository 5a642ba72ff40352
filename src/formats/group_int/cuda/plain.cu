// A block of threads per tile of 16 rows. Its warps take blocks of 128 columns in turn, load codes and tokens
// as operands straight from global memory, the next codes while they multiply, and add up in shared memory.
// What decode.cu does better needs Hopper's copy engine.
#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "formats/group_int/cuda/decode_shape.h"
#include "formats/group_int/cuda/operands.cuh"
#include "formats/group_int/cuda/plain.h"

namespace nibble::group_int_cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kTileTokens = 8;
constexpr int kColumns = kBlockColumns, kRows = kBlockRows, kProducts = kColumns / 16;

constexpr const char* kWhat = "multiplying 4-bit weights";

struct Codes {
  uint4 low, high;
};

template <int kScales, int kTokenTiles>
__global__ void __launch_bounds__(kThreads) plain_decode_kernel(DecodeProblem problem) {
  constexpr int kBlockBytes = kCodeBytes + kScales * kScaleBytes;
  __shared__ float partial[kWarps][kTokenTiles * kTileTokens * kRows];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int blocks = (problem.k + kColumns - 1) / kColumns, tile = blockIdx.x;
  const uint8_t* const weights = problem.weights + int64_t{tile} * blocks * kBlockBytes;
  const auto load_codes = [&](int block) -> Codes {
    if (block >= blocks) return {};
    const auto* const at = reinterpret_cast<const uint4*>(weights + int64_t{block} * kBlockBytes) + lane;
    return {__ldcs(at), __ldcs(at + 32)};
  };
  ptx::launch_dependents();
  Codes next = load_codes(warp);  // weights depend on no kernel
  ptx::wait_for_previous_kernel();

  const uint32_t magic = decode_magic();
  float sums[kTokenTiles][4] = {};
  for (int block = warp; block < blocks; block += kWarps) {
    const uint32_t words[kProducts] = {next.low.x,  next.low.y,  next.low.z,  next.low.w,
                                       next.high.x, next.high.y, next.high.z, next.high.w};
    next = load_codes(block + kWarps);
    const auto* const scales =
        reinterpret_cast<const __half*>(weights + int64_t{block} * kBlockBytes + kCodeBytes) + g;
    float part[2][kTokenTiles][4] = {};  // of 64 columns each
#pragma unroll
    for (int m = 0; m < kProducts; ++m) {
      uint32_t a[4];
      decode_word(words[m], magic, a);
      const int column = block * kColumns + 16 * m + 2 * q;
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        const int token = kTileTokens * t + g;
        const __half* const from = problem.x + int64_t{token} * problem.k + column;
        const auto pair = [&](int offset) -> uint32_t {
          const bool there = token < problem.tokens && column + offset < problem.k;
          return there ? __ldg(reinterpret_cast<const uint32_t*>(from + offset)) : 0;
        };
        ptx::mma_16x8x16(part[m / 4][t], a, pair(0), pair(8));
      }
    }
    const float first[2] = {__half2float(scales[0]), __half2float(scales[8])};
    const float second[2] = {kScales == 2 ? __half2float(scales[16]) : first[0],
                             kScales == 2 ? __half2float(scales[24]) : first[1]};
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[t][e] += part[0][t][e] * first[e / 2] + part[1][t][e] * second[e / 2];
    }
  }

#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      partial[warp][(kTileTokens * t + 2 * q + e % 2) * kRows + g + 8 * (e / 2)] = sums[t][e];
  }
  __syncthreads();
  const int64_t y_stride = problem.y_stride > 0 ? problem.y_stride : problem.n;
  for (int i = threadIdx.x; i < kTokenTiles * kTileTokens * kRows; i += kThreads) {
    const int token = i / kRows, row = tile * kRows + i % kRows;
    if (token >= problem.tokens || row >= problem.n) continue;
    float total = problem.bias != nullptr ? problem.bias[row] : 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += partial[w][i];
    problem.y[token * y_stride + row] = __float2half_rn(total);
  }
}

template <int kScales>
void launch(const DecodeProblem& problem, cudaStream_t stream) {
  const auto kernel = problem.tokens <= kTileTokens       ? plain_decode_kernel<kScales, 1>
                      : problem.tokens <= 2 * kTileTokens ? plain_decode_kernel<kScales, 2>
                                                          : plain_decode_kernel<kScales, 4>;
  cuda::launch_dependent(kernel, dim3((problem.n + kRows - 1) / kRows), dim3(kThreads), 0, stream, kWhat,
                         problem);
}

}  // namespace

void launch_plain(const DecodeProblem& problem, cudaStream_t stream) {
  if (problem.tokens < 1 || problem.tokens > kMaximumPlainTokens || problem.k % 8 != 0)
    cuda::check(cudaErrorInvalidValue, kWhat);
  if (problem.scales_per_block == 1) {
    launch<1>(problem, stream);
  } else {
    launch<2>(problem, stream);
  }
}

}  // namespace nibble::group_int_cuda

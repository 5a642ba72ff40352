#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/device.h"
#include "backend/cuda/ptx.cuh"
#include "formats/group_int/cuda/decode_shape.h"
#include "formats/group_int/cuda/expand.h"
#include "formats/group_int/cuda/operands.cuh"

namespace nibble::group_int_cuda {
namespace {

constexpr int kWarps = 8, kColumns = kBlockColumns, kRows = kBlockRows;
constexpr int kRowWords = kColumns / 2 + 4;  // of a row in shared memory: no bank conflicts

// A warp turns one block after another around in shared memory, so that whole rows of 256 bytes are written.
template <int kScales>
__global__ void __launch_bounds__(32 * kWarps) expand_kernel(ExpandProblem problem) {
  constexpr int kBlockBytes = kCodeBytes + kScales * kScaleBytes;
  __shared__ __align__(16) uint32_t rows[kWarps][kRows * kRowWords];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int blocks = (problem.k + kColumns - 1) / kColumns;
  const int tiles = (problem.rows + kRows - 1) / kRows;
  const uint8_t* const first = problem.weights + int64_t{problem.first_row / kRows} * blocks * kBlockBytes;
  uint32_t* const mine = rows[warp];
  ptx::launch_dependents();
  const uint32_t magic = decode_magic();
  bool waited = false;
  const int step = gridDim.x * kWarps;
  for (int64_t index = blockIdx.x * kWarps + warp; index < int64_t{tiles} * blocks; index += step) {
    const int tile = static_cast<int>(index / blocks), block = static_cast<int>(index % blocks);
    const uint8_t* const at = first + index * kBlockBytes;
    const uint4 low = __ldcs(reinterpret_cast<const uint4*>(at + lane * 16));
    const uint4 high = __ldcs(reinterpret_cast<const uint4*>(at + 512 + lane * 16));
    const __half* const scales = reinterpret_cast<const __half*>(at + kCodeBytes) + g;
    const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      const int set = kScales == 2 ? m / 4 * 16 : 0;
      uint32_t a[4];
      decode_word(words[m], magic, __half2half2(scales[set]), __half2half2(scales[set + 8]), a);
#pragma unroll
      for (int i = 0; i < 4; ++i) mine[(g + i % 2 * 8) * kRowWords + 8 * m + i / 2 * 4 + q] = a[i];
    }
    __syncwarp();
    if (!waited) ptx::wait_for_previous_kernel();  // which may still read w
    waited = true;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = 2 * i + lane / 16, column = lane % 16 * 8;
      const uint4 values = *reinterpret_cast<const uint4*>(mine + row * kRowWords + column / 2);
      if (tile * kRows + row < problem.rows && block * kColumns + column < problem.k) {
        __half* const to = problem.w + int64_t{tile * kRows + row} * problem.k + block * kColumns + column;
        *reinterpret_cast<uint4*>(to) = values;
      }
    }
    __syncwarp();
  }
}

}  // namespace

cudaError_t launch_expand(const ExpandProblem& problem, int multiprocessors, cudaStream_t stream) {
  if (problem.first_row % kRows != 0 || problem.k % 8 != 0 || problem.rows < 1) return cudaErrorInvalidValue;
  const int64_t blocks =
      int64_t{(problem.rows + kRows - 1) / kRows} * ((problem.k + kColumns - 1) / kColumns);
  const int64_t grid = min((blocks + kWarps - 1) / kWarps, int64_t{multiprocessors} * 6);
  const cuda::DependentLaunch launch(
      {.grid = dim3(static_cast<unsigned>(grid)), .block = dim3(32 * kWarps), .early = cuda::on_hopper()},
      stream);
  return launch.run(problem.scales_per_block == 1 ? expand_kernel<1> : expand_kernel<2>, problem);
}

}  // namespace nibble::group_int_cuda

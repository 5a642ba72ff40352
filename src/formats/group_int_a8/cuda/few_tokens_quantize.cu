// Signed activation codes of few tokens.
#include "formats/group_int_a8/cuda/few_tokens.h"
#include "formats/group_int_a8/cuda/few_tokens_quantize.cuh"

namespace nibble::group_int_a8_cuda {
namespace {

using namespace few_tokens;

template <int kTurns>
__global__ void __launch_bounds__(kThreads)
    quantize_signed_kernel(const __half* x, int k, float activation_scale, uint8_t* codes, float* scales,
                           int32_t* zeros) {
  __shared__ uint32_t of_warps[2][kThreads / 32];
  ptx::launch_dependents();
  ptx::wait_for_previous_kernel();
  const int token = blockIdx.x, stride = (k + 15) / 16 * 16;
  const __half* const row = x + int64_t{token} * k;
  uint4 eights[kTurns];
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    eights[i] = load_eight(row, i * kColumnsPerTurn + static_cast<int>(threadIdx.x) * 8, k);
  }
  uint32_t pair = 0;  // maxima of even and of odd columns
#pragma unroll
  for (const uint4& eight : eights) {
    pair = __vmaxu2(pair, __vmaxu2(__vmaxu2(eight.x & 0x7FFF7FFF, eight.y & 0x7FFF7FFF),
                                   __vmaxu2(eight.z & 0x7FFF7FFF, eight.w & 0x7FFF7FFF)));
  }
  pair = block_maximum(pair, of_warps);
  const uint32_t largest = max(pair & 0xFFFF, pair >> 16);
  const bool finite = largest < kInfinityBits;
  const float scale = activation_scale > 0 ? activation_scale : __fdiv_rn(magnitude(largest), 127.0f);
  const bool empty = !finite || scale == 0;
  const int zero = zeros == nullptr ? 0 : 128;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int column = turn * kColumnsPerTurn + static_cast<int>(threadIdx.x) * 8;
    if (column >= stride) break;
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int code = empty ? 0 : __float2int_rn(__fdiv_rn(half_value(eights[turn], i), scale));
      words[i / 4] |= ((min(max(code, -127), 127) + zero) & 0xFFu) << (8 * (i % 4));
    }
    *reinterpret_cast<uint2*>(codes + int64_t{token} * stride + column) = make_uint2(words[0], words[1]);
  }
  if (threadIdx.x == 0) {
    scales[token] = finite ? scale : __int_as_float(0x7FC00000);
    if (zeros != nullptr) zeros[token] = zero;
  }
}

}  // namespace

cudaError_t launch_quantize_signed(const __half* x, int tokens, int k, float activation_scale, uint8_t* codes,
                                   float* scales, int32_t* zeros, cudaStream_t stream) {
  const cuda::DependentLaunch launch = token_launch(tokens, kThreads, 0, stream);
  return for_turns(k, [&]<int kTurns>() {
    return launch.run(quantize_signed_kernel<kTurns>, x, k, activation_scale, codes, scales, zeros);
  });
}

}  // namespace nibble::group_int_a8_cuda

// Activation codes of a prompt's tokens, in the order of group_product_layout.h: one block per token, which
// holds its row in registers from the maximum to the codes.
#include "formats/group_int_a8/cuda/few_tokens_quantize.cuh"
#include "formats/group_int_a8/cuda/group_product.h"
#include "formats/group_int_a8/cuda/group_product_layout.h"
#include "formats/group_int_a8/cuda/signed_codes.h"

namespace nibble::group_int_a8_cuda {
namespace {

using namespace few_tokens;

// kNarrow: the order of groups of 32 columns.
template <int kTurns, bool kNarrow>
__global__ void __launch_bounds__(kThreads)
    quantize_prompt_kernel(const __half* x, int k, float activation_scale, const PromptActivations out) {
  __shared__ uint32_t of_warps[2][kThreads / 32];
  ptx::launch_dependents();
  ptx::wait_for_previous_kernel();
  const int token = blockIdx.x;
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
  const quik_cuda::CodeRule rule = signed_rule(scale);
  const int zero = out.zeros == nullptr ? 0 : 128;
  const uint32_t offset = static_cast<uint32_t>(zero - kTopActivation);

  // A thread has two words, of columns 4 h to 4 h + 3 of its eight, that belong 16 bytes apart. Neighbours in
  // q swap one, so that each stores 8 bytes.
  constexpr int kNeighbour = kNarrow ? 1 : 2;
  const bool odd = (threadIdx.x & kNeighbour) != 0;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int column = turn * kColumnsPerTurn + static_cast<int>(threadIdx.x) * 8;
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int32_t code = signed_code_plus_127(half_value(eights[turn], i), rule);
      words[i / 4] |= ((static_cast<uint32_t>(code) + offset) & 0xFFu) << (8 * (i % 4));
    }
    if (!finite) words[0] = words[1] = 0x01010101u * static_cast<uint32_t>(zero);
    const uint32_t received = __shfl_xor_sync(0xffffffffu, odd ? words[0] : words[1], kNeighbour);
    const uint2 both = odd ? make_uint2(received, words[1]) : make_uint2(words[0], received);
    const int first = odd ? column - 8 * kNeighbour + 4 : column;  // of the four columns that come first
    static_assert(quik_cuda::code_position(16) == 4 && quik_cuda::code_position(4) == 16 &&
                  narrow_code_position(8) == 4 && narrow_code_position(4) == 16);
    if (column < out.code_stride) {
      const int place = kNarrow ? narrow_code_position(first) : quik_cuda::code_position(first);
      *reinterpret_cast<uint2*>(out.codes + int64_t{token} * out.code_stride + place) = both;
    }
  }
  if (threadIdx.x == 0) {
    out.scales[token] = finite ? scale : __int_as_float(0x7FC00000);
    if (out.zeros != nullptr) out.zeros[token] = zero;
  }
}

}  // namespace

cudaError_t launch_quantize_prompt(const __half* x, int tokens, int k, float activation_scale, int group,
                                   const PromptActivations& out, cudaStream_t stream) {
  if (out.code_stride % quik_cuda::kCodeUnit != 0 || out.code_stride < k) return cudaErrorInvalidValue;
  const TokenLaunch launch(tokens, 0, stream);
  return for_turns(k, [&]<int kTurns>() {
    return cudaLaunchKernelEx(
        &launch.config,
        group == 32 ? quantize_prompt_kernel<kTurns, true> : quantize_prompt_kernel<kTurns, false>, x, k,
        activation_scale, out);
  });
}

}  // namespace nibble::group_int_a8_cuda

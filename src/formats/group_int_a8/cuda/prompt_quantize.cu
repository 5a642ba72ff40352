// Activation codes of a prompt's tokens, in the order of group_product_layout.h: one block per token, which
// holds its row in registers from the maximum to the codes.
#include "formats/group_int_a8/cuda/few_tokens_quantize.cuh"
#include "formats/group_int_a8/cuda/group_product.h"
#include "formats/group_int_a8/cuda/group_product_layout.h"
#include "formats/group_int_a8/cuda/signed_codes.h"

namespace nibble::group_int_a8_cuda {
namespace {

using namespace few_tokens;

constexpr int kMaximumThreads = 512;

// kNarrow: the order of groups of 32 columns. kVectors times 8 columns per thread, several to have enough
// bytes on their way.
template <int kVectors, bool kNarrow>
__global__ void __launch_bounds__(kMaximumThreads)
    quantize_prompt_kernel(const __half* x, int k, float activation_scale, const PromptActivations out) {
  __shared__ uint32_t of_warps[kMaximumThreads / 32];
  const int token = blockIdx.x, threads = static_cast<int>(blockDim.x);
  const int first_column = static_cast<int>(threadIdx.x) * 8;
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const __half* const row = x + int64_t{token} * k;
  uint4 eights[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) eights[i] = load_eight(row, i * threads * 8 + first_column, k);
  uint32_t pair = 0;  // maxima of even and of odd columns
#pragma unroll
  for (const uint4& eight : eights) {
    pair = __vmaxu2(pair, __vmaxu2(__vmaxu2(eight.x & 0x7FFF7FFF, eight.y & 0x7FFF7FFF),
                                   __vmaxu2(eight.z & 0x7FFF7FFF, eight.w & 0x7FFF7FFF)));
  }
  pair = __reduce_max_sync(0xffffffffu, max(pair & 0xFFFF, pair >> 16));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = pair;
  __syncthreads();
  const int warps = threads / 32, lane = threadIdx.x % 32;
  const uint32_t largest = __reduce_max_sync(0xffffffffu, of_warps[min(lane, warps - 1)]);
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
  for (int turn = 0; turn < kVectors; ++turn) {
    const int column = turn * threads * 8 + first_column;
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
  const int vectors = static_cast<int>(out.code_stride / 8);
  int per_thread = 1;
  while (per_thread < 16 &&
         (per_thread < 4 ? vectors > 128 * per_thread : vectors > kMaximumThreads * per_thread))
    per_thread *= 2;
  const int threads = ((vectors + per_thread - 1) / per_thread + 31) / 32 * 32;
  if (threads > kMaximumThreads) return cudaErrorInvalidValue;
  const cuda::DependentLaunch launch = token_launch(tokens, threads, 0, stream);
  const auto start = [&]<int kVectors>() {
    return launch.run(
        group == 32 ? quantize_prompt_kernel<kVectors, true> : quantize_prompt_kernel<kVectors, false>, x, k,
        activation_scale, out);
  };
  switch (per_thread) {
    case 1:
      return start.template operator()<1>();
    case 2:
      return start.template operator()<2>();
    case 4:
      return start.template operator()<4>();
    case 8:
      return start.template operator()<8>();
    default:
      return start.template operator()<16>();
  }
}

}  // namespace nibble::group_int_a8_cuda

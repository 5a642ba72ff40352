#include "backend/cuda/input_rows.cuh"
#include "formats/group_int_a8/cuda/group_product_layout.h"
#include "formats/group_int_a8/cuda/quantize_step.h"
#include "formats/group_int_a8/cuda/signed_codes.h"

namespace nibble::group_int_a8_cuda {
namespace {

using namespace cuda::rows;

struct StepArguments {
  int k, blocks;  // columns, blocks per row
  float activation_scale;
  CodeOrder order;
  PromptActivations out;
};

// The largest of both kinds; a NaN stays.
__device__ inline float2 larger(float2 a, float2 b) {
  float2 both = {0, 0};
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(both.x) : "f"(a.x), "f"(b.x));
  return both;
}

template <int kVectors, typename Step>
__global__ void __launch_bounds__(kMaximumThreads, kVectors == 1 ? 2 : 1)
    quantize_step_kernel(const Step step, const StepArguments a) {
  __shared__ Exchange for_step, for_maximum;
  const Team team(a.blocks, a.k);
  float x[kVectors][8];
  load_row(step, team, for_step, x);
  float2 largest = {0, 0};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int e = 0; e < 8; ++e) largest = larger(largest, {fabsf(x[i][e]), 0});
  }
  largest = over_row(largest, team, for_maximum, larger);
  const bool finite = largest.x <= 3.4028235e38f;
  const float scale = a.activation_scale > 0 ? a.activation_scale : __fdiv_rn(largest.x, 127.0f);
  const FloatSignedRule rule = float_signed_rule(finite ? scale : 0.0f);
  const int zero = a.out.zeros == nullptr ? 0 : 128;
  const uint32_t offset = static_cast<uint32_t>(zero - kTopActivation);
  uint8_t* const row = a.out.codes + team.token * a.out.code_stride;
  const auto store = [&](int column, const uint32_t(&words)[2]) {
    if (a.order == CodeOrder::kColumns) {
      *reinterpret_cast<uint2*>(row + column) = make_uint2(words[0], words[1]);
      return;
    }
    const bool narrow = a.order == CodeOrder::kNarrow;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int place =
          narrow ? narrow_code_position(column + 4 * h) : quik_cuda::code_position(column + 4 * h);
      *reinterpret_cast<uint32_t*>(row + place) = words[h];
    }
  };
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (team.eight(i) >= team.count) continue;
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int32_t code = float_signed_code_plus_127(x[i][e], rule);
      words[e / 4] |= ((static_cast<uint32_t>(code) + offset) & 0xFFu) << (8 * (e % 4));
    }
    if (!finite) words[0] = words[1] = 0x01010101u * static_cast<uint32_t>(zero);
    store(8 * (team.first + team.eight(i)), words);
  }
  if (team.rank != 0) return;
  for (int column = a.k + 8 * threadIdx.x; column < a.out.code_stride; column += 8 * blockDim.x) {
    const uint32_t none = 0x01010101u * static_cast<uint32_t>(zero);
    store(column, {none, none});
  }
  if (threadIdx.x == 0) {
    a.out.scales[team.token] = finite ? scale : __int_as_float(0x7FC00000);
    if (a.out.zeros != nullptr) a.out.zeros[team.token] = zero;
  }
}

template <typename Step>
const void* find_kernel(int vectors) {
  switch (vectors) {
    case 1:
      return reinterpret_cast<const void*>(quantize_step_kernel<1, Step>);
    case 2:
      return reinterpret_cast<const void*>(quantize_step_kernel<2, Step>);
    case 4:
      return reinterpret_cast<const void*>(quantize_step_kernel<4, Step>);
    default:
      return reinterpret_cast<const void*>(quantize_step_kernel<8, Step>);
  }
}

}  // namespace

cudaError_t launch_quantize_step(const cuda::InputStep& any_step, int tokens, int k, float activation_scale,
                                 CodeOrder order, const PromptActivations& out, cudaStream_t stream) {
  static_assert(kMaximumStepColumns == cuda::rows::kMaximumColumns);
  const bool prompt = order != CodeOrder::kColumns;
  if (k % 8 != 0 || k > kMaximumStepColumns || tokens < 1 || out.code_stride < k ||
      out.code_stride % (prompt ? quik_cuda::kCodeUnit : 16) != 0) {
    return cudaErrorInvalidValue;
  }
  return std::visit(
      [&]<typename Step>(Step step) {
        const Cut cut = cut_rows(k, tokens, std::is_same_v<Step, cuda::GateStep>);
        StepArguments arguments = {k, cut.blocks, activation_scale, order, out};
        return row_launch(cut, tokens, 0, stream)
            .run_untyped(find_kernel<Step>(cut.vectors), step, arguments);
      },
      any_step);
}

}  // namespace nibble::group_int_a8_cuda

#include "backend/cuda/input_rows.cuh"
#include "formats/quik/cuda/pack_columns.cuh"
#include "formats/quik/cuda/prompt_layout.h"
#include "formats/quik/cuda/quantize_step.h"
#include "formats/quik/cuda/token_codes.h"

namespace nibble::quik_cuda {
namespace {

using namespace cuda::rows;

struct StepArguments {
  Columns columns;
  int integers, top, blocks;  // integer columns, largest code, blocks per row
  int outliers_at;            // in a block's shared memory
  Activations out;
};

// Of {minimum, maximum}; a NaN stays.
__device__ inline float2 wider(float2 a, float2 b) {
  float2 both;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(both.x) : "f"(a.x), "f"(b.x));
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(both.y) : "f"(a.y), "f"(b.y));
  return both;
}

template <int kVectors, CodeOrder kOrder, typename Step>
__global__ void __launch_bounds__(most_threads(kVectors), kVectors <= 4 ? 2 : 1)
    quantize_step_kernel(const Step step, const StepArguments a) {
  // Of this block's columns the codes, from the one at place `base` on, and then the outliers.
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ Exchange for_step, for_range;
  const Team team(a.blocks, a.columns.k);
  const int eights = a.columns.k / 8, last = team.first + team.count;
  uint32_t words[kVectors];  // loads by __ldg would sink below the wait for the previous kernel
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    words[i] = team.eight(i) < team.count ? a.columns.words[team.first + team.eight(i)] : 0xFF;
  const int stride = static_cast<int>(a.out.code_stride);
  // Outliers and integer columns before this block's and up to its end; the last block with columns pads the
  // row.
  const auto outliers_before = [&](int eight) {
    return eight < eights ? static_cast<int>(a.columns.words[eight] >> 8) : a.columns.outliers;
  };
  const int outliers_begin = outliers_before(team.first), outliers_end = outliers_before(last);
  const int begin = team.first < eights ? 8 * team.first - outliers_begin : stride;
  const int integers_end = last < eights ? 8 * last - outliers_end : a.integers;
  const int end = last < eights ? integers_end : stride;
  constexpr int kUnit = kOrder == CodeOrder::kPrompt ? kCodeUnit : 16;
  const int base = begin / kUnit * kUnit;

  float x[kVectors][8];
  load_row(step, team, for_step, x);
  float2 range = {0, 0};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float value = (words[i] & 1u << e) == 0 ? x[i][e] : 0.0f;
      range = wider(range, {value, value});
    }
  }
#pragma unroll 1
  for (int i = max(integers_end, begin) + threadIdx.x; i < end; i += blockDim.x) shared[i - base] = 0;
  range = over_row(range, team, for_range, wider);
  const CodeRange code_step = code_range(range.x, range.y, a.top);
  const FloatCodeRule rule = float_code_rule(code_step, a.top);

#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (team.eight(i) >= team.count) continue;
    const int outliers = static_cast<int>(words[i] >> 8);
    const int place = 8 * (team.first + team.eight(i)) - outliers - base;
    uint32_t code_to = ptx::shared_address(shared + place);
    uint32_t outlier_to = ptx::shared_address(shared + a.outliers_at + 2 * (outliers - outliers_begin));
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const uint32_t outlier = words[i] & 1u << e;
      append_code(code_to, outlier, code_of_float(x[i][e] * rule.factor, rule.rule));
      append_outlier(outlier_to, outlier, __float2half_rn(x[i][e]));
    }
  }
  __syncthreads();

  __half* const outliers = a.out.outliers + team.token * a.out.outlier_stride;
  const auto outlier_place = [](int o) { return kOrder == CodeOrder::kPrompt ? outlier_position(o) : o; };
  const auto* const kept = reinterpret_cast<const __half*>(shared + a.outliers_at);
  for (int o = outliers_begin + static_cast<int>(threadIdx.x); o < outliers_end; o += blockDim.x)
    outliers[outlier_place(o)] = kept[o - outliers_begin];
  if (kOrder == CodeOrder::kPrompt && team.rank == 0) {
    const int padded = static_cast<int>(a.out.outlier_stride);
    for (int o = a.columns.outliers + threadIdx.x; o < padded; o += blockDim.x)
      outliers[outlier_place(o)] = __ushort_as_half(0);
  }
  // Units that another block has a part of go byte by byte.
  uint8_t* const row = a.out.codes + team.token * a.out.code_stride;
  const int whole = (begin + kUnit - 1) / kUnit * kUnit, whole_end = end / kUnit * kUnit;
  for (int at = whole + 16 * threadIdx.x; at < whole_end; at += 16 * blockDim.x) {
    *reinterpret_cast<uint4*>(row + at) = kOrder == CodeOrder::kPrompt
                                              ? permuted_codes(shared, at - base)
                                              : *reinterpret_cast<const uint4*>(shared + at - base);
  }
  const auto copy_bytes = [&](int from, int to) {
    for (int i = from + static_cast<int>(threadIdx.x); i < to; i += blockDim.x)
      row[kOrder == CodeOrder::kPrompt ? code_position(i) : i] = shared[i - base];
  };
  copy_bytes(begin, min(whole, end));
  copy_bytes(max(whole, whole_end), end);
  if (threadIdx.x == 0 && team.rank == 0) {
    a.out.scales[team.token] = code_step.scale;
    a.out.zeros[team.token] = code_step.zero;
  }
}

template <CodeOrder kOrder, typename Step>
void* find_kernel(int vectors) {
  switch (vectors) {
    case 1:
      return reinterpret_cast<void*>(quantize_step_kernel<1, kOrder, Step>);
    case 2:
      return reinterpret_cast<void*>(quantize_step_kernel<2, kOrder, Step>);
    case 4:
      return reinterpret_cast<void*>(quantize_step_kernel<4, kOrder, Step>);
    default:
      return reinterpret_cast<void*>(quantize_step_kernel<8, kOrder, Step>);
  }
}

}  // namespace

cudaError_t launch_quantize_step(const cuda::InputStep& any_step, int tokens, const Columns& columns,
                                 int bits, CodeOrder order, const Activations& out, cudaStream_t stream) {
  static_assert(kMaximumStepColumns == kMaximumColumns);
  const bool prompt = order == CodeOrder::kPrompt;
  const int integers = columns.k - columns.outliers;
  if ((bits != 4 && bits != 8) || columns.k % 8 != 0 || columns.k > kMaximumStepColumns || tokens < 1 ||
      out.code_stride % (prompt ? kCodeUnit : 16) != 0 || out.code_stride < integers ||
      (prompt && out.outlier_stride % kOutlierUnit != 0) || out.outlier_stride < columns.outliers) {
    return cudaErrorInvalidValue;
  }
  return std::visit(
      [&]<typename Step>(Step step) {
        const Cut cut = cut_rows(columns.k, tokens, std::is_same_v<Step, cuda::GateStep>);
        const void* const kernel = prompt ? find_kernel<CodeOrder::kPrompt, Step>(cut.vectors)
                                          : find_kernel<CodeOrder::kColumns, Step>(cut.vectors);
        const int outliers_at = static_cast<int>(out.code_stride) + kCodeUnit;
        const auto bytes = static_cast<size_t>(outliers_at + 2 * columns.outliers);
        StepArguments arguments = {columns, integers, (1 << bits) - 1, cut.blocks, outliers_at, out};
        if (bytes > 40 << 10) {
          if (const cudaError_t error = cudaFuncSetAttribute(
                  kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
              error != cudaSuccess) {
            return error;
          }
        }
        return row_launch(cut, tokens, bytes, stream).run_untyped(kernel, step, arguments);
      },
      any_step);
}

}  // namespace nibble::quik_cuda

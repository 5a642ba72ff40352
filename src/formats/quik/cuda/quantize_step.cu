#include "backend/cuda/input_rows.cuh"
#include "formats/quik/cuda/prompt_layout.h"
#include "formats/quik/cuda/quantize_step.h"
#include "formats/quik/cuda/token_codes.h"

namespace nibble::quik_cuda {
namespace {

using namespace cuda::rows;

struct StepArguments {
  Columns columns;
  int integers, top, blocks;  // integer columns, largest code, blocks per row
  Activations out;
};

// Of {minimum, maximum}; a NaN stays.
__device__ inline float2 wider(float2 a, float2 b) {
  float2 both;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(both.x) : "f"(a.x), "f"(b.x));
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(both.y) : "f"(a.y), "f"(b.y));
  return both;
}

// Integer columns before an eight.
__device__ inline int place_of(int eight, uint32_t word) { return 8 * eight - static_cast<int>(word >> 8); }

template <int kVectors, CodeOrder kOrder, typename Step>
__global__ void __launch_bounds__(kMaximumThreads, kVectors == 1 ? 2 : 1)
    quantize_step_kernel(const Step step, const StepArguments a) {
  // Codes of this block's columns gather at their places, counted from `base`, because outliers fall out.
  extern __shared__ __align__(16) uint8_t codes[];
  __shared__ Exchange for_step, for_range;
  const Team team(a.blocks, a.columns.k);
  const int eights = a.columns.k / 8, last = team.first + team.count;
  uint32_t words[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    words[i] = team.eight(i) < team.count ? __ldg(a.columns.words + team.first + team.eight(i)) : 0xFF;
  const int stride = static_cast<int>(a.out.code_stride);
  const int begin = team.first < eights ? place_of(team.first, __ldg(a.columns.words + team.first)) : stride;
  const int integers_end = last < eights ? place_of(last, __ldg(a.columns.words + last)) : a.integers;
  const int end = last < eights ? integers_end : stride;  // the last block with columns pads the row
  const int base = begin / 16 * 16;

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
  for (int i = max(integers_end, begin) + threadIdx.x; i < end; i += blockDim.x) codes[i - base] = 0;
  range = over_row(range, team, for_range, wider);
  const CodeRange code_step = code_range(range.x, range.y, a.top);
  const FloatCodeRule rule = float_code_rule(code_step, a.top);

  __half* const outliers = a.out.outliers + team.token * a.out.outlier_stride;
  const auto outlier_place = [](int o) { return kOrder == CodeOrder::kPrompt ? outlier_position(o) : o; };
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    uint8_t* to = codes + place_of(team.first + team.eight(i), words[i]) - base;
    int outlier = static_cast<int>(words[i] >> 8);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int32_t code = code_of_float(x[i][e] * rule.factor, rule.rule);
      if ((words[i] & 1u << e) == 0) {
        *to++ = static_cast<uint8_t>(code);
      } else if (team.eight(i) < team.count) {
        outliers[outlier_place(outlier++)] = __float2half_rn(x[i][e]);
      }
    }
  }
  if constexpr (kOrder == CodeOrder::kPrompt) {
    const int padded = static_cast<int>(a.out.outlier_stride);
    for (int o = a.columns.outliers + threadIdx.x; o < padded; o += blockDim.x)
      outliers[outlier_place(o)] = __ushort_as_half(0);
  }
  __syncthreads();

  uint8_t* const row = a.out.codes + team.token * a.out.code_stride;
  if constexpr (kOrder == CodeOrder::kPrompt) {
    // 16 bytes at p of a unit are words p / 16 % 2 + 2 (p / 32 % 2) + 4 q of its 16.
    static_assert(code_position(4) == 16 && code_position(8) == 32 && code_position(16) == 4 &&
                  kCodeUnit == 64);
    for (int piece = threadIdx.x; piece < stride / 16; piece += blockDim.x) {
      const auto* const from = reinterpret_cast<const uint32_t*>(codes) + piece / 4 * 16 + piece % 4;
      reinterpret_cast<uint4*>(row)[piece] = make_uint4(from[0], from[4], from[8], from[12]);
    }
  } else {
    for (int at = base + 16 * threadIdx.x; at < end; at += 16 * blockDim.x) {
      if (at >= begin && at + 16 <= end) {
        *reinterpret_cast<uint4*>(row + at) = *reinterpret_cast<const uint4*>(codes + at - base);
      } else {  // shared with another block
        for (int i = max(at, begin); i < min(at + 16, end); ++i) row[i] = codes[i - base];
      }
    }
  }
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
        const bool spread = !prompt && std::is_same_v<Step, cuda::GateStep>;
        const Cut cut = cut_rows(columns.k, tokens, spread);
        const void* const kernel = prompt ? find_kernel<CodeOrder::kPrompt, Step>(cut.vectors)
                                          : find_kernel<CodeOrder::kColumns, Step>(cut.vectors);
        StepArguments arguments = {columns, integers, (1 << bits) - 1, cut.blocks, out};
        const auto bytes = static_cast<size_t>(out.code_stride) + 16;
        if (bytes > 40 << 10) {
          if (const cudaError_t error = cudaFuncSetAttribute(
                  kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
              error != cudaSuccess) {
            return error;
          }
        }
        const RowLaunch launch(cut, tokens, bytes, stream);
        void* pointers[] = {&step, &arguments};
        return cudaLaunchKernelExC(&launch.config, kernel, pointers);
      },
      any_step);
}

}  // namespace nibble::quik_cuda

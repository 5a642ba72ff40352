// Products of integer weights with 1 to 64 tokens of 8-bit activation codes on a Hopper GPU, for group_int_a8
// and quik. Bound by the weights' bytes: every weight is read once, in the width in which it is stored.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "formats/group_int_a8/cuda/few_tokens_shape.h"

namespace nibble::group_int_a8_cuda {

inline constexpr int kMaximumFewTokens = 64;

// Device pointers of a FewTokensWeights, 16-byte aligned; those that its form lacks are null.
struct FewTokensOperand {
  FewTokensForm form = FewTokensForm::kRows;
  FewTokensShape shape;
  bool folds = false;  // FewTokensWeights'
  const uint8_t* slots = nullptr;
  const float* row_scales = nullptr;   // [n]
  const int32_t* code_sums = nullptr;  // [n]
  const float* bias = nullptr;         // [n], or null for none
};

// Quantized activations on the device. kRows takes unsigned codes and a zero point per token, the others
// signed codes. Codes beyond `columns` may be anything; strides make every token 16-byte aligned.
struct FewTokensActivations {
  const uint8_t* codes = nullptr;  // [tokens, code_stride]
  int64_t code_stride = 0;
  const float* scales = nullptr;     // [tokens]
  const int32_t* zeros = nullptr;    // [tokens]; kRows only
  const __half* outliers = nullptr;  // [tokens, outlier_stride]; where the weights have outliers
  int64_t outlier_stride = 0;
};

// How one launch uses the chip; all plans give the same INT32 sums. A block is `warps` warps that each keep
// the activations of `slots` slots in registers; `cluster` blocks share a row.
struct FewTokensPlan {
  int token_tiles = 0;  // of 8 tokens, per pass over the weights: 1, 2, 4 or 8
  int slots = 0, warps = 0, cluster = 0;
  int stages = 0;    // slots on their way, per warp
  int clusters = 0;  // in the grid
};

// The plan for up to `tokens` tokens (1 to 64). Asks the driver how many clusters fit: to be called while
// loading. `blocks` asks for so many blocks per multiprocessor, where registers allow them (0: as measured).
// Throws Error where the weights have more columns than a cluster holds.
FewTokensPlan plan_few_tokens(const FewTokensOperand& weights, int tokens, int multiprocessors,
                              int blocks = 0);

// Enqueues y [tokens, y_stride] = scale_t (sum over the columns) + outliers + bias in FP16; formulas in the
// formats' README. May start before the stream's previous kernel has ended (it waits before it reads
// activations). With `accumulators`, which must be zeros, the INT32 sums are added there: [tokens, n] before
// any zero point (kRows) or after the multipliers (kIntegerGroups), [tokens, n, groups of shape.group
// columns] for kFloatGroups. Returns the launch's error.
cudaError_t launch_few_tokens(const FewTokensOperand& weights, const FewTokensActivations& activations,
                              int tokens, const FewTokensPlan& plan, __half* y, int64_t y_stride,
                              int32_t* accumulators, cudaStream_t stream);

// The signed codes of group_int_a8 (README, "Activation codes") of x [tokens, k] into codes [tokens, k
// rounded up to 16] and scales [tokens]. `activation_scale` 0: per token. `zeros` not null: codes are stored
// as a + 128, and zeros [tokens] are 128, as kRows takes them. k at most 65536.
cudaError_t launch_quantize_signed(const __half* x, int tokens, int k, float activation_scale, uint8_t* codes,
                                   float* scales, int32_t* zeros, cudaStream_t stream);

}  // namespace nibble::group_int_a8_cuda

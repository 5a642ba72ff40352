// Signed activation codes of what the step in front of a linear yields (backend/cuda/input_step.h), in the
// kernel that computes the step: of the FP32 values, as the format's README defines them.
#pragma once

#include "backend/cuda/input_step.h"
#include "formats/group_int_a8/cuda/group_product.h"

namespace nibble::group_int_a8_cuda {

// Where codes lie in a token's row.
enum class CodeOrder {
  kColumns,  // side by side, for few tokens
  kPrompt,   // group_product_layout.h's, of groups other than 32 columns
  kNarrow,   // the same of groups of 32 columns
};

// The columns of an input that can be quantized so: a multiple of 8, at most this many.
inline constexpr int kMaximumStepColumns = 32768;

// Codes and scales of `tokens` rows of k columns, and what else the step does; with out.zeros as a + 128 and
// a zero point of 128. `activation_scale` 0: per token. out.code_stride is a multiple of 16, at least k;
// codes beyond k become zeros (128).
cudaError_t launch_quantize_step(const cuda::InputStep& step, int tokens, int k, float activation_scale,
                                 CodeOrder order, const PromptActivations& out, cudaStream_t stream);

}  // namespace nibble::group_int_a8_cuda

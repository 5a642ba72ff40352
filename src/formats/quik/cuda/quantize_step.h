// Quantization of what the step in front of a linear yields (backend/cuda/input_step.h), in the kernel that
// computes the step: codes of the FP32 values, as the format defines them.
#pragma once

#include "backend/cuda/input_step.h"
#include "formats/quik/cuda/product.h"

namespace nibble::quik_cuda {

// Where codes and outliers lie in a token's rows.
enum class CodeOrder {
  kColumns,  // side by side, as few_tokens.h's products read them; code_stride a multiple of 16
  kPrompt,   // as prompt_layout.h has them, with strides of whole units; outliers padded with zeros
};

// The columns of an input that can be quantized so: a multiple of 8, at most this many.
inline constexpr int kMaximumStepColumns = 32768;

// Codes, scales, zero points and FP16 outliers of `tokens` rows, `bits` 4 or 8; and what else the step does.
// columns.outlier_columns is not read. Codes beyond the integer columns become zeros.
cudaError_t launch_quantize_step(const cuda::InputStep& step, int tokens, const Columns& columns, int bits,
                                 CodeOrder order, const Activations& out, cudaStream_t stream);

}  // namespace nibble::quik_cuda

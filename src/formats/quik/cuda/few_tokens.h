// Activations of quik for 1 to 64 tokens on a Hopper GPU. The product is
// formats/group_int_a8/cuda/few_tokens.h's, of weights packed by few_tokens_layout.h.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::quik_cuda {

struct FewTokensColumns {
  // Device [k]: an integer column's place among the integer columns, ~ an outlier column's among the
  // outliers.
  const int32_t* places = nullptr;
};

// Device arrays that the quantization fills; code_stride is a multiple of 16, codes beyond the integer
// columns become zeros. `paired`: two 4-bit codes in a byte, as mma_layout.h places them; code_stride is then
// a multiple of 64.
struct FewTokensCodes {
  uint8_t* codes = nullptr;  // [tokens, code_stride]
  int64_t code_stride = 0;
  float* scales = nullptr;     // [tokens]
  int32_t* zeros = nullptr;    // [tokens]
  __half* outliers = nullptr;  // [tokens, outlier_stride]
  int64_t outlier_stride = 0;
  bool paired = false;
};

// Codes, scales and zero points of x [tokens, k] (README, "Activation codes"), `bits` 4 or 8, and the outlier
// columns of x side by side. One large block per token; for prompts product.h has another.
cudaError_t launch_quantize_few(const __half* x, int tokens, int k, const FewTokensColumns& columns, int bits,
                                const FewTokensCodes& out, cudaStream_t stream);

}  // namespace nibble::quik_cuda

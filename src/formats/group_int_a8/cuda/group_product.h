// Products of 4-bit weights in groups with many tokens of 8-bit activation codes on a Hopper GPU: FPTQ's and
// the other W4A8 formats' prompts. The weights are those of few_tokens.h (its forms kFloatGroups and
// kIntegerGroups), read as they are. Whole rows as groups, and groups that fold, go through
// quik/cuda/product.h.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "backend/cuda/product_launch.h"
#include "formats/group_int_a8/cuda/few_tokens.h"

namespace nibble::group_int_a8_cuda {

// Codes of a prompt's tokens on the device, in the order of group_product_layout.h (of quik's
// prompt_layout.h for kRows). quik's product takes unsigned ones.
struct PromptActivations {
  uint8_t* codes = nullptr;  // [tokens, code_stride], 16-byte aligned
  int64_t code_stride = 0;   // a multiple of 64, at least the columns; zeros beyond them
  float* scales = nullptr;   // [tokens rounded up to 4], 16-byte aligned
  int32_t* zeros = nullptr;  // the same; for unsigned codes
};

// The codes of x [tokens, k] and their scales (README, "Activation codes"), signed, or with out.zeros as a +
// 128 and a zero point of 128. `activation_scale` 0: per token. `group` is the
// weights' FewTokensShape::group. k at most 65536.
cudaError_t launch_quantize_prompt(const __half* x, int tokens, int k, float activation_scale, int group,
                                   const PromptActivations& out, cudaStream_t stream);

// How a product uses the chip.
using GroupConfiguration = products::Tiling;
// What there is for these weights.
std::span<const GroupConfiguration> group_configurations(const FewTokensOperand& weights);
// The one that should be fastest (group_product_choose.cc).
GroupConfiguration choose_group_configuration(int tokens, const FewTokensOperand& weights,
                                              int multiprocessors);

// y [tokens, y_stride] FP16, by the formulas of the README. Where n is no multiple of 8, zeros are written up
// to the next one. kIntegerGroups gives the same bits in every configuration; kFloatGroups adds up groups in
// order, with a split each half by itself.
class GroupProduct {
 public:
  // Keeps the addresses of all operands; y is 16-byte aligned and y_stride a multiple of 8. Throws Error when
  // the driver refuses to describe them, or there is no such configuration.
  GroupProduct(const FewTokensOperand& weights, const PromptActivations& activations, int tokens, __half* y,
               int64_t y_stride, const GroupConfiguration& configuration, int multiprocessors);
  // With `accumulators` [tokens, n] the sums before the token's and the row's scale are written there too
  // (for tests): INT32, or of kFloatGroups the bits of 16 times the FP32 sum.
  cudaError_t launch(int32_t* accumulators, cudaStream_t stream) const;

 private:
  products::PreparedProduct prepared_;  // with GroupProductArguments (group_product_kernels.h)
};

}  // namespace nibble::group_int_a8_cuda

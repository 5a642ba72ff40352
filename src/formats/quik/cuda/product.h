// QUIK's linear for many tokens on a Hopper GPU (arXiv 2310.09259): activations quantized per token, their
// codes times 4- or 8-bit weight codes in INT32, and in the same kernel the zero points, the scales and the
// FP16 outlier columns. The weights are those of group_int_a8/cuda/few_tokens.h (form kRows, or groups that
// fold), which multiplies few tokens with them; so this serves linears of group_int_a8 too: per channel, and
// with small integer group scales.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "backend/cuda/product_launch.h"
#include "formats/group_int_a8/cuda/few_tokens.h"

namespace nibble::quik_cuda {

// Quantized activations on the device, in the order of prompt_layout.h.
struct Activations {
  uint8_t* codes = nullptr;  // [tokens, code_stride]
  int64_t code_stride = 0;
  float* scales = nullptr;     // [tokens rounded up to 4]
  int32_t* zeros = nullptr;    // [tokens rounded up to 4]
  __half* outliers = nullptr;  // [tokens, outlier_stride]
  int64_t outlier_stride = 0;
};

// The bytes that activations of up to `tokens` tokens take, and the arrays within so many bytes at `memory`
// (aligned to 256).
size_t activation_bytes(int tokens, int columns, int outliers);
Activations place_activations(void* memory, int tokens, int columns, int outliers);

// column_word of every 8 columns, of a linear with k columns of which `outlier_columns` (ascending) are
// outliers.
std::vector<uint32_t> column_words(int k, std::span<const int32_t> outlier_columns);

// The columns of a linear's input, arrays on the device.
struct Columns {
  int k = 0, outliers = 0;
  const uint32_t* words = nullptr;           // column_words()
  const int32_t* outlier_columns = nullptr;  // [outliers] ascending
};

// Codes, scales, zero points (README, "Activation codes") and outliers of x, whose rows start every
// `x_stride` elements. `bits` 4 or 8; k at most 65536.
cudaError_t launch_quantize(const __half* x, int64_t x_stride, int tokens, const Columns& columns, int bits,
                            const Activations& out, cudaStream_t stream);

// How a product uses the chip; all give the same bits.
struct Configuration : products::Tiling {
  int lag;  // blocks of 128 columns by which a block's second half starts later
};
// What there is.
std::span<const Configuration> configurations();
// The one that should be fastest for these weights (choose.cc).
Configuration choose(int tokens, const group_int_a8_cuda::FewTokensShape& weights, int multiprocessors);

// y [tokens, y_stride] FP16 = s_t S_n (sum - z_t sum_n) + bias_n + outliers. Where n is no multiple of 8,
// zeros are written up to the next one.
class Product {
 public:
  // Keeps the addresses of all operands; y is 16-byte aligned and y_stride a multiple of 8. Throws Error when
  // the driver refuses to describe them.
  Product(const group_int_a8_cuda::FewTokensOperand& weights, const Activations& activations, int tokens,
          __half* y, int64_t y_stride, const Configuration& configuration, int multiprocessors);
  // With `accumulators` [tokens, n] the INT32 products are written there too, before any correction (for
  // tests).
  cudaError_t launch(int32_t* accumulators, cudaStream_t stream) const;
  const Configuration& configuration() const { return configuration_; }

 private:
  Configuration configuration_;
  products::PreparedProduct prepared_;  // with ProductArguments (kernels.h)
};

}  // namespace nibble::quik_cuda

// QUIK's linear for GPUs from compute capability 8.0 on (Ampere, Ada): products over a warp, with 4-bit
// weights and activations in the tensor cores' own 4-bit arithmetic, which Hopper lacks. Compiled for 8.0, so
// that its machine code runs on 8.0 to 8.9 and its PTX on everything newer (slowly: 4-bit products are
// emulated there), where the tests hold it to the same sums as every other kernel.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "formats/quik/cuda/product.h"

namespace nibble::quik_cuda {

// Whether codes of so many bits are multiplied in 4-bit arithmetic: then a byte holds two activation codes
// (mma_layout.h).
constexpr bool multiplies_in_4_bits(int weight_bits, int activation_bits) {
  return weight_bits == 4 && activation_bits == 4;
}
// Bytes of a token's codes for mma products.
int mma_code_bytes(int columns, int weight_bits, int activation_bits);

// Enqueues y [tokens, n] = s_t S_n (sum - z_t sum_n) + bias_n + outliers in FP16, rows of y every y_stride
// elements, for weights of form kRows. Activations as launch_quantize_few() leaves them, in rows of a
// multiple of 64 bytes. Starts when the stream's previous kernel has ended. With `accumulators` [tokens, n]
// the INT32 sums are written there too, before any correction (for tests). Returns the launch's error.
cudaError_t launch_mma_product(const group_int_a8_cuda::FewTokensOperand& weights, int activation_bits,
                               const Activations& activations, int tokens, __half* y, int64_t y_stride,
                               int32_t* accumulators, cudaStream_t stream);

}  // namespace nibble::quik_cuda

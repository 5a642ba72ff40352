// QUIK's linear for many tokens on a Hopper GPU (arXiv 2310.09259): activations quantized per token, their
// codes times 8-bit weight codes in INT32, and in the same kernel the zero points, the scales and the FP16
// outlier columns.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::quik_cuda {

// One linear's weights on the device; row strides are multiples of 16 bytes.
struct Weights {
  int n = 0, k_int = 0, outliers = 0;
  const int8_t* codes = nullptr;  // [n, code_stride], columns beyond k_int are zeros
  int64_t code_stride = 0;
  const float* scales = nullptr;            // [n]
  const int32_t* code_sums = nullptr;       // [n], of the codes of a row
  const __half* outlier_weights = nullptr;  // [n, outlier_stride]
  int64_t outlier_stride = 0;
  const float* bias = nullptr;               // [n] or null
  const int32_t* integer_columns = nullptr;  // [k_int] ascending
  const int32_t* outlier_columns = nullptr;  // [outliers] ascending
};

// Quantized activations on the device.
struct Activations {
  int tokens = 0;
  uint8_t* codes = nullptr;  // [tokens, code_stride], columns beyond k_int are zeros
  int64_t code_stride = 0;
  float* scales = nullptr;     // [tokens]
  int32_t* zeros = nullptr;    // [tokens]
  __half* outliers = nullptr;  // [tokens, outlier_stride]
  int64_t outlier_stride = 0;
};

// Codes, scales and zero points of x [tokens, k] by the contract's definition in FP32 with IEEE division,
// `bits` 4 or 8, and the outlier columns of x side by side.
cudaError_t launch_quantize(const __half* x, const Weights& weights, int bits, const Activations& out,
                            cudaStream_t stream);

// y [tokens, n] FP16 = s_t S_n (acc - z_t sum_n) + outliers + bias. With `accumulators` [tokens, n] the INT32
// products are written there too, before any correction (for tests).
class Product {
 public:
  // Keeps the addresses of both operands. Throws Error when the driver refuses to describe them.
  Product(const Weights& weights, const Activations& activations);
  cudaError_t launch(__half* y, int32_t* accumulators, int multiprocessors, cudaStream_t stream) const;

 private:
  Weights weights_;
  Activations activations_;
  struct Maps {
    alignas(64) unsigned char bytes[4][128];
  } maps_;
};

}  // namespace nibble::quik_cuda

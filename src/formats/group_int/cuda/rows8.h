// Products of 8-bit group_int weights with one scale per row, as tables of embeddings and heads have them,
// with few FP16 tokens on a Hopper GPU, and rows of them as floats. The weights lie as in the file: codes u
// [n, k] row-major, weight = scale (u - 128).
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::group_int_cuda {

struct Rows8 {
  const uint8_t* codes = nullptr;  // device [n, k], 16-byte aligned; k a multiple of 16
  const float* scales = nullptr;   // device [n]
  int n = 0, k = 0;
};

// Enqueues y [tokens, n] = x [tokens, k] W^T in FP32, sums in a fixed order; reads the weights once per 64
// tokens. x is 16-byte aligned. May start before the stream's previous kernel has ended (it waits before it
// reads x). Returns the launch's error.
cudaError_t launch_rows8(const Rows8& weights, const __half* x, int tokens, float* y, cudaStream_t stream);

// Enqueues out [count, k] = rows `ids` [count], which lie on the device and are valid.
cudaError_t launch_embed_rows8(const Rows8& weights, const int32_t* ids, int count, float* out,
                               cudaStream_t stream);

}  // namespace nibble::group_int_cuda

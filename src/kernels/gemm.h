// y = x W^T + bias on floats, in parallel: for the dense format, and for the float parts of other formats.
#pragma once

#include <cstdint>
#include <span>

#include "base/scratch.h"
#include "base/thread_pool.h"
#include "kernels/float_kernels.h"

namespace nibble {

// A weight matrix [n, k], row-major, with its optional bias [n]; its outputs start at `column` of y.
struct GemmWeight {
  WeightType type = WeightType::kF32;
  const void* data = nullptr;
  const float* bias = nullptr;
  int64_t n = 0;
  int64_t column = 0;
};

// y[t, w.column + j] = sum_i x[t, i] * w[j, i] + w.bias[j] for every weight w; x [tokens, k] with row stride
// k, y with row stride y_stride. All weights have k columns. Sums are float32 multiply-adds; the order of
// each sum depends only on whether tokens <= kGemvTokens.
void gemm(const FloatKernels& kernels, const float* x, int64_t tokens, int64_t k,
          std::span<const GemmWeight> weights, float* y, int64_t y_stride, Scratch& scratch,
          ThreadPool& pool);

}  // namespace nibble

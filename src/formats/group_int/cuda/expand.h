// Weights of group_int as FP16 matrices on a GPU: what products of many tokens are given, and the way of
// every weight that no kernel multiplies packed.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::group_int_cuda {

// Rows [first_row, first_row + rows) of a packed weight as w [rows, k], row-major. first_row is a multiple of
// 16, k of 8, w 16-byte aligned. Each weight is scale times u - 8, rounded once.
struct ExpandProblem {
  const uint8_t* weights = nullptr;  // device, laid out as decode_layout.h says
  __half* w = nullptr;
  int n = 0, k = 0, scales_per_block = 1;
  int first_row = 0, rows = 0;
};
cudaError_t launch_expand(const ExpandProblem& problem, int multiprocessors, cudaStream_t stream);

}  // namespace nibble::group_int_cuda

// cuBLASLt's matrix products, for FP16 layers and as the yardstick of every kernel. The library is opened by
// name when first asked for; programs that never ask run without it.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <string>

namespace nibble::cuda {

enum class BlasNumbers { kHalf, kInt8 };

// y [m, n] = x [m, k] w [n, k]^T, all row-major FP16 with FP32 sums. Rows of y start every `y_stride`
// elements, or every n where that is 0. With kInt8 a yardstick for integer kernels: x and w hold INT8
// numbers, y INT32 ones.
class HalfProduct {
 public:
  // Times up to 24 of cuBLASLt's proposals on the given arrays (their contents stay) and keeps the fastest.
  // Throws Error when cuBLASLt cannot be opened or has none.
  HalfProduct(int m, int n, int k, const __half* x, const __half* w, __half* y, cudaStream_t stream,
              int y_stride = 0, BlasNumbers numbers = BlasNumbers::kHalf);
  ~HalfProduct();
  HalfProduct(HalfProduct&&) noexcept;
  void enqueue(const __half* x, const __half* w, __half* y, cudaStream_t stream) const;
  int candidates() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The library's version as a number such as 130101.
size_t blas_lt_version();

}  // namespace nibble::cuda

// FP16 products of any number of tokens through cuBLASLt, their algorithms chosen once per shape and shared
// by all layers of that shape.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace nibble::cuda {

// y [m, n] = x [m, k] w [n, k]^T, row-major FP16 with FP32 sums; rows of y start every y_stride elements and
// are FP16 or FP32.
struct GemmShape {
  int64_t m = 0, n = 0, k = 0, y_stride = 0;
  bool float_output = false;
  auto operator<=>(const GemmShape&) const = default;
};

inline constexpr size_t kGemmWorkspaceBytes = size_t{32} << 20;

class GemmPlans {
 public:
  // The one of this process; throws Error when cuBLASLt cannot be opened. One thread at a time.
  static GemmPlans& shared();
  ~GemmPlans();

  // Times cuBLASLt's proposals for `shape` on the weights `w` and keeps the fastest; nothing when that was
  // done already. Waits for the stream.
  void tune(const GemmShape& shape, const __half* w, void* workspace, cudaStream_t stream);
  // Of a shape that was not tuned: cuBLASLt's first proposal. `workspace` has kGemmWorkspaceBytes.
  void enqueue(const GemmShape& shape, const __half* x, const __half* w, void* y, void* workspace,
               cudaStream_t stream);

 private:
  GemmPlans();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble::cuda

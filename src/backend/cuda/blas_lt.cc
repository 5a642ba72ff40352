#include "backend/cuda/blas_lt.h"

#include <algorithm>
#include <vector>

#include "backend/cuda/blas_lt_library.h"
#include "backend/cuda/device.h"
#include "base/error.h"

namespace nibble::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;
constexpr int kCandidates = 24;

}  // namespace

struct HalfProduct::State {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
  Buffer workspace{kWorkspaceBytes};
  int candidates = 0;
  bool integers = false;

  ~State() {
    const BlasLt& lt = blas_lt();
    if (desc != nullptr) lt.desc_destroy(desc);
    for (cublasLtMatrixLayout_t layout : {w, x, y}) {
      if (layout != nullptr) lt.layout_destroy(layout);
    }
  }
};

HalfProduct::HalfProduct(int m, int n, int k, const __half* x, const __half* w, __half* y,
                         cudaStream_t stream, int y_stride, BlasNumbers numbers)
    : state_(std::make_unique<State>()) {
  const BlasLt& lt = blas_lt();
  State& state = *state_;
  // cuBLAS is column-major: y^T [n, m] = w [n, k] x^T, with w stored as its transpose.
  state.integers = numbers == BlasNumbers::kInt8;
  const cudaDataType_t from = state.integers ? CUDA_R_8I : CUDA_R_16F,
                       to = state.integers ? CUDA_R_32I : CUDA_R_16F;
  check_blas(lt.desc_create(&state.desc, state.integers ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                            state.integers ? CUDA_R_32I : CUDA_R_32F),
             "describing a product");
  const cublasOperation_t transpose = CUBLAS_OP_T;
  check_blas(lt.desc_set(state.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose),
             "describing a product");
  check_blas(lt.layout_create(&state.w, from, k, n, k), "describing a matrix");
  check_blas(lt.layout_create(&state.x, from, k, m, k), "describing a matrix");
  check_blas(lt.layout_create(&state.y, to, n, m, y_stride > 0 ? y_stride : n), "describing a matrix");
  cublasLtMatmulPreference_t preference = nullptr;
  check_blas(lt.preference_create(&preference), "asking for algorithms");
  check_blas(lt.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                               sizeof kWorkspaceBytes),
             "asking for algorithms");
  std::vector<cublasLtMatmulHeuristicResult_t> found(kCandidates);
  int count = 0;
  const cublasStatus_t status = lt.heuristic(lt.handle, state.desc, state.w, state.x, state.y, state.y,
                                             preference, kCandidates, found.data(), &count);
  lt.preference_destroy(preference);
  check_blas(status, "asking for algorithms");
  if (count == 0)
    fail("cuBLASLt has no algorithm for {}x{}x{} in {}", m, n, k, state.integers ? "INT8" : "FP16");
  state.candidates = count;

  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "making an event");
  check(cudaEventCreate(&end), "making an event");
  float best = 1e30f;
  for (int i = 0; i < count; ++i) {
    state.algorithm = found[static_cast<size_t>(i)].algo;
    std::vector<float> times;
    for (int repeat = 0; repeat < 4; ++repeat) {
      check(cudaEventRecord(begin, stream), "timing");
      enqueue(x, w, y, stream);
      check(cudaEventRecord(end, stream), "timing");
      check(cudaEventSynchronize(end), "timing");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin, end), "timing");
      if (repeat > 0) times.push_back(milliseconds);
    }
    std::sort(times.begin(), times.end());
    if (times[times.size() / 2] < best) {
      best = times[times.size() / 2];
      found[0] = found[static_cast<size_t>(i)];
    }
  }
  state.algorithm = found[0].algo;
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
}

HalfProduct::~HalfProduct() = default;
HalfProduct::HalfProduct(HalfProduct&&) noexcept = default;
int HalfProduct::candidates() const { return state_->candidates; }

void HalfProduct::enqueue(const __half* x, const __half* w, __half* y, cudaStream_t stream) const {
  const float half_one = 1.0f, half_zero = 0.0f;
  const int32_t one = 1, zero = 0;
  const State& state = *state_;
  const void* const alpha = state.integers ? static_cast<const void*>(&one) : &half_one;
  const void* const beta = state.integers ? static_cast<const void*>(&zero) : &half_zero;
  check_blas(blas_lt().matmul(blas_lt().handle, state.desc, alpha, w, state.w, x, state.x, beta, y, state.y,
                              y, state.y, &state.algorithm, state.workspace.data(), kWorkspaceBytes, stream),
             "a product");
}

size_t blas_lt_version() { return blas_lt().version(); }

}  // namespace nibble::cuda

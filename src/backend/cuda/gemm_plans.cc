#include "backend/cuda/gemm_plans.h"

#include <algorithm>
#include <map>
#include <vector>

#include "backend/cuda/blas_lt_library.h"
#include "backend/cuda/device.h"
#include "base/error.h"

namespace nibble::cuda {
namespace {

constexpr int kCandidates = 16, kSamples = 5;

// What cuBLASLt needs to know of a shape; destroyed with the process.
struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  std::vector<cublasLtMatmulHeuristicResult_t> proposals;
  bool tuned = false;

  ~Plan() {
    const BlasLt& lt = blas_lt();
    if (product != nullptr) lt.desc_destroy(product);
    for (cublasLtMatrixLayout_t layout : {w, x, y}) {
      if (layout != nullptr) lt.layout_destroy(layout);
    }
  }
};

// cuBLAS is column-major: y^T [n, m] = w [n, k] x^T, with w stored as its transpose.
std::unique_ptr<Plan> make_plan(const GemmShape& shape) {
  const BlasLt& lt = blas_lt();
  const char* const what = "describing a product";
  auto plan = std::make_unique<Plan>();
  check_blas(lt.desc_create(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F), what);
  const cublasOperation_t transpose = CUBLAS_OP_T;
  check_blas(lt.desc_set(plan->product, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose), what);
  const auto size = [](int64_t value) { return static_cast<uint64_t>(value); };
  check_blas(lt.layout_create(&plan->w, CUDA_R_16F, size(shape.k), size(shape.n), shape.k), what);
  check_blas(lt.layout_create(&plan->x, CUDA_R_16F, size(shape.k), size(shape.m), shape.k), what);
  check_blas(lt.layout_create(&plan->y, shape.float_output ? CUDA_R_32F : CUDA_R_16F, size(shape.n),
                              size(shape.m), shape.y_stride),
             what);
  cublasLtMatmulPreference_t preference = nullptr;
  check_blas(lt.preference_create(&preference), what);
  cublasStatus_t status = lt.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                            &kGemmWorkspaceBytes, sizeof kGemmWorkspaceBytes);
  int found = 0;
  plan->proposals.resize(kCandidates);
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = lt.heuristic(lt.handle, plan->product, plan->w, plan->x, plan->y, plan->y, preference,
                          kCandidates, plan->proposals.data(), &found);
  }
  lt.preference_destroy(preference);
  check_blas(status, "asking for algorithms");
  if (found == 0) fail("cuBLASLt has no algorithm for {}x{}x{} in FP16", shape.m, shape.n, shape.k);
  plan->proposals.resize(static_cast<size_t>(found));
  return plan;
}

cublasStatus_t run(const Plan& plan, size_t proposal, const void* x, const void* w, void* y, void* workspace,
                   cudaStream_t stream) {
  const BlasLt& lt = blas_lt();
  const float one = 1.0f, zero = 0.0f;
  return lt.matmul(lt.handle, plan.product, &one, w, plan.w, x, plan.x, &zero, y, plan.y, y, plan.y,
                   &plan.proposals[proposal].algo, workspace, kGemmWorkspaceBytes, stream);
}

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "making an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

struct GemmPlans::State {
  std::map<GemmShape, std::unique_ptr<Plan>> plans;
  Plan& find(const GemmShape& shape) {
    std::unique_ptr<Plan>& plan = plans[shape];
    if (!plan) plan = make_plan(shape);
    return *plan;
  }
};

GemmPlans::GemmPlans() : state_(std::make_unique<State>()) { blas_lt(); }
GemmPlans::~GemmPlans() = default;

GemmPlans& GemmPlans::shared() {
  // Never destroyed: the driver may be gone by then.
  static GemmPlans* const plans = new GemmPlans();
  return *plans;
}

void GemmPlans::tune(const GemmShape& shape, const __half* w, void* workspace, cudaStream_t stream) {
  Plan& plan = state_->find(shape);
  if (plan.tuned) return;
  plan.tuned = true;
  const Buffer x(sizeof(__half) * static_cast<size_t>(shape.m * shape.k));
  const Buffer y((shape.float_output ? 4 : 2) * static_cast<size_t>(shape.m * shape.y_stride));
  check(cudaMemsetAsync(x.data(), 0, x.bytes(), stream), "timing products");
  const Event begin, end;
  size_t best = 0;
  float best_time = 1e30f;
  for (size_t i = 0; i < plan.proposals.size(); ++i) {
    std::vector<float> times;
    for (int sample = 0; sample < kSamples; ++sample) {
      check(cudaEventRecord(begin.get(), stream), "timing products");
      if (run(plan, i, x.data(), w, y.data(), workspace, stream) != CUBLAS_STATUS_SUCCESS) break;
      check(cudaEventRecord(end.get(), stream), "timing products");
      check(cudaEventSynchronize(end.get()), "timing products");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()), "timing products");
      if (sample > 0) times.push_back(milliseconds);
    }
    if (times.empty()) continue;
    std::sort(times.begin(), times.end());
    if (times[times.size() / 2] < best_time) {
      best_time = times[times.size() / 2];
      best = i;
    }
  }
  plan.proposals = {plan.proposals[best]};
}

void GemmPlans::enqueue(const GemmShape& shape, const __half* x, const __half* w, void* y, void* workspace,
                        cudaStream_t stream) {
  check_blas(run(state_->find(shape), 0, x, w, y, workspace, stream), "a product");
}

}  // namespace nibble::cuda

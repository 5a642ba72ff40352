#include "backend/cuda/dense_linear.h"

#include <algorithm>
#include <cmath>

#include "backend/cuda/elementwise.h"
#include "backend/cuda/gemm_plans.h"
#include "base/error.h"

namespace nibble::cuda {
namespace {

constexpr size_t kStagingBytes = size_t{64} << 20;

// Uploads rows as they lie in the file, or unpacked to FP32, and rounds them on the device.
class Uploader {
 public:
  explicit Uploader(ThreadPool& pool) : pool_(pool), overflowed_(sizeof(int)) {
    check(cudaMemset(overflowed_.data(), 0, sizeof(int)), "preparing an upload");
  }

  void upload(const PackedLinear& linear, __half* to) {
    const Tensor* weight = linear.find("weight");
    const bool stored = weight != nullptr && std::string_view(linear.format->name) == "dense";
    if (stored && weight->dtype() == DType::kF16) {
      check(cudaMemcpy(to, weight->raw(), weight->bytes(), cudaMemcpyHostToDevice), "uploading weights");
      return;
    }
    const bool bf16 = stored && weight->dtype() == DType::kBF16;
    const size_t row_bytes = static_cast<size_t>(linear.in_features) * (bf16 ? 2 : 4);
    const int64_t rows_at_once = std::max<int64_t>(1, static_cast<int64_t>(kStagingBytes / row_bytes));
    std::vector<float> unpacked;
    for (int64_t first = 0; first < linear.out_features; first += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, linear.out_features - first);
      const void* from = nullptr;
      if (stored) {
        from = weight->raw() + static_cast<size_t>(first) * row_bytes;
      } else {
        unpacked.resize(static_cast<size_t>(rows * linear.in_features));
        pool_.parallel_for(rows, [&](int64_t row, int) {
          linear.format->dequantize_rows(linear, first + row, 1, unpacked.data() + row * linear.in_features);
        });
        from = unpacked.data();
      }
      const size_t bytes = static_cast<size_t>(rows) * row_bytes;
      if (staging_.bytes() < bytes) staging_ = Buffer(bytes);
      staging_.upload(from, bytes);
      const int64_t count = rows * linear.in_features;
      __half* const out = to + first * linear.in_features;
      if (bf16) {
        launch_half_from_bf16(staging_.as<uint16_t>(), count, out, overflowed_.as<int>(), nullptr);
      } else {
        launch_half_from_float(staging_.as<float>(), count, out, overflowed_.as<int>(), nullptr);
      }
    }
    int overflowed = 0;
    overflowed_.download(&overflowed, sizeof overflowed);
    if (overflowed != 0) fail("{}: a weight is beyond 65504, the largest number of FP16", linear.name);
  }

 private:
  ThreadPool& pool_;
  Buffer staging_, overflowed_;
};

std::string never_refused(const Problem&, const Device&) { return ""; }
std::unique_ptr<DeviceLinear> load(std::span<const PackedLinear* const> linears, const Device&,
                                   ThreadPool& pool) {
  return std::make_unique<DenseLinear>(linears, pool);
}
size_t half_bytes(const PackedLinear& linear) {
  return 2 * static_cast<size_t>(linear.out_features) * static_cast<size_t>(linear.in_features);
}
bool always_fuses(const PackedLinear&, const PackedLinear&) { return true; }

}  // namespace

const DeviceKernel kDenseDeviceKernel = {.name = "cuda-f16",
                                         .portable = true,
                                         .refusal = never_refused,
                                         .load = load,
                                         .bytes = half_bytes,
                                         .fuses = always_fuses};
const DeviceKernel kExpandedDeviceKernel = {.name = "cuda-expanded",
                                            .slower = true,
                                            .portable = true,
                                            .refusal = never_refused,
                                            .load = load,
                                            .bytes = half_bytes,
                                            .fuses = always_fuses};

std::vector<float> joined_biases(std::span<const PackedLinear* const> linears) {
  std::vector<float> joined;
  bool any = false;
  for (const PackedLinear* linear : linears) {
    const size_t first = joined.size();
    joined.resize(first + static_cast<size_t>(linear->out_features), 0.0f);
    if (const Tensor* bias = linear->find("bias")) {
      std::copy_n(bias->data<float>(), linear->out_features, joined.data() + first);
      any = true;
    }
  }
  if (!any) joined.clear();
  return joined;
}

DenseLinear::DenseLinear(std::span<const PackedLinear* const> linears, ThreadPool& pool)
    : k_(linears.front()->in_features) {
  for (const PackedLinear* linear : linears) n_ += linear->out_features;
  weights_ = Buffer(sizeof(__half) * static_cast<size_t>(n_ * k_));
  Uploader uploader(pool);
  int64_t row = 0;
  for (const PackedLinear* linear : linears) {
    uploader.upload(*linear, weights_.as<__half>() + row * k_);
    row += linear->out_features;
  }
  if (const std::vector<float> bias = joined_biases(linears); !bias.empty()) {
    bias_ = Buffer(sizeof(float) * bias.size());
    bias_.upload(bias.data(), sizeof(float) * bias.size());
  }
}

DenseLinear::DenseLinear(int64_t n, int64_t k, uint32_t seed)
    : n_(n), k_(k), weights_(sizeof(__half) * static_cast<size_t>(n * k)) {
  const auto amplitude = static_cast<float>(std::sqrt(3.0 / static_cast<double>(k)));
  launch_random_half(weights_.as<__half>(), n * k, amplitude, seed, nullptr);
  check(cudaStreamSynchronize(nullptr), "filling with random numbers");
}

DenseLinear::DenseLinear(const DenseLinear& other)
    : n_(other.n_), k_(other.k_), weights_(other.weights_.clone()), bias_(other.bias_.clone()) {}

std::unique_ptr<DeviceLinear> DenseLinear::duplicate() const {
  return std::unique_ptr<DeviceLinear>(new DenseLinear(*this));
}

size_t DenseLinear::workspace_bytes(int) const { return kGemmWorkspaceBytes; }

void DenseLinear::forward(const __half* x, int tokens, __half* y, int64_t y_stride, void* workspace,
                          cudaStream_t stream) const {
  GemmPlans::shared().enqueue({.m = tokens, .n = n_, .k = k_, .y_stride = y_stride}, x, weights(), y,
                              workspace, stream);
  if (bias_.bytes() > 0) {
    launch_add_bias(y, y_stride, bias_.as<float>(), tokens, static_cast<int>(n_), stream);
  }
}

void DenseLinear::forward_float(const __half* x, int tokens, float* y, void* workspace,
                                cudaStream_t stream) const {
  NIBBLE_CHECK(bias_.bytes() == 0);
  GemmPlans::shared().enqueue({.m = tokens, .n = n_, .k = k_, .y_stride = n_, .float_output = true}, x,
                              weights(), y, workspace, stream);
}

void DenseLinear::prepare(int tokens, void* workspace, cudaStream_t stream) const {
  GemmPlans::shared().tune({.m = tokens, .n = n_, .k = k_, .y_stride = n_}, weights(), workspace, stream);
}

void DenseLinear::prepare_float(int tokens, void* workspace, cudaStream_t stream) const {
  GemmPlans::shared().tune({.m = tokens, .n = n_, .k = k_, .y_stride = n_, .float_output = true}, weights(),
                           workspace, stream);
}

LinearPath DenseLinear::path(int) const { return {"cublaslt", "f16xf16->f32"}; }

}  // namespace nibble::cuda

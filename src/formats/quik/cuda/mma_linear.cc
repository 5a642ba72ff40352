// quik's second row in the table of the device's kernels: products over a warp, 4-bit ones in 4-bit
// arithmetic (mma_product.h). What Ampere and Ada run; on Hopper the row above it is faster, and this one
// answers to NIBBLE_KERNEL only.
#include "backend/cuda/linear.h"
#include "base/error.h"
#include "formats/quik/cuda/device_weights.h"
#include "formats/quik/cuda/mma_product.h"

namespace nibble::quik_mma_cuda {
namespace {

using namespace quik_cuda;

class MmaLinear final : public cuda::DeviceLinear {
 public:
  explicit MmaLinear(std::span<const PackedLinear* const> linears) : weights_(linears) {}

  int64_t in_features() const override { return weights_.k(); }
  int64_t out_features() const override { return weights_.shape().n; }
  size_t workspace_bytes(int most_tokens) const override {
    return activation_bytes(most_tokens, code_bytes(), weights_.outliers());
  }

  void forward(const __half* x, int tokens, __half* y, int64_t y_stride, void* workspace,
               cudaStream_t stream) const override {
    const Activations quantized = place_activations(workspace, tokens, code_bytes(), weights_.outliers());
    cuda::check(launch_quantize_few(x, tokens, weights_.k(), weights_.few_tokens_columns(),
                                    weights_.activation_bits(),
                                    {.codes = quantized.codes,
                                     .code_stride = quantized.code_stride,
                                     .scales = quantized.scales,
                                     .zeros = quantized.zeros,
                                     .outliers = quantized.outliers,
                                     .outlier_stride = quantized.outlier_stride,
                                     .paired = in_4_bits()},
                                    stream),
                "quantizing activations");
    cuda::check(launch_mma_product(weights_.operand(), weights_.activation_bits(), quantized, tokens, y,
                                   y_stride, nullptr, stream),
                "multiplying integers");
  }

  std::unique_ptr<cuda::DeviceLinear> duplicate() const override {
    return std::make_unique<MmaLinear>(*this);
  }

  cuda::LinearPath path(int) const override {
    return {"quik-mma", format_text("int{}xint{}->int32{}", weights_.shape().weight_bits,
                                    weights_.activation_bits(), in_4_bits() ? "" : ", as int8")};
  }

  size_t bytes() const override { return weights_.bytes(); }

 private:
  bool in_4_bits() const {
    return multiplies_in_4_bits(weights_.shape().weight_bits, weights_.activation_bits());
  }
  int code_bytes() const {
    return mma_code_bytes(static_cast<int>(weights_.shape().columns), weights_.shape().weight_bits,
                          weights_.activation_bits());
  }

  DeviceWeights weights_;
};

std::string refusal(const Problem& problem, const cuda::Device&) {
  return device_weight_refusal(*problem.linear);
}

std::unique_ptr<cuda::DeviceLinear> load(std::span<const PackedLinear* const> linears, const cuda::Device&,
                                         ThreadPool&) {
  return std::make_unique<MmaLinear>(linears);
}

bool fuses(const PackedLinear&, const PackedLinear&) { return true; }

}  // namespace

extern const cuda::DeviceKernel kDeviceKernel;
const cuda::DeviceKernel kDeviceKernel = {.name = "cuda-quik-mma",
                                          .portable = true,
                                          .refusal = refusal,
                                          .load = load,
                                          .bytes = device_weight_bytes,
                                          .fuses = fuses};

}  // namespace nibble::quik_mma_cuda

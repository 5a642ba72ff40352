// quik's row in the table of the device's kernels (backend/cuda/linear.h): integer products on the tensor
// cores from one packing, by one kernel for few tokens and another for prompts.
#include <algorithm>
#include <iterator>

#include "backend/cuda/linear.h"
#include "base/error.h"
#include "formats/quik/cuda/device_weights.h"
#include "formats/quik/cuda/few_tokens.h"
#include "formats/quik/cuda/product.h"

namespace nibble::quik_cuda {
namespace {

int64_t rounded(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
size_t aligned(int64_t bytes) { return static_cast<size_t>(rounded(bytes, 256)); }

// Up to so many tokens the kernel that reads every weight once is the faster one (bench/results/h100).
constexpr int kFewTokens = 32;
constexpr int kPlannedTokens[] = {8, 16, 32};

class QuikLinear final : public cuda::DeviceLinear {
 public:
  QuikLinear(std::span<const PackedLinear* const> linears, const cuda::Device& device)
      : weights_(linears), multiprocessors_(device.multiprocessors) {
    for (size_t i = 0; i < std::size(kPlannedTokens); ++i) {
      plans_[i] = group_int_a8_cuda::plan_few_tokens(weights_.operand(), kPlannedTokens[i], multiprocessors_);
    }
  }

  int64_t in_features() const override { return weights_.k(); }
  int64_t out_features() const override { return weights_.shape().n; }

  size_t workspace_bytes(int most_tokens) const override {
    return activation_memory(most_tokens) + output_bytes(most_tokens);
  }

  void forward(const __half* x, int tokens, __half* y, int64_t y_stride, void* workspace,
               cudaStream_t stream) const override {
    const Activations quantized = place_activations(workspace, tokens, weights_.k(), weights_.outliers());
    if (tokens <= kFewTokens) return forward_few(x, tokens, quantized, y, y_stride, stream);
    cuda::check(launch_quantize(x, weights_.k(), tokens, weights_.columns(), weights_.activation_bits(),
                                quantized, stream),
                "quantizing activations");
    // The product writes whole vectors of 8.
    const int64_t own_stride = rounded(out_features(), 8);
    const bool direct = y_stride % 8 == 0 && out_features() % 8 == 0;
    __half* const to =
        direct ? y : reinterpret_cast<__half*>(static_cast<uint8_t*>(workspace) + activation_memory(tokens));
    cuda::check(Product(weights_.operand(), quantized, tokens, to, direct ? y_stride : own_stride,
                        choose(tokens, weights_.shape(), multiprocessors_), multiprocessors_)
                    .launch(nullptr, stream),
                "multiplying integers");
    if (direct) return;
    const auto width = sizeof(__half) * static_cast<size_t>(out_features());
    cuda::check(cudaMemcpy2DAsync(y, sizeof(__half) * static_cast<size_t>(y_stride), to,
                                  sizeof(__half) * static_cast<size_t>(own_stride), width,
                                  static_cast<size_t>(tokens), cudaMemcpyDeviceToDevice, stream),
                "moving a product");
  }

  std::unique_ptr<cuda::DeviceLinear> duplicate() const override {
    return std::unique_ptr<cuda::DeviceLinear>(new QuikLinear(*this));
  }

  cuda::LinearPath path(int tokens) const override {
    return {
        tokens <= kFewTokens ? "quik-few-tokens" : "quik-product",
        format_text("int{}xint{}->int32, as int8", weights_.shape().weight_bits, weights_.activation_bits())};
  }

  size_t bytes() const override { return weights_.bytes(); }

 private:
  void forward_few(const __half* x, int tokens, const Activations& quantized, __half* y, int64_t y_stride,
                   cudaStream_t stream) const {
    cuda::check(launch_quantize_few(x, tokens, weights_.k(), weights_.few_tokens_columns(),
                                    weights_.activation_bits(),
                                    {.codes = quantized.codes,
                                     .code_stride = quantized.code_stride,
                                     .scales = quantized.scales,
                                     .zeros = quantized.zeros,
                                     .outliers = quantized.outliers,
                                     .outlier_stride = quantized.outlier_stride},
                                    stream),
                "quantizing activations");
    size_t plan = 0;
    while (kPlannedTokens[plan] < tokens) ++plan;
    cuda::check(group_int_a8_cuda::launch_few_tokens(weights_.operand(),
                                                     {.codes = quantized.codes,
                                                      .code_stride = quantized.code_stride,
                                                      .scales = quantized.scales,
                                                      .zeros = quantized.zeros,
                                                      .outliers = quantized.outliers,
                                                      .outlier_stride = quantized.outlier_stride},
                                                     tokens, plans_[plan], y, y_stride, nullptr, stream),
                "multiplying integers");
  }

  size_t activation_memory(int tokens) const {
    return aligned(static_cast<int64_t>(activation_bytes(tokens, weights_.k(), weights_.outliers())));
  }
  size_t output_bytes(int tokens) const { return aligned(2 * rounded(out_features(), 8) * tokens); }

  DeviceWeights weights_;
  int multiprocessors_ = 0;
  group_int_a8_cuda::FewTokensPlan plans_[std::size(kPlannedTokens)];
};

std::string refusal(const Problem& problem, const cuda::Device&) {
  return device_weight_refusal(*problem.linear);
}

std::unique_ptr<cuda::DeviceLinear> load(std::span<const PackedLinear* const> linears,
                                         const cuda::Device& device, ThreadPool&) {
  return std::make_unique<QuikLinear>(linears, device);
}

bool fuses(const PackedLinear&, const PackedLinear&) { return true; }

}  // namespace

extern const cuda::DeviceKernel kDeviceKernel;
const cuda::DeviceKernel kDeviceKernel = {
    .name = "cuda-quik", .refusal = refusal, .load = load, .bytes = device_weight_bytes, .fuses = fuses};

}  // namespace nibble::quik_cuda

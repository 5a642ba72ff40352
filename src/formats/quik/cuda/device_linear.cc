// quik's row in the table of the device's kernels (backend/cuda/linear.h): integer products on the tensor
// cores from one packing, by one kernel for few tokens and another for prompts.
#include <algorithm>
#include <iterator>

#include "backend/cuda/aligned_output.h"
#include "backend/cuda/linear.h"
#include "base/error.h"
#include "formats/quik/cuda/device_weights.h"
#include "formats/quik/cuda/few_tokens.h"
#include "formats/quik/cuda/product.h"
#include "formats/quik/cuda/quantize_step.h"

namespace nibble::quik_cuda {
namespace {

// Up to so many tokens the kernel that reads every weight once is the faster one (bench/results/h100).
constexpr int kFewTokens = 16;
constexpr int kPlannedTokens[] = {8, 16};

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
    return activation_memory(most_tokens) + cuda::AlignedOutput::bytes(out_features(), most_tokens);
  }

  void forward(const __half* x, int tokens, __half* y, int64_t y_stride, void* workspace,
               cudaStream_t stream) const override {
    const Activations quantized = place(workspace, tokens);
    if (tokens <= kFewTokens) {
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
    } else {
      cuda::check(launch_quantize(x, weights_.k(), tokens, weights_.columns(), weights_.activation_bits(),
                                  quantized, stream),
                  "quantizing activations");
    }
    multiply(quantized, tokens, y, y_stride, workspace, stream);
  }

  bool takes(const cuda::InputStep&, int) const override {
    return weights_.k() % 8 == 0 && weights_.k() <= kMaximumStepColumns;
  }
  void forward_from(const cuda::InputStep& step, int tokens, __half* y, int64_t y_stride, void* workspace,
                    cudaStream_t stream) const override {
    const Activations quantized = place(workspace, tokens);
    const CodeOrder order = tokens <= kFewTokens ? CodeOrder::kColumns : CodeOrder::kPrompt;
    cuda::check(launch_quantize_step(step, tokens, weights_.columns(), weights_.activation_bits(), order,
                                     quantized, stream),
                "quantizing activations");
    multiply(quantized, tokens, y, y_stride, workspace, stream);
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
  Activations place(void* workspace, int tokens) const {
    return place_activations(workspace, tokens, weights_.k(), weights_.outliers());
  }

  void multiply(const Activations& quantized, int tokens, __half* y, int64_t y_stride, void* workspace,
                cudaStream_t stream) const {
    if (tokens <= kFewTokens) return multiply_few(quantized, tokens, y, y_stride, stream);
    const cuda::AlignedOutput output(y, y_stride, out_features(), tokens,
                                     static_cast<uint8_t*>(workspace) + activation_memory(tokens));
    cuda::check(Product(weights_.operand(), quantized, tokens, output.to(), output.stride(),
                        choose(tokens, weights_.shape(), multiprocessors_), multiprocessors_)
                    .launch(nullptr, stream),
                "multiplying integers");
    output.move(stream);
  }

  void multiply_few(const Activations& quantized, int tokens, __half* y, int64_t y_stride,
                    cudaStream_t stream) const {
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
    return (activation_bytes(tokens, weights_.k(), weights_.outliers()) + 255) / 256 * 256;
  }

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

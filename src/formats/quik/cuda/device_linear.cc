// quik's row in the table of the device's kernels (backend/cuda/linear.h): integer products on the tensor
// cores from one packing, by one kernel for few tokens and another for prompts.
#include <algorithm>
#include <iterator>

#include "backend/cuda/aligned_output.h"
#include "backend/cuda/dense_linear.h"
#include "backend/cuda/linear.h"
#include "base/error.h"
#include "formats/quik/cuda/few_tokens.h"
#include "formats/quik/cuda/few_tokens_layout.h"
#include "formats/quik/cuda/product.h"
#include "formats/quik/cuda/quantize_step.h"
#include "formats/quik/layout.h"

namespace nibble::quik_cuda {
namespace {

template <typename T>
cuda::Buffer uploaded(const std::vector<T>& values) {
  if (values.empty()) return {};
  cuda::Buffer buffer(sizeof(T) * values.size());
  buffer.upload(values.data(), sizeof(T) * values.size());
  return buffer;
}

// Up to so many tokens the kernel that reads every weight once is the faster one (bench/results/h100).
constexpr int kFewTokens = 16;
constexpr int kPlannedTokens[] = {8, 16};

class QuikLinear final : public cuda::DeviceLinear {
 public:
  QuikLinear(std::span<const PackedLinear* const> linears, const cuda::Device& device)
      : multiprocessors_(device.multiprocessors) {
    const quik::Layout first = quik::read_layout(*linears.front());
    k_ = first.k;
    bits_ = first.activation_bits;
    const FewTokensPacked all = pack_for_few_tokens(linears);
    const group_int_a8_cuda::FewTokensWeights& packed = all.weights;
    weights_.form = packed.form;
    weights_.shape = packed.shape;
    slots_ = uploaded(packed.slots);
    row_scales_ = uploaded(packed.row_scales);
    code_sums_ = uploaded(packed.code_sums);
    bias_ = uploaded(packed.bias);
    words_ = uploaded(column_words(static_cast<int>(k_), first.outlier_columns));
    outlier_columns_ = uploaded(first.outlier_columns);
    places_ = uploaded(all.column_places);
    point();
    for (size_t i = 0; i < std::size(kPlannedTokens); ++i)
      plans_[i] = group_int_a8_cuda::plan_few_tokens(weights_, kPlannedTokens[i], multiprocessors_);
  }

  int64_t in_features() const override { return k_; }
  int64_t out_features() const override { return weights_.shape.n; }

  size_t workspace_bytes(int most_tokens) const override {
    return activation_memory(most_tokens) + cuda::AlignedOutput::bytes(out_features(), most_tokens);
  }

  void forward(const __half* x, int tokens, __half* y, int64_t y_stride, void* workspace,
               cudaStream_t stream) const override {
    const Activations quantized = place(workspace, tokens);
    if (tokens <= kFewTokens) {
      cuda::check(
          launch_quantize_few(x, tokens, static_cast<int>(k_), {.places = places_.as<int32_t>()}, bits_,
                              {.codes = quantized.codes,
                               .code_stride = quantized.code_stride,
                               .scales = quantized.scales,
                               .zeros = quantized.zeros,
                               .outliers = quantized.outliers,
                               .outlier_stride = quantized.outlier_stride},
                              stream),
          "quantizing activations");
    } else {
      cuda::check(launch_quantize(x, k_, tokens, columns(), bits_, quantized, stream),
                  "quantizing activations");
    }
    multiply(quantized, tokens, y, y_stride, workspace, stream);
  }

  bool takes_steps() const override { return k_ % 8 == 0 && k_ <= kMaximumStepColumns; }
  void forward_from(const cuda::InputStep& step, int tokens, __half* y, int64_t y_stride, void* workspace,
                    cudaStream_t stream) const override {
    const Activations quantized = place(workspace, tokens);
    const CodeOrder order = tokens <= kFewTokens ? CodeOrder::kColumns : CodeOrder::kPrompt;
    cuda::check(launch_quantize_step(step, tokens, columns(), bits_, order, quantized, stream),
                "quantizing activations");
    multiply(quantized, tokens, y, y_stride, workspace, stream);
  }

  std::unique_ptr<cuda::DeviceLinear> duplicate() const override {
    return std::unique_ptr<cuda::DeviceLinear>(new QuikLinear(*this));
  }

  cuda::LinearPath path(int tokens) const override {
    return {tokens <= kFewTokens ? "quik-few-tokens" : "quik-product",
            format_text("int{}xint{}->int32, as int8", weights_.shape.weight_bits, bits_)};
  }

  size_t bytes() const override {
    size_t total = 0;
    for (const cuda::Buffer* buffer :
         {&slots_, &row_scales_, &code_sums_, &bias_, &words_, &outlier_columns_, &places_}) {
      total += buffer->bytes();
    }
    return total;
  }

 private:
  QuikLinear(const QuikLinear& other)
      : k_(other.k_),
        bits_(other.bits_),
        multiprocessors_(other.multiprocessors_),
        slots_(other.slots_.clone()),
        row_scales_(other.row_scales_.clone()),
        code_sums_(other.code_sums_.clone()),
        bias_(other.bias_.clone()),
        words_(other.words_.clone()),
        outlier_columns_(other.outlier_columns_.clone()),
        places_(other.places_.clone()),
        weights_(other.weights_) {
    std::copy(std::begin(other.plans_), std::end(other.plans_), plans_);
    point();
  }

  void point() {
    weights_.slots = slots_.as<uint8_t>();
    weights_.row_scales = row_scales_.as<float>();
    weights_.code_sums = code_sums_.as<int32_t>();
    weights_.bias = bias_.bytes() > 0 ? bias_.as<float>() : nullptr;
  }

  Columns columns() const {
    return {.k = static_cast<int>(k_),
            .outliers = static_cast<int>(weights_.shape.outliers),
            .words = words_.as<uint32_t>(),
            .outlier_columns = outlier_columns_.as<int32_t>()};
  }
  Activations place(void* workspace, int tokens) const {
    return place_activations(workspace, tokens, static_cast<int>(k_),
                             static_cast<int>(weights_.shape.outliers));
  }

  void multiply(const Activations& quantized, int tokens, __half* y, int64_t y_stride, void* workspace,
                cudaStream_t stream) const {
    if (tokens <= kFewTokens) return multiply_few(quantized, tokens, y, y_stride, stream);
    const cuda::AlignedOutput output(y, y_stride, out_features(), tokens,
                                     static_cast<uint8_t*>(workspace) + activation_memory(tokens));
    cuda::check(Product(weights_, quantized, tokens, output.to(), output.stride(),
                        choose(tokens, weights_.shape, multiprocessors_), multiprocessors_)
                    .launch(nullptr, stream),
                "multiplying integers");
    output.move(stream);
  }

  void multiply_few(const Activations& quantized, int tokens, __half* y, int64_t y_stride,
                    cudaStream_t stream) const {
    size_t plan = 0;
    while (kPlannedTokens[plan] < tokens) ++plan;
    cuda::check(group_int_a8_cuda::launch_few_tokens(weights_,
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
    return (activation_bytes(tokens, static_cast<int>(k_), static_cast<int>(weights_.shape.outliers)) + 255) /
           256 * 256;
  }

  int64_t k_ = 0;
  int bits_ = 0, multiprocessors_ = 0;
  cuda::Buffer slots_, row_scales_, code_sums_, bias_, words_, outlier_columns_, places_;
  group_int_a8_cuda::FewTokensOperand weights_;
  group_int_a8_cuda::FewTokensPlan plans_[std::size(kPlannedTokens)];
};

std::string refusal(const Problem& problem, const cuda::Device&) {
  if (problem.linear->in_features > group_int_a8_cuda::kMaximumColumns) {
    return format_text("{} columns are more than {}", problem.linear->in_features,
                       group_int_a8_cuda::kMaximumColumns);
  }
  return "";
}

std::unique_ptr<cuda::DeviceLinear> load(std::span<const PackedLinear* const> linears,
                                         const cuda::Device& device, ThreadPool&) {
  return std::make_unique<QuikLinear>(linears, device);
}

size_t device_bytes(const PackedLinear& linear) {
  const int64_t outliers = linear.parameter("outlier_columns", 0);
  const group_int_a8_cuda::FewTokensShape shape = {
      .n = linear.out_features,
      .columns = linear.in_features - outliers,
      .outliers = outliers,
      .weight_bits = static_cast<int>(linear.parameter("weight_bits", 0))};
  return static_cast<size_t>(shape.bytes() + 8 * linear.out_features + 8 * linear.in_features);
}

bool fuses(const PackedLinear&, const PackedLinear&) { return true; }

}  // namespace

extern const cuda::DeviceKernel kDeviceKernel;
const cuda::DeviceKernel kDeviceKernel = {
    .name = "cuda-quik", .refusal = refusal, .load = load, .bytes = device_bytes, .fuses = fuses};

}  // namespace nibble::quik_cuda

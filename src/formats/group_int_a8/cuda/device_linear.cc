// group_int_a8's row in the table of the device's kernels (backend/cuda/linear.h): integer products on the
// tensor cores from one packing, by one kernel for few tokens and others for prompts: group_product.h, or for
// whole rows as groups, and groups that fold, quik's.
#include <algorithm>
#include <iterator>

#include "backend/cuda/aligned_output.h"
#include "backend/cuda/linear.h"
#include "base/error.h"
#include "formats/group_int_a8/cuda/few_tokens.h"
#include "formats/group_int_a8/cuda/few_tokens_layout.h"
#include "formats/group_int_a8/cuda/group_product.h"
#include "formats/group_int_a8/cuda/quantize_step.h"
#include "formats/group_int_a8/cuda/uploaded_weights.h"
#include "formats/group_int_a8/layout.h"
#include "formats/quik/cuda/product.h"

namespace nibble::group_int_a8_cuda {
namespace {

// Up to so many tokens the kernel that reads every weight once is the faster one (bench/results/h100).
constexpr int kFewTokens = 16;
constexpr int kPlannedTokens[] = {8, 16};
// With few multipliers scaling sums is not slower than folding multipliers into the weights up to so many
// tokens (bench/results/h100/a8_prompt.txt).
constexpr int kScaledTokens = 128;

class A8Linear final : public cuda::DeviceLinear {
 public:
  A8Linear(std::span<const PackedLinear* const> linears, const cuda::Device& device, ThreadPool& pool)
      : k_(linears.front()->in_features),
        activation_scale_(group_int_a8::read_layout(*linears.front()).activation_scale),
        multiprocessors_(device.multiprocessors),
        memory_(pack_for_few_tokens(linears, &pool)),
        weights_(memory_.operand()) {
    for (size_t i = 0; i < std::size(kPlannedTokens); ++i)
      plans_[i] = plan_few_tokens(weights_, kPlannedTokens[i], multiprocessors_);
  }

  int64_t in_features() const override { return k_; }
  int64_t out_features() const override { return weights_.shape.n; }

  size_t workspace_bytes(int most_tokens) const override {
    return activation_memory(most_tokens) + cuda::AlignedOutput::bytes(out_features(), most_tokens);
  }

  void forward(const __half* x, int tokens, __half* y, int64_t y_stride, void* workspace,
               cudaStream_t stream) const override {
    const quik_cuda::Activations room = place(workspace, tokens);
    if (tokens <= kFewTokens) {
      cuda::check(launch_quantize_signed(x, tokens, static_cast<int>(k_), activation_scale_, room.codes,
                                         room.scales, rows() ? room.zeros : nullptr, stream),
                  "quantizing activations");
    } else {
      cuda::check(launch_quantize_prompt(x, tokens, static_cast<int>(k_), activation_scale_,
                                         weights_.shape.group, codes_in(room, tokens), stream),
                  "quantizing activations");
    }
    multiply(tokens, room, y, y_stride, workspace, stream);
  }

  bool takes(const cuda::InputStep&, int) const override { return k_ % 8 == 0 && k_ <= kMaximumStepColumns; }
  void forward_from(const cuda::InputStep& step, int tokens, __half* y, int64_t y_stride, void* workspace,
                    cudaStream_t stream) const override {
    const quik_cuda::Activations room = place(workspace, tokens);
    PromptActivations codes = codes_in(room, tokens);
    CodeOrder order = weights_.shape.group == 32 ? CodeOrder::kNarrow : CodeOrder::kPrompt;
    if (tokens <= kFewTokens) {
      order = CodeOrder::kColumns;
      codes.code_stride = few_code_stride();
    }
    cuda::check(
        launch_quantize_step(step, tokens, static_cast<int>(k_), activation_scale_, order, codes, stream),
        "quantizing activations");
    multiply(tokens, room, y, y_stride, workspace, stream);
  }

  std::unique_ptr<cuda::DeviceLinear> duplicate() const override {
    return std::unique_ptr<cuda::DeviceLinear>(new A8Linear(*this));
  }

  cuda::LinearPath path(int tokens) const override {
    const char* const prompt = whole_sums(tokens) ? "quik-product" : "a8-group-product";
    std::string arithmetic = format_text("int{}xint8->int32", weights_.shape.weight_bits);
    if (weights_.shape.weight_bits != 8) arithmetic += ", as int8";
    if (weights_.form == FewTokensForm::kFloatGroups) arithmetic += "; groups of columns summed in f32";
    if (weights_.form == FewTokensForm::kIntegerGroups) {
      arithmetic +=
          whole_sums(tokens) ? " times their group's multiplier" : "; groups of columns summed in int32";
    }
    return {tokens <= kFewTokens ? "a8-few-tokens" : prompt, std::move(arithmetic)};
  }

  size_t bytes() const override { return memory_.bytes(); }

 private:
  A8Linear(const A8Linear& other)
      : k_(other.k_),
        activation_scale_(other.activation_scale_),
        multiprocessors_(other.multiprocessors_),
        memory_(other.memory_),
        weights_(memory_.operand()) {
    std::copy(std::begin(other.plans_), std::end(other.plans_), plans_);
  }

  bool rows() const { return weights_.form == FewTokensForm::kRows; }
  // One sum over all columns, of unsigned activation codes.
  bool whole_sums(int tokens) const {
    return rows() || (weights_.folds && tokens > (weights_.shape.group == 128 ? kScaledTokens : kFewTokens));
  }

  quik_cuda::Activations place(void* workspace, int tokens) const {
    return quik_cuda::place_activations(workspace, tokens, static_cast<int>(k_), 0);
  }
  PromptActivations codes_in(const quik_cuda::Activations& room, int tokens) const {
    return {.codes = room.codes,
            .code_stride = room.code_stride,
            .scales = room.scales,
            .zeros = whole_sums(tokens) ? room.zeros : nullptr};
  }
  int64_t few_code_stride() const { return (k_ + 15) / 16 * 16; }

  void multiply(int tokens, const quik_cuda::Activations& room, __half* y, int64_t y_stride, void* workspace,
                cudaStream_t stream) const {
    if (tokens <= kFewTokens) return multiply_few(tokens, room, y, y_stride, stream);
    const cuda::AlignedOutput output(y, y_stride, out_features(), tokens,
                                     static_cast<uint8_t*>(workspace) + activation_memory(tokens));
    cuda::check(multiply_prompt(tokens, room, output, stream), "multiplying integers");
    output.move(stream);
  }

  cudaError_t multiply_prompt(int tokens, const quik_cuda::Activations& room,
                              const cuda::AlignedOutput& output, cudaStream_t stream) const {
    if (whole_sums(tokens)) {
      const quik_cuda::Configuration chosen = quik_cuda::choose(tokens, weights_.shape, multiprocessors_);
      return quik_cuda::Product(weights_, room, tokens, output.to(), output.stride(), chosen,
                                multiprocessors_)
          .launch(nullptr, stream);
    }
    const GroupConfiguration chosen = choose_group_configuration(tokens, weights_, multiprocessors_);
    return GroupProduct(weights_, codes_in(room, tokens), tokens, output.to(), output.stride(), chosen,
                        multiprocessors_)
        .launch(nullptr, stream);
  }

  void multiply_few(int tokens, const quik_cuda::Activations& room, __half* y, int64_t y_stride,
                    cudaStream_t stream) const {
    size_t plan = 0;
    while (kPlannedTokens[plan] < tokens) ++plan;
    cuda::check(launch_few_tokens(weights_,
                                  {.codes = room.codes,
                                   .code_stride = few_code_stride(),
                                   .scales = room.scales,
                                   .zeros = room.zeros},
                                  tokens, plans_[plan], y, y_stride, nullptr, stream),
                "multiplying integers");
  }

  size_t activation_memory(int tokens) const {
    return (quik_cuda::activation_bytes(tokens, static_cast<int>(k_), 0) + 255) / 256 * 256;
  }

  int64_t k_ = 0;
  float activation_scale_ = 0;
  int multiprocessors_ = 0;
  UploadedWeights memory_;
  FewTokensOperand weights_;  // in memory_
  FewTokensPlan plans_[std::size(kPlannedTokens)];
};

std::string refusal(const Problem& problem, const cuda::Device&) {
  return few_tokens_refusal(*problem.linear);
}

std::unique_ptr<cuda::DeviceLinear> load(std::span<const PackedLinear* const> linears,
                                         const cuda::Device& device, ThreadPool& pool) {
  return std::make_unique<A8Linear>(linears, device, pool);
}

size_t device_bytes(const PackedLinear& linear) {
  // Sums and scales of rows and the bias: 12 bytes a row at most.
  return static_cast<size_t>(few_tokens_shape(linear).bytes() + 12 * linear.out_features);
}

bool fuses(const PackedLinear&, const PackedLinear&) { return true; }

}  // namespace

extern const cuda::DeviceKernel kDeviceKernel;
const cuda::DeviceKernel kDeviceKernel = {
    .name = "cuda-a8", .refusal = refusal, .load = load, .bytes = device_bytes, .fuses = fuses};

}  // namespace nibble::group_int_a8_cuda

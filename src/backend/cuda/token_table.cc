#include "backend/cuda/token_table.h"

#include <array>
#include <string_view>

#include "backend/cuda/dense_linear.h"
#include "backend/cuda/elementwise.h"
#include "base/error.h"

namespace nibble {
namespace group_int_cuda {
extern const cuda::TokenTableKernel kTokenTableKernel;
}

namespace cuda {
namespace {

class DenseTable final : public TokenTable {
 public:
  explicit DenseTable(std::unique_ptr<DenseLinear> linear) : linear_(std::move(linear)) {}

  int64_t tokens() const override { return linear_->out_features(); }
  int64_t channels() const override { return linear_->in_features(); }
  void embed(const int32_t* ids, int count, float* residual, cudaStream_t stream) const override {
    launch_embed(linear_->weights(), ids, count, static_cast<int>(channels()), residual, stream);
  }
  void logits(const __half* x, int count, float* y, void* workspace, cudaStream_t stream) const override {
    linear_->forward_float(x, count, y, workspace, stream);
  }
  size_t workspace_bytes(int most_rows) const override { return linear_->workspace_bytes(most_rows); }
  void prepare(int count, void* workspace, cudaStream_t stream) const override {
    linear_->prepare_float(count, workspace, stream);
  }
  LinearPath path() const override { return linear_->path(1); }
  size_t bytes() const override { return linear_->bytes(); }

 private:
  std::unique_ptr<DenseLinear> linear_;
};

bool is_dense(const PackedLinear& table) { return std::string_view(table.format->name) == "dense"; }
std::string refuse_others(const PackedLinear& table) {
  return is_dense(table) ? "" : format_text("the table's format is {}", table.format->name);
}
std::string never_refused(const PackedLinear&) { return ""; }
std::unique_ptr<TokenTable> load(const PackedLinear& table, ThreadPool& pool) {
  const PackedLinear* const linears[] = {&table};
  return std::make_unique<DenseTable>(std::make_unique<DenseLinear>(linears, pool));
}
size_t half_bytes(const PackedLinear& table) {
  return 2 * static_cast<size_t>(table.out_features) * static_cast<size_t>(table.in_features);
}

constexpr TokenTableKernel kDenseTable = {
    .name = "cuda-f16", .refusal = refuse_others, .load = load, .bytes = half_bytes};
constexpr TokenTableKernel kExpandedTable = {
    .name = "cuda-expanded", .slower = true, .refusal = never_refused, .load = load, .bytes = half_bytes};
constexpr std::array kKernels = {&kDenseTable, &group_int_cuda::kTokenTableKernel, &kExpandedTable};

}  // namespace

TokenTableChoice choose_token_table(const PackedLinear& table) {
  TokenTableChoice choice;
  for (const TokenTableKernel* kernel : kKernels) {
    std::string refusal = kernel->refusal(table);
    if (refusal.empty()) {
      choice.kernel = kernel;
      break;
    }
    choice.refused.emplace_back(kernel, std::move(refusal));
  }
  NIBBLE_CHECK(choice.kernel != nullptr);
  return choice;
}

std::unique_ptr<TokenTable> make_random_table(int64_t tokens, int64_t channels, uint32_t seed) {
  return std::make_unique<DenseTable>(std::make_unique<DenseLinear>(tokens, channels, seed));
}

}  // namespace cuda
}  // namespace nibble

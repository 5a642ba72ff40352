// The kernel that runs everywhere: each row is dequantized, then multiplied in double precision.
#include <algorithm>

#include "formats/format.h"
#include "formats/group_int/kernels.h"
#include "formats/group_int/layout.h"

namespace nibble {
namespace {

constexpr int64_t kRowsPerTask = 16;

class ReferenceOp final : public LinearOp {
 public:
  explicit ReferenceOp(std::span<const PackedLinear* const> linears) {
    in_features_ = linears.front()->in_features;
    for (const PackedLinear* linear : linears) {
      pieces_.push_back({*linear, group_int_layout(*linear), out_features_});
      out_features_ += linear->out_features;
    }
  }

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    const Scratch::Frame frame(scratch);
    float* rows = scratch.take<float>(static_cast<size_t>(pool.size()) * static_cast<size_t>(in_features_));
    for (const Piece& piece : pieces_) {
      const GroupIntLayout& layout = piece.layout;
      pool.parallel_for(
          (layout.out_features + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int thread) {
            float* weight = rows + thread * in_features_;
            const int64_t end = std::min(layout.out_features, (task + 1) * kRowsPerTask);
            for (int64_t row = task * kRowsPerTask; row < end; ++row) {
              group_int_dequantize_row(layout, row, weight);
              for (int64_t t = 0; t < tokens; ++t) {
                double sum = layout.bias != nullptr ? static_cast<double>(layout.bias[row]) : 0.0;
                for (int64_t j = 0; j < in_features_; ++j) {
                  sum += static_cast<double>(x[t * in_features_ + j]) * static_cast<double>(weight[j]);
                }
                y[t * y_stride + piece.column + row] = static_cast<float>(sum);
              }
            }
          });
    }
  }

  size_t prepared_bytes() const override { return 0; }

 private:
  struct Piece {
    PackedLinear linear;  // keeps the tensors alive
    GroupIntLayout layout;
    int64_t column;  // where its outputs start in y
  };
  std::vector<Piece> pieces_;
  int64_t in_features_ = 0, out_features_ = 0;
};

std::unique_ptr<LinearOp> prepare(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<ReferenceOp>(linears);
}

}  // namespace

const LinearKernel kGroupIntReference = {
    .name = "group_int-reference",
    .refusal = [](const Problem&) { return std::string(); },
    .prepare = prepare,
};

}  // namespace nibble

// The LinearOp that runs everywhere, for formats that can tell one row's weights: each row is dequantized,
// then multiplied in double precision.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "formats/format.h"

namespace nibble {

// Layout has out_features and bias.
template <typename Layout>
class RowReferenceOp final : public LinearOp {
 public:
  using DequantizeRow = void (*)(const Layout& layout, int64_t row, float* weight);

  RowReferenceOp(std::span<const PackedLinear* const> linears, Layout (*layout_of)(const PackedLinear&),
                 DequantizeRow dequantize_row)
      : dequantize_row_(dequantize_row) {
    in_features_ = linears.front()->in_features;
    for (const PackedLinear* linear : linears) {
      pieces_.push_back({*linear, layout_of(*linear), out_features_});
      out_features_ += linear->out_features;
    }
  }

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    const Scratch::Frame frame(scratch);
    float* rows = scratch.take<float>(static_cast<size_t>(pool.size()) * static_cast<size_t>(in_features_));
    for (const Piece& piece : pieces_) {
      const Layout& layout = piece.layout;
      pool.parallel_for(
          (layout.out_features + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int thread) {
            float* weight = rows + thread * in_features_;
            const int64_t end = std::min(layout.out_features, (task + 1) * kRowsPerTask);
            for (int64_t row = task * kRowsPerTask; row < end; ++row) {
              dequantize_row_(layout, row, weight);
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
  static constexpr int64_t kRowsPerTask = 16;
  struct Piece {
    PackedLinear linear;  // keeps the tensors alive
    Layout layout;
    int64_t column;  // where its outputs start in y
  };
  DequantizeRow dequantize_row_;
  std::vector<Piece> pieces_;
  int64_t in_features_ = 0, out_features_ = 0;
};

}  // namespace nibble

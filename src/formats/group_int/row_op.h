// The LinearOp over RowKernels: which work goes to which thread. The cut depends on shapes only, so results
// do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "formats/format.h"
#include "formats/group_int/row_kernels.h"

namespace nibble {

// Codes of one GEMV task at least: long enough to hide the start of a stream. What is fetched ahead at its
// end is for another thread, so tasks are as long as a few per thread allow.
inline constexpr int64_t kRowGemvTaskBytes = 48 << 10;
inline constexpr int64_t kRowGemvTasks = 6;  // per thread
// One GEMM task: its activations (at kGroupIntDepth) stay in a second-level cache while its rows pass by.
inline constexpr int64_t kRowGemmTokens = 128;
inline constexpr int64_t kRowGemmRows = 64;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Layout has out_features, in_features, bits and row_bytes.
template <typename Layout>
class RowOp : public LinearOp {
 public:
  // `integers`, if any, take over few tokens where they suit every linear alike.
  RowOp(std::span<const PackedLinear* const> linears, const RowKernels<Layout>& kernels,
        Layout (*layout_of)(const PackedLinear&), const IntegerKernels<Layout>* integers = nullptr)
      : kernels_(kernels), integers_(integers) {
    int64_t column = 0;
    for (const PackedLinear* linear : linears) {
      pieces_.push_back({*linear, layout_of(*linear), column});
      column += linear->out_features;
    }
    in_features_ = linears.front()->in_features;
    bits_ = pieces_.front().layout.bits;
    out_features_ = column;
    fewest_rows_ = std::clamp<int64_t>(kRowGemvTaskBytes / pieces_.front().layout.row_bytes / 8 * 8, 8, 256);
    for (const Piece& piece : pieces_) {
      if (integers_ == nullptr) break;
      const int64_t segment = integers_->segment(piece.layout);
      if (segment == 0 || segment != integers_->segment(pieces_.front().layout) || piece.layout.bits != bits_)
        integers_ = nullptr;
    }
  }

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    if (tokens <= 0) return;
    const Scratch::Frame frame(scratch);
    if (integers_ != nullptr && tokens <= integers_->most_tokens) {
      forward_integers(x, tokens, y, y_stride, scratch, pool);
      return;
    }
    const int64_t stride = ceil_div(in_features_, kGroupIntUnit) * kGroupIntUnit;
    float* arranged = scratch.take<float>(static_cast<size_t>(tokens * stride));
    const auto arrange = [&](int64_t token) {
      kernels_.arrange(bits_, x + token * in_features_, in_features_, arranged + token * stride);
    };
    if (tokens <= kernels_.gemv_tokens) {
      for (int64_t t = 0; t < tokens; ++t) arrange(t);
      forward_few(arranged, x, tokens, y, y_stride, pool);
    } else {
      pool.parallel_for(ceil_div(tokens, 16), [&](int64_t task, int) {
        for (int64_t t = task * 16; t < std::min(tokens, (task + 1) * 16); ++t) arrange(t);
      });
      forward_many(arranged, stride, tokens, y, y_stride, scratch, pool);
    }
  }

  size_t prepared_bytes() const override { return 0; }

 protected:
  struct Piece {
    PackedLinear linear;  // keeps the tensors alive
    Layout layout;
    int64_t column;  // where its outputs start in y
  };

  // Calls body(piece, first row, rows, repeat, thread) for blocks of at most `rows_per_task` rows of every
  // piece.
  template <typename Body>
  void for_row_blocks(int64_t rows_per_task, int64_t repeats, ThreadPool& pool, Body&& body) const {
    int64_t blocks = 0;
    for (const Piece& piece : pieces_) blocks += ceil_div(piece.layout.out_features, rows_per_task);
    pool.parallel_for(blocks * repeats, [&](int64_t task, int thread) {
      int64_t block = task % blocks;
      for (const Piece& piece : pieces_) {
        const int64_t here = ceil_div(piece.layout.out_features, rows_per_task);
        if (block >= here) {
          block -= here;
          continue;
        }
        const int64_t first = block * rows_per_task;
        body(piece, first, std::min(rows_per_task, piece.layout.out_features - first), task / blocks, thread);
        return;
      }
    });
  }

  std::vector<Piece> pieces_;
  int64_t in_features_ = 0, out_features_ = 0;
  int bits_ = 0;

 private:
  // Rows of one task.
  int64_t gemv_rows(const ThreadPool& pool) const {
    return std::max(fewest_rows_, ceil_div(out_features_, 8 * kRowGemvTasks * pool.size()) * 8);
  }

  void forward_integers(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
                        ThreadPool& pool) const {
    const Layout& shared = pieces_.front().layout;
    const int64_t bytes = integers_->token_bytes(shared);
    uint8_t* prepared = scratch.take<uint8_t>(static_cast<size_t>(tokens * bytes));
    for (int64_t t = 0; t < tokens; ++t)
      integers_->prepare(shared, x + t * in_features_, prepared + t * bytes);
    for_row_blocks(
        gemv_rows(pool), 1, pool, [&](const Piece& piece, int64_t first, int64_t rows, int64_t, int) {
          integers_->multiply(piece.layout, first, rows, prepared, x, tokens, y + piece.column, y_stride);
        });
  }

  void forward_few(const float* x, const float* plain, int64_t tokens, float* y, int64_t y_stride,
                   ThreadPool& pool) const {
    for_row_blocks(gemv_rows(pool), 1, pool,
                   [&](const Piece& piece, int64_t first, int64_t rows, int64_t, int) {
                     kernels_.gemv(piece.layout, first, rows, x, plain, tokens, y + piece.column, y_stride);
                   });
  }

  void forward_many(const float* x, int64_t x_stride, int64_t tokens, float* y, int64_t y_stride,
                    Scratch& scratch, ThreadPool& pool) const {
    constexpr int64_t kPanel = kGroupIntPanelRows * kGroupIntDepth;
    float* panels = scratch.take<float>(static_cast<size_t>(pool.size() * kPanel));
    for_row_blocks(kRowGemmRows, ceil_div(tokens, kRowGemmTokens), pool,
                   [&](const Piece& piece, int64_t first, int64_t rows, int64_t token_block, int thread) {
                     const int64_t token = token_block * kRowGemmTokens;
                     kernels_.gemm(piece.layout, first, rows, x + token * x_stride,
                                   std::min(kRowGemmTokens, tokens - token), panels + thread * kPanel,
                                   y + token * y_stride + piece.column, y_stride);
                   });
  }

  const RowKernels<Layout>& kernels_;
  const IntegerKernels<Layout>* integers_;
  int64_t fewest_rows_ = 0;  // of a GEMV task
};

}  // namespace nibble

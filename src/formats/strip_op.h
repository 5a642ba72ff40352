// The op behind the vector kernels of formats that multiply strips of rows by chunks of quantized tokens
// (quik, group_int_a8): quantizes the activations once, then multiplies. What is computed for an output does
// not depend on how the work is cut or on the number of threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>

#include "formats/format.h"
#include "formats/strip_tasks.h"

namespace nibble {

// `Kind` says what differs between formats: types IsaKernels, Strips, Activations and Output (of their
// kernels.h and strips.h), and
//   kColumns                                           columns of one piece of a token's codes
//   code_columns(weights), pieces(weights)             columns that have codes, and pieces of them
//   accumulators(weights)                              integer accumulators of one token
//   token_codes(activations, weights, token)           a token's first piece ...
//   tile_rows(tokens, token)                           ... and how many times kColumns on the next one stands
//   quantize(isa, weights, x, tokens, scratch, pool)   -> Activations
//   scratch_bytes(weights, accumulators wanted)        of multiplying, per thread
template <typename Kind>
class StripOp final : public LinearOp {
  using IsaKernels = typename Kind::IsaKernels;
  using Activations = typename Kind::Activations;
  using Output = typename Kind::Output;

 public:
  StripOp(const IsaKernels& isa, std::span<const PackedLinear* const> linears, ThreadPool& pool)
      : isa_(isa), strips_(linears, pool) {}

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    if (tokens <= 0) return;
    const Scratch::Frame frame(scratch);
    multiply(Kind::quantize(isa_, strips_.weights(), x, tokens, scratch, pool),
             {.y = y, .y_stride = y_stride, .accumulators = nullptr}, scratch, pool);
  }

  bool integer_accumulators(const float* x, int64_t tokens, std::vector<uint8_t>* activation_codes,
                            std::vector<int32_t>* accumulators, Scratch& scratch,
                            ThreadPool& pool) const override {
    const Scratch::Frame frame(scratch);
    const auto& w = strips_.weights();
    const Activations activations = Kind::quantize(isa_, w, x, tokens, scratch, pool);
    const int64_t columns = Kind::code_columns(w);
    activation_codes->resize(static_cast<size_t>(tokens * columns));
    for (int64_t token = 0; token < tokens; ++token) {
      const auto* codes = Kind::token_codes(activations, w, token);
      const int64_t stride = Kind::tile_rows(tokens, token) * Kind::kColumns;
      for (int64_t column = 0; column < columns; column += Kind::kColumns) {
        const int64_t count = std::min<int64_t>(Kind::kColumns, columns - column);
        std::memcpy(activation_codes->data() + token * columns + column,
                    codes + column / Kind::kColumns * stride, static_cast<size_t>(count));
      }
    }
    accumulators->resize(static_cast<size_t>(tokens * Kind::accumulators(w)));
    multiply(activations, {.y = nullptr, .y_stride = 0, .accumulators = accumulators->data()}, scratch, pool);
    return true;
  }

  size_t prepared_bytes() const override { return strips_.bytes(); }

  // A LinearKernel's `prepare`.
  template <const IsaKernels& kIsa>
  static std::unique_ptr<LinearOp> prepare(std::span<const PackedLinear* const> linears, ThreadPool& pool) {
    return std::make_unique<StripOp>(kIsa, linears, pool);
  }

 private:
  void multiply(const Activations& a, const Output& output, Scratch& scratch, ThreadPool& pool) const {
    const auto& w = strips_.weights();
    const int64_t scratch_bytes = Kind::scratch_bytes(w, output.accumulators != nullptr);
    uint8_t* buffers = scratch.take<uint8_t>(static_cast<size_t>(pool.size() * scratch_bytes));
    for_strip_tasks(w.strips, a.tokens, Kind::pieces(w) * Kind::kColumns, pool,
                    [&](int64_t first_strip, int64_t last_strip, int64_t first, int64_t last, int thread) {
                      isa_.multiply(w, a, first_strip, last_strip, first, last, output,
                                    buffers + thread * scratch_bytes);
                    });
  }

  const IsaKernels& isa_;
  typename Kind::Strips strips_;
};

}  // namespace nibble

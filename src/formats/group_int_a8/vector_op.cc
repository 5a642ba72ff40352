// The op behind every vector kernel of group_int_a8: quantizes the activations once, then multiplies strips
// of rows by chunks of tokens. What is computed for an output does not depend on how the work is cut or on
// the number of threads.
#include <algorithm>
#include <cstring>
#include <memory>

#include "formats/cpu_refusal.h"
#include "formats/group_int_a8/strips.h"
#include "formats/strip_tasks.h"

namespace nibble::group_int_a8 {

extern const LinearKernel kAvx2Kernel, kAvxVnniKernel, kAvx512VnniKernel;

namespace {

class VectorOp final : public LinearOp {
 public:
  VectorOp(const IsaKernels& isa, std::span<const PackedLinear* const> linears, ThreadPool& pool)
      : isa_(isa), strips_(linears, pool) {}

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    if (tokens <= 0) return;
    const Scratch::Frame frame(scratch);
    multiply(quantize(x, tokens, scratch, pool), {.y = y, .y_stride = y_stride, .accumulators = nullptr},
             scratch, pool);
  }

  bool integer_accumulators(const float* x, int64_t tokens, std::vector<uint8_t>* activation_codes,
                            std::vector<int32_t>* accumulators, Scratch& scratch,
                            ThreadPool& pool) const override {
    const Scratch::Frame frame(scratch);
    const Weights& w = strips_.weights();
    const Activations activations = quantize(x, tokens, scratch, pool);
    activation_codes->resize(static_cast<size_t>(tokens * w.k));
    for (int64_t token = 0; token < tokens; ++token) {
      const int8_t* codes = token_codes(activations, w.steps, token);
      const int64_t stride = tile_rows(tokens, token) * kStep;
      for (int64_t column = 0; column < w.k; column += kStep) {
        const int64_t count = std::min<int64_t>(kStep, w.k - column);
        std::memcpy(activation_codes->data() + token * w.k + column, codes + column / kStep * stride,
                    static_cast<size_t>(count));
      }
    }
    accumulators->resize(static_cast<size_t>(tokens * w.n * (w.multipliers == nullptr ? w.groups : 1)));
    multiply(activations, {.y = nullptr, .y_stride = 0, .accumulators = accumulators->data()}, scratch, pool);
    return true;
  }

  size_t prepared_bytes() const override { return strips_.bytes(); }

 private:
  Activations quantize(const float* x, int64_t tokens, Scratch& scratch, ThreadPool& pool) const {
    const Weights& w = strips_.weights();
    const auto count = static_cast<size_t>(tokens);
    Activations a{};
    a.tokens = tokens;
    a.codes = scratch.take<int8_t>(count * static_cast<size_t>(w.steps * kStep));
    a.scales = scratch.take<float>(count);
    a.starts = scratch.take<int32_t>(count * static_cast<size_t>(w.groups));
    for_quantize_tasks(tokens, w.k, pool,
                       [&](int64_t first, int64_t last, int) { isa_.quantize(w, x, a, first, last); });
    return a;
  }

  void multiply(const Activations& a, const Output& output, Scratch& scratch, ThreadPool& pool) const {
    const Weights& w = strips_.weights();
    const int64_t scratch_bytes = multiply_scratch_bytes(w, output.accumulators != nullptr);
    uint8_t* buffers = scratch.take<uint8_t>(static_cast<size_t>(pool.size() * scratch_bytes));
    for_strip_tasks(w.strips, a.tokens, w.steps * kStep, pool,
                    [&](int64_t first_strip, int64_t last_strip, int64_t first, int64_t last, int thread) {
                      isa_.multiply(w, a, first_strip, last_strip, first, last, output,
                                    buffers + thread * scratch_bytes);
                    });
  }

  const IsaKernels& isa_;
  Strips strips_;
};

template <const IsaKernels& kIsa>
std::unique_ptr<LinearOp> prepare(std::span<const PackedLinear* const> linears, ThreadPool& pool) {
  return std::make_unique<VectorOp>(kIsa, linears, pool);
}

}  // namespace

const LinearKernel kAvx2Kernel = {"group_int_a8-avx2", cpu_refusal<CpuPath::kAvx2>, prepare<avx2::kKernels>};
const LinearKernel kAvxVnniKernel = {"group_int_a8-avxvnni", cpu_refusal<CpuPath::kAvxVnni>,
                                     prepare<avxvnni::kKernels>};
const LinearKernel kAvx512VnniKernel = {"group_int_a8-avx512vnni", cpu_refusal<CpuPath::kAvx512Vnni>,
                                        prepare<avx512vnni::kKernels>};

}  // namespace nibble::group_int_a8

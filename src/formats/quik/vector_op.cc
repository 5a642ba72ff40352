// The op behind every vector kernel of quik: quantizes the activations once, then multiplies strips of rows
// by chunks of tokens. What is computed for an output does not depend on how the work is cut or on the number
// of threads.
#include <algorithm>
#include <cstring>
#include <memory>

#include "formats/cpu_refusal.h"
#include "formats/quik/strips.h"
#include "formats/strip_tasks.h"

namespace nibble::quik {

extern const LinearKernel kAvx2Kernel, kAvxVnniKernel, kAvx512VnniKernel, kAmxKernel;

namespace {

// Splitting x of outlier columns in two bf16 numbers costs 2^-17 of a product; the format allows 4 k 2^-24.
constexpr int64_t kTileMinColumns = 64;

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
    activation_codes->resize(static_cast<size_t>(tokens * w.k_int));
    for (int64_t token = 0; token < tokens; ++token) {
      const uint8_t* codes = token_codes(activations, w.blocks, token);
      const int64_t stride = tile_rows(tokens, token) * kBlockColumns;
      for (int64_t column = 0; column < w.k_int; column += kBlockColumns) {
        const int64_t count = std::min<int64_t>(kBlockColumns, w.k_int - column);
        std::memcpy(activation_codes->data() + token * w.k_int + column,
                    codes + column / kBlockColumns * stride, static_cast<size_t>(count));
      }
    }
    accumulators->resize(static_cast<size_t>(tokens * w.n));
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
    a.codes = scratch.take<uint8_t>(count * static_cast<size_t>(w.blocks * kBlockColumns));
    a.scales = scratch.take<float>(count);
    a.zeros = scratch.take<int32_t>(count);
    a.offsets = scratch.take<int32_t>(count);
    a.outliers = scratch.take<float>(count * static_cast<size_t>(w.outliers));
    if (isa_.tiles_from_tokens > 0 && tokens >= isa_.tiles_from_tokens && w.outliers > 0 &&
        w.k >= kTileMinColumns) {
      a.outlier_tiles =
          scratch.take<uint16_t>(count * static_cast<size_t>(w.outlier_blocks * kOutlierBlock * 2));
    }
    const int64_t row_floats = quantize_scratch_floats(w);
    float* rows = scratch.take<float>(static_cast<size_t>(pool.size() * row_floats));
    for_quantize_tasks(tokens, w.k, pool, [&](int64_t first, int64_t last, int thread) {
      isa_.quantize(w, x, a, first, last, rows + thread * row_floats);
    });
    return a;
  }

  void multiply(const Activations& a, const Output& output, Scratch& scratch, ThreadPool& pool) const {
    const Weights& w = strips_.weights();
    const int64_t scratch_bytes = multiply_scratch_bytes(w);
    uint8_t* buffers = scratch.take<uint8_t>(static_cast<size_t>(pool.size() * scratch_bytes));
    for_strip_tasks(w.strips, a.tokens, w.blocks * kBlockColumns, pool,
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

const LinearKernel kAvx2Kernel = {"quik-avx2", cpu_refusal<CpuPath::kAvx2>, prepare<avx2::kKernels>};
const LinearKernel kAvxVnniKernel = {"quik-avxvnni", cpu_refusal<CpuPath::kAvxVnni>,
                                     prepare<avxvnni::kKernels>};
const LinearKernel kAvx512VnniKernel = {"quik-avx512vnni", cpu_refusal<CpuPath::kAvx512Vnni>,
                                        prepare<avx512vnni::kKernels>};
const LinearKernel kAmxKernel = {"quik-amx", cpu_refusal<CpuPath::kAmx>, prepare<amx::kKernels>};

}  // namespace nibble::quik

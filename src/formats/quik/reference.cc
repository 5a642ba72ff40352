// quik-reference: the definition of the format as plain loops, on any machine. Every other kernel is held to
// it.
#include <memory>
#include <vector>

#include "base/half.h"
#include "formats/format.h"
#include "formats/quik/layout.h"

namespace nibble::quik {

extern const LinearKernel kReferenceKernel;

namespace {

class ReferenceOp final : public LinearOp {
 public:
  explicit ReferenceOp(std::span<const PackedLinear* const> linears) {
    for (const PackedLinear* linear : linears) {
      parts_.push_back({read_layout(*linear), {}, {}, total_});
      Part& part = parts_.back();
      const Layout& layout = part.layout;
      part.codes.resize(static_cast<size_t>(layout.n * layout.k_int));
      part.sums.resize(static_cast<size_t>(layout.n));
      for (int64_t row = 0; row < layout.n; ++row) {
        int8_t* codes = part.codes.data() + row * layout.k_int;
        layout.unpack_row(row, codes);
        for (int64_t j = 0; j < layout.k_int; ++j) part.sums[row] += codes[j];
      }
      total_ += layout.n;
    }
  }

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    const Scratch::Frame frame(scratch);
    const Layout& shared = parts_.front().layout;
    uint8_t* codes = scratch.take<uint8_t>(static_cast<size_t>(pool.size() * shared.k_int));
    pool.parallel_for(tokens, [&](int64_t token, int thread) {
      const float* input = x + token * shared.k;
      uint8_t* token_codes = codes + thread * shared.k_int;
      const TokenRange range =
          quantize_token(input, shared.integer_columns, shared.activation_bits, token_codes);
      for (const Part& part : parts_) {
        for (int64_t row = 0; row < part.layout.n; ++row) {
          const int32_t corrected = accumulator(part, row, token_codes) - range.zero * part.sums[row];
          y[token * y_stride + part.first + row] =
              range.scale * static_cast<float>(corrected) * part.layout.scales[row] +
              outlier_product(part.layout, row, input) + part.layout.bias[row];
        }
      }
    });
  }

  bool integer_accumulators(const float* x, int64_t tokens, std::vector<uint8_t>* activation_codes,
                            std::vector<int32_t>* accumulators, Scratch&, ThreadPool&) const override {
    const Layout& shared = parts_.front().layout;
    activation_codes->resize(static_cast<size_t>(tokens * shared.k_int));
    accumulators->resize(static_cast<size_t>(tokens * total_));
    for (int64_t token = 0; token < tokens; ++token) {
      uint8_t* codes = activation_codes->data() + token * shared.k_int;
      quantize_token(x + token * shared.k, shared.integer_columns, shared.activation_bits, codes);
      for (const Part& part : parts_) {
        for (int64_t row = 0; row < part.layout.n; ++row) {
          (*accumulators)[token * total_ + part.first + row] = accumulator(part, row, codes);
        }
      }
    }
    return true;
  }

  size_t prepared_bytes() const override {
    size_t bytes = 0;
    for (const Part& part : parts_) {
      bytes += part.codes.size() + part.sums.size() * sizeof(int32_t) +
               (part.layout.scales.size() + part.layout.bias.size()) * sizeof(float) +
               part.layout.outlier_weights.size() * sizeof(uint16_t) +
               (part.layout.outlier_columns.size() + part.layout.integer_columns.size()) * sizeof(int32_t);
    }
    return bytes;
  }

 private:
  struct Part {
    Layout layout;
    std::vector<int8_t> codes;  // [n, k_int]
    std::vector<int32_t> sums;  // [n]
    int64_t first = 0;          // its first output column
  };

  static int32_t accumulator(const Part& part, int64_t row, const uint8_t* activation) {
    const int8_t* codes = part.codes.data() + row * part.layout.k_int;
    int32_t sum = 0;
    for (int64_t j = 0; j < part.layout.k_int; ++j) sum += activation[j] * codes[j];
    return sum;
  }

  static float outlier_product(const Layout& layout, int64_t row, const float* x) {
    float sum = 0;
    for (int64_t o = 0; o < layout.outliers(); ++o) {
      sum += x[layout.outlier_columns[o]] * f16_to_float(layout.outlier_weights[row * layout.outliers() + o]);
    }
    return sum;
  }

  std::vector<Part> parts_;
  int64_t total_ = 0;
};

}  // namespace

const LinearKernel kReferenceKernel = {
    .name = "quik-reference",
    .refusal = [](const Problem&) { return std::string(); },
    .prepare = [](std::span<const PackedLinear* const> linears, ThreadPool&) -> std::unique_ptr<LinearOp> {
      return std::make_unique<ReferenceOp>(linears);
    },
};

}  // namespace nibble::quik

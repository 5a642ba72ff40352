// quik_sparse-reference: the compressed form as plain loops, on any machine. Every other kernel is held to
// it.
#include <memory>
#include <vector>

#include "base/half.h"
#include "formats/quik/layout.h"
#include "formats/quik_sparse/layout.h"

namespace nibble::quik_sparse {

extern const LinearKernel kReferenceKernel;

namespace {

class ReferenceOp final : public LinearOp {
 public:
  explicit ReferenceOp(std::span<const PackedLinear* const> linears) {
    for (const PackedLinear* linear : linears) {
      parts_.push_back({*linear, read_layout(*linear), {}, total_});
      Part& part = parts_.back();
      const Layout& layout = part.layout;
      for (int64_t row = 0; row < layout.n; ++row) {
        int32_t sum = 0;
        for (int64_t group = 0; group < layout.groups; ++group) {
          const Layout::Pair pair = layout.pair(row, group);
          sum += pair.codes[0] + pair.codes[1];
        }
        part.sums.push_back(sum);
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
      const quik::TokenRange range =
          quik::quantize_token(input, shared.ascending_columns, shared.activation_bits, token_codes);
      for (const Part& part : parts_) {
        const Layout& layout = part.layout;
        for (int64_t row = 0; row < layout.n; ++row) {
          const int32_t corrected = accumulator(layout, row, token_codes) - range.zero * part.sums[row];
          float outliers = 0;
          for (int64_t o = 0; o < layout.outliers(); ++o) {
            outliers += input[layout.outlier_columns[o]] *
                        f16_to_float(layout.outlier_weights[row * layout.outliers() + o]);
          }
          y[token * y_stride + part.first + row] =
              range.scale * static_cast<float>(corrected) * layout.scales[row] + outliers + layout.bias[row];
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
      quik::quantize_token(x + token * shared.k, shared.ascending_columns, shared.activation_bits, codes);
      for (const Part& part : parts_) {
        for (int64_t row = 0; row < part.layout.n; ++row) {
          (*accumulators)[token * total_ + part.first + row] = accumulator(part.layout, row, codes);
        }
      }
    }
    return true;
  }

  size_t prepared_bytes() const override {
    size_t bytes = 0;
    for (const Part& part : parts_) {
      const Layout& layout = part.layout;
      bytes +=
          (layout.scales.size() + layout.bias.size()) * sizeof(float) +
          layout.outlier_weights.size() * sizeof(uint16_t) +
          (part.sums.size() + layout.outlier_columns.size() + 3 * layout.places.size()) * sizeof(int32_t);
    }
    return bytes;
  }

 private:
  struct Part {
    PackedLinear linear;  // keeps the tensors that the layout points into
    Layout layout;
    std::vector<int32_t> sums;  // [n] of the codes
    int64_t first = 0;          // its first output column
  };

  // `activation` are the codes of the integer columns in ascending order.
  static int32_t accumulator(const Layout& layout, int64_t row, const uint8_t* activation) {
    int32_t sum = 0;
    for (int64_t group = 0; group < layout.groups; ++group) {
      const Layout::Pair pair = layout.pair(row, group);
      for (int i = 0; i < 2; ++i) {
        if (pair.indices[i] < layout.k_int) sum += activation[layout.places[pair.indices[i]]] * pair.codes[i];
      }
    }
    return sum;
  }

  std::vector<Part> parts_;
  int64_t total_ = 0;
};

}  // namespace

const LinearKernel kReferenceKernel = {
    .name = "quik_sparse-reference",
    .refusal = [](const Problem&) { return std::string(); },
    .prepare = [](std::span<const PackedLinear* const> linears, ThreadPool&) -> std::unique_ptr<LinearOp> {
      return std::make_unique<ReferenceOp>(linears);
    },
};

}  // namespace nibble::quik_sparse

// group_int_a8-reference: the definition of the format as plain loops, on any machine. Every other kernel is
// held to it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "formats/format.h"
#include "formats/group_int_a8/layout.h"

namespace nibble::group_int_a8 {

extern const LinearKernel kReferenceKernel;

namespace {

// Quantizes one token (README.md, "Activation codes"); `codes` is [k]. Returns s.
float quantize_token(const float* x, const Layout& layout, int8_t* codes) {
  float largest = 0;
  bool finite = true;
  for (int64_t j = 0; j < layout.k; ++j) {
    finite = finite && std::isfinite(x[j]);
    largest = std::max(largest, std::fabs(x[j]));
  }
  const float s = layout.activation_scale > 0 ? layout.activation_scale : largest / 127.0f;
  if (!finite || s == 0) {
    std::memset(codes, 0, static_cast<size_t>(layout.k));
    return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  for (int64_t j = 0; j < layout.k; ++j) {
    codes[j] = static_cast<int8_t>(std::clamp(std::nearbyint(x[j] / s), -127.0f, 127.0f));
  }
  return s;
}

class ReferenceOp final : public LinearOp {
 public:
  explicit ReferenceOp(std::span<const PackedLinear* const> linears) {
    for (const PackedLinear* linear : linears) {
      parts_.push_back({read_layout(*linear), {}, total_});
      Part& part = parts_.back();
      part.codes.resize(static_cast<size_t>(part.layout.n * part.layout.k));
      for (int64_t row = 0; row < part.layout.n; ++row)
        part.layout.unpack_row(row, part.codes.data() + row * part.layout.k);
      total_ += part.layout.n;
    }
  }

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    const Scratch::Frame frame(scratch);
    const Layout& shared = parts_.front().layout;
    int8_t* codes = scratch.take<int8_t>(static_cast<size_t>(pool.size() * shared.k));
    pool.parallel_for(tokens, [&](int64_t token, int thread) {
      int8_t* token_codes = codes + thread * shared.k;
      const float s = quantize_token(x + token * shared.k, shared, token_codes);
      for (const Part& part : parts_) {
        for (int64_t row = 0; row < part.layout.n; ++row) {
          y[token * y_stride + part.first + row] =
              s * scaled_sum(part, row, token_codes) + part.layout.bias[row];
        }
      }
    });
  }

  bool integer_accumulators(const float* x, int64_t tokens, std::vector<uint8_t>* activation_codes,
                            std::vector<int32_t>* accumulators, Scratch&, ThreadPool&) const override {
    const Layout& shared = parts_.front().layout;
    activation_codes->resize(static_cast<size_t>(tokens * shared.k));
    accumulators->clear();
    for (int64_t token = 0; token < tokens; ++token) {
      int8_t* codes = reinterpret_cast<int8_t*>(activation_codes->data()) + token * shared.k;
      quantize_token(x + token * shared.k, shared, codes);
      for (const Part& part : parts_) {
        for (int64_t row = 0; row < part.layout.n; ++row) {
          if (shared.scale_kind != ScaleKind::kFloat) {
            accumulators->push_back(integer_sum(part, row, codes));
            continue;
          }
          for (int64_t group = 0; group < shared.groups; ++group)
            accumulators->push_back(group_sum(part, row, group, codes));
        }
      }
    }
    return true;
  }

  size_t prepared_bytes() const override {
    size_t bytes = 0;
    for (const Part& part : parts_) {
      const Layout& layout = part.layout;
      bytes += part.codes.size() + layout.multipliers.size() * sizeof(uint16_t) +
               (layout.scales.size() + layout.row_scales.size() + layout.bias.size()) * sizeof(float);
    }
    return bytes;
  }

 private:
  struct Part {
    Layout layout;
    std::vector<int8_t> codes;  // [n, k]
    int64_t first = 0;          // its first output column
  };

  static int32_t group_sum(const Part& part, int64_t row, int64_t group, const int8_t* activation) {
    const Layout& layout = part.layout;
    const int8_t* codes = part.codes.data() + row * layout.k;
    const int64_t end = std::min(layout.k, (group + 1) * layout.group_size);
    int32_t sum = 0;
    for (int64_t j = group * layout.group_size; j < end; ++j) sum += activation[j] * codes[j];
    return sum;
  }

  // validate() has made sure that no order of these additions overflows.
  static int32_t integer_sum(const Part& part, int64_t row, const int8_t* activation) {
    const Layout& layout = part.layout;
    int32_t sum = 0;
    for (int64_t group = 0; group < layout.groups; ++group)
      sum += layout.multipliers[row * layout.groups + group] * group_sum(part, row, group, activation);
    return sum;
  }

  static float scaled_sum(const Part& part, int64_t row, const int8_t* activation) {
    const Layout& layout = part.layout;
    if (layout.scale_kind != ScaleKind::kFloat)
      return static_cast<float>(integer_sum(part, row, activation)) * layout.row_scales[row];
    float sum = 0;
    for (int64_t group = 0; group < layout.groups; ++group) {
      sum += layout.scales[row * layout.groups + group] *
             static_cast<float>(group_sum(part, row, group, activation));
    }
    return sum;
  }

  std::vector<Part> parts_;
  int64_t total_ = 0;
};

}  // namespace

const LinearKernel kReferenceKernel = {
    .name = "group_int_a8-reference",
    .refusal = [](const Problem&) { return std::string(); },
    .prepare = [](std::span<const PackedLinear* const> linears, ThreadPool&) -> std::unique_ptr<LinearOp> {
      return std::make_unique<ReferenceOp>(linears);
    },
};

}  // namespace nibble::group_int_a8

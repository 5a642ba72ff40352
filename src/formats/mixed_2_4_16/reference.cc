// The kernel that runs everywhere: each row is dequantized, then multiplied in double precision.
#include <algorithm>

#include "formats/format.h"
#include "formats/mixed_2_4_16/kernels.h"

namespace nibble {

extern const LinearFormat kMixed2416Format;

namespace {

constexpr int64_t kRowsPerTask = 16;

class ReferenceOp final : public LinearOp {
 public:
  explicit ReferenceOp(std::span<const PackedLinear* const> linears) {
    for (const PackedLinear* linear : linears) linears_.push_back(*linear);
  }

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    const Scratch::Frame frame(scratch);
    const int64_t k = linears_.front().in_features;
    float* buffers = scratch.take<float>(static_cast<size_t>(pool.size() * kRowsPerTask * k));
    for (const PackedLinear& linear : linears_) {
      const Tensor* bias = linear.find("bias");
      pool.parallel_for((linear.out_features + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task,
                                                                                     int thread) {
        const int64_t first = task * kRowsPerTask, rows = std::min(kRowsPerTask, linear.out_features - first);
        float* weight = buffers + thread * kRowsPerTask * k;
        kMixed2416Format.dequantize_rows(linear, first, rows, weight);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t t = 0; t < tokens; ++t) {
            double sum = bias != nullptr ? static_cast<double>(bias->data<float>()[first + r]) : 0.0;
            for (int64_t j = 0; j < k; ++j) {
              sum += static_cast<double>(x[t * k + j]) * static_cast<double>(weight[r * k + j]);
            }
            y[t * y_stride + first + r] = static_cast<float>(sum);
          }
        }
      });
      y += linear.out_features;
    }
  }

  size_t prepared_bytes() const override { return 0; }

 private:
  std::vector<PackedLinear> linears_;  // keep the tensors alive
};

}  // namespace

const LinearKernel kMixedReference = {
    .name = "mixed_2_4_16-reference",
    .refusal = [](const Problem&) { return std::string(); },
    .prepare = [](std::span<const PackedLinear* const> linears, ThreadPool&) -> std::unique_ptr<LinearOp> {
      return std::make_unique<ReferenceOp>(linears);
    },
};

}  // namespace nibble

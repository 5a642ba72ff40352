// The dense product on each CPU path: the float GEMM of src/kernels, reading the canonical layout in place.
#include "formats/dense/kernels.h"

#include <vector>

#include "base/error.h"
#include "formats/cpu_refusal.h"
#include "kernels/gemm.h"

namespace nibble {
namespace {

class DenseOp final : public LinearOp {
 public:
  DenseOp(const FloatKernels& kernels, std::span<const PackedLinear* const> linears)
      : kernels_(kernels), in_features_(linears[0]->in_features) {
    int64_t column = 0;
    for (const PackedLinear* linear : linears) {
      const Tensor& weight = linear->tensors.at("weight");
      const Tensor* bias = linear->find("bias");
      tensors_.push_back(weight);
      if (bias != nullptr) tensors_.push_back(*bias);
      weights_.push_back({.type = weight.dtype() == DType::kF16    ? WeightType::kF16
                                  : weight.dtype() == DType::kBF16 ? WeightType::kBF16
                                                                   : WeightType::kF32,
                          .data = weight.raw(),
                          .bias = bias == nullptr ? nullptr : bias->data<float>(),
                          .n = linear->out_features,
                          .column = column});
      column += linear->out_features;
    }
  }

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    gemm(kernels_, x, tokens, in_features_, weights_, y, y_stride, scratch, pool);
  }

  size_t prepared_bytes() const override { return 0; }

 private:
  const FloatKernels& kernels_;
  int64_t in_features_;
  std::vector<GemmWeight> weights_;
  std::vector<Tensor> tensors_;  // keep the bytes alive
};

template <CpuPath kPath>
std::unique_ptr<LinearOp> prepare(std::span<const PackedLinear* const> linears, ThreadPool&) {
  const FloatKernels* kernels = float_kernels_for(kPath);
  NIBBLE_CHECK(kernels != nullptr);
  return std::make_unique<DenseOp>(*kernels, linears);
}

}  // namespace

const LinearKernel kDenseAvx512 = {"dense-avx512", cpu_refusal<CpuPath::kAvx512Vnni>,
                                   prepare<CpuPath::kAvx512Vnni>};
const LinearKernel kDenseAvx2 = {"dense-avx2", cpu_refusal<CpuPath::kAvx2>, prepare<CpuPath::kAvx2>};
const LinearKernel kDenseReference = {"dense-reference", cpu_refusal<CpuPath::kScalar>,
                                      prepare<CpuPath::kScalar>};

}  // namespace nibble

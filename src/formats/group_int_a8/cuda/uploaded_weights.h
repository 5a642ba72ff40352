// Weights of few_tokens_layout.h in GPU memory, for group_int_a8 and quik: one packing, which the kernels for
// few tokens and for prompts read.
#pragma once

#include <vector>

#include "backend/cuda/device.h"
#include "formats/group_int_a8/cuda/few_tokens.h"
#include "formats/group_int_a8/cuda/few_tokens_layout.h"

namespace nibble::group_int_a8_cuda {

// The values on the device; empty for none.
template <typename T>
cuda::Buffer uploaded(const std::vector<T>& values) {
  if (values.empty()) return {};
  cuda::Buffer buffer(sizeof(T) * values.size());
  buffer.upload(values.data(), sizeof(T) * values.size());
  return buffer;
}

class UploadedWeights {
 public:
  explicit UploadedWeights(const FewTokensWeights& packed)
      : form_(packed.form),
        shape_(packed.shape),
        folds_(packed.folds),
        slots_(uploaded(packed.slots)),
        row_scales_(uploaded(packed.row_scales)),
        code_sums_(uploaded(packed.code_sums)),
        bias_(uploaded(packed.bias)) {}
  // The same in other memory.
  UploadedWeights(const UploadedWeights& other)
      : form_(other.form_),
        shape_(other.shape_),
        folds_(other.folds_),
        slots_(other.slots_.clone()),
        row_scales_(other.row_scales_.clone()),
        code_sums_(other.code_sums_.clone()),
        bias_(other.bias_.clone()) {}
  UploadedWeights& operator=(const UploadedWeights&) = delete;

  FewTokensForm form() const { return form_; }
  const FewTokensShape& shape() const { return shape_; }
  FewTokensOperand operand() const {
    return {.form = form_,
            .shape = shape_,
            .folds = folds_,
            .slots = slots_.as<uint8_t>(),
            .row_scales = row_scales_.as<float>(),
            .code_sums = code_sums_.as<int32_t>(),
            .bias = bias_.as<float>()};
  }
  size_t bytes() const { return slots_.bytes() + row_scales_.bytes() + code_sums_.bytes() + bias_.bytes(); }

 private:
  FewTokensForm form_;
  FewTokensShape shape_;
  bool folds_;
  cuda::Buffer slots_, row_scales_, code_sums_, bias_;
};

}  // namespace nibble::group_int_a8_cuda

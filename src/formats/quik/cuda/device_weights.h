// quik's linears in GPU memory: one packing, which all of the format's kernels read.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "backend/cuda/device.h"
#include "formats/format.h"
#include "formats/group_int_a8/cuda/uploaded_weights.h"
#include "formats/quik/cuda/few_tokens.h"
#include "formats/quik/cuda/few_tokens_layout.h"
#include "formats/quik/cuda/product.h"
#include "formats/quik/layout.h"

namespace nibble::quik_cuda {

class DeviceWeights {
 public:
  // Packs and uploads linears that can_fuse() joins, one below the other.
  explicit DeviceWeights(std::span<const PackedLinear* const> linears);
  // The same in other memory.
  DeviceWeights(const DeviceWeights& other);
  DeviceWeights& operator=(const DeviceWeights&) = delete;

  const group_int_a8_cuda::FewTokensOperand& operand() const { return operand_; }
  const group_int_a8_cuda::FewTokensShape& shape() const { return operand_.shape; }
  int k() const { return k_; }
  int outliers() const { return static_cast<int>(shape().outliers); }
  int activation_bits() const { return activation_bits_; }
  // What launch_quantize() and launch_quantize_few() need to know of the input.
  Columns columns() const;
  FewTokensColumns few_tokens_columns() const { return {.places = places_.as<int32_t>()}; }
  size_t bytes() const;

 private:
  DeviceWeights(const quik::Layout& first, const FewTokensPacked& packed);

  int k_ = 0, activation_bits_ = 0;
  group_int_a8_cuda::UploadedWeights weights_;
  group_int_a8_cuda::FewTokensOperand operand_;  // in weights_
  cuda::Buffer words_, outlier_columns_, places_;
};

// Device memory that one of the linears takes.
size_t device_weight_bytes(const PackedLinear& linear);
// Why the kernels cannot take a linear, or nothing.
std::string device_weight_refusal(const PackedLinear& linear);

}  // namespace nibble::quik_cuda

#include "transforms/apply.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "formats/dense/dense.h"

namespace nibble {
namespace {

Tensor divided(const Tensor& values, std::span<const float> factors) {
  NIBBLE_CHECK(values.elements() == static_cast<int64_t>(factors.size()));
  Tensor result = Tensor::empty(DType::kF32, values.shape());
  const Tensor floats = to_f32(values);
  for (size_t i = 0; i < factors.size(); ++i)
    result.mutable_data<float>()[i] = floats.data<float>()[i] / factors[i];
  return result;
}

}  // namespace

void divide_inputs(std::span<const float> factors, InputStatistics* statistics) {
  const int64_t k = statistics->in_features;
  NIBBLE_CHECK(static_cast<int64_t>(factors.size()) == k);
  for (int64_t j = 0; j < k; ++j) statistics->max_abs[j] /= factors[j];
  if (!statistics->hessian.defined()) return;
  float* hessian = statistics->hessian.mutable_data<float>();
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      // One product for both triangles: the result stays symmetric to the bit.
      const double product = static_cast<double>(factors[i]) * static_cast<double>(factors[j]);
      hessian[i * k + j] = static_cast<float>(static_cast<double>(hessian[i * k + j]) / product);
    }
  }
}

void divide_norm(std::span<const float> factors, NormWeights* norm) {
  norm->weight = divided(norm->weight, factors);
  if (norm->bias.defined()) norm->bias = divided(norm->bias, factors);
}

Tensor float_weight(const LinearSlot& slot, int64_t in_features) {
  Tensor weight = Tensor::empty(DType::kF32, {slot.out_features, in_features});
  slot.packed->format->dequantize(*slot.packed, weight.mutable_data<float>());
  return weight;
}

void set_float_weight(LinearSlot& slot, const Tensor& weight) {
  slot.packed = std::make_shared<PackedLinear>(make_dense_linear(
      slot.name, weight, slot.packed->find("bias") != nullptr ? *slot.packed->find("bias") : Tensor()));
}

void multiply_columns(std::span<const float> factors, LinearGroup* group, ThreadPool& pool) {
  const int64_t k = group->in_features();
  NIBBLE_CHECK(static_cast<int64_t>(factors.size()) == k);
  for (LinearSlot& slot : group->slots()) {
    Tensor weight = float_weight(slot, k);
    float* values = weight.mutable_data<float>();
    pool.parallel_for(slot.out_features, [&](int64_t row, int) {
      for (int64_t j = 0; j < k; ++j) values[row * k + j] *= factors[j];
    });
    set_float_weight(slot, weight);
  }
}

void divide_rows(std::span<const float> factors, int64_t in_features, LinearSlot* slot, ThreadPool& pool) {
  NIBBLE_CHECK(static_cast<int64_t>(factors.size()) == slot->out_features);
  Tensor weight = float_weight(*slot, in_features);
  float* values = weight.mutable_data<float>();
  pool.parallel_for(slot->out_features, [&](int64_t row, int) {
    for (int64_t j = 0; j < in_features; ++j) values[row * in_features + j] /= factors[row];
  });
  const Tensor* bias = slot->packed->find("bias");
  slot->packed = std::make_shared<PackedLinear>(
      make_dense_linear(slot->name, weight, bias != nullptr ? divided(*bias, factors) : Tensor()));
}

std::vector<float> column_maxima(const LinearGroup& group) {
  const int64_t k = group.in_features();
  std::vector<float> largest(static_cast<size_t>(k));
  for (const LinearSlot& slot : group.slots()) {
    const Tensor weight = float_weight(slot, k);
    const float* values = weight.data<float>();
    for (int64_t row = 0; row < slot.out_features; ++row) {
      for (int64_t j = 0; j < k; ++j) largest[j] = std::max(largest[j], std::fabs(values[row * k + j]));
    }
  }
  return largest;
}

}  // namespace nibble

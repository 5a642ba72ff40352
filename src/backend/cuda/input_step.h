// The step of a block that makes a linear's input, as a description: a linear can take the step over and
// spare a kernel between; one that quantizes its input then quantizes the values as they are in FP32.
#pragma once

#include <cuda_fp16.h>

#include <variant>

namespace nibble::cuda {

// sum [tokens, k] = residual [tokens, k] + update [tokens, k] (null: nothing); then x = sum / rms(sum) *
// weight [k], with rms(r)^2 = mean(r^2) + epsilon. `sum` may be `residual` itself where one token's row is
// one block's; linears that take the step of a single token want it apart, since all their blocks read the
// row.
struct NormStep {
  const float* residual = nullptr;
  const __half* update = nullptr;
  float* sum = nullptr;
  const float* weight = nullptr;
  float epsilon = 0;
};

// x = silu(gate) * up of gate_up [tokens, 2 k] = gate, up.
struct GateStep {
  const __half* gate_up = nullptr;
};

// x [tokens, k] itself.
struct FloatStep {
  const float* x = nullptr;
};

// Pointers are 16-byte aligned, k is a multiple of 8.
using InputStep = std::variant<NormStep, GateStep, FloatStep>;

}  // namespace nibble::cuda

// The step of a block that makes a linear's input, as a description: a linear that quantizes its input can
// take the step over, quantize the values as they are in FP32, and spare a kernel between.
#pragma once

#include <cuda_fp16.h>

#include <variant>

namespace nibble::cuda {

// residual [tokens, k] += update [tokens, k] (null: nothing), in place; then x = residual / rms(residual) *
// weight [k], with rms(r)^2 = mean(r^2) + epsilon.
struct NormStep {
  float* residual = nullptr;
  const __half* update = nullptr;
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

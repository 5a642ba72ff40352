// Linears that share one input: q, k and v; gate and up; or one alone. They share calibration statistics,
// outlier columns and the run-time quantization of their input, and run fused where their format can.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "formats/format.h"
#include "models/model_spec.h"

namespace nibble {

struct LinearSlot {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  LinearRole role;
  int64_t out_features = 0;
  std::shared_ptr<const PackedLinear> packed;
};

class LinearGroup {
 public:
  LinearGroup(std::string input_name, int64_t in_features)
      : input_name_(std::move(input_name)), in_features_(in_features) {}

  const std::string& input_name() const { return input_name_; }  // "model.layers.0.self_attn.input"
  int64_t in_features() const { return in_features_; }
  int64_t out_features() const;  // of all members
  std::vector<LinearSlot>& slots() { return slots_; }
  const std::vector<LinearSlot>& slots() const { return slots_; }

  // Chooses kernels for the current packed weights and prepares them; call again after replacing a slot's
  // weight.
  void prepare(ThreadPool& pool);
  // y [tokens, out_features()] = outputs of the members side by side, in slot order.
  void forward(const float* x, int64_t tokens, float* y, Scratch& scratch, ThreadPool& pool) const;

  // For each slot the kernel that runs it (after prepare()).
  const LinearKernel* kernel_of(size_t slot) const { return kernels_.at(slot); }
  size_t prepared_bytes() const;

 private:
  struct Part {
    std::unique_ptr<LinearOp> op;
    int64_t column = 0;  // where its outputs start in y
  };
  std::string input_name_;
  int64_t in_features_;
  std::vector<LinearSlot> slots_;
  std::vector<Part> parts_;
  std::vector<const LinearKernel*> kernels_;
};

}  // namespace nibble

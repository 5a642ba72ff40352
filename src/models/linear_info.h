// The linears of a model by name, without loading anything: what recipes match and forecasts add up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/model_spec.h"

namespace nibble {

struct LinearInfo {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  LinearRole role;
  int64_t layer = 0;
  int64_t out_features = 0, in_features = 0;
};

// Every linear of the blocks, layer by layer in execution order; embedding and head are not among them.
std::vector<LinearInfo> list_linears(const ModelSpec& spec);

}  // namespace nibble

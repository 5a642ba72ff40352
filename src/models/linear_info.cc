#include "models/linear_info.h"

namespace nibble {

std::vector<LinearInfo> list_linears(const ModelSpec& spec) {
  std::vector<LinearInfo> linears;
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const auto add = [&](const char* name, LinearRole role, int64_t out_features, int64_t in_features) {
      linears.push_back({prefix + name, role, layer, out_features, in_features});
    };
    add("self_attn.q_proj", LinearRole::kQuery, spec.query_size(), spec.hidden_size);
    add("self_attn.k_proj", LinearRole::kKey, spec.kv_size(), spec.hidden_size);
    add("self_attn.v_proj", LinearRole::kValue, spec.kv_size(), spec.hidden_size);
    add("self_attn.o_proj", LinearRole::kAttentionOutput, spec.hidden_size, spec.query_size());
    if (spec.gated_mlp) add("mlp.gate_proj", LinearRole::kGate, spec.intermediate_size, spec.hidden_size);
    add("mlp.up_proj", LinearRole::kUp, spec.intermediate_size, spec.hidden_size);
    add("mlp.down_proj", LinearRole::kDown, spec.hidden_size, spec.intermediate_size);
  }
  return linears;
}

}  // namespace nibble

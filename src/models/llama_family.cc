// Llama and the architectures that differ from it in a few settings: RMS norm before attention and MLP,
// rotary embedding, grouped-query attention, SwiGLU.
#include "models/config_reader.h"

namespace nibble {

extern const Architecture kLlama, kMistral, kQwen2, kQwen3;

namespace {

ModelSpec read_common(const Json& config, const Json& generation_config, const std::string& source) {
  ModelSpec spec;
  read_dimensions(config, &spec, source);
  read_rope(config, &spec, source);
  read_token_ids(config, generation_config, &spec, source);
  require_silu(config, "hidden_act", source);
  return spec;
}

int64_t window_of(const Json& config, const std::string& source) {
  const auto found = config.find("sliding_window");
  if (found == config.end() || found->is_null()) return 0;
  return config_int(config, "sliding_window", std::nullopt, 1, kMaxContext, source);
}

void read_attention_bias(const Json& config, ModelSpec* spec, const std::string& source) {
  spec->query_key_value_bias = json_bool(config, "attention_bias", false, source);
  spec->attention_output_bias = spec->query_key_value_bias;
}

// A window is no setting of llama itself, but GGUF files of mistral models say "llama".
ModelSpec read_llama(const Json& config, const Json& generation_config, const std::string& source) {
  ModelSpec spec = read_common(config, generation_config, source);
  read_attention_bias(config, &spec, source);
  spec.mlp_bias = json_bool(config, "mlp_bias", false, source);
  read_sliding_window(config, window_of(config, source), 0, &spec, source);
  return spec;
}

ModelSpec read_mistral(const Json& config, const Json& generation_config, const std::string& source) {
  ModelSpec spec = read_common(config, generation_config, source);
  read_sliding_window(config, window_of(config, source), 0, &spec, source);
  return spec;
}

// Qwen models window the layers from max_window_layers on, and only when told to.
void read_qwen_window(const Json& config, ModelSpec* spec, const std::string& source) {
  const bool use = json_bool(config, "use_sliding_window", false, source);
  const int64_t first = config_int(config, "max_window_layers", 28, 0, kMaxLayers, source);
  read_sliding_window(config, use ? window_of(config, source) : 0, first, spec, source);
}

ModelSpec read_qwen2(const Json& config, const Json& generation_config, const std::string& source) {
  ModelSpec spec = read_common(config, generation_config, source);
  spec.query_key_value_bias = true;
  read_qwen_window(config, &spec, source);
  return spec;
}

ModelSpec read_qwen3(const Json& config, const Json& generation_config, const std::string& source) {
  ModelSpec spec = read_common(config, generation_config, source);
  spec.query_key_norm = true;
  read_attention_bias(config, &spec, source);
  read_qwen_window(config, &spec, source);
  return spec;
}

}  // namespace

const Architecture kLlama = {"llama", read_llama};
const Architecture kMistral = {"mistral", read_mistral};
const Architecture kQwen2 = {"qwen2", read_qwen2};
const Architecture kQwen3 = {"qwen3", read_qwen3};

}  // namespace nibble

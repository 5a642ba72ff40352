// A Hugging Face folder with random weights of any size, for dimensions that no trained fixture has.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>

#include "base/half.h"
#include "io/safetensors.h"
#include "program.h"

namespace nibble::e2e {

struct RandomModel {
  int64_t hidden = 64, intermediate = 176, heads = 4, kv_heads = 2, head_dim = 16, layers = 2;
  // Changes a tensor before it is written (for weights that are not finite, and the like).
  std::function<void(const std::string& name, Tensor& tensor)> change;

  // Writes config.json, model.safetensors (BF16) and the tokenizer of tiny/llama, whose vocabulary has 1024
  // tokens.
  void write(const std::filesystem::path& folder) const;
};

inline void RandomModel::write(const std::filesystem::path& folder) const {
  constexpr int64_t kVocabulary = 1024;
  std::filesystem::create_directories(folder);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    std::filesystem::copy_file(fixture(std::string("tiny/llama/") + file), folder / file);
  }
  const Json config = {
      {"model_type", "llama"},        {"hidden_size", hidden},           {"intermediate_size", intermediate},
      {"num_attention_heads", heads}, {"num_key_value_heads", kv_heads}, {"head_dim", head_dim},
      {"num_hidden_layers", layers},  {"vocab_size", kVocabulary},       {"max_position_embeddings", 512},
      {"rms_norm_eps", 1e-5},         {"rope_theta", 10000.0},           {"hidden_act", "silu"},
      {"tie_word_embeddings", false}, {"torch_dtype", "bfloat16"}};
  std::ofstream(folder / "config.json") << config.dump(2);

  uint64_t state = 0x243f6a8885a308d3u;
  const auto uniform = [&state] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int64_t>(state >> 33) - (int64_t{1} << 30)) * 0x1p-30f;
  };
  std::map<std::string, Tensor> tensors;
  const auto add = [&](const std::string& name, Shape shape, float centre, float width) {
    Tensor tensor = Tensor::empty(DType::kBF16, std::move(shape));
    for (int64_t i = 0; i < tensor.elements(); ++i) {
      tensor.mutable_data<uint16_t>()[i] = float_to_bf16(centre + width * uniform());
    }
    if (change) change(name, tensor);
    tensors.emplace(name, std::move(tensor));
  };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    add(name + ".weight", {out, in}, 0, 1.7f / std::sqrt(static_cast<float>(in)));
  };
  linear("model.embed_tokens", kVocabulary, hidden);
  linear("lm_head", kVocabulary, hidden);
  add("model.norm.weight", {hidden}, 1, 0.2f);
  for (int64_t layer = 0; layer < layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", {hidden}, 1, 0.2f);
    add(prefix + "post_attention_layernorm.weight", {hidden}, 1, 0.2f);
    linear(prefix + "self_attn.q_proj", heads * head_dim, hidden);
    linear(prefix + "self_attn.k_proj", kv_heads * head_dim, hidden);
    linear(prefix + "self_attn.v_proj", kv_heads * head_dim, hidden);
    linear(prefix + "self_attn.o_proj", hidden, heads * head_dim);
    linear(prefix + "mlp.gate_proj", intermediate, hidden);
    linear(prefix + "mlp.up_proj", intermediate, hidden);
    linear(prefix + "mlp.down_proj", hidden, intermediate);
  }
  write_safetensors(folder / "model.safetensors", tensors);
}

}  // namespace nibble::e2e

// An architecture as data: what a config.json of one model says, in one vocabulary for all families.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.h"
#include "kernels/hadamard.h"

namespace nibble {

enum class NormKind { kRms, kLayer };
enum class ActivationKind { kSilu, kGeluTanh, kGelu, kRelu };

// What a linear does in its block; recipes select by it.
enum class LinearRole { kQuery, kKey, kValue, kAttentionOutput, kGate, kUp, kDown, kHead };
std::string_view role_name(LinearRole role) noexcept;  // "q", "k", "v", "o", "gate", "up", "down", "head"

struct RopeSpec {
  bool enabled = true;
  double theta = 10000.0;
  int64_t rotary_dim = 0;    // of each head, from the front; 0: the whole head
  bool interleaved = false;  // pairs (2i, 2i+1) instead of (i, i + rotary_dim/2)
  enum class Scaling { kNone, kLinear, kLlama3 } scaling = Scaling::kNone;
  double factor = 1.0;
  double low_frequency_factor = 1.0, high_frequency_factor = 4.0;  // llama3
  double original_context = 8192;                                  // llama3
};

struct ModelSpec {
  std::string model_type;  // "llama", as in config.json
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocabulary = 0;
  int64_t context_length = 0;

  NormKind norm = NormKind::kRms;
  double norm_epsilon = 1e-5;
  bool query_key_norm = false;  // RMS norm of each head of q and k before rope (qwen3)
  ActivationKind activation = ActivationKind::kSilu;
  bool gated_mlp = true;
  bool query_key_value_bias = false, attention_output_bias = false, mlp_bias = false;
  bool tied_embeddings = false;
  RopeSpec rope;
  // Tokens a position sees, itself included, per layer; 0: all before it.
  std::vector<int64_t> sliding_window;

  // Applied to the input of every down projection while running ("nibble_rotation" of a rotated model).
  std::optional<HadamardShape> down_hadamard;

  int32_t bos_id = -1;
  std::vector<int32_t> eos_ids;  // of generation_config.json, else of config.json

  int64_t query_size() const { return heads * head_dim; }
  int64_t kv_size() const { return kv_heads * head_dim; }
};

// One architecture: how its config reads and what its tensors are called. A row of the table in
// models/all.cc.
struct Architecture {
  const char* model_type;  // config.json's "model_type"
  // Reads and checks the config. Throws Error naming file, key, value and what was expected (0 heads, 1e9
  // layers, ...).
  ModelSpec (*read_config)(const Json& config, const Json& generation_config, const std::string& source);
};
std::span<const Architecture* const> all_architectures();
// Throws Error that lists the known ones.
const Architecture& find_architecture(const Json& config, const std::string& source);
ModelSpec read_model_spec(const Checkpoint& checkpoint);

}  // namespace nibble

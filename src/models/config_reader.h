// Reading numbers of a config.json with the bounds every family shares; used by the family files.
#pragma once

#include <string>

#include "models/model_spec.h"

namespace nibble {

// Bounds beyond every model there is, small enough that products of two of them stay far from overflow.
inline constexpr int64_t kMaxHidden = int64_t{1} << 20;
inline constexpr int64_t kMaxIntermediate = int64_t{1} << 22;
inline constexpr int64_t kMaxLayers = 4096;
inline constexpr int64_t kMaxHeads = 65536;
inline constexpr int64_t kMaxHeadDim = 4096;
inline constexpr int64_t kMaxVocabulary = int64_t{1} << 24;
inline constexpr int64_t kMaxContext = int64_t{1} << 26;

// config[key] within [low, high], or Error naming file, key, value and range.
int64_t config_int(const Json& config, const std::string& key, std::optional<int64_t> otherwise, int64_t low,
                   int64_t high, const std::string& source);
double config_positive(const Json& config, const std::string& key, std::optional<double> otherwise,
                       const std::string& source);

// hidden_size, num_attention_heads, ..., vocab_size, max_position_embeddings, norm epsilon, head sizes.
void read_dimensions(const Json& config, ModelSpec* spec, const std::string& source);
// transformers 5's rope_parameters, or 4's rope_theta and rope_scaling.
void read_rope(const Json& config, ModelSpec* spec, const std::string& source);
// Which layers see a window: layer_types where given, else all layers from `first_layer` on.
void read_sliding_window(const Json& config, int64_t window, int64_t first_layer, ModelSpec* spec,
                         const std::string& source);
// bos_token_id and eos_token_id, generation_config first.
void read_token_ids(const Json& config, const Json& generation_config, ModelSpec* spec,
                    const std::string& source);
// Error unless config[key] (default "silu") names SiLU.
void require_silu(const Json& config, const std::string& key, const std::string& source);

}  // namespace nibble

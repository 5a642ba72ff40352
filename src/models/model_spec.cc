#include "models/model_spec.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "io/printable.h"
#include "models/config_reader.h"

namespace nibble {

std::string_view role_name(LinearRole role) noexcept {
  static constexpr std::string_view kNames[] = {"q", "k", "v", "o", "gate", "up", "down", "head"};
  return kNames[static_cast<size_t>(role)];
}

namespace {

// What a rotated model does while running. The rest of "nibble_rotation" tells what was done to its weights.
void read_rotation(const Json& config, ModelSpec* spec, const std::string& source) {
  const auto rotation = config.find("nibble_rotation");
  if (rotation == config.end() || rotation->is_null()) return;
  if (!rotation->is_object()) fail("{}: 'nibble_rotation' must be an object", source);
  const auto down = rotation->find("down_input");
  if (down == rotation->end() || down->is_null()) return;
  const std::string where = source + ": 'nibble_rotation', 'down_input'";
  if (!down->is_object()) fail("{} must be an object", where);
  HadamardShape shape = {.size = spec->intermediate_size};
  shape.block = config_int(*down, "block", std::nullopt, 1, spec->intermediate_size, where);
  shape.base = config_int(*down, "base", std::nullopt, 1, shape.block, where);
  const std::string problem = hadamard_shape_problem(shape);
  if (!problem.empty()) fail("{}: {}", where, problem);
  spec->down_hadamard = shape;
}

}  // namespace

ModelSpec read_model_spec(const Checkpoint& checkpoint) {
  const bool is_gguf = checkpoint.kind() == CheckpointKind::kGguf;
  const std::string source =
      is_gguf ? checkpoint.path().string() : (checkpoint.path() / "config.json").string();
  const Json& config = checkpoint.config();
  if (!config.is_object()) fail("{}: expected a JSON object", source);
  ModelSpec spec =
      find_architecture(config, source).read_config(config, checkpoint.generation_config(), source);
  spec.model_type = json_string(config, "model_type", std::nullopt, source);
  read_rotation(config, &spec, source);
  return spec;
}

int64_t config_int(const Json& config, const std::string& key, std::optional<int64_t> otherwise, int64_t low,
                   int64_t high, const std::string& source) {
  const int64_t value = json_int(config, key, otherwise, source);
  if (value < low || value > high) fail("{}: '{}' is {}, expected {} to {}", source, key, value, low, high);
  return value;
}

double config_positive(const Json& config, const std::string& key, std::optional<double> otherwise,
                       const std::string& source) {
  const double value = json_number(config, key, otherwise, source);
  if (!(value > 0) || !std::isfinite(value))
    fail("{}: '{}' is {}, expected a number above 0", source, key, value);
  return value;
}

void read_dimensions(const Json& config, ModelSpec* spec, const std::string& source) {
  spec->hidden_size = config_int(config, "hidden_size", std::nullopt, 1, kMaxHidden, source);
  spec->intermediate_size =
      config_int(config, "intermediate_size", std::nullopt, 1, kMaxIntermediate, source);
  spec->layers = config_int(config, "num_hidden_layers", std::nullopt, 1, kMaxLayers, source);
  spec->heads = config_int(config, "num_attention_heads", std::nullopt, 1, kMaxHeads, source);
  spec->kv_heads = config_int(config, "num_key_value_heads", spec->heads, 1, kMaxHeads, source);
  if (spec->heads % spec->kv_heads != 0) {
    fail("{}: 'num_attention_heads' ({}) is no multiple of 'num_key_value_heads' ({})", source, spec->heads,
         spec->kv_heads);
  }
  const auto head_dim = config.find("head_dim");
  if (head_dim != config.end() && !head_dim->is_null()) {
    spec->head_dim = config_int(config, "head_dim", std::nullopt, 1, kMaxHeadDim, source);
  } else {
    if (spec->hidden_size % spec->heads != 0) {
      fail("{}: 'head_dim' is not given and 'hidden_size' ({}) is no multiple of 'num_attention_heads' ({})",
           source, spec->hidden_size, spec->heads);
    }
    spec->head_dim = spec->hidden_size / spec->heads;
    if (spec->head_dim > kMaxHeadDim) {
      fail("{}: 'hidden_size' / 'num_attention_heads' is {}, expected at most {}", source, spec->head_dim,
           kMaxHeadDim);
    }
  }
  if (spec->head_dim % 2 != 0)
    fail("{}: the head size is {}, expected an even number", source, spec->head_dim);
  spec->vocabulary = config_int(config, "vocab_size", std::nullopt, 1, kMaxVocabulary, source);
  spec->context_length = config_int(config, "max_position_embeddings", 2048, 1, kMaxContext, source);
  spec->norm_epsilon = config_positive(config, "rms_norm_eps", 1e-6, source);
  if (spec->norm_epsilon > 1)
    fail("{}: 'rms_norm_eps' is {}, expected at most 1", source, spec->norm_epsilon);
  spec->tied_embeddings = json_bool(config, "tie_word_embeddings", false, source);
}

namespace {

void read_llama3_scaling(const Json& scaling, ModelSpec* spec, const std::string& source) {
  RopeSpec& rope = spec->rope;
  rope.scaling = RopeSpec::Scaling::kLlama3;
  rope.low_frequency_factor = config_positive(scaling, "low_freq_factor", std::nullopt, source);
  rope.high_frequency_factor = config_positive(scaling, "high_freq_factor", std::nullopt, source);
  rope.original_context = config_positive(scaling, "original_max_position_embeddings",
                                          static_cast<double>(spec->context_length), source);
  if (rope.high_frequency_factor <= rope.low_frequency_factor) {
    fail("{}: 'high_freq_factor' ({}) must exceed 'low_freq_factor' ({})", source, rope.high_frequency_factor,
         rope.low_frequency_factor);
  }
}

// The scaling named by "rope_type" ("type" in old files) of `scaling`.
void read_scaling(const Json& scaling, ModelSpec* spec, const std::string& source) {
  const std::string old_name = json_string(scaling, "type", "default", source);
  const std::string type = json_string(scaling, "rope_type", old_name, source);
  if (type == "default") return;
  if (type != "linear" && type != "llama3") {
    fail("{}: rope type '{}' is not supported, expected default, linear or llama3", source, printable(type));
  }
  spec->rope.factor = config_positive(scaling, "factor", std::nullopt, source);
  if (type == "linear") {
    spec->rope.scaling = RopeSpec::Scaling::kLinear;
  } else {
    read_llama3_scaling(scaling, spec, source);
  }
}

const Json* object_at(const Json& config, const char* key, const std::string& source) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return nullptr;
  if (!found->is_object()) fail("{}: '{}' must be an object", source, key);
  return &*found;
}

}  // namespace

void read_rope(const Json& config, ModelSpec* spec, const std::string& source) {
  const double top_level_theta = config_positive(config, "rope_theta", 10000.0, source);
  spec->rope.theta = top_level_theta;
  if (const Json* parameters = object_at(config, "rope_parameters", source)) {
    const std::string where = source + ": 'rope_parameters'";
    for (const auto& [key, value] : parameters->items()) {
      if (value.is_object())
        fail("{}: parameters per layer type ('{}') are not supported", where, printable(key));
    }
    spec->rope.theta = config_positive(*parameters, "rope_theta", top_level_theta, where);
    read_scaling(*parameters, spec, where);
  } else if (const Json* scaling = object_at(config, "rope_scaling", source)) {
    read_scaling(*scaling, spec, source + ": 'rope_scaling'");
  }
  if (spec->rope.theta < 1) fail("{}: 'rope_theta' is {}, expected at least 1", source, spec->rope.theta);
  const double partial = config_positive(config, "partial_rotary_factor", 1.0, source);
  if (partial != 1.0)
    fail("{}: 'partial_rotary_factor' is {}, expected 1 for this architecture", source, partial);
}

void read_sliding_window(const Json& config, int64_t window, int64_t first_layer, ModelSpec* spec,
                         const std::string& source) {
  spec->sliding_window.assign(static_cast<size_t>(spec->layers), 0);
  const auto types = config.find("layer_types");
  if (types == config.end() || types->is_null()) {
    for (int64_t layer = std::max<int64_t>(first_layer, 0); layer < spec->layers; ++layer) {
      spec->sliding_window[static_cast<size_t>(layer)] = window;
    }
    return;
  }
  if (!types->is_array() || static_cast<int64_t>(types->size()) != spec->layers) {
    fail("{}: 'layer_types' must be an array with one entry per layer ({})", source, spec->layers);
  }
  for (size_t layer = 0; layer < types->size(); ++layer) {
    const Json& type = (*types)[layer];
    if (type == "full_attention") continue;
    if (type != "sliding_attention") {
      fail("{}: 'layer_types' has {} for layer {}, expected full_attention or sliding_attention", source,
           type.is_string() ? "'" + printable(type.get<std::string>()) + "'" : "no text", layer);
    }
    if (window <= 0)
      fail("{}: layer {} is of type sliding_attention but 'sliding_window' is not set", source, layer);
    spec->sliding_window[layer] = window;
  }
}

void read_token_ids(const Json& config, const Json& generation_config, ModelSpec* spec,
                    const std::string& source) {
  const auto id = [&](const Json& value, const char* key) {
    if (!value.is_number_integer() || value < 0 || value >= spec->vocabulary) {
      fail("{}: '{}' is {}, expected a token id below 'vocab_size' ({})", source, key,
           printable(value.dump(-1, ' ', true)), spec->vocabulary);
    }
    return value.get<int32_t>();
  };
  const auto value_of = [&](const char* key) -> const Json* {
    for (const Json* object : {&generation_config, &config}) {
      if (!object->is_object()) continue;
      const auto found = object->find(key);
      if (found != object->end() && !found->is_null()) return &*found;
    }
    return nullptr;
  };
  if (const Json* bos = value_of("bos_token_id")) {
    const Json& first = bos->is_array() && !bos->empty() ? (*bos)[0] : *bos;
    spec->bos_id = id(first, "bos_token_id");
  }
  if (const Json* eos = value_of("eos_token_id")) {
    if (eos->is_array()) {
      for (const Json& each : *eos) spec->eos_ids.push_back(id(each, "eos_token_id"));
    } else {
      spec->eos_ids.push_back(id(*eos, "eos_token_id"));
    }
  }
}

void require_silu(const Json& config, const std::string& key, const std::string& source) {
  const std::string name = json_string(config, key, "silu", source);
  if (name != "silu" && name != "swish") {
    fail("{}: '{}' is '{}', expected 'silu' for this architecture", source, key, printable(name));
  }
}

}  // namespace nibble

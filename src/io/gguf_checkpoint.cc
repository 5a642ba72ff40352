// A GGUF file seen as a Hugging Face checkpoint.
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "base/error.h"
#include "io/aligned_view.h"
#include "io/checkpoint_builder.h"
#include "io/gguf.h"
#include "io/printable.h"

namespace nibble {
namespace {

struct NamePair {
  std::string_view gguf, hf;
};
constexpr NamePair kModelNames[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
};
constexpr NamePair kBlockNames[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

template <size_t N>
std::optional<std::string_view> lookup(const NamePair (&table)[N], std::string_view gguf) {
  for (const NamePair& pair : table) {
    if (pair.gguf == gguf) return pair.hf;
  }
  return std::nullopt;
}

// A name of the file taken apart: "blk.3.attn_q.weight" is block "3", part "attn_q", ending ".weight". The
// block stays text, so that "blk.03" cannot become a second name of block 3.
struct GgufName {
  std::string_view block, part, ending;
};
std::optional<GgufName> take_apart(std::string_view name) {
  GgufName made;
  for (const std::string_view ending : {".weight", ".bias"}) {
    if (name.ends_with(ending)) made.ending = ending;
  }
  if (made.ending.empty()) return std::nullopt;
  name.remove_suffix(made.ending.size());
  constexpr std::string_view kPrefix = "blk.";
  if (name.starts_with(kPrefix)) {
    name.remove_prefix(kPrefix.size());
    const size_t dot = name.find('.');
    if (dot == std::string_view::npos) return std::nullopt;
    made.block = name.substr(0, dot);
    name.remove_prefix(dot + 1);
    const bool number =
        !made.block.empty() && made.block.find_first_not_of("0123456789") == std::string_view::npos;
    if (!number || (made.block.size() > 1 && made.block[0] == '0')) return std::nullopt;
  }
  made.part = name;
  return made;
}

// The Hugging Face name; a name that the tables do not know stays as it is.
std::string hf_name(const std::string& gguf) {
  const auto name = take_apart(gguf);
  if (!name) return gguf;
  const auto part = name->block.empty() ? lookup(kModelNames, name->part) : lookup(kBlockNames, name->part);
  if (!part) return gguf;
  std::string made;
  if (!name->block.empty()) made = "model.layers." + std::string(name->block) + ".";
  return made.append(*part).append(name->ending);
}

// Metadata of one file with its architecture's prefix: get("block_count") reads "llama.block_count".
class Metadata {
 public:
  explicit Metadata(const GgufFile& file) : json_(file.metadata), source_(file.path.string()) {
    architecture_ = json_string(json_, "general.architecture", std::nullopt, source_);
  }
  const std::string& source() const { return source_; }
  const std::string& architecture() const { return architecture_; }

  const Json* find(const std::string& key) const {
    const auto place = json_.find(key);
    return place == json_.end() ? nullptr : &*place;
  }
  std::optional<int64_t> integer(const std::string& key) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (value->is_array()) fail("{}: '{}' differs between layers, which is not supported yet", source_, key);
    return json_int(json_, key, std::nullopt, source_);
  }
  std::optional<double> number(const std::string& key) const {
    if (find(key) == nullptr) return std::nullopt;
    return json_number(json_, key, std::nullopt, source_);
  }
  std::string own(const std::string& key) const { return architecture_ + "." + key; }

 private:
  const Json& json_;
  std::string source_, architecture_;
};

const GgufTensor* find_tensor(const GgufFile& file, std::string_view name) {
  for (const GgufTensor& tensor : file.tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

void refuse_other_files(const Metadata& metadata) {
  const Json* type = metadata.find("general.type");
  if (type != nullptr && type->is_string() && *type != "model") {
    fail("{}: holds '{}' (general.type), not a model", metadata.source(),
         printable(type->get_ref<const std::string&>(), 40));
  }
  if (metadata.integer("split.count").value_or(1) > 1) {
    fail("{}: one of {} parts of a split GGUF file, which is not supported yet; merge the parts first",
         metadata.source(), *metadata.integer("split.count"));
  }
}

// Linear scaling and the like; "rope.scale_linear" is how old files name the factor.
void add_rope(const Metadata& metadata, const GgufFile& file, Json& config) {
  config["rope_theta"] = metadata.number(metadata.own("rope.freq_base")).value_or(10000.0);
  const std::string type_key = metadata.own("rope.scaling.type");
  const std::string type = metadata.find(type_key) == nullptr
                               ? "linear"
                               : json_string(file.metadata, type_key, "linear", metadata.source());
  auto factor = metadata.number(metadata.own("rope.scaling.factor"));
  if (!factor) factor = metadata.number(metadata.own("rope.scale_linear"));
  if (type != "none" && factor && *factor != 0.0 && *factor != 1.0) {
    Json scaling = {{"rope_type", type}, {"factor", *factor}};
    if (const auto length = metadata.integer(metadata.own("rope.scaling.original_context_length"))) {
      scaling["original_max_position_embeddings"] = *length;
    }
    config["rope_scaling"] = std::move(scaling);
  }
  // Llama 3's scaling comes as one divisor per frequency.
  if (find_tensor(file, "rope_freqs.weight") != nullptr) config["nibble_rope_factors"] = true;
}

Json make_config(const Metadata& metadata, const GgufFile& file) {
  Json config = {{"model_type", metadata.architecture()}, {"hidden_act", "silu"}};
  constexpr std::pair<const char*, const char*> kIntegers[] = {
      {"embedding_length", "hidden_size"},           {"block_count", "num_hidden_layers"},
      {"feed_forward_length", "intermediate_size"},  {"attention.head_count", "num_attention_heads"},
      {"context_length", "max_position_embeddings"}, {"vocab_size", "vocab_size"},
  };
  for (const auto& [gguf, hf] : kIntegers) {
    if (const auto value = metadata.integer(metadata.own(gguf))) config[hf] = *value;
  }
  const auto heads = metadata.integer(metadata.own("attention.head_count"));
  if (const auto kv_heads = metadata.integer(metadata.own("attention.head_count_kv"))) {
    config["num_key_value_heads"] = *kv_heads;
  } else if (heads) {
    config["num_key_value_heads"] = *heads;
  }
  const auto hidden = metadata.integer(metadata.own("embedding_length"));
  if (const auto length = metadata.integer(metadata.own("attention.key_length"))) {
    config["head_dim"] = *length;
  } else if (const auto rotated = metadata.integer(metadata.own("rope.dimension_count"))) {
    config["head_dim"] = *rotated;
  } else if (hidden && heads && *heads > 0 && *hidden % *heads == 0) {
    config["head_dim"] = *hidden / *heads;
  }
  if (const auto epsilon = metadata.number(metadata.own("attention.layer_norm_rms_epsilon"))) {
    config["rms_norm_eps"] = *epsilon;
  }
  add_rope(metadata, file, config);

  if (const auto window = metadata.integer(metadata.own("attention.sliding_window")); window && *window > 0) {
    config["sliding_window"] = *window;
    // GGUF files of Mistral call themselves llama; the window is what tells them apart.
    if (metadata.architecture() == "llama") config["model_type"] = "mistral";
  }
  if (const GgufTensor* embedding = find_tensor(file, "token_embd.weight");
      embedding != nullptr && embedding->shape.size() == 2) {
    config["vocab_size"] = embedding->shape[0];
  } else if (const Json* tokens = metadata.find("tokenizer.ggml.tokens");
             !config.contains("vocab_size") && tokens != nullptr && tokens->is_array()) {
    config["vocab_size"] = tokens->size();
  }
  config["tie_word_embeddings"] = find_tensor(file, "output.weight") == nullptr;
  config["attention_bias"] = find_tensor(file, "blk.0.attn_q.bias") != nullptr;
  config["mlp_bias"] = find_tensor(file, "blk.0.ffn_gate.bias") != nullptr;
  constexpr std::pair<const char*, const char*> kTokens[] = {{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                                             {"tokenizer.ggml.eos_token_id", "eos_token_id"}};
  for (const auto& [gguf, hf] : kTokens) {
    if (const auto id = metadata.integer(gguf)) config[hf] = *id;
  }
  return config;
}

Json make_generation_config(const Metadata& metadata, const Json& config) {
  Json generation = Json::object();
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    if (config.contains(key)) generation[key] = config[key];
  }
  // A chat model may end its turn with another token than its text.
  const auto end_of_turn = metadata.integer("tokenizer.ggml.eot_token_id");
  if (end_of_turn && generation.contains("eos_token_id") && generation["eos_token_id"] != *end_of_turn) {
    generation["eos_token_id"] = {generation["eos_token_id"].get<int64_t>(), *end_of_turn};
  }
  return generation;
}

// llama.cpp rotates neighbouring elements of a head where Hugging Face rotates halves, so its converter
// reorders the rows of q and k of the "llama" architecture: row i of the first and row i of the second half
// of a head become rows 2i, 2i+1.
class RowOrder {
 public:
  RowOrder() = default;
  explicit RowOrder(int64_t head_rows) : head_rows_(head_rows) {}

  bool changed() const { return head_rows_ > 0; }
  // Where the file keeps Hugging Face's row.
  int64_t stored(int64_t row) const {
    if (!changed()) return row;
    const int64_t half = head_rows_ / 2, within = row % head_rows_;
    return row - within + (within < half ? 2 * within : 2 * (within - half) + 1);
  }

 private:
  int64_t head_rows_ = 0;  // 0: as stored
};

RowOrder row_order(const Metadata& metadata, const GgufTensor& tensor) {
  if (metadata.architecture() != "llama") return RowOrder();
  const auto name = take_apart(tensor.name);
  if (!name || name->block.empty() || (name->part != "attn_q" && name->part != "attn_k")) return RowOrder();
  const std::string heads_key = metadata.own("attention.head_count");
  auto heads = metadata.integer(heads_key);
  if (!heads) fail("{}: '{}' is missing", metadata.source(), heads_key);
  if (name->part == "attn_k")
    heads = metadata.integer(metadata.own("attention.head_count_kv")).value_or(*heads);
  const int64_t rows = row_layout(tensor.shape).rows;
  if (*heads <= 0 || rows % *heads != 0 || rows / *heads % 2 != 0) {
    fail("{}: tensor '{}' has {} rows, which do not divide into {} heads of even size", metadata.source(),
         printable(tensor.name), rows, *heads);
  }
  return RowOrder(rows / *heads);
}

CheckpointTensor block_tensor(std::string name, const GgufTensor& tensor, const GgufFile& file) {
  CheckpointTensor made;
  made.name = std::move(name);
  made.shape = tensor.shape;
  made.storage_type = tensor.type->name;
  made.stored_bytes = tensor.bytes;
  made.file = file.path;
  made.read_rows = [type = tensor.type, data = tensor.data, layout = row_layout(tensor.shape),
                    owner = file.owner](int64_t first, int64_t count, float* out) {
    NIBBLE_CHECK(first >= 0 && count >= 0 && first <= layout.rows && count <= layout.rows - first);
    decode_gguf_range(*type, data, first * layout.row_elements, count * layout.row_elements, out);
  };
  return made;
}

// Reads the rows one by one from where the file keeps them; the bytes are then no plain tensor of the right
// order.
CheckpointTensor reordered(CheckpointTensor tensor, RowOrder order) {
  tensor.plain.reset();
  tensor.read_rows = [read_stored = std::move(tensor.read_rows), order, layout = row_layout(tensor.shape)](
                         int64_t first, int64_t count, float* out) {
    NIBBLE_CHECK(first >= 0 && count >= 0 && first <= layout.rows && count <= layout.rows - first);
    for (int64_t row = first; row < first + count; ++row, out += layout.row_elements) {
      read_stored(order.stored(row), 1, out);
    }
  };
  return tensor;
}

}  // namespace

Checkpoint gguf_checkpoint(const GgufFile& file) {
  const Metadata metadata(file);
  refuse_other_files(metadata);
  CheckpointBuilder builder;
  builder.set_kind(CheckpointKind::kGguf);
  builder.set_path(file.path);
  builder.add_file(file.path);
  Json config = make_config(metadata, file);
  builder.set_generation_config(make_generation_config(metadata, config));
  builder.set_config(std::move(config));
  builder.set_gguf_metadata(file.metadata);

  for (const GgufTensor& tensor : file.tensors) {
    std::string name = hf_name(tensor.name);
    if (!tensor.type->plain && tensor.type->decode == nullptr) {
      builder.add_unsupported(name, std::string(tensor.type->name), file.path);
      continue;
    }
    CheckpointTensor made =
        tensor.type->plain
            ? plain_tensor(std::move(name),
                           aligned_view(*tensor.type->plain, tensor.shape, tensor.data, file.owner),
                           file.path)
            : block_tensor(std::move(name), tensor, file);
    const RowOrder order = row_order(metadata, tensor);
    builder.add_tensor(order.changed() ? reordered(std::move(made), order) : std::move(made));
  }
  return std::move(builder.made);
}

}  // namespace nibble

// Hugging Face and nibble folders: config.json beside model.safetensors or the shards that an index names.
#include <algorithm>
#include <set>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "io/checkpoint_builder.h"
#include "io/printable.h"
#include "io/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

// Says what the folder holds instead of weights that we can read.
[[noreturn]] void fail_without_weights(const fs::path& folder) {
  std::error_code error;
  std::vector<std::string> safetensors, pickles, ggufs;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const fs::path extension = entry->path().extension();
    if (extension == ".bin" || extension == ".pt" || extension == ".pth")
      pickles.push_back(entry->path().filename());
    if (extension == ".safetensors") safetensors.push_back(entry->path().filename());
    if (extension == ".gguf") ggufs.push_back(entry->path().filename());
  }
  std::sort(safetensors.begin(), safetensors.end());
  std::sort(pickles.begin(), pickles.end());
  std::sort(ggufs.begin(), ggufs.end());
  if (!safetensors.empty()) {
    fail("{}: found '{}', but neither {} nor the index {}", folder.string(), printable(safetensors[0]),
         kSingleFile, kIndexFile);
  }
  if (!ggufs.empty()) {
    fail("{}: no {}; to open '{}' give the path of that file", folder.string(), kSingleFile,
         printable(ggufs[0]));
  }
  if (!pickles.empty()) {
    fail(
        "{}: the weights are in '{}', a pickle file, which can run code and is not read; safetensors are "
        "needed",
        folder.string(), printable(pickles[0]));
  }
  fail("{}: neither {} nor {} found", folder.string(), kSingleFile, kIndexFile);
}

// Sets the kind from "quantization_config" and refuses other methods' checkpoints, whose tensors mean
// something else.
CheckpointKind kind_of(const Json& config, const std::string& source) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    const auto field = config.find(key);
    if (field == config.end() || field->is_null()) continue;
    if (!field->is_object()) fail("{}: '{}' must be an object", source, key);
    const std::string method = json_string(*field, "quant_method", "", source);
    if (method == "nibble") return CheckpointKind::kNibble;
    fail("{}: the model is quantized with {}, which is not supported yet", source,
         method.empty() ? "a method that 'quantization_config' does not name"
                        : "'" + printable(method, 40) + "' (quantization_config)");
  }
  return CheckpointKind::kHuggingFace;
}

// A shard's name joins the folder's path, so it must not lead out of it. (A shard that is a symbolic link is
// fine: the Hugging Face cache consists of links.)
void check_shard_name(const std::string& name, const std::string& source) {
  const bool plain = !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
                     name.find('\\') == std::string::npos && name.find('\0') == std::string::npos;
  if (!plain) fail("{}: shard name '{}' is not a plain file name", source, printable(name));
  if (fs::path(name).extension() != ".safetensors") {
    fail("{}: shard '{}' is not a .safetensors file", source, printable(name));
  }
}

void add_safetensors(CheckpointBuilder& builder, const fs::path& path) {
  SafetensorsFile file = open_safetensors(path);
  for (auto& [name, tensor] : file.tensors) builder.add_tensor(plain_tensor(name, std::move(tensor), path));
  for (const auto& [name, type] : file.unsupported) builder.add_unsupported(name, type, path);
  builder.add_file(path);
}

void add_sharded(CheckpointBuilder& builder, const fs::path& folder) {
  const fs::path index_path = folder / kIndexFile;
  const std::map<std::string, std::string> shard_of =
      parse_shard_index(read_json_file(index_path), index_path.string());

  std::set<std::string> shards, missing;
  for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    if (!is_file(folder / shard)) missing.insert(shard);
  }
  if (!missing.empty()) {
    fail("{}: shard '{}' is missing ({} of {} shards are)", folder.string(), printable(*missing.begin()),
         missing.size(), shards.size());
  }
  for (const std::string& shard : shards) add_safetensors(builder, folder / shard);

  for (const auto& [tensor, shard] : shard_of) {
    const auto unsupported = builder.made.unsupported().find(tensor);
    const auto place = builder.tensors().find(tensor);
    if (place == builder.tensors().end() && unsupported == builder.made.unsupported().end()) {
      fail("{}: tensor '{}' is not in shard '{}', where the index says it is", index_path.string(),
           printable(tensor), printable(shard));
    }
    if (place != builder.tensors().end() && place->second.file.filename() != shard) {
      fail("{}: tensor '{}' is in shard '{}', the index says '{}'", index_path.string(), printable(tensor),
           printable(place->second.file.filename().string()), printable(shard));
    }
  }
}

}  // namespace

std::map<std::string, std::string> parse_shard_index(const Json& index, const std::string& source) {
  if (!index.is_object()) fail("{}: expected a JSON object", source);
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) fail("{}: 'weight_map' must be an object", source);
  if (map->empty()) fail("{}: 'weight_map' names no tensors", source);
  std::map<std::string, std::string> shard_of;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) fail("{}: the shard of tensor '{}' must be a string", source, printable(tensor));
    check_shard_name(shard.get_ref<const std::string&>(), source);
    shard_of.emplace(tensor, shard.get<std::string>());
  }
  return shard_of;
}

Checkpoint open_hf_folder(const fs::path& folder) {
  const fs::path config_path = folder / "config.json";
  const bool single = is_file(folder / kSingleFile), sharded = is_file(folder / kIndexFile);
  if (!single && !sharded) fail_without_weights(folder);
  if (!is_file(config_path)) fail("{}: config.json is missing", folder.string());

  CheckpointBuilder builder;
  builder.set_path(folder);
  Json config = read_json_file(config_path);
  if (!config.is_object()) fail("{}: expected a JSON object", config_path.string());
  builder.set_kind(kind_of(config, config_path.string()));
  builder.set_config(std::move(config));

  Json generation = Json::object();
  if (const fs::path path = folder / "generation_config.json"; is_file(path)) {
    generation = read_json_file(path);
    if (!generation.is_object()) fail("{}: expected a JSON object", path.string());
  }
  builder.set_generation_config(std::move(generation));

  // With both present the single file wins, as in transformers.
  if (single) {
    add_safetensors(builder, folder / kSingleFile);
  } else {
    add_sharded(builder, folder);
  }
  return std::move(builder.made);
}

}  // namespace nibble

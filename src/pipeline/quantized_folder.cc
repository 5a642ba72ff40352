#include "pipeline/quantized_folder.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "base/log.h"
#include "io/gguf.h"
#include "io/mapped_file.h"
#include "io/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFingerprintFile = "run.json";
constexpr const char* kNotesKey = "nibble_notes";

// Files of a Hugging Face folder that belong to the model as much as its weights.
constexpr const char* kCompanionFiles[] = {"tokenizer.json",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "added_tokens.json",
                                           "generation_config.json",
                                           "chat_template.jinja",
                                           "tokenizer.gguf",
                                           "LICENSE",
                                           "LICENSE.txt"};

void write_text_file(const fs::path& path, const std::string& text) {
  AtomicOutput output(path, /*is_folder=*/false, /*replace=*/true);
  {
    std::ofstream file(output.temporary_path(), std::ios::binary);
    file << text;
    file.close();
    if (!file) fail("{}: cannot be written: {}", path.string(), std::strerror(errno));
  }
  output.commit();
}

}  // namespace

void add_entries(const PackedLinear& linear, std::map<std::string, Tensor>* entries) {
  for (const auto& [suffix, tensor] : linear.tensors) (*entries)[linear.name + "." + suffix] = tensor;
}

QuantizedFolder::QuantizedFolder(fs::path output, int64_t shards, const std::string& fingerprint, bool resume,
                                 bool replace)
    : output_(AtomicOutput::resumable_folder(std::move(output), replace)), shards_(shards) {
  const fs::path fingerprint_path = partial_path() / kFingerprintFile;
  if (resume && fs::exists(fingerprint_path)) {
    const Json earlier = read_json_file(fingerprint_path);
    if (json_string(earlier, "fingerprint", "", fingerprint_path.string()) != fingerprint) {
      fail(
          "{}: holds an unfinished run with another recipe, source, calibration or program version; run "
          "without "
          "--resume to start over",
          partial_path().string());
    }
    return;
  }
  if (resume) log_info("nothing to resume in {}; starting with the first block", partial_path().string());
  for (const auto& entry : fs::directory_iterator(partial_path())) fs::remove_all(entry.path());
  write_text_file(fingerprint_path, Json{{"fingerprint", fingerprint}}.dump(2) + "\n");
}

fs::path QuantizedFolder::shard_path(int64_t shard) const {
  return partial_path() / format_text("model-{:05}-of-{:05}.safetensors", shard + 1, shards_);
}

bool QuantizedFolder::has_shard(int64_t shard) const { return fs::exists(shard_path(shard)); }

void QuantizedFolder::write_shard(int64_t shard, const std::map<std::string, Tensor>& entries,
                                  const Json& notes) {
  // Wider elements first: offsets in a safetensors file have no padding, and this keeps every tensor aligned.
  std::vector<const std::pair<const std::string, Tensor>*> order;
  for (const auto& entry : entries) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return dtype_size(a->second.dtype()) > dtype_size(b->second.dtype());
  });
  std::vector<SafetensorsWriter::Declaration> declarations;
  for (const auto* entry : order) {
    declarations.push_back({entry->first, entry->second.dtype(), entry->second.shape()});
  }
  AtomicOutput output(shard_path(shard), /*is_folder=*/false, /*replace=*/true);
  SafetensorsWriter writer(output.temporary_path(), declarations,
                           {{"format", "nibble"}, {kNotesKey, notes.dump()}});
  for (const auto* entry : order) writer.write(entry->second);
  writer.close();
  output.commit();
}

std::map<std::string, Tensor> QuantizedFolder::read_shard(int64_t shard, Json* notes) const {
  const SafetensorsFile file = open_safetensors(shard_path(shard));
  const auto found = file.metadata.find(kNotesKey);
  if (found == file.metadata.end()) fail("{}: has no {}", file.path.string(), kNotesKey);
  *notes = parse_json(found->second, file.path.string());
  return file.tensors;
}

void QuantizedFolder::commit(const Json& config, const Checkpoint& source) {
  Json weight_map = Json::object();
  uint64_t total = 0;
  for (int64_t shard = 0; shard < shards_; ++shard) {
    const SafetensorsFile file = open_safetensors(shard_path(shard));
    for (const auto& [name, tensor] : file.tensors) {
      weight_map[name] = file.path.filename().string();
      total += tensor.bytes();
    }
  }
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(weight_map)}};
  write_text_file(partial_path() / "model.safetensors.index.json", index.dump(1) + "\n");

  if (source.kind() == CheckpointKind::kGguf) {
    const auto file = MappedFile::open(source.path());
    write_gguf_metadata(parse_gguf(file->bytes(), file, source.path()), partial_path() / "tokenizer.gguf");
    if (!source.generation_config().empty()) {
      write_text_file(partial_path() / "generation_config.json", source.generation_config().dump(2) + "\n");
    }
  } else {
    for (const char* name : kCompanionFiles) {
      const fs::path from = source.path() / name;
      if (fs::is_regular_file(from))
        fs::copy_file(from, partial_path() / name, fs::copy_options::overwrite_existing);
    }
  }
  write_text_file(partial_path() / "config.json", config.dump(2) + "\n");
  fs::remove(partial_path() / kFingerprintFile);
  output_.commit();
}

}  // namespace nibble

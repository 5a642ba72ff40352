#include "pipeline/quantized_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "base/log.h"
#include "io/atomic_output.h"
#include "io/gguf.h"
#include "io/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFingerprintFile = "run.json";
constexpr const char* kNotesKey = "nibble_notes";

// Files of a Hugging Face folder that belong to the model as much as its weights.
constexpr const char* kCompanionFiles[] = {"tokenizer.json",        "tokenizer_config.json", "special_tokens_map.json",
                                           "added_tokens.json",     "generation_config.json", "chat_template.jinja",
                                           "tokenizer.gguf",        "LICENSE",               "LICENSE.txt"};

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
    : output_(fs::absolute(std::move(output)).lexically_normal()), shards_(shards), replace_(replace) {
  if (output_.filename().empty()) output_ = output_.parent_path();
  partial_ = output_;
  partial_ += ".partial";
  if (fs::exists(output_)) {
    if (!replace_) fail("{}: exists already; give another -o, or --force to replace it", output_.string());
    // Replacing removes the old folder: only ever one of ours.
    if (!fs::is_directory(output_) || (!fs::is_empty(output_) && !fs::exists(output_ / "config.json"))) {
      fail("{}: is no model folder; --force replaces model folders only", output_.string());
    }
  }
  if (!fs::is_directory(output_.parent_path())) fail("{}: no such folder", output_.parent_path().string());

  std::error_code error;
  fs::create_directory(partial_, error);
  if (error) fail("{}: cannot be created: {}", partial_.string(), error.message());
  lock_ = ::open(partial_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0 || ::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    if (lock_ >= 0) ::close(lock_);
    fail("{}: another nibble is writing it", partial_.string());
  }

  const fs::path fingerprint_path = partial_ / kFingerprintFile;
  if (resume && fs::exists(fingerprint_path)) {
    const Json earlier = read_json_file(fingerprint_path);
    if (json_string(earlier, "fingerprint", "", fingerprint_path.string()) != fingerprint) {
      ::close(lock_);
      fail("{}: holds an unfinished run with another recipe, source, calibration or program version; run without "
           "--resume to start over",
           partial_.string());
    }
    return;
  }
  if (resume) log_info("nothing to resume in {}; starting from the first block", partial_.string());
  for (const auto& entry : fs::directory_iterator(partial_)) fs::remove_all(entry.path());
  write_text_file(fingerprint_path, Json{{"fingerprint", fingerprint}}.dump(2) + "\n");
}

QuantizedFolder::~QuantizedFolder() {
  if (lock_ >= 0) ::close(lock_);
}

fs::path QuantizedFolder::shard_path(int64_t shard) const {
  return partial_ / format_text("model-{:05}-of-{:05}.safetensors", shard + 1, shards_);
}

bool QuantizedFolder::has_shard(int64_t shard) const { return fs::exists(shard_path(shard)); }

void QuantizedFolder::write_shard(int64_t shard, const std::map<std::string, Tensor>& entries, const Json& notes) {
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
  SafetensorsWriter writer(output.temporary_path(), declarations, {{"format", "nibble"}, {kNotesKey, notes.dump()}});
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
  write_text_file(partial_ / "model.safetensors.index.json", index.dump(1) + "\n");

  if (source.kind() == CheckpointKind::kGguf) {
    write_gguf_metadata(source.path(), partial_ / "tokenizer.gguf");
    if (!source.generation_config().empty()) {
      write_text_file(partial_ / "generation_config.json", source.generation_config().dump(2) + "\n");
    }
  } else {
    for (const char* name : kCompanionFiles) {
      const fs::path from = source.path() / name;
      if (fs::is_regular_file(from)) fs::copy_file(from, partial_ / name, fs::copy_options::overwrite_existing);
    }
  }
  write_text_file(partial_ / "config.json", config.dump(2) + "\n");
  fs::remove(partial_ / kFingerprintFile);
  sync_tree(partial_);
  move_into_place(partial_, output_, replace_);
}

}  // namespace nibble

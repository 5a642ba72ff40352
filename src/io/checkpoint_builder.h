// How a Checkpoint is filled: by the dialects of io, and by transforms that derive one from another.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "io/checkpoint.h"

namespace nibble {

struct CheckpointBuilder {
  Checkpoint made;

  void set_kind(CheckpointKind kind) { made.kind_ = kind; }
  void set_path(std::filesystem::path path) { made.path_ = std::move(path); }
  void set_config(Json config) { made.config_ = std::move(config); }
  void set_generation_config(Json config) { made.generation_config_ = std::move(config); }
  void set_gguf_metadata(Json metadata) { made.gguf_metadata_ = std::move(metadata); }
  void add_file(std::filesystem::path path) { made.files_.push_back(std::move(path)); }
  const std::map<std::string, CheckpointTensor>& tensors() const { return made.tensors_; }

  // Both throw Error when the name is taken already, by whichever file.
  void add_tensor(CheckpointTensor tensor);
  void add_unsupported(const std::string& name, const std::string& type, const std::filesystem::path& file);
};

// Rows of a tensor and elements per row, as CheckpointTensor::read_rows counts them: along the first axis; a
// scalar is one row of one element.
struct RowLayout {
  int64_t rows = 0, row_elements = 0;
};
RowLayout row_layout(const Shape& shape);

// A tensor of plain elements.
CheckpointTensor plain_tensor(std::string name, Tensor values, const std::filesystem::path& file);

// The dialects behind Checkpoint::open.
Checkpoint open_hf_folder(const std::filesystem::path& folder);

// The "weight_map" of a model.safetensors.index.json: tensor -> shard. Shard names are plain .safetensors
// file names.
std::map<std::string, std::string> parse_shard_index(const Json& index, const std::string& source);

}  // namespace nibble
